//! Migrations for people.

use godwit_domain::Overrides;
use godwit_domain::settings::Origin;
use godwit_wire::admin::{ChangeRow, MigrationDetail, MigrationExplained, MigrationRow, StepRow};

use super::outlook::steps_of;
use super::progress::{in_short, measured_of, progress_of};
use super::units::utc;
use super::verdicts::{settings_of, verdicts_of};
use super::{facts, grid, joined, labels, list, maybe, sections};

/// `migration list`. In its wide form with all that a row holds.
pub fn migrations(rows: &[MigrationRow], wide: bool) -> String {
    migrations_or("no migrations", rows, wide)
}

pub(super) fn migrations_or(none: &str, rows: &[MigrationRow], wide: bool) -> String {
    let mut head = vec!["migration", "guest", "phase", "detail", "from", "to", "queue", "asked for"];
    if wide {
        head.extend(["priority", "policy"]);
    }
    let cells = |row: &MigrationRow| {
        let MigrationRow {
            name,
            guest,
            phase,
            detail,
            source,
            target,
            asked_ms,
            priority,
            policy,
            queue_position,
        } = row;
        let mut cells = vec![
            name.to_string(),
            guest.to_string(),
            phase.clone(),
            maybe(detail.as_ref()),
            maybe(source.as_ref()),
            maybe(target.as_ref()),
            maybe(*queue_position),
            utc(*asked_ms),
        ];
        if wide {
            cells.extend([priority.to_string(), maybe(policy.as_ref())]);
        }
        cells
    };
    grid(none, &head, &[6], rows.iter().map(cells))
}

/// `migration show`.
pub fn migration(detail: &MigrationDetail) -> String {
    let MigrationDetail { obstacles, steps, changes, settings, progress, measured, .. } = detail;
    let step =
        |StepRow { time_ms, phase, reason }: &StepRow| [utc(*time_ms), phase.clone(), maybe(reason.as_ref())];
    let steps = list("", ["time", "phase", "reason"], &[], steps.iter().map(step));
    let obstacles = obstacles.iter().map(|(node, why)| [node.to_string(), why.clone()]);
    let change = |ChangeRow { time_ms, what }: &ChangeRow| [utc(*time_ms), what.clone()];
    // When it is over, its source has said all of it.
    let done = measured.source.as_ref().map(|report| &report.steps);
    let done = done.or(progress.as_ref().map(|progress| &progress.steps)).map_or(&[][..], Vec::as_slice);
    let set = settings.iter().filter(|(_, row)| row.origin != Origin::Default);
    sections(
        facts(facts_of(detail)),
        [
            ("why nodes can not take it", list("", ["node", "why not"], &[], obstacles)),
            ("phases", steps),
            ("settings that somebody has set", settings_of(set)),
            ("changes of its settings", list("", ["time", "change"], &[], changes.iter().map(change))),
            ("progress, as its source said last", progress.as_ref().map_or_else(String::new, progress_of)),
            ("what was done about it, round by round", steps_of(done)),
            ("measured", measured_of(measured)),
        ],
    )
}

fn facts_of(detail: &MigrationDetail) -> Vec<(&'static str, String)> {
    let MigrationDetail {
        row,
        over,
        asked_target,
        asked_selector,
        drains,
        network,
        waits_for,
        holders,
        permits_held,
        call_offs,
        overrides,
        // Each of these has a table of its own.
        settings: _,
        changes: _,
        obstacles: _,
        steps: _,
        progress: _,
        measured: _,
    } = detail;
    let MigrationRow {
        name,
        guest,
        phase,
        detail,
        source,
        target,
        asked_ms,
        priority,
        policy,
        queue_position,
    } = row;
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let mut facts = vec![
        ("migration", name.to_string()),
        ("guest", guest.to_string()),
        ("phase", phase.clone()),
        ("detail", maybe(detail.as_ref())),
        ("over", yes_no(*over)),
        ("from", maybe(source.as_ref())),
        ("to", maybe(target.as_ref())),
        ("asked target", asked_target.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string)),
        ("asked labels of the target", labels(asked_selector)),
        ("asked for", utc(*asked_ms)),
        ("priority", priority.to_string()),
        ("policy", maybe(policy.as_ref())),
        ("place in the queue", maybe(*queue_position)),
        ("waits for", maybe(waits_for.as_ref())),
        ("held by", joined(holders)),
        ("holds permits", yes_no(*permits_held)),
        ("network", maybe(network.as_ref())),
        ("called off after a pause", call_offs.to_string()),
        ("its own settings", own_settings(overrides)),
    ];
    facts.extend(drains.as_ref().map(|node| ("asked by the drain of", node.to_string())));
    facts
}

fn own_settings(overrides: &Overrides) -> String {
    joined(overrides.entries().into_iter().map(|(key, value)| format!("{key}={value}")))
}

/// `migration explain`.
pub fn migration_explained(explained: &MigrationExplained) -> String {
    let MigrationExplained { detail, nodes, before } = explained;
    let default = detail.settings.iter().filter(|(_, row)| row.origin == Origin::Default);
    sections(
        migration(detail),
        [
            ("nodes that could take it now", verdicts_of(nodes)),
            (
                "goes after",
                if before.is_empty() { "nothing in the queue".to_owned() } else { joined(before) },
            ),
            ("settings that nobody has set", settings_of(default)),
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
