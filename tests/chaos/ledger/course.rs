//! How each migration went, as the log shows it.

use std::collections::BTreeMap;

use godwit_domain::ownership::{Entry, Mode, Phase};
use godwit_domain::registry::{Command, GuestUid, Registry};
use godwit_domain::{GuestName, MigrationId, NodeName};

use super::Applied;

/// When something was agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    /// The entry.
    pub(crate) index: u64,
    /// When a voter applied it, in milliseconds since the Unix epoch, by its host's clock.
    pub(crate) applied_ms: u64,
    /// When it was read: this host's monotonic clock, in nanoseconds.
    pub(crate) seen_ns: u64,
}

/// One migration from its wish to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Course {
    pub(crate) name: MigrationId,
    pub(crate) guest: GuestUid,
    pub(crate) guest_name: GuestName,
    /// It was asked for.
    pub(crate) requested: Moment,
    /// The last admission, and what follows from it. A target that declines clears nothing here.
    pub(crate) source: Option<NodeName>,
    pub(crate) target: Option<NodeName>,
    pub(crate) admitted: Option<Moment>,
    /// The target has a runner.
    pub(crate) accepted: Option<Moment>,
    pub(crate) handed_over: Option<Moment>,
    /// How the missing pages come, once it was handed over.
    pub(crate) mode: Option<Mode>,
    /// The guest runs at the target.
    pub(crate) running: Option<Moment>,
    pub(crate) all_pages: Option<Moment>,
    /// `None`: it is not over.
    pub(crate) ended: Option<Moment>,
    /// `Succeeded`, `Failed` or `Cancelled`; before the end the phase that it is in.
    pub(crate) phase: &'static str,
    /// Why it failed or was cancelled.
    pub(crate) reason: Option<String>,
    pub(crate) admissions: u64,
    pub(crate) call_offs: u64,
}

/// Follows migrations as entries are replayed.
#[derive(Debug, Default)]
pub(super) struct Courses {
    over: Vec<Course>,
    open: BTreeMap<MigrationId, Course>,
}

impl Courses {
    /// This entry was applied, and made the registry what it is.
    pub(super) fn follow(&mut self, applied: &Applied, registry: &Registry) {
        let now = Moment { index: applied.index, applied_ms: applied.applied_ms, seen_ns: applied.seen_ns };
        match applied.command.bare() {
            Command::Migrate { guest, migration, .. } if !self.open.contains_key(migration) => {
                self.begin(*guest, migration, now, registry);
            }
            Command::Admit { guest, migration, target } => {
                let owner = registry.guests.get(guest).and_then(|guest| guest.ownership.owner());
                let source = owner.map(|owner| owner.node.clone());
                if let Some(course) = self.open.get_mut(migration) {
                    (course.source, course.target) = (source, Some(target.clone()));
                    course.admitted = Some(now);
                    course.admissions += 1;
                }
            }
            Command::Guest { entry, .. } => self.enter(entry, now),
            _ => {}
        }
        self.look(now, registry);
    }

    /// All, in the order of their ends; then those that are not over.
    pub(super) fn all(self) -> Vec<Course> {
        self.over.into_iter().chain(self.open.into_values()).collect()
    }

    fn begin(&mut self, uid: GuestUid, name: &MigrationId, now: Moment, registry: &Registry) {
        let Some(guest) = registry.guests.get(&uid) else { return };
        // Asked for again, it is the one that is kept.
        if guest.ownership.phase_of(name).is_none_or(Phase::is_over) {
            return;
        }
        let course = Course {
            name: name.clone(),
            guest: uid,
            guest_name: guest.name.clone(),
            requested: now,
            source: None,
            target: None,
            admitted: None,
            accepted: None,
            handed_over: None,
            mode: None,
            running: None,
            all_pages: None,
            ended: None,
            phase: "Pending",
            reason: None,
            admissions: 0,
            call_offs: 0,
        };
        self.open.insert(name.clone(), course);
    }

    fn enter(&mut self, entry: &Entry, now: Moment) {
        let (migration, at): (_, fn(&mut Course) -> &mut Option<Moment>) = match entry {
            Entry::Accept { migration, .. } => (migration, |course| &mut course.accepted),
            Entry::HandOver { migration, .. } => (migration, |course| &mut course.handed_over),
            Entry::Running { migration, .. } => (migration, |course| &mut course.running),
            Entry::AllPages { migration, .. } => (migration, |course| &mut course.all_pages),
            Entry::CallOff { migration, .. } => {
                if let Some(course) = self.open.get_mut(migration) {
                    course.call_offs += 1;
                }
                return;
            }
            _ => return,
        };
        let Some(course) = self.open.get_mut(migration) else { return };
        if let Entry::HandOver { mode, .. } = entry {
            course.mode = Some(*mode);
        }
        // Said again, it was so already. An accept after another admission is a new one.
        let at = at(course);
        if at.is_none() || matches!(entry, Entry::Accept { .. }) {
            *at = Some(now);
        }
    }

    /// What an entry has ended, whatever it was about: a fence and a deletion end migrations too.
    fn look(&mut self, now: Moment, registry: &Registry) {
        let mut ended = Vec::new();
        for (name, course) in &mut self.open {
            let guest = registry.guests.get(&course.guest);
            match guest.and_then(|guest| guest.migration(name)).map(|(attempt, _)| &attempt.phase) {
                Some(phase) => {
                    course.phase = phase.name();
                    course.reason = phase.failure().map(str::to_owned);
                    course.ended = phase.is_over().then_some(now);
                }
                // With its guest, which is gone everywhere.
                None => course.ended = Some(now),
            }
            if course.ended.is_some() {
                ended.push(name.clone());
            }
        }
        self.over.extend(ended.iter().filter_map(|name| self.open.remove(name)));
    }
}
