//! Which policy a guest gets: a table in the words of the rules, the merge of what it sets, and a naive model.
//!
//! ```text
//!   V{key:value, …} N{key:value, …}          labels of a guest and of its project, or what a selector asks of them
//!   name V{…} N{…}; name {}                  policies; `{}` asks for nothing
//! ```
//!
//! Never here: a policy whose manifest has no selectors. A [`Policy`] is never without them; see the test of it.

mod model;

use std::collections::BTreeMap;

use godwit_domain::labels;
use godwit_domain::policy::{Policy, PolicyName, Subject, candidates, choose};
use godwit_domain::settings::{Given, Layers, Origin, Resolved, Setting, SettingError, resolve};
use godwit_domain::{ClusterSettings, Labels, Overrides};
use serde::Deserialize;
use serde::de::value::{Error, MapDeserializer};

const BASE: &str =
    r#"V{size:small, os:fedora, gpu:nvidia} N{priority:high, bandwidth:medium, hpc-workload:"true"}"#;
const SEED_SELECTORS: &str =
    r#"V{kubevirt.io/environment:production} N{hpc-workloads:"True",xyz-workloads-type:""}"#;
const SEED: &str =
    r#"seed V{kubevirt.io/environment:production} N{hpc-workloads:"True",xyz-workloads-type:""}"#;

struct Row {
    id: &'static str,
    labels: &'static str,
    policies: &'static str,
    /// The policy that the guest gets; "": none.
    gets: &'static str,
}

