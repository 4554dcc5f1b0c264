//! Where a story takes place: a folder, a mark, and a sweeper that ends and removes all of it.
//!
//! Always true: what carries the mark ends with the place, also when the process that tells the story is killed.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use godwit::lab::sweeper::Sweeper;

use super::program::program;

/// Lines of each log that a failure shows.
const LINES_SHOWN: usize = 15;

/// See the module.
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    pub(crate) mark: String,
    sweeper: Option<Sweeper>,
}

impl Place {
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        static PLACES: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("godwit-test-").tempdir()?.keep();
        let mark = format!("test-{}-{}", std::process::id(), PLACES.fetch_add(1, Ordering::Relaxed));
        let sweeper = Some(Sweeper::start(program(), &mark, Some(&dir))?);
        Ok(Self { dir, mark, sweeper })
    }

    /// The ends of all logs, and where they are kept whole.
    pub(crate) fn last_words(&self, title: &str) -> String {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(title);
        let _ = fs::remove_dir_all(&kept);
        let mut told = format!("whole logs: {}\n", kept.display());
        for (path, text) in logs_in(&self.dir) {
            let name = path.strip_prefix(&self.dir).unwrap_or(&path);
            let lines: Vec<_> = text.lines().collect();
            let end = lines.get(lines.len().saturating_sub(LINES_SHOWN)..).unwrap_or_default();
            told += &format!("---- {} ends with:\n{}\n", name.display(), end.join("\n"));
            let copy = kept.join(name);
            let _ = copy.parent().map(fs::create_dir_all);
            let _ = fs::write(copy, text);
        }
        told
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing can be done about a sweeper that does not sweep, and no story depends on it.
        let _ = self.sweeper.take().map(Sweeper::sweep);
    }
}

/// Every log in a cluster's folder.
pub(crate) fn logs_in(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(logs_in(&path));
        } else if path.extension().is_some_and(|end| end == "log") {
            found.extend(fs::read_to_string(&path).map(|text| (path, text)));
        }
    }
    found.sort();
    found
}
