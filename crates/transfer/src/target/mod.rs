//! The target's side of one migration. Knows no clock, no socket and no memory; see [`crate::source`].
//!
//! ```text
//!   Receiving ──Final, all stamps equal, all written──▶ Loading ──▶ Loaded ──licence──▶ Starting ──▶ Running
//!       │                                              Running ──succeeded, to be audited──▶ Auditing (`audit`)
//!       └──────Final (post-copy)──▶ Punching ──▶ Loading …   while missing pages go on coming (`postcopy`)
//! ```
//!
//! Always true:
//! - a page is written only by a batch of the present session and connection whose round is above the page's
//!   stamp; anything older is ignored, in whatever order batches arrive;
//! - after a punch, batches of pre-copy rounds are dropped, and a page is placed only where it is missing;
//! - complete means: every stamp is the one that `Final` demands and every write is done. The mark alone proves
//!   nothing, since page streams are not ordered against the control stream;
//! - the guest is started only by a licence that names this instance, in the epoch that follows the one that
//!   `Final` sealed.

mod around;
mod audit;
mod batches;
mod closing;
mod missing;
mod planted;
mod postcopy;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use godwit_domain::ownership::{Ownership, Phase};
use godwit_domain::{Epoch, InstanceId, MigrationId, PageCount, PageRun};
use godwit_wire::batch::Batch;
use godwit_wire::codec::Blob;
use godwit_wire::migration::{Final, Mode, SessionId, SourceFrame, TargetFrame};

use crate::stamps::Stamps;
use closing::Closing;
use missing::Missing;

/// What the driver must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Say this on the control stream.
    Send(TargetFrame),
    /// Make holes of these pages, check that they are, serve the faults of all others that are not here, then call
    /// [`TargetSession::punched`].
    Punch(Vec<PageRun>),
    /// Fill these with zeros: somebody waits for the first, and none is the source's to give.
    Zeros(PageRun),
    /// Every page is here: nobody needs to wait for one any more. Then call [`TargetSession::released`].
    Release,
    /// Track what the guest will write, then call [`TargetSession::tracked`].
    Track,
    /// It has succeeded: say what was measured. An audit follows.
    Audit,
    /// Compare these pages with their digests at the source, then call [`TargetSession::compared`].
    Compare(PageRun, Vec<u64>),
    /// Load this device state, sealed at this epoch, then call [`TargetSession::loaded`]. Starts nothing.
    Load(Epoch, Vec<u8>),
    /// Seal the memory and run the guest under this epoch, then call [`TargetSession::running`].
    Run(Epoch),
    /// Propose that the guest runs here.
    ProposeRunning(Epoch),
    /// Propose that every page is here: the source may let go.
    ProposeAllPages(Epoch),
    /// It can not go on and has started nothing: bury the instance, then say so. Nothing follows.
    GiveUp(String),
    /// It is over. An instance that never ran is discarded.
    Finish(Result<(), String>),
}

/// A piece of a batch that must be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Which pages.
    pub run: PageRun,
    /// Where their bytes begin in the batch's payload, in pages; `None`: they are zeros.
    pub payload_page: Option<u32>,
    /// By userfaultfd, never over what is there, so that whoever waits is woken. Otherwise over whatever is there.
    pub placed: bool,
}

/// The way that a batch took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// With all others, and acknowledged.
    Bulk,
    /// Before all others: somebody waits for it. Not acknowledged.
    Urgent,
}

/// The other side said something that can not be. Closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame at the wrong time.
    #[error("source said {frame} {problem}")]
    OutOfTurn {
        /// Which.
        frame: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// Everything that was announced is here and it is not what `Final` demands.
    #[error(
        "stamps of {segments} segments differ from those that the source demands, though every batch is here"
    )]
    Stamps {
        /// How many segments of 8,192 pages.
        segments: usize,
    },
}

