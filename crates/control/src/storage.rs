//! What outlives a voter: the disk as a trait, and the log as raft reads it.
//!
//! ```text
//!   start:  Disk::load ─▶ Stored ─▶ LogStorage (memory) ─▶ raft reads
//!   later:  engine ─▶ Disk::append, save_snapshot, install_snapshot, sync
//!               └───▶ LogStorage, the same change
//! ```
//!
//! Always true: after the start nothing is read from the disk, because raft dies of a failing read; what a
//! [`LogStorage`] holds is what the disk was told, in the same order.

use std::fmt;
use std::io;

use protobuf::Message;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::engine::Position;
use crate::members::Members;

/// Why a disk did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No room. Passes when there is some.
    #[error("{place}: the disk is full")]
    Full {
        /// Which folder.
        place: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It does not work.
    #[error("{place}: {doing}")]
    Io {
        /// Which folder.
        place: String,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What is read is not what was acknowledged.
    #[error("{place} is damaged: {what}; this voter must not go on with it")]
    Damaged {
        /// Which folder.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// It is another node's.
    #[error("{place} belongs to {owner}, and this is {me}")]
    Foreign {
        /// Which folder.
        place: String,
        /// Whose it is.
        owner: String,
        /// Who asks.
        me: String,
    },
    /// Somebody has it open.
    #[error("{place} is in use by another voter's process")]
    InUse {
        /// Which folder.
        place: String,
    },
}

impl DiskError {
    /// Whether opening it again later may help. A disk that fails to write or sync is not one of these: what is read
    /// back afterwards may be a cache's, and not the disk's. For one that is full the log sees to that when it is opened.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Full { .. } | Self::InUse { .. } => true,
            Self::Io { .. } | Self::Damaged { .. } | Self::Foreign { .. } => false,
        }
    }
}

/// What a disk holds when it is opened.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stored {
    /// Who was in the group before the first entry.
    pub founders: Members,
    /// Term, vote, and how far the log was known to be agreed.
    pub hard: HardState,
    /// The entry before the first.
    pub base: Position,
    /// All entries after `base`.
    pub entries: Vec<Entry>,
    /// The state at some entry, not older than `base`.
    pub snapshot: Option<Snapshot>,
}

impl Stored {
    /// The index of the last entry.
    pub fn last_index(&self) -> u64 {
        self.entries.last().map_or(self.base.index, |entry| entry.index)
    }

    /// Whether it hangs together; the error says where it does not.
    pub fn check(&self) -> Result<(), String> {
        let mut before = self.base;
        for entry in &self.entries {
            let expected = before.index + 1;
            if entry.index != expected {
                return Err(format!("entry {} stands where entry {expected} should", entry.index));
            }
            if entry.term < before.term {
                return Err(format!(
                    "entry {expected} is of term {}, after term {}",
                    entry.term, before.term
                ));
            }
            before = Position { term: entry.term, index: entry.index };
        }
        if before.term > self.hard.term {
            return Err(format!("entry {} is of term {}, after the last term", before.index, before.term));
        }
        if self.hard.commit > before.index {
            return Err(format!("{} entries are agreed, and {} are here", self.hard.commit, before.index));
        }
        let state = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.get_metadata().index);
        if state < self.base.index || state > before.index {
            return Err(format!("the snapshot is of entry {state}, outside the log"));
        }
        Ok(())
    }
}

/// Where a voter keeps what it must not forget.
///
/// Each call takes effect as a whole or not at all, and in the order of the calls; none is durable before the next
/// [`Disk::sync`] has returned. After an error the disk is dropped; one that was full is opened again.
pub trait Disk: Send + fmt::Debug {
    /// Everything, once, after opening; and all of it is synced, whoever wrote it.
    fn load(&mut self) -> Result<Stored, DiskError>;

    /// Entries from the first one's index on, in place of whatever stood there and behind; and the hard state.
    fn append(&mut self, entries: &[Entry], hard: &HardState) -> Result<(), DiskError>;

    /// A snapshot of this node's own state. Entries up to `base` are forgotten, those after it stay.
    fn save_snapshot(
        &mut self,
        snapshot: &Snapshot,
        base: Position,
        hard: &HardState,
    ) -> Result<(), DiskError>;

    /// A snapshot from the leader, in place of the whole log.
    fn install_snapshot(&mut self, snapshot: &Snapshot, hard: &HardState) -> Result<(), DiskError>;

