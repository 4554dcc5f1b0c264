//! Drives a [`SourceSession`]: a guest's memory out to the target.

mod audit;
mod hands;
mod link;
mod telling;

use std::sync::Arc;
use std::time::Duration;

use godwit_domain::ownership::{Entry, Phase};
use godwit_domain::progress::{Course, SentPages, SourceReport};
use godwit_domain::{InstanceId, MigrationId, PageRun, Settings};
use godwit_memory::{Memfd, PageSet, Tracker};
use godwit_wire::migration::{SourceFrame, TargetFrame};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{Instrument, Span};

use super::stream::SharedLimiter;
use super::{Clock, Report, Runner, Tells, Told, chain, micros};
use crate::control;
use crate::limiter::Limiter;
use crate::pages::Encoded;
use crate::pages::Reader;
use crate::source::{Action, OutOfTurn, Plan, Setup, SourceSession};
use crate::target::Lane;
use crate::young::Young;
use hands::{MemoryWorker, command, planted};
pub use link::{Dial, Lines};
use link::{FetchWorker, Link, Redial};
use telling::{Times, why_paused};

/// Plans that are being read or wait to be sent: one is read, one waits, one is sent.
const PLANS_OPEN_MAX: usize = 3;
/// Fetches that are read or wait to be sent.
const FETCHES_OPEN_MAX: usize = 16;
/// Events that may wait for the driver: an answer to each thing it has asked for, and room for frames.
const EVENTS_MAX: usize = 32;
/// Jobs that may wait for the runner: every step of a throttle, and pause, save, let run freely, resume.
const RUNNER_JOBS_MAX: usize = 12;
/// Everything a source is made of.
#[derive(Debug)]
pub struct Source<R, D> {
    /// What the session is told at its birth.
    pub setup: Setup,
    /// Its first limits.
    pub settings: Settings,
    /// The guest's memory.
    pub memory: Arc<Memfd>,
    /// How it begins.
    pub begins: Begins,
    /// The guest's runner.
    pub runner: R,
    /// How the target is reached.
    pub dial: D,
    /// Its disks may write its memory past the scans ([`godwit_domain::Qemu::has_direct_io`]).
    pub direct_io: bool,
}

/// How a source's session begins.
#[derive(Debug)]
pub enum Begins {
    /// With a running guest, whose writes are tracked since before anything was read, and the first link.
    Copy(Tracker, Box<Lines>),
    /// Beside a guest that stands still, was handed over in post-copy, and has this device state.
    Serve(Vec<u8>),
}

enum Event {
    Frame(u64, TargetFrame),
    /// The link was dialed again.
    Dialed(Result<Box<Lines>, String>),
    Scanned(PageSet),
    Digested(PageRun, Vec<u64>),
    Paused,
    Saved(Vec<u8>),
    /// So many percent of its time are taken from the guest.
    Throttled(u8),
    /// A batch is accounted for: it went, or never will (with no pages).
    Sent(Lane, SentPages),
    /// This link broke. What it means depends on where the session stands.
    Broke(u64, String),
    /// The target broke a rule over this link.
    Broken(u64, String),
    /// Guest memory could not be read, for a batch of this lane, or scanned.
    Unreadable(Option<Lane>, String),
    /// The runner did not do what it must.
    RunnerBroke(String),
}

impl Event {
    /// A batch that never goes.
    fn unsent(lane: Lane) -> Self {
        Self::Sent(lane, SentPages::default())
    }
}

enum MemoryJob {
    Read(Plan, mpsc::Sender<Encoded>),
    /// `true`: the guest stands still, and it is the last one.
    Scan(bool),
    Digest(PageRun),
}

enum RunnerJob {
    Pause(godwit_domain::Epoch),
    Save,
    Throttle(u8),
    Resume(godwit_domain::Epoch),
}

/// Moves a guest out. Returns when the log has spoken: the guest then runs here or there. What it measured is the
/// last thing it tells.
pub async fn run<R: Runner, D: Dial>(
    source: Source<R, D>,
    mut told: mpsc::Receiver<Told>,
    tells: mpsc::Sender<Tells>,
) {
    let (events_in, mut events) = mpsc::channel(EVENTS_MAX);
    let mut driver = Driver::start(source, events_in.clone(), tells.clone());
    drop(events_in);
    let report = driver.drive(&mut told, &mut events).await;
    // Whatever still wants to tell something must not wait for an ear.
    drop(events);
    driver.stop().await;
    let _ = tells.send(Tells::Ended(report)).await;
}

