//! Does this kernel have what we need? Asked at start-up, by doing, on a page or two: a version number proves
//! nothing (distributions back-port, seccomp and LSMs forbid).

use std::io;

use godwit_domain::{PageCount, PageIndex, PageRun};

use crate::ram::PAGE_WORDS;
use crate::tracker::TrackerError;
use crate::uffd::{Origin, UffdError, Userfaultfd, open_own_pagemap};
use crate::{Memfd, Ram, Tracker};

/// What the self-test found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// How a userfaultfd can be made here.
    pub userfaultfd: Origin,
    /// Whether new memory files get huge pages by themselves. Arming splits them, so they give nothing; where
    /// they are on, a punched page may stay present.
    pub shmem_huge_pages: bool,
}

/// What is missing, and how to get it.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No memory file.
    #[error(
        "memfd_create with seals failed; it needs Linux 5.1 or later and a /dev/shm-like limit that allows it"
    )]
    Memfd(#[source] io::Error),
    /// No userfaultfd, or one that lacks features.
    #[error(transparent)]
    Userfaultfd(#[from] UffdError),
    /// PAGEMAP_SCAN does not work.
    #[error("dirty tracking failed: PAGEMAP_SCAN needs Linux 6.7 or later with CONFIG_PROC_PAGE_MONITOR")]
    Tracking(#[source] TrackerError),
    /// PAGEMAP_SCAN works and reports something else than was written.
    #[error(
        "dirty tracking is wrong on this kernel: wrote page 1 of 4, the scan said {0:?}; do not migrate here"
    )]
    Wrong(Vec<PageRun>),
    /// Holes are not told.
    #[error(
        "a punched page of a memory file is still there on this kernel (large folios?); set /sys/kernel/mm/transparent_hugepage/shmem_enabled to never"
    )]
    Punch,
}

/// Tests memory files, seals, holes, userfaultfd and dirty tracking. Takes about a millisecond.
pub fn self_test() -> Result<Report, ProbeError> {
    const PAGES: PageCount = PageCount(4);
    let memory = Memfd::create("godwit-self-test", PAGES).map_err(ProbeError::Memfd)?;
    let ram = Ram::map(&memory).map_err(ProbeError::Memfd)?;
    punch_makes_a_hole(&memory, &ram)?;
    memory.seal_against_other_writers().map_err(ProbeError::Memfd)?;

    let (uffd, origin) = Userfaultfd::open_for_builtin()?;
    let pagemap = open_own_pagemap().map_err(|e| ProbeError::Tracking(TrackerError::Scan(e)))?;
    let mut tracker =
        Tracker::arm(uffd, pagemap, ram.address(), PAGES.bytes()).map_err(|error| match error {
            TrackerError::Uffd(uffd) => ProbeError::Userfaultfd(uffd),
            other => ProbeError::Tracking(other),
        })?;
    ram.write_page(PageIndex(1), &[1; PAGE_WORDS]);
    let mut found = Vec::new();
    tracker.scan(|run| found.push(run)).map_err(ProbeError::Tracking)?;
    if found != [PageRun::new(1, 1)] {
        return Err(ProbeError::Wrong(found));
    }
    Ok(Report { userfaultfd: origin, shmem_huge_pages: shmem_huge_pages() })
}

pub(crate) fn punch_makes_a_hole(memory: &Memfd, ram: &Ram) -> Result<(), ProbeError> {
    ram.write_page(PageIndex(0), &[1; PAGE_WORDS]);
    // The page alone: its neighbours are there too where the first store made a large folio.
    let stayed = memory.punch_and_check(&[PageRun::new(0, 1)]).map_err(ProbeError::Memfd)?;
    if stayed.is_empty() { Ok(()) } else { Err(ProbeError::Punch) }
}

/// `[never]` or `[deny]` or `[advise]` means no: we never advise.
fn shmem_huge_pages() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
        .is_ok_and(|setting| ["[always]", "[within_size]", "[force]"].iter().any(|on| setting.contains(on)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_kernel_passes_its_own_test() {
        super::self_test().expect("a machine that runs these tests can track dirty pages");
    }
}
