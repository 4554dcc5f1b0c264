//! What is agreed, and what the leader's floor knows, as rows for people and programs.
//!
//! Always true: a row is computed when it is asked for and stored nowhere; its words are those of `docs/protocol.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use godwit_domain::ownership::{Attempt, Life, Permits, Phase};
use godwit_domain::progress::Progress;
use godwit_domain::registry::{Guest, GuestUid, Node, Obstacle, Record, Registry, Step, WaitReason};
use godwit_domain::{MigrationId, NodeName};
use godwit_wire::admin::{
    CopyRow, GuestDetail, GuestRow, MigrationDetail, MigrationRow, NodeDetail, NodeRow, StepRow,
};

use super::Group;

/// What is known beside the registry, as it stands at one moment.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Who leads.
    pub(super) leader: Option<NodeName>,
    /// Who votes.
    pub(super) voters: BTreeSet<NodeName>,
    /// Nodes with a session; `None`: nobody leads who would know.
    pub(super) reachable: Option<BTreeSet<NodeName>>,
    /// For how long, in milliseconds, a node has had none.
    pub(super) silent_ms: BTreeMap<NodeName, u64>,
    /// How migrations did when they were last heard.
    pub(super) progress: BTreeMap<MigrationId, Progress>,
    /// Migrations whose target prepares.
    pub(super) preparing: BTreeSet<MigrationId>,
}

impl Beside {
    /// As the floor of this group stands.
    pub(super) async fn of(group: &Group) -> Self {
        let leads = group.leads();
        let names = group.read(|registry| {
            let attempts = registry.guests.values().filter_map(|guest| guest.ownership.attempt.as_ref());
            let open = attempts.filter(|attempt| !attempt.phase.is_over());
            (
                registry.nodes.keys().cloned().collect::<Vec<_>>(),
                open.map(|attempt| attempt.migration.clone()).collect::<Vec<_>>(),
            )
        });
        let (nodes, migrations) = names.await.unwrap_or_default();
        let floor = group.floor();
        let ms = |since: Instant| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let silent = nodes.into_iter().filter_map(|node| {
            let since = floor.silent_since(&node)?;
            Some((node, ms(since)))
        });
        let progress = migrations.iter().filter_map(|name| Some((name.clone(), floor.progress(name)?)));
        Self {
            leader: group.leader(),
            voters: group.voters().into_iter().collect(),
            reachable: leads.then(|| floor.reachable()),
            silent_ms: silent.collect(),
            progress: progress.collect(),
            preparing: migrations.iter().filter(|name| floor.prepares(name)).cloned().collect(),
        }
    }

