//! Bugs that tests switch on to show that they are found. Compiled for tests alone (feature `planted-bugs`); in a real
//! build every question is answered "off" and costs nothing.
//!
//! ```text
//!   a test of this process ── plant ────────────▶ this thread ──┐
//!   a node's start, from its environment ── plant_everywhere ───┴─▶ is_on
//! ```

#[cfg(feature = "planted-bugs")]
use std::{cell::Cell, sync::OnceLock};

#[cfg(feature = "planted-bugs")]
std::thread_local! {
    static HERE: Cell<Option<&'static str>> = const { Cell::new(None) };
}

#[cfg(feature = "planted-bugs")]
static EVERYWHERE: OnceLock<Vec<String>> = OnceLock::new();

/// Switches a bug on in this thread alone; `None` switches it off.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<&'static str>) {
    HERE.with(|here| here.set(bug));
}

/// Switches bugs on in the whole process, for good: names with commas between them. Only the first call counts.
#[cfg(feature = "planted-bugs")]
pub fn plant_everywhere(bugs: &str) {
    let _ = EVERYWHERE.set(bugs.split(',').map(str::to_owned).collect());
}

/// Whether this bug is on.
#[cfg(feature = "planted-bugs")]
pub fn is_on(bug: &str) -> bool {
    HERE.with(|here| here.get() == Some(bug))
        || EVERYWHERE.get().is_some_and(|all| all.iter().any(|on| on == bug))
}

/// Whether this bug is on: never.
#[cfg(not(feature = "planted-bugs"))]
pub const fn is_on(_: &str) -> bool {
    false
}

/// Whether any bug is on in this thread.
#[cfg(feature = "planted-bugs")]
pub fn any() -> bool {
    HERE.with(|here| here.get().is_some())
}
