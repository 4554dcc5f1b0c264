//! The endpoints: their sockets, and how QUIC is set up on each.
//!
//! ```text
//!   migration   one for each address, the default and those of named networks, all alike:
//!               few connections, all bandwidth:  packets and socket buffers as configured, `transfer::transport`
//!   control     many connections, short frames:  many streams, small windows, packets that every link carries
//! ```
//!
//! Always true: the sockets are different ones, so pages never stand before a heartbeat in a queue of this process;
//! a silent peer is given up after 3 s on all. Nothing here knows who calls.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use godwit_transfer::transport;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};

use super::Migrating;
use crate::config::{ConfigError, Listen, NodeConfig};
use crate::identity::Identity;

/// A keepalive goes out after this long without a packet, three times before the peer is given up.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// A silent peer is given up after this long: later than an election, sooner than a person asks what is wrong.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Questions that may be open at once on one connection; whoever has more waits. Each guest of a node has one or two
/// while it moves.
const BIDI_STREAMS_MAX: u32 = 256;
/// One-way streams of one connection. A voter has one; the others bear with one that is being replaced.
const UNI_STREAMS_MAX: u32 = 16;
/// Bytes that may be on the way on one stream: the largest message is on the way whole.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Bytes that may be on the way, or unsent, on one connection: some large answers beside each other.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// The first packets: what every path must carry (RFC 9000, 14).
const UDP_PAYLOAD_BYTES_MIN: u16 = 1200;
/// The largest that is looked for: what fits a link of 1,500 bytes with IPv6 and UDP headers. Frames are short, so
/// larger ones would gain nothing.
const UDP_PAYLOAD_BYTES_MAX: u16 = 1452;

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// The address can not be had, with the line that would.
    #[error(transparent)]
    Address(#[from] ConfigError),
    /// The socket can not be used.
    #[error("UDP socket on {address}")]
    Socket {
        /// Its address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS has no cipher that QUIC can use, or the packet size is not allowed. A broken build.
    #[error("QUIC can not be set up: {0}")]
    Setup(String),
}

/// The endpoint of a migration address: the default one, or that of a network.
pub(super) fn migration(
    config: &NodeConfig,
    identity: &Identity,
    which: Listen<'_>,
    address: SocketAddr,
) -> Result<Migrating, FabricError> {
    let udp_payload_bytes_max = config.migration.udp_payload_bytes_max;
    let one = |address| {
        let setup = transport::endpoint_config(udp_payload_bytes_max)
            .map_err(|error| FabricError::Setup(error.to_string()))?;
        let socket = bind(config, which, address)?;
        enlarge(config, &socket).map_err(|source| FabricError::Socket { address, source })?;
        endpoint(setup, transport::shared(udp_payload_bytes_max), socket, identity)
    };
    Ok(Migrating { urgent: one(address)?, bulk: one(SocketAddr::new(address.ip(), 0))? })
}

/// The endpoint of the control address.
pub(super) fn control(config: &NodeConfig, identity: &Identity) -> Result<Endpoint, FabricError> {
    let mut setup = EndpointConfig::default();
    setup
        .max_udp_payload_size(UDP_PAYLOAD_BYTES_MAX)
        .map_err(|error| FabricError::Setup(error.to_string()))?;
    let socket = bind(config, Listen::Control, config.control.listen)?;
    endpoint(setup, Arc::new(control_transport()), socket, identity)
}

fn control_transport() -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(UDP_PAYLOAD_BYTES_MAX);
    let mut config = TransportConfig::default();
    config
        .mtu_discovery_config(Some(discovery))
        .initial_mtu(UDP_PAYLOAD_BYTES_MIN)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS_MAX))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEPALIVE))
        .max_idle_timeout(IdleTimeout::try_from(SILENCE_MAX).ok());
    config
}

fn endpoint(
    setup: EndpointConfig,
    transport: Arc<TransportConfig>,
    socket: UdpSocket,
    identity: &Identity,
) -> Result<Endpoint, FabricError> {
    let refused = |error: &dyn std::fmt::Display| FabricError::Setup(error.to_string());
    let tls = QuicServerConfig::try_from(identity.server()).map_err(|error| refused(&error))?;
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    server.transport_config(Arc::clone(&transport));
    let tls = QuicClientConfig::try_from(identity.client()).map_err(|error| refused(&error))?;
    let mut client = ClientConfig::new(Arc::new(tls));
    client.transport_config(transport);
    let address = socket.local_addr();
    let mut endpoint =
        Endpoint::new(setup, Some(server), socket, Arc::new(TokioRuntime)).map_err(|source| {
            let address = address.unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
            FabricError::Socket { address, source }
        })?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

fn bind(config: &NodeConfig, which: Listen<'_>, address: SocketAddr) -> Result<UdpSocket, FabricError> {
    UdpSocket::bind(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => config.address_in_use(which, address).into(),
        _ => FabricError::Socket { address, source },
    })
}

/// Gives a migration socket its buffers. The control socket's few packets fit those that the kernel gives.
fn enlarge(config: &NodeConfig, socket: &UdpSocket) -> io::Result<()> {
    let buffer = socket2::SockRef::from(socket);
    let bytes = usize::try_from(config.migration.socket_buffer_bytes.bytes()).map_err(io::Error::other)?;
    buffer.set_recv_buffer_size(bytes)?;
    buffer.set_send_buffer_size(bytes)?;
    // The kernel reports twice what it gives, for its own book-keeping.
    let given = buffer.recv_buffer_size()? / 2;
    if given < bytes {
        tracing::warn!(
            asked = bytes,
            given,
            "socket buffers are smaller than asked: raise net.core.rmem_max and wmem_max"
        );
    }
    Ok(())
}
