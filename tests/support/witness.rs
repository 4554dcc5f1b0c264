//! How long this machine let nobody run: what of a guest's standing still is the host's, and not Godwit's.
//!
//! ```text
//!   on each processor a thread that sleeps a millisecond ─▶ it woke much later ─▶ (when, how late) ─▶ all of it between two ticks
//! ```
//!
//! Always true: each does as little as a guest's thread that writes ticks, so whatever holds up the one holds up the other; a
//! host may take one processor away and leave the others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use godwit::lab::monotonic_ns;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// How long it sleeps.
const SLEEP: Duration = Duration::from_millis(1);
/// What is worth remembering.
const LATE_NS_MIN: u64 = 20_000_000;

/// When it woke, and how many nanoseconds after it should have, of every time that it was late.
type Late = Vec<(u64, u64)>;

/// See the module.
pub(crate) struct Witness {
    late: Vec<Arc<Mutex<Late>>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Witness {
    pub(crate) fn start() -> Self {
        let mut witness =
            Self { late: Vec::new(), over: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
        let allowed = sched_getaffinity(None).expect("where this may run");
        for processor in (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor)) {
            let late = Arc::new(Mutex::new(Late::new()));
            let (seen, over) = (Arc::clone(&late), Arc::clone(&witness.over));
            witness.threads.push(std::thread::spawn(move || watch(processor, &seen, &over)));
            witness.late.push(late);
        }
        witness
    }

    /// For how many nanoseconds between two moments a thread was not let run, on the processor that was held up longest.
    pub(crate) fn late_ns(&self, from_ns: u64, to_ns: u64) -> u64 {
        let between =
            |(woke, length): &(u64, u64)| (*woke).min(to_ns).saturating_sub((*woke - *length).max(from_ns));
        let of_each =
            self.late.iter().map(|late| late.lock().expect("no panic there").iter().map(between).sum());
        of_each.max().unwrap_or(0)
    }
}

fn watch(processor: usize, seen: &Mutex<Late>, over: &AtomicBool) {
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(None, &only).expect("it may run there");
    while !over.load(Ordering::Relaxed) {
        let slept = monotonic_ns();
        std::thread::sleep(SLEEP);
        let woke = monotonic_ns();
        if woke - slept > LATE_NS_MIN {
            seen.lock().expect("no panic here").push((woke, woke - slept));
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
