//! What was done about a copy, round by round, and why: for people, and for the record.
//!
//! Always true: at most [`STEPS_MAX`] of them, the newest; what is done again in the next round is the same step, gone on.

use serde::{Deserialize, Serialize};

use crate::units::Round;

/// Steps that are kept.
pub const STEPS_MAX: usize = 16;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Did {
    /// Another round: the rest does not fit into the allowed downtime, or still halves.
    GoOn,
    /// It would be stopped, and no quorum of the control group answers: another round until one does.
    WaitForQuorum,
    /// So many percent of its time are taken from the guest: rounds have brought nothing.
    Throttle(u8),
    /// It is throttled no longer: the permission was withdrawn.
    LetFree,
    /// The rest fits: the guest is stopped.
    SwitchOver,
    /// It is stopped, to go on as post-copy.
    PostCopy,
    /// The deadline has passed: it is stopped though that takes longer than `maxDowntimeMs`.
    PauseAndFinish,
    /// The copy is given up.
    GiveUp,
}

/// A step, with the numbers that led to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The round at whose end, or in which, it was taken first.
    pub from_round: u16,
    /// The last one in which it was taken without another step between.
    pub round: u16,
    /// What was done.
    pub did: Did,
    /// What was left at the end of the round before, in bytes.
    pub before_bytes: u64,
    /// What was left when it was taken last, in bytes.
    pub left_bytes: u64,
    /// How long a pause would have taken then, in milliseconds.
    pub downtime_ms: u64,
}

/// The newest steps of a copy, the oldest of them first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    steps: Vec<Step>,
}

impl Record {
    /// The steps.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// This is done now.
    pub fn note(&mut self, did: Did, round: Round, before_bytes: u64, left_bytes: u64, downtime_ms: u64) {
        let new = Step { from_round: round.0, round: round.0, did, before_bytes, left_bytes, downtime_ms };
        match self.steps.last_mut().filter(|last| last.did == did) {
            // Where it began is more than what the last round has changed.
            Some(last) => {
                *last = Step { from_round: last.from_round, before_bytes: last.before_bytes, ..new };
            }
            None => self.steps.push(new),
        }
        if self.steps.len() > STEPS_MAX {
            self.steps.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_again_is_one_step_and_only_the_newest_are_kept() {
        let mut record = Record::default();
        for round in 1..=5 {
            let left = 100 - u64::from(round);
            record.note(Did::GoOn, Round(round), left + 1, left, 7);
        }
        let step = Step {
            from_round: 1,
            round: 5,
            did: Did::GoOn,
            before_bytes: 100,
            left_bytes: 95,
            downtime_ms: 7,
        };
        assert_eq!(record.steps(), [step]);
        for round in 6..60 {
            record.note(Did::Throttle(u8::try_from(round).expect("small")), Round(round), 1, 1, 1);
        }
        assert_eq!(record.steps().len(), STEPS_MAX);
        assert_eq!(record.steps().last().map(|step| step.did), Some(Did::Throttle(59)));
    }
}
