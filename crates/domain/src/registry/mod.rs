//! What the cluster agrees on: nodes, guests and who may run them, migrations and the limits they keep.
//!
//! ```text
//!   log entry (time, command) ──apply──▶ Registry ──▶ effects: "node N, look at guest G"
//!                                          │
//!                                          ├─ ownership, per guest (crate::ownership)
//!                                          └─ admission: which waiting migration goes where (admission)
//! ```
//!
//! Always true:
//! - `apply` is a function of state and entry only: the same log twice gives the same registry;
//! - replicated time never runs back; a refused command changes nothing but the time;
//! - what can be counted is counted, not stored: permits in use and memory reserved follow from the migrations;
//! - no more is granted than the limits in force allow, whoever proposes it;
//! - an effect is a doorbell: lost, it costs time and never correctness, since a node asks what it still owes.
//!
//! Never here: who is reachable (the leader knows, and passes it in), reply channels, clocks, chance.

mod admission;
mod command;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::guest::GuestSpec;
use crate::ids::{GuestName, InstanceId, MigrationId, NodeName};
use crate::labels::Labels;
use crate::ownership::{Attempt, Entry, Licence, Life, Ownership, Permits, Phase};
use crate::progress::Measured;
use crate::settings::{Overrides, Settings};

pub use admission::{Obstacle, WaitReason};
pub use command::{BootId, Command, GuestUid, Refusal, Stamped};
pub use record::{Finished, Record, Step};

/// Finished migrations that are kept per guest; the rest is in the log's archive.
const FINISHED_KEPT_MAX: usize = 5;

/// How many migrations may run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParallelLimits {
    /// In the cluster (`parallelMigrationsPerCluster`); 0: nothing starts.
    pub cluster: u32,
    /// From one node (`parallelOutboundMigrationsPerNode`); 0: nothing leaves.
    pub outbound: u32,
    /// To one node (`parallelInboundMigrationsPerNode`); 0: nothing enters.
    pub inbound: u32,
}

impl Default for ParallelLimits {
    fn default() -> Self {
        Self { cluster: 5, outbound: 2, inbound: 2 }
    }
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Where other nodes reach it for sessions and the log.
    pub control: core::net::SocketAddr,
    /// Where pages come in.
    pub migration: core::net::SocketAddr,
    /// Its present boot, as it said when it joined.
    pub boot: BootId,
    /// Memory that it offers to guests, in bytes.
    pub memory_bytes: u64,
    /// Labels from its config, `kubernetes.io/hostname` among them.
    pub labels: Labels,
    /// Where pages come in on named networks.
    pub networks: BTreeMap<String, core::net::SocketAddr>,
    /// It was vouched to be off. Until it has stopped these and said so, it gets no guests and no orders.
    pub fenced: Option<BTreeSet<InstanceId>>,
}

impl Node {
    /// One without labels and named networks.
    pub fn new(
        control: core::net::SocketAddr,
        migration: core::net::SocketAddr,
        boot: BootId,
        memory_bytes: u64,
    ) -> Self {
        let (labels, networks) = (Labels::new(), BTreeMap::new());
        Self { control, migration, boot, memory_bytes, labels, networks, fenced: None }
    }
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Its name. Used again only after it is purged.
    pub name: GuestName,
    /// What it is like, its size among it.
    pub spec: GuestSpec,
    /// Who may run it.
    pub ownership: Ownership,
    /// Of the migration that the ownership speaks of: what was asked, and what became of it.
    pub record: Option<Record>,
    /// Earlier migrations, oldest first.
    pub finished: Vec<Finished>,
}

impl Guest {
    /// Size of its RAM in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.spec.memory_bytes
    }

    /// What holds for its present migration.
    pub fn settings(&self) -> Settings {
        let overrides = self.record.as_ref().map(|record| record.overrides).unwrap_or_default();
        overrides.effective(self.spec.memory_bytes)
    }

    /// A migration of this guest, the present one or one that is kept.
    pub fn migration(&self, name: &MigrationId) -> Option<(&Attempt, &Record)> {
        let present = self.ownership.attempt.as_ref().zip(self.record.as_ref());
        let kept = self.finished.iter().map(|finished| (&finished.attempt, &finished.record));
        present.into_iter().chain(kept).find(|(attempt, _)| attempt.migration == *name)
    }
}

/// Ring at this node: something about this guest has changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Effect {
    /// Whom it concerns.
    pub node: NodeName,
    /// Which guest.
    pub guest: GuestUid,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// Replicated time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// How much may run at once.
    pub limits: ParallelLimits,
    /// The hosts.
    pub nodes: BTreeMap<NodeName, Node>,
    /// The guests, by a number that is never used again.
    pub guests: BTreeMap<GuestUid, Guest>,
    /// How many migrations were asked for so far.
    pub asked: u64,
}

