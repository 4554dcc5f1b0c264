//! Who is in the group, by the log: what a change of it may be, and when a learner is near enough to vote.
//!
//! ```text
//!   add NAME ─▶ Learner (a new id) ─ it catches up ─▶ promote ─▶ Voter ─ remove ─▶ nobody, and its id never again
//!
//!   entry (raft's ConfChangeV2):  one change │ context: Carried { its name, the caller's own entry }
//! ```
//!
//! Always true:
//! - one change is one voter, and the next is proposed when the one before is applied, so any two quorums that follow
//!   one another share a voter;
//! - nothing is proposed that would leave fewer voters that answer than the quorum that is needed after it;
//! - an id is made of the name, the term and the place in the log at which it is added: whoever is added again is
//!   somebody else, since one whose disk is empty may have voted before.
//!
//! Never known here: where a member is reached, and what the caller's entry means.

use std::collections::{BTreeMap, BTreeSet};

use godwit_domain::NodeName;
use godwit_wire::codec::{self, Blob, CodecError, LENGTH_BYTES};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::engine::Position;
use crate::envelope::ENTRY_BYTES_MAX;
use crate::group::{NodeId, Voters};

/// Voters at most. A vote is asked of each, and a commit waits for more than half.
pub const VOTERS_MAX: usize = 7;
/// A learner that lacks so many entries or fewer may vote: less than is agreed while the change itself is.
pub const PROMOTED_BEHIND_MAX: u64 = 64;
/// Largest encoded table: seven voters and a learner, with names of 63 bytes each.
const MEMBERS_BYTES_MAX: usize = 4 << 10;

/// One of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub name: NodeName,
    /// It votes; otherwise it learns.
    pub votes: bool,
}

/// Everyone in the group, since one entry of its log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    index: u64,
    by_id: BTreeMap<NodeId, Member>,
}

/// A change of the group, as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It gets everything, and does not vote.
    Learner {
        /// Its number, which nobody had before.
        id: NodeId,
        /// The node.
        name: NodeName,
    },
    /// A learner votes from now on.
    Voter {
        /// Which.
        id: NodeId,
    },
    /// It is no member any more.
    Remove {
        /// Which.
        id: NodeId,
    },
}

/// What somebody wants of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// This node shall learn, so that it can vote.
    Add(NodeName),
    /// This learner shall vote.
    Promote(NodeName),
    /// This node shall not be in the group any more.
    Remove(NodeName),
}

/// What a leader knows of the members beside the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Who answers, itself among them.
    pub answering: BTreeSet<NodeId>,
    /// How many entries each lacks.
    pub behind: BTreeMap<NodeId, u64>,
}

/// Why a change is not proposed. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// An earlier change is not applied yet.
    #[error("a change of the group is under way; one is made at a time")]
    InFlight,
    /// Somebody is being added.
    #[error("{0} is being added; one is added at a time: wait until it votes, or remove it again")]
    Learning(NodeName),
    /// It is one already.
    #[error("{0} is a member already")]
    Member(NodeName),
    /// It is none.
    #[error("{0} is no member of the control group")]
    NoMember(NodeName),
    /// It votes already.
    #[error("{0} votes already")]
    Votes(NodeName),
    /// Nobody would be left.
    #[error("{0} is the last voter; a group without one agrees on nothing, for ever")]
    LastVoter(NodeName),
    /// There are enough.
    #[error("{0} voters; a control group has at most {VOTERS_MAX}")]
    TooMany(usize),
    /// It would stop the group.
    #[error(
        "{answering} of the {voters} voters that there would be answer, and {quorum} are needed to agree on anything"
    )]
    NoQuorum {
        /// Those that answer.
        answering: usize,
        /// That there would be.
        voters: usize,
        /// That are needed.
        quorum: usize,
    },
    /// It would vote on what it does not know.
    #[error("{name} lacks {behind} entries; it may vote when it lacks {PROMOTED_BEHIND_MAX} at most")]
    Behind {
        /// The learner.
        name: NodeName,
        /// What it lacks.
        behind: u64,
    },
}

/// The number of a node that is added at this place of the log.
pub fn new_id(name: &NodeName, at: Position) -> NodeId {
    let place = [at.term.to_le_bytes(), at.index.to_le_bytes()].concat();
    let hash = xxh3_64(&[name.as_str().as_bytes(), &[0], &place].concat());
    NodeId::new(hash).unwrap_or(NodeId::FIRST)
}

