//! The steps that run or stop the machine, and what is known while one is under way.
//!
//! ```text
//!   pause    Pausing, written down ─▶ stop ─▶ Paused          resume   Resuming, written down ─▶ cont ─▶ Running
//!   a keeper that comes after: is it running, did it stop by itself? ─▶ what was begun is ended, or has happened
//! ```
//!
//! Always true: whoever has QEMU's ear is told by the newest command, or is followed by it; an answer that is late or lost is
//! neither a yes nor a no; nobody says how the machine stands while it is being told to run.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use godwit_domain::Epoch;
use godwit_wire::handoff::{Answer, Outcome, Refusal, RunState, Standing};
use serde_json::json;

use super::{Core, Keeper, Talk, failed};
use crate::qemu::ended;
use crate::qemu::kept::Step;
use crate::qemu::qmp::{Qmp, QmpError};
use crate::qemu::vm::{self, Halt};
use crate::runner::decide::refusal;
use crate::server::Attachment;

/// How long the end of a process that has closed its socket may take to be seen.
const END_NOTICED: Duration = Duration::from_secs(1);

impl Keeper {
    /// Whether what a keeper before has begun is ended, and QEMU tells us what becomes of it; it is seen to. A machine that is
    /// sealed does not run.
    pub(in crate::qemu) fn is_settled(&self) -> bool {
        match self.settle() {
            Ok(()) => self.qmp.try_lock().is_ok_and(|mut talk| talk.qmp.open().is_ok()),
            Err(refused) => {
                tracing::info!(why = refused.message, "how the machine stands is not known yet");
                false
            }
        }
    }

    fn settle(&self) -> Result<(), Refusal> {
        let Some(step) = self.lock().kept.step else { return Ok(()) };
        // A command that has come meanwhile settles it by itself.
        let Some(mut talk) = self.talk_in(step) else { return Ok(()) };
        let mut runs = vm::runs(&mut talk.qmp).map_err(failed)?;
        match step {
            Step::Pausing(_) if runs => {
                talk.qmp.execute_within("stop", json!({}), None).map_err(failed)?;
            }
            Step::Resuming(_) if !runs => runs = self.run_what_halted(&mut talk).map_err(failed)?,
            Step::Pausing(_) | Step::Resuming(_) => {}
        }
        let mut core = self.lock();
        if core.kept.step == Some(step) {
            let before = core.kept.clone();
            core.kept.standing = core.kept.found(runs);
            core.kept.step = None;
            let written = self.write(&core);
            if written.is_err() && core.kept.standing.state != RunState::Running {
                // Not said before it is written down: the next keeper would find that it was told to run.
                core.kept = before;
            }
            core.running.1 = (core.kept.standing.state == RunState::Running).then(Instant::now);
            written?;
        }
        Ok(())
    }

    /// One that was told to run, and stands still for a reason of its own, is told again: whether it has run nobody knows.
    fn run_what_halted(&self, talk: &mut Talk) -> Result<bool, QmpError> {
        match vm::halt(&mut talk.qmp)? {
            None => Ok(false),
            Some(Halt::Final) => Ok(true),
            Some(Halt::Passing) => {
                talk.saved = None;
                talk.qmp.execute_within("cont", json!({}), None)?;
                self.arrived.store(true, Ordering::Relaxed);
                Ok(true)
            }
        }
    }

    pub(super) fn pause(
        &self,
        mut core: MutexGuard<'_, Core>,
        attachment: Attachment,
        epoch: Epoch,
    ) -> Option<Outcome> {
        let before = core.kept.clone();
        // What was told to run a moment ago runs, for all that is known until it stands still.
        core.kept.standing = core.kept.spoken();
        core.kept.step = Some(Step::Pausing(epoch));
        if let Err(refused) = self.write(&core) {
            core.kept = before;
            return Some(Outcome::Error(refused));
        }
        drop(core);
        self.full_speed();
        let mut talk = self.talk_in(Step::Pausing(epoch));
        let stopped = talk.as_mut().map(|talk| talk.qmp.execute_within("stop", json!({}), None));
        let mut core = self.lock();
        // Overtaken, it has asked nothing; how it stands then says the rest.
        let stopped = stopped.unwrap_or(Ok(json!({})));
        if core.kept.step == Some(Step::Pausing(epoch)) && stopped.is_ok() {
            core.kept.standing = Standing { state: RunState::Paused, epoch, loaded: None };
            (core.kept.step, core.kept.released_until_s) = (None, None);
            if let Some(since) = core.running.1.take() {
                core.running.0 += since.elapsed();
            }
            tracing::info!(guest = %self.identity.guest, instance = %self.identity.instance, %epoch, "sealed and paused");
            let _ = self.write(&core);
        }
        if self.superseded(attachment) {
            return None;
        }
        Some(match (stopped, core.kept.standing.state) {
            (Ok(_), RunState::Paused) => Outcome::Ok(Answer::Done),
            (Ok(_), _) => Outcome::Error(refusal("state", "the pause was overtaken by another command")),
            (Err(error), _) => Outcome::Error(failed(error)),
        })
    }

