//! What a target's session does about a view, without pages.

use godwit_domain::ownership::{Entry, Ownership};

use super::*;

fn id(n: u8) -> InstanceId {
    InstanceId::from_random([n; 16])
}

/// A migration from a to b, for which this runner of b was accepted.
fn copying(accepted: InstanceId) -> Ownership {
    let name = |text: &str| text.parse().expect("a name");
    let migration = || "m".parse::<MigrationId>().expect("a name");
    let mut ownership = Ownership::new(name("a"));
    let entries = [
        Entry::Born { instance: id(1) },
        Entry::Request { migration: migration() },
        Entry::Start { migration: migration(), target: name("b") },
        Entry::Accept { migration: migration(), epoch: Epoch(1), instance: accepted },
    ];
    entries.into_iter().for_each(|entry| ownership.apply(entry).expect("applied"));
    ownership
}

#[test]
fn a_runner_for_which_no_source_will_come_is_given_up_at_once() {
    let session = || TargetSession::new("m".parse().expect("a name"), id(2), PageCount(1));
    let mut accepted = session();
    accepted.view(&copying(id(2)));
    assert_eq!(accepted.poll(), None);
    // An earlier runner of this node was given up, and its word came late.
    let mut other = session();
    other.view(&copying(id(3)));
    let given_up = std::iter::from_fn(|| other.poll()).any(|action| matches!(action, Action::GiveUp(_)));
    assert!(given_up);
}
