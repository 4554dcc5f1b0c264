//! Bugs that tests switch on to show that they are found. Compiled for tests alone (feature `planted-bugs`); in a real
//! build every question is answered "off" and costs nothing.

#[cfg(feature = "planted-bugs")]
use std::cell::Cell;

#[cfg(feature = "planted-bugs")]
std::thread_local! {
    static HERE: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Switches a bug on in this thread alone; `None` switches it off.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<&'static str>) {
    HERE.with(|here| here.set(bug));
}

/// Whether this bug is on.
#[cfg(feature = "planted-bugs")]
pub fn is_on(bug: &str) -> bool {
    HERE.with(|here| here.get() == Some(bug))
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
