//! The rows: entry by entry, what must hold and what changes. Checked when applied, not when proposed.

use super::{Attempt, CALL_OFFS_MAX, Entry, Licence, Life, Ownership, Permits, Phase, Refused, Side};
use crate::ids::{Epoch, InstanceId, MigrationId, NodeName};
use crate::ownership::Mode;
use crate::planted;

pub(super) type Outcome = Result<(), Refused>;

impl Ownership {
    /// Applies one entry, or refuses it and changes nothing.
    pub fn apply(&mut self, entry: Entry) -> Outcome {
        let name = entry.name();
        if let (Life::Unsure(_), false) = (&self.life, entry.fits_doubt()) {
            return Err(life(name, "settled", self.life.name()));
        }
        match entry {
            Entry::Born { instance } => self.born(instance),
            Entry::Request { migration } => self.request(migration),
            Entry::Start { migration, target } => self.start(&migration, target),
            Entry::Decline { migration, epoch } => self.decline(&migration, epoch),
            Entry::Accept { migration, epoch, instance } => self.accept(&migration, epoch, instance),
            Entry::HandOver { migration, epoch, mode } => self.hand_over(&migration, epoch, mode),
            Entry::CallOff { migration, epoch } => self.call_off(migration, epoch),
            Entry::End { migration, side, reason } => self.end(&migration, side, reason),
            Entry::Dropped { migration } => self.dropped(&migration),
            Entry::Running { migration, epoch } => self.running(&migration, epoch),
            Entry::AllPages { migration, epoch } => self.all_pages(&migration, epoch),
            Entry::HandBack { migration, epoch, testimony: _ } => self.hand_back(&migration, epoch),
            Entry::Gone { instance } => self.without(name, instance, "its runner is gone"),
            Entry::Vouch { node, instances } => self.vouch(&node, &instances),
            Entry::Recover { instance } => self.recover(instance),
            Entry::Delete => self.delete(),
            Entry::Purged { node } => self.purged(&node),
            Entry::Found => self.found(),
            Entry::Unclaimed { node } => self.unclaimed(&node),
            Entry::Claimed { instance, claim } => self.claimed(instance, claim),
            Entry::Settle { all } => self.settle(all),
        }
    }

    fn born(&mut self, instance: InstanceId) -> Outcome {
        match &self.life {
            Life::Creating(node) => {
                self.life = Life::Alive(Licence { node: node.clone(), instance });
                self.epoch = Epoch::FIRST;
                Ok(())
            }
            // Said again.
            Life::Alive(owner) if owner.instance == instance && self.epoch == Epoch::FIRST => Ok(()),
            Life::Alive(_) | Life::Lost { .. } | Life::Deleting(_) | Life::Purged | Life::Unsure(_) => {
                Err(life("Born", "Creating", self.life.name()))
            }
        }
    }

    // ---- a migration's way ---------------------------------------------------------------------------------

    fn request(&mut self, migration: MigrationId) -> Outcome {
        self.alive("Request")?;
        if let Some(last) = &self.attempt {
            if !last.phase.is_over() {
                return Err(Refused::Unfinished(last.migration.clone()));
            }
            if last.permits != Permits::None {
                return Err(Refused::PermitsHeld(last.migration.clone()));
            }
        }
        self.attempt =
            Some(Attempt { migration, phase: Phase::Pending, permits: Permits::None, call_offs: 0 });
        Ok(())
    }

    fn start(&mut self, migration: &MigrationId, target: NodeName) -> Outcome {
        let source = self.alive("Start")?.clone();
        let attempt = self.current(migration, None)?;
        if !matches!(attempt.phase, Phase::Pending) {
            return Err(refuse("Start", &attempt.phase));
        }
        if target == source.node {
            return Err(Refused::SameNode(target));
        }
        attempt.permits = Permits::Held { source: source.node.clone(), target: target.clone() };
        attempt.phase = Phase::Preparing { source, target: target.clone() };
        self.holders.insert(target);
        Ok(())
    }

