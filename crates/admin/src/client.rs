//! The operator's end of the admin socket.
//!
//! ```text
//!   connect ─▶ ask ─▶ event, event, …  ─┬─▶ ok ─────▶ the answer
//!                                        ├─▶ error ──▶ Problem: refused, failed or unknown, by rule
//!                                        └─▶ end ────▶ Lost: nobody knows
//! ```
//!
//! Always true: no line above its cap is read; what did not get its last line is never called refused; every request that
//! changes something has an id by which its repetition is known.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_wire::admin::{
    ADMIN_VERSION, Act, Body, Code, LINE_BYTES_MAX, Problem, REPLY_BYTES_MAX, Reply, Request,
};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::lines::{Heard, Lines, Patience};

/// Why a node can not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket.
    #[error("no admin socket at {}", .0.display())]
    Missing(PathBuf),
    /// This user may not use it.
    #[error("no permission for the admin socket at {}", .0.display())]
    Denied(PathBuf),
    /// A socket is there, and nobody behind it.
    #[error("nobody answers at the admin socket {}", .0.display())]
    Refused(PathBuf),
    /// Something else.
    #[error("admin socket {}: {source}", path.display())]
    Other {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ClientError {
    fn new(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing(path),
            io::ErrorKind::PermissionDenied => Self::Denied(path),
            io::ErrorKind::ConnectionRefused => Self::Refused(path),
            _ => Self::Other { path, source },
        }
    }

    /// The same as a node would say it. Nothing was asked, so nothing has changed.
    pub fn problem(&self) -> Problem {
        let try_ = match self {
            Self::Missing(_) => "is the node running? give its socket with --socket PATH or GODWIT_SOCKET",
            Self::Denied(_) => "ask as the user that runs the node, or as root",
            Self::Refused(_) => "start the node again: it has ended and left its socket behind",
            Self::Other { .. } => "give the node's socket with --socket PATH or GODWIT_SOCKET",
        };
        Problem::new(Code::Unavailable, "socket", self.to_string(), try_)
    }
}

/// Why there is no answer, or no good one.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The node says why not.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The connection ended before the last line: whether it was done is not known.
    #[error("the connection to the node ended before its last word")]
    Lost,
    /// Whoever asked had set a limit, and it has passed: whether it was done is not known.
    #[error("the node did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// What came is no answer: whether it was done is not known.
    #[error("the node's answer can not be read: {0}")]
    Protocol(String),
}

impl AskError {
    /// The same as a node would say it.
    pub fn problem(&self) -> Problem {
        let (rule, try_) = match self {
            Self::Problem(problem) => return problem.clone(),
            Self::Lost => {
                ("connection", "look whether it was done before you ask again; is the node still running?")
            }
            Self::TimedOut(_) => ("time", "look whether it was done before you ask again"),
            Self::Protocol(_) => {
                ("protocol", "look whether it was done; use the `godwit` of the node's own version")
            }
        };
        Problem::new(Code::Unknown, rule, format!("{self}: the outcome is not known"), try_)
    }
}

/// A connection to a node.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    lines: Lines,
    /// Requests so far; the number is part of the id.
    asked: u64,
    limit: Option<Duration>,
}

