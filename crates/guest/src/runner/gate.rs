//! The one place that lets the guest's threads run and makes them stand still, and counts how long it ran.
//!
//! ```text
//!   shut ──open()──▶ open ──shut()──▶ shut        for good reasons that last: paused, not started yet
//!            + any number of holds               for a while: a verification
//!
//!   thread:  enter() ─▶ Pass ─▶ a millisecond of writing ─▶ drop
//! ```
//!
//! Always true: while a [`Pass`] exists the guest is not still; once [`Gate::is_still`] says so, no thread
//! writes until `open` is called or the last hold is dropped. A thread that sleeps holds no pass, so pausing
//! wakes nobody. Time counts as run from opening to the request to stand still.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a waiter asks whether its waiting is still of use.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Copy of [`State::lets_in`], so that a thread can look after every page without the lock.
    lets_in: AtomicBool,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    holds: u32,
    /// Passes out.
    inside: u32,
    /// Time run before the present opening.
    ran: Duration,
    /// Since when it runs now.
    since: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Shut,
    Open,
    /// All threads leave.
    Ended,
}

impl State {
    fn lets_in(&self) -> bool {
        self.mode == Mode::Open && self.holds == 0
    }

    fn ran(&self) -> Duration {
        self.ran + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// The right to write guest memory, for a moment.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    ran: Duration,
}

/// Keeps a guest still without pausing it.
#[derive(Debug)]
pub(super) struct Hold<'a>(&'a Gate);

impl Gate {
    /// A shut gate of a guest that has already run for so long.
    pub(super) fn new(ran: Duration) -> Self {
        let state = State { mode: Mode::Shut, holds: 0, inside: 0, ran, since: None };
        Self { state: Mutex::new(state), changed: Condvar::new(), lets_in: AtomicBool::new(false) }
    }

    /// Waits until the guest runs. `None`: it never will again, the thread ends.
    pub(super) fn enter(&self) -> Option<Pass<'_>> {
        let mut state = self.lock();
        while !state.lets_in() {
            if state.mode == Mode::Ended {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.inside += 1;
        Some(Pass { gate: self, ran: state.ran() })
    }

    /// Lets the threads run.
    pub(super) fn open(&self) {
        self.change(|state| state.mode = Mode::Open);
    }

    /// Asks all threads to stand still until [`Self::open`].
    pub(super) fn shut(&self) {
        self.change(|state| state.mode = Mode::Shut);
    }

    /// Asks all threads to end.
    pub(super) fn end(&self) {
        self.change(|state| state.mode = Mode::Ended);
    }

    /// Asks all threads to stand still for as long as the hold lives.
    pub(super) fn hold(&self) -> Hold<'_> {
        self.change(|state| state.holds += 1);
        Hold(self)
    }

    /// Whether no thread writes, and none begins to.
    pub(super) fn is_still(&self) -> bool {
        let state = self.lock();
        !state.lets_in() && state.inside == 0
    }

    /// Waits until the guest stands still. `false` if it was let run again, or if the caller gave up: a
    /// thread may be stuck in a page fault for as long as the network is away.
    pub(super) fn wait_still(&self, give_up: impl Fn() -> bool) -> bool {
        loop {
            // The lock is not held while the caller is asked: he may hold others then.
            let state = self.lock();
            if state.lets_in() {
                return false;
            }
            if state.inside == 0 {
                return true;
            }
            drop(self.changed.wait_timeout(state, ASK_EVERY).unwrap_or_else(PoisonError::into_inner));
            if give_up() {
                return self.is_still();
            }
        }
    }

    /// How long the guest has run.
    pub(super) fn ran(&self) -> Duration {
        self.lock().ran()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let lets_in = state.lets_in();
        match (lets_in, state.since) {
            (true, None) => state.since = Some(Instant::now()),
            (false, Some(since)) => {
                state.ran += since.elapsed();
                state.since = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
        self.lets_in.store(lets_in, Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// How long the guest had run when the pass was given: the guest's own time, which stands still with it.
    pub(super) fn ran(&self) -> Duration {
        self.ran
    }

    /// Whether somebody waits for the guest to stand still.
    pub(super) fn must_leave(&self) -> bool {
        !self.gate.lets_in.load(Ordering::Relaxed)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.inside -= 1;
        if state.inside == 0 && !state.lets_in() {
            self.gate.changed.notify_all();
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.holds -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const NEVER: fn() -> bool = || false;

    /// Runs `judge` beside four threads that count as long as they are let in.
    fn with_counters(judge: impl FnOnce(&Gate, &AtomicU64)) {
        let (gate, count) = (Gate::new(Duration::ZERO), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(pass) = gate.enter() {
                        while !pass.must_leave() {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            judge(&gate, &count);
            gate.end();
        });
    }

    fn counts(count: &AtomicU64) -> bool {
        let (before, deadline) = (count.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(10));
        while count.load(Ordering::Relaxed) == before && Instant::now() < deadline {
            std::thread::yield_now();
        }
        count.load(Ordering::Relaxed) != before
    }

    #[test]
    fn once_still_nothing_moves_until_opened() {
        with_counters(|gate, count| {
            assert!(gate.is_still(), "shut at first");
            for _ in 0..50 {
                gate.open();
                assert!(counts(count));
                gate.shut();
                assert!(gate.wait_still(NEVER));
                let (at, ran) = (count.load(Ordering::Relaxed), gate.ran());
                std::thread::yield_now();
                assert_eq!((count.load(Ordering::Relaxed), gate.ran()), (at, ran));
            }
        });
    }

    #[test]
    fn holds_and_shutting_are_independent() {
        with_counters(|gate, count| {
            gate.open();
            let (one, other) = (gate.hold(), gate.hold());
            assert!(gate.wait_still(NEVER));
            drop(one);
            assert!(gate.is_still(), "one hold is left");
            gate.shut();
            drop(other);
            assert!(gate.is_still(), "shut meanwhile");
            gate.open();
            assert!(counts(count));
        });
    }

    #[test]
    fn a_waiter_learns_that_it_was_overtaken_or_gives_up() {
        let gate = Gate::new(Duration::ZERO);
        gate.open();
        assert!(!gate.wait_still(NEVER), "it runs");
        let pass = gate.enter().expect("open");
        gate.shut();
        assert!(pass.must_leave());
        assert!(!gate.wait_still(|| true), "the pass is out");
        drop(pass);
        assert!(gate.wait_still(NEVER));
        gate.end();
        assert!(gate.enter().is_none());
    }
}
