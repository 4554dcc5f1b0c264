//! Which waiting migration goes next, and where. And why the others wait: computed when asked, never stored.
//!
//! Always true: what is chosen here is admitted by the registry as it stands now; the same check is made again when the
//! entry is applied. A migration that one node holds up does not hold up those behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Guest, GuestUid, Registry};
use crate::ids::{MigrationId, NodeName};
use crate::ownership::Phase;

/// Why a migration waits, with what would satisfy it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitReason {
    /// As many migrations run as the cluster allows.
    ClusterLimit {
        /// The limit.
        limit: u32,
        /// Who holds the permits.
        holders: Vec<MigrationId>,
    },
    /// As many leave its node as allowed.
    OutboundLimit {
        /// The node.
        node: NodeName,
        /// The limit.
        limit: u32,
        /// Who holds the permits.
        holders: Vec<MigrationId>,
    },
    /// No node can take it, for these reasons.
    NoTarget(BTreeMap<NodeName, Obstacle>),
}

/// Why a node can not take a guest now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Obstacle {
    /// The guest runs there.
    IsSource,
    /// Another node was asked for.
    NotWished,
    /// The leader does not hear it.
    Unreachable,
    /// It was vouched to be off.
    Fenced,
    /// Not enough memory is free.
    Memory {
        /// What is free, in bytes.
        free: u64,
        /// What is needed, in bytes.
        needs: u64,
    },
    /// As many enter as allowed.
    InboundLimit {
        /// The limit.
        limit: u32,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IsSource => write!(f, "the guest runs there"),
            Self::NotWished => write!(f, "another node was asked for"),
            Self::Unreachable => write!(f, "it can not be reached"),
            Self::Fenced => write!(f, "it is fenced"),
            Self::Memory { free, needs } => write!(f, "{free} bytes are free, {needs} are needed"),
            Self::InboundLimit { limit } => write!(f, "{limit} migrations enter it, as many as allowed"),
        }
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            |holders: &[MigrationId]| holders.iter().map(MigrationId::as_str).collect::<Vec<_>>().join(", ");
        match self {
            Self::ClusterLimit { limit, holders } => {
                write!(f, "{limit} migrations run, as many as the cluster allows: {}", names(holders))
            }
            Self::OutboundLimit { node, limit, holders } => {
                write!(f, "{limit} migrations leave {node}, as many as allowed: {}", names(holders))
            }
            Self::NoTarget(nodes) => {
                write!(f, "no node can take it")?;
                nodes.iter().try_for_each(|(node, why)| write!(f, "; {node}: {why}"))
            }
        }
    }
}

impl Registry {
    /// The next grant, given which nodes can be reached: the first in the order of asking that has a target.
    pub fn next_admission(
        &self,
        reachable: &BTreeSet<NodeName>,
    ) -> Option<(GuestUid, MigrationId, NodeName)> {
        let waiting = self.waiting();
        waiting.into_iter().find_map(|(uid, guest, migration)| {
            let target = self.best_target(guest, reachable).ok()?;
            Some((uid, migration.clone(), target))
        })
    }

    /// Why a waiting migration waits; `None`: it would be granted now, or does not wait.
    pub fn wait_reason(&self, migration: &MigrationId, reachable: &BTreeSet<NodeName>) -> Option<WaitReason> {
        let waiting = self.waiting();
        let (_, guest, _) = waiting.into_iter().find(|(_, _, waits)| *waits == migration)?;
        self.best_target(guest, reachable).err()
    }

    /// The place of a waiting migration in the queue, 1 is the first.
    pub fn queue_position(&self, migration: &MigrationId) -> Option<usize> {
        self.waiting().iter().position(|(_, _, waits)| *waits == migration).map(|at| at + 1)
    }

