//! One line as a request, or what is wrong with it.
//!
//! ```text
//!   bytes ─▶ UTF-8 ─▶ JSON ─▶ object ─▶ v ─▶ id ─▶ counts ─▶ do ─▶ its fields ─▶ Request
//!     └────────┴────────┴───────┴───────┴─────┴───────┴───────┴────────┴──▶ Reply with code `invalid`
//! ```
//!
//! Always true: whatever comes in, the refusal names the rule and what would satisfy it, carries the line's id if that
//! can be read, and repeats at most [`SHOWN_CHARS_MAX`] characters of what was given. A field that nobody knows is refused:
//! a mistyped `to` must not send a guest anywhere.

use godwit_domain::registry::REQUEST_ID_BYTES_MAX;
use godwit_wire::admin::{
    ADMIN_VERSION, Act, Body, COUNT_MAX, Code, ID_BYTES_MAX, Problem, Reply, Request, count_too_large,
};
use serde_json::{Map, Value};

/// How many characters of what was given a refusal repeats: enough to find the place, too few to fill a screen.
pub(crate) const SHOWN_CHARS_MAX: usize = 200;

/// Reads one line.
pub(crate) fn read(line: &[u8]) -> Result<Request, Box<Reply>> {
    let text = std::str::from_utf8(line).map_err(|error| {
        // What is not UTF-8 may stand anywhere, and the id may be whole.
        let id = serde_json::from_str(&String::from_utf8_lossy(line)).ok().as_ref().and_then(id_of);
        let message = format!("byte {} of the line is not UTF-8", error.valid_up_to() + 1);
        invalid(id, "utf-8", message, "send one JSON object per line, in UTF-8")
    })?;
    let value: Value = serde_json::from_str(text).map_err(|error| {
        let message = format!("the line is not JSON: {}: {}", shown(&error.to_string()), quoted(text));
        invalid(None, "json", message, EXAMPLE)
    })?;
    let id = id_of(&value);
    let refuse = |rule: &str, message: String, try_: &str| invalid(id.clone(), rule, message, try_);
    let Value::Object(fields) = &value else {
        let message = format!("the line is JSON, but no object: {}", quoted(text));
        return Err(refuse("object", message, EXAMPLE));
    };
    check_envelope(fields).map_err(|(rule, message, try_)| refuse(rule, message, &try_))?;
    for (name, field) in fields {
        if let Some(count) = count_too_large(field) {
            let message = format!("field {} holds {count}, above {COUNT_MAX}", quoted(name));
            return Err(refuse(
                "count",
                message,
                "give a count of at most 2^53 - 1: many readers of JSON round greater ones",
            ));
        }
    }
    check_act(fields).map_err(|(rule, message, try_)| refuse(rule, message, &try_))?;
    let request: Request = serde_json::from_value(value.clone()).map_err(|error| {
        let act = fields.get("do").and_then(Value::as_str).unwrap_or_default();
        let message = format!("{act}: {}", shown(&error.to_string()));
        refuse("field", message, "give the fields of this request as the documentation lists them")
    })?;
    check_known(fields, &request).map_err(|(rule, message, try_)| refuse(rule, message, &try_))?;
    Ok(request)
}

/// What a request looks like, for those who sent something else.
const EXAMPLE: &str = r#"send one JSON object per line, for example {"v":1,"id":"1","do":"status"}"#;

