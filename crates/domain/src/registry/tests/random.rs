//! The laws under random commands of every kind, against a plain count ([`super::oracle`]).

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ownership::Testimony;
use crate::progress::Measured;

/// One step, as numbers: so that a failing run is shrunk to few and small ones.
#[derive(Debug, Clone, Copy)]
struct Dice {
    kind: u8,
    n: u64,
    m: u64,
    x: u64,
    wait: u8,
    request: u8,
}

fn dice() -> impl Strategy<Value = Dice> {
    (0_u8..60, 0_u64..9, 0_u64..4, 0_u64..64, 0_u8..12, 0_u8..24)
        .prop_map(|(kind, n, m, x, wait, request)| Dice { kind, n, m, x, wait, request })
}

fn pick<T: Clone>(x: u64, of: &[T]) -> T {
    of[usize::try_from(x).expect("a small number") % of.len()].clone()
}

fn some_labels(x: u64) -> Labels {
    pick(
        x,
        &[
            labels(&[]),
            labels(&[("zone", "x")]),
            labels(&[("zone", "y")]),
            labels(&[("zone", "x"), ("disk", "")]),
        ],
    )
}

fn some_overrides(x: u64) -> Overrides {
    let priority = pick(x, &[None, Some(Priority::Low), Some(Priority::Normal), Some(Priority::High)]);
    let progress_timeout = pick(x / 4, &[None, Some(0), Some(7)]);
    Overrides {
        priority,
        progress_timeout,
        allow_post_copy: pick(x / 8, &[None, Some(true)]),
        ..Overrides::default()
    }
}

fn some_body(x: u64) -> Body {
    let spec = GuestSpec::idle((1 + x % 3) * GIB);
    Body { node_selector: some_labels(x / 4), critical: x % 2 == 1, ..Body::of(spec) }
}

/// The guest's present body, with another selector.
fn same_body(registry: &Registry, n: u64, x: u64) -> Body {
    let spec =
        registry.guest_named(&guest_name(n)).map_or(GuestSpec::idle(GIB), |(_, g)| g.body.spec.clone());
    Body { spec, ..some_body(x) }
}

fn some_home(registry: &Registry, n: u64, x: u64) -> Home {
    // Mostly a number that was not used yet.
    let uid = if x.is_multiple_of(8) { n } else { 100 + registry.guests.len() as u64 };
    Home { uid: GuestUid(uid), node: pick(x, &oracle::nodes()) }
}

fn some_wish(x: u64) -> Wish {
    let node = pick(x, &oracle::nodes());
    Wish {
        target: (x.is_multiple_of(5)).then(|| node.clone()),
        selector: some_labels(if x.is_multiple_of(2) { 0 } else { x / 4 }),
        overrides: if x.is_multiple_of(3) { some_overrides(x / 3) } else { Overrides::default() },
        drains: (x.is_multiple_of(7)).then(|| node.clone()),
        avoid: (x.is_multiple_of(11)).then_some(node),
        ..Wish::default()
    }
}

fn reachable(x: u64) -> BTreeSet<NodeName> {
    let lost = pick(x, &[None, None, None, Some(name("a")), Some(name("b"))]);
    oracle::nodes().into_iter().filter(|node| Some(node) != lost.as_ref()).collect()
}

