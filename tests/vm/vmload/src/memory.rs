//! Memory under load: a set of pages that is written at a set rate, and an area that never changes.
//!
//! ```text
//!   page of the set:  [ number │ … │ number ^ mark ]     its number again in a table beside it
//!   a turn, each ms:  write a few at random, comparing each before ── then compare the next few of the lap
//! ```
//!
//! Always true: each thread owns its pages, so a page that differs from its table was changed by somebody else.

use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::mix::{Numbers, mix};
use crate::params::Params;
use crate::tally::Tally;

/// Words in a page.
const PAGE_WORDS: usize = 512;
const PAGES_PER_MIB: u64 = 256;
/// A thread that was late makes up for this much at most.
const BACKLOG_MAX: Duration = Duration::from_millis(50);
const TURN: Duration = Duration::from_millis(1);
/// Turns in which the whole written set is compared once: about a second.
const LAP_TURNS: usize = 1_000;

type Page = [u64; PAGE_WORDS];

/// Fills all memory that will be checked, and starts the threads: one per processor, and one for the area.
pub(crate) fn start(params: &Params, tally: &Arc<Tally>) -> Result<(), String> {
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = u64::try_from(threads).unwrap_or(1);
    let pages = usize::try_from(params.set_mib * PAGES_PER_MIB / share).map_err(|error| error.to_string())?;
    for index in 0..share {
        let mut written = Written::new(pages, params.seed.wrapping_add(index));
        let (rate, tally) = (params.rate / share, Arc::clone(tally));
        spawn("written", move || written.run(rate, &tally))?;
    }
    let pages = usize::try_from(params.area_mib * PAGES_PER_MIB).map_err(|error| error.to_string())?;
    let (lap_s, tally) = (params.lap_s, Arc::clone(tally));
    let area = Area::new(pages, mix(params.seed));
    spawn("area", move || area.check(lap_s, &tally))
}

/// Starts a thread that never ends.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), String> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|error| format!("start thread {name}: {error}"))
}

/// Pages that one thread writes.
struct Written {
    pages: Vec<Page>,
    numbers: Vec<u64>,
    random: Numbers,
    mark: u64,
}

impl Written {
    fn new(count: usize, seed: u64) -> Self {
        let mark = mix(seed);
        let mut page: Page = [mark; PAGE_WORDS];
        stamp(&mut page, 0, mark);
        Self { pages: vec![page; count], numbers: vec![0; count], random: Numbers::new(seed), mark }
    }

    fn run(&mut self, rate: u64, tally: &Tally) {
        let per_turn = self.pages.len().div_ceil(LAP_TURNS);
        let (mut cursor, mut owed) = (0, 0);
        let mut last = Instant::now();
        loop {
            thread::sleep(TURN);
            let now = Instant::now();
            let passed = now.duration_since(last).min(BACKLOG_MAX);
            last = now;
            // In millionths of a page, so that a slow rate is kept too.
            owed += rate * u64::try_from(passed.as_micros()).unwrap_or(0);
            let count = owed / 1_000_000;
            owed %= 1_000_000;
            for _ in 0..count {
                self.write(tally);
            }
            tally.written.add(count);
            for _ in 0..per_turn {
                self.compare(cursor, tally);
                cursor += 1;
            }
            if cursor >= self.pages.len() {
                cursor = 0;
                tally.written_laps.one();
            }
        }
    }

    fn write(&mut self, tally: &Tally) {
        let at = usize::try_from(self.random.below(self.pages.len() as u64)).unwrap_or(0);
        self.compare(at, tally);
        if let (Some(page), Some(number)) = (self.pages.get_mut(at), self.numbers.get_mut(at)) {
            *number += 1;
            stamp(black_box(page), *number, self.mark);
        }
    }

    /// Compares one page, and repairs its entry so that one fault is told once.
    fn compare(&mut self, at: usize, tally: &Tally) {
        let (Some(page), Some(number)) = (self.pages.get(at), self.numbers.get_mut(at)) else {
            return;
        };
        let (Some(&first), Some(&last)) = (black_box(page).first(), page.last()) else {
            return;
        };
        if (first, last ^ self.mark) != (*number, *number) {
            tally.bad("mem", format_args!("page {at} has {first} and {}, not {number}", last ^ self.mark));
            *number = first;
            if let Some(page) = self.pages.get_mut(at) {
                stamp(page, first, self.mark);
            }
        }
    }
}

fn stamp(page: &mut Page, number: u64, mark: u64) {
    let [first, .., last] = page;
    *first = number;
    *last = number ^ mark;
}

/// Pages that never change: one pattern, and in each page another mask over it, which is quick to compare.
struct Area {
    pages: Vec<Page>,
    pattern: Box<Page>,
    seed: u64,
}

impl Area {
    fn new(count: usize, seed: u64) -> Self {
        let mut pattern = Box::new([0; PAGE_WORDS]);
        for (index, word) in (0..).zip(pattern.iter_mut()) {
            *word = mix(seed ^ index);
        }
        let pages = (0_u64..)
            .map(|index| mix(!seed ^ index))
            .map(|mask| pattern.map(|word| word ^ mask))
            .take(count)
            .collect();
        Self { pages, pattern, seed }
    }

    /// The first word of a page that is not as it must be.
    fn first_wrong(&self, index: u64, page: &Page) -> Option<usize> {
        let mask = mix(!self.seed ^ index);
        page.iter().zip(self.pattern.iter()).position(|(word, pattern)| *word != pattern ^ mask)
    }

    /// Compares the area for ever, each lap spread over its time. A page is told once.
    fn check(&self, lap_s: u64, tally: &Tally) {
        let turns = usize::try_from(lap_s * 100).unwrap_or(usize::MAX);
        let per_turn = self.pages.len().div_ceil(turns).max(1);
        let mut told = vec![false; self.pages.len()];
        loop {
            for (index, (page, told)) in (0_u64..).zip(self.pages.iter().zip(&mut told)) {
                if let Some(word) = self.first_wrong(index, black_box(page))
                    && !std::mem::replace(told, true)
                {
                    tally.bad("area", format_args!("page {index} differs at word {word}"));
                }
                if index.is_multiple_of(per_turn as u64) {
                    thread::sleep(Duration::from_millis(10));
                }
            }
            tally.area_laps.one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Area, Written};
    use crate::tally::Tally;

    #[test]
    fn a_lost_write_is_found_once() {
        let tally = Tally::default();
        let mut written = Written::new(4, 9);
        for _ in 0..100 {
            written.write(&tally);
        }
        let before = written.pages[2];
        while written.pages[2] == before {
            written.write(&tally);
        }
        assert_eq!(tally.wrong(), 0);
        written.pages[2] = before;
        written.compare(2, &tally);
        written.compare(2, &tally);
        assert_eq!(tally.wrong(), 1);
    }

    #[test]
    fn a_page_in_the_place_of_another_is_found() {
        let area = Area::new(4, 9);
        assert!((0..).zip(&area.pages).all(|(index, page)| area.first_wrong(index, page).is_none()));
        assert_eq!(area.first_wrong(2, &area.pages[3]), Some(0));
    }
}
