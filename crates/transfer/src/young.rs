//! What a disk may still be writing: pages that scans have reported a short while ago.
//!
//! ```text
//!   O_DIRECT read ─ pins a page (a scan reports it) ─ … ─ the disk writes it (no scan does)
//!                                    └ sent meanwhile: old ┘
//!   scan ─▶ young for a while ─▶ sent: its digest is kept ─▶ last scan, all is written: another digest? sent once more
//! ```
//!
//! A disk that is read past the page cache writes guest memory by itself, and the kernel marks the page when the read is asked
//! for, not when it is done. When the guest has been stopped nothing is in flight any more, and what has come since is told by its
//! digest.
//!
//! Always true: a digest is made before the bytes are read that are sent, so what comes between is sent again, never missed.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use godwit_domain::{PageCount, PageIndex, PageRun};
use godwit_memory::{Memfd, PageSet};

use crate::audit;

/// For how long a read may be in flight. Longer, and more pages are compared while the guest stands still; disks answer in
/// milliseconds, and a path to one that hangs for seconds is not one to migrate over.
const IN_FLIGHT_MAX: Duration = Duration::from_secs(1);
/// Most digests that are kept, 1 GiB of pages. Beyond it young pages are all sent again.
const DIGESTS_MAX: usize = 1 << 18;

/// See the module.
#[derive(Debug)]
pub(crate) struct Young {
    pages: PageCount,
    scans: VecDeque<(Instant, PageSet)>,
    sent: HashMap<PageIndex, u64>,
}

impl Young {
    /// Of a guest with so many pages.
    pub(crate) fn new(pages: PageCount) -> Self {
        Self { pages, scans: VecDeque::new(), sent: HashMap::new() }
    }

    /// A scan has reported these pages, now.
    pub(crate) fn scanned(&mut self, now: Instant, written: &PageSet) {
        self.scans.push_back((now, written.clone()));
        while self.scans.front().is_some_and(|(then, _)| now.duration_since(*then) > IN_FLIGHT_MAX) {
            self.scans.pop_front();
        }
        // One set for each scan would be many, where scans follow close on one another.
        while self.scans.len() > SCANS_MAX
            && let (Some((_, first)), Some((_, second))) = (self.scans.pop_front(), self.scans.front_mut())
        {
            second.insert_all(&first);
        }
        let young = self.all();
        self.sent.retain(|page, _| young.contains(*page));
    }

    /// These pages are about to be read and sent.
    pub(crate) fn sends(&mut self, memory: &Memfd, runs: &[PageRun]) -> io::Result<()> {
        let is_young = |page: PageIndex| self.scans.iter().any(|(_, written)| written.contains(page));
        let young: Vec<PageIndex> =
            runs.iter().flat_map(|run| run.pages()).filter(|page| is_young(*page)).collect();
        for page in young {
            if self.sent.len() >= DIGESTS_MAX && !self.sent.contains_key(&page) {
                continue;
            }
            self.sent.insert(page, digest(memory, page)?);
        }
        Ok(())
    }

    /// Adds what has changed unseen since it was sent. The guest stands still, and nothing is in flight.
    pub(crate) fn at_last(&self, memory: &Memfd, written: &mut PageSet) -> io::Result<()> {
        for run in self.all().runs() {
            for (page, now) in run.pages().zip(audit::digests(memory, run)?) {
                if self.sent.get(&page) != Some(&now) {
                    written.insert(page);
                }
            }
        }
        Ok(())
    }

    fn all(&self) -> PageSet {
        let mut all = PageSet::empty(self.pages);
        self.scans.iter().for_each(|(_, written)| all.insert_all(written));
        all
    }
}

/// Most sets that are kept apart.
const SCANS_MAX: usize = 8;

fn digest(memory: &Memfd, page: PageIndex) -> io::Result<u64> {
    let one = audit::digests(memory, PageRun::new(page.0, 1))?;
    one.first().copied().ok_or_else(|| io::Error::other("a page without a digest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    use godwit_domain::PAGE_SIZE;

    const PAGES: PageCount = PageCount(64);

    fn set(pages: &[u32]) -> PageSet {
        let mut set = PageSet::empty(PAGES);
        for page in pages {
            set.insert(PageIndex(*page));
        }
        set
    }

    fn last(young: &Young, memory: &Memfd, scanned: &[u32]) -> Vec<u32> {
        let mut written = set(scanned);
        young.at_last(memory, &mut written).expect("reads");
        written.runs().flat_map(PageRun::pages).map(|page| page.0).collect()
    }

    #[test]
    fn what_a_disk_wrote_after_it_was_sent_is_sent_again_and_nothing_else() {
        let (memory, begun) = (Memfd::create("test", PAGES).expect("memfd"), Instant::now());
        let mut young = Young::new(PAGES);
        young.scanned(begun, &set(&[3, 4, 5, 9]));
        young.sends(&memory, &[PageRun::new(3, 3), PageRun::new(20, 2)]).expect("reads");
        // A disk writes two pages, of which one was seen by nobody, and another that was never young.
        for page in [4, 21] {
            memory.write(PageIndex(page), &vec![1; PAGE_SIZE]).expect("writes");
        }
        assert_eq!(last(&young, &memory, &[5, 7]), [4, 5, 7, 9], "9 was not sent since: nobody knows");
        young.sends(&memory, &[PageRun::new(4, 1), PageRun::new(9, 1)]).expect("reads");
        assert_eq!(last(&young, &memory, &[7]), [7]);
    }

    #[test]
    fn after_a_while_nothing_is_in_flight_any_more() {
        let (memory, begun) = (Memfd::create("test", PAGES).expect("memfd"), Instant::now());
        let mut young = Young::new(PAGES);
        for scan in 0..20 {
            young.scanned(begun + Duration::from_millis(10 * u64::from(scan)), &set(&[scan]));
        }
        assert!(young.scans.len() <= SCANS_MAX);
        assert_eq!(last(&young, &memory, &[]), (0..20).collect::<Vec<_>>());
        young.sends(&memory, &[PageRun::new(0, 20)]).expect("reads");
        young.scanned(begun + 2 * IN_FLIGHT_MAX, &set(&[40]));
        assert_eq!((last(&young, &memory, &[]), young.sent.len()), (vec![40], 0));
    }
}
