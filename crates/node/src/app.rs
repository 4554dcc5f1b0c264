//! A node from its start to its end: test the kernel, lock the folder, bind, vote, find runners, serve.
//!
//! ```text
//!   kernel ─▶ lock ─▶ identity ─▶ fabric ─▶ book, seat (if it is in the group) ─▶ node actor ─▶ runners found ─▶ session
//!                                    └─▶ calls: peers, sessions, migrations                   └─▶ admin socket: ready
//! ```
//!
//! A group that was founded anew is followed by beginning anew: the process executes itself, so that nothing which an earlier
//! group has told, ordered or begun lives on in it. Runners live on, as with any other end of the node.
//!
//! Always true: nothing is served before everything that can fail at the start has not failed; the end of the node is
//! the end of no runner; a voter's disk is closed in order.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use actix::{Actor, Addr, System};
use godwit_admin::{AdminSocket, BindError};
use godwit_control::{GroupError, NodeId, Voters};
use godwit_domain::registry::{BootId, Node};
use godwit_memory::probe::{self, ProbeError};
use godwit_transfer::drive::chain;
use godwit_transfer::drive::target::Inbound;
use godwit_wire::migration::Role;
use godwit_wire::session::{ASK_BYTES_MAX, Welcome};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::actor::{Called, Found, NodeActor};
use crate::book::{Book, Keeper};
use crate::config::NodeConfig;
use crate::consent;
use crate::fabric::{ControlCall, Fabric, FabricError, frames};
use crate::front::Front;
use crate::group::{self, voter_id};
use crate::identity::{Identity, IdentityError};
use crate::local::Runners;
use crate::peers;
use crate::records::Records;
use crate::seat::{Seat, SeatError, Whereabouts};
use crate::session::{self, Leader, Seeker};

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
    #[error(
        "state folder {} is in use by another node process: stop that one (whoever looks after it may start it again: systemctl \
         stop), or give this one a `state` of its own",
        path.display()
    )]
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
    /// Its place in the control group could not be taken.
    #[error("this node's place in the control group")]
    Seat(#[from] SeatError),
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
    take_all_descriptors();
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
        match serve(config, &identity).await? {
            Ended::Told => Ok(()),
            // Here, where nobody waits for what other threads may be at.
            Ended::Followed => Err(begin_anew()),
        }
    })
}

/// Each guest here takes a handful of descriptors, and a process is given 1,024 unless it asks: it may have what its hard
/// limit says, in systemd half a million. Runners and QEMU inherit that.
fn take_all_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, descriptors = limit.current, "this node has few descriptors");
    }
}

/// Why a node ends.
enum Ended {
    /// It was told to.
    Told,
    /// It belongs to another group now.
    Followed,
}

/// Executes this program again, as it was called. Returns only where that fails; whoever looks after the node starts it.
fn begin_anew() -> AppError {
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0(arguments.next().unwrap_or_else(|| "godwit".into()));
    AppError::Host("begin anew in the group that was followed", command.args(arguments).exec())
}