/// The command that these numbers stand for, as the registry is now: most fit, some do not.
fn command(registry: &Registry, dice: Dice, step: u64) -> Command {
    let Dice { kind, n, m, x, .. } = dice;
    let uids: Vec<GuestUid> = registry.guests.keys().copied().collect();
    let uid = pick(n + m * 5, &uids);
    let guest = &registry.guests[&uid];
    let present = guest.ownership.attempt.as_ref().map(|attempt| attempt.migration.clone());
    let name_of_another = migration(uid.0 * 10 + m);
    let migration = present.filter(|_| x % 8 != 0).unwrap_or_else(|| name_of_another.clone());
    let epoch = Epoch(guest.ownership.epoch.0 + u64::from(x % 16 == 1));
    let node = pick(n + m, &oracle::nodes());
    let (policy, project) = (policy_name(pick(m, &["p", "q"])), pick(m, &["default", "lab"]).to_owned());
    let licences = licences_of(&guest.ownership);
    let licence = licences.get(usize::try_from(x % 3).expect("small"));
    let known = licence.map_or(instance(n), |licence| licence.instance);
    let change = |change| Command::Node { node: node.clone(), change };
    let entry = |entry| Command::Guest { guest: uid, entry };
    match kind {
        0 => Command::PutSettings {
            settings: ClusterSettings {
                migration: Overrides { priority: None, ..some_overrides(x) },
                parallel_migrations_per_cluster: pick(x, &[None, Some(0), Some(3), Some(6)]),
                parallel_outbound_migrations_per_node: pick(x / 4, &[None, Some(0), Some(1), Some(3)]),
                parallel_inbound_migrations_per_node: pick(m, &[None, Some(0), Some(1), Some(4)]),
                network: (x.is_multiple_of(9)).then(|| "fast".to_owned()),
                ..ClusterSettings::default()
            },
        },
        1 | 2 => {
            let (namespace_selector, guest_selector) = (some_labels(x), some_labels(x / 4));
            let policy_of = Policy { namespace_selector, guest_selector, overrides: some_overrides(x) };
            Command::PutPolicy { name: policy, policy: policy_of }
        }
        3 => Command::DeletePolicy { name: policy },
        4 => Command::PutNamespace { name: project, labels: some_labels(x) },
        5 => Command::DeleteNamespace { name: project },
        6 => change(NodeChange::Put { labels: some_labels(x), cordoned: x % 4 == 3 }),
        7 => change(NodeChange::Uncordon),
        8 => change(NodeChange::Drain),
        9 => change(NodeChange::CancelDrain),
        10 | 11 => {
            let body = (x % 3 > 0).then(|| same_body(registry, n, x));
            let template_labels = (x.is_multiple_of(2)).then(|| some_labels(x / 2));
            let machine = Machine { labels: some_labels(m), runs: x % 5 > 0, template_labels, body };
            let home = (m > 0).then(|| some_home(registry, n, x));
            Command::PutMachine { name: guest_name(n), machine, home }
        }
        12 => Command::DeleteMachine { name: guest_name(n) },
        13 => Command::PutInstance {
            name: guest_name(n),
            labels: some_labels(m),
            body: Some(some_body(x)),
            home: Some(some_home(registry, n, x)),
        },
        14 => {
            let body = (x.is_multiple_of(2)).then(|| same_body(registry, n, x));
            Command::PutInstance { name: guest_name(n), labels: some_labels(m), body, home: None }
        }
        15..=22 => Command::Migrate { guest: uid, migration: name_of_another, wish: some_wish(x) },
        23 => match registry.due_for_drain(registry.time_ms).first().cloned() {
            Some(Due { node, guest, avoid }) => {
                let wish = Wish { drains: Some(node), avoid, ..Wish::default() };
                Command::Migrate { guest, migration: super::migration(900 + step), wish }
            }
            None => change(NodeChange::Drain),
        },
        24 => Command::Set { migration, overrides: some_overrides(x) },
        25 => Command::Placeable { migration, is: x.is_multiple_of(2) },
        26 => Command::Reached {
            migration,
            milestone: pick(x, &[Milestone::PreparingTarget, Milestone::Running]),
        },
        27 => Command::ForgetMigration { migration },
        28 => {
            let measured = Measured { resume_us: Some(x), ..Measured::default() };
            Command::Measured { migration, measured: Box::new(measured) }
        }
        29..=36 => match registry.next_admission(&reachable(x)) {
            Some((guest, migration, target)) => Command::Admit { guest, migration, target },
            None => Command::Admit { guest: uid, migration, target: node },
        },
        37 => Command::Admit { guest: uid, migration, target: node },
        38..=54 => entry(some_entry(kind, x, step, migration, epoch, known, node)),
        55 => {
            let (boot, instances) = (BootId(u128::from(x % 8 > 0)), registry.instances_on(&node));
            Command::Fence { node, boot, instances }
        }
        56 => Command::FenceSeen { node },
        57 => Command::RemoveNode { node },
        58 => {
            let mut joining = super::node((4 + x % 8) * GIB);
            joining.labels = some_labels(m);
            if x.is_multiple_of(3) {
                joining.networks.insert("fast".to_owned(), joining.migration);
            }
            Command::Join { name: node, node: joining }
        }
        _ => entry(Entry::Born { instance: instance(2000 + step) }),
    }
}

