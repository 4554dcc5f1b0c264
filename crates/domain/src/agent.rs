//! What a node owes about one guest, given what it has seen agreed and what lives on it. The tables of the hand-over,
//! as one function.
//!
//! ```text
//!   view (a prefix of the log, maybe old) ─┐
//!   runners, tombstones (what is here) ────┴─▶ duties ─▶ run, resume, relabel, seal, destroy, make, propose
//! ```
//!
//! Always true:
//! - a duty follows from view and runners alone, never from memory of having done it: done again it changes nothing, and
//!   a restarted node needs no recovery;
//! - an old view destroys nothing and starts nothing: what it names is compared with the epochs that the runners know;
//! - a sealed epoch is no licence: a paused runner is resumed only in a later one;
//! - absence proves nothing: only a tombstone says that a runner never started.
//!
//! Called at every wake-up: a view, a runner's answer, a restart. What a transfer under way does (pausing, closing,
//! calling off) is its session's; this is what holds beside and after it.

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, InstanceId, MigrationId, NodeName};
use crate::ownership::{Entry, Licence, Life, Mode, Ownership, Permits, Phase, Side, Testimony};
use crate::planted;

/// A runner of this guest on this node, as it says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    /// Itself.
    pub instance: InstanceId,
    /// What it does.
    pub state: RunnerState,
    /// The epoch that the node's view had when it was made: no view before it knows of it.
    pub made: Epoch,
    /// Every page of the guest is here.
    pub whole: bool,
}

/// What a runner does, with what it knows then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunnerState {
    /// It has never run. `arrived`: what was loaded into it, if something was.
    Incoming {
        /// The guest that was loaded.
        arrived: Option<Arrived>,
    },
    /// It runs under this epoch.
    Running(Epoch),
    /// It stands still; this epoch is the highest it ran under or sealed.
    Paused(Epoch),
}

/// A guest that was loaded into a runner and has not run there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrived {
    /// The migration that brought it; `None`: it is new, made here.
    pub migration: Option<MigrationId>,
    /// The epoch that was sealed when it was saved; 0 for a new one.
    pub sealed: Epoch,
}

/// Proof, on disk before the runner was killed, that it never started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The runner.
    pub instance: InstanceId,
    /// Why it was given up, for people.
    pub reason: String,
}

/// What is on a node of one guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Local {
    /// Its runners: more than one only while an old one is being destroyed.
    pub runners: Vec<Runner>,
    /// Runners that never started and are killed.
    pub tombstones: Vec<Tombstone>,
    /// Sources whose `Final` is known never to have left, with the epoch that was sealed.
    pub withheld: Vec<(InstanceId, Epoch)>,
    /// Migrations of which a session or a token is here.
    pub transfers: Vec<MigrationId>,
}

/// Something that a node must do. Each may be done again at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Duty {
    /// Make the first runner of a new guest, and do not run it.
    Make,
    /// Run, resume or relabel this runner under this epoch.
    Run(InstanceId, Epoch),
    /// Seal what this runner runs under, and pause it: it was vouched to be off.
    Seal(InstanceId),
    /// End this runner; its memory is of no use to anybody.
    Destroy(InstanceId),
    /// Propose this, until it is seen.
    Propose(Entry),
}

/// Everything that this node owes about this guest now.
pub fn duties(me: &NodeName, view: &Ownership, local: &Local) -> Vec<Duty> {
    if is_old(view, local) {
        return Vec::new();
    }
    let mut duties: Vec<Duty> =
        local.runners.iter().flat_map(|runner| fate(me, view, local, runner)).collect();
    duties.extend(absences(me, view, local));
    duties.extend(first_runner(me, view, local));
    duties.extend(release(me, view, local));
    duties
}

/// A view older than what a runner here knows: it destroys nothing, starts nothing and misses nobody.
fn is_old(view: &Ownership, local: &Local) -> bool {
    if planted::is_on("old-view-destroys") {
        return false;
    }
    local.runners.iter().any(|runner| view.epoch < runner.made || view.epoch < highest(runner))
}

/// The highest epoch that a runner knows of itself.
fn highest(runner: &Runner) -> Epoch {
    match &runner.state {
        RunnerState::Incoming { .. } => Epoch(0),
        RunnerState::Running(epoch) | RunnerState::Paused(epoch) => *epoch,
    }
}