    /// Waiting migrations in the order of asking.
    fn waiting(&self) -> Vec<(GuestUid, &Guest, &MigrationId)> {
        let mut waiting: Vec<_> = self
            .guests
            .iter()
            .filter_map(|(uid, guest)| {
                let attempt = guest.ownership.attempt.as_ref()?;
                matches!(attempt.phase, Phase::Pending).then_some((*uid, guest, &attempt.migration))
            })
            .collect();
        waiting.sort_by_key(|(_, guest, _)| guest.record.as_ref().map_or(u64::MAX, |record| record.sequence));
        waiting
    }

    /// The best target: not one that has declined, then most free memory, then fewest inbound, then by name.
    fn best_target(&self, guest: &Guest, reachable: &BTreeSet<NodeName>) -> Result<NodeName, WaitReason> {
        if let Some(reason) = self.limit_reached(guest) {
            return Err(reason);
        }
        let mut obstacles = BTreeMap::new();
        let mut eligible = Vec::new();
        for name in self.nodes.keys() {
            let obstacle = if reachable.contains(name) {
                self.obstacle(guest, name)
            } else {
                Some(Obstacle::Unreachable)
            };
            match obstacle {
                Some(obstacle) => {
                    obstacles.insert(name.clone(), obstacle);
                }
                None => eligible.push(name),
            }
        }
        let declined = |name: &NodeName| {
            guest
                .record
                .as_ref()
                .and_then(|record| record.declined.iter().position(|known| known == name))
                .map_or(0, |at| at + 1)
        };
        let best = eligible.into_iter().min_by_key(|name| {
            let free = std::cmp::Reverse(self.free_memory_bytes(name));
            (declined(name), free, self.inbound(name), (*name).clone())
        });
        best.cloned().ok_or(WaitReason::NoTarget(obstacles))
    }

    /// What holds up this grant, as the registry stands; reachability is not the registry's to judge.
    pub(super) fn what_holds_up(&self, guest: &Guest, target: &NodeName) -> Option<WaitReason> {
        self.limit_reached(guest).or_else(|| {
            let obstacle = match self.nodes.contains_key(target) {
                true => self.obstacle(guest, target)?,
                false => Obstacle::Unreachable,
            };
            Some(WaitReason::NoTarget(BTreeMap::from([(target.clone(), obstacle)])))
        })
    }

    fn limit_reached(&self, guest: &Guest) -> Option<WaitReason> {
        let all: Vec<_> =
            self.granted().map(|(attempt, source, _)| (attempt.migration.clone(), source)).collect();
        let limit = self.limits.cluster;
        if at_least(all.len(), limit) {
            let holders = all.into_iter().map(|(migration, _)| migration).collect();
            return Some(WaitReason::ClusterLimit { limit, holders });
        }
        let node = guest.ownership.owner().map(|owner| owner.node.clone())?;
        let limit = self.limits.outbound;
        let leaving: Vec<_> =
            all.into_iter().filter(|(_, source)| **source == node).map(|(migration, _)| migration).collect();
        at_least(leaving.len(), limit).then_some(WaitReason::OutboundLimit { node, limit, holders: leaving })
    }

    fn obstacle(&self, guest: &Guest, name: &NodeName) -> Option<Obstacle> {
        let node = self.nodes.get(name)?;
        if guest.ownership.owner().is_some_and(|owner| owner.node == *name) {
            return Some(Obstacle::IsSource);
        }
        if guest.record.as_ref().and_then(|record| record.target.as_ref()).is_some_and(|asked| asked != name)
        {
            return Some(Obstacle::NotWished);
        }
        if node.fenced.is_some() {
            return Some(Obstacle::Fenced);
        }
        let (free, needs) = (self.free_memory_bytes(name), guest.memory_bytes());
        if free < needs {
            return Some(Obstacle::Memory { free, needs });
        }
        let limit = self.limits.inbound;
        at_least(self.inbound(name), limit).then_some(Obstacle::InboundLimit { limit })
    }

    fn inbound(&self, name: &NodeName) -> usize {
        self.granted().filter(|(_, _, target)| *target == name).count()
    }
}

fn at_least(count: usize, limit: u32) -> bool {
    u32::try_from(count).map_or(true, |count| count >= limit)
}
