//! The seeded world: two hosts, a link that loses, delays and reorders, a log, and everything that may happen.

mod faults;
mod target_host;

use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash};
use std::time::Duration;

use godwit_domain::ownership::{Entry, Ownership, Phase};
use godwit_domain::precopy::{Allowed, Limits};
use godwit_domain::progress::{AuditReport, Course};
use godwit_domain::{Epoch, InstanceId, MigrationId, PageCount, PageIndex, PageRun};
use godwit_memory::PageSet;
use godwit_transfer::audit::Compared;
use godwit_transfer::source::{self, Plan, Room, Setup, SourceSession};
use godwit_transfer::target::{self, Lane, TargetSession, Write};
use godwit_wire::batch::{Batch, Class, ClassedRun};
use godwit_wire::migration::{Mode, SessionId, SourceFrame, TargetFrame};

/// More than one segment of stamps, so that their edges are met.
pub(crate) const PAGES: PageCount = PageCount(8192 + 300);

struct InFlight {
    connection: u64,
    lane: Lane,
    batch: Batch,
    contents: Vec<u64>,
    /// A few are held up on the way, past the end of their round and past what follows it.
    not_before: Duration,
}

pub(crate) struct World {
    random: fastrand::Rng,
    pub(crate) now: Duration,
    migration: MigrationId,
    pub(crate) log: Ownership,
    proposals: Vec<Entry>,
    pub(crate) trace: DefaultHasher,
    is_replay: bool,
    // The source's host.
    pub(crate) source: SourceSession,
    source_memory: Vec<u64>,
    dirty: PageSet,
    pub(crate) source_runs: bool,
    sealed: Epoch,
    quorum: Duration,
    pausing: bool,
    saving: bool,
    scans: VecDeque<PageSet>,
    reading: VecDeque<(u64, Lane, Plan)>,
    source_link: Option<u64>,
    source_done: Option<Result<(), String>>,
    /// Percent of its time that is taken from the guest here.
    pub(crate) throttle: u8,
    pub(crate) paused_to_finish: bool,
    gave_up: bool,
    session: u64,
    pub(crate) mode: Mode,
    audit: bool,
    digesting: Option<PageRun>,
    // Between.
    connections: u64,
    to_target: VecDeque<(u64, SourceFrame)>,
    to_source: VecDeque<(u64, TargetFrame)>,
    batches: Vec<InFlight>,
    // The target's host.
    target: TargetSession,
    target_memory: Vec<u64>,
    /// Pages of the target that are no holes.
    present: PageSet,
    /// What the guest's memory is, once it runs at the target.
    guest_memory: Vec<u64>,
    /// Pages that somebody at the target waits for.
    blocked: PageSet,
    target_link: Option<u64>,
    writes: VecDeque<Vec<(Write, Vec<u64>)>>,
    placing: VecDeque<Vec<(Write, Vec<u64>)>>,
    releasing: bool,
    loading: bool,
    punching: Option<Vec<PageRun>>,
    pub(crate) target_runs: Option<Epoch>,
    target_done: Option<Result<(), String>>,
    /// Pages that the guest has written since what it writes was tracked.
    written: BTreeSet<u32>,
    comparing: Option<(PageRun, Vec<u64>)>,
    faults_left: u32,
    /// The source's process will be started again while its guest stands still.
    calls_off: bool,
}

fn id(n: u8) -> InstanceId {
    InstanceId::from_random([n; 16])
}

/// Some have a deadline that passes, and some may do something about it.
fn limits(random: &mut fastrand::Rng) -> Limits {
    let allowed = Allowed { pause: random.bool(), throttle: random.bool(), ..Allowed::default() };
    let allowed = Allowed { post_copy: allowed.pause && random.bool(), ..allowed };
    Limits {
        downtime_max: Duration::from_millis(60),
        completion_timeout: (random.u32(0..4) == 0).then(|| Duration::from_millis(random.u64(50..1500))),
        allowed,
        ..Limits::defaults_for(PAGES.bytes())
    }
}

