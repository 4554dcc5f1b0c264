//! How many commands a second the group agrees on, and how long each takes; beside raft-rs alone on the same log.
//!
//! ```text
//!   A   clients ─ Group::propose ─ mailbox ─ Driver ─ raft ─ sled ×3 ─ Registry, bells, promises ─▶ answer
//!   B   a queue ───────────────────────────────────── raft ─ sled ×3 ──────────────────────────▶ "it is applied"
//!   with 1, 16 and 128 commands under way:  A B A B … ─▶ commands/s, p50, p99, A/B
//! ```
//!
//! Always true:
//! - each client has one command under way. They are those of a migration, from its asking to what was measured, and B's
//!   entries are the same, encoded before;
//! - both store with the same disk ([`godwit_control::sled_disk`]): entries, head and mark, with one sync for all that has
//!   come in meanwhile; both cut their logs after the same number of entries;
//! - B has no state machine, no promises, no mailboxes, and messages in no envelope. It is three threads and their queues;
//! - a ratio is of two rounds that followed each other; what is said is the median. One pair is not counted.
//!
//! ```text
//!   cargo bench -p godwit-node --bench commands              QUICK=1: each round a moment, to see that it works
//! ```
#![allow(missing_docs)]

mod agreed;
mod plain;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use actix::System;

use support::disks::Count;
use support::{Failure, Numbers, cpu_time, introduce, is_quick, say};

/// Commands under way.
const UNDER_WAY: [usize; 3] = [1, 16, 128];
const NAMES: [&str; 2] = ["A as it is", "B raft-rs"];

/// What one round measured.
struct Round {
    commands: u64,
    seconds: f64,
    cpu_seconds: f64,
    /// Of each command, in microseconds.
    took_us: Numbers,
    /// What the three disks did meanwhile.
    disks: Count,
}

impl Round {
    fn per_second(&self) -> f64 {
        self.commands as f64 / self.seconds
    }
}

fn main() -> ExitCode {
    let runtime = || match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
    {
        Ok(runtime) => runtime,
        Err(error) => panic!("no runtime: {error}"),
    };
    match System::with_tokio_rt(runtime).block_on(bench()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn bench() -> Result<(), Failure> {
    introduce("commands")?;
    let (length, pairs) =
        if is_quick() { (Duration::from_millis(200), 1) } else { (Duration::from_secs(3), 7) };
    say(&format!(
        "three voters in one process; rounds of {} s, {pairs} pairs after a warm-up",
        length.as_secs_f64()
    ))?;
    let dir = tempfile::Builder::new().prefix("godwit-bench-").tempdir()?;
    let mut agreed = agreed::Agreed::start(dir.path().join("a")).await?;
    let mut plain = plain::Plain::start(&dir.path().join("b"))?;
    let mut ratios = Vec::new();
    for under_way in UNDER_WAY {
        let mut rounds = [Vec::new(), Vec::new()];
        for pair in 0..=pairs {
            let a = agreed.round(under_way, length).await?;
            let b = plain.round(under_way, length)?;
            if pair > 0 {
                rounds[0].push(a);
                rounds[1].push(b);
            }
        }
        ratios.push((under_way, conclude(under_way, &rounds)?));
    }
    plain.end()?;
    agreed.end().await?;
    let all = ratios.iter().map(|(under_way, ratio)| format!("{ratio:.2} with {under_way}"));
    say(&format!("commands: A/B {} under way", all.collect::<Vec<_>>().join(", ")))
}

/// A table of both, and A/B in commands a second: the median of the pairs.
fn conclude(under_way: usize, rounds: &[Vec<Round>; 2]) -> Result<f64, Failure> {
    say(&format!(
        "\n{under_way:>3} under way    commands/s  (least     most)   p50 us   p99 us  CPU us each  commands/sync  in sync"
    ))?;
    for (name, rounds) in NAMES.iter().zip(rounds) {
        let of = |measure: &dyn Fn(&Round) -> f64| rounds.iter().map(measure).collect::<Numbers>();
        let rate = of(&Round::per_second);
        // The three disks sync beside each other.
        let synced = of(&|it| it.disks.sync_ns as f64 / 1e9 / 3.0 / it.seconds * 100.0).median();
        let each = of(&|it| it.commands as f64 * 3.0 / it.disks.syncs as f64).median();
        say(&format!(
            "  {name:<12} {:>10.0} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {:>12.1} {each:>14.1} {synced:>7.0} %",
            rate.median(),
            rate.quantile(0.0),
            rate.quantile(1.0),
            of(&|it| it.took_us.median()).median(),
            of(&|it| it.took_us.quantile(0.99)).median(),
            of(&|it| it.cpu_seconds * 1e6 / it.commands as f64).median(),
        ))?;
    }
    let pairs = rounds[0].iter().zip(&rounds[1]);
    let ratio = pairs.map(|(a, b)| a.per_second() / b.per_second()).collect::<Numbers>();
    let (low, high) = (ratio.quantile(0.0), ratio.quantile(1.0));
    say(&format!("  A/B          {:>10.2} {low:>8.2} {high:>8.2}", ratio.median()))?;
    Ok(ratio.median())
}
