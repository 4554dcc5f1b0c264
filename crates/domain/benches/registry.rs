//! What the registry costs: a decision, an entry, a snapshot, at full size and at a tenth of it.
//!
//! ```text
//!   cluster of (nodes, guests, waiting) ─┬─ grant ─▶ end ─▶ grant …      time per decision and per entry
//!                                        └─ encode ─▶ decode and count    time and bytes per snapshot
//! ```
//!
//! Always true: both sizes are measured in one run, so that their ratio says how the cost grows, whatever the machine.
//! Nothing here fails on a time. `cargo bench -p godwit-domain --bench registry`.
#![allow(clippy::print_stdout, clippy::disallowed_methods, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bincode::Options;
use godwit_domain::machine::{Body, Machine};
use godwit_domain::ownership::{Entry, Side};
use godwit_domain::policy::{Policy, PolicyName};
use godwit_domain::registry::{
    BootId, Command, GuestUid, Home, Milestone, Node, NodeChange, Registry, Stamped, Wish,
};
use godwit_domain::{
    ClusterSettings, GuestName, GuestSpec, InstanceId, Labels, MigrationId, NodeName, Overrides, Priority,
};

const GIB: u64 = 1 << 30;
const CYCLES: usize = 2_000;
const SNAPSHOTS: usize = 5;

/// How large a cluster is.
#[derive(Clone, Copy)]
struct Size {
    nodes: u64,
    guests: u64,
    waiting: u64,
}

const FULL: Size = Size { nodes: 1_000, guests: 20_000, waiting: 5_000 };
const TENTH: Size = Size { nodes: 100, guests: 2_000, waiting: 500 };

/// Times and sizes by what was measured.
#[derive(Default)]
struct Table(BTreeMap<String, Vec<f64>>);

impl Table {
    fn add(&mut self, what: &str, value: f64) {
        self.0.entry(what.to_owned()).or_default().push(value);
    }

    fn time<T>(&mut self, what: &str, work: impl FnOnce() -> T) -> T {
        let (done, took) = timed(work);
        self.add(what, took.as_secs_f64() * 1e6);
        done
    }

