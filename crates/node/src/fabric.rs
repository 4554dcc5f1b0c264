//! Connections between nodes: one QUIC endpoint on the migration address, mutual TLS, and a greeting that says who
//! speaks and what for before anything else is believed.
//!
//! ```text
//!   dial(address, name) ── TLS: its certificate bears that name ── greeting, preamble ──▶
//!   ──▶ serve ── TLS: a certificate of our CA ── greeting ── its certificate bears the name in the preamble ──▶ Call
//! ```
//!
//! Always true: what comes out of [`Fabric::serve`] is authenticated and says truly which node speaks; everything
//! else is refused by name, logged once, and cost a bounded amount of memory and time.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use godwit_domain::NodeName;
use godwit_transfer::control::{self, ControlError};
use godwit_transfer::drive::chain;
use godwit_transfer::drive::target::Inbound;
use godwit_transfer::transport;
use godwit_wire::migration::{Mismatch, Preamble, TargetFrame};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, Incoming, RecvStream, SendStream, ServerConfig, TokioRuntime,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::config::{ConfigError, NodeConfig};
use crate::identity::{Identity, peer_is};

/// Connections that may be greeting at once. A node has a handful of migrations; more is a flood, and waits.
const GREETING_MAX: usize = 64;
/// How long a peer may take from its first packet to its preamble.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection attempt may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Tells a peer, in its close, that it was refused.
const REFUSED: u32 = 1;

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

/// Why a peer can not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The attempt could not begin.
    #[error("connect to {node} at {address}")]
    Connect {
        /// Who.
        node: NodeName,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: quinn::ConnectError,
    },
    /// TLS or the network refused.
    #[error("connect to {node} at {address}")]
    Handshake {
        /// Who.
        node: NodeName,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: quinn::ConnectionError,
    },
    /// Nothing was heard.
    #[error("connect to {node} at {address}: no answer within {} s", DIAL_TIMEOUT.as_secs())]
    Timeout {
        /// Who.
        node: NodeName,
        /// Where.
        address: SocketAddr,
    },
    /// The greeting could not be sent.
    #[error("greet {node}")]
    Greet {
        /// Who.
        node: NodeName,
        /// Why.
        source: ControlError,
    },
}

/// The endpoint of a node's migration address.
#[derive(Debug, Clone)]
pub struct Fabric {
    endpoint: Endpoint,
}

impl Fabric {
    /// Binds the migration address. Must be called within a tokio runtime.
    pub fn bind(config: &NodeConfig, identity: &Identity) -> Result<Self, FabricError> {
        let udp_payload_bytes_max = config.migration.udp_payload_bytes_max;
        let setup = |error: &dyn std::fmt::Display| FabricError::Setup(error.to_string());
        let tls = QuicServerConfig::try_from(identity.server()).map_err(|error| setup(&error))?;
        let mut server = ServerConfig::with_crypto(Arc::new(tls));
        server.transport_config(transport::shared(udp_payload_bytes_max));
        let endpoint_config =
            transport::endpoint_config(udp_payload_bytes_max).map_err(|error| setup(&error))?;
        let address = config.migration.listen;
        let used = |source| FabricError::Socket { address, source };
        let socket = socket(config).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => config.address_in_use().into(),
            _ => used(source),
        })?;
        let mut endpoint =
            Endpoint::new(endpoint_config, Some(server), socket, Arc::new(TokioRuntime)).map_err(used)?;
        let tls = QuicClientConfig::try_from(identity.client()).map_err(|error| setup(&error))?;
        let mut client = ClientConfig::new(Arc::new(tls));
        client.transport_config(transport::shared(udp_payload_bytes_max));
        endpoint.set_default_client_config(client);
        Ok(Self { endpoint })
    }

    /// The address that was bound, with the port that the kernel chose.
    ///
    /// # Errors
    /// If the socket is gone.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Connects to a node and says what for. Its certificate must bear its name.
    pub async fn dial(
        &self,
        address: SocketAddr,
        node: &NodeName,
        preamble: &Preamble,
    ) -> Result<(Connection, SendStream, RecvStream), DialError> {
        let about = || (node.clone(), address);
        let connecting = self.endpoint.connect(address, &node.certificate_name()).map_err(|source| {
            let (node, address) = about();
            DialError::Connect { node, address, source }
        })?;
        let handshake = |source| {
            let (node, address) = about();
            DialError::Handshake { node, address, source }
        };
        let attempt = async {
            let connection = connecting.await.map_err(handshake)?;
            let (mut send, receive) = connection.open_bi().await.map_err(handshake)?;
            // What is said here goes before pages that are waiting.
            let _ = send.set_priority(1);
            control::greet(&mut send, preamble)
                .await
                .map_err(|source| DialError::Greet { node: node.clone(), source })?;
            Ok((connection, send, receive))
        };
        tokio::time::timeout(DIAL_TIMEOUT, attempt).await.unwrap_or_else(|_| {
            let (node, address) = about();
            Err(DialError::Timeout { node, address })
        })
    }

    /// Answers peers until the endpoint closes. Whoever has greeted as it should comes out of `calls`.
    pub async fn serve(self, calls: mpsc::Sender<Inbound>) {
        let greeting = Arc::new(Semaphore::new(GREETING_MAX));
        let mut tasks = JoinSet::new();
        while let Ok(permit) = Arc::clone(&greeting).acquire_owned().await {
            let Some(incoming) = self.endpoint.accept().await else { break };
            let calls = calls.clone();
            tasks.spawn(async move {
                answer(incoming, calls).await;
                drop(permit);
            });
            while tasks.try_join_next().is_some() {}
        }
    }
}

