//! The source's side of one migration. Knows no clock, no socket and no memory: time and facts come in,
//! [`Action`]s come out, in the order in which they must be done.
//!
//! ```text
//!   Copying ──fits──▶ Stopping ──paused, scanned, saved──▶ Closing ──committed──▶ HandedOver ──▶ Over
//!      ├─deadline, allowed┤                                   │
//!      └──────────────────┴─── fails, time-out ──▶ Ending ◀───┘        (the log decides which of the two)
//!   HandedOver ──succeeded, to be audited──▶ Auditing ──▶ Over   (`audit`)
//! ```
//!
//! Always true:
//! - a page is read after the scan that reported it, and sent at most once in a round;
//! - a page that was written again before it was sent leaves the round (`rounds`);
//! - once sealed, the guest runs here only when the licence, in a later epoch, names this instance. No time-out
//!   and no lost connection resumes it;
//! - a copy that ends before its pause sends nothing more, whether or not the log can be reached, and its guest is not
//!   disturbed: it is not paused any more, and not throttled;
//! - it is not stopped unless a quorum of the control group has answered within the last second: without one nobody
//!   could say where it goes on. Until then rounds go on;
//! - a lost connection loses nothing: what the target holds is asked for, and all else is sent again in a
//!   *new* round, so that whatever still arrives late is older than what follows;
//! - `Final` is made of the present stamps and of the one device state that was saved at the pause.
//!
//! Driven by [`crate::drive::source`]; everything it does is tested against [`crate::target`] over a fake link.

mod audit;
mod closing;
mod deadline;
mod ending;
mod linked;
mod outlook;
mod postcopy;
mod rounds;
mod standing;

use std::collections::VecDeque;
use std::time::Duration;

use godwit_domain::ownership::Side;
use godwit_domain::precopy::{self, AtDeadline, Did, GaveUp, Limits, Standing, Throttle, Verdict};
use godwit_domain::{Epoch, InstanceId, MigrationId, PAGE_BYTES, PageCount, PageRun, Round};
use godwit_memory::PageSet;
use godwit_wire::migration::{Mode, SessionId, SourceFrame, TargetFrame};

use linked::Link;
use outlook::Outlook;
pub use rounds::Plan;
use rounds::Rounds;
pub use standing::Snapshot;

/// Pages that may be sent and not acknowledged: 7 MiB, which covers 10 Gbit/s × 5 ms and leaves the control stream 1 MiB
/// of the connection's window. More would only be pages that are likely written again before they arrive; less would leave
/// a long link idle.
pub const PAGES_IN_FLIGHT_MAX: u64 = 7 * 256;

/// How long ago a quorum may have answered when the guest is stopped: the pause is as long as the quorum is silent.
pub const QUORUM_AGE_MAX: Duration = Duration::from_secs(1);

/// What a session is told at its birth.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The migration.
    pub migration: MigrationId,
    /// This guest's runner here.
    pub instance: InstanceId,
    /// The epoch under which it runs.
    pub epoch: Epoch,
    /// The page session: a fresh random number.
    pub session: SessionId,
    /// Size of guest RAM.
    pub pages: PageCount,
    /// Limits at the beginning.
    pub limits: Limits,
    /// How long a commit takes: the hand-over is proposed when what is left takes as long.
    pub commit_estimate: Duration,
    /// How the missing pages come after a switchover: as it was begun. A deadline may change it to post-copy.
    pub mode: Mode,
    /// Switch over to post-copy as soon as the target is reached.
    pub at_once: bool,
    /// After a stop-and-copy compare what is at the target with what was sent.
    pub audit: bool,
}

/// What the driver can take now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// A batch of the round.
    pub batch: bool,
    /// Pages that somebody waits for.
    pub fetched: bool,
}

