//! Drives a [`TargetSession`]: pages into the memory of a runner that waits for its guest.

mod audit;
mod hands;
mod link;
mod placing;

use std::sync::Arc;
use std::time::Duration;

use godwit_domain::ownership::Entry;
use godwit_domain::progress::PostCopyReport;
use godwit_domain::{Epoch, InstanceId, MigrationId, PageIndex, PageRun};
use godwit_memory::{Faults, Memfd, PageSet};
use godwit_wire::migration::{SourceFrame, TargetFrame};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{Instrument, Span};

use super::stream::Delivered;
use super::{Clock, Report, Runner, Tells, Told, chain, micros};
use crate::audit::Compared;
use crate::control;
use crate::target::{Action, Lane, TargetSession, Write};
use hands::{MemoryWorker, command, place, planted};
pub use hands::{ServeFaults, Track};
pub use link::Inbound;
use link::Link;

/// Writes that may wait for the memory thread. The source has at most 7 batches on the way, so more would only
/// hold what the transport holds already.
const WRITES_MAX: usize = 4;
/// Batches that may wait for the driver.
const BATCHES_MAX: usize = 4;
/// What may wait for the thread that places what somebody waits for.
const PLACES_MAX: usize = 16;
/// Events that may wait for the driver.
const EVENTS_MAX: usize = 16;
/// Faults that may wait for the driver: those of many threads. More wait in the kernel.
const FAULTS_MAX: usize = 64;

/// How long after a failed start of a licensed guest it is tried again.
const RUN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How a closed connection tells the peer that it broke the protocol.
const BROKE_PROTOCOL: u32 = 2;

/// Everything a target is made of.
#[derive(Debug)]
pub struct Target<R> {
    /// The migration.
    pub migration: MigrationId,
    /// The runner.
    pub instance: InstanceId,
    /// Its memory.
    pub memory: Arc<Memfd>,
    /// How it begins.
    pub begins: Begins,
    /// Begins to track what the guest writes, for an audit; `None`: none can be.
    pub track: Option<Track>,
    /// It is expected to be audited: tracking is armed now, and not in the pause.
    pub track_now: bool,
    /// Itself.
    pub runner: R,
    /// How long it waits for a source to come, or to come back, before it has run; `None`: without end.
    pub recovery_timeout: Option<Duration>,
}

/// How a target's session begins.
pub enum Begins {
    /// With nothing. This serves the guest's faults, should pages be missing when it runs.
    Empty(ServeFaults),
    /// Beside a guest that runs under this epoch, whose faults are served, and of which these pages are holes.
    Resumed(Epoch, Arc<Faults>, PageSet),
}

impl std::fmt::Debug for Begins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty(_) => f.write_str("Empty"),
            Self::Resumed(epoch, _, holes) => write!(f, "Resumed({epoch}, {} holes)", holes.len().0),
        }
    }
}

enum Event {
    Frame(u64, SourceFrame),
    Broke(u64, String),
    /// The peer broke a rule; the connection is closed with its name.
    Broken(u64, String),
    Written(Lane),
    /// A batch could not be written, for this reason.
    NotWritten(Lane, String),
    /// All punched but for these; faults are served from now on.
    Punched(Vec<PageRun>, Arc<Faults>),
    /// Somebody waits for this page.
    Fault(PageIndex),
    NotZeroed(PageRun, String),
    ZerosAgain(PageRun),
    /// What the guest will write is tracked, or is not, for this reason.
    Tracked(Result<(), String>),
    Compared(Result<Compared, String>),
    Released,
    NotReleased(String),
    ReleaseAgain,
    Sealed(Epoch),
    Loaded,
    Running(Epoch),
    Failed(String),
    /// What failed after the licence had come is tried once more.
    RunAgain(Epoch),
}

enum MemoryJob {
    Write(Vec<Write>, Vec<u8>),
    Punch(Vec<PageRun>),
    Release,
    Track,
    Compare(PageRun, Vec<u64>),
    Seal(Epoch),
}

enum PlaceJob {
    Serve(Arc<Faults>),
    Write(Vec<Write>, Vec<u8>),
    Zeros(PageRun),
}

enum RunnerJob {
    Load(Epoch, Vec<u8>),
    Resume(Epoch),
}

