//! Who waits for proof that what is applied here is the present truth, so that a look at it is no look at the past.
//!
//! ```text
//!   asked at question q ─▶ a quorum answers q or a later one: everything up to `index` was agreed when it was asked
//!                             └─▶ applied up to `index` ─▶ proven
//!   not leading any more, or out of time ────────────────▶ not proven
//! ```
//!
//! No clock is part of the proof: however long a voter slept before, between or after, an entry that was agreed before
//! somebody asked is applied before he is told `true`.
//!
//! Always true: each caller is answered exactly once; nobody waits without a deadline; there are at most [`PROOFS_MAX`].

use std::time::Duration;

use godwit_domain::planted;

/// Callers that may wait at once, as many as for proposals.
pub const PROOFS_MAX: usize = 1024;

#[derive(Debug)]
struct Wanted<C> {
    /// The first question that was sent after it was asked for.
    question: u64,
    /// What must be applied, once that is known.
    index: Option<u64>,
    deadline: Duration,
    caller: C,
}

/// The callers that wait. `C` is how a caller is answered.
#[derive(Debug)]
pub struct Proofs<C> {
    wanted: Vec<Wanted<C>>,
}

impl<C> Default for Proofs<C> {
    fn default() -> Self {
        Self { wanted: Vec::new() }
    }
}

impl<C> Proofs<C> {
    /// Whether one more may wait.
    pub fn has_room(&self) -> bool {
        self.wanted.len() < PROOFS_MAX
    }

    /// A caller waits for a quorum's answer to this question, or to a later one.
    pub fn want(&mut self, question: u64, deadline: Duration, caller: C) {
        self.wanted.push(Wanted { question, index: None, deadline, caller });
    }

    /// A quorum has answered: what was agreed when the question was asked ends with `index`.
    pub fn answered(&mut self, question: u64, index: u64) {
        let fits = |wanted: &Wanted<C>| wanted.question <= question || planted::is_on("proof-by-old-answer");
        for wanted in self.wanted.iter_mut().filter(|wanted| fits(wanted)) {
            wanted.index.get_or_insert(index);
        }
    }

    /// Those that are proven, with so much applied.
    pub fn proven(&mut self, applied: u64) -> Vec<C> {
        self.take_if(|wanted| wanted.index.is_some_and(|index| index <= applied))
    }

    /// Those whose time is up.
    pub fn expire(&mut self, now: Duration) -> Vec<C> {
        self.take_if(|wanted| wanted.deadline <= now)
    }

    /// All.
    pub fn end(&mut self) -> Vec<C> {
        self.take_if(|_| true)
    }

    fn take_if(&mut self, is_over: impl Fn(&Wanted<C>) -> bool) -> Vec<C> {
        let (over, wait): (Vec<_>, Vec<_>) = self.wanted.drain(..).partition(is_over);
        self.wanted = wait;
        over.into_iter().map(|wanted| wanted.caller).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_secs(10);

    #[test]
    fn a_proof_needs_an_answer_to_a_question_asked_since_and_all_that_was_agreed_then() {
        let mut proofs = Proofs::default();
        proofs.want(5, LATER, "five");
        proofs.want(7, LATER, "seven");
        proofs.answered(4, 90);
        assert_eq!(proofs.proven(100), [""; 0], "an answer to an earlier question proves nothing");
        proofs.answered(6, 100);
        assert_eq!(proofs.proven(99), [""; 0], "it has not applied what was agreed");
        proofs.answered(8, 200);
        assert_eq!(proofs.proven(100), ["five"], "the first answer counts");
        assert_eq!(proofs.proven(199), [""; 0]);
        assert_eq!(proofs.proven(200), ["seven"]);
        assert_eq!(proofs.end(), [""; 0], "each once");
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut proofs = Proofs::default();
        proofs.want(1, Duration::from_secs(1), 'a');
        proofs.want(1, Duration::from_secs(2), 'b');
        assert_eq!(proofs.expire(Duration::from_millis(999)), []);
        assert_eq!(proofs.expire(Duration::from_secs(1)), ['a']);
        assert_eq!(proofs.end(), ['b']);
    }
}
