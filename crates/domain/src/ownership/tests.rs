//! Every entry in every phase as a table, the stories that found the rules, and the laws under random entries.

use super::*;
use proptest::prelude::*;

fn id(n: u8) -> InstanceId {
    InstanceId::from_random([n; 16])
}

fn node(name: &str) -> NodeName {
    name.parse().expect("a node name")
}

fn licence(name: &str, n: u8) -> Licence {
    Licence { node: node(name), instance: id(n) }
}

fn m(n: u8) -> MigrationId {
    format!("m{n}").parse().expect("a migration name")
}

fn new_guest() -> Ownership {
    let mut guest = Ownership::new(node("a"));
    guest.apply(Entry::Born { instance: id(1) }).expect("born");
    guest
}

fn apply_all(guest: &mut Ownership, entries: impl IntoIterator<Item = Entry>) {
    for entry in entries {
        guest.apply(entry.clone()).unwrap_or_else(|refused| panic!("{entry:?}: {refused}"));
    }
}

fn request() -> Entry {
    Entry::Request { migration: m(1) }
}

fn start() -> Entry {
    Entry::Start { migration: m(1), target: node("b") }
}

fn accept(epoch: Epoch) -> Entry {
    Entry::Accept { migration: m(1), epoch, instance: id(2) }
}

fn hand_over(epoch: Epoch, mode: Mode) -> Entry {
    Entry::HandOver { migration: m(1), epoch, mode }
}

fn end(side: Side) -> Entry {
    Entry::End { migration: m(1), side, reason: "asked".into() }
}

/// A guest in each phase, all of them of migration m1 in the epoch that is returned.
fn in_every_phase() -> Vec<(Ownership, Epoch)> {
    let e = Epoch::FIRST;
    let ways: [Vec<Entry>; 8] = [
        vec![request()],
        vec![request(), start()],
        vec![request(), start(), accept(e)],
        vec![request(), start(), accept(e), hand_over(e, Mode::StopAndCopy)],
        vec![
            request(),
            start(),
            accept(e),
            hand_over(e, Mode::PostCopy),
            Entry::Running { migration: m(1), epoch: e.next() },
        ],
        vec![
            request(),
            start(),
            accept(e),
            hand_over(e, Mode::StopAndCopy),
            Entry::Running { migration: m(1), epoch: e.next() },
        ],
        vec![request(), start(), end(Side::Source)],
        vec![request(), start(), end(Side::Operator)],
    ];
    let guests = ways.into_iter().map(|way| {
        let mut guest = new_guest();
        apply_all(&mut guest, way);
        let epoch = guest.epoch;
        (guest, epoch)
    });
    guests.collect()
}

/// Is it accepted in Pending, Preparing, Copying, HandedOver, PostCopy, Succeeded, Failed (permits back), Cancelled
/// (permits held)? All entries name m1, the present epoch, and the runner 2 at b. A new entry does not compile until it
/// has its row.
fn row(entry: &Entry) -> [bool; 8] {
    const T: bool = true;
    const F: bool = false;
    match entry {
        Entry::Born { .. } => [F; 8],
        Entry::Request { .. } => [F, F, F, F, F, T, T, F],
        Entry::Start { .. } => [T, F, F, F, F, F, F, F],
        Entry::Decline { .. } => [F, T, F, F, F, F, F, F],
        Entry::Accept { .. } => [F, T, T, F, F, F, F, F],
        Entry::HandOver { .. } => [F, F, T, F, F, F, F, F],
        Entry::CallOff { .. } => [F, F, T, F, F, F, F, F],
        Entry::End { .. } => [T, T, T, F, F, F, F, F],
        Entry::Dropped { .. } => [F, F, F, F, F, F, F, T],
        Entry::Running { .. } => [F, F, F, T, T, T, F, F],
        Entry::AllPages { .. } => [F, F, F, T, T, T, F, F],
        Entry::HandBack { .. } => [F, F, F, T, F, F, F, F],
        Entry::Gone { .. } => [F, F, T, T, T, T, F, F],
        Entry::Vouch { .. } => [F, F, T, T, T, T, F, T],
        Entry::Recover { .. } => [F; 8],
        Entry::Delete => [T; 8],
        Entry::Purged { .. } => [F; 8],
        Entry::Found => [T; 8],
        Entry::Unclaimed { .. } | Entry::Claimed { .. } | Entry::Settle { .. } => [F; 8],
    }
}

