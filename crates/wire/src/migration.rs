//! What the two sides of a migration say on their control stream.
//!
//! ```text
//!   source                                   target
//!   greeting (8 bytes), Preamble ──────────▶              on two connections: one for pages in bulk, and one for all else
//!            ◀────────── Welcome | Refused
//!            ◀────────── Held … (what it has, if this session was here before)
//!   Round …  ──────────▶                     pages come on the page streams, see `batch`
//!            ◀────────── Ack …
//!   State …, Digests …, Final ─────────────▶
//!            ◀────────── Complete | Failed
//!            ◀────────── Fetch …            post-copy: pages that somebody waits for
//!   Audit    ──────────▶                     stop-and-copy, once the guest runs at the target: piece by piece
//!            ◀────────── Audited | NotAudited
//! ```
//!
//! Always true: the greeting's layout never changes, so any version can refuse any other by name; no frame's
//! body is above [`FRAME_BYTES_MAX`]; long things come in pieces.

use std::fmt;

use godwit_domain::{Epoch, GuestName, InstanceId, MigrationId, NodeName, Round};
use serde::{Deserialize, Serialize};

pub use godwit_domain::ownership::Mode;

use crate::codec::Blob;

/// Largest body of a control frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 64 << 10;

/// Largest preamble, in bytes: names of at most 63 bytes and a few numbers.
pub const PREAMBLE_BYTES_MAX: usize = 1024;

/// Largest piece of device state or stamps in one frame, in bytes.
pub const PIECE_BYTES_MAX: usize = 32 << 10;

/// Pages whose stamps are digested and compared together: 16 KiB of stamps, 32 MiB of guest.
pub const SEGMENT_PAGES: u32 = 8192;

/// Most pages whose digests are compared at once: 16 MiB of guest.
pub const AUDIT_PAGES_MAX: u32 = 4096;

/// Most pages that are fetched at once: one batch.
pub const FETCH_PAGES_MAX: u32 = crate::batch::BATCH_PAGES_MAX;

/// The version of everything that follows the greeting.
pub const PROTOCOL_VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"GDWT";

/// Bytes of a greeting.
pub const GREETING_BYTES: usize = 8;

/// What a connection is for. 0 is never valid, so zeroed bytes greet nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A migration's control stream and the pages that somebody waits for, on the migration address.
    Migration,
    /// The other pages of a migration, on the migration address too. Its preamble is that of the connection it belongs to.
    Pages,
    /// One voter's messages to another, on the control address; see [`crate::session`].
    Peer,
    /// A node and the voter that leads, on the control address; see [`crate::session`].
    Session,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Migration => "migration",
            Self::Pages => "migration's pages",
            Self::Peer => "peer",
            Self::Session => "session",
        })
    }
}

/// Why a greeting was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GreetingError {
    /// Something else speaks here.
    #[error("not a godwit peer: the first bytes are {0:02x?}, not \"GDWT\"")]
    Magic([u8; 4]),
    /// Another version.
    #[error("peer speaks protocol version {0}, this node speaks {ours}", ours = spoken_version())]
    Version(u16),
    /// A role that does not exist.
    #[error("peer asks for role {0}; this version knows 1 (migration), 2 (peer), 3 (session) and 4 (pages)")]
    Role(u16),
}

impl Role {
    /// The first bytes of a connection.
    pub fn greeting(self) -> [u8; GREETING_BYTES] {
        let role: u16 = match self {
            Self::Migration => 1,
            Self::Peer => 2,
            Self::Session => 3,
            Self::Pages => 4,
        };
        let [m0, m1, m2, m3] = MAGIC;
        let [v0, v1] = spoken_version().to_le_bytes();
        let [r0, r1] = role.to_le_bytes();
        [m0, m1, m2, m3, v0, v1, r0, r1]
    }

