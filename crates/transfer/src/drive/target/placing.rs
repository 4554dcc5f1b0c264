//! The target's driver while pages may be missing: faults heard, pages placed, and what fails tried again.

use std::sync::Arc;

use godwit_memory::Faults;
use tracing::Span;

use super::hands::hear_faults;
use super::{Driver, Event, PlaceJob, RUN_AGAIN_AFTER};

impl Driver {
    /// Faults are heard and answered from now on.
    pub(super) fn serve(&mut self, faults: Arc<Faults>) {
        if self.hearing.is_some() {
            return;
        }
        let (heard, events, span) = (Arc::clone(&faults), self.outs.faults.clone(), Span::current());
        match std::io::pipe() {
            Ok((until, hearing)) => {
                self.hearing = Some(hearing);
                self.tasks.spawn_blocking(move || {
                    let _in_span = span.enter();
                    hear_faults(&heard, &until, &events);
                });
            }
            Err(error) => return self.session.fail(format!("faults can not be heard: {error}")),
        }
        self.ask_place(PlaceJob::Serve(faults));
    }

    /// This is tried again in a while.
    pub(super) fn again(&mut self, event: Event) {
        let events = self.outs.events.clone();
        self.again.spawn(async move {
            tokio::time::sleep(RUN_AGAIN_AFTER).await;
            let _ = events.send(event).await;
        });
    }

    pub(super) async fn ask_place_when_there_is_room(&mut self, job: PlaceJob) {
        // As with the memory thread.
        if self.place_jobs.send(job).await.is_err() {
            tracing::error!("the thread that places pages has stopped");
        }
    }

    pub(super) fn ask_place(&mut self, job: PlaceJob) {
        if self.place_jobs.try_send(job).is_err() {
            self.session.fail("the thread that places pages has stopped".into());
        }
    }
}
