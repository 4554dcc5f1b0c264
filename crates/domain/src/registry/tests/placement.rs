//! Where a guest goes, and why not elsewhere.

use super::*;

/// Guest 0 of 1 GiB on a, which asks for `own` of every node that runs it.
fn guest_that_asks_for(own: &[(&str, &str)]) -> Registry {
    let mut registry = cluster(1);
    let body = Body { node_selector: labels(own), ..Body::of(GuestSpec::idle(GIB)) };
    apply(&mut registry, put_instance(0, &[], Some(body)));
    registry
}

fn added(pairs: &[(&str, &str)]) -> Wish {
    Wish { selector: labels(pairs), ..Wish::default() }
}

fn chosen(registry: &Registry) -> Option<String> {
    registry.next_admission(&all()).map(|(_, _, target)| target.to_string())
}

/// Where guest 0 would go with this wish: as the verdicts say, and as it is granted. They are the same.
fn goes_to(registry: &Registry, wish: Wish) -> Option<String> {
    let guest = &registry.guests[&GuestUid(0)];
    let said = registry.would_go_to(guest, &wish, &all()).map(|node| node.to_string());
    let mut registry = registry.clone();
    apply(&mut registry, migrate(0, 77, wish));
    assert_eq!(chosen(&registry), said);
    said
}

fn why_not(registry: &Registry, node: &str, wish: &Wish) -> Option<Obstacle> {
    let guest = &registry.guests[&GuestUid(0)];
    registry.verdicts(guest, wish, &all())[&name(node)].clone().err()
}

#[test]
fn both_selectors_must_be_met_and_on_a_clash_the_guests_own_value_wins() {
    type Pairs = &'static [(&'static str, &'static str)];
    // b: zone x, disk ssd. c: zone y.
    let cases: [(Pairs, Pairs, Option<&str>); 9] = [
        (&[], &[], Some("b")),
        (&[("zone", "y")], &[], Some("c")),
        (&[], &[("zone", "y")], Some("c")),
        (&[("zone", "x")], &[("disk", "ssd")], Some("b")),
        (&[("zone", "y")], &[("disk", "ssd")], None),
        (&[("zone", "x")], &[("zone", "y")], Some("b")),
        (&[("zone", "y")], &[("zone", "x")], Some("c")),
        (&[], &[("disk", "")], None),
        (&[], &[("Zone", "y")], None),
    ];
    for (own, wished, expected) in cases {
        let mut registry = guest_that_asks_for(own);
        apply(&mut registry, put_node("b", &[("zone", "x"), ("disk", "ssd")], false));
        apply(&mut registry, put_node("c", &[("zone", "y")], false));
        assert_eq!(goes_to(&registry, added(wished)).as_deref(), expected, "{own:?} and {wished:?}");
    }
}

#[test]
fn an_added_selector_is_for_one_attempt_alone() {
    let mut registry = cluster(1);
    apply(&mut registry, put_node("c", &[("zone", "y")], false));
    apply(&mut registry, migrate(0, 0, added(&[("zone", "y")])));
    assert_eq!(admitted(&mut registry), [(0, "c".to_owned())]);
    copy(&mut registry, 0);
    end(&mut registry, 0, Side::Target);
    apply(&mut registry, migrate(0, 1, Wish::default()));
    assert_eq!(admitted(&mut registry), [(0, "b".to_owned())]);
}

#[test]
fn labels_of_config_and_manifest_are_one_set_and_the_manifest_wins() {
    let mut registry = cluster(1);
    let mut configured = node(8 * GIB);
    configured.labels = labels(&[("kubernetes.io/hostname", "c"), ("zone", "x"), ("rack", "1")]);
    apply(&mut registry, Command::Join { name: name("c"), node: configured.clone() });
    let only_c =
        |registry: &Registry, key, value| goes_to(registry, added(&[(key, value)])).as_deref() == Some("c");
    assert!(only_c(&registry, "kubernetes.io/hostname", "c") && only_c(&registry, "zone", "x"));
    apply(&mut registry, put_node("c", &[("zone", "y"), ("disk", "")], false));
    for (key, value, is) in
        [("zone", "y", true), ("zone", "x", false), ("rack", "1", true), ("disk", "", true)]
    {
        assert_eq!(only_c(&registry, key, value), is, "{key}={value}");
    }
    // It joins again with other labels of its own: those of the manifest stay.
    configured.labels = labels(&[("zone", "z"), ("rack", "2")]);
    apply(&mut registry, Command::Join { name: name("c"), node: configured });
    for (key, value, is) in [("zone", "y", true), ("rack", "2", true), ("rack", "1", false)] {
        assert_eq!(only_c(&registry, key, value), is, "{key}={value}");
    }
    apply(&mut registry, put_node("c", &[], false));
    assert!(only_c(&registry, "zone", "z"), "an edit replaces them");
    let has = Some("z".to_owned());
    let obstacle = Obstacle::Label { key: "zone".into(), value: "q".into(), has };
    assert_eq!(why_not(&registry, "c", &added(&[("zone", "q")])), Some(obstacle));
}

