//! What can be counted of the guests, counted as they change: so that a question costs what its answer does.
//!
//! ```text
//!   guest as it was ─▶ forget ─┐                                                             ┌─▶ waiters
//!                              ├─▶ names, migrations, permits, memory per node ─▶ refresh ──┤
//!   guest as it is ──▶ learn ──┘                                                             └─▶ places
//! ```
//!
//! Always true: it is what one pass over all guests would count (a property test does); it is in no snapshot.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::admission::at_least;
use super::places::{Places, Rank};
use super::waiters::Waiters;
use super::{Guest, GuestUid, State, concerned, takes_memory_on};
use crate::ids::{GuestName, MigrationId, NodeName};
use crate::ownership::{Life, Ownership, Permits};
use crate::planted;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// Guests that are not purged.
    pub(super) by_name: BTreeMap<GuestName, GuestUid>,
    /// Migrations, present and kept.
    pub(super) by_migration: BTreeMap<MigrationId, GuestUid>,
    /// Waiting migrations.
    pub(super) waiters: Waiters,
    /// Where guests can go.
    pub(super) places: Places,
    /// Guests with a migration that is not over.
    pub(super) open: BTreeSet<GuestUid>,
    /// Guests of which it is not known who runs them.
    pub(super) unsure: BTreeSet<GuestUid>,
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
    /// Guests whose migrations leave it with their permits.
    pub(super) leaving: BTreeSet<GuestUid>,
    /// Guests whose migrations enter it with their permits.
    pub(super) entering: BTreeSet<GuestUid>,
    /// Memory of guests and reservations, in bytes. Wide, so that no sum of what operators wrote runs over.
    pub(super) taken_bytes: u128,
    /// Guests that it owns.
    pub(super) owned: BTreeSet<GuestUid>,
    /// Guests that it plays a part in, or may hold something of.
    pub(super) touched: BTreeSet<GuestUid>,
}

impl Index {
    pub(super) fn of(state: &State) -> Self {
        let mut index = Self::default();
        for (uid, guest) in &state.guests {
            index.learn(*uid, guest);
        }
        for name in state.nodes.keys() {
            index.places.label(name, state.labels_of_node(name));
        }
        index.refresh_all(state);
        index
    }

    /// What follows for a node from what is on it, what it is and the limits.
    pub(super) fn refresh(&mut self, state: &State, name: &NodeName) {
        let limits = state.settings.limits();
        let (outbound, inbound, taken) = self.nodes.get(name).map_or((0, 0, 0), |on_node| {
            (on_node.leaving.len(), on_node.entering.len(), on_node.taken_bytes)
        });
        let on_network = !state.lacks_network(name);
        self.waiters.may_send(name, on_network && !at_least(outbound, limits.outbound));
        let node = state.nodes.get(name).filter(|node| node.fenced.is_none());
        let open = on_network && !state.is_cordoned(name) && !at_least(inbound, limits.inbound);
        let rank = |bytes| -> Rank { (Reverse(free_bytes(bytes, taken)), inbound) };
        self.places.rank(name, node.filter(|_| open).map(|node| rank(node.memory_bytes)));
    }

    /// The same for all, where the limits have changed.
    pub(super) fn refresh_all(&mut self, state: &State) {
        let names: BTreeSet<&NodeName> = state.nodes.keys().collect();
        let others: Vec<NodeName> = self.nodes.keys().filter(|name| !names.contains(name)).cloned().collect();
        for name in names.into_iter().chain(&others) {
            self.refresh(state, name);
        }
    }

    pub(super) fn learn(&mut self, uid: GuestUid, guest: &Guest) {
        let ownership = &guest.ownership;
        if ownership.life != Life::Purged {
            self.by_name.insert(guest.name.clone(), uid);
        }
        if let Life::Unsure(_) = ownership.life {
            self.unsure.insert(uid);
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
                self.node(source).leaving.insert(uid);
                self.node(target).entering.insert(uid);
            }
        }
        self.waiters.learn(uid, guest);
        for node in takes_memory_on(ownership) {
            self.node(&node).taken_bytes += u128::from(guest.memory_bytes());
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
        self.unsure.remove(&uid);
        if let Some((source, target)) = self.granted.remove(&uid) {
            let twice = planted::is_on("permit-released-twice");
            self.with(&source, |node| release(&mut node.leaving, uid, twice));
            self.with(&target, |node| release(&mut node.entering, uid, twice));
        }
        self.waiters.forget(uid, guest);
        for node in takes_memory_on(ownership) {
            self.with(&node, |node| node.taken_bytes -= u128::from(guest.memory_bytes()));
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

/// A guest's permit on a node comes back; as a bug that tests switch on, another's with it.
fn release(held: &mut BTreeSet<GuestUid>, uid: GuestUid, twice: bool) {
    held.remove(&uid);
    if twice {
        held.pop_first();
    }
}

/// Memory that is not taken, in bytes.
pub(super) fn free_bytes(memory_bytes: u64, taken_bytes: u128) -> u64 {
    u64::try_from(u128::from(memory_bytes).saturating_sub(taken_bytes)).unwrap_or(0)
}

/// The nodes on which this counts.
pub(super) fn counts_on(ownership: &Ownership) -> BTreeSet<NodeName> {
    let mut nodes = takes_memory_on(ownership);
    if let Some(Permits::Held { source, .. }) = ownership.attempt.as_ref().map(|attempt| &attempt.permits) {
        nodes.insert(source.clone());
    }
    nodes
}
