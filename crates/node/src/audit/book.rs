//! The audit log's files.
//!
//! ```text
//!   log      lines are appended here; at 64 MiB it becomes log.1, log.1 becomes log.2, and so on
//!   log.4    the oldest; the next renaming ends it
//! ```
//!
//! Always true: only the last line of a file may be torn, and whoever opens it next cuts that off; a failure drops what
//! was to be written, and the next line that can be written says so. After one, everything is opened anew.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const NAME: &str = "log";
/// Earlier files that are kept, beside the one that is written.
const KEPT: usize = 4;
/// Size at which the file is begun anew: some 200,000 entries, 20,000 migrations.
const BYTES_MAX: u64 = 64 << 20;
/// Longest line: an entry has at most 60 KiB, of which each byte may become six, and some names.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Book {
    folder: PathBuf,
    bytes_max: u64,
    page: Option<Page>,
    failing: bool,
}

/// The file that is written.
#[derive(Debug)]
struct Page {
    file: File,
    bytes: u64,
    /// The last entry that is in it, or that it says it lacks.
    last: u64,
}

/// What stands between these two entries is not here.
#[derive(Debug, Serialize, Deserialize)]
struct Gap {
    after: u64,
    before: u64,
}

#[derive(Serialize)]
struct GapLine {
    gap: Gap,
}

/// What the last line of a file is about.
#[derive(Deserialize)]
struct LastLine {
    index: Option<u64>,
    gap: Option<Gap>,
}

impl Book {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, bytes_max: BYTES_MAX, page: None, failing: false }
    }

    /// The last entry that is written, 0 if none is or none can be read.
    pub(super) fn last(&mut self) -> u64 {
        let opened = self.open().map(|page| self.page = Some(page));
        self.note_how_it_went(opened);
        self.page.as_ref().map_or(0, |page| page.last)
    }

    /// Appends these lines, each with its index and the index up to which nothing lacks before it. Those that are written
    /// already are left out.
    pub(super) fn append(&mut self, lines: impl Iterator<Item = (u64, u64, Vec<u8>)>) {
        let written = self.try_append(lines);
        if written.is_err() {
            self.page = None;
        }
        self.note_how_it_went(written);
    }

    fn try_append(&mut self, lines: impl Iterator<Item = (u64, u64, Vec<u8>)>) -> io::Result<()> {
        let mut page = match self.page.take() {
            Some(page) if page.bytes < self.bytes_max => page,
            Some(full) => self.begin_anew(full)?,
            None => self.open()?,
        };
        let (mut bytes, mut last) = (Vec::new(), page.last);
        for (index, after, line) in lines.filter(|(index, ..)| *index > page.last) {
            if after > last {
                let gap = Gap { after: last, before: index };
                tracing::info!(after = last, before = index, "the audit log has a gap");
                serde_json::to_writer(&mut bytes, &GapLine { gap })?;
                bytes.push(b'\n');
            }
            bytes.extend(line);
            bytes.push(b'\n');
            last = index;
        }
        let taken = page.file.write(&bytes)?;
        if taken < bytes.len() {
            let message = format!("only {taken} of {} bytes were taken", bytes.len());
            return Err(io::Error::new(io::ErrorKind::WriteZero, message));
        }
        self.page = Some(Page { bytes: page.bytes + taken as u64, last, ..page });
        Ok(())
    }

    fn begin_anew(&self, full: Page) -> io::Result<Page> {
        for at in (0..KEPT).rev() {
            match fs::rename(self.path(at), self.path(at + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(Page { file: append_to(&self.path(0))?, bytes: 0, last: full.last })
    }

    fn open(&self) -> io::Result<Page> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let file = append_to(&self.path(0))?;
        let (bytes, mut last) = cut_torn_end(&file, &self.path(0))?;
        if bytes == 0 {
            last = match File::open(self.path(1)) {
                Ok(before) => last_of(&before, &self.path(1))?.1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(error) => return Err(error),
            };
        }
        Ok(Page { file, bytes, last })
    }

    /// The file that is written is 0, the one before it 1.
    fn path(&self, at: usize) -> PathBuf {
        self.folder.join(if at == 0 { NAME.to_owned() } else { format!("{NAME}.{at}") })
    }

    /// Says once that it fails, and once that it does not any more.
    fn note_how_it_went(&mut self, result: io::Result<()>) {
        let folder = self.folder.display();
        match result {
            Err(error) if !self.failing => {
                tracing::warn!(%folder, %error, "the audit log can not be written: entries are left out of it");
                self.failing = true;
            }
            Ok(()) if self.failing => {
                tracing::info!(%folder, "the audit log is written again");
                self.failing = false;
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}

/// Cuts off what stands after the last line feed. Returns the length that is left, and the last entry.
fn cut_torn_end(file: &File, path: &Path) -> io::Result<(u64, u64)> {
    let (whole, last) = last_of(file, path)?;
    if whole < file.metadata()?.len() {
        file.set_len(whole)?;
    }
    Ok((whole, last))
}

/// The length of a file up to its last line feed, and the last entry in it: 0 if it has no line.
fn last_of(mut file: &File, path: &Path) -> io::Result<(u64, u64)> {
    let length = file.metadata()?.len();
    // The last whole line and a torn one.
    let from = length.saturating_sub(2 * LINE_BYTES_MAX);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let torn = end.iter().rev().take_while(|byte| **byte != b'\n').count();
    let whole = &end[..end.len() - torn];
    if whole.is_empty() && from == 0 {
        return Ok((0, 0));
    }
    let line = whole.strip_suffix(b"\n").and_then(|lines| lines.rsplit(|byte| *byte == b'\n').next());
    let last = line.and_then(|line| serde_json::from_slice::<LastLine>(line).ok());
    // The gap's own line is written with the one that it comes before, which may have been torn.
    let last = last.and_then(|last| last.index.or_else(|| Some(last.gap?.before.saturating_sub(1))));
    let last = last.ok_or_else(|| {
        let message = format!("{} ends with what is no line of an audit log; move it away", path.display());
        io::Error::new(io::ErrorKind::InvalidData, message)
    })?;
    Ok((from + whole.len() as u64, last))
}

#[cfg(test)]
impl Book {
    /// Another size at which a file is full.
    pub(super) fn of(folder: &Path, bytes_max: u64) -> Self {
        Self { bytes_max, ..Self::new(folder.to_owned()) }
    }

    /// From now on nothing can be written, until the file is opened anew.
    pub(super) fn fill_the_disk(&mut self) -> io::Result<()> {
        let full = OpenOptions::new().append(true).open("/dev/full")?;
        if let Some(page) = &mut self.page {
            page.file = full;
        }
        Ok(())
    }
}
