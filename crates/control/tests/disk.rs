//! The real disk: it holds what the model of one holds, keeps out strangers, and names its damage.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{entry, hard, identity, snapshot, voters};
use fastrand::Rng;
use godwit_control::engine::Position;
use godwit_control::envelope::ENTRY_BYTES_MAX;
use godwit_control::group::Identity;
use godwit_control::memory_disk::MemoryFolder;
use godwit_control::sled_disk::SledFolder;
use godwit_control::storage::{Disk, DiskError, DiskSource, Stored};

fn open(folder: &Path) -> Result<Box<dyn Disk>, DiskError> {
    SledFolder::new(folder, identity(1)).open()
}

fn load(folder: &Path) -> Result<Stored, DiskError> {
    open(folder)?.load()
}

/// What is stored, in words that fit a line.
fn told(stored: &Stored) -> String {
    let entries: Vec<_> = stored.entries.iter().map(|e| (e.term, e.index, e.data.len())).collect();
    let state = stored.snapshot.as_ref();
    let state = state.map(|s| (s.get_metadata().term, s.get_metadata().index, s.get_data().len()));
    format!("{:?} {:?} state {state:?} entries {entries:?}", stored.hard, stored.base)
}

/// One write that a voter could do next, told to both disks.
fn write(rng: &mut Rng, known: &Stored, disks: [&mut dyn Disk; 2]) {
    let last = known.last_index();
    let term = known.hard.term;
    let agreed = |index| hard(term, 1, known.hard.commit.max(index));
    let term_at = |index: u64| {
        let found = known.entries.iter().find(|entry| entry.index == index);
        found.map_or(known.base.term, |entry| entry.term)
    };
    match rng.u32(0..10) {
        0 if last > known.base.index => {
            let state = rng.u64(known.base.index.max(known.hard.commit)..=last);
            let base = rng.u64(known.base.index..=state);
            let bytes = rng.usize(0..40_000);
            let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(bytes).collect();
            let taken = known.snapshot.as_ref().is_some_and(|s| s.get_metadata().index == state);
            if state == 0 || taken {
                return;
            }
            let snapshot = snapshot(term_at(state), state, data);
            let base = Position { term: term_at(base), index: base };
            for disk in disks {
                disk.save_snapshot(&snapshot, base, &agreed(state)).expect("saves");
            }
        }
        1 => {
            let index = last + rng.u64(1..20);
            let snapshot = snapshot(term, index, vec![rng.u8(..); rng.usize(0..9000)]);
            for disk in disks {
                disk.install_snapshot(&snapshot, &hard(term, 1, index)).expect("installs");
            }
        }
        2 => {
            let hard = hard(term + 1, rng.u64(0..4), known.hard.commit);
            for disk in disks {
                disk.append(&[], &hard).expect("votes");
            }
        }
        _ => {
            // Behind the last, or in place of what is not agreed.
            let first = rng.u64(known.hard.commit.max(known.base.index)..=last) + 1;
            let first = if rng.bool() { last + 1 } else { first };
            let entries: Vec<_> = (first..first + rng.u64(1..6))
                .map(|index| entry(term, index, [0, 100, 4096, 5000, 20_000][rng.usize(0..5)]))
                .collect();
            let end = entries.last().map_or(last, |entry| entry.index);
            let commit = rng.u64(known.hard.commit..=end);
            for disk in disks {
                disk.append(&entries, &hard(term, 1, commit)).expect("appends");
            }
        }
    }
}

#[test]
fn the_real_disk_holds_what_the_model_holds() {
    common::for_each_seed("the_real_disk_holds", 12, |seed| {
        let mut rng = Rng::with_seed(seed);
        let dir = tempfile::tempdir().expect("a folder");
        let mut model_folder = MemoryFolder::new(&voters());
        for _ in 0..6 {
            let mut model = model_folder.open().expect("opens");
            let mut real = open(dir.path()).expect("opens");
            let mut known = model.load().expect("loads");
            let found = real.load().expect("loads");
            assert!(found == known, "\n{}\n{}", told(&found), told(&known));
            for _ in 0..rng.usize(1..60) {
                write(&mut rng, &known, [model.as_mut(), real.as_mut()]);
                model.sync().expect("syncs");
                if rng.bool() {
                    real.sync().expect("syncs");
                }
                known = model_folder.synced();
            }
        }
        let blobs = fs::read_dir(dir.path().join("blobs")).expect("a folder").count();
        assert_eq!(blobs, 0);
    });
}

