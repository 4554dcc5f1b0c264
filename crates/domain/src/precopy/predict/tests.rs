//! Simulated guests on a simulated link: what is said after round one against what then happens.
//!
//! ```text
//!   pages, one by one ─ written at random or in laps, steadily or in phases ─ scanned and sent as the source does it
//! ```
//!
//! The error that is stated: a rate between the needed one divided by [`NEAR_BELOW`] and
//! times [`NEAR_ABOVE`] may turn out either way; a time is right to
//! within [`TIME_FACTOR`] and [`TIME_MS`], and a downtime is at most
//! [`DOWNTIME_FACTOR`] as long, and [`DOWNTIME_MS`]: one more round that halves the rest may make it shorter. Whether it
//! halves it may be a matter of a few percent: of what is said at this rate and at one lower by [`EDGE`], the longer counts.

#![expect(clippy::cast_possible_truncation, reason = "memories and times here are small")]

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::precopy::{Standing, Verdict, judge_round};
use crate::units::PAGE_BYTES;

const NEAR_ABOVE: f64 = 1.6;
const NEAR_BELOW: f64 = 4.0;
const TIME_FACTOR: f64 = 2.0;
const TIME_MS: u64 = 400;
const DOWNTIME_FACTOR: f64 = 3.0;
const DOWNTIME_MS: u64 = 40;
const EDGE: f64 = 1.25;

const MIB: u64 = 1 << 20;
const MIB_PAGES: u64 = MIB / PAGE_BYTES;
const TICK: Duration = Duration::from_millis(1);
/// A copy that has not ended after this time, and ten times its first round, does not.
const PATIENCE: Duration = Duration::from_secs(20);
const FIXED: Duration = Duration::from_millis(6);

/// How a guest writes.
#[derive(Debug, Clone, Copy)]
struct Writes {
    set_pages: u64,
    mib_per_second: u64,
    /// Page after page, lap after lap; else at random.
    in_laps: bool,
    /// After so many milliseconds it writes only so many hundredths, for as many.
    phases: Option<(u64, u64)>,
}

#[derive(Debug)]
struct World {
    writes: Writes,
    random: fastrand::Rng,
    limits: Limits,
    now: Duration,
    queue: Vec<bool>,
    queued: u64,
    cursor: usize,
    next: Vec<bool>,
    dirty: Vec<bool>,
    owed_writes: f64,
    step: u64,
    owed_pages: f64,
    rate: u64,
    round: Round,
    began: Duration,
    last_scan: Duration,
    window_from: Duration,
    left_before: u64,
    predictor: Predictor,
}

/// How it ended.
#[derive(Debug, Clone, Copy)]
struct End {
    at: Duration,
    downtime: Duration,
}

fn count(pages: &[bool]) -> u64 {
    pages.iter().filter(|is| **is).count() as u64
}

impl World {
    fn new(seed: u64, pages: u64, rate: u64, writes: Writes, limits: Limits) -> Self {
        let none = vec![false; usize::try_from(pages).expect("small")];
        Self {
            writes,
            random: fastrand::Rng::with_seed(seed),
            limits,
            now: Duration::ZERO,
            queue: vec![true; none.len()],
            queued: pages,
            cursor: 0,
            next: none.clone(),
            dirty: none,
            owed_writes: 0.0,
            step: 0,
            owed_pages: 0.0,
            rate,
            round: Round::FIRST,
            began: Duration::ZERO,
            last_scan: Duration::ZERO,
            window_from: Duration::ZERO,
            left_before: pages * PAGE_BYTES,
            predictor: Predictor::new(Duration::ZERO, pages * PAGE_BYTES),
        }
    }

    fn guest_writes(&mut self) {
        let Writes { set_pages, mib_per_second, in_laps, phases } = self.writes;
        let share = phases.map_or(1.0, |(period_ms, hundredths)| {
            let is_quiet = self.now.as_millis() as u64 / period_ms % 2 == 1;
            if is_quiet { hundredths as f64 / 100.0 } else { 1.0 }
        });
        self.owed_writes += (mib_per_second * MIB_PAGES) as f64 * share * TICK.as_secs_f64();
        while self.owed_writes >= 1.0 {
            self.owed_writes -= 1.0;
            self.step += 1;
            let page = if in_laps { self.step % set_pages } else { self.random.u64(0..set_pages) };
            self.dirty[page as usize] = true;
        }
    }

    fn link_sends(&mut self) {
        self.owed_pages += self.rate as f64 / PAGE_BYTES as f64 * TICK.as_secs_f64();
        while self.owed_pages >= 1.0 && self.queued > 0 {
            if std::mem::take(&mut self.queue[self.cursor]) {
                self.queued -= 1;
                self.owed_pages -= 1.0;
            }
            self.cursor += 1;
        }
        self.owed_pages = self.owed_pages.min(1.0);
    }

