//! The runners on this host: started, found again after a restart, ended.
//!
//! ```text
//!   STATE/guests/INSTANCE/   runner.sock (there: it lives or lived), ticks, runner.log
//! ```
//!
//! Always true: a runner is a process of its own, in its own process group, that outlives this one; its instance id
//! is drawn here, before it is started; a stopped runner's folder stays for a while, for whoever asks what happened.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use godwit_domain::{Epoch, GuestName, GuestSpec, InstanceId, NodeName};
use godwit_guest::client::{self, Attached, ClientError};
use godwit_transfer::drive::{self, RunnerError};
use godwit_wire::handoff::RunState;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::process::Command;

use crate::records::About;

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

/// Where this node keeps its runners.
#[derive(Debug, Clone)]
pub struct Runners {
    dir: PathBuf,
    node: NodeName,
}

impl Runners {
    /// The runners of a node with this state folder.
    pub fn new(state: &Path, node: NodeName) -> Self {
        Self { dir: state.join("guests"), node }
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
        let log = fs::File::create(dir.join("runner.log")).map_err(folder)?;
        let program = std::env::current_exe().map_err(LocalError::Start)?;
        let mut command = Command::new(program);
        command
            .args(["guest", "run", "--dir"])
            .arg(&dir)
            .args(["--guest", &guest.to_string(), "--node", self.node.as_str()])
            .args(["--instance", &instance.to_string()])
            .args(arguments(&role))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        let mut child = command.spawn().map_err(LocalError::Start)?;
        let attached = match self.wait_until_ready(&dir, &mut child, &role).await {
            Ok(()) => attach(dir).await,
            Err(error) => Err(error),
        };
        if attached.is_err() {
            // Nobody would ever know of it.
            let _ = child.start_kill();
        }
        // Whatever comes of it, it must be waited for, or it stays as a zombie.
        tokio::spawn(async move { child.wait().await });
        attached
    }

    async fn wait_until_ready(
        &self,
        dir: &Path,
        child: &mut tokio::process::Child,
        role: &Role<'_>,
    ) -> Result<(), LocalError> {
        let (Role::Fresh(spec) | Role::Incoming(spec)) = role;
        let bytes = spec.memory_bytes;
        let limit = START_TIMEOUT + Duration::from_secs(bytes >> 27);
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
    pub async fn find(&self) -> Sought {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let dirs = entries.map(|entry| entry.path()).filter(|dir| dir.join("runner.sock").exists());
        let sought = self.seek(dirs.collect()).await;
        self.forget_the_oldest();
        sought
    }

    /// Attaches to the runners in these folders.
    pub async fn seek(&self, dirs: Vec<PathBuf>) -> Sought {
        let mut sought = Sought::default();
        for dir in dirs {
            let reached = match attach(dir.clone()).await {
                Ok(attached) => {
                    About::read(&dir).map(|about| (about, attached)).map_err(|error| error.to_string())
                }
                Err(LocalError::Client(ClientError::Socket { source, .. }))
                    if source.kind() == io::ErrorKind::ConnectionRefused =>
                {
                    tracing::info!(dir = %dir.display(), "no runner lives here any more");
                    let _ = fs::remove_file(dir.join("runner.sock"));
                    continue;
                }
                Err(error) => Err(drive::chain(&error)),
            };
            match reached {
                Ok(found) => {
                    run_freely(&found.1).await;
                    sought.found.push(found);
                }
                Err(error) => {
                    tracing::error!(dir = %dir.display(), error, "a runner is not reached; it is tried again");
                    sought.unreached.push(dir);
                }
            }
        }
        sought
    }

    /// Ends a runner for good, and returns when its process is gone: its guest's memory is, too. Its folder stays
    /// for a while.
    pub async fn discard(&self, attached: &Attached) {
        let (guest, instance) = (&attached.hello.guest, attached.hello.instance);
        // It may be busy for as long as pages are missing, which nobody will send any more.
        match tokio::time::timeout(END_TIMEOUT, attached.runner.stop()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%guest, %instance, error = drive::chain(&error), "runner did not end by itself");
            }
            Err(_) => tracing::warn!(%guest, %instance, "runner is busy and does not end by itself"),
        }
        match attached.process() {
            Ok(pidfd) => Process { pidfd }.wait_or_kill().await,
            Err(error) => tracing::error!(%guest, %instance, %error, "the runner's end is not waited for"),
        }
        let _ = fs::remove_file(attached.dir.join("runner.sock"));
        tracing::info!(%guest, %instance, "runner ended");
        self.forget_the_oldest();
    }

    fn forget_the_oldest(&self) {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let stopped = entries.map(|entry| entry.path()).filter(|dir| !dir.join("runner.sock").exists());
        let age =
            |dir: &PathBuf| fs::metadata(dir).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut stopped: Vec<_> = stopped.map(|dir| (age(&dir), dir)).collect();
        stopped.sort();
        let surplus = stopped.len().saturating_sub(STOPPED_KEPT_MAX);
        for (_, dir) in stopped.into_iter().take(surplus) {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// A process by descriptor: its number may be used again, the descriptor is that process's for ever.
struct Process {
    pidfd: OwnedFd,
}

impl Process {
    /// Waits for its end; one that does not come is brought about.
    async fn wait_or_kill(self) {
        // It blocks for seconds at worst: not on a thread that serves others.
        let waited = tokio::task::spawn_blocking(move || {
            if !self.has_ended_within(END_TIMEOUT) {
                let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
                self.has_ended_within(END_TIMEOUT);
            }
        });
        let _ = waited.await;
    }

    /// The descriptor of a process becomes readable when the process has ended.
    fn has_ended_within(&self, limit: Duration) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let limit = Timespec::try_from(limit).ok();
        poll(&mut ended, limit.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

/// Waits until a process has ended.
pub async fn until_ended(process: OwnedFd) {
    let interest = tokio::io::Interest::READABLE;
    #[expect(deprecated, reason = "an OwnedFd keeps what its unsafe successor wants to be promised")]
    let watched = tokio::io::unix::AsyncFd::with_interest(process, interest);
    match watched {
        Ok(process) => {
            let _ = process.readable().await;
        }
        Err(error) => {
            tracing::error!(%error, "the end of a process will not be seen");
            std::future::pending::<()>().await;
        }
    }
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
