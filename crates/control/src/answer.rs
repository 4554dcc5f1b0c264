//! An answer to a message that comes after its handler has returned.
//!
//! ```text
//!   Later::new ─┬─ Later ─▶ the runtime: where the answer goes ─┐ whichever comes second
//!               └─ a function ─▶ whoever has the answer ────────┴─▶ the caller
//! ```
//!
//! A future would do the same, and the actor would look at every open one whenever anything at all happens to it: with a
//! thousand callers waiting, a thousand looks at each message.
//!
//! Always true: a caller is answered once; if the function is dropped uncalled, he learns that the actor did not answer.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use actix::dev::{MessageResponse, OneshotSender};
use actix::{Actor, Message};

/// See the module.
pub struct Later<R>(Arc<Slot<R>>);

type Slot<R> = Mutex<Met<R>>;

/// What came first.
enum Met<R> {
    Nothing,
    Asked(OneshotSender<R>),
    Answered(R),
}

impl<R> fmt::Debug for Later<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Later")
    }
}

impl<R> Later<R> {
    /// The response, and what is called with the answer.
    pub(crate) fn new() -> (Self, impl FnOnce(R) + Send)
    where
        R: Send,
    {
        let slot = Arc::new(Mutex::new(Met::Nothing));
        let later = Self(Arc::clone(&slot));
        (later, move |answer| {
            let mut met = slot.lock().unwrap_or_else(PoisonError::into_inner);
            match std::mem::replace(&mut *met, Met::Nothing) {
                // A caller who has gone away needs no answer.
                Met::Asked(caller) => drop(caller.send(answer)),
                Met::Nothing | Met::Answered(_) => *met = Met::Answered(answer),
            }
        })
    }
}

impl<A: Actor, M: Message<Result = R>, R: 'static> MessageResponse<A, M> for Later<R> {
    fn handle(self, _: &mut A::Context, caller: Option<OneshotSender<R>>) {
        let Some(caller) = caller else { return };
        let mut met = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *met, Met::Nothing) {
            Met::Answered(answer) => drop(caller.send(answer)),
            Met::Nothing | Met::Asked(_) => *met = Met::Asked(caller),
        }
    }
}

#[cfg(test)]
mod tests {
    use actix::Handler;

    use super::*;

    struct Asked;

    impl Message for Asked {
        type Result = u8;
    }

    struct Silent;

    impl Actor for Silent {
        type Context = actix::Context<Self>;
    }

    impl Handler<Asked> for Silent {
        type Result = Later<u8>;

        fn handle(&mut self, _: Asked, _: &mut Self::Context) -> Self::Result {
            Later::new().0
        }
    }

    fn asked(later: Later<u8>) -> tokio::sync::oneshot::Receiver<u8> {
        let (caller, answer) = tokio::sync::oneshot::channel();
        MessageResponse::<Silent, Asked>::handle(later, &mut actix::Context::new(), Some(caller));
        answer
    }

    #[test]
    fn whichever_comes_second_answers_and_a_dropped_answer_is_none() {
        let (later, answer) = Later::new();
        answer(7);
        assert_eq!(asked(later).try_recv(), Ok(7), "answered at once");
        let (later, answer) = Later::new();
        let mut caller = asked(later);
        assert!(caller.try_recv().is_err(), "nobody has answered yet");
        answer(8);
        assert_eq!(caller.try_recv(), Ok(8), "answered later");
        let (later, answer) = Later::new();
        let mut caller = asked(later);
        drop(answer);
        assert_eq!(caller.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Closed));
    }
}
