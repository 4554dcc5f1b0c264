//! When a time limit passes: which of the allowed ways ends the copy, and whether it still can.
//!
//! ```text
//!   progressTimeout passes   ─▶ Cancel (NoProgress)
//!   completion time passes   ─▶ disruption forbidden ─▶ Cancel (CompletionTimeout)
//!                               post-copy allowed    ─▶ PostCopy
//!                               pausing allowed      ─▶ PauseAndFinish ─▶ the rest fits into one more deadline? pause
//!                                                                         └─ no ─▶ Cancel (CompletionTimeout)
//!   paused to finish, and one more deadline passes   ─▶ Cancel (CompletionTimeout): the pause is taken back
//! ```
//!
//! Always true: limits are those that hold now, so a changed one counts at once, in both directions.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Allowed, Limits, Standing};

/// Why a copy was given up. The text begins with the name of the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum GaveUp {
    /// `completionTimeoutPerGiB` has passed.
    #[error("CompletionTimeout: not complete after {}; raise completionTimeoutPerGiB or the bandwidth", Seconds(*.0))]
    CompletionTimeout(Duration),
    /// It has passed, and pausing to finish is allowed, but would take longer than one more deadline.
    #[error(
        "CompletionTimeout: not complete after {}, and pausing the guest to finish takes {}, which is more than the {} \
         left of one more deadline; raise completionTimeoutPerGiB or the bandwidth",
        Seconds(*limit), Seconds(*predicted), Seconds(*left)
    )]
    PauseDoesNotFit {
        /// The deadline that has passed.
        limit: Duration,
        /// How long the guest would stand still.
        predicted: Duration,
        /// What is left of one more deadline.
        left: Duration,
    },
    /// The guest was paused to finish, and one more deadline has passed.
    #[error(
        "CompletionTimeout: the guest was paused to finish, and it was not done one more deadline of {} later; raise \
         completionTimeoutPerGiB or the bandwidth",
        Seconds(*.0)
    )]
    PauseTooLong(Duration),
    /// The guest was paused to finish, and that is not allowed any more.
    #[error(
        "CompletionTimeout: the guest was paused to finish, and allowWorkloadDisruption was set to false meanwhile"
    )]
    PauseForbidden,
    /// `progressTimeout` has passed.
    #[error("NoProgress: no round got smaller for {}; the guest writes faster than its pages are sent", Seconds(*.0))]
    NoProgress(Duration),
    /// There is no round after the 65,535th.
    #[error("NoProgress: 65,535 rounds did not bring the rest down to the allowed downtime")]
    RoundsExhausted,
}

/// At any moment of the copy: has a time limit passed?
pub fn judge_time(limits: &Limits, elapsed: Duration, since_progress: Duration) -> Option<GaveUp> {
    let passed = |limit: Option<Duration>, time: Duration| limit.filter(|limit| time >= *limit);
    passed(limits.completion_timeout, elapsed)
        .map(GaveUp::CompletionTimeout)
        .or_else(|| passed(limits.progress_timeout, since_progress).map(GaveUp::NoProgress))
}

/// What to do about a copy that is not complete at its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtDeadline {
    /// Go on as post-copy.
    PostCopy,
    /// Pause the guest though that takes longer than `maxDowntimeMs`, and send the rest.
    PauseAndFinish,
    /// End the migration; the guest runs on at the source.
    Cancel,
}

/// What to do at the deadline. Both ways to end the copy disturb the guest, so neither is taken where disruption is
/// forbidden, whatever else is allowed.
pub fn at_deadline(allowed: Allowed) -> AtDeadline {
    match (allowed.pause, allowed.post_copy) {
        (false, _) => AtDeadline::Cancel,
        (true, true) => AtDeadline::PostCopy,
        (true, false) => AtDeadline::PauseAndFinish,
    }
}

/// Before a guest is paused to finish, and once it stands still and all that it wrote is known: a pause that can not
/// end within one more deadline is not begun, or not gone on with. `overdue`: how long ago the deadline `limit` passed.
pub fn pause_fits(now: &Standing, limit: Duration, overdue: Duration) -> Result<(), GaveUp> {
    let (predicted, left) = (now.predicted_downtime(), limit.saturating_sub(overdue));
    if predicted <= left { Ok(()) } else { Err(GaveUp::PauseDoesNotFit { limit, predicted, left }) }
}

/// While a guest stands still that was paused to finish: must the pause be taken back? `overdue`: how long ago the
/// deadline passed at which it was paused.
pub fn judge_pause(limits: &Limits, overdue: Duration) -> Option<GaveUp> {
    if !limits.allowed.pause {
        return Some(GaveUp::PauseForbidden);
    }
    limits.completion_timeout.filter(|limit| overdue >= *limit).map(GaveUp::PauseTooLong)
}

