//! The tables with names of the operator's own: networks and labels.

use super::*;

/// The line on which a table at the end of the least config has its first line.
const FIRST_LINE: usize = 14;

fn in_networks(lines: &str) -> String {
    least(&format!("[migration.networks]\n{lines}"))
}

fn in_labels(lines: &str) -> String {
    least(&format!("[labels]\n{lines}"))
}

/// The first line of this table must be refused with this rule and this line, and a table with the latter accepted.
#[track_caller]
fn line_refused(table: &str, (name, value): (&str, &str), more: &str, rule: &str, line: &str) {
    let text = |line: &str| least(&format!("[{table}]\n{line}\n{more}"));
    let bare = name.trim_matches('"');
    refused(
        &text(&format!("{name} = {value}")),
        &format!(
            "config {FILE}, line {FIRST_LINE}: `{bare}` in [{table}] is {value}: {rule}; corrected line:\n  {line}"
        ),
    );
    let fixed = text(line);
    assert!(parse(&fixed).is_ok(), "not accepted:\n{fixed}\n{:?}", parse(&fixed));
}

#[test]
fn networks_are_read_from_a_table_however_it_is_written() {
    let headed =
        parse(&in_networks("storage = \"10.1.0.1:7400\"\n\"vlan/20.x\" = \"[fd00::1]:0\"")).expect("parse");
    let networks: Vec<_> =
        headed.migration.networks.iter().map(|(name, address)| format!("{name} {address}")).collect();
    assert_eq!(networks, ["storage 10.1.0.1:7400", "vlan/20.x [fd00::1]:0"]);
    let inline = least("networks = { storage = \"10.1.0.1:7400\", \"vlan/20.x\" = \"[fd00::1]:0\" }");
    assert_eq!(parse(&inline).expect("parse"), headed);
    // The kernel chooses two ports.
    parse(&in_networks("a = \"10.1.0.1:0\"\nb = \"10.1.0.1:0\"")).expect("parse");
    let many =
        |count: usize| -> String { (1..=count).map(|n| format!("n{n} = \"10.1.0.{n}:7400\"\n")).collect() };
    assert_eq!(parse(&in_networks(&many(16))).expect("16").migration.networks.len(), 16);
    refused(
        &in_networks(&many(17)),
        &format!(
            "config {FILE}, line 13: `networks` in [migration] is a table of 17: it must hold at most 16 networks, as \
             each is a socket with buffers of its own; corrected line:\n  networks = {}",
            keys::NETWORKS.example
        ),
    );
    let rule = "it must be a table, NAME = \"IP:PORT\" for each";
    let text = least("networks = \"10.1.0.1:7400\"");
    value_refused(&text, 13, &keys::NETWORKS, "\"10.1.0.1:7400\"", (rule, keys::NETWORKS.example));
}

#[test]
fn networks_with_a_name_that_can_be_none_are_told_with_one_that_can() {
    let rule = "the name of a network must be 1 to 63 of a-z, 0-9, '-', '.' and '/', as the setting `network` names it";
    let address = "\"10.1.0.1:7400\"";
    let long = "n".repeat(64);
    for (name, more, line) in [
        ("Storage", "", "storage = \"10.1.0.1:7400\""),
        ("\"vlan 20/A.b\"", "", "\"vlan-20/a.b\" = \"10.1.0.1:7400\""),
        (&long, "", &format!("{} = \"10.1.0.1:7400\"", &long[1..])),
        // There is one of that name, or nothing is left of it.
        ("Storage", "storage = \"10.1.0.2:7400\"", "# Storage = \"10.1.0.1:7400\""),
        ("\"ü\"", "", "# ü = \"10.1.0.1:7400\""),
    ] {
        line_refused("migration.networks", (name, address), more, rule, line);
    }
    line_refused("migration.networks", ("Storage", "\"here\""), "", rule, "# Storage = \"here\"");
}