/// Rule, message, and what would satisfy it.
type Broken = (&'static str, String, String);

/// The version and the id.
fn check_envelope(fields: &Map<String, Value>) -> Result<(), Broken> {
    let try_version = || format!("say \"v\":{ADMIN_VERSION}");
    match fields.get("v") {
        None => return Err(("v", "field \"v\" is missing".to_owned(), try_version())),
        Some(v) if v.as_u64() == Some(u64::from(ADMIN_VERSION)) => {}
        Some(v) => {
            let message =
                format!("v is {}; this node speaks version {ADMIN_VERSION}", quoted(&v.to_string()));
            return Err(("v", message, try_version()));
        }
    }
    let try_id = || format!("say \"id\":\"…\", a text of at most {ID_BYTES_MAX} bytes that you choose");
    match fields.get("id") {
        None => return Err(("id", "field \"id\" is missing".to_owned(), try_id())),
        Some(Value::String(id)) if id.len() <= ID_BYTES_MAX => {}
        Some(Value::String(id)) => {
            let message = format!("the id has {} bytes, above {ID_BYTES_MAX}: {}", id.len(), quoted(id));
            return Err(("id", message, try_id()));
        }
        Some(other) => {
            return Err(("id", format!("the id is no text: {}", quoted(&other.to_string())), try_id()));
        }
    }
    check_request_id(fields.get("request_id"))
}

/// The id by which a repetition is known. Many are kept, by every voter.
fn check_request_id(given: Option<&Value>) -> Result<(), Broken> {
    let message = match given {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(id)) if id.is_empty() => "the request_id is empty".to_owned(),
        Some(Value::String(id)) if id.len() > REQUEST_ID_BYTES_MAX => {
            format!("the request_id has {} bytes, above {REQUEST_ID_BYTES_MAX}: {}", id.len(), quoted(id))
        }
        Some(Value::String(_)) => return Ok(()),
        Some(other) => format!("the request_id is no text: {}", quoted(&other.to_string())),
    };
    let try_ = format!(
        "say \"request_id\":\"…\", a text of 1 to {REQUEST_ID_BYTES_MAX} bytes, the same for a request and its repetition; or \
         leave it out"
    );
    Err(("request_id", message, try_))
}

/// That what is asked has a name that is known. The list comes from the types, so that it is never an old one.
fn check_act(fields: &Map<String, Value>) -> Result<(), Broken> {
    let try_ = || format!("say \"do\" with one of {}", acts().join(", "));
    match fields.get("do") {
        None => Err(("do", "field \"do\" is missing".to_owned(), try_())),
        Some(Value::String(act)) if acts().iter().any(|known| known == act) => Ok(()),
        Some(Value::String(act)) => Err(("do", format!("there is no request {}", quoted(act)), try_())),
        Some(other) => Err(("do", format!("\"do\" is no text: {}", quoted(&other.to_string())), try_())),
    }
}

/// That no field was given which the request does not have. A request that is written has all of its fields.
fn check_known(fields: &Map<String, Value>, request: &Request) -> Result<(), Broken> {
    let written = serde_json::to_value(request).unwrap_or_default();
    // One that is null is not written, and means the same as none.
    let known = |name: &str| name == "request_id" || written.get(name).is_some();
    match fields.keys().find(|name| !known(name.as_str())) {
        None => Ok(()),
        Some(unknown) => {
            let known = written.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
            let known = known.collect::<Vec<_>>().join(", ");
            let message = format!("this request has no field {}", quoted(unknown));
            Err(("field", message, format!("leave it out; the fields are {known}")))
        }
    }
}

