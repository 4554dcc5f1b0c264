//! From three layers to what holds: the cluster's settings, the policy in force, and the migration's own.
//!
//! ```text
//!   default ◀ cluster ◀ policy ◀ migration        the last layer that sets a key wins, key by key
//! ```
//!
//! Always true: a layer that sets `allowPostCopy` and not `allowWorkloadDisruption` sets both; an explicit
//! `allowWorkloadDisruption: false` forbids post-copy too (as in KubeVirt).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ClusterSettings, Overrides, PostCopyTrigger, Priority, Settings};
use crate::precopy::{Allowed, Limits};
use crate::quantity::Quantity;
use crate::units::Bandwidth;

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Nobody has set it.
    Default,
    /// The cluster's settings.
    Cluster,
    /// The policy in force.
    Policy,
    /// The migration itself.
    Migration,
}

/// A value and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Who has set it.
    pub origin: Origin,
}

/// The layers, the strongest last.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    /// The cluster's settings.
    pub cluster: &'a ClusterSettings,
    /// What the policy in force sets.
    pub policy: Option<&'a Overrides>,
    /// What the migration sets.
    pub migration: Option<&'a Overrides>,
}

/// What holds for a migration, before it is applied to a guest of some size.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the key of that name; see docs/settings.md")]
pub struct Resolved {
    pub bandwidth_per_migration: Sourced<Quantity>,
    pub completion_timeout_per_gib: Sourced<u64>,
    pub progress_timeout: Sourced<u64>,
    pub allow_post_copy: Sourced<bool>,
    pub post_copy_trigger: Sourced<PostCopyTrigger>,
    pub allow_auto_converge: Sourced<bool>,
    pub allow_workload_disruption: Sourced<bool>,
    pub max_downtime_ms: Sourced<u64>,
    pub audit: Sourced<bool>,
    pub priority: Sourced<Priority>,
    pub network: Sourced<Option<String>>,
    pub node_bandwidth: Sourced<Quantity>,
    pub recovery_timeout: Sourced<u64>,
    /// Post-copy was asked for, and is forbidden by an explicit `allowWorkloadDisruption: false`.
    pub post_copy_forbidden: bool,
}

/// A value as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Shown {
    /// A number.
    Whole(u64),
    /// True or false.
    Truth(bool),
    /// A quantity or a word.
    Text(String),
    /// Nothing.
    Unset(()),
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => write!(f, "{value}"),
            Self::Truth(value) => write!(f, "{value}"),
            Self::Text(value) => f.write_str(value),
            Self::Unset(()) => f.write_str("-"),
        }
    }
}

/// See the module.
pub fn resolve(layers: Layers<'_>) -> Resolved {
    let cluster = &layers.cluster.migration;
    let pick = Pick { cluster, policy: layers.policy, migration: layers.migration };
    let asked = pick.of(false, |layer| layer.allow_post_copy);
    let disruption = pick.of(false, |layer| layer.allow_workload_disruption.or(layer.allow_post_copy));
    let post_copy_forbidden = asked.value && !disruption.value;
    let of_cluster = |set: bool| if set { Origin::Cluster } else { Origin::Default };
    let ClusterSettings { network, node_bandwidth, recovery_timeout, .. } = layers.cluster;
    Resolved {
        bandwidth_per_migration: pick.of(Quantity::default(), |layer| layer.bandwidth_per_migration),
        completion_timeout_per_gib: pick.of(800, |layer| layer.completion_timeout_per_gib),
        progress_timeout: pick.of(150, |layer| layer.progress_timeout),
        allow_post_copy: if post_copy_forbidden { disruption } else { asked },
        post_copy_trigger: pick.of(PostCopyTrigger::Deadline, |layer| layer.post_copy_trigger),
        allow_auto_converge: pick.of(false, |layer| layer.allow_auto_converge),
        allow_workload_disruption: disruption,
        max_downtime_ms: pick.of(300, |layer| layer.max_downtime_ms),
        audit: pick.of(false, |layer| layer.audit),
        priority: pick.of(Priority::Normal, |layer| layer.priority),
        network: Sourced { value: network.clone(), origin: of_cluster(network.is_some()) },
        node_bandwidth: Sourced {
            value: node_bandwidth.unwrap_or_default(),
            origin: of_cluster(node_bandwidth.is_some()),
        },
        recovery_timeout: Sourced {
            value: recovery_timeout.unwrap_or(60),
            origin: of_cluster(recovery_timeout.is_some()),
        },
        post_copy_forbidden,
    }
}

