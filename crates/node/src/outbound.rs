//! A migration that leaves: connect, arm, drive. And what to do when it never gets that far.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use godwit_domain::ownership::{Entry, Phase, Side};
use godwit_domain::{Epoch, InstanceId, MigrationId, NodeName, PAGE_BYTES, Settings};
use godwit_guest::client::Attached;
use godwit_transfer::drive::source::{self, Source};
use godwit_transfer::drive::{Report, Tells, Told, chain};
use godwit_transfer::source::Setup;
use godwit_wire::migration::{Mode, Preamble, SessionId};
use tokio::sync::mpsc;

use crate::fabric::Fabric;
use crate::local::Handle;

/// Everything that is known about a migration when it is ordered.
#[derive(Debug)]
pub struct Outbound {
    /// The migration.
    pub migration: MigrationId,
    /// This node.
    pub source: NodeName,
    /// Where to.
    pub target: NodeName,
    /// Its migration address in that network.
    pub address: SocketAddr,
    /// The network that it goes over; `None`: the default of both nodes.
    pub network: Option<String>,
    /// Its runner.
    pub token: InstanceId,
    /// The present epoch.
    pub epoch: Epoch,
    /// The first limits.
    pub settings: Settings,
    /// How long a commit takes: the hand-over is proposed when what is left takes as long.
    pub commit_estimate: Duration,
    /// The page session, drawn for this attempt.
    pub session: SessionId,
    /// The guest.
    pub guest: Arc<Attached>,
    /// How to get there.
    pub fabric: Fabric,
}

/// Moves the guest; the last thing it tells is how it ended.
pub async fn run(outbound: Outbound, mut told: mpsc::Receiver<Told>, tells: mpsc::Sender<Tells>) {
    let migration = outbound.migration.clone();
    match prepare(outbound).await {
        Ok(source) => source::run(source, told, tells).await,
        Err(reason) => {
            tracing::warn!(reason, "the migration did not begin");
            let end = Entry::End { migration: migration.clone(), side: Side::Source, reason: reason.clone() };
            let _ = tells.send(Tells::Proposal(end)).await;
            until_over(&migration, &mut told).await;
            let _ = tells.send(Tells::Ended(Report::Failed { reason })).await;
        }
    }
}

async fn prepare(outbound: Outbound) -> Result<Source<Handle>, String> {
    let Outbound { migration, source, target, address, network, token, epoch, settings, session, .. } =
        outbound;
    let (guest, fabric, commit_estimate) = (outbound.guest, outbound.fabric, outbound.commit_estimate);
    let pages = guest.pages();
    let preamble = Preamble {
        migration: migration.clone(),
        guest: guest.hello.guest.clone(),
        source,
        epoch,
        token,
        session,
        memory_bytes: pages.bytes(),
        page_bytes: PAGE_BYTES,
    };
    let dialed = fabric.dial(address, &target, network.as_deref(), &preamble).await;
    let (connection, send, receive) = dialed.map_err(|error| chain(&error))?;
    let memory = guest.memory().map_err(|error| format!("guest memory: {error}"))?;
    // Arming takes tens of milliseconds for a large guest: not on a thread that serves others.
    let armed = Arc::clone(&guest);
    let tracker = tokio::task::spawn_blocking(move || armed.track());
    let tracker = tracker.await.map_err(|error| error.to_string())?.map_err(|error| chain(&error))?;
    let setup = Setup {
        migration,
        instance: guest.hello.instance,
        epoch,
        session,
        pages,
        limits: settings.limits,
        commit_estimate,
        mode: Mode::StopAndCopy,
    };
    let runner = Handle(guest.runner.clone());
    Ok(Source { setup, settings, memory, tracker, runner, connection, control: (send, receive) })
}

async fn until_over(migration: &MigrationId, told: &mut mpsc::Receiver<Told>) {
    while let Some(order) = told.recv().await {
        if let Told::View(ownership) = order
            && ownership.phase_of(migration).is_none_or(Phase::is_over)
        {
            return;
        }
    }
}
