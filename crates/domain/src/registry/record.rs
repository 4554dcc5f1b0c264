//! What was asked of a migration and what became of it, for people and for the queue. Nothing here decides who runs.
//!
//! Always true: steps are in the order of the log, with replicated time; at most [`STEPS_MAX`] are kept, the first
//! among them.

use serde::{Deserialize, Serialize};

use crate::ids::NodeName;
use crate::ownership::{Attempt, Phase};
use crate::progress::Measured;
use crate::settings::Overrides;

/// Steps that are kept of one migration. One that is declined and admitted again and again makes two each time.
const STEPS_MAX: usize = 32;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The node that was asked for, or any.
    pub target: Option<NodeName>,
    /// Its settings above the cluster's.
    pub overrides: Overrides,
    /// Its place in the order of asking.
    pub sequence: u64,
    /// Nodes that have refused it, in this order: they come last.
    pub declined: Vec<NodeName>,
    /// From where to where, once it was admitted.
    pub route: Option<(NodeName, NodeName)>,
    /// The phases that it came through.
    pub steps: Vec<Step>,
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

/// A migration that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// As it ended.
    pub attempt: Attempt,
    /// How it came to that.
    pub record: Record,
}

impl Record {
    pub(super) fn new(target: Option<NodeName>, overrides: Overrides, sequence: u64) -> Self {
        Self {
            target,
            overrides,
            sequence,
            declined: Vec::new(),
            route: None,
            steps: Vec::new(),
            measured: Measured::default(),
        }
    }

    /// Takes down the phase, if it is another than the last one.
    pub(super) fn note(&mut self, time_ms: u64, phase: &Phase) {
        if self.steps.last().is_some_and(|last| last.phase == phase.name()) {
            return;
        }
        if let Phase::Preparing { source, target } = phase {
            self.route = Some((source.node.clone(), target.clone()));
        }
        if self.steps.len() == STEPS_MAX {
            self.steps.remove(1);
        }
        let reason = phase.failure().map(str::to_owned);
        self.steps.push(Step { time_ms, phase: phase.name().to_owned(), reason });
    }

    /// When it was asked for, in replicated milliseconds.
    pub fn asked_ms(&self) -> u64 {
        self.steps.first().map_or(0, |step| step.time_ms)
    }
}