    fn quantile(&self, what: &str, share: f64) -> f64 {
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

// ---- a cluster -------------------------------------------------------------------------------------------------

fn node_name(n: u64) -> NodeName {
    format!("node-{n:04}").parse().expect("a name")
}

fn guest_name(n: u64) -> GuestName {
    format!("project-{}/vm-{n}", n % 20).parse().expect("a name")
}

fn migration(n: u64) -> MigrationId {
    format!("migration-{n}").parse().expect("a name")
}

fn instance(n: u64) -> InstanceId {
    InstanceId::from_random(u128::from(n).to_be_bytes())
}

fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

fn node(n: u64) -> Node {
    let address = core::net::SocketAddr::from(([10, 0, 0, 1], 7400));
    let mut node = Node::new(address, address, BootId(1), (96 + n % 7 * 8) * GIB);
    node.labels = labels(&[
        ("kubernetes.io/hostname", node_name(n).to_string()),
        ("zone", format!("z{}", n % 3)),
        ("disk", if n % 10 == 0 { "nvme" } else { "hdd" }.to_owned()),
    ]);
    node
}

/// The registry and what is proposed next.
struct Cluster {
    registry: Registry,
    size: Size,
    asked: u64,
    instances: u64,
    reachable: BTreeSet<NodeName>,
}

impl Cluster {
    fn of(size: Size, settings: ClusterSettings) -> Self {
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

    fn apply(&mut self, command: Command) {
        let time_ms = self.registry.time_ms + 1;
        self.registry.apply(Stamped { time_ms, request: None, command }).expect("it is applied");
    }

    fn guest(&mut self, n: u64, entry: Entry) {
        self.apply(Command::Guest { guest: GuestUid(n), entry });
    }

    /// Asks for a migration of a guest; every so many want a label or a node.
    fn ask(&mut self, n: u64, impossible: bool) -> MigrationId {
        let mut wish = Wish::default();
        match n % 10 {
            _ if impossible => wish.selector = labels(&[("zone", "none".to_owned())]),
            1 | 2 => wish.selector = labels(&[("zone", format!("z{}", n % 3))]),
            3 => wish.selector = labels(&[("disk", "nvme".to_owned())]),
            4 => {
                let target = (n + 1) % self.size.nodes;
                let owner = self.registry.guests[&GuestUid(n)].ownership.owner().map(|owner| &owner.node);
                wish.target = Some(node_name(target)).filter(|target| owner != Some(target));
            }
            5 => wish.overrides.priority = Some(Priority::High),
            _ => {}
        }
        self.asked += 1;
        let name = migration(self.asked);
        self.apply(Command::Migrate { guest: GuestUid(n), migration: name.clone(), wish });
        name
    }

    /// Guests that wait, spread over all nodes.
    fn queue_up(&mut self, impossible: impl Fn(u64) -> bool) {
        for n in 0..self.size.waiting {
            // Guests are dealt round: four of each node, and every so many a fifth.
            self.ask(n, impossible(n));
        }
    }

    fn admit(&mut self, (guest, migration, target): (GuestUid, MigrationId, NodeName), table: &mut Table) {
        let admit = Command::Admit { guest, migration, target };
        table.time("entry: Admit", || self.apply(admit));
    }

    fn fill(&mut self, table: &mut Table) {
        while let Some(next) = self.registry.next_admission(&self.reachable) {
            self.admit(next, table);
        }
    }

    /// Takes a running migration to its success; its guest asks again, so that the queue stays as long as it was.
    fn finish(&mut self, table: &mut Table, impossible: bool) {
        let running = self.registry.granted().map(|(attempt, ..)| attempt.migration.clone());
        let running: Vec<MigrationId> = running.take(64).collect();
        let Some(name) = running.get(self.asked as usize % running.len().max(1)).cloned() else { return };
        let (GuestUid(n), _) = self.registry.guest_of(&name).expect("a guest");
        self.instances += 1;
        let made = instance(1 << 40 | self.instances);
        let epoch = |cluster: &Self| cluster.registry.guests[&GuestUid(n)].ownership.epoch;
        let steps: [(&str, &dyn Fn(&Self) -> Command); 5] = [
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
        self.ask(n, impossible);
        table.add("entry: Migrate", began.elapsed().as_secs_f64() * 1e6);
    }
}

fn of(n: u64, entry: Entry) -> Command {
    Command::Guest { guest: GuestUid(n), entry }
}

fn settings(cluster: u32) -> ClusterSettings {
    ClusterSettings { parallel_migrations_per_cluster: Some(cluster), ..ClusterSettings::default() }
}

// ---- situations ------------------------------------------------------------------------------------------------

/// One ends, the next is chosen and admitted, over and over.
fn decide(what: &str, cluster: &mut Cluster, table: &mut Table, impossible: impl Fn(u64) -> bool) {
    cluster.fill(table);
    let what = format!("decision: {what}");
    for cycle in 0..CYCLES {
        cluster.finish(table, impossible(cycle as u64));
        for _ in 0..4 {
            let registry = &cluster.registry;
            let Some(next) = table.time(&what, || registry.next_admission(&cluster.reachable)) else { break };
            cluster.admit(next, table);
        }
    }
}

fn measure(size: Size) -> Table {
    let mut table = Table::default();
    let mut cluster = Cluster::of(size, settings(u32::MAX));
    cluster.queue_up(|_| false);
    decide("the limits of nodes bind", &mut cluster, &mut table, |_| false);
    entries(&mut cluster, &mut table);
    snapshots(&cluster.registry, &mut table);
    questions(&cluster, &mut table);

    let mut cluster = Cluster::of(size, settings(u32::MAX));
    cluster.queue_up(|n| n % 10 > 0);
    decide("nine of ten ask for what no node has", &mut cluster, &mut table, |n| n % 10 > 0);

    let mut cluster = Cluster::of(size, settings(u32::try_from(size.nodes / 20).expect("small")));
    cluster.queue_up(|_| false);
    decide("the limit of the cluster binds", &mut cluster, &mut table, |_| false);

    let full = ClusterSettings { parallel_inbound_migrations_per_node: Some(1), ..settings(u32::MAX) };
    let mut cluster = Cluster::of(size, full);
    cluster.queue_up(|_| false);
    decide("the targets are full", &mut cluster, &mut table, |_| false);
    table
}

/// The rarer entries, each many times.
fn entries(cluster: &mut Cluster, table: &mut Table) {
    let guests = cluster.size.guests;
    for n in 0..200 {
        let of_guest = guests - 1 - n;
        let tier = labels(&[("tier", (n % 9).to_string())]);
        let put =
            Command::PutInstance { name: guest_name(of_guest), labels: tier.clone(), body: None, home: None };
        table.time("entry: PutInstance", || cluster.apply(put));
        let body = cluster.registry.guests[&GuestUid(of_guest)].body.clone();
        let machine = Machine {
            labels: Labels::new(),
            runs: true,
            template_labels: Some(tier.clone()),
            body: Some(body),
        };
        let put = Command::PutMachine { name: guest_name(of_guest), machine, home: None };
        table.time("entry: PutMachine", || cluster.apply(put));
        let join =
            Command::Join { name: node_name(n % cluster.size.nodes), node: node(n % cluster.size.nodes) };
        table.time("entry: Join", || cluster.apply(join));
        let change = NodeChange::Put { labels: tier, cordoned: n % 2 == 0 };
        let put = Command::Node { node: node_name(n % 50), change };
        table.time("entry: Node", || cluster.apply(put));
        let pending = cluster.registry.queue().next().expect("one that waits");
        let name = cluster.registry.guests[&pending].ownership.attempt.as_ref().expect("a migration");
        let name = name.migration.clone();
        let overrides = Overrides { progress_timeout: Some(n), ..Overrides::default() };
        let set = Command::Set { migration: name.clone(), overrides };
        table.time("entry: Set", || cluster.apply(set));
        let placeable = Command::Placeable { migration: name.clone(), is: n % 2 == 0 };
        table.time("entry: Placeable", || cluster.apply(placeable));
        let end = Entry::End { migration: name, side: Side::Control, reason: "told to".into() };
        table.time("entry: End", || cluster.guest(pending.0, end));
    }
    for n in 0..10_u64 {
        let overrides = Overrides { progress_timeout: Some(200 + n), ..Overrides::default() };
        let policy =
            Policy { guest_selector: labels(&[("tier", "1".to_owned())]), overrides, ..Policy::default() };
        let put = Command::PutPolicy { name: "policy-1".parse().expect("a name"), policy };
        table.time("entry: PutPolicy, one tier in eight changes", || cluster.apply(put));
        let mut settings = cluster.registry.settings.clone();
        settings.parallel_inbound_migrations_per_node = Some(3 + u32::try_from(n).expect("small"));
        table.time("entry: PutSettings, limits change", || cluster.apply(Command::PutSettings { settings }));
        let mut settings = cluster.registry.settings.clone();
        settings.migration.max_downtime_ms = Some(300 + n);
        table.time("entry: PutSettings, all migrations change", || {
            cluster.apply(Command::PutSettings { settings });
        });
        let labels = labels(&[("team", n.to_string())]);
        let put = Command::PutNamespace { name: "project-1".to_owned(), labels };
        table.time("entry: PutNamespace", || cluster.apply(put));
    }
}

fn snapshots(registry: &Registry, table: &mut Table) {
    // As on the wire: bincode's fixed integers behind a length.
    let options = || bincode::DefaultOptions::new().with_fixint_encoding();
    for _ in 0..SNAPSHOTS {
        let bytes = table.time("snapshot: encode", || {
            let body = options().serialize(registry).expect("it is written");
            let mut framed = u64::try_from(body.len()).expect("a length").to_be_bytes().to_vec();
            framed.extend(body);
            framed
        });
        table.add("snapshot: KiB", bytes.len() as f64 / 1024.0);
        let read: Registry = table
            .time("snapshot: decode and count", || options().deserialize(&bytes[8..]).expect("it is read"));
        assert!(read == *registry, "a snapshot is the registry");
    }
}

/// What people and the leader ask beside decisions.
fn questions(cluster: &Cluster, table: &mut Table) {
    let (registry, reachable) = (&cluster.registry, &cluster.reachable);
    let waiting: Vec<MigrationId> = registry
        .migrating()
        .map(|(_, guest)| guest)
        .filter_map(|guest| {
            let attempt = guest.ownership.attempt.as_ref()?;
            (attempt.phase.name() == "Pending").then(|| attempt.migration.clone())
        })
        .collect();
    for name in waiting.iter().step_by(waiting.len() / 100 + 1) {
        table.time("question: wait_reason", || registry.wait_reason(name, reachable));
        table.time("question: queue_position", || registry.queue_position(name));
    }
    for _ in 0..10 {
        table.time("question: unplaceable", || registry.unplaceable(reachable));
        table.time("question: the whole queue, in order", || registry.queue().count());
        let guest = &registry.guests[&GuestUid(1)];
        table.time("question: verdicts", || registry.verdicts(guest, &Wish::default(), reachable));
    }
}

fn main() {
    let (full, tenth) = (measure(FULL), measure(TENTH));
    println!(
        "{:<52}{:>10}{:>10}{:>10}{:>10}{:>8}",
        "µs unless said otherwise", "tenth p50", "p99", "full p50", "p99", "ratio"
    );
    for what in full.0.keys() {
        let of = |table: &Table| (table.quantile(what, 0.5), table.quantile(what, 0.99));
        let ((small, small_99), (large, large_99)) = (of(&tenth), of(&full));
        let ratio = large / small;
        println!("{what:<52}{small:>10.1}{small_99:>10.1}{large:>10.1}{large_99:>10.1}{ratio:>8.1}");
    }
    println!("full: 1,000 nodes, 20,000 guests, 5,000 waiting migrations; tenth: a tenth of each");
}
