//! Whether and when the rest of a copy will fit into the allowed downtime, and at which bandwidth it would.
//!
//! ```text
//!   scans ─▶ curve: W(t), bytes of different pages written within t, at most and at least
//!              ├─▶ course: rounds to come, R' = W(R ÷ rate), until the judgement between rounds says "stop"
//!              └─▶ needed: W(downtime) ÷ downtime: what is written in a pause must be sendable in one
//! ```
//!
//! The busiest of the last one to two minutes counts: a guest that is quiet now and then is not called convergent for
//! that. Where the quietest of that time would fit and the busiest would not, the answer is "no", and not for sure: a
//! quiet moment may still end it. What changes the guest for good (a throttle) begins anew.
//!
//! Good to about 40 % in the bandwidth: a copy whose rate is nearer than that to the needed one may turn out either way.
//!
//! Always true: no clock, no randomness; memory is bounded; nothing here decides anything but [`Predictor::impossible`].

mod course;
mod curve;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::course::{SKIPPING_MAX, as_bandwidth, lowest_rate, play};
use self::curve::{Seen, WINDOW_MIN, float};
use super::Limits;
use crate::units::{Round, time_for};

/// What was seen is forgotten after once to twice this time: longer than the ups and downs of most workloads.
pub const WATCHED: Duration = Duration::from_secs(60);
/// Fewer scans than this, each of a window that says anything, are no ground to say "never", or to be sure.
const SCANS_MIN: u32 = 2;

/// More than what is not enough.
const MORE: f64 = 1.02;

/// What one scan has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// Time since the scan before.
    pub since_last: Duration,
    /// Different pages written in it.
    pub written: u64,
    /// Time since the last scan before the present round began.
    pub since_round_began: Duration,
    /// Different pages written in the present round before this scan.
    pub unique_before: u64,
    /// The same with this scan.
    pub unique: u64,
    /// Bytes of pages per second that arrive.
    pub send_rate: u64,
}

/// How the copy stands, right after a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The present round.
    pub round: Round,
    /// How long ago it began.
    pub round_age: Duration,
    /// Bytes that wait in it.
    pub queued_bytes: u64,
    /// Bytes written again, for the next round.
    pub dirty_bytes: u64,
    /// What was left at the end of the round before; in the first round, all of memory.
    pub left_before_bytes: u64,
    /// All of memory.
    pub guest_bytes: u64,
    /// Bytes of pages per second that arrive, measured lately.
    pub send_rate: u64,
    /// What a switchover takes beside the pages.
    pub fixed: Duration,
}

/// Whether the rest will fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fits {
    /// It will: the guest is stopped then.
    Yes {
        /// In so many milliseconds.
        in_ms: u64,
        /// At the end of this round.
        round: u16,
    },
    /// It will not, as things stand.
    No,
}

/// How much there is to a prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// It comes from less than a whole round, from a single scan, or from scans that are much further apart than the allowed
    /// downtime is long.
    Early,
    /// The guest writes now more, now less: a quiet moment may end it though the prediction says that it does not fit.
    Varies,
    /// The busiest and the quietest of what was seen come to the same.
    Firm,
}

/// What is to be expected of a copy as things stand: this guest, this rate, these limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// Whether the rest will fit into the allowed downtime.
    pub fits: Fits,
    /// How long the guest then stands still; if it does not fit, how long it would once rounds bring nothing more. In
    /// milliseconds.
    pub downtime_ms: u64,
    /// What is left then; if it does not fit, what stays however many rounds are made. In bytes.
    pub left_bytes: u64,
    /// The lowest bandwidth at which it would fit, in bytes per second, headers included.
    pub needed_bandwidth: u64,
    /// Bytes of pages per second that arrived when this was said.
    pub send_rate: u64,
    /// The downtime that was allowed when this was said, in milliseconds.
    pub downtime_max_ms: u64,
    /// How much there is to it.
    pub confidence: Confidence,
}

/// Fed by scans; says what is to be expected.
#[derive(Debug, Clone)]
pub struct Predictor {
    guest_bytes: u64,
    /// What was seen since then, and what in the time before it.
    since: Duration,
    seen: Seen,
    earlier: Seen,
    rate_best: (u64, u64),
    scans: u32,
    /// Whole rounds that were watched.
    rounds: u32,
    /// The present round was not watched from its begin.
    is_partial: bool,
    /// The next scan finds what another guest, so to speak, has written.
    is_mixed: bool,
}

