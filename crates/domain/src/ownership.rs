//! Who may run a guest. The answer is a *licence*: one runner process and one epoch.
//!
//! ```text
//!   Start ─▶ Preparing ─Accept─▶ Copying ─HandOver─▶ HandedOver ─Running─▶ Succeeded
//!                 └───────End───────┴──▶ Failed
//! ```
//!
//! Always true:
//! - `HandOver` and `CallOff` compare the epoch and make the next; `End` compares the phase and adds 1 all the
//!   same. So exactly one of them wins an epoch, and a proposal that was delayed is refused, never obeyed;
//! - an epoch that is over never comes back: who sealed it stays sealed;
//! - the owner changes in `HandOver` alone; ended phases take no further entry of their migration;
//! - a refused entry changes nothing.
//!
//! Never here: who may ask, how an entry is agreed on, when. That is for whoever keeps the log.

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, InstanceId, MigrationId, NodeName};

/// The right to run a guest for one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Licence {
    /// Where the runner lives.
    pub node: NodeName,
    /// The runner process.
    pub instance: InstanceId,
}

/// What is agreed about one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// The present epoch.
    pub epoch: Epoch,
    /// Who may run it.
    pub owner: Licence,
    /// The last migration, unfinished or ended.
    pub attempt: Option<Attempt>,
}

/// One migration as far as ownership goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its name.
    pub migration: MigrationId,
    /// Where the guest ran when it began.
    pub source: Licence,
    /// Where it is to go.
    pub target: NodeName,
    /// How far it is.
    pub phase: Phase,
}

/// How far a migration is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The target was asked.
    Preparing,
    /// The target has a runner; pages flow while the guest runs at the source.
    Copying {
        /// The target's runner.
        instance: InstanceId,
    },
    /// The target's runner owns the guest and has not said yet that it runs it.
    HandedOver,
    /// The guest runs at the target.
    Succeeded,
    /// It ended otherwise.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

impl Phase {
    /// Whether nothing more can happen to it.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Preparing | Self::Copying { .. } | Self::HandedOver => false,
            Self::Succeeded | Self::Failed { .. } => true,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Preparing => "Preparing",
            Self::Copying { .. } => "Copying",
            Self::HandedOver => "HandedOver",
            Self::Succeeded => "Succeeded",
            Self::Failed { .. } => "Failed",
        }
    }
}

/// What can be proposed. All but `Start` name the migration; those that compare it, the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// Begin a migration to `target`.
    Start {
        /// Its name.
        migration: MigrationId,
        /// Where to.
        target: NodeName,
    },
    /// The target has made a runner.
    Accept {
        /// The migration.
        migration: MigrationId,
        /// The present epoch.
        epoch: Epoch,
        /// The target's runner.
        instance: InstanceId,
    },
    /// The source has sealed `epoch`; the target shall own the guest in the next one.
    HandOver {
        /// The migration.
        migration: MigrationId,
        /// The sealed epoch.
        epoch: Epoch,
    },
    /// The source takes its pause back; copying goes on under the next epoch.
    CallOff {
        /// The migration.
        migration: MigrationId,
        /// The sealed epoch.
        epoch: Epoch,
    },
    /// It shall end before a hand-over.
    End {
        /// The migration.
        migration: MigrationId,
        /// Why, for people.
        reason: String,
    },
    /// The target runs the guest under `epoch`.
    Running {
        /// The migration.
        migration: MigrationId,
        /// The epoch that the hand-over made.
        epoch: Epoch,
    },
}

/// Why an entry was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// Another migration is not over.
    #[error("{0} is not over: a guest has one unfinished migration at a time")]
    Unfinished(MigrationId),
    /// Target and source are one.
    #[error("the guest is at {0} already; choose another target")]
    SameNode(NodeName),
    /// No such migration, or an older one.
    #[error("{0} is not this guest's present migration")]
    Unknown(MigrationId),
    /// The epoch has moved on.
    #[error("epoch {proposed} is over, {present} rules")]
    EpochOver {
        /// What the proposal named.
        proposed: Epoch,
        /// What holds.
        present: Epoch,
    },
    /// The phase does not allow it.
    #[error("{entry} can not follow {phase}")]
    Phase {
        /// The entry's name.
        entry: &'static str,
        /// The present phase's name.
        phase: &'static str,
    },
}

