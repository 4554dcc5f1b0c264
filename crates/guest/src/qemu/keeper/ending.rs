//! The end of a keeper: QEMU's, too, or QEMU is left as it was found.
//!
//! ```text
//!   stop ─▶ never ours, or released and running ─▶ our descriptor closed, its own cgroup, its own settings ─▶ it runs on
//!      └──▶ any other ─▶ quit (it runs: caches are written) ─▶ SIGKILL ─▶ it has ended
//! ```
//!
//! Always true: a QEMU that stands still writes to no disk again.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::Duration;

use godwit_memory::adopt;
use godwit_wire::handoff::{Answer, Outcome, RunState};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use serde_json::json;

use super::{Core, Keeper};
use crate::qemu::kept::Kept;
use crate::qemu::{ended, state};
use crate::runner::decide::refusal;

/// How long a machine that runs may take to write what its disks have not, when it is ended.
const QUIT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the end of a killed process may take.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

impl Keeper {
    /// Ends QEMU, or leaves one alone that never was ours.
    pub(super) fn stop(&self, core: MutexGuard<'_, Core>) -> Outcome {
        let (kept, runs) = (core.kept.clone(), core.kept.standing.state == RunState::Running);
        // Before anybody else may write down what is forgotten here.
        self.stopping.store(true, Ordering::Relaxed);
        drop(core);
        self.full_speed();
        if kept.is_left() {
            self.leave(&kept);
        } else if !self.end(runs) {
            return Outcome::Error(refusal(
                "state",
                format!("QEMU's process {} does not end; it may hang in the kernel", kept.pid),
            ));
        }
        if let Err(error) = Kept::forget(&self.identity.dir) {
            tracing::warn!(%error, "kept.json stays");
        }
        self.ended.store(true, Ordering::Relaxed);
        Outcome::Ok(Answer::Done)
    }

    fn leave(&self, kept: &Kept) {
        let pid = kept.pid;
        if let Some(pid) = Pid::from_raw(pid)
            && let Err(error) = adopt::close_in(pid, kept.userfaultfd)
        {
            tracing::warn!(%error, "a descriptor of ours stays open in QEMU");
        }
        if let Some(Err(error)) = self.cgroup.as_ref().map(|cgroup| cgroup.leave(pid)) {
            tracing::warn!(%error, "QEMU stays in a cgroup of ours");
        }
        if let Some(Err(error)) =
            kept.before.as_ref().map(|before| state::restore(&mut self.talk().qmp, before))
        {
            tracing::warn!(%error, "a setting of ours stays in QEMU");
        }
        tracing::info!(guest = %self.identity.guest, pid, "QEMU is left as it was");
    }

    /// Whether it has ended.
    fn end(&self, runs: bool) -> bool {
        // One that stands still may have run on elsewhere: it must not write to a disk again, not even a cache.
        let quits = runs
            && self.qmp.try_lock().is_ok_and(|mut talk| {
                let asked = talk.qmp.execute_within("quit", json!({}), Some(QUIT_TIMEOUT));
                asked.is_ok() && ended::within(&self.vm.process, QUIT_TIMEOUT)
            });
        if !quits {
            let _ = pidfd_send_signal(&self.vm.process, Signal::KILL);
        }
        let ended = quits || ended::within(&self.vm.process, KILL_TIMEOUT);
        if let Some(cgroup) = self.cgroup.as_ref().filter(|_| ended) {
            cgroup.remove();
        }
        ended
    }
}
