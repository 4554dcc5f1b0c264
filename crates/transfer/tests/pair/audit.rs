//! Both sides after a stop-and-copy that is to be audited, on a link that carries everything at once.
//!
//! ```text
//!   Pair: SourceSession ─ frames, batches ─▶ TargetSession     the test answers Digest and Compare
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use godwit_domain::ownership::{Entry, Mode as EntryMode, Ownership};
use godwit_domain::precopy::Limits;
use godwit_domain::progress::AuditReport;
use godwit_domain::{Epoch, InstanceId, MigrationId, PageCount, PageRun};
use godwit_memory::PageSet;
use godwit_transfer::audit::Compared;
use godwit_transfer::source::{Action, Room, Setup, SourceSession};
use godwit_transfer::target::{self, Lane, TargetSession};
use godwit_wire::batch::{Batch, Class, ClassedRun};
use godwit_wire::migration::{AUDIT_PAGES_MAX, Mode, SessionId, SourceFrame, TargetFrame};

/// Two pieces and a bit.
const PAGES: PageCount = PageCount(2 * AUDIT_PAGES_MAX + 300);
const ALL: u64 = PAGES.0 as u64;

struct Pair {
    source: SourceSession,
    target: TargetSession,
    log: Ownership,
    migration: MigrationId,
    now: Duration,
    /// Pages that are not alike, and pages that the guest has written at the target.
    differing: BTreeSet<u32>,
    written: BTreeSet<u32>,
    tracked: usize,
    pieces: usize,
    measured: usize,
    /// Digests are not made any more from this piece on.
    pieces_max: usize,
    source_done: Option<Result<(), String>>,
    target_done: Option<Result<(), String>>,
}

fn id(n: u8) -> InstanceId {
    InstanceId::from_random([n; 16])
}

impl Pair {
    fn new(audit: bool) -> Self {
        let (migration, epoch) = ("m1".parse::<MigrationId>().expect("a name"), Epoch::FIRST);
        let mut log = Ownership::new("a".parse().expect("a name"));
        let target = "b".parse().expect("a name");
        for entry in [
            Entry::Born { instance: id(1) },
            Entry::Request { migration: migration.clone() },
            Entry::Start { migration: migration.clone(), target },
            Entry::Accept { migration: migration.clone(), epoch, instance: id(2) },
        ] {
            log.apply(entry).expect("agreed");
        }
        let setup = Setup {
            migration: migration.clone(),
            instance: id(1),
            epoch,
            session: SessionId(1),
            pages: PAGES,
            limits: Limits::defaults_for(PAGES.bytes()),
            commit_estimate: Duration::from_millis(1),
            mode: Mode::StopAndCopy,
            at_once: false,
            audit,
        };
        let mut target = TargetSession::new(migration.clone(), id(2), PAGES);
        target.linked(1, SessionId(1));
        Self {
            source: SourceSession::new(Duration::ZERO, setup),
            target,
            log,
            migration,
            now: Duration::ZERO,
            differing: BTreeSet::new(),
            written: BTreeSet::new(),
            tracked: 0,
            pieces: 0,
            measured: 0,
            pieces_max: usize::MAX,
            source_done: None,
            target_done: None,
        }
    }

    /// One that has succeeded at the target, as the log says; nobody has heard of it yet.
    fn moved(audit: bool) -> Self {
        let mut pair = Self::new(audit);
        pair.go_on(2000);
        let phase = pair.log.attempt.as_ref().map(|attempt| attempt.phase.is_over());
        assert_eq!(phase, Some(true), "{:?}", pair.log);
        pair
    }

    fn both_hear(&mut self) {
        let log = self.log.clone();
        self.source.view(&log);
        self.target.view(&log);
    }

    fn go_on(&mut self, steps: usize) {
        for _ in 0..steps {
            self.now += Duration::from_millis(1);
            self.source.quorum_answered(self.now);
            while let Some(action) = self.source.poll(self.now, Room { batch: true, fetched: true }) {
                self.source_does(action);
            }
            while let Some(action) = self.target.poll() {
                self.target_does(action);
            }
        }
    }

