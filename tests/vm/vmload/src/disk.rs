//! The disk in use: a half that never changes and a half that is written, direct and through the page cache.
//!
//! ```text
//!   /dev/vda   │ fixed: written once at the start    │ scratch: pieces with numbers        │
//!   read       │ even pieces direct, odd ones cached │ the piece that was written a lap ago │
//!   written    │ never                               │ even pieces direct, odd ones cached │
//! ```
//!
//! Always true: a piece is used in one way only, so the page cache never stands between two ways; the cache is dropped
//! once per lap, so that cached pieces come from the disk too. Pieces that were written through the cache are synced.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::memory::spawn;
use crate::mix::{fill, first_wrong, mix};
use crate::params::Params;
use crate::tally::Tally;

const DEVICE: &str = "/dev/vda";
const PIECE_BYTES: usize = 64 << 10;
const PIECES_PER_MIB: u64 = 16;
/// What a direct transfer must be aligned to, in memory and on the disk.
const ALIGNMENT: usize = 4096;

/// Writes the fixed half, and starts the thread that uses the disk. Without a disk it does nothing.
pub(crate) fn start(params: &Params, tally: &Arc<Tally>) -> Result<(), String> {
    if params.disk_mib == 0 {
        return Ok(());
    }
    let mut disk = Disk::open(params).map_err(|error| {
        format!(
            "{DEVICE}, of which vmload.disk_mib={} are used (0: no disk is needed): {error}",
            params.disk_mib
        )
    })?;
    let pause = Duration::from_micros(params.lap_s * 1_000_000 / disk.pieces.max(1));
    let tally = Arc::clone(tally);
    spawn("disk", move || {
        loop {
            for piece in 0..disk.pieces {
                thread::sleep(pause);
                disk.turn(piece, &tally);
            }
            disk.end_lap(&tally);
        }
    })
}

struct Disk {
    direct: File,
    cached: File,
    /// Pieces of each half.
    pieces: u64,
    /// What the pieces of the scratch half hold: the seed of each, once it was written.
    scratch: Vec<Option<u64>>,
    seed: u64,
    bytes: Vec<u8>,
}

impl Disk {
    fn open(params: &Params) -> io::Result<Self> {
        let options = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(DEVICE);
        let pieces = params.disk_mib * PIECES_PER_MIB / 2;
        let mut disk = Self {
            direct: options(libc::O_DIRECT)?,
            cached: options(0)?,
            pieces,
            scratch: vec![None; usize::try_from(pieces).map_err(io::Error::other)?],
            seed: mix(params.seed),
            bytes: vec![0; PIECE_BYTES + ALIGNMENT],
        };
        for piece in 0..pieces {
            disk.write(piece, mix(disk.seed ^ piece))?;
        }
        disk.cached.sync_data()?;
        Ok(disk)
    }

    /// Reads one piece of the fixed half and one of the scratch half, and writes that one again.
    fn turn(&mut self, piece: u64, tally: &Tally) {
        self.check(piece, mix(self.seed ^ piece), tally);
        let Ok(index) = usize::try_from(piece) else { return };
        let before = self.scratch.get(index).copied().flatten();
        if let Some(seed) = before {
            self.check(self.pieces + piece, seed, tally);
        }
        let seed = mix(before.unwrap_or(self.seed ^ piece));
        if let Err(error) = self.write(self.pieces + piece, seed) {
            tally.bad("disk", format_args!("write piece {piece} of the scratch half: {error}"));
            return;
        }
        tally.disk_writes.one();
        if let Some(kept) = self.scratch.get_mut(index) {
            *kept = Some(seed);
        }
    }

    fn end_lap(&self, tally: &Tally) {
        if let Err(error) = self.cached.sync_data() {
            tally.bad("disk", format_args!("sync: {error}"));
        }
        if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "1") {
            tally.bad("disk", format_args!("drop the page cache: {error}"));
        }
        tally.disk_laps.one();
    }

    /// The file that a piece is used through, where it lies, and memory that a direct transfer accepts.
    fn place(&mut self, piece: u64) -> (&File, u64, &mut [u8]) {
        let skip = self.bytes.as_ptr().align_offset(ALIGNMENT);
        let bytes = self.bytes.get_mut(skip..skip + PIECE_BYTES).unwrap_or_default();
        let file = if piece.is_multiple_of(2) { &self.direct } else { &self.cached };
        (file, piece * PIECE_BYTES as u64, bytes)
    }

    fn write(&mut self, piece: u64, seed: u64) -> io::Result<()> {
        let (file, offset, bytes) = self.place(piece);
        fill(bytes, seed);
        file.write_all_at(bytes, offset)
    }

    fn check(&mut self, piece: u64, seed: u64, tally: &Tally) {
        let (file, offset, bytes) = self.place(piece);
        match file.read_exact_at(bytes, offset) {
            Ok(()) => {
                tally.disk_reads.one();
                if let Some(at) = first_wrong(bytes, seed) {
                    tally.bad("disk", format_args!("piece {piece} differs at byte {at}"));
                }
            }
            Err(error) => tally.bad("disk", format_args!("read piece {piece}: {error}")),
        }
    }
}
