//! Who waits for which entry. Beside the replicated state, never in it: a promise dies with its leader.
//!
//! ```text
//!   proposed (term, index) ─▶ waiting ──┬── its entry is applied ─────────────────▶ Applied
//!                                       ├── another entry is applied at its index ▶ Unknown
//!                                       ├── a snapshot skips its index ───────────▶ Unknown
//!                                       ├── the leadership is lost ───────────────▶ Unknown
//!                                       └── its time is up ───────────────────────▶ Unknown
//! ```
//!
//! Always true: each caller is answered exactly once; nobody waits without a deadline; there are at most
//! [`PROMISES_MAX`]. Unknown means unknown: the entry may still be applied, so a caller asks again with the same
//! request id inside his entry.

use std::collections::VecDeque;
use std::time::Duration;

use crate::engine::Position;

/// Callers that may wait at once. Each is an operator or a node with one open question; more than this means that
/// nothing is being agreed, and then waiting is no help.
pub const PROMISES_MAX: usize = 1024;

/// What became of a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its entry is applied.
    Applied,
    /// Nobody knows; it may yet be applied.
    Unknown,
}

#[derive(Debug)]
struct Promise<C> {
    position: Position,
    deadline: Duration,
    caller: C,
}

/// The callers that wait, in order of index. `C` is how a caller is answered.
#[derive(Debug)]
pub struct Promises<C> {
    waiting: VecDeque<Promise<C>>,
}

impl<C> Default for Promises<C> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<C> Promises<C> {
    /// How many wait.
    pub fn count(&self) -> usize {
        self.waiting.len()
    }

    /// A caller waits for the entry that was just proposed at this position. Whoever waited for an entry at this
    /// index or behind it, proposed under an earlier leadership, learns that nobody knows.
    pub fn make(&mut self, position: Position, deadline: Duration, caller: C) -> Vec<(C, Outcome)> {
        let first = self.waiting.partition_point(|promise| promise.position.index < position.index);
        let overtaken =
            self.waiting.drain(first..).map(|promise| (promise.caller, Outcome::Unknown)).collect();
        self.waiting.push_back(Promise { position, deadline, caller });
        overtaken
    }

    /// An entry was applied.
    pub fn applied(&mut self, position: Position) -> Vec<(C, Outcome)> {
        let mut answers = self.skipped(position.index.saturating_sub(1));
        if self.waiting.front().is_some_and(|promise| promise.position.index == position.index) {
            answers.extend(self.waiting.pop_front().map(|promise| {
                let same = promise.position == position;
                (promise.caller, if same { Outcome::Applied } else { Outcome::Unknown })
            }));
        }
        answers
    }

    /// The state is that of an entry whose predecessors were not applied one by one.
    pub fn skipped(&mut self, to: u64) -> Vec<(C, Outcome)> {
        let count = self.waiting.partition_point(|promise| promise.position.index <= to);
        self.waiting.drain(..count).map(|promise| (promise.caller, Outcome::Unknown)).collect()
    }

    /// This node leads in this term, or not at all. What was proposed under another leadership is unknown.
    pub fn led(&mut self, term: Option<u64>) -> Vec<(C, Outcome)> {
        self.take_if(|promise| Some(promise.position.term) != term)
    }

    /// The time is now.
    pub fn expire(&mut self, now: Duration) -> Vec<(C, Outcome)> {
        self.take_if(|promise| promise.deadline <= now)
    }

