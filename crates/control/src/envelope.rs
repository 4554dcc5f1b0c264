//! Messages between voters: a raft message in one envelope, a snapshot in several.
//!
//! ```text
//!   frame (wire::codec) ─▶ Envelope ─┬─ Raft   a protobuf message, without snapshot data
//!                                    └─ Piece  a part of a snapshot's data, and the message it belongs to
//! ```
//!
//! Always true: no envelope is above [`MESSAGE_BYTES_MAX`], no snapshot above [`SNAPSHOT_BYTES_MAX`]; one snapshot
//! is gathered at a time, the newest of which a piece has come; it becomes a message only when all of it is there and
//! its digest fits. A message is looked through before raft sees it, because raft dies of one that it does not expect.

use godwit_wire::codec::{self, Blob, CodecError, LENGTH_BYTES};
use protobuf::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::group::NodeId;
use crate::members;

/// Largest message to a peer: what the fabric takes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Largest entry, refused before it is proposed. A registry entry is a few hundred bytes; manifests are the largest.
pub const ENTRY_BYTES_MAX: usize = 64 << 10;
/// Largest snapshot: a thousand guests with everything known of them are a few MiB.
pub const SNAPSHOT_BYTES_MAX: usize = 64 << 20;
/// Data in a piece: a heartbeat between two pieces waits a few milliseconds on a slow link.
const PIECE_BYTES: usize = 256 << 10;

/// Why bytes of a peer were not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Its envelope can not be read.
    #[error("message of voter {from}")]
    Envelope {
        /// Who sent it.
        from: NodeId,
        /// What is wrong.
        #[source]
        source: CodecError,
    },
    /// It breaks a rule that a voter keeps.
    #[error("message of voter {from}: {rule}")]
    Rule {
        /// Who sent it.
        from: NodeId,
        /// The rule.
        rule: &'static str,
    },
}

#[derive(Debug, Serialize, Deserialize)]
enum Envelope {
    /// A zeroed buffer is no message.
    Nothing,
    Raft(Blob),
    Piece(Piece),
}

#[derive(Debug, Serialize, Deserialize)]
struct Piece {
    message: Blob,
    number: u32,
    count: u32,
    bytes: u64,
    digest: u64,
    data: Blob,
}

fn pack(envelope: &Envelope) -> Result<Vec<u8>, CodecError> {
    codec::encode_frame("control message", envelope, MESSAGE_BYTES_MAX - LENGTH_BYTES)
}

fn unpack(bytes: &[u8]) -> Result<Envelope, CodecError> {
    let malformed = |why: &str| CodecError::Malformed { what: "control message", why: why.to_owned() };
    let (length, body) = bytes.split_first_chunk().ok_or_else(|| malformed("cut short"))?;
    if codec::body_length(*length, MESSAGE_BYTES_MAX - LENGTH_BYTES)? != body.len() {
        return Err(malformed("not as long as it says"));
    }
    codec::decode_body("control message", body)
}

fn message_bytes(message: &Message) -> Result<Blob, CodecError> {
    let malformed =
        |why: protobuf::ProtobufError| CodecError::Malformed { what: "raft message", why: why.to_string() };
    Ok(Blob(message.write_to_bytes().map_err(malformed)?))
}

/// A raft message as what is sent.
pub(crate) fn seal(message: &Message) -> Result<Vec<u8>, CodecError> {
    pack(&Envelope::Raft(message_bytes(message)?))
}

/// A snapshot message, whose data stands beside it, as what is sent.
pub(crate) fn seal_snapshot(message: &Message, data: &[u8]) -> Result<Vec<Vec<u8>>, CodecError> {
    let digest = xxh3_64(data);
    let count = u32::try_from(data.len().div_ceil(PIECE_BYTES).max(1))
        .map_err(|_| CodecError::TooLarge { bytes: data.len(), cap: SNAPSHOT_BYTES_MAX })?;
    (0..count)
        .zip(data.chunks(PIECE_BYTES).chain(std::iter::repeat(&[][..])))
        .map(|(number, part)| {
            let data_bytes = data.len() as u64;
            let message = message_bytes(message)?;
            pack(&Envelope::Piece(Piece {
                message,
                number,
                count,
                bytes: data_bytes,
                digest,
                data: Blob(part.to_vec()),
            }))
        })
        .collect()
}

/// The raft message in what a voter sends, unchecked: for whoever looks on. Of a snapshot's piece, without its data.
pub fn peek(bytes: &[u8]) -> Result<Message, CodecError> {
    let message = match unpack(bytes)? {
        Envelope::Nothing => Vec::new(),
        Envelope::Raft(message) | Envelope::Piece(Piece { message, .. }) => message.0,
    };
    Message::parse_from_bytes(&message)
        .map_err(|why| CodecError::Malformed { what: "raft message", why: why.to_string() })
}

/// Whether what a voter sends is a part of a snapshot: for whoever looks on.
pub fn is_snapshot(bytes: &[u8]) -> bool {
    matches!(unpack(bytes), Ok(Envelope::Piece(_)))
}

