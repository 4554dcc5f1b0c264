//! The runner's end of the hand-off socket.
//!
//! ```text
//!   accept ─▶ attach (the older connection is shut) ─▶ thread: Hello + descriptors
//!                                                        └▶ line ─▶ decode ─▶ execute ─▶ reply ─▶ line ─▶ …
//! ```
//!
//! Always true: a line, and the device state that follows one, are capped before they are read; what is no request is answered with the rule `format` and
//! the connection goes on; the runner outlives every connection and ends by `stop` alone. The socket appears in
//! the folder complete, that is listening: whoever sees it can connect.

use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use godwit_wire::handoff::{
    Answer, Command, Hello, LINE_BYTES_MAX, Outcome, Refusal, Reply, Request, STATE_BYTES_MAX,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::runner::decide::refusal;

/// The socket in a runner's folder.
pub(crate) const SOCKET_NAME: &str = "runner.sock";
/// How long a reply may wait for a node to read. One that takes longer is no reader, and its connection is closed.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// Rest after a failed accept, which is for want of descriptors or memory, before the next try.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A connection's number. The greatest is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attachment(pub(crate) u64);

/// What answers at a hand-off socket.
pub(crate) trait Machine: std::fmt::Debug + Send + Sync + 'static {
    /// Makes a connection the newest: the older one is shut and nothing more that it said is carried out. `None`: the runner
    /// has ended.
    fn attach(&self, stream: Arc<UnixStream>) -> Option<(Attachment, Hello)>;

    /// The descriptors that travel with Hello, in the order that the protocol names; [`DESCRIPTORS_MAX`] at most.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// Carries out a command. `state`: what came along with it, and then what goes along with the answer. `None`: not carried out, or nobody is left to hear the answer, because a newer connection is
    /// attached or the runner has ended.
    fn execute(&self, attachment: Attachment, command: &Command, state: &mut Vec<u8>) -> Option<Outcome>;

    /// What may wait until the answer has gone.
    fn afterwards(&self) {}

    /// Whether the runner was stopped.
    fn has_ended(&self) -> bool;
}

/// Most descriptors that travel with a Hello.
const DESCRIPTORS_MAX: usize = 4;

/// A listening socket and what answers at it.
#[derive(Debug)]
pub(crate) struct Server<M> {
    machine: M,
    listener: UnixListener,
    socket: PathBuf,
}

/// What came in.
enum Line {
    Whole(Vec<u8>),
    TooLong,
    /// The other end has gone, or what it said last was torn.
    End,
}

