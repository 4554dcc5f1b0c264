//! A runner under test, and the node's end of its socket, as small as can be.

use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_domain::{Epoch, InstanceId, PageCount};
use godwit_guest::runner::{
    Role, RunnerConfig, RunnerError, Tick, Workload, WorkloadOptions, read_ticks, run,
};
use godwit_memory::{Memfd, Userfaultfd};
use godwit_wire::handoff::{
    Answer, Command, Hello, Outcome, Refusal, Reply, RunState, Standing, Stats, Verified,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// No wait here takes longer unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The RAM of most guests here, 16 MiB.
pub(crate) const PAGES: PageCount = PageCount(4096);

/// Waits for a level, with a deadline.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A runner in a thread of this process, in its own folder.
pub(crate) struct Runner {
    dir: tempfile::TempDir,
    thread: JoinHandle<Result<(), RunnerError>>,
}

impl Runner {
    pub(crate) fn start(node: &str, memory: PageCount, role: Role) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let config = config(dir.path().join("vm1"), node, memory, role);
        let thread = std::thread::spawn(move || run(config));
        let runner = Self { dir, thread };
        until("the socket appears", || runner.socket().exists() || runner.thread.is_finished());
        runner
    }

    pub(crate) fn fresh(options: WorkloadOptions) -> Self {
        let (memory, workload) = (options.memory, Workload::new(options).expect("fits"));
        let runner = Self::start("node-a", memory, Role::Fresh { workload });
        let mut node = runner.connect();
        let held = Standing { state: RunState::Incoming, epoch: Epoch(0), loaded: Some(Epoch(0)) };
        assert_eq!(node.hello.standing, held, "a new guest waits to be run");
        assert_eq!(node.ask(Command::Resume { epoch: Epoch(1) }), Ok(Answer::Done));
        runner
    }

    pub(crate) fn incoming() -> Self {
        Self::start("node-b", PAGES, Role::Incoming)
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.path().join("vm1")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir().join("runner.sock")
    }

    pub(crate) fn connect(&self) -> Node {
        Node::connect(&self.socket())
    }

    pub(crate) fn ticks(&self) -> Vec<Tick> {
        read_ticks(&self.dir()).expect("ticks")
    }

    /// Stops it, and finds it gone.
    pub(crate) fn stop(self) {
        let mut node = self.connect();
        assert_eq!(node.ask(Command::Stop), Ok(Answer::Done));
        assert!(!self.socket().exists(), "the socket goes before the reply");
        assert!(self.thread.join().expect("no panic").is_ok());
    }
}

pub(crate) fn config(dir: PathBuf, node: &str, memory: PageCount, role: Role) -> RunnerConfig {
    RunnerConfig {
        guest: "vm1".parse().expect("a name"),
        instance: InstanceId::from_random([7; 16]),
        node: node.parse().expect("a name"),
        dir,
        memory,
        role,
        tick_interval: Duration::from_millis(2),
    }
}

/// The node's end of the socket, as small as can be.
pub(crate) struct Node {
    pub(crate) stream: BufReader<UnixStream>,
    pub(crate) hello: Hello,
    pub(crate) memory: Memfd,
    pub(crate) tracking: (Userfaultfd, OwnedFd),
    id: u64,
}

impl Node {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let (mut line, fds) = receive(&stream);
        let mut stream = BufReader::new(stream);
        if line.last() != Some(&b'\n') {
            stream.read_until(b'\n', &mut line).expect("the rest of Hello");
        }
        let hello: Hello = serde_json::from_slice(&line).expect("Hello");
        let [memory, uffd, pagemap] = <[OwnedFd; 3]>::try_from(fds).expect("exactly three descriptors");
        let pages = PageCount::of_memory(hello.regions[0].bytes).expect("whole pages");
        let memory = Memfd::from_handed_over(memory, pages).expect("the memory file");
        Self { stream, hello, memory, tracking: (Userfaultfd::from_handed_over(uffd), pagemap), id: 0 }
    }

    pub(crate) fn say(&mut self, line: &[u8]) {
        self.stream.get_mut().write_all(line).expect("says");
    }

    pub(crate) fn hear(&mut self) -> Reply {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("hears");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Asks as `docs/handoff.md` writes it.
    pub(crate) fn ask(&mut self, command: Command) -> Result<Answer, Refusal> {
        self.ask_with(command, &[])
    }

    /// The same, and these bytes after it.
    pub(crate) fn ask_with(&mut self, command: Command, state: &[u8]) -> Result<Answer, Refusal> {
        self.id += 1;
        let mut request = serde_json::to_value(command).expect("serialises");
        request["id"] = self.id.into();
        self.say(format!("{request}\n").as_bytes());
        self.say(state);
        let reply = self.hear();
        assert_eq!(reply.id, self.id);
        match reply.outcome {
            Outcome::Ok(answer) => Ok(answer),
            Outcome::Error(refusal) => Err(refusal),
        }
    }

    pub(crate) fn done(&mut self, command: Command) {
        assert_eq!(self.ask(command), Ok(Answer::Done));
    }

    #[track_caller]
    pub(crate) fn refused(&mut self, command: Command, rule: &str) {
        let refusal = self.ask(command).expect_err("refused");
        assert_eq!(refusal.rule, rule, "{refusal}");
    }

    fn load(&mut self, epoch: u64, state: &[u8]) -> Result<Answer, Refusal> {
        let bytes = u32::try_from(state.len()).expect("small");
        self.ask_with(Command::Load { epoch: Epoch(epoch), bytes }, state)
    }

    pub(crate) fn loads(&mut self, epoch: u64, state: &[u8]) {
        assert_eq!(self.load(epoch, state), Ok(Answer::Done));
    }

    #[track_caller]
    pub(crate) fn refuses_load(&mut self, epoch: u64, state: &[u8], rule: &str) {
        let refusal = self.load(epoch, state).expect_err("refused");
        assert_eq!(refusal.rule, rule, "{refusal}");
    }

    pub(crate) fn stats(&mut self) -> Stats {
        match self.ask(Command::Stats) {
            Ok(Answer::Stats(stats)) => stats,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn save(&mut self) -> Vec<u8> {
        match self.ask(Command::Save) {
            Ok(Answer::State { bytes }) => {
                let mut state = vec![0; bytes as usize];
                self.stream.read_exact(&mut state).expect("the state follows");
                state
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn verify(&mut self) -> Verified {
        match self.ask(Command::Verify) {
            Ok(Answer::Verified(verified)) => verified,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the runner has hung up.
    pub(crate) fn is_gone(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn receive(stream: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = vec![0; 64 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let received =
        rustix::net::recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).expect("recvmsg");
    let fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let fds = fds.collect();
    bytes.truncate(received.bytes);
    (bytes, fds)
}
