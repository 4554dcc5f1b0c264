//! A registry whose group was founded anew: who is heard, what that settles, and what is counted meanwhile.

use super::*;
use crate::ids::GroupId;
use crate::ownership::{Life, Phase, Stands};

fn found(registry: &mut Registry) {
    let founding = Founding {
        from: GroupId(1),
        group: GroupId(2),
        node: name("a"),
        voters: [name("b"), name("c")].into(),
        from_backup: true,
    };
    registry.apply(stamped(1, Command::Found { founding })).expect("found");
    is_counted(registry);
}

fn says(registry: &mut Registry, node: &str, runners: Vec<Testified>) -> Applied {
    let command = Command::Testify { node: name(node), first: true, runners, last: true };
    let applied = registry.apply(stamped(1, command));
    is_counted(registry);
    applied
}

fn runs(guest: u64, n: u64, epoch: u64, arriving: Option<u64>) -> Testified {
    let stands = Stands::Running(Epoch(epoch));
    Testified { guest: GuestUid(guest), instance: instance(n), stands, arriving: arriving.map(migration) }
}

fn stands_still(guest: u64, n: u64, sealed: u64) -> Testified {
    let stands = Stands::Paused { sealed: Epoch(sealed), withheld: false };
    Testified { stands, ..runs(guest, n, sealed, None) }
}

fn is_counted(registry: &Registry) {
    assert_eq!(Registry::from(registry.state.clone()), *registry, "what is counted is what one pass counts");
}

fn life(registry: &Registry, guest: u64) -> &Life {
    &registry.guests[&GuestUid(guest)].ownership.life
}

fn is_alive_on(registry: &Registry, guest: u64, node: &str) -> bool {
    matches!(life(registry, guest), Life::Alive(owner) if owner.node == name(node))
}

#[test]
fn what_a_runner_confirms_is_settled_before_all_are_heard() {
    let mut registry = cluster(2);
    found(&mut registry);
    assert_eq!(registry.unheard.len(), 3);
    assert!(matches!(life(&registry, 0), Life::Unsure(_)) && registry.owned_by(&name("a")).count() == 0);
    let effects = says(&mut registry, "a", vec![runs(0, 0, 1, None), runs(7, 70, 4, None)]).expect("said");
    assert!(effects.contains(&Effect { node: name("a"), guest: GuestUid(0) }), "its node is told");
    assert!(is_alive_on(&registry, 0, "a"), "guest 7 is known to nobody, and is nobody's business");
    assert!(matches!(life(&registry, 1), Life::Unsure(_)), "it may have moved");
    says(&mut registry, "b", vec![runs(1, 11, 2, Some(5))]).expect("said");
    assert!(matches!(life(&registry, 1), Life::Unsure(_)), "c may have something newer");
    says(&mut registry, "c", vec![]).expect("said");
    assert!(is_alive_on(&registry, 1, "b") && registry.unheard.is_empty());
    assert_eq!(registry.guests[&GuestUid(1)].ownership.epoch, Epoch(3));
}

#[test]
fn a_fence_is_heard_for_a_node_that_is_gone() {
    let mut registry = cluster(1);
    found(&mut registry);
    says(&mut registry, "b", vec![]).expect("said");
    says(&mut registry, "c", vec![]).expect("said");
    let fence =
        Command::Fence { node: name("a"), boot: BootId(1), instances: registry.instances_on(&name("a")) };
    registry.apply(stamped(1, fence)).expect("fenced");
    is_counted(&registry);
    assert!(matches!(life(&registry, 0), Life::Lost { kept: None, .. }));
    // It comes back, after all, with something that the fence has not named.
    registry.apply(stamped(1, Command::FenceSeen { node: name("a") })).expect("seen");
    assert!(registry.unheard.contains(&name("a")), "it is asked");
    says(&mut registry, "a", vec![runs(0, 9, 8, Some(4))]).expect("said");
    assert!(is_alive_on(&registry, 0, "a"));
}

#[test]
fn a_node_that_nobody_knew_is_heard_too() {
    let mut registry = cluster(1);
    let join = |name_of: &str| Command::Join { name: name(name_of), node: node(8 * GIB) };
    registry.apply(stamped(1, join("d"))).expect("joined");
    assert!(registry.unheard.is_empty(), "nothing was founded anew");
    found(&mut registry);
    for known in ["a", "b", "c", "d"] {
        says(&mut registry, known, vec![]).expect("said");
    }
    assert!(matches!(life(&registry, 0), Life::Lost { .. }));
    registry.apply(stamped(1, join("e"))).expect("joined");
    assert_eq!(registry.unheard, [name("e")].into());
    says(&mut registry, "e", vec![runs(0, 5, 3, Some(9))]).expect("said");
    assert!(is_alive_on(&registry, 0, "e"));
    assert!(says(&mut registry, "x", vec![]).is_err(), "it has not joined");
    let many = vec![runs(0, 5, 3, None); TESTIFIED_MAX + 1];
    assert!(matches!(says(&mut registry, "e", many), Err(Refusal::Invalid(_))));
}

