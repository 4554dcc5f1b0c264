//! Why a config is refused, in the words of the one who wrote it.
//!
//! Always true: an error names the file, the line where there is one, the key and the rule that it broke, and
//! ends with lines that could be pasted into the file. What it repeats of the file has a bounded length.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a config is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can not be read, is too large or is no text.
    #[error("read config {}", file.display())]
    Unreadable {
        /// The config file.
        file: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The text is no TOML.
    #[error("config {}, line {line}, column {column}: {rule}", file.display())]
    Syntax {
        /// The config file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// What the TOML reader says.
        rule: Box<str>,
    },
    /// A key that nobody reads: most often a slip of the pen.
    #[error(
        "config {}, line {line}: unknown key `{key}` {place}; {hint}; corrected line:\n{corrected}",
        file.display()
    )]
    UnknownKey {
        /// The config file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// As it was written.
        key: Box<str>,
        /// Where it was written.
        place: Box<str>,
        /// The nearest known key, or where the key belongs, or what may stand there.
        hint: Box<str>,
        /// Lines that would be accepted.
        corrected: Box<str>,
    },
    /// A section that nobody reads.
    #[error(
        "config {}, line {line}: unknown section [{section}]; {hint}; corrected line:\n{corrected}",
        file.display()
    )]
    UnknownSection {
        /// The config file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// As it was written.
        section: Box<str>,
        /// The nearest known section, or what may stand there.
        hint: Box<str>,
        /// A line that would be accepted.
        corrected: Box<str>,
    },
    /// A known key with a value that can not be.
    #[error(
        "config {}, line {line}: `{key}` {place} is {value}: {rule}; corrected line:\n{corrected}",
        file.display()
    )]
    Value {
        /// The config file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The key.
        key: Box<str>,
        /// Where it was written.
        place: Box<str>,
        /// As it was written.
        value: Box<str>,
        /// What the value must be.
        rule: Box<str>,
        /// A line that would be accepted.
        corrected: Box<str>,
    },
    /// A key without which there is no node.
    #[error("config {}: required key `{key}` {place} is missing; add {at}:\n{example}", file.display())]
    Missing {
        /// The config file.
        file: PathBuf,
        /// The key.
        key: &'static str,
        /// Where it must be written.
        place: Box<str>,
        /// The same, for someone who edits the file.
        at: Box<str>,
        /// Lines that would be accepted.
        example: Box<str>,
    },
    /// The address to listen on is taken. The endpoint finds out, long after the file was read.
    #[error(
        "config {}: `{key}` in [{section}]: another process on this host already uses UDP address {address}; \
         {advice}; corrected line:\n{corrected}",
        file.display()
    )]
    AddressInUse {
        /// The config file.
        file: PathBuf,
        /// Its section.
        section: Box<str>,
        /// The key.
        key: Box<str>,
        /// The address that is taken.
        address: SocketAddr,
        /// What else could be taken.
        advice: &'static str,
        /// A line with another port. Nothing comes after it: it is there to be pasted.
        corrected: Box<str>,
    },
}
