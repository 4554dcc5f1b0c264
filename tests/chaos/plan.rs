//! How long a run takes and what chance it is made of.
//!
//! ```text
//!   CHAOS_MINUTES=11 CHAOS_SEED=4711 cargo test -p godwit --test chaos under_faults
//! ```
//!
//! The seed decides what is done, to whom and for how long. When something happens in a phase of a migration depends on
//! the machine too, so a replay is the same schedule, not the same history.

use std::str::FromStr;
use std::time::Duration;

use crate::courses::Stage;
use crate::faults::Kind;

const MINUTES_VARIABLE: &str = "CHAOS_MINUTES";
const SEED_VARIABLE: &str = "CHAOS_SEED";
/// See [`Plan::patience`].
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Without a word about it: enough to see that the suite works.
const MINUTES_DEFAULT: f64 = 1.0;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How long faults go on.
    pub(crate) length: Duration,
    /// What everything random comes from.
    pub(crate) seed: u64,
    /// A bug that every node has.
    pub(crate) planted: Option<&'static str>,
    /// Guests at once.
    pub(crate) guests: usize,
    /// What happens more than by chance.
    pub(crate) lean: Option<Lean>,
    /// How long it may take, once nothing is broken any more, until every migration is over and every node answers.
    pub(crate) patience: Duration,
    /// The named network that pages go over; none: the default one.
    pub(crate) network: Option<&'static str>,
}

/// Each migration of which a side has come to this stage is struck in this way. Nodes that do not vote hear and say everything
/// late, so that what is between two entries lasts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lean {
    /// When.
    pub(crate) stage: Stage,
    /// Who.
    pub(crate) side: Side,
    /// How.
    pub(crate) kind: Kind,
    /// How long after it, in milliseconds.
    pub(crate) after_ms: u64,
    /// A host that is killed is fenced.
    pub(crate) fences: bool,
}

/// A side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Target,
}

impl Plan {
    /// As the environment says.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let minutes: f64 =
            variable(MINUTES_VARIABLE, "minutes such as 10 or 0.5")?.unwrap_or(MINUTES_DEFAULT);
        if !(0.1..=24.0 * 60.0).contains(&minutes) {
            return Err(format!("{MINUTES_VARIABLE} must be from 0.1 to 1440, not {minutes}"));
        }
        // Short, since people copy it.
        let seed = variable(SEED_VARIABLE, "a whole number")?.unwrap_or_else(|| u64::from(fastrand::u32(..)));
        Ok(Self {
            length: Duration::from_secs_f64(minutes * 60.0),
            seed,
            planted: None,
            guests: 20,
            lean: None,
            patience: SETTLE_TIMEOUT,
            network: None,
        })
    }

    /// The line that runs it again.
    pub(crate) fn replay(&self, test: &str) -> String {
        let minutes = self.length.as_secs_f64() / 60.0;
        format!(
            "{MINUTES_VARIABLE}={minutes:.2} {SEED_VARIABLE}={} cargo test -p godwit --test chaos {test}",
            self.seed
        )
    }
}

fn variable<T: FromStr>(name: &str, must: &str) -> Result<Option<T>, String> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{name} must be {must}, not {text:?}"))
}
