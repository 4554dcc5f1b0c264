//! A batch: a few runs of pages on a page stream.
//!
//! ```text
//!   head, 48 bytes, little endian          run table, 8 bytes a run      payload
//!   magic "GWPB"        u32                first page    u32             the bytes of the raw runs,
//!   run count           u16                page count    u16             in the order of the table;
//!   round               u16                class         u8              packed: as one LZ4 block
//!   session             u64                0             u8
//!   sequence            u64
//!   payload bytes       u32   of the raw runs, as they are in memory
//!   packed bytes        u32   0: the payload follows as it is; else that block's length, below the payload's
//!   digest              u64   xxh3 of head (digest 0), table and the payload as it is in memory
//!   0                   u64
//! ```
//!
//! Whoever packs and unpacks is elsewhere: here is only how long it may be, before and after.
//!
//! Self-contained, so any stream may carry it and any order will do: it names its session and round, and a
//! target ignores what is older than what it has.
//!
//! Always true of a [`Batch`] that was decoded: runs ascend and do not touch backwards, none is empty, all lie
//! inside the guest, the payload is as long as the raw runs say, and the digest fits. It covers what is written to
//! memory, so that what packing or unpacking broke is found too.

use godwit_domain::{PAGE_SIZE, PageRun, Round};
use xxhash_rust::xxh3::Xxh3;

use crate::migration::SessionId;

/// Most pages in a batch: 1 MiB of payload, the chunk size at which QUIC costs least per byte.
pub const BATCH_PAGES_MAX: u32 = 256;

/// Bytes of a batch's head.
pub const HEAD_BYTES: usize = 48;
/// Bytes of an entry of the run table.
pub const RUN_BYTES: usize = 8;
/// Where the digest stands in the head.
const DIGEST_AT: usize = 32;
const MAGIC: u32 = u32::from_le_bytes(*b"GWPB");

/// What stands in for the pages of a run. 0 is never valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Their bytes are in the payload.
    Raw,
    /// They are all zeros; no bytes.
    Zero,
}

/// Consecutive pages of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassedRun {
    /// Which pages.
    pub run: PageRun,
    /// What they are.
    pub class: Class,
}

/// The head and table of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The page session.
    pub session: SessionId,
    /// The round in which its pages were read.
    pub round: Round,
    /// Its number on this connection, from 0.
    pub sequence: u64,
    /// Its pages.
    pub runs: Vec<ClassedRun>,
}

/// Why bytes are no batch. Every one closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Not a batch.
    #[error("page stream out of step: expected a batch, got {0:#010x}")]
    Magic(u32),
    /// The counts in the head break a rule.
    #[error("batch head: {0}")]
    Head(&'static str),
    /// An entry of the table breaks a rule.
    #[error("batch run {index}: {rule}")]
    Run {
        /// Which entry.
        index: usize,
        /// The rule.
        rule: &'static str,
    },
    /// The packed payload is no block that gives exactly the payload.
    #[error("batch {sequence} of round {round}: the packed payload is no LZ4 block of exactly {want} bytes")]
    Packed {
        /// The batch's number.
        sequence: u64,
        /// Its round.
        round: Round,
        /// Bytes that it must give.
        want: u32,
    },
    /// The bytes are not those that were sent.
    #[error("batch {sequence} of round {round}: checksum {got:#018x}, expected {want:#018x}")]
    Digest {
        /// The batch's number.
        sequence: u64,
        /// Its round.
        round: Round,
        /// What was computed.
        got: u64,
        /// What the head says.
        want: u64,
    },
}

/// What a head says, before its table and payload are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    run_count: u16,
    round: Round,
    session: SessionId,
    sequence: u64,
    payload_bytes: u32,
    packed_bytes: u32,
    digest: u64,
}

impl Batch {
    /// Pages in it.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.run.count.0)).sum()
    }

    /// Head and table for a payload that was read for these runs. `packed` is how long the block is that follows in
    /// its place, if one does: shorter than the payload, not empty.
    pub fn encode(&self, payload: &[u8], packed: Option<u32>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + RUN_BYTES * self.runs.len());
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        let run_count = u16::try_from(self.runs.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&run_count.to_le_bytes());
        bytes.extend_from_slice(&self.round.0.to_le_bytes());
        bytes.extend_from_slice(&self.session.0.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&payload_bytes.to_le_bytes());
        bytes.extend_from_slice(&packed.unwrap_or(0).to_le_bytes());
        bytes.resize(HEAD_BYTES, 0);
        for ClassedRun { run, class } in &self.runs {
            bytes.extend_from_slice(&run.first.0.to_le_bytes());
            bytes.extend_from_slice(&u16::try_from(run.count.0).unwrap_or(u16::MAX).to_le_bytes());
            let class = match class {
                Class::Raw => 1,
                Class::Zero => 2,
            };
            bytes.extend_from_slice(&[class, 0]);
        }
        let digest = digest_of(&bytes, payload).to_le_bytes();
        bytes.splice(DIGEST_AT..DIGEST_AT + digest.len(), digest);
        bytes
    }
}