/// Takes a guest in. Returns when the log has spoken; the last thing it tells is what it measured.
pub async fn run<R: Runner>(target: Target<R>, mut told: mpsc::Receiver<Told>, tells: mpsc::Sender<Tells>) {
    let (events_in, events) = mpsc::channel(EVENTS_MAX);
    let (batches_in, batches) = mpsc::channel(BATCHES_MAX);
    let (urgent_in, urgent) = mpsc::channel(BATCHES_MAX);
    let (faults_in, faults) = mpsc::channel(FAULTS_MAX);
    // One answer to each job of the two threads finds room, so they always make progress.
    let (answers_in, answers) = mpsc::channel(WRITES_MAX + PLACES_MAX + 4);
    let outs = Outs { events: events_in, bulk: batches_in, urgent: urgent_in, faults: faults_in };
    let mut ears = Ears { events, batches, urgent, faults, answers };
    let mut driver = Driver::start(target, answers_in, outs, tells.clone());
    let report = driver.drive(&mut told, &mut ears).await;
    // Whatever still wants to tell something must not wait for an ear.
    drop(ears);
    driver.stop().await;
    let _ = tells.send(Tells::Ended(report)).await;
}

/// Where those who serve the driver tell what happened.
#[derive(Clone)]
struct Outs {
    events: mpsc::Sender<Event>,
    bulk: mpsc::Sender<Delivered>,
    urgent: mpsc::Sender<Delivered>,
    faults: mpsc::Sender<Event>,
}

/// Where the driver hears of it.
struct Ears {
    events: mpsc::Receiver<Event>,
    batches: mpsc::Receiver<Delivered>,
    urgent: mpsc::Receiver<Delivered>,
    faults: mpsc::Receiver<Event>,
    answers: mpsc::Receiver<Event>,
}

struct Driver {
    session: TargetSession,
    migration: MigrationId,
    guest_pages: u32,
    clock: Clock,
    link: Option<Link>,
    /// The second connection of a link whose first has not come yet.
    early_bulk: Option<Box<Inbound>>,
    links: u64,
    outs: Outs,
    memory_jobs: mpsc::Sender<MemoryJob>,
    place_jobs: mpsc::Sender<PlaceJob>,
    runner_jobs: mpsc::Sender<RunnerJob>,
    tells: mpsc::Sender<Tells>,
    tasks: JoinSet<()>,
    /// Things that are tried again: they end with the driver.
    again: JoinSet<()>,
    /// Faults are heard as long as this is open.
    hearing: Option<std::io::PipeWriter>,
    /// The runner is no more though it was told to run: nothing is left to drive.
    bereft: Option<String>,
    /// Since when there is no connection.
    alone_since: Duration,
    recovery_timeout: Option<Duration>,
    /// That nobody is left who could send what is missing was said.
    stranded: bool,
    run_asked: Duration,
    run_epoch: Epoch,
    /// Why it does not run yet, as was told last.
    not_run: Option<String>,
    resume: Duration,
    post_copy: Option<PostCopyReport>,
    /// Until when the source may audit.
    audit_until: Option<Duration>,
    planted: planted::Late,
}

impl Driver {
    fn start<R: Runner>(
        target: Target<R>,
        answers: mpsc::Sender<Event>,
        outs: Outs,
        tells: mpsc::Sender<Tells>,
    ) -> Self {
        let Target { migration, instance, memory, begins, track, track_now, runner, recovery_timeout } =
            target;
        let (guest_pages, clock) = (memory.pages(), Clock::start());
        let (memory_jobs, jobs) = mpsc::channel(WRITES_MAX);
        if track_now {
            // There is room. Should it fail, it is tried again when the source closes.
            let _ = memory_jobs.try_send(MemoryJob::Track);
        }
        let (place_jobs, places) = mpsc::channel(PLACES_MAX);
        let (runner_jobs, orders) = mpsc::channel(4);
        let mut tasks = JoinSet::new();
        tasks.spawn(command(runner, orders, outs.events.clone()).in_current_span());
        let (session, serve, faults) = match begins {
            Begins::Empty(serve) => {
                (TargetSession::new(migration.clone(), instance, guest_pages), Some(serve), None)
            }
            Begins::Resumed(epoch, faults, holes) => {
                let (name, now) = (migration.clone(), clock.now());
                let session = TargetSession::resumed(now, name, instance, guest_pages, epoch, holes);
                (session, None, Some(faults))
            }
        };
        let (span, place_span) = (Span::current(), Span::current());
        let (place_memory, place_answers) = (Arc::clone(&memory), answers.clone());
        let worker = MemoryWorker { memory, serve, faults: faults.clone(), track, tracker: None };
        tasks.spawn_blocking(move || {
            let _in_span = span.enter();
            worker.work(jobs, &answers);
        });
        tasks.spawn_blocking(move || {
            let _in_span = place_span.enter();
            place(&place_memory, places, &place_answers);
        });
        let mut driver = Self {
            session,
            migration,
            guest_pages: guest_pages.0,
            clock,
            link: None,
            early_bulk: None,
            links: 0,
            outs,
            memory_jobs,
            place_jobs,
            runner_jobs,
            tells,
            tasks,
            again: JoinSet::new(),
            hearing: None,
            bereft: None,
            alone_since: Duration::ZERO,
            recovery_timeout,
            stranded: false,
            run_asked: Duration::ZERO,
            run_epoch: Epoch(0),
            not_run: None,
            resume: Duration::ZERO,
            post_copy: None,
            audit_until: None,
            planted: planted::Late::default(),
        };
        faults.into_iter().for_each(|faults| driver.serve(faults));
        driver
    }