/// Opens envelopes, and gathers the pieces of a snapshot.
#[derive(Debug)]
pub(crate) struct Opener {
    me: NodeId,
    gathering: Option<Gathering>,
}

#[derive(Debug)]
struct Gathering {
    key: Key,
    count: u32,
    parts: std::collections::BTreeMap<u32, Vec<u8>>,
}

/// A later leader's snapshot is newer, whatever its index.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    term: u64,
    index: u64,
    bytes: u64,
    digest: u64,
}

impl Opener {
    pub(crate) fn new(me: NodeId) -> Self {
        Self { me, gathering: None }
    }

    /// The message in what a peer sent; `None` for a piece that does not complete its snapshot.
    pub(crate) fn open(&mut self, from: NodeId, bytes: &[u8]) -> Result<Option<Message>, MessageError> {
        let envelope = unpack(bytes).map_err(|source| MessageError::Envelope { from, source })?;
        let rule = |rule| MessageError::Rule { from, rule };
        match envelope {
            Envelope::Nothing => Err(rule("it is empty")),
            Envelope::Raft(Blob(bytes)) => {
                let message = self.message(from, &bytes)?;
                if message.get_msg_type() == MessageType::MsgSnapshot {
                    return Err(rule("a snapshot comes in pieces"));
                }
                Ok(Some(message))
            }
            Envelope::Piece(piece) => {
                let message = self.message(from, &piece.message.0)?;
                if message.get_msg_type() != MessageType::MsgSnapshot {
                    return Err(rule("a piece belongs to a snapshot"));
                }
                self.gather(message, piece).map_err(rule)
            }
        }
    }

    fn message(&self, from: NodeId, bytes: &[u8]) -> Result<Message, MessageError> {
        let message = Message::parse_from_bytes(bytes).map_err(|why| {
            let source = CodecError::Malformed { what: "raft message", why: why.to_string() };
            MessageError::Envelope { from, source }
        })?;
        match broken_rule(&message, from, self.me) {
            Some(rule) => Err(MessageError::Rule { from, rule }),
            None => Ok(message),
        }
    }

    fn gather(&mut self, mut message: Message, piece: Piece) -> Result<Option<Message>, &'static str> {
        let bytes = usize::try_from(piece.bytes).unwrap_or(usize::MAX);
        if bytes > SNAPSHOT_BYTES_MAX {
            return Err("its snapshot is above the limit");
        }
        let expected = bytes.div_ceil(PIECE_BYTES).max(1);
        if usize::try_from(piece.count) != Ok(expected) || piece.number >= piece.count {
            return Err("its pieces do not add up");
        }
        if piece.data.0.len() > PIECE_BYTES {
            return Err("its piece is too large");
        }
        let index = message.get_snapshot().get_metadata().index;
        let key = Key { term: message.term, index, bytes: piece.bytes, digest: piece.digest };
        match &self.gathering {
            Some(gathering) if key < gathering.key => return Ok(None),
            Some(gathering) if key == gathering.key => {}
            _ => self.gathering = Some(Gathering { key, count: piece.count, parts: Default::default() }),
        }
        let Some(gathering) = &mut self.gathering else { return Ok(None) };
        gathering.parts.insert(piece.number, piece.data.0);
        if gathering.parts.len() as u64 != u64::from(gathering.count) {
            return Ok(None);
        }
        let data: Vec<u8> =
            self.gathering.take().into_iter().flat_map(|g| g.parts.into_values()).flatten().collect();
        if data.len() != bytes || xxh3_64(&data) != piece.digest {
            return Err("its snapshot does not fit its digest");
        }
        message.mut_snapshot().set_data(data.into());
        Ok(Some(message))
    }
}

