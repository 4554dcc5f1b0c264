//! The hand-over in a seeded world: registry, node agents, runners, and everything that may go wrong between them.
//!
//! Thousands of histories; after every step the invariants of the hand-over hold, and once faults stop, everything
//! ends: every migration over, permits back, one copy running, nothing left over. Each planted bug is found.
//!
//! A failing history prints its line: `GODWIT_SEED=N cargo test -p godwit-domain --test sim`, which also prints every
//! step.

#![expect(clippy::print_stdout, reason = "what a test prints is for its reader")]

mod host;
mod world;

use std::collections::BTreeMap;

use godwit_domain::planted;
use world::World;

/// Histories of the plain test.
const HISTORIES: u64 = 12_000;
/// Histories in which a planted bug must be found.
const HISTORIES_PER_BUG: u64 = 12_000;

struct Summary {
    events: usize,
    hand_overs: usize,
    faults_inside: usize,
    fate: &'static str,
}

fn run(seed: u64) -> Summary {
    let mut world = World::new(seed);
    let steps = world.steps_planned();
    for _ in 0..steps {
        world.step();
        world.check();
    }
    let fate = world.settle();
    Summary { events: world.events, hand_overs: world.hand_overs, faults_inside: world.faults_inside, fate }
}

fn run_with_disasters(seed: u64) -> (usize, &'static str) {
    let mut world = World::with_disasters(seed);
    let steps = world.steps_planned();
    for _ in 0..steps {
        world.step();
        world.check();
    }
    let fate = world.settle();
    (world.disasters, fate)
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("GODWIT_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..HISTORIES,
    }
}

#[test]
fn one_owner_in_every_history() {
    let (mut events, mut fates) = (Vec::new(), BTreeMap::<_, u64>::new());
    let (mut hand_overs, mut with_fault_inside) = (0, 0);
    for seed in seeds() {
        let Ok(summary) = std::panic::catch_unwind(|| run(seed)) else {
            panic!(
                "replay: GODWIT_SEED={seed} cargo test -p godwit-domain --test sim -- --nocapture one_owner"
            );
        };
        events.push(summary.events);
        *fates.entry(summary.fate).or_default() += 1;
        hand_overs += summary.hand_overs;
        with_fault_inside += u64::from(summary.faults_inside > 0);
    }
    events.sort_unstable();
    let median = events[events.len() / 2];
    let histories = events.len();
    println!(
        "{histories} histories, median {median} events, {hand_overs} hand-overs, {with_fault_inside} histories with a \
         fault inside one, ends: {fates:?}"
    );
    if histories > 1 {
        assert!(median >= 300, "histories are long enough to mean something");
        assert!(with_fault_inside * 2 > histories as u64, "most have a fault inside a hand-over");
        assert!(fates.len() >= 3, "every kind of end was met");
    }
}

#[test]
fn one_owner_whatever_a_group_that_was_founded_anew_believes() {
    let mut fates = BTreeMap::<_, u64>::new();
    let mut disasters = 0;
    for seed in seeds() {
        let Ok((lost, fate)) = std::panic::catch_unwind(|| run_with_disasters(seed)) else {
            panic!(
                "replay: GODWIT_SEED={seed} cargo test -p godwit-domain --test sim -- --nocapture founded_anew"
            );
        };
        disasters += lost;
        *fates.entry(fate).or_default() += 1;
    }
    println!("{disasters} groups lost and founded anew, ends: {fates:?}");
}

#[test]
fn planted_bugs_are_found() {
    let bugs = [
        "resume-sealed",
        "epoch-stays",
        "tombstone-late",
        "final-by-migration",
        "licence-names-node",
        "vouch-hands-back",
        "absent-never-started",
        "hand-back-by-time-out",
        "end-after-hand-over",
        "testimony-in-memory",
        "free-at-hand-over",
        "old-view-destroys",
        "source-loss-is-guest-loss",
        "restart-forgets",
    ];
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !planted::any() {
            quiet(info);
        }
    }));
    let mut missed = Vec::new();
    for bug in bugs {
        planted::plant(Some(bug));
        let found = (0..HISTORIES_PER_BUG).find_map(|seed| {
            let panic = std::panic::catch_unwind(|| run(seed)).err()?;
            let text = panic.downcast_ref::<String>().cloned();
            Some((seed, text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))))
        });
        planted::plant(None);
        match found {
            Some((seed, why)) => {
                let why: String = why.unwrap_or_default().chars().take(60).collect();
                println!("{bug}: found in history {seed}: {}", why.lines().next().unwrap_or_default());
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found in {HISTORIES_PER_BUG} histories each: {missed:?}");
}
