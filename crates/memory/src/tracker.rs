//! Which pages a guest has written since the last look.
//!
//! ```text
//!   arm:   UFFDIO_REGISTER(write protection, async) ─▶ UFFDIO_WRITEPROTECT all
//!   scan:  PAGEMAP_SCAN ─▶ the written runs, protected again in the same step
//! ```
//!
//! Always true: a page stored to through the runner's mapping after a scan is in the result of the next one.
//! Read *after* the scan that reported a page: a store in between is reported by the next scan.
//!
//! **Law.** The result of a scan lives only in the process that asked for it: it has cleared the kernel's
//! memory of those writes. A tracker made anew for the same guest knows nothing; everything is dirty.
//!
//! Not seen: hole punching, `pwrite`, stores through other mappings, DMA into pages pinned before arming. The
//! first three are kept out by a seal ([`crate::Memfd::seal_against_other_writers`]).

use std::io;
use std::os::fd::OwnedFd;

use godwit_domain::{PAGE_BYTES, PageRun};

use crate::sys::{self, PageRegion};
use crate::uffd::{UffdError, Userfaultfd};

/// Regions that one ioctl may report: 1.5 MiB of memory, and 1 GiB of alternating pages needs two calls.
const REGIONS_PER_CALL: usize = 64 * 1024;

