//! In which order a thread writes its part of the working set, forwards and backwards.
//!
//! ```text
//!   working set   | slice of thread 0 | slice of thread 1 | …        one step counter for each thread
//!
//!   uniform       lap 0: all pages of the slice, shuffled;  lap 1: all again, shuffled otherwise; …
//!   streaming     lap 0: first to last;                     lap 1: first to last; …
//!   hot-set       steps 0-8 of ten: next of the laps over the first tenth; step 9: next of those over the rest
//!
//!   forwards      step s            ─▶ page                    [`Sequence::page_at`]
//!   backwards     page, steps done  ─▶ the step that wrote it  [`Sequence::last_before`]
//! ```
//!
//! Always true: both directions take constant time and no table, so what a page must hold follows from the step
//! counters alone.
//!
//! # What a scan sees
//!
//! A shuffled lap is cut into eight groups. Which pages form a group is drawn once for all laps; each lap shuffles
//! the group anew. So at the border of two laps no page comes again before nearly a lap has passed: in any
//! window of up to three quarters of a lap, no page is written twice, and the distinct pages that a scan sees
//! are exactly the steps. (With freely shuffled laps a window of a quarter lap would lose up to 6 %.)
//! Streaming never writes a page twice within a whole lap.
//!
//! In `hot-set` the hot tenth comes round soon. The reference is a window of [`SCAN_WINDOW_MS`]: where the hot
//! pages `h` are written more than once in it, a scan sees `h` of them and each of the cold steps, so that
//! `d = h + steps / 10` distinct pages need `10 (d - h)` steps ([`Sequence::stores_for`]). A scan after a longer
//! time sees fewer pages per second, which is what a hot set is.

use godwit_domain::{PAGE_BYTES, PageIndex};

use super::permutation::{Permutation, subkey};
use super::workload::{Pattern, WorkloadOptions};

/// A dirty rate is distinct pages per this time, in milliseconds: about one late round of a migration.
const SCAN_WINDOW_MS: u64 = 100;
const WINDOWS_PER_SECOND: u64 = 1000 / SCAN_WINDOW_MS;
/// Groups of a shuffled lap. Eight keep a page away for 7/8 of a lap.
const GROUPS: u32 = 8;
/// Below this many pages a lap is one group: groups of a few pages have no orders to choose from.
const GROUPED_FROM: u32 = 64;
/// Of so many steps of a hot set, all but the last go to the hot pages.
const HOT_CYCLE: u64 = 10;

/// The order of one thread.
#[derive(Debug)]
pub(super) struct Sequence {
    base: u32,
    order: Order,
}

#[derive(Debug)]
enum Order {
    Even(Laps),
    /// `hot` covers the first pages of the slice, `cold` those after them.
    Hot {
        hot: Laps,
        cold: Laps,
    },
}

impl Sequence {
    /// The sequences of all threads.
    pub(super) fn all(options: &WorkloadOptions) -> Vec<Self> {
        (0..options.threads).map(|thread| Self::of_thread(options, thread)).collect()
    }

    fn of_thread(options: &WorkloadOptions, thread: u8) -> Self {
        let base = slice_begin(options, thread);
        let len = slice_begin(options, thread + 1) - base;
        let key = subkey(options.seed, 1 << 8 | u64::from(thread));
        let order = match options.pattern {
            Pattern::Uniform => Order::Even(Laps::shuffled(key, len)),
            Pattern::Streaming => Order::Even(Laps { len, shuffle: None }),
            // A slice of one page has a hot page and no cold ones.
            Pattern::HotSet if len < 2 => Order::Even(Laps::shuffled(key, len)),
            Pattern::HotSet => {
                let hot = (len / 10).max(1);
                let cold = Laps::shuffled(subkey(key, 1), len - hot);
                Order::Hot { hot: Laps::shuffled(subkey(key, 0), hot), cold }
            }
        };
        Self { base, order }
    }

