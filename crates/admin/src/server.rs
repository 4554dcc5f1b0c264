//! The node's end of the admin socket.
//!
//! ```text
//!   accept ─▶ a slot? ─▶ lines ─▶ request ─▶ Desk::ask, a task of its own ─▶ events … last line ─▶ next request
//!               └ none: one error line                 └ dropped when the asker goes away
//! ```
//!
//! Always true: requests of one connection are answered one after another, each with exactly one last line; nothing that
//! a client sends or leaves undone holds a slot for ever, and nothing of it ends the server.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use godwit_wire::admin::{Body, COUNT_MAX, Code, LINE_BYTES_MAX, Problem, REPLY_BYTES_MAX, Reply, Request};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio_util::task::AbortOnDropHandle;

pub use crate::bind::{AdminSocket, BindError};
use crate::gone::Gone;
use crate::lines::{Heard, Lines, Patience};
use crate::request::{self, invalid};

/// Connections at once. An operator has a few; above this something opens them and never closes.
pub const CONNECTIONS_MAX: usize = 64;
/// How long half a line may wait for its rest: whoever types sends whole lines, and a program needs no second.
pub const SILENT_MAX: Duration = Duration::from_secs(30);
/// How long a connection may stay between requests: a person thinks, a script that has ended should have closed it.
pub const IDLE_MAX: Duration = Duration::from_secs(600);
/// How long an answer may wait for its reader. One that takes longer is no reader.
pub const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// How long what follows a line that is too long is read away.
const LINGER: Duration = Duration::from_secs(1);
/// Answers that a desk may be ahead of its reader.
const ANSWERS_AHEAD: usize = 16;
/// Rest after a failed accept, which is for want of descriptors or memory, before the next try.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Who knows the answers.
pub trait Desk: Send + Sync + 'static {
    /// Answers one request: any number of [`Body::Event`], then one [`Body::Ok`] or [`Body::Error`].
    ///
    /// The last one ends it: what the future would do after it is not waited for. The future is dropped in the middle if
    /// the asker goes away, so what must be finished has to be somebody else's by then.
    fn ask(&self, request: Request, replies: mpsc::Sender<Body>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The bounds of a server. They are as the constants say; tests choose shorter ones.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// [`CONNECTIONS_MAX`].
    pub connections: usize,
    /// [`SILENT_MAX`].
    pub silent: Duration,
    /// [`IDLE_MAX`].
    pub idle: Duration,
    /// [`WRITE_PATIENCE`].
    pub write: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: CONNECTIONS_MAX, silent: SILENT_MAX, idle: IDLE_MAX, write: WRITE_PATIENCE }
    }
}

impl AdminSocket {
    /// Serves connections until the future is dropped, which ends them all and removes the socket.
    ///
    /// # Errors
    /// If the runtime can not take the socket; then nothing was served.
    pub async fn serve(self, desk: Arc<dyn Desk>) -> io::Result<()> {
        let Self { claim, listener, limits } = self;
        let listener = UnixListener::from_std(listener)?;
        // Dropped in the opposite order: connections, the name, and the listener as the last.
        let _claim = claim;
        let slots = Arc::new(Semaphore::new(limits.connections));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(ended) = connections.join_next() => {
                    note(ended);
                    continue;
                }
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "admin socket: accept failed");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                turn_away(&stream, limits.connections);
                continue;
            };
            let desk = Arc::clone(&desk);
            connections.spawn(async move {
                let ended = Connection { stream, desk, limits }.talk().await;
                drop(slot);
                ended
            });
        }
    }
}

/// What a client does is no trouble of the node's; a panic of ours is.
fn note(ended: Result<io::Result<()>, JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection ended"),
        Err(error) => tracing::error!(%error, "admin connection failed"),
    }
}

/// One line for a connection that gets no slot. A new one has room for it, so nobody waits.
fn turn_away(stream: &UnixStream, most: usize) {
    let problem = Problem::new(
        Code::Unavailable,
        "connections",
        format!("{most} connections are open, as many as the admin socket takes"),
        "close one, or try again in a moment",
    );
    let said = line_of(&Reply { id: String::new(), body: Body::Error(problem) })
        .and_then(|line| stream.try_write(&line));
    if let Err(error) = said {
        tracing::debug!(%error, "admin connection was turned away without a word");
    }
    tracing::warn!(most, "admin socket: too many connections");
}

/// One client.
struct Connection {
    stream: UnixStream,
    desk: Arc<dyn Desk>,
    limits: Limits,
}

