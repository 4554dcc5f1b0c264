//! What a link does to datagrams, without a clock: each carries its number, one is offered each step.
//!
//! ```text
//!   time      0 ── step ── 2·step ── …          offer, then take what is due
//!   datagram  0     1        2       …          ─▶ (when, which) in order of arrival
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use proptest::prelude::*;

use super::one_way::{Chance, Counts, Datagram, Link, Plan};

const MS: Duration = Duration::from_millis(1);
/// Payload of each datagram here.
const BYTES: usize = 1_000;

/// An arrival: when, and which.
type Arrival = (Duration, u64);

fn datagram(number: u64, bytes: usize) -> Datagram {
    let mut payload = vec![0; bytes.max(8)];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    Datagram { client: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), payload: Bytes::from(payload) }
}

fn number(datagram: &Datagram) -> u64 {
    u64::from_le_bytes(datagram.payload[..8].try_into().expect("8 bytes"))
}

fn link(plan: Plan, seed: u64) -> Link {
    Link::new(plan, Rng::with_seed(seed))
}

/// Takes what is due by `now`, one moment after another.
fn take(link: &mut Link, now: Duration, arrivals: &mut Vec<Arrival>) {
    while let Some(next) = link.next_due().filter(|next| *next <= now) {
        let due = link.due(next);
        assert!(!due.is_empty(), "nothing is due at {next:?}, when something should be");
        arrivals.extend(due.iter().map(|datagram| (next, number(datagram))));
    }
}

/// Offers so many datagrams, one a step, and waits for all; `act` comes before each.
fn pass(link: &mut Link, count: u64, step: Duration, mut act: impl FnMut(u64, &mut Link)) -> Vec<Arrival> {
    let (mut arrivals, mut now) = (Vec::new(), Duration::ZERO);
    for number in 0..count {
        take(link, now, &mut arrivals);
        act(number, link);
        link.offer(now, datagram(number, BYTES));
        now += step;
    }
    take(link, Duration::MAX, &mut arrivals);
    assert_eq!(link.held_bytes(), 0, "all have arrived and yet something is held");
    arrivals
}

fn numbers(arrivals: &[Arrival]) -> Vec<u64> {
    arrivals.iter().map(|(_, number)| *number).collect()
}

fn balance(counts: &Counts) -> (u64, u64) {
    let ends = counts.delivered + counts.lost + counts.cut + counts.overflowed;
    (counts.offered + counts.duplicated, ends)
}

#[test]
fn chance_strikes_as_often_as_it_says() {
    // Of 100,000; within five standard deviations and a little.
    let count = 100_000;
    for (percent, least, most) in
        [(0, 0, 0), (1, 840, 1_160), (30, 29_270, 30_730), (100, 100_000, 100_000), (700, 100_000, 100_000)]
    {
        let chance = Chance::percent(percent);
        let alone = |plan| {
            let mut link = link(plan, 11);
            let arrived = pass(&mut link, count, MS, |_, _| {}).len();
            (link.counts(), u64::try_from(arrived).expect("few"))
        };
        let allowed = least..=most;
        let (lossy, arrived) = alone(Plan { loss: chance, ..Plan::PERFECT });
        assert!(allowed.contains(&lossy.lost) && arrived == count - lossy.lost, "{percent} %: {lossy:?}");
        let (twice, arrived) = alone(Plan { duplication: chance, ..Plan::PERFECT });
        assert!(allowed.contains(&twice.duplicated) && arrived == count + twice.duplicated, "{twice:?}");
        let (late, _) = alone(Plan { straggling: chance, ..Plan::PERFECT });
        assert!(allowed.contains(&late.straggled), "{percent} %: {late:?}");
    }
    assert_eq!(Chance::percent(3), Chance::of_million(30_000));
}

