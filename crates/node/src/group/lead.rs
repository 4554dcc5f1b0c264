//! What a leader does by itself: it admits what can be admitted, and ends what has waited too long for a target.
//!
//! ```text
//!   something applied, a node comes or goes, a second passes ─▶ next admission ─▶ propose, and look again
//! ```
//!
//! Always true: an admission is one entry, checked again when it is applied, so two leaders can not admit too much.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use godwit_domain::MigrationId;
use godwit_domain::ownership::{Entry, Phase, Side};
use godwit_domain::registry::{Command, GuestUid, WaitReason};

use super::{Group, NotAgreed};

/// How often a leader looks though nothing has happened.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a migration waits for a node that could take its guest (`unschedulableTimeoutSeconds`).
const UNSCHEDULABLE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a migration that every node has refused rests before one is asked again.
const DECLINED_REST: Duration = Duration::from_secs(10);
/// How long a target that was asked may be silent (`recoveryTimeout`).
const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(60);

/// Leads whenever this voter does. Never ends by itself.
pub async fn lead(group: Group) {
    let mut view = group.watch();
    loop {
        if view.wait_for(|view| view.role == godwit_control::Role::Leader).await.is_err() {
            return;
        }
        tracing::info!(node = %group.me(), term = group.view().term, "leads the control group");
        let mut without_target = BTreeMap::new();
        let mut tried_again = BTreeMap::new();
        group.floor().open();
        while group.leads() {
            admit_all(&group, &mut tried_again).await;
            end_the_unanswered(&group).await;
            end_the_hopeless(&group, &mut without_target).await;
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = group.floor().changed() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
        tracing::info!(node = %group.me(), "does not lead any more");
        group.floor().clear();
    }
}

async fn admit_all(group: &Group, tried_again: &mut BTreeMap<MigrationId, Instant>) {
    tried_again.retain(|_, tried| tried.elapsed() < DECLINED_REST);
    loop {
        let reachable = group.floor().reachable();
        let next = group.read(move |registry| {
            let (guest, migration, target) = registry.next_admission(&reachable)?;
            let record = registry.guests.get(&guest)?.record.as_ref()?;
            let has_declined = record.declined.contains(&target);
            Some((guest, migration, target, has_declined))
        });
        let Some((guest, migration, target, has_declined)) = next.await.flatten() else { return };
        // Every node that could take it has refused: it is asked again, and not at the speed of the log.
        if has_declined && tried_again.contains_key(&migration) {
            return;
        }
        if has_declined {
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
    let preparing = group.read(|registry| {
        let attempts = registry.guests.iter().filter_map(|(uid, guest)| {
            let attempt = guest.ownership.attempt.as_ref()?;
            let Phase::Preparing { target, .. } = &attempt.phase else { return None };
            let fenced = registry.nodes.get(target).is_none_or(|node| node.fenced.is_some());
            Some((*uid, attempt.migration.clone(), target.clone(), fenced))
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
            let reason = format!("node {target} was asked to take the guest and does not answer");
            let entry = Entry::End { migration, side: Side::Control, reason };
            let _ = group.propose(Command::Guest { guest, entry }).await;
        }
    }
}

/// Migrations that have waited long enough for a node to appear that could take their guest.
async fn end_the_hopeless(group: &Group, since: &mut BTreeMap<MigrationId, Instant>) {
    let reachable = group.floor().reachable();
    let look = move |registry: &godwit_domain::registry::Registry| {
        let attempts = registry.guests.iter().filter_map(|(uid, guest)| {
            let migration = &guest.ownership.attempt.as_ref()?.migration;
            match registry.wait_reason(migration, &reachable)? {
                reason @ WaitReason::NoTarget(_) => Some((*uid, migration.clone(), reason.to_string())),
                WaitReason::ClusterLimit { .. } | WaitReason::OutboundLimit { .. } => None,
            }
        });
        attempts.collect::<Vec<(GuestUid, MigrationId, String)>>()
    };
    let waiting = group.read(look).await.unwrap_or_default();
    since.retain(|migration, _| waiting.iter().any(|(_, waits, _)| waits == migration));
    for (guest, migration, reason) in waiting {
        let began = *since.entry(migration.clone()).or_insert_with(Instant::now);
        if began.elapsed() >= UNSCHEDULABLE_TIMEOUT {
            let reason = format!("no node for {} s: {reason}", UNSCHEDULABLE_TIMEOUT.as_secs());
            let entry = Entry::End { migration, side: Side::Control, reason };
            if let Err(error @ NotAgreed::Refused(_)) = group.propose(Command::Guest { guest, entry }).await {
                tracing::info!(%error, "the end of a migration without a target was refused");
            }
        }
    }
}