    /// Reads the first bytes of a connection.
    pub fn read_greeting(bytes: [u8; GREETING_BYTES]) -> Result<Self, GreetingError> {
        let [m0, m1, m2, m3, v0, v1, r0, r1] = bytes;
        let magic = [m0, m1, m2, m3];
        let version = u16::from_le_bytes([v0, v1]);
        let role = u16::from_le_bytes([r0, r1]);
        match (magic, role) {
            (MAGIC, _) if version != spoken_version() => Err(GreetingError::Version(version)),
            (MAGIC, 1) => Ok(Self::Migration),
            (MAGIC, 2) => Ok(Self::Peer),
            (MAGIC, 3) => Ok(Self::Session),
            (MAGIC, 4) => Ok(Self::Pages),
            (MAGIC, other) => Err(GreetingError::Role(other)),
            (other, _) => Err(GreetingError::Magic(other)),
        }
    }
}

/// The version that this process speaks: in tests, one may be of the next release.
fn spoken_version() -> u16 {
    PROTOCOL_VERSION + u16::from(godwit_domain::planted::is_on("later-protocol"))
}

/// One page session: drawn at random by the source's process when it arms its tracker. A restarted source
/// draws another, and with it everything that the target holds is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// What must fit before the first page is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preamble {
    /// The migration.
    pub migration: MigrationId,
    /// The guest.
    pub guest: GuestName,
    /// The source's name; its certificate must carry it.
    pub source: NodeName,
    /// The present epoch.
    pub epoch: Epoch,
    /// The target's runner, as accepted: random, so knowing it proves the agreement.
    pub token: InstanceId,
    /// The page session.
    pub session: SessionId,
    /// Which link of the session this is, from 1: tells which two connections belong together.
    pub link: u64,
    /// Size of guest RAM in bytes.
    pub memory_bytes: u64,
    /// Page size in bytes.
    pub page_bytes: u64,
}

/// Which part of a preamble did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mismatch {
    /// No such migration is expected here.
    Migration,
    /// The token is not that of the runner.
    Token,
    /// The epoch is over.
    Epoch,
    /// Memory or page size differ.
    Shape,
}

/// What the source says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceFrame {
    /// A round begins. For progress only: batches name their round themselves.
    Round {
        /// The round.
        round: Round,
        /// Pages it begins with.
        pages: u32,
    },
    /// A piece of the device state, in order, before [`Self::Final`].
    State(Blob),
    /// Digests of the stamps that the target must hold, from `first_segment` on, before [`Self::Final`].
    Digests {
        /// The first segment.
        first_segment: u32,
        /// One digest a segment.
        digests: Vec<u64>,
    },
    /// The stamps of a segment that the target must hold, little endian, before a post-copy [`Self::Final`].
    Required {
        /// The segment.
        segment: u32,
        /// Two bytes a page, as one block of LZ4: most stamps are alike, and the guest stands still meanwhile.
        stamps: Blob,
    },
    /// Digests of pages as they stood when the guest stopped here, one a page, from `first` on: at most
    /// [`AUDIT_PAGES_MAX`], in order, each frame after the answer to the one before.
    Audit {
        /// The first page.
        first: u32,
        /// One digest a page, [`page_digest`].
        digests: Vec<u64>,
    },
    /// The guest stands still, sealed. Nothing can be started without this frame.
    Final(Final),
}

/// The end of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Final {
    /// The sealed epoch.
    pub epoch: Epoch,
    /// The last round.
    pub round: Round,
    /// Bytes of device state that came before.
    pub state_bytes: u32,
    /// Digest of the device state.
    pub state_digest: u64,
    /// Batches sent over this connection, to tell "still on the way" from "will never come".
    pub batches: u64,
    /// How the missing pages come.
    pub mode: Mode,
    /// Digests will follow once the guest runs at the target: what it writes there is to be known.
    pub audit: bool,
}

