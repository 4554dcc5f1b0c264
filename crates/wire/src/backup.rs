//! A backup of what a control group has agreed on, as one file.
//!
//! ```text
//!   "GWBACKUP" │ version u16 │ head (frame) │ state (registry, as in a snapshot) │ digest of all before (16 bytes)
//! ```
//!
//! Always true: the file's length, its version, its digest and its head are checked, in this order, before the state is
//! decoded; a version that this build does not know is refused by name. The digest finds damage; it proves no origin: a
//! backup is to be kept as one keeps the node's key.

use std::collections::BTreeSet;

use godwit_domain::{GroupId, NodeName};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::codec::{self, CodecError, LENGTH_BYTES};
use crate::log::SNAPSHOT_BYTES_MAX;
use crate::session::{CLUSTER_BYTES_MAX, MEMBERS_MAX, SUCCEEDS_MAX};

/// How a backup begins.
const MAGIC: &[u8; 8] = b"GWBACKUP";
/// The version that is written, and the only one that is read.
pub const BACKUP_VERSION: u16 = 1;
/// Bytes of the digest.
const DIGEST_BYTES: usize = 16;
/// Largest head, in bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Largest state, in bytes: version and length of a snapshot, and the snapshot.
const STATE_BYTES_MAX: usize = SNAPSHOT_BYTES_MAX + 64;
/// Largest backup, in bytes.
pub const BACKUP_BYTES_MAX: usize =
    MAGIC.len() + 2 + LENGTH_BYTES + HEAD_BYTES_MAX + STATE_BYTES_MAX + DIGEST_BYTES;

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The cluster's name.
    pub cluster: String,
    /// The group.
    pub group: GroupId,
    /// Those whose places it has taken, the oldest first.
    pub succeeds: Vec<GroupId>,
    /// The node that made it.
    pub node: NodeName,
    /// Who voted.
    pub voters: BTreeSet<NodeName>,
    /// The last entry that is in it.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// When it was made, in milliseconds since the Unix epoch, by the clock of that node.
    pub made_ms: u64,
    /// Nodes in it.
    pub nodes: u64,
    /// Guests in it that are not gone.
    pub guests: u64,
    /// Migrations in it that are not over.
    pub migrations: u64,
}

/// Why a file is no backup that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It is something else.
    #[error("it is no backup of a control group: it does not begin with GWBACKUP")]
    NotOne,
    /// It is too large.
    #[error("it has {bytes} bytes; a backup has at most {BACKUP_BYTES_MAX}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Another release wrote it.
    #[error(
        "its format has version {version}; this build reads {BACKUP_VERSION}: use the release that has made it, or a later one"
    )]
    Version {
        /// What it says.
        version: u16,
    },
    /// It is not what was written.
    #[error("it is damaged or cut short: its digest does not fit")]
    Damaged,
    /// It is what was written, and that makes no sense.
    #[error("it can not be read: {0}")]
    Malformed(String),
}

impl From<CodecError> for BackupError {
    fn from(error: CodecError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// A backup as bytes.
///
/// # Errors
/// If the head or the state is too large.
pub fn encode(head: &Head, state: &[u8]) -> Result<Vec<u8>, BackupError> {
    if state.len() > STATE_BYTES_MAX {
        return Err(BackupError::TooLarge { bytes: state.len() });
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend(BACKUP_VERSION.to_le_bytes());
    bytes.extend(codec::encode_frame("head of a backup", head, HEAD_BYTES_MAX)?);
    bytes.extend_from_slice(state);
    let digest = xxh3_128(&bytes).to_le_bytes();
    bytes.extend(digest);
    Ok(bytes)
}

/// Bytes as a backup: what it is of, and the state, which is not decoded yet.
///
/// # Errors
/// If it is none, was written by another release, or is damaged.
pub fn decode(bytes: &[u8]) -> Result<(Head, &[u8]), BackupError> {
    if bytes.len() > BACKUP_BYTES_MAX {
        return Err(BackupError::TooLarge { bytes: bytes.len() });
    }
    let rest = bytes.strip_prefix(MAGIC).ok_or(BackupError::NotOne)?;
    let (version, rest) = rest.split_first_chunk().ok_or(BackupError::Damaged)?;
    let version = u16::from_le_bytes(*version);
    if version != BACKUP_VERSION {
        return Err(BackupError::Version { version });
    }
    let (written, digest) = bytes.split_last_chunk::<DIGEST_BYTES>().ok_or(BackupError::Damaged)?;
    if xxh3_128(written).to_le_bytes() != *digest {
        return Err(BackupError::Damaged);
    }
    let body = rest.get(..rest.len().saturating_sub(DIGEST_BYTES)).unwrap_or_default();
    let malformed = |what: &str| BackupError::Malformed(what.to_owned());
    let (length, body) = body.split_first_chunk().ok_or_else(|| malformed("it has no head"))?;
    let length = codec::body_length(*length, HEAD_BYTES_MAX)?;
    let (head, state) = body.split_at_checked(length).ok_or_else(|| malformed("its head is cut short"))?;
    let head: Head = codec::decode_body("head of a backup", head)?;
    let too_long = head.cluster.len() > CLUSTER_BYTES_MAX
        || head.voters.len() > MEMBERS_MAX
        || head.succeeds.len() > SUCCEEDS_MAX;
    if too_long {
        return Err(malformed("its head names more than a group has"));
    }
    Ok((head, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            cluster: "lab".to_owned(),
            group: GroupId(7),
            succeeds: vec![GroupId(3)],
            node: "node-a".parse().expect("a name"),
            voters: ["node-a", "node-b"].map(|name| name.parse().expect("a name")).into(),
            index: 90,
            term: 4,
            made_ms: 1,
            nodes: 3,
            guests: 2,
            migrations: 1,
        }
    }

    #[test]
    fn a_backup_reads_back_and_no_byte_of_it_may_be_another() {
        let bytes = encode(&head(), b"the state").expect("encodes");
        assert_eq!(decode(&bytes), Ok((head(), &b"the state"[..])));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            let expected = match at {
                0..8 => BackupError::NotOne,
                8..10 => BackupError::Version { version: u16::from_le_bytes([bad[8], bad[9]]) },
                _ => BackupError::Damaged,
            };
            assert_eq!(decode(&bad), Err(expected), "byte {at}");
        }
        for cut in 0..bytes.len() {
            let error = decode(&bytes[..cut]).expect_err("cut short");
            assert!(matches!(error, BackupError::Damaged | BackupError::NotOne), "{cut}: {error}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(decode(&longer), Err(BackupError::Damaged));
        let none = vec![0; BACKUP_BYTES_MAX + 1];
        assert!(matches!(decode(&none), Err(BackupError::TooLarge { .. })));
    }

    #[test]
    fn a_later_release_is_named() {
        let mut bytes = encode(&head(), b"the state").expect("encodes");
        bytes[8] = 2;
        let error = decode(&bytes).expect_err("of a later release").to_string();
        assert!(error.contains("version 2") && error.contains("reads 1"), "{error}");
    }
}
