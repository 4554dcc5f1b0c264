//! What a turn acts on: the state machine, those who wait, and the way to the peers.
//!
//! Always true: each caller is answered once; who is in the group is what was applied last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use godwit_domain::planted;

use super::{Caller, Outbox, Prover, Running};
use crate::engine::{EngineError, Position, Sink};
use crate::envelope::SNAPSHOT_BYTES_MAX;
use crate::group::NodeId;
use crate::machine::{RestoreError, StateMachine};
use crate::members::Members;
use crate::promises::{Outcome, Promises};
use crate::proofs::Proofs;
use crate::status::ProposeError;

/// What a turn acts on, beside engine and disk.
pub(super) struct Hands<S: StateMachine> {
    pub(super) me: NodeId,
    pub(super) machine: S,
    pub(super) applied: u64,
    /// Who is in the group, after what is applied.
    pub(super) members: Arc<Members>,
    /// The entry by which this voter was removed, if it has applied that.
    pub(super) removed: Option<u64>,
    pub(super) promises: Promises<Caller<S::Reply>>,
    pub(super) proofs: Proofs<Prover>,
    pub(super) outbox: Arc<dyn Outbox>,
    /// Before this entry no snapshot is tried: the last was too large.
    pub(super) snapshot_from: u64,
    /// When each question to the quorum was asked.
    pub(super) asked: BTreeMap<u64, Duration>,
    /// When the newest question was asked that has an answer.
    pub(super) answered: Option<Duration>,
}

impl<S: StateMachine> Hands<S> {
    pub(super) fn unknown(answers: Vec<(Caller<S::Reply>, Outcome)>) {
        let nobody_knows = || match planted::is_on("unknown-said-no") {
            true => ProposeError::NotLeader { leader: None },
            false => ProposeError::Unknown,
        };
        answers.into_iter().for_each(|(caller, _)| caller(Err(nobody_knows())));
    }

    /// Nobody is promised or shown anything any more.
    pub(super) fn part(&mut self) {
        Self::unknown(self.promises.led(None));
        self.proofs.end().into_iter().for_each(|caller| caller(false));
    }

    fn prove(&mut self) {
        self.proofs.proven(self.applied).into_iter().for_each(|caller| caller(true));
    }
}

impl<S: StateMachine> Sink for Hands<S> {
    fn send(&mut self, to: NodeId, bytes: Vec<u8>) {
        self.outbox.send(to, bytes);
    }

    fn restore(
        &mut self,
        position: Position,
        members: &Arc<Members>,
        snapshot: &[u8],
    ) -> Result<(), RestoreError> {
        self.machine.restore(position.index, snapshot)?;
        self.applied = position.index;
        self.members = Arc::clone(members);
        Self::unknown(self.promises.skipped(position.index));
        self.prove();
        Ok(())
    }

    fn apply(&mut self, position: Position, entry: Option<&[u8]>) {
        let mut reply = entry.map(|entry| self.machine.apply(position.index, entry));
        if let (true, Some(entry)) =
            (planted::is_on("entry-applied-twice") && position.index.is_multiple_of(16), entry)
        {
            reply = Some(self.machine.apply(position.index, entry));
        }
        self.applied = position.index;
        for (caller, outcome) in self.promises.applied(position) {
            let kept = if outcome == Outcome::Applied { reply.take() } else { None };
            caller(kept.ok_or(ProposeError::Unknown));
        }
        self.prove();
    }

    fn changed(&mut self, position: Position, members: &Arc<Members>, entry: &[u8]) {
        let was_in = self.members.get(self.me).is_some();
        self.members = Arc::clone(members);
        if was_in && members.get(self.me).is_none() {
            self.removed = Some(position.index);
        }
        self.apply(position, Some(entry));
    }

    fn quorum(&mut self, question: u64, index: u64) {
        self.proofs.answered(question, index);
        self.prove();
        // Of those that are kept, the last that was asked no later.
        let asked = self.asked.range(..=question).next_back().map(|(_, asked)| *asked);
        self.answered = self.answered.max(asked);
        self.asked = self.asked.split_off(&(question + 1));
    }
}

/// Stores the state as it is now, and cuts the log.
pub(super) fn save_snapshot<S: StateMachine>(
    running: &mut Running,
    hands: &mut Hands<S>,
    every: u64,
    keep: u64,
) -> Result<(), EngineError> {
    let data = hands.machine.snapshot();
    let bytes = data.len();
    if !running.engine.save_snapshot(data, keep, running.disk.as_mut())? {
        tracing::error!(
            bytes,
            max = SNAPSHOT_BYTES_MAX,
            "the state is too large to be stored: the log grows"
        );
        hands.snapshot_from = hands.applied + every;
    }
    Ok(())
}
