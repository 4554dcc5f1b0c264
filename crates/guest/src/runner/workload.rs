//! What a built-in guest does to its memory, as an operator asks for it, checked once.
//!
//! ```text
//!   options (command line, device state) ──▶ Workload      or an error that names the option
//! ```
//!
//! Always true of a [`Workload`]: it fits the memory it was checked for, every thread that writes owns a page,
//! and the zero pages lie beside the working set, so that each page that is ever written is checkable.

use std::fmt;
use std::str::FromStr;

use godwit_domain::PageCount;
use serde::{Deserialize, Serialize};

/// Most writer threads. Beyond it a host is measured, not a migration.
pub const THREADS_MAX: u8 = 64;

/// In which order a guest writes its working set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Every page once per lap, in another order each lap.
    Uniform,
    /// Nine of ten writes go to the first tenth of each thread's pages, the others to the rest.
    HotSet,
    /// Every page once per lap, in ascending order.
    Streaming,
}

/// All patterns, for messages.
const PATTERNS: [(Pattern, &str); 3] =
    [(Pattern::Uniform, "uniform"), (Pattern::HotSet, "hot-set"), (Pattern::Streaming, "streaming")];

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PATTERNS.iter().find(|(pattern, _)| pattern == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Pattern {
    type Err = WorkloadError;
    fn from_str(text: &str) -> Result<Self, WorkloadError> {
        let found = PATTERNS.iter().find(|(_, name)| *name == text);
        let shown = || text.chars().take(32).collect();
        found.map(|(pattern, _)| *pattern).ok_or_else(|| WorkloadError::Pattern { got: shown() })
    }
}

/// A workload as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadOptions {
    /// The guest's RAM.
    pub memory: PageCount,
    /// How many pages, from the first on, the guest writes again and again.
    pub working_set: PageCount,
    /// Distinct pages written per second, in bytes. 0: the guest is idle.
    pub dirty_rate_bytes_per_second: u64,
    /// The order of the writes.
    pub pattern: Pattern,
    /// Share of the whole RAM that is never written and reads as zeros.
    pub zero_percent: u8,
    /// Share of the whole RAM that compresses well. What is left is random.
    pub compressible_percent: u8,
    /// Writer threads; each owns its part of the working set.
    pub threads: u8,
    /// Decides content and order. The same seed makes the same guest.
    pub seed: u64,
}

/// A workload that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WorkloadOptions", into = "WorkloadOptions")]
pub struct Workload(WorkloadOptions);

/// Which option of a workload was refused, by which rule, and what would satisfy it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// No such pattern.
    #[error("option pattern is {got:?}; it must be uniform, hot-set or streaming")]
    Pattern {
        /// What was written, cut to 32 characters.
        got: String,
    },
    /// No memory.
    #[error("option memory is 0 pages; it must be 1 page (4096 bytes) or more")]
    NoMemory,
    /// The number of threads is out of range.
    #[error("option threads is {got}; it must be 1 to {THREADS_MAX}")]
    Threads {
        /// The number asked for.
        got: u8,
    },
    /// A percentage is out of range.
    #[error("option {option} is {got}; it must be 0 to 100")]
    Percent {
        /// Which option.
        option: &'static str,
        /// Its value.
        got: u8,
    },
    /// The shares make more than the whole.
    #[error(
        "options zero-percent and compressible-percent are {zero} and {compressible}, together above 100; \
         with zero-percent {zero}, compressible-percent must be 0 to {}", 100 - zero
    )]
    Shares {
        /// The share of zero pages.
        zero: u8,
        /// The share of compressible pages.
        compressible: u8,
    },
    /// The working set is larger than the RAM.
    #[error("option working-set is {got} pages, more than the memory; it must be at most {memory} pages")]
    WorkingSetAbove {
        /// The size asked for, in pages.
        got: u32,
        /// The size of the RAM, in pages.
        memory: u32,
    },
    /// A thread would have nothing to write.
    #[error(
        "option working-set is {got} pages for {threads} writing threads; it must be at least one page for \
         each, or dirty-rate must be 0"
    )]
    WorkingSetBelow {
        /// The size asked for, in pages.
        got: u32,
        /// The number of threads.
        threads: u8,
    },
    /// The zero pages do not fit beside the working set.
    #[error(
        "option zero-percent is {percent}, that is {pages} pages; zero pages lie outside the working set, where \
         there are {beside}; it must be at most {percent_max}, or working-set smaller"
    )]
    ZeroBeside {
        /// The share asked for.
        percent: u8,
        /// The share in pages.
        pages: u32,
        /// The pages outside the working set.
        beside: u32,
        /// The greatest share that fits.
        percent_max: u8,
    },
}

