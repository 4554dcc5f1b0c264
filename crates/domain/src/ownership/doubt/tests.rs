//! What becomes of a guest in doubt, as a table: what was believed, what is claimed, who was heard.

use super::*;
use crate::ownership::{Entry, Mode, Side};
use crate::ownership::{Ownership, Permits, Refused};

const E1: Epoch = Epoch(1);
const E2: Epoch = Epoch(2);
const E5: Epoch = Epoch(5);

fn id(n: u8) -> InstanceId {
    InstanceId::from_random([n; 16])
}

fn node(name: &str) -> NodeName {
    name.parse().expect("a node name")
}

fn m(n: u8) -> MigrationId {
    format!("m{n}").parse().expect("a migration name")
}

/// Runner n of node a is its own guest's first, that of any other node was made for a migration.
fn claim(name: &str, n: u8, stands: Stands, arriving: Option<u8>) -> Entry {
    let arriving = arriving.map(m);
    Entry::Claimed { instance: id(n), claim: Claim { node: node(name), stands, arriving } }
}

fn runs(name: &str, n: u8, epoch: Epoch, arriving: Option<u8>) -> Entry {
    claim(name, n, Stands::Running(epoch), arriving)
}

fn stands_still(name: &str, n: u8, sealed: Epoch) -> Entry {
    claim(name, n, Stands::Paused { sealed, withheld: false }, None)
}

fn waits(name: &str, n: u8, made: Epoch, arrived: Option<Epoch>) -> Entry {
    claim(name, n, Stands::Incoming { made, arrived }, Some(1))
}

/// A guest on a, with migration m1 to b as far as these entries have brought it.
fn believed(entries: &[Entry]) -> Ownership {
    let mut guest = Ownership::new(node("a"));
    for entry in entries {
        guest.apply(entry.clone()).unwrap_or_else(|refused| panic!("{entry:?}: {refused}"));
    }
    guest
}

fn born() -> Vec<Entry> {
    vec![Entry::Born { instance: id(1) }]
}

fn copying() -> Vec<Entry> {
    let mut entries = born();
    entries.push(Entry::Request { migration: m(1) });
    entries.push(Entry::Start { migration: m(1), target: node("b") });
    entries.push(Entry::Accept { migration: m(1), epoch: E1, instance: id(2) });
    entries
}

fn handed_over(mode: Mode) -> Vec<Entry> {
    let mut entries = copying();
    entries.push(Entry::HandOver { migration: m(1), epoch: E1, mode });
    entries
}

fn in_post_copy() -> Vec<Entry> {
    let mut entries = handed_over(Mode::PostCopy);
    entries.push(Entry::Running { migration: m(1), epoch: E2 });
    entries
}

/// Found anew, with these claims, in any order, and everybody heard (or not).
fn settled(believed: &Ownership, claims: &[Entry], all: bool) -> Ownership {
    let mut guest = believed.clone();
    guest.apply(Entry::Found).expect("found");
    assert!(guest.owner().is_none(), "nobody owns it before somebody was heard");
    for entry in claims {
        // What was heard before may have settled it.
        guest.apply(entry.clone()).unwrap_or_default();
        guest.apply(Entry::Settle { all: false }).unwrap_or_default();
    }
    if all {
        // It may be settled already.
        guest.apply(Entry::Settle { all: true }).unwrap_or_default();
    }
    guest
}

/// What a row expects: who owns it under which epoch, or what it is otherwise.
#[derive(Debug, PartialEq)]
enum Fate {
    Owns(u8, Epoch),
    Lost { kept: Option<u8> },
    Unsure,
    Disputed,
}

fn fate(guest: &Ownership) -> Fate {
    let number = |instance: InstanceId| (0..=9).find(|n| id(*n) == instance).expect("a runner of the table");
    match &guest.life {
        Life::Alive(owner) => Fate::Owns(number(owner.instance), guest.epoch),
        Life::Lost { kept, .. } => Fate::Lost { kept: kept.as_ref().map(|kept| number(kept.instance)) },
        Life::Unsure(doubt) if doubt.open => Fate::Disputed,
        Life::Unsure(_) => Fate::Unsure,
        Life::Creating(_) | Life::Deleting(_) | Life::Purged => panic!("{guest:?}"),
    }
}

