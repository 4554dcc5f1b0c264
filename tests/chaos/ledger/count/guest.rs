//! What entries make of one guest: its owner, its epoch, its migration and what that holds.

use std::collections::BTreeSet;

use godwit_domain::ownership::{Entry, Mode, Side};
use godwit_domain::{Epoch, GuestName, InstanceId, MigrationId, NodeName};

use super::Checked;

/// What one admission takes.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) source: NodeName,
    pub(super) target: NodeName,
}

/// How far an unfinished migration is.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    Waiting,
    Asked,
    Copying { target: InstanceId },
    HandedOver { source: (NodeName, InstanceId), mode: Mode, source_gone: bool },
}

#[derive(Debug, Clone)]
pub(super) struct Move {
    pub(super) name: MigrationId,
    pub(super) stage: Stage,
    pub(super) drains: Option<NodeName>,
}

#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub(super) name: GuestName,
    pub(super) bytes: u64,
    pub(super) epoch: u64,
    /// Who owns it, has to make it, or has lost it.
    pub(super) at: NodeName,
    pub(super) runner: Option<InstanceId>,
    pub(super) is_lost: bool,
    /// A paused copy that is kept elsewhere.
    pub(super) kept: Option<(NodeName, InstanceId)>,
    /// Where a runner of it may be.
    pub(super) holders: BTreeSet<NodeName>,
    pub(super) is_deleted: bool,
    pub(super) unfinished: Option<Move>,
    pub(super) last: Option<MigrationId>,
    pub(super) has_succeeded: bool,
    pub(super) held: Option<Held>,
}

