//! The rows of a doubt: entry by entry, what must hold and what changes.

use super::super::apply::{Outcome, life};
use super::super::{Attempt, Licence, Life, Ownership, Permits, Phase, Refused};
use super::{Believed, Claim, Doubt, Stands, Verdict};
use crate::ids::{Epoch, InstanceId, NodeName};

/// Why a migration ended that was open when the group was founded anew.
const REASON: &str = "the control group was founded anew while it ran";

impl Ownership {
    pub(in crate::ownership) fn found(&mut self) -> Outcome {
        let believed = match &mut self.life {
            Life::Creating(node) => Believed::Creating(node.clone()),
            Life::Alive(owner) => Believed::Alive(owner.clone()),
            Life::Lost { last, kept } => Believed::Lost { last: last.clone(), kept: kept.clone() },
            Life::Unsure(doubt) => {
                doubt.claims.clear();
                doubt.open = false;
                return Ok(());
            }
            Life::Deleting(_) | Life::Purged => return Err(life("Found", "not deleted", self.life.name())),
        };
        self.life = Life::Unsure(Doubt::of(believed));
        Ok(())
    }

    /// What a node has said before is said anew.
    pub(in crate::ownership) fn unclaimed(&mut self, node: &NodeName) -> Outcome {
        let Life::Unsure(doubt) = &mut self.life else {
            return Err(life("Unclaimed", "Unsure", self.life.name()));
        };
        doubt.claims.retain(|_, claim| claim.node != *node);
        Ok(())
    }

    pub(in crate::ownership) fn claimed(&mut self, instance: InstanceId, claim: Claim) -> Outcome {
        let node = claim.node.clone();
        match &mut self.life {
            Life::Unsure(doubt) => {
                doubt.claims.insert(instance, claim);
            }
            // It was on a node of which nobody knew any more.
            Life::Lost { last, kept } if claim.running().is_some_and(|epoch| epoch > self.epoch) => {
                let believed = Believed::Lost { last: last.clone(), kept: kept.clone() };
                let kept = kept.clone();
                self.epoch = claim.highest();
                match kept {
                    None => {
                        self.life = Life::Alive(Licence { node: node.clone(), instance });
                        self.epoch = self.epoch.next();
                    }
                    // Its pages may be there: an operator says what becomes of either.
                    Some(kept) => {
                        let copy = Stands::Paused { sealed: Epoch(0), withheld: false };
                        let copy = Claim { node: kept.node, stands: copy, arriving: None };
                        let mut doubt = Doubt::of(believed);
                        doubt.claims.extend([(kept.instance, copy), (instance, claim)]);
                        doubt.open = true;
                        self.life = Life::Unsure(doubt);
                    }
                }
            }
            // It is told of that, under an epoch that its runner does not take for an old one, and ends what it has.
            Life::Deleting(left) => {
                left.insert(node.clone());
                self.epoch = self.epoch.max(claim.highest());
            }
            Life::Purged => self.epoch = self.epoch.max(claim.highest()),
            Life::Creating(_) | Life::Alive(_) | Life::Lost { .. } => return Err(Refused::NoPart(instance)),
        }
        self.holders.insert(node);
        Ok(())
    }

    /// Runners that are vouched to be off claim nothing any more.
    pub(in crate::ownership) fn disclaimed(&mut self, instances: &[InstanceId]) -> Outcome {
        let Life::Unsure(doubt) = &mut self.life else {
            return Err(life("Vouch", "Unsure", self.life.name()));
        };
        let before = doubt.claims.len();
        doubt.claims.retain(|instance, _| !instances.contains(instance));
        if doubt.claims.len() < before {
            doubt.open = false;
        }
        Ok(())
    }

