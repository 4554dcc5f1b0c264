//! A guest that runs here in post-copy, beside a process that is new: what is a hole is missing.

use std::sync::Arc;
use std::time::Duration;

use godwit_domain::{Epoch, InstanceId, MigrationId};
use godwit_guest::client::Attached;
use godwit_memory::{Faults, Memfd, PageSet};
use godwit_transfer::drive::target::{self, Begins, Target};
use godwit_transfer::drive::{Report, Tells, Told, chain};
use tokio::sync::mpsc;

use crate::local::Handle;

/// Rest before it is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Takes the rest of the guest in; the last thing it tells is how it ended.
pub(crate) async fn run(
    attached: Arc<Attached>,
    migration: MigrationId,
    instance: InstanceId,
    epoch: Epoch,
    recovery_timeout: Option<Duration>,
    told: mpsc::Receiver<Told>,
    tells: mpsc::Sender<Tells>,
) {
    let runner = Handle(attached.runner.clone());
    // Looking at a large memory takes milliseconds: not on a thread that serves others.
    let looked = tokio::task::spawn_blocking(move || look(&attached)).await;
    let (memory, faults, holes) = match looked.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(looked) => looked,
        Err(reason) => {
            // Whoever waits goes on waiting; the node looks again.
            tracing::error!(reason, "the missing pages of a guest can not be served");
            tokio::time::sleep(AGAIN_AFTER).await;
            let _ = tells.send(Tells::Ended(Report::Failed { reason })).await;
            return;
        }
    };
    tracing::warn!(missing_bytes = holes.len().bytes(), "found in post-copy; its pages are asked for again");
    let begins = Begins::Resumed(epoch, Arc::new(faults), holes);
    let memory = Arc::new(memory);
    let target = Target {
        migration,
        instance,
        memory,
        begins,
        track: None,
        track_now: false,
        runner,
        recovery_timeout,
    };
    target::run(target, told, tells).await;
}

/// First whoever touches a hole waits, then the holes are counted: none is filled with zeros in between.
fn look(attached: &Attached) -> Result<(Memfd, Faults, PageSet), String> {
    let memory = attached.memory().map_err(|error| format!("guest memory: {error}"))?;
    let faults = attached.serve_faults().map_err(|error| chain(&error))?;
    let holes = memory.holes().map_err(|error| format!("holes of guest memory: {error}"))?;
    Ok((memory, faults, holes))
}
