//! The course of every migration: what it was when, from the voters' audit logs and the source's word that it has paused.
//!
//! ```text
//!   Accept ── PreCopy ──▶ paused ── Pausing ──▶ HandOver ── Committed ──▶ Running ── PostCopy ──▶ AllPages
//!                ▲            └─ CallOff ─┘        └────────────── HandBack, End ─────────────▶ over
//! ```
//!
//! Times are this process's monotonic clock, when it was seen: a few milliseconds after it was so.

use std::collections::BTreeMap;

use godwit_domain::ownership::{Attempt, Entry, Mode, Permits, Phase};
use godwit_domain::registry::{Command, GuestUid, Registry, Stamped};
use godwit_domain::{Epoch, GuestName, InstanceId, MigrationId, NodeName};

/// What a migration is in, as far as faults are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It is copied and runs at its source.
    PreCopy,
    /// It is paused at its source, and nothing is agreed.
    Pausing,
    /// It is handed over, and not known to run.
    Committed,
    /// It runs at its target, and pages are missing.
    PostCopy,
}

impl Stage {
    pub(crate) const ALL: [Self; 4] = [Self::PreCopy, Self::Pausing, Self::Committed, Self::PostCopy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PreCopy => "pre-copy",
            Self::Pausing => "pause to commit",
            Self::Committed => "commit to Running",
            Self::PostCopy => "post-copy",
        }
    }
}

/// One migration.
#[derive(Debug, Clone)]
pub(crate) struct Course {
    pub(crate) source: NodeName,
    pub(crate) target: NodeName,
    /// The runners, as far as they are agreed.
    pub(crate) runners: (Option<InstanceId>, Option<InstanceId>),
    /// Stage, from, until.
    pub(crate) spans: Vec<(Stage, u64, u64)>,
    /// That of its last look.
    pub(crate) epoch: Epoch,
    pub(crate) granted_ns: u64,
    pub(crate) released_ns: Option<u64>,
    /// Bytes per second that it may send, the most that it was ever told.
    pub(crate) bandwidth: u64,
    pub(crate) mode: Option<Mode>,
    /// How it ended, and why.
    pub(crate) end: Option<(&'static str, String)>,
}

/// Something has begun.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    pub(crate) stage: Stage,
    pub(crate) source: NodeName,
    pub(crate) target: NodeName,
    pub(crate) runners: (Option<InstanceId>, Option<InstanceId>),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Courses {
    registry: Registry,
    pub(crate) all: BTreeMap<MigrationId, Course>,
    /// Runners that are agreed to be gone by themselves.
    pub(crate) gone: Vec<InstanceId>,
}

impl Courses {
    /// An entry was applied. What has begun by it.
    pub(crate) fn applied(&mut self, now: u64, stamped: Stamped) -> Option<Turn> {
        let guests: Vec<GuestUid> = match stamped.command.bare() {
            Command::Guest { guest, .. } | Command::Admit { guest, .. } | Command::Migrate { guest, .. } => {
                vec![*guest]
            }
            Command::Set { migration, .. } => {
                self.registry.guest_of(migration).map(|(uid, _)| uid).into_iter().collect()
            }
            Command::Fence { .. } => self.registry.guests.keys().copied().collect(),
            _ => vec![],
        };
        let gone = match &stamped.command {
            Command::Guest { entry: Entry::Gone { instance }, .. } => Some(*instance),
            _ => None,
        };
        let is_applied = self.registry.apply(stamped).is_ok();
        self.gone.extend(gone.filter(|_| is_applied));
        let mut turn = None;
        for guest in guests {
            turn = self.look_at(now, guest).or(turn);
        }
        turn
    }

