//! Guests for people.

use godwit_domain::{GuestName, GuestSpec, Qemu};
use godwit_wire::admin::{CopyRow, GuestDetail, GuestRow, GuestStats};
use godwit_wire::handoff::{RunState, Standing, Stats, Verified};

use super::migrations::migrations_or;
use super::units::{bytes, micros, millis, rate};
use super::{facts, joined, labels, list, maybe, sections};

/// `guest list`.
pub fn guests(rows: &[GuestRow]) -> String {
    guests_or("no guests", rows)
}

pub(super) fn guests_or(none: &str, rows: &[GuestRow]) -> String {
    let cells = |row: &GuestRow| {
        let GuestRow { name, state, node, epoch, memory_bytes, migration } = row;
        [
            name.to_string(),
            state.clone(),
            maybe(node.as_ref()),
            epoch.to_string(),
            bytes(*memory_bytes),
            maybe(migration.as_ref()),
        ]
    };
    list(none, ["guest", "state", "node", "epoch", "memory", "migration"], &[3, 4], rows.iter().map(cells))
}

/// `guest show`.
pub fn guest(detail: &GuestDetail) -> String {
    let GuestDetail {
        row,
        uid,
        instance,
        copies,
        ended,
        not_run,
        rollbacks,
        spec,
        labels: own_labels,
        node_selector,
        policy,
        migrations,
    } = detail;
    let GuestRow { name, state, node, epoch, memory_bytes, migration } = row;
    // One that is lost says at once why, where that is known, and so does one that does not run.
    let state = match (ended, not_run) {
        (Some(why), _) => format!("{state}: {why}"),
        (None, Some(why)) => format!("{state}, and does not run: {why}"),
        (None, None) => state.clone(),
    };
    let first = facts([
        ("guest", name.to_string()),
        ("state", state),
        ("node", maybe(node.as_ref())),
        ("epoch", epoch.to_string()),
        ("memory", bytes(*memory_bytes)),
        ("migration", maybe(migration.as_ref())),
        ("uid", uid.clone()),
        ("instance", maybe(*instance)),
        ("rollbacks", rollbacks.to_string()),
        ("workload", workload(spec)),
        ("labels", labels(own_labels)),
        ("runs on nodes with", labels(node_selector)),
        ("policy", maybe(policy.as_ref())),
    ]);
    let copies = if copies.is_empty() { String::new() } else { copies_of(copies) };
    sections(
        first,
        [("copies that are kept", copies), ("migrations", migrations_or("none", migrations, true))],
    )
}

fn copies_of(rows: &[CopyRow]) -> String {
    let cells =
        |CopyRow { node, instance, what }: &CopyRow| [node.to_string(), what.clone(), instance.to_string()];
    list("none", ["node", "what", "instance"], &[], rows.iter().map(cells))
}

fn workload(spec: &GuestSpec) -> String {
    let GuestSpec {
        memory_bytes,
        working_set_bytes,
        dirty_rate_bytes_per_second,
        pattern,
        zero_percent,
        compressible_percent,
        threads,
        seed,
        tick_interval_ms,
        qemu,
    } = spec;
    if let Some(Qemu { program, arguments, ram_id: _, adopted: _ }) = qemu {
        // An option a line: all in one would be wider than any screen.
        let words = arguments.join(" ").replace(" -", "\n  -");
        return format!("{} of RAM\n{program}\n  {words}", bytes(*memory_bytes));
    }
    format!(
        "{} of RAM, {} of it written at {}, {pattern}, by {threads} threads\n{zero_percent} % zero, \
         {compressible_percent} % compressible, seed {seed}, a tick every {}",
        bytes(*memory_bytes),
        bytes(*working_set_bytes),
        rate(*dirty_rate_bytes_per_second),
        millis(*tick_interval_ms),
    )
}

/// `guest stats`.
pub fn stats(name: &GuestName, answer: &GuestStats) -> String {
    let GuestStats { node, dir, stats } = answer;
    let Stats {
        standing: Standing { state, epoch, loaded },
        memory_bytes,
        dirty_rate_asked,
        dirty_rate_achieved,
        pages_written,
        running_us,
        tick,
        throttle_percent,
    } = stats;
    let state = match state {
        RunState::Incoming => "incoming",
        RunState::Running => "running",
        RunState::Paused => "paused",
    };
    facts([
        ("guest", name.to_string()),
        ("node", node.to_string()),
        ("folder", dir.clone()),
        ("runner", state.to_owned()),
        ("epoch", epoch.to_string()),
        ("state loaded of epoch", maybe(*loaded)),
        ("memory", bytes(*memory_bytes)),
        ("dirty rate asked", rate(*dirty_rate_asked)),
        ("dirty rate achieved", rate(*dirty_rate_achieved)),
        ("pages written", pages_written.to_string()),
        ("has run for", micros(*running_us)),
        ("ticks", tick.to_string()),
        ("throttle", format!("{throttle_percent} %")),
    ])
}

/// `guest verify`.
pub fn verified(name: &GuestName, answer: &Verified) -> String {
    let Verified { pages, wrong, first_wrong, took_ms } = answer;
    let took = millis(*took_ms);
    if *wrong == 0 {
        format!("{name}: all {pages} pages hold what they must (compared in {took})")
    } else {
        format!(
            "{name}: {wrong} of {pages} PAGES ARE WRONG, the first are {} (compared in {took})",
            joined(first_wrong)
        )
    }
}
