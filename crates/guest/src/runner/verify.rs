//! Compares every page of a guest with what its step counters say it must hold.
//!
//! Always true: nothing in a page, or beside it, has a say in what it should be. Pages are read through the
//! mapping, as the guest would: in post-copy a missing page is fetched. Reading a hole fills it with a page of
//! zeros, so a verified guest takes its full size in memory.

use std::time::Instant;

use godwit_memory::Ram;
use godwit_memory::ram::PAGE_WORDS;
use godwit_wire::handoff::Verified;

use super::content::Words;
use super::program::Program;
use super::sweep::sweep;

/// Wrong pages that are named. A person wants to see where it begins, not all of it.
const NAMED_MAX: usize = 8;

/// What a thread has found.
#[derive(Default)]
struct Found {
    wrong: u64,
    /// The first of them, ascending.
    first: Vec<u64>,
}

/// Compares all pages. The guest must stand still. `None`: called off.
pub(super) fn verify(program: &Program, ram: &Ram, go_on: impl Fn() -> bool + Sync) -> Option<Verified> {
    let begun = Instant::now();
    let steps = program.steps();
    let buffers = || (Found::default(), [0; PAGE_WORDS], [0; PAGE_WORDS]);
    let found = sweep(ram.pages(), &go_on, buffers, |(found, expected, held), page| {
        program.expected(&steps, page, expected);
        ram.read_page(page, held);
        if held != expected {
            found.wrong += 1;
            if found.first.len() < NAMED_MAX {
                found.first.push(u64::from(page.0));
            }
        }
    });
    // Asked again: a sweep that was called off has left pages out.
    if !go_on() {
        return None;
    }
    Some(sum_up(u64::from(ram.pages().0), found, begun))
}

fn sum_up(pages: u64, found: Vec<(Found, Words, Words)>, begun: Instant) -> Verified {
    // Each thread has the least of its own, so the least of all are among them.
    let mut first_wrong: Vec<u64> = found.iter().flat_map(|(found, ..)| found.first.clone()).collect();
    first_wrong.sort_unstable();
    first_wrong.truncate(NAMED_MAX);
    Verified {
        pages,
        wrong: found.iter().map(|(found, ..)| found.wrong).sum(),
        first_wrong,
        took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}
