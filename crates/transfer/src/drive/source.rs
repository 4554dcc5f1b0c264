//! Drives a [`SourceSession`]: a guest's memory out to the target.

mod hands;

use std::time::Duration;

use godwit_domain::ownership::{Entry, Phase};
use godwit_domain::progress::{Course, Progress, SentPages, SourceReport};
use godwit_domain::{InstanceId, MigrationId, Settings};
use godwit_memory::{Memfd, PageSet, Tracker};
use godwit_wire::migration::{SourceFrame, TargetFrame};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{Instrument, Span};

use super::stream::SharedLimiter;
use super::{Clock, Report, Runner, Tells, Told, chain, micros};
use crate::control;
use crate::limiter::Limiter;
use crate::pages::Reader;
use crate::source::{Action, OutOfTurn, Plan, Setup, SourceSession};
use hands::{MemoryWorker, command, hear_frames, planted, send_batches};

/// Plans that are being read or wait to be sent: one is read, one waits, one is sent.
const PLANS_OPEN_MAX: usize = 3;
/// Events that may wait for the driver: an answer to each thing it has asked for, and room for frames.
const EVENTS_MAX: usize = 32;
/// Jobs that may wait for the runner: every step of a throttle, and pause, save, let run freely, resume.
const RUNNER_JOBS_MAX: usize = 12;
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Everything a source is made of.
#[derive(Debug)]
pub struct Source<R> {
    /// What the session is told at its birth.
    pub setup: Setup,
    /// Its first limits.
    pub settings: Settings,
    /// The guest's memory.
    pub memory: Memfd,
    /// Armed before anything is read.
    pub tracker: Tracker,
    /// The guest's runner.
    pub runner: R,
    /// A connection to the target, which has been greeted.
    pub connection: Connection,
    /// Its control stream.
    pub control: (SendStream, RecvStream),
}

enum Event {
    Frame(TargetFrame),
    Scanned(PageSet),
    Paused,
    Saved(Vec<u8>),
    /// So many percent of its time are taken from the guest.
    Throttled(u8),
    Sent(SentPages),
    /// Something broke. What it means depends on where the session stands.
    Broke(String),
    /// The runner did not do what it must.
    RunnerBroke(String),
}

enum MemoryJob {
    Read(Plan),
    Scan,
}

enum RunnerJob {
    Pause(godwit_domain::Epoch),
    Save,
    Throttle(u8),
    Resume(godwit_domain::Epoch),
}

/// Moves a guest out. Returns when the log has spoken: the guest then runs here or there. What it measured is the
/// last thing it tells.
pub async fn run<R: Runner>(source: Source<R>, mut told: mpsc::Receiver<Told>, tells: mpsc::Sender<Tells>) {
    let (events_in, mut events) = mpsc::channel(EVENTS_MAX);
    let mut driver = Driver::start(source, events_in, tells.clone());
    let report = driver.drive(&mut told, &mut events).await;
    // Whatever still wants to tell something must not wait for an ear.
    drop(events);
    driver.stop().await;
    let _ = tells.send(Tells::Ended(report)).await;
}

