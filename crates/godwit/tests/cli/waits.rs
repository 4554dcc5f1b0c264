//! What is waited for: migrations and drains until they are over.

use godwit_wire::admin::{Act, Body, Code};
use serde_json::{Value, json};

use crate::desk::{Answer, Node, detail, ended, interrupted_after, problem};

/// Asked for, then over.
fn move_that_ends(act: &Act, phase: &str, more: Option<&str>) -> Vec<Body> {
    match act {
        Act::Migrate { .. } => vec![Body::Ok(detail("Pending", None))],
        _ => vec![
            Body::Event(detail("Running", Some("PreCopy round 1"))),
            Body::Event(detail("Running", Some("PreCopy round 2"))),
            Body::Ok(detail(phase, more)),
        ],
    }
}

#[tokio::test]
async fn who_waits_is_told_how_it_came_out() {
    let good = Node::start(|act, _| move_that_ends(act, "Succeeded", None));
    let ran = good.run("migrate vm1 --wait").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("Succeeded"), "{ran:?}");
    let phases: Vec<&str> =
        ran.stderr.lines().map(|line| line.rsplit("  ").next().unwrap_or_default()).collect();
    assert_eq!(phases, ["Pending", "Running: PreCopy round 1", "Succeeded"]);
    assert_eq!(good.last(), Act::MigrationWatch { migration: "move-1".parse().expect("a name") });
    let bad = Node::start(|act, _| move_that_ends(act, "Cancelled", Some("NoProgress")));
    let ran = bad.run("migrate vm1 --wait -o json").await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("godwit: migration move-1 Cancelled: NoProgress"), "{ran:?}");
    let value: Value = serde_json::from_str(&ran.stdout).expect("one line of JSON");
    assert_eq!(value["phase"], "Cancelled");
}

#[tokio::test]
async fn who_waits_looks_again_when_a_look_ends_early() {
    let node = Node::start(|act, asked| match asked {
        0 => vec![Body::Ok(detail("Pending", None))],
        1 => problem(Code::Unavailable),
        2 => vec![Body::Event(detail("Scheduling", None)), problem(Code::Unknown).remove(0)],
        3 => problem(Code::Unavailable),
        4 => vec![Body::Ok(detail("Running", None))],
        _ => move_that_ends(act, "Succeeded", None),
    });
    let ran = node.run("migrate vm1 --wait").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    // A no is a no.
    let node = Node::start(|_, asked| match asked {
        0 => vec![Body::Ok(detail("Pending", None))],
        _ => problem(Code::NotFound),
    });
    assert_eq!(node.run("migrate vm1 --wait").await.code, Some(1));
    // Who has seen nothing yet does not wait for somebody who knows.
    let node = Node::start(|_, _| problem(Code::Unavailable));
    let ran = node.run("migration watch move-1").await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.stderr.contains("`godwit migration watch move-1`"), "{ran:?}");
}

#[tokio::test]
async fn an_interrupt_leaves_the_migration_going_and_says_how_to_end_it() {
    let node = Node::start(|act, _| match act {
        Act::Migrate { .. } => vec![Body::Ok(detail("Pending", None))],
        _ => vec![Body::Event(detail("Running", Some("PreCopy round 1")))],
    });
    let (ran, told) = interrupted_after("PreCopy round 1", &mut node.command("migrate vm1 --wait")).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(130), ""), "{told}");
    assert!(told.contains("move-1 goes on") && told.contains("`godwit migration cancel move-1`"), "{told}");
    assert!(!matches!(node.last(), Act::MigrationCancel { .. }));
}

#[tokio::test]
async fn a_watch_prints_a_line_for_each_change() {
    let answer: Answer = |_, _| {
        vec![
            Body::Event(detail("Pending", None)),
            Body::Event(detail("Pending", None)),
            Body::Event(detail("Running", Some("PreCopy round 1"))),
            Body::Ok(detail("Succeeded", None)),
        ]
    };
    let ran = Node::start(answer).run("migration watch move-1").await;
    let prefix = "move-1  default/vm1  node-a → node-b";
    let lines = format!("{prefix}  Pending\n{prefix}  Running: PreCopy round 1\n{prefix}  Succeeded\n");
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), lines.as_str(), ""));
    let ran = Node::start(answer).run("migration watch move-1 -o json").await;
    let phases: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["phase"].take())
        .collect();
    assert_eq!((ran.code, phases), (Some(0), vec![json!("Pending"), json!("Running"), json!("Succeeded")]));
}