/// An entry about a guest: as it is now, or a little beside it.
fn some_entry(
    kind: u8,
    x: u64,
    step: u64,
    migration: MigrationId,
    epoch: Epoch,
    known: InstanceId,
    node: NodeName,
) -> Entry {
    match kind {
        38..=40 => Entry::Accept { migration, epoch, instance: instance(1000 + step) },
        41 | 42 => {
            let mode = pick(x / 2, &[Mode::StopAndCopy, Mode::PostCopy]);
            Entry::HandOver { migration, epoch, mode }
        }
        43 | 44 => Entry::Running { migration, epoch },
        45 => Entry::AllPages { migration, epoch },
        46 => Entry::HandBack { migration, epoch, testimony: Testimony::Withheld },
        47 | 48 => {
            let side =
                pick(x / 2, &[Side::Operator, Side::Source, Side::Target, Side::Control, Side::Deadline]);
            Entry::End { migration, side, reason: "told to".into() }
        }
        49 => Entry::Dropped { migration },
        50 => Entry::Decline { migration, epoch },
        51 => Entry::Gone { instance: known },
        52 => pick(x, &[Entry::Recover { instance: known }, Entry::CallOff { migration, epoch }]),
        53 => Entry::Delete,
        _ => Entry::Purged { node },
    }
}

fn begin() -> Registry {
    let mut registry = cluster(4);
    apply(&mut registry, Command::Join { name: name("d"), node: node(6 * GIB) });
    for (node_name, zone) in [("e", "x"), ("f", "x"), ("g", "y"), ("h", "z")] {
        apply(&mut registry, Command::Join { name: name(node_name), node: node(4 * GIB) });
        apply(&mut registry, put_node(node_name, &[("zone", zone)], false));
    }
    for (n, node_name) in (4..).zip(["b", "d", "g", "e", "b"]) {
        apply(&mut registry, create(n, n, name(node_name)));
        entry(&mut registry, n, Entry::Born { instance: instance(n) });
    }
    registry
}

fn check_grants(before: &Registry, after: &Registry) {
    let held = |registry: &Registry| -> BTreeSet<MigrationId> {
        registry.granted().map(|(attempt, ..)| attempt.migration.clone()).collect()
    };
    let (old, limits) = (held(before), before.limits());
    for (attempt, source, target) in after.granted() {
        if old.contains(&attempt.migration) {
            continue;
        }
        let count = |of: &dyn Fn(&NodeName, &NodeName) -> bool| oracle::permits(after, of);
        assert!(count(&|_, _| true) <= limits.cluster as usize, "the cluster's limit");
        assert!(count(&|from, _| from == source) <= limits.outbound as usize, "the source's limit");
        assert!(count(&|_, to| to == target) <= limits.inbound as usize, "the target's limit");
    }
    for node in oracle::nodes() {
        let (was, is) = (oracle::taken(before, &node, false), oracle::taken(after, &node, false));
        let offered = after.nodes.get(&node).map_or(0, |node| node.memory_bytes);
        assert!(is <= offered || is <= was, "memory of {node} is promised twice: {is} of {offered}");
    }
}

/// What holds for a migration is what its record says, and what changes for it is taken down and rung about.
fn check_layers(before: &Registry, after: &Registry, effects: &BTreeSet<Effect>) {
    for (uid, guest) in after.migrating() {
        let (record, now) = (guest.record.as_ref().expect("a record"), after.in_force(guest));
        let drains = record.wish.drains.is_some();
        let class = if drains { Priority::Drain } else { now.resolved.priority.value };
        assert_eq!((&record.policy, record.class), (&now.policy, class), "policy and class of {uid}");
        let Some(guest_before) = before.guests.get(&uid) else { continue };
        let present =
            |guest: &Guest| guest.ownership.attempt.as_ref().map(|a| (a.migration.clone(), a.phase.clone()));
        if present(guest_before) != present(guest) {
            continue;
        }
        let was = (before.in_force(guest_before).policy, before.settings_of(guest_before));
        let is = (now.policy, after.settings_of(guest));
        let noted = record.changes.len() - guest_before.record.as_ref().expect("a record").changes.len();
        if was != is {
            assert_eq!(noted, 1, "a change for {uid} is taken down");
            for node in concerned(&guest.ownership) {
                assert!(effects.contains(&Effect { node, guest: uid }), "a change for {uid} rings");
            }
        }
    }
}

