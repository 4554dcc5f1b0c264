//! The hands of a target's driver: the memory thread, the readers of its connection, the runner's task.
//!
//! Always true: each ends when the driver has dropped its channel or the connection has ended; none decides anything.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use godwit_domain::PageRun;
use godwit_memory::tracker::TrackerError;
use godwit_memory::uffd::UffdError;
use godwit_memory::{Faults, Memfd, Tracker};
use quinn::{Connection, RecvStream};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::{Event, MemoryJob, PlaceJob, RunnerJob};
use crate::audit::{self, Compared};
use crate::drive::stream::{self, Delivered};
use crate::drive::{Runner, RunnerError, chain};
use crate::target::{Lane, Write};
use crate::{control, pages};

/// Serves faults from now on; made once, when pages are first missing.
pub type ServeFaults = Box<dyn FnOnce() -> Result<Faults, UffdError> + Send>;

/// Tracks what the guest writes from now on; made anew, what was written before is forgotten.
pub struct Track(Box<TrackAgain>);

type TrackAgain = dyn Fn() -> Result<Tracker, TrackerError> + Send;

impl Track {
    /// By this, which may be called again.
    pub fn new(track: impl Fn() -> Result<Tracker, TrackerError> + Send + 'static) -> Self {
        Self(Box::new(track))
    }
}

impl std::fmt::Debug for Track {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Track")
    }
}

/// Lives on a thread of its own; ends when nobody can ask it any more.
pub(super) struct MemoryWorker {
    pub(super) memory: Arc<Memfd>,
    pub(super) serve: Option<ServeFaults>,
    pub(super) faults: Option<Arc<Faults>>,
    pub(super) track: Option<Track>,
    pub(super) tracker: Option<Tracker>,
}

impl MemoryWorker {
    pub(super) fn work(mut self, mut jobs: mpsc::Receiver<MemoryJob>, events: &mpsc::Sender<Event>) {
        while let Some(job) = jobs.blocking_recv() {
            if events.blocking_send(self.done(job)).is_err() {
                break;
            }
        }
        self.disarm();
    }

    /// Before anybody else tracks this guest: who disarms later would disarm them.
    fn disarm(&mut self) {
        if let Some(Err(error)) = self.tracker.take().map(Tracker::disarm) {
            // The runner is gone, and with it what was armed.
            tracing::debug!(error = chain(&error), "the tracking of an audit was not disarmed");
        }
    }

    fn done(&mut self, job: MemoryJob) -> Event {
        match job {
            MemoryJob::Write(writes, payload) => {
                written(Lane::Bulk, &self.memory, self.faults.as_deref(), &writes, &payload)
            }
            MemoryJob::Punch(runs) => match self.punch(&runs) {
                Ok((stayed, faults)) => Event::Punched(stayed, faults),
                Err(error) => Event::Failed(format!("punch of guest memory: {error}")),
            },
            MemoryJob::Release => match self.faults.as_ref().map_or(Ok(()), |faults| faults.unregister()) {
                Ok(()) => Event::Released,
                Err(error) => Event::NotReleased(chain(&error)),
            },
            MemoryJob::Track => Event::Tracked(self.arm()),
            MemoryJob::Compare(run, digests) => Event::Compared(self.compare(run, &digests)),
            MemoryJob::Seal(epoch) => match self.memory.seal_against_other_writers() {
                Ok(()) => Event::Sealed(epoch),
                Err(error) => Event::Failed(format!("seal of guest memory: {error}")),
            },
        }
    }

    fn arm(&mut self) -> Result<(), String> {
        if self.faults.is_some() {
            return Err("faults are served, by the same userfaultfd".into());
        }
        let track = self.track.as_ref().ok_or("this guest can not be tracked")?;
        let begun = Instant::now();
        self.tracker = Some((track.0)().map_err(|error| chain(&error))?);
        tracing::debug!(took = ?begun.elapsed(), "armed for an audit");
        Ok(())
    }

    fn compare(&mut self, run: PageRun, theirs: &[u64]) -> Result<Compared, String> {
        let tracker = self.tracker.as_mut().ok_or("nothing is tracked")?;
        audit::compare(&self.memory, tracker, run, theirs).map_err(|error| chain(&*error))
    }

