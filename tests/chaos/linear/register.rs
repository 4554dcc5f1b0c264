//! A register that may be absent, and what is asked of it: the sequential object that a history is compared with.
//!
//! ```text
//!   Operation ─▶ moves, in this order          what a look asks of the state
//!   get             look                        exactly this
//!   put             look, then write            absent | there, with another content
//!   put, unchanged  look                        exactly this
//!   delete          look and write at once      there
//! ```
//!
//! A put looks and writes apart because the product does: the leader compares the object with what it has applied, says
//! `created` or `configured` by that, and then proposes. A delete is refused by the log itself, so it is one move.
//!
//! Always true: nothing here knows the time; a move is possible in a state or it is not.

/// A content. Equal numbers are equal contents.
pub(crate) type Value = u64;
/// What an object is: absent, or there with a content.
pub(crate) type State = Option<Value>;
/// Stands for all contents that no look asks for. No operation may have it.
pub(super) const ANONYMOUS: Value = Value::MAX;

/// What an answer says of the state before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// There was none: `created`; a delete's "not found".
    Absent,
    /// There was one: a delete's `deleted`.
    There,
    /// There was one with another content: `configured`.
    Other,
    /// It was as it should be: `unchanged`.
    Same,
    /// The answer does not say, or there is none.
    Unsaid,
}

/// What was asked, and what was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// It shall have this content.
    Put(Value, Found),
    /// It shall not be there.
    Delete(Found),
    /// What is it?
    Get(State),
}

/// One operation of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operation {
    /// What it did.
    pub(crate) deed: Deed,
    /// When it was asked, in microseconds of one clock.
    pub(crate) invoked: u64,
    /// When it was answered. `None`: never, so it may take effect at any time after it was asked, once or not at all.
    pub(crate) returned: Option<u64>,
    /// Who asked whom, for whoever reads an excerpt.
    pub(crate) by: String,
}

/// What must hold of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Exactly(State),
    There,
    OtherThan(Value),
}

impl Look {
    pub(super) fn holds(self, state: State) -> bool {
        match self {
            Self::Exactly(asked) => state == asked,
            Self::There => state.is_some(),
            Self::OtherThan(value) => state.is_some_and(|there| there != value),
        }
    }
}

/// A step of an operation: what it asks of the state, and what it makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) look: Option<Look>,
    pub(super) write: Option<State>,
}

impl Move {
    /// The state after it. `None`: it is not possible in this one.
    pub(super) fn made(self, state: State) -> Option<State> {
        self.look.is_none_or(|look| look.holds(state)).then_some(self.write.unwrap_or(state))
    }
}

impl Deed {
    /// Its moves in order; at least one, at most two.
    pub(super) fn moves(self) -> Vec<Move> {
        let look = |look| Move { look: Some(look), write: None };
        let write = |state| Move { look: None, write: Some(state) };
        match self {
            Self::Get(seen) => vec![look(Look::Exactly(seen))],
            Self::Put(value, Found::Same) => vec![look(Look::Exactly(Some(value)))],
            Self::Put(value, Found::Absent) => vec![look(Look::Exactly(None)), write(Some(value))],
            Self::Put(value, Found::Other) => vec![look(Look::OtherThan(value)), write(Some(value))],
            Self::Put(value, Found::There) => vec![look(Look::There), write(Some(value))],
            Self::Put(value, Found::Unsaid) => vec![write(Some(value))],
            Self::Delete(Found::Absent) => vec![look(Look::Exactly(None))],
            Self::Delete(Found::Unsaid) => vec![write(None)],
            Self::Delete(Found::There | Found::Other | Found::Same) => {
                vec![Move { look: Some(Look::There), write: Some(None) }]
            }
        }
    }

    /// What it would make of any state, if it took effect. A get makes nothing of it.
    pub(super) fn effect(self) -> Option<State> {
        match self {
            Self::Put(value, _) => Some(Some(value)),
            Self::Delete(_) => Some(None),
            Self::Get(_) => None,
        }
    }
}
