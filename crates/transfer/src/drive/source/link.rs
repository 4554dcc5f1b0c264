//! The source's link to the target: two connections, what reads from them and writes to them, and how it comes back.
//!
//! ```text
//!   urgent  control stream, pages that somebody waits for        bulk  all other pages
//!   either is gone ─▶ the link is gone ─▶ dialed again, with growing pauses, as long as the session wants one
//! ```
//!
//! Always true: every batch that was handed to a link is accounted for by one `Sent`, whether it went or not; what is left
//! of a link that is gone ends by itself.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::hands::{hear_frames, send_batches};
use super::{Driver, Event, FETCHES_OPEN_MAX, PLANS_OPEN_MAX};
use crate::drive::chain;
use crate::drive::stream::SharedLimiter;
use crate::pages::Encoded;
use crate::source::{Plan, Room};
use crate::target::Lane;

/// The first pause before a lost link is dialed again; doubled each time, up to the longest.
const DIAL_AGAIN_FIRST: Duration = Duration::from_millis(100);
const DIAL_AGAIN_MAX: Duration = Duration::from_secs(2);
/// Batches that somebody waits for and that wait to be sent.
const URGENT_MAX: usize = 8;

/// How long the log is waited for when the target says that the migration is over.
const OVER_PATIENCE: Duration = Duration::from_secs(2);

/// Two connections to the target, both greeted.
#[derive(Debug)]
pub struct Lines {
    /// For the control stream and for pages that somebody waits for.
    pub urgent: Connection,
    /// The control stream.
    pub control: (SendStream, RecvStream),
    /// For all other pages.
    pub bulk: Connection,
    /// The stream that it was greeted on, which stays open.
    pub bulk_say: SendStream,
}

/// Whoever can reach the target.
pub trait Dial: Send + Sync + 'static {
    /// Connects and greets, as link number `link` of this session. `Err`: why it can not be reached now.
    fn dial(&self, link: u64) -> impl Future<Output = Result<Lines, String>> + Send;
}

/// The present link.
pub(super) struct Link {
    pub(super) urgent: Connection,
    pub(super) bulk: Connection,
    /// The shortest round trip that was seen.
    pub(super) rtt_min: Duration,
    pub(super) control: SendStream,
    _bulk_say: SendStream,
    pub(super) batches: mpsc::Sender<Encoded>,
    pub(super) fetched: mpsc::Sender<Encoded>,
}

impl Link {
    /// Takes up two connections. Their tasks end with them.
    pub(super) fn new(
        lines: Lines,
        number: u64,
        limiter: &SharedLimiter,
        events: &mpsc::Sender<Event>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let Lines { urgent, control: (control, hear), bulk, bulk_say } = lines;
        limiter.attach(&bulk, &urgent);
        let (batches, bulk_out) = mpsc::channel(1);
        let (fetched, urgent_out) = mpsc::channel(URGENT_MAX);
        tasks.spawn(hear_frames(hear, number, urgent.clone(), events.clone()).in_current_span());
        let (closed, told) = (bulk.clone(), events.clone());
        tasks.spawn(async move {
            let why = closed.closed().await;
            let _ = told.send(Event::Broke(number, chain(&why))).await;
        });
        for (connection, lane, out) in
            [(bulk.clone(), Lane::Bulk, bulk_out), (urgent.clone(), Lane::Urgent, urgent_out)]
        {
            let send = send_batches((connection, lane, number), limiter.clone(), out, events.clone());
            tasks.spawn(send.in_current_span());
        }
        let rtt_min = urgent.rtt();
        Self { urgent, bulk, rtt_min, control, _bulk_say: bulk_say, batches, fetched }
    }

    /// Whether the target has closed it because the migration is over.
    pub(super) fn says_that_it_is_over(&self) -> bool {
        let over = |connection: &Connection| match connection.close_reason() {
            Some(ConnectionError::ApplicationClosed(close)) => close.error_code.into_inner() == 0,
            _ => false,
        };
        over(&self.urgent) || over(&self.bulk)
    }

    /// Nothing more goes over it.
    pub(super) fn close(&self, why: &str) {
        // Closing tells the other side that nothing more comes (it frees nothing there), and ends whatever waits
        // for room on a stream.
        self.bulk.close(0_u32.into(), why.as_bytes());
        self.urgent.close(0_u32.into(), why.as_bytes());
    }
}

/// When a lost link is dialed again.
#[derive(Debug, Default)]
pub(super) struct Redial {
    /// Since when there is none.
    pub(super) lost_at: Option<Duration>,
    /// How often it came back.
    pub(super) times: u32,
    at: Duration,
    pause: Duration,
    /// When the last one came.
    came_at: Duration,
    pub(super) under_way: bool,
}

impl Redial {
    /// It is gone, and is dialed again after `rest`, or later if it did not live for long.
    pub(super) fn lost(&mut self, now: Duration, rest: Duration) {
        self.lost_at.get_or_insert(now);
        if now.saturating_sub(self.came_at) > DIAL_AGAIN_MAX || self.pause.is_zero() {
            (self.at, self.pause) = (now + rest, DIAL_AGAIN_FIRST);
        } else {
            self.at = now + self.pause.max(rest);
            self.pause = (self.pause * 2).min(DIAL_AGAIN_MAX);
        }
    }

