//! How QUIC is set up for pages. Each figure was measured on loopback with two processes; what matters, in order:
//! segmentation offload, packet size, windows large enough that socket buffers do not overflow, large chunks.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// Bytes that may be on the way on one stream. Below it a stream stalls at 10 Gbit/s × 5 ms; above it memory
/// grows and nothing gets faster.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes that may be on the way before anything is known of it. A device state and the stamps of a whole guest go over a connection
/// that has carried next to nothing, while the guest stands still: in quinn's own 14 KB they took six round trips. A sender
/// paces them over one.
const FIRST_WINDOW_BYTES: u64 = 1 << 20;
/// Bytes that may be on the way, or unsent, on one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Page streams of one connection: a lost packet holds up one of them only.
pub const PAGE_STREAMS: usize = 4;
/// A silent peer is given up after this long; a keepalive goes out every third of it.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
const KEEPALIVE: Duration = Duration::from_secs(1);
/// Smallest UDP payload that every path must carry (RFC 9000, 14).
const UDP_PAYLOAD_BYTES_MIN: u16 = 1200;

/// After so long larger packets are tried again on a link that has lost several of them in a row, or on which the probes were lost. A
/// link that merely loses packets looks like one that carries no large ones, and is several times slower with small ones; quinn
/// would try again after a minute, and after ten.
const LARGE_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The transport of a migration's connection. `udp_payload_bytes_max` is looked for by path discovery; above
/// 1,452 it needs jumbo frames on the whole path.
pub fn config(udp_payload_bytes_max: u16) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery
        .upper_bound(udp_payload_bytes_max)
        .black_hole_cooldown(LARGE_AGAIN_AFTER)
        .interval(LARGE_AGAIN_AFTER);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(FIRST_WINDOW_BYTES);
    let mut config = TransportConfig::default();
    config
        .mtu_discovery_config(Some(discovery))
        .initial_mtu(UDP_PAYLOAD_BYTES_MIN)
        .congestion_controller_factory(Arc::new(congestion))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(u32::try_from(PAGE_STREAMS).unwrap_or(u32::MAX)))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEPALIVE))
        .max_idle_timeout(IdleTimeout::try_from(SILENCE_MAX).ok());
    config
}

/// [`config`] as quinn shares it.
pub fn shared(udp_payload_bytes_max: u16) -> Arc<TransportConfig> {
    Arc::new(config(udp_payload_bytes_max))
}

/// The endpoint of a migration address: it must accept packets as large as the peers may send.
///
/// # Errors
/// If the size is one that QUIC does not allow, below 1,200.
pub fn endpoint_config(udp_payload_bytes_max: u16) -> Result<EndpointConfig, quinn::ConfigError> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(udp_payload_bytes_max)?;
    Ok(config)
}
