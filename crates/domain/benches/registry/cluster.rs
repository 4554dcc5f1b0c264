//! A cluster of nodes, guests and waiting migrations, moved on entry by entry; and the times that this took.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use godwit_domain::machine::Body;
use godwit_domain::ownership::Entry;
use godwit_domain::policy::{Policy, PolicyName};
use godwit_domain::registry::{BootId, Command, GuestUid, Home, Milestone, Node, Registry, Stamped, Wish};
use godwit_domain::{
    ClusterSettings, GuestName, GuestSpec, InstanceId, Labels, MigrationId, NodeName, Overrides, Priority,
};

use super::Size;

const GIB: u64 = 1 << 30;

/// Times and sizes by what was measured.
#[derive(Default)]
pub(crate) struct Table(pub(crate) BTreeMap<String, Vec<f64>>);

impl Table {
    pub(crate) fn add(&mut self, what: &str, value: f64) {
        self.0.entry(what.to_owned()).or_default().push(value);
    }

    pub(crate) fn time<T>(&mut self, what: &str, work: impl FnOnce() -> T) -> T {
        let (done, took) = timed(work);
        self.add(what, took.as_secs_f64() * 1e6);
        done
    }

    pub(crate) fn quantile(&self, what: &str, share: f64) -> f64 {
        let Some(values) = self.0.get(what) else { return f64::NAN };
        let mut values = values.clone();
        values.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index below the length"
        )]
        let at = ((values.len() - 1) as f64 * share).round() as usize;
        values[at]
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let done = std::hint::black_box(work());
    (done, began.elapsed())
}

pub(crate) fn node_name(n: u64) -> NodeName {
    format!("node-{n:04}").parse().expect("a name")
}

pub(crate) fn guest_name(n: u64) -> GuestName {
    format!("project-{}/vm-{n}", n % 20).parse().expect("a name")
}

fn migration(n: u64) -> MigrationId {
    format!("migration-{n}").parse().expect("a name")
}

fn instance(n: u64) -> InstanceId {
    InstanceId::from_random(u128::from(n).to_be_bytes())
}

pub(crate) fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

pub(crate) fn node(n: u64) -> Node {
    let address = core::net::SocketAddr::from(([10, 0, 0, 1], 7400));
    let mut node = Node::new(address, address, BootId(1), (96 + n % 7 * 8) * GIB);
    node.labels = labels(&[
        ("kubernetes.io/hostname", node_name(n).to_string()),
        ("zone", format!("z{}", n % 3)),
        ("disk", if n.is_multiple_of(10) { "nvme" } else { "hdd" }.to_owned()),
    ]);
    node
}

/// What a migration asks of its target.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Asks {
    /// Most nothing, some a label or a node.
    This,
    /// A label that no node has, all the same one.
    None,
    /// A label that no node has, each another one.
    NoneEach,
    /// A node by name, one of the first half.
    FullNode,
}

/// The registry and what is proposed next.
pub(crate) struct Cluster {
    pub(crate) registry: Registry,
    pub(crate) size: Size,
    asked: u64,
    instances: u64,
    pub(crate) reachable: BTreeSet<NodeName>,
}

impl Cluster {
    pub(crate) fn of(size: Size, settings: ClusterSettings) -> Self {
        let reachable = (0..size.nodes).map(node_name).collect();
        let mut cluster = Self { registry: Registry::default(), size, asked: 0, instances: 0, reachable };
        for n in 0..size.nodes {
            cluster.apply(Command::Join { name: node_name(n), node: node(n) });
        }
        cluster.apply(Command::PutSettings { settings });
        for n in 0..5_u64 {
            let name: PolicyName = format!("policy-{n}").parse().expect("a name");
            let guest_selector = labels(&[("tier", n.to_string())]);
            let priority =
                [None, Some(Priority::Low), Some(Priority::High)][usize::try_from(n % 3).expect("small")];
            let overrides = Overrides { priority, progress_timeout: Some(100 + n), ..Overrides::default() };
            let policy = Policy { guest_selector, overrides, ..Policy::default() };
            cluster.apply(Command::PutPolicy { name, policy });
        }
        for n in 0..size.guests {
            let body = Body::of(GuestSpec::idle((1 + n % 4) * GIB));
            let labels = labels(&[("tier", (n % 8).to_string())]);
            let home = Some(Home { uid: GuestUid(n), node: node_name(n % size.nodes) });
            cluster.apply(Command::PutInstance { name: guest_name(n), labels, body: Some(body), home });
            cluster.guest(n, Entry::Born { instance: instance(n) });
        }
        cluster
    }

