//! Raft, without clock, socket, file and thread: inputs change it, and one ordered procedure acts for it.
//!
//! ```text
//!   tick, step, propose, change, campaign, ask_quorum ─▶ RawNode
//!
//!   ready:   1 send what need not wait        (a leader's appends)
//!            2 apply what is agreed and was synced before, in order, up to a change of the group
//!            3 store snapshot, entries, term and vote; sync
//!            4 send what waited for the sync  (votes, acknowledgements)
//!            5 apply the rest; a change of the group holds from there on
//!
//!   changing  changes of the group, and the leadership handed on      timeouts  when to ask to lead
//! ```
//!
//! Always true:
//! - nothing that rests on unsynced state leaves before the sync ([`Engine::ready`]), nor is it applied; after an error of
//!   the disk the engine is dropped and started again from what the disk holds, as after a crash;
//! - who waits for an entry does not wait for the sync of those behind it;
//! - who says that a change of the group is agreed has that on its disk: whoever was removed goes by it;
//! - the same inputs give the same outputs: the election timeout, which raft would draw from the thread's random
//!   numbers, is set to a function of rank, seed and round after every input;
//! - a voter's timeouts differ from the others' in the same round, so elections do not split for ever.

mod changing;
mod timeouts;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use godwit_domain::planted;
use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType, Snapshot};
use raft::{RawNode, SnapshotStatus, StateRole};

use crate::envelope::{self, MessageError, Opener, SNAPSHOT_BYTES_MAX};
use crate::group::NodeId;
use crate::logging;
use crate::machine::RestoreError;
use crate::members::{ChangeError, Members};
use crate::storage::{Disk, DiskError, LogStorage, Stored};
use changing::is_change;
use timeouts::Timeouts;

/// Entries in one append message, in bytes: a quarter of what a peer takes, so a heartbeat never waits long.
const APPEND_BYTES_MAX: u64 = 256 << 10;
/// Append messages on their way to one voter: 16 MiB at most.
const APPENDS_IN_FLIGHT_MAX: usize = 64;
/// Entries of a leader that are not agreed, in bytes. Above it a proposal is refused as busy.
const UNCOMMITTED_BYTES_MAX: u64 = 16 << 20;
/// Entries applied in one go, in bytes: between two goes the voter hears its peers.
const APPLY_BYTES_MAX: u64 = 1 << 20;
/// Ticks after which a snapshot that a voter did not acknowledge is sent again: two elections.
const SNAPSHOT_TICKS: u64 = 20;
/// Marks entries that were proposed; those by which a leader begins carry nothing and mean nothing.
pub(crate) const PROPOSED: u8 = 1;

/// An entry's place in the log, and under whose leadership it came there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The leader's term.
    pub term: u64,
    /// Its number; the first is 1.
    pub index: u64,
}

/// How an engine elects.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// This voter.
    pub id: NodeId,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader before an election; up to twice that.
    pub election_ticks: usize,
    /// A number that no earlier start of this voter had. Timeouts derive from it.
    pub seed: u64,
}

/// Why an engine can not go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The disk failed. What happened since the last sync has not happened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The leader's snapshot means nothing to this node's state machine.
    #[error("snapshot of entry {index}")]
    Restore {
        /// Of which entry.
        index: u64,
        /// Why not.
        #[source]
        source: RestoreError,
    },
}

/// Why an entry was not proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotProposed {
    /// This voter does not lead.
    NotLeader,
    /// Too much is not agreed yet.
    Busy,
    /// A rule of the group forbids it.
    Forbidden(ChangeError),
}

/// What an engine does while it is made ready.
pub trait Sink {
    /// Send this to a voter. It may be lost, doubled and overtaken.
    fn send(&mut self, to: NodeId, bytes: Vec<u8>);
    /// The state, and who is in the group, are now those of a leader's snapshot.
    fn restore(
        &mut self,
        position: Position,
        members: &Arc<Members>,
        snapshot: &[u8],
    ) -> Result<(), RestoreError>;
    /// An entry is agreed. `None`: a leader's beginning, which means nothing.
    fn apply(&mut self, position: Position, entry: Option<&[u8]>);
    /// A change of the group is agreed, and these are in it now; the entry came with it.
    fn changed(&mut self, position: Position, members: &Arc<Members>, entry: &[u8]);
    /// A quorum answered after [`Engine::ask_quorum`] was called with this number. What was agreed at that call ends with
    /// `index`, or before it.
    fn quorum(&mut self, question: u64, index: u64);
}