fn check_queue(registry: &Registry, reachable: &BTreeSet<NodeName>) {
    let order = oracle::order(registry);
    assert_eq!(registry.queue().collect::<Vec<_>>(), order, "the order of the queue");
    let next = registry.next_admission(reachable);
    assert_eq!(next, oracle::next(registry, reachable), "the next grant");
    let hopeless: BTreeSet<GuestUid> =
        registry.unplaceable(reachable).into_iter().map(|(uid, _)| uid).collect();
    assert_eq!(hopeless, oracle::unplaceable(registry, reachable), "those that no node could take");
    for (at, waiting) in registry.waiting(reachable, usize::MAX).into_iter().enumerate() {
        assert_eq!(waiting.guest, order[at]);
        assert_eq!(registry.queue_position(&waiting.migration), Some(at + 1));
        assert_eq!(
            registry.wait_reason(&waiting.migration, reachable),
            waiting.reason,
            "one reason, asked twice"
        );
        if next.as_ref().is_some_and(|(uid, ..)| *uid == waiting.guest) {
            assert_eq!(waiting.reason, None, "the next one waits for nothing");
        }
        assert!(next.is_some() || waiting.reason.is_some(), "who waits though nothing is granted says why");
    }
}

fn check_kept(registry: &Registry) {
    for guest in registry.guests.values() {
        assert!(guest.finished.len() <= 5, "five are kept");
    }
    for node in registry.drains.keys() {
        assert!(registry.is_cordoned(node), "an uncordoned node has no drain");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_200))]

    #[test]
    fn the_laws_hold_whatever_is_proposed(steps in prop::collection::vec(dice(), 0..60)) {
        let (mut registry, mut replica) = (begin(), begin());
        let mut answers: BTreeMap<String, (u64, u64, Result<(), Refusal>)> = BTreeMap::new();
        for (step, dice) in (0..).zip(steps) {
            let command = command(&registry, dice, step);
            let waits = pick(dice.wait.into(), &[0, 0, 0, 1, 1_000, 20_000, 400_000, 3_600_000]);
            let time_ms = registry.time_ms + waits;
            let request = (dice.request < 6).then(|| RequestKey {
                id: format!("r{}", dice.request / 2),
                digest: u64::from(dice.request % 2),
                made: None,
            });
            let stamped = Stamped { time_ms, request: request.clone(), command };
            let before = registry.clone();
            let outcome = registry.apply(stamped.clone());
            prop_assert_eq!(&replica.apply(stamped), &outcome, "the same log, the same outcome");
            let counted_anew = Registry::from(registry.state.clone());
            prop_assert_eq!(&counted_anew, &registry, "what is counted is what one pass counts");

            // A request is remembered for an hour, and the hour's last millisecond is part of it.
            answers.retain(|_, (_, at_ms, _)| *at_ms + 3_600_000 >= time_ms);
            let known = request.as_ref().and_then(|key| answers.get(&key.id).cloned().map(|known| (key, known)));
            let has_effect = known.is_none() && outcome.is_ok();
            if let Some((key, (digest, _, answer))) = known {
                let expected = if digest == key.digest { answer } else { Err(Refusal::RequestTaken(key.id.clone())) };
                prop_assert_eq!(outcome.clone().map(|effects| assert!(effects.is_empty())), expected);
            } else if let Some(key) = request {
                answers.insert(key.id, (key.digest, time_ms, outcome.clone().map(drop)));
            }
            if !has_effect {
                let unchanged = State { time_ms, requests: registry.requests.clone(), ..before.state.clone() };
                prop_assert_eq!(&registry.state, &unchanged, "no effect, no change");
            }
            check_grants(&before, &registry);
            check_layers(&before, &registry, &outcome.unwrap_or_default());
            check_queue(&registry, &reachable(dice.x));
            check_kept(&registry);
        }
        prop_assert_eq!(registry, replica);
    }
}
