//! Requests that change something, or that a node has to answer.

use std::collections::BTreeSet;
use std::time::Duration;

use godwit_domain::machine::Body;
use godwit_domain::ownership::{Doubt, Entry, Licence, Life, Phase};
use godwit_domain::registry::{BootId, Command, Guest, GuestUid, Home, Registry, WaitReason};
use godwit_domain::{GuestName, InstanceId, Labels, NodeName, PageCount};
use godwit_wire::admin::{Done, Fenced, GuestStats, LostGuest, NodeDetail, Problem, RunnerRow};
use godwit_wire::handoff::RunState;
use godwit_wire::session::{NodeAnswer, NodeAsk};

use super::super::Group;
use super::asked::Asked;
use super::problem::{self, gone, no_guest, no_node, refused};
use super::{Answered, ask_node, guest_detail, json};
use crate::files;

/// How long a new guest may take to run, beside a second for every 128 MiB that are filled.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stopped guest is waited for before it is said who still holds it.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a runner is asked whether it runs yet.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// Waits for something to be agreed.
async fn until<R: Send + 'static>(
    group: &Group,
    limit: Duration,
    look: impl Fn(&Registry) -> Option<R> + Clone + Send + 'static,
) -> Result<Option<R>, Problem> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut view = group.watch();
    loop {
        view.mark_unchanged();
        if let Some(found) = group.read(look.clone()).await.ok_or_else(gone)? {
            return Ok(Some(found));
        }
        if !group.leads() {
            return Err(problem::leadership_lost());
        }
        if tokio::time::timeout_at(deadline, view.changed()).await.is_err() {
            return Ok(None);
        }
    }
}

/// A guest by its name.
pub(super) async fn named<R: Send + 'static>(
    group: &Group,
    name: &GuestName,
    of: impl FnOnce(GuestUid, &Guest, &Registry) -> R + Send + 'static,
) -> Result<R, Problem> {
    let asked = name.clone();
    let found = group.read(move |registry| {
        let (uid, guest) = registry.guest_named(&asked)?;
        Some(of(uid, guest, registry))
    });
    found.await.ok_or_else(gone)?.ok_or_else(|| no_guest(name))
}

pub(super) async fn node_show(group: &Group, node: NodeName) -> Answered {
    let found = super::node_now(group, &node).await.ok_or_else(gone)?;
    let mut detail: NodeDetail = found.ok_or_else(|| no_node(&node))?;
    // One that does not answer is shown without its runners: what is agreed about it is still known.
    if let Ok(NodeAnswer::Here(here)) = ask_node(group, &node, NodeAsk::Show).await {
        let row = |here: godwit_wire::session::Here| RunnerRow {
            guest: here.guest,
            instance: here.instance,
            state: here.state,
            dir: here.dir,
            transfer: here.transfer,
        };
        detail.runners = Some(here.into_iter().map(row).collect());
    }
    json(&detail)
}

/// What a fence of a node would be about: its boot, its runners, and the guests that are lost by it.
type Vouch = (BootId, BTreeSet<InstanceId>, Vec<LostGuest>);

fn vouch_for(registry: &Registry, node: &NodeName) -> Option<Vouch> {
    let boot = registry.nodes.get(node)?.boot;
    let lost = registry.owned_by(node).map(|(_, guest)| {
        let phase = guest.ownership.attempt.as_ref().map(|attempt| &attempt.phase);
        let kept = phase.and_then(Phase::kept_source).map(|kept| kept.node.clone());
        LostGuest { guest: guest.name.clone(), kept_on: kept.filter(|kept| kept != node) }
    });
    Some((boot, registry.instances_on(node), lost.collect()))
}

/// Guests that are lost, and whose last runner was there.
fn lost_on(registry: &Registry, node: &NodeName) -> Vec<LostGuest> {
    let lost = registry.guests.values().filter_map(|guest| match &guest.ownership.life {
        Life::Lost { last, kept } if last.node == *node => {
            let kept_on = kept.as_ref().map(|kept| kept.node.clone());
            Some(LostGuest { guest: guest.name.clone(), kept_on })
        }
        Life::Lost { .. }
        | Life::Creating(_)
        | Life::Alive(_)
        | Life::Deleting(_)
        | Life::Purged
        | Life::Unsure(_) => None,
    });
    lost.collect()
}

