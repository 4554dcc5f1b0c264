//! Who goes next: limits, classes, ageing, and that nobody is held up by one who can not go.

use super::*;

const TEN_MINUTES_MS: u64 = 600_000;

/// How far a guest's migration is when the table's question is asked.
#[derive(Clone, Copy, PartialEq)]
enum At {
    /// Asked for, not admitted.
    Waits,
    /// Admitted.
    Scheduling,
    /// Handed over: its guest is at its target already, and the permits are still those of its source.
    HandedOver,
}

/// Nodes a to h of 64 GiB, every node with ten guests of 1 GiB: a has 0 to 9, b 10 to 19 and so on.
fn many() -> Registry {
    let mut registry = Registry::default();
    for (at, node_name) in (0..).zip(["a", "b", "c", "d", "e", "f", "g", "h"]) {
        apply(&mut registry, Command::Join { name: name(node_name), node: node(64 * GIB) });
        for n in at * 10..at * 10 + 10 {
            apply(&mut registry, create(n, n, name(node_name)));
            entry(&mut registry, n, Entry::Born { instance: instance(n) });
        }
    }
    registry
}

fn everywhere(registry: &Registry) -> BTreeSet<NodeName> {
    registry.nodes.keys().cloned().collect()
}

fn grant(registry: &mut Registry) -> Option<u64> {
    let (guest, migration, target) = registry.next_admission(&everywhere(registry))?;
    apply(registry, Command::Admit { guest, migration, target });
    Some(guest.0)
}

fn grant_all(registry: &mut Registry) -> Vec<u64> {
    std::iter::from_fn(|| grant(registry)).collect()
}

#[test]
fn what_counts_towards_the_limits_is_what_was_admitted() {
    use At::{HandedOver, Scheduling, Waits};
    // KubeVirt's own cases, with limits 5 and 2. Its "Pending with a pod" is what is Scheduling here: a target is
    // named. The one that is asked about is guest 0, of node a.
    type Others = &'static [(u64, At)];
    let cases: [(&str, Others, bool); 8] = [
        ("nothing runs", &[], true),
        (
            "4 scheduling elsewhere, 2 pending without pods",
            &[
                (10, Scheduling),
                (20, Scheduling),
                (30, Scheduling),
                (40, Scheduling),
                (50, Waits),
                (60, Waits),
            ],
            true,
        ),
        (
            "5 scheduling elsewhere",
            &[(10, Scheduling), (20, Scheduling), (30, Scheduling), (40, Scheduling), (50, Scheduling)],
            false,
        ),
        (
            "3 scheduling and 2 pending with pods",
            &[(10, Scheduling), (11, Scheduling), (20, Scheduling), (30, Scheduling), (31, Scheduling)],
            false,
        ),
        ("1 scheduling on the same node", &[(1, Scheduling)], true),
        ("2 scheduling on the same node", &[(1, Scheduling), (2, Scheduling)], false),
        ("2 running that list this node as source", &[(1, HandedOver), (2, HandedOver)], false),
        ("2 waiting on the same node", &[(1, Waits), (2, Waits)], true),
    ];
    for (case, others, starts) in cases {
        let mut registry = many();
        for (n, at) in others {
            apply(&mut registry, migrate(*n, *n, Wish::default()));
            if *at != Waits {
                assert_eq!(grant(&mut registry), Some(*n), "{case}");
            }
            if *at == HandedOver {
                copy(&mut registry, *n);
                let (migration, epoch) = present(&registry, *n);
                entry(&mut registry, *n, Entry::HandOver { migration, epoch, mode: Mode::StopAndCopy });
                assert_ne!(
                    registry.guests[&GuestUid(*n)].ownership.owner().expect("an owner").node,
                    name("a")
                );
            }
        }
        apply(&mut registry, migrate(0, 0, with_priority(Priority::High)));
        assert_eq!(grant(&mut registry) == Some(0), starts, "{case}");
    }
}

#[test]
fn classes_go_one_after_the_other_and_inside_a_class_who_asked_first() {
    let mut registry = cluster(8);
    apply(&mut registry, Command::Node { node: name("a"), change: NodeChange::Drain });
    apply(&mut registry, limits(0, 9, 9));
    let wishes = [Priority::Low, Priority::Normal, Priority::High, Priority::Low, Priority::High];
    for (n, priority) in (0..).zip(wishes) {
        apply(&mut registry, migrate(n, n, with_priority(priority)));
    }
    let drain = Wish { drains: Some(name("a")), ..with_priority(Priority::Low) };
    apply(&mut registry, migrate(5, 5, drain));
    apply(&mut registry, migrate(6, 6, Wish::default()));
    let order = [5, 2, 4, 1, 6, 0, 3];
    assert_eq!(queue(&registry), order);
    for (at, n) in order.into_iter().enumerate() {
        assert_eq!(registry.queue_position(&migration(n)), Some(at + 1));
    }
    assert_eq!(registry.queue_position(&migration(7)), None, "nobody has asked for it");
    apply(&mut registry, limits(9, 9, 9));
    assert_eq!(admitted(&mut registry).into_iter().map(|(n, _)| n).collect::<Vec<_>>(), order);
}