    /// Returns when everything told so far survives a power cut.
    fn sync(&mut self) -> Result<(), DiskError>;
}

/// Opens a voter's disk, at the start and again whenever it was full.
pub trait DiskSource: Send + fmt::Debug {
    /// The disk, which nobody else then has.
    fn open(&mut self) -> Result<Box<dyn Disk>, DiskError>;
}

/// The log in memory, as raft reads it.
#[derive(Debug)]
pub struct LogStorage {
    hard: HardState,
    conf: ConfState,
    base: Position,
    entries: Vec<Entry>,
    snapshot: SnapshotMetadata,
}

impl LogStorage {
    /// The log of a disk that was checked, of which `applied` entries are agreed and were applied; then the group was so.
    pub(crate) fn new(stored: Stored, applied: u64, conf: ConfState) -> Self {
        let mut hard = stored.hard;
        // What was applied was agreed, even if the disk's note of it is older: that note need not be synced.
        hard.commit = hard.commit.max(applied);
        let snapshot = stored.snapshot.map(|mut snapshot| snapshot.take_metadata()).unwrap_or_default();
        Self { hard, conf, base: stored.base, entries: stored.entries, snapshot }
    }

    pub(crate) fn hard(&self) -> &HardState {
        &self.hard
    }

    /// Who is in the group, as far as entries are applied.
    pub(crate) fn conf(&self) -> &ConfState {
        &self.conf
    }

    pub(crate) fn set_conf(&mut self, conf: ConfState) {
        self.conf = conf;
    }

    pub(crate) fn base(&self) -> Position {
        self.base
    }

    pub(crate) fn snapshot_index(&self) -> u64 {
        self.snapshot.index
    }

    /// Whether somebody is in the group at the newest snapshot.
    pub(crate) fn snapshot_has(&self, id: u64) -> bool {
        let conf = self.snapshot.get_conf_state();
        conf.voters.contains(&id) || conf.learners.contains(&id)
    }

    fn last(&self) -> u64 {
        self.entries.last().map_or(self.base.index, |entry| entry.index)
    }

    /// An entry's place in `entries`; `None` at or below the base.
    fn place(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.base.index + 1)?).ok()
    }

    /// Which entry stands at an index, if the log still knows.
    pub(crate) fn position(&self, index: u64) -> Option<Position> {
        if index == self.base.index {
            return Some(self.base);
        }
        let entry = self.entries.get(self.place(index)?)?;
        Some(Position { term: entry.term, index })
    }

    pub(crate) fn append(&mut self, entries: &[Entry], hard: HardState) {
        if let Some(first) = entries.first() {
            let keep = self.place(first.index).unwrap_or_default();
            self.entries.truncate(keep);
            self.entries.extend_from_slice(entries);
        }
        self.hard = hard;
    }

    pub(crate) fn save_snapshot(&mut self, snapshot: SnapshotMetadata, base: Position, hard: HardState) {
        if let Some(first_kept) = self.place(base.index + 1) {
            self.entries.drain(..first_kept.min(self.entries.len()));
        }
        self.base = base;
        self.snapshot = snapshot;
        self.hard = hard;
    }

    pub(crate) fn install_snapshot(&mut self, snapshot: SnapshotMetadata, hard: HardState) {
        self.entries.clear();
        self.base = Position { term: snapshot.term, index: snapshot.index };
        self.conf = snapshot.get_conf_state().clone();
        self.snapshot = snapshot;
        self.hard = hard;
    }
}

impl Storage for LogStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let Some(from) = self.place(low) else {
            return Err(raft::Error::Store(StorageError::Compacted));
        };
        let wanted = self.place(high).and_then(|to| self.entries.get(from..to));
        let Some(wanted) = wanted else {
            return Err(raft::Error::Store(StorageError::Unavailable));
        };
        // One entry at least, whatever its size: raft could never send it otherwise.
        let max = max_size.into().unwrap_or(raft::NO_LIMIT);
        let mut total = 0;
        let fits = wanted.iter().take_while(|entry| {
            let first = total == 0;
            total += u64::from(entry.compute_size());
            first || total <= max
        });
        Ok(fits.cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.base.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.position(index)
            .map(|position| position.term)
            .ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Without its data: the engine cuts that into pieces when the message leaves. Whoever is not in the group at a snapshot
    /// would not take it: there will be a later one.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        if self.snapshot.index == 0 || self.snapshot.index < request_index || !self.snapshot_has(to) {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(self.snapshot.clone());
        Ok(snapshot)
    }
}