    fn source_does(&mut self, action: Action) {
        match action {
            Action::Send(frame) => self.target.frame(frame).expect("in turn"),
            Action::Batch(plan) => {
                let runs = plan.runs.into_iter().map(|run| ClassedRun { run, class: Class::Zero }).collect();
                let batch = Batch { session: SessionId(1), round: plan.round, sequence: plan.sequence, runs };
                self.target.batch(1, Lane::Bulk, &batch).expect("of this connection");
                self.target.written(self.now, Lane::Bulk).expect("in turn");
            }
            Action::Scan => self.source.scanned(self.now, &PageSet::empty(PAGES)),
            Action::Pause(_) => self.source.paused(),
            Action::Save => self.source.saved(self.now, vec![9; 100]),
            Action::ProposeHandOver(epoch, mode) => {
                assert_eq!(mode, EntryMode::StopAndCopy);
                let entry = Entry::HandOver { migration: self.migration.clone(), epoch, mode };
                self.log.apply(entry).expect("agreed");
                self.both_hear();
            }
            Action::Audit => self.measured += 1,
            Action::Digest(run) if self.pieces < self.pieces_max => {
                self.source.digested(run, run.pages().map(|page| u64::from(page.0)).collect());
            }
            Action::Finish(outcome) => {
                assert_eq!(self.source_done.replace(outcome), None, "once");
                self.target.link_lost();
            }
            Action::Throttle(_) | Action::Digest(_) => {}
            other => panic!("{other:?}"),
        }
    }

