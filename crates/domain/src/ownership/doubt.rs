//! What is believed of a guest whose control group was founded anew, from a backup or from one voter's disk: that may be
//! old, so nobody owns the guest until its runners have said how they stand.
//!
//! ```text
//!   Creating, Alive, Lost ─Found─▶ Unsure ─Claimed, by every node─▶ Settle ─┬▶ Alive   the runner that runs, or a paused copy
//!                                    ▲                                      │          that provably is the newest
//!                                    └── open: an operator decides ◀────────┼▶ Lost    nobody has it
//!                                        (fence, guest recover)             └▶ Unsure
//! ```
//!
//! Always true:
//! - a guest goes on running while nobody owns it; nothing is started, resumed, paused or destroyed for it meanwhile;
//! - a licence goes to a runner that runs, or to a copy that stands still and of which it is shown that nobody has run
//!   after it; a doubt makes the guest Lost or is left to an operator, never settled by chance;
//! - the epoch afterwards is above all that were believed or claimed; but a move in post-copy goes on under its own, since
//!   the pages that are missing lie in the copy that has sealed the one before.
//!
//! A node that claims has forgotten what the earlier group told it (its process is a new one): what it claims stays so.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Attempt, Licence, Life, Phase};
use crate::ids::{Epoch, InstanceId, MigrationId, NodeName};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// What was believed.
    pub believed: Believed,
    /// What runners were said to be since.
    pub claims: BTreeMap<InstanceId, Claim>,
    /// Every node has said what it has, and that settles nothing: an operator decides.
    pub open: bool,
}

/// The life that a guest was believed to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Believed {
    /// This node was to make its first runner. One that is made and has not run proves nothing: a node that knows no better
    /// makes another one after the guest has run and is gone.
    Creating(NodeName),
    /// This runner was to run it.
    Alive(Licence),
    /// Nobody ran it.
    Lost {
        /// The runner that was gone.
        last: Licence,
        /// The copy that was kept.
        kept: Option<Licence>,
    },
}

/// A runner, as its node says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The node.
    pub node: NodeName,
    /// How it stands.
    pub stands: Stands,
    /// The migration for which it was made; `None`: the guest was made in it.
    pub arriving: Option<MigrationId>,
}

/// How a runner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stands {
    /// It runs under this epoch.
    Running(Epoch),
    /// It stands still.
    Paused {
        /// The epoch that it has sealed.
        sealed: Epoch,
        /// `Final` of that epoch is known never to have left.
        withheld: bool,
    },
    /// It has never run.
    Incoming {
        /// The epoch that was agreed when it was made.
        made: Epoch,
        /// The epoch that was sealed when the guest was saved that is loaded in it, if one is.
        arrived: Option<Epoch>,
    },
    /// It is gone, and has never run: there is a tombstone.
    Buried,
}

impl fmt::Display for Stands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running(epoch) => write!(f, "runs under epoch {epoch}"),
            Self::Paused { sealed, .. } => write!(f, "paused, epoch {sealed} sealed"),
            Self::Incoming { .. } => f.write_str("has never run"),
            Self::Buried => f.write_str("gone, and has never run"),
        }
    }
}

enum Verdict {
    /// Somebody has yet to be heard.
    Wait,
    /// For an operator.
    Open,
    /// This runner runs, and is whole.
    Runs(InstanceId),
    /// This runner runs, and its pages may still be at this copy; `None`: that one is gone.
    Lacks(InstanceId, Option<Licence>),
    /// This copy stands still, and nobody has run after it.
    Resumes(InstanceId),
    /// Nobody has it, or nobody can show that what is there is the newest.
    Lost,
}

impl Claim {
    /// The highest epoch that the runner knows of.
    fn highest(&self) -> Epoch {
        match self.stands {
            Stands::Running(epoch) | Stands::Paused { sealed: epoch, .. } => epoch,
            Stands::Incoming { made, arrived } => made.max(arrived.unwrap_or(Epoch(0))),
            Stands::Buried => Epoch(0),
        }
    }

