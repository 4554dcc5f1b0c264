//! What an answer holds stands in its table: every value of every answer is given its own look and searched for.
//!
//! Always true: a column or a line that is lost, by its name or by its value, fails a test.

use godwit_admin::render;
use godwit_wire::admin::{
    ControlStatus, Done, Fenced, GuestDetail, GuestRow, GuestStats, MigrationDetail, MigrationRow,
    NodeDetail, NodeRow, Status,
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
    })
}

const NODE_PARTS: [&str; 9] = [
    "node-a",
    "unreachable for 12.3 s",
    "voter",
    "10.0.0.1:7001",
    "10.0.0.2:7002",
    "11",
    "8.0 GiB",
    "1.5 GiB",
    "33",
];
const GUEST_PARTS: [&str; 6] = ["lab/vm1", "migrating", "node-b", "44", "5.0 GiB", "move-7"];
const MIGRATION_PARTS: [&str; 8] =
    ["move-7", "lab/vm1", "Running", "PreCopy round 3", "node-b", "node-c", "2024-02-29T23:59:59.999Z", "55"];

#[test]
fn lists_have_all_their_columns() {
    let nodes = render::nodes(&[answer::<NodeRow>(node_row())]);
    holds(&nodes, &NODE_PARTS);
    assert_eq!(
        header(&nodes),
        [
            "node",
            "state",
            "control",
            "guests",
            "memory",
            "free",
            "out",
            "in",
            "control address",
            "migration address"
        ]
    );
    let guests = render::guests(&[answer::<GuestRow>(guest_row())]);
    holds(&guests, &GUEST_PARTS);
    assert_eq!(header(&guests), ["guest", "state", "node", "epoch", "memory", "migration"]);
    let migrations = render::migrations(&[answer::<MigrationRow>(migration_row())]);
    holds(&migrations, &MIGRATION_PARTS);
    assert_eq!(
        header(&migrations),
        ["migration", "guest", "phase", "detail", "from", "to", "queue", "asked for"]
    );
}

#[test]
fn an_empty_list_is_a_sentence() {
    let told = [render::nodes(&[]), render::guests(&[]), render::migrations(&[])];
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
    value["runners"] = Value::Null;
    holds(&render::node(&answer::<NodeDetail>(value)), &["not known: it does not answer"]);
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
        "spec": {
            "memory_bytes": 5_u64 << 30, "working_set_bytes": 3_u64 << 28, "dirty_rate_bytes_per_second": 7_u64 << 20,
            "pattern": "hot-set", "zero_percent": 12, "compressible_percent": 34, "threads": 56, "seed": 789,
            "tick_interval_ms": 13,
        },
    });
    value.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    let text = render::guest(&answer::<GuestDetail>(value));
    holds(&text, &GUEST_PARTS);
    holds(&text, &MIGRATION_PARTS);
    holds(&text, &["uid-77", INSTANCE, "88", "node-d", OTHER, "kept source"]);
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
            "course": "throttled",
        },
        "measured": {
            "source": {
                "total_us": 1001, "pause_us": 1002, "state_us": 1003, "commit_us": 1004, "rounds": 1005,
                "wire_bytes": 10_u64 << 20, "raw_pages": 1006, "zero_pages": 1007, "skipped_pages": 1008,
                "last_round_pages": 1009, "predicted_downtime_us": 1010, "throttle_percent_max": 62,
                "paused_to_finish": true,
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
    holds(&text, &["1.010 ms", "1.011 ms", "42 %", "62 %"]);
    let lines: Vec<&str> = text.lines().collect();
    let line = |name: &str| *lines.iter().find(|line| line.contains(name)).expect(name);
    assert!(line("paused to finish").contains("yes"), "{text}");
    assert!(line(" over ").contains("no") && line("holds permits").contains("yes"), "{text}");
}

#[test]
fn a_migration_fits_a_line() {
    let line = render::migration_line(&answer::<MigrationDetail>(migration_detail()));
    assert_eq!(
        line,
        "move-7  lab/vm1  node-b → node-c  Running: PreCopy round 3, place 55 in the queue, round 3, 11.0 MiB left, \
         8.0 MiB/s out, 9.0 MiB/s written, downtime now 77 ms"
    );
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
        "quorum_age_ms": 66, "condition": "running", "session": "node-d",
    })));
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
