//! What a cluster needs of a node's config: its address, the voters, memory and the operator's socket.

use super::*;

/// The least config with other voters, in a section of their own at its end.
fn with_voters(name: &str, listen: &str, voters: &str) -> String {
    let text = with("name = \"node-a\"", &format!("name = \"{name}\""));
    let text: String =
        text.lines().filter(|line| !line.starts_with("voters")).map(|line| format!("{line}\n")).collect();
    let text = text.replace("10.0.0.1:7300", listen);
    format!("{text}[control.voters]\n{voters}\n")
}

const VOTERS: &str = "node-a = \"10.0.0.1:7300\"\nnode-b = \"10.0.0.2:7300\"\nnode-c = \"10.0.0.3:7300\"";

/// The line on which [`VOTERS`] begin.
const VOTERS_LINE: usize = 13;

#[test]
fn voters_are_read_from_a_table_however_it_is_written() {
    let inline = parse(&least("")).expect("parse");
    let headed = parse(&with_voters("node-a", "10.0.0.1:7300", VOTERS)).expect("parse");
    assert_eq!(inline, headed);
    let told: Vec<_> = inline.control.voters.iter().map(|(name, at)| format!("{name} {at}")).collect();
    assert_eq!(told, ["node-a 10.0.0.1:7300", "node-b 10.0.0.2:7300", "node-c 10.0.0.3:7300"]);
    let five = format!("{VOTERS}\nnode-d = \"[fd00::4]:7300\"\nnode-e = \"10.0.0.1:7301\"");
    assert_eq!(parse(&with_voters("node-a", "10.0.0.1:7300", &five)).expect("five").control.voters.len(), 5);
}

#[test]
fn a_voter_listens_where_the_others_dial() {
    for listen in ["10.0.0.1:7300", "0.0.0.0:7300", "[::]:7300"] {
        let config = parse(&with_voters("node-a", listen, VOTERS)).expect(listen);
        assert_eq!(config.control.listen.to_string(), listen);
    }
    for listen in ["10.0.0.9:0", "[::]:9", "10.0.0.9:7300"] {
        let config = parse(&with_voters("node-x", listen, VOTERS)).expect("not a voter");
        assert_eq!(config.control.listen.to_string(), listen);
    }
    let rule = "it must be what `voters` has for node-a, or 0.0.0.0 or [::] with the same port, as the other nodes \
                dial that";
    for listen in ["10.0.0.1:0", "10.0.0.1:7301", "10.0.0.2:7300", "0.0.0.0:7301"] {
        let text = with_voters("node-a", listen, VOTERS);
        let value = format!("\"{listen}\"");
        value_refused(&text, 9, &keys::CONTROL_LISTEN, &value, (rule, "\"10.0.0.1:7300\""));
    }
    let six = VOTERS.replace("10.0.0.1:7300", "[fd00::1]:7300");
    value_refused(
        &with_voters("node-a", "0.0.0.0:7300", &six),
        9,
        &keys::CONTROL_LISTEN,
        "\"0.0.0.0:7300\"",
        (rule, "\"[fd00::1]:7300\""),
    );
}

#[test]
fn control_addresses_that_are_none_are_told_with_one_that_is() {
    let rule =
        "it must be an IP address and a port (host names are not looked up; with port 0 the kernel chooses)";
    for (value, told) in [
        ("\"10.0.0.1\"", (rule, "\"10.0.0.1:7300\"")),
        ("\"here:7300\"", (rule, "\"10.0.0.1:7300\"")),
        ("7300", ("it must be text in quotes", "\"10.0.0.1:7300\"")),
    ] {
        let text = with("listen = \"10.0.0.1:7300\"", &format!("listen = {value}"));
        value_refused(&text, 9, &keys::CONTROL_LISTEN, value, told);
    }
}

#[test]
fn the_two_addresses_of_a_node_differ() {
    let rule = "it must differ from `listen` in [control]";
    for (value, valid) in [
        ("\"10.0.0.1:7300\"", "\"10.0.0.1:7301\""),
        ("\"0.0.0.0:7300\"", "\"0.0.0.0:7301\""),
        ("\"[::]:7300\"", "\"[::]:7301\""),
    ] {
        value_refused(&with("\"10.0.0.1:7400\"", value), 12, &keys::LISTEN, value, (rule, valid));
    }
    for elsewhere in ["10.0.0.2:7300", "[::1]:7300", "10.0.0.1:0"] {
        parse(&with("10.0.0.1:7400", elsewhere)).expect(elsewhere);
    }
}

