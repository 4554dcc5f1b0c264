//! The node's end of the hand-off socket: three descriptors, then one command after another.
//!
//! ```text
//!   attach(runner.sock) ──▶ Hello + memory file, userfaultfd, pagemap ──▶ Attached
//!   Attached.runner ── pause, save, load, resume, … ──▶ the runner, one at a time
//! ```
//!
//! Always true: what a runner says is checked before it is believed (version, region table, size and seals of the
//! memory file, number of descriptors); no line above its cap is read; every command has a deadline, once it is its
//! turn.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use godwit_domain::{Epoch, PageCount};
use godwit_memory::tracker::TrackerError;
use godwit_memory::uffd::UffdError;
use godwit_memory::{Faults, Memfd, Tracker, Userfaultfd};
use godwit_wire::handoff::{
    Answer, Command, HANDOFF_VERSION, Hello, Outcome, Refusal, Region, Request, RunState, Stats, Verified,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio_util::codec::Framed;

use crate::messages::{Answered, Asked, Messages};

/// How long a runner may take to say Hello: it does so without being asked.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an ordinary command may take. A pause waits for threads that write a page at a time.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a comparison of all memory may take: 1 GiB takes about a second.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(600);
/// Largest Hello. Its table has a few regions of at most 100 bytes each.
const HELLO_BYTES_MAX: usize = 16 << 10;

/// Why a runner could not be asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket could not be used.
    #[error("hand-off socket {}", path.display())]
    Socket {
        /// Where it is.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The Hello breaks a rule.
    #[error("runner at {}: {rule}", path.display())]
    Hello {
        /// Where it is.
        path: PathBuf,
        /// The rule.
        rule: String,
    },
    /// The connection broke in the middle of a command, or what came over it is no answer.
    #[error("runner: connection lost")]
    Lost(#[from] io::Error),
    /// The runner closed the connection: another node has attached, or it ended.
    #[error("runner closed the connection: it has ended, or another node process has attached to it")]
    Closed,
    /// No answer in time.
    #[error("runner did not answer {command} within {} s", limit.as_secs())]
    Timeout {
        /// What was asked.
        command: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// The answer is none.
    #[error("runner answered {command} with something else")]
    Answer {
        /// What was asked.
        command: &'static str,
    },
    /// It refused, and nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A runner to which this process is attached.
#[derive(Debug)]
pub struct Attached {
    /// What it said of itself.
    pub hello: Hello,
    /// Where its files are.
    pub dir: PathBuf,
    /// Itself.
    pub runner: Runner,
    region: Region,
    pages: PageCount,
    memory: OwnedFd,
    userfaultfd: OwnedFd,
    pagemap: OwnedFd,
    process: OwnedFd,
    guest_process: Option<OwnedFd>,
}

impl Attached {
    /// The runner's process as a descriptor, opened while it was known to live: its number may be used again, this is
    /// that process's for ever.
    pub fn process(&self) -> io::Result<OwnedFd> {
        self.process.try_clone()
    }

    /// The process that holds the guest, where that is another than the runner's: it must end too before the guest's memory is
    /// gone.
    pub fn guest_process(&self) -> io::Result<Option<OwnedFd>> {
        self.guest_process.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// The guest's size.
    pub fn pages(&self) -> PageCount {
        self.pages
    }

    /// The guest's memory, for a transfer to read or write.
    pub fn memory(&self) -> io::Result<Memfd> {
        Memfd::from_handed_over(self.memory.try_clone()?, self.pages)
    }

    /// From now on whoever touches a page that is not there waits, until it is filled by what this returns. Done again it
    /// changes nothing.
    pub fn serve_faults(&self) -> Result<Faults, UffdError> {
        let refused = |source| UffdError::Ioctl { what: "descriptor could not be duplicated", source };
        let userfaultfd = Userfaultfd::from_handed_over(self.userfaultfd.try_clone().map_err(refused)?);
        Faults::register(userfaultfd, self.region.address, self.region.bytes)
    }

    /// Begins to track what the guest writes. Everything counts as written before.
    pub fn track(&self) -> Result<Tracker, TrackerError> {
        let clone = |fd: &OwnedFd| fd.try_clone().map_err(TrackerError::Scan);
        let userfaultfd = Userfaultfd::from_handed_over(clone(&self.userfaultfd)?);
        Tracker::arm(userfaultfd, clone(&self.pagemap)?, self.region.address, self.region.bytes)
    }
}

/// Attaches to the runner in this folder. Any older connection to it ends. Blocks for as long as the runner says
/// nothing, at most five seconds at a time.
pub fn attach(dir: &Path) -> Result<Attached, ClientError> {
    let path = dir.join("runner.sock");
    let socket = |source| ClientError::Socket { path: path.clone(), source };
    let stream = StdUnixStream::connect(&path).map_err(socket)?;
    stream.set_read_timeout(Some(HELLO_TIMEOUT)).map_err(socket)?;
    // Who listens says the kernel, not the runner.
    let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|error| socket(error.into()))?;
    let process = rustix::process::pidfd_open(peer.pid, rustix::process::PidfdFlags::empty());
    let process = process.map_err(|error| socket(error.into()))?;
    let (line, descriptors) = receive_hello(&stream).map_err(socket)?;
    let broken = |rule: String| ClientError::Hello { path: path.clone(), rule };
    let hello: Hello =
        serde_json::from_slice(&line).map_err(|error| broken(format!("its Hello: {error}")))?;
    let (region, pages) = check(&hello).map_err(broken)?;
    let mut descriptors = descriptors;
    let guest_process = if descriptors.len() == 4 { descriptors.pop() } else { None };
    let [memory, userfaultfd, pagemap] = <[OwnedFd; 3]>::try_from(descriptors)
        .map_err(|got| broken(format!("it handed over {} descriptors instead of 3 or 4", got.len())))?;
    // Size and seals, once, here; each later use checks again at no cost worth naming.
    Memfd::from_handed_over(memory.try_clone().map_err(socket)?, pages).map_err(socket)?;
    stream.set_nonblocking(true).map_err(socket)?;
    let stream = UnixStream::from_std(stream).map_err(socket)?;
    let messages = Framed::new(stream, Messages::default());
    let runner = Runner {
        connection: Arc::new(Mutex::new(Connection { messages, last_id: 0 })),
        not_run: Arc::default(),
    };
    let dir = dir.to_owned();
    Ok(Attached { hello, dir, runner, region, pages, memory, userfaultfd, pagemap, process, guest_process })
}

/// One line and the descriptors that came with its first byte.
fn receive_hello(stream: &StdUnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    while !line.ends_with(b"\n") {
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received =
            rustix::net::recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, flags)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.flags.contains(rustix::net::ReturnFlags::CTRUNC) {
            return Err(io::Error::other(
                "there is no room for all the descriptors of Hello: too many are open",
            ));
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(chunk.get(..received.bytes).unwrap_or_default());
        if line.len() > HELLO_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "Hello is above 16 KiB"));
        }
    }
    Ok((line, descriptors))
}

/// The one region and its size; anything else is not supported and said so.
fn check(hello: &Hello) -> Result<(Region, PageCount), String> {
    // In tests, a node may be of the next release.
    let spoken = HANDOFF_VERSION + u16::from(godwit_domain::planted::is_on("later-handoff"));
    if hello.v != spoken {
        return Err(format!("it speaks hand-off version {}, this node speaks {spoken}", hello.v));
    }
    let [region] = hello.regions.as_slice() else {
        return Err(format!(
            "it has {} memory regions; this version moves guests with one",
            hello.regions.len()
        ));
    };
    let aligned = region.address.is_multiple_of(godwit_domain::PAGE_BYTES) && region.offset_bytes == 0;
    match PageCount::of_memory(region.bytes) {
        Some(pages) if aligned && region.address.checked_add(region.bytes).is_some() => Ok((*region, pages)),
        _ => Err(format!("its memory region {region:x?} is not whole pages at offset 0")),
    }
}

#[derive(Debug)]
struct Connection {
    messages: Framed<UnixStream, Messages>,
    last_id: u64,
}

/// A runner's control socket. Clones share the connection; commands go one after another.
#[derive(Debug, Clone)]
pub struct Runner {
    connection: Arc<Mutex<Connection>>,
    /// Why it did not run when it was last told to.
    not_run: Arc<std::sync::Mutex<Option<String>>>,
}

impl Runner {
    /// Asks one thing and waits for its answer. `state`: what goes along with the question; what comes along with the answer is
    /// put into the same place.
    async fn ask(
        &self,
        name: &'static str,
        command: Command,
        state: &mut Vec<u8>,
        limit: Duration,
    ) -> Result<Answer, ClientError> {
        let mut connection = self.connection.lock().await;
        connection.last_id += 1;
        let id = connection.last_id;
        let asked = Asked { request: Request { id, command }, state: std::mem::take(state) };
        let exchange = async {
            connection.messages.send(asked).await?;
            loop {
                let Answered { reply, state: brought } =
                    connection.messages.next().await.ok_or(ClientError::Closed)??;
                // A smaller id answers a command whose caller has gone.
                if reply.id >= id {
                    *state = brought;
                    return match reply.outcome {
                        Outcome::Ok(answer) => Ok(answer),
                        Outcome::Error(refusal) => Err(refusal.into()),
                    };
                }
            }
        };
        tokio::time::timeout(limit, exchange)
            .await
            .unwrap_or(Err(ClientError::Timeout { command: name, limit }))
    }

    async fn do_it(
        &self,
        name: &'static str,
        command: Command,
        mut state: Vec<u8>,
    ) -> Result<(), ClientError> {
        match self.ask(name, command, &mut state, COMMAND_TIMEOUT).await? {
            Answer::Done => Ok(()),
            Answer::State { .. } | Answer::Verified(_) | Answer::Stats(_) => {
                Err(ClientError::Answer { command: name })
            }
        }
    }

    /// Seals the epoch; the guest stands still afterwards.
    pub async fn pause(&self, epoch: Epoch) -> Result<(), ClientError> {
        self.do_it("pause", Command::Pause { epoch }, Vec::new()).await
    }

    /// The device state.
    pub async fn save(&self) -> Result<Vec<u8>, ClientError> {
        let mut state = Vec::new();
        match self.ask("save", Command::Save, &mut state, COMMAND_TIMEOUT).await? {
            Answer::State { .. } => Ok(state),
            Answer::Done | Answer::Verified(_) | Answer::Stats(_) => {
                Err(ClientError::Answer { command: "save" })
            }
        }
    }

    /// Loads a device state that was sealed at this epoch. Starts nothing.
    pub async fn load(&self, epoch: Epoch, state: Vec<u8>) -> Result<(), ClientError> {
        let bytes = u32::try_from(state.len()).unwrap_or(u32::MAX);
        self.do_it("load", Command::Load { epoch, bytes }, state).await
    }

    /// Runs the guest under this epoch, or notes it if the guest runs.
    pub async fn resume(&self, epoch: Epoch) -> Result<(), ClientError> {
        let told = self.do_it("resume", Command::Resume { epoch }, Vec::new()).await;
        self.ran(told.as_ref().err().map(ToString::to_string));
        told
    }

    /// Goes on over the connection of another, with all its clones: that one answers for the same guest now.
    pub async fn follow(&self, other: Self) {
        let (mut mine, mut its) = (self.connection.lock().await, other.connection.lock().await);
        std::mem::swap(&mut *mine, &mut *its);
    }

    fn ran(&self, or_why_not: Option<String>) {
        *self.not_run.lock().unwrap_or_else(PoisonError::into_inner) = or_why_not;
    }

    /// Why it did not run the guest when it was last told to; `None`: it did, or was not told.
    pub fn why_not_run(&self) -> Option<String> {
        self.not_run.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes so many percent of its time from the guest's writers, 0 to 99. It stays so until another is asked for.
    pub async fn throttle(&self, percent: u8) -> Result<(), ClientError> {
        self.do_it("throttle", Command::Throttle { percent }, Vec::new()).await
    }

    /// Compares every page with what it must hold.
    pub async fn verify(&self) -> Result<Verified, ClientError> {
        match self.ask("verify", Command::Verify, &mut Vec::new(), VERIFY_TIMEOUT).await? {
            Answer::Verified(verified) => Ok(verified),
            Answer::Done | Answer::State { .. } | Answer::Stats(_) => {
                Err(ClientError::Answer { command: "verify" })
            }
        }
    }

    /// How the guest does. Whoever asks waits no longer behind another command than for the answer: a comparison of memory
    /// in post-copy lasts for as long as pages are missing.
    pub async fn stats(&self) -> Result<Stats, ClientError> {
        let mut nothing = Vec::new();
        let asked = self.ask("stats", Command::Stats, &mut nothing, COMMAND_TIMEOUT);
        let late = ClientError::Timeout { command: "stats", limit: COMMAND_TIMEOUT };
        match tokio::time::timeout(COMMAND_TIMEOUT, asked).await.unwrap_or(Err(late))? {
            Answer::Stats(stats) => {
                if stats.standing.state == RunState::Running {
                    // It was told to, and only its answer was late or lost.
                    self.ran(None);
                }
                Ok(stats)
            }
            Answer::Done | Answer::State { .. } | Answer::Verified(_) => {
                Err(ClientError::Answer { command: "stats" })
            }
        }
    }

    /// A QEMU that was adopted is left running by [`Self::stop`].
    pub async fn release(&self) -> Result<(), ClientError> {
        self.do_it("release", Command::Release, Vec::new()).await
    }

    /// Presses the guest's power button. What comes of it is for the guest to say.
    pub async fn power_button(&self) -> Result<(), ClientError> {
        self.do_it("power-button", Command::PowerButton, Vec::new()).await
    }

    /// Ends the runner. The guest's memory is gone.
    pub async fn stop(&self) -> Result<(), ClientError> {
        self.do_it("stop", Command::Stop, Vec::new()).await
    }
}