#[test]
fn every_reason_is_said_of_its_node() {
    let mut registry = cluster(1);
    for extra in ["d", "e", "f", "g"] {
        apply(&mut registry, Command::Join { name: name(extra), node: node(8 * GIB) });
    }
    apply(&mut registry, put_node("b", &[], true));
    apply(&mut registry, Command::Join { name: name("c"), node: node(GIB - 1) });
    let fence = Command::Fence { node: name("d"), boot: BootId(1), instances: BTreeSet::new() };
    apply(&mut registry, fence);
    apply(&mut registry, limits(5, 2, 0));
    let reachable: BTreeSet<NodeName> = ["a", "b", "c", "d", "f", "g"].map(name).into();
    apply(&mut registry, migrate(0, 0, Wish { target: Some(name("g")), ..Wish::default() }));
    let reason = registry.wait_reason(&migration(0), &reachable).expect("it waits").to_string();
    for text in [
        "a: the guest runs there",
        "b: another node was asked for",
        "e: it can not be reached",
        "g: no migration may enter a node",
    ] {
        assert!(reason.contains(text), "{text} is not in {reason}");
    }
    let verdicts = registry.verdicts(&registry.guests[&GuestUid(0)], &Wish::default(), &reachable);
    let said: Vec<Option<Obstacle>> = verdicts.into_values().map(Result::err).collect();
    let (free, needs) = (GIB - 1, GIB);
    let full = Obstacle::InboundLimit { limit: 0, holders: Vec::new() };
    let expected = [
        Obstacle::IsSource,
        Obstacle::Cordoned,
        Obstacle::Memory { free, needs },
        Obstacle::Fenced,
        Obstacle::Unreachable,
        full.clone(),
        full,
    ];
    assert_eq!(said, expected.map(Some));
    apply(&mut registry, limits(5, 2, 1));
    assert!(registry.unplaceable(&reachable).is_empty());
    let without_g: BTreeSet<NodeName> = ["a", "f"].map(name).into();
    assert_eq!(registry.unplaceable(&without_g), [(GuestUid(0), migration(0))]);
}

#[test]
fn a_limit_that_binds_is_not_the_lack_of_a_node() {
    let mut registry = cluster(1);
    apply(&mut registry, limits(0, 0, 0));
    ask(&mut registry, 0, None);
    assert!(registry.wait_reason(&migration(0), &all()).is_some());
    assert!(registry.unplaceable(&all()).is_empty(), "its time does not run");
    apply(&mut registry, put_node("b", &[], true));
    apply(&mut registry, put_node("c", &[], true));
    assert_eq!(registry.unplaceable(&all()), [(GuestUid(0), migration(0))]);
}

#[test]
fn a_migration_network_must_reach_both_ends() {
    let mut registry = cluster(1);
    let on = |registry: &mut Registry, node_name: &str| {
        let mut joining = node(8 * GIB);
        joining.networks.insert("fast".into(), joining.migration);
        apply(registry, Command::Join { name: name(node_name), node: joining });
    };
    let network = ClusterSettings { network: Some("fast".into()), ..ClusterSettings::default() };
    apply(&mut registry, Command::PutSettings { settings: network });
    ask(&mut registry, 0, None);
    on(&mut registry, "c");
    let source = WaitReason::SourceWithoutNetwork { node: name("a"), network: "fast".into() };
    assert_eq!((chosen(&registry), registry.wait_reason(&migration(0), &all())), (None, Some(source)));
    on(&mut registry, "a");
    assert_eq!(chosen(&registry).as_deref(), Some("c"), "b is not on it");
    let obstacle = Obstacle::Network { network: "fast".into() };
    assert_eq!(why_not(&registry, "b", &Wish::default()), Some(obstacle));
    let body = Body::of(GuestSpec::idle(8 * GIB));
    assert_eq!(registry.best_home(&body, &all()), Ok(name("b")), "a new guest needs no network to be made");
    assert_eq!(admitted(&mut registry), [(0, "c".to_owned())]);
    assert_eq!(record(&registry, 0).network.as_deref(), Some("fast"));
}

#[test]
fn the_best_has_the_most_free_memory_then_the_fewest_inbound_then_the_first_name() {
    let mut registry = cluster(4);
    apply(&mut registry, limits(9, 9, 9));
    let mut targets = Vec::new();
    for n in 0..4 {
        ask(&mut registry, n, None);
        targets.extend(admitted(&mut registry).into_iter().map(|(_, node)| node));
    }
    assert_eq!(targets, ["b", "c", "b", "c"], "each grant takes memory");
    // b gets back what it has lost to two reservations, so that both have as much free as c, with more inbound.
    apply(&mut registry, Command::Join { name: name("b"), node: node(9 * GIB) });
    apply(&mut registry, Command::Join { name: name("d"), node: node(7 * GIB) });
    apply(&mut registry, Command::Join { name: name("e"), node: node(7 * GIB) });
    let body = Body::of(GuestSpec::idle(GIB));
    let five: BTreeSet<NodeName> = ["a", "b", "c", "d", "e"].map(name).into();
    assert_eq!(registry.best_home(&body, &five), Ok(name("d")), "7 GiB, none inbound; e sorts after it");
    apply(&mut registry, Command::Join { name: name("c"), node: node(10 * GIB) });
    assert_eq!(registry.best_home(&body, &five), Ok(name("c")), "8 GiB");
    let none = registry.best_home(&Body::of(GuestSpec::idle(64 * GIB)), &all()).expect_err("too large");
    assert_eq!(none.len(), 5, "every node says why");
}