/// What the driver must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Say this on the control stream.
    Send(SourceFrame),
    /// Read these pages now and send them on any page stream.
    Batch(Plan),
    /// Read these pages now and send them before all others: somebody waits for them.
    Fetched(Plan),
    /// Scan, then call [`SourceSession::scanned`].
    Scan,
    /// Seal the epoch and pause the guest, then call [`SourceSession::paused`].
    Pause(Epoch),
    /// Save the device state, then call [`SourceSession::saved`].
    Save,
    /// Propose that the target shall own the guest.
    ProposeHandOver(Epoch, Mode),
    /// Propose the end of this migration: a time limit's, or a failure's.
    ProposeEnd(Side, String),
    /// Take so many percent of its time from the guest, then call [`SourceSession::throttled`]. 0: let it run freely.
    Throttle(u8),
    /// It has succeeded: say what was measured. An audit follows.
    Audit,
    /// Digest these pages, then call [`SourceSession::digested`].
    Digest(PageRun),
    /// Resume the guest (or relabel a running one) under this epoch.
    Resume(Epoch),
    /// It is over: let go of everything. The guest's memory may be freed only if it succeeded.
    Finish(Result<(), String>),
}

/// The other side said something that can not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("target said {frame} {problem}")]
pub struct OutOfTurn {
    frame: &'static str,
    problem: &'static str,
}

#[derive(Debug)]
enum Stage {
    /// The guest runs and rounds are sent.
    Copying,
    /// It was asked to stand still. What has come back so far? `sends`: the last round travels, while the state is saved.
    Stopping { paused: bool, scanned: bool, state: Option<Vec<u8>>, sends: bool },
    /// It stands still; the last round, the state and `Final` travel.
    Closing { state: Vec<u8>, proposed: bool },
    /// The target owns the guest. Pages may still be travelling.
    HandedOver { state: Vec<u8> },
    /// The end was proposed; the log decides. A guest that stands still goes on standing still. With its state, if the
    /// hand-over may have been proposed before: then the log may decide for that.
    Ending { stopped: bool, state: Option<Vec<u8>> },
    /// The guest runs at the target; what was sent is compared.
    Auditing,
    /// Nothing more will happen.
    Over,
}

/// The source's side of one migration.
#[derive(Debug)]
pub struct SourceSession {
    setup: Setup,
    stage: Stage,
    link: Link,
    rounds: Rounds,
    outlook: Outlook,
    /// Scans asked for and not yet answered; at most one, and one more at the pause.
    scans_due: u8,
    final_round: Option<Round>,
    target_complete: bool,
    /// When the newest question was put to the control group that a quorum has answered.
    quorum_asked: Option<Duration>,
    waits_for_quorum: bool,
    predicted_downtime: Duration,
    /// The guest runs at the target while pages are missing there.
    runs_there: bool,
    /// When the guest was told to stand still.
    stopped_at: Duration,
    /// When the deadline passed that has passed.
    overdue_since: Option<Duration>,
    /// The guest was stopped though it did not fit, by this decision.
    finishing: Option<AtDeadline>,
    /// When pages were acknowledged last.
    heard_at: Duration,
    throttle: Throttle,
    /// What the runner has confirmed, in percent.
    throttled: u8,
    /// How often the link was lost while the guest was copied.
    losses: u32,
    /// When the target last wanted pages before all others, and when a batch of the others went.
    fetched_at: Option<Duration>,
    bulk_sent_at: Duration,
    /// Pages that the target wants before all others.
    fetches: VecDeque<PageRun>,
    /// Batches of such pages that were planned.
    fetched: u64,
    audit: audit::Audit,
    actions: VecDeque<Action>,
}

impl SourceSession {
    /// A session over all of the guest's memory: nothing is known to be clean.
    pub fn new(now: Duration, setup: Setup) -> Self {
        Self {
            rounds: Rounds::new(now, setup.pages),
            outlook: Outlook::new(now, setup.pages),
            setup,
            stage: Stage::Copying,
            link: Link::Down,
            scans_due: 0,
            final_round: None,
            target_complete: false,
            quorum_asked: None,
            waits_for_quorum: false,
            predicted_downtime: Duration::ZERO,
            runs_there: false,
            stopped_at: Duration::ZERO,
            overdue_since: None,
            finishing: None,
            heard_at: now,
            throttle: Throttle::default(),
            throttled: 0,
            losses: 0,
            fetched_at: None,
            bulk_sent_at: now,
            fetches: VecDeque::new(),
            fetched: 0,
            audit: audit::Audit::default(),
            // A process that is gone may have left it throttled.
            actions: VecDeque::from([Action::Throttle(0)]),
        }
    }

