//! A migration in numbers: how it does while it runs, and what was measured of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::precopy::{Fits, Prediction, Step};

/// What is done about a guest that writes while its memory is copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Course {
    /// Rounds go on until the rest fits into the allowed downtime.
    #[default]
    Rounds,
    /// The same, and the guest is throttled.
    Throttled,
    /// The rest fits: the guest is stopped and the last round goes.
    SwitchesOver,
    /// The deadline has passed: the guest is paused to finish, or will be as soon as a quorum answers.
    PausesToFinish,
    /// Post-copy: the guest is stopped as soon as a quorum answers, runs on at the target, and what is missing follows.
    PostCopy,
    /// It is over as far as the source can say; the log has the last word.
    Ends,
}

/// A running migration in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The round, 1 is the first.
    pub round: u16,
    /// The guest stands still; the last round is under way.
    pub switching_over: bool,
    /// It would be stopped now, and is not, because no quorum of the control group has answered within a second.
    pub waits_for_quorum: bool,
    /// Bytes left in this round, sent and not acknowledged ones among them.
    pub left_bytes: u64,
    /// Bytes written again and waiting for the next round.
    pub dirty_bytes: u64,
    /// Bytes of UDP payload sent so far.
    pub wire_bytes: u64,
    /// Page bytes per second that arrive.
    pub send_rate: u64,
    /// Bytes per second that the guest writes, as the scans see it.
    pub dirty_rate: u64,
    /// How long the guest would stand still if stopped now, in milliseconds.
    pub predicted_downtime_ms: u64,
    /// Percent of its time that is taken from the guest, 0 to 80.
    pub throttle_percent: u8,
    /// What is done to bring it to an end.
    pub course: Course,
    /// What is to be expected of it; `None`: it is not known yet, or rounds do not decide any more.
    pub prediction: Option<Prediction>,
    /// What was done about it so far, the newest steps.
    pub steps: Vec<Step>,
}

/// What was measured of a migration that succeeded. Durations only: two hosts' clocks are never compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// By its source.
    pub source: Option<SourceReport>,
    /// By its target: from "complete and licensed" to "runs", in microseconds.
    pub resume_us: Option<u64>,
    /// By its target, of a migration that ended as post-copy.
    pub post_copy: Option<PostCopyReport>,
    /// By its target, of a migration that ended as stop-and-copy and was to be audited.
    pub audit: Option<AuditReport>,
}

/// What came of comparing the target's pages with the source's after a stop-and-copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Pages that were compared and that the guest had not written since it ran at the target.
    pub checked_pages: u64,
    /// Of them, those that were not alike: 0, or what was sent is not what was there.
    pub mismatched_pages: u64,
    /// Pages that the guest had written before it was their turn: nobody can say how they arrived.
    pub written_pages: u64,
    /// Every page had its turn. Else time was up, or the link or one of the two sides was gone.
    pub complete: bool,
}

/// How many powers of two of a microsecond the latency of a fault is counted in: the last is 8.4 s and more.
pub const LATENCY_BUCKETS: usize = 24;

/// What the target measured while pages were missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostCopyReport {
    /// Bytes of pages that were missing when the guest began to run.
    pub missing_at_resume_bytes: u64,
    /// From then until the last page was there, in microseconds.
    pub took_us: u64,
    /// Times that somebody waited for a page of the source.
    pub faults: u64,
    /// Times that somebody touched a page that was zeros all along, which was made at once.
    pub zero_faults: u64,
    /// How long threads of the guest waited for pages of the source, all waits together, in microseconds.
    pub blocked_us: u64,
    /// How many waits took so long: bucket `n` is 2^n up to 2^(n+1) microseconds, the first also anything shorter.
    pub latency_log2_us: [u64; LATENCY_BUCKETS],
    /// Pages that could not be punched (a large page of which a part is pinned) and were sent before the guest ran.
    pub stuck_pages: u64,
}

