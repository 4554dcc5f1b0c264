//! Nodes, guests and migrations, as the commands that make them and move them on.

use godwit_domain::machine::Body;
use godwit_domain::ownership::{Entry, Mode, Ownership};
use godwit_domain::registry::{BootId, Command, GuestUid, Home, Milestone, Node, Stamped, Wish};
use godwit_domain::{ClusterSettings, GuestName, GuestSpec, InstanceId, Labels, MigrationId, NodeName};
use godwit_node::group::now_ms;

const GIB: u64 = 1 << 30;

pub(crate) fn node_name(n: u64) -> NodeName {
    name(&format!("node-{n:04}"))
}

pub(crate) fn guest_name(n: u64) -> GuestName {
    name(&format!("project-{}/vm-{n}", n % 20))
}

pub(crate) fn migration(guest: u64, nth: u64) -> MigrationId {
    name(&format!("vm-{guest}-{nth}"))
}

fn name<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| unreachable!("{text} is a name"))
}

fn instance(guest: u64, nth: u64) -> InstanceId {
    InstanceId::from_random((u128::from(guest + 1) << 64 | u128::from(nth)).to_be_bytes())
}

fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

/// A host of some 100 GiB, with the labels that hosts have.
pub(crate) fn join(n: u64) -> Command {
    let address = core::net::SocketAddr::from(([10, 0, 0, 1], 7400));
    let mut node = Node::new(address, address, BootId(1), (96 + n % 7 * 8) * GIB);
    node.labels = labels(&[
        ("kubernetes.io/hostname", node_name(n).to_string()),
        ("zone", format!("z{}", n % 3)),
        ("disk", if n.is_multiple_of(10) { "nvme" } else { "hdd" }.to_owned()),
    ]);
    Command::Join { name: node_name(n), node }
}

/// How many may run in the cluster, from a node and to one.
pub(crate) fn limits(cluster: u32, of_node: u32) -> Command {
    let settings = ClusterSettings {
        parallel_migrations_per_cluster: Some(cluster),
        parallel_outbound_migrations_per_node: Some(of_node),
        parallel_inbound_migrations_per_node: Some(of_node),
        ..ClusterSettings::default()
    };
    Command::PutSettings { settings }
}

/// A guest of 1 to 4 GiB, on a node.
pub(crate) fn create(n: u64, home: NodeName) -> Command {
    let body = Body::of(GuestSpec::idle((1 + n % 4) * GIB));
    let labels = labels(&[("tier", (n % 8).to_string())]);
    let home = Some(Home { uid: GuestUid(n), node: home });
    Command::PutInstance { name: guest_name(n), labels, body: Some(body), home }
}

pub(crate) fn born(n: u64) -> Command {
    Command::Guest { guest: GuestUid(n), entry: Entry::Born { instance: instance(n, 0) } }
}

/// Other labels for a guest.
pub(crate) fn relabel(n: u64, nth: u64) -> Command {
    Command::PutInstance {
        name: guest_name(n),
        labels: labels(&[("tier", (nth % 9).to_string())]),
        body: None,
        home: None,
    }
}

/// Asks for a migration; one in ten wants a label, and one a node.
pub(crate) fn ask(n: u64, nodes: u64) -> Command {
    let mut wish = Wish::default();
    match n % 10 {
        1 => wish.selector = labels(&[("zone", format!("z{}", n % 3))]),
        2 => wish.selector = labels(&[("disk", "nvme".to_owned())]),
        3 => wish.target = Some(node_name((n + 1) % nodes)),
        _ => {}
    }
    Command::Migrate { guest: GuestUid(n), migration: migration(n, 0), wish }
}

/// An entry as it stands in the log.
pub(crate) fn stamped(command: Command) -> Stamped {
    Stamped { time_ms: now_ms(), request: None, command }
}

/// One guest that moves between two nodes, over and over: all that is agreed about each move, in order.
pub(crate) struct Mover {
    guest: u64,
    nodes: [NodeName; 2],
    /// What is agreed of it, once all that was said was agreed.
    ownership: Ownership,
    moves: u64,
    step: usize,
}

/// Commands of one move.
pub(crate) const STEPS: usize = 7;

impl Mover {
    /// A guest that was made on the first of these nodes.
    pub(crate) fn new(guest: u64, nodes: [NodeName; 2]) -> Self {
        let mut ownership = Ownership::new(nodes[0].clone());
        if let Command::Guest { entry, .. } = born(guest) {
            ownership.apply(entry).unwrap_or_else(|_| unreachable!("it is born once"));
        }
        Self { guest, nodes, ownership, moves: 0, step: 0 }
    }

    /// What is said next.
    pub(crate) fn next(&mut self) -> Command {
        let (uid, moves) = (GuestUid(self.guest), self.moves);
        let (name, epoch) = (migration(self.guest, moves), self.ownership.epoch);
        let target = self.nodes[usize::from(moves.is_multiple_of(2))].clone();
        let entry = |entry: Entry| (Command::Guest { guest: uid, entry: entry.clone() }, Some(entry));
        let (command, entry) = match self.step {
            0 => {
                let command = Command::Migrate { guest: uid, migration: name.clone(), wish: Wish::default() };
                (command, Some(Entry::Request { migration: name }))
            }
            1 => {
                let command = Command::Admit { guest: uid, migration: name.clone(), target: target.clone() };
                (command, Some(Entry::Start { migration: name, target }))
            }
            2 => entry(Entry::Accept { migration: name, epoch, instance: instance(self.guest, moves + 1) }),
            3 => (Command::Reached { migration: name, milestone: Milestone::Running }, None),
            4 => entry(Entry::HandOver { migration: name, epoch, mode: Mode::StopAndCopy }),
            5 => entry(Entry::Running { migration: name, epoch }),
            _ => (Command::Measured { migration: name, measured: Box::default() }, None),
        };
        if let Some(entry) = entry {
            self.ownership.apply(entry).unwrap_or_else(|_| unreachable!("it follows what was said"));
        }
        self.step = (self.step + 1) % STEPS;
        self.moves += u64::from(self.step == 0);
        command
    }
}
