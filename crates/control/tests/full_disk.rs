//! A file system that is really full: the voter stops, says so, and goes on when there is room.

mod common;

use std::path::Path;
use std::process::Command;

use common::group::{Group, heard};
use common::{identity, voters};
use godwit_control::driver::{Condition, ProposeError};
use godwit_control::memory_disk::MemoryFolder;
use godwit_control::sled_disk::SledFolder;

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
    assert_eq!(outcome, Some(Some(Err(ProposeError::Unknown))), "after {} entries", acknowledged.len());
    assert!(acknowledged.len() > 10);
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