    fn running(&self) -> Option<Epoch> {
        match self.stands {
            Stands::Running(epoch) => Some(epoch),
            Stands::Paused { .. } | Stands::Incoming { .. } | Stands::Buried => None,
        }
    }

    fn sealed(&self) -> Option<Epoch> {
        match self.stands {
            Stands::Paused { sealed, .. } => Some(sealed),
            Stands::Running(_) | Stands::Incoming { .. } | Stands::Buried => None,
        }
    }

    fn never_ran(&self) -> bool {
        matches!(self.stands, Stands::Incoming { .. } | Stands::Buried)
    }
}

impl Doubt {
    pub(super) fn of(believed: Believed) -> Self {
        Self { believed, claims: BTreeMap::new(), open: false }
    }

    /// The highest epoch that anybody knows of, this one among them.
    pub(super) fn highest(&self, epoch: Epoch) -> Epoch {
        self.claims.values().map(Claim::highest).fold(epoch, Epoch::max)
    }

    /// The runner that was believed to own the guest.
    fn owner(&self) -> Option<&Licence> {
        match &self.believed {
            Believed::Alive(owner) => Some(owner),
            Believed::Creating(_) | Believed::Lost { .. } => None,
        }
    }

    fn licence(&self, instance: InstanceId) -> Option<Licence> {
        Some(Licence { node: self.claims.get(&instance)?.node.clone(), instance })
    }

    /// The runners that are claimed to be there, and those that were believed to be.
    pub fn licences(&self) -> Vec<Licence> {
        let there = self.claims.iter().filter(|(_, claim)| claim.stands != Stands::Buried);
        let mut all: Vec<Licence> = there
            .map(|(instance, claim)| Licence { node: claim.node.clone(), instance: *instance })
            .collect();
        all.extend(self.owner().cloned());
        if let Believed::Lost { last, kept } = &self.believed {
            all.push(last.clone());
            all.extend(kept.clone());
        }
        all
    }

    /// The runner that runs under the highest epoch, if no other runs and none that stands still knows of as high a one.
    fn only_one_that_runs(&self) -> Result<Option<(InstanceId, Epoch, &Claim)>, ()> {
        let mut running = self.claims.iter().filter_map(|(id, claim)| Some((*id, claim.running()?, claim)));
        let (first, second) = (running.next(), running.next());
        let Some((instance, epoch, claim)) = first else { return Ok(None) };
        let as_high = |claim: &Claim| claim.sealed().is_some_and(|sealed| sealed >= epoch);
        if second.is_some() || self.claims.values().any(as_high) {
            return Err(());
        }
        Ok(Some((instance, epoch, claim)))
    }

    /// The copy that stands still and has sealed the highest epoch; two of one epoch are none.
    fn newest_that_stands(&self) -> Option<(InstanceId, Epoch, &Claim)> {
        let standing = || self.claims.iter().filter_map(|(id, claim)| Some((*id, claim.sealed()?, claim)));
        let newest = standing().max_by_key(|(_, sealed, _)| *sealed)?;
        (standing().filter(|(_, sealed, _)| *sealed == newest.1).count() == 1).then_some(newest)
    }

    fn verdict(&self, epoch: Epoch, attempt: Option<&Attempt>, all: bool) -> Verdict {
        if self.open {
            return Verdict::Wait;
        }
        let open = attempt.filter(|attempt| !attempt.phase.is_over());
        let runs = match self.only_one_that_runs() {
            Ok(runs) => runs,
            Err(()) if all => return Verdict::Open,
            Err(()) => return Verdict::Wait,
        };
        if let Some((instance, under, claim)) = runs {
            let lacks = self.lacks(instance, under, claim, epoch, attempt, open);
            // What is believed, or was never elsewhere, needs no other's word: who runs has not handed over, and is whole.
            let confirmed =
                claim.arriving.is_none() || self.owner().is_some_and(|it| it.instance == instance);
            return match (all || confirmed && lacks.is_none(), lacks) {
                (false, _) => Verdict::Wait,
                (true, None) => Verdict::Runs(instance),
                // It would have to go on under an epoch that is over.
                (true, Some(_)) if under < epoch => Verdict::Open,
                (true, Some(source)) => Verdict::Lacks(instance, source),
            };
        }
        if !all {
            return Verdict::Wait;
        }
        match self.newest_that_stands() {
            Some((instance, sealed, claim)) if self.is_newest(sealed, claim, epoch, open) => {
                Verdict::Resumes(instance)
            }
            Some(_) | None => Verdict::Lost,
        }
    }

