//! A control group that was founded anew, from a backup or from one voter's disk: every guest is in doubt
//! (`ownership::doubt`) until the nodes have said what they have.
//!
//! ```text
//!   Found ─▶ every guest Unsure, every node unheard ◀── joins that nobody knew of
//!   Testify (a node, all its runners) ─▶ claims ─▶ heard ─▶ what is settled by that; when all are heard, everything
//!   Fence ─▶ vouched to be off: heard, and it has nothing
//! ```
//!
//! Always true: a guest that nobody here knows is nobody's to end; what a node says replaces what it said before.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Applied, Effect, Finished, GuestUid, Record, Refusal, Registry, Wish};
use crate::ids::{GroupId, InstanceId, MigrationId, NodeName};
use crate::ownership::{Claim, Entry, Life, Stands};

/// Runners that one entry may tell of. The rest follows in the next.
pub const TESTIFIED_MAX: usize = 256;

/// How a group came to take another's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// The group that was given up.
    pub from: GroupId,
    /// The one that takes its place.
    pub group: GroupId,
    /// Its first and only voter.
    pub node: NodeName,
    /// Who voted in the other one, as far as it is known.
    pub voters: BTreeSet<NodeName>,
    /// It was founded from a backup; otherwise from the disk of one of its voters.
    pub from_backup: bool,
}

/// A runner on a node, as the node says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Testified {
    /// Its guest, for all time.
    pub guest: GuestUid,
    /// Itself.
    pub instance: InstanceId,
    /// How it stands.
    pub stands: Stands,
    /// The migration for which it was made; `None`: the guest was made in it.
    pub arriving: Option<MigrationId>,
}

impl Registry {
    pub(super) fn found(&mut self, founding: Founding) -> Applied {
        self.state.founding = Some(founding);
        self.state.unheard = self.nodes.keys().cloned().collect();
        let mut effects = BTreeSet::new();
        for uid in self.guests.keys().copied().collect::<Vec<_>>() {
            // A guest that is being ended goes on ending.
            effects.extend(self.entry(uid, Entry::Found).unwrap_or_default());
        }
        effects.extend(self.clear_doubts());
        Ok(effects)
    }

    /// A node says what it has. `first`: this is all anew; `last`: this is all.
    pub(super) fn testify(
        &mut self,
        node: NodeName,
        first: bool,
        runners: Vec<Testified>,
        last: bool,
    ) -> Applied {
        if !self.nodes.contains_key(&node) {
            return Err(Refusal::NoNode(node));
        }
        if runners.len() > TESTIFIED_MAX {
            let message = format!("{} runners in one entry; at most {TESTIFIED_MAX}", runners.len());
            return Err(Refusal::Invalid(message));
        }
        let mut effects = BTreeSet::new();
        if first {
            for uid in self.index.unsure.clone() {
                let _ = self.entry(uid, Entry::Unclaimed { node: node.clone() });
            }
        }
        for Testified { guest: uid, instance, stands, arriving } in runners {
            let Some(guest) = self.guests.get(&uid) else { continue };
            let present = guest.ownership.attempt.as_ref().map(|attempt| &attempt.migration);
            // One of its own that is known to be over has brought everything. Another guest's may have been given its name since.
            let whose = |of: &MigrationId| self.index.by_migration.get(of);
            let arriving = arriving.filter(|of| present == Some(of) || whose(of) != Some(&uid));
            let claim = Claim { node: node.clone(), stands, arriving };
            // Of a guest that is not in doubt it says what is known.
            effects.extend(self.entry(uid, Entry::Claimed { instance, claim }).unwrap_or_default());
        }
        if last {
            self.state.unheard.remove(&node);
            effects.extend(self.clear_doubts());
        }
        Ok(effects)
    }

    /// Settles what can be settled by what was heard so far.
    pub(super) fn clear_doubts(&mut self) -> BTreeSet<Effect> {
        let all = self.unheard.is_empty();
        let mut effects = BTreeSet::new();
        for uid in self.index.unsure.clone() {
            let before = self.present_migration(uid);
            if self.would_go_on_as_anothers(uid, all) {
                let _ = self.change(uid, |guest, _| {
                    guest.ownership.leave_open();
                    Ok(())
                });
                continue;
            }
            let settled = self.entry(uid, Entry::Settle { all }).unwrap_or_default();
            let is_settled =
                self.guests.get(&uid).is_some_and(|it| !matches!(it.ownership.life, Life::Unsure(_)));
            if !is_settled {
                continue;
            }
            effects.extend(settled);
            self.file_away(uid, before);
            // Whoever has something of it may have to let go.
            let holders = self.guests.get(&uid).into_iter().flat_map(|guest| &guest.ownership.holders);
            effects.extend(holders.map(|node| Effect { node: node.clone(), guest: uid }));
        }
        effects
    }

    /// Whether a move would go on whose name another guest's has been given since the backup: its nodes know it by no other, and
    /// nobody could tell the two apart. An operator decides.
    fn would_go_on_as_anothers(&self, uid: GuestUid, all: bool) -> bool {
        let Some(guest) = self.guests.get(&uid) else { return false };
        let mut settled = guest.ownership.clone();
        let _ = settled.apply(Entry::Settle { all });
        let name =
            settled.attempt.filter(|attempt| !attempt.phase.is_over()).map(|attempt| attempt.migration);
        name.and_then(|name| self.index.by_migration.get(&name)).is_some_and(|whose| *whose != uid)
    }

    fn present_migration(&self, uid: GuestUid) -> Option<(crate::ownership::Attempt, Option<Record>)> {
        let guest = self.guests.get(&uid)?;
        Some((guest.ownership.attempt.clone()?, guest.record.clone()))
    }

    /// A move of which nobody knew goes on: the one that was known is over, and this one has a record from now on.
    fn file_away(&mut self, uid: GuestUid, before: Option<(crate::ownership::Attempt, Option<Record>)>) {
        let present = self.present_migration(uid).map(|(attempt, _)| attempt.migration);
        let known = before.as_ref().map(|(attempt, _)| &attempt.migration);
        if present.is_none() || present.as_ref() == known {
            return;
        }
        let sequence = self.asked;
        self.state.asked += 1;
        // The guest is there.
        let _ = self.change(uid, |guest, time_ms| {
            if let Some((mut attempt, Some(record))) = before {
                attempt.close();
                guest.finished.push(Finished { attempt, record });
            }
            let mut record = Record::new(Wish::default(), sequence);
            if let Some(attempt) = &guest.ownership.attempt {
                record.note(time_ms, &attempt.phase);
            }
            guest.record = Some(record);
            Ok(())
        });
        if let Some(guest) = self.guests.get(&uid) {
            let now = self.in_force(guest);
            self.settle(uid, &now, None);
        }
    }
}