#[tokio::test]
async fn a_watch_ends_when_its_reader_has_gone() {
    let node = Node::start(|_, _| vec![Body::Event(detail("Running", None))]);
    let mut child = node.command("migration watch move-1").spawn().expect("a process");
    drop(child.stdout.take());
    let ran = ended(child).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
}

fn drained(state: &str, moved: u64, left: &[(&str, bool)]) -> Value {
    let guest = |(guest, stuck): &(&str, bool)| json!({"guest": guest, "stuck": stuck, "why": format!("why of {guest}"), "failed": 0, "retry_at_ms": null});
    json!({
        "name": "node-a", "state": "reachable", "unreachable_for_ms": null, "control": "voter",
        "control_address": "10.0.0.1:1", "migration_address": "10.0.0.1:2", "guests": left.len(), "memory_bytes": 1,
        "free_memory_bytes": 1, "outbound": 0, "inbound": 0, "takes_guests": "draining", "labels": {},
        "boot": "boot-1", "fence_waits_for": [], "placed": [], "leaving": [], "networks": {}, "runners": [],
        "drain": {
            "state": state, "began_ms": 0, "moved": moved, "left": left.iter().map(guest).collect::<Vec<_>>(),
        },
    })
}

const BOTH: &[(&str, bool)] = &[("default/a", false), ("default/b", true)];

#[tokio::test]
async fn who_waits_for_a_drain_is_told_what_is_left() {
    let good: Answer = |act, asked| match (act, asked) {
        (Act::NodeDrain { .. }, _) => vec![Body::Ok(drained("draining", 0, BOTH))],
        // The leader has gone meanwhile.
        (_, 1) => vec![Body::Event(drained("draining", 1, &BOTH[..1])), problem(Code::Unknown).remove(0)],
        _ => vec![Body::Ok(drained("drained", 2, &[]))],
    };
    for line in ["drain node-a --wait", "node drain node-a --wait"] {
        let node = Node::start(good);
        let ran = node.run(line).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stdout.contains("drained"), "{ran:?}");
        let told: Vec<&str> = ran.stderr.lines().collect();
        assert_eq!(
            told,
            [
                "node-a  draining: 0 moved, 2 left, 1 of them stuck",
                "node-a  draining: 1 moved, 1 left",
                "node-a  drained: 2 moved, 0 left",
            ]
        );
        assert_eq!(node.last(), Act::NodeDrainWatch { node: "node-a".parse().expect("a name") });
    }
    let stuck: Answer = |act, _| match act {
        Act::NodeDrain { .. } => vec![Body::Ok(drained("draining", 0, BOTH))],
        _ => vec![Body::Ok(drained("stuck", 3, BOTH))],
    };
    let ran = Node::start(stuck).run("drain node-a --wait -o json").await;
    assert_eq!((ran.code, ran.stdout.lines().count()), (Some(1), 1), "{ran:?}");
    assert!(
        ran.stderr.contains("default/b: why of default/b") && !ran.stderr.contains("why of default/a"),
        "{ran:?}"
    );
    let cancelled: Answer = |_, _| vec![Body::Ok(drained("cancelled", 3, BOTH))];
    let ran = Node::start(cancelled).run("drain node-a --wait").await;
    assert!(ran.code == Some(1) && ran.stderr.contains("default/a: why of default/a"), "{ran:?}");
}

#[tokio::test]
async fn an_interrupt_leaves_the_drain_going_and_says_how_to_end_it() {
    let node = Node::start(|act, _| match act {
        Act::NodeDrain { .. } => vec![Body::Ok(drained("draining", 0, BOTH))],
        _ => vec![Body::Event(drained("draining", 1, &BOTH[..1]))],
    });
    let (ran, told) = interrupted_after("1 moved", &mut node.command("drain node-a --wait")).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(130), ""), "{told}");
    assert!(told.contains("node-a goes on") && told.contains("`godwit drain node-a --cancel`"), "{told}");
    assert!(!matches!(node.last(), Act::NodeDrainCancel { .. }));
}
