//! Which waiting migration goes next, and where. And why the others wait: computed when asked, never stored.
//!
//! ```text
//!   waiters, by what they ask ─▶ in order (class, aged; then asking) ─▶ the first that has a target ─▶ grant
//!            └ sources at their limit are left out                  └ an ask that has none holds up nobody else
//! ```
//!
//! Always true: what is chosen here is admitted by the registry as it stands now; the same check is made again when the
//! entry is applied. A decision costs one look per ask that can not be satisfied and stands before it: the logarithm of
//! guests and waiters, and at most a scan of the nodes for an ask.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::order::InOrder;
use super::reasons::{Obstacle, WaitReason};
use super::waiters::Needs;
use super::{Guest, GuestUid, Registry};
use crate::ids::{MigrationId, NodeName};
use crate::labels::{self, Labels};
use crate::machine::Body;
use crate::ownership::Phase;

/// A migration that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its guest.
    pub guest: GuestUid,
    /// Its name.
    pub migration: MigrationId,
    /// For what; `None`: it would be granted now.
    pub reason: Option<WaitReason>,
}

/// The two best nodes for each ask: the second is for the guest that runs on the first.
type Judged<'a> = BTreeMap<Needs, Vec<&'a NodeName>>;

impl Registry {
    /// The next grant, given which nodes can be reached: the first in order that has a target.
    pub fn next_admission(
        &self,
        reachable: &BTreeSet<NodeName>,
    ) -> Option<(GuestUid, MigrationId, NodeName)> {
        self.next_admission_but(reachable, &[])
    }

    /// The same, but for these migrations, which rest.
    pub fn next_admission_but(
        &self,
        reachable: &BTreeSet<NodeName>,
        resting: &[MigrationId],
    ) -> Option<(GuestUid, MigrationId, NodeName)> {
        let limits = self.settings.limits();
        if at_least(self.index.granted.len(), limits.cluster) {
            return None;
        }
        let mut order = InOrder::new(self);
        for (class, firsts) in self.index.waiters.firsts() {
            order.push_firsts(class, firsts);
        }
        while let Some((class, uid, needs)) = order.pop() {
            let guest = self.guests.get(&uid)?;
            let migration = &guest.ownership.attempt.as_ref()?.migration;
            if resting.contains(migration) {
                // What holds it up is its own: those behind it may go.
                order.push(class, self.index.waiters.behind(uid, guest));
                if let Some(needs) = needs {
                    order.push_group(class, needs);
                }
                continue;
            }
            let best = match needs {
                Some(needs) => self.two_best(needs, reachable),
                None => self.two_best(&needs_of(guest)?, reachable),
            };
            if let Some(target) = self.best_of(&best, guest, reachable) {
                return Some((uid, migration.clone(), target));
            }
            // The one node that would do is its own: those behind it that leave another node may have it.
            if let (Some(needs), false) = (needs, best.is_empty()) {
                order.push_group(class, needs);
            }
        }
        None
    }

    /// Why a waiting migration waits; `None`: it would be granted now, or does not wait.
    pub fn wait_reason(&self, migration: &MigrationId, reachable: &BTreeSet<NodeName>) -> Option<WaitReason> {
        let (_, guest) = self.guest_of(migration)?;
        let waits = matches!(guest.ownership.phase_of(migration)?, Phase::Pending);
        waits.then(|| self.why_it_waits(guest, reachable, &mut Judged::new(), true)).flatten()
    }

    /// The whole queue, in order, with reasons. Of the first so many it is said who holds the permits, and why each node
    /// can not take it; of the others, that there is none.
    pub fn waiting(&self, reachable: &BTreeSet<NodeName>, explained_max: usize) -> Vec<Waiting> {
        let mut judged = Judged::new();
        let all = self.queue().enumerate().filter_map(|(at, uid)| {
            let guest = self.guests.get(&uid)?;
            let migration = guest.ownership.attempt.as_ref()?.migration.clone();
            let reason = self.why_it_waits(guest, reachable, &mut judged, at < explained_max);
            Some(Waiting { guest: uid, migration, reason })
        });
        all.collect()
    }

