//! A node is emptied, tried again, cancelled, and used again.

use super::*;

/// What drains want now, as numbers of guests.
fn due(registry: &Registry) -> Vec<u64> {
    registry.due_for_drain(registry.time_ms).into_iter().map(|due| due.guest.0).collect()
}

/// Asks for what a drain wants of guest `n`, as the leader does; `m` names the migration.
fn ask_for(registry: &mut Registry, n: u64, m: u64) -> Due {
    let due = registry.due_for_drain(registry.time_ms);
    let due = due.into_iter().find(|due| due.guest == GuestUid(n)).expect("it is due");
    let wish = Wish { drains: Some(due.node.clone()), avoid: due.avoid.clone(), ..Wish::default() };
    apply(registry, migrate(n, m, wish));
    due
}

fn drain(registry: &mut Registry) {
    apply(registry, change_node("a", NodeChange::Drain));
}

fn tries(registry: &Registry, n: u64) -> Option<&Tries> {
    registry.drains[&name("a")].tries.get(&GuestUid(n))
}

#[test]
fn every_guest_is_due_at_once_and_goes_before_all_others() {
    let mut registry = cluster(4);
    apply(&mut registry, migrate(3, 9, with_priority(Priority::High)));
    drain(&mut registry);
    assert_eq!(due(&registry), [0, 1, 2], "the fourth moves already");
    for n in 0..3 {
        assert_eq!(ask_for(&mut registry, n, n).avoid, None);
    }
    assert_eq!(due(&registry), [0_u64; 0]);
    assert_eq!(queue(&registry), [0, 1, 2, 3]);
    assert_eq!(admitted(&mut registry).len(), 2, "its class does not lift a limit");
    for n in 0..2 {
        copy(&mut registry, n);
        succeed(&mut registry, n);
    }
    assert_eq!(registry.drains[&name("a")].moved, 2);
}

#[test]
fn a_failure_is_tried_again_after_a_rest_that_doubles_up_to_320_s() {
    let mut registry = cluster(1);
    drain(&mut registry);
    for (m, rest_s) in (0..).zip([20, 40, 80, 160, 320, 320, 320]) {
        let avoid = ask_for(&mut registry, 0, m).avoid;
        let to = admitted(&mut registry)[0].1.clone();
        if let Some(avoid) = avoid {
            assert_ne!(avoid, name(&to), "the node that has just failed comes last");
        }
        copy(&mut registry, 0);
        end(&mut registry, 0, Side::Target);
        wait(&mut registry, rest_s * 1000 - 1);
        assert_eq!(due(&registry), [0_u64; 0], "attempt {m}");
        wait(&mut registry, 1);
        assert_eq!(due(&registry), [0], "attempt {m}");
    }
    assert_eq!(tries(&registry, 0).expect("tries").failed, 7);
    ask_for(&mut registry, 0, 99);
    admit_all(&mut registry);
    copy(&mut registry, 0);
    succeed(&mut registry, 0);
    assert_eq!(tries(&registry, 0), None, "success resets");
}

#[test]
fn rests_are_those_of_the_table() {
    let rests: Vec<u64> = (1..8).map(retry_after_ms).collect();
    assert_eq!(rests, [20_000, 40_000, 80_000, 160_000, 320_000, 320_000, 320_000]);
    assert_eq!(retry_after_ms(u32::MAX), 320_000);
}

#[test]
fn the_node_that_failed_is_taken_again_if_it_is_the_only_one() {
    let mut registry = cluster(1);
    apply(&mut registry, put_node("c", &[], true));
    drain(&mut registry);
    ask_for(&mut registry, 0, 0);
    assert_eq!(admitted(&mut registry), [(0, "b".to_owned())]);
    end(&mut registry, 0, Side::Target);
    wait(&mut registry, 20_000);
    assert_eq!(ask_for(&mut registry, 0, 1).avoid, Some(name("b")));
    assert_eq!(admitted(&mut registry), [(0, "b".to_owned())]);
}

#[test]
fn what_an_operator_cancels_is_not_asked_for_again() {
    let mut registry = cluster(2);
    drain(&mut registry);
    ask_for(&mut registry, 0, 0);
    end(&mut registry, 0, Side::Operator);
    wait(&mut registry, 3_600_000);
    assert_eq!(due(&registry), [1]);
    assert!(tries(&registry, 0).expect("tries").stopped);
    drain(&mut registry);
    assert_eq!(due(&registry), [1], "drained already: the same drain");
}

