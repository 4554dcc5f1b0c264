//! Nodes for people.

use godwit_wire::admin::{DrainDetail, DrainGuest, Fenced, LostGuest, NodeDetail, NodeRow, RunnerRow};

use super::guests::guests_or;
use super::migrations::migrations_or;
use super::units::{bytes, millis, utc};
use super::{facts, grid, joined, labels, list, maybe, sections};

/// `node list`. In its wide form with all that a row holds.
pub fn nodes(rows: &[NodeRow], wide: bool) -> String {
    let mut head = vec!["node", "state", "control", "takes guests", "guests", "memory", "free", "out", "in"];
    if wide {
        head.extend(["control address", "migration address", "labels"]);
    }
    let cells = |row: &NodeRow| {
        let mut cells = vec![
            row.name.to_string(),
            state(row),
            row.control.clone(),
            row.takes_guests.clone(),
            row.guests.to_string(),
            bytes(row.memory_bytes),
            bytes(row.free_memory_bytes),
            row.outbound.to_string(),
            row.inbound.to_string(),
        ];
        if wide {
            cells.extend([
                row.control_address.to_string(),
                row.migration_address.to_string(),
                labels(&row.labels),
            ]);
        }
        cells
    };
    grid("no nodes", &head, &[4, 5, 6, 7, 8], rows.iter().map(cells))
}

/// `node show`.
pub fn node(detail: &NodeDetail) -> String {
    let NodeDetail { row, boot, fence_waits_for, placed, leaving, networks, drain, runners } = detail;
    let first = facts([
        ("node", row.name.to_string()),
        ("state", state(row)),
        ("control", row.control.clone()),
        ("takes guests", row.takes_guests.clone()),
        ("control address", row.control_address.to_string()),
        ("migration address", row.migration_address.to_string()),
        ("on networks", joined(networks.iter().map(|(name, address)| format!("{name} {address}")))),
        ("labels", labels(&row.labels)),
        ("boot", boot.clone()),
        ("guests", row.guests.to_string()),
        ("memory offered", bytes(row.memory_bytes)),
        ("memory free", bytes(row.free_memory_bytes)),
        ("migrations out", row.outbound.to_string()),
        ("migrations in", row.inbound.to_string()),
        ("fence waits for", joined(fence_waits_for)),
    ]);
    let runners = runners.as_deref().map_or_else(|| "not known: it does not answer".to_owned(), runners_of);
    let guests = guests_or("none", placed);
    let leaving = migrations_or("none", leaving, true);
    sections(
        first,
        [
            ("its drain", drain.as_ref().map_or_else(String::new, drain_of)),
            ("guests placed there", guests),
            ("migrations that leave it, in order", leaving),
            ("runners", runners),
        ],
    )
}

fn drain_of(drain: &DrainDetail) -> String {
    let DrainDetail { state, began_ms, moved, left } = drain;
    let first = facts([
        ("state", state.clone()),
        ("since", utc(*began_ms)),
        ("guests moved", moved.to_string()),
        ("guests left", left.len().to_string()),
    ]);
    let cells = |guest: &DrainGuest| {
        let DrainGuest { guest, stuck, why, failed, retry_at_ms } = guest;
        let stuck = if *stuck { "yes" } else { "no" }.to_owned();
        [guest.to_string(), stuck, why.clone(), failed.to_string(), maybe(retry_at_ms.map(utc))]
    };
    let head = ["guest", "stuck", "why it is still there", "failed", "again at"];
    sections(first, [("guests that are left", list("", head, &[3], left.iter().map(cells)))])
}

/// Guests that a drain does not move by itself, one a line with the reason; with `all`, those that it still would, too.
pub fn stuck(drain: &DrainDetail, all: bool) -> Vec<String> {
    let left = drain.left.iter().filter(|guest| all || guest.stuck);
    left.map(|guest| format!("{}: {}", guest.guest, guest.why)).collect()
}

/// How a drain goes, in one line.
pub fn drain_line(detail: &NodeDetail) -> String {
    let node = &detail.row.name;
    let Some(DrainDetail { state, moved, left, .. }) = &detail.drain else {
        return format!("{node}  not drained, takes guests: {}", detail.row.takes_guests);
    };
    let stuck = left.iter().filter(|guest| guest.stuck).count();
    let stuck = if stuck == 0 { String::new() } else { format!(", {stuck} of them stuck") };
    format!("{node}  {state}: {moved} moved, {} left{stuck}", left.len())
}

/// `node fence`.
pub fn fenced(fenced: &Fenced) -> String {
    let Fenced { node, lost, note } = fenced;
    let cells = |LostGuest { guest, kept_on }: &LostGuest| [guest.to_string(), maybe(kept_on.as_ref())];
    let lost = list("none", ["guest", "older copy on"], &[], lost.iter().map(cells));
    sections(format!("{node} is fenced"), [("guests lost by it", lost), ("note", note.clone())])
}

fn state(row: &NodeRow) -> String {
    match row.unreachable_for_ms {
        None => row.state.clone(),
        Some(ms) => format!("{} for {}", row.state, millis(ms)),
    }
}

fn runners_of(rows: &[RunnerRow]) -> String {
    let cells = |row: &RunnerRow| {
        let RunnerRow { guest, instance, state, dir, transfer } = row;
        [guest.to_string(), state.clone(), maybe(transfer.as_ref()), instance.to_string(), dir.clone()]
    };
    list("none", ["guest", "state", "transfer", "instance", "folder"], &[], rows.iter().map(cells))
}