    fn take_if(&mut self, is_over: impl Fn(&Promise<C>) -> bool) -> Vec<(C, Outcome)> {
        let mut over = Vec::new();
        for promise in std::mem::take(&mut self.waiting) {
            if is_over(&promise) {
                over.push((promise.caller, Outcome::Unknown));
            } else {
                self.waiting.push_back(promise);
            }
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LATER: Duration = Duration::from_secs(10);

    fn at(term: u64, index: u64) -> Position {
        Position { term, index }
    }

    fn waiting(positions: &[(u64, u64)]) -> Promises<u64> {
        let mut promises = Promises::default();
        for (term, index) in positions {
            assert_eq!(promises.make(at(*term, *index), LATER, *index), []);
        }
        promises
    }

    #[test]
    fn a_promise_is_kept_only_by_its_own_entry() {
        use Outcome::{Applied, Unknown};
        type Step = fn(&mut Promises<u64>) -> Vec<(u64, Outcome)>;
        type Row<'a> = (&'a str, Step, &'a [(u64, Outcome)], usize);
        let table: [Row<'_>; 9] = [
            ("an earlier entry", |p| p.applied(at(2, 3)), &[], 3),
            ("its entry", |p| p.applied(at(2, 4)), &[(4, Applied)], 2),
            ("another's entry at its index", |p| p.applied(at(3, 4)), &[(4, Unknown)], 2),
            ("an entry behind it", |p| p.applied(at(2, 5)), &[(4, Unknown), (5, Applied)], 1),
            ("a snapshot", |p| p.skipped(5), &[(4, Unknown), (5, Unknown)], 1),
            ("the same leadership", |p| p.led(Some(2)), &[], 3),
            ("the next leadership", |p| p.led(Some(3)), &[(4, Unknown), (5, Unknown), (7, Unknown)], 0),
            ("no leadership", |p| p.led(None), &[(4, Unknown), (5, Unknown), (7, Unknown)], 0),
            (
                "a new proposal at its index",
                |p| p.make(at(3, 5), LATER, 50),
                &[(5, Unknown), (7, Unknown)],
                2,
            ),
        ];
        for (what, step, answers, left) in table {
            let mut promises = waiting(&[(2, 4), (2, 5), (2, 7)]);
            assert_eq!(step(&mut promises), answers, "{what}");
            assert_eq!(promises.count(), left, "{what}");
        }
    }

    #[test]
    fn time_ends_a_promise_when_it_is_due() {
        let mut promises = Promises::default();
        promises.make(at(1, 1), Duration::from_secs(2), 'a');
        promises.make(at(1, 2), Duration::from_secs(1), 'b');
        assert_eq!(promises.expire(Duration::from_millis(999)), []);
        assert_eq!(promises.expire(Duration::from_secs(1)), [('b', Outcome::Unknown)]);
        assert_eq!(promises.expire(Duration::from_secs(2)), [('a', Outcome::Unknown)]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Propose(u64),
        Apply { term: u64, index: u64 },
        Skip(u64),
        Lead(Option<u64>),
        Time(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (1..5_u64).prop_map(Step::Propose),
            3 => (1..5_u64, 1..40_u64).prop_map(|(term, index)| Step::Apply { term, index }),
            1 => (1..40_u64).prop_map(Step::Skip),
            1 => proptest::option::of(1..5_u64).prop_map(Step::Lead),
            1 => (0..100_u64).prop_map(Step::Time),
        ];
        proptest::collection::vec(step, 0..120)
    }

    proptest! {
        /// Whatever happens in whatever order: one answer for each, and `Applied` only for the very entry.
        #[test]
        fn every_caller_is_answered_once_and_never_lied_to(steps in steps()) {
            let mut promises = Promises::default();
            let mut asked: Vec<(Position, u32)> = Vec::new();
            let mut index = 0;
            for step in steps {
                let mut kept = None;
                let answers = match step {
                    Step::Propose(term) => {
                        // A new leadership may go back to an earlier index; the same one never does.
                        index = if asked.last().is_some_and(|(last, _)| last.term == term) { index + 1 } else { index / 2 + 1 };
                        asked.push((at(term, index), 0));
                        promises.make(at(term, index), Duration::from_secs(50), asked.len() - 1)
                    }
                    Step::Apply { term, index } => {
                        kept = Some(at(term, index));
                        promises.applied(at(term, index))
                    }
                    Step::Skip(to) => promises.skipped(to),
                    Step::Lead(term) => promises.led(term),
                    Step::Time(now) => promises.expire(Duration::from_secs(now)),
                };
                for (caller, outcome) in answers {
                    asked[caller].1 += 1;
                    prop_assert_eq!(asked[caller].1, 1, "answered twice");
                    prop_assert_eq!(outcome == Outcome::Applied, Some(asked[caller].0) == kept);
                }
            }
            for (caller, _) in promises.led(None) {
                asked[caller].1 += 1;
            }
            prop_assert!(asked.iter().all(|(_, answers)| *answers == 1));
        }
    }
}
