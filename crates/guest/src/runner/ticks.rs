//! The guest's heartbeat on disk: the oracle for "at most one runner runs a guest".
//!
//! ```text
//!   DIR/ticks      TICK NODE MONOTONIC_NS      one line per tick, appended, whole in one write
//!   DIR/ticks.1    the lines before those, once `ticks` has reached 64 MiB
//! ```
//!
//! Always true: the tick is part of the guest's state, so it goes on where it stood when the guest moves; two
//! nodes with the same tick of one guest have both run it. A line is written while the guest runs, never while
//! it is paused. Only the last line of a file may be torn.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use godwit_domain::NodeName;

const NAME: &str = "ticks";
const NAME_BEFORE: &str = "ticks.1";
/// Size at which the file is renamed and begun anew: two million ticks, six hours at 100 a second.
const BYTES_MAX: u64 = 64 << 20;
/// Longest line: two numbers of 20 digits, a node name of 63, two spaces and the end.
const LINE_BYTES_MAX: u64 = 106;

/// One heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    /// Its number in the guest's life; the first is 1.
    pub tick: u64,
    /// The node on which the guest ran.
    pub node: NodeName,
    /// That host's monotonic clock, in nanoseconds.
    pub monotonic_ns: u64,
}

/// A line of a tick file that is none.
#[derive(Debug, thiserror::Error)]
#[error("{}, line {line}: {text:?} is no tick (TICK NODE MONOTONIC_NS)", path.display())]
pub struct NotATick {
    path: PathBuf,
    line: usize,
    text: String,
}

