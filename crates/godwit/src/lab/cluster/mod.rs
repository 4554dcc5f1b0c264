//! A cluster of real node processes on this machine, asked and ordered over their admin sockets as an operator would.
//!
//! ```text
//!   Cluster ── admin socket ──▶ node process ──▶ runner processes
//!                                   └── control group: the first three or five nodes vote
//! ```
//!
//! Always true: a node's folder, identity and addresses are its own; every process carries the lab's mark; nothing is
//! done that an operator could not do.

mod moves;
mod process;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use godwit_admin::client::{changes, new_request_id};
use godwit_admin::{AskError, Client, ClientError, read_as};
use godwit_domain::{GuestName, GuestSpec, Labels, MigrationId, NodeName};
use godwit_node::ca::{self, CaError};
use godwit_wire::admin::{
    Act, Code, ControlStatus, GuestDetail, GuestStats, MigrationDetail, NodeDetail, Problem,
};
use godwit_wire::handoff::{Stats, Verified};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::Instant;

use super::sweeper::MARK_VARIABLE;
pub use moves::{How, Moved, Watched};
pub use process::{NodeProcess, NodeSpec, free_addresses};
use process::{config_of, cpu_time, high_water_mark};

/// How long a node may take for something that needs no copying.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a guest or node may take to end by itself.
const SHUT_DOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a level is looked at that nobody reports.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// The cluster's name in every config.
const CLUSTER: &str = "lab";

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
    /// A node can not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A node answered no, or not at all.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// No node is there to be asked.
    #[error("no node of the cluster lives")]
    NobodyLives,
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ClusterError {
    let what = what.into();
    move |source| ClusterError::Io { what, source }
}

/// Whether a question met a change of leaders.
fn is_election(problem: &Problem) -> bool {
    let passes = matches!(problem.code, Code::Unavailable | Code::Unknown);
    passes && ["a quorum of voters must", "the leader must"].iter().any(|rule| problem.rule.starts_with(rule))
}

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    mark: String,
    voters: BTreeMap<NodeName, SocketAddr>,
    nodes: BTreeMap<NodeName, NodeProcess>,
}

