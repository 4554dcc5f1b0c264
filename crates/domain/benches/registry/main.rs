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

mod cluster;

use godwit_domain::machine::Machine;
use godwit_domain::ownership::{Entry, Side};
use godwit_domain::policy::Policy;
use godwit_domain::registry::{Command, GuestUid, NodeChange, Registry, Wish};
use godwit_domain::{ClusterSettings, Labels, MigrationId, Overrides};
use godwit_wire::log;

use cluster::{Asks, Cluster, Table, guest_name, labels, node, node_name, settings};

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

/// One ends, the next is chosen and admitted, over and over.
fn decide(what: &str, cluster: &mut Cluster, table: &mut Table, asks: impl Fn(u64) -> Asks) {
    cluster.fill(table);
    let what = format!("decision: {what}");
    for cycle in 0..CYCLES {
        cluster.finish(table, asks(cycle as u64));
        for _ in 0..4 {
            let registry = &cluster.registry;
            let Some(next) = table.time(&what, || registry.next_admission(&cluster.reachable)) else { break };
            cluster.admit(next, table);
        }
    }
}

fn nine_of_ten(asks: Asks) -> impl Fn(u64) -> Asks {
    move |n| if n.is_multiple_of(10) { Asks::This } else { asks }
}

fn measure(size: Size) -> Table {
    let mut table = Table::default();
    let mut cluster = Cluster::of(size, settings(u32::MAX));
    cluster.queue_up(|_| Asks::This);
    decide("the limits of nodes bind", &mut cluster, &mut table, |_| Asks::This);
    entries(&mut cluster, &mut table);
    snapshots(&cluster.registry, &mut table);
    questions(&cluster, &mut table);

    let mut cluster = Cluster::of(size, settings(u32::MAX));
    cluster.queue_up(nine_of_ten(Asks::None));
    decide("nine of ten ask for what no node has", &mut cluster, &mut table, nine_of_ten(Asks::None));

    let mut cluster = Cluster::of(size, settings(u32::try_from(size.nodes / 20).expect("small")));
    cluster.queue_up(|_| Asks::This);
    decide("the limit of the cluster binds", &mut cluster, &mut table, |_| Asks::This);

    let mut cluster = Cluster::of(size, settings(u32::MAX));
    cluster.queue_up(nine_of_ten(Asks::NoneEach));
    decide(
        "nine of ten ask for something else that no node has",
        &mut cluster,
        &mut table,
        nine_of_ten(Asks::NoneEach),
    );

    let mut cluster = Cluster::of(size, settings(u32::MAX));
    for n in 0..size.nodes / 2 {
        let change = NodeChange::Put { labels: Labels::new(), cordoned: true };
        cluster.apply(Command::Node { node: node_name(n), change });
    }
    cluster.queue_up(nine_of_ten(Asks::FullNode));
    decide("nine of ten name a node that takes none", &mut cluster, &mut table, nine_of_ten(Asks::FullNode));

    let full = ClusterSettings { parallel_inbound_migrations_per_node: Some(1), ..settings(u32::MAX) };
    let mut cluster = Cluster::of(size, full);
    cluster.queue_up(|_| Asks::This);
    decide("the targets are full", &mut cluster, &mut table, |_| Asks::This);
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
        let change = NodeChange::Put { labels: tier, cordoned: n.is_multiple_of(2) };
        let put = Command::Node { node: node_name(n % 50), change };
        table.time("entry: Node", || cluster.apply(put));
        let pending = cluster.registry.queue().next().expect("one that waits");
        let name = cluster.registry.guests[&pending].ownership.attempt.as_ref().expect("a migration");
        let name = name.migration.clone();
        let overrides = Overrides { progress_timeout: Some(n), ..Overrides::default() };
        let set = Command::Set { migration: name.clone(), overrides };
        table.time("entry: Set", || cluster.apply(set));
        let placeable = Command::Placeable { migration: name.clone(), is: n.is_multiple_of(2) };
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
    for _ in 0..SNAPSHOTS {
        let encode = || log::encode_snapshot(registry).expect("it is written");
        let bytes = table.time("snapshot: encode", encode);
        table.add("snapshot: KiB", bytes.len() as f64 / 1024.0);
        let decode = || log::decode_snapshot(&bytes).expect("it is read");
        let read: Registry = table.time("snapshot: decode and count", decode);
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
