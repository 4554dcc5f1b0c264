//! What nodes say to each other on the control address: the group's messages, and a node's session with the leader.
//!
//! ```text
//!   peer     voter ── greeting, Hello ──▶ voter          then raft's messages as frames, one way
//!   session  node  ── greeting, Hello ──▶ leader
//!                  ◀── Welcome, then Push … ──            the first stream, as long as the session lives
//!                      (both say who is in the group: Membership)
//!            node  ── Ask ──▶ leader ◀── Answer …         one stream a question, as many as there are questions
//!            leader ── NodeAsk ──▶ node ◀── NodeAnswer
//! ```
//!
//! Always true: every frame is capped before it is decoded; who speaks says the certificate, never a frame; an answer
//! that does not come means that nobody knows.

use std::collections::{BTreeMap, BTreeSet};

use core::net::SocketAddr;

use godwit_domain::ownership::Ownership;
use godwit_domain::progress::Progress;
use godwit_domain::registry::{Command, GuestUid, Node};
use godwit_domain::{GroupId, GuestName, GuestSpec, InstanceId, MigrationId, NodeName, Settings};
use serde::{Deserialize, Serialize};

use crate::handoff::{Stats, Verified};

/// Largest body of a question or a small answer, in bytes: a proposal with all that it may hold.
pub const ASK_BYTES_MAX: usize = 80 << 10;
/// Largest body of what is pushed or answered, in bytes: a few hundred guests at once.
pub const PUSH_BYTES_MAX: usize = 4 << 20;
/// Largest body of one of raft's messages, in bytes.
pub const PEER_BYTES_MAX: usize = (1 << 20) + 64;
/// Guests in one push. The next follow in the next.
pub const GUESTS_PER_PUSH_MAX: usize = 256;
/// Longest cluster name, in bytes.
pub const CLUSTER_BYTES_MAX: usize = 63;

/// Who calls, and for which cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster that the caller means.
    pub cluster: String,
    /// The caller; its certificate must bear this name.
    pub name: NodeName,
    /// The control group that the caller belongs to; none before it has heard of one.
    pub group: Option<GroupId>,
    /// As a peer: the caller's number in that group.
    pub voter: Option<u64>,
    /// As a peer: what the caller's log is known by. One that was begun anew under the same number is another.
    pub log: u64,
    /// In a session: what the node is.
    pub node: Option<Node>,
    /// In a session: the term of a leader of which the caller hears nothing any more. Whoever is asked answers when it knows
    /// a leader of a later term, or after a few seconds.
    pub after: Option<u64>,
}

/// Members of a control group that are told, at most.
pub const MEMBERS_MAX: usize = 16;
/// Groups whose places one has taken, at most: each is a disaster.
pub const SUCCEEDS_MAX: usize = 64;

/// Who is in the control group, as a node is told that may be asked to be in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The group.
    pub group: GroupId,
    /// Who was in it before its first entry, by number.
    pub founders: BTreeMap<u64, Seated>,
    /// The entry since which these are in it.
    pub index: u64,
    /// Who is in it, by number.
    pub members: BTreeMap<u64, Seated>,
    /// Groups whose places it has taken, one after another, the oldest first: they were given up, and nodes that knew one of
    /// them follow.
    pub succeeds: Vec<GroupId>,
    /// Those of them whose voters the one who tells this has heard: whoever is among them and has an empty disk was robbed
    /// of it, and does not found the group again.
    pub heard: BTreeSet<u64>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seated {
    /// The node.
    pub name: NodeName,
    /// It votes.
    pub votes: bool,
    /// Where it is reached, as far as that is known.
    pub address: Option<SocketAddr>,
}

/// The leader's, or any voter's, answer to a session's [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// It leads, in this term; pushes follow.
    Leads {
        /// The term.
        term: u64,
        /// Who is in the group.
        membership: Membership,
    },
    /// Another one leads, as far as it knows.
    Elsewhere {
        /// Who.
        leader: Option<NodeName>,
        /// Who is in the group, as far as it knows.
        membership: Option<Membership>,
    },
    /// The caller is not welcome.
    Refused {
        /// Why, for people.
        message: String,
    },
}