impl Registry {
    /// Applies one entry of the log. Effects tell whom it concerns.
    pub fn apply(&mut self, stamped: Stamped) -> Result<BTreeSet<Effect>, Refusal> {
        self.time_ms = self.time_ms.max(stamped.time_ms);
        match stamped.command {
            Command::Join { name, node } => self.join(name, node),
            Command::CreateGuest { uid, name, node, spec } => self.create(uid, name, node, spec),
            Command::Migrate { guest, migration, target, overrides } => {
                self.migrate(guest, migration, target, overrides)
            }
            Command::Set { migration, overrides } => self.set(&migration, overrides),
            Command::Measured { migration, measured } => self.measured(&migration, measured),
            Command::Admit { guest, migration, target } => self.admit(guest, migration, target),
            Command::Guest { guest, entry } => self.guest_entry(guest, entry),
            Command::Fence { node, boot, instances } => self.fence(&node, boot, &instances),
            Command::FenceSeen { node } => self.fence_seen(&node),
            Command::RemoveNode { node } => self.remove_node(&node),
            Command::SetLimits { limits } => {
                self.limits = limits;
                Ok(BTreeSet::new())
            }
        }
    }

    /// The guest of this name that is not purged.
    pub fn guest_named(&self, name: &GuestName) -> Option<(GuestUid, &Guest)> {
        let mut named = self.guests.iter().filter(|(_, guest)| guest.name == *name);
        named.find(|(_, guest)| guest.ownership.life != Life::Purged).map(|(uid, guest)| (*uid, guest))
    }

    /// The guest that this migration, the present one or one that is kept, is of.
    pub fn guest_of(&self, migration: &MigrationId) -> Option<(GuestUid, &Guest)> {
        let mut guests = self.guests.iter();
        guests.find(|(_, guest)| guest.migration(migration).is_some()).map(|(uid, guest)| (*uid, guest))
    }

    /// Migrations that hold permits.
    pub fn granted(&self) -> impl Iterator<Item = (&Attempt, &NodeName, &NodeName)> {
        self.guests.values().filter_map(|guest| {
            let attempt = guest.ownership.attempt.as_ref()?;
            match &attempt.permits {
                Permits::Held { source, target } => Some((attempt, source, target)),
                Permits::None => None,
            }
        })
    }

    /// Instances that the registry places on a node, and so what a vouch for it is about.
    pub fn instances_on(&self, node: &NodeName) -> BTreeSet<InstanceId> {
        let licences = self.guests.values().flat_map(|guest| licences_of(&guest.ownership));
        licences.filter(|licence| licence.node == *node).map(|licence| licence.instance).collect()
    }

    /// Memory that a node offers and that no guest and no reservation takes, in bytes.
    pub fn free_memory_bytes(&self, name: &NodeName) -> u64 {
        let Some(node) = self.nodes.get(name) else { return 0 };
        let taken = self.guests.values().filter(|guest| takes_memory(&guest.ownership, name));
        node.memory_bytes.saturating_sub(taken.map(Guest::memory_bytes).sum())
    }

    // ---- commands ------------------------------------------------------------------------------------------

    fn join(&mut self, name: NodeName, mut node: Node) -> Result<BTreeSet<Effect>, Refusal> {
        // A fence outlives the boot it was about: only the node's own word that it has stopped them ends it.
        node.fenced = self.nodes.get(&name).and_then(|known| known.fenced.clone());
        let owed = self.guests.iter().filter(|(_, guest)| guest.ownership.holders.contains(&name));
        let effects = owed.map(|(uid, _)| Effect { node: name.clone(), guest: *uid }).collect();
        self.nodes.insert(name, node);
        Ok(effects)
    }

    fn create(
        &mut self,
        uid: GuestUid,
        name: GuestName,
        node: NodeName,
        spec: GuestSpec,
    ) -> Result<BTreeSet<Effect>, Refusal> {
        let memory_bytes = spec.memory_bytes;
        if let Some((known, _)) = self.guest_named(&name) {
            return if known == uid { Ok(BTreeSet::new()) } else { Err(Refusal::NameTaken(name)) };
        }
        if self.guests.contains_key(&uid) {
            return Err(Refusal::UidTaken(uid));
        }
        self.usable(&node)?;
        let free = self.free_memory_bytes(&node);
        if memory_bytes > free {
            return Err(Refusal::NoMemory { node, free, needs: memory_bytes });
        }
        let effects = BTreeSet::from([Effect { node: node.clone(), guest: uid }]);
        let ownership = Ownership::new(node);
        self.guests.insert(uid, Guest { name, spec, ownership, record: None, finished: Vec::new() });
        Ok(effects)
    }