impl Connection {
    async fn talk(mut self) -> io::Result<()> {
        let gone = Gone::of(&self.stream)?;
        let mut lines = Lines::new(LINE_BYTES_MAX);
        let patience = Patience { idle: self.limits.idle, silent: self.limits.silent };
        loop {
            match lines.next(&mut self.stream, patience).await? {
                Heard::Line(line) | Heard::Torn(line) => self.hear(line, &gone).await?,
                Heard::TooLong => {
                    let message = format!("the line is longer than {LINE_BYTES_MAX} bytes");
                    let try_ = "send a shorter request on a new connection: this one ends here";
                    self.say(&invalid(None, "length", message, try_)).await?;
                    self.linger().await;
                    return Ok(());
                }
                Heard::Silent => {
                    let seconds = self.limits.silent.as_secs_f32();
                    let message = format!("half a line came, and nothing for {seconds} s");
                    let try_ = "end each request with a newline, on a new connection: this one ends here";
                    return self.say(&invalid(None, "silence", message, try_)).await;
                }
                Heard::Idle | Heard::End => return Ok(()),
            }
        }
    }

    /// Reads away what still comes, for a moment: a socket that is closed over unread bytes takes its last word along.
    async fn linger(&mut self) {
        let _ = self.stream.shutdown().await;
        let mut waste = [0; 1024];
        let drain = async { while matches!(self.stream.read(&mut waste).await, Ok(read) if read > 0) {} };
        let _ = tokio::time::timeout(LINGER, drain).await;
    }

    async fn hear(&mut self, line: BytesMut, gone: &Gone) -> io::Result<()> {
        match request::read(&line) {
            Ok(request) => self.answer(request, gone).await,
            Err(refusal) => self.say(&refusal).await,
        }
    }

    /// Passes on what the desk says, until its last word.
    async fn answer(&mut self, request: Request, gone: &Gone) -> io::Result<()> {
        let id = request.id.clone();
        let (replies, mut heard) = mpsc::channel(ANSWERS_AHEAD);
        let desk = Arc::clone(&self.desk);
        // A task of its own: it gets on while its reader is slow, and if it panics this connection can say so.
        let mut work = AbortOnDropHandle::new(tokio::spawn(async move { desk.ask(request, replies).await }));
        let mut ended = false;
        loop {
            let body = tokio::select! {
                body = heard.recv() => body,
                () = gone.wait() => return Err(io::ErrorKind::BrokenPipe.into()),
                outcome = &mut work, if !ended => {
                    ended = true;
                    if let Err(error) = outcome {
                        tracing::error!(%error, "a request to the admin socket failed");
                    }
                    // A sender that was left with somebody else has nothing more to say.
                    heard.close();
                    continue;
                }
            };
            let body = body.unwrap_or_else(|| Body::Error(no_last_word()));
            let more = matches!(body, Body::Event(_));
            self.say(&Reply { id: id.clone(), body: with_true_counts(body) }).await?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Writes one line, or the reason why that line can not be one.
    async fn say(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = line_of(reply)?;
        if line.len() > REPLY_BYTES_MAX {
            let problem = Problem::new(
                Code::Failed,
                "length",
                format!("the answer has {} bytes, above {REPLY_BYTES_MAX}", line.len()),
                "ask for one thing instead of a list",
            );
            line = line_of(&Reply { id: reply.id.clone(), body: Body::Error(problem) })?;
        }
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            let written = tokio::time::timeout(self.limits.write, self.stream.write(rest)).await??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

fn no_last_word() -> Problem {
    Problem::new(
        Code::Unknown,
        "answer",
        "the node ended this request without saying how it came out",
        "look at what has become of it before you ask again; the node's log says more",
    )
}

/// Counts above what every reader of JSON takes stand at the greatest that they do: they mean "beyond all measure", such
/// as a downtime that is predicted while nothing arrives.
fn with_true_counts(body: Body) -> Body {
    match body {
        Body::Event(value) => Body::Event(bounded(value)),
        Body::Ok(value) => Body::Ok(bounded(value)),
        Body::Error(problem) => Body::Error(problem),
    }
}

fn bounded(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_u64() {
            Some(count) => Value::from(count.min(COUNT_MAX)),
            None => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(bounded).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, field)| (name, bounded(field))).collect(),
        Value::Null | Value::Bool(_) | Value::String(_) => value,
    }
}

fn line_of(reply: &Reply) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_beyond_all_measure_stand_at_the_greatest_that_is_read_exactly() {
        let given = json!({"a": [u64::MAX, 7, -3, 0.5], "b": {"c": COUNT_MAX}, "d": "x"});
        let bounded = json!({"a": [COUNT_MAX, 7, -3, 0.5], "b": {"c": COUNT_MAX}, "d": "x"});
        assert_eq!(super::bounded(given), bounded);
    }
}
