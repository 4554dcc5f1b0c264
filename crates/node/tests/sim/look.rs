//! A node's look at a guest: a transfer is at it, or a step of a migration comes next, or its duties, which are real.

use godwit_domain::agent::{self, Duty, Local, Runner, RunnerState, Tombstone};
use godwit_domain::ownership::{CALL_OFFS_MAX, Entry, Mode, Ownership, Phase, Side};
use godwit_domain::registry::GuestUid;
use godwit_domain::{Epoch, InstanceId, MigrationId};
use godwit_node::actor::rules;

use crate::agent::{Here, Owed};
use crate::event::Event;
use crate::host::{Order, Process};
use crate::world::{At, World, ms};

impl World {
    pub(crate) fn look_at_all(&mut self, at: At) {
        let Some(agent) = self.machines[at].agent.as_ref() else { return };
        if agent.complete && agent.fenced.is_some() {
            return self.obey_fence(at);
        }
        let here = agent.here.values().map(|here| here.uid);
        let all: std::collections::BTreeSet<GuestUid> = agent.views.keys().copied().chain(here).collect();
        all.into_iter().for_each(|uid| self.look(at, uid));
    }

    pub(crate) fn look(&mut self, at: At, uid: GuestUid) {
        let Some(agent) = self.machines[at].agent.as_ref() else { return };
        if !agent.complete {
            return;
        }
        if agent.fenced.is_some() {
            return self.obey_fence(at);
        }
        let Some(view) = agent.views.get(&uid).map(|view| view.ownership.clone()) else { return };
        let has_transfer = agent.transfers.values().any(|transfer| transfer.uid == uid);
        let is_busy = agent.starting.contains(&uid)
            || agent.here.values().any(|here| here.uid == uid && (here.busy || here.dead));
        if has_transfer || is_busy || self.next_step(at, uid, &view) {
            return;
        }
        let local = self.local_of(at, uid, &view);
        for duty in agent::duties(&self.machines[at].name, &view, &local) {
            self.cover.duty(&duty);
            self.act(at, uid, &view, duty);
        }
    }

    /// What is here of a guest, as the tables know it.
    fn local_of(&self, at: At, uid: GuestUid, view: &Ownership) -> Local {
        let machine = &self.machines[at];
        let Some(agent) = machine.agent.as_ref() else { return Local::default() };
        let runners = agent.here.iter().filter(|(_, here)| here.uid == uid).filter_map(|(instance, here)| {
            let process = machine.host.runners.get(instance)?;
            let has_run = !matches!(here.state, RunnerState::Incoming { .. });
            let whole = !view.may_lack_pages(*instance) && (process.arriving.is_none() || has_run);
            Some(Runner { instance: *instance, state: here.state.clone(), made: process.made, whole })
        });
        let tombstones = machine
            .host
            .tombstones
            .iter()
            .filter(|(of, _)| *of == uid)
            .map(|(_, instance)| Tombstone { instance: *instance, reason: "given up".to_owned() });
        let withheld = machine.host.withheld.iter().filter(|(of, ..)| *of == uid);
        Local {
            runners: runners.collect(),
            tombstones: tombstones.collect(),
            withheld: withheld.map(|(_, instance, sealed)| (*instance, *sealed)).collect(),
            transfers: Vec::new(),
        }
    }

    fn act(&mut self, at: At, uid: GuestUid, view: &Ownership, duty: Duty) {
        match duty {
            Duty::Make => self.spawn(at, uid, view.epoch, None),
            Duty::Run(instance, epoch) => {
                self.is_busy(at, instance, true);
                self.order(at, instance, Order::Run(epoch, None));
            }
            Duty::Seal(instance) => {
                self.is_busy(at, instance, false);
                self.order(at, instance, Order::Seal);
            }
            Duty::Destroy(instance) => {
                self.is_busy(at, instance, false);
                self.order(at, instance, Order::Destroy);
            }
            Duty::Propose(entry) => self.owe(at, Owed::Guest(uid, entry)),
        }
    }

    pub(crate) fn here(&mut self, at: At, instance: InstanceId) -> Option<&mut Here> {
        self.agent(at)?.here.get_mut(&instance)
    }

    fn is_busy(&mut self, at: At, instance: InstanceId, runs: bool) {
        if let Some(here) = self.here(at, instance) {
            here.busy = true;
            here.run_sent |= runs;
        }
    }

    fn spawn(&mut self, at: At, uid: GuestUid, made: Epoch, arriving: Option<MigrationId>) {
        let (who, boot) = (self.who(at), self.machines[at].boot);
        if let Some(agent) = self.agent(at) {
            agent.starting.insert(uid);
        }
        let us = self.random.u64(ms(2)..ms(30));
        self.later(us, Event::Spawned { at, boot, who, uid, made, arriving });
    }

