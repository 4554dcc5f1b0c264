//! Between two rounds: another round, switch over, or give up. A judgement is a value.
//!
//! ```text
//!             left ÷ rate + fixed ≤ downtime?
//!   round end ──┬─ yes ─▶ still halving, and worth it? ── yes ─▶ AnotherRound
//!               │                     └── no ─▶ SwitchOver
//!               └─ no ──▶ AnotherRound
//!   round end ────▶ nothing gained, twice in a row ─▶ throttle     (`throttle`)
//!   any moment ───▶ deadline or progress passed ─▶ post-copy, pause and finish, cancel   (`deadline`)
//! ```
//!
//! Always true: no verdict looks at a clock; time comes in as a [`Duration`] since the copy began.

mod deadline;
pub mod predict;
pub mod record;
pub mod throttle;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{Bandwidth, Round, time_for};

pub use deadline::{AtDeadline, GaveUp, at_deadline, judge_pause, judge_time, pause_fits};
pub use predict::{Confidence, Fits, Prediction, Predictor};
pub use record::{Did, Record, Step};
pub use throttle::Throttle;

/// The limits in force for one migration. They may change while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Switch over when the predicted downtime fits into this.
    pub downtime_max: Duration,
    /// What [`at_deadline`] says is done if the copy has not completed in this time; `None`: no deadline.
    pub completion_timeout: Option<Duration>,
    /// Cancelled if there was no progress for this long; `None`: never.
    pub progress_timeout: Option<Duration>,
    /// What may be done about a guest that does not converge.
    pub allowed: Allowed,
}

/// What may be done about a guest that does not converge. Nothing, if nobody says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// At the deadline go on as post-copy.
    pub post_copy: bool,
    /// Post-copy as soon as convergence is shown impossible, not only at the deadline.
    pub post_copy_early: bool,
    /// Throttle the guest.
    pub throttle: bool,
    /// At the deadline pause the guest to finish.
    pub pause: bool,
}

impl Limits {
    /// The cluster's defaults (`completionTimeoutPerGiB` 800, `progressTimeout` 150, `maxDowntimeMs` 300) for a
    /// guest of so many bytes.
    pub fn defaults_for(memory_bytes: u64) -> Self {
        Self {
            downtime_max: Duration::from_millis(300),
            completion_timeout: Some(Self::completion_timeout(800, memory_bytes)),
            progress_timeout: Some(Duration::from_secs(150)),
            allowed: Allowed::default(),
        }
    }

    /// How long what is left may take to send, where a switchover takes `fixed` beside it. Half of what is allowed, in any case: what a
    /// switchover takes by itself (a commit, on a slow disk) no further round makes shorter, and a copy would go on for ever.
    pub fn for_the_rest(&self, fixed: Duration) -> Duration {
        self.downtime_max - fixed.min(self.downtime_max / 2)
    }

    /// The deadline of a guest of so many bytes, at so many seconds per GiB. No floor.
    pub fn completion_timeout(seconds_per_gib: u64, memory_bytes: u64) -> Duration {
        let timeout_ms = u128::from(memory_bytes) * u128::from(seconds_per_gib) * 1000 / (1 << 30);
        Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(u64::MAX))
    }
}

/// How a copy stands at the end of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The round that ended.
    pub round: Round,
    /// Bytes still to send if the guest stopped now: written again, or sent and not yet acknowledged.
    pub left_bytes: u64,
    /// The same at the end of the round before; at the end of the first round, all of memory.
    pub left_before_bytes: u64,
    /// Page bytes per second that arrive, measured lately.
    pub send_rate: u64,
    /// What a switchover takes beside the pages: pause, scan, state, commit, resume.
    pub fixed: Duration,
}

impl Standing {
    /// How long the guest would stand still if it were stopped now.
    pub fn predicted_downtime(&self) -> Duration {
        time_for(self.left_bytes, self.send_rate).saturating_add(self.fixed)
    }

    /// Whether a switchover now would take no longer than it may, see [`Limits::for_the_rest`].
    pub fn fits(&self, limits: &Limits) -> bool {
        time_for(self.left_bytes, self.send_rate) <= limits.for_the_rest(self.fixed)
    }

    /// Whether the round has brought the rest down to half, or less, of what it was.
    pub fn still_halves(&self) -> bool {
        self.left_bytes <= self.left_before_bytes / 2
    }
}

