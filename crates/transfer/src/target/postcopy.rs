//! Post-copy at the target: from `Final` on to the last page.
//!
//! ```text
//!   Final ─▶ what has other stamps than required is punched, and missing ─▶ said (Held) ─▶ pages come
//!         └─ what stayed present is fetched first, and only then the device state is loaded, the guest run
//!   a fault ─▶ Fetch, or zeros ·· written ─▶ whoever waited goes on ·· nothing missing ─▶ Release ─▶ AllPages
//!   restarted beside a guest that runs: what is a hole is missing
//! ```
//!
//! Always true: after a punch, batches of pre-copy rounds are dropped, and a page is placed only where it is missing; what is
//! not missing is the guest's own, whatever the source has; the source is let go (`AllPages`) only when nobody can wait for a
//! page any more.

use std::time::Duration;

use godwit_domain::progress::PostCopyReport;
use godwit_domain::{Epoch, InstanceId, MigrationId, PageCount, PageIndex, PageRun, Round};
use godwit_memory::PageSet;
use godwit_wire::migration::{Mode, TargetFrame};

use super::missing::{Answer, Missing, pieces};
use super::{Action, Lane, Stage, TargetSession, planted};

impl TargetSession {
    /// A session of a process that was started beside a guest that runs here under `epoch` in post-copy: these pages are holes.
    /// Faults are served already.
    pub fn resumed(
        now: Duration,
        migration: MigrationId,
        instance: InstanceId,
        pages: PageCount,
        epoch: Epoch,
        holes: PageSet,
    ) -> Self {
        let mut session = Self::new(migration, instance, pages);
        let mut missing = Missing::new(holes, pages);
        missing.ran(now);
        session.missing = Some(missing);
        session.licence = Some(epoch);
        session.stage = Stage::Running(epoch);
        session.actions.push_back(Action::ProposeRunning(epoch));
        session.say_when_all_is_here();
        session
    }

    /// The punched pages are holes, checked; but for these, which stayed present.
    pub fn punched(&mut self, stayed: &[PageRun]) {
        if !matches!(self.stage, Stage::Punching) {
            return;
        }
        if let Some(missing) = &mut self.missing {
            missing.stayed(stayed);
        }
        self.stage = Stage::Receiving;
        // Without a link, `Final` and its device state went with it: they will be said again.
        if self.link.is_some() {
            self.say_what_is_held();
            self.ask_again();
            self.load_if_nothing_is_stuck();
        }
    }

    /// Somebody waits for this page.
    pub fn fault(&mut self, now: Duration, page: PageIndex) {
        let Some(missing) = &mut self.missing else { return };
        match missing.fault(now, page, self.pages) {
            // Before the source has closed over this connection it could not answer; then it is asked for anew.
            Some(Answer::Fetch(run)) if self.closing.closed().is_some() => self.ask_for(run),
            Some(Answer::Zeros(run)) => self.actions.push_back(Action::Zeros(run)),
            Some(Answer::Fetch(_) | Answer::Comes) | None => {}
        }
    }

    /// The writes of the oldest batch of this lane could not be done: its pages are to be sent again.
    pub fn not_written(&mut self, lane: Lane) {
        let lost = match lane {
            Lane::Bulk => self.writing.pop_front(),
            Lane::Urgent => self.placing.pop_front(),
        };
        let (Some(lost), Some(missing)) = (lost, &mut self.missing) else { return };
        missing.not_written(&lost.runs);
        lost.runs.iter().for_each(|run| self.stamps.set_run(*run, Round::NONE));
    }

    /// Nobody waits for a page any more.
    pub fn released(&mut self) {
        match self.stage {
            Stage::Releasing(epoch) => {
                self.actions.push_back(Action::ProposeAllPages(epoch));
                self.stage = Stage::Whole;
            }
            Stage::LettingGo => self.finish(Ok(())),
            _ => {}
        }
    }

    /// In post-copy, how many pages are not here yet.
    pub fn missing(&self) -> Option<PageCount> {
        self.missing.as_ref().map(Missing::len)
    }

    /// Whether the guest runs, pages are missing, and nobody is left who could send them.
    pub fn is_stranded(&self) -> bool {
        self.source_gone && self.missing.as_ref().is_some_and(|missing| !missing.is_empty())
    }

    /// What was measured of post-copy by `now`; `None` if there was none.
    pub fn post_copy_report(&self, now: Duration) -> Option<PostCopyReport> {
        self.missing.as_ref().map(|missing| missing.report(now))
    }

    // ---- how ------------------------------------------------------------------------------------------------

    pub(super) fn is_from_before_the_punch(&self, round: Round) -> bool {
        if planted::punch_is_forgotten() {
            return false;
        }
        match (&self.missing, self.closing.closed()) {
            (Some(_), Some(closed)) => round <= closed.round,
            // Punched, connected anew, and `Final` not repeated yet: nothing may be placed.
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// Whether a page goes where nothing is. What stayed present is written over.
    pub(super) fn is_placed(&self, page: PageIndex) -> bool {
        self.missing.as_ref().is_some_and(|missing| !missing.is_stuck(page))
    }

    /// Missing is what the source has not sent and what was lost on the way: all whose stamp is not the required
    /// one. Said again after a new connection, by a source that may not know that it was heard.
    pub(super) fn punch_what_differs(&mut self) {
        if let Some(missing) = &self.missing {
            // What is here is the guest's: it may have written there since. A restarted process knows no stamps.
            self.closing.adopt(&mut self.stamps, missing.absent());
            self.say_what_is_held();
            self.ask_again();
            if let Stage::Loaded(epoch) = self.stage {
                // Over an earlier connection the source may not have heard it.
                self.actions.push_back(Action::Send(TargetFrame::Complete { epoch }));
            }
            self.load_if_nothing_is_stuck();
            return;
        }
        let mut absent = PageSet::empty(self.pages);
        for page in self.closing.differing_pages(&self.stamps) {
            absent.insert(page);
        }
        for run in absent.runs() {
            self.stamps.set_run(run, Round::NONE);
        }
        self.actions.push_back(Action::Punch(absent.runs().collect()));
        self.missing = Some(Missing::new(absent, self.pages));
        self.stage = Stage::Punching;
    }

    /// What stayed present would be read as the zeros that it is: the guest is not loaded before it has come.
    pub(super) fn load_if_nothing_is_stuck(&mut self) {
        let post_copy = self.closing.closed().is_some_and(|closed| closed.mode == Mode::PostCopy);
        let may_run = self.missing.as_ref().is_some_and(Missing::may_run);
        if post_copy && may_run && matches!(self.stage, Stage::Receiving) {
            self.load();
        }
    }

    /// Over a new connection: what somebody waits for, and what must be here before the guest runs.
    pub(super) fn ask_again(&mut self) {
        let wanted = self.missing.as_mut().map(|missing| missing.ask_again(self.pages)).unwrap_or_default();
        wanted.into_iter().for_each(|run| self.ask_for(run));
    }

    fn ask_for(&mut self, run: PageRun) {
        let fetches = pieces(run).map(|run| TargetFrame::Fetch { first: run.first.0, pages: run.count.0 });
        self.actions.extend(fetches.map(Action::Send));
    }

    /// After a post-copy, the source lets go when it sees `AllPages`: so not while a page is missing.
    pub(super) fn say_when_all_is_here(&mut self) {
        let whole = self.missing.as_ref().is_some_and(Missing::is_empty);
        if let Stage::Running(epoch) = self.stage
            && whole
        {
            self.actions.push_back(Action::Release);
            self.stage = Stage::Releasing(epoch);
        }
    }
}