#[test]
fn network_addresses_that_others_could_not_dial_are_told_with_one_that_they_could() {
    let rule = "it must be an IP address that this host has in that network, and a port (the other nodes are told it \
                as it stands, so not 0.0.0.0 or [::]; host names are not looked up; with port 0 the kernel chooses)";
    let text = "it must be text in quotes";
    for (value, told, line) in [
        ("\"0.0.0.0:7400\"", rule, "net = \"10.1.0.1:7400\""),
        ("\"[::]:7400\"", rule, "net = \"10.1.0.1:7400\""),
        ("\"[::ffff:0.0.0.0]:7400\"", rule, "net = \"10.1.0.1:7400\""),
        ("\"0.0.0.0\"", rule, "net = \"10.1.0.1:7400\""),
        ("\"host:7400\"", rule, "net = \"10.1.0.1:7400\""),
        ("\"10.9.0.1\"", rule, "net = \"10.9.0.1:7400\""),
        ("\"10.0.0.1\"", rule, "net = \"10.0.0.1:7401\""),
        ("\"fd00::1\"", rule, "net = \"[fd00::1]:7400\""),
        ("7400", text, "net = \"10.1.0.1:7400\""),
    ] {
        line_refused("migration.networks", ("net", value), "", told, line);
    }
    let other = "other = \"10.1.0.1:7400\"";
    line_refused("migration.networks", ("net", "\"here\""), other, rule, "net = \"10.1.0.2:7400\"");
    // A socket that hears on every address of the host leaves none of its port.
    let everywhere = in_networks("net = \"here\"").replace("10.0.0.1:7400", "0.0.0.0:7400");
    let told = parse(&everywhere).expect_err("refused").to_string();
    assert!(told.ends_with("net = \"10.1.0.1:7401\""), "{told}");
    parse(&everywhere.replace("\"here\"", "\"10.1.0.1:7401\"")).expect("accepted");
}

#[test]
fn the_addresses_of_a_node_all_differ() {
    for (listen, other) in [
        ("10.0.0.1:7400", "`listen` in [migration]"),
        ("10.0.0.1:7300", "`listen` in [control]"),
        ("10.1.0.1:7500", "`a`"),
    ] {
        let line = format!("net = \"{}1\"", &listen[..listen.len() - 1]);
        let rule = format!("it must differ from {other}");
        let value = format!("\"{listen}\"");
        // The first in order of names is believed, whichever stands first in the file.
        line_refused("migration.networks", ("net", &value), "a = \"10.1.0.1:7500\"", &rule, &line);
    }
    let everywhere = in_networks("net = \"10.1.0.1:7400\"").replace("10.0.0.1:7400", "0.0.0.0:7400");
    let told = parse(&everywhere).expect_err("refused").to_string();
    assert!(told.contains("it must differ from `listen` in [migration]"), "{told}");
    assert!(told.ends_with("net = \"10.1.0.1:7401\""), "{told}");
}

#[test]
fn labels_are_read_from_a_table_however_it_is_written() {
    let headed =
        parse(&in_labels("zone = \"a\"\n\"example.com/Cpu\" = \"Zen_4\"\nspare = \"\"")).expect("parse");
    let labels: Vec<_> = headed.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(labels, ["example.com/Cpu=Zen_4", "spare=", "zone=a"]);
    let inline = "labels = { zone = \"a\", \"example.com/Cpu\" = \"Zen_4\", spare = \"\" }\nstate =";
    assert_eq!(parse(&with("state =", inline)).expect("parse"), headed);
    let told: Vec<_> =
        headed.node_labels().into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(told, ["example.com/Cpu=Zen_4", "kubernetes.io/hostname=node-a", "spare=", "zone=a"]);
    let many = |count: usize| -> String { (1..=count).map(|n| format!("l{n} = \"{n}\"\n")).collect() };
    let most = parse(&in_labels(&many(63))).expect("63").node_labels();
    assert_eq!((most.len(), godwit_domain::labels::check(&most)), (64, Ok(())));
    refused(
        &in_labels(&many(64)),
        &format!(
            "config {FILE}, line 13: `labels` at the top of the file is a table of 64: it must hold at most 63 labels, \
             as the node adds kubernetes.io/hostname; corrected line:\n  labels = {}",
            keys::LABELS.example
        ),
    );
    let rule = "it must be a table, KEY = \"VALUE\" for each";
    let text = with("state =", "labels = \"zone=a\"\nstate =");
    value_refused(&text, 3, &keys::LABELS, "\"zone=a\"", (rule, keys::LABELS.example));
}