/// What to do at the end of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Stop the guest and send what is left.
    SwitchOver,
    /// Send what was written meanwhile.
    AnotherRound,
    /// Stop trying; the guest runs on at the source.
    GiveUp(GaveUp),
}

/// What is sent within this time is not worth another round: a scan takes as long, and the guest feels it.
const SHORT_ENOUGH: Duration = Duration::from_millis(5);

/// At the end of a round. A switchover that fits is put off only while the rest still halves each round, since
/// such a round costs less than the downtime it saves.
pub fn judge_round(limits: &Limits, now: &Standing) -> Verdict {
    let is_short = now.predicted_downtime() <= SHORT_ENOUGH.saturating_add(now.fixed);
    if now.fits(limits) && (is_short || !now.still_halves()) {
        Verdict::SwitchOver
    } else if now.round.next().is_none() {
        Verdict::GiveUp(GaveUp::RoundsExhausted)
    } else {
        Verdict::AnotherRound
    }
}

/// A copy that can not end: the guest writes faster than its pages may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the guest writes {} MiB/s, which {} MiB/s of bandwidth can not outrun, and its working set of {} MiB does not \
     fit into a downtime of {} ms; allow more than {} MiB/s, or write less than {} MiB/s",
    dirty_rate >> 20, bandwidth >> 20, working_set_bytes >> 20, downtime_max.as_millis(),
    (dirty_rate + dirty_rate / 16) >> 20, (bandwidth - bandwidth / 16) >> 20
)]
pub struct CanNotOutrun {
    dirty_rate: u64,
    bandwidth: u64,
    working_set_bytes: u64,
    downtime_max: Duration,
}

/// Whether a copy at `bandwidth` bytes per second can end for a guest that writes `dirty_rate` bytes per second, all
/// within its working set. A sixteenth is set aside for packet headers and for the rounds to shrink at all.
pub fn outruns(
    bandwidth: Bandwidth,
    dirty_rate: u64,
    working_set_bytes: u64,
    limits: &Limits,
) -> Result<(), CanNotOutrun> {
    let Some(bandwidth) = bandwidth.bytes_per_second() else { return Ok(()) };
    let usable = bandwidth - bandwidth / 16;
    let fits_at_once = time_for(working_set_bytes, usable) <= limits.downtime_max;
    if dirty_rate < usable || fits_at_once {
        return Ok(());
    }
    Err(CanNotOutrun { dirty_rate, bandwidth, working_set_bytes, downtime_max: limits.downtime_max })
}

/// What counts as progress: a page acknowledged in the first round, or in a round that began with fewer bytes
/// than every round before it. A guest that oscillates makes none; a slow link is not taken for a stuck one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    best_begin_bytes: Option<u64>,
    counts: bool,
    last: Duration,
}

impl Progress {
    /// At the beginning of the copy.
    pub fn new(now: Duration) -> Self {
        Self { best_begin_bytes: None, counts: true, last: now }
    }

    /// The target holds nothing, and a first pass comes again.
    pub fn starts_over(&mut self) {
        self.best_begin_bytes = None;
    }

    /// A round begins with so many bytes to send.
    pub fn round_begins(&mut self, bytes: u64) {
        self.counts = self.best_begin_bytes.is_none_or(|best| bytes < best);
        if self.counts {
            self.best_begin_bytes = Some(bytes);
        }
    }

    /// Pages of the round were acknowledged.
    pub fn acknowledged(&mut self, now: Duration) {
        if self.counts {
            self.last = now;
        }
    }