fn every_entry(epoch: Epoch) -> Vec<Entry> {
    vec![
        Entry::Born { instance: id(9) },
        request(),
        start(),
        Entry::Decline { migration: m(1), epoch },
        accept(epoch),
        hand_over(epoch, Mode::StopAndCopy),
        Entry::CallOff { migration: m(1), epoch },
        end(Side::Target),
        Entry::Dropped { migration: m(1) },
        Entry::Running { migration: m(1), epoch },
        Entry::AllPages { migration: m(1), epoch },
        Entry::HandBack { migration: m(1), epoch, testimony: Testimony::NeverStarted },
        Entry::Gone { instance: id(2) },
        Entry::Vouch { node: node("b"), instances: vec![id(2)] },
        Entry::Recover { instance: id(2) },
        Entry::Delete,
        Entry::Purged { node: node("b") },
        Entry::Found,
        Entry::Unclaimed { node: node("b") },
        Entry::Claimed {
            instance: id(2),
            claim: Claim { node: node("b"), stands: Stands::Running(epoch), arriving: None },
        },
        Entry::Settle { all: true },
    ]
}

#[test]
fn every_entry_in_every_phase() {
    for (column, (guest, epoch)) in in_every_phase().into_iter().enumerate() {
        let phase = guest.attempt.as_ref().map_or("none", |attempt| attempt.phase.name());
        for entry in every_entry(epoch) {
            let mut changed = guest.clone();
            let outcome = changed.apply(entry.clone());
            assert_eq!(outcome.is_ok(), row(&entry)[column], "{} in {phase}: {outcome:?}", entry.name());
            if outcome.is_err() {
                assert_eq!(changed, guest, "a refused {} changes nothing", entry.name());
            }
        }
    }
}

/// Entries that compare the epoch are refused when it has moved on, in every phase.
#[test]
fn an_epoch_that_is_over_is_over_for_everyone() {
    for (guest, epoch) in in_every_phase() {
        let old = Epoch(epoch.0 - 1);
        for entry in every_entry(old) {
            let compares = matches!(
                entry,
                Entry::Decline { .. }
                    | Entry::Accept { .. }
                    | Entry::HandOver { .. }
                    | Entry::CallOff { .. }
                    | Entry::Running { .. }
                    | Entry::AllPages { .. }
                    | Entry::HandBack { .. }
            );
            if compares {
                let outcome = guest.clone().apply(entry);
                assert_eq!(outcome, Err(Refused::EpochOver { proposed: old, present: epoch }));
            }
        }
    }
}

fn copying() -> Ownership {
    let mut guest = new_guest();
    apply_all(&mut guest, [request(), start(), accept(Epoch::FIRST)]);
    guest
}

fn handed_over(mode: Mode) -> Ownership {
    let mut guest = copying();
    apply_all(&mut guest, [hand_over(Epoch::FIRST, mode)]);
    guest
}

/// The source gives up; its hand-over, proposed before and delayed, must not win afterwards.
#[test]
fn a_hand_over_that_was_called_off_is_refused_however_late() {
    for give_up in [Entry::CallOff { migration: m(1), epoch: Epoch::FIRST }, end(Side::Source)] {
        let mut guest = copying();
        apply_all(&mut guest, [give_up]);
        let late = guest.apply(hand_over(Epoch::FIRST, Mode::StopAndCopy));
        assert!(matches!(late, Err(Refused::EpochOver { .. })));
        assert!(guest.licenses(id(1)));
    }
}

#[test]
fn cancel_and_hand_over_compete_and_one_wins() {
    let mut guest = handed_over(Mode::StopAndCopy);
    let refused = guest.apply(end(Side::Operator)).expect_err("too late").to_string();
    assert_eq!(refused, "already handed over to b, epoch 2: it can not be taken back");
}

#[test]
fn the_ninth_call_off_is_refused() {
    let mut guest = copying();
    for n in 0..CALL_OFFS_MAX {
        apply_all(&mut guest, [Entry::CallOff { migration: m(1), epoch: Epoch(u64::from(n) + 1) }]);
    }
    let epoch = guest.epoch;
    let ninth = guest.apply(Entry::CallOff { migration: m(1), epoch });
    assert_eq!(ninth, Err(Refused::CalledOffTooOften(m(1))));
}

