//! Small things that a node owes: that the owner's runner runs, a fresh instance id, a look at what memory is free.

use std::error::Error;

use godwit_domain::{Epoch, InstanceId};
use godwit_guest::client::Attached;
use godwit_wire::handoff::RunState;

use crate::files;

/// The owner's runner runs under the present epoch: resumed if it stands still, relabelled if it runs. One that has
/// never run is sealed first: no other writer after the guest's own first store.
pub(crate) async fn resume_if_behind(
    attached: &Attached,
    epoch: Epoch,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let standing = attached.runner.stats().await?.standing;
    if standing.epoch >= epoch {
        return Ok(());
    }
    if standing.state == RunState::Incoming {
        attached.memory()?.seal_against_other_writers()?;
    }
    let Err(error) = attached.runner.resume(epoch).await else { return Ok(()) };
    // A transfer's own resume may have been faster.
    if attached.runner.stats().await?.standing.epoch >= epoch { Ok(()) } else { Err(error.into()) }
}

pub(crate) fn fresh_instance() -> std::io::Result<InstanceId> {
    files::random().map(InstanceId::from_random)
}

/// Memory that the kernel could give to a new process, in bytes (`MemAvailable`); `None`: it does not say.
pub(crate) fn free_memory_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    kib.checked_mul(1024)
}
