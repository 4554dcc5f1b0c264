//! Histories made by hand: what the checker must accept, and what it must not.
//!
//! ```text
//!   "put 1 created 0-2 │ get 1 3-4"  ─ read ─▶ operations ─ check ─▶ passes │ the operation that has no place
//! ```

use libtest_mimic::{Failed, Trial};

use super::checker::{NotLinear, VISITED_MAX, check};
use super::register::{Deed, Found, Operation};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("histories_that_a_register_could_have_made_pass", pass),
        Trial::test("histories_that_no_register_made_do_not_pass", do_not_pass),
        Trial::test("an_excerpt_shows_the_operation_and_what_explains_it", explained),
        Trial::test("a_history_above_the_bound_is_no_pass", given_up),
    ]
}

/// What each is about, and the history. Times are `from-to`; without `to`, the outcome is unknown.
const GOOD: [(&str, &str); 22] = [
    ("nothing", ""),
    (
        "one after another",
        "get absent 0-1 │ put 1 created 2-3 │ get 1 4-5 │ delete done 6-7 │ get absent 8-9",
    ),
    ("a read beside a write sees the old", "put 1 created 0-1 │ put 2 configured 2-9 │ get 1 3-4"),
    ("a read beside a write sees the new", "put 1 created 0-1 │ put 2 configured 2-9 │ get 2 3-4"),
    ("two reads beside a write", "put 1 created 0-1 │ put 2 configured 2-9 │ get 1 3-4 │ get 2 5-6"),
    ("writes side by side, either last", "put 1 done 0-5 │ put 2 done 0-5 │ get 1 6-7"),
    ("writes side by side, the other last", "put 1 done 0-5 │ put 2 done 0-5 │ get 2 6-7"),
    ("an unknown write that was done", "put 1 unknown 0- │ get 1 5-6 │ get 1 7-8"),
    ("an unknown write that was not done", "put 1 unknown 0- │ get absent 5-6"),
    (
        "an unknown write that is done late",
        "put 1 unknown 0- │ get absent 5-6 │ put 2 created 7-8 │ get 1 9-10",
    ),
    (
        "an unknown delete",
        "put 1 created 0-1 │ delete unknown 2- │ get 1 3-4 │ get absent 5-6 │ put 2 created 7-8",
    ),
    ("an unknown write that only a word tells of", "put 1 unknown 0- │ put 2 configured 3-4 │ get 2 5-6"),
    ("an unknown write that a delete has found", "put 1 unknown 0- │ delete done 3-4 │ get absent 5-6"),
    (
        "two unknown writes of the same",
        "put 1 unknown 0- │ put 1 unknown 0- │ delete done 3-4 │ delete done 5-6",
    ),
    (
        "a put, and a delete beside it",
        "put 1 created 0-1 │ put 2 configured 2-9 │ delete done 3-4 │ get absent 10-11",
    ),
    (
        "created again, beside a delete",
        "put 1 created 0-1 │ put 2 created 2-9 │ delete done 3-4 │ get 2 10-11",
    ),
    ("one of two creates", "create 1 created 0-5 │ create 2 exists 0-5 │ get 1 6-7"),
    ("an unknown create that was done", "create 1 unknown 0- │ create 2 exists 3-4 │ get 1 5-6"),
    (
        "an unknown create that came late",
        "put 1 created 0-1 │ create 2 unknown 2- │ delete done 3-4 │ get 2 5-6",
    ),
    (
        "an unknown create after an unknown delete",
        "put 1 created 0-1 │ create 2 unknown 2- │ delete unknown 2- │ get 2 3-4",
    ),
    ("unchanged", "put 1 created 0-1 │ put 1 unchanged 2-3 │ get 1 4-5"),
    (
        "a long one that spans all",
        "put 9 done 0-100 │ put 1 created 1-2 │ get 1 3-4 │ get 9 5-6 │ put 2 configured 7-8 │ get 2 9-10",
    ),
];

