//! The chooser alone, and in a model of the way from memory to the link.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
/// 61 µs a page.
const SLOW: Option<u64> = Some(64 * MIB);
/// 2 µs a page.
const FAST: Option<u64> = Some(2_048_000_000);
const READ: Duration = Duration::from_micros(256);
const PACK: Duration = Duration::from_micros(1024);
const BATCH: usize = 1 << 20;

/// A MiB packed at 4 µs a page.
fn trial(left_percent: usize) -> Trial {
    Trial { plain: BATCH, packed: BATCH / 100 * left_percent, took: PACK }
}

/// Reads at 1 µs a page and goes on for so many batches that all shrink to `left_percent`.
fn steps(chooser: &mut Chooser, link: Option<u64>, left_percent: usize, batches: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..batches {
        chooser.read(BATCH, READ);
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
fn pages_that_shrink_are_packed_where_the_link_is_the_limit_and_nowhere_else() {
    for (link, left, packed) in [
        (SLOW, 30, 99),
        (SLOW, 87, 99),
        (SLOW, 88, 0),
        (SLOW, 100, 0),
        (FAST, 30, 0),
        (None, 30, 0),
        // A page is read and packed in 5 µs; the link takes 10 µs, and a little less.
        (Some(409_600_000), 30, 99),
        (Some(409_700_000), 30, 0),
        (Some(0), 30, 99),
    ] {
        let steps = steps(&mut Chooser::new(), link, left, 100);
        assert_eq!(count(&steps, Step::Pack), packed, "{link:?}, {left} % left: {steps:?}");
    }
}

#[test]
fn nothing_is_even_tried_where_the_link_is_not_the_limit() {
    for link in [None, Some(4_000_000_000)] {
        assert_eq!(count(&steps(&mut Chooser::new(), link, 30, 1000), Step::Plain), 1000, "{link:?}");
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
fn a_moment_without_a_cpu_is_soon_forgotten() {
    let mut chooser = Chooser::new();
    let stalled = Trial { took: PACK * 100, ..trial(30) };
    chooser.read(BATCH, READ * 100);
    assert!(!chooser.sampled(SLOW, stalled), "it looked slow");
    let after = steps(&mut chooser, SLOW, 30, 100);
    assert!(count(&after, Step::Pack) > 60, "{after:?}");
    chooser.read(BATCH, READ * 100);
    assert!(chooser.packed(SLOW, stalled));
    assert_eq!(chooser.next(SLOW), Step::Pack, "one such moment changes nothing while it packs");
}

/// The way from memory to the link: a reader that packs, one batch that waits, a sender, a window that drains at the
/// link's rate.
struct Way {
    link_rate: u64,
    read_ns: u64,
    pack_ns: u64,
    window_bytes: u64,
}

impl Way {
    /// Nanoseconds until all batches are out, and those of them that the reader was busy with trials and packing.
    /// `choose` says whether a batch is packed, and how long that took.
    fn run(
        &self,
        left_percent: &[u64],
        mut choose: impl FnMut(Option<u64>, u64) -> (bool, u64),
    ) -> (u64, u64) {
        let batch = BATCH as u64;
        let on_link = |bytes: u64| bytes * 1_000_000_000 / self.link_rate;
        let mut meter = super::super::link::LinkMeter::default();
        let (mut rate, mut read_at, mut sent_at, mut out_at, mut busy) = (None, 0, 0_u64, 0_u64, 0);
        let mut taken_at = 0;
        for left in left_percent {
            let (packed, took) = choose(rate, *left);
            busy += took;
            read_at += self.read_ns * 256 + took;
            let bytes = if packed { batch * left / 100 } else { batch };
            let starved = read_at > sent_at;
            let begun_at = read_at.max(sent_at);
            out_at = out_at.max(begun_at) + on_link(bytes);
            sent_at = begun_at.max(out_at.saturating_sub(on_link(self.window_bytes)));
            rate = meter.sent(bytes, Duration::from_nanos(sent_at - begun_at), starved, None);
            // The reader goes on when the batch before this one was taken.
            read_at = read_at.max(taken_at);
            taken_at = begun_at;
        }
        (out_at, busy)
    }

    fn chosen(&self, left_percent: &[u64]) -> (u64, u64) {
        let mut chooser = Chooser::new();
        self.run(left_percent, |rate, left| {
            chooser.read(BATCH, Duration::from_nanos(self.read_ns * 256));
            let cost = if left > 90 { self.pack_ns / 8 } else { self.pack_ns };
            let trial = |pages: usize| Trial {
                plain: pages * PAGE_SIZE,
                packed: pages * PAGE_SIZE / 100 * usize::try_from(left).unwrap_or(100),
                took: Duration::from_nanos(cost * pages as u64),
            };
            let (pack, tried) = match chooser.next(rate) {
                Step::Plain => (false, 0),
                Step::Pack => (true, 0),
                Step::Sample => (chooser.sampled(rate, trial(8)), 8 * cost),
            };
            if !pack {
                return (false, tried);
            }
            (chooser.packed(rate, trial(256)), tried + 256 * cost)
        })
    }
}

proptest! {
    #[test]
    fn it_is_never_much_slower_than_sending_all_as_it_is_and_faster_on_a_slow_link(
        rate_mib in 8_u64..4000, read_ns in 200_u64..2000, pack_ns in 500_u64..8000, left in 10_u64..60,
    ) {
        let way = Way { link_rate: rate_mib * MIB, read_ns, pack_ns, window_bytes: 8 * MIB };
        let batches = [left; 1000];
        let (chosen, _) = way.chosen(&batches);
        let (plain, _) = way.run(&batches, |_, _| (false, 0));
        let (packed, _) = way.run(&batches, |_, _| (true, 256 * pack_ns));
        prop_assert!(chosen <= plain + plain / 20, "{chosen} for {plain}");
        let link_ns = 4096 * 1_000_000_000 / (rate_mib * MIB);
        if link_ns > 3 * (read_ns + pack_ns) {
            prop_assert!(chosen <= packed + plain / 10, "{chosen} for {packed}, as it is {plain}");
        }
    }

    #[test]
    fn pages_that_do_not_shrink_cost_the_reader_almost_nothing(
        rate_mib in 8_u64..4000, read_ns in 200_u64..2000, pack_ns in 500_u64..8000,
    ) {
        let way = Way { link_rate: rate_mib * MIB, read_ns, pack_ns, window_bytes: 8 * MIB };
        let (_, busy) = way.chosen(&[100; 1000]);
        // All of them packed in vain would be 256,000 pages.
        prop_assert!(busy <= 600 * (pack_ns / 8), "{} pages' worth", busy / (pack_ns / 8));
    }
}
