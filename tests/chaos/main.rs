//! Faults at random over a whole cluster: this part judges what operators were answered.

mod linear;
#[allow(dead_code, unused_macros, unused_imports)] // Shared with the other stories, which use more of it.
#[path = "../support/mod.rs"]
mod support;

use libtest_mimic::Arguments;

fn main() {
    libtest_mimic::run(&Arguments::from_args(), linear::trials()).exit()
}
