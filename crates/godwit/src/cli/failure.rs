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
use std::process::ExitCode;

use godwit_wire::admin::Problem;

use super::{complain, talk};

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

    /// From options that break a rule.
    pub(super) fn usage(error: impl ToString) -> Self {
        Self::Usage(error.to_string())
    }

    /// Says it on stderr.
    pub(super) fn tell(self) -> ExitCode {
        match self {
            Self::Failed(error) => {
                complain(&*error);
                ExitCode::FAILURE
            }
            Self::Problem(problem) => {
                talk(&format!("godwit: {}", problem.message));
                talk(&format!("  rule: {}", problem.rule));
                talk(&format!("  try: {}", problem.try_));
                ExitCode::from(problem.code.exit_code())
            }
            Self::Usage(message) => {
                talk(&format!("godwit: {message}"));
                ExitCode::from(USAGE)
            }
            Self::Told(code) => ExitCode::from(code),
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
