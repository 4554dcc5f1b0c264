//! What a voter tells of itself: what it is, whether it can take part, and why it refused or failed.
//!
//! Always true: a refusal was never proposed; only [`ProposeError::Unknown`] may be in the log. A voter that takes no
//! part says why in its [`Condition`].

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::group::NodeId;
use crate::machine::RestoreError;
use crate::members::{ChangeError, Members, Standing};
use crate::storage::DiskError;

/// Why an entry was refused, or what became of it instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Refused: this voter does not lead.
    #[error("this voter does not lead the control group")]
    NotLeader {
        /// Who does, as far as it knows.
        leader: Option<NodeId>,
    },
    /// Refused: too many wait already.
    #[error("the control group is busy; ask again")]
    Busy,
    /// Refused: it would never fit.
    #[error("an entry of {bytes} bytes; at most {max} are allowed")]
    TooLarge {
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        max: usize,
    },
    /// Refused: a rule of the group forbids this change of it.
    #[error(transparent)]
    Forbidden(#[from] ChangeError),
    /// Refused: this voter has stopped, or waits for its disk.
    #[error("this voter does not take part: {why}")]
    Halted {
        /// Why not.
        why: String,
    },
    /// Nobody knows: it may be applied now, later or never.
    #[error("it is not known whether the entry is agreed; ask again with the same request id")]
    Unknown,
}

/// Why a voter did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its disk can not be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Its own snapshot means nothing to its state machine.
    #[error("the snapshot on this node's disk")]
    Restore(#[from] RestoreError),
    /// raft would not begin with what is on the disk.
    #[error("begin with what is on this node's disk: {0}")]
    Begin(String),
}

/// What a voter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks to be elected.
    Candidate,
    /// Leads.
    Leader,
    /// Takes no part; the [`Condition`] says why.
    Halted,
}

/// Whether a voter can take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It can.
    Running,
    /// Its disk is full. It opens it again and again, and goes on when there is room.
    DiskFull {
        /// What the disk said.
        error: String,
    },
    /// It is dead until its process is started again.
    Crashed {
        /// Of what.
        why: String,
    },
    /// It was removed from the group, and has applied that.
    Removed,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::DiskFull { error } => f.write_str(error),
            Self::Crashed { why } => write!(f, "dead: {why}"),
            Self::Removed => f.write_str("removed from the control group"),
        }
    }
}

/// What whoever looks on is told after every change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What this voter is.
    pub role: Role,
    /// In which term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// Up to which entry the state machine is.
    pub applied: u64,
    /// Who is in the group, as far as that.
    pub members: Arc<Members>,
    /// Whether it can take part.
    pub condition: Condition,
}

/// Everything about a voter that an operator may want to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Which voter.
    pub id: NodeId,
    /// What it knows of the members beside the log, if it leads.
    pub standing: Standing,
    /// What it is doing.
    pub view: View,
    /// Up to which entry the log is agreed.
    pub committed: u64,
    /// The first and the last entry in the log.
    pub log: (u64, u64),
    /// Callers that wait.
    pub waiting: usize,
    /// How long ago a quorum was asked that has answered since; `None`: never.
    pub quorum_age: Option<Duration>,
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

/// An error with its causes, joined by colons.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
