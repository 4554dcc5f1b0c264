//! A migration that leaves: connect, arm, drive. And what to do when it never gets that far.
//!
//! ```text
//!   Copy   dial ─▶ arm ─▶ source::run        cannot ─▶ End is proposed
//!   Serve  saved state ─▶ source::run, which dials as long as it takes: pages are missing at the target
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use godwit_domain::ownership::{Entry, Phase, Side};
use godwit_domain::{Epoch, InstanceId, MigrationId, NodeName, PAGE_BYTES, Settings};
use godwit_guest::client::Attached;
use godwit_transfer::drive::source::{self, Begins, Dial, Lines, Source};
use godwit_transfer::drive::{Report, Runner, Tells, Told, chain};
use godwit_transfer::source::Setup;
use godwit_wire::migration::{Mode, Preamble, SessionId};
use tokio::sync::{mpsc, watch};

use crate::fabric::Fabric;
use crate::local::Handle;

/// What a source sets out for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// To copy a guest that runs.
    Copy,
    /// To send what is missing of a guest that stands still here and was handed over in post-copy.
    Serve,
}

/// How the target is reached now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Its migration address in the network of the migration.
    pub address: SocketAddr,
    /// The epoch under which this side speaks.
    pub epoch: Epoch,
}

/// Everything that is known about a migration when it is ordered.
#[derive(Debug)]
pub struct Outbound {
    /// What for.
    pub errand: Errand,
    /// The migration.
    pub migration: MigrationId,
    /// This node.
    pub source: NodeName,
    /// Where to.
    pub target: NodeName,
    /// How it is reached.
    pub reach: watch::Receiver<Reach>,
    /// The network that it goes over; `None`: the default of both nodes.
    pub network: Option<String>,
    /// Its runner.
    pub token: InstanceId,
    /// The present epoch.
    pub epoch: Epoch,
    /// Post-copy as soon as the target is reached.
    pub at_once: bool,
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

/// Rest before it is tried again to send what is missing of a guest.
const SERVE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Moves the guest; the last thing it tells is how it ended.
pub async fn run(outbound: Outbound, mut told: mpsc::Receiver<Told>, tells: mpsc::Sender<Tells>) {
    let (migration, errand) = (outbound.migration.clone(), outbound.errand);
    match prepare(outbound).await {
        Ok(source) => source::run(source, told, tells).await,
        Err(reason) => {
            tracing::warn!(reason, "the migration did not begin");
            if errand == Errand::Copy {
                let end =
                    Entry::End { migration: migration.clone(), side: Side::Source, reason: reason.clone() };
                let _ = tells.send(Tells::Proposal(end)).await;
                until_over(&migration, &mut told).await;
            } else {
                // Nobody else has the pages: the node tries again.
                tokio::time::sleep(SERVE_AGAIN_AFTER).await;
            }
            let _ = tells.send(Tells::Ended(Report::Failed { reason })).await;
        }
    }
}

async fn prepare(outbound: Outbound) -> Result<Source<Handle, Dialer>, String> {
    let Outbound { errand, migration, source, target, reach, network, token, epoch, at_once, .. } = outbound;
    let Outbound { settings, commit_estimate, session, guest, fabric, .. } = outbound;
    let pages = guest.pages();
    let preamble = Preamble {
        migration: migration.clone(),
        guest: guest.hello.guest.clone(),
        source,
        epoch,
        token,
        session,
        link: 0,
        memory_bytes: pages.bytes(),
        page_bytes: PAGE_BYTES,
    };
    let dial = Dialer { fabric, target, network, reach, preamble };
    let runner = Handle(guest.runner.clone());
    let begins = match errand {
        Errand::Copy => {
            let lines = dial.dial(1).await?;
            // Arming takes tens of milliseconds for a large guest: not on a thread that serves others.
            let armed = Arc::clone(&guest);
            let tracker = tokio::task::spawn_blocking(move || armed.track());
            let tracker = tracker.await.map_err(|error| error.to_string())?.map_err(|error| chain(&error))?;
            Begins::Copy(tracker, Box::new(lines))
        }
        // The same bytes as at the pause.
        Errand::Serve => Begins::Serve(runner.save().await.map_err(|error| chain(&*error))?),
    };
    let memory = Arc::new(guest.memory().map_err(|error| format!("guest memory: {error}"))?);
    let setup = Setup {
        migration,
        instance: guest.hello.instance,
        epoch,
        session,
        pages,
        limits: settings.limits,
        commit_estimate,
        mode: Mode::StopAndCopy,
        at_once,
        audit: settings.audit,
    };
    Ok(Source { setup, settings, memory, begins, runner, dial })
}

/// Reaches the target wherever it is by now.
#[derive(Debug)]
struct Dialer {
    fabric: Fabric,
    target: NodeName,
    network: Option<String>,
    reach: watch::Receiver<Reach>,
    preamble: Preamble,
}

impl Dial for Dialer {
    async fn dial(&self, link: u64) -> Result<Lines, String> {
        let Reach { address, epoch } = *self.reach.borrow();
        let preamble = Preamble { epoch, link, ..self.preamble.clone() };
        let dialed = self.fabric.dial(address, &self.target, self.network.as_deref(), &preamble).await;
        dialed.map_err(|error| chain(&error))
    }
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
