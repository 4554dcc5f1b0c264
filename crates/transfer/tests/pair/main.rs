//! Both sessions of a migration over a fake link, in a seeded world: thousands of different interleavings.
//!
//! ```text
//!   guest writes ─▶ [memory] ─plan, read later─▶ (batches, any order, any delay) ─▶ write queue ─▶ [memory]
//!   control frames in order; connections break and come back; what an old one carried may still arrive
//!   proposals reach the log in any order, views reach each side late
//! ```
//!
//! At every step: the guest runs on one side at most, and only under a licence; a copy that was given up sends nothing
//! more and pauses nobody. When it starts at the target:
//! what is there is the memory as it stood at the pause. In the end: it runs somewhere, and an audit has found nothing.
//!
//! A failing seed prints its line: `GODWIT_SEED=N cargo test -p godwit-transfer --test pair`.

#![expect(clippy::print_stdout, reason = "what a test prints is for its reader")]

mod audit;
mod deadlines;
mod outlook;
mod world;

use std::collections::{BTreeMap, HashSet};
use std::hash::Hasher;

use godwit_domain::progress::AuditReport;
use godwit_transfer::planted;
use godwit_wire::migration::Mode;
use world::World;

const SEEDS: u64 = 5000;
const STEPS_MAX: usize = 40_000;

enum Ending {
    Moved(Mode),
    /// The same, and it was paused at the deadline though it did not fit.
    Finished,
    Stayed,
    Cancelled,
    /// The same, and the pause that was to finish it was taken back.
    CalledBack,
}

/// Runs one seed to its end. Returns what came of it, of its audit, and a hash of everything that happened.
fn run(seed: u64) -> (Ending, Option<AuditReport>, u64) {
    let mut world = World::new(seed);
    for _ in 0..STEPS_MAX {
        world.step();
        if world.is_over() {
            let ending = if world.target_runs.is_some() {
                world.same_memory("in the end");
                if let Some(report) = world.audited() {
                    assert_eq!(report.mismatched_pages, 0, "a clean move: {report:?}");
                    let seen = report.checked_pages + report.written_pages;
                    assert_eq!(report.complete, seen == u64::from(world::PAGES.0), "{report:?}");
                }
                if world.paused_to_finish { Ending::Finished } else { Ending::Moved(world.mode) }
            } else {
                assert!(world.source_runs, "after a failure the guest runs at the source");
                assert_eq!(world.throttle, 0, "and is not throttled any more");
                match (world.is_cancelled(), world.paused_to_finish) {
                    (true, true) => Ending::CalledBack,
                    (true, false) => Ending::Cancelled,
                    (false, _) => Ending::Stayed,
                }
            };
            return (ending, world.audited(), world.trace.finish());
        }
    }
    panic!(
        "not over after {STEPS_MAX} steps\nsource: {:?}\nlog: {:?}",
        world.source.snapshot(world.now),
        world.log
    );
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("GODWIT_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..SEEDS,
    }
}

#[test]
fn memory_arrives_whole_in_every_interleaving() {
    let mut distinct = HashSet::new();
    let mut endings = BTreeMap::new();
    let mut audits = (0, 0);
    for seed in seeds() {
        let result = std::panic::catch_unwind(|| run(seed));
        let Ok((ending, audited, trace)) = result else {
            panic!("replay: GODWIT_SEED={seed} cargo test -p godwit-transfer --test pair");
        };
        distinct.insert(trace);
        if let Some(report) = audited {
            let (whole, cut_short) = &mut audits;
            *if report.complete { whole } else { cut_short } += 1;
        }
        let name = match ending {
            Ending::Moved(Mode::StopAndCopy) => "moved",
            Ending::Moved(Mode::PostCopy) => "moved by post-copy",
            Ending::Finished => "moved by a pause at the deadline",
            Ending::Stayed => "stayed",
            Ending::Cancelled => "cancelled at a time limit",
            Ending::CalledBack => "cancelled after a pause",
        };
        *endings.entry(name).or_insert(0) += 1;
    }
    let (whole, cut_short) = audits;
    println!(
        "{} distinct interleavings: {endings:?}; {whole} whole audits, {cut_short} cut short",
        distinct.len()
    );
    if seeds().count() > 1 {
        assert_eq!(distinct.len() as u64, SEEDS, "every seed is another interleaving");
        assert!(whole > 100 && cut_short > 10, "{whole} whole audits, {cut_short} cut short");
        assert_eq!(endings.len(), 6, "every kind of ending was met");
    }
}

/// Seeds until the first failure, with a bug switched on.
fn seeds_until_found(bug: &'static str) -> Option<u64> {
    planted::plant(Some(bug));
    let found = (0..SEEDS).find(|seed| std::panic::catch_unwind(|| run(*seed)).is_err());
    planted::plant(None);
    found
}

#[test]
fn planted_bugs_are_found() {
    for bug in ["ignore-order", "forget-punch", "trust-own-record"] {
        let seed = seeds_until_found(bug).unwrap_or_else(|| panic!("{bug} was not found"));
        println!("{bug}: found by seed {seed}");
    }
}
