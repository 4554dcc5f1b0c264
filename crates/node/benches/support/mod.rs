//! What the benchmarks of the control group share: numbers, the machine they were seen on, and three real voters.
//!
//! ```text
//!   voters   three voters with their logs on this machine's disk, and what carries their messages
//!   disks    a voter's disk that counts what it is told
//!   fleet    nodes, guests and migrations, as commands
//! ```
//!
//! Always true: nothing here fails on a time. `QUICK=1` makes every benchmark one of a few seconds, whose numbers say only
//! that it works.
#![allow(dead_code, reason = "each benchmark uses its part")]

pub(crate) mod disks;
pub(crate) mod fleet;
pub(crate) mod voters;

use std::error::Error;
use std::io::Write;
use std::time::Duration;

/// Something went wrong; in one line.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Whether a few seconds are all that there are.
pub(crate) fn is_quick() -> bool {
    std::env::var("QUICK").is_ok_and(|value| !value.is_empty() && value != "0")
}

/// A line for stdout, at once: a run takes long, and whoever waits wants to see it.
pub(crate) fn say(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// Machine and command: what a number is worth nothing without.
pub(crate) fn introduce(name: &str) -> Result<(), Failure> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let quick = if is_quick() { "QUICK=1 " } else { "" };
    say(&format!("{cores} cores, Linux {}, logs in {}", kernel.trim(), std::env::temp_dir().display()))?;
    say(&format!("{quick}cargo bench -p godwit-node --bench {name}"))
}

/// Numbers of one kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers(pub(crate) Vec<f64>);

impl Numbers {
    /// The one at this share of them, in order. NaN: there are none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut numbers = self.0.clone();
        numbers.sort_by(f64::total_cmp);
        let last = numbers.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index below the length"
        )]
        let at = (last as f64 * share).round() as usize;
        numbers.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The one in the middle.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

impl FromIterator<f64> for Numbers {
    fn from_iter<I: IntoIterator<Item = f64>>(numbers: I) -> Self {
        Self(numbers.into_iter().collect())
    }
}

/// CPU time of this process so far, user and system, of all its threads.
pub(crate) fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in brackets may hold anything; after it `utime` is the 12th, `stime` the 13th.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>());
    let ticks: u64 = fields
        .iter()
        .flat_map(|fields| fields.iter().skip(11).take(2))
        .flat_map(|it| it.parse::<u64>())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Memory of this process that is in RAM, in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}