    async fn drive(&mut self, told: &mut mpsc::Receiver<Told>, ears: &mut Ears) -> Report {
        loop {
            while let Some(action) = self.session.poll() {
                if let Some(report) = self.act(action).await {
                    return report;
                }
            }
            if let Some(reason) = self.bereft.take() {
                return Report::Failed { reason };
            }
            let limit = self.recovery_timeout.unwrap_or(Duration::from_secs(1 << 30));
            let patience = self.clock.instant(self.alone_since + limit);
            let audit_until = self.clock.instant(self.audit_until.unwrap_or_default());
            // In this order, so that answers never pile up behind batches, and who waits does not wait for them.
            tokio::select! {
                biased;
                order = told.recv() => match order {
                    Some(order) => self.told(order),
                    None => return Report::Stopped,
                },
                Some(answer) = ears.answers.recv() => self.happened(answer).await,
                Some(fault) = ears.faults.recv() => self.happened(fault).await,
                Some(batch) = ears.urgent.recv() => self.delivered(batch).await,
                Some(event) = ears.events.recv() => self.happened(event).await,
                Some(batch) = ears.batches.recv() => self.delivered(batch).await,
                () = tokio::time::sleep_until(audit_until), if self.session.is_auditing() => self.session.end_audit(),
                () = tokio::time::sleep_until(patience), if self.link.is_none() && self.session.needs_the_source() => {
                    self.session.fail(format!("no source has come for {} s", limit.as_secs()));
                }
            }
        }
    }

    async fn act(&mut self, action: Action) -> Option<Report> {
        match action {
            Action::Send(frame) => self.say(frame).await,
            Action::Punch(runs) => self.ask_memory(MemoryJob::Punch(runs)).await,
            Action::Zeros(run) => self.ask_place_when_there_is_room(PlaceJob::Zeros(run)).await,
            Action::Release => self.ask_memory(MemoryJob::Release).await,
            Action::Track => self.ask_memory(MemoryJob::Track).await,
            Action::Audit => self.audit_begins().await,
            Action::Compare(run, digests) => self.ask_memory(MemoryJob::Compare(run, digests)).await,
            Action::Load(epoch, state) => {
                tracing::debug!(%epoch, "loads the state");
                self.ask_runner(RunnerJob::Load(epoch, state));
            }
            Action::Run(epoch) => {
                self.run_asked = self.clock.now();
                self.run_epoch = epoch;
                // Every page stream is closed before the memory is sealed; what was read off one before is written first,
                // or refused by the seal, and is older than what is here. In post-copy pages go on coming: they are
                // placed, which no seal forbids.
                if let Some(link) = self.link.as_mut().filter(|_| self.session.missing().is_none()) {
                    link.readers.shutdown().await;
                }
                if self.session.missing().is_none() {
                    // Of a pause in post-copy that was called off: nobody would answer a fault any more.
                    self.ask_memory(MemoryJob::Release).await;
                }
                self.ask_memory(MemoryJob::Seal(epoch)).await;
            }
            Action::ProposeRunning(epoch) => {
                self.propose(Entry::Running { migration: self.migration.clone(), epoch }).await;
            }
            Action::ProposeAllPages(epoch) => {
                self.post_copy = self.session.post_copy_report(self.clock.now());
                tracing::info!(%epoch, report = ?self.post_copy, "every page is here");
                self.propose(Entry::AllPages { migration: self.migration.clone(), epoch }).await;
            }
            Action::GiveUp(reason) => {
                tracing::warn!(reason, "giving up");
                return Some(Report::GaveUp { reason });
            }
            Action::Finish(Ok(())) => {
                let audit = self.what_the_audit_found();
                return Some(Report::Target {
                    resume_us: micros(self.resume),
                    post_copy: self.post_copy,
                    audit,
                });
            }
            Action::Finish(Err(reason)) => return Some(Report::Failed { reason }),
        }
        None
    }

