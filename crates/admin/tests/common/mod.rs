//! A desk that a test writes, at a real socket in a folder of its own; and a client that may send whatever it likes.
//!
//! Always true: a test waits for states, each with a deadline, and for nothing else.

#![allow(dead_code)] // Each test program uses its part of it.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use godwit_admin::{AdminSocket, Desk, Limits};
use godwit_wire::admin::{Body, Problem, Reply, Request};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// By when everything that is waited for has happened.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Within the deadline.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

struct Fake<F>(F);

impl<F, W> Desk for Fake<F>
where
    F: Fn(Request, mpsc::Sender<Body>) -> W + Send + Sync + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    fn ask(&self, request: Request, replies: mpsc::Sender<Body>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin((self.0)(request, replies))
    }
}

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) dir: TempDir,
    pub(crate) path: PathBuf,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// Serves what a function answers.
    pub(crate) fn start<F, W>(limits: Limits, desk: F) -> Self
    where
        F: Fn(Request, mpsc::Sender<Body>) -> W + Send + Sync + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("admin.sock");
        let socket = AdminSocket::bind(&path).expect("a socket").with_limits(limits);
        let serving = tokio::spawn(socket.serve(Arc::new(Fake(desk))));
        Self { dir, path, serving }
    }

    /// Answers every request with what it was.
    pub(crate) fn echo(limits: Limits) -> Self {
        Self::start(limits, async |request: Request, replies: mpsc::Sender<Body>| {
            let _ = replies.send(Body::Ok(json!({"asked": request.act}))).await;
        })
    }

    /// Ends it, and waits until it has ended.
    pub(crate) async fn end(&mut self) {
        self.serving.abort();
        let _ = soon("the server's end", &mut self.serving).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A client that knows nothing of the protocol.
pub(crate) struct Raw {
    pub(crate) write: OwnedWriteHalf,
    read: BufReader<OwnedReadHalf>,
}

impl Raw {
    pub(crate) async fn connect(path: &Path) -> Self {
        let (read, write) = UnixStream::connect(path).await.expect("a connection").into_split();
        Self { write, read: BufReader::new(read) }
    }

    /// Sends bytes. A server that has closed already takes none, which is what some tests want.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = soon("sending", self.write.write_all(bytes.as_ref())).await;
    }

    /// The next line as it is; empty at the end.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        // What the other end did not read any more is told here as an error, and means the same as an end.
        let _ = soon("a line", self.read.read_line(&mut line)).await;
        line
    }

    /// The next answer.
    pub(crate) async fn reply(&mut self) -> Reply {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// The next answer, which must be an error.
    pub(crate) async fn problem(&mut self) -> (String, Problem) {
        match self.reply().await {
            Reply { id, body: Body::Error(problem) } => (id, problem),
            other => panic!("{other:?}"),
        }
    }

    /// That the other end closes without another word.
    pub(crate) async fn ends(&mut self) {
        assert_eq!(self.line().await, "");
    }

    /// A good request, and its answer.
    pub(crate) async fn is_served(&mut self, id: &str) {
        self.send(format!("{{\"v\":1,\"id\":\"{id}\",\"do\":\"status\"}}\n")).await;
        assert_eq!(self.reply().await, ok(id, json!({"asked": {"do": "status"}})));
    }
}

pub(crate) fn ok(id: &str, value: Value) -> Reply {
    Reply { id: id.into(), body: Body::Ok(value) }
}

pub(crate) fn event(id: &str, value: Value) -> Reply {
    Reply { id: id.into(), body: Body::Event(value) }
}
