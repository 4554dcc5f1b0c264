//! What three layers come to: each key by itself, and the two that are tied to each other.

use godwit_domain::registry::ParallelLimits;
use godwit_domain::settings::{Given, Layers, Origin, Resolved, Setting, resolve};
use godwit_domain::{ClusterSettings, Overrides};

/// A key: its default, and a value of its own for cluster, policy and migration; "-": that layer can not set it.
const KEYS: [(&str, &str, [&str; 3]); 13] = [
    ("bandwidthPerMigration", "0", ["64Mi", "0", "1Gi"]),
    ("completionTimeoutPerGiB", "800", ["150", "0", "20"]),
    ("progressTimeout", "150", ["0", "10", "20"]),
    ("allowPostCopy", "false", ["true", "false", "true"]),
    ("postCopyTrigger", "deadline", ["early", "deadline", "early"]),
    ("allowAutoConverge", "false", ["true", "false", "true"]),
    ("allowWorkloadDisruption", "false", ["true", "false", "true"]),
    ("maxDowntimeMs", "300", ["1", "50", "2000000"]),
    ("audit", "false", ["true", "false", "true"]),
    ("priority", "normal", ["-", "low", "high"]),
    ("network", "-", ["migration", "-", "-"]),
    ("nodeBandwidth", "0", ["1Gi", "-", "-"]),
    ("recoveryTimeout", "60", ["0", "-", "-"]),
];
const ORIGINS: [Origin; 3] = [Origin::Cluster, Origin::Policy, Origin::Migration];

#[derive(Default)]
struct Three {
    cluster: ClusterSettings,
    policy: Overrides,
    migration: Overrides,
}

impl Three {
    fn set(&mut self, layer: usize, key: &str, value: &str) {
        let setting = Setting::read(key, Given::Word(value)).expect(value);
        match layer {
            0 => self.cluster.put(setting),
            1 => self.policy.put(setting, "a policy"),
            _ => self.migration.put(setting, "a migration"),
        }
        .expect(key);
    }

    fn resolve(&self) -> Resolved {
        let Self { cluster, policy, migration } = self;
        resolve(Layers { cluster, policy: Some(policy), migration: Some(migration) })
    }
}

#[test]
fn each_key_has_the_value_and_the_origin_of_the_strongest_layer_that_sets_it() {
    for (key, default, values) in KEYS {
        for set_in in 0..8_u8 {
            let sets = |layer: &usize| set_in & (1 << layer) != 0;
            if (0..3).any(|layer| sets(&layer) && values[layer] == "-") {
                continue;
            }
            let mut three = Three::default();
            (0..3).filter(sets).for_each(|layer| three.set(layer, key, values[layer]));
            let strongest = (0..3).rev().find(sets);
            let expected =
                strongest.map_or((default, Origin::Default), |layer| (values[layer], ORIGINS[layer]));

            for (shown, (name, unset, _)) in three.resolve().entries().into_iter().zip(KEYS) {
                assert_eq!(shown.0, name, "the order of the documentation");
                let follows = name == key || (key, name) == ("allowPostCopy", "allowWorkloadDisruption");
                let (value, origin) = if follows { expected } else { (unset, Origin::Default) };
                let it = (shown.1.value.to_string(), shown.1.origin);
                assert_eq!(
                    it,
                    (value.to_owned(), origin),
                    "{name}, where {key} is set in layers {set_in:03b}"
                );
            }
        }
    }
    assert_eq!(Three::default().resolve().entries().len(), KEYS.len());
}

#[test]
fn a_layer_that_is_not_there_is_one_that_sets_nothing() {
    let mut three = Three::default();
    KEYS.iter()
        .filter(|(_, _, values)| values[0] != "-")
        .for_each(|(key, _, values)| three.set(0, key, values[0]));
    let alone = resolve(Layers { cluster: &three.cluster, policy: None, migration: None });
    assert_eq!(alone, three.resolve());
}

/// Post-copy and disruption as one layer has them.
type Pair = (Option<bool>, Option<bool>);

/// The rule, from the weakest layer upwards: a layer that sets post-copy and not disruption sets both; what a layer
/// leaves out it inherits; without disruption there is no post-copy.
fn in_force(layers: [Pair; 3]) -> (bool, bool, bool) {
    let (mut asked, mut disruption) = (false, false);
    for layer in layers {
        match layer {
            (None, None) => {}
            (Some(both), None) => (asked, disruption) = (both, both),
            (None, Some(only)) => disruption = only,
            (Some(post_copy), Some(other)) => (asked, disruption) = (post_copy, other),
        }
    }
    (asked && disruption, disruption, asked && !disruption)
}

