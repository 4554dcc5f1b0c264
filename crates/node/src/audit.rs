//! The audit log: what this voter has applied, one JSON line an entry, for people at three in the morning and for tools.
//!
//! ```text
//!   Replica::apply ─ note ─▶ queue, bounded ─▶ thread: decode, JSON, append ─▶ STATE/audit/log ─ 64 MiB ─▶ log.1 … log.4
//!
//!   {"index":12,"after":11,"time_ms":n,"applied_ms":n,"request":{…}|null,"command":{…},"refused":"…"|null}
//!   {"gap":{"after":12,"before":40}}
//! ```
//!
//! - `index`: the entry's place in the control group's log. `after`: the voter had everything up to there when it applied
//!   this one, so no command stands between the two (an election leaves entries without one).
//! - `time_ms`: when its leader proposed it; `applied_ms`: when this host applied it; both since the Unix epoch, by the
//!   wall clocks of those hosts.
//! - `request`: the operator's request that it answers; `command`: `domain::registry::Command`; `refused`: why nothing
//!   has changed.
//! - A gap: what stands between these two entries is not here. It came in a snapshot, or could not be written.
//!
//! Always true: an entry is written once, however often it is applied after restarts; whole, or not at all; in order.
//! The voter never waits for it nor fails with it: what finds no room is dropped, said once as a warning, and is a gap.
//! The files hold no secrets, and have mode 0600. Only whoever removes STATE/control removes STATE/audit too. They are of one
//! group, which STATE/audit/group names: what is there of another one is put away, as STATE/audit.GROUP.

mod book;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use godwit_domain::GroupId;
use godwit_domain::registry::{Command, Refusal, RequestKey};
use godwit_wire::log;
use serde::Serialize;

use book::Book;

use crate::files;

/// Entries that may wait to be written: twice what lies between two snapshots, so that a voter that catches up leaves
/// no gap.
const WAITING_MAX: usize = 8192;
/// The same in bytes.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// Largest name of a group, in bytes.
const GROUP_BYTES_MAX: u64 = 64;
/// Entries that are written together.
const BATCH_MAX: usize = 256;

/// The folder of a group's audit log in a node's folder. Another group's is put away. The voter goes on where that fails.
pub(crate) fn folder_of(state: &Path, group: GroupId) -> PathBuf {
    let folder = state.join("audit");
    if let Err(error) = claim(&folder, state, group) {
        tracing::warn!(folder = %folder.display(), %error, "the audit log's folder may hold another group's");
    }
    folder
}

fn claim(folder: &Path, state: &Path, group: GroupId) -> io::Result<()> {
    let named = folder.join("group");
    match files::read_capped(&named, GROUP_BYTES_MAX) {
        Ok(bytes) => {
            let known = String::from_utf8_lossy(&bytes).trim().parse::<GroupId>();
            if known == Ok(group) {
                return Ok(());
            }
            let left = known.map_or_else(|_| "unknown".to_owned(), |known| known.to_string());
            fs::rename(folder, state.join(format!("audit.{left}")))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    files::folder(folder)?;
    files::replace(&named, format!("{group}\n").as_bytes(), files::MODE_SECRET)
}

/// The end where entries are noted. Dropped, it waits until what was noted is written.
#[derive(Debug)]
pub struct Audit {
    queue: Option<SyncSender<Note>>,
    writer: Option<JoinHandle<()>>,
    waiting_bytes: Arc<AtomicUsize>,
    /// What stood in the file at the start.
    written: u64,
    /// Up to here the voter has everything.
    after: u64,
    dropping: bool,
}

/// An applied entry on its way.
#[derive(Debug)]
struct Note {
    index: u64,
    after: u64,
    applied_ms: u64,
    entry: Vec<u8>,
    refused: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    index: u64,
    after: u64,
    time_ms: u64,
    applied_ms: u64,
    request: &'a Option<RequestKey>,
    command: &'a Command,
    refused: &'a Option<String>,
}

impl Audit {
    /// Begins, or goes on, in this folder. A folder that can not be used now is tried again with each entry. Fails if no
    /// thread can be had.
    pub fn start(folder: PathBuf) -> io::Result<Self> {
        let mut book = Book::new(folder);
        let written = book.last();
        let (queue, notes) = sync_channel(WAITING_MAX);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&waiting_bytes);
        let writer =
            Builder::new().name("audit".to_owned()).spawn(move || write_all(book, &notes, &counted))?;
        let (queue, writer) = (Some(queue), Some(writer));
        Ok(Self { queue, writer, waiting_bytes, written, after: 0, dropping: false })
    }

    /// The state came from a snapshot that ends with this entry.
    pub fn restored(&mut self, index: u64) {
        self.after = index;
    }

    /// This entry was applied. Never blocks.
    pub fn note(&mut self, index: u64, entry: &[u8], refused: Option<&Refusal>) {
        let after = std::mem::replace(&mut self.after, index);
        if index <= self.written {
            return;
        }
        let note = Note {
            index,
            after,
            applied_ms: wall_clock_ms(),
            entry: entry.to_vec(),
            refused: refused.map(Refusal::to_string),
        };
        let taken = self.hand_over(note);
        if !taken && !self.dropping {
            tracing::warn!(index, "the audit log can not keep up: entries are left out of it");
        }
        self.dropping = !taken;
    }

    fn hand_over(&self, note: Note) -> bool {
        let bytes = note.entry.len();
        let Some(queue) = &self.queue else { return false };
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let taken = waiting + bytes <= WAITING_BYTES_MAX && queue.try_send(note).is_ok();
        if !taken {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the audit log's thread has panicked");
        }
    }
}

/// The thread: until nobody notes any more.
fn write_all(mut book: Book, notes: &Receiver<Note>, waiting_bytes: &AtomicUsize) {
    while let Ok(first) = notes.recv() {
        let batch: Vec<Note> = std::iter::once(first).chain(notes.try_iter()).take(BATCH_MAX).collect();
        waiting_bytes.fetch_sub(batch.iter().map(|note| note.entry.len()).sum(), Ordering::Relaxed);
        book.append(batch.iter().filter_map(|note| Some((note.index, note.after, line_of(note)?))));
    }
}

fn line_of(note: &Note) -> Option<Vec<u8>> {
    let stamped = log::decode_entry(&note.entry).ok()?;
    let line = Line {
        index: note.index,
        after: note.after,
        time_ms: stamped.time_ms,
        applied_ms: note.applied_ms,
        request: &stamped.request,
        command: &stamped.command,
        refused: &note.refused,
    };
    // It was applied, so it could be read; and every command has a form in JSON. Were one without, it would be a gap.
    serde_json::to_vec(&line).ok()
}

fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