#[test]
fn who_waits_gains_a_class_every_ten_minutes_and_drains_stay_on_top() {
    let mut registry = cluster(6);
    apply(&mut registry, Command::Node { node: name("a"), change: NodeChange::Drain });
    apply(&mut registry, limits(0, 9, 9));
    apply(&mut registry, migrate(0, 0, with_priority(Priority::Low)));
    wait(&mut registry, 1);
    apply(&mut registry, migrate(1, 1, Wish::default()));
    apply(&mut registry, migrate(2, 2, with_priority(Priority::High)));
    apply(&mut registry, migrate(3, 3, Wish { drains: Some(name("a")), ..Wish::default() }));
    assert_eq!(queue(&registry), [3, 2, 1, 0]);
    wait(&mut registry, TEN_MINUTES_MS - 2);
    assert_eq!(queue(&registry), [3, 2, 1, 0], "a millisecond is missing");
    wait(&mut registry, 1);
    assert_eq!(queue(&registry), [3, 2, 0, 1], "low is normal now, and has asked before");
    wait(&mut registry, 1);
    assert_eq!(queue(&registry), [3, 1, 2, 0], "normal is high now, and has asked before");
    wait(&mut registry, TEN_MINUTES_MS);
    assert_eq!(queue(&registry), [3, 0, 1, 2], "all are high");
    apply(&mut registry, migrate(4, 4, with_priority(Priority::High)));
    wait(&mut registry, 100 * TEN_MINUTES_MS);
    apply(&mut registry, migrate(5, 5, Wish { drains: Some(name("a")), ..Wish::default() }));
    assert_eq!(queue(&registry), [3, 5, 0, 1, 2, 4], "nothing ages above a drain");
}

#[test]
fn a_policy_that_changes_the_class_sorts_waiters_anew() {
    let mut registry = cluster(3);
    apply(&mut registry, limits(0, 9, 9));
    apply(&mut registry, put_instance(2, &[("tier", "gold")], None));
    for n in 0..3 {
        ask(&mut registry, n, None);
    }
    assert_eq!(queue(&registry), [0, 1, 2]);
    let high = Overrides { priority: Some(Priority::High), ..Overrides::default() };
    apply(&mut registry, put_policy("gold", &[("tier", "gold")], high));
    assert_eq!(queue(&registry), [2, 0, 1]);
    let low = Overrides { priority: Some(Priority::Low), ..Overrides::default() };
    apply(&mut registry, put_policy("gold", &[("tier", "gold")], low));
    apply(&mut registry, put_policy("all", &[], high));
    assert_eq!(queue(&registry), [0, 1, 2], "the policy of more labels is in force");
    apply(&mut registry, Command::DeletePolicy { name: policy_name("gold") });
    wait(&mut registry, 1);
    apply(&mut registry, Command::Set { migration: migration(0), overrides: low });
    assert_eq!(queue(&registry), [1, 2, 0], "its own setting is above the policy's");
}

#[test]
fn who_can_not_go_holds_up_nobody() {
    let stuck: [(&str, Wish); 2] = [
        (
            "a selector that no node carries",
            Wish { selector: labels(&[("disk", "none")]), ..Wish::default() },
        ),
        ("a target that is full", Wish { target: Some(name("c")), ..Wish::default() }),
    ];
    for (case, wish) in stuck {
        let mut registry = cluster(5);
        apply(&mut registry, limits(9, 9, 1));
        ask(&mut registry, 4, Some("c"));
        assert_eq!(admitted(&mut registry), [(4, "c".to_owned())]);
        for n in 0..3 {
            apply(&mut registry, migrate(n, n, Wish { ..wish.clone() }));
        }
        ask(&mut registry, 3, None);
        assert_eq!(admitted(&mut registry), [(3, "b".to_owned())], "{case}");
        assert_eq!(queue(&registry), [0, 1, 2], "{case}");
    }
    let mut registry = cluster(3);
    apply(&mut registry, create(9, 9, name("b")));
    entry(&mut registry, 9, Entry::Born { instance: instance(9) });
    for n in [0, 1, 2, 9] {
        ask(&mut registry, n, None);
    }
    let order: Vec<u64> = admitted(&mut registry).into_iter().map(|(n, _)| n).collect();
    assert_eq!(order, [0, 1, 9], "the third of a waits for a's permits, the one of b does not");
}