impl Predictor {
    /// Of a guest with so much memory, before its first round.
    pub fn new(now: Duration, guest_bytes: u64) -> Self {
        Self {
            guest_bytes,
            since: now,
            seen: Seen::default(),
            earlier: Seen::default(),
            rate_best: (0, 0),
            scans: 0,
            rounds: 0,
            is_partial: false,
            is_mixed: false,
        }
    }

    /// A scan has found this.
    pub fn scanned(&mut self, now: Duration, scan: &Scan) {
        if std::mem::take(&mut self.is_mixed) {
            return;
        }
        if now.saturating_sub(self.since) >= WATCHED {
            self.earlier = std::mem::take(&mut self.seen);
            self.rate_best = (0, self.rate_best.0);
            self.since = now;
        }
        // One right after another, as a round that ends soon after a scan has it, is no second look at the guest.
        self.scans = self.scans.saturating_add(u32::from(scan.since_last >= WINDOW_MIN));
        self.rate_best.0 = self.rate_best.0.max(scan.send_rate);
        self.seen.note(scan, self.is_partial);
    }

    /// The present round is over, and its last scan was seen.
    pub fn round_ended(&mut self) {
        self.rounds = self.rounds.saturating_add(u32::from(!self.is_partial));
        self.is_partial = false;
    }

    /// The guest is another from now on: it was throttled, or let free.
    pub fn guest_changed(&mut self, now: Duration) {
        *self = Self { is_partial: true, is_mixed: true, ..Self::new(now, self.guest_bytes) };
    }

    /// What is to be expected. `None`: nothing was seen yet.
    pub fn predict(&self, now: &Now, limits: &Limits) -> Option<Prediction> {
        if self.scans == 0 || now.send_rate == 0 {
            return None;
        }
        let busiest = self.seen.busiest(&self.earlier, self.guest_bytes);
        let rate = float(now.send_rate);
        let course = play(&busiest, now, limits, rate);
        let quiet = play(&self.seen.quietest(&self.earlier, self.guest_bytes), now, limits, rate);
        let left_bytes = whole(course.left);
        let lowest = lowest_rate(&busiest, now, limits);
        let fits = if course.fits {
            Fits::Yes { in_ms: whole(course.seconds * 1000.0), round: course.round.0 }
        } else {
            Fits::No
        };
        Some(Prediction {
            fits,
            downtime_ms: millis(time_for(left_bytes, now.send_rate).saturating_add(now.fixed)),
            left_bytes,
            // Near the edge the two may differ; what does not fit needs more than it has all the same.
            needed_bandwidth: as_bandwidth(if course.fits { lowest } else { lowest.max(rate * MORE) }),
            send_rate: now.send_rate,
            downtime_max_ms: millis(limits.downtime_max),
            confidence: if !self.has_seen_enough() || !busiest.knows(limits.downtime_max.as_secs_f64()) {
                Confidence::Early
            } else if quiet.fits != course.fits {
                Confidence::Varies
            } else {
                Confidence::Firm
            },
        })
    }

    fn has_seen_enough(&self) -> bool {
        self.rounds > 0 && self.scans >= SCANS_MIN
    }

    /// Whether rounds are shown to be in vain: even the quietest time that was seen writes more in an allowed downtime
    /// than the best rate that was seen can send in it, by more than leaving pages out of rounds can make up for. `fixed`:
    /// what a switchover takes beside its pages. Never before a whole round and two scans.
    pub fn impossible(&self, limits: &Limits, fixed: Duration) -> bool {
        if !self.has_seen_enough() {
            return false;
        }
        let rate = float(self.rate_best.0.max(self.rate_best.1));
        let seconds = limits.for_the_rest(fixed).as_secs_f64();
        let quietest = self.seen.quietest(&self.earlier, self.guest_bytes);
        rate > 0.0 && quietest.within(seconds) > rate * SKIPPING_MAX * seconds
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Without what is behind the point; what is no number is 0, what is too great the greatest.
#[expect(clippy::cast_possible_truncation, reason = "it saturates")]
fn whole(number: f64) -> u64 {
    number as u64
}