    fn is_unreachable(&self, node: &NodeName) -> bool {
        self.reachable.as_ref().is_some_and(|reachable| !reachable.contains(node))
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A node in a list.
pub(super) fn node_row(registry: &Registry, beside: &Beside, name: &NodeName, node: &Node) -> NodeRow {
    let state = match (node.fenced.is_some(), &beside.reachable) {
        (true, _) => "fenced",
        (false, None) => "unknown",
        (false, Some(reachable)) if reachable.contains(name) => "reachable",
        (false, Some(_)) => "unreachable",
    };
    let control = match (beside.leader.as_ref() == Some(name), beside.voters.contains(name)) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "-",
    };
    let owns = |guest: &&Guest| guest.ownership.owner().is_some_and(|owner| owner.node == *name);
    NodeRow {
        name: name.clone(),
        state: state.to_owned(),
        unreachable_for_ms: beside
            .is_unreachable(name)
            .then(|| beside.silent_ms.get(name).copied())
            .flatten(),
        control: control.to_owned(),
        control_address: node.control,
        migration_address: node.migration,
        guests: count(registry.guests.values().filter(owns).count()),
        memory_bytes: node.memory_bytes,
        free_memory_bytes: registry.free_memory_bytes(name),
        outbound: count(registry.granted().filter(|(_, source, _)| *source == name).count()),
        inbound: count(registry.granted().filter(|(_, _, target)| *target == name).count()),
    }
}

/// A node with what the registry places on it. Its runners are for the node itself to tell.
pub(super) fn node_detail(registry: &Registry, beside: &Beside, name: &NodeName) -> Option<NodeDetail> {
    let node = registry.nodes.get(name)?;
    let here = |guest: &&Guest| guest.ownership.owner().is_some_and(|owner| owner.node == *name);
    let mut leaving: Vec<MigrationRow> = registry
        .guests
        .values()
        .filter(here)
        .filter_map(|guest| {
            migration_row(registry, beside, guest, &guest.ownership.attempt.as_ref()?.migration)
        })
        .filter(|row| !is_over(&row.phase))
        .collect();
    leaving.sort_by_key(|row| (row.queue_position, row.asked_ms));
    Some(NodeDetail {
        row: node_row(registry, beside, name, node),
        boot: node.boot.to_string(),
        fence_waits_for: node.fenced.clone().unwrap_or_default().into_iter().collect(),
        placed: registry.guests.values().filter(here).map(|guest| guest_row(beside, guest)).collect(),
        leaving,
        runners: None,
    })
}

fn is_over(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed" | "Cancelled")
}

/// A guest in a list.
pub(super) fn guest_row(beside: &Beside, guest: &Guest) -> GuestRow {
    let attempt = guest.ownership.attempt.as_ref().filter(|attempt| !attempt.phase.is_over());
    let node = match &guest.ownership.life {
        Life::Alive(owner) => Some(owner.node.clone()),
        Life::Creating(node) => Some(node.clone()),
        Life::Lost { .. } | Life::Deleting(_) | Life::Purged => None,
    };
    let state = match &guest.ownership.life {
        Life::Creating(_) => "creating",
        Life::Alive(owner) if beside.is_unreachable(&owner.node) => "unreachable",
        Life::Alive(_) if attempt.is_some_and(|attempt| attempt.permits != Permits::None) => "migrating",
        Life::Alive(_) => "running",
        Life::Lost { .. } => "lost",
        Life::Deleting(_) => "stopping",
        Life::Purged => "gone",
    };
    GuestRow {
        name: guest.name.clone(),
        state: state.to_owned(),
        node,
        epoch: guest.ownership.epoch,
        memory_bytes: guest.memory_bytes(),
        migration: attempt.map(|attempt| attempt.migration.clone()),
    }
}

/// One guest.
pub(super) fn guest_detail(
    registry: &Registry,
    beside: &Beside,
    uid: GuestUid,
    guest: &Guest,
) -> GuestDetail {
    let mut copies = Vec::new();
    if let Life::Lost { last, kept } = &guest.ownership.life {
        let copy = |licence: &godwit_domain::ownership::Licence, what: &str| CopyRow {
            node: licence.node.clone(),
            instance: licence.instance,
            what: what.to_owned(),
        };
        copies.push(copy(last, "last owner"));
        copies.extend(kept.iter().map(|kept| copy(kept, "kept source")));
    }
    let names = guest.finished.iter().map(|finished| &finished.attempt.migration);
    let names = names.chain(guest.ownership.attempt.iter().map(|attempt| &attempt.migration));
    GuestDetail {
        row: guest_row(beside, guest),
        uid: uid.to_string(),
        instance: guest.ownership.owner().map(|owner| owner.instance),
        copies,
        rollbacks: guest.ownership.rollbacks,
        spec: guest.spec.clone(),
        migrations: names.filter_map(|name| migration_row(registry, beside, guest, name)).collect(),
    }
}

/// A migration in a list.
pub(super) fn migration_row(
    registry: &Registry,
    beside: &Beside,
    guest: &Guest,
    name: &MigrationId,
) -> Option<MigrationRow> {
    let (attempt, record) = guest.migration(name)?;
    let (phase, detail) = phase(registry, beside, attempt);
    let (source, target) = match &record.route {
        Some((source, target)) => (Some(source.clone()), Some(target.clone())),
        None => (guest.ownership.owner().map(|owner| owner.node.clone()), record.target.clone()),
    };
    let waits = matches!(attempt.phase, Phase::Pending);
    Some(MigrationRow {
        name: name.clone(),
        guest: guest.name.clone(),
        phase: phase.to_owned(),
        detail,
        source,
        target,
        asked_ms: record.asked_ms(),
        queue_position: waits.then(|| registry.queue_position(name).map(count)).flatten(),
    })
}

/// The phase as people know it, and what more there is to say.
fn phase(registry: &Registry, beside: &Beside, attempt: &Attempt) -> (&'static str, Option<String>) {
    let name = &attempt.migration;
    match &attempt.phase {
        Phase::Pending => ("Pending", waits_for(registry, beside, name).map(|reason| reason.to_string())),
        Phase::Preparing { target, .. } if beside.preparing.contains(name) => {
            ("PreparingTarget", unheard(beside, target))
        }
        Phase::Preparing { target, .. } => ("Scheduling", unheard(beside, target)),
        Phase::Copying { source, target } => {
            let unheard = unheard(beside, &source.node).or_else(|| unheard(beside, &target.node));
            match beside.progress.get(name) {
                None => ("TargetReady", unheard),
                Some(progress) => ("Running", unheard.or_else(|| Some(copying(progress)))),
            }
        }
        Phase::HandedOver { target, .. } => {
            let said = "SwitchingOver, handed over".to_owned();
            (
                "Running",
                Some(unheard(beside, &target.node).map_or(said.clone(), |more| format!("{said}; {more}"))),
            )
        }
        Phase::PostCopy { .. } => ("Running", Some("PostCopy".to_owned())),
        Phase::Succeeded => ("Succeeded", None),
        Phase::Failed { reason } | Phase::Cancelled { reason } => {
            let held = attempt.permits != Permits::None;
            match (&attempt.phase, held) {
                (Phase::Cancelled { .. }, true) => {
                    ("Cancelling", Some(format!("{reason}; cancelled, and neither node has let go yet")))
                }
                (Phase::Cancelled { .. }, false) => ("Cancelled", Some(reason.clone())),
                _ => ("Failed", Some(reason.clone())),
            }
        }
    }
}

fn copying(progress: &Progress) -> String {
    let round = progress.round;
    match (progress.switching_over, progress.waits_for_quorum) {
        (true, _) => "SwitchingOver".to_owned(),
        (false, true) => {
            format!("PreCopy round {round}, ready to switch over, waits for a quorum of the control group")
        }
        (false, false) => format!("PreCopy round {round}"),
    }
}

fn unheard(beside: &Beside, node: &NodeName) -> Option<String> {
    let ms = beside.silent_ms.get(node).filter(|_| beside.is_unreachable(node))?;
    Some(format!("node {node} has not been heard for {} s", ms / 1000))
}

fn waits_for(registry: &Registry, beside: &Beside, name: &MigrationId) -> Option<WaitReason> {
    registry.wait_reason(name, beside.reachable.as_ref()?)
}

/// One migration.
pub(super) fn migration_detail(
    registry: &Registry,
    beside: &Beside,
    guest: &Guest,
    name: &MigrationId,
) -> Option<MigrationDetail> {
    let (attempt, record) = guest.migration(name)?;
    let Record { target, overrides, steps, measured, .. } = record;
    let obstacles = match waits_for(registry, beside, name) {
        Some(WaitReason::NoTarget(nodes)) => nodes,
        Some(WaitReason::ClusterLimit { .. } | WaitReason::OutboundLimit { .. }) | None => BTreeMap::new(),
    };
    Some(MigrationDetail {
        row: migration_row(registry, beside, guest, name)?,
        over: attempt.phase.is_over(),
        asked_target: target.clone(),
        permits_held: attempt.permits != Permits::None,
        call_offs: attempt.call_offs,
        overrides: *overrides,
        obstacles: obstacles.into_iter().map(|(node, why): (_, Obstacle)| (node, why.to_string())).collect(),
        steps: steps.iter().map(step_row).collect(),
        progress: beside.progress.get(name).copied(),
        measured: *measured,
    })
}

fn step_row(step: &Step) -> StepRow {
    let Step { time_ms, phase, reason } = step;
    // The log knows fewer phases than people do.
    let phase = match phase.as_str() {
        "Preparing" => "Scheduling",
        "Copying" => "TargetReady",
        "HandedOver" => "SwitchingOver",
        known => known,
    };
    StepRow { time_ms: *time_ms, phase: phase.to_owned(), reason: reason.clone() }
}