/// What becomes of a runner that is here.
fn fate(me: &NodeName, view: &Ownership, local: &Local, runner: &Runner) -> Option<Duty> {
    let instance = runner.instance;
    match &view.life {
        Life::Deleting(_) | Life::Purged => Some(Duty::Destroy(instance)),
        Life::Lost { last, .. } => {
            // Kept, both of them: going back is an operator's act. But the lost one must not run.
            let runs = matches!(runner.state, RunnerState::Running(_));
            (last.instance == instance && runs).then_some(Duty::Seal(instance))
        }
        Life::Alive(owner) if owner.instance == instance => owned(view, local, runner),
        Life::Alive(owner) if planted::is_on("licence-names-node") && owner.node == *me => {
            owned(view, local, runner)
        }
        Life::Alive(_) if view.names(instance) && !planted::is_on("free-at-hand-over") => None,
        // Nobody's any more, or another was born before it.
        Life::Alive(_) => is_past(view, runner).then_some(Duty::Destroy(instance)),
        Life::Creating(_) => born(runner),
        // It goes on as it is, until that is settled.
        Life::Unsure(_) => None,
    }
}

/// A runner that no present part of the view names: is the view later than anything that could name it?
fn is_past(view: &Ownership, runner: &Runner) -> bool {
    if planted::is_on("old-view-destroys") {
        return true;
    }
    match &runner.state {
        RunnerState::Incoming { .. } => view.epoch > runner.made,
        RunnerState::Running(epoch) | RunnerState::Paused(epoch) => view.epoch > *epoch,
    }
}

/// The owner's runner: it runs under the present epoch.
fn owned(view: &Ownership, local: &Local, runner: &Runner) -> Option<Duty> {
    let run = Duty::Run(runner.instance, view.epoch);
    match &runner.state {
        // Relabelled if the epoch has moved on, and the news told again until it is seen.
        RunnerState::Running(epoch) if *epoch < view.epoch => Some(run),
        RunnerState::Running(_) => report(view, runner),
        RunnerState::Paused(sealed) => {
            (*sealed < view.epoch || planted::is_on("resume-sealed")).then_some(run)
        }
        RunnerState::Incoming { arrived } => {
            let buried = local.tombstones.iter().any(|tombstone| tombstone.instance == runner.instance)
                && !planted::is_on("tombstone-late");
            let complete = arrived.as_ref().is_some_and(|arrived| may_start(view, runner, arrived));
            (complete && !buried).then_some(run)
        }
    }
}

/// A licence, and the complete guest of just the epoch before it. A new guest has none before it: whatever epoch its
/// licence has reached by now, it has never run.
fn may_start(view: &Ownership, runner: &Runner, arrived: &Arrived) -> bool {
    let Some(brought_by) = &arrived.migration else { return true };
    if arrived.sealed.next() != view.epoch && !planted::is_on("final-by-migration") {
        return false;
    }
    let Some(Phase::HandedOver { mode, source_gone, .. }) = view.phase_of(brought_by) else {
        return false;
    };
    match mode {
        Mode::StopAndCopy => runner.whole,
        // The missing pages come while it runs, as long as there is somebody to send them.
        Mode::PostCopy => runner.whole || !source_gone,
    }
}

/// The news that a runner runs, or has every page, until the registry shows it.
fn report(view: &Ownership, runner: &Runner) -> Option<Duty> {
    if let Some(running) = view.awaits_running(runner.instance) {
        return (!planted::is_on("restart-forgets")).then_some(Duty::Propose(running));
    }
    let attempt = view.attempt.as_ref()?;
    let Phase::PostCopy { target, .. } = &attempt.phase else { return None };
    let (migration, epoch) = (attempt.migration.clone(), view.epoch);
    let whole = target.instance == runner.instance && runner.whole;
    whole.then_some(Duty::Propose(Entry::AllPages { migration, epoch }))
}

/// A new guest's runner that is made: say so. The first one wins.
fn born(runner: &Runner) -> Option<Duty> {
    match &runner.state {
        RunnerState::Incoming { arrived: Some(Arrived { migration: None, .. }) } => {
            Some(Duty::Propose(Entry::Born { instance: runner.instance }))
        }
        RunnerState::Incoming { .. } | RunnerState::Running(_) | RunnerState::Paused(_) => None,
    }
}

