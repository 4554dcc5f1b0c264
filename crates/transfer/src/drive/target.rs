//! Drives a [`TargetSession`]: pages into the memory of a runner that waits for its guest.

mod hands;

use std::time::Duration;

use godwit_domain::ownership::Entry;
use godwit_domain::{Epoch, InstanceId, MigrationId};
use godwit_memory::Memfd;
use godwit_wire::batch::Batch;
use godwit_wire::migration::{Preamble, SourceFrame, TargetFrame};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{Instrument, Span};

use super::stream::Delivered;
use super::{Clock, Report, Runner, Tells, Told, chain, micros};
use crate::control;
use crate::target::{Action, TargetSession, Violation, Write};
use hands::{accept_pages, command, hear_frames, planted, work};

/// Writes that may wait for the memory thread. The source has at most 7 batches on the way, so more would only
/// hold what the transport holds already.
const WRITES_MAX: usize = 4;
/// Batches that may wait for the driver.
const BATCHES_MAX: usize = 4;
/// Answers that may wait for the driver: to each write asked for, and a few more.
const EVENTS_MAX: usize = 16;

/// How long after a failed start of a licensed guest it is tried again.
const RUN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How long a copy waits for its source to come, or to come back: `recoveryTimeout`.
const SOURCE_PATIENCE: Duration = Duration::from_secs(60);

/// How a closed connection tells the peer that it broke the protocol.
const BROKE_PROTOCOL: u32 = 2;

/// A connection whose preamble fits.
#[derive(Debug)]
pub struct Inbound {
    /// The connection.
    pub connection: Connection,
    /// Its control stream, greeted.
    pub control: (SendStream, RecvStream),
    /// What the source said.
    pub preamble: Preamble,
}

/// Everything a target is made of.
#[derive(Debug)]
pub struct Target<R> {
    /// The migration.
    pub migration: MigrationId,
    /// The runner.
    pub instance: InstanceId,
    /// Its memory.
    pub memory: Memfd,
    /// Itself.
    pub runner: R,
}

enum Event {
    Frame(SourceFrame),
    Broke(String),
    /// The peer broke a rule; the connection is closed with its name.
    Broken(String),
    Written,
    Sealed(Epoch),
    Loaded,
    Running(Epoch),
    Failed(String),
    /// What failed after the licence had come is tried once more.
    RunAgain(Epoch),
}

enum MemoryJob {
    Write(Vec<Write>, Vec<u8>),
    Seal(Epoch),
}

enum RunnerJob {
    Load(Epoch, Vec<u8>),
    Resume(Epoch),
}

/// Takes a guest in. Returns when the log has spoken; the last thing it tells is what it measured.
pub async fn run<R: Runner>(target: Target<R>, mut told: mpsc::Receiver<Told>, tells: mpsc::Sender<Tells>) {
    let (events_in, mut events) = mpsc::channel(EVENTS_MAX);
    let (batches_in, mut batches) = mpsc::channel(BATCHES_MAX);
    let (answers_in, mut answers) = mpsc::channel(WRITES_MAX + 2);
    let mut driver = Driver::start(target, events_in, answers_in, batches_in, tells.clone());
    let report = driver.drive(&mut told, &mut answers, &mut events, &mut batches).await;
    // Whatever still wants to tell something must not wait for an ear.
    drop((events, answers, batches));
    driver.stop().await;
    let _ = tells.send(Tells::Ended(report)).await;
}

/// A connection and the tasks that read from it. Dropping it ends them.
struct Link {
    number: u64,
    connection: Connection,
    control: SendStream,
    readers: JoinSet<()>,
}

struct Driver {
    session: TargetSession,
    migration: MigrationId,
    guest_pages: u32,
    clock: Clock,
    link: Option<Link>,
    links: u64,
    events: mpsc::Sender<Event>,
    batches: mpsc::Sender<Delivered>,
    memory_jobs: mpsc::Sender<MemoryJob>,
    runner_jobs: mpsc::Sender<RunnerJob>,
    tells: mpsc::Sender<Tells>,
    tasks: JoinSet<()>,
    /// The runner is no more though it was told to run: nothing is left to drive.
    bereft: Option<String>,
    /// Since when there is no connection.
    alone_since: Duration,
    run_asked: Duration,
    run_epoch: Epoch,
    resume: Duration,
    planted: planted::Late,
}

