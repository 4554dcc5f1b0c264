//! What a keeper writes down about its QEMU, because QEMU outlives it.
//!
//! ```text
//!   DIR/machine.json   what it is started with; by the node, before the keeper
//!   DIR/begun.json     which process was just started; by the keeper, before it has asked it anything
//!   DIR/kept.json      which process, which descriptors, how it stands; by the keeper, before and after each step
//! ```
//!
//! Always true: a step that runs or stops the machine is written down before it is asked for, so a keeper that finds its
//! predecessor's word knows what may have happened. Both files are this host's: a host that dies takes QEMU along.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use godwit_domain::{Epoch, GuestName, InstanceId, Qemu};
use godwit_wire::handoff::{RunState, Standing};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use super::state::Before;
use crate::runner::{RunnerError, claim_folder};
use crate::server::SOCKET_NAME;

/// Largest of these files.
const BYTES_MAX: u64 = 64 << 10;

/// What a keeper is told of its machine. A QEMU that is adopted runs already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineFile {
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// The program and its portable arguments.
    pub qemu: Qemu,
    /// Beginnings of paths and names that are others on this host, from and to.
    pub renamed: Vec<(String, String)>,
}

/// A step that may or may not have been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Step {
    /// It was told to stop, and this epoch is sealed whatever became of that.
    Pausing(Epoch),
    /// It was told to run under this epoch.
    Resuming(Epoch),
}

/// A QEMU that was started, and that waits for whatever its keeper says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begun {
    pid: i32,
    started_ticks: u64,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    /// The guest.
    pub(super) guest: GuestName,
    /// The runner.
    pub(super) instance: InstanceId,
    /// QEMU's process.
    pub(super) pid: i32,
    /// When that process was started, in clock ticks since boot: with the number, it is that one alone.
    pub(super) started_ticks: u64,
    /// Its control socket.
    pub(super) qmp: PathBuf,
    /// The userfaultfd's number in it.
    pub(super) userfaultfd: i32,
    /// How many it has.
    #[serde(default)]
    pub(super) processors: Option<u64>,
    /// It was running before we came, and is left running if it never became ours.
    pub(super) adopted: bool,
    /// It was ours, and is left running all the same when its keeper is stopped until then, in seconds since boot.
    #[serde(default)]
    pub(super) released_until_s: Option<u64>,
    /// The cgroup in which it was before we came, below the root of the hierarchy.
    #[serde(default)]
    pub(super) cgroup: Option<PathBuf>,
    /// How it was set before we came.
    #[serde(default)]
    pub(super) before: Option<Before>,
    /// How it stood when the last step was done.
    pub(super) standing: Standing,
    /// A step since.
    pub(super) step: Option<Step>,
}

impl MachineFile {
    /// Writes it into a runner's folder.
    ///
    /// # Errors
    /// What the system said.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        replace(dir, "machine.json", self)
    }

    /// Reads it.
    ///
    /// # Errors
    /// What the system said, or that it is no such file.
    pub fn read(dir: &Path) -> io::Result<Self> {
        read(&dir.join("machine.json"))
    }
}

impl Begun {
    /// Notes that this process was started here.
    pub(super) fn write(dir: &Path, pid: i32) -> io::Result<()> {
        let started_ticks = started_ticks(pid)?.ok_or(io::ErrorKind::NotFound)?;
        replace(dir, "begun.json", &Self { pid, started_ticks })
    }

    fn read(dir: &Path) -> io::Result<Self> {
        read(&dir.join("begun.json"))
    }

    fn lives(&self) -> io::Result<bool> {
        Ok(started_ticks(self.pid)? == Some(self.started_ticks))
    }
}

