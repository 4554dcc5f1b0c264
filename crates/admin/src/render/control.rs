//! The control group and the whole cluster for people.

use godwit_wire::admin::{ControlStatus, Status};

use super::migrations::migrations_or;
use super::nodes::nodes;
use super::units::{millis, utc};
use super::{facts, joined, maybe, sections};

/// `control status`.
pub fn control(status: &ControlStatus) -> String {
    let ControlStatus {
        cluster,
        node,
        role,
        term,
        leader,
        voters,
        applied,
        committed,
        log: (first, last),
        quorum_age_ms,
        condition,
        session,
    } = status;
    facts([
        ("cluster", cluster.clone()),
        ("node", node.to_string()),
        ("role", role.clone()),
        ("condition", condition.clone()),
        ("term", term.to_string()),
        ("leader", maybe(leader.as_ref())),
        ("voters", joined(voters)),
        ("applied", applied.to_string()),
        ("committed", committed.to_string()),
        ("log", format!("{first} to {last}")),
        (
            "a quorum answered",
            quorum_age_ms.map_or_else(|| maybe(None::<&str>), |ms| format!("{} ago", millis(ms))),
        ),
        ("session with", maybe(session.as_ref())),
    ])
}

/// `status`.
pub fn status(status: &Status) -> String {
    let Status {
        cluster,
        answered_by,
        stale,
        leader,
        term,
        applied,
        time_ms,
        nodes: rows,
        guests,
        migrations,
    } = status;
    let current = if *stale {
        "NO: nobody leads; this is what the answering node has seen, maybe not the latest"
    } else {
        "yes"
    };
    let first = facts([
        ("cluster", cluster.clone()),
        ("answered by", answered_by.to_string()),
        ("current", current.to_owned()),
        ("leader", maybe(leader.as_ref())),
        ("term", term.to_string()),
        ("applied", applied.to_string()),
        ("time", utc(*time_ms)),
        ("guests", joined(guests.iter().map(|(state, count)| format!("{count} {state}")))),
    ]);
    sections(
        first,
        [
            ("nodes", nodes(rows, true)),
            ("migrations that are not over", migrations_or("none", migrations, true)),
        ],
    )
}
