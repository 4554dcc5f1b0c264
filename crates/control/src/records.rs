//! The records of a voter's disk: their keys, their bytes, and how damage to them shows.
//!
//! ```text
//!   "h"                            head: what is in force            "o"   owner: whose folder this is
//!   "e" index u64 │ chunk u16      an entry, in chunks               (big endian: keys sort as numbers)
//!   "p" index u64 │ piece u32      a piece of the snapshot of that index
//!   "q" index u64                  its closing marker: count, length, digest, metadata
//! ```
//!
//! Always true: a snapshot counts only if the head names it and its pieces fit its marker; an entry counts only
//! between the head's base and last. The head holds the end of a chain of digests over all entries, so that an entry
//! that is missing, older or altered shows, wherever it stands.

use std::collections::BTreeMap;

use godwit_wire::codec::{self, CodecError, LENGTH_BYTES};
use protobuf::Message;
use raft::eraftpb::{Entry, HardState, Snapshot, SnapshotMetadata};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::engine::Position;
use crate::members::Members;
use crate::storage::Stored;

/// Largest value: a leaf of the store holds up to 20 of them, and is itself written as one message, which must stay
/// below the 128 KiB from which on it would become a file of its own that nobody syncs.
pub(crate) const CHUNK_BYTES: usize = 4096;

/// Largest head, owner or marker.
const RECORD_BYTES_MAX: usize = CHUNK_BYTES - LENGTH_BYTES;

pub(crate) const HEAD: &[u8] = b"h";
pub(crate) const OWNER: &[u8] = b"o";

/// What is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Counts the writes of this record.
    pub(crate) sequence: u64,
    pub(crate) term: u64,
    pub(crate) vote: u64,
    pub(crate) commit: u64,
    pub(crate) base_index: u64,
    pub(crate) base_term: u64,
    /// The chain's value at the base.
    pub(crate) base_chain: u64,
    pub(crate) last_index: u64,
    /// The chain's value at the last entry.
    pub(crate) last_chain: u64,
    /// The snapshot's index; 0: none.
    pub(crate) snapshot: u64,
}

impl Head {
    pub(crate) fn set_hard(&mut self, hard: &HardState) {
        self.term = hard.term;
        self.vote = hard.vote;
        self.commit = hard.commit;
    }

    fn hard(&self) -> HardState {
        HardState { term: self.term, vote: self.vote, commit: self.commit, ..HardState::default() }
    }
}

/// Closes a snapshot's pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    pieces: u32,
    bytes: u64,
    digest: u64,
    metadata: Vec<u8>,
}

/// A record's bytes.
pub(crate) fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, CodecError> {
    codec::encode_frame(what, value, RECORD_BYTES_MAX)
}

/// A record from its bytes.
pub(crate) fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    let malformed = || CodecError::Malformed { what, why: "cut short".to_owned() };
    let (length, body) = bytes.split_first_chunk().ok_or_else(malformed)?;
    if codec::body_length(*length, RECORD_BYTES_MAX)? != body.len() {
        return Err(malformed());
    }
    codec::decode_body(what, body)
}

fn numbered<const N: usize>(kind: u8, index: u64, part: &[u8]) -> [u8; N] {
    let mut key = [0; N];
    key[0] = kind;
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(part);
    key
}

pub(crate) fn entry_key(index: u64, chunk: u16) -> [u8; 11] {
    numbered(b'e', index, &chunk.to_be_bytes())
}

pub(crate) fn piece_key(index: u64, piece: u32) -> [u8; 13] {
    numbered(b'p', index, &piece.to_be_bytes())
}

pub(crate) fn marker_key(index: u64) -> [u8; 9] {
    numbered(b'q', index, &[])
}

/// The chain's next value.
pub(crate) fn chain(before: u64, record: &[u8]) -> u64 {
    xxh3_64_with_seed(record, before)
}

/// The marker of a snapshot; its pieces are the chunks of its data.
pub(crate) fn marker(snapshot: &Snapshot) -> Result<Marker, String> {
    let data = snapshot.get_data();
    let pieces = u32::try_from(data.len().div_ceil(CHUNK_BYTES)).map_err(|error| error.to_string())?;
    let metadata = snapshot.get_metadata().write_to_bytes().map_err(|error| error.to_string())?;
    Ok(Marker { pieces, bytes: data.len() as u64, digest: xxh3_64(data), metadata })
}

/// All records of a disk as they are read, in order of key.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) owner: Option<Vec<u8>>,
    pub(crate) head: Option<Vec<u8>>,
    entries: BTreeMap<u64, Vec<Vec<u8>>>,
    pieces: BTreeMap<u64, Vec<u8>>,
    piece_counts: BTreeMap<u64, u32>,
    markers: BTreeMap<u64, Vec<u8>>,
}

