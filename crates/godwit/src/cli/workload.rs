//! What a guest of the built-in runner is like, as options.

use clap::Args;
use godwit_domain::{GuestSpec, PAGE_BYTES, PageCount, Quantity};
use godwit_guest::runner::{Pattern, WorkloadOptions};

/// What a built-in guest is like.
#[derive(Debug, Clone, Args)]
pub struct WorkloadArgs {
    /// RAM
    #[arg(long, default_value = "1Gi")]
    pub memory: Quantity,
    /// The part of RAM that is written over and over [default: a quarter of it]
    #[arg(long)]
    pub working_set: Option<Quantity>,
    /// Distinct 4 KiB pages written per second, in bytes; 0 for an idle guest
    #[arg(long, default_value = "100Mi")]
    pub dirty_rate: Quantity,
    /// Order of writes: uniform, hot-set (90 % to a tenth) or streaming
    #[arg(long, default_value = "uniform")]
    pub pattern: Pattern,
    /// Percent of RAM that stays zero, outside the working set
    #[arg(long, default_value_t = 0)]
    pub zero: u8,
    /// Percent of RAM that compresses well; the rest is random
    #[arg(long, default_value_t = 30)]
    pub compressible: u8,
    /// Threads that write
    #[arg(long, default_value_t = 2)]
    pub threads: u8,
    /// What everything random in the guest comes from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl WorkloadArgs {
    /// The working set in bytes: as asked, or a quarter of RAM in whole pages.
    pub fn working_set_bytes(&self) -> u64 {
        let quarter = self.memory.bytes() / 4 / PAGE_BYTES * PAGE_BYTES;
        self.working_set.map_or(quarter.max(PAGE_BYTES), Quantity::bytes)
    }

    /// RAM in pages.
    pub(super) fn memory_pages(&self) -> Result<PageCount, String> {
        pages("memory", self.memory.bytes())
    }

    /// For a runner of this process. Whether they fit together is not checked here.
    pub(super) fn options(&self) -> Result<WorkloadOptions, String> {
        let working_set = match self.working_set_bytes() {
            0 => PageCount(0),
            bytes => pages("working-set", bytes)?,
        };
        Ok(WorkloadOptions {
            memory: self.memory_pages()?,
            working_set,
            dirty_rate_bytes_per_second: self.dirty_rate.bytes(),
            pattern: self.pattern,
            zero_percent: self.zero,
            compressible_percent: self.compressible,
            threads: self.threads,
            seed: self.seed,
        })
    }

    /// For a runner that a node starts.
    pub(super) fn spec(&self, tick_interval_ms: u64) -> GuestSpec {
        GuestSpec {
            memory_bytes: self.memory.bytes(),
            working_set_bytes: self.working_set_bytes(),
            dirty_rate_bytes_per_second: self.dirty_rate.bytes(),
            pattern: self.pattern.to_string(),
            zero_percent: self.zero,
            compressible_percent: self.compressible,
            threads: self.threads,
            seed: self.seed,
            tick_interval_ms,
            qemu: None,
        }
    }
}

fn pages(option: &str, bytes: u64) -> Result<PageCount, String> {
    let rule = || format!("--{option} {bytes} is not a whole number of 4096-byte pages below 16 TiB");
    PageCount::of_memory(bytes).ok_or_else(rule)
}