impl Head {
    /// Reads a head and checks its counts.
    pub fn decode(bytes: &[u8; HEAD_BYTES]) -> Result<Self, BatchError> {
        let u16_at = |at: usize| u16::from_le_bytes(array(bytes, at));
        let u32_at = |at: usize| u32::from_le_bytes(array(bytes, at));
        let u64_at = |at: usize| u64::from_le_bytes(array(bytes, at));
        if u32_at(0) != MAGIC {
            return Err(BatchError::Magic(u32_at(0)));
        }
        let head = Self {
            run_count: u16_at(4),
            round: Round(u16_at(6)),
            session: SessionId(u64_at(8)),
            sequence: u64_at(16),
            payload_bytes: u32_at(24),
            packed_bytes: u32_at(28),
            digest: u64_at(DIGEST_AT),
        };
        if head.run_count == 0 || u32::from(head.run_count) > BATCH_PAGES_MAX {
            return Err(BatchError::Head("it must hold 1 to 256 runs"));
        }
        if head.round == Round::NONE {
            return Err(BatchError::Head("round 0 does not exist"));
        }
        if head.payload_bytes > BATCH_PAGES_MAX * 4096 || !head.payload_bytes.is_multiple_of(4096) {
            return Err(BatchError::Head("its payload must be whole pages, at most 256"));
        }
        if head.packed_bytes != 0 && head.packed_bytes >= head.payload_bytes {
            return Err(BatchError::Head("a packed payload must be shorter than it is unpacked"));
        }
        if u64_at(40) != 0 {
            return Err(BatchError::Head("reserved bytes must be 0"));
        }
        Ok(head)
    }

    /// Bytes of the table that follows.
    pub fn table_bytes(&self) -> usize {
        usize::from(self.run_count) * RUN_BYTES
    }

    /// Bytes of the payload as it is in memory: whole pages, at most 1 MiB.
    pub fn payload_bytes(&self) -> usize {
        usize::try_from(self.payload_bytes).unwrap_or(usize::MAX)
    }

    /// Bytes of the block that follows the table in place of the payload, at most as long; `None`: the payload
    /// itself follows.
    pub fn packed_bytes(&self) -> Option<usize> {
        (self.packed_bytes != 0).then(|| usize::try_from(self.packed_bytes).unwrap_or(usize::MAX))
    }

    /// Says that the block was not what the head promised: `packed_bytes` that unpack to the payload's length.
    pub fn not_unpacked(&self) -> BatchError {
        let (sequence, round) = (self.sequence, self.round);
        BatchError::Packed { sequence, round, want: self.payload_bytes }
    }

    /// Checks the table and the digest: the batch is then what was sent.
    ///
    /// `payload` is as it is in memory, unpacked; `pages` is the guest's size.
    pub fn complete(
        &self,
        head: &[u8; HEAD_BYTES],
        table: &[u8],
        payload: &[u8],
        pages: u32,
    ) -> Result<Batch, BatchError> {
        let mut bytes = head.to_vec();
        bytes.splice(DIGEST_AT..DIGEST_AT + 8, [0; 8]);
        bytes.extend_from_slice(table);
        let got = digest_of(&bytes, payload);
        if got != self.digest {
            let (sequence, round) = (self.sequence, self.round);
            return Err(BatchError::Digest { sequence, round, got, want: self.digest });
        }
        let runs = decode_table(table, payload.len(), pages)?;
        Ok(Batch { session: self.session, round: self.round, sequence: self.sequence, runs })
    }
}

fn decode_table(table: &[u8], payload_bytes: usize, pages: u32) -> Result<Vec<ClassedRun>, BatchError> {
    let mut runs = Vec::with_capacity(table.len() / RUN_BYTES);
    let (mut from, mut raw_pages) = (0, 0_usize);
    for (index, entry) in table.chunks_exact(RUN_BYTES).enumerate() {
        let broken = |rule| BatchError::Run { index, rule };
        let run =
            PageRun::new(u32::from_le_bytes(array(entry, 0)), u32::from(u16::from_le_bytes(array(entry, 4))));
        let [class, reserved] = array(entry, 6);
        let class = match class {
            1 => Class::Raw,
            2 => Class::Zero,
            _ => return Err(broken("unknown class; this version knows 1 (raw) and 2 (zero)")),
        };
        if reserved != 0 {
            return Err(broken("reserved byte must be 0"));
        }
        if run.count.0 == 0 || u64::from(run.first.0) < from {
            return Err(broken("runs must not be empty and must ascend"));
        }
        if run.end() > u64::from(pages) {
            return Err(broken("it lies outside the guest's memory"));
        }
        from = run.end();
        if class == Class::Raw {
            raw_pages += run.count.0 as usize;
        }
        runs.push(ClassedRun { run, class });
    }
    if raw_pages * PAGE_SIZE != payload_bytes {
        return Err(BatchError::Head("the payload is not as long as its raw runs"));
    }
    Ok(runs)
}