#[derive(Debug)]
enum Stage {
    Receiving,
    Punching,
    /// The device state sealed at this epoch is being loaded.
    Loading(Epoch),
    /// It is loaded. Nothing runs.
    Loaded(Epoch),
    /// Told to run, under this epoch.
    Starting,
    /// It runs; in post-copy some pages may still be missing.
    Running(Epoch),
    /// It runs, and nothing is missing any more: whoever still waited for a page is being let go.
    Releasing(Epoch),
    /// The same, and the log has said already that nothing is missing.
    LettingGo,
    /// The same, and done, which was proposed.
    Whole,
    /// It runs, which is agreed, and the source compares.
    Auditing,
    Over,
}

#[derive(Debug)]
struct Link {
    /// Which connection this is, so that what still comes out of an older one is told apart.
    connection: u64,
    received: u64,
    written: u64,
    written_pages: u64,
    acknowledged: u64,
}

/// A batch that is being written.
#[derive(Debug)]
struct Writing {
    connection: u64,
    pages: u64,
    runs: Vec<PageRun>,
}

/// The target's side of one migration.
#[derive(Debug)]
pub struct TargetSession {
    migration: MigrationId,
    instance: InstanceId,
    pages: PageCount,
    stage: Stage,
    session: Option<SessionId>,
    link: Option<Link>,
    /// Batches handed out for writing and not written yet, in order.
    writing: VecDeque<Writing>,
    /// The same of those that came before all others.
    placing: VecDeque<Writing>,
    stamps: Stamps,
    closing: Closing,
    /// In post-copy, the pages that are not here yet.
    missing: Option<Missing>,
    /// The source is gone for good, as the log says.
    source_gone: bool,
    licence: Option<Epoch>,
    audit: audit::Audit,
    actions: VecDeque<Action>,
}

impl TargetSession {
    /// A session that has nothing yet.
    pub fn new(migration: MigrationId, instance: InstanceId, pages: PageCount) -> Self {
        Self {
            migration,
            instance,
            pages,
            stage: Stage::Receiving,
            session: None,
            link: None,
            writing: VecDeque::new(),
            placing: VecDeque::new(),
            stamps: Stamps::none(pages),
            closing: Closing::default(),
            missing: None,
            source_gone: false,
            licence: None,
            audit: audit::Audit::default(),
            actions: VecDeque::new(),
        }
    }

    // ---- what happened -------------------------------------------------------------------------------------

    /// Whether a connection can be taken now. Not while pages are being punched: what came over it would be
    /// placed and then punched away; nor while what came before all others is being written, beside which it would.
    pub fn can_link(&self) -> bool {
        !matches!(self.stage, Stage::Punching) && self.placing.is_empty()
    }

    /// A connection whose preamble fits, with a number that no other had; see [`Self::can_link`]. Of another page
    /// session than the last: everything held is void.
    pub fn linked(&mut self, connection: u64, session: SessionId) {
        self.link = Some(Link { connection, received: 0, written: 0, written_pages: 0, acknowledged: 0 });
        self.closing = Closing::default();
        let held = self.session == Some(session) || planted::sessions_are_one();
        let known = self.session.replace(session).is_some();
        let held = held && known;
        if !held {
            self.stamps = Stamps::none(self.pages);
            // A pause was called off, and what was punched for it with it. Once it is licensed, what is missing still is.
            if self.licence.is_none() && !self.has_started() {
                self.missing = None;
            }
            if matches!(self.stage, Stage::Loading(_) | Stage::Loaded(_)) && self.missing.is_none() {
                self.stage = Stage::Receiving;
            }
        }
        self.actions.push_back(Action::Send(TargetFrame::Welcome { held }));
        if held {
            self.say_what_is_held();
        }
    }

    /// The connection is gone.
    pub fn link_lost(&mut self) {
        self.link = None;
        self.closing = Closing::default();
        self.actions.retain(|action| !matches!(action, Action::Send(_)));
        self.end_audit();
    }