    /// The place of a waiting migration in the queue, 1 is the first.
    pub fn queue_position(&self, migration: &MigrationId) -> Option<usize> {
        let uid = self.guest_of(migration)?.0;
        self.queue().position(|waits| waits == uid).map(|at| at + 1)
    }

    /// Guests whose migrations wait, in order.
    pub fn queue(&self) -> impl Iterator<Item = GuestUid> {
        let mut order = InOrder::new(self);
        for (class, places) in self.index.waiters.classes() {
            order.push(class, places.iter());
        }
        std::iter::from_fn(move || order.pop().map(|(_, uid, _)| uid))
    }

    /// Waiting migrations that no node could take even if no other ran: those whose time runs out. In no order.
    pub fn unplaceable(&self, reachable: &BTreeSet<NodeName>) -> Vec<(GuestUid, MigrationId)> {
        let mut able: BTreeMap<Needs, Vec<&NodeName>> = BTreeMap::new();
        let waiting = self.index.open.iter().filter_map(|uid| {
            let guest = self.guests.get(uid)?;
            let attempt = guest.ownership.attempt.as_ref()?;
            let source = &guest.ownership.owner()?.node;
            if !matches!(attempt.phase, Phase::Pending) {
                return None;
            }
            let needs = needs_of(guest)?;
            let able = able.entry(needs).or_insert_with_key(|needs| {
                let is_able = |name: &&NodeName| self.lasting_obstacle(needs, None, name).is_none();
                match &needs.target {
                    Some(target) => reachable.get(target).into_iter().filter(is_able).collect(),
                    None => reachable.iter().filter(is_able).take(2).collect(),
                }
            });
            let is_placeable = !self.lacks_network(source) && able.iter().any(|name| *name != source);
            (!is_placeable).then(|| (*uid, attempt.migration.clone()))
        });
        waiting.collect()
    }

    /// Per node: whether it could take this guest, and why not. As if it were asked for now with these wishes.
    pub fn verdicts(
        &self,
        guest: &Guest,
        wish: &super::Wish,
        reachable: &BTreeSet<NodeName>,
    ) -> BTreeMap<NodeName, Result<(), Obstacle>> {
        let source = guest.ownership.owner().map(|owner| &owner.node);
        let needs = Needs::of(&guest.body, &wish.selector, wish.target.as_ref());
        let judge = |name: &NodeName| match reachable.contains(name) {
            true => self.obstacle(&needs, source, name).map_or(Ok(()), Err),
            false => Err(Obstacle::Unreachable),
        };
        self.nodes.keys().map(|name| (name.clone(), judge(name))).collect()
    }

    /// Where a migration with these wishes would go now, limits of other nodes and the cluster left aside.
    pub fn would_go_to(
        &self,
        guest: &Guest,
        wish: &super::Wish,
        reachable: &BTreeSet<NodeName>,
    ) -> Option<NodeName> {
        let eligible =
            self.verdicts(guest, wish, reachable).into_iter().filter(|(_, verdict)| verdict.is_ok());
        eligible.map(|(name, _)| name).min_by(|a, b| self.rank(a).cmp(&self.rank(b)))
    }

    /// The best node for a new guest.
    pub fn best_home(
        &self,
        body: &Body,
        reachable: &BTreeSet<NodeName>,
    ) -> Result<NodeName, BTreeMap<NodeName, Obstacle>> {
        let needs = Needs::of(body, &Labels::new(), None);
        let (mut best, mut obstacles) = (None, BTreeMap::new());
        for name in self.nodes.keys() {
            let obstacle = match reachable.contains(name) {
                // A guest that does not move needs no migration network.
                true => self.own_obstacle(&needs, name).or_else(|| self.memory_obstacle(&needs, name)),
                false => Some(Obstacle::Unreachable),
            };
            match obstacle {
                Some(obstacle) => {
                    obstacles.insert(name.clone(), obstacle);
                }
                None if best.as_ref().is_none_or(|best| self.rank(name) < self.rank(best)) => {
                    best = Some(name.clone());
                }
                None => {}
            }
        }
        best.ok_or(obstacles)
    }