fn digest_of(head_and_table: &[u8], payload: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(head_and_table);
    hasher.update(payload);
    hasher.digest()
}

/// `N` bytes of a slice that is known to be long enough; zeros where it is not, which no check accepts.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: u32 = 1000;

    fn sample() -> (Batch, Vec<u8>) {
        let runs = vec![
            ClassedRun { run: PageRun::new(0, 1), class: Class::Zero },
            ClassedRun { run: PageRun::new(1, 2), class: Class::Raw },
            ClassedRun { run: PageRun::new(999, 1), class: Class::Raw },
        ];
        let batch = Batch { session: SessionId(7), round: Round(2), sequence: 9, runs };
        (batch, (0..3 * PAGE_SIZE).map(|i| u8::try_from(i % 251).unwrap_or(0)).collect())
    }

    fn decode(bytes: &[u8], payload: &[u8], pages: u32) -> Result<Batch, BatchError> {
        let (head_bytes, table) = bytes.split_first_chunk().expect("a head");
        let head = Head::decode(head_bytes)?;
        head.complete(head_bytes, table.get(..head.table_bytes()).unwrap_or(table), payload, pages)
    }

    #[test]
    fn a_batch_reads_back() {
        let (batch, payload) = sample();
        assert_eq!(decode(&batch.encode(&payload, None), &payload, PAGES), Ok(batch.clone()));
        assert_eq!(batch.pages(), 4);
    }

    #[test]
    fn any_changed_bit_is_found() {
        let (batch, payload) = sample();
        let bytes = batch.encode(&payload, None);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&changed, &payload, PAGES).is_err(), "bit {bit}");
        }
        let mut changed = payload.clone();
        changed[5000] ^= 1;
        assert!(matches!(decode(&bytes, &changed, PAGES), Err(BatchError::Digest { .. })));
    }

    #[test]
    fn rules_are_named() {
        let (good, payload) = sample();
        let broken = |change: &dyn Fn(&mut Batch)| {
            let mut batch = good.clone();
            change(&mut batch);
            decode(&batch.encode(&payload, None), &payload, PAGES).expect_err("broken").to_string()
        };
        for (message, change) in [
            ("outside", &(|b: &mut Batch| b.runs[2].run = PageRun::new(1000, 1)) as &dyn Fn(&mut Batch)),
            ("ascend", &|b| b.runs[2].run = PageRun::new(2, 1)),
            ("ascend", &|b| b.runs[0].run.count.0 = 0),
            ("as long as", &|b| b.runs[0].class = Class::Raw),
            ("1 to 256", &|b| b.runs.clear()),
            ("round 0", &|b| b.round = Round::NONE),
        ] {
            assert!(broken(change).contains(message), "{message}: {}", broken(change));
        }
    }

    #[test]
    fn a_packed_payload_is_covered_as_it_is_in_memory() {
        let (batch, payload) = sample();
        let bytes = batch.encode(&payload, Some(77));
        let head = Head::decode(bytes.first_chunk().expect("a head")).expect("a head");
        assert_eq!((head.payload_bytes(), head.packed_bytes()), (payload.len(), Some(77)));
        assert_eq!(decode(&bytes, &payload, PAGES), Ok(batch.clone()));
        let plain = batch.encode(&payload, None);
        assert_eq!(Head::decode(plain.first_chunk().expect("a head")).expect("a head").packed_bytes(), None);
        let mut changed = plain;
        changed[28] = 77;
        assert!(matches!(decode(&changed, &payload, PAGES), Err(BatchError::Digest { .. })));
    }

    #[test]
    fn packing_never_lengthens() {
        let (batch, payload) = sample();
        let whole = u32::try_from(payload.len()).expect("small");
        for (packed, fits) in
            [(1, true), (whole - 1, true), (whole, false), (whole + 1, false), (u32::MAX, false)]
        {
            let bytes = batch.encode(&payload, Some(packed));
            let head = Head::decode(bytes.first_chunk().expect("a head"));
            assert_eq!(head.is_ok(), fits, "{packed} bytes for {whole}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), HEAD_BYTES..200), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic {
                bytes.splice(..4, MAGIC.to_le_bytes());
            }
            let _ = decode(&bytes, &[], PAGES);
        }
    }
}
