//! The registry as stories. Here what all of them are made of, and those about guests, nodes and permits.
//!
//! ```text
//!   queue, placement, layers, drain, requests, met, guests    stories and tables
//!   random ◀─ oracle                                      the laws under random commands, against a plain count
//! ```

mod drain;
mod founding;
mod guests;
mod layers;
mod met;
mod oracle;
mod placement;
mod queue;
mod random;
mod requests;

use super::*;
use crate::ids::Epoch;
use crate::ownership::{Entry, Mode, Side};
use crate::settings::{Overrides, Priority};

const GIB: u64 = 1 << 30;

fn name(text: &str) -> NodeName {
    text.parse().expect("a node name")
}

fn guest_name(n: u64) -> GuestName {
    format!("vm{n}").parse().expect("a guest name")
}

fn migration(n: u64) -> MigrationId {
    format!("m{n}").parse().expect("a migration name")
}

fn instance(n: u64) -> InstanceId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    InstanceId::from_random(bytes)
}

fn node(memory_bytes: u64) -> Node {
    let address = core::net::SocketAddr::from(([127, 0, 0, 1], 7400));
    Node::new(address, address, BootId(1), memory_bytes)
}

fn stamped(time_ms: u64, command: Command) -> Stamped {
    Stamped { time_ms, request: None, command }
}

/// Nodes a, b and c of 8 GiB, and so many guests of 1 GiB on a.
fn cluster(guests: u64) -> Registry {
    let mut registry = Registry::default();
    for node_name in ["a", "b", "c"] {
        let join = Command::Join { name: name(node_name), node: node(8 * GIB) };
        registry.apply(stamped(1, join)).expect("join");
    }
    for n in 0..guests {
        let node = name("a");
        let create = create(n, n, node);
        registry.apply(stamped(1, create)).expect("create");
        registry.apply(about(n, Entry::Born { instance: instance(n) })).expect("born");
    }
    registry
}

