//! The threads of a running guest: writers, and one that ticks.
//!
//! ```text
//!   writer t   pass ─▶ earn, write up to a batch of pages ─▶ drop pass ─▶ nap ─▶ …
//!   beat       pass ─▶ tick if due, sample the meter      ─▶ drop pass ─▶ nap ─▶ …
//! ```
//!
//! Always true: a thread touches guest memory or the tick file only with a [`super::gate::Pass`], and goes by the
//! guest's own time, in which a pause takes none: the guest owes no pages afterwards, and a tick comes whenever
//! that time passes a multiple of the interval, on whatever host. Threads end when the gate does and are not
//! waited for: one may be stuck in a page fault, and the process ends anyway.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use godwit_memory::Ram;
use godwit_memory::ram::PAGE_WORDS;

use super::pace::{Pace, SAMPLE_EVERY, rest_after};
use super::program::Program;
use super::ticks::TickFile;

/// Pages between two looks at the clock: a tenth of a millisecond.
const BATCH_PAGES: u32 = 128;

/// What a guest needs of the process that it runs in.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) ram: Arc<Ram>,
    /// Percent of the time that is taken from the writers.
    pub(super) throttle_percent: Arc<AtomicU8>,
    pub(super) ticks: Arc<Mutex<TickFile>>,
    pub(super) tick_interval: Duration,
}

/// Starts a guest's threads. They wait at its gate. An idle guest has no writers.
pub(super) fn start(program: &Arc<Program>, host: &Host) -> io::Result<()> {
    let options = program.options();
    let writers = if options.dirty_rate_bytes_per_second == 0 { 0 } else { usize::from(options.threads) };
    let started = (0..writers)
        .try_for_each(|thread| {
            spawn(format!("writer-{thread}"), program, host, move |p, h| write(p, h, thread))
        })
        .and_then(|()| spawn("beat".to_owned(), program, host, beat));
    if started.is_err() {
        program.gate().end(); // those that did start leave
    }
    started
}

fn spawn(
    name: String,
    program: &Arc<Program>,
    host: &Host,
    body: impl FnOnce(&Program, &Host) + Send + 'static,
) -> io::Result<()> {
    let (program, host) = (Arc::clone(program), host.clone());
    std::thread::Builder::new().name(name).spawn(move || body(&program, &host)).map(drop)
}

fn write(program: &Program, host: &Host, thread: usize) {
    let mut pace = Pace::new(program.stores_for(thread));
    let mut words = [0; PAGE_WORDS];
    let mut earned_until = program.gate().ran();
    while let Some(pass) = program.gate().enter() {
        let (begun, throttle) = (Instant::now(), host.throttle_percent.load(Ordering::Relaxed));
        pace.earn(pass.ran().saturating_sub(earned_until), throttle);
        earned_until = pass.ran();
        let mut written = 0;
        while written < BATCH_PAGES && !pass.must_leave() && pace.take_page() {
            program.do_step(&host.ram, thread, &mut words);
            written += 1;
        }
        drop(pass);
        let behind = written == BATCH_PAGES;
        let nap = if behind { rest_after(begun.elapsed(), throttle) } else { pace.nap(throttle) };
        if !nap.is_zero() {
            std::thread::sleep(nap);
        }
    }
}

fn beat(program: &Program, host: &Host) {
    let interval = host.tick_interval;
    let mut next_sample = program.gate().ran();
    let mut next_tick = multiple_after(next_sample, interval);
    let mut failing = false;
    while let Some(pass) = program.gate().enter() {
        let ran = pass.ran();
        if ran >= next_sample {
            program.sample();
            next_sample = ran + SAMPLE_EVERY;
        }
        if ran >= next_tick {
            let written = tick(program, host);
            if let (Err(error), false) = (&written, failing) {
                tracing::warn!(%error, "ticks can not be written; the guest runs on, its ticks wait");
            }
            failing = written.is_err();
            next_tick = multiple_after(ran, interval); // missed ones are not made up for
        }
        drop(pass);
        std::thread::sleep(next_tick.min(next_sample).saturating_sub(ran));
    }
}

/// The next multiple of an interval above zero.
fn multiple_after(time: Duration, interval: Duration) -> Duration {
    let nanos = time.as_nanos() / interval.as_nanos() * interval.as_nanos();
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).saturating_add(interval)
}

fn tick(program: &Program, host: &Host) -> io::Result<()> {
    let tick = program.tick() + 1;
    host.ticks.lock().unwrap_or_else(PoisonError::into_inner).append(tick)?;
    program.ticked(tick);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_due_at_the_multiples() {
        let ms = Duration::from_millis;
        for (time, due) in [(0, 10), (9, 10), (10, 20), (11, 20), (1000, 1010)] {
            assert_eq!(multiple_after(ms(time), ms(10)), ms(due), "after {time}");
        }
        assert_eq!(multiple_after(Duration::MAX, Duration::MAX), Duration::MAX);
    }
}
