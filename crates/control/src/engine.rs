//! Raft, without clock, socket, file and thread: inputs change it, and one ordered procedure acts for it.
//!
//! ```text
//!   tick, step, propose, campaign, ask_quorum ─▶ RawNode
//!
//!   ready:   1 send what need not wait        (a leader's appends)
//!            2 store snapshot, entries, term and vote; sync
//!            3 send what waited for the sync  (votes, acknowledgements)
//!            4 apply what is agreed, in order
//! ```
//!
//! Always true:
//! - nothing that rests on unsynced state leaves before the sync ([`Engine::ready`]); after an error of the disk the
//!   engine is dropped and started again from what the disk holds, as after a crash;
//! - the same inputs give the same outputs: the election timeout, which raft would draw from the thread's random
//!   numbers, is set to a function of rank, seed and round after every input;
//! - a voter's timeouts differ from the others' in the same round, so elections do not split for ever.

use std::collections::BTreeMap;

use bytes::Bytes;
use godwit_domain::planted;
use raft::eraftpb::{HardState, Message, MessageType, Snapshot};
use raft::{RawNode, SnapshotStatus, StateRole};

use crate::envelope::{self, MessageError, Opener, SNAPSHOT_BYTES_MAX};
use crate::group::{NodeId, Voters};
use crate::logging;
use crate::machine::RestoreError;
use crate::storage::{Disk, DiskError, LogStorage, Stored};

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
const PROPOSED: u8 = 1;

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
    /// Everyone.
    pub voters: Voters,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotProposed {
    /// This voter does not lead.
    NotLeader,
    /// Too much is not agreed yet.
    Busy,
}

/// What an engine does while it is made ready.
pub trait Sink {
    /// Send this to a voter. It may be lost, doubled and overtaken.
    fn send(&mut self, to: NodeId, bytes: Vec<u8>);
    /// The state is now that of a leader's snapshot.
    fn restore(&mut self, position: Position, snapshot: &[u8]) -> Result<(), RestoreError>;
    /// An entry is agreed. `None`: a leader's beginning, which means nothing.
    fn apply(&mut self, position: Position, entry: Option<&[u8]>);
    /// A quorum answered after [`Engine::ask_quorum`] was called with this number. What was agreed at that call ends with
    /// `index`, or before it.
    fn quorum(&mut self, question: u64, index: u64);
}

/// Election timeouts.
#[derive(Debug)]
struct Timeouts {
    rank: usize,
    voters: usize,
    base: usize,
    seed: u64,
    /// Counts this voter's elections.
    round: usize,
}

impl Timeouts {
    /// Between `base` and twice that: a slot of its own for each rank, rotating, and chance within it.
    fn ticks(&self) -> usize {
        let width = (self.base / self.voters).max(1);
        let slot = (self.rank + self.round) % self.voters;
        let mixed = xxhash_rust::xxh3::xxh3_64_with_seed(&self.round.to_le_bytes(), self.seed);
        let within = usize::try_from(mixed % width as u64).unwrap_or_default();
        self.base + (slot * width + within).min(self.base - 1)
    }
}

