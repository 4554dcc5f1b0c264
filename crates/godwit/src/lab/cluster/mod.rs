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

mod moves;
mod process;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use godwit_domain::ownership::{Entry, Ownership, Refused};
use godwit_domain::{GuestName, InstanceId, NodeName};
use godwit_node::ca::{self, CaError};
use godwit_wire::handoff::{Stats, Verified};
use godwit_wire::orders::{Fact, GuestSpec, Order, Progress};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::sweeper::MARK_VARIABLE;
pub use moves::Moved;
pub use process::{NodeProcess, NodeSpec};
use process::{config_of, cpu_time, high_water_mark, listen};

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
        let mut ownership = Ownership::new(node.clone());
        ownership.apply(Entry::Born { instance })?;
        self.ledger.insert(guest.clone(), ownership);
        Ok(())
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
        let owner = self.ledger.get(guest).and_then(Ownership::owner).map(|owner| owner.node.clone());
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
        let owned = |(guest, held): (&GuestName, &Ownership)| Some((guest.clone(), held.owner()?.clone()));
        let owners: Vec<_> = self.ledger.iter().filter_map(owned).collect();
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

/// How far a migration is, for whoever shows it.
pub fn progress_of(event: &Event) -> Option<&Progress> {
    match event {
        Event::Fact(_, Fact::Progress { progress, .. }) => Some(progress),
        Event::Fact(..) | Event::Agreed(..) | Event::NodeEnded(_) => None,
    }
}
