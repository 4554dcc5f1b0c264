//! Every refusal's text, and the example file against the defaults.

mod control;
mod tables;

use super::keys::Key;
use super::*;

const FILE: &str = "/etc/godwit/node.toml";

/// The least that is accepted, with a place to put more.
fn least(more: &str) -> String {
    format!(
        r#"name = "node-a"
cluster = "cluster-a"
state = "/var/lib/godwit"
[identity]
ca = "ca.pem"
certificate = "node.pem"
key = "/run/secrets/node.key"
[control]
listen = "10.0.0.1:7300"
voters = {{ node-a = "10.0.0.1:7300", node-b = "10.0.0.2:7300", node-c = "10.0.0.3:7300" }}
[migration]
listen = "10.0.0.1:7400"
{more}"#
    )
}

fn parse(text: &str) -> Result<NodeConfig, ConfigError> {
    NodeConfig::parse(text, Path::new(FILE))
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    match parse(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => assert_eq!(error.to_string(), expected, "for:\n{text}"),
    }
}

/// The least config with one line in place of another, or, where `line` is empty, without it.
fn with(old: &str, line: &str) -> String {
    let text = least("");
    assert!(text.contains(old), "{old}");
    text.replace(old, line)
}

#[test]
fn paths_start_from_the_configs_folder() {
    let config = parse(&least("")).expect("parse");
    assert_eq!(config.identity.ca, Path::new("/etc/godwit/ca.pem"));
    assert_eq!(config.identity.certificate, Path::new("/etc/godwit/node.pem"));
    assert_eq!(config.identity.key, Path::new("/run/secrets/node.key"));
    assert_eq!(config.state, Path::new("/var/lib/godwit"));
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = parse(&least("")).expect("parse");
    assert_eq!(config.migration.udp_payload_bytes_max, 1452);
    assert_eq!(config.migration.socket_buffer_bytes, Quantity::from_bytes(4 << 20));
    assert_eq!(config.memory_bytes, None);
    assert_eq!(config.admin.socket, Path::new("/run/godwit/admin.sock"));
    assert_eq!(config.log, LogConfig { format: LogFormat::Text, filter: "info".to_owned() });
}

#[test]
fn bounds_are_inside() {
    for (more, bytes) in [("udp_payload_bytes_max = 1200", 1200), ("udp_payload_bytes_max = 6540", 6540)] {
        assert_eq!(parse(&least(more)).expect(more).migration.udp_payload_bytes_max, bytes);
    }
    for (more, bytes) in [(r#"socket_buffer_bytes = "1""#, 1), (r#"socket_buffer_bytes = "1Gi""#, 1 << 30)] {
        assert_eq!(parse(&least(more)).expect(more).migration.socket_buffer_bytes.bytes(), bytes);
    }
    let chosen_by_kernel = parse(&with("10.0.0.1:7400", "[::1]:0")).expect("parse");
    assert_eq!(chosen_by_kernel.migration.listen.port(), 0);
}

#[test]
fn the_example_file_holds_every_key_with_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/node.toml");
    let text = std::fs::read_to_string(&path).expect("read");
    for key in &keys::KEYS {
        let (name, table) = (key.name, key.table());
        let written = [format!("\n{name} = "), format!("\n# {name} = "), format!("\n[{table}]\n")];
        assert!(written.iter().any(|written| text.contains(written)), "{name}");
    }
    let example = parse(&text).expect("the example must be accepted");
    let mut required_only = parse(&least("")).expect("parse");
    required_only.identity.key = example.identity.key.clone();
    assert_eq!(example, required_only);
    assert_eq!(NodeConfig::load(&path).expect("load").name, example.name);
}

#[test]
fn what_the_example_file_has_in_comments_is_accepted() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/node.toml");
    let text = std::fs::read_to_string(&path).expect("read");
    let bare = |line: &str| line.strip_prefix("# ").filter(|line| line.contains(" = \"")).map(str::to_owned);
    // Prose that explains how a line looks is none.
    let commented: Vec<_> = text.lines().filter_map(bare).filter(|line| line.ends_with('"')).collect();
    let text: String = text
        .lines()
        .map(|line| bare(line).filter(|it| commented.contains(it)).unwrap_or(line.to_owned()) + "\n")
        .collect();
    let config = parse(&text).expect("accepted");
    assert_eq!(config.memory_bytes, Some(57 << 30));
    assert_eq!((config.labels.len(), config.migration.networks.len()), (2, 2));
    assert_eq!(config.qemu_renamed, [("/srv/images/".to_owned(), "/mnt/images/".to_owned())]);
    assert_eq!(commented.len(), 6, "{commented:?}");
}