impl Workload {
    /// Checks a workload.
    pub fn new(options: WorkloadOptions) -> Result<Self, WorkloadError> {
        let o = &options;
        if o.memory.0 == 0 {
            return Err(WorkloadError::NoMemory);
        }
        if !(1..=THREADS_MAX).contains(&o.threads) {
            return Err(WorkloadError::Threads { got: o.threads });
        }
        let shares = [("zero-percent", o.zero_percent), ("compressible-percent", o.compressible_percent)];
        if let Some((option, got)) = shares.into_iter().find(|(_, got)| *got > 100) {
            return Err(WorkloadError::Percent { option, got });
        }
        if o.zero_percent + o.compressible_percent > 100 {
            return Err(WorkloadError::Shares { zero: o.zero_percent, compressible: o.compressible_percent });
        }
        if o.working_set > o.memory {
            return Err(WorkloadError::WorkingSetAbove { got: o.working_set.0, memory: o.memory.0 });
        }
        if o.dirty_rate_bytes_per_second > 0 && o.working_set.0 < u32::from(o.threads) {
            return Err(WorkloadError::WorkingSetBelow { got: o.working_set.0, threads: o.threads });
        }
        let beside = o.memory.0 - o.working_set.0;
        let pages = share(o.memory, o.zero_percent);
        if pages > beside {
            let fits = |percent: &u8| share(o.memory, *percent) <= beside;
            let percent_max = (0..=o.zero_percent).rev().find(fits).unwrap_or(0);
            return Err(WorkloadError::ZeroBeside { percent: o.zero_percent, pages, beside, percent_max });
        }
        Ok(Self(options))
    }

    /// What was asked for.
    pub fn options(&self) -> &WorkloadOptions {
        &self.0
    }

    /// Pages that are never written.
    pub(super) fn zero_pages(&self) -> u32 {
        share(self.0.memory, self.0.zero_percent)
    }

    /// Pages that compress well.
    pub(super) fn compressible_pages(&self) -> u32 {
        share(self.0.memory, self.0.compressible_percent)
    }
}

/// A percentage of a memory, rounded down: the shares of a whole never make more than it.
fn share(memory: PageCount, percent: u8) -> u32 {
    u32::try_from(u64::from(memory.0) * u64::from(percent) / 100).unwrap_or(u32::MAX)
}

impl TryFrom<WorkloadOptions> for Workload {
    type Error = WorkloadError;
    fn try_from(options: WorkloadOptions) -> Result<Self, WorkloadError> {
        Self::new(options)
    }
}

impl From<Workload> for WorkloadOptions {
    fn from(workload: Workload) -> Self {
        workload.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> WorkloadOptions {
        WorkloadOptions {
            memory: PageCount(1000),
            working_set: PageCount(600),
            dirty_rate_bytes_per_second: 1 << 20,
            pattern: Pattern::Uniform,
            zero_percent: 40,
            compressible_percent: 60,
            threads: 2,
            seed: 1,
        }
    }

    #[test]
    fn a_refusal_names_option_value_and_what_would_do() {
        type Case = (fn(&mut WorkloadOptions), &'static [&'static str]);
        let cases: [Case; 9] = [
            (|o| o.memory.0 = 0, &["memory is 0", "1 page"]),
            (|o| o.threads = 0, &["threads is 0", "1 to 64"]),
            (|o| o.threads = 65, &["threads is 65", "1 to 64"]),
            (|o| o.zero_percent = 101, &["zero-percent is 101", "0 to 100"]),
            (|o| o.compressible_percent = 255, &["compressible-percent is 255", "0 to 100"]),
            (|o| o.compressible_percent = 61, &["40 and 61", "0 to 60"]),
            (|o| o.working_set.0 = 1001, &["working-set is 1001 pages", "at most 1000"]),
            (
                |o| o.working_set.0 = 1,
                &["working-set is 1 pages", "one page for each", "dirty-rate must be 0"],
            ),
            (|o| o.working_set.0 = 611, &["zero-percent is 40, that is 400", "there are 389", "at most 38"]),
        ];
        for (change, parts) in cases {
            let mut options = options();
            change(&mut options);
            let error = Workload::new(options).expect_err("refused").to_string();
            for part in parts {
                assert!(error.contains(part), "{error:?} lacks {part:?}");
            }
        }
    }

    #[test]
    fn what_fits_exactly_is_taken() {
        assert!(Workload::new(options()).is_ok());
        let idle = WorkloadOptions {
            working_set: PageCount(0),
            dirty_rate_bytes_per_second: 0,
            zero_percent: 100,
            compressible_percent: 0,
            ..options()
        };
        assert!(Workload::new(idle).is_ok(), "an idle guest needs no working set");
    }

    #[test]
    fn a_pattern_reads_back_as_written() {
        for (pattern, name) in PATTERNS {
            assert_eq!(pattern.to_string(), name);
            assert_eq!(name.parse(), Ok(pattern));
            assert_eq!(serde_json::to_string(&pattern).expect("serialises"), format!("{name:?}"));
        }
        let error = "Hot".parse::<Pattern>().expect_err("no pattern").to_string();
        assert!(error.contains("\"Hot\"") && error.contains("hot-set"), "{error}");
    }

    #[test]
    fn a_workload_is_checked_when_it_is_decoded() {
        let text = serde_json::to_string(&Workload::new(options()).expect("fits")).expect("serialises");
        assert_eq!(serde_json::from_str::<Workload>(&text).map(WorkloadOptions::from).ok(), Some(options()));
        let error = serde_json::from_str::<Workload>(&text.replace("\"threads\":2", "\"threads\":0"));
        assert!(error.expect_err("refused").to_string().contains("threads is 0"));
    }
}