impl Members {
    /// Those who found a group.
    pub fn founding(voters: &Voters) -> Self {
        let member = |name: &NodeName| Member { name: name.clone(), votes: true };
        Self { index: 0, by_id: voters.iter().map(|(id, name)| (id, member(name))).collect() }
    }

    /// As somebody has told them, as they are since this entry.
    pub fn told(index: u64, by_id: BTreeMap<NodeId, Member>) -> Self {
        Self { index, by_id }
    }

    /// Since which entry of the log; 0: since the group was founded.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Ids and members, in order of id.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.by_id.iter().map(|(id, member)| (*id, member))
    }

    /// A member.
    pub fn get(&self, id: NodeId) -> Option<&Member> {
        self.by_id.get(&id)
    }

    /// A member by its node's name.
    pub fn named(&self, name: &NodeName) -> Option<(NodeId, &Member)> {
        self.iter().find(|(_, member)| member.name == *name)
    }

    /// Who votes, in order of id.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> {
        self.by_id.iter().filter(|(_, member)| member.votes).map(|(id, _)| *id)
    }

    /// A voter's place in order of id, from 0, and how many there are.
    pub(crate) fn rank(&self, id: NodeId) -> (usize, usize) {
        (self.voters().take_while(|voter| *voter < id).count(), self.voters().count())
    }

    /// Who learns, if somebody does.
    pub fn learner(&self) -> Option<(NodeId, &NodeName)> {
        self.iter().find(|(_, member)| !member.votes).map(|(id, member)| (id, &member.name))
    }

    /// As raft takes them.
    pub(crate) fn conf_state(&self) -> ConfState {
        let learners = self.iter().filter(|(_, member)| !member.votes).map(|(id, _)| id.get());
        let voters: Vec<u64> = self.voters().map(NodeId::get).collect();
        ConfState::from((voters, learners.collect::<Vec<_>>()))
    }

    /// The change by which something wanted comes about; `fresh`: the id of whoever is added.
    ///
    /// # Errors
    /// If a rule forbids it, for as long as things stand so.
    pub fn change(&self, wanted: &Wanted, fresh: NodeId, standing: &Standing) -> Result<Change, ChangeError> {
        match wanted {
            Wanted::Add(name) => self.add(name, fresh),
            Wanted::Promote(name) => self.promote(name, standing),
            Wanted::Remove(name) => self.remove(name, standing),
        }
    }

    fn add(&self, name: &NodeName, id: NodeId) -> Result<Change, ChangeError> {
        if self.named(name).is_some() || self.by_id.contains_key(&id) {
            return Err(ChangeError::Member(name.clone()));
        }
        if let Some((_, learner)) = self.learner() {
            return Err(ChangeError::Learning(learner.clone()));
        }
        let voters = self.voters().count();
        if voters >= VOTERS_MAX {
            return Err(ChangeError::TooMany(voters));
        }
        Ok(Change::Learner { id, name: name.clone() })
    }

    fn promote(&self, name: &NodeName, standing: &Standing) -> Result<Change, ChangeError> {
        let (id, member) = self.named(name).ok_or_else(|| ChangeError::NoMember(name.clone()))?;
        if member.votes {
            return Err(ChangeError::Votes(name.clone()));
        }
        let behind = standing.behind.get(&id).copied().unwrap_or(u64::MAX);
        if behind > PROMOTED_BEHIND_MAX || !standing.answering.contains(&id) {
            return Err(ChangeError::Behind { name: name.clone(), behind });
        }
        keeps_a_quorum(self.voters().chain([id]), standing)?;
        Ok(Change::Voter { id })
    }

    fn remove(&self, name: &NodeName, standing: &Standing) -> Result<Change, ChangeError> {
        let (id, member) = self.named(name).ok_or_else(|| ChangeError::NoMember(name.clone()))?;
        if member.votes {
            if let Some((_, learner)) = self.learner() {
                return Err(ChangeError::Learning(learner.clone()));
            }
            if self.voters().count() == 1 {
                return Err(ChangeError::LastVoter(name.clone()));
            }
            keeps_a_quorum(self.voters().filter(|voter| *voter != id), standing)?;
        }
        Ok(Change::Remove { id })
    }

    /// After a change, which stands at this index. `None`: it changes nothing, whoever proposed it.
    pub(crate) fn changed(&self, index: u64, change: &Change) -> Option<Self> {
        let mut by_id = self.by_id.clone();
        match change {
            Change::Learner { id, name } => {
                if self.by_id.contains_key(id) || self.named(name).is_some() {
                    return None;
                }
                by_id.insert(*id, Member { name: name.clone(), votes: false });
            }
            Change::Voter { id } => by_id.get_mut(id).filter(|member| !member.votes)?.votes = true,
            Change::Remove { id } => drop(by_id.remove(id)?),
        }
        by_id.values().any(|member| member.votes).then_some(Self { index, by_id })
    }

    /// As bytes, before a snapshot's own.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode_frame("members", self, MEMBERS_BYTES_MAX)
    }

    /// From what begins with their bytes, and what follows.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), CodecError> {
        let malformed = || CodecError::Malformed { what: "members", why: "cut short".to_owned() };
        let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or_else(malformed)?;
        let length = codec::body_length(*length, MEMBERS_BYTES_MAX)?;
        let (body, rest) = rest.split_at_checked(length).ok_or_else(malformed)?;
        Ok((codec::decode_body("members", body)?, rest))
    }
}

