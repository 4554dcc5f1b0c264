//! Faults at random over a whole cluster, and an observer who believes nobody.
//!
//! ```text
//!   ledger      what the voters have agreed, and whether every grant was right
//! ```

mod ledger;
#[allow(dead_code, unused_imports, unused_macros, reason = "this target uses a part of what stories share")]
#[path = "../support/mod.rs"]
mod support;

use libtest_mimic::Arguments;

fn main() {
    libtest_mimic::run(&Arguments::from_args(), ledger::trials()).exit();
}
