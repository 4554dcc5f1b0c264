//! The control group and the whole cluster for people.

use godwit_wire::admin::{ControlStatus, MemberDetail, MemberRow, Status};
use godwit_wire::backup::Head;

use super::migrations::migrations_or;
use super::nodes::nodes;
use super::units::{millis, utc};
use super::{facts, joined, list, maybe, sections};

/// `control status`.
pub fn control(status: &ControlStatus) -> String {
    let ControlStatus {
        cluster,
        node,
        role,
        term,
        leader,
        voters,
        group,
        members,
        change,
        applied,
        committed,
        log: (first, last),
        quorum_age_ms,
        condition,
        session,
    } = status;
    let first = facts([
        ("cluster", cluster.clone()),
        ("group", maybe(group.as_ref())),
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
        ("change under way", maybe(change.as_ref())),
    ]);
    if members.is_empty() { first } else { sections(first, [("members", members_table(members))]) }
}

fn members_table(rows: &[MemberRow]) -> String {
    let cells = |row: &MemberRow| {
        let MemberRow { node, voter, state, answers, behind } = row;
        let answers = answers.map(|answers| if answers { "yes" } else { "NO" });
        [node.to_string(), state.clone(), maybe(answers), maybe(*behind), voter.clone()]
    };
    list("", ["node", "state", "answers", "entries behind", "number"], &[3], rows.iter().map(cells))
}

/// What has become of a node in the control group, in a line.
pub fn member(detail: &MemberDetail) -> String {
    let MemberDetail { node, done, state, behind: _, waits_for, voters } = detail;
    let done = done.as_ref().map_or_else(String::new, |done| format!(" {done}"));
    let state = match state.as_str() {
        "voter" => "it votes".to_owned(),
        "learner" => format!("it learns, and votes when {}", maybe(waits_for.as_ref())),
        _ => "it is not in the control group".to_owned(),
    };
    format!("{node}{done}: {state}. Voters: {}", joined(voters))
}

/// What is in a backup, or in what a voter has left.
pub fn backup(head: &Head) -> String {
    let Head { cluster, group, succeeds, node, voters, index, term, made_ms, nodes, guests, migrations } =
        head;
    let succeeds = succeeds.iter().map(ToString::to_string);
    facts([
        ("cluster", cluster.clone()),
        ("group", group.to_string()),
        ("groups before it", joined(succeeds)),
        ("made", format!("{} on {node}", utc(*made_ms))),
        ("last entry", format!("{index}, of term {term}")),
        ("voters", joined(voters)),
        ("nodes", nodes.to_string()),
        ("guests", guests.to_string()),
        ("migrations that are not over", migrations.to_string()),
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
        unheard,
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
    let waits = match unheard.is_empty() {
        true => String::new(),
        false => format!("{}; one that is gone for good: godwit node fence NODE", joined(unheard)),
    };
    sections(
        first,
        [
            ("founded anew: not heard yet what these have", waits),
            ("nodes", nodes(rows, true)),
            ("migrations that are not over", migrations_or("none", migrations, true)),
        ],
    )
}
