//! A register that may be absent, and what is asked of it: the sequential object that a history is compared with.
//!
//! ```text
//!   Operation ─▶ one step: what it asks of the state    and makes of it
//!   get               exactly this                       -
//!   put               absent │ there, with another       this content
//!   put, unchanged    exactly this                       -
//!   create            absent                             this content
//!   create, refused   there                              -
//!   delete            there                              absent
//! ```
//!
//! Every operation is one step: whoever looked and then wrote did it as if nobody had come between.
//!
//! Always true: nothing here knows the time; a step is possible in a state or it is not.

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
    /// There was one: a delete's `deleted`; a create's refusal.
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
    /// It shall be made with this content, if it is not there. Refused, it looked and did nothing.
    Create(Value, Found),
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

/// What an operation asks of the state, and what it makes of it.
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
    /// What it is, by its answer; without one, what it would be if it took effect.
    pub(super) fn step(self) -> Move {
        let look = |look| Move { look: Some(look), write: None };
        let write = |state| Move { look: None, write: Some(state) };
        let both = |look, state| Move { look: Some(look), write: Some(state) };
        match self {
            Self::Get(seen) => look(Look::Exactly(seen)),
            Self::Put(value, Found::Same) => look(Look::Exactly(Some(value))),
            Self::Put(value, Found::Absent) => both(Look::Exactly(None), Some(value)),
            Self::Put(value, Found::Other) => both(Look::OtherThan(value), Some(value)),
            Self::Put(value, Found::There) => both(Look::There, Some(value)),
            Self::Put(value, Found::Unsaid) => write(Some(value)),
            Self::Create(_, Found::There | Found::Other | Found::Same) => look(Look::There),
            Self::Create(value, Found::Absent | Found::Unsaid) => both(Look::Exactly(None), Some(value)),
            Self::Delete(Found::Absent) => look(Look::Exactly(None)),
            Self::Delete(Found::Unsaid) => write(None),
            Self::Delete(Found::There | Found::Other | Found::Same) => both(Look::There, None),
        }
    }

    /// What the state would be, if it took effect. A get has none.
    pub(super) fn effect(self) -> Option<State> {
        match self {
            Self::Put(value, _) | Self::Create(value, _) => Some(Some(value)),
            Self::Delete(_) => Some(None),
            Self::Get(_) => None,
        }
    }
}
