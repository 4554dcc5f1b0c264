//! Whether a batch is packed (LZ4) before it is sent: by what a sample of it gave, what packing costs, and what the
//! link carries. And the packing itself, bounded both ways.
//!
//! ```text
//!   sender  ── bytes, time, did it have to wait for a batch? ──▶ LinkMeter ─▶ bytes per second of the link
//!   reader  ── Chooser::next ─▶ Plain                                  the link is fast, or this backs off
//!                            ─▶ Sample ── sampled ─▶ Pack or Plain     a few pages of the batch are tried
//!                            ─▶ Pack   ── packed                       the last one was worth it
//! ```
//!
//! Always true:
//! - packing is never the bottleneck for long: it is done only where preparing a page so takes no longer than the link
//!   takes to carry it as it is, both as measured;
//! - pages that do not shrink cost next to nothing: each failed trial doubles the batches that go untried, up to
//!   [`BACKOFF_MAX`], and a trial is [`SAMPLE_PAGES`] of 256 pages;
//! - what was packed gives back exactly as many bytes as were told beforehand, or nothing.
//!
//! Never here: clocks; times come as arguments.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use godwit_domain::PAGE_SIZE;

/// Pages of a trial, spread over the batch.
pub(crate) const SAMPLE_PAGES: usize = 8;
/// Most batches that go untried after a failed trial: 16 MiB.
const BACKOFF_MAX: u32 = 16;
/// Where the link takes this many times as long for a page as preparing it packed, any gain shortens the migration.
const IDLE_CPU_FACTOR: u64 = 4;
/// What must be left at most, in thousandths, where CPU is idle: less gain than that is noise.
const LEFT_MAX_IDLE: u64 = 875;
/// The same where CPU is not idle. Encrypting and moving a byte costs about 2.5 times what packing and unpacking it
/// does, so that packing to less than this saves CPU too.
const LEFT_MAX_BUSY: u64 = 600;
/// A new measurement counts for an eighth.
const WEIGHT: u64 = 8;
/// Thousandths by which the link's rate is taken to rise with each batch that it had to wait for: how a link that
/// has become faster is found out.
const DRIFT_PER_MILLE: u64 = 10;

/// Fewer bytes say nothing of a link: a batch of zero pages is a head alone.
const MEASURED_BYTES_MIN: u64 = 64 << 10;

/// What to do with the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send it as it is.
    Plain,
    /// Pack a few pages of it, and ask [`Chooser::sampled`].
    Sample,
    /// Pack it.
    Pack,
}

/// What a trial or a packed batch has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trial {
    /// Bytes as they are.
    pub(crate) plain: usize,
    /// Bytes that are left of them.
    pub(crate) packed: usize,
    /// How long that took.
    pub(crate) took: Duration,
}

/// Decides batch by batch. Pure: the same calls give the same answers.
#[derive(Debug)]
pub(crate) struct Chooser {
    /// The last batch was worth packing.
    packs: bool,
    /// Batches that still go untried.
    untried: u32,
    /// Batches that will go untried after the next failed trial.
    backoff: u32,
    /// Nanoseconds to read a page; to pack one. 0: not known.
    read_ns: u64,
    pack_ns: u64,
}

impl Chooser {
    pub(crate) fn new() -> Self {
        Self { packs: false, untried: 0, backoff: 1, read_ns: 0, pack_ns: 0 }
    }

    /// So long it took to read so many bytes of memory.
    pub(crate) fn read(&mut self, bytes: usize, took: Duration) {
        blend(&mut self.read_ns, bytes, took);
    }

    /// A batch is to be sent over a link that carries `link_rate` bytes per second; `None`: nobody knows yet.
    pub(crate) fn next(&mut self, link_rate: Option<u64>) -> Step {
        let Some(rate) = link_rate else { return Step::Plain };
        if self.packs {
            return Step::Pack;
        }
        if self.untried > 0 {
            self.untried -= 1;
            return Step::Plain;
        }
        // Not even for nothing could packing help: the pages do not come faster than the link carries them.
        if self.read_ns >= page_ns(rate) { Step::Plain } else { Step::Sample }
    }

    /// What a sample gave: whether the batch is to be packed.
    pub(crate) fn sampled(&mut self, link_rate: Option<u64>, trial: Trial) -> bool {
        // What packing costs depends on the page: one that does not shrink is done with in a fraction of the time.
        blend(&mut self.pack_ns, trial.plain, trial.took);
        self.judge(link_rate, trial)
    }

    /// What came of a batch that was packed: whether that is what to send.
    pub(crate) fn packed(&mut self, link_rate: Option<u64>, trial: Trial) -> bool {
        blend(&mut self.pack_ns, trial.plain, trial.took);
        self.judge(link_rate, trial);
        // The work is done: what is smaller goes.
        left_per_mille(trial) <= LEFT_MAX_IDLE
    }

