//! The device state of a built-in guest: everything about it that is not in its RAM.
//!
//! ```text
//!   Program, standing still ──▶ DeviceState ──▶ JSON bytes ──▶ (another host) ──▶ DeviceState ──▶ Program
//! ```
//!
//! Always true of a state that was decoded: its workload fits the memory it is for, and its counters belong to
//! that workload's threads. The same guest standing still gives the same bytes.

use godwit_domain::PageCount;
use godwit_wire::handoff::{Refusal, STATE_BYTES_MAX};
use serde::{Deserialize, Serialize};

use super::decide::refusal;
use super::sequence::Sequence;
use super::workload::Workload;

/// The version that is written, and the only one that is read.
const VERSION: u16 = 1;
/// Greatest counter: 200 years at ten million steps a second. Below it no sum and no lap overflows.
const COUNT_MAX: u64 = 1 << 56;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceState {
    v: u16,
    /// What the guest does; with it the size of its memory.
    pub(super) workload: Workload,
    /// Steps done by each thread. What every page must hold follows from these.
    pub(super) steps: Vec<u64>,
    /// The last tick written.
    pub(super) tick: u64,
    /// Time the guest has run, in microseconds.
    pub(super) running_us: u64,
}

/// The version alone, to tell a later format from a broken one.
#[derive(Deserialize)]
struct Versioned {
    v: u16,
}

impl DeviceState {
    pub(super) fn new(workload: Workload, steps: Vec<u64>, tick: u64, running_us: u64) -> Self {
        Self { v: VERSION, workload, steps, tick, running_us }
    }

    /// Reads a state for a memory of this size. Refused by `format` or, where a value does not fit, `range`.
    pub(super) fn decode(bytes: &[u8], memory: PageCount) -> Result<Self, Refusal> {
        if bytes.len() > STATE_BYTES_MAX {
            let message = format!("state has {} bytes; at most {STATE_BYTES_MAX} are taken", bytes.len());
            return Err(refusal("range", message));
        }
        let broken =
            |error: serde_json::Error| refusal("format", format!("state of a built-in guest: {error}"));
        let Versioned { v } = serde_json::from_slice(bytes).map_err(broken)?;
        if v != VERSION {
            let message = format!("state has version {v}; this runner reads {VERSION}");
            return Err(refusal("format", message));
        }
        let state: Self = serde_json::from_slice(bytes).map_err(broken)?;
        state.check(memory).map_err(|message| refusal("range", message)).map(|()| state)
    }

    fn check(&self, memory: PageCount) -> Result<(), String> {
        let options = self.workload.options();
        if options.memory != memory {
            let (had, has) = (options.memory.0, memory.0);
            return Err(format!("state is of a guest with {had} pages of memory; this runner has {has}"));
        }
        let sequences = Sequence::all(options);
        if self.steps.len() != sequences.len() {
            let (had, has) = (self.steps.len(), sequences.len());
            return Err(format!("state has {had} step counters for {has} threads"));
        }
        if self.tick > COUNT_MAX || self.running_us > COUNT_MAX {
            return Err(format!("state has tick {} after {} us; neither can be", self.tick, self.running_us));
        }
        let bad = |(steps, sequence): &(&u64, &Sequence)| {
            **steps > COUNT_MAX || (**steps > 0 && sequence.len() == 0)
        };
        match self.steps.iter().zip(&sequences).find(bad) {
            Some((steps, sequence)) => {
                Err(format!("state counts {steps} steps of a thread that owns {} pages", sequence.len()))
            }
            None => Ok(()),
        }
    }

    /// The bytes to send.
    pub(super) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::workload::{Pattern, WorkloadOptions};
    use proptest::prelude::*;

    const MEMORY: PageCount = PageCount(100);

    fn state() -> DeviceState {
        let options = WorkloadOptions {
            memory: MEMORY,
            working_set: PageCount(50),
            dirty_rate_bytes_per_second: 1,
            pattern: Pattern::HotSet,
            zero_percent: 10,
            compressible_percent: 10,
            threads: 2,
            seed: u64::MAX,
        };
        DeviceState::new(Workload::new(options).expect("fits"), vec![7, 8], 9, 10)
    }

    /// A guest that was saved by release 0.1 runs on under any later one.
    #[test]
    fn a_state_of_the_first_release_is_read() {
        const KEPT: &str = include_str!("../../../../tests/fixtures/0.1/device-state.json");
        let read = DeviceState::decode(KEPT.trim_end().as_bytes(), MEMORY).expect("is read");
        assert_eq!(read, state());
        assert_eq!(read.encode().expect("is written"), KEPT.trim_end().as_bytes(), "and written as it was");
    }

    #[test]
    fn a_state_reads_back_as_written() {
        let bytes = state().encode().expect("encodes");
        assert_eq!(DeviceState::decode(&bytes, MEMORY), Ok(state()));
        assert_eq!(state().encode().expect("encodes"), bytes);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let text = String::from_utf8(state().encode().expect("encodes")).expect("JSON");
        for (from, to, rule, part) in [
            ("\"v\":1", "\"v\":2", "format", "version 2"),
            ("\"v\":1,", "", "format", "missing field `v`"),
            ("\"tick\"", "\"tock\"", "format", "tock"),
            ("\"memory\":100", "\"memory\":101", "range", "101 pages"),
            ("\"threads\":2", "\"threads\":0", "format", "threads is 0"),
            ("\"threads\":2", "\"threads\":3", "range", "2 step counters for 3 threads"),
            ("[7,8]", "[7,99999999999999999]", "range", "99999999999999999 steps"),
            (
                "\"working_set\":50,\"dirty_rate_bytes_per_second\":1",
                "\"working_set\":0,\"dirty_rate_bytes_per_second\":0",
                "range",
                "owns 0 pages",
            ),
            ("[7,8]", "[7,", "format", "state of a built-in guest"),
            ("\"tick\":9", "\"tick\":18446744073709551615", "range", "tick"),
        ] {
            assert!(text.contains(from), "{text} lacks {from}");
            let error = DeviceState::decode(text.replace(from, to).as_bytes(), MEMORY).expect_err(to);
            assert!(error.rule == rule && error.message.contains(part), "{to} gave {error}");
        }
        let error = DeviceState::decode(&vec![b' '; STATE_BYTES_MAX + 1], MEMORY).expect_err("too long");
        assert_eq!(error.rule, "range");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = DeviceState::decode(&bytes, MEMORY);
        }
    }
}
