//! A voter's disk: it forgets what was not synced, is slow, full, or fails, as luck has planned.
//!
//! ```text
//!   write ─▶ pending ── sync ─▶ synced              a crash: the first n of pending survive
//!                         └─ slow: undone by a crash until it has ended
//! ```
//!
//! Always true: writes survive whole and in order, as the trait asks; a disk opened before a crash fails; every failure
//! was planned and says so, so that one that was not is a finding.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use godwit_control::engine::Position;
use godwit_control::storage::Stored;
use godwit_control::{Disk, DiskError, DiskSource, Members};
use raft::eraftpb::{Entry, HardState, Snapshot};

/// In every planned failure's words.
pub(crate) const PLANNED: &str = "planned";

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

/// What will go wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The next sync takes so long, in microseconds.
    SlowSync(u64),
    /// A call fails, after so many.
    Fails(u32),
    /// What is read is damaged: this voter never starts again.
    Torn,
}

#[derive(Debug, Default)]
struct Platter {
    synced: Stored,
    pending: Vec<Write>,
    /// What there was before a sync that has not ended.
    before: Option<Box<(Stored, Vec<Write>)>>,
    /// How long the syncs of this turn take, in microseconds.
    busy_us: u64,
    trouble: Option<Trouble>,
    is_full: bool,
    is_torn: bool,
    is_open: bool,
    crashes: u64,
}

impl Platter {
    fn call(&mut self, doing: &'static str) -> Result<(), DiskError> {
        if self.is_full {
            self.pending.clear();
            let source = io::Error::new(io::ErrorKind::StorageFull, PLANNED);
            return Err(DiskError::Full { place: "disk".to_owned(), source });
        }
        match &mut self.trouble {
            Some(Trouble::Fails(calls @ 1..)) => *calls -= 1,
            Some(Trouble::Fails(_)) => {
                self.trouble = None;
                return Err(DiskError::Io {
                    place: "disk".to_owned(),
                    doing,
                    source: io::Error::other(PLANNED),
                });
            }
            Some(Trouble::SlowSync(_) | Trouble::Torn) | None => {}
        }
        Ok(())
    }

    fn sync(&mut self) {
        for write in std::mem::take(&mut self.pending) {
            write.apply(&mut self.synced);
        }
    }
}

/// What survives, and the handle by which luck breaks it.
#[derive(Debug, Clone)]
pub(crate) struct Folder(Arc<Mutex<Platter>>);

impl Folder {
    pub(crate) fn new(founders: Members) -> Self {
        let synced = Stored { founders, ..Stored::default() };
        Self(Arc::new(Mutex::new(Platter { synced, ..Platter::default() })))
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process dies, or power is cut: of what was not synced the first few survive.
    pub(crate) fn crash(&self, random: &mut Rng) {
        let mut platter = self.platter();
        let unsynced = std::mem::take(&mut platter.pending);
        let (mut synced, mut pending) = match platter.before.take() {
            Some(before) => *before,
            None => (std::mem::take(&mut platter.synced), Vec::new()),
        };
        pending.extend(unsynced);
        let survivors = random.usize(0..=pending.len());
        pending.into_iter().take(survivors).for_each(|write| write.apply(&mut synced));
        platter.synced = synced;
        platter.busy_us = 0;
        platter.is_open = false;
        platter.crashes += 1;
        if platter.trouble == Some(Trouble::Torn) {
            platter.is_torn = true;
        }
    }

    /// How long the syncs since the last question take, in microseconds.
    pub(crate) fn take_busy(&self) -> u64 {
        std::mem::take(&mut self.platter().busy_us)
    }

    /// Whether a slow sync is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.platter().busy_us > 0
    }

    /// The term of an entry that would survive a crash, if the log still says it.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        let platter = self.platter();
        let safe = platter.before.as_ref().map_or(&platter.synced, |before| &before.0);
        let place = usize::try_from(index.checked_sub(safe.base.index + 1)?).ok()?;
        safe.entries.get(place).map(|entry| entry.term)
    }

    /// Whether an entry would survive a crash: of this term, if it is known.
    pub(crate) fn has(&self, index: u64, term: Option<u64>) -> bool {
        let platter = self.platter();
        let safe = platter.before.as_ref().map_or(&platter.synced, |before| &before.0);
        let is_in_state = safe.base.index >= index;
        drop(platter);
        is_in_state || self.term_at(index).is_some_and(|is| term.is_none_or(|term| term == is))
    }

    /// A slow sync has ended.
    pub(crate) fn settle(&self) {
        self.platter().before = None;
    }

    pub(crate) fn plan(&self, trouble: Trouble) {
        self.platter().trouble = Some(trouble);
    }

    pub(crate) fn set_full(&self, is_full: bool) {
        self.platter().is_full = is_full;
    }

    pub(crate) fn is_torn(&self) -> bool {
        self.platter().is_torn
    }

    /// Nothing goes wrong any more; what is torn stays torn.
    pub(crate) fn calm(&self) {
        let mut platter = self.platter();
        (platter.trouble, platter.is_full) = (None, false);
    }
}

impl DiskSource for Folder {
    fn open(&mut self) -> Result<Box<dyn Disk>, DiskError> {
        let mut platter = self.platter();
        platter.call("open")?;
        if platter.is_open {
            return Err(DiskError::InUse { place: "disk".to_owned() });
        }
        platter.is_open = true;
        let crashes = platter.crashes;
        drop(platter);
        Ok(Box::new(OpenDisk { folder: self.clone(), crashes }))
    }
}

#[derive(Debug)]
struct OpenDisk {
    folder: Folder,
    crashes: u64,
}

impl OpenDisk {
    fn call(&self, doing: &'static str) -> Result<MutexGuard<'_, Platter>, DiskError> {
        let mut platter = self.folder.platter();
        if platter.crashes != self.crashes {
            let source = io::Error::other("it was opened before a crash");
            return Err(DiskError::Io { place: "disk".to_owned(), doing, source });
        }
        platter.call(doing)?;
        Ok(platter)
    }
}

impl Drop for OpenDisk {
    fn drop(&mut self) {
        let mut platter = self.folder.platter();
        if platter.crashes == self.crashes {
            platter.is_open = false;
        }
    }
}

impl Disk for OpenDisk {
    fn load(&mut self) -> Result<Stored, DiskError> {
        let mut platter = self.call("load")?;
        if platter.is_torn {
            return Err(DiskError::Damaged { place: "disk".to_owned(), what: PLANNED.to_owned() });
        }
        platter.sync();
        let stored = platter.synced.clone();
        drop(platter);
        stored.check().map_err(|what| DiskError::Damaged { place: "disk".to_owned(), what })?;
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
        if let Some(Trouble::SlowSync(us)) = platter.trouble {
            platter.trouble = None;
            platter.busy_us += us;
        }
        if platter.busy_us > 0 {
            // Until it has ended, a crash takes back what is synced now; what comes behind it waits for it.
            let (synced, pending) = (platter.synced.clone(), platter.pending.clone());
            match &mut platter.before {
                Some(before) => before.1.extend(pending),
                None => platter.before = Some(Box::new((synced, pending))),
            }
        }
        platter.sync();
        Ok(())
    }
}
