//! One thing at a time: leader change, restart, snapshots, refusals, a disk that is full, a quorum that is away.

mod common;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::group::{Group, heard};
use common::{id, identity, voters};
use godwit_control::driver::{Condition, Config, ProposeError, Role};
use godwit_control::envelope::{ENTRY_BYTES_MAX, MESSAGE_BYTES_MAX};
use godwit_control::memory_disk::{Fault, MemoryFolder};
use godwit_control::promises::PROMISES_MAX;
use godwit_control::sled_disk::SledFolder;

fn usual(_: &mut Config) {}

fn small_log(config: &mut Config) {
    config.snapshot_entries = 10;
    config.keep_entries = 3;
}

/// Three voters in memory, of whom the first leads.
fn led(config: fn(&mut Config)) -> (Group, Vec<MemoryFolder>) {
    let mut group = Group::new(config);
    let folders: Vec<_> = (0..3).map(|_| MemoryFolder::new(&voters())).collect();
    for (n, folder) in (1..).zip(&folders) {
        group.start(n, folder.clone()).expect("starts");
    }
    group.elect(1);
    (group, folders)
}

#[test]
fn without_a_push_someone_leads_within_two_election_timeouts() {
    let mut group = Group::new(usual);
    for n in 1..=3 {
        group.start(n, MemoryFolder::new(&voters())).expect("starts");
    }
    for _ in 0..20 {
        group.tick();
    }
    assert!(group.leader().is_some());
}

#[test]
fn entries_are_agreed_and_another_leads_when_the_leader_dies() {
    let (mut group, _folders) = led(usual);
    let answers: Vec<_> = (0..5_u8).map(|n| group.propose(1, &[n])).collect();
    let replies: Vec<_> = answers.iter().map(heard).collect();
    assert_eq!(replies, (1..=5).map(|n| Some(Ok(n))).collect::<Vec<_>>());
    group.drivers.remove(&1);
    group.until("another leads", |group| group.leader().is_some());
    let leader = group.leader().expect("leads");
    let answer = group.propose(leader, b"after");
    assert_eq!(heard(&answer), Some(Ok(6)));
    let follower = 5 - leader;
    let refused = heard(&group.propose(follower, b"there"));
    assert_eq!(refused, Some(Err(ProposeError::NotLeader { leader: Some(common::id(leader)) })));
    group.until("both have applied it", |group| group.all_equal() && group.ledger(leader).len() == 6);
}

#[test]
fn a_group_restarts_from_its_real_disks() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = |n: u64| SledFolder::new(dir.path().join(n.to_string()), identity(n));
    let mut group = Group::new(small_log);
    for n in 1..=3 {
        group.start(n, source(n)).expect("starts");
    }
    group.elect(1);
    for n in 0..35_u8 {
        assert_eq!(heard(&group.propose(1, &[n; 3000])), Some(Ok(usize::from(n) + 1)));
    }
    group.until("all have applied it", Group::all_equal);
    let before = group.ledger(1).to_vec();
    let term = group.status(1).view.term;
    let mut again = Group::new(small_log);
    drop(group);
    for n in 1..=3 {
        again.start(n, source(n)).expect("starts again");
    }
    assert!(again.status(1).view.term >= term, "a term was forgotten");
    again.until("someone leads", |group| group.leader().is_some());
    let leader = again.leader().expect("leads");
    assert_eq!(heard(&again.propose(leader, b"new")), Some(Ok(36)));
    again.until("all have applied it", |group| group.all_equal() && group.ledger(1).len() == 36);
    assert_eq!(again.ledger(2)[..35], before);
    for n in 1..=3 {
        let blobs = dir.path().join(n.to_string()).join("blobs");
        assert_eq!(std::fs::read_dir(blobs).expect("a folder").count(), 0);
    }
}

#[test]
fn the_log_is_cut_and_a_voter_far_behind_gets_the_state_in_pieces() {
    let (mut group, folders) = led(small_log);
    group.cut_off.insert(3);
    for n in 0..40_u8 {
        let answer = group.propose(1, &[n; ENTRY_BYTES_MAX]);
        assert_eq!(heard(&answer), Some(Ok(usize::from(n) + 1)));
    }
    let (first, last) = group.status(1).log;
    assert!(first > 20 && last - first < 20, "the log goes from {first} to {last}");
    assert!(group.ledger(3).is_empty());
    let state = folders[0].look(|stored| stored.snapshot.as_ref().map_or(0, |state| state.get_data().len()));
    assert!(state > MESSAGE_BYTES_MAX, "one piece is no test: {state}");
    group.cut_off.clear();
    group.until("the third has caught up", |group| group.ledger(3).len() == 40 && group.all_equal());
    // It holds what it was sent, also after a power cut.
    group.drivers.remove(&3);
    folders[2].cut_power(0);
    group.start(3, folders[2].clone()).expect("starts");
    group.until("the third is there again", Group::all_equal);
}

