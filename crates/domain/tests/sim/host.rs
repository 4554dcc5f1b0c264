//! One host of the simulated world: its runners, what it keeps on disk, and the node process on it.

use std::collections::{BTreeSet, VecDeque};

use godwit_domain::agent::{Arrived, Local, Runner, RunnerState, Tombstone};
use godwit_domain::ownership::Mode;
use godwit_domain::{Epoch, InstanceId, MigrationId, planted};

/// A runner process. It outlives the node process.
pub(crate) struct Process {
    pub(crate) runner: Runner,
    /// How far the guest in it has come. A copy that is behind another is an older self.
    pub(crate) age: u64,
    /// The highest epoch that it ran under or sealed, as its own memory has it.
    pub(crate) highest: Epoch,
    /// The migration for which it was made.
    pub(crate) arriving: Option<MigrationId>,
}

/// What a node asks of a runner, on its way through the runner's socket.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Run(InstanceId, Epoch),
    Pause(InstanceId, Epoch),
    Seal(InstanceId),
    Destroy(InstanceId),
}

/// A migration that leaves this host, as the node process knows it. Gone with the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outbound {
    None,
    /// Pages are copied.
    Copying(MigrationId),
    /// The pause was asked for.
    Pausing(MigrationId, Epoch),
    /// The guest stands still, paused by this very process.
    Sealed {
        migration: MigrationId,
        epoch: Epoch,
        final_left: bool,
    },
}

/// See the module.
pub(crate) struct Host {
    pub(crate) up: bool,
    pub(crate) boot: u128,
    pub(crate) processes: Vec<Process>,
    pub(crate) tombstones: BTreeSet<InstanceId>,
    pub(crate) withheld: BTreeSet<(InstanceId, Epoch)>,
    /// How much of the log the node process has seen.
    pub(crate) view: usize,
    /// Where the log of its group begins.
    pub(crate) begins: usize,
    /// Where it has ended, if its group was lost and this host knows of no other.
    pub(crate) ends: Option<usize>,
    pub(crate) commands: VecDeque<Command>,
    pub(crate) outbound: Outbound,
    /// In post-copy, whether the mode of the hand-over under way is known to be that.
    pub(crate) mode: Mode,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            up: true,
            boot: 1,
            processes: Vec::new(),
            tombstones: BTreeSet::new(),
            withheld: BTreeSet::new(),
            view: 0,
            begins: 0,
            ends: None,
            commands: VecDeque::new(),
            outbound: Outbound::None,
            mode: Mode::StopAndCopy,
        }
    }

    /// The node process dies and starts again: it knows the oldest view, and unread commands are dropped.
    pub(crate) fn restart_node(&mut self) {
        self.view = self.begins;
        self.commands.clear();
        self.outbound = Outbound::None;
        if planted::is_on("testimony-in-memory") {
            self.withheld.clear();
        }
    }

    /// Power is cut: everything here is gone, records about runners as well as runners.
    pub(crate) fn die(&mut self) {
        self.restart_node();
        self.up = false;
        self.processes.clear();
        self.tombstones.clear();
        self.withheld.clear();
    }

    pub(crate) fn process(&mut self, instance: InstanceId) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.runner.instance == instance)
    }

    /// As the agent sees it.
    pub(crate) fn local(&self) -> Local {
        let transfers = match &self.outbound {
            Outbound::None => Vec::new(),
            Outbound::Copying(migration)
            | Outbound::Pausing(migration, _)
            | Outbound::Sealed { migration, .. } => vec![migration.clone()],
        };
        Local {
            runners: self.processes.iter().map(|process| process.runner.clone()).collect(),
            tombstones: self
                .tombstones
                .iter()
                .map(|instance| Tombstone { instance: *instance, reason: "given up".into() })
                .collect(),
            withheld: self.withheld.iter().copied().collect(),
            transfers,
        }
    }

    /// Whether a copy that has run stands here: one that an operator may go back to.
    pub(crate) fn has_paused(&self, instance: InstanceId) -> bool {
        self.processes.iter().any(|process| {
            process.runner.instance == instance && matches!(process.runner.state, RunnerState::Paused(_))
        })
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(|process| matches!(process.runner.state, RunnerState::Running(_)))
    }
}

impl Process {
    pub(crate) fn incoming(instance: InstanceId, made: Epoch, arrived: Option<Arrived>, whole: bool) -> Self {
        let state = RunnerState::Incoming { arrived };
        Self { runner: Runner { instance, state, made, whole }, age: 0, highest: Epoch(0), arriving: None }
    }

    /// The runner's own rule: never under an epoch that is not above all it knows.
    pub(crate) fn may_run_under(&self, epoch: Epoch) -> bool {
        epoch > self.highest || planted::is_on("resume-sealed")
    }
}
