//! The control plane in a seeded world: everything that decides is real, everything that may fail is simulated.
//!
//! ```text
//!   seed ─▶ world ─▶ trouble … calm ─▶ laws held?        real       raft, driver, promises, proofs, replica, registry,
//!              └─ world      machines, time                         leader's decisions, what nodes are told, duties
//!                 voter, disk, watched, leader              simulated  clocks, links, disks, processes, runners,
//!                 agent, look, moves, heard, host             sessions' connections, transfers, people
//!                 operator, seats, luck, calm
//!                 law, grouplaw, cover, trace, diff
//! ```
//!
//! Always true: a seed is a history, the same each time; the laws are checked after every event.
//!
//! `SIM_HISTORIES` (how many), `SIM_SECONDS` (or for how long), `SIM_SEED` (the first; drawn and printed if it is not
//! set), `SIM_LOG` (print the log). A failing history leaves its log in target/tmp and prints the line that replays it.

#![expect(clippy::print_stdout, reason = "what a test prints is for its reader")]

mod agent;
mod calm;
mod cover;
mod diff;
mod disk;
mod event;
mod grouplaw;
mod heard;
mod history;
mod host;
mod law;
mod leader;
mod links;
mod look;
mod luck;
mod moves;
mod operator;
mod seats;
mod trace;
mod voter;
mod watched;
mod world;

use std::time::{Duration, Instant};

use history::{Failed, Search, run};

/// Histories of a plain test.
const HISTORIES: u64 = 300;
/// Histories in which a planted bug must be found.
const HISTORIES_PER_BUG: u64 = 4000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(error) => panic!("{name}={text}: {error}; it must be a whole number"),
    }
}

fn first_seed() -> u64 {
    number("SIM_SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000_000))
}

#[test]
fn the_laws_hold_in_every_history() {
    let first = first_seed();
    let seconds = number("SIM_SECONDS");
    let count = number("SIM_HISTORIES").unwrap_or(if seconds.is_some() { u64::MAX } else { HISTORIES });
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    println!("SIM_SEED={first}");
    let began = Instant::now();
    let search = Search { first, count, until, bug: None };
    let (cover, failed) = search.go();
    let seconds = began.elapsed().as_secs_f64();
    println!("{}", cover.told());
    println!(
        "seeds {first}..{}: {} histories in {seconds:.0} s ({:.0}/s), median {} events, {} hand-overs, {:.1} % with a fault \
         inside one, {} pairs of owner state and entry, {} failed",
        first + cover.histories,
        cover.histories,
        cover.histories as f64 / seconds,
        cover.median_events(),
        cover.hand_overs,
        cover.inside_percent(),
        cover.pairs(),
        u64::from(failed.is_some()),
    );
    if let Some(failed) = failed {
        panic!("{}", failed.keep());
    }
    if cover.histories >= HISTORIES {
        assert!(cover.median_events() >= 500, "histories are long enough to mean something");
        assert!(cover.inside_percent() >= 90.0, "nearly all have a fault inside a hand-over");
    }
}

#[test]
fn a_seed_is_the_same_history_twice() {
    let first = number("SIM_SEED").unwrap_or(1);
    for seed in first..first + 8 {
        let logs = [run(seed, true), run(seed, true)].map(|history| history.log);
        assert!(!logs[0].is_empty());
        assert!(logs[0] == logs[1], "seed {seed}: {}", difference(&logs[0], &logs[1]));
    }
}

fn difference(a: &str, b: &str) -> String {
    let differ = a.lines().zip(b.lines()).enumerate().find(|(_, (a, b))| a != b);
    differ.map_or("one is longer".to_owned(), |(line, (a, b))| format!("line {line}:\n{a}\n{b}"))
}

#[test]
fn planted_bugs_are_found() {
    let only = std::env::var("SIM_BUG").ok();
    let first = number("SIM_SEED").unwrap_or(1);
    let mut missed = Vec::new();
    for bug in BUGS.into_iter().filter(|bug| only.as_ref().is_none_or(|only| only == bug)) {
        let began = Instant::now();
        let count = number("SIM_HISTORIES").unwrap_or(HISTORIES_PER_BUG);
        let (cover, failed) = Search { first, count, until: None, bug: Some(bug) }.go();
        let seconds = began.elapsed().as_secs_f64();
        match failed {
            Some(Failed { seed, why, .. }) => {
                let why: String = why.chars().take(90).collect();
                println!("| {bug} | {} | {seed} | {} |", why.replace('\n', " "), seed - first + 1);
            }
            None => {
                println!("{bug}: not found in {} histories, {seconds:.0} s", cover.histories);
                missed.push(bug);
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// Those of control and storage first, then what nodes are told, then the registry's and the tables'.
const BUGS: [&str; 17] = [
    "reply-before-sync",
    "sync-skipped",
    "vote-not-persisted",
    "snapshot-without-tail",
    "unknown-said-no",
    "stale-read",
    "proof-by-old-answer",
    "removed-still-counted",
    "entry-applied-twice",
    "old-epoch-told",
    "permit-released-twice",
    "epoch-stays",
    "end-after-hand-over",
    "hand-back-by-time-out",
    "absent-never-started",
    "vouch-hands-back",
    "free-at-hand-over",
];