/// Who answers a leader that was just elected is known in a moment.
pub(super) async fn settled(group: &Group) -> Result<(), Problem> {
    while !group.floor().is_settled() {
        if !group.leads() {
            return Err(problem::leadership_lost());
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Ok(())
}

pub(super) async fn fence(group: &Group, asked: Asked, node: NodeName, although_reachable: bool) -> Answered {
    settled(group).await?;
    if group.floor().session(&node).is_some() && !although_reachable {
        let message = format!("node {node} answers: it is not off");
        let hint = "move its guests away instead; to fence it all the same, so that it stops its guests itself: --although-reachable";
        return Err(refused("a node that is fenced is off", message, hint));
    }
    let name = node.clone();
    let vouch = group.read(move |registry| Some((vouch_for(registry, &name)?, lost_on(registry, &name))));
    let vouch = vouch.await.ok_or_else(gone)?;
    let ((boot, instances, mut lost), before) = vouch.ok_or_else(|| no_node(&node))?;
    asked.propose(group, None, Command::Fence { node: node.clone(), boot, instances }).await?;
    // Those, too, of which it was not known who ran them.
    let name = node.clone();
    let now = group.read(move |registry| lost_on(registry, &name)).await.ok_or_else(gone)?;
    lost.extend(now.into_iter().filter(|guest| !before.contains(guest)));
    lost.sort_by(|one, other| one.guest.cmp(&other.guest));
    lost.dedup_by(|one, other| one.guest == other.guest);
    tracing::warn!(%node, %boot, lost = lost.len(), "fenced: an operator vouches that it is off");
    let note = if lost.is_empty() {
        format!("node {node} is fenced. No guest was there")
    } else {
        format!(
            "node {node} is fenced and its guests are lost. Nothing is started in their place by itself: where an older \
             copy is kept, `godwit guest recover NAME --accept-rollback` runs it"
        )
    };
    json(&Fenced { node, lost, note })
}

/// Whether a node may be removed: it has stopped and does not vote. What it holds the registry knows.
pub(super) async fn removable(group: &Group, node: &NodeName) -> Result<(), Problem> {
    settled(group).await?;
    if group.floor().session(node).is_some() {
        let message = format!("node {node} has a session with the leader");
        return Err(refused("a node that is removed has stopped", message, "stop its process first"));
    }
    if group.members().named(node).is_some() {
        let message = format!("node {node} is in the control group");
        return Err(refused("a voter is not removed", message, format!("godwit control remove {node}")));
    }
    Ok(())
}

pub(super) async fn remove(group: &Group, asked: Asked, node: NodeName) -> Answered {
    removable(group, &node).await?;
    asked.propose(group, None, Command::RemoveNode { node }).await?;
    json(&Done::default())
}

pub(super) async fn create(
    group: &Group,
    asked: Asked,
    name: GuestName,
    node: Option<NodeName>,
    body: Body,
    labels: Labels,
) -> Answered {
    let home = home(group, node, &body).await?;
    let made = Some(home.uid.0.to_string());
    let memory_bytes = body.spec.memory_bytes;
    let place = (home.uid, home.node.clone());
    let new = Command::PutInstance { name: name.clone(), labels, body: Some(body), home: Some(home) };
    // That no other guest has this name, the registry sees to.
    if let Some(first) = asked.propose(group, made, new).await? {
        return await_created(group, name, first.made).await;
    }
    settle_in(group, &name, place, memory_bytes).await?;
    guest_detail(group, name).await
}

/// Where a new guest is made: on that node, or the best one.
pub(super) async fn home(group: &Group, node: Option<NodeName>, body: &Body) -> Result<Home, Problem> {
    let memory_bytes = body.spec.memory_bytes;
    if PageCount::of_memory(memory_bytes).is_none() {
        let message = format!("memory of {memory_bytes} bytes");
        let rule = "memory is a whole number of 4,096-byte pages, at least one and below 16 TiB";
        return Err(refused(rule, message, "a size such as 512Mi or 4Gi"));
    }
    let node = match node {
        Some(node) => node,
        None => best_home(group, body).await?,
    };
    if group.floor().session(&node).is_none() {
        let asked = node.clone();
        let known = group.read(move |registry| registry.nodes.contains_key(&asked)).await.ok_or_else(gone)?;
        return Err(if known { problem::unreachable(&node) } else { no_node(&node) });
    }
    let random: [u8; 8] =
        files::random().map_err(|error| problem::failed("random numbers", error.to_string()))?;
    Ok(Home { uid: GuestUid(u64::from_ne_bytes(random)), node })
}

/// Waits until a new guest runs. One that can not is not left half made.
pub(super) async fn settle_in(
    group: &Group,
    name: &GuestName,
    (uid, node): (GuestUid, NodeName),
    memory_bytes: u64,
) -> Result<(), Problem> {
    let limit = CREATE_TIMEOUT + Duration::from_secs(memory_bytes >> 27);
    let Err(why) = runs(group, uid, &node, limit).await else { return Ok(()) };
    // A QEMU that was adopted has run before; once its node has taken it in, its end would be the end of what it runs.
    let stays = named(group, name, |_, guest, _| {
        let adopted = guest.body.spec.qemu.as_ref().is_some_and(|qemu| qemu.adopted.is_some());
        adopted && !matches!(guest.ownership.life, Life::Creating(_))
    });
    if stays.await.unwrap_or(false) {
        let message = format!("guest {name} on {node} was adopted, and does not answer: {why}");
        let hint =
            format!("its QEMU is left running: godwit guest show {name}, or godwit guest unadopt {name}");
        return Err(refused("the guest's node must answer", message, hint));
    }
    let _ = group.propose(Command::Guest { guest: uid, entry: Entry::Delete }).await;
    Err(problem::failed("the guest's runner must start", format!("guest {name} on {node}: {why}")))
}

/// A guest that was asked for before under the same request id.
pub(super) async fn await_created(group: &Group, name: GuestName, made: Option<String>) -> Answered {
    let found = named(group, &name, |uid, guest, _| {
        let node = guest.ownership.holders.first().cloned();
        (uid, node, guest.memory_bytes(), matches!(guest.ownership.life, Life::Creating(_)))
    });
    let (uid, node, memory_bytes, creating) = found.await?;
    let same = made.is_none_or(|made| made == uid.0.to_string());
    if let (true, true, Some(node)) = (same, creating, node) {
        settle_in(group, &name, (uid, node), memory_bytes).await?;
    }
    guest_detail(group, name).await
}

/// Waits until a new guest runs. `Err`: why it does not.
async fn runs(group: &Group, uid: GuestUid, node: &NodeName, limit: Duration) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + limit;
    while tokio::time::Instant::now() < deadline {
        match ask_node(group, node, NodeAsk::Stats(uid)).await {
            Ok(NodeAnswer::Stats { stats, .. }) if stats.standing.state == RunState::Running => return Ok(()),
            Ok(_) | Err(_) => {}
        }
        if let Ok(NodeAnswer::Why(Some(why))) = ask_node(group, node, NodeAsk::WhyNot(uid)).await {
            return Err(why);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Err(format!("it does not run after {} s", limit.as_secs()))
}

/// The reachable node with most free memory that the guest may be on.
async fn best_home(group: &Group, body: &Body) -> Result<NodeName, Problem> {
    let (reachable, body) = (group.floor().reachable(), body.clone());
    let best = group.read(move |registry| registry.best_home(&body, &reachable)).await.ok_or_else(gone)?;
    best.map_err(|obstacles| {
        if obstacles.is_empty() {
            return refused("a node must have joined", "no node has", "godwit node list");
        }
        let message = WaitReason::NoTarget(obstacles).to_string();
        refused("a node must be able to take the guest", message, "godwit node list shows what each has free")
    })
}

/// Where a guest runs.
async fn owner_of(group: &Group, name: &GuestName) -> Result<(GuestUid, Licence), Problem> {
    let (uid, life) = named(group, name, |uid, guest, _| (uid, guest.ownership.life.clone())).await?;
    match life {
        Life::Alive(owner) => Ok((uid, owner)),
        Life::Creating(_) | Life::Lost { .. } | Life::Deleting(_) | Life::Purged | Life::Unsure(_) => {
            let message = format!("guest {name} is {}", life.name());
            Err(refused("the guest must be alive", message, "godwit guest show NAME says how it stands"))
        }
    }
}

pub(super) async fn verify(group: &Group, name: GuestName) -> Answered {
    let (uid, owner) = owner_of(group, &name).await?;
    match ask_node(group, &owner.node, NodeAsk::Verify(uid)).await? {
        NodeAnswer::Verified(verified) => json(&verified),
        other => Err(problem::failed("node", format!("node {} answered {other:?}", owner.node))),
    }
}

pub(super) async fn stats(group: &Group, name: GuestName) -> Answered {
    let (uid, owner) = owner_of(group, &name).await?;
    match ask_node(group, &owner.node, NodeAsk::Stats(uid)).await? {
        NodeAnswer::Stats { stats, dir } => json(&GuestStats { node: owner.node, dir, stats }),
        other => Err(problem::failed("node", format!("node {} answered {other:?}", owner.node))),
    }
}

/// Why a guest's runner does not run it, or, if it is lost, why its last one has ended; if its node answers and knows.
pub(super) async fn why_still(group: &Group, name: &GuestName) -> Option<(Still, String)> {
    let found = named(group, name, |_, guest, _| match &guest.ownership.life {
        Life::Lost { last, .. } => Some((Still::Lost, last.clone())),
        _ => guest.ownership.owner().map(|owner| (Still::NotRun, owner.clone())),
    });
    let (still, Licence { node, instance, .. }) = found.await.ok()??;
    match ask_node(group, &node, NodeAsk::WhyEnded(instance)).await {
        Ok(NodeAnswer::Why(why)) => why.map(|why| (still, why)),
        Ok(_) | Err(_) => None,
    }
}

/// What a guest is that does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Still {
    /// Its runner has ended.
    Lost,
    /// Its runner is there, and was told to run it.
    NotRun,
}

/// Presses a guest's power button where it runs.
pub(super) async fn power_button(group: &Group, name: GuestName) -> Answered {
    let (uid, owner) = owner_of(group, &name).await?;
    match ask_node(group, &owner.node, NodeAsk::PowerButton(uid)).await? {
        NodeAnswer::Pressed => json(&Done::default()),
        other => Err(problem::failed("node", format!("node {} answered {other:?}", owner.node))),
    }
}

/// Ends a guest for good, and its VirtualMachine, which would wish for it again.
pub(super) async fn stop(group: &Group, asked: Asked, name: GuestName) -> Answered {
    let found =
        named(group, &name, |uid, guest, registry| (uid, registry.machines.contains_key(&guest.name)));
    let (uid, has_machine) = found.await?;
    let command = match has_machine {
        true => Command::DeleteMachine { name: name.clone() },
        false => Command::Guest { guest: uid, entry: Entry::Delete },
    };
    asked.propose(group, None, command).await?;
    until_gone(group, &name, uid).await
}

/// Forgets a guest, and has its process left running.
pub(super) async fn release(group: &Group, asked: Asked, name: GuestName) -> Answered {
    let (uid, owner) = owner_of(group, &name).await?;
    let moves = named(group, &name, |_, guest, _| {
        let attempt = guest.ownership.attempt.as_ref().filter(|attempt| !attempt.phase.is_over());
        attempt.map(|attempt| attempt.migration.clone())
    });
    if let Some(migration) = moves.await? {
        let message = format!("guest {name} is in migration {migration}, which would end its first QEMU");
        let hint = format!("godwit migration cancel {migration}, or wait for its end");
        return Err(refused("a guest that is left alone is not being moved", message, hint));
    }
    match ask_node(group, &owner.node, NodeAsk::Release(uid)).await? {
        NodeAnswer::Released => stop(group, asked, name).await,
        other => Err(problem::failed("node", format!("node {} answered {other:?}", owner.node))),
    }
}

/// Answered when a guest that was ended is gone wherever it can be reached.
pub(super) async fn until_gone(group: &Group, name: &GuestName, uid: GuestUid) -> Answered {
    let purged = move |registry: &Registry| {
        let purged = registry.guests.get(&uid).is_none_or(|guest| guest.ownership.life == Life::Purged);
        purged.then_some(())
    };
    if until(group, STOP_TIMEOUT, purged).await?.is_some() {
        return json(&Done::default());
    }
    let left = named(group, name, |_, guest, _| holders(guest)).await.unwrap_or_default();
    let note = format!(
        "nobody may run it any more; its name is free when these have said that they hold nothing of it: {left}"
    );
    json(&Done { note: Some(note) })
}

/// The answer to a fence that was answered before.
pub(super) async fn fenced_before(group: &Group, node: NodeName) -> Answered {
    let name = node.clone();
    let lost = group.read(move |registry| lost_on(registry, &name)).await.ok_or_else(gone)?;
    json(&Fenced { note: format!("node {node} was fenced by this request before"), node, lost })
}

/// Nodes that have not said yet that they hold nothing of a deleted guest.
fn holders(guest: &Guest) -> String {
    match &guest.ownership.life {
        Life::Deleting(left) => left.iter().map(NodeName::to_string).collect::<Vec<_>>().join(", "),
        Life::Creating(_) | Life::Alive(_) | Life::Lost { .. } | Life::Purged | Life::Unsure(_) => {
            String::new()
        }
    }
}

pub(super) async fn recover(
    group: &Group,
    asked: Asked,
    name: GuestName,
    accept_rollback: bool,
    instance: Option<InstanceId>,
) -> Answered {
    let (uid, life) = named(group, &name, |uid, guest, _| (uid, guest.ownership.life.clone())).await?;
    let (last, kept) = match life {
        Life::Lost { last, kept } => (last, kept),
        Life::Unsure(doubt) => {
            return choose(group, asked, (name, uid), accept_rollback, instance, &doubt).await;
        }
        Life::Creating(_) | Life::Alive(_) | Life::Deleting(_) | Life::Purged => {
            let message = format!("guest {name} is {}", life.name());
            return Err(refused("only a lost guest is recovered", message, "godwit guest show NAME"));
        }
    };
    if !accept_rollback {
        let message = format!(
            "guest {name} may have run on {} after the copy that is kept was made: what it did there is given up",
            last.node
        );
        return Err(refused("going back to an older copy is an explicit act", message, "--accept-rollback"));
    }
    let copy = match (instance, kept) {
        (Some(instance), _) => instance,
        (None, Some(kept)) => kept.instance,
        (None, None) => {
            let message = format!(
                "no older copy of {name} is kept; its last owner was {} on {}",
                last.instance, last.node
            );
            let hint = format!("if that node is back and holds it: --instance {}", last.instance);
            return Err(refused("a copy must be kept", message, hint));
        }
    };
    let recover = Command::Guest { guest: uid, entry: Entry::Recover { instance: copy } };
    asked.propose(group, None, recover).await?;
    tracing::warn!(guest = %name, instance = %copy, "recovered from an older copy, by an operator");
    guest_detail(group, name).await
}

/// Of a guest that more than one runner claims, in a group that was founded anew: which one it is.
async fn choose(
    group: &Group,
    asked: Asked,
    (name, uid): (GuestName, GuestUid),
    accept_rollback: bool,
    instance: Option<InstanceId>,
    doubt: &Doubt,
) -> Answered {
    if !doubt.open {
        let message =
            format!("not every node has said since the group was founded anew what it has of guest {name}");
        let hint = "godwit status says which nodes are waited for; one that is gone for good: godwit node fence NODE";
        return Err(refused("every node is heard before a guest is chosen", message, hint));
    }
    let (Some(instance), true) = (instance, accept_rollback) else {
        let message = format!("more than one runner claims guest {name}, and all but one will be ended");
        let hint = "godwit guest show NAME lists them; --instance INSTANCE --accept-rollback chooses";
        return Err(refused("which of several runners it is, is an explicit act", message, hint));
    };
    let recover = Command::Guest { guest: uid, entry: Entry::Recover { instance } };
    asked.propose(group, None, recover).await?;
    tracing::warn!(guest = %name, %instance, "chosen from several that claim to be it, by an operator");
    guest_detail(group, name).await
}
