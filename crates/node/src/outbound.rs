//! A migration that leaves: connect, arm, drive. And what to do when it never gets that far.
//!
//! ```text
//!   Copy   dial, until recoveryTimeout ─▶ arm ─▶ source::run        cannot ─▶ End is proposed
//!   Serve  saved state ─▶ source::run, which dials as long as it takes: pages are missing at the target
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_domain::ownership::{Entry, Ownership, Phase, Side};
use godwit_domain::{Epoch, InstanceId, MigrationId, NodeName, PAGE_BYTES, Settings};
use godwit_guest::client::Attached;
use godwit_transfer::drive::source::{self, Begins, Dial, Lines, Source};
use godwit_transfer::drive::{Report, Runner, Tells, Told, chain};
use godwit_transfer::source::Setup;
use godwit_wire::migration::{Mode, Preamble, SessionId};
use tokio::sync::{mpsc, watch};

use crate::fabric::{DialError, Fabric};
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
    /// Its disks may write its memory past the scans.
    pub direct_io: bool,
    /// The guest.
    pub guest: Arc<Attached>,
    /// How to get there.
    pub fabric: Fabric,
}

/// The first pause before a target that does not answer is dialed again; doubled each time, up to the longest.
const DIAL_AGAIN_FIRST: Duration = Duration::from_millis(100);
const DIAL_AGAIN_MAX: Duration = Duration::from_secs(2);
/// Rest before it is tried again to send what is missing of a guest.
const SERVE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Moves the guest; the last thing it tells is how it ended.
pub async fn run(outbound: Outbound, mut told: mpsc::Receiver<Told>, tells: mpsc::Sender<Tells>) {
    let (migration, errand) = (outbound.migration.clone(), outbound.errand);
    let mut heard = Heard::default();
    match prepare(outbound, &mut told, &mut heard).await {
        Ok(source) => source::run(source, heard.before(told), tells).await,
        Err(reason) => {
            if heard.is_over(&migration) {
                tracing::info!(reason, "the migration did not begin");
            } else {
                tracing::warn!(reason, "the migration did not begin");
                cannot(errand, &migration, &reason, &mut told, &tells).await;
            }
            let _ = tells.send(Tells::Ended(Report::Failed { reason })).await;
        }
    }
}

/// What follows from a migration that can not begin.
async fn cannot(
    errand: Errand,
    migration: &MigrationId,
    reason: &str,
    told: &mut mpsc::Receiver<Told>,
    tells: &mpsc::Sender<Tells>,
) {
    match errand {
        Errand::Copy => {
            let (migration, reason) = (migration.clone(), reason.to_owned());
            let end = Entry::End { migration: migration.clone(), side: Side::Source, reason };
            let _ = tells.send(Tells::Proposal(end)).await;
            until_over(&migration, told).await;
        }
        // Nobody else has the pages: the node tries again.
        Errand::Serve => tokio::time::sleep(SERVE_AGAIN_AFTER).await,
    }
}

async fn prepare(
    outbound: Outbound,
    told: &mut mpsc::Receiver<Told>,
    heard: &mut Heard,
) -> Result<Source<Handle, Dialer>, String> {
    let Outbound { errand, migration, source, target, reach, network, token, epoch, at_once, .. } = outbound;
    let Outbound { settings, commit_estimate, session, guest, fabric, direct_io, .. } = outbound;
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
            let lines = first_link(&dial, settings.recovery_timeout, told, heard).await?;
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
    Ok(Source { setup, settings, memory, begins, runner, dial, direct_io })
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

impl Dialer {
    async fn attempt(&self, link: u64) -> Result<Lines, DialError> {
        let Reach { address, epoch } = *self.reach.borrow();
        let preamble = Preamble { epoch, link, ..self.preamble.clone() };
        self.fabric.dial(address, &self.target, self.network.as_deref(), &preamble).await
    }
}

impl Dial for Dialer {
    async fn dial(&self, link: u64) -> Result<Lines, String> {
        self.attempt(link).await.map_err(|error| chain(&error))
    }
}

/// The first link, tried for as long as a lost one would be; or why there is none.
async fn first_link(
    dial: &Dialer,
    limit: Option<Duration>,
    told: &mut mpsc::Receiver<Told>,
    heard: &mut Heard,
) -> Result<Lines, String> {
    let began = Instant::now();
    let mut pause = DIAL_AGAIN_FIRST;
    loop {
        let why = tokio::select! {
            dialed = dial.attempt(1) => match dialed {
                Ok(lines) => return Ok(lines),
                Err(error) if error.is_a_refusal() => return Err(chain(&error)),
                Err(error) => chain(&error),
            },
            why = heard.until_over(&dial.preamble.migration, told) => return Err(why),
        };
        if limit.is_some_and(|limit| began.elapsed() >= limit) {
            let waited = limit.unwrap_or_default().as_secs();
            return Err(format!("recoveryTimeout: the target could not be reached for {waited} s: {why}"));
        }
        tracing::info!(why, "the target can not be reached yet");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            why = heard.until_over(&dial.preamble.migration, told) => return Err(why),
        }
        pause = (pause * 2).min(DIAL_AGAIN_MAX);
    }
}

/// What was told before there was a link: the driver that begins then must hear it.
#[derive(Debug, Default)]
struct Heard {
    settings: Option<Settings>,
    view: Option<Box<Ownership>>,
}

impl Heard {
    /// Hears what is told until the migration is over or cancelled; why.
    async fn until_over(&mut self, migration: &MigrationId, told: &mut mpsc::Receiver<Told>) -> String {
        while let Some(order) = told.recv().await {
            match order {
                Told::Settings(settings) => self.settings = Some(settings),
                Told::View(view) => {
                    self.view = Some(view);
                    if self.is_over(migration) {
                        return "the migration is over".to_owned();
                    }
                }
                Told::Cancel(why) => return why,
                Told::Quorum(_) | Told::Linked(_) => {}
            }
        }
        "the node ends".to_owned()
    }

    fn is_over(&self, migration: &MigrationId) -> bool {
        self.view.as_ref().is_some_and(|view| view.phase_of(migration).is_none_or(Phase::is_over))
    }

    /// The same orders, and then all that follow.
    fn before(self, mut told: mpsc::Receiver<Told>) -> mpsc::Receiver<Told> {
        let Self { settings, view } = self;
        let kept: Vec<_> = settings.map(Told::Settings).into_iter().chain(view.map(Told::View)).collect();
        if kept.is_empty() {
            return told;
        }
        let (pass, passed) = mpsc::channel(kept.len());
        tokio::spawn(async move {
            for order in kept {
                let _ = pass.send(order).await;
            }
            while let Some(order) = told.recv().await {
                if pass.send(order).await.is_err() {
                    return;
                }
            }
        });
        passed
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