#[test]
fn the_first_runner_that_is_born_wins() {
    let mut guest = Ownership::new(node("a"));
    assert!(guest.owner().is_none() && guest.apply(request()).is_err());
    apply_all(&mut guest, [Entry::Born { instance: id(1) }, Entry::Born { instance: id(1) }]);
    assert!(guest.apply(Entry::Born { instance: id(2) }).is_err());
    assert!(guest.licenses(id(1)) && guest.epoch == Epoch::FIRST);
}

#[test]
fn a_hand_back_returns_the_guest_to_its_source() {
    let mut guest = handed_over(Mode::StopAndCopy);
    let epoch = guest.epoch;
    apply_all(&mut guest, [Entry::HandBack { migration: m(1), epoch, testimony: Testimony::NeverStarted }]);
    assert!(guest.licenses(id(1)) && guest.epoch == epoch.next());
}

/// A power-off proves "does not run", not "did not run": going back is a second, explicit act.
#[test]
fn a_vouched_target_makes_the_guest_lost_and_recovery_is_recorded() {
    let mut guest = handed_over(Mode::StopAndCopy);
    apply_all(&mut guest, [Entry::Vouch { node: node("b"), instances: vec![id(2)] }]);
    let kept = Some(licence("a", 1));
    assert_eq!(guest.life, Life::Lost { last: licence("b", 2), kept });
    assert!(!guest.licenses(id(1)) && !guest.licenses(id(2)), "nobody runs it");
    assert!(matches!(guest.apply(Entry::Recover { instance: id(7) }), Err(Refused::NoPart(_))));
    apply_all(&mut guest, [Entry::Recover { instance: id(1) }]);
    assert!(guest.licenses(id(1)) && guest.rollbacks == 1);
}

/// A vouch names the instances it is about: late, or a second time, it touches no guest that came afterwards.
#[test]
fn a_late_vouch_touches_no_later_instance() {
    let mut guest = handed_over(Mode::StopAndCopy);
    apply_all(&mut guest, [Entry::Running { migration: m(1), epoch: Epoch(2) }]);
    let late = Entry::Vouch { node: node("b"), instances: vec![id(9)] };
    assert_eq!(guest.apply(late), Err(Refused::NoPart(id(9))));
    assert!(guest.licenses(id(2)));
}

#[test]
fn a_lost_source_in_post_copy_is_for_the_target_to_judge() {
    let mut guest = handed_over(Mode::PostCopy);
    apply_all(&mut guest, [Entry::Gone { instance: id(1) }]);
    assert!(guest.licenses(id(2)), "the target may hold every page");
    let mut whole = guest.clone();
    apply_all(&mut whole, [Entry::AllPages { migration: m(1), epoch: Epoch(2) }]);
    assert_eq!(whole.attempt.map(|attempt| attempt.phase), Some(Phase::Succeeded));
    apply_all(&mut guest, [Entry::Gone { instance: id(2) }]);
    assert_eq!(guest.life, Life::Lost { last: licence("b", 2), kept: None });
}

#[test]
fn a_deleted_guest_is_purged_by_all_that_ever_held_it() {
    let mut guest = handed_over(Mode::StopAndCopy);
    apply_all(&mut guest, [Entry::Delete]);
    assert!(guest.owner().is_none());
    assert!(matches!(guest.apply(Entry::Recover { instance: id(1) }), Err(Refused::Life { .. })));
    apply_all(&mut guest, [Entry::Purged { node: node("a") }]);
    assert_eq!(guest.life.name(), "Deleting");
    apply_all(&mut guest, [Entry::Purged { node: node("b") }]);
    assert_eq!(guest.life, Life::Purged);
}

