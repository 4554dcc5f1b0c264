//! What has been done and what was wrong, as two kinds of lines.
//!
//! Always true: the counts only grow; the first wrong things are told one by one, all are counted.

use std::fmt;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How many wrong things get a line of their own.
const TOLD_MAX: u64 = 20;

/// A count that threads share.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// One more.
    pub(crate) fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many by now.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counts of one guest.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Pages of the written set: written; compared, in whole laps of each thread.
    pub(crate) written: Count,
    pub(crate) written_laps: Count,
    /// The area that never changes, in whole laps.
    pub(crate) area_laps: Count,
    /// Files in tmpfs: written anew; compared, in whole laps.
    pub(crate) files: Count,
    pub(crate) files_laps: Count,
    /// Pieces of the disk.
    pub(crate) disk_reads: Count,
    pub(crate) disk_writes: Count,
    pub(crate) disk_laps: Count,
    /// Questions over the network card, and answers.
    pub(crate) net_asked: Count,
    pub(crate) net_answered: Count,
    wrong: Count,
}

impl Tally {
    /// Something is not what it must be: `kind` is one word, `what` says which and how.
    pub(crate) fn bad(&self, kind: &str, what: impl fmt::Display) {
        self.wrong.one();
        if self.wrong() <= TOLD_MAX {
            say(&format!("bad {kind} {what}"));
        }
    }

    /// How many things were wrong by now.
    pub(crate) fn wrong(&self) -> u64 {
        self.wrong.get()
    }

    /// A `stat` line each second, for ever.
    pub(crate) fn report(&self) -> ! {
        let begun = Instant::now();
        loop {
            thread::sleep(Duration::from_secs(1));
            say(&format!(
                "stat {} mem {} {} area {} file {} {} disk {} {} {} net {} {} wrong {}",
                begun.elapsed().as_secs(),
                self.written.get(),
                self.written_laps.get(),
                self.area_laps.get(),
                self.files.get(),
                self.files_laps.get(),
                self.disk_reads.get(),
                self.disk_writes.get(),
                self.disk_laps.get(),
                self.net_asked.get(),
                self.net_answered.get(),
                self.wrong(),
            ));
        }
    }
}

/// One line on the console, in one write. A console that takes nothing leaves nobody to tell.
pub(crate) fn say(line: &str) {
    let line = format!("{line}\n");
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}
