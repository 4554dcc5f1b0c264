//! Rules of a node's looks that need nothing but what they are about.

use godwit_domain::agent::Duty;
use godwit_domain::ownership::{Entry, Ownership};

/// Whether what is pushed is older than what is known: it tells nothing.
pub fn is_older(pushed: &Ownership, known: &Ownership) -> bool {
    known.epoch > pushed.epoch
}

/// Whether a duty rests on there being no other runner here than those that are known.
pub fn needs_to_know_all(duty: &Duty) -> bool {
    matches!(
        duty,
        Duty::Make | Duty::Propose(Entry::Gone { .. } | Entry::Purged { .. } | Entry::HandBack { .. })
    )
}
