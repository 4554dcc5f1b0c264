//! Histories of operators' commands, and whether they are linearizable: as if one register for each object had answered.
//!
//! ```text
//!   Operators ─▶ History ─ judge ─▶ object by object: checker ─▶ Judged │ what has no place
//!   objects: manifests          register: what puts, creates, deletes, gets are    excerpt: for people
//! ```
//!
//! | file | in one line |
//! |---|---|
//! | `operators` | clients that ask random nodes, whatever happens to those |
//! | `objects` | what they ask for, and how an answer is read |
//! | `history` | what was asked and heard; judged |
//! | `register`, `checker`, `excerpt` | pure: the sequential object, the search, what is shown |
//! | `tables`, `random` | the checker's own trials |
//! | `together` | a real cluster without faults, and two operators at one object |
//! | `stale` | a real cluster whose reads are stale, and the same one whose reads are not |
//!
//! Always true: the checker knows nothing of clusters, the operators nothing of faults.

mod checker;
mod excerpt;
mod history;
mod objects;
mod operators;
mod random;
mod register;
mod stale;
mod tables;
mod together;

use libtest_mimic::Trial;

#[allow(unused_imports)] // Whoever only runs these trials names fewer of them.
pub(crate) use history::{Acknowledged, History, Judged};
pub(crate) use operators::Operators;

pub(crate) fn trials() -> Vec<Trial> {
    [tables::trials(), random::trials(), together::trials(), stale::trials()].into_iter().flatten().collect()
}
