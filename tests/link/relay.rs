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

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::sockopt;

use super::one_way::{Counts, Datagram, Link, Plan};

/// Most clients at once; for another one, that which was silent for the longest is forgotten.
const CLIENTS_MAX: usize = 64;
/// Kernel buffers of each socket: more than a migration's window, so that only the plan loses anything.
const SOCKET_BUFFER_BYTES: usize = 16 << 20;
/// The largest UDP payload.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Datagrams read from one socket before others and the clock have their turn.
const TURN: usize = 64;

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
        let front = socket(front)?;
        let address = front.local_addr()?;
        let mut rng = Rng::with_seed(seed);
        let (there, back) = (Link::new(there, rng.fork()), Link::new(back, rng.fork()));
        let line = Mutex::new(Line { there, back, unsent: 0, is_over: false });
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { line, bell });
        let passer = Passer { front, target, clients: BTreeMap::new(), began: Instant::now() };
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
    front: UdpSocket,
    target: SocketAddr,
    clients: BTreeMap<SocketAddr, Client>,
    began: Instant,
}

/// What a client has here.
struct Client {
    socket: UdpSocket,
    /// When it last sent something.
    heard: Duration,
}

impl Passer {
    fn run(mut self, shared: &Shared) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
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
            let Ok((length, client)) = self.front.recv_from(buffer) else { break };
            let now = self.began.elapsed();
            if self.has_socket(client, now) {
                let payload = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
                line.there.offer(now, Datagram { client, payload });
            }
        }
        for (client, Client { socket, .. }) in &self.clients {
            for _ in 0..TURN {
                // An error is what became of an earlier datagram; the next turn tries again.
                let Ok(length) = socket.recv(buffer) else { break };
                let payload = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
                line.back.offer(self.began.elapsed(), Datagram { client: *client, payload });
            }
        }
    }

    /// Sends what has arrived at the links' ends.
    fn give_out(&self, line: &mut Line) {
        let now = self.began.elapsed();
        for Datagram { client, payload } in line.there.due(now) {
            let sent = self.clients.get(&client).map(|client| client.socket.send(&payload));
            line.unsent += u64::from(!matches!(sent, Some(Ok(_))));
        }
        for Datagram { client, payload } in line.back.due(now) {
            line.unsent += u64::from(self.front.send_to(&payload, client).is_err());
        }
    }

    /// Until something comes, or is due, or was changed.
    fn wait(&self, bell: &OwnedFd, next: Option<Duration>) {
        let left = next.map(|next| next.saturating_sub(self.began.elapsed()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut awaited = vec![PollFd::new(bell, PollFlags::IN), PollFd::new(&self.front, PollFlags::IN)];
        awaited.extend(self.clients.values().map(|client| PollFd::new(&client.socket, PollFlags::IN)));
        // Interrupted or not: the loop looks at everything.
        let _ = poll(&mut awaited, left.as_ref());
        let _ = rustix::io::read(bell, &mut [0; 8]);
    }

    /// Whether a client that is heard has its socket now.
    fn has_socket(&mut self, client: SocketAddr, now: Duration) -> bool {
        if let Some(known) = self.clients.get_mut(&client) {
            known.heard = now;
            return true;
        }
        if self.clients.len() >= CLIENTS_MAX {
            let silent = self.clients.iter().min_by_key(|(_, client)| client.heard);
            let silent = silent.map(|(address, _)| *address);
            silent.map(|address| self.clients.remove(&address));
        }
        let Ok(socket) = towards(self.target) else { return false };
        self.clients.insert(client, Client { socket, heard: now });
        true
    }
}

/// A socket that hears the target only.
fn towards(target: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    })?;
    socket.connect(target)?;
    Ok(socket)
}

/// A socket that never blocks, with large buffers if this user may have them.
fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    }
    sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    Ok(socket)
}