impl<M: Machine> Server<M> {
    /// Binds the socket in a folder that is the runner's own. What an earlier runner left there is replaced.
    pub(crate) fn bind(dir: &Path, machine: M) -> io::Result<Self> {
        let (socket, unready) = (dir.join(SOCKET_NAME), dir.join(format!("{SOCKET_NAME}.new")));
        match std::fs::remove_file(&unready) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&unready)?;
        std::fs::set_permissions(&unready, Permissions::from_mode(0o600))?;
        std::fs::rename(&unready, &socket)?;
        Ok(Self { machine, listener, socket })
    }

    /// What answers.
    pub(crate) fn machine(&self) -> &M {
        &self.machine
    }

    /// Serves connections until the runner is stopped.
    pub(crate) fn serve(self: Arc<Self>) {
        let server = self;
        loop {
            match server.listener.accept() {
                Ok((stream, _)) => server.greet(stream),
                // The listener is shut down after the last reply, and not before it.
                Err(_) if server.machine.has_ended() => return,
                Err(error) => {
                    tracing::warn!(%error, "hand-off socket: accept failed");
                    std::thread::sleep(ACCEPT_AGAIN);
                }
            }
        }
    }

    /// Makes a new connection the newest, and has a thread talk to it.
    fn greet(self: &Arc<Self>, stream: UnixStream) {
        let stream = Arc::new(stream);
        let Some((attachment, hello)) = self.machine.attach(Arc::clone(&stream)) else { return };
        let (server, its_stream) = (Arc::clone(self), Arc::clone(&stream));
        let talk = move || {
            // The node learns nothing from a broken connection that it does not see itself.
            if let Err(error) = server.talk(&its_stream, attachment, &hello) {
                tracing::debug!(%error, "hand-off connection ended");
            }
            let _ = its_stream.shutdown(Shutdown::Both);
        };
        if let Err(error) = std::thread::Builder::new().name("handoff".into()).spawn(talk) {
            tracing::warn!(%error, "hand-off connection can not be served");
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn talk(&self, mut stream: &UnixStream, attachment: Attachment, hello: &Hello) -> io::Result<()> {
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        self.say_hello(stream, hello)?;
        let mut reader = BufReader::new(stream);
        loop {
            let line = match read_line(&mut reader)? {
                Line::Whole(line) => line,
                Line::End => return Ok(()),
                Line::TooLong => {
                    let message = format!("a line of more than {LINE_BYTES_MAX} bytes");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            };
            let Request { id, command } = match decode(&line) {
                Ok(request) => request,
                Err(refused) => {
                    stream.write_all(&line_of(&Reply { id: 0, outcome: Outcome::Error(refused) })?)?;
                    continue;
                }
            };
            let mut state = read_state(&mut reader, &command)?;
            let Some(outcome) = self.machine.execute(attachment, &command, &mut state) else { return Ok(()) };
            let brings = matches!(outcome, Outcome::Ok(Answer::State { .. }));
            let reply = line_of(&Reply { id, outcome })?;
            if command == Command::Stop {
                return self.say_goodbye(stream, &reply);
            }
            stream.write_all(&reply)?;
            if brings {
                stream.write_all(&state)?;
            }
            self.machine.afterwards();
        }
    }

    /// The last reply of all. The socket goes first, so that whoever has the reply finds it gone.
    fn say_goodbye(&self, mut stream: &UnixStream, reply: &[u8]) -> io::Result<()> {
        let removed = std::fs::remove_file(&self.socket);
        let said = stream.write_all(reply);
        // Wakes the accept; whatever failed before, the process ends.
        rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both)?;
        removed.and(said)
    }

    /// The descriptors travel with the line's first bytes.
    fn say_hello(&self, mut stream: &UnixStream, hello: &Hello) -> io::Result<()> {
        let line = line_of(hello)?;
        let descriptors = self.machine.descriptors();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for so many descriptors"));
        }
        let sent = rustix::net::sendmsg(stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
        stream.write_all(line.get(sent..).unwrap_or_default())
    }
}

fn line_of(message: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Line> {
    let mut line = Vec::new();
    reader.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)?;
    Ok(match line.pop() {
        Some(b'\n') => Line::Whole(line),
        Some(_) if line.len() == LINE_BYTES_MAX => Line::TooLong,
        Some(_) | None => Line::End,
    })
}

/// What follows a command's line.
fn read_state(reader: &mut impl Read, command: &Command) -> io::Result<Vec<u8>> {
    let Command::Load { bytes, .. } = command else { return Ok(Vec::new()) };
    let bytes = *bytes as usize;
    if bytes > STATE_BYTES_MAX {
        // Whatever it is, it is no line: what comes after it could not be told from it.
        let message = format!("a state of {bytes} bytes; at most {STATE_BYTES_MAX} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut state = vec![0; bytes];
    reader.read_exact(&mut state)?;
    Ok(state)
}

fn decode(line: &[u8]) -> Result<Request, Refusal> {
    serde_json::from_slice(line).map_err(|error| refusal("format", format!("not a request: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_domain::Epoch;

    #[test]
    fn requests_are_read_as_documented() {
        let request = decode(br#"{"id":1,"do":"pause","epoch":4}"#);
        assert_eq!(request, Ok(Request { id: 1, command: Command::Pause { epoch: Epoch(4) } }));
        assert_eq!(decode(br#"{"do":"save","id":7}"#), Ok(Request { id: 7, command: Command::Save }));
        for line in
            ["", "{}", "[]", "{\"id\":1}", r#"{"id":1,"do":"fly"}"#, r#"{"id":-1,"do":"save"}"#, "\u{ff}"]
        {
            assert_eq!(decode(line.as_bytes()).expect_err(line).rule, "format");
        }
        let long = format!(r#"{{"id":1,"do":"{}"}}"#, "x".repeat(1 << 20));
        assert!(
            decode(long.as_bytes()).expect_err("no command").message.len() < 2000,
            "the refusal has a bound"
        );
    }

    #[test]
    fn lines_have_a_bound() {
        let mut full = vec![b'x'; LINE_BYTES_MAX];
        full.push(b'\n');
        assert!(
            matches!(read_line(&mut full.as_slice()), Ok(Line::Whole(line)) if line.len() == LINE_BYTES_MAX)
        );
        full.insert(0, b'x');
        assert!(matches!(read_line(&mut full.as_slice()), Ok(Line::TooLong)));
        assert!(matches!(read_line(&mut b"torn".as_slice()), Ok(Line::End)));
        let mut two = b"a\n\nb".as_slice();
        assert!(matches!(read_line(&mut two), Ok(Line::Whole(line)) if line == b"a"));
        assert!(matches!(read_line(&mut two), Ok(Line::Whole(line)) if line.is_empty()));
        assert!(matches!(read_line(&mut two), Ok(Line::End)));
    }
}