/// See the module.
pub struct Engine {
    node: RawNode<LogStorage>,
    id: NodeId,
    seed: u64,
    members: Arc<Members>,
    timeouts: Timeouts,
    opener: Opener,
    ticks: u64,
    /// The data of the storage's snapshot.
    snapshot: Bytes,
    /// When a snapshot was last sent to a voter.
    snapshots_sent: BTreeMap<u64, u64>,
    /// When somebody was last heard.
    heard: BTreeMap<NodeId, u64>,
    /// Other voters' questions that came here while this one led.
    forwarded: u64,
    /// Up to where the log is agreed, as another voter has said.
    told: u64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let raft = &self.node.raft;
        f.debug_struct("Engine")
            .field("id", &self.id)
            .field("role", &raft.state)
            .field("term", &raft.term)
            .field("committed", &raft.raft_log.committed)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// A voter that begins with what its disk holds; `applied` entries of it are in the state machine, and these were in
    /// the group then.
    pub fn start(
        config: &EngineConfig,
        mut stored: Stored,
        applied: u64,
        members: Arc<Members>,
    ) -> Result<Self, raft::Error> {
        let snapshot = stored.snapshot.as_mut().map(Snapshot::take_data).unwrap_or_default();
        let raft_config = raft::Config {
            id: config.id.get(),
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied,
            max_size_per_msg: APPEND_BYTES_MAX,
            max_inflight_msgs: APPENDS_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: APPLY_BYTES_MAX,
            ..raft::Config::default()
        };
        let storage = LogStorage::new(stored, applied, members.conf_state());
        let (rank, voters) = members.rank(config.id);
        let timeouts = Timeouts { rank, voters, base: config.election_ticks, seed: config.seed, round: 0 };
        let mut engine = Self {
            node: RawNode::new(&raft_config, storage, &logging::logger())?,
            id: config.id,
            seed: config.seed,
            members,
            timeouts,
            opener: Opener::new(config.id),
            ticks: 0,
            snapshot,
            snapshots_sent: BTreeMap::new(),
            heard: BTreeMap::new(),
            forwarded: 0,
            told: 0,
        };
        engine.hold_timeout();
        Ok(engine)
    }

    /// raft draws a new timeout whenever its role changes, and looks at it in `tick` only.
    fn hold_timeout(&mut self) {
        self.node.raft.set_randomized_election_timeout(self.timeouts.ticks());
    }

    /// Time passes.
    pub fn tick(&mut self) {
        let follows = self.node.raft.state != StateRole::Leader;
        if self.node.tick() && follows {
            self.timeouts.round += 1;
        }
        self.ticks += 1;
        let late = |sent: u64| self.ticks - sent >= SNAPSHOT_TICKS;
        let late: Vec<u64> =
            self.snapshots_sent.iter().filter(|(_, at)| late(**at)).map(|(to, _)| *to).collect();
        for to in late {
            self.snapshots_sent.remove(&to);
            // Taken only if it is still waited for; then the next heartbeat's answer has it sent again.
            self.node.report_snapshot(to, SnapshotStatus::Failure);
        }
        self.hold_timeout();
    }

