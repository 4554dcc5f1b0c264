//! A socket of a relay. A burst that the kernel has in one piece (segmentation offload) is taken in one piece, and
//! given in one piece: most of a relay's time is the kernel's, for each piece anew.
//!
//! ```text
//!   take ─▶ datagrams of one sender, as they were sent
//!   give ◀─ datagrams: those of one size behind each other are a burst
//! ```
//!
//! Always true: it never blocks, and never sends fragments; whoever hears sees datagrams, however many were one piece.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::net::sockopt;

/// Kernel buffers of each socket: more than a migration's window, so that only the plan loses anything.
const SOCKET_BUFFER_BYTES: usize = 16 << 20;
/// The largest payload of UDP over IPv4, of one datagram or of a burst in one piece.
const PIECE_BYTES_MAX: usize = 65_507;

/// See the module.
#[derive(Debug)]
pub(super) struct Port {
    socket: UdpSocket,
    offload: UdpSocketState,
}

impl Port {
    /// One at this address; with large buffers if this user may have them.
    pub(super) fn at(address: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
        }
        sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
        let offload = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self { socket, offload })
    }

    /// One that hears the target only.
    pub(super) fn towards(target: SocketAddr) -> io::Result<Self> {
        let port = Self::at(match target {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        })?;
        port.socket.connect(target)?;
        Ok(port)
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The datagrams of the next piece, and who sent them.
    pub(super) fn take(
        &self,
        buffer: &mut [u8],
    ) -> io::Result<(SocketAddr, impl Iterator<Item = Bytes> + use<>)> {
        let mut meta = [RecvMeta::default()];
        self.offload.recv(UdpSockRef::from(&self.socket), &mut [IoSliceMut::new(buffer)], &mut meta)?;
        let [RecvMeta { addr, len, stride, .. }] = meta;
        let mut rest = Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default());
        let mut is_first = true;
        let next = move || {
            // An empty datagram is one, too.
            let is_there = std::mem::take(&mut is_first) || !rest.is_empty();
            is_there.then(|| rest.split_to(if stride == 0 { rest.len() } else { stride.min(rest.len()) }))
        };
        Ok((addr, std::iter::from_fn(next)))
    }

    /// Sends datagrams, piece by piece, and says how many the kernel did not take.
    pub(super) fn give<'d>(
        &self,
        to: SocketAddr,
        datagrams: impl Iterator<Item = &'d Bytes>,
        piece: &mut Piece,
    ) -> u64 {
        let mut unsent = 0;
        piece.clear();
        for datagram in datagrams {
            if !piece.takes(datagram, self.offload.max_gso_segments()) {
                unsent += self.send(to, piece);
                piece.clear();
            }
            piece.add(datagram);
        }
        unsent + self.send(to, piece)
    }

    /// Sends a piece, if there is anything in it.
    fn send(&self, to: SocketAddr, Piece { bytes, size, count }: &Piece) -> u64 {
        let segment_size = (*count > 1).then_some(*size);
        let transmit = Transmit { destination: to, ecn: None, contents: bytes, segment_size, src_ip: None };
        let sent = *count == 0 || self.offload.try_send(UdpSockRef::from(&self.socket), &transmit).is_ok();
        if sent { 0 } else { *count }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What leaves in one piece: datagrams of one size, the last of which may be shorter. Its memory is used again.
#[derive(Default)]
pub(super) struct Piece {
    bytes: Vec<u8>,
    /// Of the first datagram.
    size: usize,
    count: u64,
}

impl Piece {
    fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    fn takes(&self, datagram: &Bytes, count_max: usize) -> bool {
        let count = usize::try_from(self.count).unwrap_or(usize::MAX);
        let is_whole = self.bytes.len() == self.size.saturating_mul(count);
        let fits = count < count_max && self.bytes.len() + datagram.len() <= PIECE_BYTES_MAX;
        count == 0 || (is_whole && fits && (1..=self.size).contains(&datagram.len()))
    }

    fn add(&mut self, datagram: &Bytes) {
        if self.count == 0 {
            self.size = datagram.len();
        }
        self.bytes.extend_from_slice(datagram);
        self.count += 1;
    }
}
