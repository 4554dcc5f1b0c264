//! What can be proposed about a guest, and why it is refused.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::doubt::Claim;
use crate::ids::{Epoch, InstanceId, MigrationId, NodeName};

/// How the missing pages come after a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// All before the guest runs.
    StopAndCopy,
    /// While it runs.
    PostCopy,
}

/// Who proposes an end. The permits come back at once if source or target does; an order from elsewhere holds them
/// until one of the two has let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// The source's node.
    Source,
    /// The target's node.
    Target,
    /// The source's node, since a time limit has passed; the migration is then Cancelled, not Failed.
    Deadline,
    /// The control group, for a deadline of its own.
    Control,
    /// An operator; the migration is then Cancelled, not Failed.
    Operator,
}

/// On what a hand-back rests. Nothing else hands back: not a time-out, not an absence, not a vouched power-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Testimony {
    /// The target has proof that its runner never started: a tombstone, and the runner killed and reaped.
    NeverStarted,
    /// The source has proof that `Final` never left.
    Withheld,
}

/// What can be proposed. All that decide who may run name the epoch or compare the phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// The first runner of a new guest is made. The first one that is said wins.
    Born {
        /// The runner.
        instance: InstanceId,
    },
    /// Ask for a migration.
    Request {
        /// Its name.
        migration: MigrationId,
    },
    /// Admit it: the guest shall go to `target`.
    Start {
        /// The migration.
        migration: MigrationId,
        /// Where to.
        target: NodeName,
    },
    /// The target refuses; it waits again.
    Decline {
        /// The migration.
        migration: MigrationId,
        /// The present epoch.
        epoch: Epoch,
    },
    /// The target has made a runner.
    Accept {
        /// The migration.
        migration: MigrationId,
        /// The present epoch.
        epoch: Epoch,
        /// The target's runner.
        instance: InstanceId,
    },
    /// The source has sealed `epoch`; the target shall own the guest in the next one.
    HandOver {
        /// The migration.
        migration: MigrationId,
        /// The sealed epoch.
        epoch: Epoch,
        /// How the missing pages come.
        mode: Mode,
    },
    /// The source takes its pause back; copying goes on under the next epoch.
    CallOff {
        /// The migration.
        migration: MigrationId,
        /// The sealed epoch.
        epoch: Epoch,
    },
    /// It shall end before a hand-over.
    End {
        /// The migration.
        migration: MigrationId,
        /// Who says so.
        side: Side,
        /// Why, for people.
        reason: String,
    },
    /// Source or target has no session and no token of this ended migration any more.
    Dropped {
        /// The migration.
        migration: MigrationId,
    },
    /// The target runs the guest under `epoch`.
    Running {
        /// The migration.
        migration: MigrationId,
        /// The epoch that the hand-over made.
        epoch: Epoch,
    },
    /// The target has every page.
    AllPages {
        /// The migration.
        migration: MigrationId,
        /// The epoch that the hand-over made.
        epoch: Epoch,
    },
    /// The guest goes back to its source's paused copy, which is no older than any that ran.
    HandBack {
        /// The migration.
        migration: MigrationId,
        /// The epoch that the hand-over made.
        epoch: Epoch,
        /// On what that rests.
        testimony: Testimony,
    },
    /// The node that should hold this runner has no such runner and no tombstone of it.
    Gone {
        /// The runner.
        instance: InstanceId,
    },
    /// A node is vouched to be off, with these runners on it.
    Vouch {
        /// The node.
        node: NodeName,
        /// The runners that the vouch is about; others, made later, are not touched.
        instances: Vec<InstanceId>,
    },
    /// Run a lost guest from this older copy. An operator's explicit act.
    Recover {
        /// The copy.
        instance: InstanceId,
    },
    /// End the guest for good.
    Delete,
    /// This node holds nothing of a deleted guest.
    Purged {
        /// The node.
        node: NodeName,
    },
    /// The control group was founded anew: what is agreed may be old.
    Found,
    /// This node says anew which runners it has.
    Unclaimed {
        /// The node.
        node: NodeName,
    },
    /// A runner is there, or a tombstone of it.
    Claimed {
        /// The runner.
        instance: InstanceId,
        /// How it stands, and where.
        claim: Claim,
    },
    /// What was claimed is looked at.
    Settle {
        /// Every node was heard.
        all: bool,
    },
}