impl PostCopyReport {
    /// Somebody has waited for a page so long.
    pub fn waited(&mut self, wait: std::time::Duration) {
        let wait_us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        self.blocked_us = self.blocked_us.saturating_add(wait_us);
        let bucket = wait_us.max(1).ilog2() as usize;
        if let Some(count) = self.latency_log2_us.get_mut(bucket.min(LATENCY_BUCKETS - 1)) {
            *count += 1;
        }
    }

    /// The upper bound of the bucket in which the wait lies that so many percent of all waits do not exceed, in
    /// microseconds; 0 without a wait.
    pub fn latency_percentile_us(&self, percent: u64) -> u64 {
        let total: u64 = self.latency_log2_us.iter().sum();
        let rank = (u128::from(total) * u128::from(percent)).div_ceil(100);
        let mut seen: u128 = 0;
        for (bucket, count) in (1_u32..).zip(self.latency_log2_us) {
            seen += u128::from(count);
            if seen >= rank && seen > 0 {
                return 1 << bucket;
            }
        }
        0
    }
}

/// What the source measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReport {
    /// From the order to the end, in microseconds.
    pub total_us: u64,
    /// From asking the guest to stand still to the end of the last scan.
    pub pause_us: u64,
    /// From there until everything was at the target: device state, last pages.
    pub state_us: u64,
    /// What of the commit stuck out behind that.
    pub commit_us: u64,
    /// Rounds, the last one with the guest paused included.
    pub rounds: u16,
    /// Bytes of UDP payload sent.
    pub wire_bytes: u64,
    /// Pages sent with their bytes, 4096 each.
    pub raw_pages: u64,
    /// Pages sent as zeros, without bytes.
    pub zero_pages: u64,
    /// Pages whose bytes were sent packed.
    pub packed_pages: u64,
    /// Bytes that those were packed into.
    pub packed_bytes: u64,
    /// Time that the source spent on trying whether pages shrink, and on packing them, in microseconds.
    pub packing_us: u64,
    /// Pages that a round left out because they had been written again.
    pub skipped_pages: u64,
    /// Pages of the last round, sent while the guest stood still.
    pub last_round_pages: u64,
    /// Downtime as it was predicted when the guest was stopped, in microseconds.
    pub predicted_downtime_us: u64,
    /// The most that was taken from the guest's time to let the copy converge, in percent.
    pub throttle_percent_max: u8,
    /// How often the link was lost and came back.
    pub reconnects: u32,
    /// The guest was paused at the deadline though that took longer than `maxDowntimeMs`.
    pub paused_to_finish: bool,
    /// What was expected after the first round, if anything was.
    pub forecast: Option<Box<Forecast>>,
    /// What was done about it, the newest steps.
    pub steps: Vec<Step>,
}

/// What was expected of a copy after its first round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// When it was said, in microseconds since the order.
    pub said_us: u64,
    /// What was said.
    pub prediction: Prediction,
}

impl Forecast {
    /// How long the whole migration was expected to take, in microseconds; `None`: it was not expected to end.
    pub fn total_us(&self) -> Option<u64> {
        match self.prediction.fits {
            Fits::Yes { in_ms, .. } => {
                let more_ms = in_ms.saturating_add(self.prediction.downtime_ms);
                Some(self.said_us.saturating_add(more_ms.saturating_mul(1000)))
            }
            Fits::No => None,
        }
    }
}

impl SourceReport {
    /// How long the guest stood still as far as its source can see, in microseconds.
    pub fn downtime_us(&self) -> u64 {
        self.pause_us.saturating_add(self.state_us).saturating_add(self.commit_us)
    }

    /// By how much longer (or shorter: below 0) the migration took than was expected after its first round, in microseconds.
    pub fn total_error_us(&self) -> Option<i64> {
        self.forecast
            .as_ref()
            .and_then(|forecast| forecast.total_us())
            .map(|said| difference(self.total_us, said))
    }

    /// The same of the downtime.
    pub fn downtime_error_us(&self) -> Option<i64> {
        let said =
            self.forecast.as_ref().map(|forecast| forecast.prediction.downtime_ms.saturating_mul(1000));
        said.map(|said| difference(self.downtime_us(), said))
    }
}