    // ---- what happened -------------------------------------------------------------------------------------

    /// The target said something.
    pub fn frame(&mut self, now: Duration, frame: TargetFrame) -> Result<(), OutOfTurn> {
        match frame {
            TargetFrame::Welcome { held } => self.welcomed(now, held),
            TargetFrame::Held { segment, stamps, last } => self.held(now, segment, &stamps, last),
            TargetFrame::Ack { batches, pages } => self.acknowledged(now, batches, pages),
            TargetFrame::Complete { epoch } => {
                if self.final_round.is_none() || epoch != self.setup.epoch {
                    return Err(OutOfTurn { frame: "Complete", problem: "for an epoch that was not sealed" });
                }
                self.target_complete = true;
                Ok(())
            }
            TargetFrame::Fetch { first, pages } => self.fetch(now, first, pages),
            TargetFrame::Audited { first, checked, mismatched } => {
                self.audited(now, first, (checked, mismatched))
            }
            TargetFrame::NotAudited { message } => {
                self.end_audit(&message);
                Ok(())
            }
            TargetFrame::Failed { message } | TargetFrame::Refused { message, .. } => {
                self.fail(message);
                Ok(())
            }
        }
    }

    /// The scan that was asked for found these runs.
    pub fn scanned(&mut self, now: Duration, written: &PageSet) {
        self.scans_due = self.scans_due.saturating_sub(1);
        let round_was_over = self.rounds.is_over();
        let scan = self.rounds.written(now, written);
        self.look_ahead(now, &scan, round_was_over);
        match &mut self.stage {
            Stage::Copying => {
                if round_was_over && self.is_up() {
                    self.judge(now);
                }
            }
            // One that was under way when it was stopped does not know what was written since.
            Stage::Stopping { paused, scanned, .. } => *scanned = *paused && self.scans_due == 0,
            Stage::Closing { .. }
            | Stage::HandedOver { .. }
            | Stage::Ending { .. }
            | Stage::Auditing
            | Stage::Over => {}
        }
        self.close_if_ready(now);
    }

    /// The guest stands still, sealed.
    pub fn paused(&mut self) {
        if let Stage::Stopping { paused, .. } = &mut self.stage {
            *paused = true;
            self.ask_for_scan();
            self.actions.push_back(Action::Save);
            // Wherever it runs next, it runs freely.
            self.unthrottle();
        }
    }

    /// The device state was saved.
    pub fn saved(&mut self, now: Duration, device_state: Vec<u8>) {
        if let Stage::Stopping { state, .. } = &mut self.stage {
            *state = Some(device_state);
        }
        self.close_if_ready(now);
    }

    /// So many pages went, and so many of them as zeros.
    pub fn went(&mut self, pages: u64, zeros: u64) {
        self.rounds.went(pages, zeros);
    }

    /// A quorum of the control group has answered a question that was asked then.
    pub fn quorum_answered(&mut self, asked: Duration) {
        self.quorum_asked = self.quorum_asked.max(Some(asked));
    }

    // ---- what to do next -----------------------------------------------------------------------------------

    /// The next thing to do. `room`: what the driver can take now.
    pub fn poll(&mut self, now: Duration, room: Room) -> Option<Action> {
        self.check_time(now);
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if let Some(action) = self.next_audit(now) {
            return Some(action);
        }
        if room.fetched
            && let Some(fetched) = self.next_fetched()
        {
            return Some(fetched);
        }
        if let Some(plan) = self.next_batch(now, room.batch) {
            return Some(Action::Batch(plan));
        }
        if matches!(self.stage, Stage::Copying)
            && self.is_up()
            && self.scans_due == 0
            && self.rounds.scan_is_due(now, self.waits_for_quorum)
        {
            self.ask_for_scan();
        }
        self.propose_if_near(now);
        self.actions.pop_front()
    }

    /// When to poll again though nothing happened.
    pub fn wake_at(&self, now: Duration) -> Duration {
        let scan_at = self.rounds.next_scan_at(self.waits_for_quorum);
        let bulk_at = self.bulk_may_go_at();
        let wake_at = if bulk_at > now { scan_at.min(bulk_at) } else { scan_at };
        self.audit_wakes_at(now).unwrap_or_else(|| wake_at.max(now).min(now + Duration::from_millis(100)))
    }

