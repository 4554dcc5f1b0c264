//! How many pages are fetched for one fault: the page alone, and more the longer somebody walks through memory.
//!
//! ```text
//!   fault at a page that no walk expects ─▶ 1 page
//!   fault at the page behind the last fetch ─▶ twice as many as then, at most FETCH_PAGES_MAX
//! ```
//!
//! After CRIU's fault-around (it doubles) and Linux's read-ahead (a fault elsewhere begins anew). Several walks go on at
//! once, one for each thread of the guest.

use godwit_wire::migration::FETCH_PAGES_MAX;

/// Walks that are remembered: threads of a large guest that walk at once. The one that was silent longest is forgotten.
const WALKS_MAX: usize = 32;

/// Somebody who goes through memory page by page.
#[derive(Debug, Clone, Copy)]
struct Walk {
    /// The page behind the last fetch.
    next: u32,
    /// Pages of the last fetch.
    pages: u32,
}

/// The walks through one guest's memory; the one that moved last is the last.
#[derive(Debug, Default)]
pub(super) struct Around {
    walks: Vec<Walk>,
}

impl Around {
    /// How many pages from `page` on are worth fetching, `most` at most.
    pub(super) fn fault(&mut self, page: u32, most: u32) -> u32 {
        let known = self.walks.iter().rposition(|walk| walk.next == page);
        let pages = known.map(|at| self.walks.remove(at)).map_or(1, |walk| walk.pages.saturating_mul(2));
        let pages = pages.min(most).min(FETCH_PAGES_MAX);
        if self.walks.len() == WALKS_MAX {
            self.walks.remove(0);
        }
        self.walks.push(Walk { next: page.saturating_add(pages), pages });
        pages
    }

    /// Fewer pages were fetched than [`Self::fault`] said: the walk goes on behind these.
    pub(super) fn fetched(&mut self, page: u32, pages: u32) {
        if let Some(last) = self.walks.last_mut() {
            last.next = page.saturating_add(pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(around: &mut Around, pages: &[u32]) -> Vec<u32> {
        pages.iter().map(|page| around.fault(*page, FETCH_PAGES_MAX)).collect()
    }

    #[test]
    fn a_walk_doubles_and_a_leap_begins_anew() {
        let mut around = Around::default();
        assert_eq!(faults(&mut around, &[10, 11, 13, 17, 25, 900, 41]), [1, 2, 4, 8, 16, 1, 32]);
    }

    #[test]
    fn walks_go_on_beside_each_other() {
        let mut around = Around::default();
        assert_eq!(faults(&mut around, &[0, 5000, 1, 5001, 3, 5003]), [1, 1, 2, 2, 4, 4]);
    }

    #[test]
    fn nothing_grows_without_bound() {
        let mut around = Around::default();
        let mut page = 0;
        for _ in 0..100 {
            let pages = around.fault(page, FETCH_PAGES_MAX);
            assert!(pages <= FETCH_PAGES_MAX);
            page += pages;
        }
        for page in (0..10_000).map(|n| n * 7919) {
            around.fault(page, FETCH_PAGES_MAX);
        }
        assert_eq!(around.walks.len(), WALKS_MAX);
        assert_eq!(around.fault(u32::MAX, FETCH_PAGES_MAX), 1);
    }

    #[test]
    fn a_walk_goes_on_behind_what_was_really_fetched() {
        let mut around = Around::default();
        assert_eq!(faults(&mut around, &[0, 1, 3]), [1, 2, 4]);
        around.fetched(3, 2);
        assert_eq!(around.fault(5, FETCH_PAGES_MAX), 8);
    }
}