    fn look_at(&mut self, now: u64, guest: GuestUid) -> Option<Turn> {
        let found = self.registry.guests.get(&guest)?;
        let attempt = found.ownership.attempt.clone();
        let attempt = attempt.or_else(|| found.finished.last().map(|finished| finished.attempt.clone()))?;
        let overrides = found.migration(&attempt.migration).map(|(_, record)| record.wish.overrides);
        let bandwidth = overrides.and_then(|overrides| overrides.bandwidth_per_migration);
        let epoch = found.ownership.epoch;
        let course = self.course(now, &attempt)?;
        let same_epoch = std::mem::replace(&mut course.epoch, epoch) == epoch;
        course.bandwidth = course.bandwidth.max(bandwidth.map_or(0, |quantity| quantity.bytes()));
        if attempt.permits == Permits::None {
            course.released_ns.get_or_insert(now);
        }
        if let Phase::Copying { source, target }
        | Phase::HandedOver { source, target, .. }
        | Phase::PostCopy { source, target, .. } = &attempt.phase
        {
            course.runners = (Some(source.instance), Some(target.instance));
        }
        let stage = match &attempt.phase {
            Phase::Pending | Phase::Preparing { .. } => None,
            // A pause is not in the log; that it was taken back is, by another epoch.
            Phase::Copying { .. } if same_epoch && course.stage() == Some(Stage::Pausing) => {
                Some(Stage::Pausing)
            }
            Phase::Copying { .. } => Some(Stage::PreCopy),
            Phase::HandedOver { mode, .. } => {
                course.mode = Some(*mode);
                Some(Stage::Committed)
            }
            Phase::PostCopy { .. } => Some(Stage::PostCopy),
            Phase::Succeeded => {
                course.end.get_or_insert(("Succeeded", String::new()));
                None
            }
            Phase::Failed { reason } => {
                course.end.get_or_insert_with(|| ("Failed", reason.clone()));
                None
            }
            Phase::Cancelled { reason } => {
                course.end.get_or_insert_with(|| ("Cancelled", reason.clone()));
                None
            }
        };
        course.enter(now, stage)
    }

    fn course(&mut self, now: u64, attempt: &Attempt) -> Option<&mut Course> {
        if !self.all.contains_key(&attempt.migration) {
            let (source, target) = match &attempt.phase {
                Phase::Preparing { source, target } => (source.node.clone(), target.clone()),
                Phase::Copying { source, target } => (source.node.clone(), target.node.clone()),
                _ => return None,
            };
            let course = Course { granted_ns: now, ..Course::between(source, target) };
            self.all.insert(attempt.migration.clone(), course);
        }
        let course = self.all.get_mut(&attempt.migration)?;
        // One that was declined is admitted again, maybe for another node.
        if let Phase::Preparing { target, .. } = &attempt.phase {
            course.target = target.clone();
            course.released_ns = None;
        }
        Some(course)
    }

    /// The guests' numbers by their names.
    pub(crate) fn guests(&self) -> BTreeMap<GuestName, GuestUid> {
        self.registry.guests.iter().map(|(uid, guest)| (guest.name.clone(), *uid)).collect()
    }

    /// The guests that are agreed to be handed over to a node, and not to run there yet.
    pub(crate) fn handed_over_to(&self, node: &NodeName) -> Vec<GuestName> {
        let is_handed_over = |attempt: &Attempt| matches!(&attempt.phase, Phase::HandedOver { target, .. } if target.node == *node);
        let all = self.registry.guests.values();
        let handed_over = all.filter(|guest| guest.ownership.attempt.as_ref().is_some_and(is_handed_over));
        handed_over.map(|guest| guest.name.clone()).collect()
    }

    /// The source says that it pauses the guest.
    pub(crate) fn paused(&mut self, now: u64, migration: &MigrationId) -> Option<Turn> {
        let course = self.all.get_mut(migration)?;
        (course.stage() == Some(Stage::PreCopy)).then(|| course.enter(now, Some(Stage::Pausing))).flatten()
    }
}

impl Course {
    /// One of which nothing more is known.
    pub(crate) fn between(source: NodeName, target: NodeName) -> Self {
        Self {
            source,
            target,
            runners: (None, None),
            spans: Vec::new(),
            epoch: Epoch(0),
            granted_ns: 0,
            released_ns: None,
            bandwidth: 0,
            mode: None,
            end: None,
        }
    }

    /// What it is in now.
    fn stage(&self) -> Option<Stage> {
        self.spans.last().filter(|(.., until)| *until == u64::MAX).map(|(stage, ..)| *stage)
    }

    fn enter(&mut self, now: u64, stage: Option<Stage>) -> Option<Turn> {
        if self.stage() == stage {
            return None;
        }
        if let Some((.., until)) = self.spans.last_mut().filter(|(.., until)| *until == u64::MAX) {
            *until = now;
        }
        let stage = stage?;
        self.spans.push((stage, now, u64::MAX));
        Some(Turn { stage, source: self.source.clone(), target: self.target.clone(), runners: self.runners })
    }
}
