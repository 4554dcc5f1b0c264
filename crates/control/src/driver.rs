//! One voter's whole life: engine, disk, state machine and promises. No clock, no thread, no socket.
//!
//! ```text
//!   Running ── the disk is full ─▶ Waiting ── it opens, and there is room ─▶ Running
//!      ├── raft or the state machine panics, the disk fails or lies ─▶ Crashed
//!      └── its own removal is applied, and the others know ── a leader hands on first ─▶ Left
//! ```
//!
//! Always true:
//! - a voter that waits for room is silent: no vote, no acknowledgement, no heartbeat, so another leads;
//! - after waiting it goes on from what the disk holds, as after a crash. Its state machine was never ahead of the
//!   synced log, so it stays as it is;
//! - who is in the group is what was applied, wherever that came from: the disk's founders, a snapshot, an entry;
//! - an answer to a caller rests on a synced entry that a quorum has; when nobody can know, it says so.

mod hands;
mod proposing;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use godwit_domain::planted;
use raft::StateRole;

use crate::engine::{Engine, EngineConfig, EngineError};
use crate::envelope::MessageError;
pub use crate::founding::Image;
use crate::group::{NodeId, Voters};
use crate::machine::{RestoreError, StateMachine};
use crate::members::{Members, Standing};
use crate::promises::Promises;
use crate::proofs::Proofs;
pub use crate::status::{Condition, ProposeError, Role, StartError, Status, View};
use crate::status::{chain, panic_message};
use crate::storage::{Disk, DiskError, DiskSource, Stored};
use hands::{Hands, save_snapshot};

/// Readies in one turn. One is usual; entries to apply come in goes of 1 MiB, and between them peers are heard.
const READIES_PER_TURN_MAX: usize = 8;
/// Ticks between two questions to the quorum: the pre-flight before a switchover wants an answer of the last second.
const TICKS_PER_QUESTION: u64 = 3;
/// How long a caller waits for proof that he looks at the present: an election may be under way.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions without an answer that are remembered. Older ones would say nothing that a newer answer does not.
const QUESTIONS_MAX: usize = 16;
/// Ticks for which a voter that was removed stays, though the others know that it was, and a leader tries to hand on: an
/// election's timeout.
const HANDING_ON_TICKS: u64 = 10;

/// Where messages to peers go. Never blocks; may drop, and raft repeats.
pub trait Outbox: Send + Sync {
    /// Sends these bytes, at most [`crate::envelope::MESSAGE_BYTES_MAX`], to that voter.
    fn send(&self, to: NodeId, bytes: Vec<u8>);
}

/// How a voter lives.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which voter, and how it elects.
    pub engine: EngineConfig,
    /// Who has founded the group, as this node thinks. What the disk says is in force.
    pub founders: Members,
    /// Applied entries after which the state is stored and the log cut.
    pub snapshot_entries: u64,
    /// Applied entries that stay in the log at that, for voters that are a little behind.
    pub keep_entries: u64,
    /// How long a caller waits.
    pub propose_timeout: Duration,
    /// How long a full disk is left alone before it is opened again.
    pub disk_retry: Duration,
}

impl Config {
    /// The usual numbers, for ticks of 100 ms. `seed` is one that no earlier start of this voter had.
    pub fn new(id: NodeId, voters: Voters, seed: u64) -> Self {
        Self::joining(id, Members::founding(&voters), seed)
    }

    /// The same, of a member of a group that these have founded.
    pub fn joining(id: NodeId, founders: Members, seed: u64) -> Self {
        Self {
            engine: EngineConfig { id, heartbeat_ticks: 2, election_ticks: 10, seed },
            founders,
            snapshot_entries: 4096,
            keep_entries: 1024,
            propose_timeout: Duration::from_secs(5),
            disk_retry: Duration::from_secs(1),
        }
    }
}

/// How a caller is answered.
pub type Caller<R> = Box<dyn FnOnce(Result<R, ProposeError>) + Send>;
/// How whoever wants proof is answered.
pub type Prover = Box<dyn FnOnce(bool) + Send>;

struct Running {
    engine: Engine,
    disk: Box<dyn Disk>,
}

enum Life {
    Running(Box<Running>),
    Waiting { error: DiskError, retry_at: Duration },
    Crashed { why: String },
    Left,
}

