//! The world: three hosts, one guest, a log that everyone learns late, proposals and `Final`s that are lost, delayed,
//! repeated and reordered, node processes that restart with the oldest view, runners and hosts that die, an operator
//! who cancels, deletes, vouches and recovers.

mod disaster;
mod luck;
mod sides;

use godwit_domain::GuestSpec;
use godwit_domain::agent::{Arrived, Duty, RunnerState, duties};
use godwit_domain::machine::Body;
use godwit_domain::ownership::{Entry, Life, Mode, Ownership, Permits, Phase};
use godwit_domain::registry::{BootId, Command, GuestUid, Home, Node, Registry, Stamped, State};
use godwit_domain::{Epoch, InstanceId, Labels, MigrationId, NodeName};

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
    /// States that may take the log's place.
    backups: Vec<Registry>,
    /// Whether the group may be lost.
    may_be_lost: bool,
    pub(crate) disasters: usize,
    /// Where the present group's log begins.
    begins: usize,
    /// The guest ran when its host followed to the present group.
    ran_through: bool,
    /// Whoever acts has nobody to propose to.
    is_mute: bool,
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
            backups: Vec::new(),
            may_be_lost: false,
            disasters: 0,
            begins: 0,
            ran_through: false,
            is_mute: false,
            events: 0,
            hand_overs: 0,
            faults_inside: 0,
        };
        for at in 0..3 {
            world.join(at);
        }
        let name = "vm".parse().expect("a name");
        let node = world.names[0].clone();
        world.commit(Command::PutInstance {
            name,
            labels: Labels::new(),
            body: Some(Body::of(GuestSpec::idle(1))),
            home: Some(Home { uid: GUEST, node }),
        });
        world
    }

    /// The same, and the group may be lost and founded anew.
    pub(crate) fn with_disasters(seed: u64) -> Self {
        Self { may_be_lost: true, ..Self::new(seed) }
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
        if self.may_be_lost {
            self.around_a_disaster(at);
        }
        self.is_mute = self.hosts[at].ends.is_some();
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
        match self.registry.apply(Stamped { time_ms: self.events as u64, request: None, command }) {
            Ok(_) => self.note(|| format!("log: {text}")),
            Err(refusal) => {
                self.note(|| format!("log: refused, {refusal}: {text}"));
                let before = State { time_ms: self.registry.time_ms, ..(*before).clone() };
                assert!(*self.registry == before, "a refused command changes nothing");
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
        if self.may_be_lost {
            self.back_up();
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
        if self.is_mute {
            return;
        }
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
        let newest = self.hosts[at].ends.unwrap_or(self.history.len() - 1);
        self.history[self.hosts[at].view.min(newest)].clone()
    }

    fn learn(&mut self, at: usize) {
        let newest = self.hosts[at].ends.unwrap_or(self.history.len() - 1);
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
        let node = Node::new(address, address, boot, 10);
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
                // An operator's act that the log knows, or one that was lost since.
                let rolled_back = self.history.iter().any(|then| then.rollbacks > 0);
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
                Life::Deleting(_) | Life::Unsure(_) => {}
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
                self.follow(at);
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
            Life::Purged if over && copies == 0 => Some("deleted"),
            Life::Lost { last, kept } => {
                assert!(self.deaths + self.disasters > 0, "L2: a guest is lost though nothing died");
                assert!(!self.is_lost_for_nothing(), "L2: a guest that ran is lost by a disaster");
                // Kept copies, if there are any, are for the operator; he acts in time.
                let instances = [Some(last), kept.as_ref()].into_iter().flatten().map(|l| l.instance);
                let there = |instance: InstanceId| self.hosts.iter().any(|host| host.has_paused(instance));
                (over && !instances.into_iter().any(there)).then_some("lost with its host")
            }
            Life::Alive(_) | Life::Creating(_) | Life::Deleting(_) | Life::Purged | Life::Unsure(_) => None,
        }
    }
}