fn first_runner(me: &NodeName, view: &Ownership, local: &Local) -> Option<Duty> {
    match &view.life {
        Life::Creating(node) if node == me && local.runners.is_empty() => Some(Duty::Make),
        Life::Creating(_)
        | Life::Alive(_)
        | Life::Lost { .. }
        | Life::Deleting(_)
        | Life::Purged
        | Life::Unsure(_) => None,
    }
}

/// Runners that the view places here and that are not here.
fn absences(me: &NodeName, view: &Ownership, local: &Local) -> Vec<Duty> {
    if let Life::Unsure(_) = view.life {
        return Vec::new();
    }
    let here = |licence: &&Licence| {
        let lives = local.runners.iter().any(|runner| runner.instance == licence.instance);
        let buried = || local.tombstones.iter().any(|tombstone| tombstone.instance == licence.instance);
        licence.node == *me && (!lives || planted::is_on("tombstone-late") && buried())
    };
    let mut named: Vec<&Licence> = view.owner().into_iter().collect();
    let attempt = view.attempt.as_ref();
    match attempt.map(|attempt| &attempt.phase) {
        Some(Phase::Copying { target, .. }) => named.push(target),
        Some(
            Phase::HandedOver { source, source_gone: false, .. }
            | Phase::PostCopy { source, source_gone: false, .. },
        ) => {
            named.push(source);
        }
        Some(
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::HandedOver { .. }
            | Phase::PostCopy { .. }
            | Phase::Succeeded
            | Phase::Failed { .. }
            | Phase::Cancelled { .. },
        )
        | None => {}
    }
    named
        .into_iter()
        .filter(here)
        .map(|licence| Duty::Propose(absence(view, local, licence.instance)))
        .collect()
}

/// What an absent runner's node says: that it never started, if it can prove it; else only that it is gone.
fn absence(view: &Ownership, local: &Local, instance: InstanceId) -> Entry {
    let tombstone = local.tombstones.iter().find(|tombstone| tombstone.instance == instance);
    let buried = tombstone.is_some() || planted::is_on("absent-never-started");
    if let (true, Some(attempt)) = (buried, &view.attempt) {
        let (migration, epoch) = (attempt.migration.clone(), view.epoch);
        match &attempt.phase {
            Phase::HandedOver { target, .. } if target.instance == instance => {
                return Entry::HandBack { migration, epoch, testimony: Testimony::NeverStarted };
            }
            Phase::Copying { target, .. } if target.instance == instance => {
                let reason = tombstone.map_or_else(String::new, |tombstone| tombstone.reason.clone());
                return Entry::End { migration, side: Side::Target, reason };
            }
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::Copying { .. }
            | Phase::HandedOver { .. }
            | Phase::PostCopy { .. }
            | Phase::Succeeded
            | Phase::Failed { .. }
            | Phase::Cancelled { .. } => {}
        }
    }
    Entry::Gone { instance }
}

/// Testimony, permits and names that wait for this node's word.
fn release(me: &NodeName, view: &Ownership, local: &Local) -> Option<Duty> {
    if let Life::Deleting(left) = &view.life {
        return (left.contains(me) && local.runners.is_empty())
            .then(|| Duty::Propose(Entry::Purged { node: me.clone() }));
    }
    if let Life::Unsure(_) = view.life {
        return None;
    }
    let attempt = view.attempt.as_ref()?;
    let (migration, epoch) = (attempt.migration.clone(), view.epoch);
    if let Phase::HandedOver { source, .. } = &attempt.phase {
        let sealed = (source.instance, Epoch(epoch.0.saturating_sub(1)));
        let by_time_out = planted::is_on("hand-back-by-time-out") && source.node == *me;
        let hand_back = Entry::HandBack { migration, epoch, testimony: Testimony::Withheld };
        return (local.withheld.contains(&sealed) || by_time_out).then_some(Duty::Propose(hand_back));
    }
    let Permits::Held { source, target } = &attempt.permits else { return None };
    let part = source == me || target == me;
    // A runner that waits for pages is part of the session; of a lost guest it is kept, for whoever has to choose.
    let lost = matches!(view.life, Life::Lost { .. });
    let waits = |runner: &Runner| matches!(runner.state, RunnerState::Incoming { .. });
    let incoming = !lost && local.runners.iter().any(waits);
    let dropped = part && attempt.phase.is_over() && !local.transfers.contains(&migration) && !incoming;
    dropped.then_some(Duty::Propose(Entry::Dropped { migration }))
}
