//! Who may run a guest. The answer is a *licence*: one runner process and one epoch.
//!
//! ```text
//!   Creating ─Born─▶ Alive
//!
//!   Request ─▶ Pending ─Start─▶ Preparing ─Accept─▶ Copying ─HandOver─▶ HandedOver ─Running─▶ Succeeded
//!                ▲ └──Decline──────┘ │                 │ ▲ │                │  │  └(post-copy)▶ PostCopy ─AllPages─▶ ┘
//!                │                   │        CallOff ─┘─┘ │       HandBack ┘  └─ Gone, Vouch ─▶ Failed, guest Lost
//!                └───────────────────┴──────End────────────┴──▶ Failed | Cancelled
//! ```
//!
//! Always true:
//! - `HandOver`, `CallOff`, `Decline` and `HandBack` compare the epoch and make the next; `End` and `Delete` compare
//!   the phase and add 1 all the same. So exactly one of them wins an epoch, and a proposal that was delayed is
//!   refused, never obeyed;
//! - an epoch that is over never comes back: who sealed it stays sealed;
//! - the owner changes in `Born`, `HandOver`, `HandBack`, `Recover`, `Delete` and by loss alone, and in a group that was
//!   founded anew in `Found`, `Claimed` and `Settle` (`doubt`); ended phases take no further entry of their migration but
//!   the one that gives held permits back;
//! - permits are taken in `Start` and given back once: in `Decline`, in the entry that ends the migration, or in the
//!   one `Dropped` or `Vouch` after it;
//! - while it is Unsure who runs a guest, nothing is agreed about it but what may settle that, and its deletion;
//! - a refused entry changes nothing.
//!
//! The rows come from a model that was searched exhaustively. Never here: who may ask, how an entry is agreed on,
//! when, and which target is eligible. That is for the registry and whoever keeps the log.

mod apply;
mod doubt;
mod entry;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, InstanceId, MigrationId, NodeName};

pub use doubt::{Believed, Claim, Doubt, Stands};
pub use entry::{Entry, Mode, Refused, Side, Testimony};

/// How often one migration may be called off; then it ends. Each costs the guest a pause.
pub const CALL_OFFS_MAX: u8 = 8;

/// The right to run a guest for one epoch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Licence {
    /// Where the runner lives.
    pub node: NodeName,
    /// The runner process.
    pub instance: InstanceId,
}

/// What is agreed about one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// The present epoch.
    pub epoch: Epoch,
    /// Whether the guest lives, and who may run it.
    pub life: Life,
    /// The last migration, unfinished or ended.
    pub attempt: Option<Attempt>,
    /// Nodes that may hold an instance of it: all that ever were given one. Asked when the guest is deleted.
    pub holders: BTreeSet<NodeName>,
    /// How often a guest that was lost was run again from an older copy.
    pub rollbacks: u32,
}

/// Whether a guest lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// This node shall make its first runner.
    Creating(NodeName),
    /// This runner may run it.
    Alive(Licence),
    /// Nobody runs it. What its last owner was, and the paused copy that is kept, if there is one.
    Lost {
        /// The runner that is gone.
        last: Licence,
        /// An older copy that an operator may go back to.
        kept: Option<Licence>,
    },
    /// Nobody may run it; these nodes have not yet said that they hold nothing of it.
    Deleting(BTreeSet<NodeName>),
    /// It is gone everywhere; its name may be used again.
    Purged,
    /// The control group was founded anew, and it is not known yet who runs it. Whoever does goes on.
    Unsure(Doubt),
}

/// One migration as far as ownership goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its name.
    pub migration: MigrationId,
    /// How far it is.
    pub phase: Phase,
    /// What it holds of the cluster's limits.
    pub permits: Permits,
    /// How often it was called off.
    pub call_offs: u8,
}

/// How far a migration is. A variant carries what is known then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Waiting to be admitted.
    Pending,
    /// Admitted; the target was asked.
    Preparing {
        /// Where it runs.
        source: Licence,
        /// Who was asked.
        target: NodeName,
    },
    /// The target has a runner; pages flow while the guest runs at the source.
    Copying {
        /// Where it runs.
        source: Licence,
        /// Where it is to run.
        target: Licence,
    },
    /// The target's runner owns the guest and has not said yet that it runs it.
    HandedOver {
        /// Where it ran; its paused copy is kept.
        source: Licence,
        /// The owner.
        target: Licence,
        /// How the missing pages come.
        mode: Mode,
        /// The source's copy is gone.
        source_gone: bool,
    },
    /// It runs at the target and pages are still missing.
    PostCopy {
        /// Where the missing pages are.
        source: Licence,
        /// The owner.
        target: Licence,
        /// The source's copy is gone.
        source_gone: bool,
    },
    /// The guest runs at the target.
    Succeeded,
    /// It ended otherwise.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// It was told to end.
    Cancelled {
        /// Why, for people.
        reason: String,
    },
}

/// What a migration holds: one of the cluster's, one outbound of its source, one inbound of its target, and the guest's
/// memory on the target. All or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Permits {
    /// Not taken yet, or given back.
    None,
    /// Taken.
    Held {
        /// Whose outbound permit.
        source: NodeName,
        /// Whose inbound permit and memory.
        target: NodeName,
    },
}

impl Phase {
    /// Whether the guest was handed over and its source is gone for good.
    pub fn source_is_gone(&self) -> bool {
        matches!(self, Self::HandedOver { source_gone: true, .. } | Self::PostCopy { source_gone: true, .. })
    }