    /// Runs it: a new one, one that has arrived, one that was paused, and one that was found running.
    pub(super) fn run(
        &self,
        mut core: MutexGuard<'_, Core>,
        epoch: Epoch,
        arrived: bool,
    ) -> Result<Answer, Refusal> {
        let before = core.kept.step.replace(Step::Resuming(epoch));
        if let Err(refused) = self.write(&core) {
            core.kept.step = before;
            return Err(refused);
        }
        drop(core);
        let overtaken = || refusal("state", "it was told something else before it ran");
        let mut talk = self.talk_in(Step::Resuming(epoch)).ok_or_else(overtaken)?;
        talk.saved = None;
        let ran = cont(&mut talk.qmp, arrived);
        let is_gone = matches!(ran, Err(Ran::Perhaps(_)))
            && (self.is_stopping() || ended::within(&self.vm.process, END_NOTICED));
        self.arrived.store(arrived && ran.is_ok(), Ordering::Relaxed);
        let mut core = self.lock();
        if core.kept.step != Some(Step::Resuming(epoch)) {
            return Err(overtaken());
        }
        core.kept.released_until_s = None;
        match &ran {
            Ok(()) => {
                core.kept.standing = Standing { state: RunState::Running, epoch, loaded: None };
                core.kept.step = None;
                core.running.1 = Some(Instant::now());
                tracing::info!(guest = %self.identity.guest, instance = %self.identity.instance, %epoch, "runs");
            }
            // One that was being stopped before still is.
            Err(Ran::No(_)) => core.kept.step = before.filter(|before| matches!(before, Step::Pausing(_))),
            Err(Ran::NotAsked(_)) => core.kept.step = before,
            Err(Ran::Perhaps(_)) if is_gone => {}
            Err(Ran::Perhaps(error)) => {
                // Nothing that this keeper could say would be sure. The next one looks.
                tracing::error!(%error, "whether the guest runs is not known; this keeper ends");
                std::process::exit(1);
            }
        }
        if self.write(&core).is_err() && ran.is_err() {
            // That it does not run is not known to whoever comes after, and not said.
            core.kept.step = Some(Step::Resuming(epoch));
        }
        let percent = core.throttle_percent;
        drop(core);
        if percent > 0 {
            self.throttle(percent)?;
        }
        match ran {
            Ok(()) => Ok(Answer::Done),
            Err(Ran::No(error) | Ran::NotAsked(error) | Ran::Perhaps(error)) => Err(failed(error)),
        }
    }

    /// Once it is known what became of what was begun: until then nobody can say how the machine stands.
    pub(super) fn decided<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
    ) -> Result<MutexGuard<'a, Core>, Refusal> {
        while core.kept.step.is_some() {
            drop(core);
            // It waits for whoever is at it.
            self.settle()?;
            core = self.lock();
        }
        Ok(core)
    }

    /// QEMU's ear, for this step; `None`: while it was waited for, another command has taken the step's place. Whoever has it is
    /// the last to have been told, or is followed by the one who is.
    fn talk_in(&self, step: Step) -> Option<MutexGuard<'_, Talk>> {
        let talk = self.talk();
        (self.lock().kept.step == Some(step)).then_some(talk)
    }
}

/// Why it is not known to run.
enum Ran {
    /// It has refused.
    No(QmpError),
    /// It was not told to.
    NotAsked(QmpError),
    /// It was told to, and nobody has heard what it did.
    Perhaps(QmpError),
}

/// One that has arrived is known to stand still. It may take as long as its disks take: given up, it could still do it later.
fn cont(qmp: &mut Qmp, arrived: bool) -> Result<(), Ran> {
    if !arrived && vm::runs(qmp).map_err(Ran::NotAsked)? {
        return Ok(());
    }
    qmp.open().map_err(Ran::NotAsked)?;
    match qmp.execute_within("cont", json!({}), None) {
        Ok(_) => Ok(()),
        Err(error @ QmpError::Refused { .. }) => Err(Ran::No(error)),
        Err(error) => Err(Ran::Perhaps(error)),
    }
}

#[cfg(test)]
mod tests;
