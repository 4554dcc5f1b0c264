//! What a cluster of 1,000 nodes, 20,000 guests and 5,000 waiting migrations costs whoever agrees on it.
//!
//! ```text
//!   alone     entries ─▶ Replica ─┬─ memory, entries a second        grouped   two voters ◀─ every command ── clients
//!                                 ├─ snapshot: made, read back                  ├─ a third, empty: caught up after …
//!                                 └─ admitted until nothing is left             ├─ the leader ends: another admits after …
//!                                                                               └─ commands a second meanwhile
//! ```
//!
//! Always true: all of it was made by commands. A tenth of it is measured in the same run, so that the ratio says how the
//! cost grows, whatever the machine: what is named "each" should be about 1, all else about 10 at most.
//!
//! ```text
//!   cargo bench -p godwit-node --bench full_size             QUICK=1: a hundredth and a thousandth, to see that it works
//! ```
#![allow(missing_docs)]

mod alone;
mod grouped;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use actix::System;

use support::{Failure, introduce, is_quick, say};

/// How large a cluster is.
#[derive(Debug, Clone, Copy)]
struct Size {
    nodes: u64,
    guests: u64,
    waiting: u64,
}

impl Size {
    const fn part(one_in: u64) -> Self {
        Self { nodes: 1_000 / one_in, guests: 20_000 / one_in, waiting: 5_000 / one_in }
    }
}

/// What was measured, in the order in which it was.
#[derive(Debug, Default)]
struct Table(Vec<(&'static str, f64)>);

impl Table {
    fn add(&mut self, what: &'static str, value: f64) {
        self.0.push((what, value));
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
    introduce("full_size")?;
    let sizes = if is_quick() { [100, 20] } else { [10, 1] }.map(Size::part);
    let mut tables = Vec::new();
    // The smaller first: memory that is free and kept by the allocator would hide what the larger one takes.
    for size in sizes {
        let mut table = Table::default();
        alone::measure(size, &mut table)?;
        tables.push(table);
    }
    for (size, table) in sizes.into_iter().zip(&mut tables) {
        grouped::measure(size, table).await?;
    }
    let [small, large] = sizes;
    say(&format!("{:<64} {:>12} {:>12} {:>7}", "", small.nodes, large.nodes, "ratio"))?;
    for ((what, of_small), (_, of_large)) in tables[0].0.iter().zip(&tables[1].0) {
        say(&format!("{what:<64} {of_small:>12.2} {of_large:>12.2} {:>7.2}", of_large / of_small))?;
    }
    for Size { nodes, guests, waiting } in sizes {
        say(&format!("{nodes}: {nodes} nodes, {guests} guests, {waiting} waiting migrations"))?;
    }
    let of =
        |name: &str| tables[1].0.iter().find(|(what, _)| *what == name).map_or(f64::NAN, |(_, value)| *value);
    say(&format!(
        "full_size: {:.0} MiB a registry, snapshot of {:.1} MiB, an empty voter has caught up after {:.0} ms, the first \
         grant comes {:.0} ms after an election",
        of(alone::MEMORY),
        of(alone::SNAPSHOT),
        of(grouped::CATCH_UP),
        of(grouped::FIRST_GRANT)
    ))
}
