//! The group's messages between voters: one connection out to each other voter, one in from each.
//!
//! ```text
//!   Outbox::send ─ try ─▶ queue of its voter ──▶ link ── dial as peer ── one uni stream: length, bytes, … ──▶ hear
//!                   └ full: dropped, counted        └─ lost: again after 50 ms … 1 s, without what is stale    │
//!                                                            the control actor ◀── one FromPeer after the other ┘
//! ```
//!
//! Always true: [`Outbox::send`] never waits; a voter's messages arrive in the order in which they were sent, some may
//! be missing, and raft repeats them; the end of [`Peers`] is the end of its links. What the bytes are only the control
//! group knows. Who the others are changes while it runs ([`Peers::set`]); what was sent to one that is gone still leaves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix::Recipient;
use godwit_control::{FromPeer, NodeId, Outbox};
use godwit_domain::{GroupId, NodeName};
use godwit_transfer::drive::chain;
use godwit_wire::migration::Role;
use godwit_wire::session::{Hello, PEER_BYTES_MAX};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, WriteError};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;

use crate::fabric::frames::{self, FrameError};
use crate::fabric::{BROKE_RULE, ControlCall, DialError, Fabric, REFUSED, STOPPING};

#[cfg(test)]
mod tests;

/// Messages that may wait for one voter. Raft has a few dozen under way to each, and a snapshot of some MiB is as many
/// pieces again; of a larger one the pieces that are dropped come with the next attempt.
const QUEUE: usize = 256;
/// A message that waited longer for a connection is dropped: it is of an election that is over.
const STALE: Duration = Duration::from_secs(2);
/// Wait before the second attempt to connect; it doubles from one to the next.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait before an attempt: an election's timeout, so a voter that is back is heard of within one.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection that has lasted so long is one: whoever refuses does it within a round trip.
const SETTLED: Duration = Duration::from_secs(1);
/// How long the other voter may take to allow the stream. It does so at once, or breaks a rule.
const STREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two warnings about dropped messages to one voter.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Peers {
    fabric: Fabric,
    me: NodeName,
    hello: Hello,
    queues: Mutex<BTreeMap<NodeId, Queue>>,
    /// Dropping it ends the links.
    links: Mutex<JoinSet<()>>,
}

/// Somebody in the group, and where it may be reached, the likeliest place first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// The node.
    pub name: NodeName,
    /// Its addresses.
    pub addresses: Vec<SocketAddr>,
}

type Addresses = Arc<Mutex<Vec<SocketAddr>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where messages to one voter wait.
#[derive(Debug)]
struct Queue {
    node: NodeName,
    addresses: Addresses,
    messages: mpsc::Sender<Message>,
    /// See [`Link::is_up`].
    is_up: Arc<AtomicBool>,
    drops: Drops,
}

#[derive(Debug)]
struct Message {
    at: Instant,
    bytes: Vec<u8>,
}

/// Messages for which there was no room.
#[derive(Debug, Default)]
struct Drops {
    all: u64,
    untold: u64,
    told_at: Option<Instant>,
}