    fn scan(&mut self) {
        let (written, unique_before) = (count(&self.dirty), count(&self.next));
        for page in 0..self.dirty.len() {
            if std::mem::take(&mut self.dirty[page]) {
                self.queued -= u64::from(std::mem::take(&mut self.queue[page]));
                self.next[page] = true;
            }
        }
        let scan = Scan {
            since_last: self.now - self.last_scan,
            written,
            since_round_began: self.now - self.window_from,
            unique_before,
            unique: count(&self.next),
            send_rate: self.rate,
        };
        self.last_scan = self.now;
        self.predictor.scanned(self.now, &scan);
    }

    fn prediction(&self) -> Prediction {
        self.prediction_at(self.rate)
    }

    fn prediction_at(&self, rate: u64) -> Prediction {
        let now = Now {
            round: self.round,
            round_age: self.now - self.began,
            queued_bytes: self.queued * PAGE_BYTES,
            dirty_bytes: count(&self.next) * PAGE_BYTES,
            left_before_bytes: self.left_before,
            guest_bytes: self.queue.len() as u64 * PAGE_BYTES,
            send_rate: rate,
            fixed: FIXED,
        };
        self.predictor.predict(&now, &self.limits).expect("something was seen")
    }

    /// Until the next round has ended: the end of the copy, if it is that.
    fn round(&mut self) -> Option<End> {
        loop {
            let is_over = self.queued == 0;
            let interval = Duration::from_millis(200).max((self.last_scan.saturating_sub(self.began)) / 4);
            if is_over && self.now >= self.began + Duration::from_millis(10) {
                self.scan();
                self.predictor.round_ended();
                return self.judged();
            }
            if !is_over && self.now >= self.last_scan + interval {
                self.scan();
            }
            self.guest_writes();
            self.link_sends();
            self.now += TICK;
        }
    }

    fn judged(&mut self) -> Option<End> {
        let standing = Standing {
            round: self.round,
            left_bytes: count(&self.next) * PAGE_BYTES,
            left_before_bytes: self.left_before,
            send_rate: self.rate,
            fixed: FIXED,
        };
        let ends = judge_round(&self.limits, &standing) == Verdict::SwitchOver;
        let end = End { at: self.now, downtime: standing.predicted_downtime() };
        ends.then_some(end)
    }

    fn next_round(&mut self) {
        self.left_before = count(&self.next) * PAGE_BYTES;
        self.queued = count(&self.next);
        let none = vec![false; self.next.len()];
        self.queue = std::mem::replace(&mut self.next, none);
        (self.cursor, self.began, self.window_from) = (0, self.now, self.last_scan);
        self.round = self.round.next().expect("there is one");
    }

    /// To the end, if it comes; round one is over.
    fn rest(&mut self) -> Option<End> {
        let until = self.now * 11 + PATIENCE;
        while self.now < until {
            self.next_round();
            if let Some(end) = self.round() {
                return Some(end);
            }
        }
        None
    }
}

fn limits(downtime_ms: u64) -> Limits {
    Limits { downtime_max: Duration::from_millis(downtime_ms), ..Limits::defaults_for(1 << 30) }
}

fn a_guest(steady: bool) -> impl Strategy<Value = (u64, u64, u64, Writes, u64)> {
    let phases = if steady { Just(None).boxed() } else { (500_u64..4000, 0_u64..60).prop_map(Some).boxed() };
    let writes = (1_u64..=100, 1_u64..200, any::<bool>(), phases);
    (any::<u64>(), 8_u64..64, 4_u64..128, writes, 60_u64..1000).prop_map(
        |(seed, mib, rate, (percent, mib_per_second, in_laps, phases), downtime)| {
            let pages = mib * MIB_PAGES;
            let set_pages = (pages * percent / 100).max(1);
            (seed, pages, rate * MIB, Writes { set_pages, mib_per_second, in_laps, phases }, downtime)
        },
    )
}

fn within(said: u64, real: u64, factor: f64, more: u64) -> bool {
    let far = |a: u64, b: u64| a as f64 > b as f64 * factor + more as f64;
    !far(said, real) && !far(real, said)
}

/// What is stated here is an error that was measured, no law: a change is judged by the same guests each time. Others:
/// `PROPTEST_RNG_SEED=N`, and more of them: `PROPTEST_CASES=N`.
fn the_same_in_every_run() -> ProptestConfig {
    let config = ProptestConfig::default();
    let rng_seed = match config.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        given => given,
    };
    ProptestConfig { rng_seed, ..config }
}

