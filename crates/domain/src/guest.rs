//! What a guest is like: the numbers that a built-in runner is started with, or the virtual machine that QEMU runs.
//!
//! ```text
//!   GuestSpec ─ qemu: None ───▶ the built-in runner, its memory and what it writes
//!             └ qemu: Some ───▶ QEMU, its memory and its arguments; what the built-in runner would write means nothing
//! ```
//!
//! Never here: whether they fit together. The runner checks them all when it is started, and refuses by name.

use serde::{Deserialize, Serialize};

use crate::qemu::Qemu;

/// Longest name of a pattern, in bytes: what a runner knows is far shorter.
pub const PATTERN_BYTES_MAX: usize = 32;

/// A guest of the built-in runner. See `godwit guest run --help` for what each option means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestSpec {
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// Bytes that its threads write over and over.
    pub working_set_bytes: u64,
    /// Distinct pages written per second, in bytes.
    pub dirty_rate_bytes_per_second: u64,
    /// `uniform`, `hot-set` or `streaming`.
    pub pattern: String,
    /// Share of pages that stay zero, in percent.
    pub zero_percent: u8,
    /// Share of pages that compress well, in percent; the rest is random.
    pub compressible_percent: u8,
    /// Threads that write.
    pub threads: u8,
    /// What everything random in it comes from.
    pub seed: u64,
    /// Time between ticks, in milliseconds.
    pub tick_interval_ms: u64,
    /// What QEMU is started with; `None`: the built-in runner runs it.
    #[serde(default)]
    pub qemu: Option<Qemu>,
}

impl GuestSpec {
    /// A guest of this size that writes nothing.
    pub fn idle(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            working_set_bytes: memory_bytes,
            dirty_rate_bytes_per_second: 0,
            pattern: "uniform".to_owned(),
            zero_percent: 0,
            compressible_percent: 30,
            threads: 1,
            seed: 1,
            tick_interval_ms: 1,
            qemu: None,
        }
    }
}
