//! The command line against a node that a test writes: what is asked, what is printed, and how it ends.
//!
//! ```text
//!   godwit … (a process) ──▶ admin socket ──▶ a function of the request
//! ```
//!
//! Always true: a test waits for states, each with a deadline.

use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_admin::{AdminSocket, Desk};
use godwit_domain::{GuestName, GuestSpec, MigrationId, NodeName, Overrides};
use godwit_wire::admin::{Act, Body, Code, Problem, Request};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// By when everything that is waited for has happened.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a node answers, line by line; without a last line it says nothing more and keeps on.
type Answer = fn(&Act, usize) -> Vec<Body>;

/// A node that answers by a function of what is asked, and how often was asked before.
struct Node {
    _dir: TempDir,
    socket: PathBuf,
    asked: Arc<Mutex<Vec<Act>>>,
}

struct Fake {
    answer: Answer,
    asked: Arc<Mutex<Vec<Act>>>,
}

impl Desk for Fake {
    fn ask(&self, request: Request, replies: mpsc::Sender<Body>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut asked = self.asked.lock().expect("no panic");
        let lines = (self.answer)(&request.act, asked.len());
        asked.push(request.act);
        Box::pin(async move {
            for line in lines {
                let _ = replies.send(line).await;
            }
            std::future::pending::<()>().await;
        })
    }
}

/// How a command ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Node {
    fn start(answer: Answer) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("admin.sock");
        let asked = Arc::default();
        let desk = Fake { answer, asked: Arc::clone(&asked) };
        tokio::spawn(AdminSocket::bind(&socket).expect("a socket").serve(Arc::new(desk)));
        Self { _dir: dir, socket, asked }
    }

    /// A command line, divided at its blanks.
    fn command(&self, line: &str) -> Command {
        let mut command = godwit(line);
        command.env("GODWIT_SOCKET", &self.socket);
        command
    }

    async fn run(&self, line: &str) -> Ran {
        run(&mut self.command(line)).await
    }

    /// What was asked last.
    fn last(&self) -> Act {
        self.asked.lock().expect("no panic").last().cloned().expect("something was asked")
    }

    fn was_asked_nothing(&self) -> bool {
        self.asked.lock().expect("no panic").is_empty()
    }
}

fn godwit(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.args(line.split_whitespace()).env_remove("GODWIT_SOCKET").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn run(command: &mut Command) -> Ran {
    ended(command.spawn().expect("a process")).await
}

async fn ended(child: Child) -> Ran {
    let output =
        tokio::time::timeout(DEADLINE, child.wait_with_output()).await.expect("it ends").expect("output");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn problem(code: Code) -> Vec<Body> {
    vec![Body::Error(Problem::new(code, "the rule", "the message", "the way out"))]
}

fn detail(phase: &str, more: Option<&str>) -> Value {
    let over = ["Succeeded", "Failed", "Cancelled"].contains(&phase);
    json!({
        "name": "move-1", "guest": "default/vm1", "phase": phase, "detail": more, "source": "node-a",
        "target": "node-b", "asked_ms": 0, "queue_position": null,
        "over": over, "asked_target": null, "permits_held": false,
        "call_offs": 0, "overrides": {}, "obstacles": {}, "steps": [], "progress": null,
        "measured": {"source": null, "resume_us": null},
    })
}

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
    };
    let name = |text: &str| text.parse::<GuestName>().expect("a name");
    let at = |text: &str| text.parse::<NodeName>().expect("a name");
    let guest = name("lab/vm1");
    let mut overrides = Overrides::default();
    overrides.set("maxDowntimeMs=50").expect("a setting");
    overrides.set("bandwidthPerMigration=64Mi").expect("a setting");
    let move_1 = || "move-1".parse::<MigrationId>().expect("a name");
    let instance = "0123456789abcdef0123456789abcdef";
    for (line, act) in [
        ("status", Act::Status),
        ("control status", Act::ControlStatus),
        ("node list", Act::NodeList),
        ("node show node-b", Act::NodeShow { node: at("node-b") }),
        ("node fence node-b", Act::NodeFence { node: at("node-b"), although_reachable: false }),
        (
            "node fence node-b --although-reachable",
            Act::NodeFence { node: at("node-b"), although_reachable: true },
        ),
        ("node remove node-b", Act::NodeRemove { node: at("node-b") }),
        (
            "guest create vm1 -n lab --on node-b --memory 64Mi --dirty-rate 1Mi --pattern streaming --zero 10 \
             --compressible 20 --threads 3 --seed 7 --tick-interval-ms 5",
            Act::GuestCreate { guest: guest.clone(), node: Some(at("node-b")), spec },
        ),
        ("guest show vm1", Act::GuestShow { guest: name("default/vm1") }),
        ("guest show lab/vm1", Act::GuestShow { guest: guest.clone() }),
        ("guest stats vm1 -n lab", Act::GuestStats { guest: guest.clone() }),
        ("guest verify vm1 -n lab", Act::GuestVerify { guest: guest.clone() }),
        ("guest stop vm1 -n lab", Act::GuestStop { guest: guest.clone() }),
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
        (
            "migrate vm1 -n lab",
            Act::Migrate { guest: guest.clone(), migration: None, to: None, overrides: Overrides::default() },
        ),
        (
            "migrate lab/vm1 --to node-b --name move-1 --set maxDowntimeMs=50 --set bandwidthPerMigration=64Mi",
            Act::Migrate { guest, migration: Some(move_1()), to: Some(at("node-b")), overrides },
        ),
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
        assert_eq!(ran.stderr.contains("you vouch that the machine is powered off"), line.contains("fence"));
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
        "status -o yaml",
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
    let mut child = node.command("migrate vm1 --wait").spawn().expect("a process");
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut told = String::new();
    tokio::time::timeout(DEADLINE, async {
        while !told.contains("PreCopy round 1") {
            assert!(stderr.read_line(&mut told).await.expect("readable") > 0, "{told}");
        }
        let pid =
            child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).expect("a process");
        kill_process(pid, Signal::INT).expect("it is there");
        while stderr.read_line(&mut told).await.expect("readable") > 0 {}
    })
    .await
    .expect("it ends");
    let ran = ended(child).await;
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