    fn told(&mut self, order: Told) {
        match order {
            Told::View(ownership) => {
                self.session.view(&ownership);
                self.check_source();
                self.say_if_stranded();
            }
            // Told by the node when the runner has died. Whether it ran before is then not this side's to say.
            Told::Cancel(reason) if self.session.has_started() => self.bereft = Some(reason),
            Told::Cancel(reason) => self.session.fail(reason),
            Told::Linked(inbound) => self.linked(*inbound),
            Told::Settings(_) | Told::Quorum(_) => {}
        }
    }

    async fn happened(&mut self, event: Event) {
        match event {
            Event::Frame(link, frame) if link == self.links => {
                let outcome = self.session.frame(frame);
                self.check(outcome);
            }
            Event::Written(lane) => {
                let outcome = self.session.written(self.clock.now(), lane);
                self.check(outcome);
            }
            Event::NotWritten(lane, reason) if self.session.missing().is_some() => {
                // The guest may run already, and waits: all that is missing is asked for again.
                tracing::error!(reason, "pages could not be placed; they are asked for again");
                self.session.not_written(lane);
                self.link_is_gone(&reason);
            }
            Event::NotWritten(_, reason) => self.session.fail(reason),
            Event::Punched(stayed, faults) => {
                self.serve(faults);
                self.session.punched(&stayed);
            }
            Event::Fault(page) => self.session.fault(self.clock.now(), page),
            Event::NotZeroed(run, reason) if self.session.missing().is_some_and(|missing| missing.0 > 0) => {
                tracing::error!(reason, first = run.first.0, "zeros could not be placed; trying again");
                self.again(Event::ZerosAgain(run));
            }
            // Let go already.
            Event::NotZeroed(..) => {}
            Event::ZerosAgain(run) => self.ask_place_when_there_is_room(PlaceJob::Zeros(run)).await,
            Event::Released => self.session.released(),
            Event::NotReleased(reason) => {
                tracing::error!(reason, "faults are served on, though every page is here; trying again");
                self.again(Event::ReleaseAgain);
            }
            Event::ReleaseAgain => self.ask_memory(MemoryJob::Release).await,
            Event::Tracked(outcome) => self.tracked(outcome),
            Event::Compared(outcome) => self.compared(outcome),
            Event::Loaded => self.session.loaded(),
            Event::Sealed(epoch) => self.ask_runner(RunnerJob::Resume(epoch)),
            Event::Running(epoch) => {
                self.resume = self.clock.now().saturating_sub(self.run_asked);
                tracing::info!(%epoch, resume = ?self.resume, "the guest runs here");
                self.session.running(self.clock.now(), epoch);
            }
            Event::Broke(link, reason) if link == self.links => self.link_is_gone(&reason),
            Event::Broken(link, rule) if link == self.links => self.protocol_broken(&rule),
            // Of a link that is gone.
            Event::Frame(..) | Event::Broken(..) | Event::Broke(..) => {}
            Event::Failed(reason) if self.session.has_started() => {
                // Nobody else may run it: what failed is tried again until it is done, and told once.
                if self.not_run.as_ref() != Some(&reason) {
                    tracing::error!(reason, "the licensed guest does not run yet; trying again");
                    self.not_run = Some(reason);
                }
                self.again(Event::RunAgain(self.run_epoch));
            }
            Event::Failed(reason) => self.session.fail(reason),
            Event::RunAgain(epoch) => self.ask_memory(MemoryJob::Seal(epoch)).await,
        }
    }

    async fn delivered(&mut self, (link, lane, batch, payload): Delivered) {
        let Some(writes) = self.session.batch(link, lane, &batch) else { return };
        match lane {
            Lane::Bulk => {
                let (writes, payload) = self.planted.pass((writes, payload));
                self.ask_memory(MemoryJob::Write(writes, payload)).await;
            }
            Lane::Urgent => self.ask_place_when_there_is_room(PlaceJob::Write(writes, payload)).await,
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
            link.close(b"migration is over");
            link.readers.shutdown().await;
            tracing::debug!(link = link.number, "link closed");
        }
        let (closed, _) = mpsc::channel(1);
        self.memory_jobs = closed;
        let (closed, _) = mpsc::channel(1);
        self.place_jobs = closed;
        let (closed, _) = mpsc::channel(1);
        self.runner_jobs = closed;
        self.hearing = None;
        self.again.shutdown().await;
        while self.tasks.join_next().await.is_some() {}
    }
}
