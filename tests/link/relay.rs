//! A relay of UDP between whoever calls and one target, with a bad link each way.
//!
//! ```text
//!   client A ◀──▶ ┌ front socket ┐ ── there ──▶ ┌ A's socket ┐ ◀──▶
//!   client B ◀──▶ └ (address)    ┘ ◀── back ─── └ B's socket ┘ ◀──▶ target, which sees one caller for each client
//! ```
//!
//! Always true: a client keeps its socket, so a QUIC connection never seems to wander; datagrams are passed as they
//! are; memory is bounded by the plans and [`CLIENTS_MAX`]. It ends when it is dropped.
//!
//! It is a thread of its own and waits in `ppoll`: a link of half a millisecond needs a finer clock than a runtime's
//! timers, and must not stand still while a story is busy.

#[path = "port.rs"]
mod port;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use self::port::{Piece, Port};
use super::one_way::{Counts, Datagram, Link, Plan};

/// Most clients at once; for another one, that which was silent for the longest is forgotten.
const CLIENTS_MAX: usize = 64;
/// The largest UDP payload, of one datagram or of a burst in one piece.
const PIECE_BYTES_MAX: usize = 65_535;
/// Pieces read from one socket before others and the clock have their turn.
const TURN: usize = 16;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the target.
    There,
    /// To the clients.
    Back,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    line: Mutex<Line>,
    /// Rouses the thread when something was changed.
    bell: OwnedFd,
}

/// What the thread and those who change the link share.
#[derive(Debug)]
struct Line {
    there: Link,
    back: Link,
    unsent: u64,
    is_over: bool,
}

impl Relay {
    /// A relay at another port of the target's IP address. What chance decides follows from the seed.
    ///
    /// # Errors
    /// No socket, or no thread.
    pub(crate) fn start(target: SocketAddr, seed: u64, there: Plan, back: Plan) -> io::Result<Self> {
        Self::start_at((target.ip(), 0).into(), target, seed, there, back)
    }

    /// The same at an address of one's own choice; port 0: the kernel chooses.
    ///
    /// # Errors
    /// No socket, or no thread.
    pub(crate) fn start_at(
        front: SocketAddr,
        target: SocketAddr,
        seed: u64,
        there: Plan,
        back: Plan,
    ) -> io::Result<Self> {
        let front = Port::at(front)?;
        let address = front.address()?;
        let mut rng = Rng::with_seed(seed);
        let (there, back) = (Link::new(there, rng.fork()), Link::new(back, rng.fork()));
        let line = Mutex::new(Line { there, back, unsent: 0, is_over: false });
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { line, bell });
        let passer = Passer {
            front,
            target,
            clients: BTreeMap::new(),
            began: Instant::now(),
            piece: Piece::default(),
        };
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("link".to_owned());
        let thread = Some(thread.spawn(move || passer.run(&of_thread))?);
        Ok(Self { address, shared, thread })
    }

    /// Where clients call.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The plans, in one line. With the seed they are all that decides the fates.
    pub(crate) fn plans(&self) -> String {
        let line = self.shared.line();
        format!("there {}; back {}", line.there.plan(), line.back.plan())
    }

    /// Another plan for what comes from now on.
    pub(crate) fn change(&self, way: Way, plan: Plan) {
        self.alter(|line| line.of(way).change(plan));
    }

    /// Cuts one direction: what is on the way is lost, and nothing passes until it is mended.
    pub(crate) fn cut(&self, way: Way) {
        self.alter(|line| line.of(way).cut());
    }

    /// Cuts both directions at once.
    pub(crate) fn cut_both(&self) {
        self.alter(|line| [Way::There, Way::Back].into_iter().for_each(|way| line.of(way).cut()));
    }

    /// Mends what is cut.
    pub(crate) fn mend(&self) {
        self.alter(|line| [Way::There, Way::Back].into_iter().for_each(|way| line.of(way).mend()));
    }

    /// What has become of datagrams.
    pub(crate) fn counts(&self, way: Way) -> Counts {
        self.shared.line().of(way).counts()
    }

    /// Delivered datagrams that the kernel did not take, as nobody was at the other end or a buffer was full.
    pub(crate) fn unsent(&self) -> u64 {
        self.shared.line().unsent
    }

    fn alter(&self, change: impl FnOnce(&mut Line)) {
        change(&mut self.shared.line());
        // A full bell has not been heard yet, which does as well.
        let _ = rustix::io::write(&self.shared.bell, &1_u64.to_ne_bytes());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.alter(|line| line.is_over = true);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn of(&mut self, way: Way) -> &mut Link {
        match way {
            Way::There => &mut self.there,
            Way::Back => &mut self.back,
        }
    }
}