impl Ownership {
    /// A new guest, running in its first epoch.
    pub fn new(owner: Licence) -> Self {
        Self { epoch: Epoch::FIRST, owner, attempt: None }
    }

    /// Whether this runner may run the guest now.
    pub fn licenses(&self, instance: InstanceId) -> bool {
        self.owner.instance == instance
    }

    /// Applies one entry, or refuses it and changes nothing.
    pub fn apply(&mut self, entry: Entry) -> Result<(), Refused> {
        match entry {
            Entry::Start { migration, target } => self.start(migration, target),
            Entry::Accept { migration, epoch, instance } => {
                let attempt = self.current(&migration, Some(epoch))?;
                match attempt.phase {
                    Phase::Preparing => attempt.phase = Phase::Copying { instance },
                    // Said again by the runner that was accepted: the same answer.
                    Phase::Copying { instance: first } if first == instance => {}
                    ref other => return Err(refuse("Accept", other)),
                }
                Ok(())
            }
            Entry::HandOver { migration, epoch } => {
                let attempt = self.current(&migration, Some(epoch))?;
                let Phase::Copying { instance } = attempt.phase else {
                    return Err(refuse("HandOver", &attempt.phase));
                };
                attempt.phase = Phase::HandedOver;
                self.owner = Licence { node: attempt.target.clone(), instance };
                self.epoch = self.epoch.next();
                Ok(())
            }
            Entry::CallOff { migration, epoch } => {
                let attempt = self.current(&migration, Some(epoch))?;
                match attempt.phase {
                    Phase::Copying { .. } => self.epoch = self.epoch.next(),
                    ref other => return Err(refuse("CallOff", other)),
                }
                Ok(())
            }
            Entry::End { migration, reason } => {
                let attempt = self.current(&migration, None)?;
                match attempt.phase {
                    Phase::Preparing | Phase::Copying { .. } => attempt.phase = Phase::Failed { reason },
                    ref other => return Err(refuse("End", other)),
                }
                self.epoch = self.epoch.next();
                Ok(())
            }
            Entry::Running { migration, epoch } => {
                let attempt = self.current(&migration, Some(epoch))?;
                match attempt.phase {
                    Phase::HandedOver => attempt.phase = Phase::Succeeded,
                    Phase::Succeeded => {}
                    ref other => return Err(refuse("Running", other)),
                }
                Ok(())
            }
        }
    }

    fn start(&mut self, migration: MigrationId, target: NodeName) -> Result<(), Refused> {
        if let Some(last) = &self.attempt
            && !last.phase.is_over()
        {
            return Err(Refused::Unfinished(last.migration.clone()));
        }
        if target == self.owner.node {
            return Err(Refused::SameNode(target));
        }
        let source = self.owner.clone();
        self.attempt = Some(Attempt { migration, source, target, phase: Phase::Preparing });
        Ok(())
    }

    fn current(&mut self, migration: &MigrationId, epoch: Option<Epoch>) -> Result<&mut Attempt, Refused> {
        if let Some(proposed) = epoch
            && proposed != self.epoch
        {
            return Err(Refused::EpochOver { proposed, present: self.epoch });
        }
        self.attempt
            .as_mut()
            .filter(|attempt| attempt.migration == *migration)
            .ok_or_else(|| Refused::Unknown(migration.clone()))
    }
}

