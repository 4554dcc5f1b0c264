//! The hands of a source's driver: the memory thread, the readers and senders of its connection, the runner's task.
//!
//! Always true: each ends when the driver has dropped its channel or the connection has ended; none decides anything.

use std::time::Instant;

use godwit_memory::tracker::TrackerError;
use godwit_memory::{PageSet, Tracker};
use quinn::{Connection, RecvStream};
use tokio::sync::mpsc;

use super::{Event, MemoryJob, RunnerJob};
use crate::drive::stream::{self, SharedLimiter};
use crate::drive::{Runner, RunnerError, chain};
use crate::pages::{Encoded, Reader};
use crate::source::Plan;
use crate::target::Lane;
use crate::young::Young;
use crate::{audit, control};

/// Lives on a thread of its own: what it does may take milliseconds and must be done in order.
pub(super) struct MemoryWorker {
    pub(super) reader: Reader,
    /// None beside a guest that stands still.
    pub(super) tracker: Option<Tracker>,
    pub(super) written: PageSet,
    /// Of a guest whose disks write its memory by themselves.
    pub(super) young: Option<Young>,
}

impl MemoryWorker {
    pub(super) fn work(mut self, mut jobs: mpsc::Receiver<MemoryJob>, events: &mpsc::Sender<Event>) {
        while let Some(job) = jobs.blocking_recv() {
            let event = match job {
                MemoryJob::Scan(last) => self
                    .scan(last)
                    .map_or_else(|error| Event::Unreadable(None, chain(&error)), Event::Scanned),
                MemoryJob::Digest(run) if planted::audit_stalls(run) => continue,
                MemoryJob::Digest(run) => match audit::digests(self.reader.memory(), run) {
                    Ok(digests) => Event::Digested(run, digests),
                    Err(error) => Event::Unreadable(None, format!("read of guest memory: {error}")),
                },
                MemoryJob::Read(plan, to) => match self.read(&plan) {
                    // The connection is gone, which its own tasks have said.
                    Ok(encoded) => match to.blocking_send(encoded) {
                        Ok(()) => continue,
                        Err(_) => Event::unsent(Lane::Bulk),
                    },
                    Err(error) => {
                        Event::Unreadable(Some(Lane::Bulk), format!("read of guest memory: {error}"))
                    }
                },
            };
            if events.blocking_send(event).is_err() {
                break;
            }
        }
        if let Some(Err(error)) = self.tracker.map(Tracker::disarm) {
            // The runner is gone, and with it what was armed.
            tracing::debug!(error = chain(&error), "dirty tracking was not disarmed");
        }
    }

    fn read(&mut self, plan: &Plan) -> std::io::Result<Encoded> {
        if let Some(young) = &mut self.young {
            young.sends(self.reader.memory(), &plan.runs)?;
        }
        self.reader.read(plan)
    }

    fn scan(&mut self, last: bool) -> Result<PageSet, TrackerError> {
        let mut written = self.written.clone();
        if let Some(tracker) = &mut self.tracker {
            tracker.scan(|run| written.insert_run(run))?;
        }
        match &mut self.young {
            Some(young) if last => {
                young.at_last(self.reader.memory(), &mut written).map_err(TrackerError::Scan)?;
            }
            Some(young) => young.scanned(Instant::now(), &written),
            None => {}
        }
        planted::drop_one_in_ten_thousand(&mut written);
        Ok(written)
    }
}

pub(super) async fn hear_frames(
    mut stream: RecvStream,
    link: u64,
    connection: Connection,
    events: mpsc::Sender<Event>,
) {
    loop {
        let event = match control::hear_target(&mut stream).await {
            Ok(frame) => Event::Frame(link, frame),
            Err(control::ControlError::Frame(error)) => Event::Broken(link, chain(&error)),
            // Why the whole connection went tells more than that a stream of it did.
            Err(error) => {
                Event::Broke(link, connection.close_reason().map_or_else(|| chain(&error), |why| chain(&why)))
            }
        };
        let over = matches!(event, Event::Broke(..) | Event::Broken(..));
        if events.send(event).await.is_err() || over {
            return;
        }
    }
}