fn keeps_a_quorum(voters: impl Iterator<Item = NodeId>, standing: &Standing) -> Result<(), ChangeError> {
    let voters: Vec<NodeId> = voters.collect();
    let answering = voters.iter().filter(|voter| standing.answering.contains(voter)).count();
    let quorum = voters.len() / 2 + 1;
    if answering >= quorum {
        return Ok(());
    }
    Err(ChangeError::NoQuorum { answering, voters: voters.len(), quorum })
}

/// What raft carries along with a change.
#[derive(Debug, Serialize, Deserialize)]
struct Carried {
    name: Option<NodeName>,
    entry: Blob,
}

/// A change as raft proposes it, with the entry that is applied together with it.
pub(crate) fn proposal(change: &Change, entry: Vec<u8>) -> Result<ConfChangeV2, CodecError> {
    let (kind, id, name) = match change {
        Change::Learner { id, name } => (ConfChangeType::AddLearnerNode, id, Some(name.clone())),
        Change::Voter { id } => (ConfChangeType::AddNode, id, None),
        Change::Remove { id } => (ConfChangeType::RemoveNode, id, None),
    };
    let mut single = ConfChangeSingle::default();
    single.set_change_type(kind);
    single.node_id = id.get();
    let carried = Carried { name, entry: Blob(entry) };
    let context = codec::encode_frame("change of the group", &carried, ENTRY_BYTES_MAX)?;
    Ok(ConfChangeV2 { changes: vec![single].into(), context: context.into(), ..ConfChangeV2::default() })
}

/// The change and the caller's entry in an entry of the log, and raft's own form of it.
pub(crate) fn read(data: &[u8]) -> Result<(Change, Vec<u8>, ConfChangeV2), CodecError> {
    let malformed = |why: &str| CodecError::Malformed { what: "change of the group", why: why.to_owned() };
    let raw = ConfChangeV2::parse_from_bytes(data).map_err(|error| malformed(&error.to_string()))?;
    let [single] = raw.get_changes() else {
        return Err(malformed("it changes more or less than one member"));
    };
    let id = NodeId::new(single.node_id).ok_or_else(|| malformed("it is about nobody"))?;
    let (length, body) =
        raw.context.split_first_chunk::<LENGTH_BYTES>().ok_or_else(|| malformed("it has no context"))?;
    if codec::body_length(*length, ENTRY_BYTES_MAX)? != body.len() {
        return Err(malformed("its context is not as long as it says"));
    }
    let carried: Carried = codec::decode_body("change of the group", body)?;
    let change = match (single.get_change_type(), carried.name) {
        (ConfChangeType::AddLearnerNode, Some(name)) => Change::Learner { id, name },
        (ConfChangeType::AddNode, None) => Change::Voter { id },
        (ConfChangeType::RemoveNode, None) => Change::Remove { id },
        _ => return Err(malformed("its name does not fit its kind")),
    };
    Ok((change, carried.entry.0, raw))
}