fn refuse(entry: &'static str, phase: &Phase) -> Refused {
    Refused::Phase { entry, phase: phase.name() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> InstanceId {
        InstanceId::from_random([n; 16])
    }

    fn node(name: &str) -> NodeName {
        name.parse().expect("a node name")
    }

    fn migration(n: u8) -> MigrationId {
        format!("m{n}").parse().expect("a migration name")
    }

    fn new_guest() -> Ownership {
        Ownership::new(Licence { node: node("a"), instance: id(1) })
    }

    /// Every entry that could be made of a few migrations, epochs and instances.
    fn any_entry() -> impl Strategy<Value = Entry> {
        (0_u8..6, 1_u8..3, 1_u64..8, 2_u8..5, prop::sample::select(vec!["a", "b"])).prop_map(
            |(kind, m, epoch, instance, target)| {
                let (migration, epoch) = (migration(m), Epoch(epoch));
                match kind {
                    0 => Entry::Start { migration, target: node(target) },
                    1 => Entry::Accept { migration, epoch, instance: id(instance) },
                    2 => Entry::HandOver { migration, epoch },
                    3 => Entry::CallOff { migration, epoch },
                    4 => Entry::End { migration, reason: "asked".into() },
                    _ => Entry::Running { migration, epoch },
                }
            },
        )
    }

    #[test]
    fn a_move_and_its_late_messages() {
        let mut guest = new_guest();
        let m = migration(1);
        let e = Epoch::FIRST;
        guest.apply(Entry::Start { migration: m.clone(), target: node("b") }).expect("start");
        let accept = Entry::Accept { migration: m.clone(), epoch: e, instance: id(2) };
        guest.apply(accept.clone()).expect("accept");
        guest.apply(accept).expect("the same runner says it again");
        let other = Entry::Accept { migration: m.clone(), epoch: e, instance: id(3) };
        assert_eq!(guest.apply(other), Err(Refused::Phase { entry: "Accept", phase: "Copying" }));
        let hand_over = Entry::HandOver { migration: m.clone(), epoch: e };
        guest.apply(hand_over.clone()).expect("hand-over");
        assert!(guest.licenses(id(2)) && !guest.licenses(id(1)));
        assert_eq!(guest.apply(hand_over), Err(Refused::EpochOver { proposed: e, present: e.next() }));
        let end = Entry::End { migration: m.clone(), reason: "too late".into() };
        assert_eq!(guest.apply(end), Err(Refused::Phase { entry: "End", phase: "HandedOver" }));
        guest.apply(Entry::Running { migration: m, epoch: e.next() }).expect("running");
        assert_eq!(guest.attempt.map(|a| a.phase), Some(Phase::Succeeded));
    }

    /// The source gives up; its hand-over, proposed before and delayed, must not win afterwards.
    #[test]
    fn a_hand_over_that_was_called_off_is_refused_however_late() {
        for give_up in [
            Entry::CallOff { migration: migration(1), epoch: Epoch::FIRST },
            Entry::End { migration: migration(1), reason: "link lost".into() },
        ] {
            let mut guest = new_guest();
            guest.apply(Entry::Start { migration: migration(1), target: node("b") }).expect("start");
            let accept = Entry::Accept { migration: migration(1), epoch: Epoch::FIRST, instance: id(2) };
            guest.apply(accept).expect("accept");
            guest.apply(give_up).expect("give up");
            let late = Entry::HandOver { migration: migration(1), epoch: Epoch::FIRST };
            assert!(matches!(guest.apply(late), Err(Refused::EpochOver { .. })));
            assert!(guest.licenses(id(1)));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_proposed_the_laws_hold(entries in prop::collection::vec(any_entry(), 0..60)) {
            let mut guest = new_guest();
            for entry in entries {
                let before = guest.clone();
                let is_hand_over = matches!(entry, Entry::HandOver { .. });
                match guest.apply(entry) {
                    Err(_) => prop_assert_eq!(&guest, &before, "a refused entry changes nothing"),
                    Ok(()) => {
                        prop_assert!(guest.epoch >= before.epoch, "epochs only rise");
                        prop_assert_eq!(guest.owner != before.owner, is_hand_over, "only a hand-over changes the owner");
                        if is_hand_over {
                            prop_assert!(guest.epoch > before.epoch);
                        }
                        if let Some(ended) = before.attempt.filter(|a| a.phase.is_over()) {
                            let same = guest.attempt.as_ref().is_some_and(|a| a.phase == ended.phase);
                            let replaced = guest.attempt.as_ref().is_some_and(|a| a.phase == Phase::Preparing);
                            prop_assert!(same || replaced, "what has ended stays ended");
                        }
                    }
                }
            }
        }
    }
}