    fn target_does(&mut self, action: target::Action) {
        match action {
            target::Action::Send(frame) if self.source_done.is_none() => {
                self.source.frame(self.now, frame).expect("in turn");
            }
            target::Action::Send(_) => {}
            target::Action::Track => {
                self.tracked += 1;
                self.target.tracked(Ok(()));
            }
            target::Action::Load(..) => self.target.loaded(),
            target::Action::Run(epoch) => self.target.running(self.now, epoch),
            target::Action::ProposeRunning(epoch) => {
                // Heard when the test says so.
                let entry = Entry::Running { migration: self.migration.clone(), epoch };
                self.log.apply(entry).expect("agreed");
            }
            target::Action::Audit => self.measured += 1,
            target::Action::Compare(run, theirs) => {
                self.pieces += 1;
                let of = |page: u32| u64::from(page) + u64::from(self.differing.contains(&page)) * ALL;
                let ours: Vec<u64> = run.pages().map(|page| of(page.0)).collect();
                self.target.compared(Ok(Compared::judge(run, &theirs, &ours, &self.written)));
            }
            target::Action::Finish(outcome) => {
                assert_eq!(self.target_done.replace(outcome), None, "once");
                if self.source_done.is_none() {
                    self.source.link_lost();
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn reports(&self) -> [Option<AuditReport>; 2] {
        [self.source.audit_report().map(|(report, _)| report), self.target.audit_report()]
    }

    fn ended_well(&self) -> bool {
        self.source_done == Some(Ok(())) && self.target_done == Some(Ok(()))
    }
}

#[test]
fn every_page_has_its_turn_and_what_the_guest_wrote_is_excused() {
    let mut pair = Pair::moved(true);
    assert_eq!(pair.tracked, 1, "before it ran");
    pair.differing = BTreeSet::from([0, 4095, 4096, PAGES.0 - 1]);
    pair.written = BTreeSet::from([4095, 17]);
    pair.both_hear();
    pair.go_on(1);
    assert_eq!((pair.measured, pair.source_done.clone()), (2, None), "told at once, and not over");
    pair.go_on(1000);
    assert!(pair.ended_well());
    let report =
        AuditReport { checked_pages: ALL - 1, mismatched_pages: 3, written_pages: 1, complete: true };
    assert_eq!(pair.reports(), [Some(report); 2]);
    assert_eq!(pair.pieces, 3);
}

#[test]
fn one_that_nobody_asked_for_is_not_made() {
    let mut pair = Pair::moved(false);
    pair.both_hear();
    pair.go_on(2);
    assert!(pair.ended_well());
    assert_eq!((pair.tracked, pair.measured, pair.pieces, pair.reports()), (0, 0, 0, [None; 2]));
}

#[test]
fn it_is_wanted_until_the_end_is_said() {
    let mut pair = Pair::new(false);
    pair.source.set_audit(true);
    pair.go_on(2000);
    pair.source.set_audit(false);
    pair.both_hear();
    pair.go_on(1000);
    assert!(pair.ended_well() && pair.reports().iter().all(|report| report.is_some_and(|r| r.complete)));
}

#[test]
fn whatever_happens_to_the_guest_ends_it_at_once() {
    let next = || Entry::Request { migration: "m2".parse().expect("a name") };
    for entry in [next(), Entry::Delete] {
        for source_hears in [true, false] {
            let mut pair = Pair::moved(true);
            pair.pieces_max = 1;
            pair.both_hear();
            pair.go_on(100);
            assert_eq!((pair.pieces, pair.source_done.clone(), pair.target_done.clone()), (1, None, None));
            pair.log.apply(entry.clone()).expect("agreed");
            let log = pair.log.clone();
            if source_hears {
                pair.source.view(&log)
            } else {
                pair.target.view(&log)
            }
            pair.go_on(1);
            pair.go_on(1);
            assert!(pair.ended_well(), "{entry:?}");
            let checked_pages = u64::from(AUDIT_PAGES_MAX);
            let report = AuditReport { checked_pages, ..AuditReport::default() };
            assert_eq!(pair.reports(), [Some(report); 2], "what was compared counts");
        }
    }
}

#[test]
fn a_lost_connection_ends_it_and_so_does_time() {
    let mut pair = Pair::moved(true);
    pair.pieces_max = 0;
    pair.both_hear();
    pair.go_on(100);
    pair.source.link_lost();
    pair.go_on(2);
    assert!(pair.ended_well());
    assert_eq!(pair.source.audit_report().and_then(|(_, why)| why), Some("the connection was lost"));

    let mut pair = Pair::moved(true);
    pair.pieces_max = 0;
    pair.both_hear();
    pair.go_on(29_000);
    assert_eq!(pair.source_done, None);
    pair.go_on(2000);
    assert!(pair.ended_well());
    assert_eq!(pair.source.audit_report().and_then(|(_, why)| why), Some("time is up"));

    // Before it could begin.
    let mut pair = Pair::moved(true);
    pair.source.link_lost();
    pair.target.link_lost();
    pair.both_hear();
    pair.go_on(1);
    assert!(pair.ended_well());
    assert_eq!(pair.reports(), [Some(AuditReport::default()); 2]);
}

#[test]
fn a_failure_of_either_side_is_no_failure_of_the_migration() {
    let mut pair = Pair::moved(true);
    pair.both_hear();
    pair.source.fail("guest memory can not be read".into());
    pair.go_on(2);
    assert!(pair.ended_well());

    let mut pair = Pair::moved(true);
    pair.target.tracked(Err("no".into()));
    pair.both_hear();
    pair.go_on(100);
    assert!(pair.ended_well());
    assert_eq!(pair.source.audit_report().and_then(|(_, why)| why), Some("no"));
}

#[test]
fn what_is_said_out_of_turn_is_refused() {
    let piece = |first: u32, pages: u32| SourceFrame::Audit { first, digests: vec![0; pages as usize] };
    let mut pair = Pair::new(true);
    pair.target.frame(piece(0, AUDIT_PAGES_MAX)).expect_err("before it runs there");
    let audited = |checked, mismatched| TargetFrame::Audited { first: 0, checked, mismatched };
    pair.source.frame(pair.now, audited(1, 0)).expect_err("unasked");

    let mut pair = Pair::moved(false);
    pair.target.frame(piece(0, AUDIT_PAGES_MAX)).expect_err("none was announced");

    let mut pair = Pair::moved(true);
    for (first, pages) in
        [(1, AUDIT_PAGES_MAX), (0, AUDIT_PAGES_MAX - 1), (0, 0), (PAGES.0, 1), (u32::MAX, 1)]
    {
        pair.target.frame(piece(first, pages)).expect_err("for another piece than the next");
    }
    pair.target.frame(piece(0, AUDIT_PAGES_MAX)).expect("in turn");
    pair.target.frame(piece(0, AUDIT_PAGES_MAX)).expect_err("before the answer");

    let mut pair = Pair::moved(true);
    let log = pair.log.clone();
    pair.source.view(&log);
    let run = PageRun::new(0, AUDIT_PAGES_MAX);
    let asked = |action: &Action| *action == Action::Digest(run);
    let room = Room { batch: true, fetched: true };
    while !pair.source.poll(pair.now, room).as_ref().is_some_and(asked) {}
    pair.source.frame(pair.now, audited(1, 0)).expect_err("before it was said");
    pair.source.digested(run, vec![0; AUDIT_PAGES_MAX as usize]);
    for (checked, mismatched) in [(AUDIT_PAGES_MAX + 1, 0), (5, 6), (u32::MAX, u32::MAX)] {
        pair.source.frame(pair.now, audited(checked, mismatched)).expect_err("more than there are");
    }
    pair.source.frame(pair.now, audited(AUDIT_PAGES_MAX, 2)).expect("in turn");
    pair.source.frame(pair.now, audited(AUDIT_PAGES_MAX, 0)).expect_err("twice");
}
