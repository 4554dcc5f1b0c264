//! Whether a batch is packed: by what a sample of it gave, what packing costs, and what the link carries.
//!
//! ```text
//!   Chooser::next ─▶ Plain                                  the link is not the limit, or this backs off
//!                 ─▶ Sample ── sampled ─▶ pack or plain     a few pages of the batch are tried
//!                 ─▶ Pack   ── packed                       the last one was worth it
//! ```
//!
//! Always true:
//! - packed is only where the link is the limit and not the CPU: where it takes at least [`LINK_FACTOR`] times as long
//!   for a page as it is as reading and packing it do, all three as measured. Sending a page takes CPU as well, but not
//!   that many times as much: where CPU is what lacks, the link does not look that slow;
//! - pages that do not shrink cost next to nothing: each failed trial doubles the batches that go untried, up to
//!   [`BACKOFF_MAX`], so that 1 page in 500 is tried;
//! - the same calls give the same answers: no clocks here, times come as arguments.

use std::time::Duration;

use godwit_domain::PAGE_SIZE;

/// Most batches that go untried after a failed trial: 16 MiB, so that pages that shrink again are found soon.
const BACKOFF_MAX: u32 = 16;
/// How many times as long as reading and packing it the link must take for a page.
const LINK_FACTOR: u64 = 2;
/// What may be left at most, in thousandths: less gain than that is noise.
const LEFT_MAX: u64 = 875;
/// A longer time than usual counts for an eighth: somebody else may have had the CPU meanwhile.
const LONGER_WEIGHT: u64 = 8;

/// What to do with the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Send it as it is.
    Plain,
    /// Pack a few pages of it, and ask [`Chooser::sampled`].
    Sample,
    /// Pack it, and ask [`Chooser::packed`].
    Pack,
}

/// What a trial or a packed batch has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trial {
    /// Bytes as they are.
    pub(super) plain: usize,
    /// Bytes that are left of them.
    pub(super) packed: usize,
    /// How long that took.
    pub(super) took: Duration,
}

/// Decides batch by batch.
#[derive(Debug)]
pub(super) struct Chooser {
    /// The last batch was worth packing.
    packs: bool,
    /// Batches that still go untried.
    untried: u32,
    /// Batches that will go untried after the next failed trial.
    backoff: u32,
    /// To read a page; to pack one that shrinks.
    read: Cost,
    pack: Cost,
}

impl Chooser {
    pub(super) fn new() -> Self {
        Self { packs: false, untried: 0, backoff: 1, read: Cost::default(), pack: Cost::default() }
    }

    /// So long it took to read so many bytes of memory.
    pub(super) fn read(&mut self, bytes: usize, took: Duration) {
        self.read.measured(bytes, took);
    }

    /// A batch is to be sent over a link that carries `link_rate` bytes per second; `None`: nobody knows, because it was
    /// never full.
    pub(super) fn next(&mut self, link_rate: Option<u64>) -> Step {
        let Some(rate) = link_rate else { return Step::Plain };
        if self.packs {
            return Step::Pack;
        }
        if self.untried > 0 {
            self.untried -= 1;
            return Step::Plain;
        }
        // Not even for nothing could packing help: pages come hardly faster than the link carries them.
        if is_the_limit(rate, self.read.ns) { Step::Sample } else { Step::Plain }
    }

    /// What a sample gave: whether the batch is to be packed.
    pub(super) fn sampled(&mut self, link_rate: Option<u64>, trial: Trial) -> bool {
        self.packs = self.is_worth_it(link_rate, trial);
        if self.packs {
            self.backoff = 1;
        } else {
            self.untried = self.backoff;
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
        self.packs
    }

    /// What came of a batch that was packed: whether that is what to send.
    pub(super) fn packed(&mut self, link_rate: Option<u64>, trial: Trial) -> bool {
        self.sampled(link_rate, trial);
        // The work is done: what is smaller goes.
        does_shrink(trial)
    }

    fn is_worth_it(&mut self, link_rate: Option<u64>, trial: Trial) -> bool {
        if !does_shrink(trial) {
            // And its time tells nothing: a page that does not shrink is done with in a fraction of it.
            return false;
        }
        self.pack.measured(trial.plain, trial.took);
        link_rate.is_some_and(|rate| is_the_limit(rate, self.read.ns.saturating_add(self.pack.ns)))
    }
}

/// Whether a link is what holds up pages that take so long to prepare, in nanoseconds.
fn is_the_limit(link_rate: u64, prepare_ns: u64) -> bool {
    let link_ns = (PAGE_SIZE as u64 * 1_000_000_000).checked_div(link_rate).unwrap_or(u64::MAX);
    prepare_ns.saturating_mul(LINK_FACTOR) <= link_ns
}

fn does_shrink(trial: Trial) -> bool {
    let (plain, packed) = (trial.plain as u64, trial.packed as u64);
    packed.saturating_mul(1000).checked_div(plain).is_some_and(|left| left <= LEFT_MAX)
}

/// Nanoseconds that a page takes; 0: not known. What is done on a CPU that others use too never takes too short a time,
/// and now and then far too long a one: a shorter time counts for half, a longer one for little.
#[derive(Debug, Default)]
struct Cost {
    ns: u64,
}

impl Cost {
    fn measured(&mut self, bytes: usize, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let Some(ns) = took.saturating_mul(PAGE_SIZE as u64).checked_div(bytes as u64) else { return };
        let ns = ns.max(1);
        self.ns = match self.ns {
            0 => ns,
            usual if ns <= usual => u64::midpoint(usual, ns),
            usual => usual.saturating_add(((ns - usual) / LONGER_WEIGHT).min(usual)),
        };
    }
}

#[cfg(test)]
mod tests;