/// Each of nine pairs in each of three layers.
fn all_layers() -> Vec<[Pair; 3]> {
    let each = [None, Some(false), Some(true)];
    let pairs: Vec<Pair> =
        each.iter().flat_map(|post_copy| each.map(|disruption| (*post_copy, disruption))).collect();
    let two = pairs.iter().flat_map(|cluster| pairs.iter().map(move |policy| (*cluster, *policy)));
    two.flat_map(|(cluster, policy)| pairs.iter().map(move |migration| [cluster, policy, *migration]))
        .collect()
}

fn resolve_pairs(layers: [Pair; 3]) -> Resolved {
    let [migration, policy, own] = layers.map(|(allow_post_copy, allow_workload_disruption)| Overrides {
        allow_post_copy,
        allow_workload_disruption,
        ..Overrides::default()
    });
    let cluster = ClusterSettings { migration, ..ClusterSettings::default() };
    Three { cluster, policy, migration: own }.resolve()
}

#[test]
fn post_copy_and_disruption_in_every_combination_of_three_layers() {
    let all = all_layers();
    assert_eq!(all.len(), 729);
    let mut forbidden = 0;
    for layers in all {
        let it = resolve_pairs(layers);
        let (post_copy, disruption, is_forbidden) = in_force(layers);
        let values = (it.allow_post_copy.value, it.allow_workload_disruption.value);
        assert_eq!(values, (post_copy, disruption), "{layers:?}");
        assert_eq!(it.post_copy_forbidden, is_forbidden, "{layers:?}");
        let allowed = it.settings(1 << 30).limits.allowed;
        assert_eq!((allowed.post_copy, allowed.pause), values, "{layers:?}");

        // Each answer comes from the strongest layer that has a say in it.
        let strongest = |says: fn(&Pair) -> bool| {
            (0..3).rev().find(|layer| says(&layers[*layer])).map_or(Origin::Default, |layer| ORIGINS[layer])
        };
        let of_disruption = strongest(|pair| *pair != (None, None));
        let of_post_copy = if is_forbidden { of_disruption } else { strongest(|pair| pair.0.is_some()) };
        assert_eq!(it.allow_workload_disruption.origin, of_disruption, "{layers:?}");
        assert_eq!(it.allow_post_copy.origin, of_post_copy, "{layers:?}");

        let an_explicit_no = layers.iter().any(|(_, disruption)| *disruption == Some(false));
        assert!(!is_forbidden || an_explicit_no, "only that forbids: {layers:?}");
        forbidden += u32::from(is_forbidden);
    }
    assert!(forbidden > 50, "{forbidden} forbidden");
}

#[test]
fn limits_have_defaults_and_inbound_follows_outbound() {
    for (cluster, outbound, inbound, expected) in [
        (None, None, None, (5, 2, 2)),
        (Some(7), None, None, (7, 2, 2)),
        (Some(0), None, None, (0, 2, 2)),
        (None, Some(1), None, (5, 1, 1)),
        (None, Some(9), None, (5, 9, 9)),
        (None, Some(0), None, (5, 0, 0)),
        (None, None, Some(4), (5, 2, 4)),
        (None, Some(3), Some(1), (5, 3, 1)),
        (None, Some(3), Some(0), (5, 3, 0)),
        (Some(1), Some(0), Some(6), (1, 0, 6)),
        (Some(i32::MAX.unsigned_abs()), Some(8), None, (i32::MAX.unsigned_abs(), 8, 8)),
    ] {
        let mut settings = ClusterSettings::default();
        cluster.into_iter().for_each(|n| put(&mut settings, Setting::ParallelMigrationsPerCluster(n)));
        outbound.into_iter().for_each(|n| put(&mut settings, Setting::ParallelOutboundMigrationsPerNode(n)));
        inbound.into_iter().for_each(|n| put(&mut settings, Setting::ParallelInboundMigrationsPerNode(n)));
        let (cluster, outbound, inbound) = expected;
        assert_eq!(settings.limits(), ParallelLimits { cluster, outbound, inbound });
    }
}

fn put(settings: &mut ClusterSettings, setting: Setting) {
    settings.put(setting).expect("a limit is the cluster's");
}
