//! Settings: who may set which, in which form, and what three layers of them come to.
//!
//! ```text
//!   key, form ─▶ Setting, or a refusal that names the key
//!   default ◀ cluster ◀ policy ◀ migration ─▶ value and origin, key by key
//! ```
//!
//! Always true: no key is left out of the tables, which is checked too; what is refused changes nothing.

mod forms;
mod layers;

use godwit_domain::settings::Given::{Number, Word};
use godwit_domain::settings::{CLUSTER_ONLY, OVERRIDABLE, Setting, SettingError};
use godwit_domain::{ClusterSettings, Overrides};

#[test]
fn a_key_that_there_is_not_is_named_among_those_that_there_are() {
    for key in [
        "",
        "bandwidth",
        "BandwidthPerMigration",
        "bandwidthPerMigration ",
        "completionTimeoutPerGib",
        "completionTimeoutPerGB",
        "maxDowntime",
        "allow_post_copy",
        "disableTLS",
        "unsafeMigrationOverride",
    ] {
        let message = Setting::read(key, Number("1")).expect_err(key).to_string();
        assert!(message.starts_with(&format!("no setting {key:?}; ")), "{message}");
        for known in OVERRIDABLE.iter().chain(&CLUSTER_ONLY) {
            assert!(message.contains(known), "{message}");
        }
    }
}

/// A value that each key takes behind `key=`.
const SAMPLES: [(&str, &str); 16] = [
    ("bandwidthPerMigration", "64Mi"),
    ("completionTimeoutPerGiB", "150"),
    ("progressTimeout", "60"),
    ("allowPostCopy", "true"),
    ("postCopyTrigger", "early"),
    ("allowAutoConverge", "true"),
    ("allowWorkloadDisruption", "true"),
    ("maxDowntimeMs", "50"),
    ("audit", "true"),
    ("priority", "high"),
    ("parallelMigrationsPerCluster", "7"),
    ("parallelOutboundMigrationsPerNode", "3"),
    ("parallelInboundMigrationsPerNode", "4"),
    ("network", "migration"),
    ("nodeBandwidth", "1Gi"),
    ("recoveryTimeout", "30"),
];

#[test]
fn a_policy_sets_its_ten_keys_and_the_cluster_all_but_priority() {
    for (key, value) in SAMPLES {
        let setting = Setting::read(key, Word(value)).expect(key);
        let mut overrides = Overrides::default();
        let mut cluster = ClusterSettings::default();
        let of_policy = overrides.put(setting.clone(), "a policy");
        let of_cluster = cluster.put(setting);
        if OVERRIDABLE.contains(&key) {
            assert_eq!(of_policy, Ok(()), "{key}");
            let entries: Vec<_> =
                overrides.entries().into_iter().map(|(key, shown)| (key, shown.to_string())).collect();
            assert_eq!(entries, [(key, value.to_owned())], "this key and no other");
        } else {
            let message = of_policy.expect_err(key).to_string();
            let begins =
                format!("{key} is set for the whole cluster, in liveMigrationConfig; a policy sets ");
            assert!(message.starts_with(&begins), "{message}");
            assert!(OVERRIDABLE.iter().all(|known| message.contains(known)), "{message}");
            assert_eq!(overrides, Overrides::default(), "{key}");
        }
        if key == "priority" {
            let message = of_cluster.expect_err(key).to_string();
            assert!(message.starts_with("priority is \"high\"; "), "{message}");
            assert_eq!(cluster, ClusterSettings::default());
        } else {
            assert_eq!(of_cluster, Ok(()), "{key}");
            assert_ne!(cluster, ClusterSettings::default(), "{key}");
        }
    }
}

#[test]
fn what_is_not_taken_changes_nothing() {
    let mut overrides = Overrides::default();
    for (key, value) in SAMPLES.into_iter().filter(|(key, _)| OVERRIDABLE.contains(key)) {
        overrides.set(&format!("{key}={value}")).expect(key);
    }
    let before = overrides;
    for text in [
        "maxDowntimeMs=0",
        "bandwidthPerMigration=-1",
        "priority=drain",
        "network=a",
        "allowPostCopy=",
        "x=1",
    ] {
        overrides.set(text).expect_err(text);
        assert_eq!(overrides, before, "{text}");
    }
    assert_eq!(overrides.set("allowPostCopy"), Err(SettingError::Form("allowPostCopy".to_owned())));
}

#[test]
fn no_message_repeats_a_text_without_end() {
    let long = "x".repeat(1 << 16);
    let mut overrides = Overrides::default();
    let mut errors = vec![
        overrides.set(&long).expect_err("no form"),
        overrides.set(&format!("{long}=1")).expect_err("no key"),
    ];
    for (key, _) in SAMPLES {
        errors.push(Setting::read(key, Word(&long)).expect_err(key));
    }
    for error in errors {
        let message = error.to_string();
        assert!(message.len() < 600, "{} bytes: {}", message.len(), &message[..80]);
    }
}