/// See the module. Time is an argument: how long ago the caller's world began.
pub struct Driver<S: StateMachine> {
    config: Config,
    source: Box<dyn DiskSource>,
    life: Life,
    hands: Hands<S>,
    ticks: u64,
    /// Questions to the quorum so far.
    questions: u64,
    /// The newest one, as long as it has not left.
    unsent_question: Option<u64>,
    /// Since this tick the others know that it was removed from their group; and it led then.
    known_since: Option<(u64, bool)>,
}

impl<S: StateMachine> fmt::Debug for Driver<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("id", &self.config.engine.id)
            .field("view", &self.view())
            .finish_non_exhaustive()
    }
}

impl<S: StateMachine> Driver<S> {
    /// Starts a voter with an empty state machine. A disk that is full now is waited for.
    pub fn start(
        config: Config,
        machine: S,
        source: Box<dyn DiskSource>,
        outbox: Arc<dyn Outbox>,
        now: Duration,
    ) -> Result<Self, StartError> {
        let hands = Hands {
            me: config.engine.id,
            machine,
            applied: 0,
            members: Arc::new(config.founders.clone()),
            removed: None,
            promises: Promises::default(),
            proofs: Proofs::default(),
            outbox,
            snapshot_from: 0,
            asked: BTreeMap::new(),
            answered: None,
        };
        let life = Life::Crashed { why: "it has not started".to_owned() };
        let mut driver = Self {
            config,
            source,
            life,
            hands,
            ticks: 0,
            questions: 0,
            unsent_question: None,
            known_since: None,
        };
        match driver.open() {
            Ok(running) => driver.life = Life::Running(running),
            Err(StartError::Disk(error @ DiskError::Full { .. })) => driver.wait(error, now),
            Err(error) => return Err(error),
        }
        Ok(driver)
    }

    /// Opens the disk, and an engine on what it holds. The state machine stays, unless a snapshot is ahead of it.
    fn open(&mut self) -> Result<Box<Running>, StartError> {
        match catch_unwind(AssertUnwindSafe(|| self.begin())) {
            Ok(begun) => begun,
            Err(panic) => Err(StartError::Begin(panic_message(panic.as_ref()))),
        }
    }

    fn begin(&mut self) -> Result<Box<Running>, StartError> {
        let mut disk = self.source.open()?;
        let stored = disk.load()?;
        if stored.founders != self.config.founders {
            tracing::warn!(stored = ?stored.founders, "the disk's founders are in force, not the config's");
        }
        self.catch_up(&stored)?;
        let members = Arc::clone(&self.hands.members);
        let engine = Engine::start(&self.config.engine, stored, self.hands.applied, members)
            .map_err(|error| StartError::Begin(error.to_string()))?;
        Ok(Box::new(Running { engine, disk }))
    }

    fn catch_up(&mut self, stored: &Stored) -> Result<(), StartError> {
        let snapshot = stored.snapshot.as_ref();
        let index = snapshot.map_or(0, |snapshot| snapshot.get_metadata().index);
        if let Some(snapshot) = snapshot.filter(|_| index > self.hands.applied) {
            let (members, state) = Members::decode(snapshot.get_data()).map_err(RestoreError::new)?;
            self.hands.machine.restore(index, state)?;
            self.hands.applied = index;
            self.hands.members = Arc::new(members);
        } else if self.hands.applied == 0 {
            self.hands.members = Arc::new(stored.founders.clone());
        }
        if stored.last_index() < self.hands.applied {
            let what = format!(
                "its last entry is {}, and {} were applied: synced entries are lost",
                stored.last_index(),
                self.hands.applied
            );
            return Err(DiskError::Damaged { place: "the log".to_owned(), what }.into());
        }
        Ok(())
    }

    /// Takes no part until there is room.
    fn wait(&mut self, error: DiskError, now: Duration) {
        tracing::error!(error = chain(&error), "this voter takes no part until there is room");
        self.life = Life::Waiting { error, retry_at: now + self.config.disk_retry };
        self.hands.part();
    }

    fn crash(&mut self, why: String) {
        tracing::error!(why, "this voter is dead until its process is started again");
        self.life = Life::Crashed { why };
        self.hands.part();
    }

