//! How a command ends that did not do what it was told: words for stderr, and an exit code.
//!
//! ```text
//!   Problem   ──▶ message, rule, try        the code of its kind: 1, 2 or 3
//!   Failed    ──▶ message with its causes   1
//!   Usage     ──▶ message                   2
//!   Told      ──▶ nothing more              as it says
//! ```

use std::error::Error;
use std::io;

use godwit_wire::admin::{Code, Problem};

use super::{complain, talk};

/// The exit code of what was refused, or has failed.
pub(super) const FAILED: u8 = 1;
/// The exit code of a usage that is refused, as clap's own.
const USAGE: u8 = 2;

/// Why a command did not do what it was told.
#[derive(Debug)]
pub(super) enum Failure {
    /// This process tried, and failed.
    Failed(Box<dyn Error>),
    /// A node says no, or nobody knows.
    Problem(Box<Problem>),
    /// What was asked for breaks a rule.
    Usage(String),
    /// All was said; this is the exit code.
    Told(u8),
}

impl Failure {
    /// From whatever went wrong in this process.
    pub(super) fn failed(error: impl Into<Box<dyn Error>>) -> Self {
        Self::Failed(error.into())
    }

    /// From what breaks a rule, with what would satisfy it.
    pub(super) fn refused(rule: &str, message: impl Into<String>, try_: impl Into<String>) -> Self {
        Problem::new(Code::Refused, rule, message, try_).into()
    }

    /// From options that break a rule.
    pub(super) fn usage(error: impl ToString) -> Self {
        Self::Usage(error.to_string())
    }

    /// Says it on stderr; the exit code for it.
    pub(super) fn tell(self) -> u8 {
        match self {
            Self::Failed(error) => {
                complain(&*error);
                FAILED
            }
            Self::Problem(problem) => {
                talk(&format!("godwit: {}", problem.message));
                talk(&format!("  rule: {}", problem.rule));
                talk(&format!("  try: {}", problem.try_));
                problem.code.exit_code()
            }
            Self::Usage(message) => {
                talk(&format!("godwit: {message}"));
                USAGE
            }
            Self::Told(code) => code,
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Whoever read our output has enough of it.
            io::ErrorKind::BrokenPipe => Self::Told(0),
            _ => Self::failed(error),
        }
    }
}
