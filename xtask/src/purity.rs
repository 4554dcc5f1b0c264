//! Who may use what: the two pure crates, and the rooms of `unsafe`, bincode and actix.
//!
//! ```text
//!   domain, wire ── cargo tree ──▶ crates from the list only
//!                └─ their code ──▶ no clock, no IO, no thread, no async, no hash order
//!   all code ──▶ unsafe in crates/memory;  bincode in one file of crates/wire;  actix in three crates
//! ```
//!
//! Always true: what is allowed is listed, and everything else is found. A new name on a list is a decision that
//! shows in a review.

use std::path::Path;
use std::process::Command;

use crate::Finding;
use crate::source::{Source, is_word_char};

/// The crates that must be pure.
const PURE: [&str; 2] = ["domain", "wire"];

/// What `domain` may stand on: how values are written, how errors are told, and what these macros are made of.
const DOMAIN_MAY_USE: [&str; 10] = [
    "godwit-domain",
    "serde",
    "serde_core",
    "serde_derive",
    "thiserror",
    "thiserror-impl",
    "proc-macro2",
    "quote",
    "syn",
    "unicode-ident",
];

/// What `wire` may use beyond that: two encodings with their helpers, and a checksum.
const WIRE_MAY_USE_TOO: [&str; 9] = [
    "godwit-wire",
    "bincode",
    "serde_json",
    "itoa",
    "memchr",
    "zmij",
    "xxhash-rust",
    "saphyr-parser",
    "arraydeque",
];

/// Words that a pure crate does not hold, with what to do instead.
const IMPURE_WORDS: [(&str, &str); 5] = [
    ("Instant", "time comes in as an argument"),
    ("SystemTime", "time comes in as an argument"),
    ("HashMap", "its order differs from run to run: use BTreeMap"),
    ("HashSet", "its order differs from run to run: use BTreeSet"),
    ("async", "waiting is for those who act: take the facts as arguments and return what to do"),
];

/// Modules of `std` that a pure crate does not use, with what to do instead.
const IMPURE_MODULES: [(&str, &str); 5] = [
    ("env", "what the environment says comes in as an argument"),
    ("fs", "files are for those who act"),
    ("net", "sockets are for those who act; addresses alone are in `core::net`"),
    ("process", "processes are for those who act"),
    ("thread", "threads are for those who act"),
];

/// The crates with actors.
const ACTIX_CRATES: [&str; 3] = ["transfer", "node", "control"];

/// All rules.
pub(crate) fn check(root: &Path, sources: &[Source]) -> Result<Vec<Finding>, String> {
    let wire: Vec<&str> = DOMAIN_MAY_USE.into_iter().chain(WIRE_MAY_USE_TOO).collect();
    let mut findings = Vec::new();
    for (name, may_use) in [("godwit-domain", DOMAIN_MAY_USE.as_slice()), ("godwit-wire", wire.as_slice())] {
        for foreign in foreign(&tree(root, name, None)?, may_use) {
            let by = tree(root, name, Some(&foreign))?;
            findings.push(Finding {
                place: name.to_owned(),
                what: format!(
                    "depends on `{foreign}`, which is not on the list of a pure crate: do without it, or list it in \
                     xtask/src/purity.rs with its reason; it comes in by\n{by}"
                ),
            });
        }
    }
    findings.extend(sources.iter().flat_map(impure));
    findings.extend(sources.iter().flat_map(out_of_room));
    findings.extend(encoder(sources));
    Ok(findings)
}