    fn judge(&mut self, link_rate: Option<u64>, trial: Trial) -> bool {
        self.packs = link_rate.is_some_and(|rate| self.is_worth_it(page_ns(rate), trial));
        if self.packs {
            self.backoff = 1;
        } else {
            self.untried = self.backoff;
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
        self.packs
    }

    fn is_worth_it(&self, link_ns: u64, trial: Trial) -> bool {
        let prepare_ns = self.read_ns.saturating_add(self.pack_ns);
        let idle = link_ns >= prepare_ns.saturating_mul(IDLE_CPU_FACTOR);
        let left_max = if idle { LEFT_MAX_IDLE } else { LEFT_MAX_BUSY };
        prepare_ns < link_ns && left_per_mille(trial) <= left_max
    }
}

fn left_per_mille(trial: Trial) -> u64 {
    let (plain, packed) = (trial.plain as u64, trial.packed as u64);
    packed.saturating_mul(1000).checked_div(plain).unwrap_or(1000)
}

/// Nanoseconds that a page takes at so many bytes per second.
fn page_ns(rate: u64) -> u64 {
    (PAGE_SIZE as u64 * 1_000_000_000).checked_div(rate).unwrap_or(u64::MAX)
}

/// Takes a measurement into a mean of nanoseconds per page.
fn blend(mean_ns: &mut u64, bytes: usize, took: Duration) {
    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    let Some(ns) = took.saturating_mul(PAGE_SIZE as u64).checked_div(bytes as u64) else { return };
    let ns = ns.max(1);
    *mean_ns = if *mean_ns == 0 {
        ns
    } else {
        (*mean_ns / WEIGHT * (WEIGHT - 1)).saturating_add(ns / WEIGHT).max(1)
    };
}

/// How fast the link is, as the sender sees it. Under a rate limit that is the limit.
#[derive(Debug, Default)]
pub(crate) struct LinkMeter {
    bytes: u64,
    ns: u64,
    rate: Option<u64>,
}

impl LinkMeter {
    /// So many bytes were handed to the link, which took so long. If the sender had to wait for them (`starved`), the
    /// link was not full: it can do what it could when it last was, and perhaps more. Under `limit` it can not do more
    /// than that.
    pub(crate) fn sent(
        &mut self,
        bytes: u64,
        took: Duration,
        starved: bool,
        limit: Option<u64>,
    ) -> Option<u64> {
        if bytes < MEASURED_BYTES_MIN {
            // Most of what that took was not the link.
        } else if starved {
            self.rate = self.rate.map(|rate| rate.saturating_add(rate / 1000 * DRIFT_PER_MILLE));
        } else {
            let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.bytes = (self.bytes / WEIGHT * (WEIGHT - 1)).saturating_add(bytes);
            self.ns = (self.ns / WEIGHT * (WEIGHT - 1)).saturating_add(ns);
            let per_second = u128::from(self.bytes) * 1_000_000_000 / u128::from(self.ns.max(1));
            self.rate = Some(u64::try_from(per_second).unwrap_or(u64::MAX));
        }
        if let Some(limit) = limit {
            self.rate = Some(self.rate.map_or(limit, |rate| rate.min(limit)));
        }
        self.rate
    }
}

/// The link's rate as the sender tells it to the reader.
#[derive(Debug, Default)]
pub(crate) struct LinkRate(AtomicU64);

impl LinkRate {
    /// Bytes per second; `None` before the first batch.
    pub(crate) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    pub(crate) fn set(&self, rate: Option<u64>) {
        self.0.store(rate.unwrap_or(0), Ordering::Relaxed);
    }
}

/// Packs bytes into one block at the beginning of `room`, which grows as needed and is used again; `None` if the
/// block would not be shorter than what is in it.
pub(crate) fn pack<'a>(plain: &[u8], room: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    let most = lz4_flex::block::get_maximum_output_size(plain.len());
    if room.len() < most {
        room.resize(most, 0);
    }
    let length = lz4_flex::block::compress_into(plain, room).ok()?;
    room.get(..length).filter(|block| block.len() < plain.len())
}

