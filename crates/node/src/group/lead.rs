//! What a leader does by itself: it admits what can be admitted, asks for what drains want, ends what has waited too long,
//! and lets a learner vote that has learnt.
//!
//! ```text
//!   something applied, a node comes or goes, a second passes ─▶ drains ─▶ next admission ─▶ propose, and look again
//! ```
//!
//! Always true: an admission is one entry, checked again when it is applied, so two leaders can not admit too much; what
//! outlives a leadership is in the log, the clock of a migration without a target among it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use godwit_control::Wanted;
use godwit_domain::ownership::{Entry, Phase, Side};
use godwit_domain::registry::{Command, Due, GuestUid, MemberChange, Obstacle, WaitReason, Wish};
use godwit_domain::{MigrationId, NodeName};

use super::desk::free_name;
use super::{Group, NotAgreed, now_ms};

/// How often a leader looks though nothing has happened.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a migration that every node has refused rests before one is asked again.
const DECLINED_REST: Duration = Duration::from_secs(10);
/// How long a target that was asked may be silent (`recoveryTimeout`).
const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a target may prepare its runner, in milliseconds. It only maps memory; a node that hangs does not say so.
const PREPARED_WITHIN_MS: u64 = 120_000;
/// Migrations that drains ask for in one look. The rest follows in the next.
const DUE_MAX: usize = 64;

