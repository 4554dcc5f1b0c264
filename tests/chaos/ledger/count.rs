//! The permits and the memory, counted once more: from the entries alone, as semantics.md says it, without the
//! registry's books.
//!
//! ```text
//!   Admit ─ takes: one of the cluster, one out of the source, one into the target, the guest's memory on the target
//!     ├─ Decline, End by source, target or deadline, Running (stop and copy), AllPages, HandBack, its guest lost ─▶ back
//!     └─ End by an operator or the control group, Delete ─▶ held ─ Dropped, a vouch for either node, Purged by all ─▶ back
//! ```
//!
//! Always true: at each admission no more than the limits in force are held, itself included; the target offers the
//! memory; an entry that names an epoch names the present one; a guest has one unfinished migration; nothing happens to a
//! migration that is over, but that its permits come back. Entries that were refused, and repetitions of a request that
//! was answered, are not shown here.

use std::collections::{BTreeMap, BTreeSet};

use godwit_domain::machine::Body;
use godwit_domain::ownership::{Entry, Mode, Side};
use godwit_domain::registry::{Command, GuestUid, Home, NodeChange};
use godwit_domain::settings::ClusterSettings;
use godwit_domain::{Epoch, GuestName, InstanceId, MigrationId, NodeName};

/// What one admission takes.
#[derive(Debug, Clone)]
struct Held {
    source: NodeName,
    target: NodeName,
}

/// How far an unfinished migration is.
#[derive(Debug, Clone)]
enum Stage {
    Waiting,
    Asked,
    Copying { target: InstanceId },
    HandedOver { source: (NodeName, InstanceId), mode: Mode, source_gone: bool },
}

#[derive(Debug, Clone)]
struct Move {
    name: MigrationId,
    stage: Stage,
    drains: Option<NodeName>,
}

#[derive(Debug, Clone)]
struct Guest {
    name: GuestName,
    bytes: u64,
    epoch: u64,
    /// Who owns it, has to make it, or has lost it.
    at: NodeName,
    runner: Option<InstanceId>,
    is_lost: bool,
    /// A paused copy that is kept elsewhere.
    kept: Option<(NodeName, InstanceId)>,
    /// Where a runner of it may be.
    holders: BTreeSet<NodeName>,
    is_deleted: bool,
    unfinished: Option<Move>,
    last: Option<MigrationId>,
    has_succeeded: bool,
    held: Option<Held>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Count {
    limits: Limits,
    offered: BTreeMap<NodeName, u64>,
    draining: BTreeSet<NodeName>,
    machines: BTreeMap<GuestName, Option<u64>>,
    guests: BTreeMap<GuestUid, Guest>,
    /// The most that were ever held.
    pub(super) most_at_once: u64,
    pub(super) limits_changed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    cluster: usize,
    outbound: usize,
    inbound: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { cluster: 5, outbound: 2, inbound: 2 }
    }
}

impl Limits {
    fn of(settings: &ClusterSettings) -> Self {
        let number = |set: Option<u32>, default| set.map_or(default, |set| set as usize);
        let outbound = number(settings.parallel_outbound_migrations_per_node, 2);
        Self {
            cluster: number(settings.parallel_migrations_per_cluster, 5),
            outbound,
            inbound: number(settings.parallel_inbound_migrations_per_node, outbound),
        }
    }
}

type Checked = Result<(), String>;