    fn decline(&mut self, migration: &MigrationId, epoch: Epoch) -> Outcome {
        let attempt = self.current(migration, Some(epoch))?;
        if !matches!(attempt.phase, Phase::Preparing { .. }) {
            return Err(refuse("Decline", &attempt.phase));
        }
        attempt.phase = Phase::Pending;
        attempt.permits = Permits::None;
        self.epoch = self.epoch.next();
        Ok(())
    }

    fn accept(&mut self, migration: &MigrationId, epoch: Epoch, instance: InstanceId) -> Outcome {
        let attempt = self.current(migration, Some(epoch))?;
        match &attempt.phase {
            Phase::Preparing { source, target } => {
                let target = Licence { node: target.clone(), instance };
                attempt.phase = Phase::Copying { source: source.clone(), target };
                Ok(())
            }
            // Said again by the runner that was accepted: the same answer. The first instance wins.
            Phase::Copying { target, .. } if target.instance == instance => Ok(()),
            Phase::Pending
            | Phase::Copying { .. }
            | Phase::HandedOver { .. }
            | Phase::PostCopy { .. }
            | Phase::Succeeded
            | Phase::Failed { .. }
            | Phase::Cancelled { .. } => Err(refuse("Accept", &attempt.phase)),
        }
    }

    fn hand_over(&mut self, migration: &MigrationId, epoch: Epoch, mode: Mode) -> Outcome {
        let attempt = self.current(migration, Some(epoch))?;
        let Phase::Copying { source, target } = &attempt.phase else {
            return Err(refuse("HandOver", &attempt.phase));
        };
        let (source, target) = (source.clone(), target.clone());
        let owner = target.clone();
        attempt.phase = Phase::HandedOver { source, target, mode, source_gone: false };
        self.life = Life::Alive(owner);
        self.epoch = self.epoch.next();
        Ok(())
    }

    fn call_off(&mut self, migration: MigrationId, epoch: Epoch) -> Outcome {
        let attempt = self.current(&migration, Some(epoch))?;
        if !matches!(attempt.phase, Phase::Copying { .. }) {
            return Err(refuse("CallOff", &attempt.phase));
        }
        if attempt.call_offs >= CALL_OFFS_MAX {
            return Err(Refused::CalledOffTooOften(migration));
        }
        attempt.call_offs += 1;
        if !planted::is_on("epoch-stays") {
            self.epoch = self.epoch.next();
        }
        Ok(())
    }

    fn end(&mut self, migration: &MigrationId, side: Side, reason: String) -> Outcome {
        let epoch = self.epoch;
        let mut taken_back = None;
        let attempt = self.current(migration, None)?;
        match &attempt.phase {
            Phase::Pending | Phase::Preparing { .. } | Phase::Copying { .. } => {}
            Phase::HandedOver { source, .. } if planted::is_on("end-after-hand-over") => {
                taken_back = Some(source.clone());
            }
            Phase::HandedOver { target, .. } | Phase::PostCopy { target, .. } => {
                return Err(Refused::HandedOver { node: target.node.clone(), epoch });
            }
            Phase::Succeeded | Phase::Failed { .. } | Phase::Cancelled { .. } => {
                return Err(refuse("End", &attempt.phase));
            }
        }
        attempt.phase = match side {
            Side::Operator | Side::Deadline => Phase::Cancelled { reason },
            Side::Source | Side::Target | Side::Control => Phase::Failed { reason },
        };
        match side {
            Side::Source | Side::Target | Side::Deadline => attempt.permits = Permits::None,
            Side::Control | Side::Operator => {}
        }
        if let Some(source) = taken_back {
            self.life = Life::Alive(source);
        }
        if !planted::is_on("epoch-stays") {
            self.epoch = self.epoch.next();
        }
        Ok(())
    }

    fn dropped(&mut self, migration: &MigrationId) -> Outcome {
        let attempt = self.current(migration, None)?;
        if !attempt.phase.is_over() || attempt.permits == Permits::None {
            return Err(refuse("Dropped", &attempt.phase));
        }
        attempt.permits = Permits::None;
        Ok(())
    }