    /// A member of the group sent this. One that this voter does not know of yet may be its leader: whose voice is heard is
    /// for whoever holds the connection.
    pub fn step(&mut self, from: NodeId, bytes: &[u8]) -> Result<(), MessageError> {
        if let Some(mut message) = self.opener.open(from, bytes)? {
            self.heard.insert(from, self.ticks);
            let kind = message.get_msg_type();
            let raft = &self.node.raft;
            if kind == MessageType::MsgTimeoutNow && (raft.leader_id, raft.term) != (from.get(), message.term)
            {
                // Of one that does not lead, or not any more: nobody is disturbed by that.
                return Ok(());
            }
            if kind == MessageType::MsgReadIndex {
                if self.node.raft.state != StateRole::Leader {
                    // raft would pass the question on in the asker's name. He asks again.
                    return Ok(());
                }
                self.number_question(&mut message);
            }
            if matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat) {
                self.told = self.told.max(message.commit);
            }
            if let Err(error) = self.node.step(message) {
                tracing::debug!(%from, ?kind, %error, "raft ignored a message");
            }
            self.hold_timeout();
        }
        Ok(())
    }

    /// Puts entries at the end of the log, if this voter leads; the position of the first. They leave together: proposed one
    /// by one, each would be a message of its own, and may be a sync of its own where it comes in. (raft's own way to put
    /// appends together, `batch_append`, puts entries behind an empty one that they do not follow.)
    pub fn propose(&mut self, entries: Vec<Vec<u8>>) -> Result<Position, NotProposed> {
        let raft = &mut self.node.raft;
        if raft.state != StateRole::Leader {
            return Err(NotProposed::NotLeader);
        }
        let first = Position { term: raft.term, index: raft.raft_log.last_index() + 1 };
        let entry =
            |data: Vec<u8>| Entry { data: data.into(), context: vec![PROPOSED].into(), ..Entry::default() };
        let mut proposal = Message { from: raft.id, ..Message::default() };
        proposal.set_msg_type(MessageType::MsgPropose);
        proposal.set_entries(entries.into_iter().map(entry).collect::<Vec<_>>().into());
        raft.step(proposal).map_err(|_| NotProposed::Busy)?;
        Ok(first)
    }

    /// Asks to lead, without waiting for a timeout.
    pub fn campaign(&mut self) {
        if let Err(error) = self.node.campaign() {
            tracing::debug!(%error, "no campaign");
        }
        self.hold_timeout();
    }

    /// Asks a quorum, by way of the leader, whether it still is one. An answer is told to the [`Sink`]; none is no.
    pub fn ask_quorum(&mut self, question: u64) {
        let context = [self.id.get(), self.seed, question].map(u64::to_le_bytes).concat();
        self.node.read_index(context);
    }

    /// Answers to a question count for every one before it. One that comes twice is another one each time: else what was
    /// answered to the first long ago would count for all that was asked before the second.
    fn number_question(&mut self, question: &mut Message) {
        self.forwarded += 1;
        for entry in question.mut_entries() {
            entry.data = [&self.forwarded.to_le_bytes()[..], &entry.data[..]].concat().into();
        }
    }

    fn question(&self, context: &[u8]) -> Option<u64> {
        let (words, _) = context.as_chunks::<8>();
        match words {
            // A leader's number stands before what it was asked by another voter.
            [id, seed, question] | [_, id, seed, question]
                if u64::from_le_bytes(*id) == self.id.get() && u64::from_le_bytes(*seed) == self.seed =>
            {
                Some(u64::from_le_bytes(*question))
            }
            _ => None,
        }
    }

    /// Whether there is something to do.
    pub fn has_ready(&self) -> bool {
        self.node.has_ready()
    }

    /// The ordered procedure, once.
    pub fn ready(&mut self, disk: &mut dyn Disk, sink: &mut dyn Sink) -> Result<(), EngineError> {
        let mut ready = self.node.ready();
        let tells_change = self.tells_change();
        if !tells_change {
            self.send(ready.take_messages(), sink);
        }
        // raft hands out what is agreed when this voter has it on its disk, and not before. A change of the group, and what
        // follows it, waits until raft has taken this ready back.
        let mut agreed = ready.take_committed_entries();
        let change = agreed.iter().position(is_change);
        let later = agreed.split_off(change.unwrap_or(agreed.len()));
        self.apply(&agreed, sink);

        if planted::is_on("reply-before-sync") {
            self.send(ready.take_persisted_messages(), sink);
        }
        self.store(&ready, tells_change || !later.is_empty(), disk)?;
        self.send(ready.take_messages(), sink);
        if !ready.snapshot().is_empty() {
            let metadata = ready.snapshot().get_metadata();
            let position = Position { term: metadata.term, index: metadata.index };
            let failed = |source| EngineError::Restore { index: position.index, source };
            let snapshot = self.snapshot.clone();
            let (members, state) =
                Members::decode(&snapshot).map_err(|error| failed(RestoreError::new(error)))?;
            self.set_members(Arc::new(members));
            sink.restore(position, &self.members, state).map_err(failed)?;
        }

        self.send(ready.take_persisted_messages(), sink);
        for state in ready.take_read_states() {
            if let Some(question) = self.question(&state.request_ctx) {
                sink.quorum(question, state.index);
            }
        }

        let mut light = self.node.advance_append(ready);
        if self.tells_change() || light.committed_entries().iter().any(is_change) {
            let hard = self.node.raft.hard_state();
            disk.append(&[], &hard)?;
            self.node.mut_store().append(&[], hard);
            disk.sync()?;
        }
        self.send(light.take_messages(), sink);
        self.apply(&later, sink);
        self.apply(&light.take_committed_entries(), sink);
        self.node.advance_apply();
        Ok(())
    }

    fn apply(&mut self, agreed: &[Entry], sink: &mut dyn Sink) {
        for entry in agreed {
            let position = Position { term: entry.term, index: entry.index };
            match entry.get_entry_type() {
                EntryType::EntryNormal => {
                    let proposed = entry.context.first() == Some(&PROPOSED);
                    sink.apply(position, proposed.then_some(entry.get_data()));
                }
                EntryType::EntryConfChangeV2 | EntryType::EntryConfChange => {
                    self.apply_change(position, entry, sink);
                }
            }
        }
    }

    /// Stores what a ready holds, and returns when it is synced. `notes`: how far the log is agreed must be, too.
    fn store(&mut self, ready: &raft::Ready, notes: bool, disk: &mut dyn Disk) -> Result<(), DiskError> {
        let hard = ready.hs().cloned().unwrap_or_else(|| self.node.store().hard().clone());
        if !ready.snapshot().is_empty() {
            let metadata = ready.snapshot().get_metadata();
            // The entries that follow are stored next; until then the log ends with the snapshot.
            let mut hard = hard.clone();
            hard.commit = metadata.index;
            disk.install_snapshot(ready.snapshot(), &hard)?;
            self.node.mut_store().install_snapshot(metadata.clone(), hard);
            self.snapshot = ready.snapshot().data.clone();
        }
        if !ready.entries().is_empty() || ready.hs().is_some() {
            if planted::is_on("vote-not-persisted") {
                disk.append(ready.entries(), &HardState { vote: 0, ..hard.clone() })?;
            } else {
                disk.append(ready.entries(), &hard)?;
            }
            self.node.mut_store().append(ready.entries(), hard);
        }
        let syncs = ready.must_sync() || notes;
        if syncs && !planted::is_on("sync-skipped") { disk.sync() } else { Ok(()) }
    }

    fn send(&mut self, messages: Vec<Message>, sink: &mut dyn Sink) {
        for message in messages {
            let Some(to) = NodeId::new(message.to) else { continue };
            let sealed = if message.get_msg_type() == MessageType::MsgSnapshot {
                self.snapshots_sent.insert(message.to, self.ticks);
                if message.get_snapshot().get_metadata().index != self.node.store().snapshot_index() {
                    continue;
                }
                envelope::seal_snapshot(&message, &self.snapshot)
            } else {
                envelope::seal(&message).map(|bytes| vec![bytes])
            };
            match sealed {
                Ok(sealed) => sealed.into_iter().for_each(|bytes| sink.send(to, bytes)),
                Err(error) => {
                    tracing::error!(%to, kind = ?message.get_msg_type(), %error, "message not sent")
                }
            }
        }
    }

    /// Whether it is time for a snapshot: `every` so many applied entries; or somebody has come whom the newest one does not
    /// have, and who may need one, since the log does not begin with the first entry.
    pub fn snapshot_is_due(&self, every: u64) -> bool {
        let store = self.node.store();
        let since = self.node.raft.raft_log.applied.saturating_sub(store.snapshot_index());
        let lacks = |(id, _): (NodeId, _)| !store.snapshot_has(id.get());
        since >= every || (since > 0 && store.base().index > 0 && self.members.iter().any(lacks))
    }

    /// Stores the state after all applied entries, and forgets all but the last `keep` of those. Called between
    /// readies. A state above the limit is not stored, and the log goes on growing: `false`.
    pub fn save_snapshot(
        &mut self,
        data: Vec<u8>,
        keep: u64,
        disk: &mut dyn Disk,
    ) -> Result<bool, DiskError> {
        let applied = self.node.raft.raft_log.applied;
        let Some(state) = self.node.store().position(applied) else { return Ok(false) };
        let Ok(mut bytes) = self.members.encode() else { return Ok(false) };
        bytes.extend(data);
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            return Ok(false);
        }
        let base_index = applied.saturating_sub(keep).max(self.node.store().base().index);
        let base = self.node.store().position(base_index).unwrap_or(state);
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = state.index;
        metadata.term = state.term;
        if planted::is_on("snapshot-without-tail") {
            // It claims what comes behind it in the log, too.
            let (_, last) = self.log_range();
            let last = self.node.store().position(last).unwrap_or(state);
            (metadata.index, metadata.term) = (last.index, last.term);
        }
        metadata.set_conf_state(self.node.store().conf().clone());
        snapshot.set_data(bytes.into());
        let hard = self.node.raft.hard_state();
        disk.save_snapshot(&snapshot, base, &hard)?;
        disk.sync()?;
        self.snapshot = snapshot.take_data();
        self.node.mut_store().save_snapshot(snapshot.take_metadata(), base, hard);
        Ok(true)
    }

    /// The term, and raft's role in it.
    pub fn role(&self) -> (u64, StateRole) {
        (self.node.raft.term, self.node.raft.state)
    }

    /// Who leads, as far as this voter knows.
    pub fn leader(&self) -> Option<NodeId> {
        NodeId::new(self.node.raft.leader_id)
    }

    /// Up to which entry the log is agreed.
    pub fn committed(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Which entry stands at an index, if the log still knows.
    pub fn position(&self, index: u64) -> Option<Position> {
        self.node.store().position(index)
    }

    /// The log's first and last index.
    pub fn log_range(&self) -> (u64, u64) {
        (self.node.raft.raft_log.first_index(), self.node.raft.raft_log.last_index())
    }
}