impl Driver {
    fn start<R: Runner>(
        target: Target<R>,
        events: mpsc::Sender<Event>,
        answers: mpsc::Sender<Event>,
        batches: mpsc::Sender<Delivered>,
        tells: mpsc::Sender<Tells>,
    ) -> Self {
        let Target { migration, instance, memory, runner } = target;
        let guest_pages = memory.pages();
        let (memory_jobs, jobs) = mpsc::channel(WRITES_MAX);
        let (runner_jobs, orders) = mpsc::channel(4);
        let mut tasks = JoinSet::new();
        tasks.spawn(command(runner, orders, events.clone()).in_current_span());
        let span = Span::current();
        tasks.spawn_blocking(move || {
            let _in_span = span.enter();
            work(&memory, jobs, &answers);
        });
        Self {
            session: TargetSession::new(migration.clone(), instance, guest_pages),
            migration,
            guest_pages: guest_pages.0,
            clock: Clock::start(),
            link: None,
            links: 0,
            events,
            batches,
            memory_jobs,
            runner_jobs,
            tells,
            tasks,
            bereft: None,
            alone_since: Duration::ZERO,
            run_asked: Duration::ZERO,
            run_epoch: Epoch(0),
            resume: Duration::ZERO,
            planted: planted::Late::default(),
        }
    }

    async fn drive(
        &mut self,
        told: &mut mpsc::Receiver<Told>,
        answers: &mut mpsc::Receiver<Event>,
        events: &mut mpsc::Receiver<Event>,
        batches: &mut mpsc::Receiver<Delivered>,
    ) -> Report {
        loop {
            while let Some(action) = self.session.poll() {
                if let Some(report) = self.act(action).await {
                    return report;
                }
            }
            if let Some(reason) = self.bereft.take() {
                return Report::Failed { reason };
            }
            let patience = self.clock.instant(self.alone_since + SOURCE_PATIENCE);
            // In this order, so that answers never pile up behind batches.
            tokio::select! {
                biased;
                order = told.recv() => match order {
                    Some(order) => self.told(order),
                    None => return Report::Stopped,
                },
                Some(answer) = answers.recv() => self.happened(answer).await,
                Some(event) = events.recv() => self.happened(event).await,
                Some((link, batch, payload)) = batches.recv() => self.delivered(link, &batch, payload).await,
                () = tokio::time::sleep_until(patience), if self.link.is_none() && self.session.needs_the_source() => {
                    self.session.fail(format!("no source has come for {} s", SOURCE_PATIENCE.as_secs()));
                }
            }
        }
    }

    async fn act(&mut self, action: Action) -> Option<Report> {
        match action {
            Action::Send(frame) => self.say(frame).await,
            Action::Punch(_) => self.session.fail("post-copy is not built on this node".into()),
            Action::Load(epoch, state) => self.ask_runner(RunnerJob::Load(epoch, state)),
            Action::Run(epoch) => {
                self.run_asked = self.clock.now();
                self.run_epoch = epoch;
                // Every page stream is closed before the memory is sealed; what was read off one before is written first,
                // or refused by the seal, and is older than what is here.
                if let Some(link) = &mut self.link {
                    link.readers.shutdown().await;
                }
                self.ask_memory(MemoryJob::Seal(epoch)).await;
            }
            Action::ProposeRunning(epoch) => {
                self.propose(Entry::Running { migration: self.migration.clone(), epoch }).await;
            }
            Action::ProposeAllPages(epoch) => {
                self.propose(Entry::AllPages { migration: self.migration.clone(), epoch }).await;
            }
            Action::GiveUp(reason) => {
                tracing::warn!(reason, "giving up");
                return Some(Report::GaveUp { reason });
            }
            Action::Finish(Ok(())) => return Some(Report::Target { resume_us: micros(self.resume) }),
            Action::Finish(Err(reason)) => return Some(Report::Failed { reason }),
        }
        None
    }

    fn told(&mut self, order: Told) {
        match order {
            Told::View(ownership) => {
                self.session.view(&ownership);
                self.check_source();
            }
            // Told by the node when the runner has died. Whether it ran before is then not this side's to say.
            Told::Cancel(reason) if self.session.has_started() => self.bereft = Some(reason),
            Told::Cancel(reason) => self.session.fail(reason),
            Told::Linked(inbound) => self.linked(*inbound),
            Told::Settings(_) | Told::Quorum(_) => {}
        }
    }

    fn linked(&mut self, inbound: Inbound) {
        let Inbound { connection, control: (control, hear), preamble } = inbound;
        if !self.session.can_link() {
            connection.close(BROKE_PROTOCOL.into(), b"busy punching; connect again");
            return;
        }
        self.links += 1;
        let number = self.links;
        let mut readers = JoinSet::new();
        readers.spawn(hear_frames(hear, connection.clone(), self.events.clone()).in_current_span());
        let accept = accept_pages(
            connection.clone(),
            number,
            self.guest_pages,
            self.batches.clone(),
            self.events.clone(),
        );
        readers.spawn(accept.in_current_span());
        let (from, to) = (connection.remote_address(), connection.local_ip());
        self.link = Some(Link { number, connection, control, readers });
        self.session.linked(number, preamble.session);
        tracing::info!(source = %preamble.source, %from, ?to, link = number, "source connected");
    }