    pub(super) fn failed(&mut self, now: Duration) {
        self.under_way = false;
        self.at = now + self.pause;
        self.pause = (self.pause * 2).min(DIAL_AGAIN_MAX);
    }

    pub(super) fn came_back(&mut self, now: Duration) {
        self.came_at = now;
        self.times += u32::from(self.lost_at.take().is_some());
        self.under_way = false;
    }

    /// Whether to dial now; if not now, when.
    pub(super) fn due(&self, now: Duration) -> Result<(), Option<Duration>> {
        match (self.lost_at, self.under_way) {
            (Some(_), false) if now >= self.at => Ok(()),
            (Some(_), false) => Err(Some(self.at)),
            (None, _) | (_, true) => Err(None),
        }
    }
}

impl<D: Dial> Driver<D> {
    pub(super) fn room(&self) -> Room {
        let linked = self.link.is_some();
        Room {
            batch: linked && self.plans_open < PLANS_OPEN_MAX,
            fetched: linked && self.fetches_open < FETCHES_OPEN_MAX,
        }
    }

    pub(super) fn linked(&mut self, lines: Lines) {
        self.links += 1;
        self.redial.came_back(self.clock.now());
        // What served links that are gone has ended.
        while self.tasks.try_join_next().is_some() {}
        let link = Link::new(lines, self.links, &self.limiter, &self.events, &mut self.tasks);
        tracing::info!(link = self.links, target = %link.urgent.remote_address(), "connected to the target");
        self.link = Some(link);
    }

    /// The link is of no use any more. As long as that helps, another is dialed. A guest that stands still here and was not
    /// handed over runs on here; when the target has said that it has everything and the hand-over is proposed, only the
    /// log knows.
    pub(super) fn broke(&mut self, reason: &str) {
        let Some(link) = self.link.take() else { return };
        let it_is_over = link.says_that_it_is_over();
        link.close(reason);
        let now = self.clock.now();
        self.session.link_lost();
        // Whatever is wanted now: the log may yet decide for a hand-over, and then one is.
        // Where the target says that it is over, the log is about to say so, too.
        self.redial.lost(now, if it_is_over { OVER_PATIENCE } else { Duration::ZERO });
        if self.session.wants_a_link() && it_is_over {
            tracing::debug!(reason, "the target says that the migration is over");
        } else if self.session.wants_a_link() {
            tracing::warn!(reason, "connection to the target lost; it is dialed again");
        } else if self.session.is_target_complete() {
            tracing::debug!(reason, "the target has everything and closed first");
        } else if self.session.is_handed_over() {
            tracing::warn!(
                reason,
                "connection lost after the hand-over; waiting for the target to say that it runs"
            );
        } else {
            self.session.fail(format!("connection to the target lost: {reason}"));
        }
    }

    /// A peer that breaks the protocol will break it again: that ends a copy. In post-copy there is no other to turn to.
    pub(super) fn protocol_broken(&mut self, rule: &str) {
        if !self.session.is_handed_over() {
            self.session.fail(format!("connection to the target lost: {rule}"));
        }
        self.broke(rule);
    }

    /// Dials a lost link again when it is time. Returns when to look again.
    pub(super) fn dial_again(&mut self) -> Duration {
        let now = self.clock.now();
        let later = now + Duration::from_secs(1);
        let Some(lost_at) = self.redial.lost_at.filter(|_| self.session.wants_a_link()) else { return later };
        let passed = self.recovery_timeout.filter(|limit| now >= lost_at.saturating_add(*limit));
        if let Some(limit) = passed.filter(|_| !self.session.is_handed_over()) {
            let limit = limit.as_secs();
            self.session.fail(format!("recoveryTimeout: the target could not be reached for {limit} s"));
            return now;
        }
        match self.redial.due(now) {
            Ok(()) => {
                self.redial.under_way = true;
                let (dial, events, link) = (Arc::clone(&self.dial), self.events.clone(), self.links + 1);
                let dialing = async move {
                    let dialed = dial.dial(link).await.map(Box::new);
                    let _ = events.send(Event::Dialed(dialed)).await;
                };
                self.tasks.spawn(dialing.in_current_span());
                later
            }
            Err(when) => when.unwrap_or(later),
        }
    }

    pub(super) fn fetch(&mut self, plan: Plan) {
        let Some(link) = &self.link else { return };
        self.fetches_open += 1;
        if self.fetch_jobs.try_send((plan, link.fetched.clone())).is_err() {
            self.session.fail("the thread that reads fetched pages has stopped".into());
        }
    }
}

/// Reads pages that somebody waits for, beside the thread that reads all others.
pub(super) struct FetchWorker {
    pub(super) reader: crate::pages::Reader,
}

impl FetchWorker {
    pub(super) fn work(
        mut self,
        mut jobs: mpsc::Receiver<(Plan, mpsc::Sender<Encoded>)>,
        events: &mpsc::Sender<Event>,
    ) {
        while let Some((plan, to)) = jobs.blocking_recv() {
            let event = match self.reader.read(&plan) {
                Ok(encoded) => match to.blocking_send(encoded) {
                    Ok(()) => continue,
                    Err(_) => Event::unsent(Lane::Urgent),
                },
                Err(error) => Event::Unreadable(Some(Lane::Urgent), format!("read of guest memory: {error}")),
            };
            if events.blocking_send(event).is_err() {
                return;
            }
        }
    }
}
