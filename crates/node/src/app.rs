//! A node from its start to its end: test the kernel, lock the folder, bind, find runners, serve.
//!
//! ```text
//!   stdin: Order, one JSON object a line ──▶ node actor ──▶ stdout: Fact, one a line
//! ```
//!
//! Always true: nothing is served before everything that can fail at the start has not failed; the end of stdin is
//! the end of the node, and of no runner.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use actix::{Actor, System};
use futures_util::StreamExt;
use godwit_memory::probe::{self, ProbeError};
use godwit_transfer::drive::chain;
use godwit_wire::orders::{Fact, LINE_BYTES_MAX, Order};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, LinesCodec};

use crate::actor::{Attachment, Called, NodeActor, Ordered};
use crate::config::NodeConfig;
use crate::fabric::{Fabric, FabricError};
use crate::identity::{Identity, IdentityError};
use crate::local::Runners;

/// Facts that may wait to be written. Whoever reads them is a process on this host.
const FACTS_MAX: usize = 256;
/// Calls of peers that may wait for the actor.
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
    /// The runtime could not be made.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
}

/// Runs a node until its stdin ends. Blocks.
pub fn run(config: &NodeConfig) -> Result<(), AppError> {
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
    let fabric = Fabric::bind(config, identity)?;
    let migration_address = fabric.address().map_err(AppError::Runtime)?;
    let (facts, told) = mpsc::channel(FACTS_MAX);
    let runners = Runners::new(&config.state, config.name.clone());
    let found = runners.find().await;
    let actor = NodeActor::new(config.name.clone(), fabric.clone(), runners, facts.clone()).start();
    let writer = tokio::spawn(write_facts(told));
    let ready = Fact::Ready {
        node: config.name.clone(),
        migration_address,
        pid: std::process::id(),
        state: config.state.display().to_string(),
    };
    let _ = facts.send(ready).await;
    for attached in found {
        let guest = attached.hello.guest.clone();
        let _ = actor.send(Attachment { guest, arriving: None, result: Ok(attached) }).await;
    }
    let (calls, mut called) = mpsc::channel(CALLS_MAX);
    let server = tokio::spawn(fabric.serve(calls));
    let callee = actor.clone();
    tokio::spawn(async move {
        while let Some(inbound) = called.recv().await {
            let _ = callee.send(Called(inbound)).await;
        }
    });
    tracing::info!(node = %config.name, %migration_address, "serving");
    read_orders(&actor, &facts).await;
    tracing::info!(node = %config.name, "orders have ended; so does the node");
    server.abort();
    writer.abort();
    Ok(())
}

async fn read_orders(actor: &actix::Addr<NodeActor>, facts: &mpsc::Sender<Fact>) {
    let codec = LinesCodec::new_with_max_length(LINE_BYTES_MAX);
    let mut lines = FramedRead::new(tokio::io::stdin(), codec);
    let mut was_broken = false;
    loop {
        let line = match lines.next().await {
            Some(line) => line,
            // After a line that can not be read the reader says "no more" once, and then goes on.
            None if was_broken => {
                was_broken = false;
                continue;
            }
            None => return,
        };
        was_broken = line.is_err();
        let order = match &line {
            Ok(line) => serde_json::from_str::<Order>(line).map_err(|error| error.to_string()),
            Err(error) => Err(chain(error)),
        };
        match order {
            Ok(order) => {
                let _ = actor.send(Ordered(order)).await;
            }
            Err(message) => {
                tracing::warn!(message, "not an order");
                let _ = facts.send(Fact::Refused { about: "order".into(), message }).await;
            }
        }
    }
}

async fn write_facts(mut facts: mpsc::Receiver<Fact>) {
    let mut stdout = tokio::io::stdout();
    while let Some(fact) = facts.recv().await {
        let Ok(mut line) = serde_json::to_vec(&fact) else { continue };
        line.push(b'\n');
        let written = async {
            stdout.write_all(&line).await?;
            stdout.flush().await
        };
        if written.await.is_err() {
            // Nobody listens any more; orders will end too.
            return;
        }
    }
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
