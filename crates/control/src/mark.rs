//! How far the log was synced, told beside the log: damage that cuts the log off shows as a step back.
//!
//! ```text
//!   `mark`, 24 bytes, little endian:   magic u64 │ sequence of the last synced head u64 │ digest u64
//! ```
//!
//! The store drops what it can not read at the end of its file, as a tail that was never finished. An acknowledged
//! head in there would silently become an older one: a vote taken back. The mark is written after each sync and not
//! synced itself, so it may lag behind after a power cut, and never runs ahead.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

const MAGIC: u64 = u64::from_le_bytes(*b"GWMARK01");
const BYTES: usize = 24;

#[derive(Debug)]
pub(crate) struct Mark {
    file: File,
}

impl Mark {
    /// The file in a folder, made with its full size: overwriting it later needs no room on the disk.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mark = Self { file };
        if mark.file.metadata()?.len() < BYTES as u64 {
            mark.write(0)?;
            mark.file.sync_all()?;
        }
        Ok(mark)
    }

    /// The sequence; `None` if the file's one sector is torn or not ours.
    pub(crate) fn read(&self) -> io::Result<Option<u64>> {
        let mut bytes = [0; BYTES];
        self.file.read_exact_at(&mut bytes, 0)?;
        let word = |at: usize| {
            bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes).unwrap_or(0)
        };
        let fits = word(0) == MAGIC && word(16) == xxh3_64(&bytes[..16]);
        Ok(fits.then(|| word(8)))
    }

    /// Tells that the head of this sequence is synced.
    pub(crate) fn write(&self, sequence: u64) -> io::Result<()> {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
        let digest = xxh3_64(&bytes[..16]);
        bytes[16..].copy_from_slice(&digest.to_le_bytes());
        self.file.write_all_at(&bytes, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_a_torn_one_is_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("mark");
        let mark = Mark::open(&path).expect("opens");
        assert_eq!(mark.read().expect("reads"), Some(0));
        mark.write(77).expect("writes");
        drop(mark);
        let mark = Mark::open(&path).expect("opens again");
        assert_eq!(mark.read().expect("reads"), Some(77));
        mark.file.write_all_at(&[0xff], 9).expect("damages");
        assert_eq!(mark.read().expect("reads"), None);
    }
}
