//! What stands in the log, and why it is refused.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Node, ParallelLimits, WaitReason};
use crate::guest::GuestSpec;
use crate::ids::{GuestName, InstanceId, MigrationId, NodeName};
use crate::ownership::{Entry, Refused};
use crate::progress::Measured;
use crate::settings::{Overrides, SettingError};

/// A guest for all time: drawn at random before it is proposed. A name may be used again, this may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GuestUid(pub u64);

impl fmt::Display for GuestUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One boot of a host, as its kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootId(pub u128);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// An entry of the log: a command and the time at which its leader proposed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped {
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// What to do.
    pub command: Command,
}

/// What can be agreed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A node is there, or there again.
    Join {
        /// Its name.
        name: NodeName,
        /// What it says of itself.
        node: Node,
    },
    /// A new guest; the node makes its runner once this is agreed, and says `Born`.
    CreateGuest {
        /// Its number.
        uid: GuestUid,
        /// Its name.
        name: GuestName,
        /// Where its first runner shall be made.
        node: NodeName,
        /// What it is like.
        spec: GuestSpec,
    },
    /// Ask for a migration.
    Migrate {
        /// The guest.
        guest: GuestUid,
        /// The migration's name.
        migration: MigrationId,
        /// Where to, or anywhere.
        target: Option<NodeName>,
        /// Its settings above the cluster's.
        overrides: Overrides,
    },
    /// Other settings hold for a migration, at once.
    Set {
        /// The migration.
        migration: MigrationId,
        /// What is set; the rest stays.
        overrides: Overrides,
    },
    /// What a side of a migration has measured.
    Measured {
        /// The migration.
        migration: MigrationId,
        /// The numbers.
        measured: Measured,
    },
    /// Grant a waiting migration its target and all its permits.
    Admit {
        /// The guest.
        guest: GuestUid,
        /// The migration.
        migration: MigrationId,
        /// Where to.
        target: NodeName,
    },
    /// Anything else about one guest.
    Guest {
        /// The guest.
        guest: GuestUid,
        /// What.
        entry: Entry,
    },
    /// A node is vouched to be off.
    Fence {
        /// The node.
        node: NodeName,
        /// The boot that the vouch is about.
        boot: BootId,
        /// The runners that it is about.
        instances: BTreeSet<InstanceId>,
    },
    /// A fenced node has come back, has seen its fence and stopped every runner that it names.
    FenceSeen {
        /// The node.
        node: NodeName,
    },
    /// A node is gone for good.
    RemoveNode {
        /// The node.
        node: NodeName,
    },
    /// Other limits hold.
    SetLimits {
        /// Which.
        limits: ParallelLimits,
    },
}

/// Why a command was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The guest's ownership refused.
    #[error(transparent)]
    Ownership(#[from] Refused),
    /// No such guest.
    #[error("no guest {0}")]
    NoGuest(GuestUid),
    /// No such node.
    #[error("no node {0}; it joins by itself when its process starts")]
    NoNode(NodeName),
    /// A guest has this name.
    #[error("a guest named {0} exists; delete it first, or choose another name")]
    NameTaken(GuestName),
    /// A guest has this number.
    #[error("guest number {0} was used before")]
    UidTaken(GuestUid),
    /// No such migration.
    #[error("no migration {0}; `godwit migration list` shows those that are kept")]
    NoMigration(MigrationId),
    /// It has ended.
    #[error("migration {0} is over")]
    IsOver(MigrationId),
    /// A setting is out of its range.
    #[error("{0}")]
    Setting(String),
    /// Another guest's migration has this name.
    #[error("a migration of this name exists, of guest {0}; choose another name")]
    MigrationTaken(GuestName),
    /// The node is fenced.
    #[error(
        "node {0} is fenced: it was vouched to be off and has not said since that its guests are stopped"
    )]
    Fenced(NodeName),
    /// The vouch is about another boot.
    #[error("node {node} has booted again since: vouched for boot {vouched}, it is {present}")]
    OtherBoot {
        /// The node.
        node: NodeName,
        /// The boot that was vouched for.
        vouched: BootId,
        /// Its present boot.
        present: BootId,
    },
    /// The node still plays a part.
    #[error("node {node} still holds guest {guest}; move or delete it first, or fence the node")]
    NodeInUse {
        /// The node.
        node: NodeName,
        /// One of its guests.
        guest: GuestName,
    },
    /// The guest does not fit.
    #[error("node {node} has {free} bytes free, the guest needs {needs}")]
    NoMemory {
        /// The node.
        node: NodeName,
        /// What it has free, in bytes.
        free: u64,
        /// What is needed, in bytes.
        needs: u64,
    },
    /// It can not be admitted now.
    #[error("{migration} waits: {reason}")]
    Waits {
        /// The migration.
        migration: MigrationId,
        /// For what.
        reason: WaitReason,
    },
    /// This is a command of its own.
    #[error("{0} is not proposed as an entry: ask for a migration, and it is admitted in its turn")]
    NotByEntry(&'static str),
}

impl From<SettingError> for Refusal {
    fn from(error: SettingError) -> Self {
        Self::Setting(error.to_string())
    }
}