async fn serve(config: &NodeConfig, identity: &Identity) -> Result<Ended, AppError> {
    let host = |what| move |error| AppError::Host(what, error);
    let mut interrupted = signal(SignalKind::interrupt()).map_err(host("signals"))?;
    let mut terminated = signal(SignalKind::terminate()).map_err(host("signals"))?;
    // Before anything is said to anybody: the socket says whether another node is served here.
    let admin = AdminSocket::bind(&config.admin.socket)?;
    let fabric = Fabric::bind(config, identity)?;
    let node = about(config, &fabric).map_err(host("what this host is"))?;
    let state = |source| AppError::State { path: config.state.clone(), source };
    let records = Records::load(&config.state).map_err(state)?;
    let (seat, founding) = take_seat(config, &fabric).await?;

    let (place, leader) = session::place();
    let runners = Runners::new(&config.state, config.name.clone(), config.qemu_renamed.clone());
    // Before any view is read: what is here is here whatever the log says.
    let found = runners.find().await.map_err(state)?;
    let name = config.name.clone();
    let actor = NodeActor::new(name.clone(), fabric.clone(), runners, leader.clone(), records).start();
    let _ = actor.send(Found(found)).await;
    take_calls(&fabric, config, &actor, &seat, &leader);
    let tending = actix::spawn(seat.clone().tend());
    let front = Front { node: name.clone(), cluster: config.cluster.clone(), leader, seat: seat.clone() };
    let seeker = Seeker {
        fabric: fabric.clone(),
        name,
        cluster: config.cluster.clone(),
        node: node.clone(),
        known: config.control.voters.clone(),
        keeper: seat.keeper().clone(),
    };
    let seeking = tokio::spawn(async move {
        if let Some(book) = founding {
            consent::found(&seeker, book).await;
        }
        seeker.seek(actor, place).await;
    });
    let answering = tokio::spawn(admin.serve(Arc::new(front)));
    tracing::info!(
        node = %config.name,
        control_address = %node.control,
        migration_address = %node.migration,
        networks = ?node.networks,
        admin_socket = %config.admin.socket.display(),
        "serving"
    );
    let ended = tokio::select! {
        _ = interrupted.recv() => Ended::Told,
        _ = terminated.recv() => Ended::Told,
        () = seat.keeper().followed() => Ended::Followed,
    };
    match ended {
        Ended::Told => tracing::info!(node = %config.name, "told to end; its runners go on"),
        Ended::Followed => tracing::info!(node = %config.name, "begins anew; its runners go on"),
    }
    seeking.abort();
    tending.abort();
    answering.abort();
    // Dropped, so that the socket's file goes.
    let _ = answering.await;
    fabric.close().await;
    seat.close().await;
    Ok(ended)
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
        control_stays: voters.contains_key(&config.name) || config.control.listen.port() != 0,
        migration: fabric.migration_address()?,
        boot: BootId(boot),
        memory_bytes: config.memory_offered_bytes()?,
        labels: config.node_labels(),
        networks: fabric.network_addresses()?,
        fenced: None,
    })
}

/// This node's place in the control group, which it takes if it has one. Whoever has never heard of a group and is named
/// by the config founds this one with the others that are, if they consent.
async fn take_seat(config: &NodeConfig, fabric: &Fabric) -> Result<(Seat, Option<Book>), AppError> {
    let keeper = Keeper::open(&config.state).map_err(SeatError::from)?;
    let voters = &config.control.voters;
    let founders = Voters::new(voters.keys().map(|name| (voter_id(name), name.clone())))?;
    let founds = keeper.now().is_none() && voters.contains_key(&config.name);
    let founding = founds.then(|| Book::founding(&config.cluster, &founders, Some(voter_id(&config.name))));
    let about = Whereabouts {
        name: config.name.clone(),
        cluster: config.cluster.clone(),
        state: config.state.clone(),
        fabric: fabric.clone(),
        known: voters.clone(),
    };
    let seat = Seat::new(about, keeper);
    seat.look().await?;
    Ok((seat, founding))
}

