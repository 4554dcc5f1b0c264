//! The runner's end of the hand-off socket.
//!
//! ```text
//!   accept ─▶ attach (the older connection is shut) ─▶ thread: Hello + 3 descriptors
//!                                                        └▶ line ─▶ decode ─▶ execute ─▶ reply ─▶ line ─▶ …
//! ```
//!
//! Always true: a line is capped before it is decoded; what is no request is answered with the rule `format` and
//! the connection goes on; the runner outlives every connection and ends by `stop` alone. The socket appears in
//! the folder complete, that is listening: whoever sees it can connect.

use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use godwit_wire::handoff::{Command, Hello, LINE_BYTES_MAX, Outcome, Refusal, Reply, Request};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::decide::refusal;
use super::machine::{Attachment, Machine};

/// The socket in a runner's folder.
pub(super) const SOCKET_NAME: &str = "runner.sock";
/// How long a reply may wait for a node to read. One that takes longer is no reader, and its connection is closed.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// Rest after a failed accept, which is for want of descriptors or memory, before the next try.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A listening socket and what answers at it.
#[derive(Debug)]
pub(super) struct Server {
    machine: Machine,
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

impl Server {
    /// Binds the socket in a folder that is the runner's own. What an earlier runner left there is replaced.
    pub(super) fn bind(dir: &Path, machine: Machine) -> io::Result<Self> {
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

    /// Serves connections until the runner is stopped.
    pub(super) fn serve(self) {
        let server = Arc::new(self);
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
            let Some(outcome) = self.machine.execute(attachment, &command) else { return Ok(()) };
            let reply = line_of(&Reply { id, outcome })?;
            if command == Command::Stop {
                return self.say_goodbye(stream, &reply);
            }
            stream.write_all(&reply)?;
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
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for three descriptors"));
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
