//! What stands in the log, and why it is refused.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::met::{Labelled, Met};
use super::requests::RequestKey;
use super::{Founding, Node, Testified, WaitReason, Wish};
use crate::ids::{GuestName, InstanceId, MigrationId, NodeName};
use crate::labels::{LabelError, Labels};
use crate::machine::{Body, Machine};
use crate::ownership::{Entry, Refused};
use crate::policy::{Policy, PolicyError, PolicyName};
use crate::progress::Measured;
use crate::settings::{ClusterSettings, Overrides, SettingError};

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
    /// The operator's request that it answers, so that a repeated one gets the first answer.
    pub request: Option<RequestKey>,
    /// What to do.
    pub command: Command,
}

/// Where a new guest's first runner shall be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The guest's number.
    pub uid: GuestUid,
    /// The node.
    pub node: NodeName,
}

/// What an operator changes about a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeChange {
    /// Its labels and whether it takes guests, as a manifest has them. A drain goes on, and keeps it cordoned.
    Put {
        /// Labels above those of its config.
        labels: Labels,
        /// It takes no guests.
        cordoned: bool,
    },
    /// It takes guests again; its drain is over.
    Uncordon,
    /// It takes no guests, and all that it has move away.
    Drain,
    /// Its drain asks for nothing more. It still takes no guests.
    CancelDrain,
}

/// How the control group changes with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// A node learns what is agreed, so that it can vote.
    Added,
    /// A node that has learnt it votes.
    Promoted,
    /// A node is in the group no more.
    Removed,
}

