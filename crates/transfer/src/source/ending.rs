//! What was agreed about the guest, and the end: proposed here, decided by the log.
//!
//! Always true: a copy that ends before its pause is over at once; a guest that stands still is resumed by a view alone;
//! if the log puts the hand-over before a proposed end, the hand-over is carried out.

use godwit_domain::ownership::{Ownership, Phase, Side};

use super::{Action, SourceSession, Stage};

impl SourceSession {
    /// This is agreed about the guest. The only thing that ends a pause.
    pub fn view(&mut self, ownership: &Ownership) {
        if self.is_auditing() {
            return self.view_in_audit(ownership);
        }
        let ours = ownership.attempt.as_ref().filter(|attempt| attempt.migration == self.setup.migration);
        if ownership.epoch <= self.setup.epoch && ours.is_some_and(|attempt| !attempt.phase.is_over()) {
            return;
        }
        self.runs_there |= matches!(ours.map(|attempt| &attempt.phase), Some(Phase::PostCopy { .. }));
        match (ours.map(|attempt| &attempt.phase), std::mem::replace(&mut self.stage, Stage::Over)) {
            (_, Stage::Over) => {}
            (
                Some(Phase::HandedOver { .. } | Phase::PostCopy { .. }),
                Stage::Closing { state, .. } | Stage::Ending { state: Some(state), .. },
            ) => self.stage = Stage::HandedOver { state },
            (Some(Phase::Succeeded), _) => self.succeeded(),
            // A pause was called off that an earlier process had made: the guest runs on under the next epoch.
            (Some(Phase::Copying { .. }), Stage::Copying) => {
                self.setup.epoch = ownership.epoch;
                self.actions.push_back(Action::Resume(ownership.epoch));
                self.stage = Stage::Copying;
            }
            (
                Some(
                    Phase::Preparing { .. }
                    | Phase::Copying { .. }
                    | Phase::HandedOver { .. }
                    | Phase::PostCopy { .. },
                ),
                stage,
            ) => self.stage = stage,
            (Some(Phase::Failed { reason } | Phase::Cancelled { reason }), _) => {
                self.ended(ownership, reason.clone());
            }
            (Some(Phase::Pending), _) => self.ended(ownership, "the target declined".into()),
            (None, _) => self.ended(ownership, "another migration of this guest has begun".into()),
        }
    }

    /// It can not go on, for this reason. The guest stays as it is until the log has spoken.
    pub fn fail(&mut self, reason: String) {
        self.end(Side::Source, reason);
    }

    /// Nothing more is sent. The guest stays as it is until the log has spoken.
    pub(super) fn end(&mut self, side: Side, reason: String) {
        if self.is_auditing() {
            return self.end_audit(&reason);
        }
        let (stopped, state) = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Copying => (false, None),
            Stage::Stopping { .. } => (true, None),
            Stage::Closing { state, .. } => (true, Some(state)),
            // Nothing to propose: the target owns the guest, or the end was proposed already.
            stage @ (Stage::HandedOver { .. } | Stage::Ending { .. } | Stage::Auditing | Stage::Over) => {
                self.stage = stage;
                return;
            }
        };
        // A guest that was not told yet is not told at all.
        let told = !self.actions.iter().any(|action| matches!(action, Action::Pause(_)));
        self.actions.retain(|action| !matches!(action, Action::Pause(_)));
        self.stage = Stage::Ending { stopped: stopped && told, state };
        self.waits_for_quorum = false;
        self.unthrottle();
        self.actions.push_back(Action::ProposeEnd(side, reason));
    }

    fn ended(&mut self, ownership: &Ownership, reason: String) {
        self.stage = Stage::Over;
        self.unthrottle();
        if ownership.licenses(self.setup.instance) {
            self.actions.push_back(Action::Resume(ownership.epoch));
        }
        self.actions.push_back(Action::Finish(Err(reason)));
    }
}
