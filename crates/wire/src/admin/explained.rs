//! Which policy a guest gets, why not another, and what then holds. The same words online and offline.

use std::collections::BTreeMap;

use godwit_domain::policy::{self, Candidate, Policy, PolicyName, Subject};
use godwit_domain::settings::{Layers, Origin, Resolved, Shown, resolve};
use godwit_domain::{ClusterSettings, GuestName};
use serde::{Deserialize, Serialize};

/// A setting that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingRow {
    /// Its value.
    pub value: Shown,
    /// Who has set it.
    pub origin: Origin,
}

/// Answer to [`super::Act::PolicyExplain`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The guest, without its namespace.
    pub vm: String,
    /// Its namespace.
    pub namespace: String,
    /// The policy that it gets.
    pub policy: Option<PolicyName>,
    /// Every policy, the one that it gets first.
    pub candidates: Vec<Candidate>,
    /// What then holds for its migrations.
    pub settings: BTreeMap<String, SettingRow>,
    /// What follows from it and is easily overlooked.
    pub notes: Vec<String>,
}

impl Explained {
    /// For a guest with these labels, under these policies and settings.
    pub fn of(
        guest: &GuestName,
        subject: Subject<'_>,
        critical: bool,
        policies: &BTreeMap<PolicyName, Policy>,
        cluster: &ClusterSettings,
    ) -> Self {
        let chosen = policy::choose(policies, subject);
        let overrides = chosen.map(|(_, policy)| &policy.overrides);
        let resolved = resolve(Layers { cluster, policy: overrides, migration: None });
        Self {
            vm: guest.name().to_owned(),
            namespace: guest.namespace().to_owned(),
            policy: chosen.map(|(name, _)| name.clone()),
            candidates: policy::candidates(policies, subject),
            settings: rows(&resolved),
            notes: notes(&resolved, critical),
        }
    }
}

/// Settings by their keys.
pub fn rows(resolved: &Resolved) -> BTreeMap<String, SettingRow> {
    let row = |entry: godwit_domain::settings::Sourced<Shown>| SettingRow {
        value: entry.value,
        origin: entry.origin,
    };
    resolved.entries().into_iter().map(|(key, entry)| (key.to_owned(), row(entry))).collect()
}

/// What post-copy costs, for whoever switches it on.
pub const POST_COPY_PRICE: &str = "In post-copy a guest is slower until its last page has come, and lost if its source is lost \
                                   for good meanwhile: not for critical data or unstable networks";

/// What follows from settings and is easily overlooked.
pub fn notes(resolved: &Resolved, critical: bool) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |holds: bool, text: &str| {
        if holds {
            notes.push(text.to_owned());
        }
    };
    note(
        resolved.post_copy_forbidden,
        "allowPostCopy is true, and an explicit allowWorkloadDisruption: false forbids post-copy all the same",
    );
    note(
        resolved.allow_post_copy.value && critical,
        "the guest is critical (godwit.dev/critical): it never goes post-copy; at the deadline it is paused to finish",
    );
    note(
        resolved.allow_post_copy.value && !critical,
        &format!(
            "at the deadline the guest goes post-copy: it runs on at the target and its missing pages follow. {POST_COPY_PRICE}"
        ),
    );
    note(
        resolved.allow_workload_disruption.value && !resolved.allow_post_copy.value,
        "at the deadline the guest is paused until its last pages have come, for one more deadline at most",
    );
    note(
        resolved.allow_auto_converge.value,
        "a guest that writes faster than its pages travel is throttled, visibly",
    );
    notes
}
