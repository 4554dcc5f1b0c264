//! A file system that is really full: the voter stops, says so, and goes on when there is room.

mod common;

use std::path::Path;
use std::process::Command;

use common::group::{Group, heard};
use common::{entry, hard, identity, voters};
use godwit_control::driver::{Condition, ProposeError};
use godwit_control::memory_disk::MemoryFolder;
use godwit_control::sled_disk::SledFolder;
use godwit_control::storage::{Disk, DiskError, DiskSource};

/// A small file system of its own, unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(size: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a folder");
        let small = Self(dir);
        small.run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])?;
        Ok(small)
    }

    fn grow(&self, size: &str) {
        self.run("mount", &["-o", &format!("remount,size={size}")]).expect("grows");
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), String> {
        let output = Command::new(program).args(arguments).arg(self.0.path()).output();
        let output = output.map_err(|error| format!("run {program}: {error}"))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A folder that stays mounted is left to the system; its test has failed anyway.
        let _ = self.run("umount", &["-l"]);
    }
}

#[test]
fn a_voter_with_a_full_file_system_stops_says_so_and_goes_on_with_room() {
    let small = match Small::mount("6m") {
        Ok(small) => small,
        Err(why) => return common::skip(&format!("no file system can be mounted: {why}")),
    };
    let mut group = Group::new(|_| {});
    let source = || SledFolder::new(small.path().join("log"), identity(1));
    group.start(1, source()).expect("starts");
    for n in 2..=3 {
        group.start(n, MemoryFolder::new(&voters())).expect("starts");
    }
    group.elect(1);

    let mut acknowledged = Vec::new();
    let outcome = (0..1000_u32).find_map(|n| {
        let entry = [n.to_le_bytes().as_slice(), &[0; 40_000]].concat();
        match heard(&group.propose(1, &entry)) {
            Some(Ok(_)) => {
                acknowledged.push(entry);
                None
            }
            other => Some(other),
        }
    });
    // It meets the end of its room with this entry, or it has met it in what it wrote after the one before.
    let refused = matches!(outcome, Some(Some(Err(ProposeError::Unknown | ProposeError::Halted { .. }))));
    assert!(refused, "after {} entries: {outcome:?}", acknowledged.len());
    assert!(acknowledged.len() > 10);
    // Where its last write was torn there may be a page of room.
    let filler = small.path().join("filler");
    fill(&filler, 0);
    let Condition::DiskFull { error } = group.status(1).view.condition else {
        panic!("{:?}", group.status(1));
    };
    eprintln!("full after {} entries: {error}", acknowledged.len());
    group.until("another leads", |group| group.leader().is_some());
    for _ in 0..30 {
        group.tick();
        assert!(
            matches!(group.status(1).view.condition, Condition::DiskFull { .. }),
            "{:?}",
            group.status(1)
        );
    }

    std::fs::remove_file(&filler).expect("removed");
    small.grow("64m");
    group.until("it takes part again", |group| group.status(1).view.condition == Condition::Running);
    let leader = group.leader().expect("leads");
    assert!(matches!(heard(&group.propose(leader, b"after")), Some(Ok(_))));
    group.until("all have the same", Group::all_equal);
    let holds = |group: &Group| {
        let ledger = group.ledger(1);
        acknowledged.iter().all(|entry| ledger.iter().any(|(_, held)| held == entry))
    };
    assert!(holds(&group), "an acknowledged entry is lost");

    // From its disk alone, too.
    group.drivers.remove(&1);
    group.start(1, source()).expect("starts again");
    group.until("all have the same", Group::all_equal);
    assert!(holds(&group), "an acknowledged entry is lost on the disk");
    drop(group);
}

/// The room ends wherever it may, the log is opened without room, with a page, with some more, and then with enough.
#[test]
fn a_log_that_was_opened_without_room_is_whole_when_there_is_room_again() {
    const PAGE: usize = 4096;
    let small = match Small::mount("24m") {
        Ok(small) => small,
        Err(why) => return common::skip(&format!("no file system can be mounted: {why}")),
    };
    let filler = small.path().join("filler");
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    eprintln!("SEED={seed} cargo test -p godwit-control --test full_disk without_room");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut refused = 0;
    for round in 0..40 {
        let folder = small.path().join(format!("log-{round}"));
        let mut source = SledFolder::new(&folder, identity(1));
        let mut disk = source.open().expect("opens");
        disk.load().expect("loads");
        let mut acknowledged = 0;
        let mut write = |disk: &mut Box<dyn Disk>, rng: &mut fastrand::Rng| {
            let index = acknowledged + 1;
            let bytes = [100, 4096, 20_000][rng.usize(0..3)];
            disk.append(&[entry(1, index, bytes)], &hard(1, 1, 0))?;
            disk.sync()?;
            acknowledged = index;
            Ok::<_, DiskError>(())
        };
        for _ in 0..rng.u32(1..80) {
            write(&mut disk, &mut rng).expect("there is room");
        }
        fill(&filler, rng.usize(0..64) * PAGE);
        let failed = std::iter::repeat_with(|| write(&mut disk, &mut rng)).take(2000).find_map(Result::err);
        assert!(matches!(failed, Some(DiskError::Full { .. })), "{failed:?}");
        drop(disk);
        for left in 0..12 {
            fill(&filler, left * PAGE);
            match source.open() {
                Ok(_) => {}
                Err(DiskError::Full { .. }) => refused += 1,
                Err(error) => panic!("round {round}, with {left} pages left: {error}"),
            }
        }
        std::fs::remove_file(&filler).expect("removed");
        let stored = source.open().and_then(|mut disk| disk.load()).expect("opens with room");
        let held = stored.entries.last().map_or(0, |entry| entry.index);
        assert!(
            held >= acknowledged,
            "round {round}: {held} entries of {acknowledged} that were acknowledged"
        );
        std::fs::remove_dir_all(&folder).expect("removed");
    }
    assert!(refused > 0, "the room never ended while the log was opened");
}

/// Leaves so much room.
fn fill(filler: &Path, left: usize) {
    use std::io::Write;
    let mut file = std::fs::File::create(filler).expect("a file");
    let piece = vec![0; 1 << 20];
    for size in [1 << 20, 4096] {
        while file.write_all(&piece[..size]).is_ok() {}
    }
    let held = file.metadata().expect("metadata").len();
    file.set_len(held.saturating_sub(left as u64)).expect("shorter");
}
