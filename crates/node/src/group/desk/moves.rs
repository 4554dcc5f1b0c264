//! Requests about migrations and drains.

use std::collections::VecDeque;
use std::time::Duration;

use godwit_domain::ownership::{Entry, Phase, Side};
use godwit_domain::registry::{Command, Guest, GuestUid, NodeChange, Obstacle, Registry, Wish};
use godwit_domain::{GuestName, MigrationId, NodeName, Overrides};
use godwit_wire::admin::{Act, Code, Explained, MigrationExplained, MoveMode, Problem, Verdicts, notes};
use serde_json::Value;
use tokio::sync::mpsc;

use super::super::Group;
use super::acts::{named, node_show};
use super::asked::Asked;
use super::problem::{self, gone, no_guest, no_migration, no_node, refused};
use super::rows::{self, Beside, settings_rows};
use super::{Answered, json, migration_detail, next_look};

/// Longest part of a guest's name in the name of its migration: with a number it stays below 63.
const STEM_BYTES_MAX: usize = 40;
/// Names that are tried for a migration that was given none: a guest has six kept ones at most.
const NAMES_TRIED_MAX: usize = 1000;
/// Migrations before one in the queue that are named.
const BEFORE_MAX: usize = 10;
/// For how long a drain whose guests are all stuck is watched before that is its answer.
const STUCK_PATIENCE: Duration = Duration::from_secs(5);

/// A name that no migration has: the guest's, and a number.
pub(crate) fn free_name(registry: &Registry, guest: &Guest) -> Option<MigrationId> {
    let stem: String = guest.name.name().chars().take(STEM_BYTES_MAX).collect();
    let stem = stem.trim_end_matches('-');
    let names = (registry.asked + 1..).filter_map(|number| format!("{stem}-{number}").parse().ok());
    names.into_iter().take(NAMES_TRIED_MAX).find(|name| registry.guest_of(name).is_none())
}

pub(super) async fn migrate(group: &Group, asked: Asked, act: Act) -> Answered {
    let Act::Migrate { guest: name, migration, to, selector, overrides, mode, dry_run } = act else {
        return Err(problem::not_here());
    };
    let post_copy_at_once = mode == Some(MoveMode::PostCopy);
    let wish = Wish { target: to, selector, overrides, post_copy_at_once, ..Wish::default() };
    if dry_run {
        return would_migrate(group, name, wish).await;
    }
    let (uid, free) = named(group, &name, |uid, guest, registry| (uid, free_name(registry, guest))).await?;
    let Some(migration) = migration.or(free) else {
        return Err(problem::failed("a migration's name", format!("none is free for {name}")));
    };
    let command = Command::Migrate { guest: uid, migration: migration.clone(), wish };
    let first = asked.propose(group, Some(migration.to_string()), command).await?;
    let migration = first.and_then(|first| first.made?.parse().ok()).unwrap_or(migration);
    migration_detail(group, migration).await
}

/// Where it would go, and what would hold, with nothing asked for.
async fn would_migrate(group: &Group, name: GuestName, wish: Wish) -> Answered {
    let reachable = group.floor().reachable();
    let asked = name.clone();
    let look = move |registry: &Registry| {
        let (uid, guest) = registry.guest_named(&name)?;
        if let Err(refusal) = registry.check_wish(uid, &wish) {
            return Some(Err(super::super::NotAgreed::Refused(refusal)));
        }
        let source = guest.ownership.owner()?.node.clone();
        let open = guest.ownership.attempt.as_ref().filter(|attempt| !attempt.phase.is_over());
        let limits = registry.limits();
        let full = |count: usize, limit: u32| u32::try_from(count).is_ok_and(|count| count >= limit);
        let waits_for = if let Some(open) = open {
            Some(format!("{} is not over: a guest has one unfinished migration at a time", open.migration))
        } else if full(registry.granted().count(), limits.cluster) {
            Some(format!("one of the cluster's {} permits", limits.cluster))
        } else if full(registry.outbound(&source), limits.outbound) {
            Some(format!("one of {source}'s {} outbound permits", limits.outbound))
        } else {
            None
        };
        let in_force = registry.in_force_with(guest, &wish.overrides);
        let verdicts = registry.verdicts(guest, &wish, &reachable).into_iter();
        Some(Ok(Verdicts {
            guest: guest.name.clone(),
            target: registry.would_go_to(guest, &wish, &reachable),
            waits_for,
            nodes: verdicts.map(|(node, verdict)| (node, verdict.err().map(|why| why.to_string()))).collect(),
            policy: in_force.policy,
            settings: settings_rows(&in_force.resolved),
            notes: notes(&in_force.resolved, guest.body.critical),
            source,
        }))
    };
    match group.read(look).await.ok_or_else(gone)? {
        Some(Ok(verdicts)) => json(&verdicts),
        Some(Err(refused)) => Err(refused.into()),
        None => {
            let life = named(group, &asked, |_, guest, _| guest.ownership.life.name().to_owned()).await?;
            let message = format!("guest {asked} is {life}");
            Err(refused("a guest that moves is alive", message, "godwit guest show NAME says how it stands"))
        }
    }
}

