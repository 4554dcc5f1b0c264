//! The built-in guest: a process whose RAM is really written, which needs no hypervisor and no privilege.
//!
//! ```text
//!   DIR/runner.sock ◀── node                    DIR/ticks, DIR/ticks.1
//!        │                                           ▲
//!      server ──▶ machine ──▶ decide                 │ beat
//!      lines      one lock    life × command         │
//!                    │                               │
//!                 program ──▶ gate ──▶ threads ──────┴─ writers ──▶ RAM (memfd, mapped shared)
//!                    │
//!            content, sequence (over permutation), pace, state, verify (by sweep)      pure
//! ```
//!
//! Always true:
//! - what a page must hold follows from the seed and the step counters alone, so `verify` believes no page;
//! - a guest runs under an epoch only above every epoch that it ran under or sealed;
//! - the process ends by `stop` alone (or a signal), never because its node died, and holds the memory file, the
//!   userfaultfd and the pagemap open until then;
//! - no thread writes guest memory or a tick between the answer to `pause` and a `resume`.

mod content;
pub(crate) mod decide;
mod gate;
mod life;
mod machine;
mod pace;
mod permutation;
mod program;
mod sequence;
mod state;
mod sweep;
mod threads;
mod ticks;
mod verify;
mod workload;

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use godwit_domain::{GuestName, InstanceId, NodeName, PageCount};
use godwit_memory::uffd::{UffdError, open_own_pagemap};
use godwit_memory::{Memfd, Ram, Userfaultfd};
use rustix::fs::FlockOperation;

pub use self::ticks::{NotATick, Tick, read_ticks};
pub use self::workload::{Pattern, THREADS_MAX, Workload, WorkloadError, WorkloadOptions};

use self::machine::{Descriptors, Identity, Machine};
use self::program::Program;
use self::threads::Host;
use self::ticks::TickFile;
use crate::server::{self, Server};

/// Shortest time between ticks. A shorter one would fill the disk and tell no more.
const TICK_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// What a runner is started with.
#[derive(Debug, Clone)]
pub struct RunnerConfig {
    /// The guest.
    pub guest: GuestName,
    /// This process, drawn at random by whoever starts it.
    pub instance: InstanceId,
    /// The node that starts it. Its name stands in every tick.
    pub node: NodeName,
    /// The runner's own folder: `runner.sock` and `ticks` appear in it. Made if it is not there; made private.
    pub dir: PathBuf,
    /// The size of the guest's RAM.
    pub memory: PageCount,
    /// How the guest comes to be.
    pub role: Role,
    /// Time between ticks.
    pub tick_interval: Duration,
}

/// How a runner's guest comes to be.
#[derive(Debug, Clone)]
pub enum Role {
    /// A new guest. Its RAM is filled before the socket appears, and the first `resume` runs it: who may run it is
    /// agreed on by others.
    Fresh {
        /// What it does.
        workload: Workload,
    },
    /// An empty machine that waits for a guest to be moved in.
    Incoming,
}

