//! The hosts of the chaos suite, proved one by one.

mod field;
#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the field needs a part of it; its own tests need all"
)]
#[path = "../support/mod.rs"]
mod support;

use libtest_mimic::Arguments;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, field::trials()).exit();
}