    fn running(&mut self, migration: &MigrationId, epoch: Epoch) -> Outcome {
        let attempt = self.current(migration, Some(epoch))?;
        match &attempt.phase {
            Phase::HandedOver { mode: Mode::StopAndCopy, .. } => {
                attempt.phase = Phase::Succeeded;
                attempt.permits = Permits::None;
                Ok(())
            }
            Phase::HandedOver { source, target, mode: Mode::PostCopy, source_gone } => {
                let (source, target, source_gone) = (source.clone(), target.clone(), *source_gone);
                attempt.phase = Phase::PostCopy { source, target, source_gone };
                Ok(())
            }
            // Said again until seen.
            Phase::PostCopy { .. } | Phase::Succeeded => Ok(()),
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::Copying { .. }
            | Phase::Failed { .. }
            | Phase::Cancelled { .. } => Err(refuse("Running", &attempt.phase)),
        }
    }

    fn all_pages(&mut self, migration: &MigrationId, epoch: Epoch) -> Outcome {
        let attempt = self.current(migration, Some(epoch))?;
        match &attempt.phase {
            // It may have overtaken Running.
            Phase::PostCopy { .. } | Phase::HandedOver { .. } => {
                attempt.phase = Phase::Succeeded;
                attempt.permits = Permits::None;
                Ok(())
            }
            Phase::Succeeded => Ok(()),
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::Copying { .. }
            | Phase::Failed { .. }
            | Phase::Cancelled { .. } => Err(refuse("AllPages", &attempt.phase)),
        }
    }

    fn hand_back(&mut self, migration: &MigrationId, epoch: Epoch) -> Outcome {
        let attempt = self.current(migration, Some(epoch))?;
        let Phase::HandedOver { source, source_gone, .. } = &attempt.phase else {
            return Err(refuse("HandBack", &attempt.phase));
        };
        let life = if *source_gone {
            // What never started is no copy to go back to, and the source's is gone.
            Life::Lost { last: source.clone(), kept: None }
        } else {
            Life::Alive(source.clone())
        };
        let reason = "handed back: the guest never started at the target".to_owned();
        attempt.phase = Phase::Failed { reason };
        attempt.permits = Permits::None;
        self.life = life;
        self.epoch = self.epoch.next();
        Ok(())
    }

    // ---- loss and end --------------------------------------------------------------------------------------

    fn vouch(&mut self, node: &NodeName, instances: &[InstanceId]) -> Outcome {
        if let Life::Unsure(_) = self.life {
            return self.disclaimed(instances);
        }
        let mut touched = false;
        for instance in instances {
            touched |= self.without("Vouch", *instance, &format!("node {node} is vouched to be off")).is_ok();
        }
        // An ended migration whose permits are held gives them back: neither of its nodes need be asked any more.
        if let Some(attempt) = &mut self.attempt
            && attempt.phase.is_over()
            && let Permits::Held { source, target } = &attempt.permits
            && (source == node || target == node)
        {
            attempt.permits = Permits::None;
            touched = true;
        }
        match (touched, instances.first()) {
            (true, _) | (false, None) => Ok(()),
            (false, Some(instance)) => Err(Refused::NoPart(*instance)),
        }
    }

    /// A runner is no more. What that means depends on the part it played.
    fn without(&mut self, name: &'static str, instance: InstanceId, why: &str) -> Outcome {
        if !self.names(instance) {
            return Err(Refused::NoPart(instance));
        }
        if self.licenses(instance) {
            self.lose_owner(why);
            return Ok(());
        }
        if let Life::Lost { kept, .. } = &mut self.life {
            if kept.as_ref().is_some_and(|kept| kept.instance == instance) {
                *kept = None;
            }
            return Ok(());
        }
        let Some(attempt) = &mut self.attempt else { return Err(Refused::NoPart(instance)) };
        match &mut attempt.phase {
            Phase::Copying { target, .. } if target.instance == instance => {
                let migration = attempt.migration.clone();
                self.end(&migration, Side::Target, format!("target lost: {why}"))
            }
            Phase::HandedOver { source, source_gone, .. } | Phase::PostCopy { source, source_gone, .. }
                if source.instance == instance =>
            {
                *source_gone = true;
                if planted::is_on("source-loss-is-guest-loss") {
                    self.lose_owner(why);
                }
                Ok(())
            }
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::Copying { .. }
            | Phase::HandedOver { .. }
            | Phase::PostCopy { .. }
            | Phase::Succeeded
            | Phase::Failed { .. }
            | Phase::Cancelled { .. } => Err(refuse(name, &attempt.phase)),
        }
    }

