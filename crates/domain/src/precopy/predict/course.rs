//! Rounds to come, played forward: what will be left of each, and whether the guest is stopped at its end.
//!
//! ```text
//!   a round of R bytes takes T = R ÷ rate; the next one is what is written within T
//! ```
//!
//! That scans take pages out of a round which are written again before they are sent is left out: it makes rounds a
//! little shorter, and what stays a little less.
//!
//! Always true: what ends it is [`judge_round`], the same judgement that ends the real one.

use super::curve::{Curve, float};
use super::{Now, whole};
use crate::precopy::{Limits, Standing, Verdict, judge_round};
use crate::units::Round;

/// Rounds that are played at most: what has not shrunk by then does not.
const ROUNDS_MAX: u16 = 100;
/// As short as a round gets.
const ROUND_SECONDS_MIN: f64 = 0.01;
/// Rounds that differ by less than this go on for ever.
const SAME: f64 = 0.002;

/// How rounds to come go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course {
    /// The guest is stopped in the end.
    pub(super) fits: bool,
    /// Until then, in seconds.
    pub(super) seconds: f64,
    /// The round that is over then.
    pub(super) round: Round,
    /// What is left then, or what stays for ever, in bytes.
    pub(super) left: f64,
}

/// Plays it at so many bytes per second.
pub(super) fn play(curve: &Curve, now: &Now, limits: &Limits, rate: f64) -> Course {
    let mut left = float(now.queued_bytes);
    let mut age = now.round_age.as_secs_f64();
    // What is known to be written again; later rounds begin with nothing.
    let mut known = (float(now.dirty_bytes), curve.within(age));
    let mut before = float(now.left_before_bytes);
    let mut course = Course { fits: false, seconds: 0.0, round: now.round.max(Round::FIRST), left };
    for played in 0..ROUNDS_MAX {
        let end = (age + left / rate.max(1.0)).max(ROUND_SECONDS_MIN);
        course.seconds += end - age;
        course.left = known.0 + (curve.within(end) - known.1).max(0.0);
        let standing = Standing {
            round: Round::FIRST,
            left_bytes: whole(course.left),
            left_before_bytes: whole(before),
            send_rate: whole(rate),
            fixed: now.fixed,
        };
        if judge_round(limits, &standing) == Verdict::SwitchOver {
            return Course { fits: true, ..course };
        }
        if played > 1 && (course.left - before).abs() <= before * SAME {
            break;
        }
        (left, before, age, known) = (course.left, course.left, 0.0, (0.0, 0.0));
        course.round = course.round.next().unwrap_or(course.round);
    }
    course
}

/// The lowest rate at which it fits, in bytes of pages per second: what is written in a time as long as the pause may take,
/// or in a longer one at a higher rate, must be sent by that time. Then every round is smaller than the one before, down to
/// what fits.
pub(super) fn lowest_rate(curve: &Curve, now: &Now, limits: &Limits) -> f64 {
    curve.rate_over(limits.for_the_rest(now.fixed).as_secs_f64())
}

/// Scans take pages out of a round that are written again before they are sent, so that rounds are shorter than they are
/// reckoned here. How much lower may the rate be for that? A set that is written at random, whose pages leave the round the
/// moment they are written: by (1 − e^(−x)) (1 + x) ÷ x, with x the pause in units of the set's time; 1.298 at most. One that
/// is written in laps, at D: a round that a scan ends is at least as long as set ÷ (rate + D), so by 1 + rate ÷ D, which is
/// less than m wherever the rate is less than D ÷ m and m at least the golden ratio.
pub(super) const SKIPPING_MAX: f64 = 1.65;

/// As a limit that an operator sets: packets have headers, a sixteenth as [`crate::precopy::outruns`] reckons it.
pub(super) fn as_bandwidth(rate: f64) -> u64 {
    whole(rate * 17.0 / 16.0).max(1)
}