fn difference(is: u64, said: u64) -> i64 {
    let size = i64::try_from(is.abs_diff(said)).unwrap_or(i64::MAX);
    if is < said { -size } else { size }
}

impl SourceReport {
    /// Some pages more were sent.
    pub fn count(&mut self, sent: &SentPages) {
        let SentPages { raw, zero, packed, packed_bytes, packing } = sent;
        self.raw_pages += raw;
        self.zero_pages += zero;
        self.packed_pages += packed;
        self.packed_bytes += packed_bytes;
        self.packing_us += u64::try_from(packing.as_micros()).unwrap_or(u64::MAX);
    }

    /// Pages that were sent, each as often as it was, whatever they were sent as.
    pub fn pages(&self) -> u64 {
        self.raw_pages + self.zero_pages + self.packed_pages
    }
}

/// Pages that were sent, by what went in their place. Each is of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SentPages {
    /// With their bytes, 4096 each.
    pub raw: u64,
    /// As zeros, without bytes.
    pub zero: u64,
    /// Packed.
    pub packed: u64,
    /// Bytes that the packed ones were packed into.
    pub packed_bytes: u64,
    /// How long trying and packing took.
    pub packing: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precopy::Confidence;

    #[test]
    fn what_was_sent_is_counted_by_class() {
        let mut report = SourceReport::default();
        let packed = SentPages {
            zero: 2,
            packed: 3,
            packed_bytes: 700,
            packing: Duration::from_micros(5),
            ..SentPages::default()
        };
        for sent in [packed, SentPages { raw: 10, zero: 1, ..SentPages::default() }, packed] {
            report.count(&sent);
        }
        let want = SourceReport {
            raw_pages: 10,
            zero_pages: 5,
            packed_pages: 6,
            packed_bytes: 1400,
            packing_us: 10,
            ..SourceReport::default()
        };
        assert_eq!(report.pages(), 21);
        assert_eq!(report, want);
    }

    #[test]
    fn an_error_is_what_came_less_what_was_said() {
        let prediction = Prediction {
            fits: Fits::Yes { in_ms: 500, round: 3 },
            downtime_ms: 100,
            left_bytes: 1,
            needed_bandwidth: 1,
            send_rate: 1,
            downtime_max_ms: 300,
            confidence: Confidence::Firm,
        };
        let forecast = Forecast { said_us: 1_000_000, prediction };
        let report = SourceReport {
            total_us: 1_500_000,
            pause_us: 10_000,
            state_us: 90_000,
            commit_us: 20_000,
            forecast: Some(Box::new(forecast)),
            ..SourceReport::default()
        };
        assert_eq!(report.total_error_us(), Some(-100_000), "1.6 s were expected");
        assert_eq!(report.downtime_error_us(), Some(20_000));
        let no = Prediction { fits: Fits::No, ..prediction };
        let report =
            SourceReport { forecast: Some(Box::new(Forecast { prediction: no, ..forecast })), ..report };
        assert_eq!(report.total_error_us(), None, "no end was expected");
        assert_eq!(SourceReport::default().downtime_error_us(), None);
    }

    #[test]
    fn waits_are_counted_by_powers_of_two() {
        let mut report = PostCopyReport::default();
        assert_eq!(report.latency_percentile_us(99), 0);
        for us in [0, 1, 2, 3, 100, 127, 128, 1 << 30] {
            report.waited(Duration::from_micros(us));
        }
        let filled: Vec<(usize, u64)> =
            report.latency_log2_us.into_iter().enumerate().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0, 2), (1, 2), (6, 2), (7, 1), (23, 1)]);
        assert_eq!(report.blocked_us, 361 + (1 << 30));
        assert_eq!((report.latency_percentile_us(50), report.latency_percentile_us(75)), (4, 128));
        assert_eq!(report.latency_percentile_us(100), 1 << 24);
    }
}
