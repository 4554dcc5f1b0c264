//! What a source's driver tells: how it goes, and in the end what was measured.

use std::time::Duration;

use godwit_domain::progress::{Course, Progress, SourceReport};

use super::{Dial, Driver};
use crate::drive::{Report, Tells, micros};

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// In post-copy, how long a page that somebody waits for may wait behind the bulk in a queue on the way.
const BACKLOG_MAX: Duration = Duration::from_millis(1);
/// What the bulk may have unsent at least: a chunk and its successor.
const WINDOW_BYTES_MIN: u64 = 256 << 10;

/// When the steps of a switchover were reached.
#[derive(Default)]
pub(super) struct Times {
    pub(super) pause: Option<Duration>,
    pub(super) closed: Option<Duration>,
    pub(super) complete: Option<Duration>,
    pub(super) committed: Option<Duration>,
}

impl<D: Dial> Driver<D> {
    pub(super) fn tell_progress(&mut self) {
        let now = self.clock.now();
        if now < self.progress_at || self.session.is_auditing() {
            return;
        }
        self.progress_at = now + PROGRESS_INTERVAL;
        let snapshot = self.session.snapshot(now);
        self.keep_the_way_short(snapshot.send_rate);
        if snapshot.waits_for_quorum && !self.waits_for_quorum {
            tracing::info!(
                "ready to switch over; waits for a quorum of the control group, and goes on copying"
            );
        }
        self.waits_for_quorum = snapshot.waits_for_quorum;
        let progress = Progress {
            round: snapshot.round.0,
            switching_over: snapshot.switching_over,
            waits_for_quorum: snapshot.waits_for_quorum,
            left_bytes: snapshot.left.bytes(),
            dirty_bytes: snapshot.dirty.bytes(),
            wire_bytes: self.limiter.sent_bytes(),
            send_rate: snapshot.send_rate,
            dirty_rate: snapshot.dirty_rate,
            predicted_downtime_ms: u64::try_from(snapshot.predicted_downtime.as_millis()).unwrap_or(u64::MAX),
            throttle_percent: snapshot.throttle_percent,
            course: snapshot.course,
            prediction: snapshot.prediction,
            steps: self.session.steps().to_vec(),
        };
        // Only the newest is worth anything: what does not fit is left out.
        let _ = self.tells.try_send(Tells::Progress(progress));
    }

    pub(super) fn finish(&mut self, outcome: Result<(), String>) -> Report {
        let path = self.link.as_ref().map(|link| link.bulk.stats().path).unwrap_or_default();
        tracing::info!(
            ?outcome,
            mtu = path.current_mtu,
            lost_packets = path.lost_packets,
            instance = %self.instance,
            "migration is over"
        );
        if let Err(reason) = outcome {
            return Report::Failed { reason };
        }
        self.say_what_the_audit_found();
        Report::Source(self.audited_from.take().unwrap_or_else(|| self.measured()))
    }

    /// What was measured until now.
    pub(super) fn measured(&self) -> SourceReport {
        let now = self.clock.now();
        let snapshot = self.session.snapshot(now);
        let between = |from: Option<Duration>, to: Option<Duration>| match (from, to) {
            (Some(from), Some(to)) => micros(to.saturating_sub(from)),
            _ => 0,
        };
        let Times { pause, closed, complete, committed } = self.times;
        SourceReport {
            total_us: micros(now),
            pause_us: between(pause, closed),
            state_us: between(closed, complete),
            commit_us: between(complete, committed),
            wire_bytes: self.limiter.sent_bytes(),
            reconnects: self.redial.times,
            skipped_pages: snapshot.skipped_pages,
            last_round_pages: u64::from(snapshot.last_round_pages.0),
            forecast: self.session.forecast().map(Box::new),
            steps: self.session.steps().to_vec(),
            ..self.report.clone()
        }
    }

    /// While somebody may wait for a page, the bulk keeps no more on the way than arrives within [`BACKLOG_MAX`].
    fn keep_the_way_short(&mut self, send_rate: u64) {
        let Some(link) = self.link.as_mut().filter(|_| self.session.is_serving()) else { return };
        // The shortest is the way itself; the rest of a longer one is the bulk's own queue.
        link.rtt_min = link.rtt_min.min(link.bulk.rtt());
        let way = link.rtt_min + BACKLOG_MAX;
        let bytes = u128::from(send_rate) * way.as_micros() / 1_000_000;
        self.limiter.set_window(u64::try_from(bytes).unwrap_or(u64::MAX).max(WINDOW_BYTES_MIN));
    }
}

/// Why a guest is paused that does not fit into the allowed downtime.
pub(super) fn why_paused(course: Course) -> Option<&'static str> {
    match course {
        Course::PausesToFinish => Some("the deadline has passed, and the guest may be paused to finish"),
        Course::PostCopy => Some("post-copy: it runs on at the target, and what is missing follows"),
        Course::Rounds | Course::Throttled | Course::SwitchesOver | Course::Ends => None,
    }
}
