//! A simulated world: three voters, a clock, links that lose, double and reorder, disks that forget and fail.
//!
//! ```text
//!   events in order of (time, number) ─▶ one voter's input ─▶ its turns ─▶ wire ─▶ later events
//!                                                    └──▶ checks, after every turn
//! ```
//!
//! Always true: everything comes from the seed; two runs of one seed give the same trace.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use godwit_control::driver::{Condition, Config, Driver, Outbox, ProposeError, Role, StartError, Status};
use godwit_control::envelope;
use godwit_control::group::NodeId;
use godwit_control::machine::StateMachine;
use godwit_control::memory_disk::{Fault, MemoryFolder};
use godwit_control::storage::DiskError;
use raft::eraftpb::MessageType;

use super::{Ledger, id, voters};

type Shared<T> = Arc<Mutex<Vec<T>>>;

fn drain<T>(shared: &Shared<T>) -> Vec<T> {
    std::mem::take(&mut *shared.lock().expect("not poisoned"))
}

/// A voter's wire, which checks what leaves against what is synced.
struct Wire {
    me: NodeId,
    folder: MemoryFolder,
    sent: Shared<(NodeId, NodeId, Vec<u8>)>,
}

impl Outbox for Wire {
    fn send(&self, to: NodeId, bytes: Vec<u8>) {
        assert!(bytes.len() <= envelope::MESSAGE_BYTES_MAX);
        let message = envelope::peek(&bytes).expect("a voter sends what can be read");
        self.folder.look(|synced| {
            let (term, vote) = (synced.hard.term, synced.hard.vote);
            // What a later term has overtaken before the sync binds nobody: this voter is out of the earlier one.
            if term > message.term {
                return;
            }
            match message.get_msg_type() {
                MessageType::MsgAppendResponse => {
                    assert_eq!(term, message.term, "acknowledged under a term before its sync");
                    let held = synced.last_index() >= message.index;
                    assert!(message.reject || held, "acknowledged {} before its sync", message.index);
                }
                MessageType::MsgRequestVoteResponse if !message.reject => {
                    assert_eq!((term, vote), (message.term, message.to), "a vote left before its sync");
                }
                MessageType::MsgRequestVote => {
                    assert_eq!(
                        (term, vote),
                        (message.term, self.me.get()),
                        "a candidacy left before its sync"
                    );
                }
                _ => {}
            }
        });
        self.sent.lock().expect("not poisoned").push((self.me, to, bytes));
    }
}

#[derive(Debug)]
enum Event {
    Tick(u64),
    Deliver { from: NodeId, to: NodeId, bytes: Vec<u8> },
    Turn(u64),
    Propose,
    Trouble,
    Start(u64),
    Room(u64),
}

/// A caller. One whose voter dies with him learns that nobody knows.
struct Waiting {
    number: u64,
    answers: Shared<(u64, Result<usize, ProposeError>)>,
}

impl Waiting {
    fn hear(&mut self, answer: Result<usize, ProposeError>) {
        self.answers.lock().expect("not poisoned").push((self.number, answer));
        self.answers = Shared::default();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.hear(Err(ProposeError::Unknown));
    }
}

/// What became of a proposed entry, by its number.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Waits,
    Applied,
    Refused,
    Unknown,
}

struct Voter {
    folder: MemoryFolder,
    driver: Option<Driver<Ledger>>,
    starts: u64,
    /// Entries of its machine that were compared with everyone's.
    compared: usize,
}

/// How often things happened that a test wants to have happened.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) applied: usize,
    pub(crate) unknown: usize,
    pub(crate) refused: usize,
    pub(crate) terms: u64,
    pub(crate) cuts: usize,
    pub(crate) failures: usize,
    pub(crate) full: usize,
    pub(crate) snapshots_sent: usize,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        self.applied += other.applied;
        self.unknown += other.unknown;
        self.refused += other.refused;
        self.terms += other.terms;
        self.cuts += other.cuts;
        self.failures += other.failures;
        self.full += other.full;
        self.snapshots_sent += other.snapshots_sent;
    }
}

