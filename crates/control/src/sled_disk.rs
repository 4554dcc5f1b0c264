//! A node's disk: the one file that knows sled.
//!
//! ```text
//!   append ─▶ batch: entries, removed ones, head ─▶ sync: flush ─▶ fdatasync(db) ─▶ mark
//!   snapshot ─▶ pieces ─▶ batch: closing marker, head ─▶ what is no longer in force is removed
//! ```
//!
//! Always true:
//! - each batch is recovered whole or not at all, and in order. The head goes with every batch;
//! - sled's flush alone is `sync_file_range`, which a disk's cache and a file's new length survive no power cut by;
//!   a second descriptor of its file is therefore synced after each flush, and the folder after each opening;
//! - what sled left half-written of its own is removed before it looks: it would take that for damage;
//! - no value is above `CHUNK_BYTES`, so sled makes no files of its own in `blobs`, which nobody would sync;
//! - a folder is one node's; a second opening, another node's folder and a damaged one are errors with names.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protobuf::Message;
use raft::eraftpb::{Entry, HardState, Snapshot};
use rustix::fs::{Advice, FlockOperation, fadvise, flock};
use sled::{Batch, Db};

use crate::engine::Position;
use crate::group::Identity;
use crate::mark::Mark;
use crate::records::{self, CHUNK_BYTES, HEAD, Head, Held, OWNER, Records};
use crate::storage::{Disk, DiskError, DiskSource, Stored};

/// What sled may cache. The log is read once, at the start.
const CACHE_BYTES: u64 = 4 << 20;
/// Pieces that go into one batch: 256 KiB, half of one of sled's segments.
const PIECES_PER_BATCH: usize = 64;
/// sled's own threads let go of a closed log's lock a moment after it was closed; another process holds it longer.
const LOCK_TRIES: u32 = 25;
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Removals that go into one batch.
const REMOVALS_PER_BATCH: usize = 256;

/// The folder of a voter.
#[derive(Debug, Clone)]
pub struct SledFolder {
    folder: PathBuf,
    identity: Identity,
    has_begun: bool,
}

impl SledFolder {
    /// The folder of this node, made when first opened.
    pub fn new(folder: impl Into<PathBuf>, identity: Identity) -> Self {
        Self { folder: folder.into(), identity, has_begun: false }
    }

    /// The folder of one that has voted before: it has a log, and where that is gone nothing is begun in its place.
    #[must_use]
    pub fn that_has_begun(self, has_begun: bool) -> Self {
        Self { has_begun, ..self }
    }
}

impl SledFolder {
    fn try_open(&self) -> Result<SledDisk, DiskError> {
        let place = Place(self.folder.display().to_string());
        // Damage that sled does not expect makes it panic; for whoever opens the folder that is damage all the same.
        catch_unwind(AssertUnwindSafe(|| SledDisk::open(self, &place)))
            .unwrap_or_else(|panic| Err(place.damaged(crate::status::panic_message(panic.as_ref()))))
    }

    /// Whoever had it open until now may hold its lock for a moment.
    fn patiently(&self) -> Result<SledDisk, DiskError> {
        for _ in 0..LOCK_TRIES {
            match self.try_open() {
                Err(DiskError::InUse { .. }) => std::thread::sleep(LOCK_PAUSE),
                opened => return opened,
            }
        }
        self.try_open()
    }
}

impl DiskSource for SledFolder {
    fn open(&mut self) -> Result<Box<dyn Disk>, DiskError> {
        Ok(Box::new(self.patiently()?))
    }
}

/// The folder as errors name it.
#[derive(Debug, Clone)]
struct Place(String);

impl Place {
    fn damaged(&self, what: impl Into<String>) -> DiskError {
        DiskError::Damaged { place: self.0.clone(), what: what.into() }
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> DiskError {
        let place = self.0.clone();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::Full { place, source },
            _ => DiskError::Io { place, doing, source },
        }
    }

