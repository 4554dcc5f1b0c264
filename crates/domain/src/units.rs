//! Pages, rounds and rates: counts that must not be mistaken for one another.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The page size that everything here counts in, in bytes. Guests with larger pages are tracked in these.
pub const PAGE_BYTES: u64 = 4096;

/// [`PAGE_BYTES`] as the length of a buffer.
pub const PAGE_SIZE: usize = 4096;

/// A page's place in a guest's RAM: page 0 is the first. At most 2^32 pages, that is 16 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageIndex(pub u32);

impl PageIndex {
    /// Where the page begins in the guest's memory file, in bytes.
    pub const fn offset_bytes(self) -> u64 {
        self.0 as u64 * PAGE_BYTES
    }
}

/// A number of pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageCount(pub u32);

impl PageCount {
    /// Their size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64 * PAGE_BYTES
    }

    /// The pages of a memory of this many bytes; `None` where it is no whole, non-zero number of pages or
    /// more than 2^32 - 1 of them.
    pub fn of_memory(bytes: u64) -> Option<Self> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) {
            return None;
        }
        u32::try_from(bytes / PAGE_BYTES).ok().map(Self)
    }
}

/// Consecutive pages: `first`, `first + 1`, … `first + count - 1`. Never empty where it comes from this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageRun {
    /// The first page.
    pub first: PageIndex,
    /// How many.
    pub count: PageCount,
}

impl PageRun {
    /// A run of `count` pages from `first`.
    pub const fn new(first: u32, count: u32) -> Self {
        Self { first: PageIndex(first), count: PageCount(count) }
    }

    /// One past its last page, as a wide number because the last page may be the greatest there is.
    pub const fn end(self) -> u64 {
        self.first.0 as u64 + self.count.0 as u64
    }

    /// Its pages in order.
    pub fn pages(self) -> impl Iterator<Item = PageIndex> {
        (u64::from(self.first.0)..self.end()).filter_map(|p| u32::try_from(p).ok()).map(PageIndex)
    }
}

/// A pass over the pages that were written since the last one. Round 1 is the first, over all memory;
/// 0 means "no round yet" in a table of stamps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Round(pub u16);

impl Round {
    /// No round has touched the page.
    pub const NONE: Self = Self(0);
    /// The first pass.
    pub const FIRST: Self = Self(1);

    /// The next round; `None` after the 65,535th, where a migration must give up.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A limit in bytes per second, or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth(Option<NonZeroU64>);

impl Bandwidth {
    /// No limit.
    pub const UNLIMITED: Self = Self(None);

    /// From a setting's number, where 0 means unlimited.
    pub const fn from_setting(bytes_per_second: u64) -> Self {
        Self(NonZeroU64::new(bytes_per_second))
    }

    /// The limit in bytes per second; `None` means unlimited.
    pub fn bytes_per_second(self) -> Option<u64> {
        self.0.map(NonZeroU64::get)
    }
}

/// How long `bytes` take at `bytes_per_second`. A rate of 0 takes for ever, that is [`Duration::MAX`].
pub fn time_for(bytes: u64, bytes_per_second: u64) -> Duration {
    if bytes_per_second == 0 {
        return if bytes == 0 { Duration::ZERO } else { Duration::MAX };
    }
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second);
    u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
}

/// Bytes per second of `bytes` in `elapsed`, 0 where no time has passed.
pub fn rate_of(bytes: u64, elapsed: Duration) -> u64 {
    let nanos = elapsed.as_nanos();
    if nanos == 0 {
        return 0;
    }
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_whole_pages() {
        assert_eq!(PageCount::of_memory(1 << 30), Some(PageCount(262_144)));
        for bad in [0, 1, 4095, 4097, u64::MAX] {
            assert_eq!(PageCount::of_memory(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_last_page_of_the_greatest_memory_is_in_its_run() {
        let run = PageRun::new(u32::MAX - 1, 2);
        assert_eq!(run.pages().map(|p| p.0).collect::<Vec<_>>(), [u32::MAX - 1, u32::MAX]);
    }

    #[test]
    fn rates_and_times_do_not_overflow() {
        assert_eq!(time_for(u64::MAX, 1), Duration::MAX);
        assert_eq!(time_for(64 << 20, 64 << 20), Duration::from_secs(1));
        assert_eq!(time_for(1, 0), Duration::MAX);
        assert_eq!(rate_of(u64::MAX, Duration::from_nanos(1)), u64::MAX);
        assert_eq!(rate_of(5, Duration::ZERO), 0);
    }
}
