//! The world: three hosts, one guest, a log that everyone learns late, proposals and `Final`s that are lost, delayed,
//! repeated and reordered, node processes that restart with the oldest view, runners and hosts that die, an operator
//! who cancels, deletes, vouches and recovers.

use std::collections::BTreeSet;

use godwit_domain::agent::{Arrived, Duty, RunnerState, duties};
use godwit_domain::ownership::{Entry, Life, Mode, Ownership, Permits, Phase, Side};
use godwit_domain::registry::{BootId, Command, GuestUid, Node, Registry, Stamped};
use godwit_domain::{Epoch, InstanceId, MigrationId, NodeName, planted};

use crate::host::{Command as Order, Host, Outbound, Process};

const GUEST: GuestUid = GuestUid(1);
/// Steps in which everything must have ended once nothing goes wrong any more.
const SETTLE_STEPS_MAX: usize = 6000;

/// The closing frame of a switchover, under way.
#[derive(Debug, Clone)]
struct Final {
    migration: MigrationId,
    sealed: Epoch,
    target: InstanceId,
    age: u64,
    mode: Mode,
}

pub(crate) struct World {
    random: fastrand::Rng,
    is_replay: bool,
    calm: bool,
    registry: Registry,
    /// What was agreed about the guest after each entry: what a node sees is one of these.
    history: Vec<Ownership>,
    names: Vec<NodeName>,
    hosts: Vec<Host>,
    /// Under way to the log, with the event before which each does not arrive.
    proposals: Vec<(usize, Command)>,
    finals: Vec<Final>,
    instances: u64,
    migrations: u64,
    /// How far the guest has come anywhere.
    age: u64,
    deaths: usize,
    pub(crate) events: usize,
    pub(crate) hand_overs: usize,
    pub(crate) faults_inside: usize,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let names: Vec<NodeName> = ["a", "b", "c"].map(|name| name.parse().expect("a name")).into();
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            is_replay: std::env::var_os("GODWIT_SEED").is_some(),
            calm: false,
            registry: Registry::default(),
            history: vec![Ownership::new(names[0].clone())],
            hosts: names.iter().map(|_| Host::new()).collect(),
            names,
            proposals: Vec::new(),
            finals: Vec::new(),
            instances: 0,
            migrations: 0,
            age: 0,
            deaths: 0,
            events: 0,
            hand_overs: 0,
            faults_inside: 0,
        };
        for at in 0..3 {
            world.join(at);
        }
        let name = "vm".parse().expect("a name");
        let node = world.names[0].clone();
        world.commit(Command::CreateGuest { uid: GUEST, name, node, memory_bytes: 1 });
        world
    }

    pub(crate) fn steps_planned(&mut self) -> usize {
        self.random.usize(2500..4500)
    }

    fn note(&self, event: impl FnOnce() -> String) {
        if self.is_replay {
            println!("{:>5}  {}", self.events, event());
        }
    }

    /// One random thing happens.
    pub(crate) fn step(&mut self) {
        let at = self.random.usize(0..3);
        match self.random.u32(0..100) {
            0..22 => self.wake(at),
            22..38 => self.log_takes_a_proposal(),
            38..54 => self.learn(at),
            54..66 => self.runner_obeys(at),
            66..70 => self.guest_runs(),
            70..78 => self.source_acts(at),
            78..84 => self.target_acts(at),
            84..90 => self.final_arrives(),
            90..93 => self.control_acts(),
            93..95 => self.operator_acts(),
            _ if self.calm => self.pages_arrive(at),
            95..97 => self.pages_arrive(at),
            _ => self.fault(at),
        }
    }

    fn event(&mut self) {
        self.events += 1;
    }

    // ---- the log -------------------------------------------------------------------------------------------

    fn commit(&mut self, command: Command) {
        self.event();
        let before = self.registry.clone();
        let text = if self.is_replay { format!("{command:?}") } else { String::new() };
        match self.registry.apply(Stamped { time_ms: self.events as u64, command }) {
            Ok(_) => self.note(|| format!("log: {text}")),
            Err(refusal) => {
                self.note(|| format!("log: refused, {refusal}: {text}"));
                let timeless = Registry { time_ms: before.time_ms, ..self.registry.clone() };
                assert!(timeless == before, "a refused command changes nothing");
            }
        }
        if let Some(guest) = self.registry.guests.get(&GUEST)
            && self.history.last() != Some(&guest.ownership)
        {
            let handed = |o: &Ownership| {
                o.attempt.as_ref().is_some_and(|a| matches!(a.phase, Phase::HandedOver { .. }))
            };
            let was = self.history.last().is_some_and(handed);
            self.hand_overs += usize::from(!was && handed(&guest.ownership));
            self.history.push(guest.ownership.clone());
        }
    }

    fn log_takes_a_proposal(&mut self) {
        let may_come =
            |(_, (not_before, _)): &(usize, &(usize, Command))| self.calm || *not_before <= self.events;
        let coming: Vec<usize> =
            self.proposals.iter().enumerate().filter(may_come).map(|(at, _)| at).collect();
        let Some(pick) = self.random.choice(coming) else { return };
        // Now and then one stays under way: it arrives again, however late.
        let repeat = !self.calm && self.random.u32(0..4) == 0;
        let (_, command) =
            if repeat { self.proposals[pick].clone() } else { self.proposals.swap_remove(pick) };
        self.commit(command);
    }

    fn propose(&mut self, entry: Entry) {
        let command = Command::Guest { guest: GUEST, entry };
        // Repeats add nothing: what is under way may arrive any number of times.
        if !self.proposals.iter().any(|(_, known)| *known == command) {
            self.send(command);
        }
    }

    /// On its way to the log. Some take long.
    fn send(&mut self, command: Command) {
        let held_up = if self.random.u32(0..4) == 0 { self.random.usize(0..60) } else { 0 };
        self.proposals.push((self.events + held_up, command));
    }

    fn present(&self) -> &Ownership {
        self.history.last().expect("the guest was created")
    }

    fn view(&self, at: usize) -> Ownership {
        self.history[self.hosts[at].view.min(self.history.len() - 1)].clone()
    }

    fn learn(&mut self, at: usize) {
        let newest = self.history.len() - 1;
        let host = &mut self.hosts[at];
        if host.up && host.view < newest {
            host.view = if self.random.bool() { host.view + 1 } else { newest };
            self.event();
        }
    }

    // ---- nodes ---------------------------------------------------------------------------------------------

    fn join(&mut self, at: usize) {
        let address = core::net::SocketAddr::from(([127, 0, 0, 1], 7400));
        let boot = BootId(self.hosts[at].boot);
        let node = Node { control: address, migration: address, boot, memory_bytes: 10, fenced: None };
        self.commit(Command::Join { name: self.names[at].clone(), node });
    }

    /// The agent looks at what it has seen and what is here, and does what it owes.
    fn wake(&mut self, at: usize) {
        if !self.hosts[at].up {
            return;
        }
        let (view, local) = (self.view(at), self.hosts[at].local());
        for duty in duties(&self.names[at], &view, &local) {
            match duty {
                Duty::Make => {
                    let instance = self.fresh_instance();
                    let arrived = Some(Arrived { migration: None, sealed: Epoch(0) });
                    self.hosts[at].processes.push(Process::incoming(instance, Epoch(0), arrived, true));
                    self.note(|| format!("{at}: makes {instance}"));
                }
                Duty::Run(instance, epoch) => self.order(at, Order::Run(instance, epoch)),
                Duty::Seal(instance) => self.order(at, Order::Seal(instance)),
                Duty::Destroy(instance) => self.order(at, Order::Destroy(instance)),
                Duty::Propose(entry) => self.propose(entry),
            }
        }
        self.outbound_follows_the_view(at, &view);
    }

    fn order(&mut self, at: usize, order: Order) {
        self.note(|| format!("{at}: orders {order:?}"));
        self.hosts[at].commands.push_back(order);
        self.event();
    }

    fn fresh_instance(&mut self) -> InstanceId {
        self.instances += 1;
        InstanceId::from_random(u128::from(self.instances).to_be_bytes())
    }

    /// A session ends when the log has spoken.
    fn outbound_follows_the_view(&mut self, at: usize, view: &Ownership) {
        let over = |migration: &MigrationId| view.phase_of(migration).is_none_or(Phase::is_over);
        let host = &mut self.hosts[at];
        let ended = match &host.outbound {
            Outbound::None => false,
            Outbound::Copying(migration) => over(migration),
            Outbound::Pausing(migration, epoch) | Outbound::Sealed { migration, epoch, .. } => {
                over(migration) || view.epoch > epoch.next()
            }
        };
        if ended {
            host.outbound = Outbound::None;
        }
        // Called off: the same migration goes on under the next epoch.
        if let Outbound::Sealed { migration, epoch, .. } = &host.outbound
            && view.epoch > *epoch
            && matches!(view.phase_of(migration), Some(Phase::Copying { .. }))
        {
            host.outbound = Outbound::Copying(migration.clone());
        }
    }

    fn runner_obeys(&mut self, at: usize) {
        let Some(order) = self.hosts[at].commands.pop_front() else { return };
        self.event();
        self.note(|| format!("{at}: runner obeys {order:?}"));
        match order {
            Order::Run(instance, epoch) => self.run(at, instance, epoch),
            Order::Pause(instance, epoch) => {
                let Some(process) = self.hosts[at].process(instance) else { return };
                if process.runner.state == RunnerState::Running(epoch) {
                    process.runner.state = RunnerState::Paused(epoch);
                    process.highest = epoch;
                    if let Outbound::Pausing(migration, pausing) = self.hosts[at].outbound.clone()
                        && pausing == epoch
                    {
                        self.hosts[at].outbound = Outbound::Sealed { migration, epoch, final_left: false };
                    }
                }
            }
            Order::Seal(instance) => {
                let Some(process) = self.hosts[at].process(instance) else { return };
                if let RunnerState::Running(epoch) = process.runner.state {
                    process.runner.state = RunnerState::Paused(epoch);
                }
            }
            Order::Destroy(instance) => {
                self.hosts[at].processes.retain(|process| process.runner.instance != instance);
            }
        }
    }

    fn run(&mut self, at: usize, instance: InstanceId, epoch: Epoch) {
        let newest = self.age;
        let Some(process) = self.hosts[at].process(instance) else { return };
        match process.runner.state {
            RunnerState::Running(_) if epoch > process.highest => {
                process.runner.state = RunnerState::Running(epoch);
                process.highest = epoch;
            }
            RunnerState::Running(_) => {}
            RunnerState::Incoming { .. } | RunnerState::Paused(_) => {
                if !process.may_run_under(epoch) {
                    return;
                }
                let rolled_back = self.present().rollbacks > 0;
                let process = self.hosts[at].process(instance).expect("it is there");
                assert!(process.age == newest || rolled_back, "S2: an older copy runs");
                process.runner.state = RunnerState::Running(epoch);
                process.highest = epoch;
                process.age = newest.max(process.age);
            }
        }
    }

    /// Whoever runs gets older.
    fn guest_runs(&mut self) {
        let mut running: Vec<&mut Process> = self
            .hosts
            .iter_mut()
            .flat_map(|host| host.processes.iter_mut())
            .filter(|process| matches!(process.runner.state, RunnerState::Running(_)))
            .collect();
        if let Some(process) = running.first_mut() {
            self.age += 1;
            process.age = self.age;
        }
    }

    // ---- a migration's two sides ---------------------------------------------------------------------------

    fn source_acts(&mut self, at: usize) {
        if !self.hosts[at].up {
            return;
        }
        let view = self.view(at);
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

    fn close_or_give_up(&mut self, at: usize, view: &Ownership, instance: InstanceId, epoch: Epoch) {
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
    fn testify(&mut self, at: usize, view: &Ownership) {
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
    fn resend_final(&mut self, at: usize, view: &Ownership) {
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

    fn target_acts(&mut self, at: usize) {
        if !self.hosts[at].up {
            return;
        }
        let view = self.view(at);
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

    fn prepare(&mut self, at: usize, migration: MigrationId, epoch: Epoch) {
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
                self.hosts[at].processes.push(Process::incoming(instance, epoch, None, false));
                instance
            }
            None => return,
        };
        self.propose(Entry::Accept { migration, epoch, instance });
    }

    /// Tombstone, then kill, then (by its duty) the statement.
    fn give_up(&mut self, at: usize, instance: InstanceId) {
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

    fn final_arrives(&mut self) {
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
    fn pages_arrive(&mut self, at: usize) {
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

    // ---- control, operator, bad luck -----------------------------------------------------------------------

    fn control_acts(&mut self) {
        let reachable: BTreeSet<NodeName> = self
            .names
            .iter()
            .zip(&self.hosts)
            .filter(|(_, host)| host.up)
            .map(|(name, _)| name.clone())
            .collect();
        if let Some((guest, migration, target)) = self.registry.next_admission(&reachable) {
            self.commit(Command::Admit { guest, migration, target });
        }
        // A fenced node that is back has stopped what the fence names, by its duties.
        for at in 0..3 {
            let fenced = self.registry.nodes.get(&self.names[at]).is_some_and(|node| node.fenced.is_some());
            let clean = self.hosts[at].up && self.hosts[at].running().count() == 0;
            if fenced && clean && self.hosts[at].view + 1 == self.history.len() {
                self.commit(Command::FenceSeen { node: self.names[at].clone() });
            }
        }
    }

    fn operator_acts(&mut self) {
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
            self.commit(Command::Migrate { guest: GUEST, migration, target: None });
        } else if let (Some(attempt), 0) = (&present.attempt, self.random.u32(0..16)) {
            let migration = attempt.migration.clone();
            self.propose(Entry::End { migration, side: Side::Operator, reason: "cancelled".into() });
        } else if !self.calm && self.random.u32(0..600) == 0 {
            self.propose(Entry::Delete);
        }
    }

    /// In post-copy, a guest whose missing pages are gone with their host waits for ever: an operator ends it.
    fn end_what_can_not_be_completed(&mut self, present: &Ownership) {
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

    fn fault(&mut self, at: usize) {
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
    fn back_or_fenced(&mut self, at: usize) {
        if self.random.bool() {
            let boot = BootId(self.hosts[at].boot);
            let node = self.names[at].clone();
            let instances = self.registry.instances_on(&node);
            self.send(Command::Fence { node, boot, instances });
        } else {
            self.hosts[at].up = true;
            self.hosts[at].boot += 1;
            self.join(at);
            self.note(|| format!("{at}: boots again"));
        }
    }

    // ---- what must hold ------------------------------------------------------------------------------------

    pub(crate) fn check(&self) {
        let running: Vec<&Process> = self.hosts.iter().flat_map(Host::running).collect();
        assert!(running.len() <= 1, "S1: two running copies");
        let present = self.present();
        if let Some(process) = running.first() {
            match &present.life {
                Life::Alive(owner) => {
                    assert_eq!(owner.instance, process.runner.instance, "S1: it runs without its licence");
                }
                Life::Lost { .. } => panic!("S1: declared lost while it runs"),
                Life::Creating(_) => panic!("S5: it runs before it was born"),
                // A late start by the last licensee is harmless: one copy, soon destroyed.
                Life::Deleting(_) => {}
                Life::Purged => panic!("S5: it runs after it was purged"),
            }
        }
        if let Some(attempt) = &present.attempt {
            let holds = attempt.permits != Permits::None;
            let needs = !attempt.phase.is_over() && attempt.phase != Phase::Pending;
            assert!(holds || !needs, "S4: an admitted migration without its permits");
        }
    }

    /// Nothing goes wrong any more; dead hosts boot. In the end everything has ended.
    pub(crate) fn settle(&mut self) -> &'static str {
        self.calm = true;
        for at in 0..3 {
            if !self.hosts[at].up {
                self.hosts[at].up = true;
                self.hosts[at].boot += 1;
                self.join(at);
            }
        }
        for _ in 0..SETTLE_STEPS_MAX {
            self.step();
            self.check();
            if let Some(fate) = self.is_settled() {
                return fate;
            }
        }
        panic!("L1, L2: not settled: {:?}", self.present());
    }

    fn is_settled(&self) -> Option<&'static str> {
        let present = self.present();
        let over = present.attempt.as_ref().is_none_or(|a| a.phase.is_over() && a.permits == Permits::None);
        let copies: usize = self.hosts.iter().map(|host| host.processes.len()).sum();
        let running = self.hosts.iter().flat_map(Host::running).count();
        match &present.life {
            Life::Alive(_) if over && running == 1 && copies == 1 => {
                Some(if present.rollbacks > 0 { "runs, rolled back" } else { "runs" })
            }
            Life::Purged if copies == 0 => Some("deleted"),
            Life::Lost { last, kept } => {
                assert!(self.deaths > 0, "L2: a guest is lost though nothing died");
                // Kept copies, if there are any, are for the operator; he acts in time.
                let instances = [Some(last), kept.as_ref()].into_iter().flatten().map(|l| l.instance);
                let there = |instance: InstanceId| self.hosts.iter().any(|host| host.has_paused(instance));
                (over && !instances.into_iter().any(there)).then_some("lost with its host")
            }
            Life::Alive(_) | Life::Creating(_) | Life::Deleting(_) | Life::Purged => None,
        }
    }
}