    /// A batch has come over this connection. Returns what of it must be written; writes of a lane are done in the order
    /// in which they were returned, and each batch is followed by one [`Self::written`]. `None`: the batch is
    /// from a connection that is gone, and is dropped.
    pub fn batch(&mut self, connection: u64, lane: Lane, batch: &Batch) -> Option<Vec<Write>> {
        let link = self.link.as_mut().filter(|link| link.connection == connection)?;
        if lane == Lane::Bulk {
            link.received += 1;
        }
        let writes = self.writes_of(batch);
        let runs = writes.iter().map(|write| write.run).collect();
        let writing = Writing { connection, pages: batch.pages(), runs };
        match lane {
            Lane::Bulk => self.writing.push_back(writing),
            Lane::Urgent => self.placing.push_back(writing),
        }
        Some(writes)
    }

    /// The writes of the oldest batch of this lane that was not written yet are done.
    pub fn written(&mut self, now: Duration, lane: Lane) -> Result<(), Violation> {
        let written = match lane {
            Lane::Bulk => self.writing.pop_front(),
            Lane::Urgent => self.placing.pop_front(),
        };
        let Some(Writing { connection, pages, runs }) = written else { return Ok(()) };
        if let Some(link) =
            self.link.as_mut().filter(|link| link.connection == connection && lane == Lane::Bulk)
        {
            link.written += 1;
            link.written_pages += pages;
        }
        if let Some(missing) = &mut self.missing {
            missing.written(now, &runs);
        }
        self.load_if_nothing_is_stuck();
        self.say_when_all_is_here();
        self.check_complete()
    }

    /// The source said something.
    pub fn frame(&mut self, frame: SourceFrame) -> Result<(), Violation> {
        if let SourceFrame::Audit { first, digests } = frame {
            return self.piece(first, digests);
        }
        match self.closing.take(frame, &self.stamps)? {
            Some(closed) => self.closed(closed),
            None => Ok(()),
        }
    }

    /// The device state is loaded.
    pub fn loaded(&mut self) {
        let Stage::Loading(epoch) = self.stage else { return };
        self.stage = Stage::Loaded(epoch);
        if self.link.is_some() {
            self.actions.push_back(Action::Send(TargetFrame::Complete { epoch }));
        }
        self.run_if_licensed();
    }

    /// The guest runs.
    pub fn running(&mut self, now: Duration, epoch: Epoch) {
        if matches!(self.stage, Stage::Starting) {
            if let Some(missing) = &mut self.missing {
                missing.ran(now);
            }
            self.stage = Stage::Running(epoch);
            self.actions.push_back(Action::ProposeRunning(epoch));
            self.say_when_all_is_here();
        }
    }

    /// This is agreed about the guest.
    pub fn view(&mut self, ownership: &Ownership) {
        let ours = ownership.attempt.as_ref().filter(|attempt| attempt.migration == self.migration);
        self.source_gone = ours.is_some_and(|attempt| attempt.phase.source_is_gone());
        match ours.map(|attempt| &attempt.phase) {
            Some(Phase::Copying { target, .. } | Phase::HandedOver { target, .. })
                if target.instance != self.instance =>
            {
                // Said by one that was here before, and late: no source will come to this one.
                self.fail(format!("runner {} was accepted for it", target.instance));
            }
            Some(Phase::HandedOver { .. }) if ownership.licenses(self.instance) => {
                self.licence = Some(ownership.epoch);
                self.run_if_licensed();
            }
            Some(Phase::Succeeded) => self.succeeded(ownership),
            Some(
                Phase::Pending
                | Phase::Preparing { .. }
                | Phase::Copying { .. }
                | Phase::HandedOver { .. }
                | Phase::PostCopy { .. },
            ) => {}
            Some(Phase::Failed { reason } | Phase::Cancelled { reason }) => self.finish(Err(reason.clone())),
            None if self.is_auditing() => self.end_audit(),
            None => self.finish(Err("another migration of this guest has begun".into())),
        }
    }

    /// It can not go on, for this reason. Once the guest was told to run, nothing is given up.
    pub fn fail(&mut self, reason: String) {
        match self.stage {
            Stage::Receiving | Stage::Punching | Stage::Loading(_) | Stage::Loaded(_) => {
                self.actions.push_back(Action::Send(TargetFrame::Failed { message: reason.clone() }));
                self.actions.push_back(Action::GiveUp(reason));
                self.stage = Stage::Over;
            }
            Stage::Auditing => self.end_audit(),
            Stage::Starting
            | Stage::Running(_)
            | Stage::Releasing(_)
            | Stage::LettingGo
            | Stage::Whole
            | Stage::Over => {}
        }
    }