/// The crates that one crate of the workspace is built on, or how it came to one of them.
fn tree(root: &Path, name: &str, to: Option<&str>) -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["tree", "--locked", "--edges", "normal", "--package", name]);
    match to {
        None => command.args(["--prefix", "none"]),
        Some(to) => command.args(["--invert", to]),
    };
    let output = command.output().map_err(|error| format!("run cargo tree for {name}: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo tree for {name}: {}", String::from_utf8_lossy(&output.stderr).trim_end()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// The crates in a flat tree that are not on a list, each once.
fn foreign(tree: &str, may_use: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| !may_use.contains(name))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// What a pure crate's file holds that it must not.
fn impure(source: &Source) -> Vec<Finding> {
    // A pure crate's own tests may read the seed that they replay.
    if !PURE.iter().any(|name| source.path.starts_with(format!("crates/{name}/src/"))) {
        return Vec::new();
    }
    let words = source.words().filter_map(|word| {
        let (_, instead) = IMPURE_WORDS.iter().find(|(banned, _)| *banned == word.text)?;
        Some(Finding {
            place: source.place(word.start),
            what: format!("`{}` in a pure crate; {instead}", word.text),
        })
    });
    let modules = std_modules(source).into_iter().filter_map(|(start, module)| {
        let (_, instead) = IMPURE_MODULES.iter().find(|(banned, _)| *banned == module)?;
        Some(Finding {
            place: source.place(start),
            what: format!("`std::{module}` in a pure crate; {instead}"),
        })
    });
    words.chain(modules).collect()
}

/// The modules of `std` that a file names, as `std::fs` or in a group `std::{fs, …}`, with where.
fn std_modules(source: &Source) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for word in source.words().filter(|word| word.text == "std") {
        let start = word.start;
        let Some(path) = source.code.get(start + word.text.len()..).and_then(|rest| rest.strip_prefix("::"))
        else {
            continue;
        };
        match path.strip_prefix('{') {
            Some(group) => found.extend(heads(group).into_iter().map(|module| (start, module))),
            None => found.push((start, first_word(path))),
        }
    }
    found
}

/// The first word of each item in a `use` group whose opening brace has been read.
fn heads(group: &str) -> Vec<&str> {
    let mut heads = vec![first_word(group.trim_start())];
    let mut depth = 0_usize;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(first_word(group.get(at + 1..).unwrap_or_default().trim_start())),
            _ => {}
        }
    }
    heads
}

fn first_word(text: &str) -> &str {
    text.get(..text.find(|c| !is_word_char(c)).unwrap_or(text.len())).unwrap_or_default()
}

/// `unsafe` and actix where they are not at home.
fn out_of_room(source: &Source) -> Vec<Finding> {
    let memory = source.is_in_crate("memory");
    let actors = ACTIX_CRATES.iter().any(|name| source.is_in_crate(name));
    source
        .words()
        .filter_map(|word| {
            let rule = match word.text {
                "unsafe" if !memory => "only crates/memory may be unsafe: give it a safe function there",
                "actix" | "actix_rt" if !actors => {
                    "only crates transfer, node and control have actors: send a message to one, or be called by it"
                }
                _ => return None,
            };
            Some(Finding { place: source.place(word.start), what: format!("`{}`; {rule}", word.text) })
        })
        .collect()
}

