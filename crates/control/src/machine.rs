//! What the group agrees on, as this crate sees it: bytes that are applied in one order, everywhere.
//!
//! Never known here: what an entry means. The same entries in the same order must give the same state and the
//! same snapshot, on every node and in every replay.

/// A snapshot that the state machine does not understand.
#[derive(Debug, thiserror::Error)]
#[error("restore the state from a snapshot")]
pub struct RestoreError {
    #[source]
    why: Box<dyn std::error::Error + Send + Sync>,
}

impl RestoreError {
    /// With its cause.
    pub fn new(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { why: why.into() }
    }
}

/// The replicated state.
pub trait StateMachine: Send + 'static {
    /// What a caller gets when his entry was applied.
    type Reply: Send + 'static;

    /// Applies one committed entry. Deterministic: no clock, no chance, no order of a hash.
    fn apply(&mut self, index: u64, entry: &[u8]) -> Self::Reply;

    /// The whole state as bytes; equal states give equal bytes.
    fn snapshot(&self) -> Vec<u8>;

    /// Takes the state from a snapshot of what the entries up to `index` have made; what was there before is gone.
    fn restore(&mut self, index: u64, snapshot: &[u8]) -> Result<(), RestoreError>;
}