struct Driver<D> {
    session: SourceSession,
    migration: MigrationId,
    instance: InstanceId,
    clock: Clock,
    limiter: SharedLimiter,
    dial: Arc<D>,
    link: Option<Link>,
    links: u64,
    redial: Redial,
    /// How long a lost link is dialed again in pre-copy; `None`: without end.
    recovery_timeout: Option<Duration>,
    events: mpsc::Sender<Event>,
    memory_jobs: mpsc::Sender<MemoryJob>,
    fetch_jobs: mpsc::Sender<(Plan, mpsc::Sender<Encoded>)>,
    runner_jobs: mpsc::Sender<RunnerJob>,
    tells: mpsc::Sender<Tells>,
    tasks: JoinSet<()>,
    memory_threads: Vec<JoinHandle<()>>,
    plans_open: usize,
    fetches_open: usize,
    report: SourceReport,
    /// What was measured when an audit began.
    audited_from: Option<SourceReport>,
    times: Times,
    closing: Closing,
    waits_for_quorum: bool,
    /// What was last asked of the runner, in percent.
    throttle: u8,
    progress_at: Duration,
}

/// Whether anything of the closing frames has left: without all of them nothing can be started at the target.
#[derive(Debug, PartialEq, Eq)]
enum Closing {
    Kept,
    Left,
    /// Kept, and vowed to be kept.
    Withheld,
}

impl<D: Dial> Driver<D> {
    fn start<R: Runner>(
        source: Source<R, D>,
        events: mpsc::Sender<Event>,
        tells: mpsc::Sender<Tells>,
    ) -> Self {
        let Source { setup, settings, memory, begins, runner, dial, direct_io } = source;
        let clock = Clock::start();
        let limiter = SharedLimiter::new(clock, Limiter::new(clock.now(), settings.bandwidth));
        let (memory_jobs, jobs) = mpsc::channel(PLANS_OPEN_MAX + 2);
        let (fetch_jobs, fetches) = mpsc::channel(FETCHES_OPEN_MAX);
        let (runner_jobs, orders) = mpsc::channel(RUNNER_JOBS_MAX);
        let (migration, instance, pages) = (setup.migration.clone(), setup.instance, setup.pages);
        let written = PageSet::empty(pages);
        let fetch_reader = Reader::new(Arc::clone(&memory), setup.session);
        let reader = Reader::new(memory, setup.session);
        let (tracker, lines, session, closing) = match begins {
            Begins::Copy(tracker, lines) => {
                (Some(tracker), Some(*lines), SourceSession::new(clock.now(), setup), Closing::Kept)
            }
            // What an earlier process has sent, this one does not know: it can not vow that nothing has left.
            Begins::Serve(state) => {
                (None, None, SourceSession::serving(clock.now(), setup, state), Closing::Left)
            }
        };
        let young = direct_io.then(|| Young::new(pages));
        let worker = MemoryWorker { reader, tracker, written, young };
        let memory_threads = vec![
            on_a_thread(events.clone(), move |events| worker.work(jobs, events)),
            on_a_thread(events.clone(), move |events| {
                FetchWorker { reader: fetch_reader }.work(fetches, events)
            }),
        ];
        let mut tasks = JoinSet::new();
        tasks.spawn(command(runner, orders, events.clone()).in_current_span());
        let mut driver = Self {
            migration,
            instance,
            session,
            clock,
            limiter,
            dial: Arc::new(dial),
            link: None,
            links: 0,
            redial: Redial::default(),
            recovery_timeout: settings.recovery_timeout,
            events,
            memory_jobs,
            fetch_jobs,
            runner_jobs,
            tells,
            tasks,
            memory_threads,
            plans_open: 0,
            fetches_open: 0,
            report: SourceReport::default(),
            audited_from: None,
            times: Times::default(),
            closing,
            waits_for_quorum: false,
            throttle: 0,
            progress_at: Duration::ZERO,
        };
        match lines {
            Some(lines) => driver.linked(lines),
            None => driver.redial.lost(clock.now(), Duration::ZERO),
        }
        driver
    }

