//! Questions with one answer: what is asked, how it is shown, and the exit code.

use godwit_domain::{GuestName, GuestSpec, Labels, MigrationId, NodeName, Overrides, Priority};
use godwit_wire::admin::{Act, Body, Code, MoveMode};
use serde_json::{Value, json};

use crate::desk::{Answer, Node, godwit, problem, run};

#[tokio::test]
async fn an_answer_is_a_table_or_one_line_of_json() {
    let node = Node::start(|_, _| {
        vec![Body::Ok(json!([{
            "name": "default/vm1", "state": "running", "node": "node-a", "epoch": 3, "memory_bytes": 1 << 30,
            "migration": null,
        }]))]
    });
    let table = node.run("guest list").await;
    assert_eq!((table.code, table.stderr.as_str()), (Some(0), ""), "{table:?}");
    assert!(table.stdout.contains("default/vm1") && table.stdout.contains("1.0 GiB"), "{table:?}");
    let json = node.run("guest list -o json").await;
    assert_eq!((json.code, json.stdout.lines().count()), (Some(0), 1), "{json:?}");
    let value: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(value[0]["epoch"], 3);
    assert_eq!(node.last(), Act::GuestList);
}

#[tokio::test]
async fn the_exit_code_says_what_kind_of_no_it_is() {
    for (answer, code) in [
        ((|_, _| problem(Code::Refused)) as Answer, 1),
        (|_, _| problem(Code::Failed), 1),
        (|_, _| problem(Code::NotFound), 1),
        (|_, _| problem(Code::Invalid), 2),
        (|_, _| problem(Code::Unavailable), 3),
        (|_, _| problem(Code::Unknown), 3),
        (|_, _| vec![Body::Ok(json!("no status"))], 3),
    ] {
        let node = Node::start(answer);
        let ran = node.run("status").await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{ran:?}");
        let lines: Vec<&str> = ran.stderr.lines().collect();
        let [message, rule, try_] = lines.as_slice() else { panic!("{ran:?}") };
        assert!(message.starts_with("godwit: ") && rule.starts_with("  rule: "), "{ran:?}");
        assert!(try_.starts_with("  try: "), "{ran:?}");
    }
    let ran = Node::start(|_, _| problem(Code::Refused)).run("status -o json").await;
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (Some(1), "godwit: the message\n  rule: the rule\n  try: the way out\n")
    );
    let error =
        r#"{"error":{"code":"refused","message":"the message","rule":"the rule","try":"the way out"}}"#;
    assert_eq!(ran.stdout, format!("{error}\n"));
}