    fn migrate(
        &mut self,
        uid: GuestUid,
        migration: MigrationId,
        target: Option<NodeName>,
        overrides: Overrides,
    ) -> Result<BTreeSet<Effect>, Refusal> {
        if let Some((of, guest)) = self.guest_of(&migration) {
            // Asked for twice, in the same words, it is the same migration, finished or not.
            let asked = guest.migration(&migration).map(|(_, record)| (&record.target, &record.overrides));
            return if of == uid && asked == Some((&target, &overrides)) {
                Ok(BTreeSet::new())
            } else {
                Err(Refusal::MigrationTaken(guest.name.clone()))
            };
        }
        if let Some(target) = &target {
            self.usable(target)?;
        }
        overrides.check()?;
        let (sequence, time_ms) = (self.asked, self.time_ms);
        let guest = self.guests.get_mut(&uid).ok_or(Refusal::NoGuest(uid))?;
        if let (Some(target), Some(owner)) = (&target, guest.ownership.owner())
            && owner.node == *target
        {
            return Err(crate::ownership::Refused::SameNode(target.clone()).into());
        }
        let last = guest.ownership.attempt.clone().zip(guest.record.clone());
        guest.ownership.apply(Entry::Request { migration })?;
        guest.finished.extend(last.map(|(attempt, record)| Finished { attempt, record }));
        let surplus = guest.finished.len().saturating_sub(FINISHED_KEPT_MAX);
        guest.finished.drain(..surplus);
        let mut record = Record::new(target, overrides, sequence);
        record.note(time_ms, &Phase::Pending);
        guest.record = Some(record);
        self.asked += 1;
        Ok(BTreeSet::new())
    }

    fn set(&mut self, migration: &MigrationId, overrides: Overrides) -> Result<BTreeSet<Effect>, Refusal> {
        overrides.check()?;
        let (uid, _) = self.guest_of(migration).ok_or_else(|| Refusal::NoMigration(migration.clone()))?;
        let guest = self.guests.get_mut(&uid).ok_or(Refusal::NoGuest(uid))?;
        if guest.ownership.phase_of(migration).is_none_or(Phase::is_over) {
            return Err(Refusal::IsOver(migration.clone()));
        }
        if let Some(record) = &mut guest.record {
            record.overrides = overrides.above(record.overrides);
        }
        let nodes = concerned(&guest.ownership);
        Ok(nodes.into_iter().map(|node| Effect { node, guest: uid }).collect())
    }

    /// For people: it changes nothing that anybody decides by.
    fn measured(&mut self, migration: &MigrationId, new: Measured) -> Result<BTreeSet<Effect>, Refusal> {
        let (uid, _) = self.guest_of(migration).ok_or_else(|| Refusal::NoMigration(migration.clone()))?;
        let guest = self.guests.get_mut(&uid).ok_or(Refusal::NoGuest(uid))?;
        let kept = guest.finished.iter_mut().find(|finished| finished.attempt.migration == *migration);
        let record = match kept {
            Some(finished) => Some(&mut finished.record),
            None => guest.record.as_mut(),
        };
        if let Some(Record { measured, .. }) = record {
            measured.source = measured.source.or(new.source);
            measured.resume_us = measured.resume_us.or(new.resume_us);
        }
        Ok(BTreeSet::new())
    }

    fn admit(
        &mut self,
        uid: GuestUid,
        migration: MigrationId,
        target: NodeName,
    ) -> Result<BTreeSet<Effect>, Refusal> {
        let guest = self.guests.get(&uid).ok_or(Refusal::NoGuest(uid))?;
        if let Some(reason) = self.what_holds_up(guest, &target) {
            return Err(Refusal::Waits { migration, reason });
        }
        self.entry(uid, Entry::Start { migration, target })
    }

    fn guest_entry(&mut self, uid: GuestUid, entry: Entry) -> Result<BTreeSet<Effect>, Refusal> {
        // Admission alone starts, and asking alone requests: both look at more than one guest.
        if let Entry::Start { .. } | Entry::Request { .. } = entry {
            return Err(Refusal::NotByEntry(entry.name()));
        }
        self.entry(uid, entry)
    }

    fn entry(&mut self, uid: GuestUid, entry: Entry) -> Result<BTreeSet<Effect>, Refusal> {
        let guest = self.guests.get_mut(&uid).ok_or(Refusal::NoGuest(uid))?;
        let before = concerned(&guest.ownership);
        let declines = matches!(entry, Entry::Decline { .. });
        let asked = guest.ownership.attempt.as_ref().and_then(|a| a.phase.target_node()).cloned();
        guest.ownership.apply(entry)?;
        if let (Some(record), Some(attempt)) = (&mut guest.record, &guest.ownership.attempt) {
            record.note(self.time_ms, &attempt.phase);
            if let (true, Some(node)) = (declines, asked) {
                record.declined.retain(|known| *known != node);
                record.declined.push(node);
            }
        }
        let nodes = before.into_iter().chain(concerned(&guest.ownership));
        Ok(nodes.map(|node| Effect { node, guest: uid }).collect())
    }

