//! The runner's state, its one lock, and the carrying out of commands.
//!
//! ```text
//!   attach    a new connection becomes the newest ─▶ Hello, with how the runner stands
//!   execute   newest? ─▶ decide (standing × command) ─▶ carry out at once: load, save, resume, throttle, stats
//!                                                   └─▶ seal or hold under the lock, wait without it:
//!                                                       pause, verify, stop
//! ```
//!
//! Always true:
//! - a command is decided ([`super::decide`]) and takes effect under one lock, and only while the connection that
//!   it came from is the newest: what an older one had still to say is dropped;
//! - nothing waits under that lock. A writer may be stuck in a page fault that only a *new* node can serve, so a
//!   new connection gets its descriptors whatever an older one is waiting for.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_domain::{Epoch, GuestName, InstanceId, NodeName};
use godwit_memory::{Memfd, Userfaultfd};
use godwit_wire::handoff::{
    Answer, Command, HANDOFF_VERSION, Hello, Outcome, Refusal, Region, RunState, Standing, Stats,
};

use super::decide::{Action, decide, refusal};
use super::life::{Life, Stint};
use super::program::Program;
use super::state::DeviceState;
use super::threads::{self, Host};
use super::verify::verify;
use crate::server::Attachment;

/// How long a new connection's Hello waits for a pause that is under way, so that it can say `Paused`. Threads
/// stand still within a page's time unless one is stuck in a fault.
const HELLO_PATIENCE: Duration = Duration::from_millis(200);
/// How long `stop` waits for the threads, for the same reason.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// Who a runner is.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) guest: GuestName,
    pub(super) instance: InstanceId,
    pub(super) node: NodeName,
}

/// The three descriptors that a node is handed. Kept open here as long as the process lives.
#[derive(Debug)]
pub(super) struct Descriptors {
    pub(super) memory: Memfd,
    pub(super) uffd: Userfaultfd,
    pub(super) pagemap: OwnedFd,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Machine {
    identity: Identity,
    descriptors: Descriptors,
    host: Host,
    core: Mutex<Core>,
    /// Number of the newest connection. Changes under the lock of `core` only.
    attached: AtomicU64,
}

#[derive(Debug)]
struct Core {
    life: Life,
    /// The newest connection, to be shut when a newer one comes.
    stream: Option<Arc<UnixStream>>,
}

impl Machine {
    /// A runner that waits for a guest.
    pub(super) fn new(identity: Identity, descriptors: Descriptors, host: Host) -> Self {
        let core = Mutex::new(Core { life: Life::Incoming(None), stream: None });
        Self { identity, descriptors, host, core, attached: AtomicU64::new(0) }
    }

    /// Holds a new guest, whose RAM is filled. It is as if it had been loaded: no epoch was sealed before it.
    pub(super) fn hold_fresh(&self, program: Program) {
        self.lock().life = Life::Incoming(Some(Stint { epoch: Epoch(0), program: Arc::new(program) }));
    }

    fn hello(&self, standing: Standing) -> Hello {
        let Identity { guest, instance, node } = &self.identity;
        let bytes = self.host.ram.pages().bytes();
        Hello {
            v: HANDOFF_VERSION,
            guest: guest.clone(),
            instance: *instance,
            node: node.clone(),
            pid: std::process::id(),
            regions: vec![Region { address: self.host.ram.address(), bytes, offset_bytes: 0 }],
            standing,
        }
    }

    /// What is done at once.
    fn carry_out(
        &self,
        core: &mut Core,
        standing: Standing,
        action: Action,
        state: &mut Vec<u8>,
    ) -> Result<Answer, Refusal> {
        match action {
            Action::Seal(epoch) => self.enter(core, epoch, Life::Paused, "sealed"),
            Action::Save => return save(core, state),
            Action::Load(epoch) => self.load(core, epoch, state)?,
            Action::Start(epoch) => self.start(core, epoch)?,
            Action::Relabel(epoch) | Action::RunOn(epoch) => {
                self.enter(core, epoch, Life::Running, "runs under a new epoch");
                if let Some(stint) = core.life.stint() {
                    stint.program.gate().open();
                }
            }
            Action::Throttle(percent) => self.host.throttle_percent.store(percent, Ordering::Relaxed),
            Action::Release => {
                return Err(refusal(
                    "state",
                    "a built-in guest is nothing without its runner; it can not be left running",
                ));
            }
            Action::PowerButton => {
                return Err(refusal("state", "a built-in guest has no power button; stop ends it"));
            }
            Action::Stats => return Ok(Answer::Stats(self.stats(core, standing))),
            Action::Pause(_) | Action::Verify | Action::Stop => {
                unreachable!("carried out by `execute`, which may wait")
            }
        }
        Ok(Answer::Done)
    }

