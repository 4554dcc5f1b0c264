//! What is agreed, and what the leader's floor knows, as rows for people and programs.
//!
//! Always true: a row is computed when it is asked for and stored nowhere; its words are those of `docs/protocol.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use godwit_domain::ownership::{Attempt, Life, Permits, Phase};
use godwit_domain::progress::Progress;
use godwit_domain::registry::{
    Drain, Guest, GuestUid, Node, Obstacle, PREPARING_TARGET, RUNNING, Record, Registry, Step, Tries,
    WaitReason,
};
use godwit_domain::{MigrationId, NodeName};
pub(super) use godwit_wire::admin::rows as settings_rows;
use godwit_wire::admin::{
    ChangeRow, DrainDetail, DrainGuest, GuestDetail, GuestRow, MigrationDetail, MigrationRow, NodeDetail,
    NodeRow, StepRow,
};

use super::{Group, copies};

/// Waiting migrations of which a list says why each node can not take them. Of one that is asked for it is always said.
const EXPLAINED_MAX: usize = 64;

/// What is known beside the registry, as it stands at one moment.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Who leads.
    pub(super) leader: Option<NodeName>,
    /// Who votes.
    pub(super) voters: BTreeSet<NodeName>,
    /// Who learns what is agreed, to vote.
    pub(super) learner: Option<NodeName>,
    /// Nodes with a session; `None`: nobody leads who would know.
    pub(super) reachable: Option<BTreeSet<NodeName>>,
    /// For how long, in milliseconds, a node has had none.
    pub(super) silent_ms: BTreeMap<NodeName, u64>,
    /// How migrations did when they were last heard.
    pub(super) progress: BTreeMap<MigrationId, Progress>,
    /// Waiting migrations, those that are to be shown: their places, and for what they wait.
    pub(super) queue: BTreeMap<MigrationId, (usize, Option<WaitReason>)>,
}

impl Beside {
    /// As the floor of this group stands.
    pub(super) fn of(group: &Group) -> Self {
        let floor = group.floor();
        let ms = |since: Instant| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        Self {
            leader: group.leader(),
            voters: group.voters().into_iter().collect(),
            learner: group.members().learner().map(|(_, name)| name.clone()),
            reachable: group.leads().then(|| floor.reachable()),
            silent_ms: floor.silent().into_iter().map(|(node, since)| (node, ms(since))).collect(),
            progress: floor.all_progress(),
            queue: BTreeMap::new(),
        }
    }

    /// With the places of these guests' migrations in the queue, of those that wait: whoever asks about one of thousands
    /// shall not have all of them judged.
    pub(super) fn with_places(
        mut self,
        registry: &Registry,
        guests: impl IntoIterator<Item = GuestUid>,
    ) -> Self {
        let waits = |uid: &GuestUid| {
            let attempt = registry.guests.get(uid).and_then(|guest| guest.ownership.attempt.as_ref());
            attempt.is_some_and(|attempt| attempt.phase == Phase::Pending)
        };
        let asked: BTreeSet<GuestUid> = guests.into_iter().filter(waits).collect();
        let nobody = BTreeSet::new();
        let reachable = self.reachable.as_ref().unwrap_or(&nobody);
        let known = self.reachable.is_some();
        let places = (1..).zip(registry.queue()).filter(|(_, uid)| asked.contains(uid)).take(asked.len());
        let queue = places.filter_map(|(place, uid)| {
            let migration = registry.guests.get(&uid)?.ownership.attempt.as_ref()?.migration.clone();
            let reason = registry.wait_reason(&migration, reachable).filter(|_| known);
            Some((migration, (place, reason)))
        });
        self.queue = queue.collect();
        self
    }

    /// With the whole queue as it stands in this registry. Without a leader nobody knows for what it waits.
    pub(super) fn with_queue(mut self, registry: &Registry) -> Self {
        let nobody = BTreeSet::new();
        let reachable = self.reachable.as_ref().unwrap_or(&nobody);
        let waiting = registry.waiting(reachable, EXPLAINED_MAX).into_iter();
        let known = self.reachable.is_some();
        self.queue = (1..)
            .zip(waiting)
            .map(|(place, it)| (it.migration, (place, it.reason.filter(|_| known))))
            .collect();
        self
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
        (false, false) if beside.learner.as_ref() == Some(name) => "learner",
        (false, false) => "-",
    };
    let takes_guests = match (registry.drains.get(name), registry.is_cordoned(name)) {
        (Some(drain), _) if !drain.cancelled => "draining",
        (_, true) => "cordoned",
        (_, false) => "yes",
    };
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
        guests: count(registry.owned_by(name).count()),
        memory_bytes: node.memory_bytes,
        free_memory_bytes: registry.free_memory_bytes(name),
        outbound: count(registry.outbound(name)),
        inbound: count(registry.inbound(name)),
        takes_guests: takes_guests.to_owned(),
        labels: registry.labels_of_node(name),
    }
}