    /// Whether pages of a runner that runs may still be missing: `Some`, with the copy where they are, if that is there.
    fn lacks(
        &self,
        instance: InstanceId,
        under: Epoch,
        claim: &Claim,
        epoch: Epoch,
        attempt: Option<&Attempt>,
        open: Option<&Attempt>,
    ) -> Option<Option<Licence>> {
        let brought_by = claim.arriving.as_ref()?;
        if attempt.is_some_and(|attempt| attempt.migration == *brought_by && attempt.phase.is_over()) {
            return None;
        }
        // A runner that was made for a later move, in the same epoch: the one before had succeeded.
        let later = |it: &Claim| match it.stands {
            Stands::Incoming { made, .. } => made >= under && it.arriving != claim.arriving,
            Stands::Running(_) | Stands::Paused { .. } | Stands::Buried => false,
        };
        if self.claims.values().any(later) {
            return None;
        }
        let source = self.claims.iter().find(|(_, copy)| copy.sealed().map(Epoch::next) == Some(under));
        if let Some((copy, _)) = source {
            return Some(self.licence(*copy));
        }
        let in_post_copy = open.is_some_and(|open| match &open.phase {
            Phase::PostCopy { target, .. }
            | Phase::HandedOver { mode: super::Mode::PostCopy, target, .. } => target.instance == instance,
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::Copying { .. }
            | Phase::HandedOver { .. }
            | Phase::Succeeded
            | Phase::Failed { .. }
            | Phase::Cancelled { .. } => false,
        });
        (in_post_copy && under == epoch).then_some(None)
    }

    /// Whether it is shown that nobody has run after a copy that has sealed this epoch. Whoever could have is one runner:
    /// the one that has its `Final`, or the one that was accepted for the epoch.
    fn is_newest(&self, sealed: Epoch, claim: &Claim, epoch: Epoch, open: Option<&Attempt>) -> bool {
        if let Believed::Lost { .. } = &self.believed {
            // Going back to a copy that is kept is an operator's act.
            return false;
        }
        let withheld = matches!(claim.stands, Stands::Paused { withheld: true, .. });
        let holds_final =
            |it: &Claim| matches!(it.stands, Stands::Incoming { arrived: Some(of), .. } if of == sealed);
        let accepted = open.and_then(|open| match &open.phase {
            Phase::Copying { target, .. } if epoch == sealed => Some(target.instance),
            Phase::HandedOver { target, .. } if epoch == sealed.next() => Some(target.instance),
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::Copying { .. }
            | Phase::HandedOver { .. }
            | Phase::PostCopy { .. }
            | Phase::Succeeded
            | Phase::Failed { .. }
            | Phase::Cancelled { .. } => None,
        });
        let is_proof = |target: InstanceId| self.claims.get(&target).is_some_and(Claim::never_ran);
        withheld || self.claims.values().any(holds_final) || accepted.is_some_and(is_proof)
    }

    fn lost(&self) -> Life {
        let last = match &self.believed {
            Believed::Alive(owner) => owner.clone(),
            Believed::Lost { last, .. } => last.clone(),
            // It has no runner of which anybody knows.
            Believed::Creating(node) => {
                Licence { node: node.clone(), instance: InstanceId::from_random([0; 16]) }
            }
        };
        let newest = self.newest_that_stands().and_then(|(instance, ..)| self.licence(instance));
        let kept = match &self.believed {
            Believed::Lost { kept: Some(kept), .. } if self.claims.contains_key(&kept.instance) => {
                Some(kept.clone())
            }
            Believed::Creating(_) | Believed::Alive(_) | Believed::Lost { .. } => {
                newest.filter(|kept| kept.instance != last.instance)
            }
        };
        Life::Lost { kept, last }
    }
}

mod settle;
#[cfg(test)]
mod tests;