pub(crate) struct World {
    rng: Rng,
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    numbered: u64,
    voters: BTreeMap<u64, Voter>,
    sent: Shared<(NodeId, NodeId, Vec<u8>)>,
    answers: Shared<(u64, Result<usize, ProposeError>)>,
    fates: Vec<Fate>,
    /// Which entry every voter applied at an index.
    agreed: BTreeMap<u64, Vec<u8>>,
    /// Links that carry nothing.
    cut: BTreeSet<(NodeId, NodeId)>,
    calm: bool,
    pub(crate) seen: Seen,
    /// A digest of everything that was delivered, in order.
    pub(crate) trace: u64,
}

/// How long trouble lasts, in ms.
const TROUBLED_MS: u64 = 12_000;
/// By when a calm world must have agreed on everything.
const CALM_MS: u64 = 20_000;

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: Rng::with_seed(seed),
            now: 0,
            events: BTreeMap::new(),
            numbered: 0,
            voters: BTreeMap::new(),
            sent: Shared::default(),
            answers: Shared::default(),
            fates: Vec::new(),
            agreed: BTreeMap::new(),
            cut: BTreeSet::new(),
            calm: false,
            seen: Seen::default(),
            trace: 0,
        };
        for n in 1..=3 {
            let voter = Voter { folder: MemoryFolder::new(&voters()), driver: None, starts: 0, compared: 0 };
            world.voters.insert(n, voter);
            world.start(n);
            let first = world.rng.u64(0..100);
            world.later(first, Event::Tick(n));
        }
        world.later(500, Event::Propose);
        world.later(1500, Event::Trouble);
        world
    }

    fn later(&mut self, after: u64, event: Event) {
        self.numbered += 1;
        self.events.insert((self.now + after, self.numbered), event);
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.now)
    }

    fn start(&mut self, n: u64) {
        let now = self.time();
        let voter = self.voters.get_mut(&n).expect("a voter");
        if voter.driver.is_some() {
            return;
        }
        voter.starts += 1;
        let mut config = Config::new(id(n), voters(), n * 1000 + voter.starts);
        config.snapshot_entries = 16;
        config.keep_entries = 4;
        config.propose_timeout = Duration::from_secs(2);
        config.disk_retry = Duration::from_millis(300);
        let outbox = Arc::new(Wire { me: id(n), folder: voter.folder.clone(), sent: Arc::clone(&self.sent) });
        let source = Box::new(voter.folder.clone());
        match Driver::start(config, Ledger::default(), source, outbox, now) {
            Ok(driver) => voter.driver = Some(driver),
            Err(StartError::Disk(DiskError::Io { .. })) => return self.later(200, Event::Start(n)),
            Err(error) => panic!("voter {n} does not start: {error}"),
        }
        self.after_input(n);
    }

    fn stop(&mut self, n: u64) {
        let voter = self.voters.get_mut(&n).expect("a voter");
        if voter.driver.take().is_some() {
            let survivors = self.rng.usize(0..=voter.folder.pending());
            voter.folder.cut_power(survivors);
            voter.folder.set_full(false);
            self.seen.cuts += 1;
        }
        // Whoever waited there knows nothing.
        self.hear_answers();
    }

    /// A turn, at once or a little later, together with what comes in until then.
    fn after_input(&mut self, n: u64) {
        if self.rng.u32(0..10) < 7 {
            return self.turn(n);
        }
        let after = self.rng.u64(1..20);
        self.later(after, Event::Turn(n));
        self.hear_answers();
    }

    /// One voter's turns, what it sent and answered, and all that must hold.
    fn turn(&mut self, n: u64) {
        let now = self.time();
        let Some(driver) = self.voters.get_mut(&n).and_then(|voter| voter.driver.as_mut()) else { return };
        while driver.turn(now) {}
        let view = driver.view();
        if let Condition::Crashed { why } = &view.condition {
            // Of nothing but the fault that was planned; somebody starts it again.
            assert!(why.contains("broken pipe"), "voter {n} died: {why}");
            self.check_log(n);
            self.stop(n);
            return self.later(200, Event::Start(n));
        }
        self.seen.terms = self.seen.terms.max(view.term);
        self.check_log(n);
        self.hear_answers();
        self.carry();
    }

    fn check_log(&mut self, n: u64) {
        let Some(voter) = self.voters.get_mut(&n) else { return };
        let Some(driver) = voter.driver.as_ref() else { return };
        let entries = &driver.machine().entries;
        // What was compared before stays; a restored state is compared from its beginning.
        let new = entries.len().checked_sub(voter.compared).filter(|new| *new < 10).unwrap_or(entries.len());
        voter.compared = entries.len();
        for (index, entry) in entries.iter().rev().take(new) {
            let agreed = self.agreed.entry(*index).or_insert_with(|| entry.clone());
            assert_eq!(agreed, entry, "voter {n} applied another entry at {index}");
        }
    }

    fn hear_answers(&mut self) {
        for (entry, answer) in drain(&self.answers) {
            let fate = match &answer {
                Ok(count) => {
                    self.check_acknowledged(entry, *count);
                    self.seen.applied += 1;
                    Fate::Applied
                }
                Err(ProposeError::Unknown) => {
                    self.seen.unknown += 1;
                    Fate::Unknown
                }
                Err(_) => {
                    self.seen.refused += 1;
                    Fate::Refused
                }
            };
            let slot = &mut self.fates[usize::try_from(entry).expect("64 bit")];
            assert_eq!(*slot, Fate::Waits, "a caller was answered twice");
            *slot = fate;
        }
    }

    /// An answer rests on a quorum's synced logs.
    fn check_acknowledged(&self, entry: u64, count: usize) {
        let bytes = entry.to_le_bytes();
        let index = self.agreed.iter().find(|(_, agreed)| ***agreed == bytes).map(|(index, _)| *index);
        let index = index.expect("an answered entry is applied");
        assert_eq!(self.agreed.range(..=index).count(), count, "the reply is another entry's");
        let holders = self.voters.values().filter(|voter| {
            voter.folder.look(|synced| {
                let state = synced.snapshot.as_ref().map_or(0, |snapshot| snapshot.get_metadata().index);
                state >= index
                    || synced.entries.iter().any(|entry| entry.index == index && *entry.data == bytes)
            })
        });
        assert!(holders.count() >= 2, "entry {index} was answered before a quorum had synced it");
    }

    /// Puts what was sent on its way: lost, doubled, late.
    fn carry(&mut self) {
        for (from, to, bytes) in drain(&self.sent) {
            let kind = envelope::peek(&bytes).expect("readable").get_msg_type();
            self.seen.snapshots_sent += usize::from(kind == MessageType::MsgSnapshot);
            if self.cut.contains(&(from, to)) || (!self.calm && self.rng.u32(0..100) < 5) {
                continue;
            }
            let copies = if !self.calm && self.rng.u32(0..100) < 5 { 2 } else { 1 };
            for _ in 0..copies {
                let slow = !self.calm && self.rng.u32(0..100) < 3;
                let after = if slow { self.rng.u64(50..1500) } else { self.rng.u64(1..8) };
                self.later(after, Event::Deliver { from, to, bytes: bytes.clone() });
            }
        }
    }

    fn propose(&mut self) {
        let number = self.fates.len() as u64;
        self.fates.push(Fate::Waits);
        let now = self.time();
        let leads = |voter: &Voter| voter.driver.as_ref().is_some_and(|d| d.view().role == Role::Leader);
        let leader = self.voters.iter().find(|(_, voter)| leads(voter)).map(|(n, _)| *n);
        let n = leader.filter(|_| self.rng.u32(0..10) > 0).unwrap_or_else(|| self.rng.u64(1..=3));
        let mut waiting = Waiting { number, answers: Arc::clone(&self.answers) };
        match self.voters.get_mut(&n).and_then(|voter| voter.driver.as_mut()) {
            Some(driver) => {
                let caller = Box::new(move |answer| waiting.hear(answer));
                driver.propose(number.to_le_bytes().to_vec(), now, caller);
                self.after_input(n);
            }
            None => waiting.hear(Err(ProposeError::Halted { why: "not running".to_owned() })),
        }
    }

    /// Something goes wrong somewhere.
    fn trouble(&mut self) {
        let n = self.rng.u64(1..=3);
        match self.rng.u32(0..10) {
            0..=2 => {
                self.stop(n);
                let after = self.rng.u64(0..2500);
                self.later(after, Event::Start(n));
            }
            3 => {
                for n in 1..=3 {
                    self.stop(n);
                    let after = self.rng.u64(0..800);
                    self.later(after, Event::Start(n));
                }
            }
            4 | 5 => {
                let other = id(n % 3 + 1);
                self.cut.insert((id(n), other));
                if self.rng.bool() {
                    self.cut.insert((other, id(n)));
                }
            }
            6 => self.cut.clear(),
            7 => {
                self.voters[&n].folder.set_full(true);
                self.seen.full += 1;
                let after = self.rng.u64(100..3000);
                self.later(after, Event::Room(n));
            }
            _ => {
                let kinds = [ErrorKind::StorageFull, ErrorKind::BrokenPipe];
                let kind = kinds[self.rng.usize(0..2)];
                let fault = Fault { calls: self.rng.u32(0..6), kind, survivors: self.rng.usize(0..3) };
                self.voters[&n].folder.plan(fault);
                self.seen.failures += 1;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.time();
        match event {
            Event::Tick(n) => {
                if let Some(driver) = self.voters.get_mut(&n).and_then(|voter| voter.driver.as_mut()) {
                    driver.tick(now);
                    self.after_input(n);
                }
                let jitter = self.rng.u64(95..106);
                self.later(jitter, Event::Tick(n));
            }
            Event::Deliver { from, to, bytes } => {
                self.trace =
                    self.trace.rotate_left(5) ^ self.now ^ bytes.iter().map(|b| u64::from(*b)).sum::<u64>();
                if let Some(driver) = self.voters.get_mut(&to.get()).and_then(|voter| voter.driver.as_mut()) {
                    driver.receive(from, &bytes).expect("a voter's message is taken");
                    self.after_input(to.get());
                }
            }
            Event::Propose => {
                if !self.calm {
                    self.propose();
                    let after = self.rng.u64(5..120);
                    self.later(after, Event::Propose);
                }
            }
            Event::Trouble => {
                if !self.calm {
                    self.trouble();
                    let after = self.rng.u64(50..1500);
                    self.later(after, Event::Trouble);
                }
            }
            Event::Turn(n) => self.turn(n),
            Event::Start(n) => self.start(n),
            Event::Room(n) => self.voters[&n].folder.set_full(false),
        }
    }

    fn run_while(&mut self, mut more: impl FnMut(&mut Self) -> bool) {
        while more(self) {
            let ((now, _), event) = self.events.pop_first().expect("voters tick for ever");
            self.now = now;
            self.handle(event);
        }
    }

    /// Trouble, then calm; in the end everyone has the same, and nothing that was acknowledged is lost.
    pub(crate) fn run(&mut self) {
        self.run_while(|world| world.now < TROUBLED_MS);
        self.calm = true;
        self.cut.clear();
        for n in 1..=3 {
            self.voters[&n].folder.set_full(false);
            self.start(n);
        }
        let deadline = self.now + CALM_MS;
        self.run_while(|world| {
            assert!(world.now < deadline, "no agreement within {CALM_MS} ms of calm: {:#?}", world.status());
            !world.is_settled()
        });
        let ledgers: Vec<&Ledger> =
            self.voters.values().filter_map(|voter| voter.driver.as_ref()).map(Driver::machine).collect();
        assert!(ledgers.windows(2).all(|pair| pair[0].snapshot() == pair[1].snapshot()));
        // The same log, twice: equal states.
        let mut again = Ledger::default();
        for (index, entry) in &self.agreed {
            again.apply(*index, entry);
        }
        assert_eq!(again.snapshot(), ledgers[0].snapshot());
        for (number, fate) in (0_u64..).zip(&self.fates) {
            let times =
                ledgers[0].entries.iter().filter(|(_, entry)| **entry == number.to_le_bytes()).count();
            match fate {
                Fate::Applied => assert_eq!(times, 1, "entry {number} was acknowledged"),
                Fate::Refused => assert_eq!(times, 0, "entry {number} was refused"),
                Fate::Unknown => assert!(times <= 1, "entry {number} was applied twice"),
                Fate::Waits => panic!("the caller of entry {number} still waits"),
            }
        }
    }

    fn status(&self) -> Vec<Status> {
        let drivers = self.voters.values().filter_map(|voter| voter.driver.as_ref());
        drivers.map(|driver| driver.status(self.time())).collect()
    }

    fn is_settled(&self) -> bool {
        let status = self.status();
        let leader = status.iter().find(|status| status.view.role == Role::Leader);
        let Some(leader) = leader else { return false };
        status.len() == 3
            && status
                .iter()
                .all(|status| status.view.applied == leader.log.1 && status.view.term == leader.view.term)
            && status.iter().all(|status| status.quorum_age.is_some_and(|age| age < Duration::from_secs(1)))
            && !self.fates.contains(&Fate::Waits)
    }
}
