//! What the tests of this crate share: small groups, entries, and a machine that keeps what it was given.
#![allow(dead_code, reason = "each test takes what it needs")]

pub(crate) mod group;
pub(crate) mod world;

use godwit_control::group::{Identity, NodeId, Voters};
use godwit_control::machine::{RestoreError, StateMachine};
use raft::eraftpb::{Entry, HardState, Snapshot};

/// Voter `n`.
pub(crate) fn id(n: u64) -> NodeId {
    NodeId::new(n).expect("not 0")
}

/// Voters 1, 2, 3.
pub(crate) fn voters() -> Voters {
    Voters::new((1..=3).map(|n| (id(n), format!("node-{n}").parse().expect("a name")))).expect("a group")
}

/// Voter `n` of the test's cluster.
pub(crate) fn identity(n: u64) -> Identity {
    Identity::new("test", id(n), voters()).expect("a voter")
}

/// An entry of so many bytes.
pub(crate) fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let fill = u8::try_from((term * 31 + index * 7) % 251).expect("below 251");
    Entry { term, index, data: vec![fill; bytes].into(), ..Entry::default() }
}

/// A hard state.
pub(crate) fn hard(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

/// A snapshot at an entry.
pub(crate) fn snapshot(term: u64, index: u64, data: Vec<u8>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = index;
    snapshot.mut_metadata().term = term;
    snapshot.mut_metadata().mut_conf_state().voters = voters().numbers();
    snapshot.set_data(data.into());
    snapshot
}

/// Keeps every entry; replies with how many there are.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// Index and entry, in order.
    pub(crate) entries: Vec<(u64, Vec<u8>)>,
}

impl StateMachine for Ledger {
    type Reply = usize;

    fn apply(&mut self, index: u64, entry: &[u8]) -> usize {
        assert_ne!(entry, b"poison", "the state machine does not survive this entry");
        self.entries.push((index, entry.to_vec()));
        self.entries.len()
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, entry) in &self.entries {
            bytes.extend_from_slice(&index.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(entry.len()).expect("small").to_le_bytes());
            bytes.extend_from_slice(entry);
        }
        bytes
    }

    fn restore(&mut self, _: u64, mut snapshot: &[u8]) -> Result<(), RestoreError> {
        let cut = || RestoreError::new("cut short");
        self.entries.clear();
        while !snapshot.is_empty() {
            let (index, rest) = snapshot.split_first_chunk().ok_or_else(cut)?;
            let (length, rest) = rest.split_first_chunk().ok_or_else(cut)?;
            let length = usize::try_from(u32::from_le_bytes(*length)).expect("64 bit");
            let (entry, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
            self.entries.push((u64::from_le_bytes(*index), entry.to_vec()));
            snapshot = rest;
        }
        Ok(())
    }
}

/// Says why a test that needs something of its machine did not run; fails where tests must run.
pub(crate) fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
    assert!(
        std::env::var_os("GODWIT_TESTS_MUST_RUN").is_none_or(|must| must != "1"),
        "must run here, but {why}"
    );
}

/// The seeds of a random test: so many, or those of `GODWIT_SEEDS=from..to`. A failure prints the line that replays it.
pub(crate) fn for_each_seed(test: &str, count: u64, mut run: impl FnMut(u64)) {
    let range = std::env::var("GODWIT_SEEDS").ok();
    let range = range.as_deref().and_then(|range| range.split_once(".."));
    let (from, to) = range.map_or((0, count), |(from, to)| {
        (from.parse().expect("from"), to.parse().expect("GODWIT_SEEDS=from..to"))
    });
    for seed in from..to {
        let run = std::panic::AssertUnwindSafe(|| run(seed));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!(
                "replay: GODWIT_SEEDS={seed}..{} cargo test -p godwit-control {test} -- --nocapture",
                seed + 1
            );
            std::panic::resume_unwind(panic);
        }
    }
}
