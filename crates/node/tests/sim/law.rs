//! What must hold, whatever happens. Nothing here looks at how the product comes to it. Of the group itself: `grouplaw`.
//!
//! ```text
//!   every voter's applied entries ─▶ one log ─▶ a registry of our own, entry by entry ─▶ what it says is the truth
//!   runners ────────────────────────────────────────────────────────────────────────────▶ is compared with it
//! ```
//!
//! | law | in words |
//! |---|---|
//! | one log | no voter applies another entry at an index, one twice, or one fewer; equal logs make equal states |
//! | one leader | of a term |
//! | nothing lost | what was acknowledged stands in the log as it was answered, and in every later leader's state |
//! | no lie | what was said not to be taken is never agreed |
//! | no stale look | who was told that he sees the present has applied all that was agreed when he asked |
//! | S1, S5 | at most one running copy; it has a licence, and the guest is not declared lost |
//! | S2 | no copy runs that is older than one that has run, but for an operator's rollback |
//! | S3 | a copy starts under the epoch after the one that its complete `Final` has sealed |
//! | L2 | a guest is lost only with a runner of its that died |
//! | S4 | no grant beyond a limit, counted here; permits are taken by an admission alone; what is over stays so |

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use godwit_control::{Role, Voters};
use godwit_domain::agent::Arrived;
use godwit_domain::ownership::{Attempt, Life, Permits, Phase};
use godwit_domain::registry::{Command, Guest, GuestUid, Registry, Stamped};
use godwit_domain::{Epoch, InstanceId, MigrationId};
use godwit_wire::log;

use crate::cover::Met;
use crate::grouplaw::Group;
use crate::host::{Process, short};
use crate::watched::{Answer, Seen};
use crate::world::{At, World};

pub(crate) type Outcome = Result<(), godwit_domain::registry::Refusal>;