#[test]
fn the_table_of_keys_and_the_raw_structs_agree() {
    let mut text = String::new();
    for section in std::iter::once("").chain(keys::sections()) {
        if !section.is_empty() {
            text.push_str(&format!("[{section}]\n"));
        }
        for key in keys::KEYS.iter().filter(|key| key.section == section) {
            text.push_str(&key.line(key.example));
            text.push('\n');
        }
    }
    parse(&text).expect("every example value must be accepted");
    // The other way: what serde would accept beyond the table it must name here.
    for (text, fields) in [
        (
            "x = 1",
            "`name`, `cluster`, `state`, `memory`, `labels`, `identity`, `migration`, `control`, `admin`, `qemu`, \
             `log`",
        ),
        ("[identity]\nx = 1", "`ca`, `certificate`, `key`"),
        ("[migration]\nx = 1", "`listen`, `udp_payload_bytes_max`, `socket_buffer_bytes`, `networks`"),
        ("[control]\nx = 1", "`listen` or `voters`"),
        ("[admin]\nx = 1", "`socket`"),
        ("[qemu]\nx = 1", "`rename`"),
        ("[log]\nx = 1", "`format` or `filter`"),
    ] {
        let error = toml::from_str::<Raw>(text).err().expect("unknown").to_string();
        assert!(error.contains(fields), "{error}");
    }
}

#[test]
fn unknown_keys_are_told_with_the_line_that_was_meant() {
    refused(
        &with("listen = \"10.0.0.1:7400\"", "lisen = \"10.0.0.1:7400\""),
        "config /etc/godwit/node.toml, line 12: unknown key `lisen` in [migration]; the nearest known key is \
         `listen`; corrected line:\n  listen = \"10.0.0.1:7400\"",
    );
    refused(
        &least("udp-payload = 1400"),
        "config /etc/godwit/node.toml, line 13: unknown key `udp-payload` in [migration]; the nearest known key is \
         `udp_payload_bytes_max`; corrected line:\n  udp_payload_bytes_max = 1400",
    );
    refused(
        &with("name =", "Name ="),
        "config /etc/godwit/node.toml, line 1: unknown key `Name` at the top of the file; the nearest known key is \
         `name`; corrected line:\n  name = \"node-a\"",
    );
    // A key that is set already is not offered again.
    refused(
        &least("lisen = \"10.0.0.2:7400\""),
        "config /etc/godwit/node.toml, line 13: unknown key `lisen` in [migration]; known keys there are `listen`, \
         `udp_payload_bytes_max`, `socket_buffer_bytes`, `networks`; corrected line:\n  # lisen = \"10.0.0.2:7400\"",
    );
    refused(
        &least("colour = \"blue\""),
        "config /etc/godwit/node.toml, line 13: unknown key `colour` in [migration]; known keys there are `listen`, \
         `udp_payload_bytes_max`, `socket_buffer_bytes`, `networks`; corrected line:\n  # colour = \"blue\"",
    );
}

#[test]
fn keys_in_the_wrong_place_are_sent_home() {
    refused(
        &least("format = \"json\""),
        "config /etc/godwit/node.toml, line 13: unknown key `format` in [migration]; it belongs in [log]; corrected \
         line:\n  [log]\n  format = \"json\"",
    );
    refused(
        &least("format = \"json\"\n[log]"),
        "config /etc/godwit/node.toml, line 13: unknown key `format` in [migration]; it belongs in [log]; corrected \
         line:\n  format = \"json\"",
    );
    refused(
        "[identity]\nname = \"node-a\"",
        "config /etc/godwit/node.toml, line 2: unknown key `name` in [identity]; it belongs above the first \
         section; corrected line:\n  name = \"node-a\"",
    );
}

#[test]
fn unknown_sections_are_told_with_the_one_that_was_meant() {
    refused(
        &with("[migration]", "[migrations]"),
        "config /etc/godwit/node.toml, line 11: unknown section [migrations]; the nearest known section is \
         [migration]; corrected line:\n  [migration]",
    );
    refused(
        &least("[metrics]\nlisten = 1"),
        "config /etc/godwit/node.toml, line 13: unknown section [metrics]; known sections are [labels], [identity], \
         [migration], [control], [admin], [qemu], [log]; take it out together with its keys; corrected line:\n  # [metrics]",
    );
    refused(
        &least("[migration.tls]\nx = 1"),
        "config /etc/godwit/node.toml, line 13: unknown section [migration.tls]; known sections are [labels], [identity], \
         [migration], [control], [admin], [qemu], [log]; take it out together with its keys; corrected line:\n  # [migration.tls]",
    );
    refused(
        &least("[migrations]"),
        "config /etc/godwit/node.toml, line 13: unknown section [migrations]; known sections are [labels], [identity], \
         [migration], [control], [admin], [qemu], [log]; take it out together with its keys; corrected line:\n  # [migrations]",
    );
    refused(
        "log = \"json\"",
        "config /etc/godwit/node.toml, line 1: unknown section [log]; it must be a section, not a value; corrected \
         line:\n  [log]",
    );
}

