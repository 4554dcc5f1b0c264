//! What holds for one migration: the cluster's defaults, and what it was given above them.
//!
//! ```text
//!   defaults ◀── Overrides (key=value, unset inherits) ──▶ Settings, for a guest of this size
//! ```
//!
//! Always true: an explicit 0 is a value; a key or value that is refused changes nothing and is named with its rule.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::precopy::Limits;
use crate::quantity::{Quantity, QuantityError};
use crate::units::Bandwidth;

/// Greatest `maxDowntimeMs`.
pub const DOWNTIME_MS_MAX: u64 = 2_000_000;
/// Greatest time-out in seconds: 68 years, beyond which none is meant.
const SECONDS_MAX: u64 = i32::MAX as u64;

/// The limits of one migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Bytes per second of UDP payload that the source may send.
    pub bandwidth: Bandwidth,
    /// Downtime and time limits.
    pub limits: Limits,
}

/// What one migration was given above the cluster's settings.
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
}

/// Why a setting was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// It is not `key=value`.
    #[error("{0:?} is not key=value (for example bandwidthPerMigration=64Mi)")]
    Form(String),
    /// No such key.
    #[error(
        "no setting {0:?}; a migration has bandwidthPerMigration, completionTimeoutPerGiB, progressTimeout and \
         maxDowntimeMs"
    )]
    Key(String),
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
}

impl Overrides {
    /// Takes one `key=value`.
    pub fn set(&mut self, text: &str) -> Result<(), SettingError> {
        let (key, value) = text.split_once('=').ok_or_else(|| SettingError::Form(text.to_owned()))?;
        match key {
            "bandwidthPerMigration" => {
                let quantity = value.parse();
                let source = |source| SettingError::Quantity { key: "bandwidthPerMigration", source };
                self.bandwidth_per_migration = Some(quantity.map_err(source)?);
            }
            "completionTimeoutPerGiB" => {
                self.completion_timeout_per_gib =
                    Some(number("completionTimeoutPerGiB", value, 0, SECONDS_MAX)?);
            }
            "progressTimeout" => {
                self.progress_timeout = Some(number("progressTimeout", value, 0, SECONDS_MAX)?);
            }
            "maxDowntimeMs" => {
                self.max_downtime_ms = Some(number("maxDowntimeMs", value, 1, DOWNTIME_MS_MAX)?);
            }
            other => return Err(SettingError::Key(other.to_owned())),
        }
        Ok(())
    }

    /// The same values, each checked as if it had been written; for those that came in another way.
    pub fn check(&self) -> Result<(), SettingError> {
        let within = |key, value: Option<u64>, min, max| match value {
            Some(value) => number(key, &value.to_string(), min, max).map(drop),
            None => Ok(()),
        };
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
        }
    }

    /// What holds for a guest of this size.
    pub fn effective(&self, memory_bytes: u64) -> Settings {
        let defaults = Limits::defaults_for(memory_bytes);
        let seconds = |given: u64| (given > 0).then(|| Duration::from_secs(given));
        let limits = Limits {
            downtime_max: self.max_downtime_ms.map_or(defaults.downtime_max, Duration::from_millis),
            completion_timeout: self
                .completion_timeout_per_gib
                .map_or(defaults.completion_timeout, |given| {
                    (given > 0).then(|| Limits::completion_timeout(given, memory_bytes))
                }),
            progress_timeout: self.progress_timeout.map_or(defaults.progress_timeout, seconds),
        };
        let bandwidth = Bandwidth::from_setting(self.bandwidth_per_migration.map_or(0, Quantity::bytes));
        Settings { bandwidth, limits }
    }
}

fn number(key: &'static str, value: &str, min: u64, max: u64) -> Result<u64, SettingError> {
    let number = value.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| {
        let value = value.chars().take(40).collect();
        SettingError::Range { key, value, min, max }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_inherits_and_an_explicit_zero_is_a_value() {
        let gib = 1 << 30;
        let mut overrides = Overrides::default();
        assert_eq!(overrides.effective(6 * gib).limits.completion_timeout, Some(Duration::from_secs(4800)));
        for text in ["completionTimeoutPerGiB=0", "progressTimeout=0", "maxDowntimeMs=50"] {
            overrides.set(text).expect(text);
        }
        overrides.set("bandwidthPerMigration=64Mi").expect("a quantity");
        let Settings { bandwidth, limits } = overrides.effective(gib);
        assert_eq!((limits.completion_timeout, limits.progress_timeout), (None, None));
        assert_eq!(limits.downtime_max, Duration::from_millis(50));
        assert_eq!(bandwidth, Bandwidth::from_setting(64 << 20));
        let mut later = Overrides::default();
        later.set("completionTimeoutPerGiB=10").expect("a number");
        let both = later.above(overrides).effective(2 * gib).limits;
        assert_eq!(both.completion_timeout, Some(Duration::from_secs(20)));
        assert_eq!(both.downtime_max, Duration::from_millis(50));
    }

    #[test]
    fn what_is_refused_is_named_with_its_rule_and_changes_nothing() {
        let mut overrides = Overrides::default();
        for (text, word) in [
            ("bandwidth", "key=value"),
            ("bandwidth=1", "no setting"),
            ("bandwidthPerMigration=64mi", "64mi"),
            ("maxDowntimeMs=0", "1 to 2000000"),
            ("maxDowntimeMs=2000001", "1 to 2000000"),
            ("progressTimeout=-1", "progressTimeout"),
            ("completionTimeoutPerGiB=1.5", "whole number"),
        ] {
            let error = overrides.set(text).expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert_eq!(overrides, Overrides::default());
        assert!(Overrides { max_downtime_ms: Some(0), ..overrides }.check().is_err());
    }
}