/// Refuses a peer whose preamble does not fit, by name.
pub async fn refuse(inbound: Inbound, mismatch: Mismatch, message: String) {
    let Inbound { connection, control: (mut send, _), preamble } = inbound;
    tracing::warn!(peer = %preamble.source, migration = %preamble.migration, ?mismatch, message, "peer refused");
    let reason = message.clone();
    if let Ok(frame) = control::target_frame(&TargetFrame::Refused { mismatch, message }) {
        let said = async {
            send.write_all(&frame).await.ok()?;
            send.finish().ok()?;
            send.stopped().await.ok()
        };
        // The peer closes when it has read; one that does not is closed on.
        let _ = tokio::time::timeout(GREETING_TIMEOUT, said).await;
    }
    connection.close(REFUSED.into(), reason.as_bytes());
}

fn socket(config: &NodeConfig) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(config.migration.listen)?;
    let buffer = socket2::SockRef::from(&socket);
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
    Ok(socket)
}

/// Why a peer was not listened to.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("handshake")]
    Handshake(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Greeting(#[from] ControlError),
    #[error("it greets as {0}, its certificate is another node's")]
    Identity(NodeName),
    #[error("no greeting within {} s", GREETING_TIMEOUT.as_secs())]
    Timeout,
}

async fn answer(incoming: Incoming, calls: mpsc::Sender<Inbound>) {
    let peer = incoming.remote_address();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => return tracing::warn!(%peer, error = chain(&error), "peer refused"),
    };
    let greeted = async {
        let connection = connecting.await?;
        match greet(&connection).await {
            Ok((control, preamble)) => Ok(Inbound { connection, control, preamble }),
            Err(refusal) => {
                connection.close(REFUSED.into(), chain(&refusal).as_bytes());
                Err(refusal)
            }
        }
    };
    match tokio::time::timeout(GREETING_TIMEOUT, greeted).await.unwrap_or(Err(Refusal::Timeout)) {
        Ok(inbound) => {
            // A node that is stopping takes no calls; its endpoint closes the connection.
            let _ = calls.send(inbound).await;
        }
        Err(refusal) => tracing::warn!(%peer, reason = chain(&refusal), "peer refused"),
    }
}

async fn greet(connection: &Connection) -> Result<((SendStream, RecvStream), Preamble), Refusal> {
    let (send, mut receive) = connection.accept_bi().await?;
    let _ = send.set_priority(1);
    let preamble = control::hear_greeting(&mut receive).await?;
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    if !chain.is_some_and(|chain| peer_is(&chain, &preamble.source)) {
        return Err(Refusal::Identity(preamble.source));
    }
    Ok(((send, receive), preamble))
}
