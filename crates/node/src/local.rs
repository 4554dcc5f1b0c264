//! The runners on this host: started, found again after a restart, ended.
//!
//! ```text
//!   STATE/guests/INSTANCE/   runner.sock (there: it lives or lived), ticks, runner.log; of a QEMU machine.json, kept.json,
//!                            qemu.log, ended (why it did so by itself)
//! ```
//!
//! Always true: a runner is a process of its own, in its own process group, that outlives this one; its instance id
//! is drawn here, before it is started; a stopped runner's folder stays for a while, for whoever asks what happened.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use godwit_domain::{Epoch, GuestName, GuestSpec, InstanceId, NodeName};
use godwit_guest::client::{self, Attached, ClientError};
use godwit_guest::qemu::{self, MachineFile};
use godwit_transfer::drive::{self, RunnerError};
use godwit_wire::handoff::RunState;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::process::Command;

use crate::records::About;

mod process;

pub use process::until_ended;
use process::{Process, insist};

/// Folders of stopped runners that are kept.
const STOPPED_KEPT_MAX: usize = 16;
/// How often a starting runner's socket is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// How long a runner may take to start, beside a second for every 128 MiB it has to fill.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a runner may take to end; freeing a large guest's memory takes a second for every few GiB.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no runner.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Its folder can not be made.
    #[error("folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its process can not be started.
    #[error("start a runner")]
    Start(#[source] io::Error),
    /// It ended before it was ready; its log says why.
    #[error("runner ended at once ({status}): {}", last_words.trim())]
    Ended {
        /// How it ended.
        status: String,
        /// The end of its log.
        last_words: String,
    },
    /// It did not get ready.
    #[error("runner was not ready within {} s", .0.as_secs())]
    NotReady(Duration),
    /// Whether its QEMU lives can not be told.
    #[error("look for a QEMU whose keeper has died")]
    NotTold(#[source] io::Error),
    /// It can not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// What a runner is started for.
#[derive(Debug)]
pub enum Role<'a> {
    /// A new guest.
    Fresh(&'a GuestSpec),
    /// A guest that will arrive: its memory and the pace of its ticks; what it does comes with it.
    Incoming(&'a GuestSpec),
}

/// [`Role`], as it travels into a task.
#[derive(Debug, Clone)]
pub enum OwnedRole {
    /// As there.
    Fresh(GuestSpec),
    /// As there.
    Incoming(GuestSpec),
}

impl OwnedRole {
    /// The role itself.
    pub fn borrow(&self) -> Role<'_> {
        match self {
            Self::Fresh(spec) => Role::Fresh(spec),
            Self::Incoming(spec) => Role::Incoming(spec),
        }
    }
}

/// What became of a search for runners.
#[derive(Debug, Default)]
pub struct Sought {
    /// Attached to, with whose they are.
    pub found: Vec<(About, Attached)>,
    /// Folders of runners that may live and were not reached.
    pub unreached: Vec<PathBuf>,
}

impl Sought {
    fn take(&mut self, dir: PathBuf, reached: Result<Attached, LocalError>) {
        let reached = reached.map_err(|error| drive::chain(&error));
        let known = reached.and_then(|attached| match About::read(&dir) {
            Ok(about) => Ok((about, attached)),
            Err(error) => Err(error.to_string()),
        });
        match known {
            Ok(found) => self.found.push(found),
            Err(error) => {
                tracing::error!(dir = %dir.display(), error, "a runner is not reached; it is tried again");
                self.unreached.push(dir);
            }
        }
    }
}

/// Where this node keeps its runners.
#[derive(Debug, Clone)]
pub struct Runners {
    dir: PathBuf,
    node: NodeName,
    /// Beginnings of paths and names in a QEMU's arguments that are others on this host, from and to.
    renamed: Vec<(String, String)>,
}

impl Runners {
    /// The runners of a node with this state folder.
    pub fn new(state: &Path, node: NodeName, renamed: Vec<(String, String)>) -> Self {
        Self { dir: state.join("guests"), node, renamed }
    }

    /// Starts a runner and attaches to it.
    pub async fn start(
        &self,
        guest: &GuestName,
        instance: InstanceId,
        about: &About,
        role: Role<'_>,
    ) -> Result<Attached, LocalError> {
        let dir = self.dir.join(instance.to_string());
        let folder = |source| LocalError::Folder { path: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(folder)?;
        about.write(&dir).map_err(folder)?;
        let (Role::Fresh(spec) | Role::Incoming(spec)) = &role;
        let words = match &spec.qemu {
            None => arguments(&role),
            Some(qemu) => {
                let (memory_bytes, renamed) = (spec.memory_bytes, self.renamed.clone());
                let machine = MachineFile { memory_bytes, qemu: qemu.clone(), renamed };
                machine.write(&dir).map_err(folder)?;
                matches!(role, Role::Incoming(_)).then(|| "--incoming".to_owned()).into_iter().collect()
            }
        };
        let verb = if spec.qemu.is_some() { "keep" } else { "run" };
        let started = self.spawn(&dir, (guest, instance), verb, &words, spec.memory_bytes).await;
        if started.is_err() {
            // A QEMU whose keeper was killed in the middle: nobody would ever know of it.
            qemu::end_orphan(&dir);
        }
        started
    }

    /// Starts a runner's process in its folder, and attaches to it.
    async fn spawn(
        &self,
        dir: &Path,
        (guest, instance): (&GuestName, InstanceId),
        verb: &str,
        words: &[String],
        memory_bytes: u64,
    ) -> Result<Attached, LocalError> {
        let folder = |source| LocalError::Folder { path: dir.to_owned(), source };
        let log =
            fs::File::options().create(true).append(true).open(dir.join("runner.log")).map_err(folder)?;
        let program = std::env::current_exe().map_err(LocalError::Start)?;
        let mut command = Command::new(program);
        command
            .args(["guest", verb, "--dir"])
            .arg(dir)
            .args(["--guest", &guest.to_string(), "--node", self.node.as_str()])
            .args(["--instance", &instance.to_string()])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        let mut child = command.spawn().map_err(LocalError::Start)?;
        let attached = match self.wait_until_ready(dir, &mut child, memory_bytes).await {
            Ok(()) => attach(dir.to_owned()).await,
            Err(error) => Err(error),
        };
        if attached.is_err() {
            // Nobody would ever know of it. What it has written is looked at when it writes no more.
            let _ = child.start_kill();
            let _ = tokio::time::timeout(END_TIMEOUT, child.wait()).await;
        }
        // Whatever comes of it, it must be waited for, or it stays as a zombie.
        tokio::spawn(async move { child.wait().await });
        attached
    }

    /// Starts another keeper for the QEMU in this folder, whose own has died; `None`: no QEMU lives there, or it has ended
    /// before it was kept again.
    pub async fn keep_again(&self, dir: &Path) -> Option<Result<Attached, LocalError>> {
        let (guest, instance) = match qemu::outlives_its_keeper(dir) {
            Ok(who) => who?,
            Err(error) => return Some(Err(LocalError::NotTold(error))),
        };
        if !qemu::clear_socket(dir) {
            return Some(attach(dir.to_owned()).await);
        }
        tracing::warn!(%guest, %instance, "the keeper of a QEMU has died; another takes over");
        match self.spawn(dir, (&guest, instance), "keep", &["--again".to_owned()], 0).await {
            Err(_) if has_no_qemu(dir) => None,
            kept => Some(kept),
        }
    }

    /// Why a runner that is not here any more has ended, as far as it, or QEMU's log, says so.
    pub fn why_ended(&self, instance: InstanceId) -> Option<String> {
        qemu::why_ended(&self.dir.join(instance.to_string()))
    }

    async fn wait_until_ready(
        &self,
        dir: &Path,
        child: &mut tokio::process::Child,
        memory_bytes: u64,
    ) -> Result<(), LocalError> {
        let limit = START_TIMEOUT + Duration::from_secs(memory_bytes >> 27);
        let socket = dir.join("runner.sock");
        let ready = async {
            while !socket.exists() {
                if let Some(status) = child.try_wait().map_err(LocalError::Start)? {
                    let last_words = fs::read_to_string(dir.join("runner.log")).unwrap_or_default();
                    let last_words = last_words.lines().last().unwrap_or_default().to_owned();
                    return Err(LocalError::Ended { status: status.to_string(), last_words });
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            Ok(())
        };
        tokio::time::timeout(limit, ready).await.unwrap_or(Err(LocalError::NotReady(limit)))
    }

    /// Attaches to every runner that is there, as after a restart. A socket that refuses is that of one which has ended;
    /// one that is not reached in any other way lives, for all that is known.
    ///
    /// # Errors
    /// Which runners are here can not be told: nobody may be taken for gone.
    pub async fn find(&self) -> io::Result<Sought> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.dir.display()));
        let entries = entries.map_err(named)?;
        // Without a socket: one that just starts, and a QEMU whose keeper has died and that has no other yet.
        let is_lived_in = |dir: &PathBuf| {
            dir.join("runner.sock").try_exists().unwrap_or(true) || qemu::is_claimed(dir) || !has_no_qemu(dir)
        };
        let dirs = entries.iter().map(fs::DirEntry::path).filter(is_lived_in);
        let sought = self.seek(dirs.collect()).await;
        self.forget_the_oldest();
        Ok(sought)
    }

    /// Attaches to the runners in these folders.
    pub async fn seek(&self, dirs: Vec<PathBuf>) -> Sought {
        let mut sought = Sought::default();
        for dir in dirs {
            let reached = attach(dir.clone()).await;
            let failed = match &reached {
                Err(LocalError::Client(ClientError::Socket { source, .. })) => Some(source.kind()),
                Ok(_) | Err(_) => None,
            };
            let refused = failed == Some(io::ErrorKind::ConnectionRefused);
            let missing = failed == Some(io::ErrorKind::NotFound);
            if (refused || missing)
                && let Some(again) = self.keep_again(&dir).await
            {
                sought.take(dir, again);
            } else if refused || (missing && (!dir.exists() || qemu::clear_socket(&dir))) {
                tracing::info!(dir = %dir.display(), "no runner lives here any more");
                let _ = fs::remove_file(dir.join("runner.sock"));
            } else if missing {
                tracing::info!(dir = %dir.display(), "a runner that starts or ends is waited for");
                sought.unreached.push(dir);
            } else {
                sought.take(dir, reached);
            }
        }
        for (_, attached) in &sought.found {
            run_freely(attached).await;
        }
        sought
    }

    /// Ends a runner for good, and returns when its process is gone: its guest's memory is, too. Its folder stays
    /// for a while.
    pub async fn discard(&self, attached: &Attached) {
        let (guest, instance) = (&attached.hello.guest, attached.hello.instance);
        // It may be busy for as long as pages are missing, which nobody will send any more.
        let mut ends = false;
        match tokio::time::timeout(END_TIMEOUT, attached.runner.stop()).await {
            Ok(Ok(())) => ends = true,
            Ok(Err(error)) => {
                tracing::warn!(%guest, %instance, error = drive::chain(&error), "runner did not end by itself");
            }
            Err(_) => tracing::warn!(%guest, %instance, "runner is busy and does not end by itself"),
        }
        // No other keeper comes after one whose QEMU is left alone.
        if !ends && !qemu::ends_with_its_keeper(&attached.dir) {
            qemu::end_orphan(&attached.dir);
        }
        let process = Process { pidfd: insist(|| attached.process()).await };
        process.wait_or_kill().await;
        // A keeper that said so has ended its QEMU, or left one alone that is not ours.
        if !ends
            && qemu::ends_with_its_keeper(&attached.dir)
            && let Some(pidfd) = insist(|| attached.guest_process()).await
        {
            let process = Process { pidfd };
            let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
            process.wait_or_kill().await;
        }
        let _ = fs::remove_file(attached.dir.join("runner.sock"));
        tracing::info!(%guest, %instance, "runner ended");
        self.forget_the_oldest();
    }

    fn forget_the_oldest(&self) {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        // Without a socket is a QEMU, too, whose keeper has died and that has no other yet: its folder knows it.
        let has_stopped =
            |dir: &PathBuf| dir.join("runner.sock").try_exists().is_ok_and(|is| !is) && has_no_qemu(dir);
        let stopped = entries.map(|entry| entry.path()).filter(has_stopped);
        let age =
            |dir: &PathBuf| fs::metadata(dir).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut stopped: Vec<_> = stopped.map(|dir| (age(&dir), dir)).collect();
        stopped.sort();
        stopped.iter().for_each(|(_, dir)| qemu::end_unkept(dir));
        let surplus = stopped.len().saturating_sub(STOPPED_KEPT_MAX);
        for (_, dir) in stopped.into_iter().take(surplus) {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// That none lives there is known; not merely that none is seen.
fn has_no_qemu(dir: &Path) -> bool {
    matches!(qemu::outlives_its_keeper(dir), Ok(None))
}

fn arguments(role: &Role<'_>) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut option = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    match role {
        Role::Incoming(spec) => {
            option("memory", spec.memory_bytes.to_string());
            option("tick-interval-ms", spec.tick_interval_ms.to_string());
            arguments.push("--incoming".into());
        }
        Role::Fresh(spec) => {
            option("memory", spec.memory_bytes.to_string());
            option("working-set", spec.working_set_bytes.to_string());
            option("dirty-rate", spec.dirty_rate_bytes_per_second.to_string());
            option("pattern", spec.pattern.clone());
            option("zero", spec.zero_percent.to_string());
            option("compressible", spec.compressible_percent.to_string());
            option("threads", spec.threads.to_string());
            option("seed", spec.seed.to_string());
            option("tick-interval-ms", spec.tick_interval_ms.to_string());
        }
    }
    arguments
}

/// A process that is gone may have throttled it, for a migration that nobody will end any more.
async fn run_freely(attached: &Attached) {
    if let Err(error) = attached.runner.throttle(0).await {
        let (guest, instance) = (&attached.hello.guest, attached.hello.instance);
        tracing::warn!(%guest, %instance, error = drive::chain(&error), "a guest that was found may be throttled");
    }
}

async fn attach(dir: PathBuf) -> Result<Attached, LocalError> {
    // It waits for a Hello with blocking reads: not on a thread that serves others.
    let handle = tokio::runtime::Handle::current();
    let attached = tokio::task::spawn_blocking(move || {
        let _runtime = handle.enter();
        client::attach(&dir)
    });
    match attached.await {
        Ok(attached) => Ok(attached?),
        Err(error) => Err(LocalError::Start(io::Error::other(error))),
    }
}

/// A runner as a transfer's driver sees it.
#[derive(Debug, Clone)]
pub struct Handle(pub client::Runner);

fn boxed(error: ClientError) -> RunnerError {
    Box::new(error)
}

impl drive::Runner for Handle {
    async fn runs_under(&self, epoch: Epoch) -> Result<bool, RunnerError> {
        let standing = self.0.stats().await.map_err(boxed)?.standing;
        Ok(standing.state == RunState::Running && standing.epoch >= epoch)
    }

    async fn pause(&self, epoch: Epoch) -> Result<(), RunnerError> {
        self.0.pause(epoch).await.map_err(boxed)
    }

    async fn save(&self) -> Result<Vec<u8>, RunnerError> {
        self.0.save().await.map_err(boxed)
    }

    async fn load(&self, epoch: Epoch, state: Vec<u8>) -> Result<(), RunnerError> {
        self.0.load(epoch, state).await.map_err(boxed)
    }

    async fn throttle(&self, percent: u8) -> Result<(), RunnerError> {
        self.0.throttle(percent).await.map_err(boxed)
    }

    async fn resume(&self, epoch: Epoch) -> Result<(), RunnerError> {
        self.0.resume(epoch).await.map_err(boxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Scratch;

    #[actix::test]
    async fn a_folder_that_can_not_be_read_is_not_empty() {
        let scratch = Scratch::new();
        let runners = Runners::new(scratch.path(), "node-a".parse().expect("a name"), Vec::new());
        assert!(runners.find().await.expect("a node that has had no runner yet").found.is_empty());
        fs::write(scratch.path().join("guests"), b"").expect("written");
        runners.find().await.expect_err("no folder");
    }
}