impl Count {
    /// An entry that was applied. `is_new`: of `Migrate`, that no such migration was kept.
    pub(super) fn apply(&mut self, command: &Command, is_new: bool) -> Checked {
        match command {
            Command::Join { name, node } => {
                self.offered.insert(name.clone(), node.memory_bytes);
            }
            Command::PutSettings { settings } => {
                let limits = Limits::of(settings);
                self.limits_changed += u64::from(limits != self.limits);
                self.limits = limits;
            }
            Command::PutMachine { name, machine, home } => {
                let bytes = machine.body.as_ref().map(bytes_of);
                let bytes = bytes.or_else(|| *self.machines.get(name)?);
                self.machines.insert(name.clone(), bytes);
                if self.named(name).is_none() {
                    self.make(name, bytes, home.as_ref());
                }
                if let (Some(uid), false) = (self.named(name), machine.runs) {
                    self.delete(uid);
                }
            }
            Command::PutInstance { name, body, home, .. } if self.named(name).is_none() => {
                self.make(name, body.as_ref().map(bytes_of), home.as_ref());
            }
            Command::DeleteMachine { name } => {
                self.machines.remove(name);
                if let Some(uid) = self.named(name) {
                    self.delete(uid);
                }
            }
            Command::Node { node, change } => self.change(node, change),
            Command::Migrate { guest, migration, wish } if is_new => {
                let guest = self.guest(*guest)?;
                if let Some(other) = &guest.unfinished {
                    return Err(format!("{migration} was asked for while {} is not over", other.name));
                }
                if guest.held.is_some() {
                    return Err(format!("{migration} was asked for while the last one's permits are held"));
                }
                let (stage, drains) = (Stage::Waiting, wish.drains.clone());
                guest.unfinished = Some(Move { name: migration.clone(), stage, drains });
                (guest.last, guest.has_succeeded) = (Some(migration.clone()), false);
            }
            Command::Admit { guest, migration, target } => return self.admit(*guest, migration, target),
            Command::Guest { guest, entry } => return self.entry(*guest, entry),
            Command::Fence { node, instances, .. } => {
                self.guests.values_mut().for_each(|guest| guest.vouched(node, instances));
            }
            Command::Set { migration, .. }
            | Command::Reached { migration, .. }
            | Command::Placeable { migration, .. }
                if !self.is_unfinished(migration) =>
            {
                return Err(format!("{migration} is over, and was changed"));
            }
            Command::RemoveNode { node } => {
                self.offered.remove(node);
                self.draining.remove(node);
                self.guests.values_mut().for_each(|guest| {
                    guest.holders.remove(node);
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// The check that all of this is for.
    fn admit(&mut self, uid: GuestUid, name: &MigrationId, target: &NodeName) -> Checked {
        let limits = self.limits;
        let guest = self.guest(uid)?;
        let waits = guest.unfinished.as_ref();
        if !waits.is_some_and(|waits| waits.name == *name && matches!(waits.stage, Stage::Waiting)) {
            return Err(format!("{name} was admitted and does not wait"));
        }
        if guest.at == *target || guest.is_lost || guest.runner.is_none() {
            return Err(format!("{name} was admitted to {target} from {}: no such move", guest.at));
        }
        let source = guest.at.clone();
        guest.held = Some(Held { source: source.clone(), target: target.clone() });
        guest.holders.insert(target.clone());
        guest.stage_is(Stage::Asked);
        let held: Vec<&Held> = self.guests.values().filter_map(|guest| guest.held.as_ref()).collect();
        self.most_at_once = self.most_at_once.max(held.len() as u64);
        let out = held.iter().filter(|held| held.source == source).count();
        let into = held.iter().filter(|held| held.target == *target).count();
        for (what, count, limit) in [
            ("in the cluster".to_owned(), held.len(), limits.cluster),
            (format!("out of {source}"), out, limits.outbound),
            (format!("into {target}"), into, limits.inbound),
        ] {
            if count > limit {
                return Err(format!("{name} was admitted as number {count} {what}; the limit is {limit}"));
            }
        }
        let taken: u128 = self.guests.values().map(|guest| u128::from(guest.bytes_on(target))).sum();
        let offered = self.offered.get(target).copied().unwrap_or(0);
        if taken > u128::from(offered) {
            return Err(format!(
                "{name} was admitted to {target}: {taken} bytes of {offered} are taken then"
            ));
        }
        Ok(())
    }

    fn entry(&mut self, uid: GuestUid, entry: &Entry) -> Checked {
        let drained_no_more = |count: &Self, drains: &Option<NodeName>| {
            drains.as_ref().is_some_and(|node| !count.draining.contains(node))
        };
        if let Entry::Decline { .. } = entry {
            let drains = self.guest(uid)?.unfinished.as_ref().and_then(|waits| waits.drains.clone());
            self.guest(uid)?.apply(entry)?;
            // What a drain has asked for ends with it, once it waits again.
            if drained_no_more(self, &drains) {
                self.guest(uid)?.ends(false);
                self.guest(uid)?.epoch += 1;
            }
            return Ok(());
        }
        self.guest(uid)?.apply(entry)
    }

    fn change(&mut self, node: &NodeName, change: &NodeChange) {
        match change {
            NodeChange::Put { .. } => {}
            NodeChange::Drain => {
                self.draining.insert(node.clone());
            }
            NodeChange::Uncordon | NodeChange::CancelDrain => {
                self.draining.remove(node);
                for guest in self.guests.values_mut().filter(|guest| guest.at == *node && guest.is_alive()) {
                    let waits = guest.unfinished.as_ref();
                    let asked = |waits: &Move| {
                        waits.drains.as_ref() == Some(node) && matches!(waits.stage, Stage::Waiting)
                    };
                    if waits.is_some_and(asked) {
                        guest.ends(false);
                        guest.epoch += 1;
                    }
                }
            }
        }
    }

    fn make(&mut self, name: &GuestName, bytes: Option<u64>, home: Option<&Home>) {
        let (Some(bytes), Some(Home { uid, node })) = (bytes, home) else { return };
        let guest = Guest {
            name: name.clone(),
            bytes,
            epoch: 0,
            at: node.clone(),
            runner: None,
            is_lost: false,
            kept: None,
            holders: BTreeSet::from([node.clone()]),
            is_deleted: false,
            unfinished: None,
            last: None,
            has_succeeded: false,
            held: None,
        };
        self.guests.insert(*uid, guest);
    }

    fn delete(&mut self, uid: GuestUid) {
        if let Some(guest) = self.guests.get_mut(&uid) {
            guest.deleted();
        }
    }

    fn named(&self, name: &GuestName) -> Option<GuestUid> {
        let of = self.guests.iter().find(|(_, guest)| guest.name == *name && !guest.is_purged());
        of.map(|(uid, _)| *uid)
    }

    fn guest(&mut self, uid: GuestUid) -> Result<&mut Guest, String> {
        self.guests.get_mut(&uid).ok_or_else(|| format!("guest {uid} was never made"))
    }

    /// Source and target of each that holds permits, in order.
    pub(super) fn held(&self) -> Vec<(NodeName, NodeName)> {
        let held = self.guests.values().filter_map(|guest| guest.held.as_ref());
        let mut held: Vec<_> = held.map(|held| (held.source.clone(), held.target.clone())).collect();
        held.sort();
        held
    }

    /// A guest's present epoch.
    pub(super) fn epoch(&self, uid: GuestUid) -> Option<u64> {
        self.guests.get(&uid).map(|guest| guest.epoch)
    }

    fn is_unfinished(&self, name: &MigrationId) -> bool {
        self.guests.values().any(|guest| guest.unfinished.as_ref().is_some_and(|open| open.name == *name))
    }
}

impl Guest {
    fn is_alive(&self) -> bool {
        self.runner.is_some() && !self.is_lost && !self.is_deleted
    }

    fn is_purged(&self) -> bool {
        self.is_deleted && self.holders.is_empty()
    }

    /// What it takes of a node: as its owner, for a copy that is kept there, or by a reservation. Once.
    fn bytes_on(&self, node: &NodeName) -> u64 {
        let is_there = self.at == *node || self.kept.as_ref().is_some_and(|(at, _)| at == node);
        let is_reserved = self.held.as_ref().is_some_and(|held| held.target == *node);
        let is_there = is_there && (!self.is_deleted || self.holders.contains(node));
        if is_there || is_reserved { self.bytes } else { 0 }
    }

    fn stage_is(&mut self, stage: Stage) {
        if let Some(open) = &mut self.unfinished {
            open.stage = stage;
        }
    }

    fn ends(&mut self, permits_back: bool) {
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

    fn deleted(&mut self) {
        if !self.is_deleted {
            self.ends(false);
            self.is_deleted = true;
            self.epoch += 1;
        }
    }

    fn apply(&mut self, entry: &Entry) -> Checked {
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
            Entry::Request { .. } | Entry::Start { .. } => {
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

    fn vouched(&mut self, node: &NodeName, instances: &BTreeSet<InstanceId>) {
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

fn bytes_of(body: &Body) -> u64 {
    body.spec.memory_bytes
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