/// The names of all requests, as the types know them.
fn acts() -> Vec<String> {
    let nameless = Value::Object(Map::from_iter([("do".to_owned(), Value::from(""))]));
    let error =
        serde_json::from_value::<Act>(nameless).map_or_else(|error| error.to_string(), |_| String::new());
    // "unknown variant ``, expected one of `version`, `status`, …"
    error.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

/// The id of a line, if it has one that may stand in an answer.
fn id_of(line: &Value) -> Option<String> {
    let id = line.get("id")?.as_str()?;
    (id.len() <= ID_BYTES_MAX && !id.contains(char::REPLACEMENT_CHARACTER)).then(|| id.to_owned())
}

/// A refusal. An unknown id is written as an empty one.
pub(crate) fn invalid(id: Option<String>, rule: &str, message: String, try_: &str) -> Box<Reply> {
    let body = Body::Error(Problem::new(Code::Invalid, rule, message, try_));
    Box::new(Reply { id: id.unwrap_or_default(), body })
}

/// A text, bounded, in which nothing moves a terminal's cursor.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(SHOWN_CHARS_MAX) {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// A text as it was given, in quotes and bounded.
fn quoted(text: &str) -> String {
    format!("\"{}\"", shown(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn refused(line: impl AsRef<[u8]>) -> (String, Problem) {
        match read(line.as_ref()).map_err(|reply| *reply) {
            Err(Reply { id, body: Body::Error(problem) }) => (id, problem),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_read_as_the_documentation_says() {
        let request = read(br#"{"v":1,"id":"x","do":"migrate","guest":"vm1","to":"node-b"}"#).expect("good");
        let Act::Migrate { guest, to, .. } = request.act else { panic!("another act") };
        assert_eq!(guest.to_string(), "default/vm1");
        assert_eq!(to.map(|to| to.to_string()).as_deref(), Some("node-b"));
        assert_eq!(request.request_id, None);
        let line = br#"{"v":1,"id":"x","request_id":"r.1","do":"migration-cancel","migration":"m"}"#;
        assert_eq!(read(line).expect("good").request_id.as_deref(), Some("r.1"));
        let line = br#"{"v":1,"id":"x","request_id":null,"do":"status"}"#;
        assert_eq!(read(line).expect("good").request_id, None);
        // A carriage return is blank to JSON.
        assert_eq!(read(b"{\"v\":1,\"id\":\"\",\"do\":\"status\"}\r").expect("good").act, Act::Status);
    }

    #[test]
    fn every_broken_rule_is_named_with_what_would_satisfy_it() {
        for (line, rule, said, id) in [
            ("", "json", "not JSON", ""),
            ("hello", "json", "\"hello\"", ""),
            (r#"{"v":1,"id":"a""#, "json", "EOF", ""),
            ("[1]", "object", "no object", ""),
            ("7", "object", "no object", ""),
            (r#"{"id":"a","do":"status"}"#, "v", "missing", "a"),
            (r#"{"v":2,"id":"a","do":"status"}"#, "v", "speaks version 1", "a"),
            (r#"{"v":"1","id":"a","do":"status"}"#, "v", "speaks version 1", "a"),
            (r#"{"v":1,"do":"status"}"#, "id", "missing", ""),
            (r#"{"v":1,"id":7,"do":"status"}"#, "id", "no text", ""),
            (r#"{"v":1,"id":"a","request_id":7,"do":"status"}"#, "request_id", "no text", "a"),
            (r#"{"v":1,"id":"a","request_id":"","do":"status"}"#, "request_id", "empty", "a"),
            (r#"{"v":1,"id":"a"}"#, "do", "missing", "a"),
            (r#"{"v":1,"id":"a","do":"fly"}"#, "do", "\"fly\"", "a"),
            (r#"{"v":1,"id":"a","do":["status"]}"#, "do", "no text", "a"),
            (r#"{"v":1,"id":"a","do":"migrate"}"#, "field", "missing field `guest`", "a"),
            (r#"{"v":1,"id":"a","do":"node-show","node":"A B"}"#, "field", "lower-case", "a"),
            (r#"{"v":1,"id":"a","do":"migrate","guest":"vm","too":"node-b"}"#, "field", "\"too\"", "a"),
            (r#"{"v":1,"id":"a","do":"status","extra":1}"#, "field", "\"extra\"", "a"),
            (
                r#"{"v":1,"id":"a","do":"migrate","guest":"vm","overrides":{"speed":1}}"#,
                "field",
                "`speed`",
                "a",
            ),
            (
                r#"{"v":1,"id":"a","do":"guest-create","guest":"vm","spec":{"seed":9007199254740992}}"#,
                "count",
                "\"spec\" holds 9007199254740992",
                "a",
            ),
            (r#"{"v":1,"id":"a","do":"status","x":[18446744073709551615]}"#, "count", "\"x\"", "a"),
        ] {
            let (told_id, problem) = refused(line);
            assert_eq!(
                (problem.code, problem.rule.as_str(), told_id.as_str()),
                (Code::Invalid, rule, id),
                "{line}"
            );
            assert!(problem.message.contains(said), "{line}: {}", problem.message);
            assert!(!problem.try_.is_empty(), "{line}");
        }
    }

    #[test]
    fn an_unknown_request_is_told_the_known_ones() {
        let (_, problem) = refused(r#"{"v":1,"id":"a","do":"fly"}"#);
        for act in ["version", "node-fence", "guest-recover", "migration-watch", "migration-cancel"] {
            assert!(problem.try_.contains(act), "{}", problem.try_);
        }
        assert_eq!(acts().len(), problem.try_.split(", ").count());
    }

    #[test]
    fn a_line_that_is_not_utf_8_keeps_its_id_if_that_is_whole() {
        let (id, problem) = refused(b"{\"v\":1,\"id\":\"a\",\"do\":\"\xff\"}");
        assert_eq!((id.as_str(), problem.rule.as_str()), ("a", "utf-8"));
        assert!(problem.message.contains("byte 23"), "{}", problem.message);
        assert_eq!(refused(b"{\"v\":1,\"id\":\"\xff\",\"do\":\"status\"}").0, "");
        assert_eq!(refused(b"\xc3").0, "");
    }

    #[test]
    fn a_refusal_has_a_bound_and_moves_no_cursor() {
        let long = "x\u{1b}[2J".repeat(2000);
        let text = serde_json::to_string(&long).expect("JSON");
        for line in [
            text.clone(),
            format!("{{{text}"),
            format!(r#"{{"v":{text},"id":"a","do":"status"}}"#),
            format!(r#"{{"v":1,"id":{text},"do":"status"}}"#),
            format!(r#"{{"v":1,"id":"a","request_id":{text},"do":"status"}}"#),
            format!(r#"{{"v":1,"id":"a","do":{text}}}"#),
            format!(r#"{{"v":1,"id":"a","do":"status",{text}:1}}"#),
            format!(r#"{{"v":1,"id":"a","do":"migrate","guest":{text}}}"#),
            format!(r#"{{"v":1,"id":"a","do":"migrate","guest":"vm","overrides":{{{text}:1}}}}"#),
            format!(r#"{{"v":1,"id":"a","do":"node-fence","node":"a","although_reachable":{text}}}"#),
            "[".repeat(60_000),
            long,
        ] {
            let (_, problem) = refused(&line);
            // Quoting every character as an escape is the longest that it gets.
            let said = problem.message.chars().count();
            assert!(said < 2 * 6 * SHOWN_CHARS_MAX, "{said}: {}", problem.message);
            assert!(problem.message.matches('x').count() <= SHOWN_CHARS_MAX, "{}", problem.message);
            assert!(!problem.message.contains('\u{1b}'), "{}", problem.message);
        }
        let (id, _) = refused(format!(r#"{{"v":1,"id":"{}","do":"status"}}"#, "i".repeat(ID_BYTES_MAX + 1)));
        assert_eq!(id, "");
        assert!(
            read(format!(r#"{{"v":1,"id":"{}","do":"status"}}"#, "i".repeat(ID_BYTES_MAX)).as_bytes())
                .is_ok()
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&line);
        }

        #[test]
        fn nothing_that_is_nearly_right_panics(
            cut in 0..80_usize, at in 0..80_usize, byte in any::<u8>(),
        ) {
            let mut line = br#"{"v":1,"id":"x","do":"migrate","guest":"default/vm1","to":"node-b"}"#.to_vec();
            line.truncate(line.len() - cut.min(line.len()));
            if let Some(there) = line.get_mut(at) {
                *there = byte;
            }
            let _ = read(&line);
        }
    }
}
