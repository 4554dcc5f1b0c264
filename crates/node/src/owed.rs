//! What a node owes a guest that no transfer is at: that the owner's runner runs, and that this is known.

use std::error::Error;

use godwit_domain::{Epoch, InstanceId};
use godwit_guest::client::Attached;
use godwit_wire::handoff::RunState;

/// The owner's runner runs under the present epoch: resumed if it stands still, relabelled if it runs. One that has
/// never run is sealed first: no other writer after the guest's own first store.
pub(crate) async fn resume_if_behind(attached: &Attached, epoch: Epoch) -> Result<(), Box<dyn Error>> {
    let standing = attached.runner.stats().await?.standing;
    if standing.epoch >= epoch {
        return Ok(());
    }
    if standing.state == RunState::Incoming {
        attached.memory()?.seal_against_other_writers()?;
    }
    let Err(error) = attached.runner.resume(epoch).await else { return Ok(()) };
    // Each view is looked at by a task of its own: the one of another view may have been faster.
    if attached.runner.stats().await?.standing.epoch >= epoch { Ok(()) } else { Err(error.into()) }
}

pub(crate) fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    // The kernel gives up to 256 bytes whole.
    rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(())
}

pub(crate) fn fresh_instance() -> std::io::Result<InstanceId> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    Ok(InstanceId::from_random(bytes))
}
