//! The runner of a QEMU: the hand-off's commands as QEMU's own.
//!
//! ```text
//!   node ─ pause, save, load, resume, throttle, stats, stop ─▶ decide ─▶ written down ─▶ QMP ─▶ QEMU
//!   keeper dies ─▶ QEMU goes on (or waits for pages: it has a userfaultfd of its own) ─▶ another keeper, the same record
//! ```
//!
//! Always true:
//! - QEMU runs by our `cont` alone, and under an epoch only above every epoch that it ran under or sealed;
//! - nothing waits under the lock of `core`, not for that of `qmp` either: QEMU may be stuck until a *new* node serves its
//!   faults, and that node must be greeted;
//! - a QEMU that was adopted and never resumed by us, or was released, is left as it was found; any other ends with `stop`.

mod ending;
mod steps;

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_domain::{Epoch, GuestName, InstanceId, NodeName};
use godwit_wire::handoff::{
    Answer, Command, HANDOFF_VERSION, Hello, Outcome, Refusal, Region, RunState, Stats,
};
use serde_json::json;

use super::cgroup::Cgroup;
use super::ended::{self, How};
use super::kept::{self, Kept};
use super::qmp::{Qmp, QmpError};
use super::state;
use super::vm::Vm;
use crate::runner::decide::{Action, decide, refusal};
use crate::server::{Attachment, Machine};

/// How long a word that QEMU is to be left alone holds. The stop that it is for follows at once, or when its node is heard again.
const RELEASE_SECONDS: u64 = 600;
/// Who a keeper is.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) guest: GuestName,
    pub(super) instance: InstanceId,
    pub(super) node: NodeName,
    pub(super) dir: PathBuf,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Keeper {
    identity: Identity,
    vm: Vm,
    cgroup: Option<Cgroup>,
    core: Mutex<Core>,
    qmp: Mutex<Talk>,
    attached: AtomicU64,
    /// It was told to stop: that QEMU ends now is no news.
    stopping: AtomicBool,
    ended: AtomicBool,
    /// It runs here since a moment ago, and the network does not know yet.
    arrived: AtomicBool,
    /// Its power button was pressed.
    pressed: AtomicBool,
    /// What is known is not written down: there was no room.
    unwritten: AtomicBool,
}

#[derive(Debug)]
struct Core {
    kept: Kept,
    throttle_percent: u8,
    stream: Option<Arc<UnixStream>>,
    /// Time that it has run before, and since when it runs.
    running: (Duration, Option<Instant>),
}

#[derive(Debug)]
struct Talk {
    qmp: Qmp,
    /// What was saved, for as long as it stands still.
    saved: Option<Vec<u8>>,
}

impl Keeper {
    /// A keeper of this machine, which stands as `kept` says.
    pub(super) fn new(identity: Identity, vm: Vm, mut qmp: Qmp, mut kept: Kept) -> Result<Self, QmpError> {
        kept.before = Some(state::prepare(&mut qmp)?);
        Ok(Self::again(identity, vm, qmp, kept))
    }

    /// A keeper that comes after another, which has prepared it.
    pub(super) fn again(identity: Identity, vm: Vm, qmp: Qmp, kept: Kept) -> Self {
        // Written before the machine is taken out of it.
        let written = kept.write(&identity.dir);
        if let Err(error) = &written {
            tracing::warn!(%error, "should this keeper be killed, another would not know where QEMU was");
        }
        let before = kept.cgroup.as_deref();
        let cgroup = Cgroup::enter(&identity.instance.to_string(), kept.pid, vm.processors, before)
            .inspect_err(
                |error| tracing::warn!(%error, "no cgroup of its own: this guest can not be throttled"),
            )
            .ok();
        // Whoever slowed it down asked another keeper.
        if let Some(Err(error)) = cgroup.as_ref().map(|cgroup| cgroup.throttle(0)) {
            tracing::warn!(%error, "this guest may be throttled");
        }
        let since = (kept.standing.state == RunState::Running).then(Instant::now);
        let core = Core { kept, throttle_percent: 0, stream: None, running: (Duration::ZERO, since) };
        Self {
            identity,
            vm,
            cgroup,
            core: Mutex::new(core),
            qmp: Mutex::new(Talk { qmp, saved: None }),
            attached: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            arrived: AtomicBool::new(false),
            pressed: AtomicBool::new(false),
            unwritten: AtomicBool::new(written.is_err()),
        }
    }

