//! Three voters and a clock that a test turns: messages arrive at once and in order, unless a test cuts a voter off.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_control::driver::{Config, Driver, Outbox, ProposeError, Role, StartError, Status};
use godwit_control::group::{NodeId, Voters};
use godwit_control::members::Wanted;
use godwit_control::storage::DiskSource;

use super::{Ledger, id, voters};

type Sent = Arc<Mutex<VecDeque<(NodeId, NodeId, Vec<u8>)>>>;

struct Wire {
    me: NodeId,
    sent: Sent,
}

impl Outbox for Wire {
    fn send(&self, to: NodeId, bytes: Vec<u8>) {
        self.sent.lock().expect("not poisoned").push_back((self.me, to, bytes));
    }
}

/// An answer, once there is one.
pub(crate) type Answer = Arc<Mutex<Option<Result<usize, ProposeError>>>>;

pub(crate) fn heard(answer: &Answer) -> Option<Result<usize, ProposeError>> {
    answer.lock().expect("not poisoned").clone()
}

pub(crate) struct Group {
    pub(crate) now: Duration,
    pub(crate) drivers: BTreeMap<u64, Driver<Ledger>>,
    /// Voters that nobody hears and who hear nobody.
    pub(crate) cut_off: BTreeSet<u64>,
    /// Messages that were carried, by sender.
    pub(crate) carried: BTreeMap<u64, usize>,
    /// Those messages, by sender and to whom.
    pub(crate) kept: Vec<(NodeId, NodeId, Vec<u8>)>,
    config: fn(&mut Config),
    sent: Sent,
    starts: u64,
}

impl Group {
    pub(crate) fn new(config: fn(&mut Config)) -> Self {
        Self {
            now: Duration::ZERO,
            drivers: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            carried: BTreeMap::new(),
            kept: Vec::new(),
            config,
            sent: Sent::default(),
            starts: 0,
        }
    }

    pub(crate) fn start(&mut self, n: u64, source: impl DiskSource + 'static) -> Result<(), StartError> {
        self.start_among(n, voters(), source)
    }

    /// The same, in a group that these have founded.
    pub(crate) fn start_among(
        &mut self,
        n: u64,
        founders: Voters,
        source: impl DiskSource + 'static,
    ) -> Result<(), StartError> {
        self.starts += 1;
        let mut config = Config::new(id(n), founders, self.starts);
        (self.config)(&mut config);
        let outbox = Arc::new(Wire { me: id(n), sent: Arc::clone(&self.sent) });
        let driver = Driver::start(config, Ledger::default(), Box::new(source), outbox, self.now)?;
        self.drivers.insert(n, driver);
        self.settle();
        Ok(())
    }

    /// Turns and messages until there is nothing left to do.
    pub(crate) fn settle(&mut self) {
        self.settle_until(|_| false);
    }

    /// The same, but no further than something is so; what is on its way then stays there.
    pub(crate) fn settle_until(&mut self, so: impl Fn(&Self) -> bool) {
        loop {
            for driver in self.drivers.values_mut() {
                while driver.turn(self.now) {}
            }
            if so(self) {
                return;
            }
            let next = self.sent.lock().expect("not poisoned").pop_front();
            let Some((from, to, bytes)) = next else { return };
            if self.cut_off.contains(&from.get()) || self.cut_off.contains(&to.get()) {
                continue;
            }
            *self.carried.entry(from.get()).or_default() += 1;
            self.kept.push((from, to, bytes.clone()));
            if let Some(driver) = self.drivers.get_mut(&to.get()) {
                driver.receive(from, &bytes).expect("a voter's message is taken");
            }
        }
    }

    pub(crate) fn tick(&mut self) {
        self.now += Duration::from_millis(100);
        for driver in self.drivers.values_mut() {
            driver.tick(self.now);
        }
        self.settle();
    }

    /// Time passes until something is so; not longer than a minute.
    pub(crate) fn until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        for _ in 0..600 {
            if so(self) {
                return;
            }
            self.tick();
        }
        let status: Vec<_> = self.drivers.keys().map(|n| self.status(*n)).collect();
        panic!("within a minute not: {what}\n{status:#?}");
    }

    pub(crate) fn status(&self, n: u64) -> Status {
        self.drivers[&n].status(self.now)
    }

    /// Who leads, among those that are not cut off.
    pub(crate) fn leader(&self) -> Option<u64> {
        let heard = self.drivers.iter().filter(|(n, _)| !self.cut_off.contains(n));
        heard
            .map(|(n, driver)| (*n, driver.view()))
            .find(|(_, view)| view.role == Role::Leader)
            .map(|(n, _)| n)
    }

    pub(crate) fn elect(&mut self, n: u64) {
        self.drivers.get_mut(&n).expect("runs").campaign();
        self.settle();
        self.until("the chosen one leads", |group| group.leader() == Some(n));
    }

    pub(crate) fn propose(&mut self, n: u64, entry: &[u8]) -> Answer {
        let answer = Answer::default();
        let slot = Arc::clone(&answer);
        let caller = Box::new(move |outcome| *slot.lock().expect("not poisoned") = Some(outcome));
        self.drivers.get_mut(&n).expect("runs").propose(entry.to_vec(), self.now, caller);
        self.settle();
        answer
    }

    /// Asks voter `n` for a change of the group.
    pub(crate) fn change(&mut self, n: u64, wanted: &Wanted, entry: &[u8]) -> Answer {
        let answer = Answer::default();
        let slot = Arc::clone(&answer);
        let caller = Box::new(move |outcome| *slot.lock().expect("not poisoned") = Some(outcome));
        self.drivers.get_mut(&n).expect("runs").change(wanted, entry.to_vec(), self.now, caller);
        self.settle();
        answer
    }

    /// The same, until it is agreed, whoever leads meanwhile.
    pub(crate) fn make(&mut self, wanted: &Wanted) {
        for _ in 0..600 {
            let settled = |group: &Self| {
                let leader = group.leader()?;
                let status = group.status(leader);
                let members = status.view.members;
                let done = match wanted {
                    Wanted::Add(name) => members.named(name).is_some(),
                    Wanted::Promote(name) => members.named(name).is_some_and(|(_, member)| member.votes),
                    Wanted::Remove(name) => members.named(name).is_none(),
                };
                Some((leader, done))
            };
            match settled(self) {
                Some((_, true)) => return,
                Some((leader, false)) => drop(self.change(leader, wanted, b"")),
                None => {}
            }
            self.tick();
        }
        panic!("within a minute not: {wanted:?}: {:?}", self.leader().map(|leader| self.status(leader)));
    }

    /// Asks voter `n` for proof that it looks at the present; nothing is carried yet.
    pub(crate) fn prove(&mut self, n: u64) -> Arc<Mutex<Option<bool>>> {
        let answer = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&answer);
        let caller = Box::new(move |is_proven| *slot.lock().expect("not poisoned") = Some(is_proven));
        self.drivers.get_mut(&n).expect("runs").prove(self.now, caller);
        answer
    }

    /// Entries that voter `n` has applied.
    pub(crate) fn ledger(&self, n: u64) -> &[(u64, Vec<u8>)] {
        &self.drivers[&n].machine().entries
    }

    pub(crate) fn all_equal(&self) -> bool {
        let mut ledgers = self.drivers.keys().map(|n| self.ledger(*n));
        let first = ledgers.next().unwrap_or_default();
        ledgers.all(|ledger| ledger == first)
    }
}
