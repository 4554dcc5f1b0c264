//! The same answers as the registry's, worked out anew from the state alone, without an index and without a short cut.

use super::*;
use crate::ownership::{Licence, Life, Permits, Phase};

pub(super) fn nodes() -> Vec<NodeName> {
    ["a", "b", "c", "d", "e", "f", "g", "h"].map(name).into()
}

fn held(guest: &Guest) -> Option<(&NodeName, &NodeName)> {
    match &guest.ownership.attempt.as_ref()?.permits {
        Permits::Held { source, target } => Some((source, target)),
        Permits::None => None,
    }
}

pub(super) fn permits(registry: &Registry, of: impl Fn(&NodeName, &NodeName) -> bool) -> usize {
    registry.guests.values().filter_map(held).filter(|(source, target)| of(source, target)).count()
}

/// Whether a guest, a copy of it or a reservation for it is on a node. One that is being deleted is everywhere where
/// it may be, if that is asked for.
fn is_on(guest: &Guest, node: &NodeName, deleted_too: bool) -> bool {
    let ownership = &guest.ownership;
    let in_life = match &ownership.life {
        Life::Creating(at) => at == node,
        Life::Alive(owner) => owner.node == *node,
        Life::Lost { last, kept } => {
            last.node == *node || kept.as_ref().is_some_and(|kept| kept.node == *node)
        }
        Life::Deleting(left) => deleted_too && left.contains(node),
        Life::Purged => false,
        Life::Unsure(doubt) => doubt.licences().iter().any(|licence| licence.node == *node),
    };
    let is_copied = |source: &Licence, target: &Licence| source.node == *node || target.node == *node;
    let in_phase = ownership.attempt.as_ref().is_some_and(|attempt| match &attempt.phase {
        Phase::Preparing { source, target } => source.node == *node || target == node,
        Phase::Copying { source, target }
        | Phase::HandedOver { source, target, .. }
        | Phase::PostCopy { source, target, .. } => is_copied(source, target),
        Phase::Pending | Phase::Succeeded | Phase::Failed { .. } | Phase::Cancelled { .. } => false,
    });
    in_life || in_phase || held(guest).is_some_and(|(_, target)| target == node)
}

/// Memory of guests and reservations on a node, in bytes.
pub(super) fn taken(registry: &Registry, node: &NodeName, deleted_too: bool) -> u64 {
    let there = registry.guests.values().filter(|guest| is_on(guest, node, deleted_too));
    there.map(|guest| guest.body.spec.memory_bytes).sum()
}

fn aged(registry: &Registry, record: &Record) -> usize {
    let classes = [Priority::Low, Priority::Normal, Priority::High, Priority::Drain];
    let class = classes.iter().position(|class| *class == record.class).expect("a class");
    let tens_of_minutes = (registry.time_ms - record.steps[0].time_ms) / 1000 / 60 / 10;
    let gained = usize::try_from(tens_of_minutes.min(9)).expect("a small number");
    if class == 3 { 3 } else { (class + gained).min(2) }
}

/// Guests that wait, in order.
pub(super) fn order(registry: &Registry) -> Vec<GuestUid> {
    let mut waiting = Vec::new();
    for (uid, guest) in &registry.guests {
        let is_pending =
            guest.ownership.attempt.as_ref().is_some_and(|attempt| attempt.phase == Phase::Pending);
        if let (true, Some(_), Some(record)) = (is_pending, guest.ownership.owner(), &guest.record) {
            waiting.push((3 - aged(registry, record), record.sequence, *uid));
        }
    }
    waiting.sort_unstable();
    waiting.into_iter().map(|(_, _, uid)| uid).collect()
}

fn is_on_network(registry: &Registry, node: &NodeName) -> bool {
    let Some(network) = &registry.settings.network else { return true };
    registry.nodes.get(node).is_none_or(|node| node.networks.contains_key(network))
}

/// Whether a node could take a guest; `runs`: what runs now and how much is free counts too.
fn could_take(registry: &Registry, guest: &Guest, name: &NodeName, limits_too: bool) -> bool {
    let Some(node) = registry.nodes.get(name) else { return false };
    let wish = registry.node_wishes.get(name).cloned().unwrap_or_default();
    let record = guest.record.as_ref().expect("a record");
    let (own, added) = (&guest.body.node_selector, &record.wish.selector);
    let carries = |key: &String, value: &String| {
        wish.labels.get(key).or_else(|| node.labels.get(key)).is_some_and(|carried| carried == value)
    };
    let inbound = permits(registry, |_, target| target == name);
    own.iter().all(|(key, value)| carries(key, value))
        && added.iter().all(|(key, value)| own.contains_key(key) || carries(key, value))
        && record.wish.target.as_ref().is_none_or(|target| target == name)
        && guest.ownership.owner().is_some_and(|owner| owner.node != *name)
        && node.fenced.is_none()
        && !wish.cordoned
        && is_on_network(registry, name)
        && node.memory_bytes.saturating_sub(taken(registry, name, true)) >= guest.memory_bytes()
        && (!limits_too || inbound < registry.limits().inbound as usize)
}

/// What is granted next.
pub(super) fn next(
    registry: &Registry,
    reachable: &BTreeSet<NodeName>,
) -> Option<(GuestUid, MigrationId, NodeName)> {
    let limits = registry.limits();
    if permits(registry, |_, _| true) >= limits.cluster as usize {
        return None;
    }
    for uid in order(registry) {
        let guest = &registry.guests[&uid];
        let source = &guest.ownership.owner().expect("an owner").node;
        let leave = permits(registry, |from, _| from == source);
        if leave >= limits.outbound as usize
            || !is_on_network(registry, source)
            || !reachable.contains(source)
        {
            continue;
        }
        let record = guest.record.as_ref().expect("a record");
        let mut able: Vec<&NodeName> =
            reachable.iter().filter(|name| could_take(registry, guest, name, true)).collect();
        able.sort_by_key(|name| {
            let declined = record.declined.iter().position(|known| known == *name);
            let free = registry.nodes[*name].memory_bytes.saturating_sub(taken(registry, name, true));
            let inbound = permits(registry, |_, target| target == *name);
            (declined.map_or(0, |at| at + 1), u64::MAX - free, inbound, *name)
        });
        if let Some(target) = able.first() {
            let migration = guest.ownership.attempt.as_ref().expect("a migration").migration.clone();
            return Some((uid, migration, (*target).clone()));
        }
    }
    None
}

/// Waiting guests that no node could take even if nothing else ran.
pub(super) fn unplaceable(registry: &Registry, reachable: &BTreeSet<NodeName>) -> BTreeSet<GuestUid> {
    let hopeless = order(registry).into_iter().filter(|uid| {
        let guest = &registry.guests[uid];
        let source = &guest.ownership.owner().expect("an owner").node;
        !is_on_network(registry, source)
            || !reachable.iter().any(|name| could_take(registry, guest, name, false))
    });
    hopeless.collect()
}
