//! Why a migration waits, and why a node can not take a guest: with what would satisfy it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{MigrationId, NodeName};

/// Nodes that are named in a text; the rest is counted.
const NODES_NAMED_MAX: usize = 8;

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
    /// Its node is not on the migration network.
    SourceWithoutNetwork {
        /// The node.
        node: NodeName,
        /// The network.
        network: String,
    },
    /// Its node is not heard.
    SourceUnreachable {
        /// The node.
        node: NodeName,
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
    /// It takes no guests.
    Cordoned,
    /// It lacks a label that is asked for.
    Label {
        /// The key.
        key: String,
        /// The value that is asked for.
        value: String,
        /// What it carries instead.
        has: Option<String>,
    },
    /// It is not on the migration network.
    Network {
        /// The network.
        network: String,
    },
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
        /// Who holds the permits.
        holders: Vec<MigrationId>,
    },
}

impl WaitReason {
    /// In a few words, for lists.
    pub fn brief(&self) -> String {
        match self {
            Self::ClusterLimit { limit: 0, .. } | Self::OutboundLimit { limit: 0, .. } => self.to_string(),
            Self::ClusterLimit { limit, .. } => format!("waits for one of the cluster's {limit} permits"),
            Self::OutboundLimit { node, limit, .. } => {
                format!("waits for one of {node}'s {limit} outbound permits")
            }
            Self::SourceWithoutNetwork { .. } | Self::SourceUnreachable { .. } | Self::NoTarget(_) => {
                self.to_string()
            }
        }
    }
}

fn names(holders: &[MigrationId]) -> String {
    holders.iter().map(MigrationId::as_str).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IsSource => write!(f, "the guest runs there"),
            Self::NotWished => write!(f, "another node was asked for"),
            Self::Unreachable => write!(f, "it can not be reached"),
            Self::Fenced => write!(f, "it is fenced"),
            Self::Cordoned => write!(f, "it is cordoned"),
            Self::Label { key, value, has: None } => write!(f, "it has no label {key}={value}"),
            Self::Label { key, value, has: Some(has) } => {
                write!(f, "its label {key} is {has:?}, {value:?} is asked for")
            }
            Self::Network { network } => write!(f, "it is not on the migration network {network:?}"),
            Self::Memory { free, needs } => write!(f, "{free} bytes are free, {needs} are needed"),
            Self::InboundLimit { limit: 0, .. } => write!(f, "no migration may enter a node"),
            Self::InboundLimit { limit, holders } => {
                write!(f, "{limit} migrations enter it, as many as allowed: {}", names(holders))
            }
        }
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterLimit { limit: 0, .. } => {
                write!(f, "no migration may start (parallelMigrationsPerCluster: 0)")
            }
            Self::ClusterLimit { limit, holders } => {
                write!(f, "{limit} migrations may run in the cluster, and as many do: {}", names(holders))
            }
            Self::OutboundLimit { node, limit: 0, .. } => {
                write!(f, "no migration may leave {node} (parallelOutboundMigrationsPerNode: 0)")
            }
            Self::OutboundLimit { node, limit, holders } => {
                write!(f, "{limit} migrations may leave {node}, and as many do: {}", names(holders))
            }
            Self::SourceWithoutNetwork { node, network } => {
                write!(f, "{node}, where the guest runs, is not on the migration network {network:?}")
            }
            Self::SourceUnreachable { node } => {
                write!(f, "{node}, where the guest runs, can not be reached; it goes on when it is back")
            }
            Self::NoTarget(nodes) => {
                write!(f, "no node can take it")?;
                let mut named = nodes.iter().take(NODES_NAMED_MAX);
                named.try_for_each(|(node, why)| write!(f, "; {node}: {why}"))?;
                match nodes.len().saturating_sub(NODES_NAMED_MAX) {
                    0 => Ok(()),
                    more => write!(f, "; and {more} more"),
                }
            }
        }
    }
}
