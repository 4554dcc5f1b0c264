//! The one binary, as a library so that tests and benchmarks can drive clusters the way the lab does.
//!
//! ```text
//!   cli ──▶ ca, node run, guest run     what the other crates offer
//!       ──▶ lab ──▶ cluster             real node processes, ordered over pipes
//! ```

pub mod cli;
pub mod lab;
