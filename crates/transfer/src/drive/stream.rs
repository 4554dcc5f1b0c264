//! Batches onto page streams under the rate limit, and off them with every check.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_domain::Bandwidth;
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
use crate::target::Lane;
use crate::transport::{CONNECTION_WINDOW_BYTES, PAGE_STREAMS};

/// Longest sleep under a rate limit, so that a raised limit is in force at once.
const PACE_SLEEP_MAX: Duration = Duration::from_millis(50);

/// The rate limit of a migration as its pumps and whoever changes it share it: one for all its connections, present and past.
#[derive(Debug, Clone)]
pub(super) struct SharedLimiter {
    limited: Arc<Mutex<Limited>>,
    clock: Clock,
}

#[derive(Debug)]
struct Limited {
    limiter: Limiter,
    /// Bytes that were sent over connections that are gone.
    before: u64,
    /// The present one for pages in bulk, and the one for all else.
    connections: Option<(Connection, Connection)>,
    /// The most that the bulk may hold unsent.
    window_bytes: u64,
}

impl Limited {
    fn counter(&self) -> u64 {
        let sent = |connection: &Connection| connection.stats().udp_tx.bytes;
        let present = self.connections.as_ref().map_or(0, |(bulk, urgent)| sent(bulk) + sent(urgent));
        self.before + present
    }

    fn apply_window(&self) {
        if let Some((bulk, _)) = &self.connections {
            bulk.set_send_window(self.limiter.send_window_bytes(self.window_bytes));
        }
    }
}

impl SharedLimiter {
    pub(super) fn new(clock: Clock, limiter: Limiter) -> Self {
        let window_bytes = u64::from(CONNECTION_WINDOW_BYTES);
        let limited = Limited { limiter, before: 0, connections: None, window_bytes };
        Self { limited: Arc::new(Mutex::new(limited)), clock }
    }

    /// What is sent from now on is sent over these.
    pub(super) fn attach(&self, bulk: &Connection, urgent: &Connection) {
        self.with(|limited, _| {
            limited.before = limited.counter();
            limited.connections = Some((bulk.clone(), urgent.clone()));
            limited.apply_window();
        });
    }

    /// Another limit; what the connection may hold unsent follows.
    pub(super) fn set(&self, bandwidth: Bandwidth) {
        self.with(|limited, now| {
            limited.limiter.set(now, bandwidth);
            limited.apply_window();
        });
    }

    /// The bulk may hold no more than this unsent.
    pub(super) fn set_window(&self, bytes: u64) {
        self.with(|limited, _| {
            limited.window_bytes = bytes.min(u64::from(CONNECTION_WINDOW_BYTES));
            limited.apply_window();
        });
    }

    /// Bytes of UDP payload that were sent, over all connections.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.with(|limited, _| limited.counter())
    }

    /// Bytes per second; `None` without a limit.
    fn limit(&self) -> Option<u64> {
        self.with(|limited, _| limited.limiter.bandwidth().bytes_per_second())
    }

    fn chunk_bytes(&self) -> usize {
        self.with(|limited, _| limited.limiter.chunk_bytes())
    }

    /// So many bytes were handed to a connection.
    fn charge(&self, bytes: u64) {
        self.with(|limited, _| {
            let counter = limited.counter();
            limited.limiter.sent(bytes, counter);
        });
    }

    fn with<T>(&self, look: impl FnOnce(&mut Limited, Duration) -> T) -> T {
        look(&mut self.limited.lock().unwrap_or_else(PoisonError::into_inner), self.clock.now())
    }

    async fn wait(&self, connection: &Connection) {
        loop {
            let ready = self.with(|limited, now| {
                let counter = limited.counter();
                limited.limiter.ready(now, counter)
            });
            match ready {
                Ok(()) => return,
                // Nothing is limited on a connection that is gone; the write will say so.
                Err(_) if connection.close_reason().is_some() => return,
                Err(wait) => tokio::time::sleep(wait.min(PACE_SLEEP_MAX)).await,
            }
        }
    }
}

/// Sends batches in bulk until there are no more, then finishes the streams. `events` hears of each, and what its pages
/// went as.
pub(super) async fn send<E>(
    connection: &Connection,
    limiter: &SharedLimiter,
    batches: &mut mpsc::Receiver<Encoded>,
    events: &mpsc::Sender<E>,
    tell: fn(SentPages) -> E,
) -> Result<(), WriteError> {
    let mut streams: Vec<SendStream> = Vec::with_capacity(PAGE_STREAMS);
    let mut next = 0;
    let mut meter = LinkMeter::default();
    while let Some((encoded, starved)) = next_of(batches).await {
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
            send_piece(connection, limiter, stream, piece).await?;
        }
        let limit = limiter.limit();
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

/// Sends batches that somebody waits for: charged to the limit, and never held up by it.
pub(super) async fn send_urgent<E>(
    connection: &Connection,
    limiter: &SharedLimiter,
    batches: &mut mpsc::Receiver<Encoded>,
    events: &mpsc::Sender<E>,
    tell: fn(SentPages) -> E,
) -> Result<(), WriteError> {
    let mut stream: Option<SendStream> = None;
    while let Some(Encoded { head, payload, sent, link: _ }) = batches.recv().await {
        let stream = match &mut stream {
            Some(stream) => stream,
            none => none.insert(connection.open_uni().await?),
        };
        let bytes = (head.len() + payload.len()) as u64;
        stream.write_all_chunks(&mut [head, payload]).await?;
        limiter.charge(bytes);
        let _ = events.send(tell(sent)).await;
    }
    if let Some(mut stream) = stream {
        let _ = stream.finish();
    }
    Ok(())
}

async fn send_piece(
    connection: &Connection,
    limiter: &SharedLimiter,
    stream: &mut SendStream,
    mut piece: Bytes,
) -> Result<(), WriteError> {
    while !piece.is_empty() {
        limiter.wait(connection).await;
        let chunk = limiter.chunk_bytes().min(piece.len());
        stream.write_chunk(piece.split_to(chunk)).await?;
        limiter.charge(chunk as u64);
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

/// A batch, the link and the lane it came over, and its payload.
pub(super) type Delivered = (u64, Lane, Batch, Vec<u8>);

/// Reads batches off one page stream until it is finished.
pub(super) async fn receive(
    mut stream: RecvStream,
    (link, lane): (u64, Lane),
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
        if batches.send((link, lane, batch, payload)).await.is_err() {
            return Ok(());
        }
    }
}
