//! Bugs that tests switch on to show that they are found. Compiled for tests alone (feature `planted-bugs`).
//!
//! A process reads them from `GODWIT_PLANTED` (names with commas between them), a thread of a unit test sets its own.

use std::cell::RefCell;
use std::sync::OnceLock;

thread_local! {
    static HERE: RefCell<Option<&'static str>> = const { RefCell::new(None) };
}

/// Switches a bug on in this thread alone; `None` switches it off.
pub fn plant(bug: Option<&'static str>) {
    HERE.with(|here| *here.borrow_mut() = bug);
}

/// Whether this bug is on.
pub fn is_on(bug: &str) -> bool {
    static OF_PROCESS: OnceLock<Option<String>> = OnceLock::new();
    let of_process = OF_PROCESS.get_or_init(|| std::env::var("GODWIT_PLANTED").ok());
    of_process.iter().flat_map(|all| all.split(',')).any(|on| on == bug)
        || HERE.with(|here| *here.borrow() == Some(bug))
}
