//! The source's link: what the target holds is told first, then pages flow and are acknowledged.
//!
//! ```text
//!   Down ── Welcome, nothing held ──────────────────▶ Up ── lost ─▶ Down
//!     └──── Welcome, held ─▶ Comparing ── Held … ────▶┘
//! ```
//!
//! Always true: pages flow only in a round that began after the target's stamps were compared; counts are those of the
//! present connection.

use std::time::Duration;

use godwit_wire::codec::Blob;
use godwit_wire::migration::Mode;

use super::{Action, OutOfTurn, SourceSession, Stage};

#[derive(Debug)]
pub(super) enum Link {
    /// There is none; what was in flight over the last one is unknown.
    Down,
    /// The target tells what it holds.
    Comparing,
    /// Pages may flow. Counts are those of this connection.
    Up { sent: u64, sent_pages: u64, acknowledged: u64, acknowledged_pages: u64 },
}

impl SourceSession {
    /// The connection is gone.
    pub fn link_lost(&mut self) {
        if matches!(self.stage, Stage::Copying) && !matches!(self.link, Link::Down) {
            self.losses += 1;
        }
        self.link = Link::Down;
        self.fetches.clear();
        self.actions.retain(|action| !matches!(action, Action::Send(_)));
        self.end_audit("the connection was lost");
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    pub(super) fn unacknowledged(&self) -> u32 {
        match self.link {
            Link::Up { sent_pages, acknowledged_pages, .. } => {
                u32::try_from(sent_pages.saturating_sub(acknowledged_pages)).unwrap_or(u32::MAX)
            }
            Link::Down | Link::Comparing => 0,
        }
    }

    pub(super) fn welcomed(&mut self, now: Duration, held: bool) -> Result<(), OutOfTurn> {
        if !matches!(self.link, Link::Down) {
            return Err(OutOfTurn { frame: "Welcome", problem: "twice on one connection" });
        }
        if held {
            self.link = Link::Comparing;
            return Ok(());
        }
        self.target_complete = false;
        self.rounds.everything_is_missing();
        self.link_is_up(now);
        Ok(())
    }

    pub(super) fn held(
        &mut self,
        now: Duration,
        segment: u32,
        stamps: &Blob,
        last: bool,
    ) -> Result<(), OutOfTurn> {
        let comparing = matches!(self.link, Link::Comparing);
        if planted::bitmap_is_trusted() && comparing {
            self.rounds.trust(segment, &stamps.0);
        }
        let answers_final = self.setup.mode == Mode::PostCopy && self.final_round.is_some();
        if !comparing && !answers_final {
            return Err(OutOfTurn { frame: "Held", problem: "unasked" });
        }
        if !self.rounds.target_holds(segment, &stamps.0) {
            return Err(OutOfTurn { frame: "Held", problem: "with stamps of no segment of this guest" });
        }
        match (last, comparing) {
            (true, true) => self.link_is_up(now),
            (true, false) => {
                self.begin_round(now);
                self.rounds.hot_first();
            }
            (false, _) => {}
        }
        Ok(())
    }

    /// Pages may flow: in a new round, so that nothing that is still under way can be mistaken for it.
    pub(super) fn link_is_up(&mut self, now: Duration) {
        self.link = Link::Up { sent: 0, sent_pages: 0, acknowledged: 0, acknowledged_pages: 0 };
        self.begin_round(now);
        if let Stage::Closing { state, .. }
        | Stage::HandedOver { state }
        | Stage::Ending { state: Some(state), .. } = &self.stage
        {
            let state = state.clone();
            self.send_final(&state);
        }
    }

    pub(super) fn acknowledged(&mut self, now: Duration, batches: u64, pages: u64) -> Result<(), OutOfTurn> {
        let Link::Up { sent, sent_pages, acknowledged, acknowledged_pages } = &mut self.link else {
            return Err(OutOfTurn { frame: "Ack", problem: "before anything was sent" });
        };
        if batches > *sent || pages > *sent_pages || batches < *acknowledged || pages < *acknowledged_pages {
            return Err(OutOfTurn { frame: "Ack", problem: "for more than was sent, or less than before" });
        }
        let newly = pages - *acknowledged_pages;
        if newly > 0 {
            self.heard_at = now;
        }
        (*acknowledged, *acknowledged_pages) = (batches, pages);
        self.rounds.acknowledged(now, newly);
        Ok(())
    }
}

/// A bug that tests switch on, to show that `verify` finds it. Always off in a real build.
mod planted {
    #[cfg(feature = "planted-bugs")]
    pub(super) fn bitmap_is_trusted() -> bool {
        crate::planted::is_on("resume-by-bitmap")
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(super) fn bitmap_is_trusted() -> bool {
        false
    }
}