    fn sled(&self, doing: &'static str) -> impl FnOnce(sled::Error) -> DiskError {
        let place = self.clone();
        move |error| match error {
            // sled has no variant for it; its file lock is the only thing that it words so.
            sled::Error::Io(source) if source.to_string().starts_with("could not acquire lock") => {
                DiskError::InUse { place: place.0 }
            }
            sled::Error::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                place.damaged(format!("{doing}: {source}"))
            }
            sled::Error::Io(source) => place.io(doing)(source),
            error => place.damaged(format!("{doing}: {error}")),
        }
    }
}

struct SledDisk {
    place: Place,
    db: Db,
    /// A second descriptor of sled's file, to sync it.
    file: File,
    mark: Mark,
    head: Head,
    /// One for each entry between the head's base and last.
    held: Vec<Held>,
    /// Of the snapshot in force.
    pieces: u32,
    /// What was found at the opening, until it is asked for.
    found: Option<Stored>,
}

impl std::fmt::Debug for SledDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledDisk")
            .field("place", &self.place.0)
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes what sled was writing when it was stopped, by a full disk or by the end of its process, and would take for damage
/// for ever (0.34.7):
/// - `snap.N.generating`, in which it writes what it has recovered when it opens, to rename it when it is whole. It reads
///   whatever begins with `snap.` and sorts last (`get_snapshot_files`). All that it says is in the older ones and the log;
/// - `conf`, its settings, written in two pieces. While there is no `db` nothing was ever kept under them.
fn remove_unfinished(folder: &Path, place: &Place) -> Result<(), DiskError> {
    let failed = || place.io("remove what was not finished");
    let db = match File::open(folder.join("db")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match fs::remove_file(folder.join("conf")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed()(error)),
                Ok(()) | Err(_) => Ok(()),
            };
        }
        opened => opened.map_err(failed())?,
    };
    // sled's own lock: who has it may be writing just that.
    flock(&db, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
        rustix::io::Errno::WOULDBLOCK => DiskError::InUse { place: place.0.clone() },
        error => failed()(error.into()),
    })?;
    read_from_the_disk(&db).map_err(place.io("drop what is cached of the log"))?;
    for entry in fs::read_dir(folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::info!(file = %entry.path().display(), "was not finished, and is removed");
            fs::remove_file(entry.path()).map_err(failed())?;
        }
    }
    Ok(())
}

/// What is read from now on is what the disk holds. After a sync that failed, for want of room on some file systems, the
/// kernel's cache holds what was never written, and takes it for clean.
fn read_from_the_disk(db: &File) -> io::Result<()> {
    db.sync_data()?;
    Ok(fadvise(db, 0, None, Advice::DontNeed)?)
}

