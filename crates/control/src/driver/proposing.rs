//! What callers want agreed: looked at, proposed, and promised an answer.
//!
//! ```text
//!   entries ─▶ one too large, too many wait: refused ─▶ the rest, together ─▶ engine ─▶ a promise for each
//! ```
//!
//! Always true: each caller is answered once; what is refused here was not proposed.

use std::time::Duration;

use super::{Caller, Driver, Hands};
use crate::engine::{NotProposed, Position};
use crate::envelope::ENTRY_BYTES_MAX;
use crate::machine::StateMachine;
use crate::members::Wanted;
use crate::promises::PROMISES_MAX;
use crate::status::ProposeError;

/// Entries that are proposed together, in bytes: as many as leave in one message.
const TOGETHER_BYTES_MAX: usize = 256 << 10;
impl<S: StateMachine> Driver<S> {
    /// Proposes an entry; the caller is answered when it is applied, refused or out of time.
    pub fn propose(&mut self, entry: Vec<u8>, now: Duration, caller: Caller<S::Reply>) {
        self.propose_all(vec![(entry, caller)], now);
    }

    /// The same of many, which go to the other voters together.
    pub fn propose_all(&mut self, entries: Vec<(Vec<u8>, Caller<S::Reply>)>, now: Duration) {
        let (mut together, mut callers, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (entry, caller) in entries {
            if let Err(error) = self.may_put(&entry, callers.len()) {
                caller(Err(error));
                continue;
            }
            if bytes + entry.len() > TOGETHER_BYTES_MAX {
                self.put_together(std::mem::take(&mut together), std::mem::take(&mut callers), now);
                bytes = 0;
            }
            bytes += entry.len();
            together.push(entry);
            callers.push(caller);
        }
        self.put_together(together, callers, now);
    }

    fn put_together(&mut self, entries: Vec<Vec<u8>>, callers: Vec<Caller<S::Reply>>, now: Duration) {
        if entries.is_empty() {
            return;
        }
        let first = self.guarded(|running, _| running.engine.propose(entries));
        let first = self.proposed(first);
        for (offset, caller) in (0..).zip(callers) {
            let position = first.clone().map(|first| Position { index: first.index + offset, ..first });
            self.promise(position, now, caller);
        }
    }

    fn promise(&mut self, proposed: Result<Position, ProposeError>, now: Duration, caller: Caller<S::Reply>) {
        match proposed {
            Ok(position) => {
                let deadline = now + self.config.propose_timeout;
                Hands::<S>::unknown(self.hands.promises.make(position, deadline, caller));
            }
            Err(error) => caller(Err(error)),
        }
    }

    /// Proposes a change of the group; the caller is answered when it is applied, refused or out of time. `entry` is
    /// one of the state machine's, and applied together with it: of that is the answer.
    pub fn change(&mut self, wanted: &Wanted, entry: Vec<u8>, now: Duration, caller: Caller<S::Reply>) {
        if let Err(error) = self.may_put(&entry, 0) {
            return caller(Err(error));
        }
        let proposed = self.guarded(|running, _| running.engine.change(wanted, entry));
        let proposed = self.proposed(proposed);
        self.promise(proposed, now, caller);
    }

    /// `beside`: entries that are promised with it.
    fn may_put(&self, entry: &[u8], beside: usize) -> Result<(), ProposeError> {
        if entry.len() > ENTRY_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes: entry.len(), max: ENTRY_BYTES_MAX });
        }
        if self.hands.promises.count() + beside >= PROMISES_MAX {
            return Err(ProposeError::Busy);
        }
        Ok(())
    }

    fn proposed(&self, proposed: Option<Result<Position, NotProposed>>) -> Result<Position, ProposeError> {
        match proposed {
            Some(Ok(position)) => Ok(position),
            Some(Err(NotProposed::NotLeader)) => Err(ProposeError::NotLeader { leader: self.view().leader }),
            Some(Err(NotProposed::Busy)) => Err(ProposeError::Busy),
            Some(Err(NotProposed::Forbidden(rule))) => Err(ProposeError::Forbidden(rule)),
            None => Err(ProposeError::Halted { why: self.view().condition.to_string() }),
        }
    }
}
