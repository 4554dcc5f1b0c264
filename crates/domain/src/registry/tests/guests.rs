//! Guests are wished for, made, changed and forgotten; and what is kept of their migrations.

use super::*;
use crate::qemu::{Adopted, Qemu};

fn machine(body: Option<Body>, runs: bool) -> Machine {
    Machine { labels: Labels::new(), runs, template_labels: Some(labels(&[("tier", "gold")])), body }
}

fn put(n: u64, machine: Machine, home: Option<&str>) -> Command {
    let home = home.map(|node| Home { uid: GuestUid(n), node: name(node) });
    Command::PutMachine { name: guest_name(n), machine, home }
}

fn body(memory_bytes: u64) -> Option<Body> {
    Some(Body::of(GuestSpec::idle(memory_bytes)))
}

#[test]
fn a_virtual_machine_makes_its_guest_where_it_is_told() {
    let mut registry = cluster(0);
    assert!(refused(&mut registry, put(0, machine(None, true), Some("a"))).contains("domain.memory.guest"));
    assert!(refused(&mut registry, put(0, machine(None, false), None)).contains("domain.memory.guest"));
    apply(&mut registry, put(0, machine(body(GIB), false), None));
    assert_eq!((registry.guests.len(), registry.machines.len()), (0, 1), "a wish alone");
    // Said again without a template spec: what was said of it stays, and its guest is made from that.
    let effects = apply(&mut registry, put(0, machine(None, true), Some("b")));
    assert_eq!(effects, BTreeSet::from([Effect { node: name("b"), guest: GuestUid(0) }]));
    let (uid, guest) = registry.guest_named(&guest_name(0)).expect("made");
    assert_eq!((uid, guest.memory_bytes()), (GuestUid(0), GIB));
    assert_eq!(
        registry.subject(guest).guest,
        &labels(&[("tier", "gold")]),
        "the template's, for as long as it has some"
    );
    assert_eq!(registry.machines[&guest_name(0)].body, body(GIB));
    assert_eq!(registry.free_memory_bytes(&name("b")), 7 * GIB);
}

#[test]
fn a_guest_is_not_made_where_it_can_not_be() {
    let mut registry = cluster(1);
    apply(&mut registry, put_node("b", &[], true));
    apply(&mut registry, Command::Fence { node: name("c"), boot: BootId(1), instances: BTreeSet::new() });
    for (n, bytes, home, text) in [
        (1, GIB, "b", "it is cordoned"),
        (1, GIB, "c", "is fenced"),
        (1, GIB, "z", "no node z"),
        (1, 8 * GIB, "a", "7516192768 bytes free, the guest needs 8589934592"),
    ] {
        assert!(
            refused(&mut registry, put(n, machine(body(bytes), true), Some(home))).contains(text),
            "{text}"
        );
    }
    let taken = create(0, 5, name("a"));
    assert!(refused(&mut registry, taken).contains("was used before"));
    let mut hostile = Body::of(GuestSpec::idle(GIB));
    hostile.node_selector = labels(&[("no key", "x")]);
    for home in [None, Some("a")] {
        let put = put(1, machine(Some(hostile.clone()), true), home);
        assert!(refused(&mut registry, put).contains("label key"));
    }
    assert!(refused(&mut registry, put_instance(0, &[("a", "-")], None)).contains("label a"));
}

#[test]
fn what_a_running_guest_is_made_of_stays_and_where_it_may_go_can_change() {
    let mut registry = cluster(1);
    let spec = GuestSpec::idle(GIB);
    let fixed = [
        (Body::of(GuestSpec::idle(2 * GIB)), "its memory"),
        (Body::of(GuestSpec { threads: 9, ..spec.clone() }), "its workload"),
        (Body { local_disks_bytes: 1, ..Body::of(spec.clone()) }, "its local disks"),
    ];
    for (body, text) in fixed {
        let instance = put_instance(0, &[], Some(body.clone()));
        assert!(refused(&mut registry, instance).contains(text), "{text}");
        assert!(refused(&mut registry, put(0, machine(Some(body), true), None)).contains(text), "{text}");
    }
    apply(&mut registry, put_node("c", &[("zone", "y")], false));
    ask(&mut registry, 0, None);
    let moved = Body { node_selector: labels(&[("zone", "y")]), ..Body::of(spec) };
    apply(&mut registry, put(0, machine(Some(moved), true), None));
    assert_eq!(admitted(&mut registry), [(0, "c".to_owned())], "for one that waits too");
}

#[test]
fn labels_alone_change_nothing_else_of_a_guest() {
    let mut registry = cluster(0);
    apply(&mut registry, put(0, machine(body(2 * GIB), true), Some("a")));
    entry(&mut registry, 0, Entry::Delete);
    entry(&mut registry, 0, Entry::Purged { node: name("a") });
    // The name is used again, by a guest of another size that no VirtualMachine has described.
    apply(&mut registry, create(1, 0, name("a")));
    apply(&mut registry, put(0, machine(None, true), None));
    let (_, guest) = registry.guest_named(&guest_name(0)).expect("there");
    assert_eq!(guest.memory_bytes(), GIB);
    assert_eq!(registry.free_memory_bytes(&name("a")), 7 * GIB);
}

