//! A cluster of real node processes on this machine, ordered over pipes, with the ledger of who may run what.
//!
//! ```text
//!   Cluster ── stdin: Order ──▶ node process ──▶ runner processes
//!      ▲  └── ledger: Ownership per guest ◀── proposals
//!      └──── stdout: Fact ──────── node process
//! ```
//!
//! The ledger is what a control group would agree on, kept by one process: every proposal is applied to it in the
//! order of arrival or refused, and each change is sent to every node as a view.
//!
//! Always true: a node's folder, identity and port are its own; every process carries the lab's mark.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use godwit_domain::ownership::{Entry, Licence, Ownership, Phase, Refused};
use godwit_domain::{GuestName, InstanceId, MigrationId, NodeName};
use godwit_node::ca::{self, CaError};
use godwit_wire::handoff::{Stats, Verified};
use godwit_wire::orders::{Fact, GuestSpec, LINE_BYTES_MAX, Order, Progress, Report, Settings, SourceReport};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::codec::{FramedRead, LinesCodec};

use super::sweeper::MARK_VARIABLE;

/// Facts that may wait to be read.
const FACTS_MAX: usize = 256;
/// How long a node may take for something that needs no copying.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a guest or node may take to end by itself.
const SHUT_DOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the cluster did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file or process of the lab.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A node process has ended.
    #[error("node {node} has ended{why}")]
    NodeEnded {
        /// Which.
        node: NodeName,
        /// The end of its log.
        why: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {} s", limit.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// The deadline.
        limit: Duration,
    },
    /// A node refused an order.
    #[error("{about}: {message}")]
    Refused {
        /// What it was about.
        about: String,
        /// Why.
        message: String,
    },
    /// The ledger refused.
    #[error(transparent)]
    Ledger(#[from] Refused),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ClusterError {
    let what = what.into();
    move |source| ClusterError::Io { what, source }
}

/// How one node is started.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its name.
    pub name: NodeName,
    /// Its migration address; port 0: the kernel chooses.
    pub listen: SocketAddr,
    /// A command to start it with, such as `ip netns exec NAME`.
    pub wrapper: Vec<String>,
    /// Further environment.
    pub environment: Vec<(String, String)>,
    /// Largest UDP payload it may send.
    pub udp_payload_bytes_max: u16,
}

impl NodeSpec {
    /// A node on loopback. Its packets are larger than on a common network: loopback carries them.
    pub fn on_loopback(name: NodeName) -> Self {
        Self {
            name,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            wrapper: Vec::new(),
            environment: Vec::new(),
            udp_payload_bytes_max: 6550,
        }
    }
}

/// A running node process.
#[derive(Debug)]
pub struct NodeProcess {
    spec: NodeSpec,
    child: Child,
    stdin: ChildStdin,
    ended: bool,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process id, for people and for those who kill.
    pub pid: u32,
}

/// A runner that a node told of.
#[derive(Debug, Clone)]
pub struct RunnerSeen {
    /// Its guest.
    pub guest: GuestName,
    /// Itself.
    pub instance: InstanceId,
    /// Its folder, with its ticks.
    pub dir: PathBuf,
}

/// What a node process did.
#[derive(Debug)]
enum Heard {
    Fact(Fact),
    Ended,
}

/// What happened, once proposals were put to the ledger.
#[derive(Debug)]
pub enum Event {
    /// A node told something.
    Fact(NodeName, Fact),
    /// The ledger changed.
    Agreed(GuestName, Entry),
    /// A node process ended.
    NodeEnded(NodeName),
}

/// How a migration ended.
#[derive(Debug)]
pub enum Moved {
    /// The guest runs at the target.
    Succeeded {
        /// What the source measured.
        source: SourceReport,
        /// From "complete and licensed" to "runs" at the target, in microseconds.
        resume_us: u64,
    },
    /// It runs where it ran, for this reason.
    Failed(String),
}

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    mark: String,
    nodes: BTreeMap<NodeName, NodeProcess>,
    ledger: BTreeMap<GuestName, Ownership>,
    memory: BTreeMap<GuestName, u64>,
    /// Every runner that any node told of, dead ones too.
    pub runners: Vec<RunnerSeen>,
    heard: mpsc::Receiver<(NodeName, Heard)>,
    hear: mpsc::Sender<(NodeName, Heard)>,
    migrations: u32,
}

