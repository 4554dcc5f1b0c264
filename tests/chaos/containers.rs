//! The lab of `docker/compose.yaml` as the place of a run: a container is a host, with everything on it.
//!
//! ```text
//!   DIR/node-a/admin.sock ─▶ the container's own      guests, audit ─▶ its volume      node.log ─▶ what the engine keeps
//!   docker kill = the host dies     pause = it stands still     network disconnect = its cable is pulled
//! ```
//!
//! Always true: the links in DIR show the container as it is now; `docker/lab down` removes all of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use godwit_domain::NodeName;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use crate::faults::{Kind, Undo};
use crate::field::Net;
use crate::hands::{Killed, runners};
use crate::support::Outcome;

/// A command of the engine that takes longer has failed.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the engine is told to undo something that it fails to, and how long it is left alone in between.
const UNDO_TRIES: u32 = 3;
const UNDO_INTERVAL: Duration = Duration::from_millis(500);
/// How long a process may take to stand still: one of its threads may wait for a page.
const HOLD_TIMEOUT: Duration = Duration::from_secs(1);
/// Where a node in a container keeps its state.
const STATE: &str = "/var/lib/godwit/state";
/// The lab's compose project.
const PROJECT: &str = "godwit";

/// See the module.
#[derive(Debug)]
pub(crate) struct Containers {
    dir: PathBuf,
    nodes: Vec<NodeName>,
    counters: Arc<Counters>,
}

/// What each container has sent into the network for pages, over all the interfaces that it has had there.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<BTreeMap<NodeName, Count>>);

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    pid: u32,
    last: (u64, u64),
    sum: (u64, u64),
}

impl Containers {
    /// The lab's containers, which must be up.
    pub(crate) async fn find(dir: &Path, nodes: Vec<NodeName>) -> Result<Self, Box<dyn Error>> {
        let containers = Self { dir: dir.to_owned(), nodes, counters: Arc::default() };
        for node in &containers.nodes {
            fs::create_dir_all(dir.join(node.as_str()))?;
            containers.link(node).await?;
        }
        Ok(containers)
    }

    /// Each node's folder.
    pub(crate) fn folders(&self) -> Vec<(NodeName, PathBuf)> {
        self.nodes.iter().map(|node| (node.clone(), self.dir.join(node.as_str()))).collect()
    }

    /// What each has sent.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// What a container can suffer.
    pub(crate) fn can(kind: Kind) -> bool {
        matches!(kind, Kind::KillHost | Kind::PauseNode | Kind::CutControl | Kind::CutPages | Kind::CutBoth)
    }

    pub(crate) async fn begin(
        &mut self,
        kind: Kind,
        node: &NodeName,
    ) -> Result<Option<(Undo, Vec<Killed>)>, Box<dyn Error>> {
        let nets = match kind {
            Kind::KillHost => {
                // The engine takes its time, and a runner that is started meanwhile is killed too.
                self.hold(node).await;
                let killed = runners(Path::new(STATE), node)?;
                match docker(&["kill", node.as_str()]).await {
                    // It has ended by itself a moment ago, which is seen.
                    Err(why) if why.to_string().contains("is not running") => return Ok(None),
                    killed => killed?,
                };
                let killed = killed.into_iter().map(|(_, runner)| runner).collect();
                return Ok(Some((Undo::Start { shift: Duration::ZERO, mend: false }, killed)));
            }
            Kind::PauseNode => {
                // The engine can not freeze a container in which somebody waits for a page.
                let frozen = docker(&["pause", node.as_str()]).await;
                return match frozen {
                    Ok(_) => Ok(Some((Undo::Continue, Vec::new()))),
                    Err(why) if why.to_string().contains("unable to freeze") => Ok(None),
                    Err(why) => Err(why),
                };
            }
            Kind::CutControl => vec![Net::Control],
            Kind::CutPages => vec![Net::Pages],
            Kind::CutBoth => vec![Net::Control, Net::Pages],
            _ => return Err(format!("a container can not suffer {}", kind.name()).into()),
        };
        for net in &nets {
            docker(&["network", "disconnect", &network(*net), node.as_str()]).await?;
        }
        Ok(Some((Undo::Mend(nets), Vec::new())))
    }