/// See the module.
pub(crate) struct Law {
    /// What was agreed at each index, and what became of it.
    agreed: BTreeMap<u64, (Arc<[u8]>, Outcome)>,
    /// Where each entry stands.
    places: BTreeMap<u64, Vec<u64>>,
    /// The last index that anybody has applied.
    pub(crate) top: u64,
    pub(crate) truth: Registry,
    /// Who is in the control group.
    pub(crate) group: Group,
    /// How far each voter's state is.
    last: Vec<Option<u64>>,
    leaders: BTreeMap<u64, At>,
    licences: BTreeSet<(InstanceId, Epoch)>,
    ages: BTreeMap<GuestUid, u64>,
    over: BTreeMap<MigrationId, &'static str>,
    held: BTreeSet<MigrationId>,
    /// Proposals under way: a digest of each.
    proposed: BTreeMap<u64, u64>,
    /// Entries of which it was said that they were not proposed.
    not_taken: BTreeSet<u64>,
    /// Runners that died by themselves or with their host.
    pub(crate) dead: BTreeSet<InstanceId>,
    /// Requests of operators that were acknowledged, and what was agreed by then.
    promised: BTreeMap<(String, u64), (u64, Outcome)>,
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl Law {
    pub(crate) fn new(machines: usize, founders: &Voters) -> Self {
        Self {
            agreed: BTreeMap::new(),
            places: BTreeMap::new(),
            top: 0,
            truth: Registry::default(),
            group: Group::new(founders),
            last: vec![None; machines],
            leaders: BTreeMap::new(),
            licences: BTreeSet::new(),
            ages: BTreeMap::new(),
            over: BTreeMap::new(),
            held: BTreeSet::new(),
            proposed: BTreeMap::new(),
            not_taken: BTreeSet::new(),
            dead: BTreeSet::new(),
            promised: BTreeMap::new(),
        }
    }

    pub(crate) fn forget_voter(&mut self, at: At) {
        self.last[at] = None;
    }

    pub(crate) fn started(&mut self, at: At) {
        self.last[at].get_or_insert(0);
    }

    /// How far a voter is; none: it does not take part.
    pub(crate) fn applied(&self, at: At) -> Option<u64> {
        self.last[at]
    }

    /// How many terms had a leader.
    pub(crate) fn terms(&self) -> u64 {
        self.leaders.len() as u64
    }

    pub(crate) fn leads(&mut self, at: At, term: u64) {
        let first = *self.leaders.entry(term).or_insert(at);
        assert_eq!(first, at, "one leader: two of term {term}");
    }

    // ---- what was proposed and answered --------------------------------------------------------------------

    pub(crate) fn proposed(&mut self, number: u64, entry: &[u8]) {
        self.proposed.insert(number, digest(entry));
        self.not_taken.remove(&digest(entry));
    }

    pub(crate) fn answered(&mut self, number: u64, answer: &Answer) {
        let Some(digest) = self.proposed.remove(&number) else { return };
        if let Answer::NotTaken = answer {
            let again = self.proposed.values().any(|other| *other == digest);
            if !again && !self.places.contains_key(&digest) {
                self.not_taken.insert(digest);
            }
            return;
        }
        let Answer::Agreed(outcome) = answer else { return };
        let places = self.places.get(&digest).map(Vec::as_slice).unwrap_or_default();
        let stands = places.iter().any(|at| self.agreed.get(at).is_some_and(|(_, is)| is == outcome));
        assert!(stands, "nothing lost: an entry was acknowledged as {outcome:?} and stands nowhere as that");
    }

    /// An operator's request was acknowledged.
    pub(crate) fn promises(&mut self, id: String, digest: u64, outcome: Outcome) {
        self.promised.insert((id, digest), (self.top, outcome));
    }

    /// The state of a leader that has proof of being the present one holds every acknowledged request.
    fn holds_promises(&self, registry: &Registry, must: u64) {
        for ((id, digest), (_, outcome)) in self.promised.iter().filter(|(_, (top, _))| *top <= must) {
            let answered = registry.requests.answer(id, *digest);
            let same = matches!(answered, Some(Ok(answered)) if answered.outcome == *outcome);
            assert!(
                same,
                "nothing lost: request {id} was acknowledged as {outcome:?}, and is not in the state"
            );
        }
    }

    // ---- runners -------------------------------------------------------------------------------------------

    pub(crate) fn licensed(&self, instance: InstanceId, epoch: Epoch) {
        let licensed = self.licences.contains(&(instance, epoch));
        assert!(licensed, "S1: {} runs under {epoch} without a licence", short(instance));
    }

    /// It runs for the first time.
    pub(crate) fn starts(
        &self,
        process: &Process,
        instance: InstanceId,
        epoch: Epoch,
        arrived: Option<&Arrived>,
    ) {
        let instance = short(instance);
        let Some(arrived) = arrived else { panic!("S3: {instance} starts with nothing in it") };
        if arrived.migration.is_some() {
            assert_eq!(arrived.sealed.next(), epoch, "S3: {instance} starts on another epoch's Final");
            let guest = self.truth.guests.get(&process.uid);
            let phase =
                guest.and_then(|guest| guest.ownership.attempt.as_ref()).map(|attempt| &attempt.phase);
            let stop_and_copy = matches!(
                phase,
                Some(Phase::HandedOver { mode: godwit_domain::ownership::Mode::StopAndCopy, .. })
            );
            assert!(process.whole || !stop_and_copy, "S3: {instance} starts without all of its pages");
        }
        self.is_newest(process, &instance);
    }

    /// It runs again after a pause.
    pub(crate) fn resumes(&self, process: &Process, instance: InstanceId, _: Epoch) {
        self.is_newest(process, &short(instance));
    }

    fn is_newest(&self, process: &Process, instance: &str) {
        let newest = self.ages.get(&process.uid).copied().unwrap_or_default();
        let rolled_back =
            self.truth.guests.get(&process.uid).is_some_and(|guest| guest.ownership.rollbacks > 0);
        assert!(
            process.age == newest || rolled_back,
            "S2: {instance} is an older copy, of {} where {newest} has run",
            process.age
        );
    }

    /// A guest runs, and so gets older.
    pub(crate) fn ages(&mut self, uid: GuestUid) -> u64 {
        let age = self.ages.entry(uid).or_default();
        *age += 1;
        *age
    }

    // ---- what is agreed ------------------------------------------------------------------------------------

    /// The first time that anybody applies an entry.
    fn learns(&mut self, index: u64, entry: &Arc<[u8]>, stamped: &Stamped) -> (Outcome, usize) {
        self.top = index;
        let limits = self.truth.limits();
        let applied = self.truth.apply(stamped.clone());
        let rung = applied.as_ref().map_or(0, BTreeSet::len);
        let outcome = applied.map(drop);
        self.agreed.insert(index, (Arc::clone(entry), outcome.clone()));
        self.places.entry(digest(entry)).or_default().push(index);
        assert!(!self.not_taken.contains(&digest(entry)), "no lie: entry {index} was said not to be taken");
        let admitted = match stamped.command.bare() {
            Command::Admit { migration, .. } if outcome.is_ok() => Some(migration.clone()),
            _ => None,
        };
        self.permits(admitted.as_ref(), limits);
        self.guests();
        (outcome, rung)
    }

    /// Counted here, migration by migration, whatever the registry counts.
    fn permits(&mut self, admitted: Option<&MigrationId>, limits: godwit_domain::registry::ParallelLimits) {
        let all = self.truth.guests.values().filter_map(|guest| guest.ownership.attempt.as_ref());
        let holding: Vec<(&Attempt, _, _)> = all
            .filter_map(|attempt| match &attempt.permits {
                Permits::Held { source, target } => Some((attempt, source, target)),
                Permits::None => None,
            })
            .collect();
        for (attempt, source, target) in &holding {
            let migration = &attempt.migration;
            let is_new = !self.held.contains(migration);
            assert!(
                !is_new || admitted == Some(migration),
                "S4: {migration} has permits without an admission"
            );
            if admitted != Some(migration) {
                continue;
            }
            let count = |of: &dyn Fn(&(&Attempt, &_, &_)) -> bool| holding.iter().filter(|it| of(it)).count();
            let (cluster, out) = (holding.len(), count(&|(_, from, _)| from == source));
            let within = count(&|(_, _, to)| to == target);
            assert!(cluster <= limits.cluster as usize, "S4: {cluster} run in the cluster, {limits:?}");
            assert!(out <= limits.outbound as usize, "S4: {out} leave {source}, {limits:?}");
            assert!(within <= limits.inbound as usize, "S4: {within} enter {target}, {limits:?}");
        }
        self.held = holding.iter().map(|(attempt, ..)| attempt.migration.clone()).collect();
    }

    fn guests(&mut self) {
        for guest in self.truth.guests.values() {
            let ownership = &guest.ownership;
            if let Some(owner) = ownership.owner() {
                self.licences.insert((owner.instance, ownership.epoch));
            }
            for attempt in attempts(guest) {
                let (name, migration) = (attempt.phase.name(), &attempt.migration);
                if let Some(was) = self.over.get(migration) {
                    assert_eq!(*was, name, "S4: {migration} was over");
                } else if attempt.phase.is_over() {
                    self.over.insert(migration.clone(), name);
                }
            }
            if let Life::Lost { last, .. } = &ownership.life {
                let name = short(last.instance);
                assert!(
                    self.dead.contains(&last.instance),
                    "L2: {} is lost and {name} did not die",
                    guest.name
                );
            }
            if let Some(attempt) = &ownership.attempt {
                let needs = !attempt.phase.is_over() && attempt.phase != Phase::Pending;
                let holds = attempt.permits != Permits::None;
                assert!(holds || !needs, "S4: {} is admitted and holds no permits", attempt.migration);
            }
        }
    }
}

fn attempts(guest: &Guest) -> impl Iterator<Item = &Attempt> {
    let kept = guest.finished.iter().map(|finished| &finished.attempt);
    kept.chain(guest.ownership.attempt.as_ref())
}

impl World {
    /// A voter has applied an entry, or was given a state.
    pub(crate) fn applied(&mut self, at: At, seen: Seen) {
        let last = self.law.last[at].unwrap_or_default();
        let (index, entry, outcome) = match seen {
            Seen::Applied { index, entry, outcome } => (index, entry, outcome),
            Seen::Restored { index } => {
                self.law.last[at] = Some(index);
                self.cover.restored += 1;
                return self.note(|world| format!("{}: restored to {index}", world.machines[at].name));
            }
        };
        assert!(index > last, "one log: {} applies entry {index} after {last}", self.machines[at].name);
        let skipped = self.law.agreed.range(last + 1..index).next();
        assert!(
            skipped.is_none(),
            "one log: {} skips {:?}",
            self.machines[at].name,
            skipped.map(|(at, _)| at)
        );
        self.law.last[at] = Some(index);
        match self.law.agreed.get(&index) {
            Some((agreed, is)) => {
                assert!(
                    *agreed == entry,
                    "one log: {} applies another entry {index}",
                    self.machines[at].name
                );
                assert_eq!(*is, outcome, "one log: entry {index} comes out otherwise");
            }
            None => {
                assert!(
                    index > self.law.top,
                    "one log: entry {index} was applied by nobody who was beyond it"
                );
                self.touched = true;
                self.agrees(index, &entry);
                assert_eq!(self.law.agreed[&index].1, outcome, "one log: entry {index} comes out otherwise");
            }
        }
    }