impl Cluster {
    /// An empty cluster in a folder, with a throw-away certificate authority.
    pub fn new(program: &Path, dir: &Path, mark: &str) -> Result<Self, ClusterError> {
        ca::init(&dir.join("ca"))?;
        let (hear, heard) = mpsc::channel(FACTS_MAX);
        Ok(Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            mark: mark.to_owned(),
            nodes: BTreeMap::new(),
            ledger: BTreeMap::new(),
            memory: BTreeMap::new(),
            runners: Vec::new(),
            heard,
            hear,
            migrations: 0,
        })
    }

    /// The folder of a node: node.toml, its certificate, node.log, and what it keeps.
    pub fn node_dir(&self, node: &NodeName) -> PathBuf {
        self.dir.join(node.as_str())
    }

    /// A running node.
    pub fn node(&self, node: &NodeName) -> Option<&NodeProcess> {
        self.nodes.get(node)
    }

    /// What is agreed about a guest.
    pub fn ownership(&self, guest: &GuestName) -> Option<&Ownership> {
        self.ledger.get(guest)
    }

    /// Starts a node, the first time with a new certificate, and waits until it serves.
    pub async fn start_node(&mut self, spec: NodeSpec) -> Result<(), ClusterError> {
        let dir = self.node_dir(&spec.name);
        if !dir.join("node.toml").exists() {
            ca::issue(&self.dir.join("ca"), &spec.name, &dir)?;
            let config = config_of(&spec, &dir);
            std::fs::write(dir.join("node.toml"), config).map_err(io_error("write node.toml"))?;
        }
        let log = dir.join("node.log");
        let log = std::fs::File::options().create(true).append(true).open(&log);
        let mut words = spec.wrapper.clone();
        words.push(self.program.display().to_string());
        let (first, rest) =
            words.split_first().map_or((String::new(), vec![]), |(f, r)| (f.clone(), r.to_vec()));
        let mut command = Command::new(first);
        command.args(rest).args(["node", "run", "--config"]).arg(dir.join("node.toml"));
        command.env(MARK_VARIABLE, &self.mark).envs(spec.environment.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.map_err(io_error("open node.log"))?);
        // An interrupt at the terminal is for the lab, which ends its nodes in order.
        command.process_group(0);
        let mut child = command.spawn().map_err(io_error(format!("start node {}", spec.name)))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io_error("pipes")(io::ErrorKind::BrokenPipe.into()));
        };
        let pid = child.id().unwrap_or(0);
        tokio::spawn(listen(spec.name.clone(), stdout, self.hear.clone()));
        let name = spec.name.clone();
        let node = NodeProcess { address: spec.listen, spec, child, stdin, pid, ended: false };
        self.nodes.insert(name.clone(), node);
        let ready = self
            .wait(format!("start of node {name}"), STEP_TIMEOUT, |event| match event {
                Event::Fact(node, Fact::Ready { migration_address, .. }) if node == name => {
                    Some(migration_address)
                }
                _ => None,
            })
            .await?;
        if let Some(node) = self.nodes.get_mut(&name) {
            node.address = ready;
        }
        for (guest, ownership) in self.ledger.clone() {
            self.order(&name, &Order::View { guest, ownership }).await;
        }
        Ok(())
    }

    /// Starts a node again that has ended, on the same folder and the same address.
    pub async fn restart_node(&mut self, node: &NodeName) -> Result<(), ClusterError> {
        let Some(old) = self.nodes.remove(node) else {
            return Err(ClusterError::NodeEnded {
                node: node.clone(),
                why: ", and was never started".into(),
            });
        };
        if !old.ended {
            // Its end is still to be heard: it must not be taken for that of its successor.
            let ended = |event| matches!(event, Event::NodeEnded(of) if of == *node).then_some(());
            let deadline = Instant::now() + STEP_TIMEOUT;
            while let Ok(event) = tokio::time::timeout_at(deadline, self.next()).await {
                if ended(event).is_some() {
                    break;
                }
            }
        }
        self.start_node(old.spec).await
    }

    /// Tells a node something. A node that has ended hears nothing, which its end has told.
    pub async fn order(&mut self, node: &NodeName, order: &Order) {
        if let (Some(node), Ok(mut line)) = (self.nodes.get_mut(node), serde_json::to_vec(order)) {
            line.push(b'\n');
            let _ = node.stdin.write_all(&line).await;
        }
    }

    /// Waits for the next thing that happens; proposals go to the ledger on the way.
    pub async fn next(&mut self) -> Event {
        loop {
            // Never ends: the cluster itself holds a sender.
            let Some((node, heard)) = self.heard.recv().await else { std::future::pending().await };
            match heard {
                Heard::Fact(Fact::Proposal { guest, entry }) => {
                    if self.agree(&guest, entry.clone()).await.is_ok() {
                        return Event::Agreed(guest, entry);
                    }
                }
                Heard::Fact(fact) => {
                    if let Fact::Runner { guest, instance, dir, .. } = &fact {
                        let (guest, instance, dir) = (guest.clone(), *instance, PathBuf::from(dir));
                        self.runners.retain(|seen| seen.instance != instance);
                        self.runners.push(RunnerSeen { guest, instance, dir });
                    }
                    return Event::Fact(node, fact);
                }
                Heard::Ended => {
                    if let Some(process) = self.nodes.get_mut(&node) {
                        process.ended = true;
                    }
                    return Event::NodeEnded(node);
                }
            }
        }
    }

    /// Puts an entry to the ledger; if it is accepted, every node gets the new view.
    pub async fn agree(&mut self, guest: &GuestName, entry: Entry) -> Result<(), ClusterError> {
        let ownership = self.ledger.get_mut(guest).ok_or_else(|| ClusterError::Refused {
            about: guest.to_string(),
            message: "no such guest".into(),
        })?;
        if let Err(refused) = ownership.apply(entry.clone()) {
            tracing::info!(%guest, ?entry, %refused, "proposal refused");
            return Err(refused.into());
        }
        let view = Order::View { guest: guest.clone(), ownership: ownership.clone() };
        for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.order(&node, &view).await;
        }
        Ok(())
    }

    /// Waits until something that is looked for happens. The end of any node ends the wait.
    pub async fn wait<T>(
        &mut self,
        what: impl Into<String>,
        limit: Duration,
        mut look: impl FnMut(Event) -> Option<T>,
    ) -> Result<T, ClusterError> {
        let deadline = Instant::now() + limit;
        loop {
            let event = match tokio::time::timeout_at(deadline, self.next()).await {
                Ok(Event::NodeEnded(node)) => {
                    let why = self.last_words(&node);
                    return Err(ClusterError::NodeEnded { node, why });
                }
                Ok(Event::Fact(_, Fact::Refused { about, message })) => {
                    return Err(ClusterError::Refused { about, message });
                }
                Ok(event) => event,
                Err(_) => return Err(ClusterError::Timeout { what: what.into(), limit }),
            };
            if let Some(found) = look(event) {
                return Ok(found);
            }
        }
    }

    fn last_words(&self, node: &NodeName) -> String {
        let log = std::fs::read_to_string(self.node_dir(node).join("node.log")).unwrap_or_default();
        log.lines().last().map(|line| format!("; its log ends with: {line}")).unwrap_or_default()
    }

    /// Makes a guest on a node and waits until it runs.
    pub async fn create_guest(
        &mut self,
        guest: &GuestName,
        node: &NodeName,
        spec: GuestSpec,
    ) -> Result<(), ClusterError> {
        self.memory.insert(guest.clone(), spec.memory_bytes);
        let limit = STEP_TIMEOUT + Duration::from_secs(spec.memory_bytes >> 27);
        self.order(node, &Order::CreateGuest { guest: guest.clone(), spec }).await;
        let instance = self
            .wait(format!("start of guest {guest}"), limit, |event| match event {
                Event::Fact(_, Fact::Runner { guest: of, instance, .. }) if of == *guest => Some(instance),
                _ => None,
            })
            .await?;
        let ownership = Ownership::new(Licence { node: node.clone(), instance });
        self.ledger.insert(guest.clone(), ownership);
        Ok(())
    }

    /// Moves a guest and waits for both sides to end. `watch` sees every event and may order things.
    pub async fn migrate(
        &mut self,
        guest: &GuestName,
        target: &NodeName,
        settings: Settings,
        limit: Duration,
        mut watch: impl AsyncFnMut(&mut Self, &MigrationId, &Event),
    ) -> Result<Moved, ClusterError> {
        self.migrations += 1;
        let migration: MigrationId = format!("migration-{}", self.migrations).parse().map_err(|_| {
            ClusterError::Refused { about: guest.to_string(), message: "the migration's name is none".into() }
        })?;
        self.begin(guest, &migration, target).await?;
        let deadline = Instant::now() + limit;
        let (mut source_report, mut resume_us) = (None, None);
        // Whose memory is to go at the end: the source's runner, or the target's if it fails.
        let (mut accepted, mut gone) = (None, Vec::new());
        loop {
            let Ok(event) = tokio::time::timeout_at(deadline, self.next()).await else {
                return Err(ClusterError::Timeout { what: format!("the end of {migration}"), limit });
            };
            watch(self, &migration, &event).await;
            match event {
                Event::Agreed(of, Entry::Accept { instance, .. }) if of == *guest => {
                    accepted = Some(instance);
                    self.send_off(guest, &migration, target, instance, settings).await;
                }
                Event::Fact(_, Fact::Ended { migration: of, report }) if of == migration => match report {
                    Report::Source(report) => source_report = Some(report),
                    Report::Target { resume_us: took } => resume_us = Some(took),
                    Report::Failed { .. } => {}
                },
                Event::Fact(_, Fact::Gone { instance, .. }) => gone.push(instance),
                Event::NodeEnded(node) => self.mourn(guest, &migration, &node).await,
                Event::Agreed(..) | Event::Fact(..) => {}
            }
            let Some(attempt) = self.ledger.get(guest).and_then(|ownership| ownership.attempt.as_ref())
            else {
                continue;
            };
            let target_lives = self.nodes.get(target).is_some_and(|node| !node.ended);
            match (&attempt.phase, source_report, resume_us) {
                (Phase::Failed { reason }, ..) => {
                    let swept = accepted.is_none_or(|instance| gone.contains(&instance));
                    if swept || !target_lives {
                        return Ok(Moved::Failed(reason.clone()));
                    }
                }
                (Phase::Succeeded, Some(source), Some(resume_us))
                    if gone.contains(&attempt.source.instance) =>
                {
                    return Ok(Moved::Succeeded { source, resume_us });
                }
                _ => {}
            }
        }
    }

    async fn begin(
        &mut self,
        guest: &GuestName,
        migration: &MigrationId,
        target: &NodeName,
    ) -> Result<(), ClusterError> {
        let start = Entry::Start { migration: migration.clone(), target: target.clone() };
        self.agree(guest, start).await?;
        if let Some(ownership) = self.ledger.get(guest) {
            let prepare = Order::Prepare {
                migration: migration.clone(),
                guest: guest.clone(),
                source: ownership.owner.node.clone(),
                epoch: ownership.epoch,
                memory_bytes: self.memory.get(guest).copied().unwrap_or(0),
            };
            self.order(target, &prepare).await;
        }
        Ok(())
    }

    async fn send_off(
        &mut self,
        guest: &GuestName,
        migration: &MigrationId,
        target: &NodeName,
        token: InstanceId,
        settings: Settings,
    ) {
        let (Some(ownership), Some(node)) = (self.ledger.get(guest), self.nodes.get(target)) else { return };
        let source = ownership.owner.node.clone();
        let order = Order::Migrate {
            migration: migration.clone(),
            guest: guest.clone(),
            target: target.clone(),
            address: node.address,
            token,
            epoch: ownership.epoch,
            settings,
        };
        self.order(&source, &order).await;
    }

    /// A node process has died: what it was part of ends, unless the guest was handed over already.
    async fn mourn(&mut self, guest: &GuestName, migration: &MigrationId, node: &NodeName) {
        let reason = format!("the process of node {node} has ended");
        // Refused after a hand-over, and then the target decides.
        let _ = self.agree(guest, Entry::End { migration: migration.clone(), reason }).await;
    }

    /// Compares a guest's memory with what it must hold.
    pub async fn verify(&mut self, guest: &GuestName) -> Result<Verified, ClusterError> {
        let limit = Duration::from_secs(600);
        self.ask_owner(guest, Order::Verify { guest: guest.clone() }).await?;
        self.wait(format!("verification of {guest}"), limit, |event| match event {
            Event::Fact(_, Fact::Verified { guest: of, result }) if of == *guest => Some(result),
            _ => None,
        })
        .await
    }

    /// How a guest does.
    pub async fn stats(&mut self, guest: &GuestName) -> Result<Stats, ClusterError> {
        self.ask_owner(guest, Order::Stats { guest: guest.clone() }).await?;
        self.wait(format!("numbers of {guest}"), STEP_TIMEOUT, |event| match event {
            Event::Fact(_, Fact::Stats { guest: of, stats }) if of == *guest => Some(stats),
            _ => None,
        })
        .await
    }

    async fn ask_owner(&mut self, guest: &GuestName, order: Order) -> Result<(), ClusterError> {
        let owner = self.ledger.get(guest).map(|ownership| ownership.owner.node.clone());
        let owner = owner.ok_or_else(|| ClusterError::Refused {
            about: guest.to_string(),
            message: "no such guest".into(),
        })?;
        self.order(&owner, &order).await;
        Ok(())
    }

    /// The largest resident memory that any living node process has had, in bytes.
    pub fn rss_bytes_max(&self) -> u64 {
        self.nodes.values().map(|node| high_water_mark(node.pid)).max().unwrap_or(0)
    }

    /// CPU time of a node process so far.
    pub fn cpu_time(&self, node: &NodeName) -> Duration {
        self.nodes.get(node).map(|node| cpu_time(node.pid)).unwrap_or_default()
    }

    /// Kills a node process. Its runners live on.
    pub async fn kill_node(&mut self, node: &NodeName) -> Result<(), ClusterError> {
        if let Some(process) = self.nodes.get_mut(node) {
            process.child.kill().await.map_err(io_error(format!("kill node {node}")))?;
        }
        Ok(())
    }

    /// Ends guests and nodes in order, as far as they let themselves be ended. What does not is for the sweeper.
    pub async fn shut_down(mut self) {
        let owners: Vec<_> =
            self.ledger.iter().map(|(guest, held)| (guest.clone(), held.owner.clone())).collect();
        for (guest, owner) in owners {
            self.order(&owner.node, &Order::Stop { guest: guest.clone() }).await;
            let gone = |event| match event {
                Event::Fact(_, Fact::Gone { instance, .. }) if instance == owner.instance => Some(()),
                _ => None,
            };
            let _ = self.wait(format!("end of guest {guest}"), SHUT_DOWN_TIMEOUT, gone).await;
        }
        for (_, mut node) in self.nodes {
            drop(node.stdin);
            let _ = tokio::time::timeout(SHUT_DOWN_TIMEOUT, node.child.wait()).await;
        }
    }
}