const fn row(id: &'static str, labels: &'static str, policies: &'static str, gets: &'static str) -> Row {
    Row { id, labels, policies, gets }
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    row("P01", BASE, "p-three V{size:small,gpu:nvidia} N{priority:high}; p-two V{gpu:nvidia} N{priority:high}", "p-three"),
    row("P03", BASE, r#"zz-gpu V{size:small,gpu:nvidia} N{priority:high}; aa-hpc V{size:small} N{priority:high,hpc-workload:"true"}"#, "zz-gpu"),
    row("P04", BASE, "intel V{gpu:intel} N{priority:high}; only-gpu V{gpu:nvidia}", "only-gpu"),
    row("P06", SEED_SELECTORS, SEED, "seed"),
    row("P07", r#"V{kubevirt.io/environment:production} N{hpc-workloads:"True"}"#, SEED, ""),
    row("P09", r#"V{kubevirt.io/environment:production} N{hpc-workloads:"true",xyz-workloads-type:""}"#, SEED, ""),
    row("P10", "V{app:db}", "catch-all {}; db V{app:db}", "db"),
    row("P11", "V{app:web}", "catch-all {}; db V{app:db}", "catch-all"),
    row("P13", "V{app:web}", "default-b {}; default-a V{} N{}", "default-a"),
    row("P14", "V{env:prod} N{env:prod}", "both V{env:prod} N{env:prod}; aaa V{env:prod}", "both"),
    row("P16", r#"V{env:p,tier:"1"} N{env:p,tier:"1"}"#, r#"a-ns N{env:p,tier:"1"}; z-vmi V{env:p,tier:"1"}"#, "z-vmi"),
    row("P19", "V{kubevirt.io/environment:production,environment:production}", "long V{kubevirt.io/environment:production}; short V{environment:production}", "short"),
    row("P21", "V{} N{team:a}", "good N{team:a}; bad N{team:b}", "good"),
    row("P22", BASE, "", ""),
    row("P23", r#"V{a:"1",ab:"1"}"#, r#"x V{ab:"1"}; y V{a:"1"}"#, "y"),
    row("P24", BASE, r#"one V{gpu:nvidia} N{priority:high,bandwidth:medium,hpc-workload:"true"}; two V{size:small,os:fedora,gpu:nvidia} N{priority:high,bandwidth:medium}"#, "two"),
    // What the rules say beside the numbered ones.
    row("an empty value asks for an empty value, not for any", "V{gpu:nvidia}", r#"any V{gpu:""}"#, ""),
    row("nor for an absent one", "V{app:web}", r#"any V{gpu:""}"#, ""),
    row("it does match an empty one", r#"V{gpu:""}"#, r#"any V{gpu:""}"#, "any"),
    row("keys are told apart by case", "V{App:web}", "low V{app:web}", ""),
    row("a guest's label is not its project's", "V{team:a}", "project N{team:a}", ""),
    row("nor the other way round", "N{team:a}", "guest V{team:a}", ""),
    row("without labels only what asks nothing of the guest", "V{}", "some V{app:web}; none {}", "none"),
    row("count goes before keys", r#"V{a:"1",x:"1",y:"1"}"#, r#"early V{a:"1"}; many V{x:"1",y:"1"}"#, "many"),
    row("a key in both selectors counts twice", r#"V{z:"1",a:"1"} N{z:"1"}"#, r#"once V{a:"1"}; twice V{z:"1"} N{z:"1"}"#, "twice"),
    row("the first key that differs decides", r#"V{a:"1",b:"1",c:"1",d:"1"}"#, r#"ad V{a:"1",d:"1"}; bc V{b:"1",c:"1"}; zac V{a:"1",c:"1"}"#, "zac"),
    row("keys go before the guest's count", r#"V{b:"1",c:"1"} N{a:"1",b:"1"}"#, r#"guest V{b:"1",c:"1"}; project N{a:"1",b:"1"}"#, "project"),
    row("keys are sorted by byte: capitals first", r#"V{B:"1",a:"1"}"#, r#"a-small V{a:"1"}; z-capital V{B:"1"}"#, "z-capital"),
    row("then by name, by byte", r#"V{a:"1"}"#, r#"p-b V{a:"1"}; p.a V{a:"1"}; p0 V{a:"1"}"#, "p-b"),
];

// ---- reading the table -----------------------------------------------------------------------------------------

/// `V{…} N{…}`, both, one or none of them (or `{}`): the guest's and the project's labels.
fn read_labels(text: &str) -> (Labels, Labels) {
    let (mut guest, mut namespace) = (Labels::new(), Labels::new());
    for part in text.split_inclusive('}').map(str::trim) {
        let (whose, pairs) = part.strip_suffix('}').and_then(|part| part.split_once('{')).expect(text);
        let into = match whose {
            "V" => &mut guest,
            "N" => &mut namespace,
            _ => {
                assert_eq!(part, "{}", "{text}");
                continue;
            }
        };
        for pair in pairs.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once(':').expect(pair);
            let twice = into.insert(key.to_owned(), value.trim_matches('"').to_owned());
            assert_eq!(twice, None, "{text} has {key} twice");
        }
    }
    labels::check(&guest).and_then(|()| labels::check(&namespace)).expect(text);
    (guest, namespace)
}

fn read_policies(text: &str) -> Vec<(PolicyName, Policy)> {
    let policies = text.split(';').map(str::trim).filter(|policy| !policy.is_empty());
    let read = |policy: &str| {
        let (name, selectors) = policy.split_once(' ').expect(policy);
        let (guest_selector, namespace_selector) = read_labels(selectors);
        let policy = Policy { namespace_selector, guest_selector, overrides: Overrides::default() };
        (name.parse().expect(name), policy)
    };
    policies.map(read).collect()
}

#[test]
fn the_table_is_read_as_it_is_written() {
    let of = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!(
        read_labels(r#"V{a:"1", x.io/b:c} N{d:""}"#),
        (of(&[("a", "1"), ("x.io/b", "c")]), of(&[("d", "")]))
    );
    assert_eq!(read_labels("{}"), read_labels("V{} N{}"));
    let names: Vec<_> =
        read_policies("b {}; a V{x:y}").into_iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["b", "a"]);
}

// ---- the table -------------------------------------------------------------------------------------------------

#[test]
fn a_guest_gets_the_policy_of_the_table() {
    for Row { id, labels, policies, gets } in ROWS {
        let (guest, namespace) = read_labels(labels);
        let subject = Subject { guest: &guest, namespace: &namespace };
        let written = read_policies(policies);
        let forwards: BTreeMap<_, _> = written.iter().cloned().collect();
        let backwards: BTreeMap<_, _> = written.iter().rev().cloned().collect();
        for policies in [&forwards, &backwards] {
            let name = choose(policies, subject).map_or("", |(name, _)| name.as_str());
            assert_eq!(name, *gets, "{id}");
            let first = candidates(policies, subject).into_iter().find(|candidate| candidate.matched);
            assert_eq!(first.map_or(String::new(), |first| first.policy.to_string()), *gets, "{id}");
        }
    }
}

#[test]
fn what_is_shown_of_the_documents_own_example() {
    let (guest, namespace) = read_labels(BASE);
    let policies = read_policies(
        r#"zz-gpu V{size:small,gpu:nvidia} N{priority:high}; aa-hpc V{size:small} N{priority:high,hpc-workload:"true"};
           intel V{gpu:intel}; gold N{gold:""}"#,
    );
    let shown = candidates(&policies.into_iter().collect(), Subject { guest: &guest, namespace: &namespace });
    let lines: Vec<_> = shown
        .iter()
        .map(|it| format!("{} {} {} [{}] {}", it.policy, it.matched, it.labels, it.keys.join(" "), it.reason))
        .collect();
    assert_eq!(
        lines,
        [
            "zz-gpu true 3 [gpu priority size] taken: first in order",
            "aa-hpc true 3 [hpc-workload priority size] as many labels as zz-gpu, whose key gpu sorts before hpc-workload",
            r#"gold false 0 [] asks for gold=""; the project has no such label"#,
            r#"intel false 0 [] asks for gpu="intel"; the guest has gpu="nvidia""#,
        ]
    );
}

/// P12, as far as it can reach this crate: where it is stored or sent, too, a policy has both selectors.
#[test]
fn a_policy_without_selectors_is_none() {
    let none = MapDeserializer::<_, Error>::new(std::iter::empty::<(&str, BTreeMap<String, String>)>());
    let error = Policy::deserialize(none).expect_err("no selectors").to_string();
    assert!(error.contains("missing field") && error.contains("selector"), "{error}");
}

// ---- what the policy sets, over what the cluster sets ----------------------------------------------------------

fn settings(texts: &[&str]) -> Overrides {
    let mut overrides = Overrides::default();
    for text in texts {
        overrides.set(text).expect(text);
    }
    overrides
}

fn merged(cluster: &[&str], policy: &[&str]) -> Resolved {
    let cluster = ClusterSettings { migration: settings(cluster), ..ClusterSettings::default() };
    resolve(Layers { cluster: &cluster, policy: Some(&settings(policy)), migration: None })
}

type Texts = &'static [&'static str];
type Expected = (bool, Origin);

/// What the cluster and the policy set, then what comes of post-copy and of disruption.
#[rustfmt::skip]
const POST_COPY_AND_DISRUPTION: &[(&str, Texts, Texts, Expected, Expected)] = &[
    ("M1", &["allowPostCopy=false"], &["allowPostCopy=true"], (true, Origin::Policy), (true, Origin::Policy)),
    ("M2", &["allowWorkloadDisruption=true"], &["allowPostCopy=false"], (false, Origin::Policy), (false, Origin::Policy)),
    ("M3", &[], &["allowWorkloadDisruption=true"], (false, Origin::Default), (true, Origin::Policy)),
    ("M3 over true", &["allowPostCopy=true"], &["allowWorkloadDisruption=true"], (true, Origin::Cluster), (true, Origin::Policy)),
    ("M3 over true and false", &["allowPostCopy=true", "allowWorkloadDisruption=false"], &["allowWorkloadDisruption=true"], (true, Origin::Cluster), (true, Origin::Policy)),
];

#[test]
fn m1_to_m3_post_copy_takes_disruption_along() {
    for (id, cluster, policy, post_copy, disruption) in POST_COPY_AND_DISRUPTION {
        let it = merged(cluster, policy);
        assert_eq!((it.allow_post_copy.value, it.allow_post_copy.origin), *post_copy, "{id}");
        assert_eq!(
            (it.allow_workload_disruption.value, it.allow_workload_disruption.origin),
            *disruption,
            "{id}"
        );
        let allowed = it.settings(1 << 30).limits.allowed;
        assert_eq!((allowed.post_copy, allowed.pause), (post_copy.0, disruption.0), "{id}");
        assert!(!it.post_copy_forbidden, "{id}");
    }
}

#[test]
fn m4_and_m5_an_explicit_zero_is_a_value() {
    let inherits =
        merged(&["bandwidthPerMigration=64Mi", "completionTimeoutPerGiB=150"], &[]).settings(1 << 30);
    assert_eq!(inherits.bandwidth.bytes_per_second(), Some(64 << 20));
    assert!(inherits.limits.completion_timeout.is_some());

    let m4 = merged(&["bandwidthPerMigration=64Mi"], &["bandwidthPerMigration=0"]);
    assert_eq!(m4.bandwidth_per_migration.origin, Origin::Policy);
    assert_eq!(m4.settings(1 << 30).bandwidth.bytes_per_second(), None);

    let m5 = merged(&["completionTimeoutPerGiB=150"], &["completionTimeoutPerGiB=0"]);
    assert_eq!(m5.completion_timeout_per_gib.origin, Origin::Policy);
    assert_eq!(m5.settings(1 << 30).limits.completion_timeout, None);
}

#[test]
fn m6_nothing_negative_is_taken() {
    for key in ["bandwidthPerMigration", "completionTimeoutPerGiB"] {
        for given in [Given::Number("-1"), Given::Word("-1")] {
            let error: SettingError = Setting::read(key, given).expect_err(key);
            let message = error.to_string();
            assert!(message.starts_with(key) && message.contains(r#""-1""#), "{message}");
        }
    }
}

#[test]
fn m7_an_empty_policy_that_matches_is_recorded_and_changes_nothing() {
    let (guest, namespace) = read_labels("V{app:web}");
    let policies: BTreeMap<_, _> = read_policies("empty V{app:web}").into_iter().collect();
    let (name, policy) =
        choose(&policies, Subject { guest: &guest, namespace: &namespace }).expect("it matches");
    assert_eq!(name.as_str(), "empty");

    let set = ["bandwidthPerMigration=64Mi", "allowPostCopy=true", "maxDowntimeMs=50", "progressTimeout=0"];
    for cluster in [&set[..], &[]] {
        let cluster = ClusterSettings { migration: settings(cluster), ..ClusterSettings::default() };
        let with = resolve(Layers { cluster: &cluster, policy: Some(&policy.overrides), migration: None });
        assert_eq!(with, resolve(Layers { cluster: &cluster, policy: None, migration: None }));
    }
}