/// Any entry about two migrations, three epochs, a few runners.
fn any_entry() -> impl Strategy<Value = Entry> {
    let names = prop::sample::select(vec!["a", "b", "c"]);
    (0_u8..22, 1_u8..3, 1_u64..10, 1_u8..5, names, any::<bool>()).prop_map(
        |(kind, migration, epoch, instance, name, flag)| {
            let (migration, epoch, instance) = (m(migration), Epoch(epoch), id(instance));
            let reason = "asked".to_owned();
            match kind {
                0 => Entry::Request { migration },
                1 => Entry::Start { migration, target: node(name) },
                2 => Entry::Decline { migration, epoch },
                3 => Entry::Accept { migration, epoch, instance },
                4 | 5 => {
                    let mode = if flag { Mode::PostCopy } else { Mode::StopAndCopy };
                    Entry::HandOver { migration, epoch, mode }
                }
                6 => Entry::CallOff { migration, epoch },
                7 => Entry::End { migration, side: if flag { Side::Operator } else { Side::Source }, reason },
                8 => Entry::Dropped { migration },
                9 => Entry::Running { migration, epoch },
                10 => Entry::AllPages { migration, epoch },
                11 => Entry::HandBack { migration, epoch, testimony: Testimony::Withheld },
                12 => Entry::Gone { instance },
                13 => Entry::Vouch { node: node(name), instances: vec![instance] },
                14 => Entry::Recover { instance },
                15 if flag => Entry::Delete,
                15 => Entry::Purged { node: node(name) },
                16 => Entry::Found,
                17 => Entry::Unclaimed { node: node(name) },
                18 => Entry::Settle { all: flag },
                _ => {
                    let stands = match (kind, flag) {
                        (19, true) => Stands::Running(epoch),
                        (19, false) | (20, true) => Stands::Paused { sealed: epoch, withheld: flag },
                        (20, false) => Stands::Incoming { made: epoch, arrived: None },
                        (_, true) => Stands::Incoming { made: epoch, arrived: Some(epoch) },
                        (_, false) => Stands::Buried,
                    };
                    let claim = Claim { node: node(name), stands, arriving: flag.then_some(migration) };
                    Entry::Claimed { instance, claim }
                }
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_is_proposed_the_laws_hold(entries in prop::collection::vec(any_entry(), 0..80)) {
        let mut guest = new_guest();
        for entry in entries {
            let before = guest.clone();
            let changes_owner = matches!(
                entry,
                Entry::HandOver { .. } | Entry::HandBack { .. } | Entry::Recover { .. } | Entry::Delete
                    | Entry::Gone { .. } | Entry::Vouch { .. }
                    | Entry::Found | Entry::Claimed { .. } | Entry::Settle { .. }
            );
            let gives_a_licence =
matches!(
                    entry,
                    Entry::HandOver { .. } | Entry::HandBack { .. } | Entry::Recover { .. }
                        | Entry::Claimed { .. } | Entry::Settle { .. }
                );
            // In post-copy the one that runs goes on under the licence that it has.
            let confirms = |before: &Ownership, after: &Ownership| {
                let Life::Unsure(doubt) = &before.life else { return false };
                let claim = after.owner().and_then(|owner| doubt.claims.get(&owner.instance));
                claim.is_some_and(|claim| claim.stands == Stands::Running(after.epoch))
            };
            if guest.apply(entry).is_err() {
                prop_assert_eq!(&guest, &before, "a refused entry changes nothing");
                continue;
            }
            prop_assert!(guest.epoch >= before.epoch, "epochs only rise");
            if guest.owner() != before.owner() {
                prop_assert!(changes_owner, "only these change the owner");
                if guest.owner().is_some() {
                    let is_new = guest.epoch > before.epoch || confirms(&before, &guest);
                    prop_assert!(gives_a_licence && is_new, "a licence is of a new epoch");
                }
            }
            let over = |o: &Ownership| o.attempt.as_ref().filter(|a| a.phase.is_over()).map(|a| a.phase.clone());
            if let Some(ended) = over(&before) {
                let name = |o: &Ownership| o.attempt.as_ref().map(|a| a.migration.clone());
                let replaced = name(&guest) != name(&before)
                    || guest.attempt.as_ref().is_some_and(|a| a.phase == Phase::Pending);
                prop_assert!(replaced || over(&guest) == Some(ended), "what has ended stays ended");
            }
            let attempt = guest.attempt.as_ref();
            let holds = attempt.is_some_and(|a| a.permits != Permits::None);
            let must_hold = attempt.is_some_and(|a| !a.phase.is_over() && a.phase != Phase::Pending);
            prop_assert!(holds || !must_hold, "an admitted migration holds its permits");
        }
    }
}