    fn agrees(&mut self, index: u64, entry: &Arc<[u8]>) {
        let stamped = log::decode_entry(entry).unwrap_or_else(|error| panic!("entry {index}: {error}"));
        let before = self.trace.is_on().then(|| self.law.truth.clone());
        let met = Met::of(&self.law.truth, &stamped.command);
        let (outcome, rung) = self.law.learns(index, entry, &stamped);
        if let Some((node, change)) = self.law.group.learns(index, &stamped.command) {
            self.cover.change(change);
            let leader = self.leader().unwrap_or_default();
            self.tempt_change(leader, &node);
        }
        self.cover.entry(met, outcome.is_ok(), rung);
        if let Some(before) = before {
            self.note(|world| {
                let roles = world.roles();
                format!(
                    "{}\n      {roles}",
                    crate::diff::of(index, &before, &world.law.truth, &stamped, &outcome)
                )
            });
        }
    }

    /// Equal logs make equal states.
    pub(crate) fn compare(&self, at: At) {
        let is_at_top = self.law.last[at].is_some_and(|last| last >= self.law.top);
        if let (true, Some(registry)) = (is_at_top, self.registry_of(at)) {
            assert!(*registry == self.law.truth, "one log: {}'s state is another", self.machines[at].name);
        }
    }

