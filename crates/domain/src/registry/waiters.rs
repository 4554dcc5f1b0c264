//! Who waits, kept in the order in which they would go, so that the next one is found without looking at all.
//!
//! ```text
//!   queue per (source, class, ask) ─ its head ─▶ group per (class, ask), of sources that may send ─ its first ─▶ firsts
//! ```
//!
//! Always true: what holds up the head of a queue holds up all behind it, since they leave the same node and ask for the
//! same; and an ask that no node satisfies holds up its whole group. So a decision looks at groups, not at waiters.
//! Never here: ageing, which depends on the time, and which node satisfies an ask.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{Guest, GuestUid};
use crate::ids::NodeName;
use crate::labels::Labels;
use crate::machine::Body;
use crate::ownership::Phase;
use crate::settings::Priority;

/// A place in the order of asking.
pub(super) type Place = (u64, GuestUid);
/// A class of the queue, and what is asked of a node.
pub(super) type Group = (Priority, Needs);

/// What a guest asks of a node. Those that ask for the same are judged once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Needs {
    pub(super) bytes: u64,
    pub(super) target: Option<NodeName>,
    pub(super) selector: Labels,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Waiters {
    /// All of a class.
    classes: BTreeMap<Priority, BTreeSet<Place>>,
    /// By the node that they would leave.
    sources: BTreeMap<NodeName, Source>,
    /// Heads of the queues of sources that may send.
    groups: BTreeMap<Group, BTreeSet<Place>>,
    /// The first of each group.
    firsts: BTreeMap<Priority, BTreeMap<Place, Needs>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Source {
    /// Another migration may leave it.
    may_send: bool,
    queues: BTreeMap<Group, BTreeSet<Place>>,
}

impl Needs {
    /// Of a guest and of this attempt, both; on a clash the guest's own value wins.
    pub(super) fn of(body: &Body, added: &Labels, target: Option<&NodeName>) -> Self {
        let mut selector = added.clone();
        selector.extend(body.node_selector.clone());
        Self { bytes: body.spec.memory_bytes, selector, target: target.cloned() }
    }
}

impl Waiters {
    /// Of every class, its waiters in the order of asking.
    pub(super) fn classes(&self) -> impl Iterator<Item = (Priority, &BTreeSet<Place>)> {
        self.classes.iter().map(|(class, places)| (*class, places))
    }

    /// Of every class, the first of each group.
    pub(super) fn firsts(&self) -> impl Iterator<Item = (Priority, &BTreeMap<Place, Needs>)> {
        self.firsts.iter().map(|(class, firsts)| (*class, firsts))
    }

    /// The heads of a group's queues, one for each source that may send.
    pub(super) fn heads(&self, group: &Group) -> Option<&BTreeSet<Place>> {
        self.groups.get(group)
    }

    /// Those that wait behind this one: they leave the same node, are of its class and ask for the same.
    pub(super) fn behind(&self, uid: GuestUid, guest: &Guest) -> impl Iterator<Item = &Place> {
        let queue = waits(uid, guest).and_then(|(node, group, place)| {
            let queue = self.sources.get(&node)?.queues.get(&group)?;
            Some(queue.range((Bound::Excluded(place), Bound::Unbounded)))
        });
        queue.into_iter().flatten()
    }

    pub(super) fn learn(&mut self, uid: GuestUid, guest: &Guest) {
        let Some((node, group, place)) = waits(uid, guest) else { return };
        self.classes.entry(group.0).or_default().insert(place);
        let source = self.sources.entry(node).or_default();
        let queue = source.queues.entry(group.clone()).or_default();
        let before = queue.first().copied();
        queue.insert(place);
        let (after, may_send) = (queue.first().copied(), source.may_send);
        if may_send {
            self.head(&group, before, after);
        }
    }

    pub(super) fn forget(&mut self, uid: GuestUid, guest: &Guest) {
        let Some((node, group, place)) = waits(uid, guest) else { return };
        if let Some(class) = self.classes.get_mut(&group.0) {
            class.remove(&place);
            if class.is_empty() {
                self.classes.remove(&group.0);
            }
        }
        let Some(source) = self.sources.get_mut(&node) else { return };
        let Some(queue) = source.queues.get_mut(&group) else { return };
        let before = queue.first().copied();
        queue.remove(&place);
        let (after, may_send) = (queue.first().copied(), source.may_send);
        if queue.is_empty() {
            source.queues.remove(&group);
        }
        if source.queues.is_empty() {
            self.sources.remove(&node);
        }
        if may_send {
            self.head(&group, before, after);
        }
    }

    /// Whether another migration may leave this node.
    pub(super) fn may_send(&mut self, node: &NodeName, may: bool) {
        let Some(source) = self.sources.get_mut(node) else { return };
        if source.may_send == may {
            return;
        }
        source.may_send = may;
        let heads = source.queues.iter().map(|(group, queue)| (group.clone(), queue.first().copied()));
        for (group, head) in heads.collect::<Vec<_>>() {
            let (before, after) = if may { (None, head) } else { (head, None) };
            self.head(&group, before, after);
        }
    }

    /// Another one is at the head of a queue.
    fn head(&mut self, group: &Group, before: Option<Place>, after: Option<Place>) {
        if before == after {
            return;
        }
        let heads = self.groups.entry(group.clone()).or_default();
        let first_before = heads.first().copied();
        if let Some(place) = before {
            heads.remove(&place);
        }
        heads.extend(after);
        let first_after = heads.first().copied();
        if heads.is_empty() {
            self.groups.remove(group);
        }
        if first_before == first_after {
            return;
        }
        let firsts = self.firsts.entry(group.0).or_default();
        if let Some(place) = first_before {
            firsts.remove(&place);
        }
        firsts.extend(first_after.map(|place| (place, group.1.clone())));
        if firsts.is_empty() {
            self.firsts.remove(&group.0);
        }
    }
}

/// Where a waiting migration stands: the node that it would leave, its class and what it asks, its place.
fn waits(uid: GuestUid, guest: &Guest) -> Option<(NodeName, Group, Place)> {
    if !matches!(guest.ownership.attempt.as_ref()?.phase, Phase::Pending) {
        return None;
    }
    let (owner, record) = (guest.ownership.owner()?, guest.record.as_ref()?);
    let needs = Needs::of(&guest.body, &record.wish.selector, record.wish.target.as_ref());
    Some((owner.node.clone(), (record.class, needs), (record.sequence, uid)))
}
