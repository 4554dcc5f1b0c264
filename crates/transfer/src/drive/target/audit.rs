//! The audit as the target's driver does it: it tells at once what was measured, names what differs, and in the end tells
//! what was found.

use godwit_domain::PageCount;
use godwit_domain::progress::{AuditReport, Measured};

use super::Driver;
use crate::audit::{self, Compared};
use crate::drive::{Tells, micros};

/// Pages that are named of a piece that is not alike.
const NAMED_MAX: usize = 8;

impl Driver {
    pub(super) fn tracked(&mut self, outcome: Result<(), String>) {
        if let Err(reason) = &outcome {
            tracing::warn!(reason, "the migration can not be audited: what the guest writes is not tracked");
        }
        self.session.tracked(outcome);
    }

    /// It has succeeded. Nobody waits for the audit to learn how it went.
    pub(super) async fn audit_begins(&mut self) {
        self.audit_until = Some(self.clock.now() + audit::target_limit(PageCount(self.guest_pages)));
        let (resume_us, post_copy) = (Some(micros(self.resume)), self.post_copy);
        let measured = Measured { resume_us, post_copy, ..Measured::default() };
        let _ = self.tells.send(Tells::Measured(Box::new(measured))).await;
    }

    pub(super) fn compared(&mut self, outcome: Result<Compared, String>) {
        match &outcome {
            Ok(compared) if !compared.mismatched.is_empty() => {
                let first: Vec<u32> = compared.mismatched.iter().take(NAMED_MAX).map(|page| page.0).collect();
                let mismatched_pages = compared.mismatched.len();
                tracing::error!(
                    mismatched_pages,
                    ?first,
                    "audit: pages that the guest has not written are not those of the source"
                );
            }
            Ok(_) => {}
            Err(reason) => tracing::warn!(reason, "audit: a piece could not be compared"),
        }
        self.session.compared(outcome);
    }

    pub(super) fn what_the_audit_found(&self) -> Option<AuditReport> {
        let report = self.session.audit_report()?;
        let AuditReport { checked_pages, mismatched_pages, written_pages, complete } = report;
        tracing::info!(checked_pages, mismatched_pages, written_pages, complete, "audited");
        Some(report)
    }
}