    fn punch(&mut self, runs: &[PageRun]) -> io::Result<(Vec<PageRun>, Arc<Faults>)> {
        // Tracked for a stop-and-copy that was taken back: faults are served by the same userfaultfd.
        self.disarm();
        // Before it is looked whether they are holes: until somebody would wait for a hole, the kernel may put zeros there by
        // itself, where it makes large folios of small ones.
        let faults = match (&self.faults, self.serve.take()) {
            // For a pause that was called off.
            (Some(faults), _) => Arc::clone(faults),
            (None, Some(serve)) => Arc::new(serve().map_err(io::Error::other)?),
            (None, None) => return Err(io::Error::other("nobody can serve faults")),
        };
        let stayed = self.memory.punch_and_check(runs)?;
        self.faults = Some(Arc::clone(&faults));
        Ok((stayed, faults))
    }
}

fn written(lane: Lane, memory: &Memfd, faults: Option<&Faults>, writes: &[Write], payload: &[u8]) -> Event {
    match pages::write(memory, faults, writes, payload) {
        Ok(()) => Event::Written(lane),
        Err(error) => Event::NotWritten(lane, format!("write of guest memory: {error}")),
    }
}

/// Places what somebody waits for, on a thread of its own, so that it does not wait behind the bulk.
pub(super) fn place(memory: &Memfd, mut jobs: mpsc::Receiver<PlaceJob>, events: &mpsc::Sender<Event>) {
    let mut faults: Option<Arc<Faults>> = None;
    while let Some(job) = jobs.blocking_recv() {
        let event = match job {
            PlaceJob::Serve(served) => {
                faults = Some(served);
                continue;
            }
            PlaceJob::Write(writes, payload) => {
                written(Lane::Urgent, memory, faults.as_deref(), &writes, &payload)
            }
            PlaceJob::Zeros(run) => match faults.as_ref().map(|faults| faults.fill_zero(run)) {
                Some(Ok(())) | None => continue,
                Some(Err(error)) => Event::NotZeroed(run, chain(&error)),
            },
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    }
}

/// Hears for which pages somebody waits, on a thread of its own, until the other end of `until` is closed.
pub(super) fn hear_faults(faults: &Faults, until: &io::PipeReader, events: &mpsc::Sender<Event>) {
    loop {
        let mut ready = [PollFd::new(faults, PollFlags::IN), PollFd::new(until, PollFlags::empty())];
        match rustix::event::poll(&mut ready, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return tracing::error!(%error, "faults can not be waited for"),
        }
        let [waiting, ended] = ready.map(|ready| ready.revents());
        if !ended.is_empty() {
            return;
        }
        let mut pages = Vec::new();
        let read = faults.read(|page| pages.push(page));
        for page in pages {
            tracing::trace!(page = page.0, "somebody waits");
            if events.blocking_send(Event::Fault(page)).is_err() {
                return;
            }
        }
        if read.is_err() || waiting.intersects(PollFlags::ERR | PollFlags::HUP) {
            // The runner has ended, and with it whoever waits.
            return tracing::info!(?read, "faults are not heard any more");
        }
    }
}

pub(super) async fn hear_frames(
    mut stream: RecvStream,
    link: u64,
    connection: Connection,
    events: mpsc::Sender<Event>,
) {
    loop {
        let event = match control::hear_source(&mut stream).await {
            Ok(frame) => Event::Frame(link, frame),
            Err(control::ControlError::Frame(error)) => Event::Broken(link, chain(&error)),
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

pub(super) async fn accept_pages(
    connection: Connection,
    (link, lane): (u64, Lane),
    guest_pages: u32,
    batches: mpsc::Sender<Delivered>,
    events: mpsc::Sender<Event>,
) {
    let mut readers = JoinSet::new();
    // Ends with the connection; the transport's limit on streams bounds the tasks.
    let why = loop {
        let stream = match connection.accept_uni().await {
            Ok(stream) => stream,
            Err(why) => break why,
        };
        let (batches, events) = (batches.clone(), events.clone());
        let read = async move {
            match stream::receive(stream, (link, lane), guest_pages, batches).await {
                Ok(()) => {}
                Err(stream::PageStreamError::Batch(error)) => {
                    let _ = events.send(Event::Broken(link, chain(&error))).await;
                }
                Err(error) => tracing::debug!(error = chain(&error), "page stream ended"),
            }
        };
        readers.spawn(read.in_current_span());
        while readers.try_join_next().is_some() {}
    };
    readers.shutdown().await;
    let _ = events.send(Event::Broke(link, chain(&why))).await;
}

pub(super) async fn command<R: Runner>(
    runner: R,
    mut jobs: mpsc::Receiver<RunnerJob>,
    events: mpsc::Sender<Event>,
) {
    let broke = |error: RunnerError| Event::Failed(format!("runner at the target: {}", chain(&*error)));
    while let Some(job) = jobs.recv().await {
        let event = match job {
            RunnerJob::Load(epoch, state) => {
                runner.load(epoch, state).await.map_or_else(broke, |()| Event::Loaded)
            }
            RunnerJob::Resume(epoch) => {
                match runner.resume(epoch).await {
                    Ok(()) => Event::Running(epoch),
                    // It may have been done all the same, and only the answer lost.
                    Err(error) => match runner.runs_under(epoch).await {
                        Ok(true) => Event::Running(epoch),
                        Ok(false) | Err(_) => broke(error),
                    },
                }
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// A bug that a test can switch on, to show that `verify` finds it. Does nothing in a real build.
pub(super) mod planted {
    use super::Write;

    type Job = (Vec<Write>, Vec<u8>);

    /// Writes one early batch again after each later one: an old batch that comes last.
    #[derive(Default)]
    pub(in crate::drive) struct Late {
        #[cfg(feature = "planted-bugs")]
        early: Option<Job>,
    }

    impl Late {
        #[cfg(not(feature = "planted-bugs"))]
        #[expect(clippy::unused_self, reason = "the planted bug has a state")]
        pub(in crate::drive) fn pass(&mut self, job: Job) -> Job {
            job
        }

        #[cfg(feature = "planted-bugs")]
        pub(in crate::drive) fn pass(&mut self, job: Job) -> Job {
            if !crate::planted::is_on("wrong-order") {
                return job;
            }
            let Some((early, bytes)) = &self.early else {
                self.early = Some(job.clone());
                return job;
            };
            let (mut writes, mut payload) = job;
            let behind = u32::try_from(payload.len() / godwit_domain::PAGE_SIZE).unwrap_or(u32::MAX);
            payload.extend_from_slice(bytes);
            writes.extend(
                early.iter().map(|write| Write {
                    payload_page: write.payload_page.map(|page| page + behind),
                    ..*write
                }),
            );
            (writes, payload)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use godwit_domain::{PAGE_SIZE, PageCount, PageIndex};
    use godwit_memory::{Ram, Userfaultfd, folios};

    #[test]
    fn what_is_punched_and_not_told_to_have_stayed_is_a_hole_whatever_the_kernel_makes_of_its_folio() {
        let pages = PageCount(folios::FOLIO_PAGES);
        let memory = Arc::new(Memfd::create("test", pages).expect("memfd"));
        memory.write(PageIndex(0), &vec![1; PAGE_SIZE * pages.0 as usize]).expect("write");
        let ram = Ram::map(&memory).expect("map");
        let (uffd, _) = Userfaultfd::open_for_builtin().expect("userfaultfd");
        let (of, address) = (Arc::clone(&memory), ram.address());
        let serve = move || {
            // At the latest moment at which it may.
            folios::make_large(&*of, PageIndex(0)).expect("a large folio");
            Faults::register(uffd, address, pages.bytes())
        };
        let mut worker =
            MemoryWorker { memory, serve: Some(Box::new(serve)), faults: None, track: None, tracker: None };
        let punched = PageRun::new(3, 2);
        let Event::Punched(stayed, _) = worker.done(MemoryJob::Punch(vec![punched])) else {
            panic!("it can not be punched");
        };
        let holes: Vec<_> = worker.memory.holes().expect("seek").runs().collect();
        assert_eq!((stayed, holes), (vec![], vec![punched]));
    }
}
