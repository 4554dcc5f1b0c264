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
use godwit_domain::ownership::{Entry, Side};
use godwit_domain::registry::{Command, GuestUid, WaitReason};

use super::{Group, NotAgreed};

/// How often a leader looks though nothing has happened.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a migration waits for a node that could take its guest (`unschedulableTimeoutSeconds`).
const UNSCHEDULABLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Leads whenever this voter does. Never ends by itself.
pub async fn lead(group: Group) {
    let mut view = group.watch();
    loop {
        if view.wait_for(|view| view.role == godwit_control::Role::Leader).await.is_err() {
            return;
        }
        tracing::info!(node = %group.me(), term = group.view().term, "leads the control group");
        let mut without_target = BTreeMap::new();
        while group.leads() {
            admit_all(&group).await;
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

async fn admit_all(group: &Group) {
    loop {
        let reachable = group.floor().reachable();
        let next = group.read(move |registry| registry.next_admission(&reachable)).await.flatten();
        let Some((guest, migration, target)) = next else { return };
        tracing::info!(%migration, %target, "admitted");
        let admit = Command::Admit { guest, migration: migration.clone(), target };
        if let Err(error) = group.propose(admit).await {
            // Another look comes in a second at the latest.
            tracing::info!(%migration, %error, "the admission was not agreed");
            return;
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