/// Why a runner did not come up.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// A runner needs RAM.
    #[error("option memory is 0 pages; it must be 1 page (4096 bytes) or more")]
    NoMemory,
    /// The workload was checked for another RAM.
    #[error("the workload is for {workload} pages of memory; this runner has {memory}")]
    MemoryDiffers {
        /// Pages that the workload is for.
        workload: u32,
        /// Pages of the runner.
        memory: u32,
    },
    /// Ticks would come too fast.
    #[error("option tick-interval is {0:?}; it must be {TICK_INTERVAL_MIN:?} or more")]
    TickInterval(Duration),
    /// The folder can not be made or made private.
    #[error("make the runner's folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another runner lives there.
    #[error("folder {} belongs to a runner that is alive; give this one its own", path.display())]
    FolderInUse {
        /// The folder.
        path: PathBuf,
    },
    /// The tick file can not be opened.
    #[error("open the tick file in {}", path.display())]
    Ticks {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No memory file, mapping or seal.
    #[error("{what} of {pages} pages")]
    Memory {
        /// What failed.
        what: &'static str,
        /// The size asked for.
        pages: u32,
        /// What the system said.
        source: io::Error,
    },
    /// No userfaultfd.
    #[error("make the userfaultfd that the node tracks writes with")]
    Userfaultfd(#[source] UffdError),
    /// No pagemap.
    #[error("open /proc/self/pagemap")]
    Pagemap(#[source] io::Error),
    /// No socket.
    #[error("make the hand-off socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs a guest until it is stopped. Blocks. It is ready when `runner.sock` appears in its folder.
///
/// After a stop the guest's threads end by themselves within a moment; one that is stuck in a page fault ends
/// with the process, which is the caller's to end.
pub fn run(config: RunnerConfig) -> Result<(), RunnerError> {
    check(&config)?;
    let _folder = claim_folder(&config.dir)?;
    let RunnerConfig { guest, instance, node, dir, memory, role, tick_interval } = config;
    let (descriptors, ram) = make_memory(&guest, memory, &role)?;
    let ticks = TickFile::open(&dir, node.clone())
        .map_err(|source| RunnerError::Ticks { path: dir.clone(), source })?;
    let host = Host {
        ram: Arc::new(ram),
        throttle_percent: Arc::new(AtomicU8::new(0)),
        ticks: Arc::new(Mutex::new(ticks)),
        tick_interval,
    };
    let machine = Machine::new(Identity { guest: guest.clone(), instance, node }, descriptors, host.clone());
    if let Role::Fresh { workload } = role {
        let (begun, program) = (Instant::now(), Program::new(workload));
        program.fill(&host.ram);
        tracing::info!(%guest, %instance, took = ?begun.elapsed(), "memory filled");
        machine.hold_fresh(program);
    }
    let socket = |source| RunnerError::Socket { path: dir.join(server::SOCKET_NAME), source };
    Arc::new(Server::bind(&dir, machine).map_err(socket)?).serve();
    tracing::info!(%guest, %instance, "stopped");
    Ok(())
}

fn check(config: &RunnerConfig) -> Result<(), RunnerError> {
    if config.memory.0 == 0 {
        return Err(RunnerError::NoMemory);
    }
    if config.tick_interval < TICK_INTERVAL_MIN {
        return Err(RunnerError::TickInterval(config.tick_interval));
    }
    if let Role::Fresh { workload } = &config.role {
        let (workload, memory) = (workload.options().memory, config.memory);
        if workload != memory {
            return Err(RunnerError::MemoryDiffers { workload: workload.0, memory: memory.0 });
        }
    }
    Ok(())
}

/// Makes the folder private and this process's own, as long as the file is open.
pub(crate) fn claim_folder(dir: &Path) -> Result<File, RunnerError> {
    let claim = || {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        std::fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        File::open(dir)
    };
    let folder = claim().map_err(|source| RunnerError::Folder { path: dir.to_owned(), source })?;
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(RunnerError::FolderInUse { path: dir.to_owned() }),
        Err(error) => Err(RunnerError::Folder { path: dir.to_owned(), source: error.into() }),
    }
}

fn make_memory(guest: &GuestName, pages: PageCount, role: &Role) -> Result<(Descriptors, Ram), RunnerError> {
    let failed = |what| move |source| RunnerError::Memory { what, pages: pages.0, source };
    let memory = Memfd::create(&format!("godwit {guest}"), pages).map_err(failed("make a memory file"))?;
    let ram = Ram::map(&memory).map_err(failed("map a memory file"))?;
    if let Role::Fresh { .. } = role {
        // An arriving guest's pages come by `pwrite`; its node seals when the last has come.
        memory.seal_against_other_writers().map_err(failed("seal a memory file"))?;
    }
    let (uffd, _) = Userfaultfd::open_for_builtin().map_err(RunnerError::Userfaultfd)?;
    let pagemap = open_own_pagemap().map_err(RunnerError::Pagemap)?;
    Ok((Descriptors { memory, uffd, pagemap }, ram))
}
