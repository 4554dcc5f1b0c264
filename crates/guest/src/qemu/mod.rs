//! A virtual machine that a stock QEMU runs: started by us, or running already and adopted from outside.
//!
//! ```text
//!   DIR/machine.json ─▶ keep ─▶ vm: QEMU, its RAM, a userfaultfd of it, its pagemap
//!                        │
//!                      keeper ──▶ decide (the built-in runner's) ──▶ qmp, state, cgroup
//!                        │ kept.json
//!   DIR/runner.sock ◀── server    DIR/ended ◀── ended: why QEMU ended by itself
//!
//!   command, versions, envelope, starter    what can be moved, and why not: the first two are pure
//! ```
//!
//! The keeper is a process of its own beside QEMU. It can die: QEMU goes on, and another keeper takes over.

mod cgroup;
pub mod command;
mod ended;
mod envelope;
mod keeper;
mod kept;
mod qmp;
mod starter;
mod state;
mod versions;
mod vm;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use godwit_domain::{Epoch, GuestName, InstanceId, NodeName};

pub use self::command::Objection;
pub use self::ended::{WORDS_CHARS_MAX, why_ended};
pub use self::envelope::{Inspected, inspect};
pub use self::kept::{
    MachineFile, clear_socket, end_orphan, end_unkept, ends_with_its_keeper, is_claimed, outlives_its_keeper,
    started_ticks,
};
pub use self::qmp::{Qmp, QmpError};
pub use self::vm::VmError;

use self::command::Begin;
use self::keeper::{Identity, Keeper};
use self::kept::Kept;
use crate::runner::{RunnerError, claim_folder};
use crate::server::{self, Server};

/// How often a keeper that comes after another asks QEMU what has become of it.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether what there was no room for can be written down.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

/// What a keeper is started with.
#[derive(Debug, Clone)]
pub struct KeeperConfig {
    /// The guest.
    pub guest: GuestName,
    /// This runner, drawn at random by whoever starts it.
    pub instance: InstanceId,
    /// The node that starts it.
    pub node: NodeName,
    /// The runner's own folder, with `machine.json` in it.
    pub dir: PathBuf,
    /// What it is there for.
    pub task: KeeperTask,
}

/// What a keeper is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeeperTask {
    /// A guest that begins, or is adopted, here.
    Begin,
    /// A guest that will be moved in.
    Await,
    /// It comes after another keeper: where that one's QEMU has ended there is nothing to keep, and nothing is started.
    TakeOver,
}

/// Why a keeper did not come up, or can not go on.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] RunnerError),
    /// There is none any more.
    #[error("the QEMU that was kept in {} has ended", .0.display())]
    Gone(PathBuf),
    /// What it is told of its machine.
    #[error("machine.json in {}", dir.display())]
    MachineFile {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// There may be another keeper's QEMU.
    #[error("whether a QEMU that was kept in {} lives can not be told", .dir.display())]
    Kept {
        /// Its folder.
        dir: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// Its machine.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Its machine can not be asked.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Its socket, or a thread.
    #[error("make the hand-off socket")]
    Socket(#[source] io::Error),
}

/// Keeps a QEMU until it is stopped or has ended. Blocks. It is ready when `runner.sock` appears in its folder.
///
/// # Errors
/// See [`KeeperError`].
pub fn keep(config: KeeperConfig) -> Result<(), KeeperError> {
    #[cfg(feature = "planted-bugs")]
    godwit_domain::planted::plant_everywhere(&std::env::var("GODWIT_PLANTED").unwrap_or_default());
    let KeeperConfig { guest, instance, node, dir, task } = config;
    let _folder = claim_folder(&dir)?;
    let earlier = Kept::living(&dir).map_err(|source| KeeperError::Kept { dir: dir.clone(), source })?;
    if task == KeeperTask::TakeOver && earlier.is_none() {
        return Err(KeeperError::Gone(dir));
    }
    // Names of sockets are short in it, whatever its own path is.
    std::env::set_current_dir(&dir).map_err(KeeperError::Socket)?;
    let machine =
        MachineFile::read(&dir).map_err(|source| KeeperError::MachineFile { dir: dir.clone(), source })?;
    let (found, incoming) = (earlier.is_some(), task == KeeperTask::Await);
    let identity = Identity { guest: guest.clone(), instance, node, dir: dir.clone() };
    let (vm, qmp, kept) = match (earlier, &machine.qemu.adopted) {
        (Some(kept), _) => {
            let (vm, qmp) = vm::again(&identity, &kept, machine.memory_bytes)?;
            (vm, qmp, kept)
        }
        (None, Some(running)) if !incoming => vm::adopt(&identity, running, machine.memory_bytes)?,
        (None, _) => vm::start(&identity, &machine, if incoming { Begin::Incoming } else { Begin::Fresh })?,
    };
    let mut kept = kept;
    if !found && !incoming {
        // As if it had been loaded: no epoch was sealed before it.
        kept.standing.loaded = Some(Epoch(0));
    }
    let keeper =
        if found { Keeper::again(identity, vm, qmp, kept) } else { Keeper::new(identity, vm, qmp, kept)? };
    let process = keeper.process().map_err(KeeperError::Socket)?;
    let server = Arc::new(Server::bind(&dir, keeper).map_err(KeeperError::Socket)?);
    let watched = Arc::clone(&server);
    let watch = move || {
        // QEMU may wait for a page before it greets, and tells its end to whom it has greeted.
        while !watched.machine().is_settled() && !ended::within(&process, SETTLE_AGAIN) {}
        while !ended::within(&process, WRITE_AGAIN) {
            watched.machine().write_again();
        }
        let how = ended::how(&process);
        if !watched.machine().is_stopping() {
            // A guest that shut itself down, or a crash: the node sees that the process is gone, and reads why.
            let why = watched.machine().ended_by_itself(how);
            tracing::warn!(%guest, %instance, why, "QEMU has ended by itself");
            let _ = std::fs::remove_file(server::SOCKET_NAME);
            std::process::exit(0);
        }
    };
    std::thread::Builder::new().name("watch".into()).spawn(watch).map_err(KeeperError::Socket)?;
    server.serve();
    Ok(())
}

#[cfg(test)]
mod tests {
    use godwit_domain::Qemu;

    use super::*;

    /// QEMU ended with its keeper, or a moment later: that guest is lost, and is not begun anew.
    #[test]
    fn who_comes_after_another_keeper_starts_nothing() {
        let dir = tempfile::tempdir().expect("folder");
        let (program, ram_id) = ("false".to_owned(), "ram".to_owned());
        let qemu = Qemu { program, arguments: Vec::new(), ram_id, adopted: None };
        MachineFile { memory_bytes: 1 << 20, qemu, renamed: Vec::new() }.write(dir.path()).expect("written");
        let config = KeeperConfig {
            guest: "vm".parse().expect("a name"),
            instance: InstanceId::from_random([1; 16]),
            node: "node-a".parse().expect("a name"),
            dir: dir.path().to_owned(),
            task: KeeperTask::TakeOver,
        };
        assert!(matches!(keep(config.clone()), Err(KeeperError::Gone(_))), "there was none");
        let ended = kept::tests::kept(None);
        let ended = Kept { started_ticks: ended.started_ticks + 1, ..ended };
        ended.write(dir.path()).expect("written");
        assert!(matches!(keep(config), Err(KeeperError::Gone(_))), "another process has that number now");
    }
}
