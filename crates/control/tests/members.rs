//! The group changes while it works: who may be added and removed, what a crash between two steps leaves, and how those
//! who were removed go.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::group::{Group, heard};
use common::{id, voters};
use godwit_control::driver::{Condition, Config, ProposeError, Role};
use godwit_control::engine::Position;
use godwit_control::envelope::ENTRY_BYTES_MAX;
use godwit_control::group::NodeId;
use godwit_control::members::{
    Change, ChangeError, Members, PROMOTED_BEHIND_MAX, Standing, VOTERS_MAX, Wanted, new_id,
};
use godwit_control::memory_disk::MemoryFolder;
use godwit_domain::NodeName;

fn usual(_: &mut Config) {}

fn small_log(config: &mut Config) {
    config.snapshot_entries = 10;
    config.keep_entries = 3;
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn add(text: &str) -> Wanted {
    Wanted::Add(name(text))
}

fn promote(text: &str) -> Wanted {
    Wanted::Promote(name(text))
}

fn remove(text: &str) -> Wanted {
    Wanted::Remove(name(text))
}

/// Three voters in memory, of whom the first leads.
fn led(config: fn(&mut Config)) -> (Group, BTreeMap<u64, MemoryFolder>) {
    let mut group = Group::new(config);
    let folders: BTreeMap<u64, _> = (1..=3).map(|n| (n, MemoryFolder::new(&voters()))).collect();
    for (n, folder) in &folders {
        group.start(*n, folder.clone()).expect("starts");
    }
    group.elect(1);
    (group, folders)
}

/// The number of a member, as the leader has it.
fn number(group: &Group, of: &str) -> u64 {
    let leader = group.leader().expect("leads");
    let members = group.status(leader).view.members;
    members.named(&name(of)).expect("a member").0.get()
}

fn voters_of(group: &Group, n: u64) -> Vec<String> {
    let members = group.status(n).view.members;
    let mut names: Vec<_> =
        members.iter().filter(|(_, it)| it.votes).map(|(_, it)| it.name.to_string()).collect();
    names.sort();
    names
}

/// Adds a member that starts with an empty disk; returns its number and its disk.
fn join(group: &mut Group, of: &str) -> (u64, MemoryFolder) {
    group.make(&add(of));
    let (n, folder) = (number(group, of), MemoryFolder::new(&voters()));
    group.start(n, folder.clone()).expect("starts");
    (n, folder)
}

#[test]
fn what_a_change_may_be() {
    let members = Members::founding(&voters());
    let all: BTreeSet<NodeId> = (1..=3).map(id).collect();
    let standing = |answering: &[u64], behind: &[(u64, u64)]| Standing {
        answering: answering.iter().map(|n| id(*n)).collect(),
        behind: behind.iter().map(|(n, behind)| (id(*n), *behind)).collect(),
    };
    let everybody = Standing { answering: all, ..Standing::default() };
    let change =
        |members: &Members, wanted: Wanted, standing: &Standing| members.change(&wanted, id(10), standing);
    let learner = Change::Learner { id: id(10), name: name("node-9") };
    assert_eq!(change(&members, add("node-9"), &everybody), Ok(learner));
    assert_eq!(change(&members, add("node-1"), &everybody), Err(ChangeError::Member(name("node-1"))));
    assert_eq!(change(&members, promote("node-9"), &everybody), Err(ChangeError::NoMember(name("node-9"))));
    assert_eq!(change(&members, promote("node-1"), &everybody), Err(ChangeError::Votes(name("node-1"))));
    assert_eq!(change(&members, remove("node-9"), &everybody), Err(ChangeError::NoMember(name("node-9"))));
    assert_eq!(change(&members, remove("node-3"), &everybody), Ok(Change::Remove { id: id(3) }));
    // The third is dead: it can be removed, and neither of the others.
    let two = standing(&[1, 2], &[]);
    assert_eq!(change(&members, remove("node-3"), &two), Ok(Change::Remove { id: id(3) }));
    let stops = ChangeError::NoQuorum { answering: 1, voters: 2, quorum: 2 };
    assert_eq!(change(&members, remove("node-2"), &two), Err(stops));

    // With a learner.
    let mut by_id: BTreeMap<_, _> = members.iter().map(|(id, member)| (id, member.clone())).collect();
    by_id.insert(id(9), godwit_control::Member { name: name("node-9"), votes: false });
    let learning = Members::told(4, by_id.clone());
    let near = standing(&[1, 2, 9], &[(9, PROMOTED_BEHIND_MAX)]);
    assert_eq!(change(&learning, promote("node-9"), &near), Ok(Change::Voter { id: id(9) }));
    let far = standing(&[1, 2, 9], &[(9, PROMOTED_BEHIND_MAX + 1)]);
    let behind = |behind| Err(ChangeError::Behind { name: name("node-9"), behind });
    assert_eq!(change(&learning, promote("node-9"), &far), behind(PROMOTED_BEHIND_MAX + 1));
    assert_eq!(change(&learning, promote("node-9"), &standing(&[1, 2], &[(9, 0)])), behind(0));
    assert_eq!(change(&learning, promote("node-9"), &standing(&[1, 2, 9], &[])), behind(u64::MAX));
    let short = standing(&[1, 9], &[(9, 0)]);
    let stops = ChangeError::NoQuorum { answering: 2, voters: 4, quorum: 3 };
    assert_eq!(change(&learning, promote("node-9"), &short), Err(stops));
    let waits = Err(ChangeError::Learning(name("node-9")));
    assert_eq!(change(&learning, add("node-8"), &everybody), waits);
    assert_eq!(change(&learning, remove("node-1"), &near), waits);
    // One that never comes is let go, whoever answers.
    assert_eq!(change(&learning, remove("node-9"), &standing(&[1], &[])), Ok(Change::Remove { id: id(9) }));

    let one = Members::told(4, by_id.into_iter().filter(|(member, _)| member.get() == 1).collect());
    assert_eq!(change(&one, remove("node-1"), &everybody), Err(ChangeError::LastVoter(name("node-1"))));
    let many = (1..=VOTERS_MAX as u64)
        .map(|n| (id(n), godwit_control::Member { name: name(&format!("node-{n}")), votes: true }));
    let many = Members::told(4, many.collect());
    assert_eq!(change(&many, add("node-x"), &everybody), Err(ChangeError::TooMany(VOTERS_MAX)));
}

#[test]
fn an_id_is_of_one_name_at_one_place() {
    let at = |term, index| Position { term, index };
    let ids = [
        new_id(&name("a"), at(1, 7)),
        new_id(&name("a"), at(1, 8)),
        new_id(&name("a"), at(2, 7)),
        new_id(&name("b"), at(1, 7)),
    ];
    assert_eq!(BTreeSet::from(ids).len(), 4);
    assert_eq!(new_id(&name("a"), at(1, 7)), ids[0]);
}

#[test]
fn whoever_is_added_learns_by_the_log_and_then_votes() {
    let (mut group, _folders) = led(usual);
    for n in 0..20_u8 {
        group.propose(1, &[n]);
    }
    let answer = group.change(1, &add("node-d"), b"with it");
    assert_eq!(heard(&answer), Some(Ok(21)), "its entry is applied with it");
    let n = number(&group, "node-d");
    assert_eq!(voters_of(&group, 1), ["node-1", "node-2", "node-3"]);
    // It does not answer yet, so it does not vote.
    let refused = heard(&group.change(1, &promote("node-d"), b""));
    assert!(matches!(refused, Some(Err(ProposeError::Forbidden(ChangeError::Behind { .. })))), "{refused:?}");
    let refused = heard(&group.change(1, &add("node-e"), b""));
    let waits = ProposeError::Forbidden(ChangeError::Learning(name("node-d")));
    assert_eq!(refused, Some(Err(waits)));
    group.start(n, MemoryFolder::new(&voters())).expect("starts");
    group.until("it has caught up", Group::all_equal);
    assert_eq!(group.status(n).view.role, Role::Follower);
    group.make(&promote("node-d"));
    group.until("all know it", |group| (1..=3).chain([n]).all(|n| voters_of(group, n).len() == 4));

    // Two of the four are gone: nobody agrees. One is back: three of four do, and the new one is among them.
    group.cut_off.extend([2, 3]);
    group.until("nobody leads", |group| group.leader().is_none());
    group.cut_off.remove(&3);
    group.until("somebody leads", |group| group.leader().is_some());
    let leader = group.leader().expect("leads");
    assert!(matches!(heard(&group.propose(leader, b"by three")), Some(Ok(_))));
    assert_eq!(group.ledger(n).last().map(|(_, entry)| entry.as_slice()), Some(&b"by three"[..]));
}

#[test]
fn whoever_is_added_late_learns_by_a_snapshot_who_is_in_the_group() {
    let (mut group, _folders) = led(small_log);
    let (first, _) = join(&mut group, "node-d");
    group.make(&promote("node-d"));
    for n in 0..40_u8 {
        let leader = group.leader().expect("leads");
        assert!(matches!(heard(&group.propose(leader, &[n; ENTRY_BYTES_MAX])), Some(Ok(_))));
    }
    group.make(&remove("node-3"));
    for n in 0..40_u8 {
        let leader = group.leader().expect("leads");
        group.propose(leader, &[n]);
    }
    let (second, folder) = join(&mut group, "node-e");
    group.until("it has caught up", |group| group.ledger(second) == group.ledger(1));
    group.make(&promote("node-e"));
    group.until("it knows that it votes", |group| {
        voters_of(group, second) == ["node-1", "node-2", "node-d", "node-e"]
    });
    assert!(folder.look(|stored| stored.snapshot.is_some()), "the log alone is no test of a snapshot");
    // It knows it from its disk too.
    group.drivers.remove(&second);
    folder.cut_power(0);
    group.start(second, folder).expect("starts");
    group.until("it is there again", |group| {
        voters_of(group, second).len() == 4 && group.ledger(second) == group.ledger(first)
    });
}

#[test]
fn a_voter_that_has_applied_its_own_removal_leaves() {
    let (mut group, _folders) = led(usual);
    group.make(&remove("node-3"));
    group.until("it leaves", |group| group.status(3).view.condition == Condition::Removed);
    assert_eq!(group.status(3).view.role, Role::Halted);
    let carried = group.carried.get(&3).copied();
    for _ in 0..50 {
        group.tick();
    }
    assert_eq!(group.carried.get(&3).copied(), carried, "it speaks, though it has left");
    assert_eq!(voters_of(&group, 1), ["node-1", "node-2"]);
    let leader = group.leader().expect("leads");
    assert!(matches!(heard(&group.propose(leader, b"by two")), Some(Ok(_))));
    let refused = heard(&group.propose(3, b"by nobody"));
    assert!(matches!(refused, Some(Err(ProposeError::Halted { .. }))), "{refused:?}");
    // Of two neither goes if the other does not answer; and of one nobody.
    group.cut_off.insert(2);
    let stops = ChangeError::NoQuorum { answering: 0, voters: 1, quorum: 1 };
    for _ in 0..9 {
        group.tick();
    }
    if group.leader() == Some(1) {
        let refused = heard(&group.change(1, &remove("node-1"), b""));
        assert!([Some(Err(ProposeError::Forbidden(stops))), None].contains(&refused), "{refused:?}");
    }
}

#[test]
fn a_leader_that_is_removed_answers_hands_on_and_leaves() {
    let (mut group, _folders) = led(usual);
    group.until("a quorum was asked", |group| group.status(1).quorum_age.is_some());
    let term = group.status(1).view.term;
    let answer = group.change(1, &remove("node-1"), b"with it");
    assert_eq!(heard(&answer), Some(Ok(1)), "whoever asked is answered");
    let refused = heard(&group.propose(1, b"by somebody removed"));
    assert!(matches!(refused, Some(Err(_))), "{refused:?}");
    // No election's timeout passes.
    for _ in 0..3 {
        group.tick();
    }
    let leader = group.leader().expect("another leads");
    assert_ne!(leader, 1);
    assert_eq!(group.status(leader).view.term, term + 1);
    group.until("it has left", |group| group.status(1).view.condition == Condition::Removed);
    assert!(matches!(heard(&group.propose(leader, b"by two")), Some(Ok(_))));
}

/// It was needed for that change, and the one that is left does not know yet that it is not needed for the next.
#[test]
fn whoever_was_removed_stays_until_the_others_know() {
    let (mut group, _folders) = led(usual);
    group.make(&remove("node-3"));
    group.elect(1);
    let now = group.now;
    let driver = group.drivers.get_mut(&1).expect("runs");
    driver.change(&remove("node-1"), Vec::new(), now, Box::new(drop));
    group.settle_until(|group| group.status(1).view.members.get(id(1)).is_none());
    group.cut_off.insert(2);
    for _ in 0..40 {
        group.tick();
    }
    assert_eq!(group.status(1).view.condition, Condition::Running);
    group.cut_off.clear();
    group.until("the other one leads", |group| group.leader() == Some(2));
    group.until("it has left", |group| {
        group.status(1).view.condition == Condition::Removed || {
            // It hears no more of the group than that it is not in it, which its node is told.
            group.status(2).view.members.get(id(1)).is_none()
        }
    });
    assert!(matches!(heard(&group.propose(2, b"by one")), Some(Ok(_))));
}

#[test]
fn a_leadership_is_handed_on() {
    let (mut group, _folders) = led(usual);
    group.drivers.get_mut(&1).expect("runs").transfer(id(3));
    group.settle();
    assert_eq!(group.leader(), Some(3));
}

#[test]
fn one_that_has_not_heard_of_its_removal_disturbs_nobody() {
    let (mut group, folders) = led(usual);
    group.cut_off.insert(3);
    group.make(&remove("node-3"));
    group.until("a quorum was asked", |group| group.status(1).quorum_age.is_some());
    for _ in 0..100 {
        group.tick();
    }
    let (leader, term) = (group.leader(), group.status(1).view.term);
    assert_eq!(group.status(3).view.condition, Condition::Running, "nobody has told it");
    group.cut_off.clear();
    for _ in 0..100 {
        group.tick();
        assert_eq!((group.leader(), group.status(1).view.term), (leader, term), "it has disturbed the group");
    }
    // Nor after a restart.
    group.drivers.remove(&3);
    folders[&3].cut_power(0);
    group.start(3, folders[&3].clone()).expect("starts");
    for _ in 0..100 {
        group.tick();
        assert_eq!((group.leader(), group.status(1).view.term), (leader, term), "it has disturbed the group");
    }
    assert_eq!(voters_of(&group, 1), ["node-1", "node-2"]);
}

#[test]
fn whoever_is_added_again_is_somebody_else() {
    let (mut group, _folders) = led(usual);
    group.make(&remove("node-3"));
    let (first, _) = join(&mut group, "node-3");
    assert_ne!(first, 3);
    group.make(&promote("node-3"));
    group.make(&remove("node-3"));
    let (second, _) = join(&mut group, "node-3");
    assert!(second != first && second != 3);
}

#[test]
fn one_change_is_made_at_a_time() {
    let (mut group, _folders) = led(usual);
    group.cut_off.extend([2, 3]);
    let answer = group.change(1, &add("node-d"), b"");
    assert_eq!(heard(&answer), None, "it waits");
    let refused = heard(&group.change(1, &add("node-e"), b""));
    assert_eq!(refused, Some(Err(ProposeError::Forbidden(ChangeError::InFlight))));
    let elsewhere = heard(&group.change(2, &add("node-e"), b""));
    assert_eq!(elsewhere, Some(Err(ProposeError::NotLeader { leader: Some(id(1)) })));
}

/// Each voter is replaced, and at each step one of those who are there loses power and starts again.
#[test]
fn a_crash_between_any_two_steps_changes_nothing() {
    let mut crashes = 0;
    for victim in 0..4 {
        for survivors in [0, 1, usize::MAX] {
            for at in 0..12 {
                crashes += usize::from(replaced_with_a_crash(victim, survivors, at));
            }
        }
    }
    assert!(crashes > 100, "{crashes} crashes");
}

fn replaced_with_a_crash(victim: usize, survivors: usize, at: usize) -> bool {
    let (mut group, mut folders) = led(small_log);
    let mut step = 0;
    let mut crashed = false;
    let mut crash = |group: &mut Group, folders: &BTreeMap<u64, MemoryFolder>| {
        step += 1;
        let running = |n: &&u64| group.status(**n).view.condition == Condition::Running;
        let victim = group.drivers.keys().filter(running).nth(victim).copied();
        let Some(victim) = victim.filter(|_| step - 1 == at) else { return };
        group.drivers.remove(&victim);
        folders[&victim].cut_power(survivors.min(folders[&victim].pending()));
        group.start(victim, folders[&victim].clone()).expect("starts again");
        crashed = true;
    };
    for (old, new) in [("node-1", "node-x"), ("node-2", "node-y"), ("node-3", "node-z")] {
        for entry in 0..8_u8 {
            group.until("somebody leads", |group| group.leader().is_some());
            let leader = group.leader().expect("leads");
            group.propose(leader, &[entry]);
        }
        group.make(&add(new));
        crash(&mut group, &folders);
        group.until("somebody leads", |group| group.leader().is_some());
        let n = number(&group, new);
        folders.insert(n, MemoryFolder::new(&voters()));
        group.start(n, folders[&n].clone()).expect("starts");
        crash(&mut group, &folders);
        group.make(&promote(new));
        crash(&mut group, &folders);
        group.make(&remove(old));
        crash(&mut group, &folders);
    }
    group.until("the three new ones have the same", |group| {
        let here: Vec<u64> = group
            .drivers
            .keys()
            .copied()
            .filter(|n| *n > 3 && group.status(*n).view.condition == Condition::Running)
            .collect();
        here.len() == 3
            && here.iter().all(|n| {
                voters_of(group, *n) == ["node-x", "node-y", "node-z"]
                    && group.ledger(*n) == group.ledger(here[0])
            })
    });
    group.until("one of them leads", |group| group.leader().is_some_and(|leader| leader > 3));
    let leader = group.leader().expect("leads");
    assert!(matches!(heard(&group.propose(leader, b"by the new ones")), Some(Ok(_))));
    crashed
}