#[test]
fn missing_keys_are_told_with_an_example() {
    refused(
        &with("name = \"node-a\"\n", ""),
        "config /etc/godwit/node.toml: required key `name` at the top of the file is missing; add above the first \
         section:\n  name = \"node-a\"",
    );
    refused(
        &with("certificate = \"node.pem\"\n", ""),
        "config /etc/godwit/node.toml: required key `certificate` in [identity] is missing; add under \
         [identity]:\n  certificate = \"node.pem\"",
    );
    refused(
        &with("[migration]\nlisten = \"10.0.0.1:7400\"\n", ""),
        "config /etc/godwit/node.toml: required key `listen` in [migration] is missing; add at the end:\n  \
         [migration]\n  listen = \"10.0.0.1:7400\"",
    );
    // The section is there, and writing its head again would be refused.
    refused(
        &with("listen = \"10.0.0.1:7400\"\n", ""),
        "config /etc/godwit/node.toml: required key `listen` in [migration] is missing; add under [migration]:\n  \
         listen = \"10.0.0.1:7400\"",
    );
    refused(
        "",
        "config /etc/godwit/node.toml: required key `name` at the top of the file is missing; add above the first \
         section:\n  name = \"node-a\"",
    );
}

/// A key's value must be refused with this rule and this valid value, and a file with the latter accepted.
#[track_caller]
fn value_refused(text: &str, line: usize, key: &Key, value: &str, (rule, valid): (&str, &str)) {
    let (name, place) = (key.name, keys::place(key.section));
    refused(
        text,
        &format!(
            "config {FILE}, line {line}: `{name}` {place} is {value}: {rule}; corrected line:\n  {name} = {valid}"
        ),
    );
    let fixed: String = (1..)
        .zip(text.lines())
        .map(|(at, old)| if at == line { format!("{name} = {valid}\n") } else { format!("{old}\n") })
        .collect();
    assert!(parse(&fixed).is_ok(), "not accepted:\n{fixed}");
}

#[test]
fn payloads_outside_their_bounds_are_told_with_one_inside() {
    let rule = "it must be 1200 to 6540 (QUIC needs the least; ten of the most leave as one datagram)";
    let kind = "it must be a whole number without quotes";
    for (value, told) in [
        ("0", (rule, "1452")),
        ("-1", (rule, "1452")),
        ("1199", (rule, "1200")),
        ("6541", (rule, "6540")),
        ("70_000", (rule, "6540")),
        ("\"1400\"", (kind, "1400")),
        ("\"many\"", (kind, "1452")),
        ("14.5", (kind, "1452")),
        ("99999999999999999999", (kind, "1452")),
    ] {
        let text = least(&format!("udp_payload_bytes_max = {value}"));
        value_refused(&text, 13, &keys::UDP_PAYLOAD, value, told);
    }
}

#[test]
fn buffers_outside_their_bounds_are_told_with_one_inside() {
    let rule = "it must be more than 0 and at most 1Gi";
    let grammar =
        "quantity \"4MB\" is not a number with a suffix such as Ki, Mi, Gi, k, M or G (for example 64Mi)";
    let below = "quantity \"1m\" is more than 0 and less than one byte; the smallest is 1";
    for (value, told) in [
        ("\"0\"", (rule, "\"4Mi\"")),
        ("\"2Gi\"", (rule, "\"1Gi\"")),
        ("\"4MB\"", (grammar, "\"4Mi\"")),
        ("\"1m\"", (below, "\"4Mi\"")),
        ("4194304", ("it must be text in quotes", "\"4194304\"")),
        ("true", ("it must be a number of bytes in quotes", "\"4Mi\"")),
    ] {
        let text = least(&format!("socket_buffer_bytes = {value}"));
        value_refused(&text, 13, &keys::SOCKET_BUFFER, value, told);
    }
}

#[test]
fn addresses_that_are_none_are_told_with_one_that_is() {
    let rule =
        "it must be an IP address and a port (host names are not looked up; with port 0 the kernel chooses)";
    for (value, told) in [
        ("\"localhost:7400\"", (rule, "\"10.0.0.1:7400\"")),
        ("\"10.0.0.1:74000\"", (rule, "\"10.0.0.1:7400\"")),
        ("\"fd00::1\"", (rule, "\"[fd00::1]:7400\"")),
        ("7400", ("it must be text in quotes", "\"10.0.0.1:7400\"")),
    ] {
        value_refused(&with("\"10.0.0.1:7400\"", value), 12, &keys::LISTEN, value, told);
    }
}

