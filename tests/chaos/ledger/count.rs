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

mod guest;

use std::collections::{BTreeMap, BTreeSet};

use godwit_domain::machine::Body;
use godwit_domain::ownership::Entry;
use godwit_domain::registry::{Command, GuestUid, Home, NodeChange};
use godwit_domain::settings::ClusterSettings;
use godwit_domain::{GuestName, MigrationId, NodeName};

use guest::{Guest, Held, Move, Stage};

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
        self.guests.insert(*uid, Guest::new(name.clone(), bytes, node.clone()));
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

fn bytes_of(body: &Body) -> u64 {
    body.spec.memory_bytes
}