#[test]
fn a_leader_with_a_full_disk_steps_aside_and_comes_back() {
    let (mut group, folders) = led(usual);
    let kept = group.propose(1, b"before");
    assert_eq!(heard(&kept), Some(Ok(1)));
    folders[0].set_full(true);
    let lost = group.propose(1, b"in vain");
    assert_eq!(heard(&lost), Some(Err(ProposeError::Unknown)));
    let status = group.status(1);
    assert_eq!(status.view.role, Role::Halted);
    let Condition::DiskFull { error } = &status.view.condition else { panic!("{status:?}") };
    assert!(error.contains("the disk is full"), "{error}");
    let carried = group.carried.get(&1).copied();
    group.until("another leads", |group| group.leader().is_some());
    assert_eq!(group.carried.get(&1).copied(), carried, "a voter without a disk spoke");
    let refused = heard(&group.propose(1, b"refused"));
    assert!(matches!(refused, Some(Err(ProposeError::Halted { .. }))), "{refused:?}");
    let leader = group.leader().expect("leads");
    let answer = group.propose(leader, b"meanwhile");
    assert!(matches!(heard(&answer), Some(Ok(_))));
    folders[0].set_full(false);
    group.until("the first takes part again", |group| {
        group.status(1).view.condition == Condition::Running && group.all_equal()
    });
    assert_eq!(group.ledger(1).first().map(|(_, entry)| entry.as_slice()), Some(&b"before"[..]));
    let entries: Vec<_> = group.ledger(1).iter().map(|(_, entry)| entry.as_slice()).collect();
    assert!(entries.contains(&&b"meanwhile"[..]) && !entries.contains(&&b"refused"[..]));
}

#[test]
fn without_a_quorum_nobody_is_lied_to() {
    // Not the caller's time ends his waiting, but the end of the leadership.
    let (mut group, _folders) = led(|config| config.propose_timeout = Duration::from_secs(3600));
    group.until("a quorum was asked", |group| group.status(1).quorum_age.is_some());
    assert!(group.status(1).quorum_age < Some(Duration::from_secs(1)));
    assert!(
        group.status(2).quorum_age < Some(Duration::from_secs(1)),
        "a follower asks by way of the leader"
    );
    group.cut_off.extend([2, 3]);
    let answer = group.propose(1, b"alone");
    assert_eq!(heard(&answer), None, "it waits");
    group.until("its leader gives up", |_| heard(&answer).is_some());
    assert_eq!(heard(&answer), Some(Err(ProposeError::Unknown)));
    assert_eq!(group.leader(), None);
    assert!(group.status(1).quorum_age > Some(Duration::from_millis(800)));
    assert!(group.ledger(1).is_empty());
    group.cut_off.clear();
    group.until("someone leads", |group| group.leader().is_some());
    group.until("all have the same", Group::all_equal);
}

#[test]
fn a_leader_proves_that_it_looks_at_the_present_and_nobody_else_does() {
    let (mut group, _folders) = led(usual);
    let proven = |answer: &Mutex<Option<bool>>| *answer.lock().expect("not poisoned");
    assert_eq!(heard(&group.propose(1, b"known")), Some(Ok(1)));
    let (leads, follows) = (group.prove(1), group.prove(2));
    assert_eq!((proven(&leads), proven(&follows)), (None, Some(false)), "it has not asked anybody yet");
    let joins = group.prove(1);
    group.settle();
    assert_eq!((proven(&leads), proven(&joins)), (Some(true), Some(true)), "without a tick");

    // One that is cut off still leads, and a quorum has answered a moment ago: that is no proof.
    group.cut_off.insert(1);
    let alone = group.prove(1);
    group.settle();
    assert_eq!((group.status(1).view.role, proven(&alone)), (Role::Leader, None));
    assert!(group.status(1).quorum_age < Some(Duration::from_millis(900)));
    // It sleeps while others agree; however its clock stands, it is not told that it sees the present.
    group.drivers.get_mut(&2).expect("runs").campaign();
    for _ in 0..40 {
        group.now += Duration::from_millis(100);
        for n in [2, 3] {
            group.drivers.get_mut(&n).expect("runs").tick(group.now);
        }
        group.settle();
    }
    let next = group.leader().expect("another leads");
    assert!(matches!(heard(&group.propose(next, b"unknown to the first")), Some(Ok(_))));
    let awake = group.prove(1);
    group.cut_off.clear();
    group.until("it knows better", |_| proven(&alone).is_some() && proven(&awake).is_some());
    assert_eq!((proven(&alone), proven(&awake)), (Some(false), Some(false)));
}

