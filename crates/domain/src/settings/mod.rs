//! Every setting: its key, its unit, its range, and who may set it.
//!
//! ```text
//!   text or manifest ─▶ Setting (checked) ─▶ ClusterSettings   the one settings object
//!                                        └─▶ Overrides         a policy's, or one migration's: unset inherits
//!   ClusterSettings ◀ policy ◀ migration ─▶ resolve ─▶ Resolved (with origins) ─▶ Settings, for a guest of this size
//! ```
//!
//! Always true: an explicit 0 is a value; a key or value that is refused changes nothing and is named with its rule;
//! what is unset stays unset, so that deleting a key restores its default.

mod cluster;
mod resolve;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::precopy::Limits;
use crate::quantity::{Quantity, QuantityError};
use crate::units::Bandwidth;

pub use cluster::ClusterSettings;
pub use resolve::{Layers, Origin, Resolved, Shown, Sourced, resolve};

/// Greatest `maxDowntimeMs`.
pub const DOWNTIME_MS_MAX: u64 = 2_000_000;
/// Greatest time-out in seconds: 68 years, beyond which none is meant.
const SECONDS_MAX: u64 = i32::MAX as u64;
/// Greatest limit of migrations that run at once.
const PARALLEL_MAX: u64 = i32::MAX as u64;
/// Longest name of a network, in bytes.
const NETWORK_BYTES_MAX: usize = 63;

/// What holds for one migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Bytes per second of UDP payload that the source may send.
    pub bandwidth: Bandwidth,
    /// Downtime and time limits, and what may be done at the deadline.
    pub limits: Limits,
    /// How long a migration whose link is lost waits for it; `None`: for ever.
    pub recovery_timeout: Option<Duration>,
    /// Bytes per second that all migrations that leave the source's node share.
    pub node_bandwidth: Bandwidth,
    /// After a stop-and-copy the target's pages are compared with the source's.
    pub audit: bool,
}

/// When post-copy begins, where it is allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PostCopyTrigger {
    /// At the deadline.
    #[default]
    Deadline,
    /// As soon as convergence is shown impossible.
    Early,
}

/// A class of the queue. Greater goes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// After the others.
    Low,
    /// As most.
    #[default]
    Normal,
    /// Before the others.
    High,
    /// To empty a node. Nobody asks for it but a drain.
    Drain,
}

/// What a policy, or one migration, sets above the cluster's settings. Unset inherits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Overrides {
    /// Bytes per second; 0: no limit.
    pub bandwidth_per_migration: Option<Quantity>,
    /// Seconds per GiB; 0: no deadline.
    #[serde(rename = "completionTimeoutPerGiB")]
    pub completion_timeout_per_gib: Option<u64>,
    /// Seconds; 0: off.
    pub progress_timeout: Option<u64>,
    /// Milliseconds, 1 to 2,000,000.
    pub max_downtime_ms: Option<u64>,
    /// At the deadline switch to post-copy.
    pub allow_post_copy: Option<bool>,
    /// When post-copy begins.
    pub post_copy_trigger: Option<PostCopyTrigger>,
    /// Throttle the guest.
    pub allow_auto_converge: Option<bool>,
    /// Pause the guest to finish.
    pub allow_workload_disruption: Option<bool>,
    /// After a stop-and-copy compare the target's pages with the source's.
    pub audit: Option<bool>,
    /// Class of the queue.
    pub priority: Option<Priority>,
}

/// One key with its checked value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the key of that name; see docs/settings.md")]
pub enum Setting {
    BandwidthPerMigration(Quantity),
    CompletionTimeoutPerGib(u64),
    ParallelMigrationsPerCluster(u32),
    ParallelOutboundMigrationsPerNode(u32),
    ParallelInboundMigrationsPerNode(u32),
    ProgressTimeout(u64),
    AllowPostCopy(bool),
    PostCopyTrigger(PostCopyTrigger),
    AllowAutoConverge(bool),
    AllowWorkloadDisruption(bool),
    MaxDowntimeMs(u64),
    Network(String),
    NodeBandwidth(Quantity),
    RecoveryTimeout(u64),
    Audit(bool),
    Priority(Priority),
}