/// A node with what the registry places on it. Its runners are for the node itself to tell.
pub(super) fn node_detail(registry: &Registry, beside: &Beside, name: &NodeName) -> Option<NodeDetail> {
    let node = registry.nodes.get(name)?;
    let mut leaving: Vec<MigrationRow> = registry
        .owned_by(name)
        .filter_map(|(_, guest)| migration_row(beside, guest, &guest.ownership.attempt.as_ref()?.migration))
        .filter(|row| !is_over(&row.phase))
        .collect();
    leaving.sort_by_key(|row| (row.queue_position, row.asked_ms));
    Some(NodeDetail {
        row: node_row(registry, beside, name, node),
        boot: node.boot.to_string(),
        fence_waits_for: node.fenced.clone().unwrap_or_default().into_iter().collect(),
        placed: registry.owned_by(name).map(|(_, guest)| guest_row(beside, guest)).collect(),
        leaving,
        networks: node.networks.clone(),
        drain: drain_detail(registry, beside, name),
        runners: None,
    })
}

/// How a node's drain stands.
pub(super) fn drain_detail(registry: &Registry, beside: &Beside, name: &NodeName) -> Option<DrainDetail> {
    let drain = registry.drains.get(name)?;
    let left: Vec<DrainGuest> = registry
        .touched_by(name)
        .filter_map(|(uid, guest)| drain_guest(beside, (name, drain), uid, guest))
        .collect();
    let state = match (drain.cancelled, left.is_empty()) {
        (true, _) => "cancelled",
        (false, true) => "drained",
        (false, false) if left.iter().all(|guest| guest.stuck) => "stuck",
        (false, false) => "draining",
    };
    Some(DrainDetail { state: state.to_owned(), began_ms: drain.began_ms, moved: drain.moved, left })
}

/// Whether a migration that is not over comes from this node or goes to it.
fn still_needs(guest: &Guest, node: &NodeName) -> bool {
    guest.ownership.attempt.as_ref().is_some_and(|attempt| match &attempt.permits {
        Permits::Held { source, target } => !attempt.phase.is_over() && (source == node || target == node),
        Permits::None => false,
    })
}

