//! What changes meet: said as it is, and a change that meets something else has no effect.

use super::*;
use crate::guest::GuestSpec;

fn labels(key: &str, value: &str) -> Labels {
    [(key.to_owned(), value.to_owned())].into_iter().collect()
}

fn project(value: &str) -> Command {
    Command::PutNamespace { name: "lab".to_owned(), labels: labels("tier", value) }
}

fn if_met(found: Found, command: Command) -> Command {
    Command::If { met: Met { found, guest: None }, command: Box::new(command) }
}

fn relabel(of: Labelled, key: &str, value: Option<&str>, overwrite: bool) -> Command {
    let change = [(key.to_owned(), value.map(str::to_owned))].into_iter().collect();
    Command::Label { of, change, overwrite }
}

fn asked(registry: &mut Registry, id: &str, command: Command) -> Applied {
    let request = Some(RequestKey { id: id.to_owned(), digest: 1, made: Some(id.to_owned()) });
    registry.apply(Stamped { time_ms: registry.time_ms, request, command })
}

#[test]
fn of_two_that_create_one_succeeds_and_the_other_meets_what_it_made() {
    let mut registry = cluster(0);
    let (mine, yours) = (if_met(Found::Absent, project("mine")), if_met(Found::Absent, project("yours")));
    assert_eq!(asked(&mut registry, "mine", mine.clone()), Ok(BTreeSet::new()));
    let met = Met { found: Found::Other, guest: None };
    assert_eq!(asked(&mut registry, "yours", yours.clone()), Err(Refusal::MetOther(met)));
    assert_eq!(registry.namespaces["lab"], labels("tier", "mine"));
    // It was no answer: the same request is planned anew under its id, and that is one.
    assert!(registry.requests.answer("yours", 1).is_none());
    assert!(asked(&mut registry, "yours", if_met(Found::Other, project("yours"))).is_ok());
    assert_eq!(registry.namespaces["lab"], labels("tier", "yours"));
    // Repeated, each has its first answer, and no effect.
    assert!(asked(&mut registry, "yours", yours).is_ok() && asked(&mut registry, "mine", mine).is_ok());
    assert_eq!(registry.namespaces["lab"], labels("tier", "yours"));
}

#[test]
fn what_changes_nothing_is_remembered_and_changes_nothing() {
    let mut registry = cluster(0);
    apply(&mut registry, project("mine"));
    let same = if_met(Found::Same, project("mine"));
    assert!(asked(&mut registry, "r", same.clone()).is_ok());
    apply(&mut registry, project("yours"));
    assert!(asked(&mut registry, "r", same.clone()).is_ok(), "it was so when it was asked first");
    assert_eq!(registry.namespaces["lab"], labels("tier", "yours"));
    assert!(asked(&mut registry, "another", same).is_err());
}

#[test]
fn what_is_met_is_compared_with_all_that_the_change_says() {
    let mut registry = cluster(1);
    let put = |cordoned| Command::Node {
        node: name("a"),
        change: NodeChange::Put { labels: Labels::new(), cordoned },
    };
    let body = |gib| Some(Body::of(GuestSpec::idle(gib * GIB)));
    let instance =
        |n, body| Command::PutInstance { name: guest_name(n), labels: Labels::new(), body, home: None };
    let machine = |n, runs, body| Command::PutMachine {
        name: guest_name(n),
        machine: Machine { labels: Labels::new(), runs, template_labels: None, body },
        home: None,
    };
    let is = |registry: &Registry, command: &Command| {
        let met = registry.met(command);
        (met.found, met.guest.map(|uid| uid.0))
    };
    assert_eq!(
        is(&registry, &put(false)),
        (Found::Other, None),
        "it has joined, and nobody wants anything of it"
    );
    apply(&mut registry, put(false));
    assert_eq!(is(&registry, &put(false)), (Found::Same, None));
    assert_eq!(is(&registry, &put(true)), (Found::Other, None));
    assert_eq!(is(&registry, &instance(0, None)), (Found::Same, Some(0)));
    assert_eq!(is(&registry, &instance(0, body(2))), (Found::Other, Some(0)));
    assert_eq!(is(&registry, &instance(7, body(1))), (Found::Absent, None));
    assert_eq!(is(&registry, &machine(7, false, body(1))), (Found::Absent, None));
    apply(&mut registry, machine(7, false, body(1)));
    assert_eq!(is(&registry, &machine(7, false, None)), (Found::Same, None), "what is not said stays");
    assert_eq!(is(&registry, &machine(7, true, body(1))), (Found::Other, None), "its guest is to be made");
    assert_eq!(
        is(&registry, &machine(0, true, None)),
        (Found::Other, Some(0)),
        "a guest, and no machine yet"
    );
    // A guest that was made since is another meeting.
    let before = registry.met(&machine(7, true, None));
    apply(&mut registry, create(7, 7, name("a")));
    let late = Command::If { met: before, command: Box::new(machine(7, true, None)) };
    assert!(matches!(registry.apply(stamped(9, late)), Err(Refusal::MetOther(_))));
}

#[test]
fn labels_that_two_change_are_both_there_and_a_cordon_stays() {
    let mut registry = cluster(1);
    apply(&mut registry, project("mine"));
    apply(
        &mut registry,
        Command::PutMachine {
            name: guest_name(0),
            machine: Machine { labels: Labels::new(), runs: true, template_labels: None, body: None },
            home: None,
        },
    );
    let all = [
        Labelled::Namespace("lab".to_owned()),
        Labelled::Node(name("a")),
        Labelled::Machine(guest_name(0)),
        Labelled::Instance(guest_name(0)),
    ];
    for of in all.clone() {
        apply(&mut registry, relabel(of.clone(), "one", Some("1"), false));
        let cordon = NodeChange::Put {
            labels: registry.node_wishes.get(&name("a")).map_or_else(Labels::new, |wish| wish.labels.clone()),
            cordoned: true,
        };
        apply(&mut registry, Command::Node { node: name("a"), change: cordon });
        apply(&mut registry, relabel(of, "two", Some("2"), false));
    }
    let (_, guest) = registry.guest_named(&guest_name(0)).expect("a guest");
    let machine = &registry.machines[&guest_name(0)];
    let wish = &registry.node_wishes[&name("a")];
    for labels in [&registry.namespaces["lab"], &wish.labels, &machine.labels, &guest.labels] {
        assert_eq!((labels["one"].as_str(), labels["two"].as_str()), ("1", "2"));
    }
    assert!(wish.cordoned && registry.namespaces["lab"]["tier"] == "mine");
    for of in all {
        let another = relabel(of.clone(), "one", Some("9"), false);
        let refused = registry.apply(stamped(9, another)).expect_err("it has another value");
        assert_eq!(refused, Refusal::Labelled { key: "one".to_owned(), is: "1".to_owned() });
        apply(&mut registry, relabel(of.clone(), "one", Some("9"), true));
        apply(&mut registry, relabel(of, "one", None, false));
    }
    assert!(!registry.namespaces["lab"].contains_key("one"));
}

#[test]
fn a_condition_has_no_condition() {
    let mut registry = cluster(0);
    let twice = if_met(Found::Other, if_met(Found::Absent, project("mine")));
    assert!(matches!(registry.apply(stamped(9, twice)), Err(Refusal::NotByEntry(_))));
    assert!(registry.namespaces.is_empty());
}
