//! Who founds a group, and what a disk belongs to. Who is in the group later its log says (`members`).
//!
//! Always true of [`Voters`]: 3 or 5 of them, so that one or two may die; no id and no name twice.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;

use godwit_domain::{GroupId, NodeName};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::members::Members;

/// A voter's number in the replicated log. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(NonZeroU64);

impl NodeId {
    /// The smallest.
    pub(crate) const FIRST: Self = Self(NonZeroU64::MIN);

    /// From a number; 0 is nobody.
    pub const fn new(id: u64) -> Option<Self> {
        match NonZeroU64::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Why this is no group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Too few to survive a death, an even number, or more than pay off.
    #[error("{0} voters; a control group has 3 or 5")]
    Size(usize),
    /// Two voters are called the same.
    #[error("the name {0} is given to two voters")]
    NameTwice(NodeName),
    /// One id is given twice.
    #[error("the id {0} is given to two voters")]
    IdTwice(NodeId),
    /// This node is not among them.
    #[error("node id {0} is not among the voters")]
    NotAVoter(NodeId),
}

/// The voters of a group, by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voters(BTreeMap<NodeId, NodeName>);

impl Voters {
    /// A group of 3 or 5.
    pub fn new(voters: impl IntoIterator<Item = (NodeId, NodeName)>) -> Result<Self, GroupError> {
        let mut by_id = BTreeMap::new();
        for (id, name) in voters {
            if by_id.values().any(|present| *present == name) {
                return Err(GroupError::NameTwice(name));
            }
            if by_id.insert(id, name).is_some() {
                return Err(GroupError::IdTwice(id));
            }
        }
        if by_id.len() == 3 || by_id.len() == 5 {
            Ok(Self(by_id))
        } else {
            Err(GroupError::Size(by_id.len()))
        }
    }

    /// Ids and names, in order of id.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &NodeName)> {
        self.0.iter().map(|(id, name)| (*id, name))
    }

    /// What a voter is called.
    pub fn name(&self, id: NodeId) -> Option<&NodeName> {
        self.0.get(&id)
    }

    /// Which voter is called that.
    pub fn id_of(&self, name: &NodeName) -> Option<NodeId> {
        self.iter().find(|(_, present)| *present == name).map(|(id, _)| id)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A voter's place in order of id, from 0.
    pub fn rank(&self, id: NodeId) -> usize {
        self.0.keys().take_while(|present| **present < id).count()
    }

    /// The bare numbers.
    pub fn numbers(&self) -> Vec<u64> {
        self.0.keys().map(|id| id.get()).collect()
    }
}

/// What a folder on disk belongs to: it can not be taken for another node's, nor for another group's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    cluster: String,
    group: GroupId,
    node: NodeId,
    name: NodeName,
    founders: Members,
}

/// The group that these voters found when they start for the first time. They need not speak for that: each says the same.
pub fn founded(cluster: &str, voters: &Voters) -> GroupId {
    let names: Vec<&str> = voters.iter().map(|(_, name)| name.as_str()).collect();
    GroupId(xxh3_128(format!("{cluster}/{}", names.join("/")).as_bytes()))
}

impl Identity {
    /// One of those who found a group of this cluster.
    pub fn new(cluster: impl Into<String>, node: NodeId, voters: Voters) -> Result<Self, GroupError> {
        let Some(name) = voters.name(node).cloned() else { return Err(GroupError::NotAVoter(node)) };
        let cluster = cluster.into();
        Ok(Self {
            group: founded(&cluster, &voters),
            founders: Members::founding(&voters),
            cluster,
            node,
            name,
        })
    }

    /// A member of a group that others have founded.
    pub fn seated(
        cluster: impl Into<String>,
        group: GroupId,
        (node, name): (NodeId, NodeName),
        founders: Members,
    ) -> Self {
        Self { cluster: cluster.into(), group, node, name, founders }
    }

    /// The cluster's id.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Who was in the group before its first entry.
    pub fn founders(&self) -> &Members {
        &self.founders
    }

    /// Whether both name the same member of the same group.
    pub fn is_same_node(&self, other: &Self) -> bool {
        let of = |it: &Self| (it.cluster.clone(), it.group, it.node, it.name.clone());
        of(self) == of(other)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, group, node, name, .. } = self;
        write!(f, "node {name} (voter {node}) of group {group} of cluster {cluster}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(ids: &[u64]) -> Vec<(NodeId, NodeName)> {
        ids.iter()
            .map(|id| (NodeId::new(*id).expect("not 0"), format!("node-{id}").parse().expect("a name")))
            .collect()
    }

    #[test]
    fn a_group_has_three_or_five_voters_with_names_of_their_own() {
        assert!(Voters::new(named(&[1, 2, 3])).is_ok() && Voters::new(named(&[1, 2, 3, 4, 5])).is_ok());
        assert_eq!(Voters::new(named(&[1, 2])), Err(GroupError::Size(2)));
        assert_eq!(Voters::new(named(&[1, 2, 3, 4])), Err(GroupError::Size(4)));
        let mut twice = named(&[1, 2, 3]);
        twice[2].1 = "node-1".parse().expect("a name");
        assert!(matches!(Voters::new(twice), Err(GroupError::NameTwice(_))));
        let voters = Voters::new(named(&[7, 2, 9])).expect("a group");
        let stranger = NodeId::new(4).expect("not 0");
        assert_eq!(voters.numbers(), [2, 7, 9]);
        assert_eq!(voters.rank(NodeId::new(9).expect("not 0")), 2);
        assert_eq!(Identity::new("c", stranger, voters), Err(GroupError::NotAVoter(stranger)));
    }
}