    /// A voter has said that it shows the present, asked when `must` was agreed.
    pub(crate) fn shows_the_present(&self, at: At, must: u64) {
        let Some(registry) = self.registry_of(at) else { return };
        let voter = self.machines[at].voter.as_ref();
        let applied = voter.and_then(|voter| voter.seen()).map_or(0, |driver| driver.view().applied);
        assert!(
            applied >= must,
            "no stale look: {} shows {applied}, and {must} was agreed when it was asked",
            self.machines[at].name
        );
        self.law.holds_promises(registry, must);
    }

    /// One owner.
    pub(crate) fn check_runners(&self) {
        let all = self.machines.iter().flat_map(|machine| machine.host.runners.iter());
        let mut runs: BTreeMap<GuestUid, InstanceId> = BTreeMap::new();
        for (instance, process) in all.filter(|(_, process)| process.runs()) {
            let (uid, name) = (process.uid, short(*instance));
            let other = runs.insert(uid, *instance);
            assert!(other.is_none(), "S1: two running copies of guest {uid}");
            match self.law.truth.guests.get(&uid).map(|guest| &guest.ownership.life) {
                Some(Life::Alive(owner)) => {
                    assert_eq!(owner.instance, *instance, "S1: {name} runs without its licence");
                }
                Some(Life::Lost { .. }) => panic!("S1: guest {uid} is declared lost while {name} runs"),
                Some(Life::Creating(_)) | None => panic!("S5: {name} runs before guest {uid} was born"),
                // A late start by the last licensee is harmless: one copy, soon destroyed.
                Some(Life::Deleting(_) | Life::Unsure(_)) => {}
                Some(Life::Purged) => panic!("S5: {name} runs though guest {uid} is purged"),
            }
        }
    }

    /// What every voter is, for a log.
    pub(crate) fn roles(&self) -> String {
        let roles = self.machines.iter().filter_map(|machine| {
            let voter = machine.voter.as_ref()?;
            let mark = match (machine.runs, voter.role) {
                (false, _) => "-",
                (true, Role::Leader) => "L",
                (true, Role::Follower) => "f",
                (true, Role::PreCandidate) => "p",
                (true, Role::Candidate) => "c",
                (true, Role::Halted) => "h",
            };
            Some(format!("{}{mark}{}", machine.name, voter.term))
        });
        roles.collect::<Vec<_>>().join(" ")
    }
}