#[test]
fn a_new_leader_proves_nothing_before_it_has_applied_what_was_agreed_before() {
    let (mut group, _folders) = led(usual);
    let proven = |answer: &Mutex<Option<bool>>| *answer.lock().expect("not poisoned");
    // The third has the entry and does not know that it is agreed, when the leader dies that has said so.
    group.cut_off.insert(2);
    let (answer, now) = (Arc::new(Mutex::new(None)), group.now);
    let slot = Arc::clone(&answer);
    let caller = Box::new(move |outcome| *slot.lock().expect("not poisoned") = Some(outcome));
    group.drivers.get_mut(&1).expect("runs").propose(b"agreed".to_vec(), now, caller);
    group.settle_until(|_| heard(&answer).is_some());
    assert_eq!((heard(&answer), group.ledger(3).len()), (Some(Ok(1)), 0));
    group.drivers.remove(&1);
    group.cut_off = [1].into();
    let mut asked = Vec::new();
    let honest = |group: &Group, asked: &[(u64, Arc<Mutex<Option<bool>>>)]| {
        for (leader, answer) in asked {
            let sees = group.ledger(*leader).iter().any(|(_, entry)| entry == b"agreed");
            assert!(proven(answer) != Some(true) || sees, "a proof of what it does not see");
        }
        false
    };
    for _ in 0..60 {
        group.now += Duration::from_millis(100);
        let now = group.now;
        group.drivers.values_mut().for_each(|driver| driver.tick(now));
        // Asked as soon as somebody leads: its own first entry is not agreed yet.
        group.settle_until(|group| group.leader().is_some());
        if let Some(leader) = group.leader() {
            asked.push((leader, group.prove(leader)));
        }
        honest(&group, &asked);
        group.settle_until(|group| honest(group, &asked));
    }
    assert!(asked.iter().any(|(_, answer)| proven(answer) == Some(true)), "nobody has proven anything");
}

#[test]
fn too_large_and_too_many_are_refused_by_name() {
    let (mut group, _folders) = led(usual);
    let large = heard(&group.propose(1, &vec![0; ENTRY_BYTES_MAX + 1]));
    assert_eq!(large, Some(Err(ProposeError::TooLarge { bytes: ENTRY_BYTES_MAX + 1, max: ENTRY_BYTES_MAX })));
    group.cut_off.extend([2, 3]);
    let waiting: Vec<_> = (0..PROMISES_MAX).map(|_| group.propose(1, b"")).collect();
    assert_eq!(heard(&group.propose(1, b"one more")), Some(Err(ProposeError::Busy)));
    group.cut_off.clear();
    group.until("all are answered", |_| waiting.iter().all(|answer| heard(answer).is_some()));
    assert!(waiting.iter().all(|answer| heard(answer) != Some(Err(ProposeError::Busy))));
}

#[test]
fn a_panic_is_the_death_of_a_voter_and_not_of_its_process() {
    let (mut group, _folders) = led(usual);
    let answer = group.propose(1, b"poison");
    assert_eq!(heard(&answer), Some(Err(ProposeError::Unknown)));
    for n in 1..=3 {
        let Condition::Crashed { why } = group.status(n).view.condition else { panic!("voter {n} lives") };
        assert!(why.contains("does not survive"), "{why}");
    }
    let refused = heard(&group.propose(1, b"more"));
    assert!(matches!(refused, Some(Err(ProposeError::Halted { .. }))), "{refused:?}");
}

#[test]
fn a_disk_that_fails_is_the_death_of_its_voter() {
    let (mut group, folders) = led(usual);
    folders[0].plan(Fault { calls: 1, kind: ErrorKind::BrokenPipe, survivors: 0 });
    assert_eq!(heard(&group.propose(1, b"in vain")), Some(Err(ProposeError::Unknown)));
    let Condition::Crashed { why } = group.status(1).view.condition else { panic!("voter 1 lives") };
    assert!(why.contains("memory: sync: broken pipe"), "{why}");
    group.until("another leads", |group| group.leader().is_some());
}

#[test]
fn what_is_wrong_with_a_disk_is_told_at_the_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut group = Group::new(usual);
    group.start(1, SledFolder::new(dir.path(), identity(1))).expect("starts");
    let told = |group: &mut Group, path: &Path, n| {
        let error = group.start(n, SledFolder::new(path, identity(n))).expect_err("refuses");
        error.to_string()
    };
    assert!(told(&mut group, dir.path(), 1).contains("in use by another voter's process"));
    group.drivers.clear();
    assert!(told(&mut group, dir.path(), 2).contains("belongs to node node-1"));
    std::fs::write(dir.path().join("db"), [7; 9000]).expect("writes");
    assert!(told(&mut group, dir.path(), 1).contains("is damaged"));
}

/// Other voters ask the leader too, and an answer to one question counts for those before it.
#[test]
fn a_question_that_comes_twice_proves_nothing_of_what_was_asked_between() {
    let mut group = Group::new(usual);
    for n in 1..=3 {
        group.start(n, MemoryFolder::new(&voters())).expect("starts");
    }
    group.elect(1);
    group.kept.clear();
    group.until("all have asked", |group| (1..=3).all(|n| group.status(n).quorum_age.is_some()));
    let said = std::mem::take(&mut group.kept);
    // From now on nobody answers; what was said before comes once more.
    group.cut_off.extend([2, 3]);
    let proof = group.prove(1);
    group.settle();
    for (from, _, bytes) in said.into_iter().filter(|(_, to, _)| *to == id(1)) {
        group.drivers.get_mut(&1).expect("runs").receive(from, &bytes).expect("taken");
    }
    group.settle();
    assert_eq!(*proof.lock().expect("not poisoned"), None, "nobody has answered since");
}
