//! The choice, written a second time in another way, over thousands of small worlds.
//!
//! ```text
//!   every label of guest and project is asked: does the policy want you? ─▶ marks ─▶ sort all, take the first
//! ```
//!
//! Always true: each of the four steps of the order decides some of the worlds; else the comparison would say little.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use godwit_domain::policy::{Candidate, Policy, PolicyName, Subject, candidates, choose};
use godwit_domain::{Labels, Overrides};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

const CASES: u32 = 4000;
/// Shared starts, a capital, a prefix: what a wrong comparison of keys would trip over.
const KEYS: [&str; 6] = ["a", "ab", "a.b", "B", "x.io/a", "x"];
const VALUES: [&str; 3] = ["", "1", "True"];
const NAMES: [&str; 8] = ["a", "a-b", "a.b", "ab", "b", "0", "z", "z0"];

#[derive(Debug, Clone)]
struct Small {
    guest: Labels,
    namespace: Labels,
    /// In the order in which they were written.
    policies: Vec<(PolicyName, Policy)>,
}

fn any_labels(most: usize) -> impl Strategy<Value = Labels> {
    let pair = (prop::sample::select(&KEYS[..]), prop::sample::select(&VALUES[..]));
    prop::collection::vec(pair, 0..=most)
        .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// Mostly some of these labels, so that it matches; at times anything.
fn selector_near(labels: &Labels) -> impl Strategy<Value = Labels> + use<> {
    let pairs: Vec<_> = labels.clone().into_iter().collect();
    let some = 0..=pairs.len().min(3);
    prop_oneof![
        5 => prop::sample::subsequence(pairs, some).prop_map(|pairs| pairs.into_iter().collect()),
        1 => any_labels(2),
    ]
}

fn small() -> impl Strategy<Value = Small> {
    // At times a guest is labelled as its project is: else the third step would hardly ever decide.
    (any_labels(4), any_labels(4), any::<bool>()).prop_flat_map(|(guest, namespace, same)| {
        let namespace = if same { guest.clone() } else { namespace };
        let policy = (selector_near(&guest), selector_near(&namespace)).prop_map(|(guest, namespace)| {
            Policy { namespace_selector: namespace, guest_selector: guest, overrides: Overrides::default() }
        });
        let names = prop::sample::subsequence(NAMES.to_vec(), 0..=NAMES.len()).prop_shuffle();
        (names, prop::collection::vec(policy, NAMES.len())).prop_map(move |(names, policies)| Small {
            guest: guest.clone(),
            namespace: namespace.clone(),
            policies: names.into_iter().map(|name| name.parse().expect(name)).zip(policies).collect(),
        })
    })
}

/// Smaller goes first.
type Mark = (Reverse<usize>, Vec<String>, Reverse<usize>, String);

/// The marks of those that match, in order. The labels are asked, not the selectors.
fn model(small: &Small) -> Vec<Mark> {
    let wanted_by = |labels: &Labels, selector: &Labels| -> Vec<String> {
        let wants =
            |(key, value): &(&String, &String)| selector.iter().any(|(k, v)| (k, v) == (*key, *value));
        labels.iter().filter(wants).map(|(key, _)| key.clone()).collect()
    };
    let mut marks = Vec::new();
    for (name, policy) in &small.policies {
        let of_guest = wanted_by(&small.guest, &policy.guest_selector);
        let of_project = wanted_by(&small.namespace, &policy.namespace_selector);
        let asked_for = policy.guest_selector.len() + policy.namespace_selector.len();
        if of_guest.len() + of_project.len() == asked_for {
            let guest_count = of_guest.len();
            let mut keys = [of_guest, of_project].concat();
            keys.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
            marks.push((Reverse(keys.len()), keys, Reverse(guest_count), name.to_string()));
        }
    }
    marks.sort();
    marks
}

/// Which step of the order set the first apart from the second.
fn decided_by(marks: &[Mark]) -> &'static str {
    match marks {
        [] => "none matches",
        [_] => "one matches",
        [first, second, ..] if first.0 != second.0 => "count",
        [first, second, ..] if first.1 != second.1 => "keys",
        [first, second, ..] if first.2 != second.2 => "guest",
        _ => "name",
    }
}

fn check_candidates(small: &Small, shown: &[Candidate], marks: &[Mark]) -> Result<(), TestCaseError> {
    let written: BTreeSet<&PolicyName> = small.policies.iter().map(|(name, _)| name).collect();
    let listed: BTreeSet<&PolicyName> = shown.iter().map(|candidate| &candidate.policy).collect();
    prop_assert_eq!(&listed, &written);
    prop_assert_eq!(shown.len(), written.len(), "each once");

    let (matched, others) = shown.split_at(marks.len());
    for (candidate, (count, keys, _, name)) in matched.iter().zip(marks) {
        prop_assert!(candidate.matched, "those that match go first");
        prop_assert_eq!(candidate.policy.as_str(), name);
        prop_assert_eq!((candidate.labels, &candidate.keys), (count.0, keys));
    }
    for loser in matched.iter().skip(1) {
        let winner = &matched[0].policy;
        prop_assert!(loser.reason.contains(winner.as_str()), "{}: {}", loser.policy, loser.reason);
        prop_assert_ne!(&loser.reason, &matched[0].reason);
    }
    for other in others {
        prop_assert!(!other.matched && other.labels == 0 && other.keys.is_empty());
        prop_assert!(other.reason.starts_with("asks for "), "{}: {}", other.policy, other.reason);
    }
    prop_assert!(shown.iter().all(|candidate| !candidate.reason.trim().is_empty()));
    Ok(())
}

fn check(small: &Small) -> Result<&'static str, TestCaseError> {
    let subject = Subject { guest: &small.guest, namespace: &small.namespace };
    let gets = |policies: &BTreeMap<_, _>| choose(policies, subject).map(|(name, _)| name.to_string());
    let marks = model(small);
    let winner = marks.first().map(|mark| mark.3.clone());

    let policies: BTreeMap<_, _> = small.policies.iter().cloned().collect();
    prop_assert_eq!(gets(&policies), winner.clone());
    let backwards: BTreeMap<_, _> = small.policies.iter().rev().cloned().collect();
    prop_assert_eq!(gets(&backwards), winner.clone(), "the order of writing does not matter");
    check_candidates(small, &candidates(&policies, subject), &marks)?;

    // A policy that is taken away changes the answer only if it was the answer.
    for name in policies.keys() {
        let mut fewer = policies.clone();
        fewer.remove(name);
        let was_it = Some(name.as_str()) == winner.as_deref();
        let expected = if was_it { marks.get(1).map(|mark| mark.3.clone()) } else { winner.clone() };
        prop_assert_eq!(gets(&fewer), expected, "without {}", name);
    }
    Ok(decided_by(&marks))
}

#[test]
fn the_choice_is_that_of_a_naive_model() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let decided = std::cell::RefCell::new(BTreeMap::<_, u32>::new());
    let outcome = runner.run(&small(), |small| {
        *decided.borrow_mut().entry(check(&small)?).or_default() += 1;
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let decided = decided.into_inner();
    for step in ["none matches", "one matches", "count", "keys", "guest", "name"] {
        assert!(decided.get(step).is_some_and(|worlds| *worlds >= CASES / 100), "{step} in {decided:?}");
    }
}