/// Reads a node's facts until it ends.
async fn listen(node: NodeName, stdout: tokio::process::ChildStdout, hear: mpsc::Sender<(NodeName, Heard)>) {
    let mut lines = FramedRead::new(stdout, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
    while let Some(Ok(line)) = lines.next().await {
        match serde_json::from_str(&line) {
            Ok(fact) => {
                if hear.send((node.clone(), Heard::Fact(fact))).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%node, %error, line, "not a fact"),
        }
    }
    let _ = hear.send((node, Heard::Ended)).await;
}

fn config_of(spec: &NodeSpec, dir: &Path) -> String {
    format!(
        "name = \"{}\"\nstate = {:?}\n\n[identity]\nca = \"ca.pem\"\ncertificate = \"node.pem\"\nkey = \"node.key\"\n\n\
         [migration]\nlisten = \"{}\"\nudp_payload_bytes_max = {}\n",
        spec.name,
        dir.display().to_string(),
        spec.listen,
        spec.udp_payload_bytes_max
    )
}

/// `VmHWM` of a process in bytes; 0 if it is gone.
fn high_water_mark(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// User and system time of a process (`/proc/PID/stat`, fields 14 and 15, in ticks of 10 ms).
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold spaces: count from behind it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// How far a migration is, for whoever shows it.
pub fn progress_of(event: &Event) -> Option<&Progress> {
    match event {
        Event::Fact(_, Fact::Progress { progress, .. }) => Some(progress),
        Event::Fact(..) | Event::Agreed(..) | Event::NodeEnded(_) => None,
    }
}