    /// Runs something of raft or of the state machine, whose panics are this voter's death.
    fn guarded<T>(&mut self, run: impl FnOnce(&mut Running, &mut Hands<S>) -> T) -> Option<T> {
        let Life::Running(running) = &mut self.life else { return None };
        let done = catch_unwind(AssertUnwindSafe(|| run(running, &mut self.hands)));
        done.map_err(|panic| self.crash(panic_message(panic.as_ref()))).ok()
    }

    /// A tick has passed.
    pub fn tick(&mut self, now: Duration) {
        self.ticks += 1;
        self.guarded(|running, _| running.engine.tick());
        if self.hands.removed.is_some() {
            self.leave();
        }
        if self.ticks.is_multiple_of(TICKS_PER_QUESTION) {
            self.ask_quorum(now);
        }
        Hands::<S>::unknown(self.hands.promises.expire(now));
        self.hands.proofs.expire(now).into_iter().for_each(|caller| caller(false));
        if matches!(self.life, Life::Waiting { retry_at, .. } if retry_at <= now) {
            self.reopen(now);
        }
    }

    fn ask_quorum(&mut self, now: Duration) -> u64 {
        self.questions += 1;
        let question = self.questions;
        self.unsent_question = Some(question);
        self.guarded(|running, hands| {
            if hands.asked.len() >= QUESTIONS_MAX {
                // The oldest stays: its answer is the next to come, however many are asked meanwhile.
                let asked = std::mem::take(&mut hands.asked);
                hands.asked = asked.into_iter().step_by(2).collect();
            }
            hands.asked.insert(question, now);
            running.engine.ask_quorum(question);
        });
        question
    }

    fn reopen(&mut self, now: Duration) {
        match self.open() {
            Ok(running) => {
                tracing::info!("the disk has room again: this voter takes part");
                self.life = Life::Running(running);
            }
            Err(StartError::Disk(still)) if still.may_pass() => {
                tracing::warn!(error = chain(&still), "the disk is not ready yet");
                if let Life::Waiting { retry_at, .. } = &mut self.life {
                    *retry_at = now + self.config.disk_retry;
                }
            }
            Err(error) => self.crash(chain(&error)),
        }
    }

    /// A peer sent this. A voter that takes no part hears nothing.
    pub fn receive(&mut self, from: NodeId, bytes: &[u8]) -> Result<(), MessageError> {
        self.guarded(|running, _| running.engine.step(from, bytes)).unwrap_or(Ok(()))
    }

    /// Asks that another voter leads from now on. Nothing happens unless this one leads and the other answers.
    pub fn transfer(&mut self, to: NodeId) {
        self.guarded(|running, _| running.engine.transfer(to));
    }

    /// The same, whoever answers and has most.
    pub fn hand_on(&mut self) {
        self.guarded(|running, _| running.engine.pass_on());
    }

    /// Asks for proof, of a voter that leads, that whoever looks at what is applied after `caller` was told `true` sees
    /// everything that was agreed before now. `false`: it does not lead, or no quorum answers in time.
    pub fn prove(&mut self, now: Duration, caller: Prover) {
        let (leads, stale) = (self.view().role == Role::Leader, planted::is_on("stale-read"));
        if stale || !leads || !self.hands.proofs.has_room() {
            return caller(stale && leads);
        }
        // One that has not left yet is asked for him too. Those that are asked from time to time make up for lost ones.
        let question = self.unsent_question.unwrap_or_else(|| self.ask_quorum(now));
        self.hands.proofs.want(question, now + PROOF_TIMEOUT, caller);
    }

    /// Asks to lead without waiting for a timeout.
    pub fn campaign(&mut self) {
        self.guarded(|running, _| running.engine.campaign());
    }

    /// This voter was removed. It stays until the others know that: by its voice they may have to find out. Then it hands the
    /// leadership on if it has it, and takes no part any more. `true`: something is to be sent.
    fn leave(&mut self) -> bool {
        let Some(index) = self.hands.removed else { return false };
        let leads = self.view().role == Role::Leader;
        if self.known_since.is_none() {
            let known = self.guarded(|running, _| running.engine.is_known(index));
            self.known_since = known.unwrap_or(true).then_some((self.ticks, leads));
        }
        let Some((since, led)) = self.known_since else { return false };
        let waits = self.ticks - since < HANDING_ON_TICKS;
        if leads && waits {
            self.guarded(|running, _| running.engine.pass_on());
            return true;
        }
        if waits && !led {
            return false;
        }
        tracing::info!("this voter was removed from the control group, and leaves");
        self.life = Life::Left;
        self.hands.part();
        false
    }

