//! What was met: owner's states with the entries that came to them, duties, commands, faults, and where they fell.

use std::collections::{BTreeMap, BTreeSet};

use godwit_domain::agent::Duty;
use godwit_domain::ownership::{Entry, Mode, Phase};
use godwit_domain::registry::{Command, MemberChange, Registry};

/// The states of an owner: a guest's life and its migration's phase.
type State = (&'static str, &'static str);

/// An entry and the state of the owner that it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Met {
    state: State,
    entry: &'static str,
    command: &'static str,
}

impl Met {
    /// What this command comes to.
    pub(crate) fn of(truth: &Registry, command: &Command) -> Self {
        let command = command.bare();
        let guest = match command {
            Command::Guest { guest, .. } | Command::Migrate { guest, .. } | Command::Admit { guest, .. } => {
                truth.guests.get(guest)
            }
            _ => None,
        };
        let entry = match command {
            Command::Guest { entry, .. } => entry.name(),
            Command::Migrate { .. } => "Request",
            Command::Admit { .. } => "Start",
            _ => "",
        };
        let state = guest.map(|guest| {
            let phase = guest.ownership.attempt.as_ref().map(|attempt| phase_name(&attempt.phase));
            (guest.ownership.life.name(), phase.unwrap_or("none"))
        });
        Self { state: state.unwrap_or(("none", "none")), entry, command: command_name(command) }
    }
}

fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::HandedOver { mode: Mode::PostCopy, source_gone: true, .. } => {
            "HandedOver/post-copy/source gone"
        }
        Phase::HandedOver { mode: Mode::PostCopy, .. } => "HandedOver/post-copy",
        Phase::HandedOver { source_gone: true, .. } => "HandedOver/source gone",
        Phase::PostCopy { source_gone: true, .. } => "PostCopy/source gone",
        other => other.name(),
    }
}

fn command_name(command: &Command) -> &'static str {
    match command {
        Command::Join { .. } => "Join",
        Command::PutSettings { .. } => "PutSettings",
        Command::Node { .. } => "Node",
        Command::PutInstance { .. } => "PutInstance",
        Command::Migrate { .. } => "Migrate",
        Command::Placeable { .. } => "Placeable",
        Command::Admit { .. } => "Admit",
        Command::Guest { .. } => "Guest",
        Command::Fence { .. } => "Fence",
        Command::FenceSeen { .. } => "FenceSeen",
        Command::Member { .. } => "Member",
        _ => "other",
    }
}

