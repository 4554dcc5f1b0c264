//! Each rule, broken once in a log that is made up: it is found, and named. And the same log unbroken is none.

use godwit_domain::ownership::{Entry, Side};
use godwit_domain::registry::{Command, GuestUid, RequestKey};

use super::super::count::Count;
use super::super::judge::{acknowledged, judge};
use super::super::{Applied, Grants};
use super::script::{Script, admit, ask, join, limits, make, named, runner};

/// The entries alone, without a replay, which would find a fault of its own way.
fn counted(all: &[Applied]) -> Result<(), String> {
    let mut count = Count::default();
    let applied = all.iter().filter(|applied| applied.refused.is_none());
    applied.into_iter().try_for_each(|applied| count.apply(&applied.command, true))
}

/// It is right so far, and wrong with this.
fn is_caught(script: &mut Script, wrong: Command, words: &str) {
    assert_eq!(counted(&script.all), Ok(()), "before the fault");
    let grants = judge(&script.all);
    assert!(grants.is_ok(), "before the fault: {grants:?}");
    script.claim(wrong);
    let found = counted(&script.all).expect_err("the count finds it");
    assert!(found.contains(words), "{found:?} does not say {words:?}");
    let found = judge(&script.all).expect_err("the replay finds it");
    assert!(found.contains("replayed it comes out as"), "{found}");
}

fn five_guests() -> Script {
    Script::new(&[("a", 8), ("b", 8), ("c", 8)], &["a", "a", "a", "b", "b"])
}

pub(super) fn an_admission_too_many_is_found_for_each_limit() {
    let mut script = five_guests();
    assert!(script.say(limits(1, 9, Some(9))));
    assert!(script.grant(0, "m0", "b") && script.say(ask(3, "m3")));
    assert!(!script.say(admit(3, "m3", "c")), "the registry holds it up");
    is_caught(&mut script, admit(3, "m3", "c"), "number 2 in the cluster; the limit is 1");

    let mut script = five_guests();
    assert!(script.say(limits(9, 2, Some(9))) && script.grant(0, "m0", "b") && script.grant(1, "m1", "c"));
    assert!(script.say(ask(2, "m2")));
    is_caught(&mut script, admit(2, "m2", "c"), "number 3 out of a; the limit is 2");

    let mut script = five_guests();
    assert!(script.say(limits(9, 9, Some(1))) && script.grant(0, "m0", "c") && script.say(ask(3, "m3")));
    is_caught(&mut script, admit(3, "m3", "c"), "number 2 into c; the limit is 1");

    // What comes in follows what goes out, where nothing is said of it; and both have defaults.
    let mut script = five_guests();
    assert!(script.say(limits(9, 1, None)) && script.grant(0, "m0", "c") && script.say(ask(3, "m3")));
    is_caught(&mut script, admit(3, "m3", "c"), "number 2 into c; the limit is 1");
    let mut script = five_guests();
    assert!(script.grant(0, "m0", "b") && script.grant(1, "m1", "c") && script.say(ask(2, "m2")));
    is_caught(&mut script, admit(2, "m2", "c"), "number 3 out of a; the limit is 2");
}

pub(super) fn a_limit_binds_from_the_entry_that_sets_it() {
    let mut script = five_guests();
    assert!(script.say(limits(2, 2, None)) && script.grant(0, "m0", "b") && script.grant(3, "m3", "c"));
    assert!(script.say(limits(1, 2, None)), "more may run than it says now");
    let Grants { admitted, refused, most_at_once, limits_changed, .. } =
        judge(&script.all).expect("all is right");
    assert_eq!((admitted, refused, most_at_once, limits_changed), (2, 0, 2, 2));
    // The same, lowered before the second grant.
    let lowered = script.all.pop().expect("an entry");
    let at = script.all.len() - 1;
    script.all.insert(at, lowered);
    let found = counted(&script.all).expect_err("the count finds it");
    assert!(found.contains("number 2 in the cluster; the limit is 1"), "{found}");
    assert!(judge(&script.all).is_err());
}

