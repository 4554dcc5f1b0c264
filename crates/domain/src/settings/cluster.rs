//! The cluster's one settings object.

use serde::{Deserialize, Serialize};

use super::{Overrides, Setting, SettingError, Shown};
use crate::quantity::Quantity;
use crate::registry::ParallelLimits;

/// What the cluster was told; unset keys have their defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterSettings {
    /// What policies and migrations may set otherwise. Its `priority` is never set.
    pub migration: Overrides,
    /// Migrations that run at once.
    pub parallel_migrations_per_cluster: Option<u32>,
    /// Migrations that leave one node at once.
    pub parallel_outbound_migrations_per_node: Option<u32>,
    /// Migrations that enter one node at once; follows the outbound value.
    pub parallel_inbound_migrations_per_node: Option<u32>,
    /// The dedicated migration network.
    pub network: Option<String>,
    /// Bytes per second that all migrations that leave one node share; 0: no limit.
    pub node_bandwidth: Option<Quantity>,
    /// Seconds; 0: waits for ever.
    pub recovery_timeout: Option<u64>,
}

impl ClusterSettings {
    /// Takes one.
    pub fn put(&mut self, setting: Setting) -> Result<(), SettingError> {
        match setting {
            Setting::ParallelMigrationsPerCluster(value) => {
                self.parallel_migrations_per_cluster = Some(value);
            }
            Setting::ParallelOutboundMigrationsPerNode(value) => {
                self.parallel_outbound_migrations_per_node = Some(value);
            }
            Setting::ParallelInboundMigrationsPerNode(value) => {
                self.parallel_inbound_migrations_per_node = Some(value);
            }
            Setting::Network(value) => self.network = Some(value),
            Setting::NodeBandwidth(value) => self.node_bandwidth = Some(value),
            Setting::RecoveryTimeout(value) => self.recovery_timeout = Some(value),
            Setting::Priority(value) => {
                let (key, must) = ("priority", "left to policies and migrations");
                return Err(SettingError::Type { key, value: value.to_string(), must });
            }
            other @ (Setting::BandwidthPerMigration(_)
            | Setting::CompletionTimeoutPerGib(_)
            | Setting::ProgressTimeout(_)
            | Setting::AllowPostCopy(_)
            | Setting::PostCopyTrigger(_)
            | Setting::AllowAutoConverge(_)
            | Setting::AllowWorkloadDisruption(_)
            | Setting::MaxDowntimeMs(_)
            | Setting::Audit(_)) => self.migration.put(other, "the cluster")?,
        }
        Ok(())
    }

    /// The keys that are set.
    pub fn entries(&self) -> Vec<(&'static str, Shown)> {
        let count = |value: Option<u32>| value.map(|value| Shown::Whole(u64::from(value)));
        let own = [
            ("parallelMigrationsPerCluster", count(self.parallel_migrations_per_cluster)),
            ("parallelOutboundMigrationsPerNode", count(self.parallel_outbound_migrations_per_node)),
            ("parallelInboundMigrationsPerNode", count(self.parallel_inbound_migrations_per_node)),
            ("network", self.network.clone().map(Shown::Text)),
            ("nodeBandwidth", self.node_bandwidth.map(|value| Shown::Text(value.to_string()))),
            ("recoveryTimeout", self.recovery_timeout.map(Shown::Whole)),
        ];
        let own = own.into_iter().filter_map(|(key, value)| Some((key, value?)));
        self.migration.entries().into_iter().chain(own).collect()
    }

    /// How many may run at once.
    pub fn limits(&self) -> ParallelLimits {
        let defaults = ParallelLimits::default();
        let outbound = self.parallel_outbound_migrations_per_node.unwrap_or(defaults.outbound);
        ParallelLimits {
            cluster: self.parallel_migrations_per_cluster.unwrap_or(defaults.cluster),
            outbound,
            inbound: self.parallel_inbound_migrations_per_node.unwrap_or(outbound),
        }
    }
}
