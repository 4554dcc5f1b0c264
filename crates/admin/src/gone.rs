//! Whether the other end of a connection has gone for good.
//!
//! ```text
//!   closed its writing half only (`echo … | socat`)  ──▶ it still waits for its answer
//!   closed, or its process has ended                 ──▶ gone
//! ```
//!
//! Always true: nothing is read to find out. The kernel reports a hang-up (`POLLHUP`) for the second alone, and tokio
//! passes it on as "write closed".

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;

use tokio::io::Interest;
use tokio::net::UnixStream;

/// A connection that is looked at, by a descriptor and a registration of its own: whoever waits here clears what the
/// kernel reported, which a writer on the same registration would then miss.
#[derive(Debug)]
pub(crate) struct Gone(UnixStream);

impl Gone {
    /// Begins to look at it.
    pub(crate) fn of(stream: &UnixStream) -> io::Result<Self> {
        let own = StdUnixStream::from(stream.as_fd().try_clone_to_owned()?);
        UnixStream::from_std(own).map(Self)
    }

    /// Waits until the other end has gone.
    pub(crate) async fn wait(&self) {
        loop {
            // An error means that the runtime ends, and the connection with it.
            let Ok(ready) = self.0.ready(Interest::WRITABLE).await else { return };
            if ready.is_write_closed() {
                return;
            }
            // "Would block" is how tokio is told to wait for the kernel's next report, which a hang-up is.
            let _ = self.0.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn half_a_goodbye_is_none() {
        let (mut near, mut far) = UnixStream::pair().expect("sockets");
        let gone = Gone::of(&near).expect("a descriptor");
        far.shutdown().await.expect("half of it");
        // The end has been seen, so the kernel has nothing more to report about that half.
        assert_eq!(near.read(&mut [0; 8]).await.expect("readable"), 0);
        for _ in 0..10 {
            near.write_all(&[0; 4096]).await.expect("it reads still");
            far.read_exact(&mut [0; 4096]).await.expect("it writes still");
            assert!(timeout(Duration::ZERO, gone.wait()).await.is_err());
        }
        drop(far);
        timeout(DEADLINE, gone.wait()).await.expect("it has gone");
        timeout(DEADLINE, gone.wait()).await.expect("and stays gone");
    }
}
