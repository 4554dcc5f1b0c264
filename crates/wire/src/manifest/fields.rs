//! A map of a manifest, read key by key: where it stands, and what nobody asked for.
//!
//! ```text
//!   Fields("spec.template") ── fields("spec") ──▶ Fields("spec.template.spec") ── text, truth, quantity, labels
//!          └─ rest(): the keys that were never asked for ─▶ refused, or a note
//! ```
//!
//! Always true: `null` is the same as no key at all, as in Kubernetes; a fault names the whole path.

use std::collections::BTreeSet;

use godwit_domain::{Labels, Quantity, labels};
use serde_json::{Map, Value};

use super::scalar;

/// How much of a word a message repeats, in characters.
const SHOWN_MAX: usize = 64;
/// Most paths that one note lists.
const LISTED_MAX: usize = 20;

/// What is wrong, and where.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) path: String,
    pub(super) rule: String,
}

impl Fault {
    pub(super) fn new(path: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { path: path.into(), rule: rule.into() }
    }
}

/// What people should know of what was accepted.
#[derive(Debug, Default)]
pub(super) struct Notes {
    said: Vec<String>,
    ignored: Vec<String>,
}

impl Notes {
    pub(super) fn say(&mut self, note: impl Into<String>) {
        self.said.push(note.into());
    }

    pub(super) fn ignore(&mut self, path: impl Into<String>) {
        self.ignored.push(path.into());
    }

    pub(super) fn ignore_rest(&mut self, fields: &Fields<'_>) {
        self.ignored.extend(fields.rest());
    }

    /// All of them; what is ignored is one note, and that has a bound.
    pub(super) fn finish(self) -> Vec<String> {
        let Self { said: mut notes, ignored } = self;
        if !ignored.is_empty() {
            let more = match ignored.len().saturating_sub(LISTED_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let listed: Vec<&str> = ignored.iter().take(LISTED_MAX).map(String::as_str).collect();
            notes.push(format!("ignored: {}{more}", listed.join(", ")));
        }
        notes
    }
}

/// A map, and where it stands.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
    asked: BTreeSet<&'a str>,
}

impl<'a> Fields<'a> {
    pub(super) fn of(value: &'a Value, path: impl Into<String>) -> Result<Self, Fault> {
        let path = path.into();
        match value.as_object() {
            Some(map) => Ok(Self { map, path, asked: BTreeSet::new() }),
            None => Err(Fault::new(path, format!("must be a map, not {}", what(value)))),
        }
    }

    /// The path of a key, or of the map itself where the key is empty.
    pub(super) fn path(&self, key: &str) -> String {
        join(&self.path, key)
    }

    pub(super) fn fault(&self, key: &str, rule: impl Into<String>) -> Fault {
        Fault::new(self.path(key), rule)
    }

    /// All keys with their values; they count as asked for.
    pub(super) fn all(&mut self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.asked.extend(self.map.keys().map(String::as_str));
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub(super) fn value(&mut self, key: &str) -> Option<&'a Value> {
        let (key, value) = self.map.get_key_value(key)?;
        self.asked.insert(key);
        Some(value).filter(|value| !value.is_null())
    }

    pub(super) fn fields(&mut self, key: &str) -> Result<Option<Fields<'a>>, Fault> {
        let path = self.path(key);
        self.value(key).map(|value| Fields::of(value, path)).transpose()
    }

    pub(super) fn list(&mut self, key: &str) -> Result<&'a [Value], Fault> {
        match self.value(key) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(self.fault(key, format!("must be a list, not {}", what(other)))),
        }
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<&'a str>, Fault> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.fault(key, format!("must be text, not {}: quote it", what(other)))),
        }
    }

    pub(super) fn truth(&mut self, key: &str) -> Result<Option<bool>, Fault> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(other) => Err(self.fault(key, format!("must be true or false, not {}", what(other)))),
        }
    }

    pub(super) fn quantity(&mut self, key: &str) -> Result<Option<Quantity>, Fault> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => scalar::text_of(number),
            other @ (Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
                return Err(self.fault(key, format!("must be a quantity such as 1Gi, not {}", what(other))));
            }
        };
        text.parse().map(Some).map_err(|error| self.fault(key, format!("{error}")))
    }

    /// Labels, or what a selector asks for, each checked.
    pub(super) fn labels(&mut self, key: &str) -> Result<Option<Labels>, Fault> {
        let Some(mut fields) = self.fields(key)? else { return Ok(None) };
        let mut found = Labels::new();
        for (key, value) in fields.all() {
            let Value::String(text) = value else {
                let rule = match value {
                    Value::Null => "has no value: write \"\" for an empty one".to_owned(),
                    Value::Bool(_) | Value::Number(_) => {
                        let what = what(value);
                        format!("must be text, and without quotes this is {what}: quote it, as \"{what}\"")
                    }
                    Value::String(_) | Value::Array(_) | Value::Object(_) => {
                        format!("must be text, not {}", what(value))
                    }
                };
                return Err(fields.fault(key, rule));
            };
            no_placeholder(text).map_err(|rule| fields.fault(key, rule))?;
            found.insert(key.to_owned(), text.clone());
        }
        labels::check(&found).map_err(|error| fields.fault("", error.to_string()))?;
        Ok(Some(found))
    }

    /// Paths of the keys that nobody asked for and that say something.
    pub(super) fn rest(&self) -> impl Iterator<Item = String> + use<'_, 'a> {
        let unasked =
            self.map.iter().filter(|(key, value)| !self.asked.contains(key.as_str()) && !value.is_null());
        unasked.map(|(key, _)| self.path(key))
    }

    /// Refuses the first key that nobody asked for.
    pub(super) fn refuse_rest(&self, known: &str) -> Result<(), Fault> {
        match self.rest().next() {
            Some(path) => Err(Fault::new(path, format!("no such field here; there are {known}"))),
            None => Ok(()),
        }
    }
}

/// Refuses `<name>`, as documents write what the reader shall fill in.
pub(super) fn no_placeholder(text: &str) -> Result<(), String> {
    let inside = text.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    match inside {
        Some((name, _)) => Err(format!("fill in the placeholder <{}>", shown(name))),
        None => Ok(()),
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    match (path, key) {
        (path, "") => path.to_owned(),
        ("", key) if plain => shown(key),
        (path, key) if plain => format!("{path}.{}", shown(key)),
        (path, key) => format!("{path}[{:?}]", shown(key)),
    }
}

pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

/// A value in a message.
pub(super) fn what(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => scalar::text_of(number),
        Value::String(text) => format!("{:?}", shown(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
    }
}
