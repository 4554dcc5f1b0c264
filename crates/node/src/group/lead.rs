//! What a leader does by itself: it admits what can be admitted, asks for what drains want, ends what has waited too long,
//! and lets a learner vote that has learnt.
//!
//! ```text
//!   something applied, a node comes or goes, a second passes ─▶ drains ─▶ next admission ─▶ propose, and look again
//! ```
//!
//! Always true: an admission is one entry, checked again when it is applied, so two leaders can not admit too much; what
//! outlives a leadership is in the log, the clock of a migration without a target among it. What is decided is in `decide`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use godwit_domain::MigrationId;
use godwit_domain::ownership::{Entry, Side};
use godwit_domain::registry::{Command, Due, GuestUid, MemberChange, Wish};

use super::decide::{self, Asked, Judged, Next};
use super::{Group, NotAgreed, now_ms};

/// How often a leader looks though nothing has happened.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
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
                changed = view.changed() => if changed.is_err() {
                    // The voter has ended, and what it was last it stays for whoever looks: nobody would end this loop.
                    return group.floor().clear();
                },
                () = group.floor().changed() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
        tracing::info!(node = %group.me(), "does not lead any more");
        group.floor().clear();
    }
}

/// Lets a learner vote that has learnt.
async fn promote(group: &Group) {
    let members = group.members();
    let Some((_, name)) = members.learner() else { return };
    let Some(status) = group.status().await else { return };
    let Some(wanted) = decide::promoted(&members, &status.standing) else { return };
    match group.change_for(None, wanted, MemberChange::Promoted).await {
        Ok(()) => tracing::info!(node = %name, "votes in the control group"),
        Err(error) => tracing::info!(node = %name, %error, "does not vote yet"),
    }
}

/// Asks for the migrations that drains want now.
async fn ask_for_drains(group: &Group) {
    let now = now_ms();
    let due = group.read(move |registry| decide::due(registry, now));
    for (migration, Due { node, guest, avoid }) in due.await.unwrap_or_default() {
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
        let next = group.read(move |registry| decide::next(registry, &reachable, &resting));
        let Some(Next { guest, migration, target, again }) = next.await.flatten() else { return };
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
    let asked = group.read(move |registry| decide::asked(registry, now));
    let floor = group.floor();
    for Asked { guest, migration, target, is_over } in asked.await.unwrap_or_default() {
        let silent = floor.session(&target).is_none()
            && floor
                .silent_since(&target)
                .or(floor.began())
                .is_some_and(|at| at.elapsed() > UNANSWERED_TIMEOUT);
        if is_over || silent {
            let reason = format!("node {target} was asked to take the guest and has not said that it does");
            end(group, guest, migration, reason).await;
        }
    }
}

/// Takes down since when no node can take a guest, and ends what has waited long enough for one to appear.
async fn watch_the_unplaceable(group: &Group) {
    // A leader that was just elected does not know yet who answers.
    if !group.floor().is_settled() {
        return;
    }
    let (reachable, now) = (group.floor().reachable(), now_ms());
    let judged = group.read(move |registry| decide::judged(registry, &reachable, now));
    for judged in judged.await.unwrap_or_default() {
        match judged {
            Judged::Turned { migration, placeable: is } => {
                let _ = group.propose(Command::Placeable { migration, is }).await;
            }
            Judged::Hopeless { guest, migration, reason } => end(group, guest, migration, reason).await,
        }
    }
}

async fn end(group: &Group, guest: GuestUid, migration: MigrationId, reason: String) {
    let entry = Entry::End { migration, side: Side::Control, reason };
    if let Err(error @ NotAgreed::Refused(_)) = group.propose(Command::Guest { guest, entry }).await {
        tracing::info!(%error, "an end by the leader was refused");
    }
}