/// A phase that the log would not know of by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Milestone {
    /// The target said yes and prepares its runner.
    PreparingTarget,
    /// The first pages were sent.
    Running,
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
    /// The cluster's settings, whole.
    PutSettings {
        /// All that are set.
        settings: ClusterSettings,
    },
    /// A policy, whole.
    PutPolicy {
        /// Its name.
        name: PolicyName,
        /// What it is.
        policy: Policy,
    },
    /// A policy is no more.
    DeletePolicy {
        /// Its name.
        name: PolicyName,
    },
    /// A project's labels, all of them.
    PutNamespace {
        /// Its name.
        name: String,
        /// Its labels.
        labels: Labels,
    },
    /// A project has no labels any more.
    DeleteNamespace {
        /// Its name.
        name: String,
    },
    /// An operator changes something about a node, which may join later.
    Node {
        /// The node.
        node: NodeName,
        /// What.
        change: NodeChange,
    },
    /// A `VirtualMachine`, whole; with a home, its guest is made too.
    PutMachine {
        /// Its and its guest's name.
        name: GuestName,
        /// What it is.
        machine: Machine,
        /// For a guest that is not there yet.
        home: Option<Home>,
    },
    /// A `VirtualMachine` is no more. Its guest is ended by an entry of its own.
    DeleteMachine {
        /// Its name.
        name: GuestName,
    },
    /// A `VirtualMachineInstance`, whole; with a home it is made.
    PutInstance {
        /// Its name.
        name: GuestName,
        /// Its labels.
        labels: Labels,
        /// What it is like; `None`: as it was.
        body: Option<Body>,
        /// For one that is not there yet. The node makes its runner once this is agreed, and says `Born`.
        home: Option<Home>,
    },
    /// Ask for a migration.
    Migrate {
        /// The guest.
        guest: GuestUid,
        /// The migration's name.
        migration: MigrationId,
        /// What is wished of it.
        wish: Wish,
    },
    /// Other settings hold for a migration, at once.
    Set {
        /// The migration.
        migration: MigrationId,
        /// What is set; the rest stays.
        overrides: Overrides,
    },
    /// A migration has come so far.
    Reached {
        /// The migration.
        migration: MigrationId,
        /// How far.
        milestone: Milestone,
    },
    /// The leader has found that no node can take this waiting migration's guest, or that one can again.
    Placeable {
        /// The migration.
        migration: MigrationId,
        /// Whether one can.
        is: bool,
    },
    /// A finished migration is not kept any longer.
    ForgetMigration {
        /// The migration.
        migration: MigrationId,
    },
    /// What a side of a migration has measured.
    Measured {
        /// The migration.
        migration: MigrationId,
        /// The numbers.
        measured: Box<Measured>,
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
    /// An operator's change, if it meets what its answer says that it has met.
    If {
        /// What.
        met: Met,
        /// The change; it has no condition of its own.
        #[serde(deserialize_with = "super::met::without_condition")]
        command: Box<Command>,
    },
    /// Labels of one object, changed one by one.
    Label {
        /// Of what.
        of: Labelled,
        /// Those that are set and, without a value, removed.
        change: BTreeMap<String, Option<String>>,
        /// A label that has another value may be changed.
        overwrite: bool,
    },
    /// The control group is another from this entry on. The group itself sees to that; here it stands for those who read, and
    /// for the answer to whoever asked.
    Member {
        /// The node.
        node: NodeName,
        /// What becomes of it.
        change: MemberChange,
    },
    /// The group was founded anew, in the place of another one. Its first entry.
    Found {
        /// How.
        founding: Founding,
    },
    /// A node says which runners it has, in a group that was founded anew.
    Testify {
        /// The node.
        node: NodeName,
        /// What it has said before is void.
        first: bool,
        /// Some of them.
        runners: Vec<Testified>,
        /// There are no more.
        last: bool,
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
    /// It has not ended.
    #[error("migration {0} is not over; cancel it first")]
    NotOver(MigrationId),
    /// A setting, a label or a name is not valid.
    #[error("{0}")]
    Invalid(String),
    /// No such policy.
    #[error("no policy {0}")]
    NoPolicy(PolicyName),
    /// No such project.
    #[error("nothing is known of project {0}")]
    NoNamespace(String),
    /// No such VirtualMachine.
    #[error("no VirtualMachine {0}")]
    NoMachine(GuestName),
    /// A guest must be there, or its size be said.
    #[error(
        "guest {0} does not exist, and nothing says how much memory it has (spec.template.spec.domain.memory.guest)"
    )]
    NoBody(GuestName),
    /// A guest of this name is being ended.
    #[error(
        "guest {0} is being ended; its name is free when every node has said that it holds nothing of it"
    )]
    Ending(GuestName),
    /// What is fixed while a guest runs.
    #[error("guest {guest} runs: its {what} can not be changed; stop it and make it again")]
    Fixed {
        /// The guest.
        guest: GuestName,
        /// What.
        what: Cow<'static, str>,
    },
    /// Local disks do not move.
    #[error(
        "guest {guest} has {bytes} bytes of local disks (BlockMigration), which this version does not move; remove emptyDisk, \
         hostDisk and godwit.dev/local-disks"
    )]
    LocalDisks {
        /// The guest.
        guest: GuestName,
        /// Their size.
        bytes: u64,
    },
    /// The node takes no guests.
    #[error("node {0} takes no guests: it is cordoned (godwit node uncordon {0})")]
    Cordoned(NodeName),
    /// It shall go post-copy at once, and may not.
    #[error("guest {guest} can not go post-copy: {rule}")]
    PostCopy {
        /// The guest.
        guest: GuestName,
        /// What forbids it.
        rule: Cow<'static, str>,
    },
    /// The node is not drained.
    #[error("node {0} is not being drained")]
    NoDrain(NodeName),
    /// The request's id was used for another request.
    #[error("request id {0:?} was used for another request; a repeated request is the same in every word")]
    RequestTaken(String),
    /// Another guest's migration has this name.
    #[error(
        "a migration of this name exists, of guest {0}, and was asked for otherwise; choose another name"
    )]
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
    NotByEntry(Cow<'static, str>),
    /// It has changed since it was looked at.
    #[error("it was changed by somebody else at the same moment")]
    MetOther(Met),
    /// A label has another value.
    #[error("label {key} is {is:?}")]
    Labelled {
        /// The label's key.
        key: String,
        /// Its value.
        is: String,
    },
}

impl From<SettingError> for Refusal {
    fn from(error: SettingError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<PolicyError> for Refusal {
    fn from(error: PolicyError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<LabelError> for Refusal {
    fn from(error: LabelError) -> Self {
        Self::Invalid(error.to_string())
    }
}
