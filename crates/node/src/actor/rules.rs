//! Rules of a node's looks that need nothing but what they are about.

use godwit_domain::agent::Duty;
use godwit_domain::ownership::{Entry, Ownership};
use godwit_domain::{Epoch, InstanceId};

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

/// Whether a new process may send a guest's pages and `Final` from its paused copy here. Not once an earlier one has
/// testified that `Final` has not left: then it never does, since the guest may be on its way back.
pub fn may_serve(
    view: &Ownership,
    copy: InstanceId,
    mut withheld: impl Iterator<Item = (InstanceId, Epoch)>,
) -> bool {
    !withheld.any(|known| known == (copy, view.spoken_epoch()))
}

#[cfg(test)]
mod tests {
    use godwit_domain::ownership::Mode;

    use super::*;

    #[test]
    fn what_was_withheld_is_never_sent() {
        let id = |n: u8| InstanceId::from_random([n; 16]);
        let name = |text: &str| text.parse().expect("a name");
        let migration = || "m".parse().expect("a name");
        let mut view = Ownership::new(name("a"));
        let entries = [
            Entry::Born { instance: id(1) },
            Entry::Request { migration: migration() },
            Entry::Start { migration: migration(), target: name("b") },
            Entry::Accept { migration: migration(), epoch: Epoch(1), instance: id(2) },
            Entry::HandOver { migration: migration(), epoch: Epoch(1), mode: Mode::PostCopy },
        ];
        entries.into_iter().for_each(|entry| view.apply(entry).expect("applied"));
        assert!(may_serve(&view, id(1), std::iter::empty()));
        assert!(may_serve(&view, id(1), [(id(1), Epoch(0)), (id(3), Epoch(1))].into_iter()));
        assert!(!may_serve(&view, id(1), [(id(1), Epoch(1))].into_iter()));
    }
}