#[test]
fn other_numbers_of_voters_than_three_and_five_are_told_with_a_table_that_is_accepted() {
    let valid = keys::VOTERS.example;
    for count in [0, 1, 2, 4, 6] {
        let voters: String =
            (0..count).map(|number| format!("node-{number} = \"10.0.1.{number}:7300\"\n")).collect();
        refused(
            &with_voters("node-a", "10.0.0.1:7300", &voters),
            &format!(
                "config {FILE}, line 12: `voters` in [control] is a table of {count}: it must hold exactly 3 or 5 \
                 voters, the same on every node (with 3 the cluster bears the loss of one, with 5 of two); \
                 corrected line:\n  voters = {valid}"
            ),
        );
    }
    for value in ["3", "\"node-a\"", "[\"10.0.0.1:7300\"]"] {
        let text: String =
            least("")
                .lines()
                .map(|line| {
                    if line.starts_with("voters") {
                        format!("voters = {value}\n")
                    } else {
                        format!("{line}\n")
                    }
                })
                .collect();
        let told = ("it must be a table, NAME = \"IP:PORT\" for each", valid);
        value_refused(&text, 10, &keys::VOTERS, value, told);
    }
}

/// A line in the table of voters must be refused with this rule and this line, and a table with the latter accepted.
#[track_caller]
fn voter_refused(written: (&str, &str), rule: &str, line: &str) {
    let (name, value) = written;
    let bare = name.trim_matches('"');
    // On the third line, so that the others are there.
    let voters = VOTERS.replace("node-c = \"10.0.0.3:7300\"", &format!("{name} = {value}"));
    refused(
        &with_voters("node-x", "10.0.0.9:7300", &voters),
        &format!(
            "config {FILE}, line {}: `{bare}` in [control.voters] is {value}: {rule}; corrected line:\n  {line}",
            VOTERS_LINE + 2
        ),
    );
    let fixed = with_voters("node-x", "10.0.0.9:7300", &voters.replace(&format!("{name} = {value}"), line));
    assert!(parse(&fixed).is_ok(), "not accepted:\n{fixed}");
}

#[test]
fn voters_that_break_a_rule_are_told_with_ones_that_keep_it() {
    let name = "node name \"Node C\" is not valid: it may hold lower-case letters a-z, digits and '-' only";
    voter_refused(("\"Node C\"", "\"10.0.0.3:7300\""), name, "node-c = \"10.0.0.3:7300\"");
    let address = "it must be the IP address and the port, not 0, where the others reach this voter (host names are \
                   not looked up)";
    for (value, valid) in [("\"10.0.0.3:0\"", "10.0.0.3:7300"), ("\"fd00::3\"", "[fd00::3]:7300")] {
        voter_refused(("node-c", value), address, &format!("node-c = \"{valid}\""));
    }
    voter_refused(
        ("node-c", "\"10.0.0.2:7300\""),
        "it must differ from the address of node-b",
        "node-c = \"10.0.0.2:7301\"",
    );
    // What was meant is not known: an address that no other voter has.
    for (value, rule) in [
        ("\"localhost:7300\"", address),
        ("\"0.0.0.0:7300\"", address),
        ("7300", "it must be text in quotes"),
    ] {
        voter_refused(("node-c", value), rule, "node-c = \"10.0.0.3:7300\"");
    }
}

#[test]
fn what_is_missing_for_a_cluster_is_told_with_an_example() {
    refused(
        &with("cluster = \"cluster-a\"\n", ""),
        "config /etc/godwit/node.toml: required key `cluster` at the top of the file is missing; add above the first \
         section:\n  cluster = \"cluster-a\"",
    );
    let without = |line: &str| -> String {
        least("").lines().filter(|old| !old.starts_with(line)).map(|line| format!("{line}\n")).collect()
    };
    refused(
        &without("voters"),
        &format!(
            "config {FILE}: required key `voters` in [control] is missing; add under [control]:\n  voters = {}",
            keys::VOTERS.example
        ),
    );
    // The table of voters has a head, and its section has none: it must be written.
    let headed = with_voters("node-a", "10.0.0.1:7300", VOTERS);
    refused(
        &headed.replace("[control]\nlisten = \"10.0.0.1:7300\"\n", ""),
        &format!(
            "config {FILE}: required key `listen` in [control] is missing; add at the end:\n  [control]\n  listen = \
             \"10.0.0.1:7300\""
        ),
    );
    refused(
        &headed.replace("listen = \"10.0.0.1:7300\"\n", ""),
        &format!(
            "config {FILE}: required key `listen` in [control] is missing; add under [control]:\n  listen = \
             \"10.0.0.1:7300\""
        ),
    );
}

#[test]
fn a_table_under_a_wrong_name_is_told_with_the_one_that_was_meant() {
    let headed = with_voters("node-a", "10.0.0.1:7300", VOTERS);
    refused(
        &headed.replace("[control.voters]", "[control.voter]"),
        "config /etc/godwit/node.toml, line 12: unknown section [control.voter]; the nearest known section is \
         [control.voters]; corrected line:\n  [control.voters]",
    );
    refused(
        &headed.replace("[control]", "[contrl]"),
        "config /etc/godwit/node.toml, line 8: unknown section [contrl]; the nearest known section is [control]; \
         corrected line:\n  [control]",
    );
    refused(
        &format!("{headed}[control.voters.node-d]\n"),
        "config /etc/godwit/node.toml, line 16: `node-d` in [control.voters] is [control.voters.node-d]: it must be \
         text in quotes; corrected line:\n  node-d = \"10.0.0.4:7300\"",
    );
}

