//! The load inside a test's virtual machine: it counts on the console, writes memory, files and a disk, uses a network
//! card, and checks again and again all that it wrote.
//!
//! ```text
//!   vmload tick ── gaps, ticks ──────────────────────────────▶ console   `tick …`, each few milliseconds
//!   vmload load ─┬─ memory: pages with sequence numbers ─┐
//!                ├─ memory: an area that never changes   │
//!                ├─ files in tmpfs                       ├─▶ Tally ──▶ console   `stat …`, each second; `bad …`
//!                ├─ disk: direct, and through the cache  │
//!                └─ net: asks, and is answered           ┘
//! ```
//!
//! Always true: nothing is believed twice, so every byte that was written is compared with what it must be once per lap;
//! a line leaves in one write. It must never know that it is being moved. The lines are described in `tests/vm/README.md`.

mod disk;
mod files;
mod memory;
mod mix;
mod net;
mod params;
mod tally;
mod tick;

use std::process::ExitCode;
use std::sync::Arc;

use params::Params;
use tally::Tally;

fn main() -> ExitCode {
    let mode = std::env::args().nth(1).unwrap_or_default();
    let done = Params::of_kernel().and_then(|params| match mode.as_str() {
        "tick" => tick::run(&params),
        "load" => load(&params),
        _ => Err("usage: vmload tick | load".to_owned()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tally::say(&format!("bad start {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Starts every part, says `ready` when each has written what it will check, and reports for ever.
fn load(params: &Params) -> Result<(), String> {
    let tally = Arc::new(Tally::default());
    memory::start(params, &tally)?;
    files::start(params, &tally)?;
    disk::start(params, &tally)?;
    net::start(params, &tally)?;
    tally::say(&format!("ready {params}"));
    tally.report()
}
