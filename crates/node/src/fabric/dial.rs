//! Connections that leave: connect, check the name, say who calls and what for.
//!
//! ```text
//!   connect ── TLS: the certificate bears the name ── first stream ── greeting, preamble │ hello ──▶ the caller's
//! ```
//!
//! Always true: a connection that comes out is to the node that was meant, within the time of its kind; what the
//! other side thinks of the greeting only its answer tells. Nothing here tries again.

use std::net::SocketAddr;
use std::time::Duration;

use godwit_domain::NodeName;
use godwit_transfer::control::{self, ControlError};
use godwit_transfer::drive::source::Lines;
use godwit_wire::codec;
use godwit_wire::migration::{Preamble, Role};
use godwit_wire::session::{ASK_BYTES_MAX, Hello};
use quinn::{Connection, Endpoint, RecvStream, SendStream};

use super::Fabric;

/// How long a connection attempt for a migration may take. It is one of a few, and a lossy link may need some packets
/// twice.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one to a control address may take. Another voter, or the next attempt, is the better use of more time.
const DIAL_CONTROL_TIMEOUT: Duration = Duration::from_secs(2);

/// Characters of a network's name that an error repeats: as long as one may be.
const NETWORK_SHOWN_CHARS: usize = 63;

/// Why a peer can not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There is no address here to leave from.
    #[error(
        "connect to {node} at {address} over network {network}: this node has no such network; give it an address \
         there: `\"{network}\" = \"IP:PORT\"` under [migration.networks] in its config"
    )]
    NoNetwork {
        /// Who.
        node: NodeName,
        /// Where.
        address: SocketAddr,
        /// The network, shortened.
        network: String,
    },
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
    #[error("connect to {node} at {address}: no answer within {} s", limit.as_secs())]
    Timeout {
        /// Who.
        node: NodeName,
        /// Where.
        address: SocketAddr,
        /// How long it was waited for.
        limit: Duration,
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

impl DialError {
    /// Whether the other side, or this one, has said no: to ask again would be answered alike. Silence says nothing.
    pub fn is_a_refusal(&self) -> bool {
        match self {
            Self::NoNetwork { .. } | Self::Connect { .. } => true,
            Self::Handshake { source, .. } => {
                !matches!(source, quinn::ConnectionError::TimedOut | quinn::ConnectionError::Reset)
            }
            Self::Timeout { .. } | Self::Greet { .. } => false,
        }
    }
}

impl Fabric {
    /// Connects twice to a node's migration address, from two sockets, and says what for. Its certificate must bear its name.
    /// Over a named network, `address` is the node's in that network, and the connections leave from this node's there.
    ///
    /// # Errors
    /// If this node is not in that network, or the other can not be reached in time or is another node.
    pub async fn dial(
        &self,
        address: SocketAddr,
        node: &NodeName,
        network: Option<&str>,
        preamble: &Preamble,
    ) -> Result<Lines, DialError> {
        let endpoints = match network {
            None => &self.migration,
            Some(network) => self.networks.get(network).ok_or_else(|| {
                let network =
                    network.chars().take(NETWORK_SHOWN_CHARS).flat_map(char::escape_default).collect();
                DialError::NoNetwork { node: node.clone(), address, network }
            })?,
        };
        let greet = async |endpoint, role| {
            let (connection, mut send, receive) = connect(endpoint, address, node).await?;
            // What is said here goes before pages that are waiting.
            let _ = send.set_priority(1);
            let greeted = control::greet(&mut send, role, preamble).await;
            greeted.map_err(|source| DialError::Greet { node: node.clone(), source })?;
            Ok((connection, send, receive))
        };
        let attempt = async {
            let (urgent, say, hear) = greet(&endpoints.urgent, Role::Migration).await?;
            let (bulk, bulk_say, _) = greet(endpoints.for_pages(), Role::Pages).await?;
            Ok(Lines { urgent, control: (say, hear), bulk, bulk_say })
        };
        within(DIAL_TIMEOUT, address, node, attempt).await
    }

    /// Connects to a node's control address and says who calls, as a peer or for a session. Its certificate must bear
    /// its name. The stream is the connection's first. Whether the node listens shows only later: one that does not
    /// closes the connection.
    ///
    /// # Errors
    /// If it can not be reached in time or is another node.
    pub async fn dial_control(
        &self,
        address: SocketAddr,
        node: &NodeName,
        role: Role,
        hello: &Hello,
    ) -> Result<(Connection, SendStream, RecvStream), DialError> {
        let attempt = async {
            let (connection, mut send, receive) = connect(&self.control, address, node).await?;
            let greeted = greet(&mut send, role, hello).await;
            greeted.map_err(|source| DialError::Greet { node: node.clone(), source })?;
            Ok((connection, send, receive))
        };
        within(DIAL_CONTROL_TIMEOUT, address, node, attempt).await
    }
}

async fn connect(
    endpoint: &Endpoint,
    address: SocketAddr,
    node: &NodeName,
) -> Result<(Connection, SendStream, RecvStream), DialError> {
    let handshake = |source| DialError::Handshake { node: node.clone(), address, source };
    let connecting = endpoint.connect(address, &node.certificate_name());
    let connecting =
        connecting.map_err(|source| DialError::Connect { node: node.clone(), address, source })?;
    let connection = connecting.await.map_err(handshake)?;
    let (send, receive) = connection.open_bi().await.map_err(handshake)?;
    Ok((connection, send, receive))
}

async fn greet(stream: &mut SendStream, role: Role, hello: &Hello) -> Result<(), ControlError> {
    let hello = codec::encode_frame("hello", hello, ASK_BYTES_MAX)?;
    stream.write_all(&[&role.greeting()[..], &hello].concat()).await?;
    Ok(())
}

async fn within<T>(
    limit: Duration,
    address: SocketAddr,
    node: &NodeName,
    attempt: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| {
        let node = node.clone();
        Err(DialError::Timeout { node, address, limit })
    })
}