    /// Does what there is to do; `true`: there is more.
    pub fn turn(&mut self, now: Duration) -> bool {
        self.unsent_question = None;
        let (every, keep) = (self.config.snapshot_entries, self.config.keep_entries);
        let done = self.guarded(|running, hands| -> Result<bool, EngineError> {
            for _ in 0..READIES_PER_TURN_MAX {
                if !running.engine.has_ready() {
                    if hands.removed.is_none()
                        && running.engine.snapshot_is_due(every)
                        && hands.applied >= hands.snapshot_from
                    {
                        save_snapshot(running, hands, every, keep)?;
                    }
                    return Ok(false);
                }
                running.engine.ready(running.disk.as_mut(), hands)?;
            }
            Ok(true)
        });
        match done {
            None => false,
            Some(Ok(more)) => {
                let view = self.view();
                if view.role == Role::Leader {
                    Hands::<S>::unknown(self.hands.promises.led(Some(view.term)));
                } else {
                    self.hands.part();
                }
                let first = self.known_since.is_none();
                let leaves = self.hands.removed.is_some() && (first || view.role != Role::Leader);
                if leaves { self.leave() || more } else { more }
            }
            Some(Err(EngineError::Disk(error))) if error.may_pass() => {
                self.wait(error, now);
                false
            }
            Some(Err(error)) => {
                self.crash(chain(&error));
                false
            }
        }
    }

    /// The replicated state.
    pub fn machine(&self) -> &S {
        &self.hands.machine
    }

    /// The whole state as it is now, with who is in the group. `None`: this voter takes no part, or its state can not be
    /// written.
    pub fn image(&self) -> Option<Image> {
        let Life::Running(running) = &self.life else { return None };
        let position = running.engine.position(self.hands.applied)?;
        let machine = &self.hands.machine;
        let state = catch_unwind(AssertUnwindSafe(|| machine.snapshot())).ok()?;
        Some(Image { position, members: Arc::clone(&self.hands.members), state })
    }

    /// How long before `now` a quorum was asked that has answered since.
    pub fn quorum_age(&self, now: Duration) -> Option<Duration> {
        self.hands.answered.map(|asked| now.saturating_sub(asked))
    }

    /// What whoever looks on is told.
    pub fn view(&self) -> View {
        let applied = self.hands.applied;
        let members = Arc::clone(&self.hands.members);
        let halted = |condition| View {
            role: Role::Halted,
            term: 0,
            leader: None,
            applied,
            members: Arc::clone(&members),
            condition,
        };
        match &self.life {
            Life::Running(running) => {
                let (term, role) = running.engine.role();
                let role = match role {
                    StateRole::Follower => Role::Follower,
                    StateRole::PreCandidate => Role::PreCandidate,
                    StateRole::Candidate => Role::Candidate,
                    StateRole::Leader => Role::Leader,
                };
                let (leader, condition) = (running.engine.leader(), Condition::Running);
                View { role, term, leader, applied, members, condition }
            }
            Life::Waiting { error, .. } => halted(Condition::DiskFull { error: chain(error) }),
            Life::Crashed { why } => halted(Condition::Crashed { why: why.clone() }),
            Life::Left => halted(Condition::Removed),
        }
    }

    /// Everything.
    pub fn status(&self, now: Duration) -> Status {
        let (committed, log, standing) = match &self.life {
            Life::Running(running) => {
                (running.engine.committed(), running.engine.log_range(), running.engine.standing())
            }
            Life::Waiting { .. } | Life::Crashed { .. } | Life::Left => {
                (self.hands.applied, (0, 0), Standing::default())
            }
        };
        Status {
            id: self.config.engine.id,
            standing,
            view: self.view(),
            committed,
            log,
            waiting: self.hands.promises.count(),
            quorum_age: self.quorum_age(now),
        }
    }
}