/// See the module.
pub struct Engine {
    node: RawNode<LogStorage>,
    id: NodeId,
    seed: u64,
    timeouts: Timeouts,
    opener: Opener,
    ticks: u64,
    /// The data of the storage's snapshot.
    snapshot: Bytes,
    /// When a snapshot was last sent to a voter.
    snapshots_sent: BTreeMap<u64, u64>,
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
    /// A voter that begins with what its disk holds; `applied` entries of it are in the state machine.
    pub fn start(config: &EngineConfig, mut stored: Stored, applied: u64) -> Result<Self, raft::Error> {
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
        let storage = LogStorage::new(stored, applied);
        let timeouts = Timeouts {
            rank: config.voters.rank(config.id),
            voters: config.voters.count(),
            base: config.election_ticks,
            seed: config.seed,
            round: 0,
        };
        let mut engine = Self {
            node: RawNode::new(&raft_config, storage, &logging::logger())?,
            id: config.id,
            seed: config.seed,
            timeouts,
            opener: Opener::new(config.id),
            ticks: 0,
            snapshot,
            snapshots_sent: BTreeMap::new(),
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

    /// A voter sent this.
    pub fn step(&mut self, from: NodeId, bytes: &[u8]) -> Result<(), MessageError> {
        if self.node.raft.prs().get(from.get()).is_none() {
            return Err(MessageError::Rule { from, rule: "its sender is no voter" });
        }
        if let Some(message) = self.opener.open(from, bytes)? {
            let kind = message.get_msg_type();
            if kind == MessageType::MsgReadIndex && self.node.raft.state != StateRole::Leader {
                // raft would pass the question on in the asker's name. He asks again.
                return Ok(());
            }
            if let Err(error) = self.node.step(message) {
                tracing::debug!(%from, ?kind, %error, "raft ignored a message");
            }
            self.hold_timeout();
        }
        Ok(())
    }

    /// Puts an entry at the end of the log, if this voter leads.
    pub fn propose(&mut self, entry: Vec<u8>) -> Result<Position, NotProposed> {
        if self.node.raft.state != StateRole::Leader {
            return Err(NotProposed::NotLeader);
        }
        self.node.propose(vec![PROPOSED], entry).map_err(|_| NotProposed::Busy)?;
        Ok(Position { term: self.node.raft.term, index: self.node.raft.raft_log.last_index() })
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

    fn question(&self, context: &[u8]) -> Option<u64> {
        let (words, _) = context.as_chunks::<8>();
        match words {
            [id, seed, question]
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
        self.send(ready.take_messages(), sink);

        if planted::is_on("reply-before-sync") {
            self.send(ready.take_persisted_messages(), sink);
        }
        self.store(&ready, disk)?;
        if !ready.snapshot().is_empty() {
            let metadata = ready.snapshot().get_metadata();
            let position = Position { term: metadata.term, index: metadata.index };
            sink.restore(position, &self.snapshot)
                .map_err(|source| EngineError::Restore { index: position.index, source })?;
        }

        self.send(ready.take_persisted_messages(), sink);
        for state in ready.take_read_states() {
            if let Some(question) = self.question(&state.request_ctx) {
                sink.quorum(question, state.index);
            }
        }

        let mut agreed = ready.take_committed_entries();
        let mut light = self.node.advance_append(ready);
        self.send(light.take_messages(), sink);
        agreed.append(&mut light.take_committed_entries());
        for entry in &agreed {
            let proposed = entry.context.first() == Some(&PROPOSED);
            let position = Position { term: entry.term, index: entry.index };
            sink.apply(position, proposed.then_some(entry.get_data()));
        }
        self.node.advance_apply();
        Ok(())
    }

    /// Stores what a ready holds, and returns when it is synced.
    fn store(&mut self, ready: &raft::Ready, disk: &mut dyn Disk) -> Result<(), DiskError> {
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
        if ready.must_sync() && !planted::is_on("sync-skipped") { disk.sync() } else { Ok(()) }
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

    /// How many applied entries the newest snapshot does not hold.
    pub fn since_snapshot(&self) -> u64 {
        self.node.raft.raft_log.applied.saturating_sub(self.node.store().snapshot_index())
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
        if data.len() > SNAPSHOT_BYTES_MAX {
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
        metadata.set_conf_state(self.node.store().voters().clone());
        snapshot.set_data(data.into());
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

    /// The log's first and last index.
    pub fn log_range(&self) -> (u64, u64) {
        (self.node.raft.raft_log.first_index(), self.node.raft.raft_log.last_index())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_voters_differ_and_stay_in_range() {
        for (voters, base) in [(3, 10), (5, 10), (5, 4), (3, 20)] {
            for round in 0..50 {
                let ticks: Vec<usize> = (0..voters)
                    .map(|rank| Timeouts { rank, voters, base, seed: rank as u64 * 7, round }.ticks())
                    .collect();
                let mut apart = ticks.clone();
                apart.sort_unstable();
                apart.dedup();
                assert!(ticks.iter().all(|ticks| (base..2 * base).contains(ticks)), "{ticks:?}");
                assert!(base < voters || apart.len() == voters, "{ticks:?}");
            }
        }
    }
}