    async fn happened(&mut self, event: Event) {
        match event {
            Event::Frame(frame) => {
                let outcome = self.session.frame(frame);
                self.check(outcome);
            }
            Event::Written => {
                let outcome = self.session.written();
                self.check(outcome);
            }
            Event::Loaded => self.session.loaded(),
            Event::Sealed(epoch) => self.ask_runner(RunnerJob::Resume(epoch)),
            Event::Running(epoch) => {
                self.resume = self.clock.now().saturating_sub(self.run_asked);
                tracing::info!(%epoch, resume = ?self.resume, "the guest runs here");
                self.session.running(epoch);
            }
            Event::Broke(reason) => self.link_is_gone(&reason),
            Event::Broken(rule) => self.protocol_broken(&rule),
            Event::Failed(reason) if self.session.has_started() => {
                // Nobody else may run it: what failed is tried again until it is done.
                tracing::error!(reason, "the licensed guest does not run yet; trying again");
                let (events, epoch) = (self.events.clone(), self.run_epoch);
                self.tasks.spawn(async move {
                    tokio::time::sleep(RUN_AGAIN_AFTER).await;
                    let _ = events.send(Event::RunAgain(epoch)).await;
                });
            }
            Event::Failed(reason) => self.session.fail(reason),
            Event::RunAgain(epoch) => self.ask_memory(MemoryJob::Seal(epoch)).await,
        }
    }

    async fn delivered(&mut self, link: u64, batch: &Batch, payload: Vec<u8>) {
        if let Some(writes) = self.session.batch(link, batch) {
            let (writes, payload) = self.planted.pass((writes, payload));
            self.ask_memory(MemoryJob::Write(writes, payload)).await;
        }
    }

    fn check(&mut self, outcome: Result<(), Violation>) {
        if let Err(violation) = outcome {
            self.protocol_broken(&violation.to_string());
        }
    }

    fn protocol_broken(&mut self, rule: &str) {
        tracing::warn!(rule, "the source broke the protocol");
        if let Some(link) = &self.link {
            link.connection.close(BROKE_PROTOCOL.into(), rule.as_bytes());
        }
        self.link_is_gone(rule);
        // A peer that breaks the protocol will break it again.
        if self.session.needs_the_source() {
            self.session.fail(format!("connection to the source lost: {rule}"));
        }
    }

    /// Once the guest is loaded, nothing more is needed of the source but its proposal, which the log brings. Before, a
    /// source that was restarted may come back and send everything again.
    fn link_is_gone(&mut self, reason: &str) {
        if self.link.take().is_none() {
            return;
        }
        self.session.link_lost();
        self.alone_since = self.clock.now();
        if self.session.needs_the_source() {
            tracing::info!(reason, "connection to the source lost; waiting for it to come back");
        }
        self.check_source();
    }

    /// A guest that was handed over stands still until it is whole here, or back at its source: without a connection
    /// the latter is faster.
    fn check_source(&mut self) {
        if self.link.is_none() && self.session.is_licensed() && self.session.needs_the_source() {
            self.session.fail(
                "handed over, and the connection to the source is lost before everything had come".into(),
            );
        }
    }

    async fn say(&mut self, frame: TargetFrame) {
        let Some(link) = &mut self.link else { return };
        let written = match control::target_frame(&frame) {
            Ok(bytes) => super::say(&mut link.control, &bytes).await,
            Err(error) => Err(chain(&error)),
        };
        if let Err(reason) = written {
            self.link_is_gone(&reason);
        }
    }

    async fn propose(&self, entry: Entry) {
        let _ = self.tells.send(Tells::Proposal(entry)).await;
    }

    async fn ask_memory(&mut self, job: MemoryJob) {
        // Waits for room: the memory thread always makes progress, since its answers have room of their own.
        if self.memory_jobs.send(job).await.is_err() {
            self.session.fail("the memory thread has stopped".into());
        }
    }

    fn ask_runner(&mut self, job: RunnerJob) {
        if self.runner_jobs.try_send(job).is_err() {
            self.session.fail("the runner's task has stopped".into());
        }
    }

    async fn stop(&mut self) {
        if let Some(mut link) = self.link.take() {
            link.connection.close(0_u32.into(), b"migration is over");
            link.readers.shutdown().await;
            tracing::debug!(link = link.number, "link closed");
        }
        let (closed, _) = mpsc::channel(1);
        self.memory_jobs = closed;
        let (closed, _) = mpsc::channel(1);
        self.runner_jobs = closed;
        while self.tasks.join_next().await.is_some() {}
    }
}