impl SledDisk {
    fn open(at: &SledFolder, place: &Place) -> Result<Self, DiskError> {
        let SledFolder { folder, identity, has_begun } = at;
        fs::create_dir_all(folder).map_err(place.io("make the folder"))?;
        remove_unfinished(folder, place)?;
        let db = sled::Config::default()
            .path(folder)
            .flush_every_ms(None)
            .cache_capacity(CACHE_BYTES)
            .open()
            .map_err(place.sled("open the log"))?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(folder.join("db"))
            .map_err(place.io("open the log's file"))?;
        let mark = Mark::open(&folder.join("mark")).map_err(place.io("open the mark"))?;
        let conf = File::open(folder.join("conf")).and_then(|conf| conf.sync_all());
        conf.map_err(place.io("sync the log's settings"))?;
        sync_folder(folder).map_err(place.io("sync the folder"))?;
        if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_folder(parent).map_err(place.io("sync the folder above"))?;
        }
        let mut records = Records::default();
        for record in db.iter() {
            let (key, value) = record.map_err(place.sled("read the log"))?;
            records.take(&key, &value).map_err(|what| place.damaged(what))?;
        }
        let place = place.clone();
        let (head, held) = (Head::default(), Vec::new());
        let mut disk = Self { place, db, file, mark, head, held, pieces: 0, found: None };
        disk.adopt(&records, identity, *has_begun)?;
        Ok(disk)
    }

    /// Takes what was read as its own, if it is; an empty folder becomes this node's, unless it had a log before.
    fn adopt(&mut self, records: &Records, identity: &Identity, has_begun: bool) -> Result<(), DiskError> {
        let synced = self.mark.read().map_err(self.place.io("read the mark"))?;
        let owner: Identity = match (&records.owner, &records.head) {
            (None, None) if synced == Some(0) && !has_begun => {
                let owner = self.encode("owner", identity)?;
                let mut batch = Batch::default();
                batch.insert(OWNER, owner);
                self.write(batch)?;
                self.sync()?;
                identity.clone()
            }
            (Some(owner), Some(head)) => {
                self.head = self.decode("head", head)?;
                self.decode("owner", owner)?
            }
            _ => return Err(self.place.damaged("head and owner of the log are missing")),
        };
        if !owner.is_same_node(identity) {
            let (owner, me) = (owner.to_string(), identity.to_string());
            return Err(DiskError::Foreign { place: self.place.0.clone(), owner, me });
        }
        match synced {
            Some(synced) if synced > self.head.sequence => {
                let what = format!(
                    "write {synced} was synced, and {} is the last that can be read",
                    self.head.sequence
                );
                return Err(self.place.damaged(what));
            }
            Some(_) => {}
            None => tracing::warn!(place = self.place.0, "the mark is torn: damage to the log may go unseen"),
        }
        let founders = owner.founders().clone();
        let (stored, held) = records.stored(&self.head, founders).map_err(|what| self.place.damaged(what))?;
        self.held = held;
        self.pieces = records.piece_count(&self.head);
        self.found = Some(stored);
        self.remove(&records.leftovers(&self.head))?;
        // What a killed process wrote and never synced is read back, and will be acknowledged as held.
        self.sync()
    }

    fn encode<T: serde::Serialize>(&self, what: &'static str, value: &T) -> Result<Vec<u8>, DiskError> {
        records::encode(what, value).map_err(|error| self.place.damaged(error.to_string()))
    }

    fn decode<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        bytes: &[u8],
    ) -> Result<T, DiskError> {
        records::decode(what, bytes).map_err(|error| self.place.damaged(error.to_string()))
    }

    /// Writes a batch with the head.
    fn write(&mut self, mut batch: Batch) -> Result<(), DiskError> {
        self.head.sequence += 1;
        batch.insert(HEAD, self.encode("head", &self.head)?);
        self.db.apply_batch(batch).map_err(self.place.sled("write to the log"))
    }

    /// Removes what is not in force: no matter how much of it survives a crash.
    fn remove(&mut self, keys: &[Vec<u8>]) -> Result<(), DiskError> {
        for keys in keys.chunks(REMOVALS_PER_BATCH) {
            let mut batch = Batch::default();
            for key in keys {
                batch.remove(key.as_slice());
            }
            self.db.apply_batch(batch).map_err(self.place.sled("remove from the log"))?;
        }
        Ok(())
    }

    /// Writes a snapshot's pieces, and a batch with its closing marker that is to go with the head.
    fn write_pieces(&mut self, snapshot: &Snapshot) -> Result<Batch, DiskError> {
        let index = snapshot.get_metadata().index;
        if index == self.head.snapshot {
            // Equal states give equal bytes: what is in force is not written over.
            return Ok(Batch::default());
        }
        let mut pieces = (0..=u32::MAX).zip(snapshot.get_data().chunks(CHUNK_BYTES)).peekable();
        let marker = records::marker(snapshot).map_err(|what| self.place.damaged(what))?;
        while pieces.peek().is_some() {
            let mut batch = Batch::default();
            for (number, piece) in pieces.by_ref().take(PIECES_PER_BATCH) {
                batch.insert(&records::piece_key(index, number), piece);
            }
            self.db.apply_batch(batch).map_err(self.place.sled("write a snapshot"))?;
        }
        let mut closing = Batch::default();
        closing.insert(&records::marker_key(index), self.encode("closing marker", &marker)?);
        Ok(closing)
    }

    /// Puts a snapshot in force under a head that says how the log goes on, and removes what that leaves behind.
    fn switch(&mut self, snapshot: &Snapshot, head: Head, forget: usize) -> Result<(), DiskError> {
        let closing = self.write_pieces(snapshot)?;
        let before = std::mem::replace(&mut self.head, head);
        self.write(closing)?;
        let mut keys = Vec::new();
        for (index, held) in (before.base_index + 1..).zip(self.held.drain(..forget)) {
            keys.extend((0..held.chunks).map(|chunk| records::entry_key(index, chunk).to_vec()));
        }
        if before.snapshot != 0 && before.snapshot != self.head.snapshot {
            keys.extend((0..self.pieces).map(|piece| records::piece_key(before.snapshot, piece).to_vec()));
            keys.push(records::marker_key(before.snapshot).to_vec());
        }
        self.pieces = u32::try_from(snapshot.get_data().len().div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX);
        self.remove(&keys)
    }
}