    /// Whether the target owns the guest by now, as far as this side knows.
    pub fn is_handed_over(&self) -> bool {
        matches!(self.stage, Stage::HandedOver { .. })
    }

    /// Whether the target has said that everything is there.
    pub fn is_target_complete(&self) -> bool {
        self.target_complete
    }

    /// Whether every page stream may be finished: the last round was read to its end.
    pub fn is_all_sent(&self) -> bool {
        self.final_round.is_some() && self.rounds.is_over()
    }

    // ---- how ------------------------------------------------------------------------------------------------

    fn begin_round(&mut self, now: Duration) {
        match self.rounds.begin(now) {
            Some((round, pages)) => {
                self.actions.push_back(Action::Send(SourceFrame::Round { round, pages: pages.0 }));
            }
            // In post-copy another session goes on, with rounds of its own.
            None if matches!(self.stage, Stage::HandedOver { .. }) => {
                self.stage = Stage::Over;
                self.actions.push_back(Action::Finish(Err(GaveUp::RoundsExhausted.to_string())));
            }
            None => self.give_up(GaveUp::RoundsExhausted),
        }
    }

    fn next_batch(&mut self, now: Duration, room: bool) -> Option<Plan> {
        let open = matches!(
            self.stage,
            Stage::Copying
                | Stage::Stopping { sends: true, .. }
                | Stage::Closing { .. }
                | Stage::HandedOver { .. }
        );
        if !room || !open || now < self.bulk_may_go_at() {
            return None;
        }
        let most = self.batch_pages_max();
        let Link::Up { sent, sent_pages, acknowledged, acknowledged_pages } = &mut self.link else {
            return None;
        };
        if *sent_pages - *acknowledged_pages >= PAGES_IN_FLIGHT_MAX {
            return None;
        }
        if *sent == *acknowledged {
            self.rounds.link_was_idle(now);
        }
        let plan = self.rounds.plan(*sent, most)?;
        self.bulk_sent_at = now;
        *sent += 1;
        *sent_pages += u64::from(plan.pages().0);
        Some(plan)
    }

    /// Whether the guest stands still, and the last scan is due.
    pub fn is_stopping(&self) -> bool {
        matches!(self.stage, Stage::Stopping { .. })
    }

    fn ask_for_scan(&mut self) {
        self.scans_due += 1;
        self.actions.push_back(Action::Scan);
    }

    fn judge(&mut self, now: Duration) {
        let standing = self.standing(now);
        self.rounds.ended_with(standing.left_bytes);
        let verdict = precopy::judge_round(&self.setup.limits, &standing);
        self.waits_for_quorum = verdict == Verdict::SwitchOver && !self.quorum_is_there(now);
        match verdict {
            _ if self.waits_for_quorum => {
                self.note(Did::WaitForQuorum, &standing);
                self.begin_round(now);
            }
            Verdict::AnotherRound => {
                self.adjust_throttle(&standing);
                self.begin_round(now);
            }
            Verdict::GiveUp(why) => self.give_up(why),
            Verdict::SwitchOver => self.stop(now, &standing),
        }
    }

    /// The guest shall stand still from here on.
    fn stop(&mut self, now: Duration, standing: &Standing) {
        self.predicted_downtime = standing.predicted_downtime();
        self.stopped_at = now;
        self.note_stop(standing);
        self.waits_for_quorum = false;
        self.stage = Stage::Stopping { paused: false, scanned: false, state: None, sends: false };
        self.actions.push_back(Action::Pause(self.setup.epoch));
    }

    fn quorum_is_there(&self, now: Duration) -> bool {
        self.quorum_asked.is_some_and(|asked| now.saturating_sub(asked) <= QUORUM_AGE_MAX)
    }
}

/// Bytes of so many runs' pages.
fn bytes_of(runs: &[PageRun]) -> u64 {
    runs.iter().map(|run| u64::from(run.count.0) * PAGE_BYTES).sum()
}
