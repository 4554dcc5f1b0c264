//! What was seen of one move: its row of the report, and whether it was good.

use std::time::Duration;

use godwit_domain::progress::{AuditReport, PostCopyReport, SourceReport};
use godwit_domain::units::rate_of;
use godwit_domain::{NodeName, PAGE_BYTES};
use godwit_wire::admin::COUNT_MAX;
use godwit_wire::handoff::{Stats, Verified};

use super::render::{self, Move, millis, millis_apart};
use super::scenes::Scene;
use super::{LabError, ticks};

/// The least share of the asked dirty rate that the guest must have written during a move, in percent: a move of a
/// guest that is starved proves little.
const WRITTEN_PERCENT_MIN: u64 = 90;

/// What was seen of one move.
pub(super) struct Measured {
    pub(super) before: Stats,
    pub(super) after: Stats,
    pub(super) measured: SourceReport,
    pub(super) resume_us: u64,
    pub(super) post_copy: Option<PostCopyReport>,
    pub(super) audit: Option<AuditReport>,
    pub(super) ticks: ticks::TickReport,
    pub(super) ticks_while_missing: usize,
    pub(super) verified: Verified,
}

impl Scene {
    pub(super) fn entry(&self, source: &NodeName, target: &NodeName, seen: &Measured) -> Move {
        let Measured { before, after, measured, resume_us, post_copy, audit, .. } = seen;
        let Measured { ticks, ticks_while_missing, verified, .. } = seen;
        let written = (after.pages_written - before.pages_written) * PAGE_BYTES;
        let running = Duration::from_micros(after.running_us - before.running_us);
        let gap_ms = millis(ticks.gap_ns_max / 1000);
        Move {
            guest: self.guest.to_string(),
            mode: if post_copy.is_some() { "post-copy" } else { "pre-copy" },
            source: source.to_string(),
            target: target.to_string(),
            memory_bytes: self.spec.memory_bytes,
            wire_bytes: measured.wire_bytes,
            rounds: measured.rounds,
            total_ms: millis(measured.total_us),
            downtime_ms: gap_ms,
            pause_ms: millis(measured.pause_us),
            state_ms: millis(measured.state_us),
            commit_ms: millis(measured.commit_us),
            resume_ms: millis(*resume_us),
            predicted_downtime_ms: Some(measured.predicted_downtime_us)
                .filter(|us| *us < COUNT_MAX)
                .map(millis),
            prediction: measured.forecast.as_ref().map(|forecast| forecast.prediction),
            predicted_total_ms: measured
                .forecast
                .as_ref()
                .and_then(|forecast| forecast.total_us())
                .map(millis),
            predicted_total_error_ms: measured.total_error_us().map(millis_apart),
            predicted_downtime_error_ms: measured.downtime_error_us().map(millis_apart),
            steps: measured.steps.clone(),
            ticks_lost: ticks.lost,
            tick_gap_max_ms: gap_ms,
            verified: verified.wrong == 0,
            pages_verified: verified.pages,
            pages_wrong: verified.wrong,
            audit_checked_pages: audit.map(|report| report.checked_pages),
            audit_mismatched_pages: audit.map(|report| report.mismatched_pages),
            raw_pages: measured.raw_pages,
            raw_bytes: measured.raw_pages * PAGE_BYTES,
            zero_pages: measured.zero_pages,
            packed_pages: measured.packed_pages,
            packed_bytes: measured.packed_bytes,
            packing_ms: millis(measured.packing_us),
            skipped_pages: measured.skipped_pages,
            dirty_rate_asked: self.spec.dirty_rate_bytes_per_second,
            dirty_rate_achieved: rate_of(written, running),
            postcopy_missing_at_resume_bytes: post_copy.map_or(0, |report| report.missing_at_resume_bytes),
            postcopy_ms: millis(post_copy.map_or(0, |report| report.took_us)),
            ticks_while_missing: *ticks_while_missing,
            faults: post_copy.map_or(0, |report| report.faults),
            fault_p50_us_max: post_copy.map_or(0, |report| report.latency_percentile_us(50)),
            fault_p99_us_max: post_copy.map_or(0, |report| report.latency_percentile_us(99)),
            fault_latency_log2_us: post_copy.map(|report| report.latency_log2_us).unwrap_or_default(),
            blocked_ms: millis(post_copy.map_or(0, |report| report.blocked_us)),
        }
    }
}

/// Whether a move was good.
pub(super) fn judge(moved: &Move, target: &NodeName, post_copy: bool) -> Result<(), LabError> {
    let target = || target.clone();
    if !moved.verified {
        let (wrong, pages) = (moved.pages_wrong, moved.pages_verified);
        return Err(LabError::Wrong { target: target(), wrong, pages, first: Vec::new() });
    }
    if let (Some(checked), Some(mismatched @ 1..)) = (moved.audit_checked_pages, moved.audit_mismatched_pages)
    {
        return Err(LabError::Audit { target: target(), mismatched, checked });
    }
    if moved.ticks_lost > 0 {
        return Err(LabError::TicksLost { target: target(), lost: moved.ticks_lost });
    }
    let (missing, ticks) = (moved.postcopy_missing_at_resume_bytes, moved.ticks_while_missing);
    let is_shown = missing >= moved.memory_bytes / 4 && ticks > 0;
    if post_copy && is_shown {
        // A guest that waits for its pages writes less than it should.
        return Ok(());
    }
    // One that writes too little may well converge.
    if moved.dirty_rate_achieved < moved.dirty_rate_asked / 100 * WRITTEN_PERCENT_MIN {
        return Err(LabError::Starved {
            target: target(),
            asked: render::bytes(moved.dirty_rate_asked),
            achieved: render::bytes(moved.dirty_rate_achieved),
        });
    }
    if post_copy { Err(LabError::NotPostCopy { target: target(), missing, ticks }) } else { Ok(()) }
}