/// Why tracking failed.
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    /// The userfaultfd refused.
    #[error(transparent)]
    Uffd(#[from] UffdError),
    /// The scan failed. `EPERM`: the range is not armed in async mode, so another process re-armed it.
    #[error("PAGEMAP_SCAN of the runner's memory")]
    Scan(#[source] io::Error),
    /// The walk stopped before the end without having filled its answer: going on would miss pages.
    #[error("PAGEMAP_SCAN stopped at {at:#x} of {end:#x} and made no progress")]
    Stuck {
        /// Where it stopped.
        at: u64,
        /// Where it should have ended.
        end: u64,
    },
}

/// Dirty tracking of one guest, from outside its process.
#[derive(Debug)]
pub struct Tracker {
    uffd: Userfaultfd,
    pagemap: OwnedFd,
    address: u64,
    bytes: u64,
    regions: Vec<PageRegion>,
}

impl Tracker {
    /// Begins tracking `bytes` at `address` of the process that made `uffd` and opened `pagemap`. From now on
    /// every page is protected: what a scan reports was written after this call.
    pub fn arm(uffd: Userfaultfd, pagemap: OwnedFd, address: u64, bytes: u64) -> Result<Self, TrackerError> {
        uffd.enable_tracking()?;
        uffd.register_wp(address, bytes)?;
        uffd.write_protect(address, bytes)?;
        let regions = vec![PageRegion::default(); REGIONS_PER_CALL];
        Ok(Self { uffd, pagemap, address, bytes, regions })
    }

    /// Reports every run written since the last scan (or since arming), and protects it again.
    pub fn scan(&mut self, each: impl FnMut(PageRun)) -> Result<(), TrackerError> {
        self.scan_between(self.address, self.address + self.bytes, each)
    }

    /// The same for the pages of one run, and of the others nothing is forgotten.
    pub fn scan_within(&mut self, run: PageRun, each: impl FnMut(PageRun)) -> Result<(), TrackerError> {
        let inside = |pages: u64| self.address + (pages * PAGE_BYTES).min(self.bytes);
        self.scan_between(inside(u64::from(run.first.0)), inside(run.end()), each)
    }

    fn scan_between(
        &mut self,
        mut at: u64,
        end: u64,
        mut each: impl FnMut(PageRun),
    ) -> Result<(), TrackerError> {
        while at < end {
            let (filled, walk_end) = sys::pagemap_scan_written(&self.pagemap, at, end, &mut self.regions)
                .map_err(TrackerError::Scan)?;
            for region in self.regions.iter().take(filled) {
                each(self.run_of(region));
            }
            // The kernel's `walk_end` is stale when the walk ended in the ordinary way: believe it only when
            // the answer was full.
            if filled < self.regions.len() {
                return Ok(());
            }
            if walk_end <= at {
                return Err(TrackerError::Stuck { at: walk_end, end });
            }
            at = walk_end;
        }
        Ok(())
    }

    /// Ends tracking: the guest's writes fault no more. Done when a migration ends and the guest stays.
    pub fn disarm(self) -> Result<(), TrackerError> {
        Ok(self.uffd.unregister(self.address, self.bytes)?)
    }

    fn run_of(&self, region: &PageRegion) -> PageRun {
        let page = |address: u64| {
            u32::try_from(address.saturating_sub(self.address) / PAGE_BYTES).unwrap_or(u32::MAX)
        };
        let first = page(region.start);
        PageRun::new(first, page(region.end) - first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::PAGE_WORDS;
    use crate::{Memfd, PageSet, Ram};
    use godwit_domain::{PageCount, PageIndex};

    const PAGES: PageCount = PageCount(300_000);

    fn armed() -> (Memfd, Ram, Tracker) {
        let memory = Memfd::create("test", PAGES).expect("memfd");
        let ram = Ram::map(&memory).expect("map");
        let (uffd, _) = Userfaultfd::open_for_builtin().expect("userfaultfd");
        let pagemap = crate::uffd::open_own_pagemap().expect("pagemap");
        let tracker = Tracker::arm(uffd, pagemap, ram.address(), PAGES.bytes()).expect("arm");
        (memory, ram, tracker)
    }

    fn scan(tracker: &mut Tracker) -> PageSet {
        let mut set = PageSet::empty(PAGES);
        tracker.scan(|run| set.insert_run(run)).expect("scan");
        set
    }

    #[test]
    fn every_store_is_in_the_next_scan_and_in_no_later_one() {
        let (_memory, ram, mut tracker) = armed();
        assert!(scan(&mut tracker).is_empty(), "nothing was written");
        let mut expected = PageSet::empty(PAGES);
        // Every third page gives more regions than one call of 64 Ki reports.
        for page in (0..PAGES.0).step_by(3).map(PageIndex) {
            ram.write_page(page, &[1; PAGE_WORDS]);
            expected.insert(page);
        }
        assert_eq!(scan(&mut tracker), expected, "first stores into holes");
        assert!(scan(&mut tracker).is_empty());
        ram.write_page(PageIndex(299_999), &[2; PAGE_WORDS]);
        ram.write_page(PageIndex(0), &[2; PAGE_WORDS]);
        let found: Vec<_> = scan(&mut tracker).runs().collect();
        assert_eq!(found, [PageRun::new(0, 1), PageRun::new(299_999, 1)]);
    }

    #[test]
    fn a_scan_of_a_part_forgets_nothing_of_the_rest() {
        let (_memory, ram, mut tracker) = armed();
        for page in [10, 19, 20, 299_999].map(PageIndex) {
            ram.write_page(page, &[1; PAGE_WORDS]);
        }
        let mut found = Vec::new();
        tracker.scan_within(PageRun::new(10, 10), |run| found.push(run)).expect("scan");
        assert_eq!(found, [PageRun::new(10, 1), PageRun::new(19, 1)]);
        tracker.scan_within(PageRun::new(10, 10), |run| panic!("{run:?} twice")).expect("scan");
        tracker
            .scan_within(PageRun::new(299_999, 5), |run| found.push(run))
            .expect("the end of memory is the end");
        assert_eq!(found.last(), Some(&PageRun::new(299_999, 1)));
        assert_eq!(scan(&mut tracker).runs().collect::<Vec<_>>(), [PageRun::new(20, 1)]);
    }

    #[test]
    fn a_read_is_no_write() {
        let (_memory, ram, mut tracker) = armed();
        ram.read_page(PageIndex(7), &mut [0; PAGE_WORDS]);
        assert!(scan(&mut tracker).is_empty());
    }

    #[test]
    fn a_tracker_can_be_made_again_on_the_same_descriptors() {
        let (_memory, ram, tracker) = armed();
        let uffd = Userfaultfd::from_handed_over(tracker.uffd.as_fd_clone());
        let pagemap = tracker.pagemap.try_clone().expect("dup");
        drop(tracker);
        let mut again = Tracker::arm(uffd, pagemap, ram.address(), PAGES.bytes()).expect("arm again");
        ram.write_page(PageIndex(5), &[1; PAGE_WORDS]);
        assert_eq!(scan(&mut again).len(), PageCount(1));
        again.disarm().expect("disarm");
    }

    #[test]
    fn a_range_that_is_not_armed_is_an_error() {
        let (_memory, ram, tracker) = armed();
        let other = Ram::map(&Memfd::create("other", PageCount(4)).expect("memfd")).expect("map");
        let mut astray = Tracker { address: other.address(), bytes: PageCount(4).bytes(), ..tracker };
        other.write_page(PageIndex(0), &[1; PAGE_WORDS]);
        assert!(matches!(astray.scan(|_| {}), Err(TrackerError::Scan(_))));
        drop(ram);
    }
}