    pub(crate) async fn undo(&mut self, undo: &Undo, node: &NodeName) -> Outcome {
        match undo {
            Undo::Start { .. } => {
                insist(&["start", node.as_str()], None).await?;
                self.link(node).await?;
            }
            Undo::Continue => insist(&["unpause", node.as_str()], Some("is not paused")).await?,
            Undo::Mend(nets) => {
                for net in nets {
                    let address = address(node, *net);
                    let connect = ["network", "connect", "--ip", &address, &network(*net), node.as_str()];
                    insist(&connect, Some("already exists in network")).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self, node: &NodeName) -> bool {
        !self.pid(node).is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
    }

    /// The node's process, as the host numbers it.
    fn pid(&self, node: &NodeName) -> Option<u32> {
        let counts = self.counters.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(node).map(|count| count.pid)
    }

    /// Makes the node's process stand still, and returns when it starts no runner any more: a thread that just does so
    /// stands only when it has.
    async fn hold(&self, node: &NodeName) {
        let Some(pid) = self.pid(node) else { return };
        let _ = i32::try_from(pid).ok().and_then(Pid::from_raw).map(|pid| kill_process(pid, Signal::STOP));
        let deadline = Instant::now() + HOLD_TIMEOUT;
        while Instant::now() < deadline && !stands(pid) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Shows the container as it is now.
    async fn link(&self, node: &NodeName) -> Outcome {
        let pid: u32 =
            docker(&["inspect", "--format", "{{.State.Pid}}", node.as_str()]).await?.trim().parse()?;
        let log = docker(&["inspect", "--format", "{{.LogPath}}", node.as_str()]).await?;
        let volume = format!("{PROJECT}_{node}");
        let state = docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", &volume]).await?;
        let (state, log) = (Path::new(state.trim()).join("state"), PathBuf::from(log.trim()));
        let socket = PathBuf::from(format!("/proc/{pid}/root/run/godwit/admin.sock"));
        let dir = self.dir.join(node.as_str());
        let links = [
            ("admin.sock", socket),
            ("guests", state.join("guests")),
            ("audit", state.join("audit")),
            ("node.log", log),
        ];
        for (name, to) in links {
            let _ = fs::remove_file(dir.join(name));
            symlink(to, dir.join(name))?;
        }
        self.counters.0.lock().unwrap_or_else(PoisonError::into_inner).entry(node.clone()).or_default().pid =
            pid;
        Ok(())
    }
}

impl Counters {
    /// Bytes and packets sent by a node into the network for pages.
    pub(crate) fn sent(&self, node: &NodeName) -> (u64, u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(node.clone()).or_default();
        // The engine makes the hardware address of the IP address. No interface: it is cut, or dead.
        let now = interface(count.pid, node).unwrap_or((0, 0));
        let grown = |now: u64, last: u64| if now >= last { now - last } else { now };
        count.sum.0 += grown(now.0, count.last.0);
        count.sum.1 += grown(now.1, count.last.1);
        count.last = now;
        count.sum
    }
}

/// Whether every thread of a process is stopped, or none is left.
fn stands(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut states = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    // NUMBER (NAME) STATE …
    states.all(|stat| stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['T', 'Z', 'X'])))
}

fn interface(pid: u32, node: &NodeName) -> Option<(u64, u64)> {
    let hardware = format!("02:42:0a:4a:00:{:02x}", number(node));
    for entry in fs::read_dir(format!("/proc/{pid}/root/sys/class/net")).ok()?.flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).ok();
        if read("address").is_some_and(|address| address.trim() == hardware) {
            let count = |name: &str| read(name)?.trim().parse().ok();
            return Some((count("statistics/tx_bytes")?, count("statistics/tx_packets")?));
        }
    }
    None
}

fn address(node: &NodeName, net: Net) -> String {
    let subnet = match net {
        Net::Control => 73,
        Net::Pages => 74,
    };
    format!("10.{subnet}.0.{}", number(node))
}

/// As in the compose file: `node-a` is 11.
fn number(node: &NodeName) -> u8 {
    let letter = node.as_str().bytes().last().unwrap_or(b'a');
    letter.saturating_sub(b'a') + 11
}

fn network(net: Net) -> String {
    let name = match net {
        Net::Control => "control",
        Net::Pages => "migration",
    };
    format!("{PROJECT}_{name}")
}

/// `docker/lab VERB`.
pub(crate) async fn lab(verb: &str) -> Outcome {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docker/lab");
    let mut command = Command::new(script);
    command.arg(verb).env("GODWIT_IMAGE_READY", "1").stdin(Stdio::null());
    let output = command.output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("docker/lab {verb}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// Runs a command that undoes something, again if the engine has failed in it; done is also what says so in these words.
async fn insist(arguments: &[&str], done: Option<&str>) -> Outcome {
    let mut tries = 1;
    while let Err(why) = docker(arguments).await {
        let is_done = tries > 1 && done.is_some_and(|done| why.to_string().contains(done));
        match tries {
            _ if is_done => break,
            UNDO_TRIES.. => return Err(why),
            _ => tokio::time::sleep(UNDO_INTERVAL).await,
        }
        tries += 1;
    }
    Ok(())
}

/// Runs a command of the engine; what it prints.
async fn docker(arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let mut command = Command::new("docker");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let ran = tokio::time::timeout(COMMAND_TIMEOUT, command.output()).await;
    let output =
        ran.map_err(|_| format!("docker {arguments:?} did not end within {COMMAND_TIMEOUT:?}"))??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}
