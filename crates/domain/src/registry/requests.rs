//! Requests that were answered, so that a repeated one gets the first answer and not a second effect.
//!
//! Always true: at most [`KEPT_MAX`] are remembered, none for longer than [`KEPT_MS`] of replicated time; what is
//! forgotten is the oldest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Refusal;

/// Requests that are remembered.
const KEPT_MAX: usize = 10_000;
/// For how long, in replicated milliseconds: an hour.
const KEPT_MS: u64 = 3_600_000;
/// Longest id of a request, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// A request that was given an id by whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestKey {
    /// The id, at most [`REQUEST_ID_BYTES_MAX`] bytes.
    pub id: String,
    /// A digest of what is asked, so that another request under the same id is told from a repeated one.
    pub digest: u64,
    /// The name that was made for what it asks for, such as a migration's.
    pub made: Option<String>,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    digest: u64,
    time_ms: u64,
    sequence: u64,
    /// The name that was made.
    pub made: Option<String>,
    /// How it came out.
    pub outcome: Result<(), Refusal>,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    by_id: BTreeMap<String, Answered>,
    in_order: BTreeMap<u64, String>,
    next: u64,
}

impl Requests {
    /// The answer that this request got before. `Err`: its id was used for another one.
    pub fn answer(&self, id: &str, digest: u64) -> Option<Result<&Answered, Refusal>> {
        let answered = self.by_id.get(id)?;
        Some(if answered.digest == digest { Ok(answered) } else { Err(Refusal::RequestTaken(id.to_owned())) })
    }

    pub(super) fn remember(&mut self, time_ms: u64, key: RequestKey, outcome: Result<(), Refusal>) {
        let sequence = self.next;
        self.next += 1;
        let RequestKey { id, digest, made } = key;
        self.in_order.insert(sequence, id.clone());
        self.by_id.insert(id, Answered { digest, time_ms, sequence, made, outcome });
        self.forget(time_ms);
    }

    /// Forgets what is too old or too much.
    pub(super) fn forget(&mut self, time_ms: u64) {
        while let Some((sequence, id)) = self.in_order.first_key_value() {
            let old =
                self.by_id.get(id).is_none_or(|answered| answered.time_ms.saturating_add(KEPT_MS) < time_ms);
            if !old && self.in_order.len() <= KEPT_MAX {
                return;
            }
            let sequence = *sequence;
            if let Some(id) = self.in_order.remove(&sequence)
                && self.by_id.get(&id).is_some_and(|answered| answered.sequence == sequence)
            {
                self.by_id.remove(&id);
            }
        }
    }
}
