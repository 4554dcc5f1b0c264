//! What is shown of a history that is not linearizable: the operation that can not be placed, and what explains it.
//!
//! ```text
//!      last changes before it │ everything that overlaps it │ where its content comes from
//! ```
//!
//! Always true: a few lines, in the order of their invocations; the operation in question is marked.

use std::fmt::Write;

use super::register::{Deed, Found, Operation, State};

/// Changes that were over before it began.
const BEFORE_MAX: usize = 4;
/// Operations that overlap it, its own changes before those that only look.
const AROUND_MAX: usize = 16;

/// Shows it.
pub(super) fn excerpt(initial: State, operations: &[Operation], stuck: usize) -> String {
    let Some(it) = operations.get(stuck) else { return String::new() };
    let end = it.returned.unwrap_or(u64::MAX);
    let changes = |operation: &Operation| operation.deed.effect().is_some();
    let about = match it.deed {
        Deed::Get(seen) => seen,
        Deed::Put(value, _) | Deed::Create(value, _) => Some(value),
        Deed::Delete(_) => None,
    };
    let mut before: Vec<usize> =
        indices(operations, |one| changes(one) && one.returned.is_some_and(|returned| returned < it.invoked));
    before.sort_by_key(|index| operations[*index].returned);
    let mut shown = before.split_off(before.len().saturating_sub(BEFORE_MAX));
    let mut around = indices(operations, |one| {
        one.invoked <= end && one.returned.is_some_and(|returned| returned >= it.invoked)
    });
    around.sort_by_key(|index| (!changes(&operations[*index]), operations[*index].invoked));
    around.truncate(AROUND_MAX);
    shown.append(&mut around);
    if about.is_some() {
        shown.extend(indices(operations, |one| one.deed.effect() == Some(about) && one.invoked <= end));
    }
    shown.push(stuck);
    shown.sort_by_key(|index| (operations[*index].invoked, *index));
    shown.dedup();
    let began = initial.map_or("absent".to_owned(), |value| format!("v{value}"));
    let mut text = format!("  it began as: {began}; of {} operations:\n", operations.len());
    for index in shown {
        let mark = if index == stuck { "no place for ▶" } else { "" };
        let _ = writeln!(text, "  {mark:>14} {}", line(&operations[index]));
    }
    text
}

fn indices(operations: &[Operation], is_wanted: impl Fn(&Operation) -> bool) -> Vec<usize> {
    (0..operations.len()).filter(|index| is_wanted(&operations[*index])).collect()
}

/// An operation in one line; times in milliseconds.
pub(super) fn line(operation: &Operation) -> String {
    let ms = |micros: u64| format!("{}.{:03}", micros / 1000, micros % 1000);
    let end = operation.returned.map_or("never".to_owned(), ms);
    format!("{:>12} .. {:<12} {:<28} {}", ms(operation.invoked), end, words(operation), operation.by)
}

fn words(operation: &Operation) -> String {
    let found = |found: Found| match found {
        Found::Absent => "there was none",
        Found::There => "there was one",
        Found::Other => "it was another",
        Found::Same => "it was this",
        Found::Unsaid if operation.returned.is_none() => "unknown",
        Found::Unsaid => "done",
    };
    match operation.deed {
        Deed::Put(value, before) => format!("put v{value}: {}", found(before)),
        Deed::Create(value, before) => format!("create v{value}: {}", found(before)),
        Deed::Delete(before) => format!("delete: {}", found(before)),
        Deed::Get(Some(value)) => format!("get: v{value}"),
        Deed::Get(None) => "get: absent".to_owned(),
    }
}
