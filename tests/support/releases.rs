//! What a release has written, kept as it wrote it: every later one reads it, and what it makes of it is the same.
//!
//! ```text
//!   tests/fixtures/RELEASE/WHAT.txt    one value a line: a word for people, then its bytes in hex
//!
//!   each line ─▶ decode ─▶ a value ─▶ encode ─▶ the same bytes     while the format is that release's still
//!   each sample of this build's type ─▶ encode ─▶ is one of the lines: none is missing
//! ```
//!
//! Always true: a file is written once, for the release that it is named after (`GODWIT_KEEP_FORMATS=1`), and never again:
//! a format that changes gets a version of its own, beside which the old one is read.

use std::collections::BTreeSet;
use std::fmt::{Debug, Write as _};
use std::path::PathBuf;

use serde::de::DeserializeOwned;

use crate::samples::samples;

/// Names of types and variants in the word that stands before a value.
const WORD_NAMES_MAX: usize = 4;

/// The first release, whose formats are those of this build.
pub(crate) const FIRST: &str = "0.1";

/// Checks one kind of value against what a release has kept of it.
pub(crate) fn check<T, E: Debug>(
    what: &str,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) where
    T: DeserializeOwned + Debug + PartialEq,
{
    check_these(what, samples(false), encode, decode);
}

/// The same, of values that are given.
pub(crate) fn check_these<T: Debug + PartialEq, E: Debug>(
    what: &str,
    now: Vec<T>,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) {
    let now: Vec<(String, String)> = now.iter().map(|value| (word(value), hex(&encode(value)))).collect();
    let path = path(what);
    if std::env::var_os("GODWIT_KEEP_FORMATS").is_some() {
        keep(&path, &now);
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut kept = BTreeSet::new();
    for line in text.lines() {
        let (word, bytes) =
            line.split_once(' ').unwrap_or_else(|| panic!("{what}: a line without bytes: {line}"));
        let value = decode(&unhex(bytes)).unwrap_or_else(|why| {
            panic!("{what}: {word}, as release {FIRST} has written it, can not be read any more: {why:?}")
        });
        assert_eq!(hex(&encode(&value)), bytes, "{what}: {word} is read as something else: {value:?}");
        kept.insert(bytes);
    }
    for (word, bytes) in &now {
        assert!(
            kept.contains(bytes.as_str()),
            "{what}: {word} is not written as release {FIRST} has written it"
        );
    }
}

/// The file of one kind of value.
pub(crate) fn path(what: &str) -> PathBuf {
    let top = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures"));
    top.join(FIRST).join(format!("{what}.txt"))
}

fn keep(path: &std::path::Path, values: &[(String, String)]) {
    let mut written = BTreeSet::new();
    let mut text = String::new();
    for (word, bytes) in values.iter().filter(|(_, bytes)| written.insert(bytes.clone())) {
        let _ = writeln!(text, "{word} {bytes}");
    }
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder of fixtures");
    std::fs::write(path, text).expect("the fixture is written");
}

/// What it is called: the first names in it.
fn word(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let names = text.split(|c: char| !c.is_alphanumeric()).filter(|name| {
        name.chars().next().is_some_and(char::is_uppercase) && !["Some", "None"].contains(name)
    });
    let names: Vec<&str> = names.take(WORD_NAMES_MAX).collect();
    if names.is_empty() { "value".to_owned() } else { names.join(".") }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter_map(|c| char::from(c).to_digit(16)?.try_into().ok()).collect();
    assert!(digits.len() == text.len() && text.len().is_multiple_of(2), "not hex: {text}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