    pub(crate) fn started(
        &mut self,
        at: At,
        uid: GuestUid,
        instance: Option<InstanceId>,
        made: Epoch,
        arriving: Option<MigrationId>,
    ) {
        let state = instance.and_then(|instance| self.machines[at].host.runners.get(&instance));
        let state = state.map(|process| process.state.clone());
        let Some(agent) = self.agent(at) else { return };
        agent.starting.remove(&uid);
        match (instance, state, arriving) {
            (Some(instance), Some(state), _) => {
                let here = Here { uid, state, busy: false, run_sent: false, dead: false };
                agent.here.insert(instance, here);
            }
            (_, _, Some(migration)) => {
                let entry = Entry::Decline { migration, epoch: made };
                self.owe(at, Owed::Guest(uid, entry));
            }
            (_, _, None) => {}
        }
        self.look(at, uid);
    }

    /// A runner has done what it was told, or was gone.
    pub(crate) fn obeyed(&mut self, at: At, instance: InstanceId, order: Order) {
        let state = self.machines[at].host.runners.get(&instance).map(|process| process.state.clone());
        let Some(here) = self.here(at, instance) else { return };
        let uid = here.uid;
        here.busy = false;
        match &state {
            Some(state) => here.state = state.clone(),
            None if matches!(order, Order::Destroy) => {
                if let Some(agent) = self.agent(at) {
                    agent.here.remove(&instance);
                }
                return self.look(at, uid);
            }
            // It is dead, which its process's end tells.
            None => here.dead = true,
        }
        if state.is_none() {
            return self.mourn(at, instance);
        }
        match order {
            Order::Run(_, Some(migration)) => self.transfer_runs(at, &migration),
            Order::Pause(epoch, migration) => self.transfer_paused(at, &migration, epoch),
            Order::Load(closed) => self.transfer_loaded(at, &closed),
            Order::Run(_, None) | Order::Seal | Order::Destroy => {}
        }
        self.look(at, uid);
    }

    pub(crate) fn died(&mut self, at: At, instance: InstanceId) {
        let Some(here) = self.here(at, instance) else { return };
        here.dead = true;
        if !here.busy {
            self.mourn(at, instance);
        }
    }

    /// A runner is no more, and not by this node's hand. If it can not have run, that is written down.
    fn mourn(&mut self, at: At, instance: InstanceId) {
        let Some(agent) = self.machines[at].agent.as_mut() else { return };
        let Some(here) = agent.here.remove(&instance) else { return };
        let owns = agent.views.get(&here.uid).is_some_and(|view| view.ownership.licenses(instance));
        if matches!(here.state, RunnerState::Incoming { .. }) && !here.run_sent && !owns {
            self.machines[at].host.tombstones.insert((here.uid, instance));
        }
        self.transfer_bereft(at, instance);
        self.look(at, here.uid);
    }

    /// Tombstone, then kill, then, by its duty, the statement. Only of a runner that stands `Incoming`.
    pub(crate) fn give_up(&mut self, at: At, instance: InstanceId) {
        let Some(here) = self.here(at, instance) else { return };
        if !matches!(here.state, RunnerState::Incoming { .. }) || here.run_sent {
            return;
        }
        let uid = here.uid;
        here.busy = true;
        if !godwit_domain::planted::is_on("tombstone-late") {
            self.machines[at].host.tombstones.insert((uid, instance));
        }
        self.order(at, instance, Order::Destroy);
    }

    /// A fenced node stops what the fence names and says so.
    pub(crate) fn obey_fence(&mut self, at: At) {
        let Some(agent) = self.machines[at].agent.as_ref() else { return };
        let named = agent.fenced.clone().unwrap_or_default();
        let mut still = true;
        for instance in named {
            let Some(here) = self.machines[at].agent.as_ref().and_then(|agent| agent.here.get(&instance))
            else {
                continue;
            };
            let runs = matches!(here.state, RunnerState::Running(_));
            still &= !runs && !here.busy;
            if runs && !here.busy {
                self.is_busy(at, instance, false);
                self.order(at, instance, Order::Seal);
            }
        }
        let Some(agent) = self.agent(at) else { return };
        if still && !std::mem::replace(&mut agent.fence_answered, true) {
            self.owe(at, Owed::FenceSeen);
        }
    }

    // ---- the steps of a migration --------------------------------------------------------------------------