/// What it is about, what was believed, what is claimed, whether all were heard, and what becomes of it.
type Row = (&'static str, Vec<Entry>, Vec<Entry>, bool, Fate);

fn rows_of_those_that_run() -> Vec<Row> {
    let e = Epoch;
    vec![
        ("what was believed is confirmed", born(), vec![runs("a", 1, E1, None)], false, Fate::Owns(1, e(2))),
        (
            "it is confirmed, under a later epoch",
            born(),
            vec![runs("a", 1, E5, None)],
            false,
            Fate::Owns(1, e(6)),
        ),
        ("nobody was heard", born(), vec![], false, Fate::Unsure),
        ("nobody has it", born(), vec![], true, Fate::Lost { kept: None }),
        (
            "it has moved since; others are waited for",
            born(),
            vec![runs("b", 2, E2, Some(1))],
            false,
            Fate::Unsure,
        ),
        ("it has moved since", born(), vec![runs("b", 2, E2, Some(1))], true, Fate::Owns(2, e(3))),
        (
            "it has moved far",
            born(),
            vec![stands_still("a", 1, E1), runs("c", 3, E5, Some(7))],
            true,
            Fate::Owns(3, e(6)),
        ),
        (
            "its source still has its pages",
            born(),
            vec![stands_still("a", 1, E1), runs("b", 2, E2, Some(1))],
            true,
            Fate::Owns(2, E2),
        ),
        (
            "a later move had begun, so it is whole",
            born(),
            vec![stands_still("a", 1, E1), runs("b", 2, E2, Some(7)), waits("c", 3, E2, None)],
            true,
            Fate::Owns(2, e(3)),
        ),
        ("two run", born(), vec![runs("b", 2, E2, Some(1)), runs("c", 3, E5, Some(2))], true, Fate::Disputed),
    ]
}

fn rows_of_those_that_stand_still() -> Vec<Row> {
    let buried = claim("b", 2, Stands::Buried, None);
    let e = Epoch;
    vec![
        (
            "two run; somebody is waited for",
            born(),
            vec![runs("b", 2, E2, Some(1)), runs("c", 3, E5, Some(2))],
            false,
            Fate::Unsure,
        ),
        (
            "one runs that is older than a copy",
            born(),
            vec![runs("b", 2, E2, Some(1)), stands_still("c", 3, E5)],
            true,
            Fate::Disputed,
        ),
        (
            "a pause of which nothing more is known",
            born(),
            vec![stands_still("a", 1, E1)],
            true,
            Fate::Lost { kept: None },
        ),
        (
            "a pause on another node",
            born(),
            vec![stands_still("c", 3, E5)],
            true,
            Fate::Lost { kept: Some(3) },
        ),
        (
            "its target has not run",
            copying(),
            vec![stands_still("a", 1, E1), waits("b", 2, E1, None)],
            true,
            Fate::Owns(1, e(2)),
        ),
        (
            "its target is buried",
            copying(),
            vec![stands_still("a", 1, E1), buried],
            true,
            Fate::Owns(1, e(2)),
        ),
        (
            "its target may have run",
            copying(),
            vec![stands_still("a", 1, E1)],
            true,
            Fate::Lost { kept: None },
        ),
        (
            "it was handed over and has not run",
            handed_over(Mode::StopAndCopy),
            vec![waits("b", 2, E1, Some(E1)), stands_still("a", 1, E1)],
            true,
            Fate::Owns(1, e(3)),
        ),
        (
            "it was handed over, and nobody has the target",
            handed_over(Mode::StopAndCopy),
            vec![stands_still("a", 1, E1)],
            true,
            Fate::Lost { kept: Some(1) },
        ),
        (
            "the one that has its Final has not run",
            born(),
            vec![stands_still("a", 1, E5), waits("c", 3, E5, Some(E5))],
            true,
            Fate::Owns(1, e(6)),
        ),
    ]
}

fn rows_in_post_copy_and_before_birth() -> Vec<Row> {
    let withheld = claim("a", 1, Stands::Paused { sealed: E1, withheld: true }, None);
    let e = Epoch;
    vec![
        (
            "one that has an older Final proves nothing",
            born(),
            vec![stands_still("a", 1, E5), waits("c", 3, E1, Some(E1))],
            true,
            Fate::Lost { kept: None },
        ),
        ("its Final never left", born(), vec![withheld], true, Fate::Owns(1, e(2))),
        (
            "only what never ran is left",
            born(),
            vec![waits("b", 2, E1, None)],
            true,
            Fate::Lost { kept: None },
        ),
        (
            "it moves",
            copying(),
            vec![runs("a", 1, E1, None), waits("b", 2, E1, None)],
            false,
            Fate::Owns(1, e(2)),
        ),
        (
            "it is in post-copy",
            in_post_copy(),
            vec![stands_still("a", 1, E1), runs("b", 2, E2, Some(1))],
            true,
            Fate::Owns(2, E2),
        ),
        (
            "in post-copy nothing is settled before all are heard",
            in_post_copy(),
            vec![runs("b", 2, E2, Some(1))],
            false,
            Fate::Unsure,
        ),
        (
            "in post-copy its source is gone",
            in_post_copy(),
            vec![runs("b", 2, E2, Some(1))],
            true,
            Fate::Owns(2, E2),
        ),
        (
            "a new runner that has not run may be a second one",
            vec![],
            vec![claim("a", 1, Stands::Incoming { made: Epoch(0), arrived: Some(Epoch(0)) }, None)],
            true,
            Fate::Lost { kept: None },
        ),
        ("it was born since", vec![], vec![runs("a", 1, E1, None)], false, Fate::Owns(1, e(2))),
        ("it was to be made, and nobody has it", vec![], vec![], true, Fate::Lost { kept: None }),
    ]
}

#[test]
fn what_is_claimed_settles_it_or_nothing_does() {
    let rows =
        [rows_of_those_that_run(), rows_of_those_that_stand_still(), rows_in_post_copy_and_before_birth()]
            .into_iter()
            .flatten();
    for (what, before, claims, all, expected) in rows {
        let reversed: Vec<Entry> = claims.iter().rev().cloned().collect();
        for claims in [claims, reversed] {
            let guest = settled(&believed(&before), &claims, all);
            assert_eq!(fate(&guest), expected, "{what}: {guest:?}");
            let open = guest.attempt.as_ref().is_some_and(|attempt| !attempt.phase.is_over());
            let holds = guest.attempt.as_ref().is_some_and(|attempt| attempt.permits != Permits::None);
            let goes_on = matches!(guest.attempt.as_ref().map(|it| &it.phase), Some(Phase::PostCopy { .. }));
            match expected {
                Fate::Unsure | Fate::Disputed => {}
                Fate::Owns(..) | Fate::Lost { .. } => {
                    assert_eq!(
                        (open, holds),
                        (goes_on, goes_on),
                        "{what}: a move is over, or goes on in post-copy"
                    );
                }
            }
        }
    }
}

#[test]
fn a_move_that_succeeded_since_is_not_said_to_have_failed() {
    let guest = settled(&believed(&copying()), &[runs("b", 2, E2, Some(1))], true);
    assert_eq!(guest.attempt.map(|attempt| attempt.phase), Some(Phase::Succeeded));
    let guest = settled(&believed(&copying()), &[runs("a", 1, E1, None)], false);
    let ended = guest.attempt.map(|attempt| attempt.phase);
    assert!(matches!(&ended, Some(Phase::Failed { reason }) if reason.contains("founded anew")), "{ended:?}");
}

#[test]
fn in_post_copy_the_pages_come_from_where_they_are() {
    let unknown = settled(&believed(&born()), &[stands_still("a", 1, E1), runs("b", 2, E2, Some(4))], true);
    let known =
        settled(&believed(&in_post_copy()), &[stands_still("a", 1, E1), runs("b", 2, E2, Some(1))], true);
    for (guest, name) in [(unknown, m(4)), (known, m(1))] {
        let attempt = guest.attempt.as_ref().expect("it goes on");
        assert_eq!(attempt.migration, name);
        let Phase::PostCopy { source, target, source_gone: false } = &attempt.phase else {
            panic!("{:?}", attempt.phase)
        };
        assert_eq!((source.instance, target.instance), (id(1), id(2)));
        assert_eq!(guest.spoken_epoch(), E1, "the epoch that the source has sealed");
        let mut guest = guest.clone();
        guest.apply(Entry::AllPages { migration: name, epoch: E2 }).expect("it is whole");
        assert_eq!(guest.attempt.map(|it| (it.phase, it.permits)), Some((Phase::Succeeded, Permits::None)));
    }
}

#[test]
fn while_it_is_unsure_nothing_else_is_agreed() {
    let mut guest = believed(&copying());
    guest.apply(Entry::Found).expect("found");
    let refused = [
        Entry::HandOver { migration: m(1), epoch: E1, mode: Mode::StopAndCopy },
        Entry::CallOff { migration: m(1), epoch: E1 },
        Entry::End { migration: m(1), side: Side::Operator, reason: "asked".into() },
        Entry::HandBack { migration: m(1), epoch: E1, testimony: crate::ownership::Testimony::Withheld },
        Entry::Gone { instance: id(1) },
        Entry::Recover { instance: id(1) },
        Entry::Request { migration: m(2) },
        Entry::Born { instance: id(1) },
    ];
    let before = guest.clone();
    for entry in refused {
        assert!(matches!(guest.apply(entry.clone()), Err(Refused::Life { .. })), "{entry:?}");
        assert_eq!(guest, before, "{entry:?}");
    }
    guest.apply(Entry::Delete).expect("an operator may end it");
    assert!(matches!(guest.life, Life::Deleting(_)));
    // Whoever has something of it, and was not known to, is told.
    guest.apply(runs("c", 3, E5, Some(9))).expect("told");
    assert!(matches!(&guest.life, Life::Deleting(left) if left.contains(&node("c"))));
}

#[test]
fn of_two_that_claim_it_an_operator_chooses_or_fences_one() {
    let claims = [runs("b", 2, E2, Some(1)), runs("c", 3, E5, Some(2))];
    let disputed = settled(&believed(&born()), &claims, true);
    let mut chosen = disputed.clone();
    assert_eq!(chosen.apply(Entry::Recover { instance: id(9) }), Err(Refused::NoPart(id(9))));
    chosen.apply(Entry::Recover { instance: id(2) }).expect("chosen");
    assert_eq!((fate(&chosen), chosen.rollbacks), (Fate::Owns(2, Epoch(6)), 1), "above what both know");
    let mut fenced = disputed;
    fenced.apply(Entry::Vouch { node: node("b"), instances: vec![id(2)] }).expect("fenced");
    fenced.apply(Entry::Settle { all: true }).expect("looked at again");
    assert_eq!(fate(&fenced), Fate::Owns(3, Epoch(6)));
}

#[test]
fn one_that_comes_later_than_all_is_not_lost() {
    let lost = settled(&believed(&born()), &[], true);
    let mut late = lost.clone();
    assert!(late.apply(runs("d", 4, E1, Some(1))).is_err(), "it knows nothing later than what was lost");
    late.apply(runs("d", 4, E5, Some(1))).expect("it was on a node that nobody knew");
    assert_eq!(fate(&late), Fate::Owns(4, Epoch(6)));
    // Where a copy was kept, its pages may be there.
    let mut kept = settled(&believed(&born()), &[stands_still("c", 3, E2)], true);
    kept.apply(runs("d", 4, E5, Some(1))).expect("claimed");
    assert_eq!(fate(&kept), Fate::Disputed);
    kept.apply(Entry::Recover { instance: id(4) }).expect("chosen");
    assert_eq!(fate(&kept), Fate::Owns(4, Epoch(6)));
}

#[test]
fn what_was_lost_is_lost_until_somebody_runs_it() {
    let mut before = handed_over(Mode::StopAndCopy);
    before.push(Entry::Gone { instance: id(2) });
    let lost = believed(&before);
    let kept = settled(&lost, &[stands_still("a", 1, E1)], true);
    assert_eq!(fate(&kept), Fate::Lost { kept: Some(1) }, "going back is an operator's act");
    assert_eq!(fate(&settled(&lost, &[], true)), Fate::Lost { kept: None });
    let recovered = settled(&lost, &[runs("a", 1, Epoch(3), None)], true);
    assert_eq!(fate(&recovered), Fate::Owns(1, Epoch(4)), "it was gone back to since");
}

#[test]
fn a_second_disaster_asks_anew() {
    let mut guest = believed(&born());
    guest.apply(Entry::Found).expect("found");
    guest.apply(runs("b", 2, E2, Some(1))).expect("claimed");
    guest.apply(Entry::Found).expect("found again");
    guest.apply(Entry::Settle { all: true }).expect("settled");
    assert_eq!(fate(&guest), Fate::Lost { kept: None }, "what was said to the other group is void");
}

/// It was lost in post-copy, and the copy with the pages that its last runner lacked was kept.
#[test]
fn a_copy_that_was_kept_stays_so() {
    let mut guest = believed(&in_post_copy());
    let kept = Licence { node: node("a"), instance: id(1) };
    let last = Licence { node: node("b"), instance: id(2) };
    guest.life = Life::Lost { last, kept: Some(kept.clone()) };
    let claims = [stands_still("a", 1, E1), stands_still("b", 2, E2)];
    assert_eq!(fate(&settled(&guest, &claims, true)), Fate::Lost { kept: Some(1) });
    assert_eq!(fate(&settled(&guest, &claims[1..], true)), Fate::Lost { kept: None }, "it is not there");
}