/// What the target says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetFrame {
    /// The preamble fits. `held`: this session was here before, and [`Self::Held`] frames follow.
    Welcome {
        /// Whether stamps of this session are held.
        held: bool,
    },
    /// The preamble does not fit; the connection closes.
    Refused {
        /// What does not fit.
        mismatch: Mismatch,
        /// A sentence for people.
        message: String,
    },
    /// The stamps of a segment as held, little endian.
    Held {
        /// The segment.
        segment: u32,
        /// Two bytes a page.
        stamps: Blob,
        /// Whether this is the last segment.
        last: bool,
    },
    /// So much has been written to the guest's memory over this connection.
    Ack {
        /// Batches.
        batches: u64,
        /// Their pages.
        pages: u64,
    },
    /// Every page and the device state of this epoch are here and loaded.
    Complete {
        /// The sealed epoch.
        epoch: Epoch,
    },
    /// Somebody waits for the first of these pages: they go before all others. In post-copy.
    Fetch {
        /// The first page.
        first: u32,
        /// How many, 1 to [`FETCH_PAGES_MAX`].
        pages: u32,
    },
    /// The pages that the last [`SourceFrame::Audit`] was about were compared.
    Audited {
        /// The first of them.
        first: u32,
        /// Pages that the guest had not written.
        checked: u32,
        /// Of them, those that are not alike.
        mismatched: u32,
    },
    /// There is nothing to compare with here.
    NotAudited {
        /// Why, for people.
        message: String,
    },
    /// It can not go on.
    Failed {
        /// Why, for people.
        message: String,
    },
}

/// Digest of one segment's stamps (xxh3, 64 bits, over two little-endian bytes a page).
pub fn stamps_digest(stamps: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(stamps)
}

/// Digest of a page, to find what was sent or tracked wrong; no defence against anybody.
pub fn page_digest(page: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(page)
}

/// Digest of a device state.
pub fn state_digest(state: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn a_greeting_of_anything_else_is_refused_by_name() {
        for (role, bytes) in [
            (Role::Migration, *b"GDWT\x01\x00\x01\x00"),
            (Role::Peer, *b"GDWT\x01\x00\x02\x00"),
            (Role::Session, *b"GDWT\x01\x00\x03\x00"),
            (Role::Pages, *b"GDWT\x01\x00\x04\x00"),
        ] {
            assert_eq!(role.greeting(), bytes);
            assert_eq!(Role::read_greeting(bytes), Ok(role));
        }
        assert_eq!(Role::read_greeting([0; 8]), Err(GreetingError::Magic([0; 4])));
        assert_eq!(Role::read_greeting(*b"GDWT\x02\x00\x01\x00"), Err(GreetingError::Version(2)));
        assert_eq!(Role::read_greeting(*b"GDWT\x01\x00\x00\x00"), Err(GreetingError::Role(0)));
        assert_eq!(Role::read_greeting(*b"GDWT\x01\x00\x05\x00"), Err(GreetingError::Role(5)));
        assert_eq!(Role::read_greeting(*b"GDWT\x01\x00\x01\x01"), Err(GreetingError::Role(0x101)));
    }

    #[test]
    fn the_largest_pieces_fit_into_a_frame() {
        let piece = Blob(vec![0xff; PIECE_BYTES_MAX]);
        let digests = vec![u64::MAX; PIECE_BYTES_MAX / 8];
        let pages = vec![u64::MAX; AUDIT_PAGES_MAX as usize];
        for frame in [
            SourceFrame::State(piece.clone()),
            SourceFrame::Digests { first_segment: u32::MAX, digests },
            SourceFrame::Audit { first: u32::MAX, digests: pages },
        ] {
            codec::encode_frame("frame", &frame, FRAME_BYTES_MAX).expect("fits");
        }
        assert!(SEGMENT_PAGES as usize * 2 <= PIECE_BYTES_MAX);
        let label = "a".repeat(63);
        let preamble = Preamble {
            migration: label.parse().expect("name"),
            guest: format!("{label}/{label}").parse().expect("name"),
            source: label.parse().expect("name"),
            epoch: Epoch(u64::MAX),
            token: InstanceId::from_random([0xff; 16]),
            session: SessionId(u64::MAX),
            link: u64::MAX,
            memory_bytes: u64::MAX,
            page_bytes: u64::MAX,
        };
        let bytes = codec::encode_frame("preamble", &preamble, PREAMBLE_BYTES_MAX).expect("fits");
        assert_eq!(codec::decode_body("preamble", &bytes[codec::LENGTH_BYTES..]), Ok(preamble));
    }
}