#[test]
fn names_and_paths_that_break_a_rule_are_told_with_ones_that_keep_it() {
    let label = |name| {
        format!("node name {name:?} is not valid: it may hold lower-case letters a-z, digits and '-' only")
    };
    for (value, name, valid) in [("\"Node A\"", "Node A", "\"node-a\""), ("\"ü\"", "ü", "\"node-a\"")] {
        value_refused(&with("\"node-a\"", value), 1, &keys::NAME, value, (&label(name), valid));
    }
    for (value, valid) in [("\"Berlin 1\"", "\"berlin-1\""), ("\"ü\"", "\"cluster-a\"")] {
        let name = value.trim_matches('"');
        let rule = label(name).replace("node name", "cluster name");
        value_refused(&with("\"cluster-a\"", value), 2, &keys::CLUSTER, value, (&rule, valid));
    }
    let absolute = ("it must be an absolute path", "\"/var/lib/godwit\"");
    value_refused(&with("\"/var/lib/godwit\"", "\"state\""), 3, &keys::STATE, "\"state\"", absolute);
    value_refused(&with("\"ca.pem\"", "''"), 5, &keys::CA, "''", ("it must not be empty", "\"ca.pem\""));
}

#[test]
fn log_settings_that_break_a_rule_are_told_with_ones_that_keep_it() {
    let format = "it must be \"text\" or \"json\"";
    for (value, valid) in [("\"JSON\"", "\"json\""), ("\"xml\"", "\"text\"")] {
        value_refused(&least(&format!("[log]\nformat = {value}")), 14, &keys::FORMAT, value, (format, valid));
    }
    let empty = "it must not be empty (\"off\" logs nothing)";
    let level = "it must be a level, or `target=level` pairs with commas between them (error parsing level filter: \
                 expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5)";
    for (value, rule) in [("\"\"", empty), ("\"godwit=loud\"", level)] {
        value_refused(
            &least(&format!("[log]\nfilter = {value}")),
            14,
            &keys::FILTER,
            value,
            (rule, "\"info\""),
        );
    }
}

#[test]
fn broken_toml_is_told_with_line_and_column() {
    refused(
        "name = \"node-a\"\nstate = /var",
        "config /etc/godwit/node.toml, line 2, column 9: string values must be quoted, expected literal string",
    );
    refused(
        &least("listen = \"10.0.0.2:1\""),
        "config /etc/godwit/node.toml, line 13, column 1: duplicate key",
    );
    refused("[log", "config /etc/godwit/node.toml, line 1, column 5: unclosed table, expected `]`");
}

#[test]
fn the_first_of_several_faults_is_told() {
    let error = parse("[migration]\nz = 1\na = 2\n[identity]\nb = 3").expect_err("faults").to_string();
    assert!(error.contains("line 2: unknown key `z`"), "{error}");
}

#[test]
fn what_is_repeated_of_the_file_is_bounded() {
    for text in [
        format!("{} = 1", "k".repeat(10_000)),
        format!("colour = \"{}\"", "v".repeat(10_000)),
        least(&format!("udp_payload_bytes_max = \"{}\"", "9".repeat(10_000))),
        format!("[{}]", "s".repeat(10_000)),
        "colour = \"\"\"\nred\nblue\"\"\"".to_owned(),
    ] {
        let error = parse(&text).expect_err("refused").to_string();
        assert!(error.len() < 1000, "{} bytes", error.len());
        assert!(error.lines().count() <= 2, "{error}");
    }
}

#[test]
fn files_that_can_not_be_read_are_named() {
    let told = |path: &str| {
        let error = NodeConfig::load(Path::new(path)).expect_err("unreadable");
        format!("{error}: {}", std::error::Error::source(&error).expect("source"))
    };
    assert_eq!(
        told("/nowhere/node.toml"),
        "read config /nowhere/node.toml: No such file or directory (os error 2)"
    );
    assert_eq!(
        told("/dev/zero"),
        "read config /dev/zero: it holds more than 65536 bytes, which is the most that is read"
    );
}

#[test]
fn a_taken_address_is_told_with_another_port() {
    let told = |listen: &str| {
        let config = parse(&with("10.0.0.1:7400", listen)).expect("parse");
        config.address_in_use(Listen::Migration, config.migration.listen).to_string()
    };
    assert_eq!(
        told("10.0.0.1:7400"),
        "config /etc/godwit/node.toml: `listen` in [migration]: another process on this host already uses UDP \
         address 10.0.0.1:7400; take another port, or 0 and the kernel chooses one; corrected line:\n  \
         listen = \"10.0.0.1:7401\""
    );
    assert!(told("[::1]:65535").ends_with("listen = \"[::1]:65534\""));
}
