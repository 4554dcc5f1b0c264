//! The hands of a target's driver: the memory thread, the readers of its connection, the runner's task.
//!
//! Always true: each ends when the driver has dropped its channel or the connection has ended; none decides anything.

use godwit_memory::Memfd;
use quinn::{Connection, RecvStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::{Event, MemoryJob, RunnerJob};
use crate::drive::stream::{self, Delivered};
use crate::drive::{Runner, RunnerError, chain};
use crate::target::Write;
use crate::{control, pages};

/// Lives on a thread of its own; ends when nobody can ask it any more.
pub(super) fn work(memory: &Memfd, mut jobs: mpsc::Receiver<MemoryJob>, events: &mpsc::Sender<Event>) {
    while let Some(job) = jobs.blocking_recv() {
        let event = match job {
            MemoryJob::Write(writes, payload) => match pages::write(memory, &writes, &payload) {
                Ok(()) => Event::Written,
                Err(error) => Event::Failed(format!("write of guest memory: {error}")),
            },
            MemoryJob::Seal(epoch) => match memory.seal_against_other_writers() {
                Ok(()) => Event::Sealed(epoch),
                Err(error) => Event::Failed(format!("seal of guest memory: {error}")),
            },
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    }
}

pub(super) async fn hear_frames(mut stream: RecvStream, connection: Connection, events: mpsc::Sender<Event>) {
    loop {
        let event = match control::hear_source(&mut stream).await {
            Ok(frame) => Event::Frame(frame),
            Err(control::ControlError::Frame(error)) => Event::Broken(chain(&error)),
            Err(error) => {
                Event::Broke(connection.close_reason().map_or_else(|| chain(&error), |why| chain(&why)))
            }
        };
        let over = matches!(event, Event::Broke(_) | Event::Broken(_));
        if events.send(event).await.is_err() || over {
            return;
        }
    }
}

pub(super) async fn accept_pages(
    connection: Connection,
    link: u64,
    guest_pages: u32,
    batches: mpsc::Sender<Delivered>,
    events: mpsc::Sender<Event>,
) {
    let mut readers = JoinSet::new();
    // Ends with the connection; the transport's limit on streams bounds the tasks.
    while let Ok(stream) = connection.accept_uni().await {
        let (batches, events) = (batches.clone(), events.clone());
        let read = async move {
            match stream::receive(stream, link, guest_pages, batches).await {
                Ok(()) => {}
                Err(stream::PageStreamError::Batch(error)) => {
                    let _ = events.send(Event::Broken(chain(&error))).await;
                }
                Err(error) => tracing::debug!(error = chain(&error), "page stream ended"),
            }
        };
        readers.spawn(read.in_current_span());
    }
    readers.shutdown().await;
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