    /// Settles what can be settled. `all`: every node was heard.
    pub(in crate::ownership) fn settle(&mut self, all: bool) -> Outcome {
        let Life::Unsure(doubt) = &self.life else {
            return Err(life("Settle", "Unsure", self.life.name()));
        };
        let doubt = doubt.clone();
        match doubt.verdict(self.epoch, self.attempt.as_ref(), all) {
            Verdict::Wait => {}
            Verdict::Open => self.life = Life::Unsure(Doubt { open: true, ..doubt }),
            Verdict::Runs(instance) => self.belongs_to(&doubt, instance),
            Verdict::Resumes(instance) => self.belongs_to(&doubt, instance),
            Verdict::Lacks(instance, source) => self.goes_on(&doubt, instance, source),
            Verdict::Lost => {
                self.epoch = doubt.highest(self.epoch);
                self.life = doubt.lost();
                self.close(None);
            }
        }
        Ok(())
    }

    /// What was heard settles nothing: an operator decides.
    pub(crate) fn leave_open(&mut self) {
        if let Life::Unsure(doubt) = &mut self.life {
            doubt.open = true;
        }
    }

    /// An operator chooses one of the runners that are claimed. The others may go.
    pub(in crate::ownership) fn choose(&mut self, instance: InstanceId) -> Outcome {
        let Life::Unsure(doubt) = &self.life else { return Err(life("Recover", "Lost", self.life.name())) };
        if !doubt.open {
            return Err(life("Recover", "Lost", self.life.name()));
        }
        let doubt = doubt.clone();
        if doubt.claims.get(&instance).is_none_or(|claim| claim.never_ran()) {
            return Err(Refused::NoPart(instance));
        }
        self.belongs_to(&doubt, instance);
        self.rollbacks += 1;
        Ok(())
    }

    /// It is this runner's, in an epoch that nobody knows.
    fn belongs_to(&mut self, doubt: &Doubt, instance: InstanceId) {
        let Some(licence) = doubt.licence(instance) else { return };
        self.close(doubt.claims.get(&instance).filter(|claim| claim.running().is_some()));
        self.epoch = doubt.highest(self.epoch).next();
        self.life = Life::Alive(licence);
    }

    /// It is this runner's, and it goes on fetching its pages from that copy.
    fn goes_on(&mut self, doubt: &Doubt, instance: InstanceId, source: Option<Licence>) {
        let (Some(target), Some(claim)) = (doubt.licence(instance), doubt.claims.get(&instance)) else {
            return;
        };
        let (Some(epoch), Some(migration)) = (claim.running(), claim.arriving.clone()) else { return };
        let open = self.attempt.take().filter(|attempt| !attempt.phase.is_over());
        let (known, call_offs) = match open {
            Some(Attempt { migration: of, phase, call_offs, .. }) if of == migration => {
                (Some(phase), call_offs)
            }
            Some(_) | None => (None, 0),
        };
        let source_gone = source.is_none();
        let believed = known.as_ref().and_then(Phase::kept_source).cloned();
        let Some(source) = source.or(believed) else { return self.belongs_to(doubt, instance) };
        self.attempt = Some(Attempt {
            migration,
            permits: Permits::Held { source: source.node.clone(), target: target.node.clone() },
            phase: Phase::PostCopy { source, target: target.clone(), source_gone },
            call_offs,
        });
        self.epoch = epoch;
        self.life = Life::Alive(target);
    }

    /// The migration that was open is over, with this runner running the guest, or none.
    fn close(&mut self, runs: Option<&Claim>) {
        let Some(attempt) = self.attempt.as_mut().filter(|attempt| !attempt.phase.is_over()) else { return };
        let arrived = runs.is_some_and(|claim| claim.arriving.as_ref() == Some(&attempt.migration));
        attempt.close();
        if arrived {
            attempt.phase = Phase::Succeeded;
        }
    }
}

impl Attempt {
    /// It is over if it was not, and holds nothing then.
    pub(crate) fn close(&mut self) {
        if !self.phase.is_over() {
            self.phase = Phase::Failed { reason: REASON.to_owned() };
            self.permits = Permits::None;
        }
    }
}