impl Disk for SledDisk {
    fn load(&mut self) -> Result<Stored, DiskError> {
        self.found.take().ok_or_else(|| self.place.damaged("the log was asked for twice"))
    }

    fn append(&mut self, entries: &[Entry], hard: &HardState) -> Result<(), DiskError> {
        let mut batch = Batch::default();
        if let Some(first) = entries.first() {
            let keep = first.index.checked_sub(self.head.base_index + 1);
            let keep =
                keep.and_then(|keep| usize::try_from(keep).ok()).filter(|keep| *keep <= self.held.len());
            let Some(keep) = keep else {
                return Err(self.place.damaged(format!("entry {} would leave a gap", first.index)));
            };
            for (index, held) in (first.index..).zip(self.held.drain(keep..)) {
                for chunk in 0..held.chunks {
                    batch.remove(&records::entry_key(index, chunk));
                }
            }
        }
        for entry in entries {
            let record = entry.write_to_bytes().map_err(|error| self.place.damaged(error.to_string()))?;
            let before = self.held.last().map_or(self.head.base_chain, |held| held.chain);
            let mut held = Held { chunks: 0, chain: records::chain(before, &record) };
            for chunk in record.chunks(CHUNK_BYTES) {
                batch.insert(&records::entry_key(entry.index, held.chunks), chunk);
                held.chunks += 1;
            }
            self.held.push(held);
            self.head.last_index = entry.index;
            self.head.last_chain = held.chain;
        }
        self.head.set_hard(hard);
        self.write(batch)
    }

    fn save_snapshot(
        &mut self,
        snapshot: &Snapshot,
        base: Position,
        hard: &HardState,
    ) -> Result<(), DiskError> {
        let forget = usize::try_from(base.index.saturating_sub(self.head.base_index)).unwrap_or(usize::MAX);
        let forget = forget.min(self.held.len());
        let base_chain = match forget.checked_sub(1).and_then(|last| self.held.get(last)) {
            Some(held) => held.chain,
            None => self.head.base_chain,
        };
        let mut head = Head {
            base_index: base.index,
            base_term: base.term,
            base_chain,
            snapshot: snapshot.get_metadata().index,
            ..self.head.clone()
        };
        head.set_hard(hard);
        self.switch(snapshot, head, forget)
    }