pub(super) fn a_permit_that_came_back_too_early_is_found() {
    let ended_by = |side| {
        let mut script = five_guests();
        assert!(script.say(limits(1, 2, None)) && script.grant(0, "m0", "b") && script.say(ask(3, "m3")));
        let reason = String::new();
        assert!(script.entry(0, Entry::End { migration: named("m0"), side, reason }));
        script
    };
    for side in [Side::Operator, Side::Control] {
        is_caught(&mut ended_by(side), admit(3, "m3", "c"), "number 2 in the cluster");
        let mut script = ended_by(side);
        assert!(script.entry(0, Entry::Dropped { migration: named("m0") }));
        assert!(script.say(admit(3, "m3", "c")), "now it is back");
        assert!(judge(&script.all).is_ok());
        // And once.
        let mut script = ended_by(side);
        let dropped = Command::Guest { guest: GuestUid(0), entry: Entry::Dropped { migration: named("m0") } };
        assert!(script.say(dropped.clone()));
        is_caught(&mut script, dropped, "is over");
    }
    for side in [Side::Source, Side::Target, Side::Deadline] {
        let mut script = ended_by(side);
        assert!(script.say(admit(3, "m3", "c")), "a party to it has let go");
        assert!(judge(&script.all).is_ok());
    }
}

pub(super) fn memory_that_is_not_there_is_not_reserved() {
    let mut script = Script::new(&[("a", 8), ("b", 2), ("c", 8)], &["a", "a", "b"]);
    assert!(script.grant(0, "m0", "b") && script.say(ask(1, "m1")));
    is_caught(&mut script, admit(1, "m1", "b"), "3145728 bytes of 2097152 are taken");
    // A node that offers less than it has takes nothing more.
    let mut script = Script::new(&[("a", 8), ("b", 8)], &["a", "b", "b"]);
    assert!(script.say(join("b", 1 << 20)) && script.say(ask(0, "m0")));
    is_caught(&mut script, admit(0, "m0", "b"), "3145728 bytes of 1048576 are taken");
}

pub(super) fn what_is_over_stays_over_and_an_epoch_does_not_come_back() {
    let entry = |guest, entry| Command::Guest { guest: GuestUid(guest), entry };
    let mut script = five_guests();
    assert!(script.grant(0, "m0", "b"));
    script.succeed(0, "m0", 100);
    let (migration, reason) = (named("m0"), String::new());
    let end = Entry::End { migration: migration.clone(), side: Side::Operator, reason };
    is_caught(&mut script, entry(0, end), "m0 is over, and End was applied");

    let mut script = five_guests();
    assert!(script.grant(0, "m0", "b"));
    let old = script.epoch(0);
    script.succeed(0, "m0", 100);
    assert!(script.grant(0, "m1", "c"));
    let accept = Entry::Accept { migration: named("m1"), epoch: old, instance: runner(101) };
    is_caught(&mut script, entry(0, accept), "of epoch 1 was applied in epoch 2");

    let mut script = five_guests();
    assert!(script.say(ask(0, "m0")));
    is_caught(&mut script, ask(0, "m1"), "asked for while m0 is not over");
}

pub(super) fn an_outcome_that_was_not_is_found() {
    let mut script = five_guests();
    assert!(!script.say(make(9, "nowhere")) && script.say(make(9, "c")));
    let refused = script.all.len() - 2;
    assert!(judge(&script.all).is_ok());
    let mut other = script.all.clone();
    other[refused].refused = Some("for another reason".to_owned());
    assert!(judge(&other).expect_err("other words").contains("for another reason"));
    other[refused].refused = None;
    assert!(judge(&other).is_err(), "a refusal that was none");
    script.all[refused + 1].refused = Some("no".to_owned());
    assert!(judge(&script.all).is_err(), "an act that was refused");
}

pub(super) fn an_acknowledged_request_that_is_lost_or_done_twice_is_found() {
    let key =
        |id: &str, made: &str| Some(RequestKey { id: id.to_owned(), digest: 7, made: Some(made.to_owned()) });
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    let mut script = five_guests();
    assert!(script.say_for(key("r0", "m0"), ask(0, "m0")));
    // Asked again under a name of its own: the first answer, and no second effect.
    assert!(script.say_for(key("r0", "m1"), ask(0, "m1")));
    assert!(!script.say_for(key("r1", "m2"), ask(0, "m2")), "one at a time");
    assert!(script.say(admit(0, "m0", "b")));
    assert!(judge(&script.all).is_ok(), "{:?}", judge(&script.all));
    assert_eq!(acknowledged(&script.all, &ids(&["r0"])), Ok(()));
    let lost = acknowledged(&script.all, &ids(&["r0", "r9"])).expect_err("r9 is lost");
    assert!(lost.contains("r9"), "{lost}");
    let refused = acknowledged(&script.all, &ids(&["r1"])).expect_err("r1 was refused");
    assert!(refused.contains("r1") && refused.contains("unfinished"), "{refused}");
    script.claim(admit(0, "m1", "c"));
    let twice = acknowledged(&script.all, &ids(&["r0"])).expect_err("done twice");
    assert!(twice.contains("as m0 and as m1"), "{twice}");
}
