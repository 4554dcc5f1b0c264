//! A node that a test writes, and `godwit` as a process beside it.

use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_admin::{AdminSocket, Desk};
use godwit_wire::admin::{Act, Body, Code, Problem, Request};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// By when everything that is waited for has happened.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// What a node answers, line by line; without a last line it says nothing more and keeps on.
pub(crate) type Answer = fn(&Act, usize) -> Vec<Body>;

/// A node that answers by a function of what is asked, and how often was asked before.
pub(crate) struct Node {
    _dir: TempDir,
    pub(crate) socket: PathBuf,
    asked: Arc<Mutex<Vec<Request>>>,
}

struct Fake {
    answer: Answer,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Desk for Fake {
    fn ask(&self, request: Request, replies: mpsc::Sender<Body>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut asked = self.asked.lock().expect("no panic");
        let lines = (self.answer)(&request.act, asked.len());
        asked.push(request);
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
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Node {
    pub(crate) fn start(answer: Answer) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("admin.sock");
        let asked = Arc::default();
        let desk = Fake { answer, asked: Arc::clone(&asked) };
        tokio::spawn(AdminSocket::bind(&socket).expect("a socket").serve(Arc::new(desk)));
        Self { _dir: dir, socket, asked }
    }

    /// A command line, divided at its blanks.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = godwit(line);
        command.env("GODWIT_SOCKET", &self.socket);
        command
    }

    pub(crate) async fn run(&self, line: &str) -> Ran {
        run(&mut self.command(line)).await
    }

    /// What was asked last.
    pub(crate) fn last(&self) -> Act {
        self.requests().pop().expect("something was asked").act
    }

    /// Everything that was asked, in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.asked.lock().expect("no panic").clone()
    }

    pub(crate) fn was_asked_nothing(&self) -> bool {
        self.asked.lock().expect("no panic").is_empty()
    }
}

pub(crate) fn godwit(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.args(line.split_whitespace()).env_remove("GODWIT_SOCKET").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) async fn run(command: &mut Command) -> Ran {
    ended(command.spawn().expect("a process")).await
}

pub(crate) async fn ended(child: Child) -> Ran {
    let output =
        tokio::time::timeout(DEADLINE, child.wait_with_output()).await.expect("it ends").expect("output");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

pub(crate) fn problem(code: Code) -> Vec<Body> {
    vec![Body::Error(Problem::new(code, "the rule", "the message", "the way out"))]
}

pub(crate) fn detail(phase: &str, more: Option<&str>) -> Value {
    let over = ["Succeeded", "Failed", "Cancelled"].contains(&phase);
    json!({
        "name": "move-1", "guest": "default/vm1", "phase": phase, "detail": more, "source": "node-a",
        "target": "node-b", "asked_ms": 0, "queue_position": null, "priority": "normal", "policy": null,
        "over": over, "asked_target": null, "permits_held": false, "asked_selector": {}, "drains": null,
        "network": null, "waits_for": null, "holders": [], "settings": {}, "changes": [], "call_offs": 0, "overrides": {}, "obstacles": {}, "steps": [], "progress": null,
        "measured": {"source": null, "resume_us": null},
    })
}

/// Starts it, waits until it has said this on stderr, interrupts it, and reads what else it says.
pub(crate) async fn interrupted_after(said: &str, command: &mut Command) -> (Ran, String) {
    let mut child = command.spawn().expect("a process");
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut told = String::new();
    tokio::time::timeout(DEADLINE, async {
        while !told.contains(said) {
            assert!(stderr.read_line(&mut told).await.expect("readable") > 0, "{told}");
        }
        let pid =
            child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).expect("a process");
        kill_process(pid, Signal::INT).expect("it is there");
        while stderr.read_line(&mut told).await.expect("readable") > 0 {}
    })
    .await
    .expect("it ends");
    (ended(child).await, told)
}
