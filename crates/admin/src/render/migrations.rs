//! Migrations for people.

use godwit_domain::Overrides;
use godwit_domain::progress::{Course, Measured, Progress, SourceReport};
use godwit_wire::admin::{MigrationDetail, MigrationRow, StepRow};

use super::units::{bytes, micros, millis, rate, utc};
use super::{NOTHING, facts, joined, list, maybe, sections};

/// `migration list`.
pub fn migrations(rows: &[MigrationRow]) -> String {
    migrations_or("no migrations", rows)
}

pub(super) fn migrations_or(none: &str, rows: &[MigrationRow]) -> String {
    let cells = |row: &MigrationRow| {
        let MigrationRow { name, guest, phase, detail, source, target, asked_ms, queue_position } = row;
        [
            name.to_string(),
            guest.to_string(),
            phase.clone(),
            maybe(detail.as_ref()),
            maybe(source.as_ref()),
            maybe(target.as_ref()),
            maybe(*queue_position),
            utc(*asked_ms),
        ]
    };
    let header = ["migration", "guest", "phase", "detail", "from", "to", "queue", "asked for"];
    list(none, header, &[6], rows.iter().map(cells))
}

/// `migration show`.
pub fn migration(detail: &MigrationDetail) -> String {
    let MigrationDetail {
        row,
        over,
        asked_target,
        permits_held,
        call_offs,
        overrides,
        obstacles,
        steps,
        progress,
        measured,
    } = detail;
    let MigrationRow { name, guest, phase, detail, source, target, asked_ms, queue_position } = row;
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let first = facts([
        ("migration", name.to_string()),
        ("guest", guest.to_string()),
        ("phase", phase.clone()),
        ("detail", maybe(detail.as_ref())),
        ("over", yes_no(*over)),
        ("from", maybe(source.as_ref())),
        ("to", maybe(target.as_ref())),
        ("asked target", asked_target.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string)),
        ("asked for", utc(*asked_ms)),
        ("place in the queue", maybe(*queue_position)),
        ("holds permits", yes_no(*permits_held)),
        ("called off after a pause", call_offs.to_string()),
        ("its own settings", settings(overrides)),
    ]);
    let step =
        |StepRow { time_ms, phase, reason }: &StepRow| [utc(*time_ms), phase.clone(), maybe(reason.as_ref())];
    let steps = list("", ["time", "phase", "reason"], &[], steps.iter().map(step));
    let obstacles = obstacles.iter().map(|(node, why)| [node.to_string(), why.clone()]);
    sections(
        first,
        [
            ("why nodes can not take it", list("", ["node", "why not"], &[], obstacles)),
            ("phases", steps),
            ("progress, as its source said last", progress.as_ref().map_or_else(String::new, progress_of)),
            ("measured", measured_of(measured)),
        ],
    )
}

/// One line of `migration watch`.
pub fn migration_line(detail: &MigrationDetail) -> String {
    let row = &detail.row;
    let mut line = format!(
        "{}  {}  {} → {}  {}",
        row.name,
        row.guest,
        maybe(row.source.as_ref()),
        maybe(row.target.as_ref()),
        row.phase
    );
    if let Some(more) = &row.detail {
        line.push_str(&format!(": {more}"));
    }
    if let Some(position) = row.queue_position {
        line.push_str(&format!(", place {position} in the queue"));
    }
    if let Some(progress) = detail.progress.as_ref().filter(|_| !detail.over) {
        line.push_str(&format!(", {}", in_short(progress)));
    }
    line
}

/// How it does, in one line.
pub fn in_short(progress: &Progress) -> String {
    let left = progress.left_bytes.saturating_add(progress.dirty_bytes);
    // Before anything has arrived there is nothing to predict from.
    let downtime = match progress.send_rate {
        0 => "not known yet".to_owned(),
        _ => millis(progress.predicted_downtime_ms),
    };
    format!(
        "round {}, {} left, {} out, {} written, downtime now {downtime}",
        progress.round,
        bytes(left),
        rate(progress.send_rate),
        rate(progress.dirty_rate)
    )
}

fn settings(overrides: &Overrides) -> String {
    joined(overrides.entries().into_iter().map(|(key, value)| format!("{key}={value}")))
}

fn progress_of(progress: &Progress) -> String {
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
    } = progress;
    let stands = match (switching_over, waits_for_quorum, course) {
        (_, _, Course::Ends) => "was given up; the group has not agreed to that yet",
        (true, _, Course::PausesToFinish) => "the guest is paused to finish: the deadline has passed",
        (true, _, Course::PausesForPostCopy) => {
            "the guest is paused to finish, in place of post-copy: the deadline has passed"
        }
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
    ])
}

fn measured_of(measured: &Measured) -> String {
    let Measured { source, resume_us } = measured;
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
            skipped_pages,
            last_round_pages,
            predicted_downtime_us,
            throttle_percent_max,
            paused_to_finish,
        } = report;
        all = vec![
            ("total", micros(*total_us)),
            ("pause", micros(*pause_us)),
            ("state", micros(*state_us)),
            ("commit", micros(*commit_us)),
            ("predicted downtime", micros(*predicted_downtime_us)),
            ("rounds", rounds.to_string()),
            ("bytes on the wire", bytes(*wire_bytes)),
            ("pages sent", raw_pages.to_string()),
            ("pages sent as zeros", zero_pages.to_string()),
            ("pages left out, written again", skipped_pages.to_string()),
            ("pages of the last round", last_round_pages.to_string()),
            ("highest throttle", format!("{throttle_percent_max} %")),
            ("paused to finish", if *paused_to_finish { "yes" } else { "no" }.to_owned()),
        ];
    }
    all.extend(resume_us.map(|us| ("resume", micros(us))));
    if all.is_empty() { String::new() } else { facts(all) }
}
