//! A node that is emptied: what was tried with each of its guests, and when it is tried again.
//!
//! ```text
//!   Drain ─▶ every guest of the node ─▶ migration (class Drain) ─ succeeded ─▶ moved
//!                   ▲                        │ failed: 20, 40, 80, 160, 320, 320 … s, another node first
//!                   └────────────────────────┘ cancelled by an operator: not again
//! ```
//!
//! Always true: an uncordoned node has no drain, and nothing of an old one comes back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{GuestUid, Registry};
use crate::ids::NodeName;
use crate::ownership::{Permits, Phase};

/// Rest after the first failure, in replicated milliseconds; it doubles with each.
const RETRY_FIRST_MS: u64 = 20_000;
/// Longest rest, in replicated milliseconds.
const RETRY_MAX_MS: u64 = 320_000;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// When it began, in replicated milliseconds.
    pub began_ms: u64,
    /// It asks for nothing more.
    pub cancelled: bool,
    /// Guests that it has moved.
    pub moved: u64,
    /// Guests with which it has failed so far.
    pub tries: BTreeMap<GuestUid, Tries>,
}

/// What came of a guest so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// How often in a row.
    pub failed: u32,
    /// Not asked for again before, in replicated milliseconds.
    pub not_before_ms: u64,
    /// Where it has failed last.
    pub avoid: Option<NodeName>,
    /// An operator has cancelled its migration: it is not asked for again.
    pub stopped: bool,
    /// Why it has failed last.
    pub why: String,
}

/// A migration that a drain wants now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The node that is drained.
    pub node: NodeName,
    /// The guest.
    pub guest: GuestUid,
    /// The node that comes last.
    pub avoid: Option<NodeName>,
}

/// Rest after so many failures in a row, in milliseconds.
pub fn retry_after_ms(failed: u32) -> u64 {
    let doubled = 1_u64.checked_shl(failed.saturating_sub(1)).unwrap_or(u64::MAX);
    RETRY_FIRST_MS.saturating_mul(doubled).min(RETRY_MAX_MS)
}

impl Registry {
    /// What the drains want now.
    pub fn due_for_drain(&self, now_ms: u64) -> Vec<Due> {
        let drains = self.drains.iter().filter(|(_, drain)| !drain.cancelled);
        let due = drains.flat_map(|(node, drain)| {
            self.owned_by(node).filter_map(move |(uid, guest)| {
                let attempt = guest.ownership.attempt.as_ref();
                let is_free = attempt.is_none_or(|a| a.phase.is_over() && a.permits == Permits::None);
                let tries = drain.tries.get(&uid);
                let rested = tries.is_none_or(|tries| !tries.stopped && tries.not_before_ms <= now_ms);
                let avoid = tries.and_then(|tries| tries.avoid.clone());
                (is_free && rested && guest.body.local_disks_bytes == 0).then(|| Due {
                    node: node.clone(),
                    guest: uid,
                    avoid,
                })
            })
        });
        due.collect()
    }

    /// Whether everything is to move away from a node.
    pub fn is_draining(&self, node: &NodeName) -> bool {
        self.drains.get(node).is_some_and(|drain| !drain.cancelled)
    }

    /// A guest's migration has ended; the drain that wanted it takes that down.
    pub(super) fn note_for_drain(&mut self, uid: GuestUid, by_operator: bool) {
        let Some(guest) = self.state.guests.get(&uid) else { return };
        let (Some(attempt), Some(record)) = (&guest.ownership.attempt, &guest.record) else { return };
        let owner = guest.ownership.owner().map(|owner| &owner.node);
        let source = record.route.as_ref().map(|(source, _)| source);
        let left = source.filter(|source| owner != Some(source));
        // Whoever has asked for it: what has left has no tries left either.
        if let Some(drain) = left.and_then(|source| self.state.drains.get_mut(source)) {
            drain.tries.remove(&uid);
        }
        let Some(drain) = record.wish.drains.as_ref().and_then(|node| self.state.drains.get_mut(node)) else {
            return;
        };
        match &attempt.phase {
            Phase::Succeeded => {
                drain.moved += 1;
            }
            // It was deleted or lost: there is nothing to try again.
            Phase::Failed { .. } | Phase::Cancelled { .. } if owner.is_none() => {
                drain.tries.remove(&uid);
            }
            Phase::Failed { reason } | Phase::Cancelled { reason } => {
                let tries = drain.tries.entry(uid).or_default();
                tries.failed = tries.failed.saturating_add(1);
                tries.not_before_ms = self.state.time_ms.saturating_add(retry_after_ms(tries.failed));
                tries.avoid = record.route.as_ref().map(|(_, target)| target.clone());
                tries.stopped |= by_operator;
                tries.why.clone_from(reason);
            }
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::Copying { .. }
            | Phase::HandedOver { .. }
            | Phase::PostCopy { .. } => {}
        }
    }
}