/// A guest that is still on a drained node, and why.
fn drain_guest(
    beside: &Beside,
    (node, drain): (&NodeName, &Drain),
    uid: GuestUid,
    guest: &Guest,
) -> Option<DrainGuest> {
    let row = |stuck: bool, why: String, tries: Option<&Tries>| {
        let (failed, retry) = tries.map_or((0, None), |tries| (tries.failed, Some(tries.not_before_ms)));
        Some(DrainGuest {
            guest: guest.name.clone(),
            stuck,
            why,
            failed,
            retry_at_ms: retry.filter(|_| !stuck),
        })
    };
    match &guest.ownership.life {
        Life::Alive(owner) if owner.node == *node => {}
        Life::Alive(owner) if still_needs(guest, node) => {
            let why = match guest.ownership.attempt.as_ref().and_then(|attempt| attempt.phase.target_node()) {
                Some(target) if target == node => "is on its way here".to_owned(),
                _ => format!("arrives at {}; what is here of it is still needed", owner.node),
            };
            return row(false, why, None);
        }
        Life::Creating(at) if at == node => return row(false, "it is being made".to_owned(), None),
        Life::Lost { last, .. } if last.node == *node => {
            return row(true, "it is lost: recover or stop it".to_owned(), None);
        }
        Life::Alive(_)
        | Life::Creating(_)
        | Life::Lost { .. }
        | Life::Deleting(_)
        | Life::Purged
        | Life::Unsure(_) => {
            return None;
        }
    }
    let tries = drain.tries.get(&uid);
    if guest.body.local_disks_bytes > 0 {
        let why = format!(
            "its {} bytes of local disks are not moved by this version",
            guest.body.local_disks_bytes
        );
        return row(true, why, tries);
    }
    let open = guest.ownership.attempt.as_ref().filter(|attempt| !attempt.phase.is_over());
    if let Some((attempt, record)) = open.zip(guest.record.as_ref()) {
        let (phase, detail) = phase(beside, attempt, record);
        let detail = detail.map(|detail| format!(", {detail}")).unwrap_or_default();
        // One that no node can take is tried until its time is over; meanwhile nothing else happens by itself.
        let unplaceable = record.unplaceable_since_ms.is_some();
        return row(unplaceable, format!("{} {phase}{detail}", attempt.migration), tries);
    }
    match tries {
        Some(tries) if tries.stopped => row(true, format!("not tried again: {}", tries.why), Some(tries)),
        Some(tries) => row(false, format!("is tried again; it failed: {}", tries.why), Some(tries)),
        None if drain.cancelled => row(true, "the drain was cancelled".to_owned(), None),
        None => row(false, "is asked for next".to_owned(), None),
    }
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
        Life::Lost { .. } | Life::Deleting(_) | Life::Purged | Life::Unsure(_) => None,
    };
    let state = match &guest.ownership.life {
        Life::Creating(_) => "creating",
        Life::Alive(owner) if beside.is_unreachable(&owner.node) => "unreachable",
        Life::Alive(_) if attempt.is_some_and(|attempt| attempt.permits != Permits::None) => "migrating",
        Life::Alive(_) => "running",
        Life::Lost { .. } => "lost",
        Life::Deleting(_) => "stopping",
        Life::Purged => "gone",
        Life::Unsure(doubt) if doubt.open => "disputed",
        Life::Unsure(_) => "unsure",
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
    let copies = copies::of(&guest.ownership.life);
    let names = guest.finished.iter().map(|finished| &finished.attempt.migration);
    let names = names.chain(guest.ownership.attempt.iter().map(|attempt| &attempt.migration));
    GuestDetail {
        row: guest_row(beside, guest),
        uid: uid.to_string(),
        instance: guest.ownership.owner().map(|owner| owner.instance),
        copies,
        // The desk asks the node that has it or had it.
        ended: None,
        not_run: None,
        rollbacks: guest.ownership.rollbacks,
        spec: guest.spec().clone(),
        labels: registry.subject(guest).guest.clone(),
        node_selector: guest.body.node_selector.clone(),
        policy: registry.in_force(guest).policy,
        migrations: names.filter_map(|name| migration_row(beside, guest, name)).collect(),
    }
}

/// A migration in a list.
pub(super) fn migration_row(beside: &Beside, guest: &Guest, name: &MigrationId) -> Option<MigrationRow> {
    let (attempt, record) = guest.migration(name)?;
    let (phase, detail) = phase(beside, attempt, record);
    let (source, target) = match &record.route {
        Some((source, target)) => (Some(source.clone()), Some(target.clone())),
        None => (guest.ownership.owner().map(|owner| owner.node.clone()), record.wish.target.clone()),
    };
    Some(MigrationRow {
        name: name.clone(),
        guest: guest.name.clone(),
        phase: phase.to_owned(),
        detail,
        source,
        target,
        asked_ms: record.asked_ms(),
        priority: record.class,
        policy: record.policy.clone(),
        queue_position: beside.queue.get(name).map(|(place, _)| count(*place)),
    })
}