    /// The guest is Lost: a power-off proves "does not run", not "did not run", so nothing goes back by itself.
    fn lose_owner(&mut self, why: &str) {
        let Life::Alive(last) = &self.life else { return };
        let mut kept = None;
        if let Some(attempt) = self.attempt.as_mut().filter(|attempt| !attempt.phase.is_over()) {
            kept = attempt.phase.kept_source().cloned();
            if let Phase::HandedOver { source_gone: true, .. } | Phase::PostCopy { source_gone: true, .. } =
                attempt.phase
            {
                kept = None;
            }
            attempt.phase = Phase::Failed { reason: format!("guest lost: {why}") };
            attempt.permits = Permits::None;
        }
        let last = last.clone();
        if let (true, Some(kept)) = (planted::is_on("vouch-hands-back"), &kept) {
            self.life = Life::Alive(kept.clone());
            self.epoch = self.epoch.next();
            return;
        }
        self.life = Life::Lost { last, kept };
    }

    fn recover(&mut self, instance: InstanceId) -> Outcome {
        if let Life::Unsure(_) = self.life {
            return self.choose(instance);
        }
        let Life::Lost { last, kept } = &self.life else {
            return Err(life("Recover", "Lost", self.life.name()));
        };
        let copy = [Some(last), kept.as_ref()].into_iter().flatten().find(|copy| copy.instance == instance);
        let Some(copy) = copy else { return Err(Refused::NoPart(instance)) };
        self.life = Life::Alive(copy.clone());
        self.epoch = self.epoch.next();
        self.rollbacks += 1;
        Ok(())
    }

    fn delete(&mut self) -> Outcome {
        if let Life::Deleting(_) | Life::Purged = self.life {
            return Err(life("Delete", "not deleted", self.life.name()));
        }
        if let Some(attempt) = self.attempt.as_mut().filter(|attempt| !attempt.phase.is_over()) {
            attempt.phase = Phase::Failed { reason: "the guest was deleted".into() };
        }
        if let Life::Unsure(doubt) = &self.life {
            self.epoch = doubt.highest(self.epoch);
        }
        self.life = Life::Deleting(self.holders.clone());
        self.epoch = self.epoch.next();
        Ok(())
    }

    fn purged(&mut self, node: &NodeName) -> Outcome {
        let is = self.life.name();
        let Life::Deleting(left) = &mut self.life else {
            return Err(life("Purged", "Deleting", is));
        };
        left.remove(node);
        if left.is_empty() {
            self.life = Life::Purged;
            // Both nodes of a migration that the deletion has ended are among those that hold nothing any more.
            if let Some(attempt) = &mut self.attempt {
                attempt.permits = Permits::None;
            }
        }
        Ok(())
    }

    // ---- helpers -------------------------------------------------------------------------------------------

    fn alive(&self, entry: &'static str) -> Result<&Licence, Refused> {
        self.owner().ok_or_else(|| life(entry, "Alive", self.life.name()))
    }

    fn current(&mut self, migration: &MigrationId, epoch: Option<Epoch>) -> Result<&mut Attempt, Refused> {
        let present = self.epoch;
        if let Some(proposed) = epoch
            && proposed != present
        {
            return Err(Refused::EpochOver { proposed, present });
        }
        self.attempt
            .as_mut()
            .filter(|attempt| attempt.migration == *migration)
            .ok_or_else(|| Refused::Unknown(migration.clone()))
    }
}

impl Life {
    /// Its name, as in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating(_) => "Creating",
            Self::Alive(_) => "Alive",
            Self::Lost { .. } => "Lost",
            Self::Deleting(_) => "Deleting",
            Self::Purged => "Purged",
            Self::Unsure(_) => "Unsure",
        }
    }
}

fn refuse(entry: &'static str, phase: &Phase) -> Refused {
    Refused::Phase { entry: entry.into(), phase: phase.name().into() }
}

pub(super) fn life(entry: &'static str, needs: &'static str, is: &'static str) -> Refused {
    Refused::Life { entry: entry.into(), needs: needs.into(), is: is.into() }
}
