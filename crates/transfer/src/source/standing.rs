//! How a source stands: for the judgement between rounds, for people, for the record.

use std::time::Duration;

use godwit_domain::precopy::{AtDeadline, Prediction, Standing, at_deadline};
use godwit_domain::progress::Course;
use godwit_domain::{PageCount, Round};

use godwit_wire::migration::Mode;

use super::{SourceSession, Stage};

/// What a switchover is thought to take beside its pages, until one was measured.
const FIXED_DOWNTIME: Duration = Duration::from_millis(5);

/// How a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The round.
    pub round: Round,
    /// Pages left in it: to be sent, or sent and not acknowledged.
    pub left: PageCount,
    /// Pages written again, for the next round.
    pub dirty: PageCount,
    /// Pages that rounds left out because they had been written again.
    pub skipped_pages: u64,
    /// Pages that the present round began with.
    pub last_round_pages: PageCount,
    /// Page bytes per second that arrive.
    pub send_rate: u64,
    /// Bytes per second that the guest writes.
    pub dirty_rate: u64,
    /// The guest stands still, or is about to.
    pub switching_over: bool,
    /// It would be stopped if a quorum of the control group answered.
    pub waits_for_quorum: bool,
    /// How long it would stand still if stopped now; from the switchover on, what was predicted there.
    pub predicted_downtime: Duration,
    /// Percent of its time that the runner takes from the guest.
    pub throttle_percent: u8,
    /// What is done to bring it to an end.
    pub course: Course,
    /// What is to be expected of it, while rounds decide.
    pub prediction: Option<Prediction>,
}

impl SourceSession {
    /// How it stands, for people and for the record.
    pub fn snapshot(&self, now: Duration) -> Snapshot {
        Snapshot {
            round: self.rounds.round(),
            left: PageCount(self.rounds.queued().0.saturating_add(self.unacknowledged())),
            dirty: self.rounds.next_len(),
            skipped_pages: self.rounds.skipped_pages(),
            last_round_pages: self.rounds.begun_with(),
            send_rate: self.rounds.send_rate(now),
            dirty_rate: self.rounds.dirty_rate(),
            switching_over: !matches!(self.stage, Stage::Copying | Stage::Ending { stopped: false, .. })
                && !self.is_serving(),
            waits_for_quorum: self.waits_for_quorum,
            predicted_downtime: match self.stage {
                Stage::Copying => self.standing(now).predicted_downtime(),
                _ => self.predicted_downtime,
            },
            throttle_percent: self.throttled,
            course: self.course(),
            prediction: self.prediction(),
        }
    }

    fn course(&self) -> Course {
        let decided = match self.stage {
            Stage::Copying if self.setup.mode == Mode::PostCopy => Some(AtDeadline::PostCopy),
            Stage::Copying => self.overdue_since.map(|_| at_deadline(self.allowed())),
            Stage::Stopping { .. } | Stage::Closing { .. } | Stage::HandedOver { .. } | Stage::Auditing => {
                self.finishing
            }
            Stage::Ending { .. } | Stage::Over => return Course::Ends,
        };
        match (decided, &self.stage) {
            (Some(AtDeadline::PostCopy), _) => Course::PostCopy,
            (Some(AtDeadline::PauseAndFinish), _) => Course::PausesToFinish,
            (Some(AtDeadline::Cancel), _) => Course::Ends,
            (None, Stage::Copying) if self.throttled > 0 => Course::Throttled,
            (None, Stage::Copying) => Course::Rounds,
            (None, _) => Course::SwitchesOver,
        }
    }

    pub(super) fn standing(&self, now: Duration) -> Standing {
        Standing {
            round: self.rounds.round(),
            left_bytes: self.rounds.left_bytes(self.unacknowledged()),
            left_before_bytes: self.rounds.left_before_bytes(),
            send_rate: self.rounds.content_rate(now),
            fixed: FIXED_DOWNTIME.saturating_add(self.setup.commit_estimate),
        }
    }
}