/// A block's contents, which must be exactly `bytes` long; `None` if they are not, or it is no block. Takes no
/// more memory than that, whatever the block says.
pub(crate) fn unpack(block: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let mut plain = vec![0; bytes];
    let length = lz4_flex::block::decompress_into(block, &mut plain).ok()?;
    (length == bytes).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn packed(plain: &[u8]) -> Option<Vec<u8>> {
        pack(plain, &mut Vec::new()).map(<[u8]>::to_vec)
    }

    const SLOW: Option<u64> = Some(64 * MIB);
    /// 4 KiB in 2 µs.
    const FAST: Option<u64> = Some(2_048_000_000);

    /// A MiB packed at 4 µs a page.
    fn trial(left_percent: usize) -> Trial {
        Trial { plain: 1 << 20, packed: (1 << 20) / 100 * left_percent, took: Duration::from_micros(1024) }
    }

    /// Reads at 1 µs a page and goes on for so many batches that all shrink to `left_percent`.
    fn steps(chooser: &mut Chooser, link: Option<u64>, left_percent: usize, batches: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        for _ in 0..batches {
            chooser.read(1 << 20, Duration::from_micros(256));
            let step = chooser.next(link);
            let pack = match step {
                Step::Plain => false,
                Step::Sample => chooser.sampled(link, trial(left_percent)),
                Step::Pack => true,
            };
            if pack {
                chooser.packed(link, trial(left_percent));
            }
            steps.push(step);
        }
        steps
    }

    fn count(steps: &[Step], wanted: Step) -> usize {
        steps.iter().filter(|step| **step == wanted).count()
    }

    #[test]
    fn pages_that_shrink_are_packed_where_the_link_is_slow_and_nowhere_else() {
        for (link, left, packed) in [
            (SLOW, 30, 99),
            (SLOW, 80, 99),
            (SLOW, 95, 0),
            (FAST, 30, 0),
            (None, 30, 0),
            // 8 µs a page: packing keeps up with it, and CPU is not idle.
            (Some(512_000_000), 30, 99),
            (Some(512_000_000), 80, 0),
        ] {
            let steps = steps(&mut Chooser::new(), link, left, 100);
            assert_eq!(count(&steps, Step::Pack), packed, "{link:?}, {left} % left: {steps:?}");
        }
    }

    #[test]
    fn what_does_not_shrink_is_hardly_tried_and_comes_back_when_it_does() {
        let mut chooser = Chooser::new();
        let random = steps(&mut chooser, SLOW, 100, 1000);
        let tried = count(&random, Step::Sample);
        assert!((55..=70).contains(&tried), "{tried} trials in 1000 batches");
        assert_eq!(count(&random, Step::Pack), 0);
        let text = steps(&mut chooser, SLOW, 30, 100);
        assert!(count(&text, Step::Pack) >= 100 - BACKOFF_MAX as usize - 1, "{text:?}");
        assert_eq!(steps(&mut chooser, SLOW, 100, 3), [Step::Pack, Step::Plain, Step::Sample]);
    }

    #[test]
    fn packing_stops_when_it_holds_the_link_up_and_goes_on_when_it_does_not() {
        let mut chooser = Chooser::new();
        assert_eq!(count(&steps(&mut chooser, SLOW, 30, 10), Step::Pack), 9);
        assert_eq!(count(&steps(&mut chooser, FAST, 30, 100), Step::Pack), 1);
        assert!(count(&steps(&mut chooser, SLOW, 30, 100), Step::Pack) > 80);
    }

    #[test]
    fn the_link_is_measured_only_while_it_is_full() {
        let ms = Duration::from_millis;
        let mut meter = LinkMeter::default();
        assert_eq!(meter.sent(MIB, ms(1), true, None), None, "nothing is known of a link that waits");
        assert_eq!(meter.sent(MIB, ms(10), false, None), Some(100 * MIB));
        let after = meter.sent(MIB, Duration::from_nanos(1), true, None).expect("known");
        assert!(after > 100 * MIB && after < 102 * MIB, "{after}");
        assert_eq!(meter.sent(MIB, ms(10), true, Some(64 * MIB)), Some(64 * MIB));
        assert_eq!(LinkMeter::default().sent(0, ms(0), true, Some(5)), Some(5));
        for _ in 0..100 {
            meter.sent(MIB, ms(2), false, None);
        }
        for _ in 0..100 {
            meter.sent(100, ms(1), false, None);
        }
        let faster = meter.sent(MIB, ms(2), false, None).expect("known");
        assert!(faster.abs_diff(500 * MIB) < MIB, "{faster}");
    }

    #[test]
    fn a_block_of_another_length_is_none() {
        let plain = [7; 3 * PAGE_SIZE];
        let block = packed(&plain).expect("it shrinks");
        assert_eq!(unpack(&block, plain.len()).as_deref(), Some(plain.as_slice()));
        for bytes in [0, PAGE_SIZE, plain.len() - 1, plain.len() + 1, 4 * PAGE_SIZE] {
            assert_eq!(unpack(&block, bytes), None, "{bytes}");
        }
        assert_eq!(unpack(&block[..block.len() - 1], plain.len()), None);
    }

    proptest! {
        #[test]
        fn hostile_blocks_give_what_was_told_or_nothing(
            block in prop::collection::vec(any::<u8>(), 0..600), bytes in 0..64_usize * PAGE_SIZE,
        ) {
            if let Some(plain) = unpack(&block, bytes) {
                prop_assert_eq!(plain.len(), bytes);
                prop_assert!(plain.capacity() <= bytes.max(1));
            }
        }

        #[test]
        fn a_changed_block_does_no_harm(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let plain: Vec<u8> = (0..2 * PAGE_SIZE).map(|i| u8::try_from(i / 64 % 200).unwrap_or(0)).collect();
            let mut block = packed(&plain).expect("it shrinks");
            *at.get_mut(&mut block) = to;
            if let Some(unpacked) = unpack(&block, plain.len()) {
                prop_assert_eq!(unpacked.len(), plain.len());
            }
        }

        #[test]
        fn what_is_packed_is_shorter_and_comes_back(
            words in prop::collection::vec(0..4_u8, 0..5000), noise in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let plain = [words, noise].concat();
            if let Some(block) = packed(&plain) {
                prop_assert!(block.len() < plain.len());
                prop_assert_eq!(unpack(&block, plain.len()), Some(plain));
            }
        }
    }
}