/// A value as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given<'a> {
    /// Behind `key=`: it is what the key makes of it.
    Word(&'a str),
    /// A string of a manifest.
    Text(&'a str),
    /// A number of a manifest, as it is written.
    Number(&'a str),
    /// `true` or `false` of a manifest.
    Bool(bool),
    /// A list or a map.
    Other(&'static str),
}

/// Why a setting was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// It is not `key=value`.
    #[error("{0:?} is not key=value (for example bandwidthPerMigration=64Mi)")]
    Form(String),
    /// No such key.
    #[error("no setting {key:?}; there are {known}")]
    Key {
        /// What was written.
        key: String,
        /// All that there are.
        known: String,
    },
    /// It is not a policy's or a migration's.
    #[error("{key} is set for the whole cluster, in liveMigrationConfig; {here} sets {known}")]
    NotHere {
        /// The key.
        key: &'static str,
        /// Where it was set.
        here: &'static str,
        /// What can be set there.
        known: String,
    },
    /// No quantity.
    #[error("{key}: {source}")]
    Quantity {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        source: QuantityError,
    },
    /// Out of its range.
    #[error("{key} is {value:?}; it must be a whole number from {min} to {max}")]
    Range {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// Of another type, or not one of a few words.
    #[error("{key} is {value:?}; it must be {must}")]
    Type {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What it must be.
        must: &'static str,
    },
}

/// Keys that a policy and a migration may set.
pub const OVERRIDABLE: [&str; 10] = [
    "bandwidthPerMigration",
    "completionTimeoutPerGiB",
    "progressTimeout",
    "allowPostCopy",
    "postCopyTrigger",
    "allowAutoConverge",
    "allowWorkloadDisruption",
    "maxDowntimeMs",
    "audit",
    "priority",
];
/// Keys that only the cluster's settings object has.
pub const CLUSTER_ONLY: [&str; 6] = [
    "parallelMigrationsPerCluster",
    "parallelOutboundMigrationsPerNode",
    "parallelInboundMigrationsPerNode",
    "network",
    "nodeBandwidth",
    "recoveryTimeout",
];

impl Setting {
    /// Reads and checks one.
    pub fn read(key: &str, given: Given<'_>) -> Result<Self, SettingError> {
        Ok(match key {
            "bandwidthPerMigration" => Self::BandwidthPerMigration(quantity("bandwidthPerMigration", given)?),
            "completionTimeoutPerGiB" => {
                Self::CompletionTimeoutPerGib(whole("completionTimeoutPerGiB", given, 0, SECONDS_MAX)?)
            }
            "parallelMigrationsPerCluster" => {
                Self::ParallelMigrationsPerCluster(parallel("parallelMigrationsPerCluster", given)?)
            }
            "parallelOutboundMigrationsPerNode" => {
                Self::ParallelOutboundMigrationsPerNode(parallel("parallelOutboundMigrationsPerNode", given)?)
            }
            "parallelInboundMigrationsPerNode" => {
                Self::ParallelInboundMigrationsPerNode(parallel("parallelInboundMigrationsPerNode", given)?)
            }
            "progressTimeout" => Self::ProgressTimeout(whole("progressTimeout", given, 0, SECONDS_MAX)?),
            "allowPostCopy" => Self::AllowPostCopy(truth("allowPostCopy", given)?),
            "postCopyTrigger" => Self::PostCopyTrigger(word("postCopyTrigger", given, "deadline or early")?),
            "allowAutoConverge" => Self::AllowAutoConverge(truth("allowAutoConverge", given)?),
            "allowWorkloadDisruption" => {
                Self::AllowWorkloadDisruption(truth("allowWorkloadDisruption", given)?)
            }
            "maxDowntimeMs" => Self::MaxDowntimeMs(whole("maxDowntimeMs", given, 1, DOWNTIME_MS_MAX)?),
            "network" => Self::Network(network(given)?),
            "nodeBandwidth" => Self::NodeBandwidth(quantity("nodeBandwidth", given)?),
            "recoveryTimeout" => Self::RecoveryTimeout(whole("recoveryTimeout", given, 0, SECONDS_MAX)?),
            "audit" => Self::Audit(truth("audit", given)?),
            "priority" => Self::Priority(word("priority", given, "low, normal or high")?),
            other => {
                let known = OVERRIDABLE.iter().chain(&CLUSTER_ONLY).copied().collect::<Vec<_>>().join(", ");
                return Err(SettingError::Key { key: other.chars().take(64).collect(), known });
            }
        })
    }
}

impl Overrides {
    /// Takes one `key=value`.
    pub fn set(&mut self, text: &str) -> Result<(), SettingError> {
        let no_form = || SettingError::Form(text.chars().take(64).collect());
        let (key, value) = text.split_once('=').ok_or_else(no_form)?;
        self.put(Setting::read(key, Given::Word(value))?, "a migration")
    }

    /// Takes one; `here` says where it was written, for the message.
    pub fn put(&mut self, setting: Setting, here: &'static str) -> Result<(), SettingError> {
        let not_here = |key| Err(SettingError::NotHere { key, here, known: OVERRIDABLE.join(", ") });
        match setting {
            Setting::BandwidthPerMigration(value) => self.bandwidth_per_migration = Some(value),
            Setting::CompletionTimeoutPerGib(value) => self.completion_timeout_per_gib = Some(value),
            Setting::ProgressTimeout(value) => self.progress_timeout = Some(value),
            Setting::AllowPostCopy(value) => self.allow_post_copy = Some(value),
            Setting::PostCopyTrigger(value) => self.post_copy_trigger = Some(value),
            Setting::AllowAutoConverge(value) => self.allow_auto_converge = Some(value),
            Setting::AllowWorkloadDisruption(value) => self.allow_workload_disruption = Some(value),
            Setting::MaxDowntimeMs(value) => self.max_downtime_ms = Some(value),
            Setting::Audit(value) => self.audit = Some(value),
            Setting::Priority(value) => self.priority = Some(value),
            Setting::ParallelMigrationsPerCluster(_) => return not_here("parallelMigrationsPerCluster"),
            Setting::ParallelOutboundMigrationsPerNode(_) => {
                return not_here("parallelOutboundMigrationsPerNode");
            }
            Setting::ParallelInboundMigrationsPerNode(_) => {
                return not_here("parallelInboundMigrationsPerNode");
            }
            Setting::Network(_) => return not_here("network"),
            Setting::NodeBandwidth(_) => return not_here("nodeBandwidth"),
            Setting::RecoveryTimeout(_) => return not_here("recoveryTimeout"),
        }
        Ok(())
    }

    /// The same values, each checked as if it had been written; for those that came in another way.
    pub fn check(&self) -> Result<(), SettingError> {
        let within = |key, value: Option<u64>, min, max| match value {
            Some(value) if !(min..=max).contains(&value) => {
                Err(SettingError::Range { key, value: value.to_string(), min, max })
            }
            Some(_) | None => Ok(()),
        };
        if self.priority == Some(Priority::Drain) {
            let (key, must) = ("priority", "low, normal or high");
            return Err(SettingError::Type { key, value: Priority::Drain.to_string(), must });
        }
        within("completionTimeoutPerGiB", self.completion_timeout_per_gib, 0, SECONDS_MAX)?;
        within("progressTimeout", self.progress_timeout, 0, SECONDS_MAX)?;
        within("maxDowntimeMs", self.max_downtime_ms, 1, DOWNTIME_MS_MAX)
    }

    /// These above what was set before.
    pub fn above(self, before: Self) -> Self {
        Self {
            bandwidth_per_migration: self.bandwidth_per_migration.or(before.bandwidth_per_migration),
            completion_timeout_per_gib: self.completion_timeout_per_gib.or(before.completion_timeout_per_gib),
            progress_timeout: self.progress_timeout.or(before.progress_timeout),
            max_downtime_ms: self.max_downtime_ms.or(before.max_downtime_ms),
            allow_post_copy: self.allow_post_copy.or(before.allow_post_copy),
            post_copy_trigger: self.post_copy_trigger.or(before.post_copy_trigger),
            allow_auto_converge: self.allow_auto_converge.or(before.allow_auto_converge),
            allow_workload_disruption: self.allow_workload_disruption.or(before.allow_workload_disruption),
            audit: self.audit.or(before.audit),
            priority: self.priority.or(before.priority),
        }
    }

    /// The keys that are set, in the order of the documentation.
    pub fn entries(&self) -> Vec<(&'static str, Shown)> {
        let Self {
            bandwidth_per_migration,
            completion_timeout_per_gib,
            progress_timeout,
            max_downtime_ms,
            allow_post_copy,
            post_copy_trigger,
            allow_auto_converge,
            allow_workload_disruption,
            audit,
            priority,
        } = self;
        let text = |word: &dyn ToString| Shown::Text(word.to_string());
        let all = [
            ("bandwidthPerMigration", bandwidth_per_migration.map(|value| text(&value))),
            ("completionTimeoutPerGiB", completion_timeout_per_gib.map(Shown::Whole)),
            ("progressTimeout", progress_timeout.map(Shown::Whole)),
            ("allowPostCopy", allow_post_copy.map(Shown::Truth)),
            ("postCopyTrigger", post_copy_trigger.map(|value| text(&value))),
            ("allowAutoConverge", allow_auto_converge.map(Shown::Truth)),
            ("allowWorkloadDisruption", allow_workload_disruption.map(Shown::Truth)),
            ("maxDowntimeMs", max_downtime_ms.map(Shown::Whole)),
            ("audit", audit.map(Shown::Truth)),
            ("priority", priority.map(|value| text(&value))),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// What these make of the defaults, for a guest of this size.
    pub fn effective(&self, memory_bytes: u64) -> Settings {
        let cluster = ClusterSettings::default();
        resolve(Layers { cluster: &cluster, policy: None, migration: Some(self) }).settings(memory_bytes)
    }
}

// ---- reading values --------------------------------------------------------------------------------------------

impl Given<'_> {
    fn shown(self) -> String {
        match self {
            Self::Word(text) | Self::Text(text) | Self::Number(text) => text.chars().take(40).collect(),
            Self::Bool(truth) => truth.to_string(),
            Self::Other(what) => what.to_owned(),
        }
    }
}

fn wrong(key: &'static str, given: Given<'_>, must: &'static str) -> SettingError {
    SettingError::Type { key, value: given.shown(), must }
}

fn quantity(key: &'static str, given: Given<'_>) -> Result<Quantity, SettingError> {
    match given {
        Given::Word(text) | Given::Text(text) | Given::Number(text) => {
            text.parse().map_err(|source| SettingError::Quantity { key, source })
        }
        Given::Bool(_) | Given::Other(_) => Err(wrong(key, given, "a quantity such as 64Mi, or 0")),
    }
}

fn whole(key: &'static str, given: Given<'_>, min: u64, max: u64) -> Result<u64, SettingError> {
    match given {
        Given::Word(text) | Given::Number(text) => {
            let number = text.parse().ok().filter(|number| (min..=max).contains(number));
            number.ok_or_else(|| SettingError::Range { key, value: given.shown(), min, max })
        }
        Given::Text(_) => Err(wrong(key, given, "a number, without quotes")),
        Given::Bool(_) | Given::Other(_) => Err(wrong(key, given, "a whole number")),
    }
}

fn parallel(key: &'static str, given: Given<'_>) -> Result<u32, SettingError> {
    whole(key, given, 0, PARALLEL_MAX).map(|value| u32::try_from(value).unwrap_or(u32::MAX))
}

fn truth(key: &'static str, given: Given<'_>) -> Result<bool, SettingError> {
    match given {
        Given::Bool(truth) => Ok(truth),
        Given::Word("true") => Ok(true),
        Given::Word("false") => Ok(false),
        Given::Word(_) | Given::Text(_) | Given::Number(_) | Given::Other(_) => {
            Err(wrong(key, given, "true or false, without quotes"))
        }
    }
}

fn word<T: FromStr>(key: &'static str, given: Given<'_>, must: &'static str) -> Result<T, SettingError> {
    match given {
        Given::Word(text) | Given::Text(text) => text.parse().map_err(|_| wrong(key, given, must)),
        Given::Number(_) | Given::Bool(_) | Given::Other(_) => Err(wrong(key, given, must)),
    }
}

fn network(given: Given<'_>) -> Result<String, SettingError> {
    let must = "the name of a network in the nodes' configs: at most 63 of a-z, 0-9, '-', '.' and '/'";
    match given {
        Given::Word(text) | Given::Text(text) if is_network(text) => Ok(text.to_owned()),
        Given::Word(_) | Given::Text(_) | Given::Number(_) | Given::Bool(_) | Given::Other(_) => {
            Err(wrong("network", given, must))
        }
    }
}

/// Whether this can be the name of a network.
pub fn is_network(text: &str) -> bool {
    let in_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'/');
    !text.is_empty() && text.len() <= NETWORK_BYTES_MAX && text.bytes().all(in_name)
}

/// The word is none of the few that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchWord;

impl FromStr for PostCopyTrigger {
    type Err = NoSuchWord;
    fn from_str(text: &str) -> Result<Self, NoSuchWord> {
        match text {
            "deadline" => Ok(Self::Deadline),
            "early" => Ok(Self::Early),
            _ => Err(NoSuchWord),
        }
    }
}

impl fmt::Display for PostCopyTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deadline => "deadline",
            Self::Early => "early",
        })
    }
}

impl FromStr for Priority {
    type Err = NoSuchWord;
    fn from_str(text: &str) -> Result<Self, NoSuchWord> {
        match text {
            "low" => Ok(Self::Low),
            "normal" => Ok(Self::Normal),
            "high" => Ok(Self::High),
            _ => Err(NoSuchWord),
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Drain => "drain",
        })
    }
}
