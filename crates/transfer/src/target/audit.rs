//! The audit at the target: what the source had when its guest stopped is compared with what is here.
//!
//! ```text
//!   Final, with an audit ─▶ Track, Load ─▶ Loaded ─▶ Running ── Succeeded, link up ─▶ Auditing ─▶ Over
//!                                                   Audit ─▶ Compare ─▶ Audited       └─ the link goes, time is up,
//!                                                                                        the guest moves on or ends
//! ```
//!
//! Always true: what the guest writes is tracked from before its first instruction; one piece is compared at a time, each
//! page once; the source ends it, by closing the link; however it ends, the migration has succeeded.

use godwit_domain::PageRun;
use godwit_domain::ownership::Ownership;
use godwit_domain::progress::AuditReport;
use godwit_wire::migration::{Final, Mode, TargetFrame};

use super::{Action, Stage, TargetSession, Violation};
use crate::audit::{self, Compared};

#[derive(Debug, Default)]
pub(super) struct Audit {
    wanted: bool,
    /// `Err`: why it is not known what the guest writes.
    tracked: Option<Result<(), String>>,
    next: u32,
    comparing: Option<PageRun>,
    report: AuditReport,
}

impl TargetSession {
    /// What the guest will write is tracked, or is not, for this reason.
    pub fn tracked(&mut self, outcome: Result<(), String>) {
        self.audit.tracked = Some(outcome);
    }

    /// A piece was compared; `Err`: could not be, for this reason.
    pub fn compared(&mut self, outcome: Result<Compared, String>) {
        if self.audit.comparing.take().is_none() || self.link.is_none() {
            return;
        }
        let answer = match outcome {
            Ok(compared) => {
                let (run, checked) = (compared.run, compared.checked());
                let mismatched = u32::try_from(compared.mismatched.len()).unwrap_or(u32::MAX);
                let report = &mut self.audit.report;
                report.checked_pages += u64::from(checked);
                report.mismatched_pages += u64::from(mismatched);
                report.written_pages += u64::from(compared.written);
                self.audit.next = u32::try_from(run.end()).unwrap_or(u32::MAX);
                report.complete = self.audit.next >= self.pages.0;
                TargetFrame::Audited { first: run.first.0, checked, mismatched }
            }
            Err(message) => TargetFrame::NotAudited { message },
        };
        self.actions.push_back(Action::Send(answer));
    }

    /// The guest runs here, and the source may be comparing.
    pub fn is_auditing(&self) -> bool {
        matches!(self.stage, Stage::Auditing)
    }

    /// The audit is over, and with it this side.
    pub fn end_audit(&mut self) {
        if self.is_auditing() {
            self.finish(Ok(()));
        }
    }

    /// What came of the audit; `None` if none was asked for.
    pub fn audit_report(&self) -> Option<AuditReport> {
        self.audit.wanted.then_some(self.audit.report)
    }

    // ---- how ------------------------------------------------------------------------------------------------

    /// Unless it was done before: beside loading the device state, so that arming takes no time of its own.
    pub(super) fn track_if_wanted(&mut self, closed: &Final) {
        self.audit.wanted = closed.audit && closed.mode == Mode::StopAndCopy;
        if self.audit.wanted && !matches!(self.audit.tracked, Some(Ok(()))) {
            self.actions.push_back(Action::Track);
        }
    }

    /// The log says Succeeded.
    pub(super) fn succeeded(&mut self, ownership: &Ownership) {
        let is_ours = ownership.licenses(self.instance);
        match self.stage {
            Stage::Running(_) if self.audit.wanted && self.link.is_some() && is_ours => {
                self.stage = Stage::Auditing;
                self.actions.push_back(Action::Audit);
            }
            Stage::Auditing if is_ours => {}
            // Agreed before this process has seen that all pages are here: they are. Nobody may wait for one any more.
            Stage::Starting | Stage::Running(_) | Stage::Releasing(_) if self.missing().is_some() => {
                self.stage = Stage::LettingGo;
                self.actions.push_back(Action::Release);
            }
            Stage::LettingGo => {}
            _ => self.finish(Ok(())),
        }
    }

    /// Digests of the next piece have come.
    pub(super) fn piece(&mut self, first: u32, digests: Vec<u64>) -> Result<(), Violation> {
        let out_of_turn = |problem| Err(Violation::OutOfTurn { frame: "Audit", problem });
        if !self.audit.wanted || !matches!(self.stage, Stage::Running(_) | Stage::Auditing) {
            return out_of_turn("unasked, or before the guest runs here");
        }
        let piece = audit::piece_at(self.audit.next, self.pages);
        if self.audit.comparing.is_some() || first != piece.first.0 || digests.len() != piece.count.0 as usize
        {
            return out_of_turn("for another piece than the next");
        }
        if digests.is_empty() {
            return out_of_turn("behind the last page");
        }
        match &self.audit.tracked {
            Some(Ok(())) => {
                self.audit.comparing = Some(piece);
                self.actions.push_back(Action::Compare(piece, digests));
            }
            untracked => {
                let why = untracked.clone().and_then(Result::err);
                let message = why.unwrap_or_else(|| "what the guest writes is not tracked".into());
                self.actions.push_back(Action::Send(TargetFrame::NotAudited { message }));
            }
        }
        Ok(())
    }
}