#[test]
fn what_is_repeated_of_the_voters_is_bounded() {
    for voter in [
        format!("{} = \"10.0.0.4:1\"", "n".repeat(10_000)),
        format!("\"{}\" = 1", "N".repeat(10_000)),
        format!("node-c = \"{}\"", "v".repeat(10_000)),
        format!("N = \"{}\"", "v".repeat(10_000)),
    ] {
        let voters = VOTERS.replace("node-c = \"10.0.0.3:7300\"", &voter);
        let error = parse(&with_voters("node-x", "10.0.0.9:7300", &voters)).expect_err("refused").to_string();
        assert!(error.len() < 1000, "{} bytes", error.len());
        assert!(error.lines().count() <= 2, "{error}");
    }
}

#[test]
fn a_taken_control_address_is_told_with_another_port_wherever_it_is_written() {
    let told = |text: &str| {
        let config = parse(text).expect("parse");
        config.address_in_use(Listen::Control, config.control.listen).to_string()
    };
    assert_eq!(
        told(&with_voters("node-x", "10.0.0.9:7300", VOTERS)),
        "config /etc/godwit/node.toml: `listen` in [control]: another process on this host already uses UDP address \
         10.0.0.9:7300; take another port, or 0 and the kernel chooses one; corrected line:\n  \
         listen = \"10.0.0.9:7301\""
    );
    // The next ports are the other voters' and its own.
    let voters = "a = \"10.0.0.1:7398\"\nb = \"10.0.0.1:7399\"\nc = \"10.0.0.1:7401\"";
    assert_eq!(
        told(&with_voters("a", "0.0.0.0:7398", voters)),
        "config /etc/godwit/node.toml: `listen` in [control]: another process on this host already uses UDP address \
         0.0.0.0:7398; take another port, here and in `voters` of every node; corrected line:\n  \
         listen = \"0.0.0.0:7402\"\n  [control.voters]\n  a = \"10.0.0.1:7402\""
    );
}

#[test]
fn memory_that_breaks_a_rule_is_told_with_one_that_keeps_it() {
    let grammar =
        "quantity \"4GB\" is not a number with a suffix such as Ki, Mi, Gi, k, M or G (for example 64Mi)";
    for (value, told) in [
        ("\"0\"", ("it must be more than 0", "\"57Gi\"")),
        ("\"4GB\"", (grammar, "\"57Gi\"")),
        ("1073741824", ("it must be text in quotes", "\"1073741824\"")),
    ] {
        let text = with("state =", &format!("memory = {value}\nstate ="));
        value_refused(&text, 3, &keys::MEMORY, value, told);
    }
}

#[test]
fn memory_is_what_the_operator_says_or_what_the_host_can_spare() {
    let said = parse(&with("state =", "memory = \"2Gi\"\nstate =")).expect("parse");
    assert_eq!(said.memory_bytes, Some(2 << 30));
    assert_eq!(said.memory_offered_bytes().expect("said"), 2 << 30);
    let host = parse(&least("")).expect("parse").memory_offered_bytes().expect("this host says what it has");
    assert!(host < 1 << 50, "{host}");

    let meminfo = "MemTotal:       65536000 kB\nMemFree:         1000000 kB\n";
    assert_eq!(total_memory_bytes(meminfo), Some(65_536_000 * 1024));
    for broken in ["", "MemFree: 1 kB\n", "MemTotal: 1 MB\n", "MemTotal: many kB\n"] {
        assert_eq!(total_memory_bytes(broken), None, "{broken}");
    }
    for (total_gib, offered_gib) in [(100, 90), (10, 9), (4, 3), (1, 0)] {
        assert_eq!(offered_of_bytes(total_gib << 30), offered_gib << 30);
    }
    assert_eq!(offered_of_bytes(512 << 20), 0);
}

#[test]
fn sockets_that_break_a_rule_are_told_with_one_that_keeps_it() {
    let long = format!("\"/{}\"", "s".repeat(107));
    for (value, rule) in [
        ("\"admin.sock\"", "it must be an absolute path"),
        ("\"\"", "it must be an absolute path"),
        (&long, "it must be 107 bytes or shorter, as the kernel takes no longer one"),
    ] {
        let text = least(&format!("[admin]\nsocket = {value}"));
        value_refused(&text, 14, &keys::SOCKET, value, (rule, "\"/run/godwit/admin.sock\""));
    }
    let longest = format!("/{}", "s".repeat(106));
    let config = parse(&least(&format!("[admin]\nsocket = \"{longest}\""))).expect("at the bound");
    assert_eq!(config.admin.socket, Path::new(&longest));
}