struct Driver {
    session: SourceSession,
    migration: MigrationId,
    instance: InstanceId,
    clock: Clock,
    limiter: SharedLimiter,
    connection: Connection,
    control: SendStream,
    memory_jobs: mpsc::Sender<MemoryJob>,
    runner_jobs: mpsc::Sender<RunnerJob>,
    tells: mpsc::Sender<Tells>,
    tasks: JoinSet<()>,
    memory_thread: Option<JoinHandle<()>>,
    plans_open: usize,
    report: SourceReport,
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

/// When the steps of a switchover were reached.
#[derive(Default)]
struct Times {
    pause: Option<Duration>,
    closed: Option<Duration>,
    complete: Option<Duration>,
    committed: Option<Duration>,
}

impl Driver {
    fn start<R: Runner>(source: Source<R>, events: mpsc::Sender<Event>, tells: mpsc::Sender<Tells>) -> Self {
        let Source { setup, settings, memory, tracker, runner, connection, control } = source;
        let clock = Clock::start();
        let limiter = SharedLimiter::new(clock, Limiter::new(clock.now(), settings.bandwidth));
        limiter.change(&connection, |_, _| {});
        let (memory_jobs, jobs) = mpsc::channel(PLANS_OPEN_MAX + 2);
        let (encoded, batches) = mpsc::channel(1);
        let (runner_jobs, orders) = mpsc::channel(RUNNER_JOBS_MAX);
        let (control, hear) = control;
        let reader = Reader::new(memory, setup.session);
        let pages = setup.pages;
        let memory_events = events.clone();
        let span = Span::current();
        let memory_thread = tokio::task::spawn_blocking(move || {
            let _in_span = span.enter();
            let worker = MemoryWorker { reader, tracker, written: PageSet::empty(pages), encoded };
            worker.work(jobs, &memory_events);
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(hear_frames(hear, connection.clone(), events.clone()).in_current_span());
        tasks.spawn(
            send_batches(connection.clone(), limiter.clone(), batches, events.clone()).in_current_span(),
        );
        tasks.spawn(command(runner, orders, events).in_current_span());
        Self {
            migration: setup.migration.clone(),
            instance: setup.instance,
            session: SourceSession::new(clock.now(), setup),
            clock,
            limiter,
            connection,
            control,
            memory_jobs,
            runner_jobs,
            tells,
            tasks,
            memory_thread: Some(memory_thread),
            plans_open: 0,
            report: SourceReport::default(),
            times: Times::default(),
            closing: Closing::Kept,
            waits_for_quorum: false,
            throttle: 0,
            progress_at: Duration::ZERO,
        }
    }

    /// Until the log has spoken.
    async fn drive(&mut self, told: &mut mpsc::Receiver<Told>, events: &mut mpsc::Receiver<Event>) -> Report {
        loop {
            while let Some(action) = self.session.poll(self.clock.now(), self.plans_open < PLANS_OPEN_MAX) {
                if let Some(report) = self.act(action).await {
                    return report;
                }
            }
            self.tell_progress();
            let wake = self.clock.instant(self.session.wake_at(self.clock.now()));
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
                self.plans_open += 1;
                self.ask_memory(MemoryJob::Read(plan));
            }
            Action::Scan => self.ask_memory(MemoryJob::Scan),
            Action::Pause(epoch) => {
                self.times.pause = Some(self.clock.now());
                let snapshot = self.session.snapshot(self.clock.now());
                self.report.predicted_downtime_us = micros(snapshot.predicted_downtime);
                self.report.paused_to_finish = why_paused(snapshot.course).is_some();
                let why = why_paused(snapshot.course).unwrap_or("the rest fits into the allowed downtime");
                let predicted_downtime_ms = snapshot.predicted_downtime.as_millis();
                tracing::info!(%epoch, predicted_downtime_ms, why, "switching over");
                self.ask_runner(RunnerJob::Pause(epoch));
            }
            Action::Throttle(percent) => self.throttle(percent),
            Action::Save => self.ask_runner(RunnerJob::Save),
            Action::Resume(epoch) => self.ask_runner(RunnerJob::Resume(epoch)),
            Action::ProposeHandOver(epoch, mode) => {
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
            Event::Frame(frame) => {
                let broke = self.session.frame(now, frame).err();
                if self.session.is_target_complete() {
                    self.times.complete.get_or_insert(now);
                }
                if let Some(problem) = broke {
                    self.broke(&OutOfTurn::to_string(&problem));
                }
            }
            Event::Scanned(written) => {
                planted::die_after_a_scan(self.session.snapshot(now).round);
                self.session.scanned(now, &written);
            }
            Event::Paused => self.session.paused(),
            Event::Saved(state) => self.session.saved(now, state),
            Event::Throttled(percent) => {
                self.session.throttled(percent);
                self.report.throttle_percent_max = self.report.throttle_percent_max.max(percent);
            }
            Event::Sent(sent) => {
                self.plans_open = self.plans_open.saturating_sub(1);
                self.report.count(&sent);
            }
            Event::Broke(reason) => self.broke(&reason),
            Event::RunnerBroke(reason) => self.session.fail(format!("runner at the source: {reason}")),
        }
    }

    /// The connection is of no use any more. Before a hand-over that ends the migration; after it, or when the target
    /// has said that it has everything and the hand-over is proposed, only the log knows.
    fn broke(&mut self, reason: &str) {
        let is_complete = self.session.is_target_complete();
        self.session.link_lost();
        if is_complete {
            tracing::debug!(reason, "the target has everything and closed first");
        } else if self.session.is_handed_over() {
            tracing::warn!(
                reason,
                "connection lost after the hand-over; waiting for the target to say that it runs"
            );
        } else {
            self.session.fail(format!("connection to the target lost: {reason}"));
        }
    }

    async fn told(&mut self, order: Told) {
        match order {
            Told::Settings(Settings { bandwidth, limits, .. }) => {
                self.limiter.change(&self.connection, |limiter, now| limiter.set(now, bandwidth));
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
            SourceFrame::Round { .. } => {}
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
        if matches!(frame, SourceFrame::Final(_)) {
            self.times.closed.get_or_insert(self.clock.now());
        }
        let written = match control::source_frame(&frame) {
            Ok(bytes) => super::say(&mut self.control, &bytes).await,
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

    fn tell_progress(&mut self) {
        let now = self.clock.now();
        if now < self.progress_at {
            return;
        }
        self.progress_at = now + PROGRESS_INTERVAL;
        let snapshot = self.session.snapshot(now);
        if snapshot.waits_for_quorum && !self.waits_for_quorum {
            tracing::info!(
                "ready to switch over; waits for a quorum of the control group, and goes on copying"
            );
        }
        self.waits_for_quorum = snapshot.waits_for_quorum;
        let progress = Progress {
            round: snapshot.round.0,
            switching_over: snapshot.switching_over,
            waits_for_quorum: snapshot.waits_for_quorum,
            left_bytes: snapshot.left.bytes(),
            dirty_bytes: snapshot.dirty.bytes(),
            wire_bytes: self.connection.stats().udp_tx.bytes,
            send_rate: snapshot.send_rate,
            dirty_rate: snapshot.dirty_rate,
            predicted_downtime_ms: u64::try_from(snapshot.predicted_downtime.as_millis()).unwrap_or(u64::MAX),
            throttle_percent: snapshot.throttle_percent,
            course: snapshot.course,
        };
        // Only the newest is worth anything: what does not fit is left out.
        let _ = self.tells.try_send(Tells::Progress(progress));
    }

    fn finish(&mut self, outcome: Result<(), String>) -> Report {
        let now = self.clock.now();
        let snapshot = self.session.snapshot(now);
        let stats = self.connection.stats();
        tracing::info!(
            ?outcome,
            mtu = stats.path.current_mtu,
            lost_packets = stats.path.lost_packets,
            instance = %self.instance,
            "migration is over"
        );
        if let Err(reason) = outcome {
            return Report::Failed { reason };
        }
        let between = |from: Option<Duration>, to: Option<Duration>| match (from, to) {
            (Some(from), Some(to)) => micros(to.saturating_sub(from)),
            _ => 0,
        };
        let Times { pause, closed, complete, committed } = self.times;
        Report::Source(SourceReport {
            total_us: micros(now),
            pause_us: between(pause, closed),
            state_us: between(closed, complete),
            commit_us: between(complete, committed),
            wire_bytes: stats.udp_tx.bytes,
            skipped_pages: snapshot.skipped_pages,
            last_round_pages: u64::from(snapshot.last_round_pages.0),
            ..self.report
        })
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
        // Closing tells the other side that nothing more comes (it frees nothing there), and ends whatever waits
        // for room on a stream.
        self.connection.close(0_u32.into(), b"migration is over");
        if let Some(thread) = self.memory_thread.take() {
            let _ = thread.await;
        }
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Why a guest is paused that does not fit into the allowed downtime.
fn why_paused(course: Course) -> Option<&'static str> {
    match course {
        Course::PausesToFinish => Some("the deadline has passed, and the guest may be paused to finish"),
        Course::PausesForPostCopy => {
            Some("the deadline has passed: post-copy is decided, and this build pauses the guest instead")
        }
        Course::Rounds | Course::Throttled | Course::SwitchesOver | Course::Ends => None,
    }
}