struct Pick<'a> {
    cluster: &'a Overrides,
    policy: Option<&'a Overrides>,
    migration: Option<&'a Overrides>,
}

impl Pick<'_> {
    fn of<T>(&self, default: T, key: impl Fn(&Overrides) -> Option<T>) -> Sourced<T> {
        let layers = [
            (self.migration, Origin::Migration),
            (self.policy, Origin::Policy),
            (Some(self.cluster), Origin::Cluster),
        ];
        let mut set = layers.into_iter().filter_map(|(layer, origin)| Some((key(layer?)?, origin)));
        let (value, origin) = set.next().unwrap_or((default, Origin::Default));
        Sourced { value, origin }
    }
}

impl Resolved {
    /// What holds for a guest of so many bytes, its local disks among them.
    pub fn settings(&self, bytes: u64) -> Settings {
        let seconds = |value: u64| (value > 0).then(|| Duration::from_secs(value));
        let per_gib = self.completion_timeout_per_gib.value;
        let limits = Limits {
            downtime_max: Duration::from_millis(self.max_downtime_ms.value),
            completion_timeout: (per_gib > 0).then(|| Limits::completion_timeout(per_gib, bytes)),
            progress_timeout: seconds(self.progress_timeout.value),
            allowed: Allowed {
                post_copy: self.allow_post_copy.value,
                post_copy_early: self.post_copy_trigger.value == PostCopyTrigger::Early,
                throttle: self.allow_auto_converge.value,
                pause: self.allow_workload_disruption.value,
            },
        };
        Settings {
            bandwidth: Bandwidth::from_setting(self.bandwidth_per_migration.value.bytes()),
            limits,
            recovery_timeout: seconds(self.recovery_timeout.value),
            node_bandwidth: Bandwidth::from_setting(self.node_bandwidth.value.bytes()),
            audit: self.audit.value,
        }
    }

    /// Every key with its value and origin, in the order of the documentation.
    pub fn entries(&self) -> Vec<(&'static str, Sourced<Shown>)> {
        fn shown<T: Clone>(it: &Sourced<T>, show: impl Fn(T) -> Shown) -> Sourced<Shown> {
            Sourced { value: show(it.value.clone()), origin: it.origin }
        }
        let quantity = |value: Quantity| Shown::Text(value.to_string());
        vec![
            ("bandwidthPerMigration", shown(&self.bandwidth_per_migration, quantity)),
            ("completionTimeoutPerGiB", shown(&self.completion_timeout_per_gib, Shown::Whole)),
            ("progressTimeout", shown(&self.progress_timeout, Shown::Whole)),
            ("allowPostCopy", shown(&self.allow_post_copy, Shown::Truth)),
            ("postCopyTrigger", shown(&self.post_copy_trigger, |word| Shown::Text(word.to_string()))),
            ("allowAutoConverge", shown(&self.allow_auto_converge, Shown::Truth)),
            ("allowWorkloadDisruption", shown(&self.allow_workload_disruption, Shown::Truth)),
            ("maxDowntimeMs", shown(&self.max_downtime_ms, Shown::Whole)),
            ("audit", shown(&self.audit, Shown::Truth)),
            ("priority", shown(&self.priority, |word| Shown::Text(word.to_string()))),
            ("network", shown(&self.network, |name| name.map_or(Shown::Unset(()), Shown::Text))),
            ("nodeBandwidth", shown(&self.node_bandwidth, quantity)),
            ("recoveryTimeout", shown(&self.recovery_timeout, Shown::Whole)),
        ]
    }
}
