//! Commands about migrations: asked for, set otherwise, admitted, measured, forgotten.

use std::collections::BTreeSet;

use super::{
    Applied, Finished, GuestUid, Milestone, PREPARING_TARGET, RUNNING, Record, Refusal, Registry, Wish,
};
use crate::ids::{MigrationId, NodeName};
use crate::labels;
use crate::ownership::{Entry, Phase, Refused};
use crate::progress::Measured;
use crate::settings::Overrides;

/// Earlier migrations that are kept of all guests together, beside each guest's last one.
const EARLIER_KEPT_MAX: usize = 10_000;
/// Longest time to wait for a target, in seconds: 68 years, beyond which none is meant.
const TIMEOUT_S_MAX: u64 = i32::MAX as u64;

impl Registry {
    pub(super) fn migrate(&mut self, uid: GuestUid, migration: MigrationId, wish: Wish) -> Applied {
        if let Some((of, guest)) = self.guest_of(&migration) {
            // Asked for twice, in the same words, it is the same migration, finished or not.
            let same = guest.migration(&migration).is_some_and(|(_, record)| record.was_asked_as(&wish));
            let taken = Refusal::MigrationTaken(guest.name.clone());
            return if of == uid && same { Ok(BTreeSet::new()) } else { Err(taken) };
        }
        self.check_wish(uid, &wish)?;
        let sequence = self.asked;
        self.change(uid, |guest, time_ms| {
            let last = guest.ownership.attempt.clone().zip(guest.record.clone());
            guest.ownership.apply(Entry::Request { migration })?;
            guest.finished.extend(last.map(|(attempt, record)| Finished { attempt, record }));
            let mut record = Record::new(wish, sequence);
            record.note(time_ms, &Phase::Pending);
            guest.record = Some(record);
            Ok(())
        })?;
        self.state.asked += 1;
        if let Some(guest) = self.guests.get(&uid) {
            let now = self.in_force(guest);
            self.settle(uid, &now, None);
        }
        self.forget_the_oldest();
        Ok(BTreeSet::new())
    }

    /// Whether such a migration could be asked for.
    pub fn check_wish(&self, uid: GuestUid, wish: &Wish) -> Result<(), Refusal> {
        wish.overrides.check()?;
        labels::check(&wish.selector)?;
        if wish.unschedulable_timeout_s > TIMEOUT_S_MAX {
            return Err(Refusal::Invalid(format!(
                "unschedulableTimeoutSeconds is {}; it must be a whole number from 0 to {TIMEOUT_S_MAX}",
                wish.unschedulable_timeout_s
            )));
        }
        let guest = self.guests.get(&uid).ok_or(Refusal::NoGuest(uid))?;
        if let Some(target) = &wish.target {
            self.usable(target)?;
            if guest.ownership.owner().is_some_and(|owner| owner.node == *target) {
                return Err(Refused::SameNode(target.clone()).into());
            }
        }
        if let Some(drained) = &wish.drains {
            // Read before the drain was ended, and proposed after it: nothing of an old drain comes back.
            let is_on = guest.ownership.owner().is_some_and(|owner| owner.node == *drained);
            if !is_on || !self.is_draining(drained) {
                return Err(Refusal::NoDrain(drained.clone()));
            }
        }
        if wish.post_copy_at_once {
            let allowed = self.in_force_with(guest, &wish.overrides).resolved.allow_post_copy.value;
            if guest.body.critical {
                return Err(Refusal::PostCopy {
                    guest: guest.name.clone(),
                    rule: "it is critical (godwit.dev/critical)".into(),
                });
            }
            if !allowed {
                let rule = "allowPostCopy is not in force for it; allow it by a policy, the cluster's settings, or with the \
                            migration".into();
                return Err(Refusal::PostCopy { guest: guest.name.clone(), rule });
            }
        }
        if guest.body.local_disks_bytes > 0 {
            let bytes = guest.body.local_disks_bytes;
            return Err(Refusal::LocalDisks { guest: guest.name.clone(), bytes });
        }
        Ok(())
    }

    pub(super) fn set(&mut self, migration: &MigrationId, overrides: Overrides) -> Applied {
        overrides.check()?;
        let uid = self.open_migration(migration)?;
        Ok(self.relayer("set by an operator", [uid], |registry| {
            // The guest is there.
            let _ = registry.change(uid, |guest, _| {
                if let Some(record) = &mut guest.record {
                    record.wish.overrides = overrides.above(record.wish.overrides);
                }
                Ok(())
            });
        }))
    }