#[test]
fn jitter_is_spread_over_its_whole_range() {
    let plan = Plan { jitter: MS * 10, ..Plan::delayed(MS * 5) };
    // So far apart that each arrives before the next is offered.
    let arrivals = pass(&mut link(plan, 3), 10_000, MS * 100, |_, _| {});
    let offered = |number: u64| MS * 100 * u32::try_from(number).expect("few");
    let ways: Vec<_> = arrivals.iter().map(|(when, number)| *when - offered(*number)).collect();
    let (least, most) = (ways.iter().min().expect("some"), ways.iter().max().expect("some"));
    assert!((MS * 5..MS * 5 + MS / 10).contains(least), "{least:?}");
    assert!((MS * 15 - MS / 10..=MS * 15).contains(most), "{most:?}");
    let early = ways.iter().filter(|way| **way < MS * 10).count();
    assert!((4_700..5_300).contains(&early), "{early} of 10,000 in the first half");
}

#[test]
fn stragglers_and_jitter_reorder() {
    let straggling = Plan { straggling: Chance::percent(10), lag: MS * 3, ..Plan::delayed(MS * 5) };
    let jittery = Plan { jitter: MS * 3, ..Plan::delayed(MS * 5) };
    for plan in [straggling, jittery] {
        let arrived = numbers(&pass(&mut link(plan, 5), 1_000, MS, |_, _| {}));
        let swapped = arrived.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!(swapped > 50, "{swapped} swapped by {plan}");
        let mut sorted = arrived;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1_000).collect::<Vec<_>>(), "somebody is missing or twice");
    }
    // A straggler comes after just as many as its lag is long.
    let plan = Plan { straggling: Chance::percent(100), ..straggling };
    let mut link = link(plan, 5);
    let arrived = pass(&mut link, 8, MS, |number, link| {
        let straggling = if number == 2 { Chance::percent(100) } else { Chance::NEVER };
        link.change(Plan { straggling, lag: MS * 3 + MS / 2, ..plan });
    });
    assert_eq!(numbers(&arrived), [0, 1, 3, 4, 5, 2, 6, 7]);
}

#[test]
fn a_cut_delivers_nothing_and_a_mended_link_goes_on_as_if_there_had_been_none() {
    let plan = Plan { loss: Chance::percent(20), jitter: MS * 4, ..Plan::delayed(MS * 10) };
    let whole = pass(&mut link(plan, 9), 300, MS, |_, _| {});
    let mut cut = link(plan, 9);
    let arrived = pass(&mut cut, 300, MS, |number, link| match number {
        100 => link.cut(),
        200 => link.mend(),
        _ => {}
    });
    // Whoever had arrived when it began, and whoever was offered after it, with the fate that it would have had anyway.
    let spared = |(when, number): &&Arrival| *when <= MS * 100 || *number >= 200;
    let expected: Vec<_> = whole.iter().filter(spared).copied().collect();
    assert_eq!(arrived, expected);
    assert!(
        arrived.iter().any(|(_, number)| *number < 100) && arrived.iter().any(|(_, number)| *number >= 200)
    );
    let counts = cut.counts();
    assert!(counts.cut > 100, "those on the way are lost too: {counts:?}");
    assert_eq!(balance(&counts).0, balance(&counts).1);
}

#[test]
fn a_seed_decides() {
    let plan = Plan { loss: Chance::percent(50), ..Plan::PERFECT };
    let with = |seed| numbers(&pass(&mut link(plan, seed), 100, MS, |_, _| {}));
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
}

#[test]
fn datagrams_enter_one_after_another_at_the_rate() {
    // A millisecond for each, and ten come at once.
    let plan = Plan { bytes_per_second: 1_000_000, ..Plan::delayed(MS * 20) };
    let arrivals = pass(&mut link(plan, 1), 10, Duration::ZERO, |_, _| {});
    let expected: Vec<_> = (0..10).map(|number| (MS * (21 + number), u64::from(number))).collect();
    assert_eq!(arrivals, expected);
    // Whoever comes to a link at rest does not wait.
    let arrivals = pass(&mut link(plan, 1), 10, MS * 7, |_, _| {});
    let expected: Vec<_> = (0..10).map(|number| (MS * (21 + 7 * number), u64::from(number))).collect();
    assert_eq!(arrivals, expected);
}