    /// Whether nothing more can happen to it.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Pending
            | Self::Preparing { .. }
            | Self::Copying { .. }
            | Self::HandedOver { .. }
            | Self::PostCopy { .. } => false,
            Self::Succeeded | Self::Failed { .. } | Self::Cancelled { .. } => true,
        }
    }

    /// Its name, as in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Preparing { .. } => "Preparing",
            Self::Copying { .. } => "Copying",
            Self::HandedOver { .. } => "HandedOver",
            Self::PostCopy { .. } => "PostCopy",
            Self::Succeeded => "Succeeded",
            Self::Failed { .. } => "Failed",
            Self::Cancelled { .. } => "Cancelled",
        }
    }

    /// Why it ended without success.
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::Failed { reason } | Self::Cancelled { reason } => Some(reason),
            Self::Pending
            | Self::Preparing { .. }
            | Self::Copying { .. }
            | Self::HandedOver { .. }
            | Self::PostCopy { .. }
            | Self::Succeeded => None,
        }
    }

    /// The paused copy that must be kept: that of the source, from the hand-over to its end.
    pub fn kept_source(&self) -> Option<&Licence> {
        match self {
            Self::HandedOver { source, .. } | Self::PostCopy { source, .. } => Some(source),
            Self::Pending
            | Self::Preparing { .. }
            | Self::Copying { .. }
            | Self::Succeeded
            | Self::Failed { .. }
            | Self::Cancelled { .. } => None,
        }
    }

    /// The target, once there is one.
    pub fn target_node(&self) -> Option<&NodeName> {
        match self {
            Self::Preparing { target, .. } => Some(target),
            Self::Copying { target, .. }
            | Self::HandedOver { target, .. }
            | Self::PostCopy { target, .. } => Some(&target.node),
            Self::Pending | Self::Succeeded | Self::Failed { .. } | Self::Cancelled { .. } => None,
        }
    }
}

impl Ownership {
    /// The epoch under which the source of its migration speaks: the present one, or after the hand-over the one that it has
    /// sealed.
    pub fn spoken_epoch(&self) -> Epoch {
        match self.attempt.as_ref().map(|attempt| &attempt.phase) {
            Some(Phase::HandedOver { .. } | Phase::PostCopy { .. }) => Epoch(self.epoch.0.saturating_sub(1)),
            _ => self.epoch,
        }
    }

    /// Whether this instance runs, or is about to run, in post-copy: pages may be missing there.
    pub fn may_lack_pages(&self, instance: InstanceId) -> bool {
        match self.attempt.as_ref().map(|attempt| &attempt.phase) {
            Some(Phase::PostCopy { target, .. } | Phase::HandedOver { mode: Mode::PostCopy, target, .. }) => {
                target.instance == instance
            }
            _ => false,
        }
    }

    /// A new guest, which this node shall make a runner for. Nobody may run it yet.
    pub fn new(node: NodeName) -> Self {
        Self {
            epoch: Epoch(0),
            holders: BTreeSet::from([node.clone()]),
            life: Life::Creating(node),
            attempt: None,
            rollbacks: 0,
        }
    }

    /// Who may run it now.
    pub fn owner(&self) -> Option<&Licence> {
        match &self.life {
            Life::Alive(owner) => Some(owner),
            Life::Creating(_) | Life::Lost { .. } | Life::Deleting(_) | Life::Purged | Life::Unsure(_) => {
                None
            }
        }
    }

    /// Whether this runner may run the guest now.
    pub fn licenses(&self, instance: InstanceId) -> bool {
        self.owner().is_some_and(|owner| owner.instance == instance)
    }

    /// The phase of this migration, if it is the guest's present or last one.
    pub fn phase_of(&self, migration: &MigrationId) -> Option<&Phase> {
        self.attempt.as_ref().filter(|attempt| attempt.migration == *migration).map(|attempt| &attempt.phase)
    }

    /// What is waited for from this runner after a hand-over to it: that the guest runs there.
    pub fn awaits_running(&self, instance: InstanceId) -> Option<Entry> {
        let attempt = self.attempt.as_ref()?;
        let Phase::HandedOver { target, .. } = &attempt.phase else { return None };
        let (migration, epoch) = (attempt.migration.clone(), self.epoch);
        (target.instance == instance).then_some(Entry::Running { migration, epoch })
    }

    /// Whether this runner still plays a part: it owns the guest, is to own it, or holds a copy that is kept.
    pub fn names(&self, instance: InstanceId) -> bool {
        let phase = self.attempt.as_ref().map(|attempt| &attempt.phase);
        let in_phase = match phase {
            Some(Phase::Copying { source, target })
            | Some(Phase::HandedOver { source, target, .. } | Phase::PostCopy { source, target, .. }) => {
                source.instance == instance || target.instance == instance
            }
            Some(Phase::Preparing { source, .. }) => source.instance == instance,
            Some(Phase::Pending | Phase::Succeeded | Phase::Failed { .. } | Phase::Cancelled { .. })
            | None => false,
        };
        let in_life = match &self.life {
            Life::Alive(owner) => owner.instance == instance,
            Life::Lost { last, kept } => {
                last.instance == instance || kept.as_ref().is_some_and(|kept| kept.instance == instance)
            }
            Life::Unsure(doubt) => doubt.claims.contains_key(&instance),
            Life::Creating(_) | Life::Deleting(_) | Life::Purged => false,
        };
        in_phase || in_life
    }
}
