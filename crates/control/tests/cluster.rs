//! Three voters in a world of trouble: whatever is lost, cut, doubled, killed or full, they agree.

mod common;

use common::world::{Seen, World};

/// Enough for every kind of trouble at every kind of moment; a few seconds.
const SEEDS: u64 = 600;

#[test]
fn voters_agree_and_lose_nothing_acknowledged() {
    let mut seen = Seen::default();
    common::for_each_seed("voters_agree", SEEDS, |seed| {
        let mut world = World::new(seed);
        world.run();
        seen.add(&world.seen);
    });
    eprintln!("{seen:?}");
    let enough = seen.applied > 1000
        && seen.unknown > 100
        && seen.refused > 100
        && seen.cuts > 100
        && seen.failures > 100
        && seen.full > 50
        && seen.snapshots_sent > 50;
    assert!(enough || std::env::var_os("GODWIT_SEEDS").is_some(), "the trouble was too small: {seen:?}");
}

#[test]
fn a_seed_gives_the_same_world_twice() {
    for seed in 0..40 {
        let trace = || {
            let mut world = World::new(seed);
            world.run();
            world.trace
        };
        assert_eq!(trace(), trace(), "seed {seed}");
    }
}
