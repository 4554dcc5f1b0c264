//! A migration's two sides, as their node processes drive them: pausing, closing, calling off, testifying; preparing,
//! taking what arrives, giving up.

use godwit_domain::agent::{Arrived, RunnerState};
use godwit_domain::ownership::{Entry, Life, Mode, Ownership, Phase, Side};
use godwit_domain::{Epoch, InstanceId, MigrationId, planted};

use super::{Final, World};
use crate::host::{Command as Order, Outbound, Process};

impl World {
    pub(super) fn source_acts(&mut self, at: usize) {
        if !self.hosts[at].up {
            return;
        }
        let view = self.view(at);
        if let Life::Unsure(_) = view.life {
            return;
        }
        let Some(attempt) = &view.attempt else { return };
        let migration = attempt.migration.clone();
        let Phase::Copying { source, .. } = &attempt.phase else { return self.testify(at, &view) };
        if source.node != self.names[at] {
            return;
        }
        let (instance, epoch) = (source.instance, view.epoch);
        let Some(process) = self.hosts[at].process(instance) else { return };
        let state = process.runner.state.clone();
        match self.hosts[at].outbound.clone() {
            Outbound::None if state == RunnerState::Running(epoch) => {
                self.hosts[at].outbound = Outbound::Copying(migration);
            }
            Outbound::Copying(_) if state == RunnerState::Running(epoch) => {
                self.hosts[at].mode = self.random.choice([Mode::StopAndCopy, Mode::PostCopy]).expect("one");
                self.hosts[at].outbound = Outbound::Pausing(migration, epoch);
                self.order(at, Order::Pause(instance, epoch));
            }
            // After a restart the guest may stand sealed with nobody who remembers: it is closed or called off.
            Outbound::None | Outbound::Sealed { .. } if state == RunnerState::Paused(epoch) => {
                self.close_or_give_up(at, &view, instance, epoch);
            }
            Outbound::None | Outbound::Copying(_) | Outbound::Pausing(..) | Outbound::Sealed { .. } => {}
        }
    }

    pub(super) fn close_or_give_up(
        &mut self,
        at: usize,
        view: &Ownership,
        instance: InstanceId,
        epoch: Epoch,
    ) {
        let Some(attempt) = &view.attempt else { return };
        let migration = attempt.migration.clone();
        let Phase::Copying { target, .. } = &attempt.phase else { return };
        let target = target.instance;
        let mode = self.hosts[at].mode;
        match self.random.u32(0..10) {
            0..4 => {
                let withheld = self.hosts[at].withheld.contains(&(instance, epoch));
                if !withheld {
                    let age = self.hosts[at].process(instance).map_or(0, |process| process.age);
                    self.finals.push(Final { migration, sealed: epoch, target, age, mode });
                    if let Outbound::Sealed { final_left, .. } = &mut self.hosts[at].outbound {
                        *final_left = true;
                    }
                }
            }
            4..7 => self.propose(Entry::HandOver { migration, epoch, mode }),
            7 => self.propose(Entry::CallOff { migration, epoch }),
            8 if self.random.u32(0..3) == 0 => {
                self.propose(Entry::End { migration, side: Side::Source, reason: "the link is lost".into() });
            }
            _ => {}
        }
    }

    /// The process that paused the guest, and let no `Final` out, may say so; then it never lets it out.
    pub(super) fn testify(&mut self, at: usize, view: &Ownership) {
        let Some(attempt) = &view.attempt else { return };
        let Phase::HandedOver { source, target, .. } = &attempt.phase else { return };
        let (source, target) = (source.clone(), target.instance);
        let Outbound::Sealed { migration, epoch, final_left } = self.hosts[at].outbound.clone() else {
            return self.resend_final(at, view);
        };
        if source.node != self.names[at] || migration != attempt.migration || epoch.next() != view.epoch {
            return;
        }
        if !final_left && self.random.u32(0..3) == 0 {
            self.hosts[at].withheld.insert((source.instance, epoch));
        } else if !self.hosts[at].withheld.contains(&(source.instance, epoch)) {
            // Without its runner there is nothing to close with.
            let Some(age) = self.hosts[at].process(source.instance).map(|process| process.age) else {
                return;
            };
            let mode = self.hosts[at].mode;
            self.finals.push(Final { migration, sealed: epoch, target, age, mode });
            self.hosts[at].outbound =
                Outbound::Sealed { migration: attempt.migration.clone(), epoch, final_left: true };
        }
    }