#[test]
fn a_virtual_machine_that_is_deleted_or_shall_not_run_takes_its_guest_along() {
    let mut registry = cluster(1);
    apply(&mut registry, put(0, machine(None, true), None));
    apply(&mut registry, Command::DeleteMachine { name: guest_name(0) });
    let life = |registry: &Registry, n| registry.guests[&GuestUid(n)].ownership.life.name();
    assert!(life(&registry, 0) == "Deleting" && registry.machines.is_empty());
    // Its name is free when it is gone, and not before: a wish that nobody would fulfil is refused.
    assert!(refused(&mut registry, put(0, machine(body(GIB), true), Some("b"))).contains("is being ended"));
    entry(&mut registry, 0, Entry::Purged { node: name("a") });
    let again = Command::DeleteMachine { name: guest_name(0) };
    assert!(refused(&mut registry, again).contains("no VirtualMachine default/vm0"));
    let mut registry = cluster(1);
    apply(&mut registry, put(0, machine(None, true), None));
    apply(&mut registry, put(0, machine(None, false), None));
    assert_eq!(life(&registry, 0), "Deleting", "it shall not run");
    apply(&mut registry, put(0, machine(None, false), None));
}

#[test]
fn five_migrations_are_kept_of_a_guest() {
    let mut registry = cluster(1);
    for m in 0..8 {
        apply(&mut registry, migrate(0, m, Wish::default()));
        end(&mut registry, 0, Side::Source);
    }
    let kept: Vec<bool> = (0..8).map(|m| registry.guest_of(&migration(m)).is_some()).collect();
    assert_eq!(kept, [false, false, false, true, true, true, true, true]);
    assert_eq!(registry.asked, 8);
    // Asked for again it is the finished one; in other words it is refused; a name that is forgotten is free.
    apply(&mut registry, migrate(0, 3, Wish::default()));
    assert_eq!(registry.asked, 8);
    assert!(
        refused(&mut registry, migrate(0, 3, with_priority(Priority::Low))).contains("choose another name")
    );
    apply(&mut registry, migrate(0, 2, Wish::default()));
    let forget = |m| Command::ForgetMigration { migration: migration(m) };
    assert!(refused(&mut registry, forget(2)).contains("m2 is not over"));
    apply(&mut registry, forget(5));
    assert!(registry.guest_of(&migration(5)).is_none());
    assert!(refused(&mut registry, forget(5)).contains("no migration m5"));
}

#[test]
fn ten_thousand_earlier_migrations_are_kept_of_all_and_the_last_of_each_guest() {
    // Guests of no size, so that there is room for all.
    let mut registry = cluster(0);
    let guests = 2_600;
    for n in 0..guests {
        let home = Some(Home { uid: GuestUid(n), node: name("a") });
        let body = Some(Body::of(GuestSpec::idle(0)));
        apply(&mut registry, Command::PutInstance { name: guest_name(n), labels: Labels::new(), body, home });
        entry(&mut registry, n, Entry::Born { instance: instance(n) });
    }
    for round in 0..5 {
        for n in 0..guests {
            apply(&mut registry, migrate(n, round * guests + n, Wish::default()));
            end(&mut registry, n, Side::Source);
        }
    }
    let finished: usize = registry.guests.values().map(|guest| guest.finished.len()).sum();
    assert_eq!(finished, 10_000);
    let forgotten = (0..guests).filter(|m| registry.guest_of(&migration(*m)).is_none()).count();
    assert_eq!(forgotten, 400, "the oldest");
    assert!((0..400).all(|m| registry.guest_of(&migration(m)).is_none()));
    let last = |n: &u64| registry.guest_of(&migration(4 * guests + n)).is_some();
    assert!((0..guests).all(|n| last(&n)));
}

#[test]
fn whoever_may_hold_a_copy_hears_that_a_lost_guest_runs_again() {
    let mut registry = cluster(1);
    ask(&mut registry, 0, Some("b"));
    admit_all(&mut registry);
    copy(&mut registry, 0);
    succeed(&mut registry, 0);
    // Node a was away and still has its paused copy; of a guest that is lost it keeps it.
    let owner = registry.guests[&GuestUid(0)].ownership.owner().expect("it lives").instance;
    entry(&mut registry, 0, Entry::Gone { instance: owner });
    let rung = entry(&mut registry, 0, Entry::Recover { instance: owner });
    let rung: Vec<String> = rung.into_iter().map(|effect| effect.node.to_string()).collect();
    assert_eq!(rung, ["a", "b"]);
}

#[test]
fn one_process_is_adopted_once() {
    let mut registry = cluster(0);
    let adopt = |n: u64, pid: i32, node: &str| {
        let adopted = Some(Adopted { pid, started_ticks: 7, qmp: format!("/run/qmp-{n}") });
        let qemu = Qemu { program: "q".to_owned(), arguments: Vec::new(), ram_id: "ram".to_owned(), adopted };
        let spec = GuestSpec { qemu: Some(qemu), ..GuestSpec::idle(GIB) };
        Command::PutInstance {
            name: guest_name(n),
            labels: Labels::new(),
            body: Some(Body::of(spec)),
            home: Some(Home { uid: GuestUid(n), node: name(node) }),
        }
    };
    apply(&mut registry, adopt(0, 41, "a"));
    let twice = refused(&mut registry, adopt(1, 41, "a"));
    assert!(twice.contains("is guest") && twice.contains("already"), "{twice}");
    apply(&mut registry, adopt(1, 42, "a"));
    apply(&mut registry, adopt(2, 41, "b"));
}