    /// How long ago the last progress was.
    pub fn since(&self, now: Duration) -> Duration {
        now.saturating_sub(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn standing(left_mib: u64, before_mib: u64) -> Standing {
        Standing {
            round: Round(3),
            left_bytes: left_mib * MIB,
            left_before_bytes: before_mib * MIB,
            send_rate: 100 * MIB,
            fixed: Duration::from_millis(10),
        }
    }

    #[test]
    fn a_round_ends_in_the_right_verdict() {
        let limits = Limits::defaults_for(1 << 30);
        for (left, before, verdict, why) in [
            (100, 1024, Verdict::AnotherRound, "1,010 ms do not fit"),
            (30, 31, Verdict::AnotherRound, "310 ms do not fit"),
            (29, 31, Verdict::SwitchOver, "300 ms fit, and it no longer halves"),
            (20, 100, Verdict::AnotherRound, "fits, but each round still halves it"),
            (1, 100, Verdict::AnotherRound, "10 ms of sending are more than a round costs"),
            (0, 0, Verdict::SwitchOver, "an idle guest"),
        ] {
            assert_eq!(judge_round(&limits, &standing(left, before)), verdict, "{why}");
        }
        let little = Standing { left_bytes: MIB / 2, ..standing(0, 100) };
        assert_eq!(judge_round(&limits, &little), Verdict::SwitchOver, "5 ms are short enough");
    }

    #[test]
    fn a_commit_that_takes_longer_than_is_allowed_does_not_keep_a_copy_going() {
        let limits = Limits { downtime_max: Duration::from_millis(20), ..Limits::defaults_for(1 << 30) };
        let slow = |left_bytes| Standing { left_bytes, fixed: Duration::from_millis(40), ..standing(0, 1) };
        assert_eq!(judge_round(&limits, &slow(MIB)), Verdict::SwitchOver, "10 ms of sending");
        assert_eq!(judge_round(&limits, &slow(MIB + MIB / 8)), Verdict::AnotherRound);
    }

    #[test]
    fn a_link_that_carries_nothing_never_fits() {
        let dead = Standing { send_rate: 0, ..standing(1, 1) };
        assert_eq!(judge_round(&Limits::defaults_for(1 << 30), &dead), Verdict::AnotherRound);
    }

    #[test]
    fn the_last_round_there_is_gives_up() {
        let last = Standing { round: Round(u16::MAX), ..standing(1000, 1000) };
        assert_eq!(
            judge_round(&Limits::defaults_for(1 << 30), &last),
            Verdict::GiveUp(GaveUp::RoundsExhausted)
        );
    }

    #[test]
    fn a_bandwidth_that_can_not_outrun_the_guest_is_known_before() {
        let limits = Limits::defaults_for(1 << 30);
        let ask = |bandwidth_mib: u64, dirty_mib: u64, set_mib: u64| {
            let bandwidth = Bandwidth::from_setting(bandwidth_mib * MIB);
            outruns(bandwidth, dirty_mib * MIB, set_mib * MIB, &limits)
        };
        assert_eq!(ask(64, 16, 256), Ok(()));
        assert_eq!(ask(0, 10_000, 256), Ok(()), "no limit");
        assert_eq!(ask(64, 1000, 16), Ok(()), "16 MiB at 60 MiB/s fit into 300 ms");
        let text = ask(64, 64, 256).expect_err("refused").to_string();
        assert!(text.contains("writes 64 MiB/s") && text.contains("more than 68 MiB/s"), "{text}");
        assert!(ask(64, 60, 256).is_err(), "nothing is left for headers");
    }

    #[test]
    fn an_oscillating_guest_makes_no_progress() {
        let at = Duration::from_secs;
        let mut progress = Progress::new(at(0));
        progress.round_begins(1000);
        progress.acknowledged(at(10));
        progress.round_begins(500);
        progress.acknowledged(at(20));
        for (second, bytes) in [(30, 900), (40, 500), (50, 800), (60, 501)] {
            progress.round_begins(bytes);
            progress.acknowledged(at(second));
        }
        assert_eq!(progress.since(at(60)), at(40), "the last progress was in the round of 500");
        progress.round_begins(499);
        progress.acknowledged(at(61));
        assert_eq!(progress.since(at(61)), at(0));
    }

    #[test]
    fn a_slow_link_is_not_taken_for_a_stuck_one() {
        let at = Duration::from_secs;
        let mut progress = Progress::new(at(0));
        progress.round_begins(1000);
        for second in (100..10_000).step_by(100) {
            progress.acknowledged(at(second));
            assert_eq!(progress.since(at(second)), at(0), "each page of a first pass counts");
        }
        progress.round_begins(1000);
        progress.acknowledged(at(11_000));
        assert_eq!(progress.since(at(11_000)), at(1_100), "a second pass over as much does not");
        progress.starts_over();
        progress.round_begins(1000);
        progress.acknowledged(at(12_000));
        assert_eq!(progress.since(at(12_000)), at(0), "unless the target had lost what it held");
    }
}
