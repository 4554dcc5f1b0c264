//! The audit as the source's driver does it: it tells at once what was measured, and in the end what was found.

use godwit_domain::progress::{AuditReport, Measured};

use super::{Dial, Driver};
use crate::drive::Tells;

impl<D: Dial> Driver<D> {
    /// It has succeeded. Nobody waits for the audit to learn how it went.
    pub(super) async fn audit_begins(&mut self) {
        let report = self.measured();
        self.audited_from = Some(report.clone());
        tracing::debug!("the guest runs at the target; what was sent is being compared");
        let measured = Measured { source: Some(report), ..Measured::default() };
        let _ = self.tells.send(Tells::Measured(Box::new(measured))).await;
    }

    pub(super) fn say_what_the_audit_found(&self) {
        let Some((report, cut_short)) = self.session.audit_report() else { return };
        let AuditReport { checked_pages, mismatched_pages, written_pages, complete } = report;
        if mismatched_pages > 0 {
            tracing::error!(
                checked_pages,
                mismatched_pages,
                "audit: the guest runs at the target with pages that are not those that were here"
            );
        } else {
            tracing::info!(checked_pages, written_pages, complete, cut_short, "audited: no page differs");
        }
    }
}
