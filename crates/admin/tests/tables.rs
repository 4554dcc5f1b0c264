//! What an answer holds stands in its table: every value of every answer is given its own look and searched for.
//!
//! Always true: a column or a line that is lost, by its name or by its value, fails a test.

#![recursion_limit = "256"]

use godwit_admin::render;
use godwit_wire::admin::{
    Applied, COUNT_MAX, ControlStatus, Done, Explained, Fenced, GuestDetail, GuestRow, GuestStats,
    MigrationDetail, MigrationExplained, MigrationRow, NodeDetail, NodeRow, Objects, Status, Verdicts,
};
use godwit_wire::handoff::Verified;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// As it comes from a node. A wrong answer would be the test's own fault.
#[track_caller]
fn answer<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an answer")
}

#[track_caller]
fn holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

/// The names of a table's columns.
fn header(table: &str) -> Vec<String> {
    let line = table.lines().nth(1).unwrap_or_default();
    line.trim_matches('│')
        .split("  ")
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

const INSTANCE: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

fn node_row() -> Value {
    json!({
        "name": "node-a", "state": "unreachable", "unreachable_for_ms": 12_345, "control": "voter",
        "control_address": "10.0.0.1:7001", "migration_address": "10.0.0.2:7002", "guests": 11,
        "memory_bytes": 8_u64 << 30, "free_memory_bytes": 3_u64 << 29, "outbound": 22, "inbound": 33,
        "takes_guests": "cordoned", "labels": {"rack": "r-99"},
    })
}

fn guest_row() -> Value {
    json!({
        "name": "lab/vm1", "state": "migrating", "node": "node-b", "epoch": 44, "memory_bytes": 5_u64 << 30,
        "migration": "move-7",
    })
}

fn migration_row() -> Value {
    json!({
        "name": "move-7", "guest": "lab/vm1", "phase": "Running", "detail": "PreCopy round 3", "source": "node-b",
        "target": "node-c", "asked_ms": 1_709_251_199_999_u64, "queue_position": 55,
        "priority": "high", "policy": "policy-5",
    })
}

const NODE_PARTS: [&str; 11] = [
    "node-a",
    "unreachable for 12.3 s",
    "voter",
    "10.0.0.1:7001",
    "10.0.0.2:7002",
    "11",
    "8.0 GiB",
    "1.5 GiB",
    "33",
    "cordoned",
    "rack=r-99",
];
const GUEST_PARTS: [&str; 6] = ["lab/vm1", "migrating", "node-b", "44", "5.0 GiB", "move-7"];
const MIGRATION_PARTS: [&str; 10] = [
    "move-7",
    "lab/vm1",
    "Running",
    "PreCopy round 3",
    "node-b",
    "node-c",
    "2024-02-29T23:59:59.999Z",
    "55",
    "high",
    "policy-5",
];

#[test]
fn lists_have_all_their_columns() {
    let rows = [answer::<NodeRow>(node_row())];
    let nodes = render::nodes(&rows, true);
    holds(&nodes, &NODE_PARTS);
    let narrow = ["node", "state", "control", "takes guests", "guests", "memory", "free", "out", "in"];
    let wide = [&narrow[..], &["control address", "migration address", "labels"]].concat();
    assert_eq!(header(&nodes), wide);
    assert_eq!(header(&render::nodes(&rows, false)), narrow);
    let guests = render::guests(&[answer::<GuestRow>(guest_row())]);
    holds(&guests, &GUEST_PARTS);
    assert_eq!(header(&guests), ["guest", "state", "node", "epoch", "memory", "migration"]);
    let rows = [answer::<MigrationRow>(migration_row())];
    let migrations = render::migrations(&rows, true);
    holds(&migrations, &MIGRATION_PARTS);
    let narrow = ["migration", "guest", "phase", "detail", "from", "to", "queue", "asked for"];
    assert_eq!(header(&migrations), [&narrow[..], &["priority", "policy"]].concat());
    assert_eq!(header(&render::migrations(&rows, false)), narrow);
}

#[test]
fn an_empty_list_is_a_sentence() {
    let told = [render::nodes(&[], false), render::guests(&[]), render::migrations(&[], true)];
    assert_eq!(told, ["no nodes", "no guests", "no migrations"]);
}

#[test]
fn what_is_not_known_is_a_dash() {
    let row = json!({
        "name": "a/b", "state": "lost", "node": null, "epoch": 1, "memory_bytes": 0, "migration": null,
    });
    let table = render::guests(&[answer::<GuestRow>(row)]);
    assert_eq!(table.matches(" - ").count(), 2, "{table}");
}

#[test]
fn a_node_is_shown_whole() {
    let mut value = node_row();
    let more = json!({
        "boot": "boot-66", "fence_waits_for": [INSTANCE], "placed": [guest_row()], "leaving": [migration_row()],
        "networks": {"fast": "10.9.9.9:7003"},
        "drain": {
            "state": "stuck", "began_ms": 951_782_400_000_u64, "moved": 123, "left": [
                {"guest": "lab/vm7", "stuck": true, "why": "no node is large enough", "failed": 456,
                 "retry_at_ms": 951_868_800_000_u64},
                {"guest": "lab/vm8", "stuck": false, "why": "waits for a permit", "failed": 0, "retry_at_ms": null},
            ],
        },
        "runners": [{
            "guest": "lab/vm9", "instance": OTHER, "state": "incoming", "dir": "/somewhere/r", "transfer": "move-9",
        }],
    });
    value.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    let text = render::node(&answer::<NodeDetail>(value.clone()));
    holds(&text, &NODE_PARTS);
    holds(&text, &GUEST_PARTS);
    holds(&text, &MIGRATION_PARTS);
    holds(&text, &["22", "boot-66", INSTANCE, "lab/vm9", OTHER, "incoming", "/somewhere/r", "move-9"]);
    holds(&text, &["fast 10.9.9.9:7003", "2000-02-29T00:00:00.000Z", "123", "lab/vm7", "456"]);
    holds(&text, &["no node is large enough", "2000-03-01T00:00:00.000Z", "lab/vm8", "waits for a permit"]);
    let detail = answer::<NodeDetail>(value.clone());
    assert_eq!(render::drain_line(&detail), "node-a  stuck: 123 moved, 2 left, 1 of them stuck");
    let drain = detail.drain.expect("a drain");
    assert_eq!(render::stuck(&drain, false), ["lab/vm7: no node is large enough"]);
    assert_eq!(render::stuck(&drain, true).len(), 2);
    (value["runners"], value["drain"]) = (Value::Null, Value::Null);
    let detail = answer::<NodeDetail>(value);
    let text = render::node(&detail);
    holds(&text, &["not known: it does not answer"]);
    assert!(!text.contains("its drain"), "{text}");
    assert_eq!(render::drain_line(&detail), "node-a  not drained, takes guests: cordoned");
}

#[test]
fn what_was_done_is_said_with_what_follows() {
    assert_eq!(render::done("vm1 is stopped", &Done::default()), "vm1 is stopped");
    let done = Done { note: Some("node-b has not answered yet".into()) };
    assert_eq!(render::done("vm1 is stopped", &done), "vm1 is stopped: node-b has not answered yet");
}

#[test]
fn a_fence_says_what_is_lost() {
    let text = render::fenced(&answer::<Fenced>(json!({
        "node": "node-a", "note": "its guests stop",
        "lost": [{"guest": "lab/vm1", "kept_on": "node-b"}, {"guest": "lab/vm2", "kept_on": null}],
    })));
    holds(&text, &["node-a is fenced", "lab/vm1", "node-b", "lab/vm2", " - ", "its guests stop"]);
}

#[test]
fn a_guest_is_shown_whole() {
    let mut value = guest_row();
    let more = json!({
        "uid": "uid-77", "instance": INSTANCE, "rollbacks": 88, "migrations": [migration_row()],
        "copies": [{"node": "node-d", "instance": OTHER, "what": "kept source"}],
        "labels": {"app": "db-321"}, "node_selector": {"accelerator": "gpu-654"}, "policy": "policy-6",
        "spec": {
            "memory_bytes": 5_u64 << 30, "working_set_bytes": 3_u64 << 28, "dirty_rate_bytes_per_second": 7_u64 << 20,
            "pattern": "hot-set", "zero_percent": 12, "compressible_percent": 34, "threads": 56, "seed": 789,
            "tick_interval_ms": 13,
        },
    });
    value.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    let mut stands_still = value.clone();
    stands_still["not_run"] = json!("its disk-987 is not there");
    let said = render::guest(&answer::<GuestDetail>(stands_still));
    holds(&said, &["and does not run: its disk-987 is not there"]);
    let text = render::guest(&answer::<GuestDetail>(value));
    assert!(!text.contains("does not run"), "{text}");
    holds(&text, &GUEST_PARTS);
    holds(&text, &MIGRATION_PARTS);
    holds(&text, &["uid-77", INSTANCE, "88", "node-d", OTHER, "kept source"]);
    holds(&text, &["app=db-321", "accelerator=gpu-654", "policy-6"]);
    holds(
        &text,
        &[
            "768.0 MiB",
            "7.0 MiB/s",
            "hot-set",
            "12 % zero",
            "34 % compressible",
            "56 threads",
            "seed 789",
            "every 13 ms",
        ],
    );
}

#[test]
fn numbers_of_a_guest_are_shown_whole() {
    let name = "lab/vm1".parse().expect("a name");
    let stats = render::stats(
        &name,
        &answer::<GuestStats>(json!({
            "node": "node-b", "dir": "/somewhere/r", "stats": {
                "standing": {"state": "paused", "epoch": 44, "loaded": 43}, "memory_bytes": 5_u64 << 30,
                "dirty_rate_asked": 7_u64 << 20, "dirty_rate_achieved": 6_u64 << 20, "pages_written": 1234,
                "running_us": 12_345_678, "tick": 5678, "throttle_percent": 91,
            },
        })),
    );
    holds(
        &stats,
        &["lab/vm1", "node-b", "/somewhere/r", "paused", "44", "43", "5.0 GiB", "7.0 MiB/s", "6.0 MiB/s"],
    );
    holds(&stats, &["1234", "12.3 s", "5678", "91 %"]);
    let verified = |wrong: u64| Verified { pages: 4321, wrong, first_wrong: vec![17, 19], took_ms: 999 };
    holds(&render::verified(&name, &verified(0)), &["lab/vm1", "all 4321 pages", "999 ms"]);
    holds(
        &render::verified(&name, &verified(21)),
        &["lab/vm1", "21 of 4321 PAGES ARE WRONG", "17, 19", "999 ms"],
    );
}

fn migration_detail() -> Value {
    let mut value = migration_row();
    let more = json!({
        "asked_selector": {"accelerator": "gpu-1"}, "drains": "node-g", "network": "fast-net",
        "waits_for": "an outbound permit of node-b", "holders": ["move-4", "move-6"],
        "settings": {
            "bandwidthPerMigration": {"value": "64Mi", "origin": "migration"},
            "allowPostCopy": {"value": true, "origin": "policy"},
            "progressTimeout": {"value": 987, "origin": "default"},
        },
        "changes": [{"time_ms": 951_782_400_000_u64, "what": "policy-5 is in force"}],
        "over": false, "asked_target": "node-e", "permits_held": true, "call_offs": 66,
        "overrides": {
            "bandwidthPerMigration": "64Mi", "completionTimeoutPerGiB": 801, "progressTimeout": 151,
            "maxDowntimeMs": 301,
        },
        "obstacles": {"node-f": "too little memory"},
        "steps": [{"time_ms": 951_868_800_000_u64, "phase": "Scheduling", "reason": "admitted first"}],
        "progress": {
            "round": 3, "switching_over": false, "waits_for_quorum": true, "left_bytes": 5_u64 << 20,
            "dirty_bytes": 6_u64 << 20, "wire_bytes": 7_u64 << 20, "send_rate": 8_u64 << 20,
            "dirty_rate": 9_u64 << 20, "predicted_downtime_ms": 77, "throttle_percent": 42,
            "course": "throttled", "steps": [],
            "prediction": {
                "fits": "no", "downtime_ms": 6_400, "left_bytes": 11_u64 << 20, "needed_bandwidth": 12_u64 << 20,
                "send_rate": 13_u64 << 20, "downtime_max_ms": 302, "confidence": "varies",
            },
        },
        "measured": {
            "source": {
                "total_us": 1001, "pause_us": 1002, "state_us": 1003, "commit_us": 1004, "rounds": 1005,
                "wire_bytes": 10_u64 << 20, "raw_pages": 1006, "zero_pages": 1007, "skipped_pages": 1008,
                "packed_pages": 1012, "packed_bytes": 11_u64 << 20, "packing_us": 1013, "last_round_pages": 1009,
                "predicted_downtime_us": 1010, "throttle_percent_max": 62, "reconnects": 1014,
                "paused_to_finish": true,
                "forecast": {
                    "said_us": 1000, "prediction": {
                        "fits": {"yes": {"in_ms": 7_700, "round": 19}}, "downtime_ms": 88, "left_bytes": 1,
                        "needed_bandwidth": 2, "send_rate": 1, "downtime_max_ms": 303, "confidence": "early",
                    },
                },
                "steps": [{
                    "from_round": 23, "round": 29, "did": {"throttle": 31}, "before_bytes": 14_u64 << 20,
                    "left_bytes": 15_u64 << 20, "downtime_ms": 1,
                }],
            },
            "resume_us": 1011,
        },
    });
    value.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    value
}

#[test]
fn a_migration_is_shown_whole() {
    let text = render::migration(&answer::<MigrationDetail>(migration_detail()));
    holds(&text, &MIGRATION_PARTS);
    holds(&text, &["node-e", "66", "bandwidthPerMigration=64Mi", "completionTimeoutPerGiB=801"]);
    holds(&text, &["progressTimeout=151", "maxDowntimeMs=301", "node-f", "too little memory"]);
    holds(&text, &["2000-03-01T00:00:00.000Z", "Scheduling", "admitted first", "waits for a quorum"]);
    holds(&text, &["5.0 MiB", "6.0 MiB", "7.0 MiB", "8.0 MiB/s", "9.0 MiB/s", "77 ms", "10.0 MiB"]);
    holds(&text, &["1.001 ms", "1.002 ms", "1.003 ms", "1.004 ms", "1005", "1006", "1007", "1008", "1009"]);
    holds(&text, &["1.010 ms", "1.011 ms", "42 %", "62 %", "1012, 11.0 MiB of 4.0 MiB", "1.013 ms"]);
    holds(
        &text,
        &["accelerator=gpu-1", "node-g", "fast-net", "an outbound permit of node-b", "move-4, move-6"],
    );
    holds(&text, &["2000-02-29T00:00:00.000Z", "policy-5 is in force"]);
    holds(&text, &["will not fit 302 ms: about 11.0 MiB stay", "6.4 s", "12.0 MiB/s (has 13.0 MiB/s)"]);
    holds(&text, &["will fit 303 ms in about 7.7 s, after round 19", "88 ms", "an early guess"]);
    holds(&text, &["23 to 29", "throttled to 31 %", "left grew from 14.0 MiB to 15.0 MiB"]);
    holds(&text, &["7.7 s shorter than expected", "84.991 ms shorter than expected"]);
    let lines: Vec<&str> = text.lines().collect();
    let line = |name: &str| *lines.iter().find(|line| line.contains(name)).expect(name);
    assert!(line("allowPostCopy").contains("true") && line("allowPostCopy").contains("policy"), "{text}");
    assert!(!text.contains("987"), "a default is no news: {text}");
    assert!(line("paused to finish").contains("yes"), "{text}");
    assert!(line(" over ").contains("no") && line("holds permits").contains("yes"), "{text}");
}

#[test]
fn what_was_predicted_from_nothing_is_not_told() {
    let mut value = migration_detail();
    value["measured"]["source"]["predicted_downtime_us"] = json!(COUNT_MAX);
    value["progress"]["send_rate"] = json!(0);
    let text = render::migration(&answer::<MigrationDetail>(value));
    let told: Vec<&str> = text.lines().filter(|line| line.contains("predicted downtime")).collect();
    assert_eq!(told.len(), 2, "{text}");
    assert!(told.iter().all(|line| !line.contains(|letter: char| letter.is_ascii_digit())), "{told:?}");
}

#[test]
fn a_migration_is_explained_with_its_nodes_and_everything_that_holds() {
    let mut value = migration_detail();
    value["nodes"] = json!({"node-h": null, "node-i": "too few pages"});
    value["before"] = json!(["move-2", "move-3"]);
    let text = render::migration_explained(&answer::<MigrationExplained>(value.clone()));
    holds(&text, &MIGRATION_PARTS);
    holds(&text, &["node-h", "node-i", "too few pages", "move-2, move-3", "progressTimeout", "987"]);
    let node = |name: &str| text.lines().find(|line| line.contains(name)).expect("a line").contains("yes");
    assert!(node("node-h") && !node("node-i"), "{text}");
    value["before"] = json!([]);
    holds(&render::migration_explained(&answer(value)), &["nothing in the queue"]);
}

#[test]
fn verdicts_say_where_a_guest_would_go_and_why_not_elsewhere() {
    let mut value = json!({
        "guest": "lab/vm1", "source": "node-a", "target": "node-b", "waits_for": "a permit of the cluster",
        "nodes": {"node-b": null, "node-c": "cordoned"}, "policy": "policy-5",
        "settings": {"maxDowntimeMs": {"value": 123, "origin": "cluster"}}, "notes": ["note the first"],
    });
    let text = render::verdicts(&answer::<Verdicts>(value.clone()));
    holds(
        &text,
        &["lab/vm1", "node-a", "would go to", "node-b", "a permit of the cluster", "node-c", "cordoned"],
    );
    holds(&text, &["policy-5", "maxDowntimeMs", "123", "cluster", "- note the first"]);
    value["target"] = Value::Null;
    holds(&render::verdicts(&answer::<Verdicts>(value)), &["no node can take it"]);
}

#[test]
fn a_policy_is_explained_with_every_candidate() {
    let mut value = json!({
        "vm": "vm1", "namespace": "lab", "policy": "good", "candidates": [
            {"policy": "good", "matched": true, "labels": 2, "keys": ["env", "tier"], "reason": "taken: first in order"},
            {"policy": "bad", "matched": false, "labels": 0, "keys": [], "reason": "asks for team"},
        ],
        "settings": {
            "allowPostCopy": {"value": true, "origin": "policy"}, "network": {"value": null, "origin": "default"},
        },
        "notes": ["note the first", "note the second"],
    });
    let text = render::explained(&answer::<Explained>(value.clone()));
    holds(&text, &["vm1", "lab", "good", "env, tier", "taken: first in order", "bad", "asks for team"]);
    holds(&text, &["allowPostCopy", "true", "- note the first\n- note the second"]);
    let line = |name: &str| text.lines().find(|line| line.contains(name)).expect("a line").to_owned();
    assert!(
        line("taken").contains("yes") && line("taken").contains('2') && line("bad").contains("no"),
        "{text}"
    );
    assert!(line("network").contains("default"), "{text}");
    value["policy"] = Value::Null;
    holds(&render::explained(&answer(value)), &["none matches"]);
}

fn objects(rows: &[[&str; 3]]) -> Objects {
    let item = |row: &[&str; 3]| json!({"metadata": {"name": row[0], "namespace": "lab"}});
    answer(json!({
        "kind": "VirtualMachine", "head": ["name", "phase", "more"], "narrow": 2, "rows": rows,
        "items": rows.iter().map(item).collect::<Vec<_>>(),
    }))
}

#[test]
fn objects_have_the_columns_that_the_node_gives_them() {
    let all = objects(&[["vm1", "Running", "far"]]);
    assert_eq!(header(&render::objects(&all, true)), ["name", "phase", "more"]);
    holds(&render::objects(&all, true), &["vm1", "Running", "far"]);
    let narrow = render::objects(&all, false);
    assert_eq!(header(&narrow), ["name", "phase"]);
    assert!(!narrow.contains("far"), "{narrow}");
    assert_eq!(render::objects(&objects(&[]), true), "");
    let short = Objects { rows: vec![vec!["vm1".into()]], narrow: 9, ..all };
    holds(&render::objects(&short, false), &["vm1", "phase"]);
}

#[test]
fn what_was_shown_is_not_shown_again() {
    let mut watched = render::Watched::default();
    let first = watched.news(&objects(&[["vm1", "Running", "a"], ["v2", "Pending", "b"]]), false);
    assert_eq!(first, ["name   phase", "vm1    Running", "v2     Pending"]);
    let none = watched.news(&objects(&[["vm1", "Running", "other"], ["v2", "Pending", "b"]]), false);
    assert_eq!(none, [""; 0], "a column that is not shown is no news");
    let changed = watched.news(&objects(&[["vm1", "Running", "a"], ["v2", "Running", "b"]]), false);
    assert_eq!(changed, ["v2     Running"]);
}

#[test]
fn what_was_done_with_an_object_fits_a_line() {
    let mut done: Applied = answer(json!({
        "kind": "MigrationPolicy", "name": "good", "done": "created", "dry_run": false, "notes": [],
    }));
    assert_eq!(render::applied(&done), "migrationpolicy/good created");
    done.dry_run = true;
    assert_eq!(render::applied(&done), "migrationpolicy/good created (dry run)");
}

#[test]
fn a_migration_fits_a_line() {
    let line = render::migration_line(&answer::<MigrationDetail>(migration_detail()));
    let (now, expected) = line.split_once(", will not fit 302 ms").expect("what is expected follows");
    assert_eq!(
        now,
        "move-7  lab/vm1  node-b → node-c  Running: PreCopy round 3, place 55 in the queue, round 3, 11.0 MiB left, \
         8.0 MiB/s out, 9.0 MiB/s written, downtime now 77 ms"
    );
    assert!(expected.contains("needs 12.0 MiB/s (has 13.0 MiB/s)"), "{expected}");
    let mut over = migration_detail();
    (over["over"], over["phase"], over["detail"]) = (true.into(), "Succeeded".into(), Value::Null);
    over["queue_position"] = Value::Null;
    let line = render::migration_line(&answer::<MigrationDetail>(over));
    assert_eq!(line, "move-7  lab/vm1  node-b → node-c  Succeeded");
}

#[test]
fn the_control_group_is_shown_whole() {
    let text = render::control(&answer::<ControlStatus>(json!({
        "cluster": "lab-cluster", "node": "node-a", "role": "follower", "term": 11, "leader": "node-b",
        "voters": ["node-a", "node-b", "node-c"], "applied": 22, "committed": 33, "log": [44, 55],
        "quorum_age_ms": 66, "condition": "running", "session": "node-d", "group": "00ff",
        "change": "node-e learns",
        "members": [{"node": "node-e", "voter": "77", "state": "learner", "answers": false, "behind": 88}],
    })));
    holds(&text, &["00ff", "node-e learns", "learner", "NO", "88", "77"]);
    holds(
        &text,
        &["lab-cluster", "node-a", "follower", "11", "node-b", "node-a, node-b, node-c", "22", "33"],
    );
    holds(&text, &["44 to 55", "66 ms ago", "running", "node-d"]);
}

#[test]
fn the_cluster_is_shown_whole() {
    let mut value = json!({
        "cluster": "lab-cluster", "answered_by": "node-x", "stale": true, "leader": "node-y", "term": 111,
        "applied": 222, "time_ms": 951_782_400_000_u64, "nodes": [node_row()], "guests": {"running": 3, "lost": 1},
        "migrations": [migration_row()],
    });
    let text = render::status(&answer::<Status>(value.clone()));
    holds(&text, &NODE_PARTS);
    holds(&text, &MIGRATION_PARTS);
    holds(&text, &["lab-cluster", "node-x", "node-y", "111", "222", "2000-02-29T00:00:00.000Z"]);
    holds(&text, &["1 lost, 3 running", "NO: nobody leads"]);
    value["stale"] = false.into();
    assert!(!render::status(&answer::<Status>(value)).contains("NO: nobody leads"));
}