    fn why_it_waits<'a>(
        &'a self,
        guest: &Guest,
        reachable: &BTreeSet<NodeName>,
        judged: &mut Judged<'a>,
        explains: bool,
    ) -> Option<WaitReason> {
        if let Some(reason) = self.limit_reached(guest, explains) {
            return Some(reason);
        }
        let source = &guest.ownership.owner()?.node;
        if !reachable.contains(source) {
            return Some(WaitReason::SourceUnreachable { node: source.clone() });
        }
        let needs = needs_of(guest)?;
        let best = judged.entry(needs).or_insert_with_key(|needs| self.two_best(needs, reachable));
        if self.best_of(best, guest, reachable).is_some() {
            return None;
        }
        if !explains {
            return Some(WaitReason::NoTarget(BTreeMap::new()));
        }
        let wish = &guest.record.as_ref()?.wish;
        let verdicts = self.verdicts(guest, wish, reachable).into_iter();
        Some(WaitReason::NoTarget(verdicts.filter_map(|(node, why)| Some((node, why.err()?))).collect()))
    }

    /// The best nodes for what asks for this: the second is for the guest that runs on the first.
    fn two_best<'a>(&'a self, needs: &Needs, reachable: &BTreeSet<NodeName>) -> Vec<&'a NodeName> {
        self.index.places.candidates(needs).filter(|name| reachable.contains(*name)).take(2).collect()
    }

    /// Not one that has declined, then most free memory, then fewest inbound, then by name. `best`: the two best.
    fn best_of(&self, best: &[&NodeName], guest: &Guest, reachable: &BTreeSet<NodeName>) -> Option<NodeName> {
        let source = guest.ownership.owner().map(|owner| &owner.node)?;
        if self.lacks_network(source) || !reachable.contains(source) {
            return None;
        }
        let declined = &guest.record.as_ref()?.declined;
        let first = *best.iter().find(|name| **name != source)?;
        if !declined.contains(first) {
            return Some(first.clone());
        }
        // Those that have declined come last, who declined first before the others.
        let place = |name: &NodeName| declined.iter().position(|known| known == name).map_or(0, |at| at + 1);
        let needs = needs_of(guest)?;
        let candidates = self.index.places.candidates(&needs);
        let others = candidates.filter(|name| *name != source && reachable.contains(*name));
        others.min_by_key(|name| place(name)).cloned()
    }

    /// Most free memory first, then fewest inbound, then by name.
    fn rank<'a>(&self, name: &'a NodeName) -> (Reverse<u64>, usize, &'a NodeName) {
        (Reverse(self.free_memory_bytes(name)), self.inbound(name), name)
    }

    /// What holds up this grant, as the registry stands; reachability is not the registry's to judge.
    pub(super) fn what_holds_up(&self, guest: &Guest, target: &NodeName) -> Option<WaitReason> {
        self.limit_reached(guest, true).or_else(|| {
            let wish = &guest.record.as_ref()?.wish;
            let needs = Needs::of(&guest.body, &wish.selector, wish.target.as_ref());
            let source = guest.ownership.owner().map(|owner| &owner.node);
            let obstacle = match self.nodes.contains_key(target) {
                true => self.obstacle(&needs, source, target)?,
                false => Obstacle::Unreachable,
            };
            Some(WaitReason::NoTarget(BTreeMap::from([(target.clone(), obstacle)])))
        })
    }

    /// The limit that holds up a guest; who has its permits is said only if it explains.
    fn limit_reached(&self, guest: &Guest, explains: bool) -> Option<WaitReason> {
        let limits = self.settings.limits();
        if at_least(self.index.granted.len(), limits.cluster) {
            let all = self.index.granted.keys().filter(|_| explains);
            return Some(WaitReason::ClusterLimit { limit: limits.cluster, holders: self.present(all) });
        }
        let node = guest.ownership.owner().map(|owner| owner.node.clone())?;
        if at_least(self.outbound(&node), limits.outbound) {
            let leaving = self.index.nodes.get(&node).into_iter().flat_map(|on_node| &on_node.leaving);
            let holders = self.present(leaving.filter(|_| explains));
            return Some(WaitReason::OutboundLimit { node, limit: limits.outbound, holders });
        }
        let network = self.settings.network.clone().filter(|_| self.lacks_network(&node))?;
        Some(WaitReason::SourceWithoutNetwork { node, network })
    }

    /// The present migrations of these guests.
    fn present<'a>(&self, guests: impl Iterator<Item = &'a GuestUid>) -> Vec<MigrationId> {
        let attempts = guests.filter_map(|uid| self.guests.get(uid)?.ownership.attempt.as_ref());
        attempts.map(|attempt| attempt.migration.clone()).collect()
    }

    fn obstacle(&self, needs: &Needs, source: Option<&NodeName>, name: &NodeName) -> Option<Obstacle> {
        self.lasting_obstacle(needs, source, name).or_else(|| {
            let limit = self.settings.limits().inbound;
            let full = at_least(self.inbound(name), limit);
            full.then(|| {
                let entering = self.index.nodes.get(name).into_iter().flat_map(|on_node| &on_node.entering);
                Obstacle::InboundLimit { limit, holders: self.present(entering) }
            })
        })
    }

    /// All but what ends with the migrations that run.
    fn lasting_obstacle(
        &self,
        needs: &Needs,
        source: Option<&NodeName>,
        name: &NodeName,
    ) -> Option<Obstacle> {
        if source == Some(name) {
            return Some(Obstacle::IsSource);
        }
        self.own_obstacle(needs, name)
            .or_else(|| {
                let network = self.settings.network.clone().filter(|_| self.lacks_network(name))?;
                Some(Obstacle::Network { network })
            })
            .or_else(|| self.memory_obstacle(needs, name))
    }

    /// What the node and its operators have against it.
    fn own_obstacle(&self, needs: &Needs, name: &NodeName) -> Option<Obstacle> {
        let Some(node) = self.nodes.get(name) else { return Some(Obstacle::Unreachable) };
        if needs.target.as_ref().is_some_and(|asked| asked != name) {
            return Some(Obstacle::NotWished);
        }
        if node.fenced.is_some() {
            return Some(Obstacle::Fenced);
        }
        if self.is_cordoned(name) {
            return Some(Obstacle::Cordoned);
        }
        if !needs.selector.is_empty() {
            let carried = self.labels_of_node(name);
            if let Some((key, value)) = labels::missing(&carried, &needs.selector) {
                let (key, value) = (key.to_owned(), value.to_owned());
                let has = carried.get(&key).cloned();
                return Some(Obstacle::Label { key, value, has });
            }
        }
        None
    }

    fn memory_obstacle(&self, needs: &Needs, name: &NodeName) -> Option<Obstacle> {
        let free = self.free_memory_bytes(name);
        (free < needs.bytes).then_some(Obstacle::Memory { free, needs: needs.bytes })
    }
}

fn needs_of(guest: &Guest) -> Option<Needs> {
    let wish = &guest.record.as_ref()?.wish;
    Some(Needs::of(&guest.body, &wish.selector, wish.target.as_ref()))
}

pub(super) fn at_least(count: usize, limit: u32) -> bool {
    u32::try_from(count).map_or(true, |count| count >= limit)
}