impl Entry {
    /// Whether it may be agreed while it is not known who runs the guest.
    pub(super) fn fits_doubt(&self) -> bool {
        match self {
            Self::Vouch { .. }
            | Self::Recover { .. }
            | Self::Delete
            | Self::Found
            | Self::Unclaimed { .. }
            | Self::Claimed { .. }
            | Self::Settle { .. } => true,
            Self::Born { .. }
            | Self::Request { .. }
            | Self::Start { .. }
            | Self::Decline { .. }
            | Self::Accept { .. }
            | Self::HandOver { .. }
            | Self::CallOff { .. }
            | Self::End { .. }
            | Self::Dropped { .. }
            | Self::Running { .. }
            | Self::AllPages { .. }
            | Self::HandBack { .. }
            | Self::Gone { .. }
            | Self::Purged { .. } => false,
        }
    }

    /// Its name, as in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Born { .. } => "Born",
            Self::Request { .. } => "Request",
            Self::Start { .. } => "Start",
            Self::Decline { .. } => "Decline",
            Self::Accept { .. } => "Accept",
            Self::HandOver { .. } => "HandOver",
            Self::CallOff { .. } => "CallOff",
            Self::End { .. } => "End",
            Self::Dropped { .. } => "Dropped",
            Self::Running { .. } => "Running",
            Self::AllPages { .. } => "AllPages",
            Self::HandBack { .. } => "HandBack",
            Self::Gone { .. } => "Gone",
            Self::Vouch { .. } => "Vouch",
            Self::Recover { .. } => "Recover",
            Self::Delete => "Delete",
            Self::Purged { .. } => "Purged",
            Self::Found => "Found",
            Self::Unclaimed { .. } => "Unclaimed",
            Self::Claimed { .. } => "Claimed",
            Self::Settle { .. } => "Settle",
        }
    }
}

/// Why an entry was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// Another migration is not over.
    #[error("{0} is not over: a guest has one unfinished migration at a time")]
    Unfinished(MigrationId),
    /// The permits of the last migration are still held.
    #[error("{0} has ended and its permits are still held: neither of its nodes has let go yet")]
    PermitsHeld(MigrationId),
    /// Target and source are one.
    #[error("the guest is at {0} already; choose another target")]
    SameNode(NodeName),
    /// No such migration, or an older one.
    #[error("{0} is not this guest's present migration")]
    Unknown(MigrationId),
    /// The epoch has moved on.
    #[error("epoch {proposed} is over, {present} rules")]
    EpochOver {
        /// What the proposal named.
        proposed: Epoch,
        /// What holds.
        present: Epoch,
    },
    /// The phase does not allow it.
    #[error("{entry} can not follow {phase}")]
    Phase {
        /// The entry's name.
        entry: Cow<'static, str>,
        /// The present phase's name.
        phase: Cow<'static, str>,
    },
    /// Handed over already.
    #[error("already handed over to {node}, epoch {epoch}: it can not be taken back")]
    HandedOver {
        /// Who owns the guest now.
        node: NodeName,
        /// Under which epoch.
        epoch: Epoch,
    },
    /// The guest's life does not allow it.
    #[error("{entry} needs a guest that is {needs}; it is {is}")]
    Life {
        /// The entry's name.
        entry: Cow<'static, str>,
        /// What it needs.
        needs: Cow<'static, str>,
        /// What holds.
        is: Cow<'static, str>,
    },
    /// The instance plays no part.
    #[error("instance {0} plays no part in this guest any more")]
    NoPart(InstanceId),
    /// Eight pauses were taken back.
    #[error("{0} was called off 8 times; it must end")]
    CalledOffTooOften(MigrationId),
}