/// What raft takes for granted and a peer's bytes need not keep.
fn broken_rule(message: &Message, from: NodeId, me: NodeId) -> Option<&'static str> {
    use MessageType as Type;
    if message.from != from.get() {
        return Some("it speaks for another voter");
    }
    if message.to != me.get() {
        return Some("it is for another voter");
    }
    let is_read = message.get_msg_type() == Type::MsgReadIndex;
    if (message.term == 0) != is_read {
        return Some("it has the wrong kind of term");
    }
    if message.get_msg_type() != Type::MsgSnapshot && message.has_snapshot() {
        return Some("it carries a snapshot and is none");
    }
    match message.get_msg_type() {
        Type::MsgAppend => {
            let follows = (message.index + 1..).zip(message.get_entries()).all(|(index, entry)| {
                entry.index == index
                    && entry.term <= message.term
                    && entry.data.len() <= ENTRY_BYTES_MAX
                    && match entry.get_entry_type() {
                        EntryType::EntryNormal => true,
                        EntryType::EntryConfChangeV2 => members::read(&entry.data).is_ok(),
                        EntryType::EntryConfChange => false,
                    }
            });
            (!follows).then_some("its entries do not follow one another")
        }
        Type::MsgReadIndex | Type::MsgReadIndexResp => {
            (message.get_entries().len() != 1).then_some("it asks more or less than one question")
        }
        Type::MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            let conf = metadata.get_conf_state();
            let is_one =
                !conf.voters.is_empty() && conf.voters_outgoing.is_empty() && conf.learners_next.is_empty();
            (metadata.index == 0 || !is_one).then_some("its snapshot is of nothing")
        }
        Type::MsgAppendResponse
        | Type::MsgRequestVote
        | Type::MsgRequestVoteResponse
        | Type::MsgHeartbeat
        | Type::MsgHeartbeatResponse
        | Type::MsgRequestPreVote
        | Type::MsgRequestPreVoteResponse
        | Type::MsgTimeoutNow => None,
        Type::MsgHup
        | Type::MsgBeat
        | Type::MsgPropose
        | Type::MsgUnreachable
        | Type::MsgSnapStatus
        | Type::MsgCheckQuorum
        | Type::MsgTransferLeader => Some("it is of a kind that voters do not send"),
    }
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::Entry;

    use super::*;

    fn id(id: u64) -> NodeId {
        NodeId::new(id).expect("not 0")
    }

    fn message(kind: MessageType) -> Message {
        let mut message = Message::default();
        message.set_msg_type(kind);
        message.from = 1;
        message.to = 2;
        message.term = 3;
        message
    }

    fn snapshot(index: u64) -> Message {
        let mut message = message(MessageType::MsgSnapshot);
        let metadata = message.mut_snapshot().mut_metadata();
        metadata.index = index;
        metadata.mut_conf_state().voters = vec![1, 2];
        message
    }

    #[test]
    fn messages_arrive_as_sent() {
        let mut append = message(MessageType::MsgAppend);
        append.index = 6;
        let mut entry = Entry::default();
        (entry.index, entry.term, entry.data) = (7, 3, vec![1; ENTRY_BYTES_MAX].into());
        append.mut_entries().push(entry);
        let bytes = seal(&append).expect("seals");
        assert_eq!(Opener::new(id(2)).open(id(1), &bytes), Ok(Some(append)));
    }

    #[test]
    fn a_snapshot_is_whole_or_not_there() {
        let data: Vec<u8> = (0..700_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let sent = snapshot(9);
        let mut pieces = seal_snapshot(&sent, &data).expect("seals");
        assert!(pieces.len() == 3 && pieces.iter().all(|piece| piece.len() <= MESSAGE_BYTES_MAX));
        let mut opener = Opener::new(id(2));
        // Backwards, one of them twice, and one of an older snapshot between.
        let old = seal_snapshot(&snapshot(8), &data).expect("seals").remove(0);
        for piece in [&pieces[2], &pieces[1], &pieces[2], &old] {
            assert_eq!(opener.open(id(1), piece), Ok(None));
        }
        let whole = opener.open(id(1), &pieces[0]).expect("opens").expect("is whole");
        assert_eq!(whole.get_snapshot().get_data(), data);
        assert_eq!(whole.get_snapshot().get_metadata().index, 9);
        // A flipped bit is found.
        let last = pieces[1].len() - 1;
        pieces[1][last] ^= 1;
        let results: Vec<_> = pieces.iter().map(|piece| opener.open(id(1), piece)).collect();
        assert!(matches!(results[2], Err(MessageError::Rule { .. })), "{:?}", results[2]);
        // An empty state is a snapshot too.
        let empty = seal_snapshot(&snapshot(10), &[]).expect("seals");
        assert!(empty.len() == 1 && matches!(opener.open(id(1), &empty[0]), Ok(Some(_))));
    }

    #[test]
    fn what_raft_would_die_of_is_refused() {
        let mut gap = message(MessageType::MsgAppend);
        gap.mut_entries().push(Entry::default());
        let mut local = message(MessageType::MsgAppend);
        local.term = 0;
        let mut other = message(MessageType::MsgHeartbeat);
        other.from = 3;
        let mut misled = message(MessageType::MsgHeartbeat);
        misled.to = 3;
        let no_question = {
            let mut message = message(MessageType::MsgReadIndex);
            message.term = 0;
            message
        };
        let kinds = [MessageType::MsgPropose, MessageType::MsgHup, MessageType::MsgTransferLeader];
        for bad in kinds.map(message).into_iter().chain([gap, local, other, misled, no_question, snapshot(4)])
        {
            let bytes = seal(&bad).expect("seals");
            let result = Opener::new(id(2)).open(id(1), &bytes);
            assert!(matches!(result, Err(MessageError::Rule { .. })), "{bad:?} gave {result:?}");
        }
        for bytes in [&[][..], &[0; 4], &[1, 0, 0, 0, 0], &[0xff; 64], &vec![0; MESSAGE_BYTES_MAX + 1]] {
            assert!(Opener::new(id(2)).open(id(1), bytes).is_err());
        }
    }
}