/// The phase as people know it, and what more there is to say.
fn phase(beside: &Beside, attempt: &Attempt, record: &Record) -> (&'static str, Option<String>) {
    let name = &attempt.migration;
    match &attempt.phase {
        Phase::Pending => {
            ("Pending", waits_for(beside, name).map(WaitReason::brief).or_else(|| declined(record)))
        }
        Phase::Preparing { target, .. } if record.last_step() == Some(PREPARING_TARGET) => {
            ("PreparingTarget", unheard(beside, target))
        }
        Phase::Preparing { target, .. } => ("Scheduling", unheard(beside, target)),
        Phase::Copying { source, target } => {
            let unheard = unheard(beside, &source.node).or_else(|| unheard(beside, &target.node));
            match beside.progress.get(name) {
                None if record.last_step() == Some(RUNNING) => ("Running", unheard),
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
        Phase::PostCopy { source_gone: true, .. } => {
            let said = "PostCopy, its source is gone for good: whoever touches a missing page waits; delete the guest, or keep it";
            ("Running", Some(said.to_owned()))
        }
        Phase::PostCopy { source, target, .. } => {
            let unheard = unheard(beside, &source.node).or_else(|| unheard(beside, &target.node));
            let left = beside.progress.get(name).map(|progress| {
                let mib = progress.left_bytes.saturating_add(progress.dirty_bytes) >> 20;
                format!("PostCopy, {mib} MiB missing")
            });
            let said = left.unwrap_or_else(|| "PostCopy".to_owned());
            ("Running", Some(unheard.map_or(said.clone(), |more| format!("{said}; {more}"))))
        }
        Phase::Succeeded => ("Succeeded", None),
        Phase::Failed { reason } | Phase::Cancelled { reason } => {
            let held = attempt.permits != Permits::None;
            match (&attempt.phase, held) {
                (Phase::Cancelled { .. }, true) => {
                    ("Cancelling", Some(format!("{reason}; cancelled, and neither node has let go yet")))
                }
                (Phase::Cancelled { .. }, false) => ("Cancelled", Some(reason.clone())),
                (_, true) => {
                    ("Failed", Some(format!("{reason}; its permits are held: neither node has let go yet")))
                }
                (_, false) => ("Failed", Some(reason.clone())),
            }
        }
    }
}

/// What there is to say of one that is to be granted, and that nodes have refused.
fn declined(record: &Record) -> Option<String> {
    let names: Vec<&str> = record.declined.iter().map(NodeName::as_str).collect();
    (!names.is_empty())
        .then(|| format!("declined by {}, which are asked again after the others", names.join(", ")))
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

fn waits_for<'a>(beside: &'a Beside, name: &MigrationId) -> Option<&'a WaitReason> {
    beside.queue.get(name)?.1.as_ref()
}

/// One migration.
pub(super) fn migration_detail(
    registry: &Registry,
    beside: &Beside,
    guest: &Guest,
    name: &MigrationId,
) -> Option<MigrationDetail> {
    let (attempt, record) = guest.migration(name)?;
    let over = attempt.phase.is_over();
    let reason = beside.reachable.as_ref().and_then(|reachable| registry.wait_reason(name, reachable));
    let reason = reason.as_ref();
    let obstacles = match reason {
        Some(WaitReason::NoTarget(nodes)) => nodes.clone(),
        Some(
            WaitReason::ClusterLimit { .. }
            | WaitReason::OutboundLimit { .. }
            | WaitReason::SourceWithoutNetwork { .. }
            | WaitReason::SourceUnreachable { .. },
        )
        | None => BTreeMap::new(),
    };
    let holders = match reason {
        Some(WaitReason::ClusterLimit { holders, .. } | WaitReason::OutboundLimit { holders, .. }) => {
            holders.clone()
        }
        Some(
            WaitReason::NoTarget(_)
            | WaitReason::SourceWithoutNetwork { .. }
            | WaitReason::SourceUnreachable { .. },
        )
        | None => Vec::new(),
    };
    // What held for one that is over is not known any more: its changes are.
    let settings = if over { BTreeMap::new() } else { settings_rows(&registry.in_force(guest).resolved) };
    Some(MigrationDetail {
        row: migration_row(beside, guest, name)?,
        over,
        asked_target: record.wish.target.clone(),
        asked_selector: record.wish.selector.clone(),
        drains: record.wish.drains.clone(),
        network: record.network.clone(),
        waits_for: reason.map(ToString::to_string),
        holders,
        permits_held: attempt.permits != Permits::None,
        call_offs: attempt.call_offs,
        overrides: record.wish.overrides,
        settings,
        changes: record
            .changes
            .iter()
            .map(|it| ChangeRow { time_ms: it.time_ms, what: it.what.clone() })
            .collect(),
        obstacles: obstacles.into_iter().map(|(node, why): (_, Obstacle)| (node, why.to_string())).collect(),
        steps: record.steps.iter().map(step_row).collect(),
        progress: beside.progress.get(name).filter(|_| !over).cloned(),
        measured: record.measured.clone(),
    })
}

pub(super) fn step_row(step: &Step) -> StepRow {
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