    /// The guest goes on as another `Life`, under another epoch.
    fn enter(&self, core: &mut Core, epoch: Epoch, life: fn(Stint) -> Life, news: &str) {
        if let Some(program) = core.life.stint().map(|stint| Arc::clone(&stint.program)) {
            let (guest, instance) = (&self.identity.guest, self.identity.instance);
            core.life = life(Stint { epoch, program });
            tracing::info!(%guest, %instance, %epoch, "{news}");
        }
    }

    fn pause(&self, mut core: MutexGuard<'_, Core>, attachment: Attachment, epoch: Epoch) -> Option<Outcome> {
        let stint = core.life.stint()?.clone();
        stint.program.gate().shut();
        core.life = Life::Pausing(Stint { epoch, ..stint.clone() });
        drop(core);
        stint.program.gate().wait_still(|| self.superseded(attachment));
        let mut core = self.lock();
        if self.superseded(attachment) {
            return None; // the seal holds; the newer connection is told how the guest stands
        }
        let paused = Standing { state: RunState::Paused, epoch, loaded: None };
        Some(match self.standing(&mut core)? {
            standing if standing == paused => Outcome::Ok(Answer::Done),
            standing => Outcome::Error(refusal("state", format!("the pause was overtaken: {standing:?}"))),
        })
    }

    fn verify(&self, core: MutexGuard<'_, Core>, attachment: Attachment) -> Option<Outcome> {
        let program = Arc::clone(&core.life.stint()?.program);
        let hold = program.gate().hold();
        drop(core);
        let superseded = || self.superseded(attachment);
        program.gate().wait_still(superseded);
        let verified = verify(&program, &self.host.ram, || !superseded())?;
        drop(hold);
        Some(Outcome::Ok(Answer::Verified(verified)))
    }

    fn load(&self, core: &mut Core, epoch: Epoch, bytes: &[u8]) -> Result<(), Refusal> {
        let state = DeviceState::decode(bytes, self.host.ram.pages())?;
        core.life = Life::Incoming(Some(Stint { epoch, program: Arc::new(Program::from_state(state)) }));
        Ok(())
    }

    fn start(&self, core: &mut Core, epoch: Epoch) -> Result<(), Refusal> {
        let Some(stint) = core.life.stint().cloned() else { return Ok(()) };
        if let Err(error) = threads::start(&stint.program, &self.host) {
            // Its gate has ended; the same state is there for another try.
            let program = Arc::new(Program::from_state(stint.program.state()));
            core.life = Life::Incoming(Some(Stint { program, ..stint }));
            return Err(refusal("state", format!("the guest's threads can not be started: {error}")));
        }
        stint.program.gate().open();
        self.enter(core, epoch, Life::Running, "runs here for the first time");
        Ok(())
    }

    fn stats(&self, core: &Core, standing: Standing) -> Stats {
        let program = core.life.stint().map(|stint| stint.program.as_ref());
        Stats {
            standing,
            memory_bytes: self.host.ram.pages().bytes(),
            dirty_rate_asked: program.map_or(0, |p| p.options().dirty_rate_bytes_per_second),
            dirty_rate_achieved: program.map_or(0, Program::achieved),
            pages_written: program.map_or(0, |p| p.steps().iter().sum()),
            running_us: program.map_or(0, Program::running_us),
            tick: program.map_or(0, Program::tick),
            throttle_percent: self.host.throttle_percent.load(Ordering::Relaxed),
        }
    }

    /// How the runner stands; `None`: it has ended.
    fn standing(&self, core: &mut Core) -> Option<Standing> {
        if let Some(epoch) = core.life.settle() {
            tracing::info!(guest = %self.identity.guest, instance = %self.identity.instance, %epoch, "paused");
        }
        core.life.standing()
    }

