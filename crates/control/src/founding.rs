//! A group that is founded on a state that is there already: by one member, on an empty disk, while nobody runs on it.
//!
//! ```text
//!   a voter's disk ─ replay ─▶ the state machine after its last entry ─┐
//!   a backup ──────────────────────────────────────────────────────────┴─ found ─▶ snapshot │ one entry, agreed
//! ```
//!
//! Always true: the new group's first entry follows on the state's last one, in a later term, and is agreed, since a group
//! of one agrees with itself; who was in the old group is not in the new one.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use godwit_domain::NodeName;
use raft::eraftpb::{Entry, EntryType, HardState, Snapshot};

use crate::engine::{PROPOSED, Position};
use crate::envelope::SNAPSHOT_BYTES_MAX;
use crate::group::NodeId;
use crate::machine::{RestoreError, StateMachine};
use crate::members::{self, Member, Members};
use crate::status::{StartError, panic_message};
use crate::storage::{Disk, Stored};

/// A state, and who was in the group then.
#[derive(Debug, Clone)]
pub struct Image {
    /// The last entry that is in it.
    pub position: Position,
    /// Who is in the group.
    pub members: Arc<Members>,
    /// The state machine's snapshot.
    pub state: Vec<u8>,
}

/// What a voter's disk holds.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// Who was in the group after its last entry.
    pub members: Members,
    /// Its last entry.
    pub last: Position,
    /// Up to here it knew that the log was agreed.
    pub committed: u64,
}

/// Who is in a group that this node founds alone.
pub fn alone(index: u64, me: NodeId, name: NodeName) -> Members {
    Members::told(index, BTreeMap::from([(me, Member { name, votes: true })]))
}

/// Applies all that a disk holds to an empty state machine, whether it is known to be agreed or not: what a voter has
/// acknowledged may have been.
///
/// # Errors
/// If the disk can not be read, or holds what this build does not understand.
pub fn replay<S: StateMachine>(disk: &mut dyn Disk, machine: &mut S) -> Result<Replayed, StartError> {
    let stored = disk.load()?;
    let replayed = catch_unwind(AssertUnwindSafe(|| apply(stored, machine)));
    replayed.unwrap_or_else(|panic| Err(StartError::Begin(panic_message(panic.as_ref()))))
}

fn apply<S: StateMachine>(stored: Stored, machine: &mut S) -> Result<Replayed, StartError> {
    let mut last = stored.base;
    let mut members = stored.founders.clone();
    if let Some(snapshot) = &stored.snapshot {
        let metadata = snapshot.get_metadata();
        let (then, state) = Members::decode(snapshot.get_data()).map_err(RestoreError::new)?;
        machine.restore(metadata.index, state)?;
        members = then;
        last = Position { term: metadata.term, index: metadata.index };
    }
    let begun = last.index;
    for entry in stored.entries.iter().filter(|entry| entry.index > begun) {
        match entry.get_entry_type() {
            EntryType::EntryNormal if entry.context.first() == Some(&PROPOSED) => {
                machine.apply(entry.index, entry.get_data());
            }
            EntryType::EntryNormal => {}
            EntryType::EntryConfChangeV2 | EntryType::EntryConfChange => {
                // That of a leader which leaves a joint group says nothing.
                if let Ok((change, carried, _)) = members::read(entry.get_data()) {
                    members = members.changed(entry.index, &change).unwrap_or(members);
                    machine.apply(entry.index, &carried);
                }
            }
        }
        last = Position { term: entry.term, index: entry.index };
    }
    Ok(Replayed { members, last, committed: stored.hard.commit.max(begun) })
}

/// Founds a group on an empty disk: one voter, this state, and one entry after it. Returns when that is synced.
///
/// # Errors
/// If the disk is not empty or fails, or the state is too large for a snapshot.
pub fn found(
    disk: &mut dyn Disk,
    founder: &Members,
    base: Position,
    state: &[u8],
    entry: Vec<u8>,
) -> Result<(), StartError> {
    let stored = disk.load()?;
    if stored.snapshot.is_some() || stored.last_index() > 0 {
        return Err(StartError::Begin(format!(
            "the log is not empty: it ends with entry {}",
            stored.last_index()
        )));
    }
    let mut data = founder.encode().map_err(|error| StartError::Begin(error.to_string()))?;
    data.extend_from_slice(state);
    if data.len() > SNAPSHOT_BYTES_MAX {
        let message =
            format!("the state has {} bytes; a snapshot has at most {SNAPSHOT_BYTES_MAX}", data.len());
        return Err(StartError::Begin(message));
    }
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (base.index, base.term);
    metadata.set_conf_state(founder.conf_state());
    snapshot.set_data(data.into());
    let next = Position { term: base.term + 1, index: base.index + 1 };
    let hard = HardState { term: next.term, commit: base.index, ..HardState::default() };
    disk.install_snapshot(&snapshot, &hard)?;
    let first = Entry {
        entry_type: EntryType::EntryNormal,
        term: next.term,
        index: next.index,
        data: entry.into(),
        context: vec![PROPOSED].into(),
        ..Entry::default()
    };
    disk.append(&[first], &HardState { commit: next.index, ..hard })?;
    Ok(disk.sync()?)
}
