//! How a migration goes, and what was measured of it.

use godwit_domain::PAGE_BYTES;
use godwit_domain::progress::{AuditReport, Course, Measured, PostCopyReport, Progress, SourceReport};
use godwit_wire::admin::COUNT_MAX;

use super::outlook::{expected, hindsight};
use super::units::{bytes, micros, millis, rate};
use super::{NOTHING, facts};

/// How it does, in one line.
pub fn in_short(progress: &Progress) -> String {
    let left = progress.left_bytes.saturating_add(progress.dirty_bytes);
    // Before anything has arrived there is nothing to predict from.
    let downtime = match progress.send_rate {
        0 => "not known yet".to_owned(),
        _ => millis(progress.predicted_downtime_ms),
    };
    let expected =
        progress.prediction.as_ref().map_or_else(String::new, |said| format!(", {}", expected(said)));
    format!(
        "round {}, {} left, {} out, {} written, downtime now {downtime}{expected}",
        progress.round,
        bytes(left),
        rate(progress.send_rate),
        rate(progress.dirty_rate)
    )
}

/// Everything that its source has said.
pub(super) fn progress_of(progress: &Progress) -> String {
    let Progress {
        round,
        switching_over,
        waits_for_quorum,
        left_bytes,
        dirty_bytes,
        wire_bytes,
        send_rate,
        dirty_rate,
        predicted_downtime_ms,
        throttle_percent,
        course,
        prediction,
        // These have a table of their own.
        steps: _,
    } = progress;
    let stands = match (switching_over, waits_for_quorum, course) {
        (_, _, Course::Ends) => "was given up; the group has not agreed to that yet",
        (true, _, Course::PausesToFinish) => "the guest is paused to finish: the deadline has passed",
        (true, _, Course::PostCopy) => "going post-copy: the guest stands still for a moment",
        (false, false, Course::PostCopy) => "the guest runs at the target; its missing pages follow",
        (true, _, Course::Rounds | Course::Throttled | Course::SwitchesOver) => {
            "switching over: the guest stands still"
        }
        (false, true, _) => "waits for a quorum to switch over",
        (false, false, _) if *throttle_percent > 0 => "copies while the guest runs, throttled",
        (false, false, _) => "copies while the guest runs",
    };
    let predicted = if *send_rate == 0 { NOTHING.to_owned() } else { millis(*predicted_downtime_ms) };
    facts([
        ("does", stands.to_owned()),
        ("round", round.to_string()),
        ("left in this round", bytes(*left_bytes)),
        ("written again since", bytes(*dirty_bytes)),
        ("sent so far", bytes(*wire_bytes)),
        ("arrives at", rate(*send_rate)),
        ("the guest writes at", rate(*dirty_rate)),
        ("predicted downtime", predicted),
        ("throttle", format!("{throttle_percent} %")),
        ("expected", prediction.as_ref().map_or_else(|| NOTHING.to_owned(), expected)),
    ])
}

/// What it cost the guest that pages came after it.
fn post_copy_facts(report: &PostCopyReport) -> [(&'static str, String); 6] {
    let PostCopyReport { missing_at_resume_bytes, took_us, faults, zero_faults, blocked_us, .. } = report;
    let at_most = |percent| format!("{} us", report.latency_percentile_us(percent));
    [
        ("missing when it ran", bytes(*missing_at_resume_bytes)),
        ("last page after", micros(*took_us)),
        ("faults", format!("{faults}, and {zero_faults} at pages of zeros")),
        ("its threads waited", micros(*blocked_us)),
        ("half of all waits below", at_most(50)),
        ("99 % of all waits below", at_most(99)),
    ]
}

/// What came of comparing both sides afterwards.
fn audit_facts(report: &AuditReport) -> [(&'static str, String); 2] {
    let AuditReport { checked_pages, mismatched_pages, written_pages, complete } = report;
    let found = match mismatched_pages {
        0 => "all alike".to_owned(),
        count => format!("{count} PAGES ARE NOT ALIKE"),
    };
    let end = if *complete { "" } else { "; it ended before every page had its turn" };
    [
        ("audit", format!("{found}{end}")),
        ("pages compared", format!("{checked_pages}, and {written_pages} that the guest had written since")),
    ]
}

/// What was measured; nothing before there is something.
pub(super) fn measured_of(measured: &Measured) -> String {
    let Measured { source, resume_us, post_copy, audit } = measured;
    let mut all = Vec::new();
    if let Some(report) = source {
        let SourceReport {
            total_us,
            pause_us,
            state_us,
            commit_us,
            rounds,
            wire_bytes,
            raw_pages,
            zero_pages,
            packed_pages,
            packed_bytes,
            packing_us,
            skipped_pages,
            last_round_pages,
            predicted_downtime_us,
            throttle_percent_max,
            reconnects,
            paused_to_finish,
            forecast: _,
            // These have a table of their own.
            steps: _,
        } = report;
        all = vec![
            ("total", micros(*total_us)),
            ("pause", micros(*pause_us)),
            ("state", micros(*state_us)),
            ("commit", micros(*commit_us)),
            ("predicted downtime", foreseen(*predicted_downtime_us)),
            ("rounds", rounds.to_string()),
            ("bytes on the wire", bytes(*wire_bytes)),
            ("pages sent as they are", raw_pages.to_string()),
            ("pages sent as zeros", zero_pages.to_string()),
            ("pages sent packed", packed(*packed_pages, *packed_bytes)),
            ("spent on packing", micros(*packing_us)),
            ("pages left out, written again", skipped_pages.to_string()),
            ("pages of the last round", last_round_pages.to_string()),
            ("highest throttle", format!("{throttle_percent_max} %")),
            ("link lost and regained", reconnects.to_string()),
            ("paused to finish", if *paused_to_finish { "yes" } else { "no" }.to_owned()),
        ];
        all.extend(hindsight(report));
    }
    all.extend(resume_us.map(|us| ("resume", micros(us))));
    all.extend(post_copy.as_ref().map(post_copy_facts).into_iter().flatten());
    all.extend(audit.as_ref().map(audit_facts).into_iter().flatten());
    if all.is_empty() { String::new() } else { facts(all) }
}

/// A prediction; without an end it was made before anything had arrived, and says nothing.
fn foreseen(us: u64) -> String {
    if us < COUNT_MAX { micros(us) } else { NOTHING.to_owned() }
}

/// Pages that were packed, and what is left of them.
fn packed(pages: u64, bytes_left: u64) -> String {
    match pages {
        0 => "0".to_owned(),
        _ => format!("{pages}, {} of {}", bytes(bytes_left), bytes(pages.saturating_mul(PAGE_BYTES))),
    }
}
