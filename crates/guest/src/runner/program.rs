//! What a built-in guest is, wherever it runs: its workload, how far each thread has come, and its clock.
//!
//! ```text
//!   new(workload)            ─▶ Program ─▶ fill: version 0 of every page
//!   from_state(DeviceState)  ─▶ Program ─▶ state(): the same again, on another host
//!
//!   steps ─┬─▶ the page that the next step writes     (`do_step`)
//!          └─▶ what every page must hold now          (`expected`)
//! ```
//!
//! Always true: a thread's counter is raised after its page is written, so once the gate is still, counters and
//! pages agree.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use godwit_domain::PageIndex;
use godwit_memory::Ram;
use godwit_memory::ram::PAGE_WORDS;

use super::content::{Class, Content, Words};
use super::gate::Gate;
use super::pace::Meter;
use super::sequence::{Sequence, thread_of};
use super::state::DeviceState;
use super::sweep::sweep;
use super::workload::{Workload, WorkloadOptions};

/// See the module.
#[derive(Debug)]
pub(super) struct Program {
    workload: Workload,
    content: Content,
    sequences: Vec<Sequence>,
    /// Steps done by each thread.
    steps: Vec<AtomicU64>,
    /// The last tick written.
    tick: AtomicU64,
    meter: Mutex<Meter>,
    gate: Gate,
}

impl Program {
    /// A guest that has never run.
    pub(super) fn new(workload: Workload) -> Self {
        let steps = vec![0; usize::from(workload.options().threads)];
        Self::from_state(DeviceState::new(workload, steps, 0, 0))
    }

    /// A guest that goes on where it stood. The gate is shut.
    pub(super) fn from_state(state: DeviceState) -> Self {
        Self {
            content: Content::new(&state.workload),
            sequences: Sequence::all(state.workload.options()),
            workload: state.workload,
            steps: state.steps.into_iter().map(AtomicU64::new).collect(),
            tick: AtomicU64::new(state.tick),
            meter: Mutex::new(Meter::default()),
            gate: Gate::new(Duration::from_micros(state.running_us)),
        }
    }

    /// How it stands. Only of a guest that stands still is it the whole truth.
    pub(super) fn state(&self) -> DeviceState {
        DeviceState::new(self.workload.clone(), self.steps(), self.tick(), self.running_us())
    }

    pub(super) fn options(&self) -> &WorkloadOptions {
        self.workload.options()
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(super) fn steps(&self) -> Vec<u64> {
        self.steps.iter().map(|steps| steps.load(Ordering::Acquire)).collect()
    }

    pub(super) fn tick(&self) -> u64 {
        self.tick.load(Ordering::Acquire)
    }

    /// Notes that a tick was written.
    pub(super) fn ticked(&self, tick: u64) {
        self.tick.store(tick, Ordering::Release);
    }

    pub(super) fn running_us(&self) -> u64 {
        u64::try_from(self.gate.ran().as_micros()).unwrap_or(u64::MAX)
    }

    /// Writes the first version of every page, on all processors. Zero pages stay holes: they take no memory.
    pub(super) fn fill(&self, ram: &Ram) {
        sweep(
            ram.pages(),
            || true,
            || [0; PAGE_WORDS],
            |words, page| {
                if self.content.class(page) != Class::Zero {
                    self.content.make(page, 0, words);
                    ram.write_page(page, words);
                }
            },
        );
    }

    /// What a page must hold after these steps.
    pub(super) fn expected(&self, steps: &[u64], page: PageIndex, words: &mut Words) {
        let last = thread_of(self.options(), page).and_then(|thread| {
            let (sequence, steps) = (self.sequences.get(thread)?, steps.get(thread)?);
            sequence.last_before(*steps, page)
        });
        self.content.make(page, last.map_or(0, version_of_step), words);
    }

    /// Bytes per second that a thread must store so that the guest dirties memory as fast as was asked.
    pub(super) fn stores_for(&self, thread: usize) -> u64 {
        let options = self.options();
        let part = options.dirty_rate_bytes_per_second / u64::from(options.threads);
        self.sequences.get(thread).map_or(0, |sequence| sequence.stores_for(part))
    }

    /// Does the next step of a thread: one page.
    pub(super) fn do_step(&self, ram: &Ram, thread: usize, words: &mut Words) {
        let (Some(sequence), Some(steps)) = (self.sequences.get(thread), self.steps.get(thread)) else {
            return;
        };
        let step = steps.load(Ordering::Relaxed); // only this thread raises it
        let page = sequence.page_at(step);
        self.content.make(page, version_of_step(step), words);
        ram.write_page(page, words);
        steps.store(step + 1, Ordering::Release);
    }

    /// Notes how far the threads are, for [`Self::achieved`].
    pub(super) fn sample(&self) {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner).sample(self.gate.ran(), self.steps());
    }

