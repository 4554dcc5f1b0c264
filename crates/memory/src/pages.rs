//! A set of pages of one guest: one bit a page and a count.
//!
//! Always true: `len` is the number of bits set; no bit lies at or above `pages`; runs come out ascending,
//! not empty, and not touching one another.

use godwit_domain::{PageCount, PageIndex, PageRun};

const WORD_BITS: u32 = u64::BITS;

/// Which pages of a guest. 32 KiB per GiB of guest.
#[derive(Clone, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: PageCount,
    len: u32,
}

impl std::fmt::Debug for PageSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageSet({} of {})", self.len, self.pages.0)
    }
}

impl PageSet {
    /// No page of a guest with so many.
    pub fn empty(pages: PageCount) -> Self {
        Self { words: vec![0; pages.0.div_ceil(WORD_BITS) as usize], pages, len: 0 }
    }

    /// Every page of a guest with so many.
    pub fn full(pages: PageCount) -> Self {
        let mut set = Self::empty(pages);
        set.insert_run(PageRun { first: PageIndex(0), count: pages });
        set
    }

    /// How many pages are in it.
    pub fn len(&self) -> PageCount {
        PageCount(self.len)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this one is. A page outside the guest is in no set.
    pub fn contains(&self, page: PageIndex) -> bool {
        let (word, bit) = place(page.0);
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    /// Adds a page; says whether it was new. A page outside the guest is not added.
    pub fn insert(&mut self, page: PageIndex) -> bool {
        let (word, bit) = place(page.0);
        let inside = page.0 < self.pages.0;
        match self.words.get_mut(word) {
            Some(w) if inside && *w & bit == 0 => {
                *w |= bit;
                self.len += 1;
                true
            }
            _ => false,
        }
    }

    /// Takes a page out; says whether it was there.
    pub fn remove(&mut self, page: PageIndex) -> bool {
        let (word, bit) = place(page.0);
        match self.words.get_mut(word) {
            Some(w) if *w & bit != 0 => {
                *w &= !bit;
                self.len -= 1;
                true
            }
            _ => false,
        }
    }

    /// Adds every page of a run; what lies outside the guest is left out.
    pub fn insert_run(&mut self, run: PageRun) {
        self.change_run(run, |word, mask| *word |= mask);
    }

    /// Takes every page of a run out.
    pub fn remove_run(&mut self, run: PageRun) {
        self.change_run(run, |word, mask| *word &= !mask);
    }

    fn change_run(&mut self, run: PageRun, change: impl Fn(&mut u64, u64)) {
        let end = u32::try_from(run.end()).unwrap_or(u32::MAX).min(self.pages.0);
        let mut at = run.first.0;
        while at < end {
            let (word, _) = place(at);
            let low = at % WORD_BITS;
            let take = (WORD_BITS - low).min(end - at);
            let mask = (u64::MAX >> (WORD_BITS - take)) << low;
            let Some(w) = self.words.get_mut(word) else { return };
            let before = w.count_ones();
            change(w, mask);
            self.len = self.len - before + w.count_ones();
            at += take;
        }
    }

    /// Adds every page of another set of the same guest.
    ///
    /// # Panics
    /// If the two are of guests of different size.
    pub fn insert_all(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "page sets of two different guests");
        self.len = 0;
        for (w, o) in self.words.iter_mut().zip(&other.words) {
            *w |= o;
            self.len += w.count_ones();
        }
    }

    /// The first page of the set at or after `from`.
    pub fn next_from(&self, from: u32) -> Option<PageIndex> {
        let (first_word, _) = place(from);
        let mut word = self.words.get(first_word)? & (u64::MAX << (from % WORD_BITS));
        let mut at = first_word;
        loop {
            if word != 0 {
                let page = u32::try_from(at).ok()? * WORD_BITS + word.trailing_zeros();
                return Some(PageIndex(page));
            }
            at += 1;
            word = *self.words.get(at)?;
        }
    }

    /// The first run of the set at or after `from`, cut at `most` pages.
    pub fn run_from(&self, from: u32, most: PageCount) -> Option<PageRun> {
        let first = self.next_from(from)?;
        let limit = first.0.saturating_add(most.0).min(self.pages.0);
        let mut end = first.0;
        // Whole words of ones are common (a first pass): step over them at once.
        while end < limit {
            let (word, _) = place(end);
            let rest = !self.words.get(word).copied().unwrap_or(0) >> (end % WORD_BITS);
            let ones = rest.trailing_zeros().min(WORD_BITS - end % WORD_BITS);
            if ones == 0 {
                break;
            }
            end = end.saturating_add(ones);
        }
        Some(PageRun { first, count: PageCount(end.min(limit) - first.0) })
    }

    /// All its runs in ascending order.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let run = self.run_from(at, self.pages)?;
            at = u32::try_from(run.end()).unwrap_or(u32::MAX);
            Some(run)
        })
    }
}

fn place(page: u32) -> (usize, u64) {
    ((page / WORD_BITS) as usize, 1 << (page % WORD_BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    const PAGES: u32 = 200;

    fn runs_of(set: &BTreeSet<u32>) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        for page in set {
            match runs.last_mut() {
                Some(run) if run.end() == u64::from(*page) => run.count.0 += 1,
                _ => runs.push(PageRun::new(*page, 1)),
            }
        }
        runs
    }

    proptest! {
        /// Any sequence of operations leaves the same set as a sorted set of numbers.
        #[test]
        fn it_behaves_as_a_set(operations in prop::collection::vec((0_u8..4, 0_u32..PAGES + 20, 0_u32..90), 0..60)) {
            let mut set = PageSet::empty(PageCount(PAGES));
            let mut model = BTreeSet::new();
            for (kind, first, count) in operations {
                let inside = (first..first.saturating_add(count)).filter(|p| *p < PAGES);
                match kind {
                    0 => {
                        set.insert_run(PageRun::new(first, count));
                        model.extend(inside);
                    }
                    1 => {
                        set.remove_run(PageRun::new(first, count));
                        inside.for_each(|p| { model.remove(&p); });
                    }
                    2 => prop_assert_eq!(set.insert(PageIndex(first)), first < PAGES && model.insert(first)),
                    _ => prop_assert_eq!(set.remove(PageIndex(first)), model.remove(&first)),
                }
                prop_assert_eq!(set.len().0 as usize, model.len());
            }
            prop_assert_eq!(set.runs().collect::<Vec<_>>(), runs_of(&model));
            for page in 0..PAGES + 70 {
                prop_assert_eq!(set.contains(PageIndex(page)), model.contains(&page));
                prop_assert_eq!(set.next_from(page).map(|p| p.0), model.range(page..).next().copied());
            }
        }
    }

    #[test]
    fn a_run_is_cut_where_asked() {
        let set = PageSet::full(PageCount(130));
        assert_eq!(set.run_from(60, PageCount(8)), Some(PageRun::new(60, 8)));
        assert_eq!(set.run_from(60, PageCount(1000)), Some(PageRun::new(60, 70)));
        assert_eq!(set.run_from(130, PageCount(1)), None);
    }
}
