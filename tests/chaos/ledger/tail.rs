//! One voter's audit log, read while it grows.
//!
//! ```text
//!   log.4 … log.1 ─▶ log     the oldest first; renamed files are followed, since the open one stays the same file
//! ```
//!
//! Always true: only whole lines are taken. What stands behind the last line feed is read again, since a voter that
//! starts cuts a torn end off and writes something else there.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use godwit_domain::NodeName;
use godwit_domain::registry::{Command, RequestKey};
use serde::Deserialize;

/// Earlier files that a voter keeps.
const KEPT: usize = 4;
/// Read at once, in bytes: more than the longest line has.
const CHUNK_BYTES: usize = 1 << 20;

/// A line about an entry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    pub(super) index: u64,
    pub(super) after: u64,
    pub(super) time_ms: u64,
    pub(super) applied_ms: u64,
    pub(super) request: Option<RequestKey>,
    pub(super) command: Command,
    pub(super) refused: Option<String>,
}

/// A line about entries that are not there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GapLine {
    #[expect(dead_code, reason = "it must have this form; what is missing follows from `after` too")]
    gap: Gap,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct Gap {
    after: u64,
    before: u64,
}

/// See the module.
pub(super) struct Tail {
    pub(super) node: NodeName,
    folder: PathBuf,
    open: Option<Open>,
    /// The last entry that was read.
    last: u64,
    buffer: Vec<u8>,
}

struct Open {
    file: File,
    inode: u64,
    /// Behind the last line feed that was read.
    offset: u64,
}

impl Tail {
    /// Of this node, with this STATE folder, which need not be there yet.
    pub(super) fn new(node: NodeName, state: &std::path::Path) -> Self {
        Self { node, folder: state.join("audit"), open: None, last: 0, buffer: vec![0; CHUNK_BYTES] }
    }

    /// What was written since.
    pub(super) fn read(&mut self) -> Result<Vec<Line>, String> {
        let mut lines = Vec::new();
        let read = self.read_files(&mut lines);
        read.map_err(|error| format!("the audit log of {}: {error}", self.node))?;
        Ok(lines)
    }

    fn read_files(&mut self, lines: &mut Vec<Line>) -> io::Result<()> {
        if self.open.is_none() {
            self.open = self.file_after(None)?;
        }
        while let Some(open) = self.open.as_mut() {
            let was_renamed = match fs::metadata(self.folder.join("log")) {
                Ok(now) => now.ino() != open.inode,
                Err(error) if error.kind() == ErrorKind::NotFound => true,
                Err(error) => return Err(error),
            };
            // Whatever came before the renaming is read before the next file is.
            while let Some(read) = next_lines(open, &mut self.buffer)? {
                for line in read.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    lines.extend(parse(line, &mut self.last)?);
                }
            }
            let inode = open.inode;
            match was_renamed.then(|| self.file_after(Some(inode))).transpose()?.flatten() {
                Some(next) => self.open = Some(next),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// The file that was begun after this one; of one that is not kept any more, and of none, the oldest.
    fn file_after(&self, inode: Option<u64>) -> io::Result<Option<Open>> {
        let path = |at: usize| match at {
            0 => self.folder.join("log"),
            _ => self.folder.join(format!("log.{at}")),
        };
        loop {
            let mut files = Vec::new();
            for at in (0..=KEPT).rev() {
                match File::open(path(at)) {
                    Ok(file) => files.push((file.metadata()?.ino(), file)),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            let newest = files.last().map(|(inode, _)| *inode);
            if fs::metadata(path(0)).ok().map(|log| log.ino()) != newest && path(0).exists() {
                continue; // renamed meanwhile; the next renaming is 64 MiB away
            }
            let at = files.iter().position(|(of, _)| Some(*of) == inode).map_or(0, |at| at + 1);
            return Ok(files.into_iter().nth(at).map(|(inode, file)| Open { file, inode, offset: 0 }));
        }
    }
}

/// The whole lines that are there, up to a chunk of them.
fn next_lines<'a>(open: &mut Open, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    let read = open.file.read_at(buffer, open.offset)?;
    let Some(end) = buffer[..read].iter().rposition(|byte| *byte == b'\n') else { return Ok(None) };
    open.offset += end as u64 + 1;
    Ok(Some(&buffer[..end]))
}

fn parse(text: &[u8], last: &mut u64) -> io::Result<Option<Line>> {
    let wrong = |why: String| {
        let shown: String = String::from_utf8_lossy(text).chars().take(200).collect();
        io::Error::new(ErrorKind::InvalidData, format!("{why}: {shown}"))
    };
    if text.starts_with(b"{\"gap\"") {
        return serde_json::from_slice::<GapLine>(text)
            .map(|_| None)
            .map_err(|error| wrong(error.to_string()));
    }
    let line: Line = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
    if line.index <= *last {
        return Err(wrong(format!("an entry stands behind entry {last}")));
    }
    if line.after >= line.index {
        return Err(wrong("an entry is after itself".to_owned()));
    }
    *last = line.index;
    Ok(Some(line))
}