#[test]
fn permits_come_back_and_a_move_of_which_nobody_knew_goes_on() {
    let mut registry = cluster(2);
    let migrate = |guest, n| Command::Migrate {
        guest: GuestUid(guest),
        migration: migration(n),
        wish: Wish::default(),
    };
    for guest in 0..2 {
        registry.apply(stamped(1, migrate(guest, guest))).expect("asked");
    }
    let admit = Command::Admit { guest: GuestUid(0), migration: migration(0), target: name("b") };
    registry.apply(stamped(1, admit)).expect("admitted");
    found(&mut registry);
    let all = ["a", "b", "c"].map(name).into();
    assert_eq!(registry.next_admission(&all), None, "nothing of a guest in doubt is admitted");
    // Of guest 1 the backup knows nothing but that it was to move; it is in post-copy from a to c, by another move.
    says(&mut registry, "a", vec![runs(0, 0, 1, None), stands_still(1, 1, 4)]).expect("said");
    assert_eq!(registry.granted().count(), 0, "the permits of a guest that is settled are back");
    says(&mut registry, "b", vec![]).expect("said");
    says(&mut registry, "c", vec![runs(1, 30, 5, Some(40))]).expect("said");
    let guest = &registry.guests[&GuestUid(1)];
    let attempt = guest.ownership.attempt.as_ref().expect("it goes on");
    assert!(matches!(attempt.phase, Phase::PostCopy { .. }) && attempt.migration == migration(40));
    let (known, _) = guest.migration(&migration(1)).expect("the one that was known is kept");
    assert!(known.phase.is_over());
    assert!(guest.record.as_ref().is_some_and(|record| !record.steps.is_empty()), "it has a record");
    registry
        .apply(about(1, Entry::AllPages { migration: migration(40), epoch: Epoch(5) }))
        .expect("every page is there");
    is_counted(&registry);
    assert_eq!(registry.granted().count(), 0);
}

#[test]
fn what_a_node_says_again_replaces_what_it_has_said() {
    let mut registry = cluster(1);
    found(&mut registry);
    let many = |first, last, n| Command::Testify {
        node: name("b"),
        first,
        runners: vec![runs(0, n, n, Some(9))],
        last,
    };
    registry.apply(stamped(1, many(true, false, 5))).expect("said");
    registry.apply(stamped(1, many(false, true, 6))).expect("said");
    let claims = |registry: &Registry| {
        let life = life(registry, 0);
        let Life::Unsure(doubt) = life else { panic!("{life:?}") };
        doubt.claims.len()
    };
    assert_eq!(claims(&registry), 2);
    registry.apply(stamped(1, many(true, true, 7))).expect("said anew");
    assert_eq!(claims(&registry), 1);
}

#[test]
fn a_move_under_a_name_that_is_anothers_by_now_is_left_to_an_operator() {
    let mut registry = cluster(2);
    found(&mut registry);
    says(&mut registry, "a", vec![runs(0, 0, 1, None), stands_still(1, 1, 4)]).expect("said");
    assert!(is_alive_on(&registry, 0, "a"));
    // The backup is older than guest 1's move, and its name is given once more.
    let asked = Command::Migrate { guest: GuestUid(0), migration: migration(40), wish: Wish::default() };
    registry.apply(stamped(1, asked)).expect("asked");
    says(&mut registry, "b", vec![]).expect("said");
    says(&mut registry, "c", vec![runs(1, 30, 5, Some(40))]).expect("said");
    let Life::Unsure(doubt) = life(&registry, 1) else { panic!("{:?}", life(&registry, 1)) };
    assert!(doubt.open && doubt.claims.len() == 2, "its pages may lie in the copy on a: {doubt:?}");
    assert!(registry.guests[&GuestUid(1)].ownership.attempt.is_none());
}

#[test]
fn a_node_that_has_not_said_what_it_has_is_not_removed() {
    let mut registry = cluster(1);
    found(&mut registry);
    let remove = || stamped(1, Command::RemoveNode { node: name("b") });
    let refused = registry.apply(remove()).expect_err("a guest may run there").to_string();
    assert!(refused.contains("has not said what it has"), "{refused}");
    assert!(registry.unheard.contains(&name("b")));
    says(&mut registry, "b", vec![]).expect("said");
    registry.apply(remove()).expect("it has nothing");
}