/// What the leader tells unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// If the node is fenced: what it must stop before it takes any order.
    pub fenced: Option<BTreeSet<InstanceId>>,
    /// Who is in the group, if that has changed.
    pub membership: Option<Membership>,
    /// Guests that concern the node, those that have changed.
    pub guests: Vec<GuestView>,
    /// Everything that concerns the node has been pushed at least once since the session began.
    pub complete: bool,
    /// The group was founded anew, and waits for this node to say which runners it has.
    pub asked: bool,
}

/// What a node is told of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestView {
    /// The guest, for all time.
    pub uid: GuestUid,
    /// Its name.
    pub name: GuestName,
    /// What it is like.
    pub spec: GuestSpec,
    /// Who may run it.
    pub ownership: Ownership,
    /// What holds for its present migration.
    pub settings: Settings,
    /// The migration address of its target, if it has one in the migration's network.
    pub target_address: Option<SocketAddr>,
    /// The named network that its present migration goes over; `None`: the default of both nodes.
    pub network: Option<String>,
    /// Its present migration goes post-copy as soon as its target is reached.
    pub post_copy_at_once: bool,
}

/// A node's question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Agree on this.
    Propose(Command),
    /// How long ago did a quorum answer?
    Quorum,
    /// How a migration does that leaves this node. For those who look on.
    Progress {
        /// The migration.
        migration: MigrationId,
        /// The numbers.
        progress: Progress,
    },
    /// An operator's request, one JSON object.
    Admin(String),
}

/// An answer of the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Agreed on and applied.
    Applied,
    /// Agreed on, and refused when it was applied: it changed nothing.
    Refused {
        /// Why, for people.
        why: String,
    },
    /// It is not known what became of it, or it was not taken; to be asked again.
    Unknown {
        /// Why, for people.
        why: String,
    },
    /// How long ago a quorum answered, in milliseconds; `None`: not since the leader leads.
    QuorumAge(Option<u64>),
    /// Noted.
    Noted,
    /// A line for the operator; others may follow.
    Line(String),
}

/// What the leader asks of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeAsk {
    /// Compare a guest's memory with what it must hold.
    Verify(GuestUid),
    /// Say how a guest does.
    Stats(GuestUid),
    /// Say how things stand on the node, for people.
    Show,
    /// Say why a guest's runner was not made, if that was tried.
    WhyNot(GuestUid),
    /// Leave an adopted guest's process running when its runner is stopped next.
    Release(GuestUid),
    /// Press a guest's power button.
    PowerButton(GuestUid),
    /// Say why a runner that is here does not run its guest, or why one that was here has ended, if it said so.
    WhyEnded(InstanceId),
}

/// A node's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum NodeAnswer {
    /// To [`NodeAsk::Verify`].
    Verified(Verified),
    /// To [`NodeAsk::Stats`].
    Stats {
        /// The numbers.
        stats: Stats,
        /// The folder of its runner, on that node.
        dir: String,
    },
    /// To [`NodeAsk::Show`].
    Here(Vec<Here>),
    /// To [`NodeAsk::WhyNot`] and [`NodeAsk::WhyEnded`].
    Why(Option<String>),
    /// To [`NodeAsk::Release`].
    Released,
    /// It could not be done.
    Failed {
        /// Why, for people.
        message: String,
    },
    /// To [`NodeAsk::PowerButton`].
    Pressed,
}

/// A runner on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Here {
    /// Its guest.
    pub guest: GuestName,
    /// Itself.
    pub instance: InstanceId,
    /// What it does, in a word.
    pub state: String,
    /// Its folder.
    pub dir: String,
    /// The transfer that it is part of, in words.
    pub transfer: Option<String>,
}