#[test]
fn what_does_not_fit_is_dropped_and_there_is_room_again() {
    let plan = Plan { held_bytes_max: 3 * BYTES, duplication: Chance::percent(100), ..Plan::delayed(MS * 5) };
    let mut link = link(plan, 1);
    for number in 0..4 {
        link.offer(Duration::ZERO, datagram(number, BYTES));
    }
    // Two copies of 0, then 1 without a copy.
    assert_eq!(link.due(MS * 5).iter().map(number).collect::<Vec<_>>(), [0, 0, 1]);
    link.offer(MS * 6, datagram(4, BYTES));
    assert_eq!(link.due(MS * 11).iter().map(number).collect::<Vec<_>>(), [4, 4]);
    let counts = link.counts();
    assert_eq!((counts.overflowed, counts.duplicated, counts.delivered), (2, 2, 5));
}

#[test]
fn nothing_arrives_before_its_time() {
    let mut link = link(Plan::delayed(MS * 5), 1);
    link.offer(MS, datagram(0, BYTES));
    assert_eq!(link.next_due(), Some(MS * 6));
    assert!(link.due(MS * 6 - Duration::from_nanos(1)).is_empty());
    assert_eq!(link.due(MS * 6).len(), 1);
    assert_eq!(link.next_due(), None);
}

/// Any plan, also one that makes no sense.
fn plans() -> impl Strategy<Value = Plan> {
    let chance = || (0..1_000_000_u32).prop_map(Chance::of_million);
    let micros = |most: u64| (0..most).prop_map(Duration::from_micros);
    let rate = prop_oneof![Just(0), 1_000..10_000_000_u64];
    (micros(30_000), micros(10_000), chance(), micros(10_000), chance(), chance(), rate, 0..200_000_usize)
        .prop_map(|(delay, jitter, straggling, lag, duplication, loss, bytes_per_second, held_bytes_max)| {
            Plan { delay, jitter, straggling, lag, duplication, loss, bytes_per_second, held_bytes_max }
        })
}

proptest! {
    #[test]
    fn a_seed_replays_the_same_fates(plan in plans(), seed: u64, step in 0..3_000_u64) {
        let run = || {
            let mut link = link(plan, seed);
            let arrivals = pass(&mut link, 100, Duration::from_micros(step), |_, _| {});
            (arrivals, link.counts())
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn delays_stay_within_their_bounds(plan in plans(), seed: u64) {
        let plan = Plan { bytes_per_second: 0, ..plan };
        for (when, number) in pass(&mut link(plan, seed), 100, MS, |_, _| {}) {
            let offered = MS * u32::try_from(number).expect("few");
            let bounds = offered + plan.delay..=offered + plan.delay + plan.jitter + plan.lag;
            prop_assert!(bounds.contains(&when), "{} offered at {:?} arrived at {:?}", number, offered, when);
        }
    }

    #[test]
    fn order_is_kept_without_jitter_and_stragglers(plan in plans(), seed: u64, step in 0..3_000_u64) {
        let plan = Plan { jitter: Duration::ZERO, straggling: Chance::NEVER, ..plan };
        let arrivals = pass(&mut link(plan, seed), 100, Duration::from_micros(step), |_, _| {});
        prop_assert!(numbers(&arrivals).is_sorted(), "{:?}", arrivals);
    }

    #[test]
    fn all_are_accounted_for_and_memory_is_bounded(
        plan in plans(),
        seed: u64,
        cuts in prop::collection::vec((0..100_u64, any::<bool>()), 0..6),
    ) {
        let mut link = link(plan, seed);
        let mut held_most = 0;
        pass(&mut link, 100, MS / 10, |number, link| {
            for (_, begins) in cuts.iter().filter(|(at, _)| *at == number) {
                if *begins { link.cut() } else { link.mend() }
            }
            held_most = held_most.max(link.held_bytes());
        });
        prop_assert!(held_most <= plan.held_bytes_max);
        let (came, went) = balance(&link.counts());
        prop_assert_eq!(came, went, "{:?}", link.counts());
        prop_assert_eq!(link.counts().offered, 100);
    }
}