proptest! {
    #![proptest_config(the_same_in_every_run())]

    #[test]
    fn what_is_said_after_round_one_of_a_steady_guest_comes_true(
        (seed, pages, rate, writes, downtime) in a_guest(true)
    ) {
        let mut world = World::new(seed, pages, rate, writes, limits(downtime));
        let first = world.round();
        let said = world.prediction();
        let said_lower = world.prediction_at((rate as f64 / EDGE) as u64);
        let impossible = world.predictor.impossible(&world.limits, FIXED);
        let asked_at = world.now;
        let is_short = asked_at < Duration::from_millis(400);
        let real = first.or_else(|| world.rest());
        prop_assert!(!impossible || real.is_none(), "impossible, and it came: {real:?}, {said:?}");
        let needed = said.needed_bandwidth as f64 * 16.0 / 17.0;
        let near = needed / rate as f64;
        let is_near = near > 1.0 / NEAR_ABOVE && near < NEAR_BELOW;
        if is_near || said.confidence == Confidence::Early {
            prop_assert!(is_near || downtime < 250 || is_short, "nothing to be early about: {said:?}");
            return Ok(());
        }
        match (said.fits, real) {
            (Fits::No, None) => prop_assert!(near >= 1.0, "no, at a rate that is enough: {said:?}"),
            (Fits::Yes { in_ms, .. }, Some(end)) => {
                prop_assert!(near <= 1.0, "yes, at a rate that is too low: {said:?}");
                let took = millis(end.at - asked_at);
                prop_assert!(within(in_ms, took, TIME_FACTOR, TIME_MS), "{in_ms} ms, took {took}: {said:?}");
                let stands = millis(end.downtime);
                let at_the_edge = said_lower.downtime_ms.min(downtime);
                let longest = said.downtime_ms.max(at_the_edge) as f64 * DOWNTIME_FACTOR + DOWNTIME_MS as f64;
                prop_assert!(said.downtime_ms <= downtime && stands as f64 <= longest, "{said:?}, and {end:?}");
            }
            _ => prop_assert!(false, "{said:?}, and {real:?}"),
        }
    }

    #[test]
    fn at_the_needed_bandwidth_and_a_little_more_it_fits_and_well_below_it_does_not(
        (seed, pages, rate, writes, downtime) in a_guest(true)
    ) {
        let mut world = World::new(seed, pages, rate, writes, limits(downtime));
        world.round();
        let said = world.prediction();
        let watched = world.now;
        prop_assume!(said.confidence != Confidence::Early);
        let needed = said.needed_bandwidth as f64 * 16.0 / 17.0;
        for (factor, fits) in [(NEAR_ABOVE, true), (1.0 / NEAR_BELOW, false)] {
            let rate = ((needed * factor) as u64).max(PAGE_BYTES * 100);
            let mut other = World::new(seed, pages, rate, writes, limits(downtime));
            let real = other.round().or_else(|| other.rest());
            // A guest that writes next to nothing is copied at any rate that carries anything; and what was watched for
            // less than a pause may take says little of that.
            if fits || (needed > MIB as f64 && watched >= limits(downtime).downtime_max) {
                prop_assert_eq!(real.is_some(), fits, "{} of {}: {:?}", rate, needed, real);
            }
        }
    }

    #[test]
    fn a_guest_with_phases_is_not_called_convergent_for_its_quiet_ones(
        (seed, pages, rate, writes, downtime) in a_guest(false)
    ) {
        let mut world = World::new(seed, pages, rate, writes, limits(downtime));
        let first = world.round();
        let said = world.prediction();
        let seen_whole = writes.phases.is_some_and(|(period_ms, _)| world.now.as_millis() as u64 > 2 * period_ms);
        let real = first.or_else(|| world.rest());
        if let (Fits::Yes { .. }, true) = (said.fits, seen_whole) {
            prop_assert!(real.is_some(), "yes, and it never came: {said:?}");
        }
    }
}

/// Scans 200 ms apart that find so many MiB each, all new in their round or all the same.
fn fed(predictor: &mut Predictor, from_ms: u64, mibs: &[u64], rate: u64) -> u64 {
    let mut now_ms = from_ms;
    for mib in mibs {
        now_ms += 200;
        let scan = Scan {
            since_last: Duration::from_millis(200),
            written: mib * MIB_PAGES,
            since_round_began: Duration::from_millis(200),
            unique_before: 0,
            unique: mib * MIB_PAGES,
            send_rate: rate,
        };
        predictor.scanned(Duration::from_millis(now_ms), &scan);
        predictor.round_ended();
    }
    now_ms
}