impl Client {
    /// Connects to a node's admin socket.
    ///
    /// # Errors
    /// If there is none, this user may not use it, or nobody is behind it.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).await.map_err(|error| ClientError::new(path, error))?;
        Ok(Self { stream, lines: Lines::new(REPLY_BYTES_MAX), asked: 0, limit: None })
    }

    /// The same with a limit for each whole answer. Without one an answer may take as long as it takes.
    #[must_use]
    pub fn with_timeout(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Asks one thing; what comes before the last line goes to `on_event`. A change is given a new request id.
    ///
    /// # Errors
    /// If the node says no, or if nobody can say how it came out.
    pub async fn ask(&mut self, act: Act, on_event: impl FnMut(Value)) -> Result<Value, AskError> {
        let id = if changes(&act) { Some(new_request_id()?) } else { None };
        self.ask_under(id, act, on_event).await
    }

    /// The same under this request id. Asked again under it, a change is made once and gets its first answer.
    ///
    /// # Errors
    /// As [`Client::ask`], and if the id was used for something else.
    pub async fn ask_under(
        &mut self,
        request_id: Option<String>,
        act: Act,
        on_event: impl FnMut(Value),
    ) -> Result<Value, AskError> {
        match self.limit {
            None => self.exchange(request_id, act, on_event).await,
            Some(limit) => tokio::time::timeout(limit, self.exchange(request_id, act, on_event))
                .await
                .unwrap_or(Err(AskError::TimedOut(limit))),
        }
    }

    /// Asks for a thing that comes in one line, of a known kind.
    ///
    /// # Errors
    /// As [`Client::ask`], and if the answer is of another kind.
    pub async fn ask_as<T: DeserializeOwned>(&mut self, act: Act) -> Result<T, AskError> {
        read_as(self.ask(act, |_| {}).await?)
    }

    async fn exchange(
        &mut self,
        request_id: Option<String>,
        act: Act,
        mut on_event: impl FnMut(Value),
    ) -> Result<Value, AskError> {
        self.asked += 1;
        let id = id_of(self.asked);
        let request = Request { v: ADMIN_VERSION, id: id.clone(), request_id, act };
        let mut line = serde_json::to_vec(&request).map_err(|error| AskError::Protocol(error.to_string()))?;
        if line.len() > LINE_BYTES_MAX {
            let message = format!("the request has {} bytes, above {LINE_BYTES_MAX}", line.len());
            return Err(Problem::new(Code::Invalid, "length", message, "ask for less at once").into());
        }
        line.push(b'\n');
        // A node that has turned us away says why before it closes: that is read even if nothing can be written.
        if let Err(error) = self.stream.write_all(&line).await {
            tracing::debug!(%error, "request could not be sent");
        }
        loop {
            let line = match self.lines.next(&mut self.stream, Patience::ENDLESS).await {
                Ok(Heard::Line(line)) => line,
                Ok(Heard::Torn(_) | Heard::End | Heard::Silent | Heard::Idle) | Err(_) => {
                    return Err(AskError::Lost);
                }
                Ok(Heard::TooLong) => {
                    return Err(AskError::Protocol(format!("a line is longer than {REPLY_BYTES_MAX} bytes")));
                }
            };
            let reply: Reply =
                serde_json::from_slice(&line).map_err(|error| AskError::Protocol(error.to_string()))?;
            if reply.id != id && self.is_earlier(&reply.id) {
                continue;
            }
            match reply.body {
                // A node that could not read the id, or closes the connection, names none.
                Body::Error(problem) if reply.id.is_empty() => return Err(problem.into()),
                _ if reply.id != id => {
                    return Err(AskError::Protocol("it answers another request".to_owned()));
                }
                Body::Event(value) => on_event(value),
                Body::Ok(value) => return Ok(value),
                Body::Error(problem) => return Err(problem.into()),
            }
        }
    }

    /// Whether an answer is for a request that nobody waits for any more.
    fn is_earlier(&self, id: &str) -> bool {
        let own = format!("{}-", std::process::id());
        let number = id.strip_prefix(&own).and_then(|number| number.parse::<u64>().ok());
        number.is_some_and(|number| number < self.asked)
    }
}

/// An answer as a value of its kind.
///
/// # Errors
/// If it is of another kind.
pub fn read_as<T: DeserializeOwned>(value: Value) -> Result<T, AskError> {
    serde_json::from_value(value).map_err(|error| AskError::Protocol(error.to_string()))
}

/// Whether something is another way afterwards: then its repetition must be known as one.
pub fn changes(act: &Act) -> bool {
    match act {
        Act::ControlAdd { .. }
        | Act::ControlRemove { .. }
        | Act::NodeDrain { .. }
        | Act::NodeDrainCancel { .. }
        | Act::NodeUncordon { .. }
        | Act::NodeFence { .. }
        | Act::NodeRemove { .. }
        | Act::GuestCreate { .. }
        | Act::GuestStop { .. }
        | Act::GuestPowerButton { .. }
        | Act::GuestRelease { .. }
        | Act::GuestRecover { .. }
        | Act::MigrationSet { .. }
        | Act::MigrationCancel { .. } => true,
        Act::Migrate { dry_run, .. }
        | Act::Apply { dry_run, .. }
        | Act::Delete { dry_run, .. }
        | Act::Label { dry_run, .. } => !dry_run,
        Act::Version
        | Act::Status
        | Act::ControlStatus
        | Act::ControlWatch { .. }
        | Act::ControlBackup
        | Act::NodeList
        | Act::NodeShow { .. }
        | Act::NodeDrainWatch { .. }
        | Act::GuestList
        | Act::GuestShow { .. }
        | Act::GuestVerify { .. }
        | Act::GuestStats { .. }
        | Act::MigrationList
        | Act::MigrationShow { .. }
        | Act::MigrationExplain { .. }
        | Act::MigrationWatch { .. }
        | Act::PolicyExplain { .. }
        | Act::Get { .. } => false,
    }
}

/// A request id that nobody else has: 128 random bits, in hexadecimal digits.
///
/// # Errors
/// If the system has no random numbers; nothing was asked then.
pub fn new_request_id() -> Result<String, Problem> {
    let mut bits = [0_u8; 16];
    getrandom(&mut bits, GetRandomFlags::empty()).map_err(|error| {
        let message = format!("the system gives no random numbers: {error}");
        Problem::new(Code::Failed, "random numbers", message, "give an id of your own with --request-id")
    })?;
    Ok(format!("{:032x}", u128::from_be_bytes(bits)))
}

fn id_of(number: u64) -> String {
    format!("{}-{number}", std::process::id())
}
