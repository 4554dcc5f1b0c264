//! Control, operator and bad luck: who is admitted, cancelled, deleted, vouched for, recovered; what dies and is lost.

use std::collections::BTreeSet;

use godwit_domain::agent::RunnerState;
use godwit_domain::ownership::{Entry, Life, Ownership, Phase, Side};
use godwit_domain::registry::{BootId, Command, Wish};
use godwit_domain::{InstanceId, NodeName};

use super::{GUEST, World};
use crate::host::Outbound;

impl World {
    pub(super) fn control_acts(&mut self) {
        let reachable: BTreeSet<NodeName> = self
            .names
            .iter()
            .zip(&self.hosts)
            .filter(|(_, host)| host.up && host.ends.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        if let Some((guest, migration, target)) = self.registry.next_admission(&reachable) {
            self.commit(Command::Admit { guest, migration, target });
        }
        // A fenced node that is back has stopped what the fence names, by its duties.
        for at in 0..3 {
            let node = self.registry.nodes.get(&self.names[at]);
            let Some(named) = node.and_then(|node| node.fenced.clone()) else { continue };
            let host = &self.hosts[at];
            // In a group that was founded anew the fence may be old, and name nothing of what runs here now.
            let stands_still = |instance: &InstanceId| self.disasters > 0 && !named.contains(instance);
            let all_stand_still = host.running().all(|process| stands_still(&process.runner.instance));
            let clean = host.up && host.ends.is_none() && all_stand_still;
            if clean && self.hosts[at].view + 1 == self.history.len() {
                self.commit(Command::FenceSeen { node: self.names[at].clone() });
            }
        }
    }

    pub(super) fn operator_acts(&mut self) {
        self.is_mute = false;
        let present = self.present().clone();
        if let Life::Lost { last, kept } = &present.life {
            let copies = [Some(last), kept.as_ref()];
            let there: Vec<InstanceId> = copies
                .into_iter()
                .flatten()
                .map(|licence| licence.instance)
                .filter(|instance| self.hosts.iter_mut().any(|host| host.has_paused(*instance)))
                .collect();
            if let Some(instance) = self.random.choice(there) {
                self.propose(Entry::Recover { instance });
            }
            return;
        }
        self.end_what_can_not_be_completed(&present);
        let over = present.attempt.as_ref().is_none_or(|attempt| attempt.phase.is_over());
        if over && !self.calm {
            self.migrations += 1;
            let migration = format!("m{}", self.migrations).parse().expect("a name");
            self.commit(Command::Migrate { guest: GUEST, migration, wish: Wish::default() });
        } else if let (Some(attempt), 0) = (&present.attempt, self.random.u32(0..16)) {
            let migration = attempt.migration.clone();
            self.propose(Entry::End { migration, side: Side::Operator, reason: "cancelled".into() });
        } else if !self.calm && self.random.u32(0..600) == 0 {
            self.propose(Entry::Delete);
        }
    }

    /// In post-copy, a guest whose missing pages are gone with their host waits for ever: an operator ends it.
    pub(super) fn end_what_can_not_be_completed(&mut self, present: &Ownership) {
        let phase = present.attempt.as_ref().map(|attempt| &attempt.phase);
        if let Some(
            Phase::PostCopy { target, source_gone: true, .. }
            | Phase::HandedOver { target, source_gone: true, .. },
        ) = phase
        {
            let instance = target.instance;
            for host in &mut self.hosts {
                host.processes.retain(|process| {
                    let runs = matches!(process.runner.state, RunnerState::Running(_));
                    process.runner.instance != instance || process.runner.whole || !runs
                });
            }
        }
    }

    pub(super) fn fault(&mut self, at: usize) {
        let inside = self.present().attempt.as_ref().is_some_and(|attempt| {
            let sealed =
                self.hosts.iter().any(|host| !matches!(host.outbound, Outbound::None | Outbound::Copying(_)));
            matches!(attempt.phase, Phase::HandedOver { .. } | Phase::PostCopy { .. }) || sealed
        });
        let happened = match self.random.u32(0..20) {
            0..11 if self.hosts[at].up => {
                self.hosts[at].restart_node();
                self.note(|| format!("{at}: node process restarts"));
                true
            }
            11..15 => {
                // A proposal or a Final is lost.
                if !self.proposals.is_empty() {
                    let pick = self.random.usize(0..self.proposals.len());
                    self.proposals.swap_remove(pick);
                }
                if !self.finals.is_empty() {
                    let pick = self.random.usize(0..self.finals.len());
                    self.finals.swap_remove(pick);
                }
                true
            }
            15 if self.hosts[at].up && self.random.u32(0..6) == 0 && !self.hosts[at].processes.is_empty() => {
                let pick = self.random.usize(0..self.hosts[at].processes.len());
                let dead = self.hosts[at].processes.swap_remove(pick).runner.instance;
                self.deaths += 1;
                self.note(|| format!("{at}: runner {dead} dies"));
                true
            }
            16 if self.hosts[at].up && self.random.u32(0..6) == 0 => {
                self.hosts[at].die();
                self.deaths += 1;
                self.note(|| format!("{at}: power is cut"));
                true
            }
            17..20 if !self.hosts[at].up => {
                self.back_or_fenced(at);
                true
            }
            _ => false,
        };
        if happened {
            self.event();
            self.faults_inside += usize::from(inside);
        }
    }

    /// A dead host: an operator vouches for it, or it boots again, or both, and the vouch may come late.
    pub(super) fn back_or_fenced(&mut self, at: usize) {
        if self.random.bool() {
            let boot = BootId(self.hosts[at].boot);
            let node = self.names[at].clone();
            let instances = self.registry.instances_on(&node);
            self.send(Command::Fence { node, boot, instances });
        } else {
            self.hosts[at].up = true;
            self.hosts[at].boot += 1;
            self.follow(at);
            self.join(at);
            self.note(|| format!("{at}: boots again"));
        }
    }
}