pub(super) async fn set(
    group: &Group,
    asked: Asked,
    migration: MigrationId,
    overrides: Overrides,
) -> Answered {
    asked.propose(group, None, Command::Set { migration: migration.clone(), overrides }).await?;
    migration_detail(group, migration).await
}

pub(super) async fn cancel(group: &Group, asked: Asked, migration: MigrationId) -> Answered {
    let name = migration.clone();
    let found = group.read(move |registry| {
        let (uid, guest) = registry.guest_of(&name)?;
        Some((uid, guest.migration(&name).map(|(attempt, _)| attempt.phase.clone())))
    });
    let (guest, phase) = found.await.ok_or_else(gone)?.ok_or_else(|| no_migration(&migration))?;
    match phase {
        // Asked for again.
        Some(Phase::Cancelled { .. }) => return migration_detail(group, migration).await,
        Some(Phase::Succeeded | Phase::Failed { .. }) => {
            let message = format!("migration {migration} is over");
            return Err(refused("only what is not over is cancelled", message, "godwit migration show NAME"));
        }
        Some(
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::Copying { .. }
            | Phase::HandedOver { .. }
            | Phase::PostCopy { .. },
        )
        | None => {}
    }
    let reason = "cancelled by an operator".to_owned();
    let entry = Entry::End { migration: migration.clone(), side: Side::Operator, reason };
    if let Err(error) = asked.propose(group, None, Command::Guest { guest, entry }).await {
        let problem = Problem::from(error);
        let hint = "it can not be taken back; the guest is moved again when it runs there";
        return Err(if problem.code == Code::Refused {
            Problem { try_: hint.to_owned(), ..problem }
        } else {
            problem
        });
    }
    migration_detail(group, migration).await
}

/// Why a migration waits, or goes where it goes.
pub(super) fn explain(registry: &Registry, beside: &Beside, name: &MigrationId) -> Answered {
    let (uid, guest) = registry.guest_of(name).ok_or_else(|| no_migration(name))?;
    let (_, record) = guest.migration(name).ok_or_else(|| no_migration(name))?;
    let detail = rows::migration_detail(registry, beside, guest, name).ok_or_else(|| no_migration(name))?;
    let nobody = std::collections::BTreeSet::new();
    let reachable = beside.reachable.as_ref().unwrap_or(&nobody);
    let text =
        |(node, verdict): (NodeName, Result<(), Obstacle>)| (node, verdict.err().map(|why| why.to_string()));
    let mut before = VecDeque::with_capacity(BEFORE_MAX + 1);
    if beside.queue.contains_key(name) {
        for other in registry.queue().take_while(|other| *other != uid) {
            before.push_front(other);
            before.truncate(BEFORE_MAX);
        }
    }
    let name_of =
        |uid: GuestUid| Some(registry.guests.get(&uid)?.ownership.attempt.as_ref()?.migration.clone());
    json(&MigrationExplained {
        nodes: match detail.over {
            true => std::collections::BTreeMap::new(),
            false => registry.verdicts(guest, &record.wish, reachable).into_iter().map(text).collect(),
        },
        before: before.into_iter().filter_map(name_of).collect(),
        detail,
    })
}

pub(super) fn explain_policy(registry: &Registry, name: &GuestName) -> Answered {
    let (_, guest) = registry.guest_named(name).ok_or_else(|| no_guest(name))?;
    let (subject, critical) = (registry.subject(guest), guest.body.critical);
    json(&Explained::of(name, subject, critical, &registry.policies, &registry.settings))
}

// ---- drains --------------------------------------------------------------------------------------------------------

pub(super) async fn change_node(group: &Group, asked: Asked, node: NodeName, change: NodeChange) -> Answered {
    asked.propose(group, None, Command::Node { node: node.clone(), change }).await?;
    node_show(group, node).await
}

/// A drain until nothing is left, or nothing more happens by itself.
pub(super) async fn watch_drain(group: &Group, node: NodeName, events: mpsc::Sender<Value>) -> Answered {
    let mut last = Value::Null;
    let mut stuck_since = None;
    loop {
        let detail = super::node_now(group, &node).await.ok_or_else(gone)?.ok_or_else(|| no_node(&node))?;
        let state = detail.drain.as_ref().map(|drain| drain.state.clone());
        let now = json(&detail)?;
        match state.as_deref() {
            None => {
                let message = format!("node {node} is not being drained");
                return Err(refused("the node must be drained", message, format!("godwit drain {node}")));
            }
            Some("drained" | "cancelled") => return Ok(now),
            Some("stuck") => {
                let since = *stuck_since.get_or_insert_with(tokio::time::Instant::now);
                if since.elapsed() > STUCK_PATIENCE {
                    return Ok(now);
                }
            }
            Some(_) => stuck_since = None,
        }
        if now != last {
            last = now.clone();
            if events.send(now).await.is_err() {
                return Ok(last);
            }
        }
        next_look(group).await;
        if events.is_closed() || !group.leads() {
            return Err(problem::leadership_lost());
        }
    }
}
