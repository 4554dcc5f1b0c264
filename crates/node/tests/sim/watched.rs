//! What is real on a voter beside raft: the node's replica. Here it is watched, and so is all that leaves the voter.

use std::sync::{Arc, Mutex, PoisonError};

use godwit_control::{NodeId, Outbox, RestoreError, StateMachine};
use godwit_domain::registry::{Refusal, Registry};
use godwit_node::replica::{Bells, Replica};

use crate::disk::Folder;

pub(crate) type Shared<T> = Arc<Mutex<Vec<T>>>;

pub(crate) fn drain<T>(shared: &Shared<T>) -> Vec<T> {
    std::mem::take(&mut *shared.lock().unwrap_or_else(PoisonError::into_inner))
}

fn push<T>(shared: &Shared<T>, it: T) {
    shared.lock().unwrap_or_else(PoisonError::into_inner).push(it);
}

/// What became of a voter's state machine.
#[derive(Debug, Clone)]
pub(crate) enum Seen {
    Applied { index: u64, entry: Arc<[u8]>, outcome: Result<(), Refusal> },
    Restored { index: u64 },
}

/// What a voter has done, and whether behind a slow sync.
#[derive(Debug, Clone)]
pub(crate) struct Done<T> {
    pub(crate) what: T,
    pub(crate) late: bool,
}

/// What was done before a slow sync, as long as that is under way.
pub(crate) fn drain_early<T>(shared: &Shared<Done<T>>) -> Vec<T> {
    let mut all = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let late = all.iter().position(|done| done.late).unwrap_or(all.len());
    all.drain(..late).map(|done| done.what).collect()
}

/// The real replica, and who looks on.
pub(crate) struct Watched {
    replica: Replica,
    seen: Shared<Done<Seen>>,
    disk: Folder,
}

impl Watched {
    pub(crate) fn new(bells: Arc<Bells>, seen: Shared<Done<Seen>>, disk: Folder) -> Self {
        Self { replica: Replica::new(bells), seen, disk }
    }

    fn sees(&self, what: Seen) {
        push(&self.seen, Done { what, late: self.disk.is_busy() });
    }

    pub(crate) fn registry(&self) -> &Registry {
        self.replica.registry()
    }
}

impl StateMachine for Watched {
    type Reply = Result<(), Refusal>;

    fn apply(&mut self, index: u64, entry: &[u8]) -> Self::Reply {
        let outcome = self.replica.apply(index, entry);
        self.sees(Seen::Applied { index, entry: entry.into(), outcome: outcome.clone() });
        outcome
    }

    fn snapshot(&self) -> Vec<u8> {
        self.replica.snapshot()
    }

    fn restore(&mut self, index: u64, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.replica.restore(index, snapshot)?;
        self.sees(Seen::Restored { index });
        Ok(())
    }
}

/// A message on its way out of a voter; `late`: behind a slow sync.
pub(crate) struct Sent {
    pub(crate) to: NodeId,
    pub(crate) bytes: Vec<u8>,
    pub(crate) late: bool,
}

/// Where a voter's messages go.
pub(crate) struct Wire {
    pub(crate) sent: Shared<Sent>,
    pub(crate) disk: Folder,
}

impl Outbox for Wire {
    fn send(&self, to: NodeId, bytes: Vec<u8>) {
        push(&self.sent, Sent { to, bytes, late: self.disk.is_busy() });
    }
}

/// What a voter answers.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Agreed(Result<(), Refusal>),
    /// It was never proposed.
    NotTaken,
    Unknown,
    Proven(bool),
}

/// Somebody who waits for a voter's answer. Whoever is forgotten learns that nobody knows.
pub(crate) struct Caller {
    number: u64,
    answers: Option<Answers>,
    disk: Folder,
}

/// Numbers of those who asked, and what they are answered.
pub(crate) type Answers = Shared<Done<(u64, Answer)>>;

impl Caller {
    pub(crate) fn new(number: u64, answers: &Answers, disk: &Folder) -> Self {
        Self { number, answers: Some(Arc::clone(answers)), disk: disk.clone() }
    }

    pub(crate) fn hear(&mut self, answer: Answer) {
        if let Some(answers) = self.answers.take() {
            push(&answers, Done { what: (self.number, answer), late: self.disk.is_busy() });
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.hear(Answer::Unknown);
    }
}
