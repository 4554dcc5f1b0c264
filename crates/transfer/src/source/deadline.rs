//! A copy that does not converge: the guest is throttled, and at the deadline paused to finish, or let alone.
//!
//! ```text
//!   Copying ── deadline, post-copy allowed (or wanted before) ─▶ link up, quorum there ─▶ Stopping
//!              ── deadline, pause allowed ─▶ fits into one more, link up, quorum there ─▶ Stopping
//!              │                └─ not yet ─▶ rounds go on; the one more deadline passes ─▶ Ending
//!              └─ nothing allowed, or no progress ─▶ Ending (Cancelled)
//!   Stopping, Closing ── paused to finish: one more deadline, or the permission goes ─▶ Ending (Cancelled)
//! ```
//!
//! Only the log resumes a guest that stands still. In post-copy no time limit applies.
//!
//! Always true: what is decided here is looked at anew each time, with the limits that hold then, until it is done.

use std::time::Duration;

use godwit_domain::ownership::Side;
use godwit_domain::precopy::{self, Allowed, AtDeadline, Did, GaveUp, Limits, Standing};

use super::{Action, SourceSession, Stage};

/// How long a guest may stand still, beyond what was predicted, before its migration ends: as long as a lost link is
/// waited for by default.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// So many times a link may be lost in pre-copy before post-copy is put off.
const LOSSES_MAX: u32 = 2;

impl SourceSession {
    /// Other limits hold from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.setup.limits = limits;
        self.outlook.limits_changed();
        if !limits.allowed.throttle {
            if self.throttle.percent() > 0 {
                self.note(Did::LetFree, &self.standing(self.rounds.last_scan()));
            }
            self.unthrottle();
        }
    }

    /// The runner takes so many percent of its time from the guest.
    pub fn throttled(&mut self, percent: u8) {
        if percent != self.throttled {
            self.outlook.guest_changed(self.rounds.last_scan());
        }
        self.throttled = percent;
    }

    /// Have time limits passed?
    pub(super) fn check_time(&mut self, now: Duration) {
        match self.stage {
            Stage::Copying => self.check_copy(now),
            Stage::Stopping { .. } | Stage::Closing { .. } => self.check_pause(now),
            Stage::HandedOver { .. } | Stage::Ending { .. } | Stage::Auditing | Stage::Over => {}
        }
    }

    fn check_copy(&mut self, now: Duration) {
        if self.is_to_go_before_the_deadline() {
            return self.switch_to_post_copy(now);
        }
        let limits = self.setup.limits;
        // One that is ready, and waits for a quorum, makes no progress by no fault of its guest's.
        let still = if self.waits_for_quorum { Duration::ZERO } else { self.rounds.since_progress(now) };
        let elapsed = self.rounds.elapsed(now);
        match precopy::judge_time(&limits, elapsed, still) {
            Some(GaveUp::CompletionTimeout(limit)) => self.decide(now, limit),
            Some(why) => self.give_up(why),
            // It was raised, or taken away.
            None if self.overdue_since.take().is_some() => self.waits_for_quorum = false,
            None => {}
        }
    }

    /// What may be done now. Over a link that was lost again and again a guest does not go post-copy by itself: it would wait
    /// for pages whenever that happens.
    pub(super) fn allowed(&self) -> Allowed {
        let allowed = self.setup.limits.allowed;
        Allowed { post_copy: allowed.post_copy && self.losses < LOSSES_MAX, ..allowed }
    }

    /// Asked for at once, or `postCopyTrigger: early` and rounds are in vain.
    fn is_to_go_before_the_deadline(&self) -> bool {
        let Allowed { post_copy, post_copy_early, .. } = self.setup.limits.allowed;
        let in_vain = || post_copy_early && self.convergence_is_impossible();
        post_copy
            && (self.setup.at_once
                || in_vain() && precopy::at_deadline(self.allowed()) == AtDeadline::PostCopy)
    }

    /// The deadline `limit` has passed.
    fn decide(&mut self, now: Duration, limit: Duration) {
        let decision = precopy::at_deadline(self.allowed());
        self.overdue_since.get_or_insert(now);
        match decision {
            AtDeadline::Cancel => self.give_up(GaveUp::CompletionTimeout(limit)),
            AtDeadline::PostCopy => self.switch_to_post_copy(now),
            AtDeadline::PauseAndFinish => {
                if let Err(why) = precopy::pause_fits(&self.standing(now), limit, self.overdue(now)) {
                    return self.give_up(why);
                }
                self.stop_by(now, decision);
            }
        }
    }

    /// Does not fit into the downtime, and is stopped all the same, as soon as that can be.
    pub(super) fn stop_by(&mut self, now: Duration, decision: AtDeadline) {
        if !self.is_up() {
            return;
        }
        self.waits_for_quorum = !self.quorum_is_there(now);
        if !self.waits_for_quorum {
            self.finishing = Some(decision);
            self.stop(now, &self.standing(now));
        }
    }

    /// Now that the guest stands still it is known what it wrote last: is a pause to finish still worth it?
    pub(super) fn finishes_in_time(&self, now: Duration) -> Result<(), GaveUp> {
        match (self.finishing, self.setup.limits.completion_timeout) {
            (Some(AtDeadline::PauseAndFinish), Some(limit)) => {
                precopy::pause_fits(&self.standing(now), limit, self.overdue(now))
            }
            (Some(AtDeadline::PauseAndFinish | AtDeadline::PostCopy | AtDeadline::Cancel) | None, _) => {
                Ok(())
            }
        }
    }

    fn overdue(&self, now: Duration) -> Duration {
        now.saturating_sub(self.overdue_since.unwrap_or(now))
    }

    /// A guest that stands still does not wait for ever: one that was paused to finish has one more deadline, and no
    /// guest waits for a target that does nothing.
    fn check_pause(&mut self, now: Duration) {
        let (waited, patience) = if self.finishing == Some(AtDeadline::PauseAndFinish) {
            if let Some(why) = precopy::judge_pause(&self.setup.limits, self.overdue(now)) {
                return self.give_up(why);
            }
            (now.saturating_sub(self.stopped_at.max(self.heard_at)), PAUSE_MAX)
        } else {
            (now.saturating_sub(self.stopped_at), PAUSE_MAX.saturating_add(self.predicted_downtime))
        };
        if waited > patience {
            let waited = waited.as_secs();
            self.fail(format!("the guest stands still, and for {waited} s the target was not ready"));
        }
    }

    /// A time limit ends it: Cancelled, not Failed.
    pub(super) fn give_up(&mut self, why: GaveUp) {
        self.note(Did::GiveUp, &self.standing(self.rounds.last_scan()));
        self.end(Side::Deadline, why.to_string());
    }

    /// A round has ended in another one.
    pub(super) fn adjust_throttle(&mut self, standing: &Standing) {
        let before = self.throttle.percent();
        self.throttle = self.throttle.after_round(&self.setup.limits, standing);
        if self.throttle.percent() == before {
            self.note(Did::GoOn, standing);
        } else {
            self.note(Did::Throttle(self.throttle.percent()), standing);
            self.actions.push_back(Action::Throttle(self.throttle.percent()));
        }
    }

    /// Nothing is taken from the guest's time any more.
    pub(super) fn unthrottle(&mut self) {
        if std::mem::take(&mut self.throttle).percent() > 0 {
            self.actions.push_back(Action::Throttle(0));
        }
    }
}