/// The same, and the operation that has no place, from 0.
const BAD: [(&str, &str, usize); 23] = [
    ("a stale read", "put 1 created 0-1 │ put 2 configured 2-3 │ get 1 4-5", 2),
    ("a lost write", "put 1 created 0-1 │ get absent 2-3", 1),
    ("a write that is seen before it was asked for", "get 1 0-1 │ put 1 created 2-3", 0),
    (
        "a write that takes effect after its return",
        "put 1 created 0-1 │ put 2 configured 2-3 │ get 1 4-5 │ get 2 6-7",
        2,
    ),
    ("a write that comes back", "put 1 created 0-1 │ put 2 configured 2-3 │ get 2 4-5 │ get 1 6-7", 3),
    (
        "an unknown write, seen and unseen again",
        "put 1 created 0-1 │ put 2 unknown 2- │ get 2 3-4 │ get 1 5-6",
        3,
    ),
    ("an unknown write, done twice", "put 1 unknown 0- │ delete done 3-4 │ get 1 5-6", 2),
    ("an unknown write, seen before it was asked for", "put 1 created 0-1 │ get 2 2-3 │ put 2 unknown 4-", 1),
    (
        "an unknown delete, done twice",
        "put 1 created 0-1 │ delete unknown 2- │ put 2 created 3-4 │ put 3 created 5-6",
        3,
    ),
    (
        "reads that go back beside a write",
        "put 1 created 0-1 │ put 2 configured 2-9 │ get 2 3-4 │ get 1 5-6",
        3,
    ),
    ("a content that nobody wrote", "put 1 created 0-1 │ get 7 2-3", 1),
    ("created, and it was there", "put 1 created 0-1 │ put 2 created 2-3", 1),
    ("configured, and it was not there", "put 1 configured 0-1", 0),
    ("configured, and it was this very content", "put 1 created 0-1 │ put 1 configured 2-3", 1),
    ("unchanged, and it was another", "put 1 created 0-1 │ put 2 unchanged 2-3", 1),
    ("not found, and it was there", "put 1 created 0-1 │ delete absent 2-3", 1),
    ("both put, both created", "put 1 created 0-5 │ put 2 created 0-5 │ get 1 6-7", 1),
    ("both created", "create 1 created 0-5 │ create 2 created 0-6", 1),
    (
        "deleted between a put's look and its write",
        "put 1 created 0-1 │ put 2 configured 2-9 │ delete done 3-4 │ get 2 10-11",
        3,
    ),
    ("refused, and it was not there", "create 1 exists 0-1", 0),
    ("an unknown create over what is there", "put 1 created 0-1 │ create 2 unknown 2- │ get 2 3-4", 2),
    ("unchanged, and written meanwhile", "put 1 created 0-1 │ put 2 configured 2-3 │ put 1 unchanged 4-5", 2),
    ("deleted twice", "put 1 created 0-1 │ delete done 2-3 │ delete done 4-5", 2),
];

fn read(history: &str) -> Vec<Operation> {
    let parts = history.split('│').map(str::trim).filter(|part| !part.is_empty());
    let one = |(number, part): (usize, &str)| {
        let words: Vec<&str> = part.split_whitespace().collect();
        let found = |word: &str| match word {
            "created" | "absent" => Found::Absent,
            "exists" => Found::There,
            "configured" => Found::Other,
            "unchanged" => Found::Same,
            "done" if part.starts_with("delete") => Found::There,
            "done" | "unknown" => Found::Unsaid,
            other => panic!("{other:?} in {part:?}"),
        };
        let value = |word: &str| word.parse::<u64>().unwrap_or_else(|error| panic!("{error} in {part:?}"));
        let (deed, times) = match words.as_slice() {
            ["get", "absent", times] => (Deed::Get(None), times),
            ["get", seen, times] => (Deed::Get(Some(value(seen))), times),
            ["put", content, word, times] => (Deed::Put(value(content), found(word)), times),
            ["create", content, word, times] => (Deed::Create(value(content), found(word)), times),
            ["delete", word, times] => (Deed::Delete(found(word)), times),
            other => panic!("{other:?}"),
        };
        let (from, to) = times.split_once('-').unwrap_or_else(|| panic!("no times in {part:?}"));
        let returned = Some(to).filter(|to| !to.is_empty()).map(value);
        Operation { deed, invoked: value(from), returned, by: format!("operator {number}") }
    };
    parts.enumerate().map(one).collect()
}

fn pass() -> Result<(), Failed> {
    for (what, history) in GOOD {
        check(None, &read(history), VISITED_MAX).map_err(|error| format!("{what}: {error}"))?;
    }
    // An object may have been there before.
    check(Some(5), &read("get 5 0-1 │ put 1 configured 2-3"), VISITED_MAX)
        .map_err(|error| error.to_string())?;
    Ok(())
}

fn do_not_pass() -> Result<(), Failed> {
    for (what, history, culprit) in BAD {
        match check(None, &read(history), VISITED_MAX) {
            Err(NotLinear::Violation { stuck, .. }) if stuck == culprit => {}
            other => return Err(format!("{what}: {other:?}, not operation {culprit}").into()),
        }
    }
    Ok(())
}

fn explained() -> Result<(), Failed> {
    let mut history = String::new();
    for number in 1..200_u64 {
        let word = if number == 1 { "created" } else { "configured" };
        history += &format!("put {number} {word} {}-{} │ ", number * 10, number * 10 + 5);
    }
    history += "get 150 1996-1999";
    let Err(NotLinear::Violation { excerpt, .. }) = check(None, &read(&history), VISITED_MAX) else {
        return Err("it passes".into());
    };
    let lines: Vec<&str> = excerpt.lines().collect();
    let has = |words: &str| lines.iter().any(|line| line.contains(words));
    assert!(lines.len() <= 10, "{excerpt}");
    assert!(has("no place for ▶") && has("get: v150"), "{excerpt}");
    assert!(has("put v150") && has("put v199"), "where it is from, and what was there: {excerpt}");
    Ok(())
}

fn given_up() -> Result<(), Failed> {
    let many: Vec<String> = (1..12).map(|number| format!("put {number} done 0-9")).collect();
    let history = format!("{} │ get 77 10-11", many.join(" │ "));
    match check(None, &read(&history), 500) {
        Err(NotLinear::GaveUp { visited, .. }) => assert_eq!(visited, 501),
        other => return Err(format!("{other:?}").into()),
    }
    match check(None, &read(&history), VISITED_MAX) {
        Err(NotLinear::Violation { stuck: 11, .. }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}
