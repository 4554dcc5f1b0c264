//! Entries on their way to a voter: many bring some, and it takes all that have come at once.
//!
//! ```text
//!   propose ─▶ entry, where the answer goes ─▶ Inbox ─ the first, or as many as are waited for ─▶ Come ─▶ the voter
//!      ▲                                          └────────────── all of them ◀────────────────────────────┘
//!      └──────────── answer
//! ```
//!
//! A message each would wake the voter for each.
//!
//! Always true: who has brought something is answered, and if the voter ends before, learns that nobody knows; nothing lies
//! here unseen: the voter was sent for, or has said that it will look by itself.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::Addr;
use tokio::sync::oneshot;

use crate::actor::{Come, ControlActor};
use crate::machine::StateMachine;
use crate::status::ProposeError;

/// Entries that may lie here: more callers than a voter can promise anything.
const ENTRIES_MAX: usize = 4096;

/// An entry, and where its answer goes.
pub(crate) type Brought<R> = (Vec<u8>, oneshot::Sender<Result<R, ProposeError>>);

/// See the module.
pub(crate) struct Inbox<R>(Mutex<Waiting<R>>);

struct Waiting<R> {
    entries: Vec<Brought<R>>,
    /// The voter is sent for when so many have come.
    wake_at: usize,
    is_closed: bool,
}

impl<R> Default for Inbox<R> {
    fn default() -> Self {
        Self(Mutex::new(Waiting { entries: Vec::new(), wake_at: 1, is_closed: false }))
    }
}

impl<R> Inbox<R> {
    fn lock(&self) -> MutexGuard<'_, Waiting<R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `Ok(true)`: the voter is to be sent for.
    fn put(&self, brought: Brought<R>) -> Result<bool, ProposeError> {
        let mut waiting = self.lock();
        if waiting.is_closed {
            return Err(ProposeError::Halted { why: "it has stopped".to_owned() });
        }
        if waiting.entries.len() >= ENTRIES_MAX {
            return Err(ProposeError::Busy);
        }
        waiting.entries.push(brought);
        Ok(waiting.entries.len() == waiting.wake_at)
    }

    /// All that have come. The voter wants to be sent for when `wake_at` more have.
    pub(crate) fn take(&self, wake_at: impl FnOnce(usize) -> usize) -> Vec<Brought<R>> {
        let mut waiting = self.lock();
        waiting.wake_at = wake_at(waiting.entries.len()).max(1);
        std::mem::take(&mut waiting.entries)
    }

    /// The voter ends. Whoever waits learns that nobody knows, by what is dropped.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        let dropped = std::mem::take(&mut waiting.entries);
        drop(waiting);
        drop(dropped);
    }
}

/// The way to a voter for whoever wants something agreed. Clones lead to the same one.
pub struct Proposals<S: StateMachine> {
    pub(crate) inbox: Arc<Inbox<S::Reply>>,
    pub(crate) addr: Addr<ControlActor<S>>,
}

impl<S: StateMachine> Clone for Proposals<S> {
    fn clone(&self) -> Self {
        Self { inbox: Arc::clone(&self.inbox), addr: self.addr.clone() }
    }
}

impl<S: StateMachine> fmt::Debug for Proposals<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proposals")
    }
}

impl<S: StateMachine> Proposals<S> {
    /// Agrees on an entry.
    ///
    /// # Errors
    /// If it was not proposed; or if nobody knows what became of it.
    pub async fn propose(&self, entry: Vec<u8>) -> Result<S::Reply, ProposeError> {
        let (answer, answered) = oneshot::channel();
        if self.inbox.put((entry, answer))? {
            self.addr.do_send(Come);
        }
        answered.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Where everything else is sent.
    pub fn addr(&self) -> &Addr<ControlActor<S>> {
        &self.addr
    }
}