    /// For people: it changes nothing that anybody decides by.
    pub(super) fn reached(&mut self, migration: &MigrationId, milestone: Milestone) -> Applied {
        let uid = self.open_migration(migration)?;
        self.change(uid, |guest, time_ms| {
            let phase = guest.ownership.attempt.as_ref().map(|attempt| &attempt.phase);
            let (step, fits) = match milestone {
                Milestone::PreparingTarget => {
                    (PREPARING_TARGET, matches!(phase, Some(Phase::Preparing { .. })))
                }
                Milestone::Running => (RUNNING, matches!(phase, Some(Phase::Copying { .. }))),
            };
            if let (true, Some(record)) = (fits, &mut guest.record) {
                record.note_step(time_ms, step, None);
            }
            Ok(())
        })?;
        Ok(BTreeSet::new())
    }

    pub(super) fn note_placeable(&mut self, migration: &MigrationId, is: bool) -> Applied {
        let uid = self.open_migration(migration)?;
        self.change(uid, |guest, time_ms| {
            if let Some(record) = &mut guest.record {
                let since = record.unplaceable_since_ms.unwrap_or(time_ms);
                record.unplaceable_since_ms = (!is).then_some(since);
            }
            Ok(())
        })?;
        Ok(BTreeSet::new())
    }

    pub(super) fn forget_migration(&mut self, migration: &MigrationId) -> Applied {
        let (uid, guest) = self.guest_of(migration).ok_or_else(|| Refusal::NoMigration(migration.clone()))?;
        if guest.ownership.phase_of(migration).is_some_and(|phase| !phase.is_over()) {
            return Err(Refusal::NotOver(migration.clone()));
        }
        self.change(uid, |guest, _| {
            guest.finished.retain(|finished| finished.attempt.migration != *migration);
            Ok(())
        })?;
        Ok(BTreeSet::new())
    }

    fn forget_the_oldest(&mut self) {
        while self.index.kept.len() > EARLIER_KEPT_MAX {
            let Some((&sequence, &uid)) = self.index.kept.first_key_value() else { return };
            // The guest is there: the index is of those that are.
            let _ = self.change(uid, |guest, _| {
                guest.finished.retain(|finished| finished.record.sequence != sequence);
                Ok(())
            });
        }
    }

    /// For people: it changes nothing that anybody decides by.
    pub(super) fn measured(&mut self, migration: &MigrationId, new: Measured) -> Applied {
        let (uid, _) = self.guest_of(migration).ok_or_else(|| Refusal::NoMigration(migration.clone()))?;
        self.change(uid, |guest, _| {
            let kept = guest.finished.iter_mut().find(|finished| finished.attempt.migration == *migration);
            let record = match kept {
                Some(finished) => Some(&mut finished.record),
                None => guest.record.as_mut(),
            };
            if let Some(Record { measured, .. }) = record {
                measured.source = measured.source.take().or(new.source);
                measured.resume_us = measured.resume_us.or(new.resume_us);
                measured.post_copy = measured.post_copy.or(new.post_copy);
                measured.audit = measured.audit.or(new.audit);
            }
            Ok(())
        })?;
        Ok(BTreeSet::new())
    }

    pub(super) fn admit(&mut self, uid: GuestUid, migration: MigrationId, target: NodeName) -> Applied {
        let guest = self.guests.get(&uid).ok_or(Refusal::NoGuest(uid))?;
        if let Some(reason) = self.what_holds_up(guest, &target) {
            return Err(Refusal::Waits { migration, reason });
        }
        let network = self.settings.network.clone();
        let effects = self.entry(uid, Entry::Start { migration, target })?;
        self.change(uid, |guest, _| {
            if let Some(record) = &mut guest.record {
                record.network = network;
                record.unplaceable_since_ms = None;
            }
            Ok(())
        })?;
        Ok(effects)
    }

    fn open_migration(&self, migration: &MigrationId) -> Result<GuestUid, Refusal> {
        let (uid, guest) = self.guest_of(migration).ok_or_else(|| Refusal::NoMigration(migration.clone()))?;
        match guest.ownership.phase_of(migration) {
            Some(phase) if !phase.is_over() => Ok(uid),
            Some(_) | None => Err(Refusal::IsOver(migration.clone())),
        }
    }
}
