//! Nodes for people.

use godwit_wire::admin::{Fenced, LostGuest, NodeDetail, NodeRow, RunnerRow};

use super::guests::guests_or;
use super::migrations::migrations_or;
use super::units::{bytes, millis};
use super::{facts, joined, list, maybe, sections};

/// `node list`.
pub fn nodes(rows: &[NodeRow]) -> String {
    let header = [
        "node",
        "state",
        "control",
        "guests",
        "memory",
        "free",
        "out",
        "in",
        "control address",
        "migration address",
    ];
    let cells = |row: &NodeRow| {
        [
            row.name.to_string(),
            state(row),
            row.control.clone(),
            row.guests.to_string(),
            bytes(row.memory_bytes),
            bytes(row.free_memory_bytes),
            row.outbound.to_string(),
            row.inbound.to_string(),
            row.control_address.to_string(),
            row.migration_address.to_string(),
        ]
    };
    list("no nodes", header, &[3, 4, 5, 6, 7], rows.iter().map(cells))
}

/// `node show`.
pub fn node(detail: &NodeDetail) -> String {
    let NodeDetail { row, boot, fence_waits_for, placed, leaving, runners } = detail;
    let first = facts([
        ("node", row.name.to_string()),
        ("state", state(row)),
        ("control", row.control.clone()),
        ("control address", row.control_address.to_string()),
        ("migration address", row.migration_address.to_string()),
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
    let leaving = migrations_or("none", leaving);
    sections(
        first,
        [
            ("guests placed there", guests),
            ("migrations that leave it, in order", leaving),
            ("runners", runners),
        ],
    )
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
