//! House rules that the compiler does not know, as programs: `cargo xtask purity` and `cargo xtask tidy`; and a history of
//! the simulation, again: `cargo xtask sim`.
//!
//! ```text
//!   every .rs file ──▶ source: without comments and strings ──┬──▶ purity   who may use what
//!   cargo tree ───────────────────────────────────────────────┘
//!                                                         └──────▶ tidy     how long, how it opens
//! ```
//!
//! Always true: each finding names the place, the rule and what would satisfy it; one finding fails the run.

mod purity;
mod sim;
mod source;
mod tidy;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask purity | tidy | sim SEED
  purity  domain and wire are pure; unsafe, bincode and actix stay in their rooms
  tidy    files and functions fit a reader; every file opens with its map
  sim     one history of the simulation with its log; --step: entry by entry, --bug NAME: with a bug planted";

/// One rule that is broken in one place.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// A file with a line, or a crate.
    place: String,
    /// What was found, the rule, and what would satisfy it.
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some((&"sim", rest)) = arguments.split_first() {
        return match root().and_then(|root| sim::replay(&root, rest)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let findings = match arguments.as_slice() {
        ["purity"] => check(purity::check),
        ["tidy"] => check(|_, sources| Ok(tidy::check(sources))),
        _ => Err(USAGE.to_owned()),
    };
    match findings {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            for finding in &findings {
                eprintln!("{finding}");
            }
            eprintln!(
                "{} broken",
                if findings.len() == 1 { "1 rule".to_owned() } else { format!("{} rules", findings.len()) }
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn check(
    rules: impl FnOnce(&Path, &[source::Source]) -> Result<Vec<Finding>, String>,
) -> Result<Vec<Finding>, String> {
    let root = root()?;
    let sources =
        source::load(&root).map_err(|error| format!("read the sources under {}: {error}", root.display()))?;
    rules(&root, &sources)
}

/// The workspace's folder. Cargo says where this crate is; asked at run time, so a moved workspace needs no build.
fn root() -> Result<PathBuf, String> {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    here.as_deref()
        .and_then(Path::parent)
        .map(Path::to_owned)
        .ok_or_else(|| "CARGO_MANIFEST_DIR is not set: run this as `cargo xtask …`".to_owned())
}