fn setup(
    migration: &MigrationId,
    session: u64,
    (mode, audit): (Mode, bool),
    epoch: Epoch,
    limits: Limits,
) -> Setup {
    Setup {
        migration: migration.clone(),
        instance: id(1),
        epoch,
        session: SessionId(session),
        pages: PAGES,
        limits,
        commit_estimate: Duration::from_millis(1),
        mode,
        at_once: false,
        audit,
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let migration: MigrationId = "m1".parse().expect("a name");
        let mode = if random.bool() { Mode::StopAndCopy } else { Mode::PostCopy };
        let audit = random.bool();
        let mut log = Ownership::new("a".parse().expect("a name"));
        log.apply(Entry::Born { instance: id(1) }).expect("born");
        log.apply(Entry::Request { migration: migration.clone() }).expect("asked");
        let target = "b".parse().expect("a name");
        log.apply(Entry::Start { migration: migration.clone(), target }).expect("start");
        let accept = Entry::Accept { migration: migration.clone(), epoch: log.epoch, instance: id(2) };
        log.apply(accept).expect("accept");
        let now = Duration::ZERO;
        Self {
            now,
            source: SourceSession::new(
                now,
                setup(&migration, 1, (mode, audit), log.epoch, limits(&mut random)),
            ),
            source_memory: (0..PAGES.0).map(|_| random.u64(0..4)).collect(),
            dirty: PageSet::empty(PAGES),
            source_runs: true,
            sealed: Epoch(0),
            quorum: Duration::ZERO,
            pausing: false,
            saving: false,
            scans: VecDeque::new(),
            reading: VecDeque::new(),
            source_link: None,
            source_done: None,
            throttle: 0,
            paused_to_finish: false,
            gave_up: false,
            session: 1,
            mode,
            audit,
            digesting: None,
            connections: 0,
            to_target: VecDeque::new(),
            to_source: VecDeque::new(),
            batches: Vec::new(),
            target: TargetSession::new(migration.clone(), id(2), PAGES),
            target_memory: vec![0; PAGES.0 as usize],
            present: PageSet::empty(PAGES),
            guest_memory: Vec::new(),
            blocked: PageSet::empty(PAGES),
            target_link: None,
            writes: VecDeque::new(),
            placing: VecDeque::new(),
            releasing: false,
            loading: false,
            punching: None,
            target_runs: None,
            target_done: None,
            written: BTreeSet::new(),
            comparing: None,
            faults_left: random.u32(0..5),
            calls_off: random.u32(0..6) == 0,
            proposals: Vec::new(),
            trace: DefaultHasher::new(),
            is_replay: std::env::var_os("GODWIT_SEED").is_some(),
            log,
            migration,
            random,
        }
    }

    /// What happened, for the reader of a replayed seed.
    fn note(&self, event: impl FnOnce() -> String) {
        if self.is_replay {
            println!("{:>8.3} ms  {}", self.now.as_secs_f64() * 1000.0, event());
        }
    }

    /// One random thing happens.
    pub(crate) fn step(&mut self) {
        self.now += Duration::from_micros(self.random.u64(1..400));
        // A pause is short: at some moment of it.
        if self.calls_off && !self.source_runs && self.random.u32(0..25) == 0 {
            self.calls_off = false;
            self.call_off();
        }
        let choice = self.random.u32(0..100);
        let mark =
            (choice, self.batches.len(), self.writes.len(), self.to_target.len(), self.to_source.len());
        mark.hash(&mut self.trace);
        match choice {
            0..7 => self.guest_writes(),
            7..10 => self.target_guest_touches(),
            10..28 => self.source_acts(),
            28..40 => self.read_a_batch(),
            40..56 => self.a_batch_arrives(),
            56..60 => self.a_batch_is_written(Lane::Bulk),
            60..64 => self.a_batch_is_written(Lane::Urgent),
            64..70 => self.a_control_frame_arrives(),
            70..76 => self.target_acts(),
            76..82 => self.the_runner_answers(),
            82..86 => self.log_accepts(),
            86..91 => self.view_arrives_at_source(),
            91..96 => self.view_arrives_at_target(),
            96..98 => self.connect(),
            _ => self.fault(),
        }
    }

    fn guest_writes(&mut self) {
        if self.source_runs {
            let share = u32::from(100 - self.throttle);
            for _ in 0..self.random.u32(0..30) * share / 100 {
                let page = self.random.u32(0..PAGES.0.min(700));
                self.source_memory[page as usize] += 1;
                self.dirty.insert(PageIndex(page));
            }
        }
    }

    fn source_acts(&mut self) {
        // Most of the time a quorum answers.
        if self.random.u32(0..8) > 0 {
            self.source.quorum_answered(self.now);
            self.quorum = self.now;
        }
        let room = Room { batch: self.reading.len() < 2, fetched: self.reading.len() < 4 };
        let Some(action) = self.source.poll(self.now, room) else { return };
        self.note(|| format!("source: {}", short(&action)));
        match action {
            source::Action::Send(frame) => {
                if let Some(connection) = self.source_link {
                    self.to_target.push_back((connection, frame));
                }
            }
            source::Action::Batch(plan) => {
                let handed_over = self.source.is_handed_over();
                assert!(!self.gave_up || handed_over, "a copy that was given up goes on");
                self.reading.push_back((self.connections, Lane::Bulk, plan));
            }
            source::Action::Fetched(plan) => {
                assert!(!self.source_runs, "a page of a running guest is fetched");
                self.reading.push_front((self.connections, Lane::Urgent, plan));
            }
            source::Action::Scan => {
                let written = std::mem::replace(&mut self.dirty, PageSet::empty(PAGES));
                self.scans.push_back(written);
            }
            source::Action::Throttle(percent) => {
                self.throttle = percent;
                self.source.throttled(percent);
            }
            source::Action::Pause(epoch) => {
                assert!(!self.gave_up, "a copy that was given up pauses the guest");
                assert_eq!(epoch, self.log.epoch.min(epoch), "pauses an epoch that is known");
                let silent = self.now.saturating_sub(self.quorum);
                assert!(silent <= source::QUORUM_AGE_MAX, "paused without a quorum for {silent:?}");
                let course = self.source.snapshot(self.now).course;
                self.paused_to_finish = matches!(course, Course::PausesToFinish);
                self.sealed = epoch;
                self.pausing = true;
            }
            source::Action::Save => self.saving = true,
            source::Action::ProposeHandOver(epoch, mode) => {
                assert!(!self.source_runs, "a hand-over is proposed for a guest that stands still");
                self.mode = mode;
                self.proposals.push(Entry::HandOver { migration: self.migration.clone(), epoch, mode });
            }
            source::Action::ProposeEnd(side, reason) => {
                self.gave_up = true;
                self.proposals.push(Entry::End { migration: self.migration.clone(), side, reason });
            }
            source::Action::Resume(epoch) => {
                assert!(epoch > self.sealed && self.log.licenses(id(1)), "resumed without a licence");
                assert!(self.target_runs.is_none(), "two running copies");
                // A runner does what it is told in order: a pause that is still under way comes first.
                self.pausing = false;
                self.source_runs = true;
            }
            source::Action::Audit => assert!(self.target_runs.is_some(), "audited before it runs there"),
            source::Action::Digest(run) => self.digesting = Some(run),
            source::Action::Finish(outcome) => {
                assert!(self.throttle == 0, "let go of while it is throttled");
                // Whoever is done closes the connection.
                self.source_link = None;
                self.source_done = Some(outcome);
            }
        }
    }

    fn read_a_batch(&mut self) {
        let Some((connection, lane, plan)) = self.reading.pop_front() else { return };
        let (mut runs, mut contents) = (Vec::new(), Vec::new());
        for run in plan.runs {
            runs.push(ClassedRun { run, class: Class::Raw });
            contents.extend(run.pages().map(|page| self.source_memory[page.0 as usize]));
        }
        let session = SessionId(self.session);
        let batch = Batch { session, round: plan.round, sequence: plan.sequence, runs };
        // A pump drops what it has read for a connection that is gone.
        if self.source_link == Some(connection) {
            let held_up = if self.random.u32(0..8) == 0 { self.random.u64(0..150) } else { 0 };
            let not_before = self.now + Duration::from_millis(held_up);
            self.batches.push(InFlight { connection, lane, batch, contents, not_before });
        }
    }

    fn a_control_frame_arrives(&mut self) {
        if self.random.bool() {
            let Some((connection, frame)) = self.to_target.pop_front() else { return };
            if self.target_link == Some(connection) {
                self.target.frame(frame).unwrap_or_else(|violation| panic!("{violation}"));
            }
        } else if let Some((connection, frame)) = self.to_source.pop_front()
            && self.source_link == Some(connection)
        {
            self.source.frame(self.now, frame).unwrap_or_else(|violation| panic!("{violation}"));
        }
    }

    fn the_runner_answers(&mut self) {
        match self.random.u32(0..7) {
            0 if self.pausing => {
                self.pausing = false;
                self.source_runs = false;
                self.source.paused();
            }
            1 if self.saving => {
                self.saving = false;
                self.source.saved(self.now, vec![9; 100]);
            }
            2 if self.loading => {
                self.loading = false;
                self.target.loaded();
            }
            3 if self.punching.is_some() => {
                // Every page stream's pump has confirmed before a punch: what was handed out is written.
                while !self.writes.is_empty() {
                    self.a_batch_is_written(Lane::Bulk);
                }
                let mut stayed = Vec::new();
                for page in self.punching.take().into_iter().flatten().flat_map(PageRun::pages) {
                    self.target_memory[page.0 as usize] = 0;
                    // A part of a large page that is pinned.
                    if self.present.contains(page) && self.random.u32(0..20) == 0 {
                        stayed.push(PageRun { first: page, count: PageCount(1) });
                    } else {
                        self.present.remove(page);
                    }
                }
                self.target.punched(&stayed);
            }
            5 => self.a_piece_is_digested(),
            6 => self.a_piece_is_compared(),
            4 => {
                if let Some(epoch) = self.target_runs {
                    self.target.running(self.now, epoch);
                }
                if std::mem::take(&mut self.releasing) {
                    assert!(self.blocked.is_empty() || self.target.missing().is_some_and(|n| n.0 == 0));
                    self.blocked = PageSet::empty(PAGES);
                    self.target.released();
                }
            }
            _ => {
                if let Some(written) = self.scans.pop_front() {
                    self.source.scanned(self.now, &written);
                }
            }
        }
    }

    fn log_accepts(&mut self) {
        if !self.proposals.is_empty() {
            let pick = self.random.usize(0..self.proposals.len());
            let entry = self.proposals.swap_remove(pick);
            let _ = self.log.apply(entry);
        }
    }

    fn view_arrives_at_source(&mut self) {
        let log = self.log.clone();
        self.source.view(&log);
    }

    fn view_arrives_at_target(&mut self) {
        let log = self.log.clone();
        self.target.view(&log);
    }

    fn connect(&mut self) {
        let both_know = self.source_link.is_none() && self.target_link.is_none();
        if both_know && self.source_done.is_none() && self.target_done.is_none() && self.target.can_link() {
            self.connections += 1;
            self.source_link = Some(self.connections);
            self.target_link = Some(self.connections);
            self.target.linked(self.connections, SessionId(self.session));
        }
    }

    fn is_post_copy(&self) -> bool {
        let phase = self.log.attempt.as_ref().map(|attempt| &attempt.phase);
        matches!(phase, Some(Phase::PostCopy { .. } | Phase::HandedOver { mode: Mode::PostCopy, .. }))
    }

    pub(crate) fn same_memory(&self, when: &str) {
        let must = if self.target_runs.is_some() { &self.guest_memory } else { &self.source_memory };
        let wrong = (0..PAGES.0 as usize).find(|p| self.target_memory[*p] != must[*p]);
        assert_eq!(wrong, None, "a page is wrong {when}");
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self.log.attempt.as_ref().map(|attempt| &attempt.phase), Some(Phase::Cancelled { .. }))
    }

    pub(crate) fn is_over(&self) -> bool {
        let all_there = self.target.missing().is_none_or(|missing| missing.0 == 0) && self.writes.is_empty();
        let all_there = all_there && self.blocked.is_empty();
        match self.log.attempt.as_ref().map(|attempt| &attempt.phase) {
            Some(Phase::Succeeded) => all_there && self.source_done.is_some() && self.target_runs.is_some(),
            Some(Phase::Failed { .. } | Phase::Cancelled { .. }) => {
                self.source_done.is_some() && self.target_done.is_some()
            }
            _ => false,
        }
    }
}

/// A value as text, cut where it would only repeat itself.
fn short(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").chars().take(160).collect()
}