    /// How many pages it writes.
    pub(super) fn len(&self) -> u32 {
        match &self.order {
            Order::Even(laps) => laps.len,
            Order::Hot { hot, cold } => hot.len + cold.len,
        }
    }

    /// The page that a step writes. Only of a sequence that has pages.
    pub(super) fn page_at(&self, step: u64) -> PageIndex {
        let item = match &self.order {
            Order::Even(laps) => laps.item_at(step),
            Order::Hot { hot, cold } if step % HOT_CYCLE == HOT_CYCLE - 1 => {
                hot.len + cold.item_at(step / HOT_CYCLE)
            }
            Order::Hot { hot, .. } => hot.item_at(step - step / HOT_CYCLE),
        };
        PageIndex(self.base + item)
    }

    /// The last of the first `steps` steps that wrote a page of this sequence.
    pub(super) fn last_before(&self, steps: u64, page: PageIndex) -> Option<u64> {
        let item = page.0.checked_sub(self.base)?;
        match &self.order {
            Order::Even(laps) => laps.last_before(steps, item),
            Order::Hot { hot, .. } if item < hot.len => {
                const HOT_STEPS: u64 = HOT_CYCLE - 1;
                let hot_step = hot.last_before(steps - steps / HOT_CYCLE, item)?;
                Some(hot_step / HOT_STEPS * HOT_CYCLE + hot_step % HOT_STEPS)
            }
            Order::Hot { hot, cold } => {
                let cold_step = cold.last_before(steps / HOT_CYCLE, item - hot.len)?;
                Some(cold_step * HOT_CYCLE + HOT_CYCLE - 1)
            }
        }
    }

    /// The rate of stores, in bytes per second, that gives this rate of distinct pages.
    pub(super) fn stores_for(&self, distinct: u64) -> u64 {
        match &self.order {
            Order::Hot { hot, .. } if hot_share(distinct) > per_window(hot.len) => {
                let reachable = distinct.min(per_window(self.len()));
                distinct.max((reachable - per_window(hot.len)).saturating_mul(HOT_CYCLE))
            }
            Order::Even(_) | Order::Hot { .. } => distinct,
        }
    }

    /// The rate of distinct pages, in bytes per second, that a scan sees at this rate of stores.
    pub(super) fn distinct_at(&self, stores: u64) -> u64 {
        match &self.order {
            Order::Even(laps) => stores.min(per_window(laps.len)),
            Order::Hot { hot, cold } => {
                let hot_stores = hot_share(stores);
                hot_stores.min(per_window(hot.len)) + (stores - hot_stores).min(per_window(cold.len))
            }
        }
    }
}

fn hot_share(stores: u64) -> u64 {
    stores - stores / HOT_CYCLE
}

/// So many pages, once in each window, as bytes per second.
fn per_window(pages: u32) -> u64 {
    u64::from(pages) * PAGE_BYTES * WINDOWS_PER_SECOND
}

/// The first page of a thread's slice. The thread after the last one begins where the working set ends.
fn slice_begin(options: &WorkloadOptions, thread: u8) -> u32 {
    let begin = u64::from(options.working_set.0) * u64::from(thread) / u64::from(options.threads);
    u32::try_from(begin).unwrap_or(u32::MAX)
}

/// The thread that owns a page; `None` for a page outside the working set.
pub(super) fn thread_of(options: &WorkloadOptions, page: PageIndex) -> Option<usize> {
    if page >= PageIndex(options.working_set.0) {
        return None;
    }
    // The last thread t with floor(working_set * t / threads) <= page.
    let after = (u64::from(page.0) + 1) * u64::from(options.threads) - 1;
    usize::try_from(after / u64::from(options.working_set.0)).ok()
}

/// Endless passes over `0..len`, each item once per pass.
#[derive(Debug)]
struct Laps {
    len: u32,
    shuffle: Option<Shuffle>,
}