    /// `true`: there is nothing else to do for now.
    fn next_step(&mut self, at: At, uid: GuestUid, view: &Ownership) -> bool {
        let Some(attempt) = &view.attempt else { return false };
        let migration = &attempt.migration;
        let me = self.machines[at].name.clone();
        let Some(agent) = self.machines[at].agent.as_ref() else { return false };
        let is_here = |instance: &InstanceId| agent.here.contains_key(instance);
        match &attempt.phase {
            Phase::Preparing { target, .. } if *target == me => self.prepare(at, uid, view, migration),
            Phase::Copying { source, target } => {
                if is_here(&source.instance) {
                    return self.leave(at, uid, view);
                }
                is_here(&target.instance) && self.forget_arrival(at, target.instance)
            }
            Phase::HandedOver { mode: Mode::StopAndCopy, target, .. } => {
                is_here(&target.instance) && self.forget_arrival(at, target.instance)
            }
            Phase::HandedOver { mode: Mode::PostCopy, source, target, .. }
            | Phase::PostCopy { source, target, .. } => {
                if is_here(&source.instance) {
                    return self.serves(at, uid, view, source.instance);
                }
                is_here(&target.instance) && self.goes_on(at, uid, view, target.instance)
            }
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::Succeeded
            | Phase::Failed { .. }
            | Phase::Cancelled { .. } => false,
        }
    }

    fn prepare(&mut self, at: At, uid: GuestUid, view: &Ownership, migration: &MigrationId) -> bool {
        let epoch = view.epoch;
        let Some(agent) = self.machines[at].agent.as_ref() else { return false };
        let of_guest = |here: &&Here| here.uid == uid;
        let runners = &self.machines[at].host.runners;
        let fits = |process: &Process| process.made == epoch && process.arriving.as_ref() == Some(migration);
        let made = agent
            .here
            .iter()
            .find(|(instance, here)| here.uid == uid && runners.get(instance).is_some_and(fits));
        if let Some((instance, here)) = made {
            let waits = matches!(here.state, RunnerState::Incoming { arrived: None });
            let instance = *instance;
            if waits {
                self.arrive(at, uid, view, migration, instance);
            }
            return waits;
        }
        if agent.here.values().any(|here| of_guest(&here))
            && !godwit_domain::planted::is_on("licence-names-node")
        {
            // An older one is in the way. It goes by its own duty.
            return false;
        }
        if !self.calm && self.random.u32(0..25) == 0 {
            let entry = Entry::Decline { migration: migration.clone(), epoch };
            self.owe(at, Owed::Guest(uid, entry));
            return true;
        }
        self.spawn(at, uid, epoch, Some(migration.clone()));
        true
    }

    /// An instance that waits for a guest, and no session of this process that would know what has come.
    fn forget_arrival(&mut self, at: At, instance: InstanceId) -> bool {
        let waits =
            self.here(at, instance).is_some_and(|here| matches!(here.state, RunnerState::Incoming { .. }));
        if waits {
            self.give_up(at, instance);
        }
        waits
    }

    fn goes_on(&mut self, at: At, uid: GuestUid, view: &Ownership, instance: InstanceId) -> bool {
        let Some(here) = self.here(at, instance) else { return false };
        match here.state {
            RunnerState::Incoming { .. } => self.forget_arrival(at, instance),
            RunnerState::Running(epoch) if epoch == view.epoch => {
                self.resume_arrival(at, uid, view, instance)
            }
            RunnerState::Running(_) | RunnerState::Paused(_) => false,
        }
    }

    fn serves(&mut self, at: At, uid: GuestUid, view: &Ownership, instance: InstanceId) -> bool {
        let Some(here) = self.here(at, instance) else { return false };
        if here.state != RunnerState::Paused(view.spoken_epoch()) {
            return false;
        }
        let withheld = self.machines[at].host.withheld.iter().filter(|(of, ..)| *of == uid);
        if !rules::may_serve(view, instance, withheld.map(|(_, copy, sealed)| (*copy, *sealed))) {
            return false;
        }
        self.serve(at, uid, view, instance);
        true
    }

    fn leave(&mut self, at: At, uid: GuestUid, view: &Ownership) -> bool {
        let Some(attempt) = &view.attempt else { return false };
        let Phase::Copying { source, .. } = &attempt.phase else { return false };
        let instance = source.instance;
        let Some(here) = self.here(at, instance) else { return false };
        match here.state {
            RunnerState::Running(epoch) | RunnerState::Paused(epoch) if epoch < view.epoch => false,
            RunnerState::Running(_) => {
                self.set_out(at, uid, view, instance);
                true
            }
            // Sealed by a process that is gone: the pause is taken back.
            RunnerState::Paused(_) => {
                let (migration, epoch) = (attempt.migration.clone(), view.epoch);
                let entry = if attempt.call_offs < CALL_OFFS_MAX {
                    Entry::CallOff { migration, epoch }
                } else {
                    Entry::End { migration, side: Side::Source, reason: "called off 8 times".to_owned() }
                };
                self.owe(at, Owed::Guest(uid, entry));
                true
            }
            RunnerState::Incoming { .. } => false,
        }
    }
}
