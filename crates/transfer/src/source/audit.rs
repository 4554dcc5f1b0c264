//! The audit at the source: the guest runs at its target, and before this side lets go, what it sent is compared.
//!
//! ```text
//!   HandedOver ── Succeeded, link up ─▶ Auditing: digests ─▶ Audit ─▶ Audited ─▶ rest ─▶ … the last page ─▶ Over
//!                                          └── the link goes, time is up, the guest moves on or ends ─▶ Over
//! ```
//!
//! Always true: it begins only once the log says Succeeded, so however it ends, the migration has succeeded; one piece is
//! under way at a time, and a rest as long as it took follows it; whatever else happens to the guest ends it at once.

use std::time::Duration;

use godwit_domain::PageRun;
use godwit_domain::ownership::{Life, Ownership, Phase};
use godwit_domain::progress::AuditReport;
use godwit_wire::migration::{Mode, SourceFrame};

use super::{Action, OutOfTurn, SourceSession, Stage};
use crate::audit;

/// The longest rest after a piece: more would only keep the memory longer.
const REST_MAX: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
enum Piece {
    #[default]
    None,
    Digesting(PageRun),
    Told(PageRun),
}

#[derive(Debug, Default)]
pub(super) struct Audit {
    /// The target was told that there will be one.
    told: bool,
    since: Option<Duration>,
    next: u32,
    piece: Piece,
    asked_at: Duration,
    rest_until: Duration,
    report: AuditReport,
    /// Why it ended before its end.
    cut_short: Option<String>,
}

impl SourceSession {
    /// Whether it is to be audited. In force until `Final` is said.
    pub fn set_audit(&mut self, wanted: bool) {
        self.setup.audit = wanted;
    }

    /// The guest runs at the target, and what was sent is being compared.
    pub fn is_auditing(&self) -> bool {
        matches!(self.stage, Stage::Auditing)
    }

    /// What came of the audit so far, and why it ended early; `None` if the target was told of none.
    pub fn audit_report(&self) -> Option<(AuditReport, Option<&str>)> {
        self.audit.told.then_some((self.audit.report, self.audit.cut_short.as_deref()))
    }

    /// The pages of this piece have these digests.
    pub fn digested(&mut self, run: PageRun, digests: Vec<u64>) {
        if self.is_auditing() && matches!(self.audit.piece, Piece::Digesting(piece) if piece == run) {
            self.audit.piece = Piece::Told(run);
            self.actions.push_back(Action::Send(SourceFrame::Audit { first: run.first.0, digests }));
        }
    }

    /// What `Final` says about it.
    pub(super) fn will_audit(&mut self) -> bool {
        self.audit.told = self.setup.audit && self.setup.mode == Mode::StopAndCopy;
        self.audit.told
    }

    /// The log says Succeeded.
    pub(super) fn succeeded(&mut self) {
        if self.audit.told && self.is_up() {
            self.stage = Stage::Auditing;
            self.actions.push_back(Action::Audit);
        } else {
            self.audit.cut_short = Some("without a connection when the guest ran".into());
            self.actions.push_back(Action::Finish(Ok(())));
        }
    }

    pub(super) fn view_in_audit(&mut self, ownership: &Ownership) {
        let phase = ownership.phase_of(&self.setup.migration);
        if !matches!(phase, Some(Phase::Succeeded)) || !matches!(ownership.life, Life::Alive(_)) {
            self.end_audit("the guest moves on, or ends");
        }
    }

    /// It is over, and with it this side.
    pub(super) fn end_audit(&mut self, why: &str) {
        if self.is_auditing() {
            self.stage = Stage::Over;
            if !self.audit.report.complete {
                self.audit.cut_short = Some(why.to_owned());
            }
            self.actions.push_back(Action::Finish(Ok(())));
        }
    }

    /// The next piece, when it is time.
    pub(super) fn next_audit(&mut self, now: Duration) -> Option<Action> {
        if !self.is_auditing() {
            return None;
        }
        let since = *self.audit.since.get_or_insert(now);
        if now.saturating_sub(since) > audit::limit(self.setup.pages) {
            self.end_audit("time is up");
            return self.actions.pop_front();
        }
        if !matches!(self.audit.piece, Piece::None) || now < self.audit.rest_until {
            return None;
        }
        let piece = audit::piece_at(self.audit.next, self.setup.pages);
        (self.audit.piece, self.audit.asked_at) = (Piece::Digesting(piece), now);
        Some(Action::Digest(piece))
    }

    /// When the next piece may go, while auditing.
    pub(super) fn audit_wakes_at(&self, now: Duration) -> Option<Duration> {
        let longest = now + REST_MAX;
        self.is_auditing().then(|| match self.audit.piece {
            Piece::None => self.audit.rest_until.clamp(now, longest),
            Piece::Digesting(_) | Piece::Told(_) => longest,
        })
    }

    /// The target has compared a piece.
    pub(super) fn audited(
        &mut self,
        now: Duration,
        first: u32,
        (checked, mismatched): (u32, u32),
    ) -> Result<(), OutOfTurn> {
        let Piece::Told(piece) = self.audit.piece else {
            return Err(OutOfTurn { frame: "Audited", problem: "unasked" });
        };
        if piece.first.0 != first || checked > piece.count.0 || mismatched > checked {
            return Err(OutOfTurn {
                frame: "Audited",
                problem: "of another piece, or of more pages than it has",
            });
        }
        let Audit { next, report, rest_until, asked_at, .. } = &mut self.audit;
        *next = u32::try_from(piece.end()).unwrap_or(u32::MAX);
        report.checked_pages += u64::from(checked);
        report.mismatched_pages += u64::from(mismatched);
        report.written_pages += u64::from(piece.count.0 - checked);
        report.complete = *next >= self.setup.pages.0;
        *rest_until = now.saturating_add(now.saturating_sub(*asked_at).min(REST_MAX));
        self.audit.piece = Piece::None;
        if self.audit.report.complete {
            self.end_audit("");
        }
        Ok(())
    }
}
