//! QEMU's control socket: one JSON object a line, one client at a time.
//!
//! ```text
//!   connect ─▶ greeting ─▶ qmp_capabilities ─▶ execute ─▶ return or error; events in between
//! ```
//!
//! Always true: no line above its cap is read; every command has a deadline, and one that was missed ends the connection,
//! because a late answer would be taken for the next one's. The next command makes another: QEMU greets it when it has done, or
//! dropped, what it was at.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};

/// How long QEMU may take to greet. One that has a client already never does.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an ordinary command may take.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest line. The longest answer, a tree of devices, has some hundred kilobytes.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// Events that are kept until somebody asks for them. They are told again by `query-status` and `query-migrate`.
const EVENTS_KEPT_MAX: usize = 64;
/// Longest answer that is quoted in an error.
const QUOTED_CHARS_MAX: usize = 300;

/// Why QEMU did not do it.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket can not be used.
    #[error("QMP socket")]
    Socket(#[from] io::Error),
    /// Nobody greets.
    #[error(
        "the QMP socket does not greet within {} s: it serves one client at a time and has one; give QEMU a second \
         (-qmp unix:PATH,server=on,wait=off)",
        GREETING_TIMEOUT.as_secs()
    )]
    NoGreeting,
    /// What it said is no QMP.
    #[error("QMP: {0}")]
    Format(String),
    /// It closed the connection.
    #[error("QEMU closed its QMP socket")]
    Closed,
    /// It did not answer in time.
    #[error("QEMU did not answer {command} within {} s", limit.as_secs())]
    Timeout {
        /// What was asked.
        command: String,
        /// The deadline.
        limit: Duration,
    },
    /// It refused.
    #[error("QEMU refused {command}: {message}")]
    Refused {
        /// What was asked.
        command: String,
        /// What it said.
        message: String,
    },
}

/// A connection that has been greeted, or that is made when something is asked.
#[derive(Debug)]
pub struct Qmp {
    /// Where it is made again; nothing: nowhere.
    path: Option<PathBuf>,
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    /// Part of a line that was read before a deadline passed.
    partial: Vec<u8>,
    events: VecDeque<Value>,
    dead: bool,
    version: String,
}