/// How a lap is shuffled: `item = groups(place)` after `place` was shuffled within its group by the lap.
#[derive(Debug)]
struct Shuffle {
    key: u64,
    groups: Permutation,
}

impl Laps {
    fn shuffled(key: u64, len: u32) -> Self {
        let groups = Permutation::new(subkey(key, u64::MAX), len);
        Self { len, shuffle: Some(Shuffle { key, groups }) }
    }

    fn item_at(&self, step: u64) -> u32 {
        let len = u64::from(self.len);
        let (lap, place) = (step / len, step % len);
        // A remainder is below its divisor, which came from an u32.
        self.item(lap, (place & 0xffff_ffff) as u32)
    }

    fn last_before(&self, steps: u64, item: u32) -> Option<u64> {
        if item >= self.len {
            return None;
        }
        let len = u64::from(self.len);
        let (lap, done) = (steps / len, steps % len);
        let place = u64::from(self.place(lap, item));
        if place < done {
            return Some(lap * len + place);
        }
        let lap = lap.checked_sub(1)?;
        Some(lap * len + u64::from(self.place(lap, item)))
    }

    fn item(&self, lap: u64, place: u32) -> u32 {
        let Some(shuffle) = &self.shuffle else { return place };
        let (begin, order) = self.group_around(shuffle, lap, place);
        shuffle.groups.apply(begin + order.apply(place - begin))
    }

    fn place(&self, lap: u64, item: u32) -> u32 {
        let Some(shuffle) = &self.shuffle else { return item };
        let place = shuffle.groups.invert(item);
        let (begin, order) = self.group_around(shuffle, lap, place);
        begin + order.invert(place - begin)
    }

