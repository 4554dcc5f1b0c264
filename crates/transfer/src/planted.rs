//! Bugs that tests switch on to show that they are found. Compiled for tests alone (feature `planted-bugs`).
//!
//! One list for all crates: a process's own, or a thread's (see `godwit_domain::planted`).

pub use godwit_domain::planted::{is_on, plant};
