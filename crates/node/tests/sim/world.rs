//! The world: machines, the links between them, and what happens to them, in order of time.
//!
//! ```text
//!   queue: (time, number) ─▶ event ─▶ the part that it concerns ─▶ later events
//!                                          └──▶ laws, after every event
//!
//!   machine ─┬─ voter    driver, disk, replica: real but for the disk      (voter, leader, disk, watched)
//!            ├─ book     who is in the group, and this machine's place in it: real     (seats)
//!            ├─ agent    what the node process knows; duties: real         (agent, look, moves, sessions)
//!            └─ host     runners and records: they outlive the process     (host)
//!   operator, luck, calm ─▶ what people and fate do                        (operator, seats, luck, calm)
//! ```
//!
//! Always true: everything comes from the seed; an event that is for a process that is gone is not delivered.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use godwit_control::{NodeId, Voters};
use godwit_domain::registry::{BootId, Node};
use godwit_domain::{InstanceId, NodeName};
use godwit_node::book::Book;
use godwit_node::group::voter_id;

use crate::agent::Agent;
use crate::cover::Cover;
use crate::disk::Folder;
use crate::event::Event;
use crate::host::Host;
use crate::law::Law;
use crate::leader::{Asking, Session};
use crate::links::Links;
use crate::luck::Luck;
use crate::operator::Operator;
use crate::trace::Trace;
use crate::voter::Voter;

/// A machine, by its place.
pub(crate) type At = usize;

/// Memory that a node offers, in bytes: room for all guests of a history, but not for a copy of each beside them.
pub(crate) const NODE_BYTES: u64 = 5;

/// The cluster's name.
const CLUSTER: &str = "c";

pub(crate) const fn ms(ms: u64) -> u64 {
    ms * 1000
}

/// One life of one machine's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Who {
    pub(crate) at: At,
    pub(crate) process: u64,
}

/// A clock that is not the world's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// How fast it goes, in permille.
    pub(crate) rate: u64,
    /// What it shows at the beginning, in milliseconds since the Unix epoch.
    pub(crate) offset_ms: u64,
}

/// See the module.
pub(crate) struct Machine {
    pub(crate) name: NodeName,
    pub(crate) on: bool,
    pub(crate) boot: u128,
    /// The node's process runs.
    pub(crate) runs: bool,
    pub(crate) process: u64,
    /// Nothing of its process happens before.
    pub(crate) asleep_until: u64,
    pub(crate) clock: Clock,
    /// Guests may be here.
    pub(crate) hosts: bool,
    /// What it knows of the group, on disk.
    pub(crate) book: Option<Book>,
    /// Its log, if there is one, and who is behind it.
    pub(crate) voter: Option<Voter>,
    pub(crate) agent: Option<Agent>,
    pub(crate) host: Host,
}

/// See the module.
pub(crate) struct World {
    pub(crate) random: Rng,
    /// Microseconds since the beginning.
    pub(crate) now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    numbers: u64,
    pub(crate) machines: Vec<Machine>,
    /// Who has founded the group, as every config says.
    pub(crate) founders: Voters,
    /// Every log that there ever was.
    pub(crate) disks: BTreeMap<NodeId, Folder>,
    pub(crate) links: Links,
    pub(crate) sessions: BTreeMap<u64, Session>,
    /// Who waits for which answer.
    pub(crate) asking: BTreeMap<u64, Asking>,
    pub(crate) operator: Operator,
    pub(crate) luck: Luck,
    pub(crate) law: Law,
    pub(crate) cover: Cover,
    pub(crate) trace: Trace,
    /// Nothing goes wrong.
    pub(crate) calm: bool,
    pub(crate) events: usize,
    /// Something has changed about a runner or what is agreed.
    pub(crate) touched: bool,
}