/// A time for people: whole seconds, or tenths of one.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.0.subsec_millis()) {
            (Duration::MAX, _) => f.write_str("for ever"),
            (whole, 0) => write!(f, "{} s", whole.as_secs()),
            (parts, _) => write!(f, "{:.1} s", parts.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Round;

    const MIB: u64 = 1 << 20;

    fn allowed(pause: bool, post_copy: bool) -> Allowed {
        Allowed { pause, post_copy, ..Allowed::default() }
    }

    #[test]
    fn the_whole_matrix_at_the_deadline() {
        for (disruption, post_copy, decision, why) in [
            (false, false, AtDeadline::Cancel, "nothing is allowed"),
            (false, true, AtDeadline::Cancel, "an explicit false forbids post-copy too"),
            (true, false, AtDeadline::PauseAndFinish, "no post-copy: pause"),
            (true, true, AtDeadline::PostCopy, "both: the shorter pause"),
        ] {
            let asked = allowed(disruption, post_copy);
            assert_eq!(at_deadline(asked), decision, "{why}");
            for (post_copy_early, throttle) in [(false, true), (true, false), (true, true)] {
                let asked = Allowed { post_copy_early, throttle, ..asked };
                assert_eq!(at_deadline(asked), decision, "the other permissions change nothing: {why}");
            }
        }
    }

    #[test]
    fn deadlines_are_per_gib_and_zero_means_none() {
        let limits = Limits::defaults_for(6 << 30);
        assert_eq!(limits.completion_timeout, Some(Duration::from_secs(4800)));
        let at = Duration::from_secs;
        for (elapsed, since_progress, verdict) in [
            (4799, 0, None),
            (4799, 149, None),
            (4800, 0, Some(GaveUp::CompletionTimeout(at(4800)))),
            (4800, 150, Some(GaveUp::CompletionTimeout(at(4800)))),
            (200, 150, Some(GaveUp::NoProgress(at(150)))),
        ] {
            assert_eq!(judge_time(&limits, at(elapsed), at(since_progress)), verdict, "at {elapsed} s");
        }
        let never = Limits { completion_timeout: None, progress_timeout: None, ..limits };
        assert_eq!(judge_time(&never, Duration::MAX, Duration::MAX), None);
    }

    #[test]
    fn a_pause_that_can_not_end_in_time_is_not_begun() {
        let left = |mib| Standing {
            round: Round(3),
            left_bytes: mib * MIB,
            left_before_bytes: mib * MIB,
            send_rate: 100 * MIB,
            fixed: Duration::ZERO,
        };
        let at = Duration::from_secs;
        for (mib, overdue, fits) in [(1000, 0, true), (1001, 0, false), (1000, 1, false), (900, 1, true)] {
            let asked = pause_fits(&left(mib), at(10), at(overdue));
            assert_eq!(asked.is_ok(), fits, "{mib} MiB at 100 MiB/s, {overdue} s after the deadline");
        }
        let dead = Standing { send_rate: 0, ..left(1) };
        let text = pause_fits(&dead, at(10), at(0)).expect_err("nothing arrives").to_string();
        assert!(text.starts_with("CompletionTimeout:") && text.contains("takes for ever"), "{text}");
    }

    #[test]
    fn a_pause_lasts_one_more_deadline_and_as_long_as_it_is_allowed() {
        let at = Duration::from_secs;
        let limits = |timeout: Option<u64>, pause| Limits {
            completion_timeout: timeout.map(at),
            allowed: allowed(pause, false),
            ..Limits::defaults_for(1 << 30)
        };
        for (limits, overdue, verdict, why) in [
            (limits(Some(10), true), 9, None, "there is time left"),
            (limits(Some(10), true), 10, Some(GaveUp::PauseTooLong(at(10))), "it is over"),
            (limits(Some(20), true), 10, None, "it was raised"),
            (limits(Some(5), true), 9, Some(GaveUp::PauseTooLong(at(5))), "it was lowered"),
            (limits(None, true), 1000, None, "it was taken away"),
            (limits(Some(10), false), 1, Some(GaveUp::PauseForbidden), "the permission was withdrawn"),
        ] {
            assert_eq!(judge_pause(&limits, at(overdue)), verdict, "{why}");
        }
    }

    #[test]
    fn a_reason_begins_with_its_rule_and_says_the_time() {
        let at = Duration::from_millis;
        for (why, begins) in [
            (GaveUp::CompletionTimeout(at(4_800_000)), "CompletionTimeout: not complete after 4800 s;"),
            (GaveUp::CompletionTimeout(at(2_540)), "CompletionTimeout: not complete after 2.5 s;"),
            (
                GaveUp::PauseTooLong(at(3_000)),
                "CompletionTimeout: the guest was paused to finish, and it was not",
            ),
            (
                GaveUp::PauseForbidden,
                "CompletionTimeout: the guest was paused to finish, and allowWorkloadDisruption",
            ),
            (GaveUp::NoProgress(at(150_000)), "NoProgress: no round got smaller for 150 s;"),
            (GaveUp::RoundsExhausted, "NoProgress: 65,535 rounds"),
        ] {
            let text = why.to_string();
            assert!(text.starts_with(begins), "{text:?} must begin with {begins:?}");
        }
    }
}
