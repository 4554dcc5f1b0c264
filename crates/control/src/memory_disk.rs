//! A disk in memory, for tests and simulation: it forgets what was not synced, and fails when told to.
//!
//! ```text
//!   write ─▶ pending ── sync ─▶ synced
//!               └── power cut: the first n writes survive
//! ```
//!
//! Always true: pending writes survive a power cut in order, as on the real disk; a disk opened before a cut fails.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft::eraftpb::{Entry, HardState, Snapshot};

use crate::engine::Position;
use crate::group::Voters;
use crate::members::Members;
use crate::storage::{Disk, DiskError, DiskSource, Stored};

#[derive(Debug, Clone)]
enum Write {
    Append(Vec<Entry>, HardState),
    Save(Snapshot, Position, HardState),
    Install(Snapshot, HardState),
}

impl Write {
    fn apply(self, to: &mut Stored) {
        let place = |stored: &Stored, index: u64| {
            usize::try_from(index.saturating_sub(stored.base.index + 1)).unwrap_or(usize::MAX)
        };
        match self {
            Self::Append(entries, hard) => {
                if let Some(first) = entries.first() {
                    to.entries.truncate(place(to, first.index));
                    to.entries.extend(entries);
                }
                to.hard = hard;
            }
            Self::Save(snapshot, base, hard) => {
                let first_kept = place(to, base.index + 1).min(to.entries.len());
                to.entries.drain(..first_kept);
                *to = Stored { snapshot: Some(snapshot), base, hard, ..std::mem::take(to) };
            }
            Self::Install(snapshot, hard) => {
                let metadata = snapshot.get_metadata();
                let base = Position { term: metadata.term, index: metadata.index };
                let founders = std::mem::take(&mut to.founders);
                *to = Stored { founders, hard, base, entries: Vec::new(), snapshot: Some(snapshot) };
            }
        }
    }
}

/// A call that will fail.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Calls before it.
    pub calls: u32,
    /// With what.
    pub kind: io::ErrorKind,
    /// How many of the writes that were not synced survive it.
    pub survivors: usize,
}

#[derive(Debug, Default)]
struct Platter {
    synced: Stored,
    pending: Vec<Write>,
    /// Counts power cuts.
    cuts: u64,
    is_open: bool,
    is_full: bool,
    fault: Option<Fault>,
    syncs: u64,
}

impl Platter {
    fn call(&mut self, doing: &'static str) -> Result<(), DiskError> {
        let fault = match &mut self.fault {
            _ if self.is_full => Fault { calls: 0, kind: io::ErrorKind::StorageFull, survivors: 0 },
            Some(Fault { calls: calls @ 1.., .. }) => {
                *calls -= 1;
                return Ok(());
            }
            Some(fault) => *fault,
            None => return Ok(()),
        };
        self.fault = None;
        self.pending.truncate(fault.survivors);
        let (place, source) = ("memory".to_owned(), fault.kind.into());
        Err(match fault.kind {
            io::ErrorKind::StorageFull => DiskError::Full { place, source },
            _ => DiskError::Io { place, doing, source },
        })
    }

    fn sync(&mut self) {
        for write in self.pending.drain(..) {
            write.apply(&mut self.synced);
        }
    }
}

/// What survives; and the handle by which a test breaks it.
#[derive(Debug, Clone)]
pub struct MemoryFolder {
    platter: Arc<Mutex<Platter>>,
}

impl MemoryFolder {
    /// A new voter's, who founds a group with the others.
    pub fn new(voters: &Voters) -> Self {
        Self::joining(Members::founding(voters))
    }

    /// That of somebody who joins a group which these have founded.
    pub fn joining(founders: Members) -> Self {
        let synced = Stored { founders, ..Stored::default() };
        Self { platter: Arc::new(Mutex::new(Platter { synced, ..Platter::default() })) }
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power fails: of the writes that were not synced, the first `survivors` are there. The disk opened before fails.
    pub fn cut_power(&self, survivors: usize) {
        let mut platter = self.platter();
        let pending = std::mem::take(&mut platter.pending);
        let mut synced = std::mem::take(&mut platter.synced);
        pending.into_iter().take(survivors).for_each(|write| write.apply(&mut synced));
        platter.synced = synced;
        platter.cuts += 1;
        platter.is_open = false;
    }

    /// How many writes are not synced.
    pub fn pending(&self) -> usize {
        self.platter().pending.len()
    }

    /// Whether there is room.
    pub fn set_full(&self, is_full: bool) {
        self.platter().is_full = is_full;
    }

    /// A call will fail, once.
    pub fn plan(&self, fault: Fault) {
        self.platter().fault = Some(fault);
    }

    /// What a power cut would leave now.
    pub fn synced(&self) -> Stored {
        self.platter().synced.clone()
    }

    /// Looks at what a power cut would leave now.
    pub fn look<T>(&self, look: impl FnOnce(&Stored) -> T) -> T {
        look(&self.platter().synced)
    }

    /// How often it was synced.
    pub fn syncs(&self) -> u64 {
        self.platter().syncs
    }
}

impl DiskSource for MemoryFolder {
    fn open(&mut self) -> Result<Box<dyn Disk>, DiskError> {
        let mut platter = self.platter();
        platter.call("open")?;
        if platter.is_open {
            return Err(DiskError::InUse { place: "memory".to_owned() });
        }
        platter.is_open = true;
        let cuts = platter.cuts;
        drop(platter);
        Ok(Box::new(MemoryDisk { folder: self.clone(), cuts }))
    }
}

#[derive(Debug)]
struct MemoryDisk {
    folder: MemoryFolder,
    cuts: u64,
}

impl MemoryDisk {
    fn call(&self, doing: &'static str) -> Result<MutexGuard<'_, Platter>, DiskError> {
        let mut platter = self.folder.platter();
        if platter.cuts != self.cuts {
            let source = io::Error::other("the power was cut");
            return Err(DiskError::Io { place: "memory".to_owned(), doing, source });
        }
        platter.call(doing)?;
        Ok(platter)
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        let mut platter = self.folder.platter();
        if platter.cuts == self.cuts {
            platter.is_open = false;
        }
    }
}

impl Disk for MemoryDisk {
    fn load(&mut self) -> Result<Stored, DiskError> {
        let mut platter = self.call("load")?;
        platter.sync();
        let stored = platter.synced.clone();
        drop(platter);
        stored.check().map_err(|what| DiskError::Damaged { place: "memory".to_owned(), what })?;
        Ok(stored)
    }

    fn append(&mut self, entries: &[Entry], hard: &HardState) -> Result<(), DiskError> {
        self.call("append")?.pending.push(Write::Append(entries.to_vec(), hard.clone()));
        Ok(())
    }

    fn save_snapshot(
        &mut self,
        snapshot: &Snapshot,
        base: Position,
        hard: &HardState,
    ) -> Result<(), DiskError> {
        self.call("save")?.pending.push(Write::Save(snapshot.clone(), base, hard.clone()));
        Ok(())
    }

    fn install_snapshot(&mut self, snapshot: &Snapshot, hard: &HardState) -> Result<(), DiskError> {
        self.call("install")?.pending.push(Write::Install(snapshot.clone(), hard.clone()));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        let mut platter = self.call("sync")?;
        platter.sync();
        platter.syncs += 1;
        Ok(())
    }
}
