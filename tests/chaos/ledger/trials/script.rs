//! Logs that are made up: commands as a cluster would agree on them, each with what the registry makes of it.

use std::net::SocketAddr;

use godwit_domain::machine::Body;
use godwit_domain::ownership::{Entry, Mode};
use godwit_domain::registry::{BootId, Command, GuestUid, Home, Node, Registry, RequestKey, Stamped, Wish};
use godwit_domain::{ClusterSettings, Epoch, GuestSpec, InstanceId, Labels, MigrationId, NodeName};

use super::super::Applied;

/// What each guest takes, in bytes.
pub(super) const GUEST_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Default)]
pub(super) struct Script {
    pub(super) registry: Registry,
    pub(super) all: Vec<Applied>,
}

impl Script {
    /// Nodes, each with room for so many guests, and guests `0..` of them at these nodes.
    pub(super) fn new(nodes: &[(&str, u64)], guests: &[&str]) -> Self {
        let mut script = Self::default();
        for (name, room) in nodes {
            assert!(script.say(join(name, room * GUEST_BYTES)), "{name} joins");
        }
        for (uid, at) in (0..).zip(guests) {
            assert!(script.say(make(uid, at)), "guest {uid} is made");
            assert!(script.entry(uid, Entry::Born { instance: runner(u8::try_from(uid).expect("few")) }));
        }
        script
    }

    /// Agrees on a command; whether it was applied.
    pub(super) fn say(&mut self, command: Command) -> bool {
        self.say_for(None, command)
    }

    /// The same, as the answer to a request.
    pub(super) fn say_for(&mut self, request: Option<RequestKey>, command: Command) -> bool {
        let time_ms = 1_000 + self.all.len() as u64;
        let stamped = Stamped { time_ms, request: request.clone(), command: command.clone() };
        let refused = self.registry.apply(stamped).err().map(|refusal| refusal.to_string());
        let is_applied = refused.is_none();
        self.put_down(request, command, refused);
        is_applied
    }

    /// A command that stands in the log as applied, though it was never agreed: a fault.
    pub(super) fn claim(&mut self, command: Command) {
        self.put_down(None, command, None);
    }

    fn put_down(&mut self, request: Option<RequestKey>, command: Command, refused: Option<String>) {
        let at = self.all.len() as u64;
        // An election here and there leaves an entry without a command.
        let index = 2 + at + at / 7;
        let (time_ms, applied_ms, seen_ns) = (1_000 + at, 2_000 + at, 3_000 + at);
        self.all.push(Applied { index, time_ms, applied_ms, seen_ns, request, command, refused });
    }

    pub(super) fn entry(&mut self, guest: u64, entry: Entry) -> bool {
        self.say(Command::Guest { guest: GuestUid(guest), entry })
    }

    /// Asks for a migration and admits it.
    pub(super) fn grant(&mut self, guest: u64, migration: &str, target: &str) -> bool {
        assert!(self.say(ask(guest, migration)), "{migration} is asked for");
        self.say(admit(guest, migration, target))
    }

    /// From the admission to the end, at this guest's present epoch.
    pub(super) fn succeed(&mut self, guest: u64, migration: &str, to: u8) {
        let (name, epoch) = (named(migration), self.epoch(guest));
        assert!(self.entry(guest, Entry::Accept { migration: name.clone(), epoch, instance: runner(to) }));
        let mode = Mode::StopAndCopy;
        assert!(self.entry(guest, Entry::HandOver { migration: name.clone(), epoch, mode }));
        assert!(self.entry(guest, Entry::Running { migration: name, epoch: epoch.next() }));
    }

    pub(super) fn epoch(&self, guest: u64) -> Epoch {
        self.registry.guests[&GuestUid(guest)].ownership.epoch
    }
}

pub(super) fn node(text: &str) -> NodeName {
    text.parse().expect("a node's name")
}

pub(super) fn named(text: &str) -> MigrationId {
    text.parse().expect("a migration's name")
}

pub(super) fn runner(number: u8) -> InstanceId {
    InstanceId::from_random([number; 16])
}

pub(super) fn boot(name: &str) -> BootId {
    BootId(u128::MAX - u128::from(name.as_bytes()[0]))
}

pub(super) fn join(name: &str, memory_bytes: u64) -> Command {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    Command::Join { name: node(name), node: Node::new(address, address, boot(name), memory_bytes) }
}

pub(super) fn make(uid: u64, at: &str) -> Command {
    Command::PutInstance {
        name: format!("g{uid}").parse().expect("a guest's name"),
        labels: Labels::new(),
        body: Some(Body::of(GuestSpec::idle(GUEST_BYTES))),
        home: Some(Home { uid: GuestUid(uid), node: node(at) }),
    }
}

pub(super) fn ask(guest: u64, migration: &str) -> Command {
    Command::Migrate { guest: GuestUid(guest), migration: named(migration), wish: Wish::default() }
}

pub(super) fn admit(guest: u64, migration: &str, target: &str) -> Command {
    Command::Admit { guest: GuestUid(guest), migration: named(migration), target: node(target) }
}

/// Limits of the cluster, out of a node and into one.
pub(super) fn limits(cluster: u32, outbound: u32, inbound: Option<u32>) -> Command {
    Command::PutSettings {
        settings: ClusterSettings {
            parallel_migrations_per_cluster: Some(cluster),
            parallel_outbound_migrations_per_node: Some(outbound),
            parallel_inbound_migrations_per_node: inbound,
            ..ClusterSettings::default()
        },
    }
}
