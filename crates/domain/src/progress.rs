//! A migration in numbers: how it does while it runs, and what was measured of it.

use serde::{Deserialize, Serialize};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// What was measured of a migration that succeeded. Durations only: two hosts' clocks are never compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Pages sent with their bytes.
    pub raw_pages: u64,
    /// Pages sent as zeros.
    pub zero_pages: u64,
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