/// Leads whenever this voter does. Never ends by itself.
pub async fn lead(group: Group) {
    let mut view = group.watch();
    loop {
        if view.wait_for(|view| view.role == godwit_control::Role::Leader).await.is_err() {
            return;
        }
        tracing::info!(node = %group.me(), term = group.view().term, "leads the control group");
        let mut tried_again = BTreeMap::new();
        let mut looked_at = Instant::now();
        group.floor().open();
        while group.leads() {
            ask_for_drains(&group).await;
            admit_all(&group, &mut tried_again).await;
            promote(&group).await;
            // All that run, and a queue of thousands, are judged once a second, not at every entry.
            if looked_at.elapsed() >= LOOK_INTERVAL {
                looked_at = Instant::now();
                end_the_unanswered(&group).await;
                watch_the_unplaceable(&group).await;
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { break },
                () = group.floor().changed() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
        tracing::info!(node = %group.me(), "does not lead any more");
        group.floor().clear();
    }
}

/// Lets a learner vote that lacks almost nothing, if enough voters answer.
async fn promote(group: &Group) {
    let members = group.members();
    let Some((id, name)) = members.learner() else { return };
    let Some(status) = group.status().await else { return };
    let wanted = Wanted::Promote(name.clone());
    if members.change(&wanted, id, &status.standing).is_err() {
        return;
    }
    match group.change_for(None, wanted, MemberChange::Promoted).await {
        Ok(()) => tracing::info!(node = %name, "votes in the control group"),
        Err(error) => tracing::info!(node = %name, %error, "does not vote yet"),
    }
}

/// Asks for the migrations that drains want now.
async fn ask_for_drains(group: &Group) {
    let now = now_ms();
    let due = group.read(move |registry| {
        let due = registry.due_for_drain(now.max(registry.time_ms)).into_iter().take(DUE_MAX);
        due.filter_map(|due| Some((free_name(registry, registry.guests.get(&due.guest)?)?, due)))
            .collect::<Vec<_>>()
    });
    let mut names = std::collections::BTreeSet::new();
    for (migration, Due { node, guest, avoid }) in due.await.unwrap_or_default() {
        // Two guests of one name in two namespaces: the second has its turn in the next look.
        if !names.insert(migration.clone()) {
            continue;
        }
        tracing::info!(%migration, %node, "asked for by the drain of its node");
        let wish = Wish { drains: Some(node), avoid, ..Wish::default() };
        if let Err(error) = group.propose(Command::Migrate { guest, migration, wish }).await {
            tracing::info!(%error, "what a drain wants was not agreed");
            return;
        }
    }
}

async fn admit_all(group: &Group, tried_again: &mut BTreeMap<MigrationId, Instant>) {
    tried_again.retain(|_, tried| tried.elapsed() < DECLINED_REST);
    loop {
        let reachable = group.floor().reachable();
        let resting: Vec<MigrationId> = tried_again.keys().cloned().collect();
        let next = group.read(move |registry| {
            let (guest, migration, target) = registry.next_admission_but(&reachable, &resting)?;
            let record = registry.guests.get(&guest)?.record.as_ref()?;
            // The node where the attempt before has failed comes last from the start, and was not asked yet in this one.
            let was_asked = record.route.is_some() || record.wish.avoid.as_ref() != Some(&target);
            let again = record.declined.contains(&target) && was_asked;
            Some((guest, migration, target, again))
        });
        let Some((guest, migration, target, again)) = next.await.flatten() else { return };
        // Every node that could take it has refused: one is asked again, and not at the speed of the log.
        if again {
            tried_again.insert(migration.clone(), Instant::now());
        }
        tracing::info!(%migration, %target, "admitted");
        let admit = Command::Admit { guest, migration: migration.clone(), target };
        if let Err(error) = group.propose(admit).await {
            // Another look comes in a second at the latest.
            tracing::info!(%migration, %error, "the admission was not agreed");
            return;
        }
    }
}

/// Migrations whose target was asked and can not answer any more: nobody else would end them.
async fn end_the_unanswered(group: &Group) {
    let now = now_ms();
    let preparing = group.read(move |registry| {
        let attempts = registry.granted().filter_map(|(attempt, ..)| {
            let Phase::Preparing { target, .. } = &attempt.phase else { return None };
            let fenced = registry.nodes.get(target).is_none_or(|node| node.fenced.is_some());
            let (uid, guest) = registry.guest_of(&attempt.migration)?;
            let since = guest.record.as_ref()?.steps.last()?.time_ms;
            let late = now.max(registry.time_ms) > since.saturating_add(PREPARED_WITHIN_MS);
            Some((uid, attempt.migration.clone(), target.clone(), fenced || late))
        });
        attempts.collect::<Vec<_>>()
    });
    let floor = group.floor();
    for (guest, migration, target, fenced) in preparing.await.unwrap_or_default() {
        let silent = floor.session(&target).is_none()
            && floor
                .silent_since(&target)
                .or(floor.began())
                .is_some_and(|at| at.elapsed() > UNANSWERED_TIMEOUT);
        if fenced || silent {
            let reason = format!("node {target} was asked to take the guest and has not said that it does");
            end(group, guest, migration, reason).await;
        }
    }
}

/// A waiting migration for which something has changed about its having a target at all.
enum Judged {
    /// Since now no node can take its guest, or one can again.
    Turned { migration: MigrationId, placeable: bool },
    /// It has waited long enough.
    Hopeless { guest: GuestUid, migration: MigrationId, reason: String },
}

/// Takes down since when no node can take a guest, and ends what has waited long enough for one to appear.
async fn watch_the_unplaceable(group: &Group) {
    // A leader that was just elected does not know yet who answers.
    if !group.floor().is_settled() {
        return;
    }
    let (reachable, now) = (group.floor().reachable(), now_ms());
    let judged = group.read(move |registry| {
        // Replicated time never runs back, and what is compared with it must not either.
        let now = now.max(registry.time_ms);
        let unplaceable: BTreeMap<_, _> = registry.unplaceable(&reachable).into_iter().collect();
        let waiting = registry.migrating().filter_map(|(guest, it)| {
            let (attempt, record) = (it.ownership.attempt.as_ref()?, it.record.as_ref()?);
            let (migration, placeable) = (attempt.migration.clone(), !unplaceable.contains_key(&guest));
            match (placeable, record.unplaceable_since_ms) {
                (false, None) | (true, Some(_)) => Some(Judged::Turned { migration, placeable }),
                (false, Some(since)) => {
                    let limit_s = record.wish.unschedulable_timeout_s;
                    let hopeless = now >= since.saturating_add(limit_s.saturating_mul(1000));
                    let why =
                        || WaitReason::NoTarget(obstacles(registry.verdicts(it, &record.wish, &reachable)));
                    let reason = || format!("Unschedulable for {limit_s} s: {}", why());
                    hopeless.then(|| Judged::Hopeless { guest, migration, reason: reason() })
                }
                (true, None) => None,
            }
        });
        waiting.take(DUE_MAX).collect::<Vec<_>>()
    });
    for judged in judged.await.unwrap_or_default() {
        match judged {
            Judged::Turned { migration, placeable: is } => {
                let _ = group.propose(Command::Placeable { migration, is }).await;
            }
            Judged::Hopeless { guest, migration, reason } => end(group, guest, migration, reason).await,
        }
    }
}

fn obstacles(verdicts: BTreeMap<NodeName, Result<(), Obstacle>>) -> BTreeMap<NodeName, Obstacle> {
    verdicts.into_iter().filter_map(|(node, verdict)| Some((node, verdict.err()?))).collect()
}

async fn end(group: &Group, guest: GuestUid, migration: MigrationId, reason: String) {
    let entry = Entry::End { migration, side: Side::Control, reason };
    if let Err(error @ NotAgreed::Refused(_)) = group.propose(Command::Guest { guest, entry }).await {
        tracing::info!(%error, "an end by the leader was refused");
    }
}
