//! The end of a runner's process: waited for, or brought about.
//!
//! Always true: a process is known by a descriptor, which is its own for ever; its number may be used again.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use super::END_TIMEOUT;

/// How often a process is looked for whose end the system does not tell of by itself.
const LOOK_REFUSED_INTERVAL: Duration = Duration::from_secs(1);

/// A descriptor, as soon as there is one left: without it nobody can say that a process has ended.
pub(super) async fn insist<T>(take: impl Fn() -> io::Result<T>) -> T {
    loop {
        match take() {
            Ok(taken) => return taken,
            Err(error) => tracing::error!(%error, "a runner's end is not waited for yet; it is tried again"),
        }
        tokio::time::sleep(LOOK_REFUSED_INTERVAL).await;
    }
}

/// A process by descriptor: its number may be used again, the descriptor is that process's for ever.
pub(super) struct Process {
    pub(super) pidfd: OwnedFd,
}

impl Process {
    /// Waits for its end; one that does not come is brought about.
    pub(super) async fn wait_or_kill(self) {
        // It blocks for seconds at worst: not on a thread that serves others.
        let waited = tokio::task::spawn_blocking(move || {
            if !self.has_ended_within(END_TIMEOUT) {
                let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
                self.has_ended_within(END_TIMEOUT);
            }
        });
        let _ = waited.await;
    }

    /// The descriptor of a process becomes readable when the process has ended.
    fn has_ended_within(&self, limit: Duration) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let limit = Timespec::try_from(limit).ok();
        poll(&mut ended, limit.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

/// Waits until a process has ended. It is looked for now and then where the system refuses to wake us.
pub async fn until_ended(process: OwnedFd) {
    let interest = tokio::io::Interest::READABLE;
    #[expect(deprecated, reason = "an OwnedFd keeps what its unsafe successor wants to be promised")]
    let watched = tokio::io::unix::AsyncFd::try_with_interest(process, interest);
    match watched {
        Ok(watched) => {
            let _ = watched.readable().await;
        }
        Err(refused) => {
            let (pidfd, error) = refused.into_parts();
            tracing::warn!(%error, "the end of a process is looked for each second");
            let process = Process { pidfd };
            while !process.has_ended_within(Duration::ZERO) {
                tokio::time::sleep(LOOK_REFUSED_INTERVAL).await;
            }
        }
    }
}