#[test]
fn zero_starts_nothing_and_says_so() {
    let cases = [
        (limits(0, 2, 2), "no migration may start (parallelMigrationsPerCluster: 0)"),
        (limits(5, 0, 2), "no migration may leave a (parallelOutboundMigrationsPerNode: 0)"),
        (limits(5, 2, 0), "b: no migration may enter a node"),
    ];
    for (settings, text) in cases {
        let mut registry = cluster(1);
        apply(&mut registry, settings);
        ask(&mut registry, 0, None);
        assert_eq!(registry.next_admission(&all()), None);
        let reason = registry.wait_reason(&migration(0), &all()).expect("it waits").to_string();
        assert!(reason.contains(text), "{reason}");
        let admit = Command::Admit { guest: GuestUid(0), migration: migration(0), target: name("b") };
        assert!(refused(&mut registry, admit).contains("m0 waits: "));
    }
}

#[test]
fn a_limit_that_changes_counts_at_once_and_kills_nothing() {
    let mut registry = many();
    apply(&mut registry, limits(5, 1, 9));
    // Eight wait, one of each node; those of b and d are of a higher class.
    for n in (0..80).step_by(10) {
        let priority = if n == 10 || n == 30 { Priority::High } else { Priority::Normal };
        apply(&mut registry, migrate(n, n, with_priority(priority)));
    }
    assert_eq!(grant_all(&mut registry), [10, 30, 0, 20, 40]);
    let holders = vec![migration(0), migration(10), migration(20), migration(30), migration(40)];
    let reason = WaitReason::ClusterLimit { limit: 5, holders };
    assert_eq!(registry.wait_reason(&migration(50), &everywhere(&registry)), Some(reason));
    apply(&mut registry, limits(7, 1, 9));
    assert_eq!(grant_all(&mut registry), [50, 60], "raised: the next two in order");
    apply(&mut registry, limits(2, 1, 9));
    assert_eq!(registry.granted().count(), 7, "lowered: nothing is killed");
    for (left, n) in [(6, 10), (5, 30), (4, 0), (3, 20), (2, 40)] {
        end(&mut registry, n, Side::Source);
        assert_eq!((registry.granted().count(), grant(&mut registry)), (left, None), "still as many or more");
    }
    end(&mut registry, 50, Side::Source);
    assert_eq!(grant_all(&mut registry), [70], "below the limit again");
    apply(&mut registry, Command::PutSettings { settings: ClusterSettings::default() });
    assert_eq!(registry.limits(), ParallelLimits { cluster: 5, outbound: 2, inbound: 2 });
}

#[test]
fn the_one_node_that_would_do_goes_to_the_first_who_is_not_on_it() {
    let mut registry = cluster(1);
    apply(&mut registry, create(9, 9, name("b")));
    entry(&mut registry, 9, Entry::Born { instance: instance(9) });
    apply(&mut registry, put_node("a", &[("zone", "x")], false));
    for n in [0, 9] {
        apply(&mut registry, migrate(n, n, Wish { selector: labels(&[("zone", "x")]), ..Wish::default() }));
    }
    assert_eq!(admitted(&mut registry), [(9, "a".to_owned())]);
    assert_eq!(queue(&registry), [0]);
}

#[test]
fn who_holds_the_permits_is_said_of_the_first_in_a_list_and_of_whoever_is_asked_for() {
    let mut registry = many();
    apply(&mut registry, limits(9, 2, 2));
    for n in 0..5 {
        apply(&mut registry, migrate(n, n, Wish::default()));
    }
    assert_eq!(grant_all(&mut registry), [0, 1]);
    let holders = |reason: Option<WaitReason>| match reason {
        Some(WaitReason::OutboundLimit { holders, .. }) => holders,
        other => panic!("{other:?}"),
    };
    let both = [migration(0), migration(1)];
    let listed: Vec<_> =
        registry.waiting(&everywhere(&registry), 1).into_iter().map(|it| it.reason).collect();
    assert_eq!(listed.len(), 3);
    assert_eq!(listed.into_iter().map(holders).collect::<Vec<_>>(), [both.to_vec(), Vec::new(), Vec::new()]);
    assert_eq!(holders(registry.wait_reason(&migration(4), &everywhere(&registry))), both);
}
