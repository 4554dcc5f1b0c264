//! The pump: does what the sessions decide. Between memory and QUIC, with a clock.
//!
//! ```text
//!   driver (one task, owns the session)
//!     ├─ control reader (task)      frames in
//!     ├─ runner (task)              pause, save, load, resume: one after another
//!     ├─ memory (thread)            scans, reads, writes: one after another
//!     └─ pages (tasks)              limiter, page streams
//! ```
//!
//! Always true: the driver alone touches the session; everything comes to it as an event through a bounded channel;
//! the memory thread and the page tasks end when the driver does.

pub mod source;
mod stream;
pub mod target;

use std::error::Error;
use std::future::Future;
use std::time::{Duration, Instant};

use godwit_domain::ownership::{Entry, Ownership};
use godwit_domain::progress::{AuditReport, Measured, PostCopyReport, Progress, SourceReport};
use godwit_domain::{Epoch, Settings};
use quinn::SendStream;

/// How long the peer may take to read what is said to it. The control stream has room for hundreds of frames.
const SAY_TIMEOUT: Duration = Duration::from_secs(10);

/// Says something on the control stream. `Err`: why the connection is of no use any more.
async fn say(stream: &mut SendStream, bytes: &[u8]) -> Result<(), String> {
    match tokio::time::timeout(SAY_TIMEOUT, stream.write_all(bytes)).await {
        Ok(written) => written.map_err(|error| chain(&error)),
        Err(_) => Err(format!("the peer read nothing for {} s", SAY_TIMEOUT.as_secs())),
    }
}

/// Why a runner did not do what it was asked.
pub type RunnerError = Box<dyn Error + Send + Sync>;

/// What a driver needs of a runner. Calls are made one after another.
pub trait Runner: Send + Sync + 'static {
    /// Seal the epoch and stand still.
    fn pause(&self, epoch: Epoch) -> impl Future<Output = Result<(), RunnerError>> + Send;
    /// Give the device state; the same bytes until resumed.
    fn save(&self) -> impl Future<Output = Result<Vec<u8>, RunnerError>> + Send;
    /// Take a device state; start nothing.
    fn load(&self, epoch: Epoch, state: Vec<u8>) -> impl Future<Output = Result<(), RunnerError>> + Send;
    /// Take so many percent of its time from the guest, 0 to 99. 0 lets it run freely.
    fn throttle(&self, percent: u8) -> impl Future<Output = Result<(), RunnerError>> + Send;
    /// Run, or note the new epoch if it runs.
    fn resume(&self, epoch: Epoch) -> impl Future<Output = Result<(), RunnerError>> + Send;
    /// Whether it runs under this epoch or a later one: asked when nobody heard the answer to a resume.
    fn runs_under(&self, epoch: Epoch) -> impl Future<Output = Result<bool, RunnerError>> + Send;
}

/// What a driver is told while it runs.
#[derive(Debug)]
pub enum Told {
    /// Other limits.
    Settings(Settings),
    /// What is agreed about the guest.
    View(Box<Ownership>),
    /// A quorum of the control group has answered a question that was asked so long ago (source only).
    Quorum(Duration),
    /// Stop, for this reason.
    Cancel(String),
    /// The other side has connected (target only).
    Linked(Box<target::Inbound>),
}

/// What a driver tells. A proposal is true once a view shows it.
#[derive(Debug)]
pub enum Tells {
    /// This should be agreed.
    Proposal(Entry),
    /// How it goes.
    Progress(Progress),
    /// The guest was handed over under the epoch after this one, and no byte of `Final` has left, nor ever will.
    Withheld(Epoch),
    /// It has succeeded and is being audited; what was measured until then.
    Measured(Box<Measured>),
    /// How it ended. The last thing it tells.
    Ended(Report),
}

/// How a side of a migration ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// The source's: it succeeded.
    Source(SourceReport),
    /// The target's: it succeeded.
    Target {
        /// From "complete and licensed" to "runs", in microseconds.
        resume_us: u64,
        /// Of a migration that ended as post-copy.
        post_copy: Option<PostCopyReport>,
        /// What came of comparing its pages with the source's.
        audit: Option<AuditReport>,
    },
    /// The log has ended it otherwise.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// The target can not go on and has started nothing; the log does not know yet.
    GaveUp {
        /// Why, for people.
        reason: String,
    },
    /// The process that drove it is going; nothing is known about the migration.
    Stopped,
}

/// Time since the driver began, as the sessions count it.
#[derive(Debug, Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn now(self) -> Duration {
        self.0.elapsed()
    }

    fn instant(self, at: Duration) -> tokio::time::Instant {
        (self.0 + at).into()
    }
}

/// A duration in whole microseconds.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// An error with its causes, as one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
