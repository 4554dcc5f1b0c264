//! What outlives a node's process: runners, and what was written down about them.
//!
//! ```text
//!   runner:  Incoming ─ load ─▶ Incoming, arrived ─ run ─▶ Running ⇄ Paused
//! ```
//!
//! Always true of a runner: it runs under no epoch that is not above every one that it ran under or sealed; what a
//! process that is gone has told it and it has not read is dropped.

use std::collections::{BTreeMap, BTreeSet};

use godwit_domain::agent::{Arrived, RunnerState};
use godwit_domain::ownership::Mode;
use godwit_domain::registry::GuestUid;
use godwit_domain::{Epoch, InstanceId, MigrationId, planted};

use crate::event::{Event, Final};
use crate::world::{At, Who, World, ms};

/// A runner process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) uid: GuestUid,
    pub(crate) made: Epoch,
    pub(crate) arriving: Option<MigrationId>,
    pub(crate) state: RunnerState,
    /// Every page of the guest is here.
    pub(crate) whole: bool,
    /// How far the guest in it has come. A copy that is behind another is an older self.
    pub(crate) age: u64,
    /// The highest epoch that it ran under or sealed.
    pub(crate) highest: Epoch,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) runners: BTreeMap<InstanceId, Process>,
    pub(crate) tombstones: BTreeSet<(GuestUid, InstanceId)>,
    pub(crate) withheld: BTreeSet<(GuestUid, InstanceId, Epoch)>,
}

/// What a node tells a runner. `by`: the transfer that does.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Run(Epoch, Option<MigrationId>),
    Pause(Epoch, MigrationId),
    Load(Final),
    Seal,
    Destroy,
}

impl Process {
    pub(crate) fn runs(&self) -> bool {
        matches!(self.state, RunnerState::Running(_))
    }
}

impl World {
    pub(crate) fn order(&mut self, at: At, instance: InstanceId, order: Order) {
        self.note(|world| format!("{}: tells {} {order:?}", world.machines[at].name, short(instance)));
        let us = self.random.u64(300..4000);
        let us =
            if !self.calm && self.random.u32(0..25) == 0 { us + self.random.u64(0..ms(250)) } else { us };
        let to = self.who(at);
        self.later(us, Event::Obey { to, instance, order });
    }

    /// A runner has read what it was told.
    pub(crate) fn obey(&mut self, at: At, instance: InstanceId, order: Order) {
        self.touched = true;
        match &order {
            Order::Run(epoch, _) => self.runs_under(at, instance, *epoch),
            Order::Pause(epoch, _) => self.pause(at, instance, *epoch),
            Order::Load(closed) => self.load(at, instance, closed),
            Order::Seal => {
                if let Some(process) = self.machines[at].host.runners.get_mut(&instance)
                    && let RunnerState::Running(epoch) = process.state
                {
                    process.state = RunnerState::Paused(epoch);
                }
            }
            Order::Destroy => {
                self.machines[at].host.runners.remove(&instance);
            }
        }
        self.obeyed(at, instance, order);
    }

    fn runs_under(&mut self, at: At, instance: InstanceId, epoch: Epoch) {
        let name = self.machines[at].name.clone();
        let Some(process) = self.machines[at].host.runners.get_mut(&instance) else { return };
        if epoch <= process.highest && !planted::is_on("resume-sealed") {
            return;
        }
        let was = std::mem::replace(&mut process.state, RunnerState::Running(epoch));
        process.highest = epoch.max(process.highest);
        let process = process.clone();
        match &was {
            RunnerState::Running(_) => {}
            RunnerState::Incoming { arrived } => self.law.starts(&process, instance, epoch, arrived.as_ref()),
            RunnerState::Paused(_) => self.law.resumes(&process, instance, epoch),
        }
        self.law.licensed(instance, epoch);
        let age = self.law.ages(process.uid);
        if let Some(process) = self.machines[at].host.runners.get_mut(&instance) {
            process.age = age;
        }
        self.note(|_| format!("{name}: {} runs under {epoch}, was {was:?}", short(instance)));
    }

    fn pause(&mut self, at: At, instance: InstanceId, epoch: Epoch) {
        let Some(process) = self.machines[at].host.runners.get_mut(&instance) else { return };
        if process.state == RunnerState::Running(epoch) {
            process.state = RunnerState::Paused(epoch);
            process.highest = epoch;
            let uid = process.uid;
            // It ran until now.
            process.age = self.law.ages(uid);
        }
    }

    fn load(&mut self, at: At, instance: InstanceId, closed: &Final) {
        let Some(process) = self.machines[at].host.runners.get_mut(&instance) else { return };
        if let RunnerState::Incoming { arrived } = &mut process.state {
            *arrived = Some(Arrived { migration: Some(closed.migration.clone()), sealed: closed.sealed });
            process.age = closed.age;
            process.whole = closed.mode == Mode::StopAndCopy;
        }
    }

    /// A runner's process is made for a node that may be gone by now.
    pub(crate) fn spawned(
        &mut self,
        at: At,
        boot: u128,
        who: Who,
        uid: GuestUid,
        made: Epoch,
        arriving: Option<MigrationId>,
    ) {
        if !self.machines[at].on || self.machines[at].boot != boot {
            return;
        }
        // One whose node has died may come all the same, but not behind the back of the next process.
        if !self.is(who) && self.machines[at].runs {
            return;
        }
        let fails = !self.calm && self.random.u32(0..30) == 0;
        let instance = (!fails).then(|| self.fresh_instance());
        if let Some(instance) = instance {
            let arrived = arriving.is_none().then_some(Arrived { migration: None, sealed: Epoch(0) });
            let process = Process {
                uid,
                made,
                arriving: arriving.clone(),
                whole: arrived.is_some(),
                state: RunnerState::Incoming { arrived },
                age: 0,
                highest: Epoch(0),
            };
            self.machines[at].host.runners.insert(instance, process);
            self.note(|world| {
                format!("{}: runner {} of guest {uid}", world.machines[at].name, short(instance))
            });
        }
        let us = self.random.u64(ms(1)..ms(15));
        self.later(us, Event::Started { to: who, uid, instance, made, arriving });
    }

    /// A runner dies by itself.
    pub(crate) fn runner_dies(&mut self, at: At, instance: InstanceId) {
        if let Some(process) = self.machines[at].host.runners.remove(&instance) {
            self.touched = true;
            self.cover.deaths += 1;
            self.law.dead.insert(instance);
            self.note(|world| {
                format!("{}: runner {} dies, {:?}", world.machines[at].name, short(instance), process.state)
            });
            let us = self.random.u64(ms(1)..ms(10));
            let to = self.who(at);
            self.later(us, Event::Died { to, instance });
        }
    }
}

/// An instance's number.
pub(crate) fn short(instance: InstanceId) -> String {
    let text = instance.to_string();
    format!("r{}", text.trim_start_matches('0'))
}