impl Guest {
    /// A new one, which this node has to make.
    pub(super) fn new(name: GuestName, bytes: u64, at: NodeName) -> Self {
        Self {
            name,
            bytes,
            epoch: 0,
            runner: None,
            is_lost: false,
            kept: None,
            holders: BTreeSet::from([at.clone()]),
            at,
            is_deleted: false,
            unfinished: None,
            last: None,
            has_succeeded: false,
            held: None,
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.runner.is_some() && !self.is_lost && !self.is_deleted
    }

    pub(super) fn is_purged(&self) -> bool {
        self.is_deleted && self.holders.is_empty()
    }

    /// What it takes of a node: as its owner, for a copy that is kept there, or by a reservation. Once.
    pub(super) fn bytes_on(&self, node: &NodeName) -> u64 {
        let is_there = self.at == *node || self.kept.as_ref().is_some_and(|(at, _)| at == node);
        let is_reserved = self.held.as_ref().is_some_and(|held| held.target == *node);
        let is_there = is_there && (!self.is_deleted || self.holders.contains(node));
        if is_there || is_reserved { self.bytes } else { 0 }
    }

    pub(super) fn stage_is(&mut self, stage: Stage) {
        if let Some(open) = &mut self.unfinished {
            open.stage = stage;
        }
    }

    pub(super) fn ends(&mut self, permits_back: bool) {
        self.unfinished = None;
        self.kept = self.kept.take().filter(|_| self.is_lost);
        if permits_back {
            self.held = None;
        }
    }

    fn succeeds(&mut self) {
        if self.unfinished.is_some() {
            self.ends(true);
            self.has_succeeded = true;
        }
    }

    pub(super) fn deleted(&mut self) {
        if !self.is_deleted {
            self.ends(false);
            self.is_deleted = true;
            self.epoch += 1;
        }
    }

    pub(super) fn apply(&mut self, entry: &Entry) -> Checked {
        if let Some(epoch) = epoch_of(entry)
            && epoch.0 != self.epoch
        {
            return Err(format!("{} of epoch {epoch} was applied in epoch {}", entry.name(), self.epoch));
        }
        if let Some(name) = migration_of(entry) {
            self.may_follow(entry, name)?;
        }
        match entry {
            Entry::Born { instance } => {
                self.runner = Some(*instance);
                self.epoch = 1;
            }
            Entry::Decline { .. } => {
                self.held = None;
                self.stage_is(Stage::Waiting);
                self.epoch += 1;
            }
            Entry::Accept { instance, .. } => self.stage_is(Stage::Copying { target: *instance }),
            Entry::HandOver { mode, .. } => self.handed_over(*mode)?,
            Entry::CallOff { .. } => self.epoch += 1,
            Entry::End { side, .. } => {
                // Neither an operator nor the group is a party to it: one of its nodes must have let go first.
                self.ends(matches!(side, Side::Source | Side::Target | Side::Deadline));
                self.epoch += 1;
            }
            Entry::Dropped { .. } => self.held = None,
            Entry::Running { .. } => {
                let whole =
                    |open: &Move| matches!(open.stage, Stage::HandedOver { mode: Mode::StopAndCopy, .. });
                if self.unfinished.as_ref().is_some_and(whole) {
                    self.succeeds();
                }
            }
            Entry::AllPages { .. } => self.succeeds(),
            Entry::HandBack { .. } => self.handed_back(),
            Entry::Gone { instance } => self.gone(*instance),
            Entry::Vouch { node, instances } => {
                self.vouched(node, &instances.iter().copied().collect());
            }
            Entry::Recover { instance } => {
                if let Some((node, kept)) = self.kept.take_if(|(_, kept)| kept == instance) {
                    (self.at, self.runner) = (node, Some(kept));
                }
                self.kept = None;
                self.is_lost = false;
                self.epoch += 1;
            }
            Entry::Delete => self.deleted(),
            Entry::Purged { node } => {
                self.holders.remove(node);
                if self.holders.is_empty() {
                    self.held = None;
                }
            }
            Entry::Request { .. }
            | Entry::Start { .. }
            | Entry::Found
            | Entry::Unclaimed { .. }
            | Entry::Claimed { .. }
            | Entry::Settle { .. } => {
                return Err(format!("{} was applied as an entry", entry.name()));
            }
        }
        Ok(())
    }

    /// What is over stays over.
    fn may_follow(&self, entry: &Entry, name: &MigrationId) -> Checked {
        if self.unfinished.as_ref().is_some_and(|open| open.name == *name) {
            return match entry {
                Entry::Dropped { .. } => Err(format!("{name} is not over, and its permits were given back")),
                _ => Ok(()),
            };
        }
        let is_last = self.last.as_ref() == Some(name);
        match entry {
            Entry::Dropped { .. } if is_last && self.held.is_some() => Ok(()),
            // Said again until seen: nothing changes by it.
            Entry::Running { .. } | Entry::AllPages { .. } if is_last && self.has_succeeded => Ok(()),
            _ => Err(format!("{name} is over, and {} was applied", entry.name())),
        }
    }

    fn handed_over(&mut self, mode: Mode) -> Checked {
        let Some(Move { stage: Stage::Copying { target }, .. }) = &self.unfinished else {
            return Err("a hand-over without a target's runner".to_owned());
        };
        let (target, Some(source)) = (*target, self.runner) else {
            return Err("a hand-over without a source's runner".to_owned());
        };
        let Some(Held { target: node, .. }) = self.held.clone() else {
            return Err("a hand-over without permits".to_owned());
        };
        let source = (std::mem::replace(&mut self.at, node), source);
        self.runner = Some(target);
        self.kept = Some(source.clone());
        self.stage_is(Stage::HandedOver { source, mode, source_gone: false });
        self.epoch += 1;
        Ok(())
    }

    fn handed_back(&mut self) {
        if let Some(Move { stage: Stage::HandedOver { source, source_gone, .. }, .. }) = &self.unfinished {
            self.is_lost = *source_gone;
            (self.at, self.runner) = (source.0.clone(), Some(source.1));
        }
        self.kept = None;
        self.ends(true);
        self.epoch += 1;
    }

    pub(super) fn vouched(&mut self, node: &NodeName, instances: &BTreeSet<InstanceId>) {
        for instance in instances {
            self.gone(*instance);
        }
        let is_of_it = |held: &Held| held.source == *node || held.target == *node;
        if self.unfinished.is_none() && self.held.as_ref().is_some_and(is_of_it) {
            self.held = None;
        }
    }

    /// A runner is no more. With its owner a guest is lost, and its migration over; a copy that was kept is none.
    fn gone(&mut self, instance: InstanceId) {
        if self.runner == Some(instance) && self.is_alive() {
            let source_gone = self
                .unfinished
                .as_ref()
                .is_some_and(|open| matches!(open.stage, Stage::HandedOver { source_gone: true, .. }));
            self.is_lost = true;
            self.kept = self.kept.take().filter(|_| !source_gone);
            if self.unfinished.is_some() {
                self.ends(true);
            }
            return;
        }
        if self.is_lost {
            self.kept = self.kept.take().filter(|(_, kept)| *kept != instance);
            return;
        }
        match self.unfinished.as_mut().map(|open| &mut open.stage) {
            Some(Stage::Copying { target }) if *target == instance => {
                self.ends(true);
                self.epoch += 1;
            }
            Some(Stage::HandedOver { source, source_gone, .. }) if source.1 == instance => {
                *source_gone = true;
            }
            _ => {}
        }
    }
}

fn epoch_of(entry: &Entry) -> Option<Epoch> {
    match entry {
        Entry::Decline { epoch, .. }
        | Entry::Accept { epoch, .. }
        | Entry::HandOver { epoch, .. }
        | Entry::CallOff { epoch, .. }
        | Entry::Running { epoch, .. }
        | Entry::AllPages { epoch, .. }
        | Entry::HandBack { epoch, .. } => Some(*epoch),
        _ => None,
    }
}

fn migration_of(entry: &Entry) -> Option<&MigrationId> {
    match entry {
        Entry::Request { migration }
        | Entry::Start { migration, .. }
        | Entry::Decline { migration, .. }
        | Entry::Accept { migration, .. }
        | Entry::HandOver { migration, .. }
        | Entry::CallOff { migration, .. }
        | Entry::End { migration, .. }
        | Entry::Dropped { migration }
        | Entry::Running { migration, .. }
        | Entry::AllPages { migration, .. }
        | Entry::HandBack { migration, .. } => Some(migration),
        _ => None,
    }
}