/// Guest number `uid`, named after `n`.
fn create(uid: u64, n: u64, node: NodeName) -> Command {
    Command::PutInstance {
        name: guest_name(n),
        labels: Labels::new(),
        body: Some(Body::of(GuestSpec::idle(GIB))),
        home: Some(Home { uid: GuestUid(uid), node }),
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn limits(cluster: u32, outbound: u32, inbound: u32) -> Command {
    let settings = ClusterSettings {
        parallel_migrations_per_cluster: Some(cluster),
        parallel_outbound_migrations_per_node: Some(outbound),
        parallel_inbound_migrations_per_node: Some(inbound),
        ..ClusterSettings::default()
    };
    Command::PutSettings { settings }
}

/// Migration `m` of guest `n`.
fn migrate(n: u64, m: u64, wish: Wish) -> Command {
    Command::Migrate { guest: GuestUid(n), migration: migration(m), wish }
}

fn ask(registry: &mut Registry, n: u64, target: Option<&str>) {
    let wish = Wish { target: target.map(name), ..Wish::default() };
    registry.apply(stamped(2, migrate(n, n, wish))).expect("asked");
}

fn all() -> BTreeSet<NodeName> {
    ["a", "b", "c"].map(name).into()
}

/// Admits all that can be admitted now; returns them.
fn admit_all(registry: &mut Registry) -> Vec<(MigrationId, NodeName)> {
    let mut admitted = Vec::new();
    while let Some((guest, migration, target)) = registry.next_admission(&all()) {
        let admit = Command::Admit { guest, migration: migration.clone(), target: target.clone() };
        registry.apply(stamped(3, admit)).expect("what is chosen is admitted");
        admitted.push((migration, target));
    }
    admitted
}

fn about(n: u64, entry: Entry) -> Stamped {
    stamped(4, Command::Guest { guest: GuestUid(n), entry })
}

/// Applies what must not be refused, at the present time.
fn apply(registry: &mut Registry, command: Command) -> BTreeSet<Effect> {
    let time_ms = registry.time_ms;
    registry.apply(stamped(time_ms, command)).expect("it is not refused")
}

fn refused(registry: &mut Registry, command: Command) -> String {
    let (time_ms, before) = (registry.time_ms, registry.clone());
    let refusal = registry.apply(stamped(time_ms, command)).expect_err("it is refused");
    assert_eq!(*registry, before, "a refused command changes nothing");
    refusal.to_string()
}

/// Lets replicated time go on.
fn wait(registry: &mut Registry, ms: u64) {
    let (time_ms, settings) = (registry.time_ms + ms, registry.settings.clone());
    registry.apply(stamped(time_ms, Command::PutSettings { settings })).expect("the same settings again");
}

fn entry(registry: &mut Registry, n: u64, entry: Entry) -> BTreeSet<Effect> {
    apply(registry, Command::Guest { guest: GuestUid(n), entry })
}

fn present(registry: &Registry, n: u64) -> (MigrationId, Epoch) {
    let ownership = &registry.guests[&GuestUid(n)].ownership;
    (ownership.attempt.as_ref().expect("a migration").migration.clone(), ownership.epoch)
}

fn record(registry: &Registry, n: u64) -> &Record {
    registry.guests[&GuestUid(n)].record.as_ref().expect("a record")
}

/// Ends the present migration of guest `n`; its source or its operator says so.
fn end(registry: &mut Registry, n: u64, side: Side) {
    let migration = present(registry, n).0;
    entry(registry, n, Entry::End { migration, side, reason: "told to".into() });
}

/// Takes the admitted migration of guest `n` as far as copying.
fn copy(registry: &mut Registry, n: u64) {
    let (migration, epoch) = present(registry, n);
    let instance = instance(1000 + registry.asked * 100 + n);
    entry(registry, n, Entry::Accept { migration, epoch, instance });
}

/// Takes the copying migration of guest `n` to its end.
fn succeed(registry: &mut Registry, n: u64) {
    let (migration, epoch) = present(registry, n);
    entry(registry, n, Entry::HandOver { migration, epoch, mode: Mode::StopAndCopy });
    let (migration, epoch) = present(registry, n);
    entry(registry, n, Entry::Running { migration, epoch });
}

fn with_priority(priority: Priority) -> Wish {
    Wish { overrides: Overrides { priority: Some(priority), ..Overrides::default() }, ..Wish::default() }
}

fn put_node(node: &str, pairs: &[(&str, &str)], cordoned: bool) -> Command {
    Command::Node { node: name(node), change: NodeChange::Put { labels: labels(pairs), cordoned } }
}

fn change_node(node: &str, change: NodeChange) -> Command {
    Command::Node { node: name(node), change }
}

fn policy_name(text: &str) -> PolicyName {
    text.parse().expect("a policy name")
}

/// A policy for guests with these labels.
fn put_policy(policy: &str, guests: &[(&str, &str)], overrides: Overrides) -> Command {
    let policy_of = Policy { namespace_selector: Labels::new(), guest_selector: labels(guests), overrides };
    Command::PutPolicy { name: policy_name(policy), policy: policy_of }
}

/// The labels of guest `n`, and, if they are given, what it is like.
fn put_instance(n: u64, pairs: &[(&str, &str)], body: Option<Body>) -> Command {
    Command::PutInstance { name: guest_name(n), labels: labels(pairs), body, home: None }
}

/// The queue, as numbers of guests.
fn queue(registry: &Registry) -> Vec<u64> {
    registry.queue().map(|uid| uid.0).collect()
}

/// Where everything that can be admitted now goes, as numbers of guests and names of nodes.
fn admitted(registry: &mut Registry) -> Vec<(u64, String)> {
    let admitted = admit_all(registry).into_iter();
    let of = |migration: &MigrationId| registry.guest_of(migration).map_or(u64::MAX, |(uid, _)| uid.0);
    admitted.map(|(migration, node)| (of(&migration), node.to_string())).collect()
}

#[test]
fn two_leave_a_node_and_the_third_says_what_it_waits_for() {
    let mut registry = cluster(3);
    for n in 0..3 {
        ask(&mut registry, n, None);
    }
    // Most free memory first, then by name: b, then c.
    assert_eq!(admit_all(&mut registry), [(migration(0), name("b")), (migration(1), name("c"))]);
    let reason = registry.wait_reason(&migration(2), &all()).expect("it waits");
    let holders = vec![migration(0), migration(1)];
    assert_eq!(reason, WaitReason::OutboundLimit { node: name("a"), limit: 2, holders });
    assert_eq!(registry.queue_position(&migration(2)), Some(1));
    let end = Entry::End { migration: migration(0), side: Side::Source, reason: "link".into() };
    registry.apply(about(0, end)).expect("end");
    assert_eq!(admit_all(&mut registry), [(migration(2), name("b"))]);
}

#[test]
fn permits_of_a_cancelled_migration_are_held_until_a_node_has_let_go() {
    let mut registry = cluster(1);
    ask(&mut registry, 0, None);
    admit_all(&mut registry);
    let cancel = Entry::End { migration: migration(0), side: Side::Operator, reason: "cancel".into() };
    registry.apply(about(0, cancel)).expect("cancelled");
    assert_eq!(registry.granted().count(), 1, "held");
    registry.apply(about(0, Entry::Dropped { migration: migration(0) })).expect("dropped");
    assert_eq!(registry.granted().count(), 0);
}

#[test]
fn one_that_waits_for_a_node_does_not_hold_up_those_behind_it() {
    let mut registry = cluster(3);
    registry.apply(stamped(2, limits(5, 5, 1))).expect("limits");
    ask(&mut registry, 0, Some("b"));
    ask(&mut registry, 1, Some("b"));
    ask(&mut registry, 2, None);
    assert_eq!(admit_all(&mut registry), [(migration(0), name("b")), (migration(2), name("c"))]);
    let text = registry.wait_reason(&migration(1), &all()).expect("it waits").to_string();
    assert!(
        text.contains("b: 1 migrations enter it, as many as allowed: m0")
            && text.contains("c: another node was asked for"),
        "{text}"
    );
}

#[test]
fn memory_is_reserved_with_the_permits_and_a_guest_too_large_says_so() {
    let mut registry = cluster(1);
    let small = Command::Join { name: name("b"), node: node(GIB - 1) };
    registry.apply(stamped(2, small)).expect("join");
    ask(&mut registry, 0, Some("b"));
    assert_eq!(registry.next_admission(&all()), None);
    let admit = Command::Admit { guest: GuestUid(0), migration: migration(0), target: name("b") };
    let refusal = registry.apply(stamped(2, admit)).expect_err("no room").to_string();
    assert!(refusal.contains("1073741823 bytes are free, 1073741824 are needed"), "{refusal}");
    let grown = Command::Join { name: name("b"), node: node(GIB) };
    registry.apply(stamped(2, grown)).expect("join");
    admit_all(&mut registry);
    assert_eq!(registry.free_memory_bytes(&name("b")), 0);
}

#[test]
fn who_declines_is_asked_last() {
    let mut registry = cluster(1);
    ask(&mut registry, 0, None);
    assert_eq!(admit_all(&mut registry), [(migration(0), name("b"))]);
    let decline = Entry::Decline { migration: migration(0), epoch: Epoch::FIRST };
    registry.apply(about(0, decline)).expect("declined");
    assert_eq!(admit_all(&mut registry), [(migration(0), name("c"))]);
}

#[test]
fn a_name_is_free_again_only_when_the_guest_is_purged() {
    let mut registry = cluster(1);
    registry.apply(about(0, Entry::Delete)).expect("delete");
    let node_name = name("b");
    let again = create(9, 0, node_name);
    let refused = registry.apply(stamped(5, again.clone()));
    assert_eq!(refused, Err(Refusal::Ending(guest_name(0))));
    registry.apply(about(0, Entry::Purged { node: name("a") })).expect("purged");
    registry.apply(stamped(5, again)).expect("free again");
}

#[test]
fn a_fence_is_about_one_boot_and_ends_when_the_node_has_seen_it() {
    let mut registry = cluster(2);
    let instances = registry.instances_on(&name("a"));
    assert_eq!(instances.len(), 2);
    let fence = |boot| Command::Fence { node: name("a"), boot: BootId(boot), instances: instances.clone() };
    assert!(matches!(registry.apply(stamped(3, fence(7))), Err(Refusal::OtherBoot { .. })));
    let effects = registry.apply(stamped(3, fence(1))).expect("fenced");
    assert!(effects.iter().all(|effect| effect.node == name("a")));
    assert!(registry.guests.values().all(|guest| guest.ownership.life.name() == "Lost"));
    let rejoin = Command::Join { name: name("a"), node: node(8 * GIB) };
    registry.apply(stamped(4, rejoin)).expect("it comes back");
    let node_name = name("a");
    let create = create(9, 9, node_name);
    assert_eq!(registry.apply(stamped(4, create.clone())), Err(Refusal::Fenced(name("a"))));
    registry.apply(stamped(5, Command::FenceSeen { node: name("a") })).expect("seen");
    registry.apply(stamped(5, create)).expect("a guest again");
}

#[test]
fn the_same_migration_asked_for_twice_is_one() {
    let mut registry = cluster(2);
    ask(&mut registry, 0, None);
    ask(&mut registry, 0, None);
    assert_eq!(registry.asked, 1);
    let taken = migrate(1, 0, Wish::default());
    assert_eq!(registry.apply(stamped(3, taken)), Err(Refusal::MigrationTaken(guest_name(0))));
}

#[test]
fn replicated_time_never_runs_back() {
    let mut registry = cluster(0);
    registry.apply(stamped(9, limits(5, 2, 2))).expect("limits");
    registry.apply(stamped(5, limits(5, 2, 2))).expect("limits");
    assert_eq!(registry.time_ms, 9);
}
