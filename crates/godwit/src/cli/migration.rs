//! `godwit migrate` and `godwit migration`: moves of guests.

use clap::{Args, Subcommand};
use godwit_admin::render;
use godwit_domain::{MigrationId, NodeName, Overrides};
use godwit_wire::admin::{Act, MigrationRow};

use super::asking::Asking;
use super::failure::Failure;
use super::follow;
use super::guest::Named;

#[derive(Debug, Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    named: Named,
    /// Where to [default: wherever it fits best]
    #[arg(long, value_name = "NODE")]
    to: Option<NodeName>,
    /// The migration's name [default: made from the guest's]
    #[arg(long)]
    name: Option<MigrationId>,
    /// A setting for this migration alone, above the cluster's: bandwidthPerMigration, completionTimeoutPerGiB,
    /// progressTimeout or maxDowntimeMs
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<Setting>,
    /// Wait until it is over, and show how it goes. Ctrl-C leaves it going
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    pub(super) asking: Asking,
}

#[derive(Debug, Subcommand)]
pub(super) enum Migration {
    /// List all migrations that are kept
    List(Asking),
    /// Show a migration
    Show(OneMigration),
    /// Print each change of a migration until it is over
    Watch(OneMigration),
    /// Change a migration's settings, at once
    Set {
        /// The migration
        migration: MigrationId,
        /// What is set, the rest stays: bandwidthPerMigration, completionTimeoutPerGiB, progressTimeout or maxDowntimeMs
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = setting)]
        settings: Vec<Setting>,
        #[command(flatten)]
        asking: Asking,
    },
    /// End a migration before its hand-over: the guest stays where it is
    Cancel(OneMigration),
}

/// A migration that is there, and where it is asked for.
#[derive(Debug, Args)]
pub(super) struct OneMigration {
    /// The migration
    migration: MigrationId,
    #[command(flatten)]
    asking: Asking,
}

/// `key=value` that has been checked.
type Setting = String;

fn setting(text: &str) -> Result<Setting, godwit_domain::settings::SettingError> {
    Overrides::default().set(text).map(|()| text.to_owned())
}

/// All of them together; of one that is given twice the last counts.
fn overrides(settings: &[Setting]) -> Result<Overrides, Failure> {
    let mut overrides = Overrides::default();
    for setting in settings {
        overrides.set(setting).map_err(Failure::usage)?;
    }
    Ok(overrides)
}

impl Migrate {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { named, to, name, set, wait, asking } = self;
        let overrides = overrides(&set)?;
        let act = Act::Migrate { guest: named.name()?, migration: name, to, overrides };
        if wait { follow::migrate(&asking, act) } else { asking.show(act, render::migration) }
    }
}

impl Migration {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(asking) => {
                asking.show(Act::MigrationList, |rows: &Vec<MigrationRow>| render::migrations(rows))
            }
            Self::Show(OneMigration { migration, asking }) => {
                asking.show(Act::MigrationShow { migration }, render::migration)
            }
            Self::Watch(OneMigration { migration, asking }) => follow::watch(&asking, &migration),
            Self::Set { migration, settings, asking } => {
                let act = Act::MigrationSet { migration, overrides: overrides(&settings)? };
                asking.show(act, render::migration)
            }
            Self::Cancel(OneMigration { migration, asking }) => {
                asking.show(Act::MigrationCancel { migration }, render::migration)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_add_up_and_the_last_counts() {
        let given = ["maxDowntimeMs=50", "progressTimeout=0", "maxDowntimeMs=70"].map(str::to_owned);
        let overrides = overrides(&given).expect("good ones");
        assert_eq!((overrides.max_downtime_ms, overrides.progress_timeout), (Some(70), Some(0)));
        assert!(setting("maxDowntimeMs=0").is_err() && setting("speed=1").is_err());
    }
}
