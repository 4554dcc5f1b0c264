//! Batches onto page streams under the rate limit, and off them with every check.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_domain::progress::SentPages;
use godwit_wire::batch::{Batch, BatchError, HEAD_BYTES, Head};
use quinn::{Connection, ConnectionError, ReadExactError, RecvStream, SendStream, WriteError};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::Clock;
use crate::compress;
use crate::compress::link::LinkMeter;
use crate::limiter::Limiter;
use crate::pages::Encoded;
use crate::transport::{CONNECTION_WINDOW_BYTES, PAGE_STREAMS};

/// Longest sleep under a rate limit, so that a raised limit is in force at once.
const PACE_SLEEP_MAX: Duration = Duration::from_millis(50);

/// The rate limit as the pump and whoever changes it share it.
#[derive(Debug, Clone)]
pub(super) struct SharedLimiter {
    limiter: Arc<Mutex<Limiter>>,
    clock: Clock,
}

impl SharedLimiter {
    pub(super) fn new(clock: Clock, limiter: Limiter) -> Self {
        Self { limiter: Arc::new(Mutex::new(limiter)), clock }
    }

    /// Changes something; what the connection may hold unsent follows.
    pub(super) fn change(&self, connection: &Connection, change: impl FnOnce(&mut Limiter, Duration)) {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut limiter, self.clock.now());
        connection.set_send_window(limiter.send_window_bytes(u64::from(CONNECTION_WINDOW_BYTES)));
    }

    fn with<T>(&self, look: impl FnOnce(&mut Limiter, Duration) -> T) -> T {
        look(&mut self.limiter.lock().unwrap_or_else(PoisonError::into_inner), self.clock.now())
    }

    async fn wait(&self, connection: &Connection) {
        loop {
            let counter = connection.stats().udp_tx.bytes;
            match self.with(|limiter, now| limiter.ready(now, counter)) {
                Ok(()) => return,
                // Nothing is limited on a connection that is gone; the write will say so.
                Err(_) if connection.close_reason().is_some() => return,
                Err(wait) => tokio::time::sleep(wait.min(PACE_SLEEP_MAX)).await,
            }
        }
    }
}

/// Sends batches until there are no more, then finishes the streams. `events` hears of each, and what
/// its pages went as.
pub(super) async fn send<E>(
    connection: Connection,
    limiter: SharedLimiter,
    mut batches: mpsc::Receiver<Encoded>,
    events: &mpsc::Sender<E>,
    tell: fn(SentPages) -> E,
) -> Result<(), WriteError> {
    let mut streams: Vec<SendStream> = Vec::with_capacity(PAGE_STREAMS);
    let mut next = 0;
    let mut meter = LinkMeter::default();
    while let Some((encoded, starved)) = next_of(&mut batches).await {
        let Encoded { head, payload, sent, link } = encoded;
        if streams.len() < PAGE_STREAMS {
            streams.push(connection.open_uni().await?);
        }
        let count = streams.len();
        let Some(stream) = streams.get_mut(next % count) else { break };
        next += 1;
        let bytes = (head.len() + payload.len()) as u64;
        let begun = Instant::now();
        for piece in [head, payload] {
            send_piece(&connection, &limiter, stream, piece).await?;
        }
        let limit = limiter.with(|limiter, _| limiter.bandwidth().bytes_per_second());
        link.set(meter.sent(bytes, begun.elapsed(), starved, limit));
        // A driver that has ended hears nothing.
        let _ = events.send(tell(sent)).await;
    }
    for mut stream in streams {
        // The other end may have closed it: everything was sent all the same.
        let _ = stream.finish();
    }
    Ok(())
}

/// The next batch, and whether it had to be waited for: then it is not the link that holds up the rest.
async fn next_of(batches: &mut mpsc::Receiver<Encoded>) -> Option<(Encoded, bool)> {
    match batches.try_recv() {
        Ok(encoded) => Some((encoded, false)),
        Err(TryRecvError::Empty) => batches.recv().await.map(|encoded| (encoded, true)),
        Err(TryRecvError::Disconnected) => None,
    }
}

async fn send_piece(
    connection: &Connection,
    limiter: &SharedLimiter,
    stream: &mut SendStream,
    mut piece: Bytes,
) -> Result<(), WriteError> {
    while !piece.is_empty() {
        limiter.wait(connection).await;
        let chunk = limiter.with(|limiter, _| limiter.chunk_bytes()).min(piece.len());
        stream.write_chunk(piece.split_to(chunk)).await?;
        let counter = connection.stats().udp_tx.bytes;
        limiter.with(|limiter, _| limiter.sent(chunk as u64, counter));
    }
    Ok(())
}

/// Why a page stream can not be read on. Closes the connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum PageStreamError {
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("page stream ended in the middle of a batch")]
    Torn(#[source] ReadExactError),
    #[error("page stream was not opened")]
    Open(#[from] ConnectionError),
}

/// A batch, the link it came over, and its payload.
pub(super) type Delivered = (u64, Batch, Vec<u8>);

/// Reads batches off one page stream until it is finished.
pub(super) async fn receive(
    mut stream: RecvStream,
    link: u64,
    guest_pages: u32,
    batches: mpsc::Sender<Delivered>,
) -> Result<(), PageStreamError> {
    loop {
        let mut head_bytes = [0; HEAD_BYTES];
        match stream.read_exact(&mut head_bytes).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(()),
            Err(error) => return Err(PageStreamError::Torn(error)),
        }
        let head = Head::decode(&head_bytes)?;
        let mut table = vec![0; head.table_bytes()];
        stream.read_exact(&mut table).await.map_err(PageStreamError::Torn)?;
        let mut payload = vec![0; head.packed_bytes().unwrap_or(head.payload_bytes())];
        stream.read_exact(&mut payload).await.map_err(PageStreamError::Torn)?;
        if head.packed_bytes().is_some() {
            payload = compress::unpack(&payload, head.payload_bytes()).ok_or_else(|| head.not_unpacked())?;
        }
        let batch = head.complete(&head_bytes, &table, &payload, guest_pages)?;
        if batches.send((link, batch, payload)).await.is_err() {
            return Ok(());
        }
    }
}
