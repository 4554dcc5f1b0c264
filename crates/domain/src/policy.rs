//! Which policy a guest gets, and why not another one.
//!
//! ```text
//!   guest's labels ─┐
//!   project's ──────┼─▶ candidates (matched? how many labels? which?) ─▶ the first in order ─▶ its settings
//!   policies ───────┘
//! ```
//!
//! Always true: all that a policy asks for must be there; the order is total, so every replica and every reader with the
//! same manifests comes to the same answer. Never here: where labels come from, and what else is set.
//!
//! The order: more matching labels, both selectors together; then the matching keys of both, sorted bytewise and compared
//! one by one; then more labels of the guest; then the name, bytewise.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::labels::{self, LabelError, Labels};
use crate::settings::{Overrides, SettingError};

/// Longest name of an object, in bytes (a DNS subdomain, RFC 1123).
const NAME_BYTES_MAX: usize = 253;

/// A policy's name: a DNS subdomain, as Kubernetes has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PolicyName(String);

/// Why a text is no policy's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "policy name {0:?} is not valid: at most 253 bytes of a-z, 0-9, '-' and '.', and each part between dots begins and ends \
     with a letter or digit"
)]
pub struct PolicyNameError(String);

impl PolicyName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PolicyName {
    type Err = PolicyNameError;
    fn from_str(text: &str) -> Result<Self, PolicyNameError> {
        let in_part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let part = |part: &str| {
            !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.bytes().all(in_part)
        };
        if text.len() <= NAME_BYTES_MAX && text.split('.').all(part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(PolicyNameError(text.chars().take(NAME_BYTES_MAX).collect()))
        }
    }
}

impl TryFrom<String> for PolicyName {
    type Error = PolicyNameError;
    fn try_from(text: String) -> Result<Self, PolicyNameError> {
        text.parse()
    }
}

impl From<PolicyName> for String {
    fn from(name: PolicyName) -> Self {
        name.0
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Settings for all guests that carry some labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What the guest's project must carry.
    pub namespace_selector: Labels,
    /// What the guest must carry.
    pub guest_selector: Labels,
    /// What it sets.
    pub overrides: Overrides,
}

/// Why a policy was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A selector.
    #[error("{selector}: {source}")]
    Selector {
        /// Which.
        selector: &'static str,
        /// What is wrong with it.
        source: LabelError,
    },
    /// A setting.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

impl Policy {
    /// Checks everything in it.
    pub fn check(&self) -> Result<(), PolicyError> {
        let of = |selector| move |source| PolicyError::Selector { selector, source };
        labels::check(&self.namespace_selector).map_err(of("namespaceSelector"))?;
        labels::check(&self.guest_selector).map_err(of("virtualMachineInstanceSelector"))?;
        Ok(self.overrides.check()?)
    }
}

/// The labels by which a guest gets its policy.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The guest's own.
    pub guest: &'a Labels,
    /// Its project's.
    pub namespace: &'a Labels,
}

/// A policy as it stands for one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its name.
    pub policy: PolicyName,
    /// Whether the guest carries all that it asks for.
    pub matched: bool,
    /// How many labels match, both selectors together; 0 where not all do.
    pub labels: usize,
    /// The keys that match, of both selectors, sorted; a key in both is there twice. Empty where not all do.
    pub keys: Vec<String>,
    /// Why it was taken, or was not.
    pub reason: String,
}

/// The policy that a guest gets.
pub fn choose<'a>(
    policies: &'a BTreeMap<PolicyName, Policy>,
    subject: Subject<'_>,
) -> Option<(&'a PolicyName, &'a Policy)> {
    let matching = policies.iter().filter(|(_, policy)| what_is_missing(policy, subject).is_none());
    matching.min_by(|(a_name, a), (b_name, b)| order((a_name, a), (b_name, b)))
}

/// Every policy as it stands for a guest: the one that it gets first, then those that match, in order, then the others.
pub fn candidates(policies: &BTreeMap<PolicyName, Policy>, subject: Subject<'_>) -> Vec<Candidate> {
    let (mut matching, others): (Vec<_>, Vec<_>) =
        policies.iter().partition(|(_, policy)| what_is_missing(policy, subject).is_none());
    matching.sort_by(|a, b| order(*a, *b));
    let best = matching.first().copied();
    let matched = matching.iter().map(|(name, policy)| {
        let keys: Vec<String> = keys(policy).into_iter().map(str::to_owned).collect();
        let reason = match best {
            Some(best) if best.0 != *name => why_it_lost(best, (name, policy)),
            _ if matching.len() == 1 => "the only one that matches".to_owned(),
            _ => "taken: first in order".to_owned(),
        };
        Candidate { policy: (*name).clone(), matched: true, labels: keys.len(), keys, reason }
    });
    let unmatched = others.iter().map(|(name, policy)| Candidate {
        policy: (*name).clone(),
        matched: false,
        labels: 0,
        keys: Vec::new(),
        reason: what_is_missing(policy, subject).unwrap_or_default(),
    });
    matched.chain(unmatched).collect()
}

fn what_is_missing(policy: &Policy, subject: Subject<'_>) -> Option<String> {
    let of = |whose: &str, labels: &Labels, selector: &Labels| {
        let (key, value) = labels::missing(labels, selector)?;
        Some(match labels.get(key) {
            Some(other) => format!("asks for {key}={value:?}; the {whose} has {key}={other:?}"),
            None => format!("asks for {key}={value:?}; the {whose} has no such label"),
        })
    };
    of("project", subject.namespace, &policy.namespace_selector)
        .or_else(|| of("guest", subject.guest, &policy.guest_selector))
}

/// Keys of both selectors, sorted. In a policy that matches, all of them do.
fn keys(policy: &Policy) -> Vec<&str> {
    let both = policy.namespace_selector.keys().chain(policy.guest_selector.keys());
    let mut keys: Vec<&str> = both.map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

type Named<'a> = (&'a PolicyName, &'a Policy);

fn order((a_name, a): Named<'_>, (b_name, b): Named<'_>) -> Ordering {
    let (a_keys, b_keys) = (keys(a), keys(b));
    let by_count = Reverse(a_keys.len()).cmp(&Reverse(b_keys.len()));
    let by_guest = Reverse(a.guest_selector.len()).cmp(&Reverse(b.guest_selector.len()));
    by_count.then_with(|| a_keys.cmp(&b_keys)).then(by_guest).then_with(|| a_name.cmp(b_name))
}

fn why_it_lost((best_name, best): Named<'_>, (_, lost): Named<'_>) -> String {
    let (best_keys, keys) = (keys(best), keys(lost));
    if best_keys.len() != keys.len() {
        return format!("{best_name} matches {} labels, this {}", best_keys.len(), keys.len());
    }
    if let Some((first, mine)) = best_keys.iter().zip(&keys).find(|(first, mine)| first != mine) {
        return format!("as many labels as {best_name}, whose key {first} sorts before {mine}");
    }
    if best.guest_selector.len() != lost.guest_selector.len() {
        return format!("the same keys as {best_name}, which matches more of them on the guest");
    }
    format!("the same keys as {best_name}, whose name sorts first")
}