    /// Until the log has spoken.
    async fn drive(&mut self, told: &mut mpsc::Receiver<Told>, events: &mut mpsc::Receiver<Event>) -> Report {
        loop {
            while let Some(action) = self.session.poll(self.clock.now(), self.room()) {
                if let Some(report) = self.act(action).await {
                    return report;
                }
            }
            self.tell_progress();
            let again = self.dial_again();
            let wake = self.session.wake_at(self.clock.now()).min(again);
            let wake = self.clock.instant(wake);
            // In this order: what was agreed tells what a closed connection means.
            tokio::select! {
                biased;
                order = told.recv() => match order {
                    Some(order) => self.told(order).await,
                    // Whoever gave the order is gone; the guest stays as it is until somebody asks again.
                    None => return Report::Stopped,
                },
                event = events.recv() => match event {
                    Some(event) => self.happened(event),
                    None => return Report::Stopped,
                },
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    async fn act(&mut self, action: Action) -> Option<Report> {
        match action {
            Action::Send(frame) => self.say(frame).await,
            Action::Batch(plan) => {
                if let Some(link) = &self.link {
                    self.plans_open += 1;
                    let to = link.batches.clone();
                    self.ask_memory(MemoryJob::Read(plan, to));
                }
            }
            Action::Fetched(plan) => self.fetch(plan),
            Action::Scan => self.ask_memory(MemoryJob::Scan(self.session.is_stopping())),
            Action::Audit => self.audit_begins().await,
            Action::Digest(run) => self.ask_memory(MemoryJob::Digest(run)),
            Action::Pause(epoch) => {
                self.times.pause = Some(self.clock.now());
                let snapshot = self.session.snapshot(self.clock.now());
                self.report.predicted_downtime_us = micros(snapshot.predicted_downtime);
                self.report.paused_to_finish = snapshot.course == Course::PausesToFinish;
                let why = why_paused(snapshot.course).unwrap_or("the rest fits into the allowed downtime");
                // Before anything has arrived there is no rate to predict it by.
                let is_known = snapshot.predicted_downtime < Duration::MAX;
                let predicted_downtime_ms = is_known.then_some(snapshot.predicted_downtime.as_millis());
                tracing::info!(%epoch, predicted_downtime_ms, why, "switching over");
                self.ask_runner(RunnerJob::Pause(epoch));
            }
            Action::Throttle(percent) => self.throttle(percent),
            Action::Save => self.ask_runner(RunnerJob::Save),
            Action::Resume(epoch) => self.ask_runner(RunnerJob::Resume(epoch)),
            Action::ProposeHandOver(epoch, mode) => {
                tracing::debug!(%epoch, "proposes the hand-over");
                self.propose(Entry::HandOver { migration: self.migration.clone(), epoch, mode }).await;
            }
            Action::ProposeEnd(side, reason) => {
                tracing::warn!(reason, "giving up");
                self.propose(Entry::End { migration: self.migration.clone(), side, reason }).await;
            }
            Action::Finish(outcome) => return Some(self.finish(outcome)),
        }
        None
    }

    fn happened(&mut self, event: Event) {
        let now = self.clock.now();
        match event {
            Event::Frame(link, frame) if link == self.links => {
                let broke = self.session.frame(now, frame).err();
                if self.session.is_target_complete() && self.times.complete.is_none() {
                    tracing::debug!("the target has everything");
                    self.times.complete = Some(now);
                }
                if let Some(problem) = broke {
                    self.protocol_broken(&OutOfTurn::to_string(&problem));
                }
            }
            Event::Scanned(written) => {
                planted::die_after_a_scan(self.session.snapshot(now).round);
                tracing::debug!(pages = written.len().0, last = self.session.is_stopping(), "scanned");
                self.session.scanned(now, &written);
            }
            Event::Digested(run, digests) => self.session.digested(run, digests),
            Event::Paused => self.session.paused(),
            Event::Saved(state) => {
                tracing::debug!(bytes = state.len(), "the state is here");
                self.session.saved(now, state);
            }
            Event::Throttled(percent) => {
                self.session.throttled(percent);
                self.report.throttle_percent_max = self.report.throttle_percent_max.max(percent);
            }
            Event::Sent(lane, sent) => {
                let open = match lane {
                    Lane::Bulk => &mut self.plans_open,
                    Lane::Urgent => &mut self.fetches_open,
                };
                *open = open.saturating_sub(1);
                self.session.went(sent.raw + sent.zero + sent.packed, sent.zero);
                self.report.count(&sent);
            }
            Event::Dialed(Ok(lines)) if self.session.wants_a_link() => self.linked(*lines),
            Event::Dialed(Ok(lines)) => {
                self.redial.failed(now);
                lines.urgent.close(0_u32.into(), b"not wanted any more");
                lines.bulk.close(0_u32.into(), b"not wanted any more");
            }
            Event::Dialed(Err(reason)) => {
                tracing::info!(reason, "the target can not be reached");
                self.redial.failed(now);
            }
            Event::Broke(link, reason) if link == self.links => self.broke(&reason),
            Event::Broken(link, rule) if link == self.links => self.protocol_broken(&rule),
            // Of a link that is gone.
            Event::Frame(..) | Event::Broke(..) | Event::Broken(..) => {}
            Event::Unreadable(lane, reason) => {
                match lane {
                    Some(Lane::Bulk) => self.plans_open = self.plans_open.saturating_sub(1),
                    Some(Lane::Urgent) => self.fetches_open = self.fetches_open.saturating_sub(1),
                    None => {}
                }
                // After the hand-over its pages are asked for again, over another link.
                if self.session.is_handed_over() { self.broke(&reason) } else { self.session.fail(reason) }
            }
            Event::RunnerBroke(reason) => self.session.fail(format!("runner at the source: {reason}")),
        }
    }

    async fn told(&mut self, order: Told) {
        match order {
            Told::Settings(Settings { bandwidth, limits, recovery_timeout, audit, .. }) => {
                self.session.set_audit(audit);
                self.limiter.set(bandwidth);
                self.recovery_timeout = recovery_timeout;
                self.session.set_limits(limits);
            }
            Told::View(ownership) => {
                let phase = ownership.attempt.as_ref().map(|attempt| &attempt.phase);
                if matches!(phase, Some(Phase::HandedOver { .. } | Phase::PostCopy { .. } | Phase::Succeeded))
                {
                    self.times.committed.get_or_insert(self.clock.now());
                }
                if matches!(phase, Some(Phase::HandedOver { source, .. }) if source.instance == self.instance)
                {
                    self.testify(ownership.epoch).await;
                }
                self.session.view(&ownership);
            }
            Told::Quorum(age) => self.session.quorum_answered(self.clock.now().saturating_sub(age)),
            Told::Cancel(reason) => self.session.fail(reason),
            Told::Linked(_) => tracing::error!("a source was handed an inbound connection"),
        }
    }

    /// Handed over, and `Final` has not left: then it never will, and the guest may come back by this testimony.
    async fn testify(&mut self, epoch: godwit_domain::Epoch) {
        if self.closing == Closing::Kept {
            self.closing = Closing::Withheld;
            let sealed = godwit_domain::Epoch(epoch.0.saturating_sub(1));
            let _ = self.tells.send(Tells::Withheld(sealed)).await;
        }
    }

    async fn say(&mut self, frame: SourceFrame) {
        match frame {
            SourceFrame::Round { .. } | SourceFrame::Audit { .. } => {}
            SourceFrame::State(_)
            | SourceFrame::Digests { .. }
            | SourceFrame::Required { .. }
            | SourceFrame::Final(_) => {
                if self.closing == Closing::Withheld {
                    return;
                }
                self.closing = Closing::Left;
            }
        }
        if let SourceFrame::Round { round, pages } = &frame {
            self.report.rounds = round.0;
            tracing::debug!(%round, pages, "round begins");
        }
        if let SourceFrame::Final(closed) = &frame {
            tracing::debug!(?closed, "closes");
            self.times.closed.get_or_insert(self.clock.now());
        }
        let Some(link) = &mut self.link else { return };
        let written = match control::source_frame(&frame) {
            Ok(bytes) => super::say(&mut link.control, &bytes).await,
            Err(error) => Err(chain(&error)),
        };
        if let Err(reason) = written {
            self.broke(&reason);
        }
    }

    async fn propose(&self, entry: Entry) {
        // A node that has stopped takes no proposals; the next one asks what it owes.
        let _ = self.tells.send(Tells::Proposal(entry)).await;
    }

    fn ask_memory(&mut self, job: MemoryJob) {
        if self.memory_jobs.try_send(job).is_err() {
            self.session.fail("the memory thread has stopped".into());
        }
    }

    fn ask_runner(&mut self, job: RunnerJob) {
        if self.runner_jobs.try_send(job).is_err() {
            self.session.fail("the runner's task has stopped".into());
        }
    }

    fn throttle(&mut self, percent: u8) {
        if percent != self.throttle {
            tracing::info!(percent, "the guest is throttled");
        }
        self.throttle = percent;
        self.ask_runner(RunnerJob::Throttle(percent));
    }

    async fn stop(&mut self) {
        if self.throttle > 0 {
            // Whoever told it to stop, the guest does not pay for it.
            self.throttle(0);
        }
        // Dropped senders end the runner's task after its last job, and the memory thread.
        let (closed, _) = mpsc::channel(1);
        self.memory_jobs = closed;
        let (closed, _) = mpsc::channel(1);
        self.runner_jobs = closed;
        let (closed, _) = mpsc::channel(1);
        self.fetch_jobs = closed;
        if let Some(link) = self.link.take() {
            link.close("migration is over");
        }
        for thread in self.memory_threads.drain(..) {
            let _ = thread.await;
        }
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Runs something that may block for milliseconds on a thread of its own.
fn on_a_thread(
    events: mpsc::Sender<Event>,
    work: impl FnOnce(&mpsc::Sender<Event>) + Send + 'static,
) -> JoinHandle<()> {
    let span = Span::current();
    tokio::task::spawn_blocking(move || {
        let _in_span = span.enter();
        work(&events);
    })
}