/// What a disk needs to know of an entry that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) chunks: u16,
    /// The chain's value at this entry.
    pub(crate) chain: u64,
}

impl Records {
    /// Takes one record. An unknown key is damage.
    pub(crate) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            HEAD => self.head = Some(value.to_vec()),
            OWNER => self.owner = Some(value.to_vec()),
            _ => self.take_numbered(key, value).ok_or_else(|| format!("unknown record {key:02x?}"))?,
        }
        Ok(())
    }

    fn take_numbered(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let (kind, rest) = key.split_first()?;
        let (index, part) = rest.split_first_chunk()?;
        let index = u64::from_be_bytes(*index);
        match (kind, part.len()) {
            (b'e', 2) => self.entries.entry(index).or_default().push(value.to_vec()),
            (b'p', 4) => {
                self.pieces.entry(index).or_default().extend_from_slice(value);
                *self.piece_counts.entry(index).or_default() += 1;
            }
            (b'q', 0) => drop(self.markers.insert(index, value.to_vec())),
            _ => return None,
        }
        Some(())
    }

    /// The snapshot that the head names.
    fn snapshot(&self, index: u64) -> Result<Snapshot, String> {
        let damaged = |what: &str| format!("snapshot of entry {index}: {what}");
        let marker = self.markers.get(&index).ok_or_else(|| damaged("no closing marker"))?;
        let marker: Marker = decode("closing marker", marker).map_err(|error| damaged(&error.to_string()))?;
        let data = self.pieces.get(&index).cloned().unwrap_or_default();
        let pieces = self.piece_counts.get(&index).copied().unwrap_or_default();
        if pieces != marker.pieces || data.len() as u64 != marker.bytes || xxh3_64(&data) != marker.digest {
            return Err(damaged("its pieces do not fit its closing marker"));
        }
        let metadata = SnapshotMetadata::parse_from_bytes(&marker.metadata)
            .map_err(|error| damaged(&error.to_string()))?;
        if metadata.index != index {
            return Err(damaged("its marker is another's"));
        }
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata);
        snapshot.set_data(data.into());
        Ok(snapshot)
    }

    /// What is in force by this head, and what the disk must know of each entry.
    pub(crate) fn stored(&self, head: &Head, founders: Members) -> Result<(Stored, Vec<Held>), String> {
        let mut entries = Vec::new();
        let mut held = Vec::new();
        let mut end = head.base_chain;
        for index in head.base_index + 1..=head.last_index {
            let chunks = self.entries.get(&index).ok_or_else(|| format!("entry {index} is missing"))?;
            let record = chunks.concat();
            end = chain(end, &record);
            let entry =
                Entry::parse_from_bytes(&record).map_err(|error| format!("entry {index}: {error}"))?;
            if entry.index != index {
                return Err(format!("entry {} stands in the place of entry {index}", entry.index));
            }
            entries.push(entry);
            held.push(Held { chunks: u16::try_from(chunks.len()).unwrap_or(u16::MAX), chain: end });
        }
        if end != head.last_chain {
            return Err(format!("the entries up to {} are not those that were written", head.last_index));
        }
        let snapshot = if head.snapshot == 0 { None } else { Some(self.snapshot(head.snapshot)?) };
        let base = Position { term: head.base_term, index: head.base_index };
        let stored = Stored { founders, hard: head.hard(), base, entries, snapshot };
        stored.check()?;
        Ok((stored, held))
    }

    /// Keys of what is not in force: a compacted entry, a half-written or an older snapshot.
    pub(crate) fn leftovers(&self, head: &Head) -> Vec<Vec<u8>> {
        let in_force = head.base_index + 1..=head.last_index;
        let mut keys = Vec::new();
        for (index, chunks) in self.entries.iter().filter(|(index, _)| !in_force.contains(index)) {
            keys.extend((0..=u16::MAX).zip(chunks).map(|(chunk, _)| entry_key(*index, chunk).to_vec()));
        }
        for (index, count) in self.piece_counts.iter().filter(|(index, _)| **index != head.snapshot) {
            keys.extend((0..*count).map(|piece| piece_key(*index, piece).to_vec()));
        }
        for index in self.markers.keys().filter(|index| **index != head.snapshot) {
            keys.push(marker_key(*index).to_vec());
        }
        keys
    }

    /// How many pieces the disk holds of the snapshot in force.
    pub(crate) fn piece_count(&self, head: &Head) -> u32 {
        self.piece_counts.get(&head.snapshot).copied().unwrap_or_default()
    }
}