    /// A restarted source of a handed-over guest sends its `Final` again: always the same guest.
    pub(super) fn resend_final(&mut self, at: usize, view: &Ownership) {
        let Some(attempt) = &view.attempt else { return };
        let Phase::HandedOver { source, target, mode, .. } = &attempt.phase else { return };
        let sealed = Epoch(view.epoch.0 - 1);
        let (migration, target, mode) = (attempt.migration.clone(), target.instance, *mode);
        if source.node != self.names[at] || self.hosts[at].withheld.contains(&(source.instance, sealed)) {
            return;
        }
        let Some(process) = self.hosts[at].process(source.instance) else { return };
        if process.runner.state == RunnerState::Paused(sealed) {
            let age = process.age;
            self.finals.push(Final { migration, sealed, target, age, mode });
        }
    }

    pub(super) fn target_acts(&mut self, at: usize) {
        if !self.hosts[at].up {
            return;
        }
        let view = self.view(at);
        if let Life::Unsure(_) = view.life {
            return;
        }
        let Some(attempt) = &view.attempt else { return };
        let migration = attempt.migration.clone();
        match &attempt.phase {
            Phase::Preparing { target, .. } if *target == self.names[at] => {
                self.prepare(at, migration, view.epoch);
            }
            Phase::Copying { target, .. } | Phase::HandedOver { target, .. }
                if target.node == self.names[at] =>
            {
                let instance = target.instance;
                let patience = if self.calm { 12 } else { 30 };
                if self.random.u32(0..patience) == 0 {
                    self.give_up(at, instance);
                }
            }
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::Copying { .. }
            | Phase::HandedOver { .. }
            | Phase::PostCopy { .. }
            | Phase::Succeeded
            | Phase::Failed { .. }
            | Phase::Cancelled { .. } => {}
        }
    }

    pub(super) fn prepare(&mut self, at: usize, migration: MigrationId, epoch: Epoch) {
        if self.random.u32(0..12) == 0 {
            return self.propose(Entry::Decline { migration, epoch });
        }
        // Said again for the runner that is here for just this; another must be gone before a new one is made.
        let waiting = self.hosts[at].processes.iter().find(|process| {
            process.runner.made == epoch && matches!(process.runner.state, RunnerState::Incoming { .. })
        });
        let instance = match waiting.map(|process| process.runner.instance) {
            Some(instance) => instance,
            None if self.hosts[at].processes.is_empty() || planted::is_on("licence-names-node") => {
                let instance = self.fresh_instance();
                let process = Process::incoming(instance, epoch, None, false);
                let arriving = Some(migration.clone());
                self.hosts[at].processes.push(Process { arriving, ..process });
                instance
            }
            None => return,
        };
        self.propose(Entry::Accept { migration, epoch, instance });
    }

    /// Tombstone, then kill, then (by its duty) the statement.
    pub(super) fn give_up(&mut self, at: usize, instance: InstanceId) {
        let host = &mut self.hosts[at];
        // This process may have sent `run`, which is still in the runner's socket: dropped with the connection.
        let never_ran = host
            .process(instance)
            .is_some_and(|process| matches!(process.runner.state, RunnerState::Incoming { .. }));
        if never_ran {
            host.tombstones.insert(instance);
            if !planted::is_on("tombstone-late") {
                host.commands.retain(|order| !matches!(order, Order::Run(of, _) if *of == instance));
                host.processes.retain(|process| process.runner.instance != instance);
            }
            self.event();
            self.note(|| format!("{at}: gives up {instance}"));
        }
    }

    pub(super) fn final_arrives(&mut self) {
        if self.finals.is_empty() {
            return;
        }
        let pick = self.random.usize(0..self.finals.len());
        let keep = self.random.u32(0..4) == 0;
        let last = if keep { self.finals[pick].clone() } else { self.finals.swap_remove(pick) };
        self.event();
        for host in self.hosts.iter_mut().filter(|host| host.up) {
            let Some(process) = host.process(last.target) else { continue };
            if let RunnerState::Incoming { arrived } = &mut process.runner.state {
                let newer = arrived.as_ref().is_none_or(|known| last.sealed >= known.sealed);
                if newer {
                    *arrived = Some(Arrived { migration: Some(last.migration.clone()), sealed: last.sealed });
                    process.age = last.age;
                    process.runner.whole = last.mode == Mode::StopAndCopy;
                }
            }
        }
    }

    /// In post-copy, the rest of the pages, from a source that still has them.
    pub(super) fn pages_arrive(&mut self, at: usize) {
        let present = self.present().clone();
        let Some(attempt) = &present.attempt else { return };
        let (Phase::PostCopy { source, target, .. } | Phase::HandedOver { source, target, .. }) =
            &attempt.phase
        else {
            return;
        };
        let Some(source_at) = self.names.iter().position(|name| *name == source.node) else { return };
        let serves = self.hosts[source_at].process(source.instance).is_some();
        if self.names[at] == target.node
            && serves
            && self.hosts[source_at].up
            && let Some(process) = self.hosts[at].process(target.instance)
            && matches!(process.runner.state, RunnerState::Running(_))
            && !process.runner.whole
        {
            process.runner.whole = true;
            self.event();
        }
    }
}