    // ---- what to do next -----------------------------------------------------------------------------------

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        // One acknowledgement for all that was written since the last: it names totals.
        let link = self.link.as_mut()?;
        if link.written > link.acknowledged {
            link.acknowledged = link.written;
            let ack = TargetFrame::Ack { batches: link.written, pages: link.written_pages };
            return Some(Action::Send(ack));
        }
        None
    }

    /// Whether pages or the device state are still to come, so that a lost connection matters.
    pub fn needs_the_source(&self) -> bool {
        matches!(self.stage, Stage::Receiving | Stage::Punching)
    }

    /// Whether the guest is this instance's to run, as far as this side knows.
    pub fn is_licensed(&self) -> bool {
        self.licence.is_some()
    }

    /// Whether the guest was told to run: from then on, nothing that happens here may discard it.
    pub fn has_started(&self) -> bool {
        matches!(
            self.stage,
            Stage::Starting
                | Stage::Running(_)
                | Stage::Releasing(_)
                | Stage::LettingGo
                | Stage::Whole
                | Stage::Auditing
        )
    }

    // ---- how ------------------------------------------------------------------------------------------------

    fn closed(&mut self, closed: Final) -> Result<(), Violation> {
        match (closed.mode, &self.stage) {
            (Mode::StopAndCopy, Stage::Loaded(epoch)) if *epoch == closed.epoch => {
                // Complete over an earlier connection, which the source may not have heard.
                self.actions.push_back(Action::Send(TargetFrame::Complete { epoch: closed.epoch }));
                Ok(())
            }
            (Mode::StopAndCopy, _) => {
                if matches!(self.stage, Stage::Loaded(_)) {
                    // A later seal: what was loaded is older than what this frame closes.
                    self.stage = Stage::Receiving;
                }
                self.check_complete()
            }
            (Mode::PostCopy, _) => {
                self.punch_what_differs();
                Ok(())
            }
        }
    }

    fn check_complete(&mut self) -> Result<(), Violation> {
        let Some(closed) = self.closing.closed().filter(|closed| closed.mode == Mode::StopAndCopy) else {
            return Ok(());
        };
        let nothing_is_written = self.writing.is_empty() && self.placing.is_empty();
        let Some(link) = self.link.as_ref().filter(|_| nothing_is_written) else { return Ok(()) };
        if !matches!(self.stage, Stage::Receiving) {
            return Ok(());
        }
        if link.received < closed.batches {
            return Ok(());
        }
        match self.closing.unequal_segments(&self.stamps) {
            0 => self.load(),
            segments => return Err(Violation::Stamps { segments }),
        }
        Ok(())
    }

    fn say_what_is_held(&mut self) {
        let segments = self.stamps.segments();
        for segment in 0..segments {
            let stamps = Blob(self.stamps.segment(segment).to_vec());
            let held = TargetFrame::Held { segment, stamps, last: segment + 1 == segments };
            self.actions.push_back(Action::Send(held));
        }
    }

    fn load(&mut self) {
        let Some(closed) = self.closing.closed() else { return };
        self.stage = Stage::Loading(closed.epoch);
        self.track_if_wanted(&closed);
        let state = self.closing.take_state();
        self.actions.push_back(Action::Load(closed.epoch, state));
    }

    fn run_if_licensed(&mut self) {
        let Some(licence) = self.licence else { return };
        // Without its source, a guest that lacks pages would only begin to wait.
        let alone = self.source_gone && self.missing.as_ref().is_some_and(|missing| !missing.is_empty());
        if !alone && matches!(self.stage, Stage::Loaded(epoch) if epoch.next() == licence) {
            self.stage = Stage::Starting;
            self.actions.push_back(Action::Run(licence));
        }
    }

    fn finish(&mut self, outcome: Result<(), String>) {
        if !matches!(self.stage, Stage::Over) {
            self.stage = Stage::Over;
            self.actions.push_back(Action::Finish(outcome));
        }
    }
}
