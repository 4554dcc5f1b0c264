//! Files in tmpfs: their sums are kept, and compared in laps; one file of each lap is written anew.
//!
//! Always true: a file whose sum differs was changed by somebody else.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::memory::spawn;
use crate::mix::{fill, mix, sum};
use crate::params::Params;
use crate::tally::Tally;

/// A tmpfs that init has mounted.
const FOLDER: &str = "/tmp";
const FILE_BYTES: usize = 1 << 20;

/// Writes the files, and starts the thread that keeps them.
pub(crate) fn start(params: &Params, tally: &Arc<Tally>) -> Result<(), String> {
    let mut files = (0..params.files_mib)
        .map(|index| File::new(PathBuf::from(format!("{FOLDER}/file-{index}")), mix(params.seed ^ index)))
        .collect::<Result<Vec<_>, _>>()?;
    let pause = Duration::from_millis(params.lap_s * 1_000 / params.files_mib);
    let tally = Arc::clone(tally);
    spawn("files", move || {
        let mut fresh = 0;
        loop {
            for (index, file) in files.iter_mut().enumerate() {
                thread::sleep(pause);
                file.compare(&tally);
                if index == fresh {
                    file.write_again(&tally);
                }
            }
            fresh = (fresh + 1) % files.len().max(1);
            tally.files_laps.one();
        }
    })
}

/// One file, and the sum that it must have.
#[derive(Debug)]
struct File {
    path: PathBuf,
    seed: u64,
    sum: u64,
}

impl File {
    fn new(path: PathBuf, seed: u64) -> Result<Self, String> {
        let mut file = Self { path, seed, sum: 0 };
        file.write().map(|()| file).map_err(|error| format!("write a file in {FOLDER}: {error}"))
    }

    fn write(&mut self) -> std::io::Result<()> {
        let mut bytes = vec![0; FILE_BYTES];
        fill(&mut bytes, self.seed);
        self.sum = sum(&bytes);
        fs::write(&self.path, &bytes)
    }

    fn write_again(&mut self, tally: &Tally) {
        self.seed = mix(self.seed);
        match self.write() {
            Ok(()) => tally.files.one(),
            Err(error) => tally.bad("file", format_args!("{}: {error}", self.path.display())),
        }
    }

    /// A sum that differs is taken as the new one, so that one fault is told once.
    fn compare(&mut self, tally: &Tally) {
        match fs::read(&self.path) {
            Ok(bytes) if sum(&bytes) == self.sum => {}
            Ok(bytes) => {
                let found = sum(&bytes);
                tally.bad(
                    "file",
                    format_args!("{} has sum {found:016x}, not {:016x}", self.path.display(), self.sum),
                );
                self.sum = found;
            }
            Err(error) => tally.bad("file", format_args!("{}: {error}", self.path.display())),
        }
    }
}
