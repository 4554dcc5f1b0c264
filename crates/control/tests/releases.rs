//! A voter's disk as release 0.1 has written it: any later one starts from it. See `tests/support/releases.rs`.
//!
//! ```text
//!   tests/fixtures/0.1/voter-disk.txt    one record a line: key, value; the last is the mark beside the log
//! ```

mod common;
#[allow(dead_code, reason = "the disk has no samples")]
#[path = "../../../tests/support/releases.rs"]
mod releases;
#[allow(dead_code, reason = "the disk has no samples")]
#[path = "../../../tests/support/samples.rs"]
mod samples;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use common::{entry, hard, identity, snapshot, voters};
use godwit_control::engine::Position;
use godwit_control::memory_disk::MemoryFolder;
use godwit_control::sled_disk::SledFolder;
use godwit_control::storage::{Disk, DiskSource, Stored};
use releases::{hex, unhex};

/// A vote, entries of one chunk and of several, some of them replaced, a snapshot of two pieces, and what came behind it.
fn write(disk: &mut dyn Disk) {
    disk.append(&[], &hard(1, 2, 0)).expect("votes");
    let first: Vec<_> = (1..=4).map(|index| entry(1, index, 100)).collect();
    disk.append(&first, &hard(1, 2, 2)).expect("appends");
    disk.append(&[entry(2, 4, 9000), entry(2, 5, 0)], &hard(2, 1, 3)).expect("replaces");
    disk.save_snapshot(&snapshot(1, 3, vec![7; 5000]), Position { term: 1, index: 2 }, &hard(2, 1, 3))
        .expect("saves");
    disk.append(&[entry(2, 6, 40)], &hard(2, 1, 6)).expect("appends");
    disk.sync().expect("syncs");
}

fn expected() -> Stored {
    let mut folder = MemoryFolder::new(&voters());
    write(folder.open().expect("opens").as_mut());
    folder.synced()
}

/// All records of a closed folder, and its mark, as text.
fn dump(folder: &Path) -> String {
    // Whoever had it open holds its lock for a moment.
    let opened = (0..100).find_map(|_| {
        let opened = sled::open(folder).ok();
        opened.or_else(|| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            None
        })
    });
    let log = opened.expect("opens");
    let mut text = String::new();
    for record in log.iter() {
        let (key, value) = record.expect("reads");
        let _ = writeln!(text, "{} {}", hex(&key), hex(&value));
    }
    let _ = writeln!(text, "mark {}", hex(&fs::read(folder.join("mark")).expect("the mark")));
    text
}

#[test]
fn a_disk_of_the_first_release_is_read_and_still_written_so() {
    let path = releases::path("voter-disk");
    let new = tempfile::tempdir().expect("a folder");
    {
        let mut disk = SledFolder::new(new.path(), identity(1)).open().expect("opens");
        write(disk.as_mut());
    }
    let written = dump(new.path());
    if std::env::var_os("GODWIT_KEEP_FORMATS").is_some() {
        fs::write(&path, &written).expect("the fixture is written");
    }
    let kept = fs::read_to_string(&path).expect("the fixture");
    let old = tempfile::tempdir().expect("a folder");
    {
        let log = sled::open(old.path()).expect("opens");
        for line in kept.lines() {
            let (key, value) = line.split_once(' ').expect("a key and a value");
            if key == "mark" {
                fs::write(old.path().join("mark"), unhex(value)).expect("the mark is written");
            } else {
                log.insert(unhex(key), unhex(value)).expect("inserts");
            }
        }
        log.flush().expect("flushes");
    }
    let read = SledFolder::new(old.path(), identity(1)).open().and_then(|mut disk| disk.load());
    assert_eq!(read.expect("a disk of release 0.1 is read"), expected());
    assert_eq!(written, kept, "this version writes as release 0.1 does");
}
