//! What was asked of a migration and what became of it, for people and for the queue. Nothing here decides who runs.
//!
//! Always true: steps and changes are in the order of the log, with replicated time; at most [`STEPS_MAX`] of each are
//! kept, the first among them.

use serde::{Deserialize, Serialize};

use crate::ids::NodeName;
use crate::labels::Labels;
use crate::ownership::{Attempt, Phase};
use crate::policy::PolicyName;
use crate::progress::Measured;
use crate::settings::{Overrides, Priority};

/// Steps that are kept of one migration. One that is declined and admitted again and again makes two each time.
const STEPS_MAX: usize = 32;
/// How long a migration waits for a node that could take its guest, if it does not say, in seconds.
pub const UNSCHEDULABLE_TIMEOUT_S: u64 = 300;

/// The step of a target that has said yes and prepares its runner.
pub const PREPARING_TARGET: &str = "PreparingTarget";
/// The step of a source that sends pages.
pub const RUNNING: &str = "Running";

/// What is wished of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The node that it shall go to, or any.
    pub target: Option<NodeName>,
    /// Labels that its target must carry, for this attempt alone (`addedNodeSelector`).
    pub selector: Labels,
    /// Its settings above the policy's.
    pub overrides: Overrides,
    /// The node whose drain has asked for it.
    pub drains: Option<NodeName>,
    /// A node that comes last: the one where the attempt before has failed.
    pub avoid: Option<NodeName>,
    /// How long it waits for a node that could take its guest, in seconds.
    pub unschedulable_timeout_s: u64,
    /// Post-copy as soon as the target is reached, not only at a deadline.
    pub post_copy_at_once: bool,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            target: None,
            selector: Labels::new(),
            overrides: Overrides::default(),
            drains: None,
            avoid: None,
            unschedulable_timeout_s: UNSCHEDULABLE_TIMEOUT_S,
            post_copy_at_once: false,
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What was asked for; its overrides are the present ones.
    pub wish: Wish,
    /// The overrides that it was asked with.
    pub asked_overrides: Overrides,
    /// Its class in the queue, before it ages.
    pub class: Priority,
    /// The policy in force.
    pub policy: Option<PolicyName>,
    /// Its place in the order of asking.
    pub sequence: u64,
    /// Nodes that have refused it, in this order: they come last.
    pub declined: Vec<NodeName>,
    /// From where to where, once it was admitted.
    pub route: Option<(NodeName, NodeName)>,
    /// The migration network that it was admitted for; `None`: the default one.
    pub network: Option<String>,
    /// Since when no node can take its guest, in replicated milliseconds.
    pub unplaceable_since_ms: Option<u64>,
    /// The phases that it came through.
    pub steps: Vec<Step>,
    /// What was changed of its settings, by whatever.
    pub changes: Vec<Change>,
    /// What its two sides measured.
    pub measured: Measured,
}

/// A phase that a migration entered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Replicated time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The phase's name.
    pub phase: String,
    /// Why, if there is more to say than its name.
    pub reason: Option<String>,
}

/// Other settings hold for a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Replicated time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// What has changed them, and which, for people.
    pub what: String,
}

/// A migration that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// As it ended.
    pub attempt: Attempt,
    /// How it came to that.
    pub record: Record,
}

impl Record {
    pub(super) fn new(wish: Wish, sequence: u64) -> Self {
        Self {
            asked_overrides: wish.overrides,
            declined: wish.avoid.clone().into_iter().collect(),
            wish,
            class: Priority::Normal,
            policy: None,
            sequence,
            route: None,
            network: None,
            unplaceable_since_ms: None,
            steps: Vec::new(),
            changes: Vec::new(),
            measured: Measured::default(),
        }
    }

    /// Whether it was asked for in these words.
    pub(super) fn was_asked_as(&self, wish: &Wish) -> bool {
        Wish { overrides: self.asked_overrides, ..self.wish.clone() } == *wish
    }

    /// Takes down the phase, if it is another than the last one.
    pub(super) fn note(&mut self, time_ms: u64, phase: &Phase) {
        if let Phase::Preparing { source, target } = phase {
            self.route = Some((source.node.clone(), target.clone()));
        }
        // Further than the phase's own name already: a pause that was called off is no step back.
        if let (Phase::Preparing { .. }, Some(PREPARING_TARGET)) | (Phase::Copying { .. }, Some(RUNNING)) =
            (phase, self.last_step())
        {
            return;
        }
        self.note_step(time_ms, phase.name(), phase.failure());
    }

    /// The last phase that it came to.
    pub fn last_step(&self) -> Option<&str> {
        self.steps.last().map(|step| step.phase.as_str())
    }

    pub(super) fn note_step(&mut self, time_ms: u64, phase: &str, reason: Option<&str>) {
        if self.steps.last().is_some_and(|last| last.phase == phase) {
            return;
        }
        if self.steps.len() == STEPS_MAX {
            self.steps.remove(1);
        }
        self.steps.push(Step { time_ms, phase: phase.to_owned(), reason: reason.map(str::to_owned) });
    }

    pub(super) fn note_change(&mut self, time_ms: u64, what: String) {
        if self.changes.len() == STEPS_MAX {
            self.changes.remove(1);
        }
        self.changes.push(Change { time_ms, what });
    }

    /// When it was asked for, in replicated milliseconds.
    pub fn asked_ms(&self) -> u64 {
        self.steps.first().map_or(0, |step| step.time_ms)
    }
}