/// Calls go to whom they are for.
fn take_calls(fabric: &Fabric, config: &NodeConfig, actor: &Addr<NodeActor>, seat: &Seat, leader: &Leader) {
    let (migrations, mut called) = mpsc::channel::<Inbound>(CALLS_MAX);
    let (control, mut calls) = mpsc::channel::<ControlCall>(CALLS_MAX);
    tokio::spawn(fabric.clone().serve(migrations, control));
    let callee = actor.clone();
    tokio::spawn(async move {
        while let Some(inbound) = called.recv().await {
            let _ = callee.send(Called(inbound)).await;
        }
    });
    let (name, seat, leader) = (config.name.clone(), seat.clone(), leader.clone());
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            match (call.role, seat.group()) {
                (Role::Session, Some(group)) => {
                    tokio::spawn(group::serve(group, call));
                }
                (Role::Session, None) => {
                    tokio::spawn(point_elsewhere(call, seat.clone(), leader.clone()));
                }
                // The others ask again; when a cluster starts for the first time they do so until all founders are there.
                (Role::Peer, None) if seat.keeper().now().is_none() => {
                    call.connection.close(1_u32.into(), b"it knows of no control group yet");
                }
                // Its own log says why; theirs that it is turned away.
                (Role::Peer, None) if seat.out_of_order().is_some() => {
                    call.connection.close(1_u32.into(), b"its voter is out of order");
                }
                (Role::Peer, None) => turn_away(&call, &format!("node {name} is not in the control group")),
                (Role::Peer, Some(group)) => hear(call, group),
                // The fabric hands out control calls of these two alone.
                (Role::Migration | Role::Pages, _) => {}
            }
        }
    });
}

/// Hears a peer that is in the group; another one is told that it is not.
fn hear(call: ControlCall, group: group::Group) {
    let ours = group.keeper().now().map(|book| book.group);
    if let Some(theirs) = call.hello.group.filter(|theirs| Some(*theirs) != ours) {
        let ours = ours.map_or_else(|| "none".to_owned(), |ours| ours.to_string());
        let name = &call.hello.name;
        return turn_away(
            &call,
            &format!("node {name} speaks for control group {theirs}; this is group {ours}"),
        );
    }
    let name = call.hello.name.clone();
    match call.hello.voter.and_then(NodeId::new) {
        Some(from) if group.is_in(from, &name) => {
            if let Err(error) = group.keeper().heard(from, &name, call.hello.log) {
                return turn_away(&call, &format!("{name} is not heard: {}", chain(&error)));
            }
            let control = group.control().clone().recipient();
            tokio::spawn(async move {
                peers::hear(call, from, control, || group.is_in(from, &name)).await;
            });
        }
        Some(from) => {
            let since = group.members().index();
            let why = format!(
                "node {name} is no voter here: number {from} is not in the group as of entry {since}"
            );
            turn_away(&call, &why);
        }
        None => turn_away(&call, &format!("node {name} is no voter here: it says no number")),
    }
}

/// Says where the group is: a node that is not in it may be the only one that somebody's config knows.
async fn point_elsewhere(call: ControlCall, seat: Seat, leader: Leader) {
    let ControlCall { connection, stream: (mut send, _receive), .. } = call;
    let book = seat.keeper().now();
    let membership = book.map(|book| book.told(&book.members, |_| None));
    let welcome = Welcome::Elsewhere { leader: leader.name(), membership };
    if frames::write(&mut send, "welcome", &welcome, ASK_BYTES_MAX).await.is_ok() {
        let _ = send.finish();
        // The node closes when it has read.
        connection.closed().await;
    }
}

/// Refuses a call by name, in its close and in the log.
fn turn_away(call: &ControlCall, reason: &str) {
    // Who is in the group some know a moment before others; and whoever was taken out asks until it hears of it.
    tracing::info!(peer = %call.hello.name, reason, "peer refused");
    call.connection.close(1_u32.into(), reason.as_bytes());
}

/// Makes the state folder this process's own for as long as the file is open.
pub(crate) fn lock(state: &Path) -> Result<File, AppError> {
    let failed = |source| AppError::State { path: state.to_owned(), source };
    fs::create_dir_all(state).map_err(failed)?;
    let file = File::create(state.join("lock")).map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AppError::StateInUse { path: state.to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_takes_the_descriptors_that_it_may_have() {
        let limit = getrlimit(Resource::Nofile);
        let fewer = limit.maximum.expect("a number") - 1;
        setrlimit(Resource::Nofile, Rlimit { current: Some(fewer), ..limit }).expect("lowered");
        take_all_descriptors();
        assert_eq!(getrlimit(Resource::Nofile).current, limit.maximum);
    }
}