    /// The group in which a place lies: its first place and its order in this lap.
    fn group_around(&self, shuffle: &Shuffle, lap: u64, place: u32) -> (u32, Permutation) {
        let groups = if self.len < GROUPED_FROM { 1 } else { GROUPS };
        let size = self.len / groups;
        let group = (place / size).min(groups - 1);
        let begin = group * size;
        // The last group takes what the division left over.
        let len = if group == groups - 1 { self.len - begin } else { size };
        let key = subkey(shuffle.key, lap.wrapping_mul(u64::from(GROUPS)).wrapping_add(u64::from(group)));
        (begin, Permutation::new(key, len))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use godwit_domain::PageCount;
    use proptest::prelude::*;

    const PATTERNS: [Pattern; 3] = [Pattern::Uniform, Pattern::HotSet, Pattern::Streaming];

    fn options(pattern: Pattern, working_set: u32, threads: u8, seed: u64) -> WorkloadOptions {
        WorkloadOptions {
            memory: PageCount(working_set + 7),
            working_set: PageCount(working_set),
            dirty_rate_bytes_per_second: 1,
            pattern,
            zero_percent: 0,
            compressible_percent: 0,
            threads,
            seed,
        }
    }

    /// Runs a sequence and asks after each step, for every page, who wrote it last.
    fn check_last_writers(options: &WorkloadOptions, steps: u64) {
        for (thread, sequence) in Sequence::all(options).iter().enumerate() {
            let own: Vec<_> = (0..options.memory.0)
                .map(PageIndex)
                .filter(|page| thread_of(options, *page) == Some(thread))
                .collect();
            assert_eq!(own.len(), sequence.len() as usize);
            let mut last = BTreeMap::new();
            for step in 0..steps {
                for page in &own {
                    let found = sequence.last_before(step, *page);
                    assert_eq!(found, last.get(page).copied(), "{options:?} {page:?} before {step}");
                }
                let page = sequence.page_at(step);
                assert!(own.contains(&page), "{options:?}: step {step} of thread {thread} left its slice");
                last.insert(page, step);
            }
        }
    }

    #[test]
    fn the_last_writer_is_found_at_every_size() {
        for pattern in PATTERNS {
            for working_set in 1..40 {
                check_last_writers(&options(pattern, working_set, 1, 5), 200);
            }
            for (working_set, threads) in [(2, 2), (5, 3), (64, 1), (65, 1), (71, 1), (150, 2), (64, 64)] {
                check_last_writers(&options(pattern, working_set, threads, 5), 450);
            }
        }
    }

    proptest! {
        #[test]
        fn the_last_writer_is_the_last_writer(
            pattern in prop::sample::select(&PATTERNS[..]), working_set in 3_u32..200, threads in 1_u8..4, seed: u64,
        ) {
            check_last_writers(&options(pattern, working_set, threads, seed), u64::from(working_set) * 3);
        }

        #[test]
        fn the_last_writer_is_found_after_long_running(
            pattern in prop::sample::select(&PATTERNS[..]), seed: u64, steps in 1_u64 << 40..1 << 56,
        ) {
            let options = options(pattern, 1000, 1, seed);
            let sequence = &Sequence::all(&options)[0];
            for step in steps..steps + 20 {
                prop_assert_eq!(sequence.last_before(step + 1, sequence.page_at(step)), Some(step));
            }
        }

        #[test]
        fn three_quarters_of_a_lap_hold_no_page_twice(len in 1_u32..600, key: u64, from in 0_u64..2000) {
            let laps = Laps::shuffled(key, len);
            // Without groups only the lap itself is free of repeats.
            let from = if len < GROUPED_FROM { from * u64::from(len) } else { from };
            let window = (u64::from(len) * 3 / 4).max(1);
            let items: BTreeSet<u32> = (from..from + window).map(|step| laps.item_at(step)).collect();
            prop_assert_eq!(items.len() as u64, window);
        }

        #[test]
        fn neighbouring_laps_differ(len in 64_u32..600, key: u64, lap in 0_u64..1000) {
            let laps = Laps::shuffled(key, len);
            let order = |lap: u64| (0..len).map(|place| laps.item(lap, place)).collect::<Vec<_>>();
            prop_assert_ne!(order(lap), order(lap + 1));
        }

        #[test]
        fn distinct_pages_are_those_that_were_asked_for(
            pattern in prop::sample::select(&PATTERNS[..]), percent in 1_u64..=100, seed: u64, from in 0_u64..50_000,
        ) {
            let options = options(pattern, 4000, 1, seed);
            let sequence = &Sequence::all(&options)[0];
            let asked = per_window(4000) / 100 * percent;
            let steps = sequence.stores_for(asked) / PAGE_BYTES / WINDOWS_PER_SECOND;
            let seen: BTreeSet<_> = (from..from + steps).map(|step| sequence.page_at(step)).collect();
            let wanted = 4000 * percent / 100;
            let off = (seen.len() as u64).abs_diff(wanted);
            prop_assert!(off * 10 <= wanted, "{} of {wanted} pages in {steps} steps", seen.len());
            let told = sequence.distinct_at(sequence.stores_for(asked));
            prop_assert!(told.abs_diff(asked) * 100 <= asked, "told {told}, asked {asked}");
        }
    }

    #[test]
    fn every_page_of_the_working_set_has_one_thread() {
        for working_set in 1..100 {
            for threads in 1..=64 {
                let options = options(Pattern::Uniform, working_set, threads, 1);
                for page in 0..working_set {
                    let owner = thread_of(&options, PageIndex(page)).expect("inside");
                    let owner = u8::try_from(owner).expect("a thread");
                    assert!(slice_begin(&options, owner) <= page && page < slice_begin(&options, owner + 1));
                }
                assert_eq!(thread_of(&options, PageIndex(working_set)), None);
            }
        }
    }

    #[test]
    fn a_rate_beyond_all_bounds_does_not_overflow() {
        for pattern in PATTERNS {
            let sequence = &Sequence::all(&options(pattern, 100, 1, 1))[0];
            assert_eq!(sequence.distinct_at(sequence.stores_for(u64::MAX)), per_window(100));
        }
    }
}