/// Of one history, or of many.
#[derive(Debug, Default)]
pub(crate) struct Cover {
    /// State and entry, and whether it was taken.
    pub(crate) met: BTreeMap<(State, &'static str, bool), u64>,
    pub(crate) commands: BTreeMap<(&'static str, bool), u64>,
    /// Entries that rang at somebody.
    pub(crate) rang: BTreeMap<&'static str, u64>,
    pub(crate) duties: BTreeMap<&'static str, u64>,
    /// Facts that nodes have proposed.
    pub(crate) facts: BTreeMap<&'static str, u64>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) ends: BTreeMap<&'static str, u64>,
    /// Changes of the group, and faults that were meant for one or for a snapshot on its way.
    pub(crate) changes: BTreeMap<&'static str, u64>,
    pub(crate) histories: u64,
    pub(crate) events: Vec<usize>,
    pub(crate) entries: u64,
    pub(crate) hand_overs: u64,
    /// Faults inside a hand-over, and histories that had one.
    pub(crate) inside: u64,
    pub(crate) with_inside: u64,
    pub(crate) deaths: u64,
    pub(crate) restored: u64,
    pub(crate) reads: u64,
    pub(crate) acknowledged: u64,
    pub(crate) terms: u64,
}

fn sum<K: Ord>(to: &mut BTreeMap<K, u64>, from: BTreeMap<K, u64>) {
    for (key, count) in from {
        *to.entry(key).or_default() += count;
    }
}

impl Cover {
    pub(crate) fn entry(&mut self, met: Met, taken: bool, rung: usize) {
        self.entries += 1;
        *self.commands.entry((met.command, taken)).or_default() += 1;
        let name = if met.entry.is_empty() { met.command } else { met.entry };
        if !met.entry.is_empty() {
            *self.met.entry((met.state, met.entry, taken)).or_default() += 1;
        }
        if rung > 0 {
            *self.rang.entry(name).or_default() += 1;
        }
        self.hand_overs += u64::from(met.entry == "HandOver" && taken);
    }

    pub(crate) fn duty(&mut self, duty: &Duty) {
        let name = match duty {
            Duty::Make => "Make",
            Duty::Run(..) => "Run",
            Duty::Seal(_) => "Seal",
            Duty::Destroy(_) => "Destroy",
            Duty::Propose(_) => "Propose",
        };
        *self.duties.entry(name).or_default() += 1;
    }

    pub(crate) fn fact(&mut self, entry: &Entry) {
        *self.facts.entry(entry.name()).or_default() += 1;
    }

    pub(crate) fn fault(&mut self, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
    }

    pub(crate) fn change(&mut self, change: MemberChange) {
        let name = match change {
            MemberChange::Added => "added",
            MemberChange::Promoted => "promoted",
            MemberChange::Removed => "removed",
        };
        *self.changes.entry(name).or_default() += 1;
    }

    /// Takes in what another history has met.
    pub(crate) fn add(&mut self, other: Self) {
        sum(&mut self.met, other.met);
        sum(&mut self.commands, other.commands);
        sum(&mut self.rang, other.rang);
        sum(&mut self.duties, other.duties);
        sum(&mut self.facts, other.facts);
        sum(&mut self.faults, other.faults);
        sum(&mut self.ends, other.ends);
        sum(&mut self.changes, other.changes);
        self.histories += other.histories;
        self.events.extend(other.events);
        self.entries += other.entries;
        self.hand_overs += other.hand_overs;
        self.inside += other.inside;
        self.with_inside += other.with_inside;
        self.deaths += other.deaths;
        self.restored += other.restored;
        self.reads += other.reads;
        self.acknowledged += other.acknowledged;
        self.terms += other.terms;
    }

    pub(crate) fn median_events(&self) -> usize {
        let mut events = self.events.clone();
        events.sort_unstable();
        events.get(events.len() / 2).copied().unwrap_or_default()
    }

    /// Histories with a fault inside a hand-over, in percent.
    pub(crate) fn inside_percent(&self) -> f64 {
        100.0 * self.with_inside as f64 / self.histories.max(1) as f64
    }

    /// State and entry, however it came out.
    pub(crate) fn pairs(&self) -> usize {
        self.met.keys().map(|(state, entry, _)| (state, entry)).collect::<BTreeSet<_>>().len()
    }

    /// For people.
    pub(crate) fn told(&self) -> String {
        let taken = self.met.keys().filter(|(.., taken)| *taken).count();
        let states = self.met.keys().map(|(state, ..)| state).collect::<BTreeSet<_>>().len();
        let per = |count: u64| count as f64 / self.histories.max(1) as f64;
        format!(
            "owner state x entry: {} pairs in {states} states, {taken} of them taken\n\
             commands (taken): {:?}\n\
             entries that rang: {:?}\n\
             duties: {:?}\n\
             facts proposed by nodes: {:?}\n\
             faults: {:?}\n\
             ends of guests: {:?}\n\
             the control group: {:?}\n\
             a history: {:.0} entries, {:.1} hand-overs, {:.1} faults inside one, {:.1} terms, {:.1} acknowledged requests, \
             {:.1} looks, {:.2} snapshots restored",
            self.pairs(),
            self.commands,
            self.rang,
            self.duties,
            self.facts,
            self.faults,
            self.ends,
            self.changes,
            per(self.entries),
            per(self.hand_overs),
            per(self.inside),
            per(self.terms),
            per(self.acknowledged),
            per(self.reads),
            per(self.restored),
        )
    }
}