#[test]
fn the_largest_entries_and_snapshots_make_no_file_of_their_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut disk = open(dir.path()).expect("opens");
    for first in (1..=200).step_by(4) {
        let entries: Vec<_> = (first..first + 4).map(|index| entry(1, index, ENTRY_BYTES_MAX)).collect();
        disk.append(&entries, &hard(1, 1, 0)).expect("appends");
    }
    disk.sync().expect("syncs");
    let state = snapshot(1, 150, (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect());
    disk.save_snapshot(&state, Position { term: 1, index: 100 }, &hard(1, 1, 150)).expect("saves");
    disk.sync().expect("syncs");
    drop(disk);
    assert_eq!(fs::read_dir(dir.path().join("blobs")).expect("a folder").count(), 0);
    let stored = load(dir.path()).expect("loads");
    assert_eq!(stored.entries.len(), 100);
    assert!(stored.snapshot.as_ref() == Some(&state), "{}", told(&stored));
    assert_eq!(fs::read_dir(dir.path().join("blobs")).expect("a folder").count(), 0);
}

#[test]
fn a_folder_is_one_nodes_and_opened_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut disk = open(dir.path()).expect("opens");
    disk.append(&[entry(1, 1, 10)], &hard(1, 2, 0)).expect("appends");
    disk.sync().expect("syncs");
    assert!(matches!(open(dir.path()), Err(DiskError::InUse { .. })));
    drop(disk);
    let foreign = SledFolder::new(dir.path(), identity(2)).open().expect_err("another node's");
    assert!(matches!(foreign, DiskError::Foreign { .. }), "{foreign}");
    assert!(
        foreign.to_string().contains("node node-1") && foreign.to_string().contains("node node-2"),
        "{foreign}"
    );
    let elsewhere = Identity::new("other", common::id(1), voters()).expect("a voter");
    let foreign = SledFolder::new(dir.path(), elsewhere).open().expect_err("another cluster's");
    assert!(foreign.to_string().contains("cluster other"), "{foreign}");
    // Having asked changed nothing.
    assert_eq!(load(dir.path()).expect("loads").hard, hard(1, 2, 0));
}

/// A folder with a life behind it, and what it holds.
fn lived_in(folder: &Path) -> Stored {
    let mut disk = open(folder).expect("opens");
    for index in 1..=400 {
        disk.append(&[entry(3, index, 1500)], &hard(3, 1, index - 1)).expect("appends");
        disk.sync().expect("syncs");
    }
    let state = snapshot(3, 300, vec![7; 50_000]);
    disk.save_snapshot(&state, Position { term: 3, index: 250 }, &hard(3, 1, 399)).expect("saves");
    disk.append(&[entry(4, 400, 100)], &hard(4, 2, 399)).expect("appends");
    disk.sync().expect("syncs");
    drop(disk);
    // Read from a copy: opening alone already writes down how far the log goes.
    let copied = tempfile::tempdir().expect("a folder");
    copy(folder, copied.path());
    load(copied.path()).expect("loads")
}

fn copy(from: &Path, to: &Path) {
    for name in fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry").file_name()) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            fs::create_dir(&to).expect("makes a folder");
        } else {
            fs::copy(&from, &to).expect("copies");
        }
    }
}

#[test]
fn damage_is_named_and_never_taken_for_the_truth() {
    let original = tempfile::tempdir().expect("a folder");
    let held = lived_in(original.path());
    let (mut named, mut harmless) = (0, 0);
    common::for_each_seed("damage_is_named", 60, |seed| {
        let mut rng = Rng::with_seed(seed);
        let dir = tempfile::tempdir().expect("a folder");
        copy(original.path(), dir.path());
        let db = fs::File::options().read(true).write(true).open(dir.path().join("db")).expect("opens");
        let length = db.metadata().expect("a length").len();
        let at = rng.u64(0..length);
        match rng.u32(0..3) {
            0 => db.set_len(at).expect("cuts"),
            1 => db.write_all_at(&[0; 4096], at / 4096 * 4096).expect("zeroes"),
            _ => {
                let mut byte = [0];
                db.read_exact_at(&mut byte, at).expect("reads");
                db.write_all_at(&[byte[0] ^ 0x10], at).expect("flips");
            }
        }
        match load(dir.path()) {
            Ok(stored) => {
                assert!(
                    stored == held,
                    "replay: seed {seed}: damage at {at} of {length} was taken for the truth"
                );
                harmless += 1;
            }
            Err(error) => {
                assert!(matches!(error, DiskError::Damaged { .. }), "{error}");
                named += 1;
            }
        }
    });
    eprintln!("{named} damages named, {harmless} where nothing stood");
    assert!(named > 5 && harmless > 0);
}

#[test]
fn a_log_that_was_taken_away_is_damage_and_not_a_new_node() {
    let dir = tempfile::tempdir().expect("a folder");
    lived_in(dir.path());
    fs::remove_file(dir.path().join("db")).expect("removes");
    assert!(matches!(load(dir.path()), Err(DiskError::Damaged { .. })));
}