/// bincode is named in exactly one file, of crates/wire, so that it can be replaced in a day.
fn encoder(sources: &[Source]) -> Vec<Finding> {
    let places: Vec<(&Source, usize)> = sources
        .iter()
        .filter_map(|source| {
            source.words().find(|word| word.text == "bincode").map(|word| (source, word.start))
        })
        .collect();
    let rule =
        "bincode is named in exactly one file, of crates/wire; encode and decode with that file's functions";
    match places.as_slice() {
        [] => vec![Finding {
            place: "crates/wire".to_owned(),
            what: "no file names bincode: take it out of Cargo.toml and out of this rule".to_owned(),
        }],
        [(source, _)] if source.is_in_crate("wire") => Vec::new(),
        places => places
            .iter()
            .map(|(source, start)| Finding {
                place: source.place(*start),
                what: format!("`bincode`; {rule}"),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(findings: Vec<Finding>) -> Vec<String> {
        findings.iter().map(Finding::to_string).collect()
    }

    #[track_caller]
    fn finds(findings: Vec<Finding>, parts: &[&str]) {
        let told = told(findings);
        assert_eq!(told.len(), parts.len(), "{told:#?}");
        for (finding, part) in told.iter().zip(parts) {
            assert!(finding.contains(part), "{part} in {finding}");
        }
    }

    #[test]
    fn a_crate_that_is_not_on_the_list_is_found_once() {
        let tree = "godwit-domain v0.1.0 (/somewhere)\nserde v1.0.0\nrand v0.9.0\nserde_derive v1.0.0 \
                    (proc-macro)\nrand v0.9.0 (*)\n";
        assert_eq!(foreign(tree, &DOMAIN_MAY_USE), ["rand"]);
        assert!(foreign("godwit-domain v0.1.0\nthiserror v2.0.0 (*)", &DOMAIN_MAY_USE).is_empty());
    }

    #[test]
    fn an_impure_word_is_found_in_pure_crates_only() {
        let text =
            "//! Map.\nuse std::collections::HashMap;\nfn f(now: std::time::Instant) {}\nasync fn g() {}\n";
        let pure = Source::new("crates/domain/src/x.rs", text);
        finds(impure(&pure), &["x.rs:2: `HashMap`", "x.rs:3: `Instant`", "x.rs:4: `async`"]);
        assert!(impure(&Source::new("crates/node/src/x.rs", text)).is_empty());
        let innocent =
            "//! HashMap and async.\nuse std::time::Duration;\nlet s = \"Instant\"; // SystemTime\n";
        assert!(impure(&Source::new("crates/wire/src/x.rs", innocent)).is_empty());
    }

    #[test]
    fn an_impure_module_is_found_in_every_spelling() {
        for (text, parts) in [
            ("use std::fs;", vec!["`std::fs`"]),
            ("fn f() { std::thread::yield_now() }", vec!["`std::thread`"]),
            ("use std::{fmt, net::IpAddr};", vec!["`std::net`"]),
            (
                "use std::{\n    collections::{BTreeMap, BTreeSet},\n    env,\n    fs,\n};",
                vec!["`std::env`", "`std::fs`"],
            ),
            ("use std::{collections::{fs, net}, fmt};", vec![]),
            ("use crate::net; use std::fmt; mod thread {}", vec![]),
        ] {
            finds(impure(&Source::new("crates/wire/src/x.rs", text)), &parts);
        }
    }

    #[test]
    fn unsafe_is_at_home_in_memory() {
        let text = "// unsafe\nfn f() { unsafe { g() } }\n#![forbid(unsafe_code)]\n";
        finds(out_of_room(&Source::new("crates/node/src/x.rs", text)), &["x.rs:2: `unsafe`"]);
        finds(out_of_room(&Source::new("tests/x.rs", text)), &["tests/x.rs:2: `unsafe`"]);
        assert!(out_of_room(&Source::new("crates/memory/src/x.rs", text)).is_empty());
        // A crate whose name begins alike is another crate.
        finds(out_of_room(&Source::new("crates/memory2/src/x.rs", text)), &["`unsafe`"]);
    }

    #[test]
    fn actors_are_at_home_in_three_crates() {
        let text = "use actix::prelude::*;";
        for name in ACTIX_CRATES {
            assert!(out_of_room(&Source::new(format!("crates/{name}/src/x.rs"), text)).is_empty());
        }
        finds(out_of_room(&Source::new("crates/guest/src/x.rs", text)), &["x.rs:1: `actix`"]);
    }

    #[test]
    fn bincode_is_at_home_in_one_file() {
        let file = |path: &str| Source::new(path, "fn f() { bincode::serialize(x) }");
        assert!(encoder(&[file("crates/wire/src/codec.rs")]).is_empty());
        finds(encoder(&[]), &["no file names bincode"]);
        finds(encoder(&[file("crates/node/src/x.rs")]), &["node/src/x.rs:1: `bincode`"]);
        let two = [file("crates/wire/src/codec.rs"), file("crates/wire/src/x.rs")];
        finds(encoder(&two), &["codec.rs:1: `bincode`", "x.rs:1: `bincode`"]);
    }
}