#[test]
fn labels_that_can_be_none_are_told_with_ones_that_can() {
    let key = |key: &str| {
        format!(
            "label key {key:?} is not valid: a name of at most 63 letters, digits, '-', '_' and '.', that begins and \
             ends with a letter or digit; before it, if wanted, a DNS name and '/'"
        )
    };
    let value = |key: &str, value: &str| {
        format!(
            "label {key} has the value {value:?}, which is not valid: at most 63 letters, digits, '-', '_' and '.', \
             that begin and end with a letter or digit; or nothing"
        )
    };
    let text = "it must be text in quotes";
    let long = "v".repeat(64);
    let quoted = format!("\"{long}\"");
    for (written, more, rule, line) in [
        (("\"a zone\"", "\"a\""), "", key("a zone"), "a-zone = \"a\""),
        (("\"a/b/c\"", "\"a\""), "", key("a/b/c"), "a-b-c = \"a\""),
        (("_x", "\"a\""), "", key("_x"), "x = \"a\""),
        (("_x", "\"a\""), "x = \"b\"", key("_x"), "# _x = \"a\""),
        (("\"ü\"", "\"a\""), "", key("ü"), "# ü = \"a\""),
        (("zone", "\"<a b>\""), "", value("zone", "<a b>"), "zone = \"a-b\""),
        (("zone", "\"ü\""), "", value("zone", "ü"), "# zone = \"ü\""),
        (("zone", &quoted), "", value("zone", &long[1..]), &format!("# zone = {quoted}")),
        (("zone", "1"), "", text.to_owned(), "zone = \"a\""),
        (("\"a.b/c\"", "true"), "", text.to_owned(), "\"a.b/c\" = \"a\""),
        (("\"a b\"", "true"), "", text.to_owned(), "# a b = true"),
    ] {
        line_refused("labels", written, more, &rule, line);
    }
}

#[test]
fn a_nodes_hostname_is_its_own_to_set() {
    let rule = "the node sets it itself, to its own name (`name` at the top of the file); take the line out";
    for value in ["\"node-a\"", "\"other\""] {
        let line = format!("# kubernetes.io/hostname = {value}");
        line_refused("labels", ("\"kubernetes.io/hostname\"", value), "", rule, &line);
    }
}

#[test]
fn a_name_with_a_dot_and_no_quotes_is_told_what_it_lacks() {
    let rule =
        "it must be text in quotes (what stands before the '=' needs quotes too where it has a '.' or '/')";
    for (text, table) in [
        (in_labels("example.com = \"a\""), "[labels]"),
        (in_networks("example.com = \"10.1.0.1:7400\""), "[migration.networks]"),
    ] {
        let told = parse(&text).expect_err("refused").to_string();
        assert!(told.contains(&format!("`example` in {table} is ")) && told.contains(rule), "{told}");
    }
}

#[test]
fn tables_and_keys_under_a_wrong_name_are_told_with_the_one_that_was_meant() {
    refused(
        &least("[lables]\nzone = \"a\""),
        "config /etc/godwit/node.toml, line 13: unknown section [lables]; the nearest known section is [labels]; \
         corrected line:\n  [labels]",
    );
    refused(
        &least("[migration.network]\nnet = \"10.1.0.1:7400\""),
        "config /etc/godwit/node.toml, line 13: unknown section [migration.network]; the nearest known section is \
         [migration.networks]; corrected line:\n  [migration.networks]",
    );
    // One that is there already is not offered again.
    let told = parse(&in_labels("[lables]\n")).expect_err("refused").to_string();
    assert!(told.contains("known sections are [labels], [identity]"), "{told}");
    // A value that the key would not take is not repeated.
    refused(
        &least("network = \"storage\""),
        &format!(
            "config {FILE}, line 13: unknown key `network` in [migration]; the nearest known key is `networks`; \
             corrected line:\n  networks = {}",
            keys::NETWORKS.example
        ),
    );
}

#[test]
fn what_is_repeated_of_the_tables_is_bounded() {
    let long = "x".repeat(10_000);
    let odd = "\\u0001".repeat(2_000);
    for line in [
        format!("{long} = \"10.1.0.1:1\""),
        format!("{long} = 1"),
        format!("net = \"{long}\""),
        format!("\"{odd}\" = \"{long}\""),
        format!("net = \"{odd}\""),
    ] {
        for text in [in_networks(&line), in_labels(&line)] {
            let error = parse(&text).expect_err("refused").to_string();
            assert!(error.chars().count() < 1500, "{} characters", error.chars().count());
            assert!(error.lines().count() <= 2, "{error}");
        }
    }
}

#[test]
fn a_taken_network_address_is_told_with_another_port() {
    let config =
        parse(&in_networks("\"vlan/20\" = \"10.1.0.1:7399\"\nb = \"10.1.0.2:7401\"")).expect("parse");
    let address = "10.1.0.1:7399".parse().expect("address");
    assert_eq!(
        config.address_in_use(Listen::Network("vlan/20"), address).to_string(),
        "config /etc/godwit/node.toml: `vlan/20` in [migration.networks]: another process on this host already uses \
         UDP address 10.1.0.1:7399; take another port, or 0 and the kernel chooses one; corrected line:\n  \
         \"vlan/20\" = \"10.1.0.1:7402\""
    );
}