/// Sends what comes over one of the two connections of a link, and says so of each batch, whether it went or not.
pub(super) async fn send_batches(
    (connection, lane, link): (Connection, Lane, u64),
    limiter: SharedLimiter,
    mut batches: mpsc::Receiver<Encoded>,
    events: mpsc::Sender<Event>,
) {
    let sent = match lane {
        Lane::Bulk => {
            stream::send(&connection, &limiter, &mut batches, &events, |sent| Event::Sent(Lane::Bulk, sent))
                .await
        }
        Lane::Urgent => {
            let tell = |sent| Event::Sent(Lane::Urgent, sent);
            stream::send_urgent(&connection, &limiter, &mut batches, &events, tell).await
        }
    };
    let Err(error) = sent else { return };
    let why = connection.close_reason().map_or_else(|| chain(&error), |why| chain(&why));
    let _ = events.send(Event::Broke(link, why)).await;
    // The batch that broke, and those that nobody will send.
    let _ = events.send(Event::unsent(lane)).await;
    batches.close();
    while batches.recv().await.is_some() {
        let _ = events.send(Event::unsent(lane)).await;
    }
}

pub(super) async fn command<R: Runner>(
    runner: R,
    mut jobs: mpsc::Receiver<RunnerJob>,
    events: mpsc::Sender<Event>,
) {
    let broke = |error: RunnerError| Event::RunnerBroke(chain(&*error));
    while let Some(job) = jobs.recv().await {
        let begun = Instant::now();
        let event = match job {
            RunnerJob::Pause(epoch) => runner.pause(epoch).await.map_or_else(broke, |()| Event::Paused),
            RunnerJob::Save => runner.save().await.map_or_else(broke, Event::Saved),
            RunnerJob::Throttle(percent) => match runner.throttle(percent).await {
                Ok(()) => Event::Throttled(percent),
                // Moving it does not depend on that, and progress shows what is so.
                Err(error) => {
                    tracing::warn!(percent, error = chain(&*error), "the guest could not be throttled so");
                    continue;
                }
            },
            RunnerJob::Resume(epoch) => {
                match runner.resume(epoch).await {
                    Ok(()) => {
                        tracing::info!(%epoch, took = ?begun.elapsed(), "the guest runs on at the source")
                    }
                    Err(error) => {
                        tracing::error!(%epoch, error = chain(&*error), "the guest was not resumed")
                    }
                }
                continue;
            }
        };
        // Nobody listens any more once the driver has ended; what it has asked for is still done.
        let _ = events.send(event).await;
    }
}

/// Bugs that a test can switch on, to show that `verify` finds them. Always off in a real build.
pub(super) mod planted {
    use godwit_memory::PageSet;

    #[cfg(feature = "planted-bugs")]
    pub(super) fn drop_one_in_ten_thousand(written: &mut PageSet) {
        use std::sync::atomic::{AtomicU64, Ordering};
        static SEEN: AtomicU64 = AtomicU64::new(0);
        if crate::planted::is_on("drop-dirty") {
            let pages: Vec<_> = written.runs().flat_map(godwit_domain::PageRun::pages).collect();
            for page in pages {
                if SEEN.fetch_add(1, Ordering::Relaxed) % 10_000 == 9_999 {
                    written.remove(page);
                }
            }
        }
    }

    /// Dies with SIGKILL between a later scan and the first byte of its round, once per file that is named.
    #[cfg(feature = "planted-bugs")]
    pub(in crate::drive) fn die_after_a_scan(round: godwit_domain::Round) {
        if round.0 < 3 || !crate::planted::is_on("die-after-scan") {
            return;
        }
        let once = std::env::var_os("GODWIT_PLANTED_ONCE").unwrap_or_default();
        if std::fs::File::options().write(true).create_new(true).open(once).is_ok() {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }

    /// Nothing is digested behind the first piece.
    #[cfg(feature = "planted-bugs")]
    pub(super) fn audit_stalls(run: godwit_domain::PageRun) -> bool {
        run.first.0 > 0 && crate::planted::is_on("stall-audit")
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(super) fn audit_stalls(_: godwit_domain::PageRun) -> bool {
        false
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(in crate::drive) fn die_after_a_scan(_: godwit_domain::Round) {}

    #[cfg(not(feature = "planted-bugs"))]
    pub(super) fn drop_one_in_ten_thousand(_: &mut PageSet) {}
}
