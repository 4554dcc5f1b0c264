//! `godwit migrate` and `godwit migration`: moves of guests.

use clap::{Args, Subcommand, ValueEnum};
use godwit_admin::render;
use godwit_domain::{MigrationId, NodeName, Overrides, Priority};
use godwit_wire::admin::{Act, MigrationRow, MoveMode, POST_COPY_PRICE};

use super::asking::{Asking, Changing};
use super::failure::Failure;
use super::guest::{Named, label};
use super::object::Trying;
use super::wait;

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
    /// Labels that its target must carry, for this attempt: key=value, several with commas between them
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    node_selector: Vec<(String, String)>,
    /// How it moves [default: as its settings say]; post-copy: at once, where allowPostCopy is in force
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Its class in the queue
    #[arg(long, value_enum)]
    priority: Option<Class>,
    /// A setting for this migration alone, above its policy's: bandwidthPerMigration, completionTimeoutPerGiB,
    /// progressTimeout, allowPostCopy, postCopyTrigger, allowAutoConverge, allowWorkloadDisruption, maxDowntimeMs,
    /// audit or priority
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<Setting>,
    #[command(flatten)]
    trying: Trying,
    /// Wait until it is over, and show how it goes. Ctrl-C leaves it going
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    #[command(flatten)]
    changing: Changing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Its memory first, then the guest
    PreCopy,
    /// The guest at once, its memory after it: slower meanwhile, and lost if its source is lost for good
    PostCopy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Class {
    /// After the others
    Low,
    /// As most
    Normal,
    /// Before the others
    High,
}

#[derive(Debug, Subcommand)]
pub(super) enum Migration {
    /// List all migrations that are kept
    List(Asking),
    /// Show a migration
    Show(OneMigration),
    /// Why a migration waits, goes where it goes, and under which settings
    Explain(OneMigration),
    /// Print each change of a migration until it is over
    Watch(OneMigration),
    /// Change a migration's settings, at once
    Set {
        /// The migration
        migration: MigrationId,
        /// What is set, the rest stays: bandwidthPerMigration, completionTimeoutPerGiB, progressTimeout, allowPostCopy,
        /// postCopyTrigger, allowAutoConverge, allowWorkloadDisruption, maxDowntimeMs, audit or
        /// priority
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = setting)]
        settings: Vec<Setting>,
        #[command(flatten)]
        changing: Changing,
    },
    /// End a migration before its hand-over: the guest stays where it is
    Cancel {
        /// The migration
        migration: MigrationId,
        #[command(flatten)]
        changing: Changing,
    },
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
        let Self { named, to, name, node_selector, mode, priority, set, trying, wait, changing } = self;
        let mut overrides = overrides(&set)?;
        overrides.priority = priority.map(Class::priority).or(overrides.priority);
        let dry_run = trying.is_dry();
        if matches!(mode, Some(Mode::PostCopy)) {
            super::talk(POST_COPY_PRICE);
        }
        let act = Act::Migrate {
            guest: named.name()?,
            migration: name,
            to,
            selector: node_selector.into_iter().collect(),
            overrides,
            mode: mode.map(Mode::as_asked),
            dry_run,
        };
        match (dry_run, wait) {
            (true, _) => changing.asking.show(act, render::verdicts),
            (false, true) => wait::migrate(&changing, act),
            (false, false) => changing.show(act, render::migration),
        }
    }
}

impl Mode {
    fn as_asked(self) -> MoveMode {
        match self {
            Self::PreCopy => MoveMode::PreCopy,
            Self::PostCopy => MoveMode::PostCopy,
        }
    }
}

impl Class {
    fn priority(self) -> Priority {
        match self {
            Self::Low => Priority::Low,
            Self::Normal => Priority::Normal,
            Self::High => Priority::High,
        }
    }
}

impl Migration {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(asking) => {
                let table = |rows: &Vec<MigrationRow>| render::migrations(rows, asking.is_wide());
                asking.show(Act::MigrationList, table)
            }
            Self::Show(OneMigration { migration, asking }) => {
                asking.show(Act::MigrationShow { migration }, render::migration)
            }
            Self::Explain(OneMigration { migration, asking }) => {
                asking.show(Act::MigrationExplain { migration }, render::migration_explained)
            }
            Self::Watch(OneMigration { migration, asking }) => wait::watch(&asking, &migration),
            Self::Set { migration, settings, changing } => {
                let act = Act::MigrationSet { migration, overrides: overrides(&settings)? };
                changing.show(act, render::migration)
            }
            Self::Cancel { migration, changing } => {
                changing.show(Act::MigrationCancel { migration }, render::migration)
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