/// The host's monotonic clock, in nanoseconds.
pub(super) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Neither part is ever negative on this clock.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The end of the tick file where lines are added.
#[derive(Debug)]
pub(super) struct TickFile {
    dir: PathBuf,
    node: NodeName,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl TickFile {
    /// Opens or makes the file of a folder. A line that an earlier writer left torn is cut off.
    pub(super) fn open(dir: &Path, node: NodeName) -> io::Result<Self> {
        let file = append_to(&dir.join(NAME))?;
        let bytes = cut_torn_end(&file)?;
        Ok(Self { dir: dir.to_owned(), node, file, bytes, bytes_max: BYTES_MAX })
    }

    /// Adds a line. On an error nothing was added.
    pub(super) fn append(&mut self, tick: u64) -> io::Result<()> {
        if self.bytes >= self.bytes_max {
            self.begin_anew()?;
        }
        let line = format!("{tick} {} {}\n", self.node, monotonic_ns());
        match self.file.write(line.as_bytes()) {
            Ok(written) if written == line.len() => {
                self.bytes += line.len() as u64;
                Ok(())
            }
            Ok(written) => {
                // A full disk took a part. Left there, the next line would hang on to it.
                self.file.set_len(self.bytes)?;
                let message = format!("only {written} of {} bytes were taken", line.len());
                Err(io::Error::new(io::ErrorKind::WriteZero, message))
            }
            Err(error) => Err(error),
        }
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        let path = self.dir.join(NAME);
        std::fs::rename(&path, self.dir.join(NAME_BEFORE))?;
        self.file = append_to(&path)?;
        self.bytes = 0;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}

/// Cuts off what stands after the last line feed; returns the length that is left.
fn cut_torn_end(mut file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LINE_BYTES_MAX);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let torn = end.iter().rev().take_while(|byte| **byte != b'\n').count();
    let whole = length - torn as u64;
    if torn > 0 {
        file.set_len(whole)?;
    }
    Ok(whole)
}

/// Reads all ticks of a runner's folder, oldest first, also while the runner writes them. A folder without
/// ticks has none. Errors: those of the file system, and [`NotATick`] within an error of the kind `InvalidData`.
pub fn read_ticks(dir: &Path) -> io::Result<Vec<Tick>> {
    let (path, path_before) = (dir.join(NAME), dir.join(NAME_BEFORE));
    loop {
        // In this order: what `ticks` was when opened can only move to `ticks.1`, where it is recognised.
        let (file, before) = (open_if_there(&path)?, open_if_there(&path_before)?);
        let place = |file: &Option<File>| file.as_ref().map(File::metadata).transpose();
        let same = match (place(&file)?, place(&before)?) {
            (Some(a), Some(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            (None, Some(_)) => path.exists(),
            (_, None) => false,
        };
        if same {
            continue; // it was renamed between the two; the next renaming is 64 MiB away
        }
        let mut ticks = Vec::new();
        for (path, file) in [(&path_before, before), (&path, file)] {
            if let Some(mut file) = file {
                let mut text = Vec::new();
                file.read_to_end(&mut text)?;
                parse(path, &text, &mut ticks).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            }
        }
        return Ok(ticks);
    }
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(path: &Path, text: &[u8], ticks: &mut Vec<Tick>) -> Result<(), NotATick> {
    for (i, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(line) = line.strip_suffix(b"\n") else { break }; // the last one, torn
        let tick = parse_line(line).ok_or_else(|| NotATick {
            path: path.to_owned(),
            line: i + 1,
            text: String::from_utf8_lossy(line).chars().take(120).collect(),
        })?;
        ticks.push(tick);
    }
    Ok(())
}

fn parse_line(line: &[u8]) -> Option<Tick> {
    let mut fields = std::str::from_utf8(line).ok()?.split(' ');
    let tick = fields.next()?.parse().ok()?;
    let node = fields.next()?.parse().ok()?;
    let monotonic_ns = fields.next()?.parse().ok()?;
    fields.next().is_none().then_some(Tick { tick, node, monotonic_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeName {
        "node-a".parse().expect("a name")
    }

    fn numbers(dir: &Path) -> Vec<u64> {
        read_ticks(dir).expect("reads").iter().map(|tick| tick.tick).collect()
    }

    #[test]
    fn ticks_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().expect("folder");
        assert_eq!(numbers(dir.path()), [0; 0], "an empty folder has none");
        let begun = monotonic_ns();
        let mut file = TickFile::open(dir.path(), node()).expect("opens");
        for tick in 1..=3 {
            file.append(tick).expect("appends");
        }
        let ticks = read_ticks(dir.path()).expect("reads");
        assert_eq!(ticks.iter().map(|tick| tick.tick).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(ticks.iter().all(|tick| tick.node == node()));
        assert!(ticks.iter().map(|tick| tick.monotonic_ns).is_sorted());
        assert!(ticks.iter().all(|tick| tick.monotonic_ns >= begun));
    }

    #[test]
    fn a_full_file_is_begun_anew_and_the_one_before_is_kept() {
        let dir = tempfile::tempdir().expect("folder");
        let mut file = TickFile::open(dir.path(), node()).expect("opens");
        file.bytes_max = 60;
        for tick in 1..=20 {
            file.append(tick).expect("appends");
            let read = numbers(dir.path());
            assert!(read.len() as u64 >= tick.min(3), "after {tick}: {read:?}");
            assert_eq!(read.last(), Some(&tick));
            assert!(read.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{read:?}");
        }
    }

    #[test]
    fn a_torn_last_line_is_ignored_and_cut_off_by_the_next_writer() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join(NAME);
        std::fs::write(&path, "1 node-a 5\n2 node-a 6\n3 nod").expect("writes");
        assert_eq!(numbers(dir.path()), [1, 2]);
        TickFile::open(dir.path(), node()).expect("opens").append(3).expect("appends");
        assert_eq!(numbers(dir.path()), [1, 2, 3]);
    }

    #[test]
    fn garbage_is_named() {
        let dir = tempfile::tempdir().expect("folder");
        for line in ["", "1 node-a", "1 node-a 5 6", "x node-a 5", "1 Node 5", "1  node-a 5", "-1 node-a 5"] {
            std::fs::write(dir.path().join(NAME), format!("1 node-a 5\n{line}\n")).expect("writes");
            let error = read_ticks(dir.path()).expect_err(line).to_string();
            assert!(error.contains("line 2") && error.contains(&format!("{line:?}")), "{error}");
        }
    }

    #[test]
    fn a_full_disk_leaves_no_part_of_a_line() {
        let Ok(full) = OpenOptions::new().append(true).open("/dev/full") else { return };
        let dir = tempfile::tempdir().expect("folder");
        let mut file = TickFile::open(dir.path(), node()).expect("opens");
        file.append(1).expect("appends");
        let good = std::mem::replace(&mut file.file, full);
        assert!(file.append(2).is_err());
        file.file = good;
        file.append(2).expect("appends");
        assert_eq!(numbers(dir.path()), [1, 2]);
    }
}
