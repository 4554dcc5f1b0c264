//! A node from its start to its end: test the kernel, lock the folder, bind, vote, find runners, serve.
//!
//! ```text
//!   kernel ─▶ lock ─▶ identity ─▶ fabric ─▶ voter (if it is one) ─▶ node actor ─▶ runners found ─▶ session
//!                                    └─▶ calls: peers, sessions, migrations                └─▶ admin socket: ready
//! ```
//!
//! Always true: nothing is served before everything that can fail at the start has not failed; the end of the node is
//! the end of no runner; a voter's disk is closed in order.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use actix::{Actor, Addr, System};
use godwit_admin::{AdminSocket, BindError};
use godwit_control::{
    Config as ControlConfig, ControlHandle, GroupError, Identity as Voter, NodeId, SledFolder, StartError,
    Voters,
};
use godwit_domain::NodeName;
use godwit_domain::registry::{BootId, Node};
use godwit_memory::probe::{self, ProbeError};
use godwit_transfer::drive::target::Inbound;
use godwit_wire::migration::Role;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::actor::{Called, Found, NodeActor};
use crate::audit::Audit;
use crate::config::NodeConfig;
use crate::fabric::{ControlCall, Fabric, FabricError};
use crate::files;
use crate::front::Front;
use crate::group::{self, Group, voter_id};
use crate::identity::{Identity, IdentityError};
use crate::local::Runners;
use crate::peers::{self, Peers};
use crate::records::Records;
use crate::replica::{Bells, Replica};
use crate::session::{self, Seeker};