fn a_round_of(mib: u64, rate: u64) -> Now {
    Now {
        round: Round(3),
        round_age: Duration::from_millis(200),
        queued_bytes: 0,
        dirty_bytes: mib * MIB,
        left_before_bytes: mib * MIB,
        guest_bytes: 1 << 30,
        send_rate: rate,
        fixed: FIXED,
    }
}

#[test]
fn one_quiet_scan_is_no_convergence() {
    let rate = 50 * MIB;
    let mut predictor = Predictor::new(Duration::ZERO, 1 << 30);
    let limits = limits(300);
    let now_ms = fed(&mut predictor, 0, &[30, 30, 30], rate);
    assert!(predictor.impossible(&limits, FIXED), "150 MiB/s, and 50 are sent");
    let said = predictor.predict(&a_round_of(30, rate), &limits).expect("seen");
    assert_eq!((said.fits, said.confidence), (Fits::No, Confidence::Firm));
    let needed = said.needed_bandwidth;
    assert!((150 * MIB..170 * MIB).contains(&needed), "{}", needed / MIB);
    let now_ms = fed(&mut predictor, now_ms, &[1], rate);
    let said = predictor.predict(&a_round_of(30, rate), &limits).expect("seen");
    assert_eq!((said.fits, said.confidence), (Fits::No, Confidence::Varies), "one quiet scan");
    assert!(!predictor.impossible(&limits, FIXED), "a quiet moment may end it");
    // It stays quiet: after one to two minutes that is believed.
    fed(&mut predictor, now_ms, &[1; 601], rate);
    let said = predictor.predict(&a_round_of(1, rate), &limits).expect("seen");
    assert!(matches!((said.fits, said.confidence), (Fits::Yes { .. }, Confidence::Firm)), "{said:?}");
}

#[test]
fn a_throttled_guest_is_another_guest() {
    let rate = 50 * MIB;
    let mut predictor = Predictor::new(Duration::ZERO, 1 << 30);
    let now_ms = fed(&mut predictor, 0, &[30, 30, 30], rate);
    predictor.guest_changed(Duration::from_millis(now_ms));
    assert_eq!(predictor.predict(&a_round_of(30, rate), &limits(300)), None, "nothing was seen of it");
    let now_ms = fed(&mut predictor, now_ms, &[15], rate);
    assert_eq!(predictor.predict(&a_round_of(15, rate), &limits(300)), None, "half of that was before");
    fed(&mut predictor, now_ms, &[2], rate);
    let said = predictor.predict(&a_round_of(2, rate), &limits(300)).expect("seen");
    assert!(matches!((said.fits, said.confidence), (Fits::Yes { .. }, Confidence::Early)), "{said:?}");
}

#[test]
fn nothing_is_said_to_be_impossible_too_early() {
    let mut predictor = Predictor::new(Duration::ZERO, 1 << 30);
    assert!(!predictor.impossible(&limits(300), FIXED), "nothing was seen");
    fed(&mut predictor, 0, &[100], MIB);
    assert!(!predictor.impossible(&limits(300), FIXED), "one scan");
    fed(&mut predictor, 200, &[100], MIB);
    assert!(predictor.impossible(&limits(300), FIXED));
    fed(&mut predictor, 400, &[100], 1 << 40);
    assert!(!predictor.impossible(&limits(300), FIXED), "the link can do better");
}

/// A set that is written again and again within one scan: how fast, a second scan would tell. The round ends 3 ms later.
#[test]
fn a_scan_right_after_another_is_no_second_look() {
    let writes = Writes { set_pages: 1984, mib_per_second: 122, in_laps: true, phases: None };
    let mut world = World::new(0, 25 * MIB_PAGES, 123 * MIB, writes, limits(134));
    assert!(world.round().is_none() && world.now < Duration::from_millis(205), "{world:?}");
    assert_eq!(world.prediction().confidence, Confidence::Early);
}

#[test]
fn a_switchover_that_takes_longer_than_is_allowed_leaves_half_of_it_for_the_rest() {
    let mut predictor = Predictor::new(Duration::ZERO, 1 << 30);
    fed(&mut predictor, 0, &[1, 1], 100 * MIB);
    let said = predictor.predict(&a_round_of(1, 100 * MIB), &limits(5)).expect("seen");
    assert!(matches!(said.fits, Fits::Yes { .. }), "{said:?}");
    assert!(!predictor.impossible(&limits(5), FIXED));
    assert_eq!(limits(5).for_the_rest(FIXED), Duration::from_micros(2_500));
}
