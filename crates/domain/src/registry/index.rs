//! What can be counted of the guests, counted as they change: so that a question costs what its answer does.
//!
//! ```text
//!   guest as it was ─▶ forget ─┐
//!                              ├─▶ names, migrations, queues, permits, memory per node
//!   guest as it is ──▶ learn ──┘
//! ```
//!
//! Always true: it is what one pass over all guests would count (a property test does); it is in no snapshot.

use std::collections::{BTreeMap, BTreeSet};

use super::{Guest, GuestUid, concerned, takes_memory_on};
use crate::ids::{GuestName, MigrationId, NodeName};
use crate::ownership::{Life, Permits, Phase};
use crate::settings::Priority;

/// A queue of one class, in the order of asking.
pub(super) type Queue = BTreeSet<(u64, GuestUid)>;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// Guests that are not purged.
    pub(super) by_name: BTreeMap<GuestName, GuestUid>,
    /// Migrations, present and kept.
    pub(super) by_migration: BTreeMap<MigrationId, GuestUid>,
    /// Waiting migrations by the node that they would leave, and by class.
    pub(super) waiting: BTreeMap<NodeName, BTreeMap<Priority, Queue>>,
    /// Guests with a migration that is not over.
    pub(super) open: BTreeSet<GuestUid>,
    /// Guests whose migration holds permits: source and target.
    pub(super) granted: BTreeMap<GuestUid, (NodeName, NodeName)>,
    /// Earlier migrations that are kept, by the order of asking.
    pub(super) kept: BTreeMap<u64, GuestUid>,
    /// Per node.
    pub(super) nodes: BTreeMap<NodeName, OnNode>,
}

/// What is on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OnNode {
    /// Migrations that leave it with their permits.
    pub(super) outbound: usize,
    /// Migrations that enter it with their permits.
    pub(super) inbound: usize,
    /// Memory of guests and reservations, in bytes.
    pub(super) taken_bytes: u64,
    /// Guests that it owns.
    pub(super) owned: BTreeSet<GuestUid>,
    /// Guests that it plays a part in, or may hold something of.
    pub(super) touched: BTreeSet<GuestUid>,
}

impl Index {
    pub(super) fn of(guests: &BTreeMap<GuestUid, Guest>) -> Self {
        let mut index = Self::default();
        for (uid, guest) in guests {
            index.learn(*uid, guest);
        }
        index
    }

    pub(super) fn learn(&mut self, uid: GuestUid, guest: &Guest) {
        let ownership = &guest.ownership;
        if ownership.life != Life::Purged {
            self.by_name.insert(guest.name.clone(), uid);
        }
        for finished in &guest.finished {
            self.by_migration.insert(finished.attempt.migration.clone(), uid);
            self.kept.insert(finished.record.sequence, uid);
        }
        if let Some(attempt) = &ownership.attempt {
            self.by_migration.insert(attempt.migration.clone(), uid);
            if !attempt.phase.is_over() {
                self.open.insert(uid);
            }
            if let Permits::Held { source, target } = &attempt.permits {
                self.granted.insert(uid, (source.clone(), target.clone()));
                self.node(source).outbound += 1;
                self.node(target).inbound += 1;
            }
        }
        if let Some((node, class, place)) = waits(uid, guest) {
            self.waiting.entry(node).or_default().entry(class).or_default().insert(place);
        }
        for node in takes_memory_on(ownership) {
            self.node(&node).taken_bytes += guest.memory_bytes();
        }
        if let Some(owner) = ownership.owner() {
            self.node(&owner.node).owned.insert(uid);
        }
        for node in concerned(ownership).into_iter().chain(ownership.holders.iter().cloned()) {
            self.node(&node).touched.insert(uid);
        }
    }

    pub(super) fn forget(&mut self, uid: GuestUid, guest: &Guest) {
        let ownership = &guest.ownership;
        if self.by_name.get(&guest.name) == Some(&uid) {
            self.by_name.remove(&guest.name);
        }
        for finished in &guest.finished {
            self.by_migration.remove(&finished.attempt.migration);
            self.kept.remove(&finished.record.sequence);
        }
        if let Some(attempt) = &ownership.attempt {
            self.by_migration.remove(&attempt.migration);
        }
        self.open.remove(&uid);
        if let Some((source, target)) = self.granted.remove(&uid) {
            self.with(&source, |node| node.outbound -= 1);
            self.with(&target, |node| node.inbound -= 1);
        }
        if let Some((node, class, place)) = waits(uid, guest)
            && let Some(classes) = self.waiting.get_mut(&node)
        {
            if let Some(queue) = classes.get_mut(&class) {
                queue.remove(&place);
            }
            classes.retain(|_, queue| !queue.is_empty());
            if classes.is_empty() {
                self.waiting.remove(&node);
            }
        }
        for node in takes_memory_on(ownership) {
            self.with(&node, |node| node.taken_bytes -= guest.memory_bytes());
        }
        if let Some(owner) = ownership.owner() {
            self.with(&owner.node, |node| {
                node.owned.remove(&uid);
            });
        }
        for node in concerned(ownership).into_iter().chain(ownership.holders.iter().cloned()) {
            self.with(&node, |node| {
                node.touched.remove(&uid);
            });
        }
    }

    fn node(&mut self, name: &NodeName) -> &mut OnNode {
        self.nodes.entry(name.clone()).or_default()
    }

    fn with(&mut self, name: &NodeName, change: impl FnOnce(&mut OnNode)) {
        if let Some(node) = self.nodes.get_mut(name) {
            change(node);
            if *node == OnNode::default() {
                self.nodes.remove(name);
            }
        }
    }
}

/// Where a waiting migration stands: the node that it would leave, its class, its place.
fn waits(uid: GuestUid, guest: &Guest) -> Option<(NodeName, Priority, (u64, GuestUid))> {
    let pending = matches!(guest.ownership.attempt.as_ref()?.phase, Phase::Pending);
    let (owner, record) = (guest.ownership.owner()?, guest.record.as_ref()?);
    pending.then(|| (owner.node.clone(), record.class, (record.sequence, uid)))
}
