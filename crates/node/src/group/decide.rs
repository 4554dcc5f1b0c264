//! What a leader decides when it looks, as functions of the registry and of who is here: no clock, no socket.
//!
//! ```text
//!   registry, reachable nodes, leader's time ─▶ due      what drains ask for
//!                                           ├─▶ next     the next admission
//!                                           ├─▶ asked    targets that were asked to prepare
//!                                           └─▶ judged   waiting migrations without a target
//!   members, who of them answers and how far ─▶ promoted  a learner that may vote
//! ```
//!
//! Always true: what comes out is checked again when it is applied, so an old look costs a refusal and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use godwit_control::{Members, Standing, Wanted};
use godwit_domain::ownership::Phase;
use godwit_domain::registry::{Due, GuestUid, Obstacle, Registry, WaitReason};
use godwit_domain::{MigrationId, NodeName};

use super::desk::free_name;

/// How long a target may prepare its runner, in milliseconds. It only maps memory; a node that hangs does not say so.
const PREPARED_WITHIN_MS: u64 = 120_000;
/// Migrations that drains ask for, and waiting ones that are judged, in one look. The rest follows in the next.
const DUE_MAX: usize = 64;

/// The migrations that drains want now, with names that are free. Two guests of one name in two namespaces: the second
/// has its turn in the next look.
pub fn due(registry: &Registry, now_ms: u64) -> Vec<(MigrationId, Due)> {
    let mut names = BTreeSet::new();
    let due = registry.due_for_drain(now_ms.max(registry.time_ms)).into_iter().take(DUE_MAX);
    due.filter_map(|due| Some((free_name(registry, registry.guests.get(&due.guest)?)?, due)))
        .filter(|(migration, _)| names.insert(migration.clone()))
        .collect()
}

/// A grant that can be made now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// Whose.
    pub guest: GuestUid,
    /// Of which migration.
    pub migration: MigrationId,
    /// Where to.
    pub target: NodeName,
    /// Every node that could take it has refused, and this one is asked again.
    pub again: bool,
}

/// The next grant, but for migrations that rest.
pub fn next(registry: &Registry, reachable: &BTreeSet<NodeName>, resting: &[MigrationId]) -> Option<Next> {
    let (guest, migration, target) = registry.next_admission_but(reachable, resting)?;
    let record = registry.guests.get(&guest)?.record.as_ref()?;
    // The node where the attempt before has failed comes last from the start, and was not asked yet in this one.
    let was_asked = record.route.is_some() || record.wish.avoid.as_ref() != Some(&target);
    let again = record.declined.contains(&target) && was_asked;
    Some(Next { guest, migration, target, again })
}

/// A migration whose target was asked to prepare a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Whose.
    pub guest: GuestUid,
    /// The migration.
    pub migration: MigrationId,
    /// Who was asked.
    pub target: NodeName,
    /// It can not say yes any more, or has had its time.
    pub is_over: bool,
}

/// The migrations whose targets were asked, in no order.
pub fn asked(registry: &Registry, now_ms: u64) -> Vec<Asked> {
    let attempts = registry.granted().filter_map(|(attempt, ..)| {
        let Phase::Preparing { target, .. } = &attempt.phase else { return None };
        let fenced = registry.nodes.get(target).is_none_or(|node| node.fenced.is_some());
        let (guest, of) = registry.guest_of(&attempt.migration)?;
        // While it is not known who runs the guest, nothing of it is ended.
        of.ownership.owner()?;
        let since = of.record.as_ref()?.steps.last()?.time_ms;
        let late = now_ms.max(registry.time_ms) > since.saturating_add(PREPARED_WITHIN_MS);
        let (migration, target) = (attempt.migration.clone(), target.clone());
        Some(Asked { guest, migration, target, is_over: fenced || late })
    });
    attempts.collect()
}

/// A waiting migration for which something has changed about its having a target at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// Since now no node can take its guest, or one can again.
    Turned {
        /// The migration.
        migration: MigrationId,
        /// Whether one can.
        placeable: bool,
    },
    /// It has waited long enough.
    Hopeless {
        /// Its guest.
        guest: GuestUid,
        /// The migration.
        migration: MigrationId,
        /// Why no node can take it, for people.
        reason: String,
    },
}

/// What there is to say about waiting migrations that have no target. Only for a leader that knows who answers.
pub fn judged(registry: &Registry, reachable: &BTreeSet<NodeName>, now_ms: u64) -> Vec<Judged> {
    // Replicated time never runs back, and what is compared with it must not either.
    let now = now_ms.max(registry.time_ms);
    let unplaceable: BTreeMap<_, _> = registry.unplaceable(reachable).into_iter().collect();
    let waiting = registry.migrating().filter_map(|(guest, it)| {
        let (attempt, record) = (it.ownership.attempt.as_ref()?, it.record.as_ref()?);
        let (migration, placeable) = (attempt.migration.clone(), !unplaceable.contains_key(&guest));
        match (placeable, record.unplaceable_since_ms) {
            (false, None) | (true, Some(_)) => Some(Judged::Turned { migration, placeable }),
            (false, Some(since)) => {
                let limit_s = record.wish.unschedulable_timeout_s;
                let hopeless = now >= since.saturating_add(limit_s.saturating_mul(1000));
                let why = || WaitReason::NoTarget(obstacles(registry.verdicts(it, &record.wish, reachable)));
                let reason = || format!("Unschedulable for {limit_s} s: {}", why());
                hopeless.then(|| Judged::Hopeless { guest, migration, reason: reason() })
            }
            (true, None) => None,
        }
    });
    waiting.take(DUE_MAX).collect()
}

/// The promotion that can be made now: of a learner that lacks almost nothing, if enough voters answer.
pub fn promoted(members: &Members, standing: &Standing) -> Option<Wanted> {
    let (id, name) = members.learner()?;
    let wanted = Wanted::Promote(name.clone());
    members.change(&wanted, id, standing).is_ok().then_some(wanted)
}

fn obstacles(verdicts: BTreeMap<NodeName, Result<(), Obstacle>>) -> BTreeMap<NodeName, Obstacle> {
    verdicts.into_iter().filter_map(|(node, verdict)| Some((node, verdict.err()?))).collect()
}