    /// The dirty rate of the last second or so of running, in bytes per second.
    pub(super) fn achieved(&self) -> u64 {
        let (ran, steps) = (self.gate.ran(), self.steps());
        let stores = self.meter.lock().unwrap_or_else(PoisonError::into_inner).stores(ran, &steps);
        self.sequences.iter().zip(stores).map(|(sequence, stores)| sequence.distinct_at(stores)).sum()
    }
}

/// Version 0 is the first fill.
const fn version_of_step(step: u64) -> u64 {
    step + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::verify::verify;
    use crate::runner::workload::Pattern;
    use godwit_domain::PageCount;
    use godwit_memory::Memfd;

    fn program(pattern: Pattern) -> Program {
        let options = WorkloadOptions {
            memory: PageCount(500),
            working_set: PageCount(300),
            dirty_rate_bytes_per_second: 1,
            pattern,
            zero_percent: 20,
            compressible_percent: 40,
            threads: 3,
            seed: 11,
        };
        Program::new(Workload::new(options).expect("fits"))
    }

    fn run(program: &Program, ram: &Ram, steps: [u64; 3]) {
        for (thread, steps) in steps.into_iter().enumerate() {
            for _ in 0..steps {
                program.do_step(ram, thread, &mut [0; PAGE_WORDS]);
            }
        }
    }

    fn wrong(program: &Program, ram: &Ram) -> Vec<u64> {
        verify(program, ram, || true).expect("not called off").first_wrong
    }

    #[test]
    fn every_page_is_as_the_counters_say_also_after_a_move() {
        for pattern in [Pattern::Uniform, Pattern::HotSet, Pattern::Streaming] {
            let program = program(pattern);
            let ram = Ram::map(&Memfd::create("test", PageCount(500)).expect("memfd")).expect("map");
            program.fill(&ram);
            assert_eq!(wrong(&program, &ram), [0; 0]);
            run(&program, &ram, [1, 250, 99]);
            assert_eq!(wrong(&program, &ram), [0; 0]);
            let moved = Program::from_state(program.state());
            assert_eq!(moved.state(), program.state());
            run(&moved, &ram, [350, 3, 0]);
            assert_eq!(wrong(&moved, &ram), [0; 0]);
            assert_eq!(moved.steps(), [351, 253, 99]);
            assert_ne!(wrong(&program, &ram), [0; 0], "the older self does not know these pages");
        }
    }

    #[test]
    fn wrong_pages_are_counted_and_the_first_are_named() {
        let program = program(Pattern::Uniform);
        let ram = Ram::map(&Memfd::create("test", PageCount(500)).expect("memfd")).expect("map");
        program.fill(&ram);
        let mut words = [0; PAGE_WORDS];
        for page in (3..=498).step_by(5).map(PageIndex) {
            ram.read_page(page, &mut words);
            words[511] ^= 1 << 63; // the least difference, at the very end
            ram.write_page(page, &words);
        }
        let verified = verify(&program, &ram, || true).expect("not called off");
        assert_eq!((verified.pages, verified.wrong), (500, 100));
        assert_eq!(verified.first_wrong, [3, 8, 13, 18, 23, 28, 33, 38]);
        assert_eq!(verify(&program, &ram, || false), None, "called off");
    }

    #[test]
    fn zero_pages_are_holes() {
        let program = program(Pattern::Uniform);
        let memory = Memfd::create("test", PageCount(500)).expect("memfd");
        program.fill(&Ram::map(&memory).expect("map"));
        let (mut data, mut at) = (0, 0);
        while let Some(run) = memory.data_from(PageIndex(at)).expect("seek") {
            data += run.count.0;
            at = run.first.0 + run.count.0;
        }
        assert_eq!(data, 400);
    }
}