#[test]
fn permits_that_are_held_keep_a_guest_from_being_due() {
    let mut registry = cluster(1);
    drain(&mut registry);
    ask_for(&mut registry, 0, 0);
    admit_all(&mut registry);
    end(&mut registry, 0, Side::Control);
    wait(&mut registry, 20_000);
    assert_eq!(due(&registry), [0_u64; 0]);
    entry(&mut registry, 0, Entry::Dropped { migration: migration(0) });
    assert_eq!(due(&registry), [0]);
}

#[test]
fn a_cancelled_drain_wants_nothing_and_keeps_its_cordon_and_a_new_one_starts_fresh() {
    let mut registry = cluster(2);
    drain(&mut registry);
    ask_for(&mut registry, 0, 0);
    end(&mut registry, 0, Side::Operator);
    apply(&mut registry, change_node("a", NodeChange::CancelDrain));
    wait(&mut registry, 3_600_000);
    assert_eq!(due(&registry), [0_u64; 0]);
    assert!(registry.is_cordoned(&name("a")));
    drain(&mut registry);
    assert_eq!(due(&registry), [0, 1], "what was stopped in the old one is not in the new one");
    let began_ms = registry.time_ms;
    assert_eq!(registry.drains[&name("a")], Drain { began_ms, ..Drain::default() });
}

#[test]
fn uncordon_ends_it_and_nothing_comes_back() {
    let mut registry = cluster(2);
    drain(&mut registry);
    ask_for(&mut registry, 0, 0);
    apply(&mut registry, change_node("a", NodeChange::Uncordon));
    let attempt = registry.guests[&GuestUid(0)].ownership.attempt.as_ref().expect("it was asked for");
    assert_eq!(attempt.phase.name(), "Cancelled", "what still waits ends with the drain");
    assert_eq!(registry.next_admission(&all()), None);
    wait(&mut registry, 3_600_000);
    assert_eq!(due(&registry), [0_u64; 0]);
    assert!(registry.drains.is_empty() && !registry.is_cordoned(&name("a")));
    assert!(refused(&mut registry, change_node("a", NodeChange::CancelDrain)).contains("not being drained"));
}

#[test]
fn no_guest_comes_to_a_node_that_is_drained_and_a_manifest_does_not_change_that() {
    let mut registry = cluster(1);
    apply(&mut registry, create(8, 8, name("b")));
    entry(&mut registry, 8, Entry::Born { instance: instance(8) });
    drain(&mut registry);
    apply(&mut registry, put_node("a", &[("zone", "x")], false));
    assert_eq!(due(&registry), [0], "the drain goes on");
    assert!(refused(&mut registry, create(9, 9, name("a"))).contains("it is cordoned"));
    ask(&mut registry, 8, Some("a"));
    assert_eq!(registry.next_admission(&all()), None);
    // Once it is cancelled, a manifest may lift the cordon; of the drain nothing is left then.
    apply(&mut registry, change_node("a", NodeChange::CancelDrain));
    apply(&mut registry, put_node("a", &[("zone", "x")], false));
    assert_eq!(admitted(&mut registry), [(8, "a".to_owned())]);
    assert!(registry.drains.is_empty());
}

#[test]
fn what_is_gone_is_not_among_the_tries() {
    let mut registry = cluster(3);
    drain(&mut registry);
    for n in 0..3 {
        ask_for(&mut registry, n, n);
        end(&mut registry, n, Side::Control);
    }
    assert_eq!(registry.drains[&name("a")].tries.len(), 3);
    // One is moved by hand, one is deleted while the drain's next attempt waits.
    apply(&mut registry, migrate(0, 10, Wish::default()));
    admit_all(&mut registry);
    copy(&mut registry, 0);
    succeed(&mut registry, 0);
    wait(&mut registry, 20_000);
    ask_for(&mut registry, 1, 11);
    entry(&mut registry, 1, Entry::Delete);
    let left: Vec<u64> = registry.drains[&name("a")].tries.keys().map(|uid| uid.0).collect();
    assert_eq!(left, [2]);
}

#[test]
fn a_guest_with_local_disks_is_never_due_and_a_node_that_is_unknown_is_not_drained() {
    let mut registry = cluster(1);
    let body = Body { local_disks_bytes: 1, ..Body::of(GuestSpec::idle(GIB)) };
    let home = Some(Home { uid: GuestUid(7), node: name("a") });
    let put = Command::PutInstance { name: guest_name(7), labels: Labels::new(), body: Some(body), home };
    apply(&mut registry, put);
    entry(&mut registry, 7, Entry::Born { instance: instance(7) });
    drain(&mut registry);
    assert_eq!(due(&registry), [0]);
    assert!(refused(&mut registry, change_node("z", NodeChange::Drain)).contains("no node z"));
}