#[test]
fn who_declined_and_who_is_to_be_avoided_come_last_in_that_order() {
    let mut registry = cluster(1);
    apply(&mut registry, Command::Join { name: name("d"), node: node(2 * GIB) });
    let four: BTreeSet<NodeName> = ["a", "b", "c", "d"].map(name).into();
    apply(&mut registry, migrate(0, 0, Wish { avoid: Some(name("b")), ..Wish::default() }));
    let mut targets = Vec::new();
    for _ in 0..5 {
        let (guest, migration, target) = registry.next_admission(&four).expect("a target");
        apply(&mut registry, Command::Admit { guest, migration: migration.clone(), target: target.clone() });
        targets.push(target.to_string());
        let epoch = present(&registry, 0).1;
        entry(&mut registry, 0, Entry::Decline { migration, epoch });
    }
    assert_eq!(targets, ["c", "d", "b", "c", "d"]);
    let declined: Vec<String> = record(&registry, 0).declined.iter().map(NodeName::to_string).collect();
    assert_eq!(declined, ["b", "c", "d"]);
}

#[test]
fn what_can_not_be_is_refused_at_once() {
    let mut registry = cluster(2);
    let target = |node: &str| Wish { target: Some(name(node)), ..Wish::default() };
    assert!(refused(&mut registry, migrate(0, 0, target("a"))).contains("the guest is at a already"));
    assert!(refused(&mut registry, migrate(0, 0, target("z"))).contains("no node z"));
    apply(&mut registry, Command::Fence { node: name("b"), boot: BootId(1), instances: BTreeSet::new() });
    assert!(refused(&mut registry, migrate(0, 0, target("b"))).contains("node b is fenced"));
    let body = Body { local_disks_bytes: 5, ..Body::of(GuestSpec::idle(GIB)) };
    let home = Some(Home { uid: GuestUid(7), node: name("c") });
    let put = Command::PutInstance { name: guest_name(7), labels: Labels::new(), body: Some(body), home };
    apply(&mut registry, put);
    entry(&mut registry, 7, Entry::Born { instance: instance(7) });
    let text = refused(&mut registry, migrate(7, 7, Wish::default()));
    assert!(text.contains("default/vm7 has 5 bytes of local disks (BlockMigration)"), "{text}");
    ask(&mut registry, 0, None);
    assert!(refused(&mut registry, migrate(0, 1, Wish::default())).contains("m0 is not over"));
}

#[test]
fn the_time_without_a_node_begins_once_and_ends_with_the_admission() {
    let mut registry = cluster(1);
    ask(&mut registry, 0, None);
    let placeable = |is| Command::Placeable { migration: migration(0), is };
    wait(&mut registry, 1000);
    let began_ms = registry.time_ms;
    apply(&mut registry, placeable(false));
    wait(&mut registry, 1000);
    apply(&mut registry, placeable(false));
    assert_eq!(record(&registry, 0).unplaceable_since_ms, Some(began_ms));
    apply(&mut registry, placeable(true));
    assert_eq!(record(&registry, 0).unplaceable_since_ms, None);
    apply(&mut registry, placeable(false));
    assert_eq!(record(&registry, 0).unplaceable_since_ms, Some(registry.time_ms), "it begins anew");
    admit_all(&mut registry);
    assert_eq!(record(&registry, 0).unplaceable_since_ms, None);
    end(&mut registry, 0, Side::Source);
    assert!(refused(&mut registry, placeable(false)).contains("m0 is over"));
}

#[test]
fn of_those_that_carry_a_rare_label_the_best_is_taken() {
    let mut registry = cluster(1);
    for (node_name, gib) in [("d", 4), ("e", 6), ("f", 8), ("g", 8), ("h", 8), ("i", 8), ("j", 8)] {
        apply(&mut registry, Command::Join { name: name(node_name), node: node(gib * GIB) });
    }
    apply(&mut registry, put_node("d", &[("zone", "x")], false));
    apply(&mut registry, put_node("e", &[("zone", "x")], false));
    apply(&mut registry, migrate(0, 0, added(&[("zone", "x")])));
    let everywhere: BTreeSet<NodeName> = registry.nodes.keys().cloned().collect();
    let next = registry.next_admission(&everywhere).map(|(_, _, target)| target);
    assert_eq!(next, Some(name("e")), "6 GiB are more than 4");
}