impl Drops {
    /// Another one; how many are to be told of now, if any.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.all += 1;
        self.untold += 1;
        let quiet = self.told_at.is_some_and(|at| now.saturating_duration_since(at) < WARNING_INTERVAL);
        if quiet {
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

impl Peers {
    /// The voice of `me`, which has this number in this group, and this log. Nobody is there yet.
    pub fn start(
        fabric: Fabric,
        me: NodeName,
        cluster: String,
        (group, voter, log): (GroupId, NodeId, u64),
    ) -> Arc<Self> {
        let (group, voter) = (Some(group), Some(voter.get()));
        let hello = Hello { cluster, name: me.clone(), group, voter, log, node: None, after: None };
        let (queues, links) = (Mutex::default(), Mutex::default());
        Arc::new(Self { fabric, me, hello, queues, links })
    }

    /// These are the others from now on: a link begins to each new one, and that to whoever is not there any more ends
    /// when what waits for it has left. Must be called within a tokio runtime.
    pub fn set(&self, others: BTreeMap<NodeId, Met>) {
        let (mut queues, mut links) = (locked(&self.queues), locked(&self.links));
        queues.retain(|id, _| others.contains_key(id));
        while links.try_join_next().is_some() {}
        for (id, Met { name: node, addresses }) in others {
            if node == self.me {
                continue;
            }
            if let Some(queue) = queues.get(&id) {
                *locked(&queue.addresses) = addresses;
                continue;
            }
            let (messages, receiver) = mpsc::channel(QUEUE);
            let addresses = Arc::new(Mutex::new(addresses));
            let is_up = Arc::new(AtomicBool::new(false));
            let link = Link {
                fabric: self.fabric.clone(),
                node: node.clone(),
                addresses: Arc::clone(&addresses),
                tries: 0,
                hello: self.hello.clone(),
                waiting: Waiting { receiver, next: None },
                is_up: Arc::clone(&is_up),
                told: None,
            };
            links.spawn(link.run());
            queues.insert(id, Queue { node, addresses, messages, is_up, drops: Drops::default() });
        }
    }

    /// Messages to a voter for which there was no room, since it is there.
    pub fn dropped(&self, to: NodeId) -> u64 {
        locked(&self.queues).get(&to).map_or(0, |queue| queue.drops.all)
    }
}

impl Outbox for Peers {
    fn send(&self, to: NodeId, bytes: Vec<u8>) {
        let mut queues = locked(&self.queues);
        let Some(queue) = queues.get_mut(&to) else {
            // One that is just coming or going; raft repeats.
            return tracing::debug!(%to, "a message to nobody that is known: dropped");
        };
        if bytes.len() > PEER_BYTES_MAX {
            let (bytes, cap) = (bytes.len(), PEER_BYTES_MAX);
            return tracing::error!(peer = %queue.node, bytes, cap, "a message above its cap: dropped");
        }
        match queue.messages.try_send(Message { at: Instant::now(), bytes }) {
            Ok(()) => {}
            // Of a voter that can not be reached it was said.
            Err(TrySendError::Full(_)) if !queue.is_up.load(Ordering::Relaxed) => queue.drops.all += 1,
            Err(TrySendError::Full(message)) => {
                if let Some(dropped) = queue.drops.count(message.at) {
                    let all = queue.drops.all;
                    tracing::warn!(peer = %queue.node, dropped, all, "more messages than it takes: dropped");
                }
            }
            // The runtime ends.
            Err(TrySendError::Closed(_)) => {}
        }
    }
}

/// The receiving end of a queue, of which the first can be looked at.
#[derive(Debug)]
struct Waiting {
    receiver: mpsc::Receiver<Message>,
    next: Option<Message>,
}

impl Waiting {
    /// The next message; `None`: no other will come. Cancel safe.
    async fn next(&mut self) -> Option<Message> {
        match self.next.take() {
            Some(message) => Some(message),
            None => self.receiver.recv().await,
        }
    }

    /// Whether no other message will come.
    fn is_over(&self) -> bool {
        self.receiver.is_closed()
    }

    /// Drops what is too old; how many they were.
    fn drop_stale(&mut self, now: Instant) -> usize {
        let mut dropped = 0;
        while let Some(message) = self.next.take().or_else(|| self.receiver.try_recv().ok()) {
            if now.saturating_duration_since(message.at) <= STALE {
                self.next = Some(message);
                break;
            }
            dropped += 1;
        }
        dropped
    }
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("nobody has said where it is")]
    Nowhere,
    #[error("it allows no stream within {} s", STREAM_TIMEOUT.as_secs())]
    Stream,
    #[error("the connection ended")]
    Connection(#[from] ConnectionError),
    #[error("the stream broke")]
    Write(#[from] WriteError),
}

/// The way to one voter.
struct Link {
    fabric: Fabric,
    node: NodeName,
    addresses: Addresses,
    /// Attempts, of which each is at the next address.
    tries: usize,
    hello: Hello,
    waiting: Waiting,
    /// A connection has settled, and was not lost since.
    is_up: Arc<AtomicBool>,
    /// Why there is none, as it was told last.
    told: Option<String>,
}

impl Link {
    /// Connects again and again, until no message will come any more.
    async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        while let Err(error) = self.once().await {
            if self.is_up.load(Ordering::Relaxed) {
                backoff = BACKOFF_MIN;
            } else {
                self.tries += 1;
            }
            self.lost(chain(&error));
            // Whoever is not in the group any more is not looked for.
            if self.waiting.is_over() {
                return;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
            // What comes meanwhile needs the room.
            self.waiting.drop_stale(Instant::now());
        }
    }

    /// One connection, from its beginning to its end.
    async fn once(&mut self) -> Result<(), LinkError> {
        let address = self.address().ok_or(LinkError::Nowhere)?;
        let dialed = self.fabric.dial_control(address, &self.node, Role::Peer, &self.hello).await?;
        let (connection, _send, _receive) = dialed;
        let opened = tokio::time::timeout(STREAM_TIMEOUT, connection.open_uni()).await;
        let stream = opened.map_err(|_| LinkError::Stream)??;
        let stale = self.waiting.drop_stale(Instant::now());
        tracing::debug!(peer = %self.node, stale, "connected to a voter");
        self.speak(&connection, stream).await
    }

    fn address(&self) -> Option<SocketAddr> {
        let addresses = locked(&self.addresses);
        addresses.get(self.tries.checked_rem(addresses.len())?).copied()
    }

    async fn speak(&mut self, connection: &Connection, mut stream: SendStream) -> Result<(), LinkError> {
        let settled = tokio::time::sleep(SETTLED);
        tokio::pin!(settled);
        loop {
            tokio::select! {
                // The end first: what is written after it is lost.
                biased;
                ended = connection.closed() => return Err(ended.into()),
                () = &mut settled, if !self.is_up.load(Ordering::Relaxed) => self.settled(),
                message = self.waiting.next() => match message {
                    Some(message) => write(&mut stream, &message.bytes).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    fn settled(&mut self) {
        self.is_up.store(true, Ordering::Relaxed);
        self.told = None;
        tracing::info!(peer = %self.node, address = ?self.address(), "a voter is connected");
    }

    fn lost(&mut self, why: String) {
        if self.is_up.swap(false, Ordering::Relaxed) {
            tracing::info!(peer = %self.node, address = ?self.address(), why, "the connection to a voter is lost");
        } else if self.told.as_ref() != Some(&why) {
            tracing::info!(peer = %self.node, address = ?self.address(), why, "a voter can not be reached");
        }
        self.told = Some(why);
    }
}

/// Writes a message. Not cancel safe: half of one makes the rest of the stream unreadable.
async fn write(stream: &mut SendStream, bytes: &[u8]) -> Result<(), WriteError> {
    // Bounded by `Outbox::send`; a length that does not fit is refused at the other end.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_all(bytes).await
}

/// Why a voter is not listened to any longer.
#[derive(Debug, thiserror::Error)]
enum HearError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("this node's voter has stopped")]
    Stopped,
    #[error("it is in the control group no more")]
    Removed,
}

/// Delivers a voter's messages to the control actor until its connection ends. `from` is the voter whose name the call
/// bears, and is heard for as long as it is in the group. A message is delivered when the one before it was taken, so a
/// slow voter slows its peer.
pub async fn hear(
    call: ControlCall,
    from: NodeId,
    control: Recipient<FromPeer>,
    is_in: impl Fn() -> bool + Send,
) {
    let ControlCall { connection, stream: _first, hello, .. } = call;
    loop {
        let stream = match connection.accept_uni().await {
            Ok(stream) => stream,
            Err(why) => {
                return tracing::debug!(peer = %hello.name, why = chain(&why), "a voter's connection ended");
            }
        };
        let Err(error) = deliver(stream, from, &control, &is_in).await else { continue };
        if connection.close_reason().is_none() {
            let code = match error {
                HearError::Stopped => STOPPING,
                HearError::Removed => REFUSED,
                HearError::Frame(_) => BROKE_RULE,
            };
            connection.close(code.into(), error.to_string().as_bytes());
            match error {
                // The node is ending, or the other one is on its way out.
                HearError::Stopped | HearError::Removed => {
                    tracing::info!(peer = %hello.name, %error, "a voter is not listened to any longer")
                }
                HearError::Frame(_) => {
                    tracing::warn!(peer = %hello.name, %error, "a voter is not listened to any longer")
                }
            }
        }
    }
}

async fn deliver(
    mut stream: RecvStream,
    from: NodeId,
    control: &Recipient<FromPeer>,
    is_in: &(impl Fn() -> bool + Send),
) -> Result<(), HearError> {
    while let Some(bytes) = frames::read_body(&mut stream, "a voter's message", PEER_BYTES_MAX).await? {
        if !is_in() {
            return Err(HearError::Removed);
        }
        control.send(FromPeer { from, bytes }).await.map_err(|_| HearError::Stopped)?;
    }
    Ok(())
}