    fn install_snapshot(&mut self, snapshot: &Snapshot, hard: &HardState) -> Result<(), DiskError> {
        let metadata = snapshot.get_metadata();
        let mut head = Head {
            base_index: metadata.index,
            base_term: metadata.term,
            base_chain: 0,
            last_index: metadata.index,
            last_chain: 0,
            snapshot: metadata.index,
            ..self.head.clone()
        };
        head.set_hard(hard);
        self.switch(snapshot, head, self.held.len())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.db.flush().map_err(self.place.sled("flush the log"))?;
        self.file.sync_data().map_err(self.place.io("sync the log"))?;
        self.mark.write(self.head.sequence).map_err(self.place.io("write the mark"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::{NodeId, Voters};

    fn identity() -> Identity {
        let id = |n| NodeId::new(n).expect("not 0");
        let voters = (1..=3).map(|n| (id(n), format!("node-{n}").parse().expect("a name")));
        Identity::new("test", id(1), Voters::new(voters).expect("a group")).expect("a voter")
    }

    fn open(folder: &Path) -> SledDisk {
        SledFolder::new(folder, identity()).patiently().expect("opens")
    }

    fn snapshot(index: u64, bytes: usize) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = 1;
        snapshot.set_data(vec![u8::try_from(index).expect("small"); bytes].into());
        snapshot
    }

    #[test]
    fn what_sled_has_not_finished_is_no_damage() {
        let dir = tempfile::tempdir().expect("a folder");
        let hard = HardState { term: 7, ..HardState::default() };
        // Its settings, without their checksum: stopped before there was a log.
        fs::write(dir.path().join("conf"), [b'x'; 58]).expect("written");
        let mut disk = open(dir.path());
        disk.load().expect("loads");
        disk.append(&[], &hard).expect("appends");
        disk.sync().expect("syncs");
        drop(disk);
        for half in [Vec::new(), vec![0; 5], vec![1; 5000]] {
            let unfinished = dir.path().join("snap.7FFFFFFFFFFFFFFF.generating");
            fs::write(&unfinished, half).expect("written");
            let mut disk = open(dir.path());
            assert_eq!(disk.load().expect("loads").hard, hard);
            assert!(!unfinished.exists(), "it is removed");
            // Not under somebody who may be at it.
            fs::write(&unfinished, "").expect("written");
            let second = SledFolder::new(dir.path(), identity()).try_open();
            assert!(matches!(second, Err(DiskError::InUse { .. })), "{second:?}");
            assert!(unfinished.exists());
        }
    }

    #[test]
    fn a_half_written_snapshot_is_ignored_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut disk = open(dir.path());
        disk.load().expect("loads");
        let entries: Vec<_> = (1..=9).map(|index| Entry { term: 1, index, ..Entry::default() }).collect();
        let hard = HardState { term: 1, commit: 9, ..HardState::default() };
        disk.append(&entries, &hard).expect("appends");
        disk.save_snapshot(&snapshot(4, 9000), Position { term: 1, index: 2 }, &hard).expect("saves");
        // The pieces and even the closing marker, but no head that names them.
        let closing = disk.write_pieces(&snapshot(8, 500_000)).expect("writes pieces");
        disk.db.apply_batch(closing).expect("closes");
        disk.sync().expect("syncs");
        let keys = disk.db.len();
        drop(disk);
        let mut disk = open(dir.path());
        let stored = disk.load().expect("loads");
        assert_eq!(stored.snapshot, Some(snapshot(4, 9000)));
        assert_eq!((stored.base.index, stored.entries.len()), (2, 7));
        assert_eq!(disk.db.len(), keys - 500_000_usize.div_ceil(CHUNK_BYTES) - 1);
        // The same snapshot can be written as a whole later.
        disk.save_snapshot(&snapshot(8, 500_000), Position { term: 1, index: 8 }, &hard).expect("saves");
        disk.sync().expect("syncs");
        drop(disk);
        let stored = open(dir.path()).load().expect("loads");
        assert!(stored.snapshot == Some(snapshot(8, 500_000)) && stored.entries.len() == 1);
    }
}