impl World {
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let mut random = Rng::with_seed(seed);
        let voting = if random.u32(0..6) == 0 { 5 } else { 3 };
        let hosting = random.usize(2..=3);
        // Voters on machines of their own, or on those of the guests.
        let apart = random.bool();
        let needed = if apart { voting + hosting } else { voting.max(hosting) };
        // Machines that could vote, and so far do nothing.
        let count = needed + random.usize(0..=2);
        let name = |at: usize| -> NodeName {
            let kind = if at >= needed || (apart && at < voting) { 'v' } else { 'n' };
            format!("{kind}{at}").parse().unwrap_or_else(|_| unreachable!("a node's name"))
        };
        let founders = Voters::new((0..voting).map(|at| (voter_id(&name(at)), name(at))))
            .unwrap_or_else(|error| unreachable!("{error}"));
        let machines = (0..count).map(|at| {
            let clock =
                Clock { rate: random.u64(960..=1040), offset_ms: 1_700_000_000_000 + random.u64(0..300_000) };
            let hosts = if apart { (voting..needed).contains(&at) } else { at < hosting };
            let founds = at < voting;
            Machine {
                name: name(at),
                on: true,
                boot: 1,
                runs: false,
                process: 0,
                asleep_until: 0,
                clock,
                hosts,
                book: founds.then(|| Book::founding(CLUSTER, &founders, Some(voter_id(&name(at))))),
                voter: None,
                agent: Some(Agent::default()),
                host: Host::default(),
            }
        });
        let machines: Vec<Machine> = machines.collect();
        let mut world = Self {
            law: Law::new(machines.len(), &founders),
            luck: Luck::new(&mut random, apart),
            random,
            now: 0,
            queue: BTreeMap::new(),
            numbers: 0,
            machines,
            founders,
            disks: BTreeMap::new(),
            links: Links::default(),
            sessions: BTreeMap::new(),
            asking: BTreeMap::new(),
            operator: Operator::default(),
            cover: Cover::default(),
            trace: Trace::new(traced),
            calm: false,
            events: 0,
            touched: false,
        };
        world.note(|world| {
            format!("{voting} voters, {hosting} hosts, apart: {apart}, {} machines", world.machines.len())
        });
        for at in 0..count {
            world.start(at);
        }
        world.later(ms(1500), Event::Operate);
        world.later(ms(2500), Event::Misfortune);
        world
    }

    // ---- time ----------------------------------------------------------------------------------------------

    /// An event so many microseconds from now.
    pub(crate) fn later(&mut self, us: u64, event: Event) {
        self.numbers += 1;
        self.queue.insert((self.now + us, self.numbers), event);
    }

    /// A number that nothing else of this history has.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// What a machine's process takes for the time since it was switched on.
    pub(crate) fn local(&self, at: At) -> Duration {
        Duration::from_micros(self.now * self.machines[at].clock.rate / 1000)
    }

    /// What a machine takes for the time of day, in milliseconds.
    pub(crate) fn wall_ms(&self, at: At) -> u64 {
        let local = self.local(at).as_micros();
        self.machines[at].clock.offset_ms + u64::try_from(local / 1000).unwrap_or(u64::MAX)
    }

    /// The next event happens.
    pub(crate) fn step(&mut self) {
        let Some(((at, _), event)) = self.queue.pop_first() else { unreachable!("clocks tick for ever") };
        self.now = at;
        if let Some(who) = event.who() {
            let machine = &self.machines[who.at];
            if !machine.runs || machine.process != who.process {
                return;
            }
            if machine.asleep_until > self.now {
                let wait = machine.asleep_until - self.now;
                return self.later(wait, event);
            }
        }
        self.events += 1;
        self.happens(event);
        if std::mem::take(&mut self.touched) {
            self.check_runners();
        }
    }

    pub(crate) fn run_until(&mut self, end: u64) {
        while self.now < end {
            self.step();
        }
    }

    // ---- machines ------------------------------------------------------------------------------------------

    pub(crate) fn who(&self, at: At) -> Who {
        Who { at, process: self.machines[at].process }
    }

    /// The process of a machine runs, and is the one that is meant.
    pub(crate) fn is(&self, who: Who) -> bool {
        self.machines[who.at].runs && self.machines[who.at].process == who.process
    }

    pub(crate) fn is_awake(&self, at: At) -> bool {
        self.machines[at].runs && self.machines[at].asleep_until <= self.now
    }

    pub(crate) fn at_of(&self, name: &NodeName) -> Option<At> {
        self.machines.iter().position(|machine| machine.name == *name)
    }

    pub(crate) fn fresh_instance(&mut self) -> InstanceId {
        let number = self.number();
        InstanceId::from_random(u128::from(number).to_be_bytes())
    }

    /// What a machine says of itself when it joins.
    pub(crate) fn itself(&self, at: At) -> Node {
        let port = u16::try_from(at).unwrap_or_default();
        let address = |base| core::net::SocketAddr::from(([10, 0, 0, 1], base + port));
        let bytes = if self.machines[at].hosts { NODE_BYTES } else { 0 };
        Node::new(address(7300), address(7400), BootId(self.machines[at].boot), bytes)
    }

    /// A machine's process starts: its voter opens its disk, its node looks for what is there.
    pub(crate) fn start(&mut self, at: At) {
        let machine = &mut self.machines[at];
        if machine.runs || !machine.on {
            return;
        }
        machine.process += 1;
        machine.asleep_until = 0;
        if !self.take_seat(at) {
            // Whoever started it tries again.
            if !self.is_torn(at) {
                self.later(ms(150), Event::Start(at));
            }
            return;
        }
        self.machines[at].runs = true;
        self.note(|world| {
            format!("{}: process {} starts", world.machines[at].name, world.machines[at].process)
        });
        if self.machines[at].agent.is_some() {
            self.start_agent(at);
        }
    }

    /// A machine's process dies.
    pub(crate) fn kill(&mut self, at: At) {
        if !self.machines[at].runs {
            return;
        }
        self.note(|world| {
            format!("{}: process {} dies", world.machines[at].name, world.machines[at].process)
        });
        self.machines[at].runs = false;
        self.stop_voter(at);
        if let Some(agent) = &mut self.machines[at].agent {
            *agent = Agent::default();
        }
        self.touched = true;
    }

    /// A machine's power is cut: what is on it is gone, but for its voter's disk.
    pub(crate) fn cut_power(&mut self, at: At) {
        if !self.machines[at].on {
            return;
        }
        self.kill(at);
        self.note(|world| format!("{}: power is cut", world.machines[at].name));
        self.machines[at].on = false;
        self.law.dead.extend(self.machines[at].host.runners.keys());
        // A tombstone that is lost with its host costs a hand-back: then the guest is lost.
        self.law.dead.extend(self.machines[at].host.tombstones.iter().map(|(_, instance)| *instance));
        self.machines[at].host = Host::default();
    }

    /// It boots.
    pub(crate) fn boot(&mut self, at: At) {
        if !self.machines[at].on {
            self.machines[at].on = true;
            self.machines[at].boot += 1;
            self.note(|world| format!("{}: boots again", world.machines[at].name));
        }
        self.start(at);
    }

    pub(crate) fn note(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.trace.is_on() {
            let text = what(self);
            self.trace.line(self.now, &text);
        }
    }
}
