//! Whether what arrived is what left: pages of both sides, compared by their digests.
//!
//! ```text
//!   source, frozen    digests of a piece ──▶   target   digests of the same piece; where they differ:
//!                                                        scan ─▶ written by the guest since it ran? its own business
//!                                                             ─▶ not written: a mismatch
//! ```
//!
//! Always true: a page is read before the scan that excuses it, so a store that was seen by the read is seen by the scan;
//! an equal page is never asked about.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use godwit_domain::{PAGE_SIZE, PageCount, PageIndex, PageRun};
use godwit_memory::{Memfd, Tracker};
use godwit_wire::migration::{AUDIT_PAGES_MAX, page_digest};

/// Pages that are read at once: 1 MiB.
const READ_PAGES: u32 = 256;

/// How long the source keeps its copy to be audited, at least.
const LIMIT_MIN: Duration = Duration::from_secs(30);
/// The same for each GiB: three times as long as it takes on two busy cores.
const LIMIT_PER_GIB: Duration = Duration::from_secs(8);
/// By how much longer the target waits for a source that says nothing.
const TARGET_WAITS_LONGER: Duration = Duration::from_secs(5);

/// How long a source audits a guest of this size at most; then it lets go, whatever is left.
pub(crate) fn limit(pages: PageCount) -> Duration {
    let gib = u32::try_from(pages.bytes() >> 30).unwrap_or(u32::MAX);
    LIMIT_PER_GIB.saturating_mul(gib).max(LIMIT_MIN)
}

/// How long a target waits for its source to audit.
pub(crate) fn target_limit(pages: PageCount) -> Duration {
    limit(pages).saturating_add(TARGET_WAITS_LONGER)
}

/// The piece that begins at `first`.
pub(crate) fn piece_at(first: u32, pages: PageCount) -> PageRun {
    PageRun::new(first, pages.0.saturating_sub(first).min(AUDIT_PAGES_MAX))
}

/// One digest for each page of a run, as it is now.
pub(crate) fn digests(memory: &Memfd, run: PageRun) -> io::Result<Vec<u64>> {
    let mut digests = Vec::with_capacity(run.count.0 as usize);
    let mut bytes = Vec::with_capacity(run.count.0.min(READ_PAGES) as usize * PAGE_SIZE);
    let end = u32::try_from(run.end()).unwrap_or(u32::MAX);
    for first in (run.first.0..end).step_by(READ_PAGES as usize) {
        bytes.clear();
        memory.read_onto(PageRun::new(first, (end - first).min(READ_PAGES)), &mut bytes)?;
        digests.extend(bytes.chunks_exact(PAGE_SIZE).map(page_digest));
    }
    Ok(digests)
}

/// What came of comparing a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// The piece.
    pub run: PageRun,
    /// Pages that differ, and that the guest has written since it ran here.
    pub written: u32,
    /// Pages that differ though the guest has not written them.
    pub mismatched: Vec<PageIndex>,
}

impl Compared {
    /// `written`: what the guest wrote since it runs here, looked at after `ours` was read.
    pub fn judge(run: PageRun, theirs: &[u64], ours: &[u64], written: &BTreeSet<u32>) -> Self {
        let differing: Vec<PageIndex> = differing(run, theirs, ours).collect();
        let mismatched: Vec<PageIndex> =
            differing.iter().copied().filter(|page| !written.contains(&page.0)).collect();
        let excused = differing.len() - mismatched.len();
        Self { run, written: u32::try_from(excused).unwrap_or(u32::MAX), mismatched }
    }

    /// Pages about which something can be said.
    pub fn checked(&self) -> u32 {
        self.run.count.0.saturating_sub(self.written)
    }
}

/// The pages of a run that are not alike; one without a digest on either side is not.
fn differing<'a>(run: PageRun, theirs: &'a [u64], ours: &'a [u64]) -> impl Iterator<Item = PageIndex> + 'a {
    let pairs = run.pages().enumerate().map(|(at, page)| (page, theirs.get(at), ours.get(at)));
    pairs.filter(|(_, theirs, ours)| theirs.is_none() || theirs != ours).map(|(page, ..)| page)
}

/// Compares what is here of a piece with the digests of the source.
pub(crate) fn compare(
    memory: &Memfd,
    tracker: &mut Tracker,
    run: PageRun,
    theirs: &[u64],
) -> Result<Compared, Box<dyn std::error::Error>> {
    let ours = digests(memory, run)?;
    let mut written = BTreeSet::new();
    if theirs != ours {
        tracker.scan_within(run, |run| written.extend(run.pages().map(|page| page.0)))?;
    }
    Ok(Compared::judge(run, theirs, &ours, &written))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: PageCount = PageCount(600);

    #[test]
    fn only_a_page_that_differs_and_was_not_written_is_a_mismatch() {
        let run = PageRun::new(100, 6);
        let (theirs, ours) = ([1, 2, 3, 4, 5, 6], [1, 9, 3, 9, 5, 9]);
        let written = BTreeSet::from([100, 101, 7]);
        let compared = Compared::judge(run, &theirs, &ours, &written);
        assert_eq!((compared.written, compared.checked()), (1, 5));
        assert_eq!(compared.mismatched, [PageIndex(103), PageIndex(105)]);
        let same = Compared::judge(run, &theirs, &theirs, &written);
        assert_eq!((same.written, same.checked(), same.mismatched.len()), (0, 6, 0));
        let short = Compared::judge(run, &theirs, &ours[..5], &written);
        assert!(short.mismatched.contains(&PageIndex(105)), "what was not read is not alike: {short:?}");
    }

    #[test]
    fn digests_are_of_pages_and_holes_are_zeros() {
        let (source, target) = (Memfd::create("a", PAGES), Memfd::create("b", PAGES));
        let (source, target) = (source.expect("memfd"), target.expect("memfd"));
        source.write(PageIndex(299), &[7; PAGE_SIZE]).expect("write");
        target.write(PageIndex(299), &[7; PAGE_SIZE]).expect("write");
        target.write(PageIndex(3), &[0; PAGE_SIZE]).expect("write");
        let whole = PageRun::new(0, PAGES.0);
        let (theirs, ours) = (digests(&source, whole).expect("read"), digests(&target, whole).expect("read"));
        assert_eq!(theirs.len(), 600);
        assert_eq!(theirs, ours, "a page of zeros is as a hole");
        assert!(theirs[298] != theirs[299]);
        target.write(PageIndex(599), &[1; PAGE_SIZE]).expect("write");
        let ours = digests(&target, PageRun::new(256, 344)).expect("read");
        assert_eq!(ours[..343], theirs[256..599]);
        assert!(ours[343] != theirs[599]);
    }

    #[test]
    fn a_larger_guest_has_more_time_and_pieces_end_with_it() {
        assert_eq!(limit(PAGES), LIMIT_MIN);
        assert_eq!(limit(PageCount(64 << 18)), Duration::from_secs(512));
        assert!(target_limit(PAGES) > limit(PAGES));
        assert_eq!(piece_at(0, PageCount(5000)), PageRun::new(0, 4096));
        assert_eq!(piece_at(4096, PageCount(5000)), PageRun::new(4096, 904));
    }
}