#[tokio::test]
async fn the_socket_is_where_it_is_said_to_be() {
    let missing = run(godwit("status -o json").env("GODWIT_SOCKET", "/nowhere/admin.sock")).await;
    assert_eq!(missing.code, Some(3), "{missing:?}");
    assert!(
        missing.stderr.contains("/nowhere/admin.sock") && missing.stderr.contains("is the node running?")
    );
    assert!(missing.stdout.contains(r#""code":"unavailable""#), "{missing:?}");
    let node = Node::start(|_, _| problem(Code::Refused));
    let line = format!("status --socket {}", node.socket.display());
    assert_eq!(run(godwit(&line).env("GODWIT_SOCKET", "/nowhere/admin.sock")).await.code, Some(1));
}

#[tokio::test]
async fn what_is_asked_of_nodes_is_what_was_written() {
    let node = Node::start(|_, _| problem(Code::Refused));
    let at = |text: &str| text.parse::<NodeName>().expect("a name");
    for (line, act) in [
        ("status", Act::Status),
        ("control status", Act::ControlStatus),
        ("control add node-b", Act::ControlAdd { node: at("node-b") }),
        ("control remove node-b", Act::ControlRemove { node: at("node-b") }),
        ("node list", Act::NodeList),
        ("node show node-b", Act::NodeShow { node: at("node-b") }),
        ("node fence node-b", Act::NodeFence { node: at("node-b"), although_reachable: false }),
        (
            "node fence node-b --although-reachable",
            Act::NodeFence { node: at("node-b"), although_reachable: true },
        ),
        ("node remove node-b", Act::NodeRemove { node: at("node-b") }),
        ("drain node-b", Act::NodeDrain { node: at("node-b") }),
        ("node drain node-b", Act::NodeDrain { node: at("node-b") }),
        ("drain node-b --cancel", Act::NodeDrainCancel { node: at("node-b") }),
        ("node uncordon node-b", Act::NodeUncordon { node: at("node-b") }),
    ] {
        let ran = node.run(line).await;
        assert_eq!((ran.code, node.last()), (Some(1), act), "{line}: {ran:?}");
        assert_eq!(ran.stderr.contains("you vouch that the machine is powered off"), line.contains("fence"));
    }
}

#[tokio::test]
async fn what_is_asked_is_what_was_written() {
    let node = Node::start(|_, _| problem(Code::Refused));
    let spec = GuestSpec {
        memory_bytes: 64 << 20,
        working_set_bytes: 16 << 20,
        dirty_rate_bytes_per_second: 1 << 20,
        pattern: "streaming".into(),
        zero_percent: 10,
        compressible_percent: 20,
        threads: 3,
        seed: 7,
        tick_interval_ms: 5,
        qemu: None,
    };
    let name = |text: &str| text.parse::<GuestName>().expect("a name");
    let at = |text: &str| text.parse::<NodeName>().expect("a name");
    let guest = name("lab/vm1");
    let mut overrides = Overrides::default();
    overrides.set("maxDowntimeMs=50").expect("a setting");
    overrides.set("bandwidthPerMigration=64Mi").expect("a setting");
    let plain = Act::Migrate {
        guest: guest.clone(),
        migration: None,
        to: None,
        selector: Labels::new(),
        overrides: Overrides::default(),
        mode: None,
        dry_run: false,
    };
    let labels: Labels = [("app", "db"), ("tier", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let move_1 = || "move-1".parse::<MigrationId>().expect("a name");
    let instance = "0123456789abcdef0123456789abcdef";
    for (line, act) in [
        (
            "guest create vm1 -n lab --on node-b --memory 64Mi --dirty-rate 1Mi --pattern streaming --zero 10 \
             --compressible 20 --threads 3 --seed 7 --tick-interval-ms 5 -l app=db --label tier=",
            Act::GuestCreate { guest: guest.clone(), node: Some(at("node-b")), spec, labels: labels.clone() },
        ),
        ("guest show vm1", Act::GuestShow { guest: name("default/vm1") }),
        ("guest show lab/vm1", Act::GuestShow { guest: guest.clone() }),
        ("guest stats vm1 -n lab", Act::GuestStats { guest: guest.clone() }),
        ("guest verify vm1 -n lab", Act::GuestVerify { guest: guest.clone() }),
        ("guest stop vm1 -n lab --now", Act::GuestStop { guest: guest.clone() }),
        (
            "guest recover vm1 -n lab",
            Act::GuestRecover { guest: guest.clone(), accept_rollback: false, instance: None },
        ),
        (
            "guest recover vm1 -n lab --accept-rollback --instance 0123456789abcdef0123456789abcdef",
            Act::GuestRecover {
                guest: guest.clone(),
                accept_rollback: true,
                instance: instance.parse().ok(),
            },
        ),
        ("migrate vm1 -n lab", plain.clone()),
        (
            "migrate lab/vm1 --to node-b --name move-1 --set maxDowntimeMs=50 --set bandwidthPerMigration=64Mi",
            Act::Migrate {
                guest: guest.clone(),
                migration: Some(move_1()),
                to: Some(at("node-b")),
                selector: Labels::new(),
                overrides,
                mode: None,
                dry_run: false,
            },
        ),
        (
            "migrate lab/vm1 --node-selector app=db,tier= --mode post-copy --set priority=low --priority high --dry-run",
            Act::Migrate {
                guest: guest.clone(),
                migration: None,
                to: None,
                selector: labels,
                overrides: Overrides { priority: Some(Priority::High), ..Overrides::default() },
                mode: Some(MoveMode::PostCopy),
                dry_run: true,
            },
        ),
        ("migrate lab/vm1 --dry-run=none", plain),
        ("policy explain vm1 -n lab", Act::PolicyExplain { guest }),
        ("migration explain move-1", Act::MigrationExplain { migration: move_1() }),
        ("migration list", Act::MigrationList),
        ("migration show move-1", Act::MigrationShow { migration: move_1() }),
        ("migration watch move-1", Act::MigrationWatch { migration: move_1() }),
        ("migration cancel move-1", Act::MigrationCancel { migration: move_1() }),
        (
            "migration set move-1 maxDowntimeMs=50 bandwidthPerMigration=64Mi",
            Act::MigrationSet { migration: move_1(), overrides },
        ),
    ] {
        let ran = node.run(line).await;
        assert_eq!((ran.code, node.last()), (Some(1), act), "{line}: {ran:?}");
    }
}

#[tokio::test]
async fn bad_usage_is_refused_before_anybody_is_asked() {
    let node = Node::start(|_, _| problem(Code::Refused));
    for line in [
        "guest show VM1",
        "guest show lab/vm1 -n prod",
        "guest create vm1 --memory 1",
        "guest create vm1 --zero 101",
        "guest create vm1 --threads 0",
        "migrate vm1 --set maxDowntimeMs=0",
        "migrate vm1 --set speed=1",
        "migration set move-1",
        "migration set move-1 maxDowntimeMs",
        "node fence",
        "guest fly",
        "status -o xml",
        "migrate vm1 --dry-run --wait",
        "migrate vm1 --mode fast",
        "migrate vm1 --priority drain",
        "migrate vm1 --node-selector gpu",
        "guest create vm1 --label a=-",
        "drain node-a --wait --cancel",
        "get pod",
        "get vm lab/a -n prod",
        "get vm a b -w",
        "describe vm",
        "delete vm",
        "delete",
        "delete vm a -f x.yaml",
        "label vm a",
        "label vm a=1",
        "label vm a b=-",
        "edit vmi",
        "apply",
        "node uncordon a --request-id=",
        "policy explain VM",
    ] {
        let ran = node.run(line).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{line}: {ran:?}");
        assert!(!ran.stderr.is_empty() && !ran.stderr.contains("panicked"), "{line}: {ran:?}");
    }
    assert!(node.was_asked_nothing());
}

#[tokio::test]
async fn a_guest_whose_pages_are_wrong_fails_its_verification() {
    let whole =
        Node::start(|_, _| vec![Body::Ok(json!({"pages": 9, "wrong": 0, "first_wrong": [], "took_ms": 1}))]);
    let ran = whole.run("guest verify vm1").await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let wrong =
        Node::start(|_, _| vec![Body::Ok(json!({"pages": 9, "wrong": 2, "first_wrong": [4], "took_ms": 1}))]);
    for line in ["guest verify vm1", "guest verify vm1 -o json"] {
        let ran = wrong.run(line).await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("default/vm1: 2 of 9 pages"), "{ran:?}");
        assert!(!ran.stdout.is_empty(), "the answer is data: {ran:?}");
    }
}

#[tokio::test]
async fn a_change_whose_outcome_is_not_known_can_be_asked_for_again() {
    let node = Node::start(|_, _| problem(Code::Unknown));
    let ran = node.run("node uncordon node-a -o json").await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let id = node.requests().pop().and_then(|request| request.request_id).expect("an id");
    assert_eq!(id.len(), 32);
    assert!(ran.stderr.contains(&format!("ask again with --request-id {id}")), "{ran:?}");
    let told: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((&told["request_id"], &told["error"]["code"]), (&json!(id), &json!("unknown")));
    for line in [
        "node uncordon node-a",
        "node fence node-a",
        "node remove node-a",
        "drain node-a",
        "drain node-a --cancel",
        "drain node-a --wait",
        "guest create vm1",
        "guest stop vm1 --now",
        "guest recover vm1",
        "migrate vm1",
        "migrate vm1 --wait",
        "migration set move-1 maxDowntimeMs=50",
        "migration cancel move-1",
        "delete vm vm1 --now",
        "label vm vm1 a=b",
    ] {
        let ran = node.run(&format!("{line} --request-id mine")).await;
        let id = node.requests().pop().and_then(|request| request.request_id);
        assert_eq!((ran.code, id.as_deref()), (Some(3), Some("mine")), "{line}");
        assert!(ran.stderr.contains("ask again with --request-id mine"), "{line}: {ran:?}");
    }
    // What only looks is not remembered, and is known to have changed nothing.
    for line in ["migrate vm1 --dry-run --request-id mine", "migration explain move-1"] {
        let ran = node.run(line).await;
        assert_eq!(node.requests().pop().and_then(|request| request.request_id), None, "{line}");
        assert!(!ran.stderr.contains("--request-id"), "{line}: {ran:?}");
    }
    let refused = Node::start(|_, _| problem(Code::Refused)).run("node uncordon node-a").await;
    assert!(!refused.stderr.contains("--request-id"), "{refused:?}");
}
