//! Manifests where they lie: files, folders, standard input.
//!
//! ```text
//!   FILE ─┐
//!   DIR ──┼─ *.yaml, *.yml, *.json by name ─▶ text, capped ─▶ documents ─▶ objects, each with its place
//!   -  ───┘
//! ```
//!
//! Always true: order is that of the command line, then of file names, then of the file; a file with a flaw gives nothing,
//! and is named with the line; a list of objects stands for its objects.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use godwit_wire::admin::{Code, Problem};
use godwit_wire::manifest::{TEXT_BYTES_MAX, documents};
use serde_json::Value;

/// What a manifest's file is called at its end.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Most files of one folder that are read.
const FILES_MAX: usize = 10_000;

/// An object as it was written.
#[derive(Debug)]
pub(super) struct Source {
    /// Its file, and which one in it, for messages.
    pub(super) place: String,
    /// Itself.
    pub(super) document: Value,
}

/// Everything that could be read, and what is wrong with the rest.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) objects: Vec<Source>,
    pub(super) flaws: Vec<Problem>,
}

impl Sources {
    /// Reads them all.
    pub(super) fn read(paths: &[PathBuf]) -> Self {
        let mut sources = Self::default();
        for path in paths {
            match files(path) {
                Ok(files) => files.iter().for_each(|file| sources.file(file)),
                Err(flaw) => sources.flaws.push(flaw),
            }
        }
        sources
    }

    fn file(&mut self, path: &Path) {
        match objects(path) {
            Ok(objects) => self.objects.extend(objects),
            Err(flaw) => self.flaws.push(flaw),
        }
    }
}

fn flaw(path: &Path, what: impl std::fmt::Display, try_: &str) -> Problem {
    let message = format!("{}: {what}", shown(path));
    Problem::new(Code::Failed, "manifests are files of YAML or JSON that can be read", message, try_)
}

fn shown(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The file itself, or the manifests of a folder, by their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, Problem> {
    let unreadable = |error: io::Error| flaw(path, error, "give a file, a folder, or - for standard input");
    if is_stdin(path) || !fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let ends = file.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
        if ends && file.is_file() {
            files.push(file);
        }
        if files.len() > FILES_MAX {
            return Err(flaw(path, format!("more than {FILES_MAX} manifests in one folder"), "split it"));
        }
    }
    if files.is_empty() {
        return Err(flaw(path, "no manifest in this folder", "manifests end in .yaml, .yml or .json"));
    }
    files.sort_unstable();
    Ok(files)
}

fn objects(path: &Path) -> Result<Vec<Source>, Problem> {
    let text = text(path)?;
    let documents =
        documents(&text).map_err(|error| flaw(path, error, "mend it there; nothing of it was used"))?;
    let objects: Vec<Value> = documents.into_iter().flat_map(members).collect();
    if objects.is_empty() {
        return Err(flaw(
            path,
            "it holds no object",
            "write a manifest: apiVersion, kind, metadata and spec",
        ));
    }
    let place = |number: usize| match objects.len() {
        1 => shown(path),
        _ => format!("{}, object {}", shown(path), number + 1),
    };
    let places: Vec<String> = (0..objects.len()).map(place).collect();
    let source = |(place, document)| Source { place, document };
    Ok(places.into_iter().zip(objects).map(source).collect())
}

fn text(path: &Path) -> Result<String, Problem> {
    let unreadable = |error: io::Error| flaw(path, error, "give a file that you may read");
    let mut bytes = Vec::new();
    // One byte above the cap is enough to see that it is too long.
    let limit = u64::try_from(TEXT_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    if is_stdin(path) {
        io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    } else {
        File::open(path).map_err(unreadable)?.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    }
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(flaw(path, format!("longer than {TEXT_BYTES_MAX} bytes"), "split it into several files"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(good).filter(|b| **b == b'\n').count() + 1;
        flaw(path, format!("line {line} is not UTF-8"), "save it as UTF-8")
    })
}

/// What a list stands for; `get -o json` writes one, and kubectl writes one of kind `List`.
fn members(document: Value) -> Vec<Value> {
    match document {
        Value::Array(items) => items,
        Value::Object(mut map) if map.get("kind").and_then(Value::as_str) == Some("List") => {
            match map.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        other => vec![other],
    }
}