impl Qmp {
    /// Connects and agrees on capabilities.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn connect(path: &Path) -> Result<Self, QmpError> {
        let mut qmp = Self::over(dial(path)?)?;
        qmp.path = Some(path.to_owned());
        Ok(qmp)
    }

    /// Connects when something is asked: QEMU may wait for a page that comes only when its runner has greeted a node.
    ///
    /// # Errors
    /// No sockets can be made.
    pub fn later(path: &Path) -> Result<Self, QmpError> {
        // The other end of this one is gone at once.
        let (nobody, _) = UnixStream::pair()?;
        let path = Some(path.to_owned());
        Ok(Self { path, dead: true, ..Self::new(nobody)? })
    }

    /// As [`Self::connect`], over a connection that is there. It is not made again.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn over(stream: UnixStream) -> Result<Self, QmpError> {
        let mut qmp = Self::new(stream)?;
        let greeting = qmp.line(Instant::now() + GREETING_TIMEOUT)?.ok_or(QmpError::NoGreeting)?;
        let version =
            greeting.pointer("/QMP/version/qemu").ok_or_else(|| format_error("greeting", &greeting))?;
        let part = |name| version.get(name).and_then(Value::as_u64).unwrap_or(0);
        qmp.version = format!("{}.{}.{}", part("major"), part("minor"), part("micro"));
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn new(stream: UnixStream) -> Result<Self, QmpError> {
        stream.set_write_timeout(Some(COMMAND_TIMEOUT))?;
        let reader = BufReader::new(stream.try_clone()?);
        let (partial, events) = (Vec::new(), VecDeque::new());
        Ok(Self { path: None, stream, reader, partial, events, dead: false, version: String::new() })
    }

    /// Connects, where there is no connection.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn open(&mut self) -> Result<(), QmpError> {
        if self.dead { self.again() } else { Ok(()) }
    }

    /// In place of a connection that has ended. What it had told stays.
    fn again(&mut self) -> Result<(), QmpError> {
        let Some(path) = &self.path else { return Err(QmpError::Closed) };
        // It has one client at a time.
        let _ = self.stream.shutdown(Shutdown::Both);
        let stream = dial(path).map_err(|error| match error {
            QmpError::Socket(_) => QmpError::Closed,
            other => other,
        })?;
        let mut made = Self::over(stream)?;
        made.path = self.path.take();
        let told = std::mem::take(&mut self.events);
        *self = made;
        for event in told.into_iter().rev() {
            self.events.push_front(event);
        }
        Ok(())
    }

    /// QEMU's version, as `7.2.1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Asks one thing and waits for its answer.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, Some(COMMAND_TIMEOUT))
    }

    /// As [`Self::execute`], with another deadline or none: a VM of which a processor waits for a page stops when it has it.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn execute_within(
        &mut self,
        command: &str,
        arguments: Value,
        limit: Option<Duration>,
    ) -> Result<Value, QmpError> {
        self.ask(command, &arguments, limit, None)
    }

    /// Gives QEMU a descriptor, which it keeps by this name until a command takes it or `closefd` closes it. One that it has
    /// by this name is closed first. It needs no right to open what is given to it.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn give(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), QmpError> {
        let arguments = json!({ "fdname": name });
        self.ask("getfd", &arguments, Some(COMMAND_TIMEOUT), Some(descriptor)).map(|_| ())
    }

    fn ask(
        &mut self,
        command: &str,
        arguments: &Value,
        limit: Option<Duration>,
        with: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        self.open()?;
        let begun = Instant::now();
        let outcome = self.exchange(command, arguments, limit, with);
        tracing::debug!(command, took = ?begun.elapsed(), done = outcome.is_ok(), "asked QEMU");
        self.dead = matches!(
            outcome,
            Err(QmpError::Socket(_) | QmpError::Closed | QmpError::Timeout { .. } | QmpError::Format(_))
        );
        outcome
    }

    fn exchange(
        &mut self,
        command: &str,
        arguments: &Value,
        limit: Option<Duration>,
        with: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        let sent = with.map_or(Ok(0), |descriptor| self.send_with(line.as_bytes(), descriptor))?;
        self.stream.write_all(line.as_bytes().get(sent..).unwrap_or_default())?;
        // Without a deadline it is a year's.
        let limit = limit.unwrap_or(Duration::from_secs(365 * 24 * 3600));
        let deadline = Instant::now() + limit;
        loop {
            let late = || QmpError::Timeout { command: command.to_owned(), limit };
            let mut said = self.line(deadline)?.ok_or_else(late)?;
            if let Some(answer) = said.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = said.get("error") {
                let words = error.get("desc").and_then(Value::as_str).unwrap_or("without a word");
                let message = words.chars().take(QUOTED_CHARS_MAX).collect();
                return Err(QmpError::Refused { command: command.to_owned(), message });
            }
            self.keep(said);
        }
    }

    /// Sends a descriptor beside the beginning of a line; answers how much of it was sent.
    fn send_with(&self, line: &[u8], descriptor: BorrowedFd<'_>) -> Result<usize, QmpError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for a descriptor").into());
        }
        let sent =
            rustix::net::sendmsg(&self.stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL);
        Ok(sent.map_err(io::Error::from)?)
    }

    /// The next event, if one comes before the deadline.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn event(&mut self, deadline: Instant) -> Result<Option<Value>, QmpError> {
        match self.events.pop_front() {
            Some(event) => Ok(Some(event)),
            None => self.line(deadline),
        }
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() == EVENTS_KEPT_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The next line; `None`: it did not come in time.
    fn line(&mut self, deadline: Instant) -> Result<Option<Value>, QmpError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let room = LINE_BYTES_MAX.saturating_sub(self.partial.len() as u64);
            match self.reader.by_ref().take(room).read_until(b'\n', &mut self.partial) {
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.partial);
                    return serde_json::from_slice(&line)
                        .map(Some)
                        .map_err(|error| QmpError::Format(format!("not a line of JSON: {error}")));
                }
                Ok(_) if self.partial.len() as u64 >= LINE_BYTES_MAX => {
                    return Err(QmpError::Format(format!("a line of more than {LINE_BYTES_MAX} bytes")));
                }
                Ok(_) => return Err(QmpError::Closed),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(QmpError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Connects, without waiting for room in a queue in which those stand whom QEMU has not greeted.
fn dial(path: &Path) -> Result<UnixStream, QmpError> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let system = |error: rustix::io::Errno| match error {
        rustix::io::Errno::AGAIN => QmpError::NoGreeting,
        error => QmpError::Socket(error.into()),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(system)?;
    connect(&socket, &SocketAddrUnix::new(path).map_err(system)?).map_err(system)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn format_error(what: &str, said: &Value) -> QmpError {
    let said: String = said.to_string().chars().take(QUOTED_CHARS_MAX).collect();
    QmpError::Format(format!("unexpected {what}: {said}"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}, \"capabilities\": []}}\r\n";

    /// A QEMU that says this and then waits for the connection to end.
    fn says(text: &str) -> (UnixStream, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        theirs.write_all(text.as_bytes()).expect("written");
        (ours, theirs)
    }

    #[test]
    fn answers_are_told_from_events() {
        let events = "{\"event\": \"STOP\"}\r\n{\"event\": \"RESUME\"}\r\n";
        let (stream, _qemu) = says(&format!(
            "{GREETING}{{\"return\": {{}}}}\r\n{events}{{\"return\": {{\"status\": \"paused\"}}}}\r\n"
        ));
        let mut qmp = Qmp::over(stream).expect("greeted");
        assert_eq!(qmp.version(), "7.2.22");
        let status = qmp.execute("query-status", json!({})).expect("answered");
        assert_eq!(status.get("status"), Some(&json!("paused")));
        let names: Vec<_> = (0..2)
            .map(|_| qmp.event(Instant::now() + COMMAND_TIMEOUT).expect("there").expect("in time"))
            .filter_map(|event| event.get("event").and_then(Value::as_str).map(str::to_owned))
            .collect();
        assert_eq!(names, ["STOP", "RESUME"]);
    }

    #[test]
    fn a_refusal_leaves_the_connection_and_a_missed_deadline_ends_it() {
        let refusal = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n";
        let (stream, _qemu) = says(&format!("{GREETING}{{\"return\": {{}}}}\r\n{refusal}"));
        let mut qmp = Qmp::over(stream).expect("greeted");
        let error = qmp.execute("cont", json!({})).expect_err("refused");
        assert_eq!(error.to_string(), "QEMU refused cont: no");
        let limit = Some(Duration::from_millis(20));
        let error = qmp.execute_within("stop", json!({}), limit).expect_err("silent");
        assert!(matches!(error, QmpError::Timeout { .. }), "{error}");
        assert!(matches!(qmp.execute("stop", json!({})), Err(QmpError::Closed)));
    }

    #[test]
    fn a_descriptor_comes_with_the_command_that_names_it() {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
        let (stream, qemu) = says(&format!("{GREETING}{{\"return\": {{}}}}\r\n{{\"return\": {{}}}}\r\n"));
        let mut qmp = Qmp::over(stream).expect("greeted");
        let (given, mut other) = UnixStream::pair().expect("sockets");
        qmp.give("state", given.as_fd()).expect("given");
        drop(given);
        let (mut text, mut space) =
            (vec![0; 4096], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (mut said, mut descriptors) = (String::new(), Vec::new());
        while !said.contains("getfd") {
            let came = rustix::net::recvmsg(
                &qemu,
                &mut [io::IoSliceMut::new(&mut text)],
                &mut control,
                RecvFlags::empty(),
            )
            .expect("received");
            said += &String::from_utf8_lossy(text.get(..came.bytes).expect("so much"));
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
        }
        assert!(said.contains("{\"fdname\":\"state\"}"), "{said}");
        let [theirs] = <[_; 1]>::try_from(descriptors).expect("one descriptor");
        UnixStream::from(theirs).write_all(b"state").expect("written");
        let mut heard = String::new();
        other.read_to_string(&mut heard).expect("read");
        assert_eq!(heard, "state");
    }

    #[test]
    fn a_connection_that_has_ended_is_made_again_when_something_is_asked() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("qmp.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        let done = "{\"return\": {}}\r\n";
        let first = format!("{GREETING}{done}{{\"event\": \"STOP\"}}\r\n{done}");
        let second = format!("{GREETING}{done}{done}");
        let qemu = std::thread::spawn(move || {
            [first, second].map(|text| {
                let mut client = listener.accept().expect("a client").0;
                client.write_all(text.as_bytes()).expect("written");
                client
            })
        });
        let silent =
            |qmp: &mut Qmp| qmp.execute_within("query-status", json!({}), Some(Duration::from_millis(20)));
        let mut qmp = Qmp::later(&path).expect("nothing is asked yet");
        qmp.execute("stop", json!({})).expect("the first answers");
        assert!(matches!(silent(&mut qmp), Err(QmpError::Timeout { .. })));
        qmp.execute("cont", json!({})).expect("the second answers");
        assert!(matches!(silent(&mut qmp), Err(QmpError::Timeout { .. })));
        drop(qemu.join().expect("they are gone"));
        assert!(matches!(qmp.execute("cont", json!({})), Err(QmpError::Closed)));
        let event = qmp.event(Instant::now() + COMMAND_TIMEOUT).expect("kept").expect("told");
        assert_eq!(event.get("event"), Some(&json!("STOP")), "what was told before is not lost");
    }

    #[test]
    fn garbage_and_a_closed_socket_are_told_apart() {
        let (stream, qemu) = says("hello\n");
        assert!(matches!(Qmp::over(stream), Err(QmpError::Format(_))));
        drop(qemu);
        let (stream, qemu) = says("");
        drop(qemu);
        assert!(matches!(Qmp::over(stream), Err(QmpError::Closed)));
    }
}