impl Kept {
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        replace(dir, "kept.json", self)
    }

    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        read(&dir.join("kept.json"))
    }

    /// QEMU has ended, or is nobody's here any more.
    pub(super) fn forget(dir: &Path) -> io::Result<()> {
        std::fs::remove_file(dir.join("kept.json"))
    }

    /// What this folder says of a QEMU that lives. `None`: it has ended, or the folder says nothing that can be understood:
    /// so are the files of a host that went down.
    ///
    /// # Errors
    /// Neither can be told, as when there are no descriptors left.
    pub(super) fn living(dir: &Path) -> io::Result<Option<Self>> {
        match Self::read(dir) {
            Ok(kept) => Ok(kept.lives()?.then_some(kept)),
            Err(error) if is_no_such_file(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether that very process is there.
    pub(super) fn lives(&self) -> io::Result<bool> {
        Begun { pid: self.pid, started_ticks: self.started_ticks }.lives()
    }

    /// How it stands for whoever asks meanwhile: what was told to run may run already.
    pub(super) fn spoken(&self) -> Standing {
        match self.step {
            Some(Step::Resuming(epoch)) => Standing { state: RunState::Running, epoch, loaded: None },
            Some(Step::Pausing(_)) | None => self.standing,
        }
    }

    /// Whether it is left running by a keeper that is stopped now. One that stands still, or was told to, may have run on elsewhere.
    pub(super) fn is_left(&self) -> bool {
        let left = match self.standing.state {
            RunState::Incoming => true,
            RunState::Running => self.released_until_s.is_some_and(|until| now_s() < until),
            RunState::Paused => false,
        };
        self.adopted && left && self.step.is_none()
    }

    /// How it stands for a keeper that comes after another, which sees whether the machine runs, or has stopped by itself.
    pub(super) fn found(&self, runs: bool) -> Standing {
        match self.step {
            // Sealed it is; whoever reads this stops it if it runs.
            Some(Step::Pausing(epoch)) => Standing { state: RunState::Paused, epoch, loaded: None },
            // It was told to run on while it was being stopped, and has stopped.
            Some(Step::Resuming(_)) if !runs && self.standing.state == RunState::Running => {
                Standing { state: RunState::Paused, ..self.standing }
            }
            Some(Step::Resuming(epoch)) if runs => Standing { state: RunState::Running, epoch, loaded: None },
            Some(Step::Resuming(_)) | None => self.standing,
        }
    }
}

/// Whose QEMU it is that lives, of a runner whose socket nobody answers: another keeper can take it over.
///
/// # Errors
/// Whether one lives can not be told. It is no proof of an end.
pub fn outlives_its_keeper(dir: &Path) -> io::Result<Option<(GuestName, InstanceId)>> {
    Ok(Kept::living(dir)?.map(|kept| (kept.guest, kept.instance)))
}

/// Whether a runner's QEMU is to be ended with it, where nobody answers any more: not one that is left alone, nor one that its
/// keeper has done with.
pub fn ends_with_its_keeper(dir: &Path) -> bool {
    match Kept::read(dir) {
        Ok(kept) => !kept.is_left(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Whether a runner or a keeper has this folder, though it may not answer yet.
pub fn is_claimed(dir: &Path) -> bool {
    dir.exists() && matches!(claim_folder(dir), Err(RunnerError::FolderInUse { .. }))
}

/// Removes the socket of a keeper that has died, so that the next one's is known by its being there. `false`: another has the
/// folder already, and the socket may be its own.
pub fn clear_socket(dir: &Path) -> bool {
    let Ok(_folder) = claim_folder(dir) else { return false };
    let _ = std::fs::remove_file(dir.join(SOCKET_NAME));
    true
}

/// Ends a QEMU that was started in this folder and that nobody keeps. One that was adopted stays, and is this folder's no
/// more: it may be adopted again in another.
pub fn end_orphan(dir: &Path) {
    let begun = match Kept::read(dir) {
        Ok(kept) if kept.adopted => {
            let _ = Kept::forget(dir);
            return;
        }
        Ok(Kept { pid, started_ticks, .. }) => Begun { pid, started_ticks },
        // Killed before it could say more.
        Err(_) => match Begun::read(dir) {
            Ok(begun) => begun,
            Err(_) => return,
        },
    };
    let process = Pid::from_raw(begun.pid).map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    // Looked at now that the number can not become another's.
    if let Some(Ok(process)) = process
        && begun.lives().is_ok_and(|lives| lives)
    {
        let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
    }
}

/// Ends a QEMU that was begun in a folder without a socket, and whose keeper was killed before it had said more.
pub fn end_unkept(dir: &Path) {
    // What can not be read may well speak of a guest that runs.
    let is_unkept = Kept::read(dir).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let begun = is_unkept && Begun::read(dir).and_then(|begun| begun.lives()).is_ok_and(|lives| lives);
    // A keeper that is about to say more has the folder.
    if begun && let Ok(_folder) = claim_folder(dir) {
        end_orphan(dir);
    }
}

/// Seconds since boot, whatever the clock on the wall is set to.
pub(super) fn now_s() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0)
}

/// When a process was started, in clock ticks since boot; `None`: there is none, or it is a zombie.
///
/// # Errors
/// The system does not tell.
pub fn started_ticks(pid: i32) -> io::Result<Option<u64>> {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        // The second: it ended while it was read.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // The name, in parentheses, may hold anything.
    let fields = stat.rfind(')').map(|name| stat[name + 1..].split_whitespace());
    let mut fields = fields.ok_or(io::ErrorKind::InvalidData)?;
    if matches!(fields.next(), Some("Z" | "X")) {
        return Ok(None);
    }
    let ticks = fields.nth(18).and_then(|ticks| ticks.parse().ok());
    Ok(Some(ticks.ok_or(io::ErrorKind::InvalidData)?))
}

/// Not there, or not what [`replace`] writes.
fn is_no_such_file(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | InvalidData | UnexpectedEof)
}

fn replace(dir: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    // No sync: a host that goes down takes with it whom this speaks of.
    std::fs::rename(&new, dir.join(name))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    let size = std::fs::metadata(path)?.len();
    if size > BYTES_MAX {
        let message = format!("{} has {size} bytes; at most {BYTES_MAX} are read", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Of this very process.
    pub(in crate::qemu) fn kept(step: Option<Step>) -> Kept {
        let standing = Standing { state: RunState::Incoming, epoch: Epoch(0), loaded: Some(Epoch(4)) };
        let pid = i32::try_from(std::process::id()).expect("a number");
        let started_ticks = started_ticks(pid).expect("told").expect("we live");
        let (guest, instance) = ("vm".parse().expect("a name"), InstanceId::from_random([1; 16]));
        Kept {
            guest,
            instance,
            pid,
            started_ticks,
            qmp: "qmp.sock".into(),
            userfaultfd: 9,
            processors: Some(1),
            adopted: false,
            released_until_s: None,
            cgroup: None,
            before: None,
            standing,
            step,
        }
    }

    #[test]
    fn what_may_have_happened_is_told_from_what_is_seen() {
        let state = |step, runs| {
            let Standing { state, epoch, .. } = kept(step).found(runs);
            (state, epoch.0)
        };
        assert_eq!(state(None, false), (RunState::Incoming, 0));
        assert_eq!(state(Some(Step::Resuming(Epoch(5))), true), (RunState::Running, 5));
        assert_eq!(state(Some(Step::Resuming(Epoch(5))), false), (RunState::Incoming, 0));
        for runs in [true, false] {
            assert_eq!(state(Some(Step::Pausing(Epoch(5))), runs), (RunState::Paused, 5));
        }
    }

    #[test]
    fn a_process_is_known_again_by_when_it_began() {
        let dir = tempfile::tempdir().expect("folder");
        let kept = kept(None);
        kept.write(dir.path()).expect("written");
        assert_eq!(Kept::read(dir.path()).expect("reads"), kept);
        assert_eq!(outlives_its_keeper(dir.path()).expect("told"), Some((kept.guest.clone(), kept.instance)));
        Kept { started_ticks: kept.started_ticks + 1, ..kept }.write(dir.path()).expect("written");
        assert!(
            outlives_its_keeper(dir.path()).expect("told").is_none(),
            "another process has that number now"
        );
        assert!(outlives_its_keeper(&dir.path().join("none")).expect("told").is_none());
    }

    #[test]
    fn one_that_was_adopted_in_vain_is_left_alone_and_forgotten() {
        let dir = tempfile::tempdir().expect("folder");
        let kept = Kept { adopted: true, ..kept(None) };
        kept.write(dir.path()).expect("written");
        end_orphan(dir.path());
        assert!(kept.lives().expect("told"), "it is this very process");
        assert!(
            outlives_its_keeper(dir.path()).expect("told").is_none(),
            "no node takes it over from this folder"
        );
    }

    #[test]
    fn what_can_not_be_read_is_no_ground_to_end_anything() {
        let dir = tempfile::tempdir().expect("folder");
        let mut waits = std::process::Command::new("sleep").arg("60").spawn().expect("a process");
        Begun::write(dir.path(), i32::try_from(waits.id()).expect("a number")).expect("written");
        std::fs::write(dir.path().join("kept.json"), "{").expect("written");
        end_unkept(dir.path());
        assert!(waits.try_wait().expect("asked").is_none(), "it runs on");
        waits.kill().expect("killed");
        waits.wait().expect("ends");
    }

    #[test]
    fn the_socket_of_a_keeper_that_lives_stays() {
        let dir = tempfile::tempdir().expect("folder");
        let socket = dir.path().join(SOCKET_NAME);
        std::fs::write(&socket, "").expect("written");
        let folder = claim_folder(dir.path()).expect("claimed");
        assert!(!clear_socket(dir.path()) && socket.exists(), "somebody is at it");
        assert!(is_claimed(dir.path()));
        drop(folder);
        assert!(!is_claimed(dir.path()) && !is_claimed(&dir.path().join("none")));
        assert!(clear_socket(dir.path()) && !socket.exists());
    }

    #[test]
    fn a_process_of_which_nothing_is_kept_is_ended_all_the_same() {
        let dir = tempfile::tempdir().expect("folder");
        let mut waits = std::process::Command::new("sleep").arg("60").spawn().expect("a process");
        let pid = i32::try_from(waits.id()).expect("a number");
        Begun::write(dir.path(), pid).expect("written");
        let begun = Begun::read(dir.path()).expect("reads");
        let other = Begun { started_ticks: begun.started_ticks + 1, ..begun };
        replace(dir.path(), "begun.json", &other).expect("written");
        end_orphan(dir.path());
        assert!(begun.lives().expect("told"), "it was another's number");
        replace(dir.path(), "begun.json", &begun).expect("written");
        let folder = claim_folder(dir.path()).expect("claimed");
        end_unkept(dir.path());
        assert!(begun.lives().expect("told"), "its keeper is at it");
        drop(folder);
        end_unkept(dir.path());
        assert!(!waits.wait().expect("ends").success());
    }

    /// Neither an end nor a life is made up.
    #[test]
    fn what_can_not_be_looked_at_has_not_ended() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("kept.json");
        assert_eq!(outlives_its_keeper(dir.path()).expect("nothing is there"), None);
        std::fs::write(&path, "").expect("what a host that went down leaves");
        assert_eq!(outlives_its_keeper(dir.path()).expect("it says nothing"), None);
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink("kept.json", &path).expect("its own name");
        assert!(outlives_its_keeper(dir.path()).is_err());
        std::fs::remove_file(&path).expect("removed");
        let kept = kept(None);
        kept.write(dir.path()).expect("written");
        assert_eq!(outlives_its_keeper(dir.path()).expect("read"), Some((kept.guest, kept.instance)));
    }

    #[test]
    fn what_is_left_running_was_never_ours_or_was_released_and_runs() {
        let standing = |state| Standing { state, epoch: Epoch(5), loaded: None };
        let (incoming, running, paused) =
            (standing(RunState::Incoming), standing(RunState::Running), standing(RunState::Paused));
        let (earlier, later) = (Some(now_s()), Some(now_s() + 1000));
        let rows = [
            // adopted, released until, standing, step; is left
            (true, None, incoming, None, true),
            (true, None, incoming, Some(Step::Resuming(Epoch(6))), false),
            (true, later, running, None, true),
            (true, earlier, running, None, false),
            (true, None, running, None, false),
            (true, later, running, Some(Step::Pausing(Epoch(5))), false),
            (true, later, paused, None, false),
            (false, later, running, None, false),
            (false, None, incoming, None, false),
        ];
        for (adopted, released_until_s, standing, step, left) in rows {
            let kept = Kept { adopted, released_until_s, standing, ..kept(step) };
            assert_eq!(kept.is_left(), left, "{kept:?}");
        }
    }

    #[test]
    fn what_was_told_to_run_is_said_to_run() {
        let spoken = |step| kept(step).spoken();
        assert_eq!(spoken(None).state, RunState::Incoming);
        let Standing { state, epoch, .. } = spoken(Some(Step::Resuming(Epoch(7))));
        assert_eq!((state, epoch), (RunState::Running, Epoch(7)));
    }
}
