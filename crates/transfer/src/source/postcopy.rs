//! Post-copy at the source: the guest stands still here and runs there; its pages go as they are wanted.
//!
//! ```text
//!   Copying ─▶ Stopping ─▶ Closing ── Required, Final ─▶ the target says what it lacks ─▶ one more round:
//!                                     fetched pages first, then hot ones, then the rest
//!   restarted beside a paused guest that was handed over ─▶ HandedOver, and the same from `Final` on
//! ```
//!
//! Always true:
//! - what the target lacks is the target's to say: after `Final` nothing travels until it has;
//! - a page that is fetched leaves the round, so it travels once; one that is on the way is not sent again;
//! - what is asked for can not grow without bound: a fetch beyond [`FETCHES_MAX`] is forgotten, and its pages come with the
//!   round.

use std::time::Duration;

use godwit_domain::precopy::AtDeadline;
use godwit_domain::{PageCount, PageRun};
use godwit_wire::batch::BATCH_PAGES_MAX;
use godwit_wire::migration::{FETCH_PAGES_MAX, Mode};

use super::{Action, OutOfTurn, Setup, SourceSession, Stage};

/// Fetches that wait to be read: many more than a guest has threads.
const FETCHES_MAX: usize = 1024;

/// How long after a fetch it is quiet again.
const QUIET: Duration = Duration::from_millis(1);
/// However many fetches there are, a batch of the round goes this often: the end must come, too.
const BULK_INTERVAL: Duration = Duration::from_millis(1);
/// For so long after the guest was stopped the rest waits until it runs at the target: what loads its state, and starts it, touches
/// few pages, and needs the way and the processors of both hosts. Where that is to be at once, nothing goes before it either, for as
/// long from the beginning.
const HEAD_START_MAX: Duration = Duration::from_millis(150);
/// Pages of a batch in post-copy.
const SMALL_BATCH_PAGES: u32 = 64;

impl SourceSession {
    /// A session of a process that was started beside a guest that stands still here and was handed over in post-copy. Its
    /// device state is `state`, as saved at the pause.
    pub fn serving(now: Duration, setup: Setup, state: Vec<u8>) -> Self {
        let setup = Setup { mode: Mode::PostCopy, ..setup };
        let mut session = Self::new(now, setup);
        session.actions.clear();
        session.finishing = Some(AtDeadline::PostCopy);
        session.stage = Stage::HandedOver { state };
        session.runs_there = true;
        session
    }

    /// The guest is stopped as soon as that can be, and whatever was not sent follows it.
    pub(super) fn switch_to_post_copy(&mut self, now: Duration) {
        self.stop_by(now, AtDeadline::PostCopy);
        if matches!(self.stage, Stage::Stopping { .. }) {
            self.setup.mode = Mode::PostCopy;
        }
    }

    /// Whether the guest runs at the target, or is about to, and its pages are sent from here.
    pub fn is_serving(&self) -> bool {
        self.setup.mode == Mode::PostCopy && matches!(self.stage, Stage::HandedOver { .. })
    }

    /// Whether a lost link is worth dialing again: a copy goes on over another one, and in post-copy the guest can not be without.
    pub fn wants_a_link(&self) -> bool {
        match self.stage {
            Stage::Copying => true,
            Stage::Closing { .. } => self.setup.mode == Mode::PostCopy && self.target_complete,
            Stage::HandedOver { .. } => self.setup.mode == Mode::PostCopy,
            Stage::Stopping { .. } | Stage::Ending { .. } | Stage::Auditing | Stage::Over => false,
        }
    }

    /// The target wants these pages now.
    pub(super) fn fetch(&mut self, now: Duration, first: u32, pages: u32) -> Result<(), OutOfTurn> {
        let refused = |problem| Err(OutOfTurn { frame: "Fetch", problem });
        if self.setup.mode != Mode::PostCopy || self.final_round.is_none() {
            return refused("though nothing is missing there");
        }
        let run = PageRun::new(first, pages);
        if pages == 0 || pages > FETCH_PAGES_MAX || run.end() > u64::from(self.setup.pages.0) {
            return refused("of no page, of too many, or of pages outside the guest");
        }
        self.fetched_at = Some(now);
        if self.fetches.len() < FETCHES_MAX {
            self.fetches.push_back(run);
        }
        Ok(())
    }

    /// Before this, no batch of the round goes: while somebody waits, the way and both hosts are kept for what he waits for.
    pub(super) fn bulk_may_go_at(&self) -> Duration {
        if self.setup.mode == Mode::PostCopy && !self.runs_there && !self.rounds.has_hot() {
            return self.stopped_at.saturating_add(HEAD_START_MAX);
        }
        self.fetched_at.map_or(Duration::ZERO, |fetched_at| {
            fetched_at.saturating_add(QUIET).min(self.bulk_sent_at.saturating_add(BULK_INTERVAL))
        })
    }

    /// Pages of a batch. Smaller ones in post-copy: a page that is fetched waits for less on its way.
    pub(super) fn batch_pages_max(&self) -> PageCount {
        match self.setup.mode {
            Mode::StopAndCopy => PageCount(BATCH_PAGES_MAX),
            Mode::PostCopy => PageCount(SMALL_BATCH_PAGES),
        }
    }

    /// The next pages that somebody waits for.
    pub(super) fn next_fetched(&mut self) -> Option<Action> {
        if !self.is_up() || !matches!(self.stage, Stage::Closing { .. } | Stage::HandedOver { .. }) {
            return None;
        }
        while let Some(run) = self.fetches.pop_front() {
            if let Some(plan) = self.rounds.fetch(run, self.fetched) {
                self.fetched += 1;
                return Some(Action::Fetched(plan));
            }
        }
        None
    }
}