    fn fence(
        &mut self,
        name: &NodeName,
        boot: BootId,
        instances: &BTreeSet<InstanceId>,
    ) -> Result<BTreeSet<Effect>, Refusal> {
        let node = self.nodes.get_mut(name).ok_or_else(|| Refusal::NoNode(name.clone()))?;
        if node.boot != boot {
            // A vouch that comes late, after the node has booted again, is about nothing that lives now.
            return Err(Refusal::OtherBoot { node: name.clone(), vouched: boot, present: node.boot });
        }
        node.fenced.get_or_insert_default().extend(instances);
        let mut effects = BTreeSet::new();
        for uid in self.guests.keys().copied().collect::<Vec<_>>() {
            let vouch = Entry::Vouch { node: name.clone(), instances: instances.iter().copied().collect() };
            // Guests in which none of them plays a part are not touched.
            if let Ok(touched) = self.entry(uid, vouch) {
                effects.extend(touched);
            }
        }
        Ok(effects)
    }

    fn fence_seen(&mut self, name: &NodeName) -> Result<BTreeSet<Effect>, Refusal> {
        let node = self.nodes.get_mut(name).ok_or_else(|| Refusal::NoNode(name.clone()))?;
        node.fenced = None;
        Ok(BTreeSet::new())
    }

    fn remove_node(&mut self, name: &NodeName) -> Result<BTreeSet<Effect>, Refusal> {
        if !self.nodes.contains_key(name) {
            return Err(Refusal::NoNode(name.clone()));
        }
        if let Some(guest) = self.guests.values().find(|guest| concerned(&guest.ownership).contains(name)) {
            return Err(Refusal::NodeInUse { node: name.clone(), guest: guest.name.clone() });
        }
        self.nodes.remove(name);
        for guest in self.guests.values_mut() {
            guest.ownership.holders.remove(name);
        }
        Ok(BTreeSet::new())
    }

    fn usable(&self, name: &NodeName) -> Result<&Node, Refusal> {
        let node = self.nodes.get(name).ok_or_else(|| Refusal::NoNode(name.clone()))?;
        if node.fenced.is_some() { Err(Refusal::Fenced(name.clone())) } else { Ok(node) }
    }
}

/// The runners that a guest's ownership speaks of.
fn licences_of(ownership: &Ownership) -> Vec<Licence> {
    let mut licences: Vec<Licence> = ownership.owner().cloned().into_iter().collect();
    if let Life::Lost { last, kept } = &ownership.life {
        licences.push(last.clone());
        licences.extend(kept.clone());
    }
    match ownership.attempt.as_ref().map(|attempt| &attempt.phase) {
        Some(
            Phase::Copying { source, target }
            | Phase::HandedOver { source, target, .. }
            | Phase::PostCopy { source, target, .. },
        ) => licences.extend([source.clone(), target.clone()]),
        Some(Phase::Preparing { source, .. }) => licences.push(source.clone()),
        Some(Phase::Pending | Phase::Succeeded | Phase::Failed { .. } | Phase::Cancelled { .. }) | None => {}
    }
    licences
}

/// The nodes that an entry about a guest concerns.
fn concerned(ownership: &Ownership) -> BTreeSet<NodeName> {
    let mut nodes: BTreeSet<NodeName> =
        licences_of(ownership).into_iter().map(|licence| licence.node).collect();
    if let Some(attempt) = &ownership.attempt {
        nodes.extend(attempt.phase.target_node().cloned());
        // Of an ended migration: either may give its permits back, and must hear when the other has.
        if let Permits::Held { source, target } = &attempt.permits {
            nodes.extend([source.clone(), target.clone()]);
        }
    }
    match &ownership.life {
        Life::Deleting(left) => nodes.extend(left.iter().cloned()),
        Life::Creating(node) => nodes.extend([node.clone()]),
        Life::Alive(_) | Life::Lost { .. } | Life::Purged => {}
    }
    nodes
}

/// Whether a guest, a copy of it that is kept, or a reservation for it takes memory on a node.
fn takes_memory(ownership: &Ownership, node: &NodeName) -> bool {
    let lives = licences_of(ownership).iter().any(|licence| licence.node == *node);
    let reserved = ownership.attempt.as_ref().is_some_and(|attempt| match &attempt.permits {
        Permits::Held { target, .. } => target == node,
        Permits::None => false,
    });
    let here = match &ownership.life {
        Life::Creating(at) => at == node,
        Life::Deleting(left) => left.contains(node),
        Life::Alive(_) | Life::Lost { .. } | Life::Purged => false,
    };
    lives || reserved || here
}
