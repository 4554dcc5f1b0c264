//! A voter's disk that does what it is told and counts it: syncs, what they take, and snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use godwit_control::storage::Stored;
use godwit_control::{Disk, DiskError, DiskSource, Position, SledFolder};
use raft::eraftpb::{Entry, HardState, Snapshot};

/// What all disks of a group were told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_ns: AtomicU64,
    pub(crate) appends: AtomicU64,
    pub(crate) append_ns: AtomicU64,
    pub(crate) snapshots: AtomicU64,
    pub(crate) snapshot_ns: AtomicU64,
}

/// The numbers, at some time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) syncs: u64,
    pub(crate) sync_ns: u64,
    pub(crate) append_ns: u64,
    pub(crate) snapshots: u64,
    pub(crate) snapshot_ns: u64,
}

impl Count {
    /// What was told since.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            syncs: self.syncs - earlier.syncs,
            sync_ns: self.sync_ns - earlier.sync_ns,
            append_ns: self.append_ns - earlier.append_ns,
            snapshots: self.snapshots - earlier.snapshots,
            snapshot_ns: self.snapshot_ns - earlier.snapshot_ns,
        }
    }
}

impl Told {
    pub(crate) fn count(&self) -> Count {
        Count {
            syncs: self.syncs.load(Relaxed),
            sync_ns: self.sync_ns.load(Relaxed),
            append_ns: self.append_ns.load(Relaxed),
            snapshots: self.snapshots.load(Relaxed),
            snapshot_ns: self.snapshot_ns.load(Relaxed),
        }
    }
}

/// A folder whose disk counts.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) folder: SledFolder,
    pub(crate) told: Arc<Told>,
}

impl DiskSource for Counted {
    fn open(&mut self) -> Result<Box<dyn Disk>, DiskError> {
        Ok(Box::new(CountedDisk { disk: self.folder.open()?, told: Arc::clone(&self.told) }))
    }
}

#[derive(Debug)]
struct CountedDisk {
    disk: Box<dyn Disk>,
    told: Arc<Told>,
}

fn timed<T>(count: &AtomicU64, ns: &AtomicU64, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    count.fetch_add(1, Relaxed);
    ns.fetch_add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX), Relaxed);
    done
}

impl Disk for CountedDisk {
    fn load(&mut self) -> Result<Stored, DiskError> {
        self.disk.load()
    }

    fn append(&mut self, entries: &[Entry], hard: &HardState) -> Result<(), DiskError> {
        timed(&self.told.appends, &self.told.append_ns, || self.disk.append(entries, hard))
    }

    fn save_snapshot(
        &mut self,
        snapshot: &Snapshot,
        base: Position,
        hard: &HardState,
    ) -> Result<(), DiskError> {
        timed(&self.told.snapshots, &self.told.snapshot_ns, || self.disk.save_snapshot(snapshot, base, hard))
    }

    fn install_snapshot(&mut self, snapshot: &Snapshot, hard: &HardState) -> Result<(), DiskError> {
        timed(&self.told.snapshots, &self.told.snapshot_ns, || self.disk.install_snapshot(snapshot, hard))
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        timed(&self.told.syncs, &self.told.sync_ns, || self.disk.sync())
    }
}