/// What the thread has for itself.
struct Passer {
    front: Port,
    target: SocketAddr,
    clients: BTreeMap<SocketAddr, Client>,
    began: Instant,
    piece: Piece,
}

/// What a client has here.
struct Client {
    port: Port,
    /// When it last sent something.
    heard: Duration,
}

impl Passer {
    fn run(mut self, shared: &Shared) {
        let mut buffer = vec![0; PIECE_BYTES_MAX];
        loop {
            let mut line = shared.line();
            if line.is_over {
                return;
            }
            self.take_in(&mut line, &mut buffer);
            self.give_out(&mut line);
            let next = [&line.there, &line.back].into_iter().filter_map(Link::next_due).min();
            drop(line);
            self.wait(&shared.bell, next);
        }
    }

    /// Offers what has come to the links.
    fn take_in(&mut self, line: &mut Line, buffer: &mut [u8]) {
        for _ in 0..TURN {
            let Ok((client, payloads)) = self.front.take(buffer) else { break };
            let now = self.began.elapsed();
            if self.has_port(client, now) {
                payloads.for_each(|payload| line.there.offer(now, Datagram { client, payload }));
            }
        }
        for (&client, Client { port, .. }) in &self.clients {
            for _ in 0..TURN {
                // An error is what became of an earlier datagram; the next turn tries again.
                let Ok((_, payloads)) = port.take(buffer) else { break };
                let now = self.began.elapsed();
                payloads.for_each(|payload| line.back.offer(now, Datagram { client, payload }));
            }
        }
    }

    /// Sends what has arrived at the links' ends.
    fn give_out(&mut self, line: &mut Line) {
        let now = self.began.elapsed();
        let one_client = |one: &Datagram, other: &Datagram| one.client == other.client;
        for due in line.there.due(now).chunk_by(one_client) {
            let client = due.first().and_then(|first| self.clients.get(&first.client));
            let payloads = due.iter().map(|datagram| &datagram.payload);
            let count = u64::try_from(due.len()).unwrap_or(u64::MAX);
            line.unsent +=
                client.map_or(count, |client| client.port.give(self.target, payloads, &mut self.piece));
        }
        for due in line.back.due(now).chunk_by(one_client) {
            let Some(first) = due.first() else { continue };
            let payloads = due.iter().map(|datagram| &datagram.payload);
            line.unsent += self.front.give(first.client, payloads, &mut self.piece);
        }
    }

    /// Until something comes, or is due, or was changed.
    fn wait(&self, bell: &OwnedFd, next: Option<Duration>) {
        let left = next.map(|next| next.saturating_sub(self.began.elapsed()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut awaited = vec![PollFd::new(bell, PollFlags::IN), PollFd::new(&self.front, PollFlags::IN)];
        awaited.extend(self.clients.values().map(|client| PollFd::new(&client.port, PollFlags::IN)));
        // Interrupted or not: the loop looks at everything.
        let _ = poll(&mut awaited, left.as_ref());
        let _ = rustix::io::read(bell, &mut [0; 8]);
    }

    /// Whether a client that is heard has its port now.
    fn has_port(&mut self, client: SocketAddr, now: Duration) -> bool {
        if let Some(known) = self.clients.get_mut(&client) {
            known.heard = now;
            return true;
        }
        if self.clients.len() >= CLIENTS_MAX {
            let silent = self.clients.iter().min_by_key(|(_, client)| client.heard);
            let silent = silent.map(|(address, _)| *address);
            silent.map(|address| self.clients.remove(&address));
        }
        let Ok(port) = Port::towards(self.target) else { return false };
        self.clients.insert(client, Client { port, heard: now });
        true
    }
}