/// Calls of peers that may wait to be taken.
const CALLS_MAX: usize = 16;
/// Threads that serve connections. Two: one for each side of what a small host has to do at once.
const WORKER_THREADS: usize = 2;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The kernel lacks something.
    #[error("this host can not move guests")]
    Kernel(#[from] ProbeError),
    /// The state folder can not be used.
    #[error("state folder {}", path.display())]
    State {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another node lives on it.
    #[error("state folder {} is in use by another node process; give this one its own `state`", path.display())]
    StateInUse {
        /// The folder.
        path: PathBuf,
    },
    /// The certificate is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no endpoint.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The voters of the config are none.
    #[error("the voters in the config")]
    Voters(#[from] GroupError),
    /// The voter did not start.
    #[error("this node's voter")]
    Voter(#[from] StartError),
    /// The admin socket can not be had.
    #[error(transparent)]
    Admin(#[from] BindError),
    /// The runtime could not be made, or the host can not be asked about itself.
    #[error("{0}")]
    Host(&'static str, #[source] io::Error),
}

/// Runs a node until it is told to end (SIGTERM, SIGINT). Blocks.
pub fn run(config: &NodeConfig) -> Result<(), AppError> {
    #[cfg(feature = "planted-bugs")]
    godwit_domain::planted::plant_everywhere(&std::env::var("GODWIT_PLANTED").unwrap_or_default());
    let kernel = probe::self_test()?;
    let _lock = lock(&config.state)?;
    let identity = Identity::load(&config.identity, &config.name)?;
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(WORKER_THREADS).enable_all().build().unwrap_or_else(|error| {
            // The runtime is built inside the actor system, which takes no error.
            tracing::error!(%error, "no runtime: out of threads or descriptors");
            std::process::exit(1)
        })
    };
    System::with_tokio_rt(runtime).block_on(async {
        tracing::info!(node = %config.name, ?kernel, "starting");
        serve(config, &identity).await
    })
}

async fn serve(config: &NodeConfig, identity: &Identity) -> Result<(), AppError> {
    let host = |what| move |error| AppError::Host(what, error);
    let mut interrupted = signal(SignalKind::interrupt()).map_err(host("signals"))?;
    let mut terminated = signal(SignalKind::terminate()).map_err(host("signals"))?;
    // Before anything is said to anybody: the socket says whether another node is served here.
    let admin = AdminSocket::bind(&config.admin.socket)?;
    let fabric = Fabric::bind(config, identity)?;
    let node = about(config, &fabric).map_err(host("what this host is"))?;
    let voter = start_voter(config, &fabric)?;
    let group = voter.as_ref().map(|(_, group)| group.clone());

    let (place, leader) = session::place();
    let runners = Runners::new(&config.state, config.name.clone());
    let state = |source| AppError::State { path: config.state.clone(), source };
    let records = Records::load(&config.state).map_err(state)?;
    // Before any view is read: what is here is here whatever the log says.
    let found = runners.find().await;
    let name = config.name.clone();
    let actor = NodeActor::new(name.clone(), fabric.clone(), runners, leader.clone(), records).start();
    let _ = actor.send(Found(found)).await;
    take_calls(&fabric, config, &actor, voter.as_ref());
    let voters = config.control.voters.clone();
    let front = Front {
        node: name.clone(),
        cluster: config.cluster.clone(),
        voters: voters.keys().cloned().collect(),
        leader,
        group,
    };
    let seeker =
        Seeker { fabric: fabric.clone(), name, cluster: config.cluster.clone(), node: node.clone(), voters };
    let seeking = tokio::spawn(seeker.seek(actor, place));
    let answering = tokio::spawn(admin.serve(Arc::new(front)));
    tracing::info!(
        node = %config.name,
        control_address = %node.control,
        migration_address = %node.migration,
        networks = ?node.networks,
        admin_socket = %config.admin.socket.display(),
        "serving"
    );
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    tracing::info!(node = %config.name, "told to end; its runners go on");
    seeking.abort();
    answering.abort();
    // Dropped, so that the socket's file goes.
    let _ = answering.await;
    fabric.close().await;
    if let Some((handle, _)) = voter {
        let closed = tokio::task::spawn_blocking(move || handle.stop()).await;
        if !matches!(closed, Ok(Ok(()))) {
            tracing::error!("the control log was not closed in order");
        }
    }
    Ok(())
}

/// What this node tells of itself when it joins.
fn about(config: &NodeConfig, fabric: &Fabric) -> io::Result<Node> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
    let boot = u128::from_str_radix(&digits, 16).map_err(io::Error::other)?;
    let voters = &config.control.voters;
    Ok(Node {
        // A voter is known to the others by the address in the config, wherever it listens.
        control: voters.get(&config.name).map_or_else(|| fabric.control_address(), |address| Ok(*address))?,
        migration: fabric.migration_address()?,
        boot: BootId(boot),
        memory_bytes: config.memory_offered_bytes()?,
        labels: config.node_labels(),
        networks: fabric.network_addresses()?,
        fenced: None,
    })
}

type StartedVoter = (ControlHandle<Replica>, Group);

fn start_voter(config: &NodeConfig, fabric: &Fabric) -> Result<Option<StartedVoter>, AppError> {
    let names: BTreeMap<NodeId, NodeName> =
        config.control.voters.keys().map(|name| (voter_id(name), name.clone())).collect();
    let voters = Voters::new(names.clone())?;
    if !config.control.voters.contains_key(&config.name) {
        return Ok(None);
    }
    let me = voter_id(&config.name);
    let identity = Voter::new(config.cluster.clone(), me, voters.clone())?;
    let folder = SledFolder::new(config.state.join("control"), identity);
    let addresses = config.control.voters.iter();
    let peers: BTreeMap<_, _> = addresses
        .filter(|(name, _)| **name != config.name)
        .map(|(name, address)| (voter_id(name), (name.clone(), *address)))
        .collect();
    let peers = Peers::start(fabric.clone(), config.name.clone(), config.cluster.clone(), peers);
    let seed =
        files::random().map(u64::from_ne_bytes).map_err(|error| AppError::Host("random numbers", error))?;
    let bells = Arc::new(Bells::default());
    let audit =
        Audit::start(config.state.join("audit")).map_err(|error| AppError::Host("a thread", error))?;
    let replica = Replica::new(Arc::clone(&bells)).audited(audit);
    let control = ControlConfig::new(me, voters, seed);
    let handle = ControlHandle::start(control, replica, Box::new(folder), peers)?;
    let (addr, view) = (handle.addr().clone(), handle.view());
    let group = Group::new(config.name.clone(), config.cluster.clone(), names, addr, view, bells);
    tokio::spawn(group::lead(group.clone()));
    Ok(Some((handle, group)))
}

/// Calls go to whom they are for.
fn take_calls(fabric: &Fabric, config: &NodeConfig, actor: &Addr<NodeActor>, voter: Option<&StartedVoter>) {
    let (migrations, mut called) = mpsc::channel::<Inbound>(CALLS_MAX);
    let (control, mut calls) = mpsc::channel::<ControlCall>(CALLS_MAX);
    tokio::spawn(fabric.clone().serve(migrations, control));
    let callee = actor.clone();
    tokio::spawn(async move {
        while let Some(inbound) = called.recv().await {
            let _ = callee.send(Called(inbound)).await;
        }
    });
    let name = config.name.clone();
    let voter = voter.map(|(handle, group)| (handle.addr().clone(), group.clone()));
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            let Some((control, group)) = voter.clone() else {
                turn_away(&call, &format!("node {name} does not vote"));
                continue;
            };
            match call.role {
                Role::Session => {
                    tokio::spawn(group::serve(group, call));
                }
                Role::Peer => {
                    let from = voter_id(&call.hello.name);
                    if group.voters().contains(&call.hello.name) {
                        tokio::spawn(peers::hear(call, from, control.recipient()));
                    } else {
                        turn_away(&call, &format!("node {} is no voter here", call.hello.name));
                    }
                }
                // The fabric hands out control calls of these two alone.
                Role::Migration | Role::Pages => {}
            }
        }
    });
}

/// Refuses a call by name, in its close and in the log.
fn turn_away(call: &ControlCall, reason: &str) {
    tracing::warn!(peer = %call.hello.name, reason, "peer refused");
    call.connection.close(1_u32.into(), reason.as_bytes());
}

/// Makes the state folder this process's own for as long as the file is open.
fn lock(state: &Path) -> Result<File, AppError> {
    let failed = |source| AppError::State { path: state.to_owned(), source };
    fs::create_dir_all(state).map_err(failed)?;
    let file = File::create(state.join("lock")).map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AppError::StateInUse { path: state.to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}