    pub(crate) fn apply(&mut self, command: Command) {
        let time_ms = self.registry.time_ms + 1;
        self.registry.apply(Stamped { time_ms, request: None, command }).expect("it is applied");
    }

    pub(crate) fn guest(&mut self, n: u64, entry: Entry) {
        self.apply(Command::Guest { guest: GuestUid(n), entry });
    }

    /// Asks for a migration of a guest; every so many want a label or a node.
    fn ask(&mut self, n: u64, asks: Asks) -> MigrationId {
        let mut wish = Wish::default();
        match n % 10 {
            _ if asks == Asks::None => wish.selector = labels(&[("zone", "none".to_owned())]),
            _ if asks == Asks::NoneEach => wish.selector = labels(&[("zone", format!("none-{n}"))]),
            _ if asks == Asks::FullNode => wish.target = Some(node_name((n + 1) % (self.size.nodes / 2))),
            1 | 2 => wish.selector = labels(&[("zone", format!("z{}", n % 3))]),
            3 => wish.selector = labels(&[("disk", "nvme".to_owned())]),
            4 => wish.target = Some(node_name((n + 1) % self.size.nodes)),
            5 => wish.overrides.priority = Some(Priority::High),
            _ => {}
        }
        let owner = self.registry.guests[&GuestUid(n)].ownership.owner().map(|owner| &owner.node);
        wish.target = wish.target.filter(|target| owner != Some(target));
        self.asked += 1;
        let name = migration(self.asked);
        self.apply(Command::Migrate { guest: GuestUid(n), migration: name.clone(), wish });
        name
    }

    /// Guests that wait, spread over all nodes.
    pub(crate) fn queue_up(&mut self, asks: impl Fn(u64) -> Asks) {
        for n in 0..self.size.waiting {
            // Guests are dealt round: four of each node, and every so many a fifth.
            self.ask(n, asks(n));
        }
    }

    pub(crate) fn admit(
        &mut self,
        (guest, migration, target): (GuestUid, MigrationId, NodeName),
        table: &mut Table,
    ) {
        let admit = Command::Admit { guest, migration, target };
        table.time("entry: Admit", || self.apply(admit));
    }

    pub(crate) fn fill(&mut self, table: &mut Table) {
        while let Some(next) = self.registry.next_admission(&self.reachable) {
            self.admit(next, table);
        }
    }

    /// Takes a running migration to its success; its guest asks again, so that the queue stays as long as it was.
    pub(crate) fn finish(&mut self, table: &mut Table, asks: Asks) {
        let running = self.registry.granted().map(|(attempt, ..)| attempt.migration.clone());
        let running: Vec<MigrationId> = running.take(64).collect();
        let at = usize::try_from(self.asked).expect("a count") % running.len().max(1);
        let Some(name) = running.get(at).cloned() else { return };
        let (GuestUid(n), _) = self.registry.guest_of(&name).expect("a guest");
        self.instances += 1;
        let made = instance(1 << 40 | self.instances);
        let epoch = |cluster: &Cluster| cluster.registry.guests[&GuestUid(n)].ownership.epoch;
        type Step<'a> = (&'static str, &'a dyn Fn(&Cluster) -> Command);
        let steps: [Step<'_>; 5] = [
            ("Accept", &|c| {
                of(n, Entry::Accept { migration: name.clone(), epoch: epoch(c), instance: made })
            }),
            ("Reached", &|_| Command::Reached { migration: name.clone(), milestone: Milestone::Running }),
            ("HandOver", &|c| {
                let mode = godwit_domain::ownership::Mode::StopAndCopy;
                of(n, Entry::HandOver { migration: name.clone(), epoch: epoch(c), mode })
            }),
            ("Running", &|c| of(n, Entry::Running { migration: name.clone(), epoch: epoch(c) })),
            ("Measured", &|_| Command::Measured { migration: name.clone(), measured: Default::default() }),
        ];
        for (kind, command) in steps {
            let command = command(self);
            table.time(&format!("entry: {kind}"), || self.apply(command));
        }
        let began = Instant::now();
        self.ask(n, asks);
        table.add("entry: Migrate", began.elapsed().as_secs_f64() * 1e6);
    }
}

fn of(n: u64, entry: Entry) -> Command {
    Command::Guest { guest: GuestUid(n), entry }
}

pub(crate) fn settings(cluster: u32) -> ClusterSettings {
    ClusterSettings { parallel_migrations_per_cluster: Some(cluster), ..ClusterSettings::default() }
}