    /// Whether it was told to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// QEMU has ended by itself: nothing is left of it but its logs, and why it did, which is returned.
    pub(super) fn ended_by_itself(&self, how: How) -> String {
        let dir = &self.identity.dir;
        // Whoever asks it something meanwhile is told at once that nobody is there.
        let reason = ended::reason(&mut self.talk().qmp);
        let pressed = self.pressed.load(Ordering::Relaxed);
        let why = ended::words(reason.as_deref(), how, pressed, ended::log(dir).as_deref());
        if let Err(error) = ended::leave(dir, &why) {
            tracing::warn!(%error, "why QEMU ended is told nobody");
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        let _ = Kept::forget(dir);
        why
    }

    /// QEMU's process, to wait for its end.
    pub(super) fn process(&self) -> std::io::Result<OwnedFd> {
        self.vm.process.try_clone()
    }

    fn save(&self, state: &mut Vec<u8>) -> Result<Answer, Refusal> {
        let mut talk = self.talk();
        if talk.saved.is_none() {
            let begun = Instant::now();
            let saved = state::save(&mut talk.qmp).map_err(|error| broke("save", &error))?;
            tracing::info!(bytes = saved.len(), took = ?begun.elapsed(), "state saved");
            talk.saved = Some(saved);
        }
        state.clone_from(talk.saved.get_or_insert_default());
        Ok(Answer::State { bytes: u32::try_from(state.len()).unwrap_or(u32::MAX) })
    }

    fn load(&self, core: MutexGuard<'_, Core>, epoch: Epoch, bytes: &[u8]) -> Result<Answer, Refusal> {
        let loaded = core.kept.standing.loaded;
        drop(core);
        if let Some(loaded) = loaded {
            if loaded == epoch && self.talk().saved.as_deref() == Some(bytes) {
                return Ok(Answer::Done);
            }
            let message =
                format!("a QEMU loads one state, and has that of epoch {loaded}; start another runner");
            return Err(refusal("state", message));
        }
        let begun = Instant::now();
        let mut talk = self.talk();
        state::load(&mut talk.qmp, bytes).map_err(|error| broke("load", &error))?;
        tracing::info!(bytes = bytes.len(), took = ?begun.elapsed(), %epoch, "state loaded");
        talk.saved = Some(bytes.to_vec());
        drop(talk);
        let mut core = self.lock();
        core.kept.standing.loaded = Some(epoch);
        self.write(&core)?;
        Ok(Answer::Done)
    }

    fn throttle(&self, percent: u8) -> Result<(), Refusal> {
        match (&self.cgroup, percent) {
            (None, 0) => Ok(()),
            (None, _) => {
                Err(refusal("state", "this host has no cgroups with a cpu controller that can be written"))
            }
            (Some(cgroup), _) => cgroup
                .throttle(percent)
                .map_err(|error| refusal("state", format!("the cpu quota was not set: {error}"))),
        }
    }

    /// What comes of it is for the guest to say: QEMU only tells it.
    fn press(&self) -> Result<Answer, Refusal> {
        // In post-copy QEMU may wait for a page first.
        let pressed = self.talk().qmp.execute_within("system_powerdown", json!({}), None);
        pressed.map_err(failed)?;
        self.pressed.store(true, Ordering::Relaxed);
        tracing::info!(guest = %self.identity.guest, "power button pressed");
        Ok(Answer::Done)
    }

    /// Nobody writes memory while it is stopped and saved: slowing that down would only lengthen it.
    fn full_speed(&self) {
        let _ = self.throttle(0);
    }

    fn stats(&self, core: &Core) -> Stats {
        let running = core.running.0 + core.running.1.map_or(Duration::ZERO, |since| since.elapsed());
        Stats {
            standing: core.kept.standing,
            memory_bytes: self.vm.pages.bytes(),
            dirty_rate_asked: 0,
            dirty_rate_achieved: 0,
            pages_written: 0,
            running_us: u64::try_from(running.as_micros()).unwrap_or(u64::MAX),
            tick: 0,
            throttle_percent: core.throttle_percent,
        }
    }

    fn write(&self, core: &Core) -> Result<(), Refusal> {
        let written = core.kept.write(&self.identity.dir);
        self.unwritten.store(written.is_err(), Ordering::Relaxed);
        written.map_err(|error| refusal("state", format!("{}: {error}", self.identity.dir.display())))
    }

    /// Writes down what there was no room for, if there is by now.
    pub(super) fn write_again(&self) {
        let core = self.lock();
        if self.unwritten.load(Ordering::Relaxed) && !self.is_stopping() && self.write(&core).is_ok() {
            tracing::info!("how the machine stands is written down again");
        }
    }

    fn superseded(&self, attachment: Attachment) -> bool {
        self.attached.load(Ordering::Relaxed) != attachment.0
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn talk(&self) -> MutexGuard<'_, Talk> {
        self.qmp.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine for Keeper {
    fn attach(&self, stream: Arc<UnixStream>) -> Option<(Attachment, Hello)> {
        if self.has_ended() {
            return None;
        }
        let mut core = self.lock();
        let attachment = Attachment(self.attached.fetch_add(1, Ordering::Relaxed) + 1);
        if let Some(older) = core.stream.replace(stream) {
            let _ = older.shutdown(Shutdown::Both);
        }
        let Identity { guest, instance, node, dir: _ } = &self.identity;
        let region = Region { address: self.vm.address, bytes: self.vm.pages.bytes(), offset_bytes: 0 };
        let hello = Hello {
            v: HANDOFF_VERSION,
            guest: guest.clone(),
            instance: *instance,
            node: node.clone(),
            pid: u32::try_from(core.kept.pid).unwrap_or(0),
            regions: vec![region],
            standing: core.kept.spoken(),
        };
        Some((attachment, hello))
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let Vm { memory, uffd, pagemap, process, .. } = &self.vm;
        vec![memory.as_fd(), uffd.as_fd(), pagemap.as_fd(), process.as_fd()]
    }

    fn execute(&self, attachment: Attachment, command: &Command, state: &mut Vec<u8>) -> Option<Outcome> {
        let mut core = self.lock();
        if self.superseded(attachment) || self.has_ended() {
            return None;
        }
        // One that was told to run is told so again, and to anything else it may run already.
        let again = matches!(command, Command::Resume { .. });
        let standing = if again { core.kept.standing } else { core.kept.spoken() };
        let answer = match decide(&standing, command) {
            Err(refused) => Err(refused),
            // It was told to stop, and may stand still by now.
            Ok(Action::Relabel(epoch)) if core.kept.step.is_some() => self.run(core, epoch, false),
            Ok(Action::Pause(epoch)) => return self.pause(core, attachment, epoch),
            Ok(Action::Stop) => return Some(self.stop(core)),
            Ok(Action::Seal(epoch) | Action::Relabel(epoch)) => {
                let before = core.kept.clone();
                (core.kept.standing.epoch, core.kept.released_until_s) = (epoch, None);
                let written = self.write(&core);
                if written.is_err() {
                    core.kept = before;
                }
                written.map(|()| Answer::Done)
            }
            Ok(Action::Save) => {
                drop(core);
                self.save(state)
            }
            Ok(Action::Load(epoch)) => self.load(core, epoch, state),
            Ok(Action::Start(epoch)) => self.run(core, epoch, true),
            Ok(Action::RunOn(epoch)) => self.run(core, epoch, false),
            Ok(Action::Throttle(percent)) => {
                let done = self.throttle(percent);
                if done.is_ok() {
                    core.throttle_percent = percent;
                }
                done.map(|()| Answer::Done)
            }
            Ok(Action::Verify) => Err(refusal(
                "state",
                "nobody knows what a virtual machine's memory must hold; an audit compares both sides of a move",
            )),
            Ok(Action::Release) if standing.state == RunState::Paused || core.kept.step.is_some() => {
                Err(refusal(
                    "state",
                    "the guest is being moved, or stands still; one that runs can be left alone",
                ))
            }
            Ok(Action::Release) if core.kept.adopted => {
                let before = core.kept.released_until_s.replace(kept::now_s() + RELEASE_SECONDS);
                let written = self.write(&core);
                if written.is_err() {
                    core.kept.released_until_s = before;
                }
                written.map(|()| Answer::Done)
            }
            Ok(Action::Release) => {
                Err(refusal("state", "this QEMU was started here; only one that was adopted is left running"))
            }
            Ok(Action::PowerButton) => {
                drop(core);
                self.press()
            }
            Ok(Action::Stats) => self.decided(core).map(|core| Answer::Stats(self.stats(&core))),
        };
        Some(answer.map_or_else(Outcome::Error, Outcome::Ok))
    }

    /// Switches learn where it is now. A machine without a network has nothing to say.
    fn afterwards(&self) {
        if self.arrived.swap(false, Ordering::Relaxed) {
            let often = json!({ "initial": 50, "max": 550, "rounds": 5, "step": 50 });
            if let Err(error) = self.talk().qmp.execute("announce-self", often) {
                tracing::warn!(%error, "the network was not told where the guest is");
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

fn failed(error: QmpError) -> Refusal {
    refusal("state", error.to_string())
}

fn broke(what: &str, error: &dyn std::error::Error) -> Refusal {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    refusal("state", format!("{what}: {error}{cause}"))
}
