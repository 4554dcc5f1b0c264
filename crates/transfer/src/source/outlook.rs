//! What is to be expected of a copy, as it is said to people, and what was done about it so far.
//!
//! Always true: nothing here changes what the session does; a scan over no connection teaches nothing, since what waits
//! then is not only what the guest has written.

use std::time::Duration;

use godwit_domain::precopy::predict::{Now, Scan};
use godwit_domain::precopy::{AtDeadline, Did, Prediction, Predictor, Record, Standing, Step};
use godwit_domain::progress::Forecast;
use godwit_domain::{PageCount, Round};

use super::{SourceSession, Stage};

/// How often a prediction is made: people do not read faster.
const INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Outlook {
    predictor: Predictor,
    prediction: Option<Prediction>,
    /// What was said after the first round.
    forecast: Option<Forecast>,
    due: Duration,
    /// What the last scan has shown.
    impossible: bool,
    record: Record,
}

impl Outlook {
    pub(super) fn new(now: Duration, pages: PageCount) -> Self {
        Self {
            predictor: Predictor::new(now, pages.bytes()),
            prediction: None,
            forecast: None,
            due: now,
            impossible: false,
            record: Record::default(),
        }
    }

    pub(super) fn guest_changed(&mut self, now: Duration) {
        self.predictor.guest_changed(now);
        self.due = now;
        self.impossible = false;
    }

    /// The next scan says what that means.
    pub(super) fn limits_changed(&mut self) {
        self.due = Duration::ZERO;
        self.impossible = false;
    }
}

impl SourceSession {
    /// What is to be expected of the copy; `None`: it is not known yet, or rounds do not decide any more.
    pub fn prediction(&self) -> Option<Prediction> {
        self.outlook.prediction.filter(|_| matches!(self.stage, Stage::Copying))
    }

    /// What was expected after the first round.
    pub fn forecast(&self) -> Option<Forecast> {
        self.outlook.forecast
    }

    /// What was done about it, the newest steps.
    pub fn steps(&self) -> &[Step] {
        self.outlook.record.steps()
    }

    /// Whether the last scan has shown that rounds are in vain, with the limits that hold now: [`Predictor::impossible`].
    pub fn convergence_is_impossible(&self) -> bool {
        self.outlook.impossible && matches!(self.stage, Stage::Copying)
    }

    /// A scan was taken up.
    pub(super) fn look_ahead(&mut self, now: Duration, scan: &Scan, round_is_over: bool) {
        if !matches!(self.stage, Stage::Copying) || !self.is_up() {
            return;
        }
        self.outlook.predictor.scanned(now, scan);
        if round_is_over {
            self.outlook.predictor.round_ended();
        }
        let fixed = self.standing(now).fixed;
        self.outlook.impossible = self.outlook.predictor.impossible(&self.setup.limits, fixed);
        let is_first = round_is_over && self.outlook.forecast.is_none();
        if now >= self.outlook.due || is_first {
            self.outlook.due = now + INTERVAL;
            self.outlook.prediction = self.outlook.predictor.predict(&self.now(now), &self.setup.limits);
        }
        if let Some(prediction) = self.outlook.prediction.filter(|_| is_first) {
            let said_us = u64::try_from(self.rounds.elapsed(now).as_micros()).unwrap_or(u64::MAX);
            self.outlook.forecast = Some(Forecast { said_us, prediction });
        }
    }

    fn now(&self, now: Duration) -> Now {
        let Standing { round, left_before_bytes, send_rate, fixed, .. } = self.standing(now);
        Now {
            round: round.max(Round::FIRST),
            round_age: self.rounds.age(now),
            queued_bytes: self.rounds.queued().bytes(),
            dirty_bytes: self.rounds.next_len().bytes(),
            left_before_bytes,
            guest_bytes: self.setup.pages.bytes(),
            send_rate,
            fixed,
        }
    }

    /// The guest is told to stand still.
    pub(super) fn note_stop(&mut self, standing: &Standing) {
        let did = match self.finishing {
            Some(AtDeadline::PostCopy) => Did::PostCopy,
            Some(AtDeadline::PauseAndFinish | AtDeadline::Cancel) => Did::PauseAndFinish,
            None => Did::SwitchOver,
        };
        self.note(did, standing);
    }

    /// This is done now.
    pub(super) fn note(&mut self, did: Did, standing: &Standing) {
        let downtime_ms = u64::try_from(standing.predicted_downtime().as_millis()).unwrap_or(u64::MAX);
        let Standing { round, left_before_bytes, left_bytes, .. } = *standing;
        self.outlook.record.note(did, round, left_before_bytes, left_bytes, downtime_ms);
    }
}