impl Cluster {
    /// An empty cluster in a folder, with a throw-away certificate authority and voters of these names.
    pub fn new(program: &Path, dir: &Path, mark: &str, voters: &[NodeName]) -> Result<Self, ClusterError> {
        ca::init(&dir.join("ca"))?;
        let voters = free_addresses(voters).map_err(io_error("free ports"))?;
        Ok(Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            mark: mark.to_owned(),
            voters,
            nodes: BTreeMap::new(),
        })
    }

    /// The voters' control addresses.
    pub fn voters(&self) -> &BTreeMap<NodeName, SocketAddr> {
        &self.voters
    }

    /// How a node of this cluster is started on loopback.
    pub fn spec(&self, name: &NodeName) -> NodeSpec {
        NodeSpec::on_loopback(name.clone(), &self.voters)
    }

    /// The folder of a node: node.toml, its certificate, node.log, and what it keeps.
    pub fn node_dir(&self, node: &NodeName) -> PathBuf {
        self.dir.join(node.as_str())
    }

    /// A node that was started.
    pub fn node(&self, node: &NodeName) -> Option<&NodeProcess> {
        self.nodes.get(node)
    }

    /// Starts a node, the first time with a new certificate, and waits until it answers.
    pub async fn start_node(&mut self, spec: NodeSpec) -> Result<(), ClusterError> {
        let name = spec.name.clone();
        self.launch(spec)?;
        self.answers(&name).await
    }

    /// Starts nodes together, and waits until all answer.
    pub async fn start_nodes(&mut self, specs: Vec<NodeSpec>) -> Result<(), ClusterError> {
        let names: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
        specs.into_iter().try_for_each(|spec| self.launch(spec))?;
        for name in names {
            self.answers(&name).await?;
        }
        Ok(())
    }

    fn launch(&mut self, spec: NodeSpec) -> Result<(), ClusterError> {
        let dir = self.node_dir(&spec.name);
        let socket = dir.join("admin.sock");
        if !dir.join("node.toml").exists() {
            ca::issue(&self.dir.join("ca"), &spec.name, &dir)?;
            let config = config_of(CLUSTER, &spec, &dir, &socket);
            std::fs::write(dir.join("node.toml"), config).map_err(io_error("write node.toml"))?;
        }
        let log = std::fs::File::options().create(true).append(true).open(dir.join("node.log"));
        let mut words = spec.wrapper.clone();
        words.push(self.program.display().to_string());
        let (first, rest) =
            words.split_first().map_or((String::new(), vec![]), |(f, r)| (f.clone(), r.to_vec()));
        let mut command = Command::new(first);
        command.args(rest).args(["node", "run", "--config"]).arg(dir.join("node.toml"));
        command.env(MARK_VARIABLE, &self.mark).envs(spec.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log.map_err(io_error("open node.log"))?);
        // An interrupt at the terminal is for the lab, which ends its nodes in order.
        command.process_group(0);
        let child = command.spawn().map_err(io_error(format!("start node {}", spec.name)))?;
        let pid = child.id().unwrap_or(0);
        self.nodes.insert(spec.name.clone(), NodeProcess { spec, child, socket, pid });
        Ok(())
    }

    /// Waits until a node's admin socket answers.
    async fn answers(&mut self, name: &NodeName) -> Result<(), ClusterError> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            if self.nodes.get_mut(name).is_none_or(NodeProcess::has_ended) {
                let why = self.last_words(name);
                return Err(ClusterError::NodeEnded { node: name.clone(), why });
            }
            if self.ask(name, Act::Version).await.is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let what = format!("start of node {name}");
                return Err(ClusterError::Timeout { what, limit: STEP_TIMEOUT });
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Starts a node again that has ended, on the same folder and the same addresses.
    pub async fn restart_node(&mut self, node: &NodeName) -> Result<(), ClusterError> {
        self.restart_node_as(node, |_| {}).await
    }

    /// The same, with a changed spec; what its config says stays.
    pub async fn restart_node_as(
        &mut self,
        node: &NodeName,
        change: impl FnOnce(&mut NodeSpec),
    ) -> Result<(), ClusterError> {
        self.relaunch_node(node, change).await?;
        self.answers(node).await
    }

    /// The same without waiting until it answers.
    pub async fn relaunch_node(
        &mut self,
        node: &NodeName,
        change: impl FnOnce(&mut NodeSpec),
    ) -> Result<(), ClusterError> {
        let Some(mut old) = self.nodes.remove(node) else {
            let why = ", and was never started".into();
            return Err(ClusterError::NodeEnded { node: node.clone(), why });
        };
        let _ = old.child.wait().await;
        change(&mut old.spec);
        self.launch(old.spec)
    }

    /// Whether a node's process has ended, or never was.
    pub fn has_ended(&mut self, node: &NodeName) -> bool {
        self.nodes.get_mut(node).is_none_or(NodeProcess::has_ended)
    }

    /// The end of a node's log, for an error.
    fn last_words(&self, node: &NodeName) -> String {
        let log = std::fs::read_to_string(self.node_dir(node).join("node.log")).unwrap_or_default();
        log.lines().last().map(|line| format!("; its log ends with: {line}")).unwrap_or_default()
    }

    // ---- questions -------------------------------------------------------------------------------------------

    /// Asks a node.
    pub async fn ask(&self, node: &NodeName, act: Act) -> Result<Value, ClusterError> {
        let process = self.nodes.get(node).ok_or(ClusterError::NobodyLives)?;
        self.ask_past_elections(act, async || Ok(Client::connect(&process.socket).await?)).await
    }

    /// Asks any node that answers; the first that can be connected to.
    pub async fn ask_any(&self, act: Act) -> Result<Value, ClusterError> {
        let first = async || {
            for process in self.nodes.values() {
                if let Ok(client) = Client::connect(&process.socket).await {
                    return Ok(client);
                }
            }
            Err(ClusterError::NobodyLives)
        };
        self.ask_past_elections(act, first).await
    }

    /// Asks again, under the same request id, as long as nobody leads or whoever led went before the answer came.
    async fn ask_past_elections(
        &self,
        act: Act,
        connect: impl AsyncFn() -> Result<Client, ClusterError>,
    ) -> Result<Value, ClusterError> {
        let id = if changes(&act) { Some(new_request_id().map_err(AskError::from)?) } else { None };
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            let answer = connect().await?.ask_under(id.clone(), act.clone(), |_| {}).await;
            match answer {
                Err(AskError::Problem(problem)) if is_election(&problem) && Instant::now() < deadline => {}
                answer => return Ok(answer?),
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Who leads, in which term; waits for an election.
    pub async fn leader(&self) -> Result<(NodeName, u64), ClusterError> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        while Instant::now() < deadline {
            for name in self.nodes.keys() {
                let Ok(value) = self.ask(name, Act::ControlStatus).await else { continue };
                let status: ControlStatus = read_as(value)?;
                if status.role == "leader" && status.session.as_ref() == Some(name) {
                    return Ok((name.clone(), status.term));
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Err(ClusterError::Timeout { what: "the election of a leader".into(), limit: STEP_TIMEOUT })
    }

    /// Waits until these nodes have a session with the leader.
    pub async fn are_reachable(&self, nodes: &[NodeName]) -> Result<(), ClusterError> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            let rows = self.ask_any(Act::NodeList).await.ok();
            let rows: Vec<godwit_wire::admin::NodeRow> = rows.map(read_as).transpose()?.unwrap_or_default();
            let here = |node: &NodeName| rows.iter().any(|row| row.name == *node && row.state == "reachable");
            if nodes.iter().all(here) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let what = format!("a session of each of {nodes:?} with the leader");
                return Err(ClusterError::Timeout { what, limit: STEP_TIMEOUT });
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Makes a guest on a node and waits until it runs.
    pub async fn create_guest(
        &self,
        guest: &GuestName,
        node: &NodeName,
        spec: GuestSpec,
    ) -> Result<GuestDetail, ClusterError> {
        let act =
            Act::GuestCreate { guest: guest.clone(), node: Some(node.clone()), spec, labels: Labels::new() };
        Ok(read_as(self.ask_any(act).await?)?)
    }

    /// Ends a guest and waits until no node has anything of it.
    pub async fn delete_guest(&self, guest: &GuestName) -> Result<(), ClusterError> {
        self.ask_any(Act::GuestStop { guest: guest.clone() }).await?;
        Ok(())
    }

    /// One guest.
    pub async fn guest(&self, guest: &GuestName) -> Result<GuestDetail, ClusterError> {
        Ok(read_as(self.ask_any(Act::GuestShow { guest: guest.clone() }).await?)?)
    }

    /// One node.
    pub async fn node_detail(&self, node: &NodeName) -> Result<NodeDetail, ClusterError> {
        Ok(read_as(self.ask_any(Act::NodeShow { node: node.clone() }).await?)?)
    }

    /// One migration.
    pub async fn migration(&self, migration: &MigrationId) -> Result<MigrationDetail, ClusterError> {
        let act = Act::MigrationShow { migration: migration.clone() };
        Ok(read_as(self.ask_any(act).await?)?)
    }

    /// Compares a guest's memory with what it must hold.
    pub async fn verify(&self, guest: &GuestName) -> Result<Verified, ClusterError> {
        Ok(read_as(self.ask_any(Act::GuestVerify { guest: guest.clone() }).await?)?)
    }

    /// How a guest does.
    pub async fn stats(&self, guest: &GuestName) -> Result<Stats, ClusterError> {
        let answer: GuestStats = read_as(self.ask_any(Act::GuestStats { guest: guest.clone() }).await?)?;
        Ok(answer.stats)
    }

    /// The folders of every runner that any node has had, as long as they are kept.
    pub fn runner_dirs(&self) -> Vec<PathBuf> {
        let of =
            |node: &NodeName| std::fs::read_dir(self.node_dir(node).join("guests")).into_iter().flatten();
        self.nodes.keys().flat_map(of).flatten().map(|entry| entry.path()).collect()
    }

    /// The largest resident memory that any living node process has had, in bytes.
    pub fn rss_bytes_max(&self) -> u64 {
        self.nodes.values().map(|node| high_water_mark(node.pid)).max().unwrap_or(0)
    }

    /// CPU time of a node process so far.
    pub fn cpu_time(&self, node: &NodeName) -> Duration {
        self.nodes.get(node).map(|node| cpu_time(node.pid)).unwrap_or_default()
    }

    // ---- ends ------------------------------------------------------------------------------------------------

    /// Kills a node process. Its runners live on.
    pub async fn kill_node(&mut self, node: &NodeName) -> Result<(), ClusterError> {
        if let Some(process) = self.nodes.get_mut(node) {
            process.child.kill().await.map_err(io_error(format!("kill node {node}")))?;
        }
        Ok(())
    }

    /// Ends guests and nodes in order, as far as they let themselves be ended. What does not is for the sweeper.
    pub async fn shut_down(mut self) {
        let ended = tokio::time::timeout(SHUT_DOWN_TIMEOUT, self.stop_guests()).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::info!("guests are left to the sweeper");
        }
        let pids = self.nodes.values().filter_map(|node| node.child.id());
        for pid in pids.filter_map(|pid| i32::try_from(pid).ok()).filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        for node in self.nodes.values_mut() {
            let _ = tokio::time::timeout(SHUT_DOWN_TIMEOUT, node.child.wait()).await;
        }
    }

    async fn stop_guests(&self) -> Result<(), ClusterError> {
        let guests: Vec<godwit_wire::admin::GuestRow> = read_as(self.ask_any(Act::GuestList).await?)?;
        for guest in guests {
            self.ask_any(Act::GuestStop { guest: guest.name }).await?;
        }
        Ok(())
    }
}