    fn superseded(&self, attachment: Attachment) -> bool {
        self.attached.load(Ordering::Relaxed) != attachment.0
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl crate::server::Machine for Machine {
    fn attach(&self, stream: Arc<UnixStream>) -> Option<(Attachment, Hello)> {
        let mut core = self.lock();
        let standing = self.standing(&mut core)?;
        let attachment = Attachment(self.attached.fetch_add(1, Ordering::Relaxed) + 1);
        if let Some(older) = core.stream.replace(stream) {
            // It fails where the other end has gone already, which is as good.
            let _ = older.shutdown(Shutdown::Both);
        }
        let standing = match &core.life {
            Life::Pausing(stint) => {
                let (program, deadline) = (Arc::clone(&stint.program), Instant::now() + HELLO_PATIENCE);
                drop(core);
                program.gate().wait_still(|| Instant::now() >= deadline);
                self.standing(&mut self.lock())?
            }
            Life::Incoming(_) | Life::Running(_) | Life::Paused(_) | Life::Ended => standing,
        };
        Some((attachment, self.hello(standing)))
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let Descriptors { memory, uffd, pagemap } = &self.descriptors;
        vec![memory.as_fd(), uffd.as_fd(), pagemap.as_fd()]
    }

    fn execute(&self, attachment: Attachment, command: &Command, state: &mut Vec<u8>) -> Option<Outcome> {
        let mut core = self.lock();
        if self.superseded(attachment) {
            return None;
        }
        let standing = self.standing(&mut core)?;
        let answer = match decide(&standing, command) {
            Err(refused) => Err(refused),
            Ok(Action::Pause(epoch)) => return self.pause(core, attachment, epoch),
            Ok(Action::Verify) => return self.verify(core, attachment),
            Ok(Action::Stop) => return Some(stop(core)),
            Ok(action) => self.carry_out(&mut core, standing, action, state),
        };
        Some(answer.map_or_else(Outcome::Error, Outcome::Ok))
    }

    fn has_ended(&self) -> bool {
        matches!(self.lock().life, Life::Ended)
    }
}

fn save(core: &Core, state: &mut Vec<u8>) -> Result<Answer, Refusal> {
    let Some(stint) = core.life.stint() else { return Err(refusal("state", "there is no guest")) };
    match stint.program.state().encode() {
        Ok(bytes) => {
            *state = bytes;
            Ok(Answer::State { bytes: u32::try_from(state.len()).unwrap_or(u32::MAX) })
        }
        Err(error) => Err(refusal("format", format!("the state can not be written: {error}"))),
    }
}

fn stop(mut core: MutexGuard<'_, Core>) -> Outcome {
    let stint = core.life.stint().cloned();
    core.life = Life::Ended;
    drop(core);
    if let Some(stint) = stint {
        let deadline = Instant::now() + STOP_PATIENCE;
        stint.program.gate().end();
        stint.program.gate().wait_still(|| Instant::now() >= deadline);
    }
    Outcome::Ok(Answer::Done)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU8;

    use super::*;
    use crate::runner::ticks::TickFile;
    use crate::runner::workload::{Pattern, Workload, WorkloadOptions};
    use crate::server::Machine as _;
    use godwit_domain::PageCount;
    use godwit_memory::{Ram, uffd};

    const PAGES: PageCount = PageCount(64);

    /// An idle guest that runs under epoch 1, and its program.
    fn running(dir: &std::path::Path) -> (Machine, Arc<Program>) {
        let options = WorkloadOptions {
            memory: PAGES,
            working_set: PAGES,
            dirty_rate_bytes_per_second: 0,
            pattern: Pattern::Uniform,
            zero_percent: 0,
            compressible_percent: 0,
            threads: 1,
            seed: 1,
        };
        let node: NodeName = "node-a".parse().expect("a name");
        let memory = Memfd::create("test", PAGES).expect("memfd");
        let host = Host {
            ram: Arc::new(Ram::map(&memory).expect("map")),
            throttle_percent: Arc::new(AtomicU8::new(0)),
            ticks: Arc::new(Mutex::new(TickFile::open(dir, node.clone()).expect("ticks"))),
            tick_interval: Duration::from_millis(5),
        };
        let (uffd, _) = Userfaultfd::open_for_builtin().expect("userfaultfd");
        let pagemap = uffd::open_own_pagemap().expect("pagemap");
        let instance = InstanceId::from_random([1; 16]);
        let identity = Identity { guest: "vm1".parse().expect("a name"), instance, node };
        let machine = Machine::new(identity, Descriptors { memory, uffd, pagemap }, host);
        machine.hold_fresh(Program::new(Workload::new(options).expect("fits")));
        machine.start(&mut machine.lock(), Epoch(1)).expect("starts");
        let program = Arc::clone(&machine.lock().life.stint().expect("a guest").program);
        (machine, program)
    }

    fn attach(machine: &Machine) -> (Attachment, Standing) {
        let (stream, _) = UnixStream::pair().expect("sockets");
        let (attachment, hello) = machine.attach(Arc::new(stream)).expect("alive");
        (attachment, hello.standing)
    }

    fn standing(state: RunState, epoch: u64) -> Standing {
        Standing { state, epoch: Epoch(epoch), loaded: None }
    }

    fn ask(machine: &Machine, attachment: Attachment, command: &Command) -> Option<Outcome> {
        machine.execute(attachment, command, &mut Vec::new())
    }

    const PAUSE: Command = Command::Pause { epoch: Epoch(1) };
    const DONE: Option<Outcome> = Some(Outcome::Ok(Answer::Done));

    #[test]
    fn a_node_is_greeted_while_the_pause_of_another_waits_for_a_stuck_writer() {
        let dir = tempfile::tempdir().expect("folder");
        let (machine, program) = running(dir.path());
        let stuck = program.gate().enter().expect("it runs");
        let (first, _) = attach(&machine);
        std::thread::scope(|scope| {
            let pause = scope.spawn(|| ask(&machine, first, &PAUSE));
            while !stuck.must_leave() {
                std::thread::yield_now();
            }
            let (second, seen) = attach(&machine);
            assert_eq!(seen, standing(RunState::Running, 1), "its memory may still change");
            assert_eq!(pause.join().expect("ends"), None, "nobody is left to hear the answer");
            assert_eq!(ask(&machine, first, &Command::Resume { epoch: Epoch(9) }), None, "nor to ask");
            drop(stuck);
            assert_eq!(ask(&machine, second, &PAUSE), DONE);
            assert_eq!(attach(&machine).1, standing(RunState::Paused, 1));
        });
        program.gate().end();
    }

    #[test]
    fn a_resume_overtakes_a_pause_that_waits() {
        let dir = tempfile::tempdir().expect("folder");
        let (machine, program) = running(dir.path());
        let stuck = program.gate().enter().expect("it runs");
        let (first, _) = attach(&machine);
        std::thread::scope(|scope| {
            let pause = scope.spawn(|| ask(&machine, first, &PAUSE));
            while !stuck.must_leave() {
                std::thread::yield_now();
            }
            let (second, _) = attach(&machine);
            let refused = ask(&machine, second, &Command::Resume { epoch: Epoch(1) });
            assert!(matches!(refused, Some(Outcome::Error(r)) if r.rule == "epoch"), "epoch 1 is sealed");
            assert_eq!(ask(&machine, second, &Command::Resume { epoch: Epoch(2) }), DONE);
            assert_eq!(pause.join().expect("ends"), None);
            assert_eq!(attach(&machine).1, standing(RunState::Running, 2));
        });
        assert!(!program.gate().is_still());
        drop(stuck);
        program.gate().end();
    }

    #[test]
    fn a_verification_is_called_off_by_the_next_connection() {
        let dir = tempfile::tempdir().expect("folder");
        let (machine, program) = running(dir.path());
        let stuck = program.gate().enter().expect("it runs");
        let (first, _) = attach(&machine);
        std::thread::scope(|scope| {
            let verify = scope.spawn(|| ask(&machine, first, &Command::Verify));
            while !stuck.must_leave() {
                std::thread::yield_now();
            }
            assert_eq!(attach(&machine).1, standing(RunState::Running, 1));
            assert_eq!(verify.join().expect("ends"), None);
        });
        assert!(!stuck.must_leave(), "the guest runs on");
        drop(stuck);
        program.gate().end();
    }

    #[test]
    fn a_stopped_runner_takes_no_connection_and_no_command() {
        let dir = tempfile::tempdir().expect("folder");
        let (machine, program) = running(dir.path());
        let (only, _) = attach(&machine);
        assert_eq!(ask(&machine, only, &Command::Stop), DONE);
        assert!(machine.has_ended() && program.gate().enter().is_none());
        assert_eq!(ask(&machine, only, &Command::Stats), None);
        assert!(machine.attach(Arc::new(UnixStream::pair().expect("sockets").0)).is_none());
    }
}
