//! Connections that come in: TLS, greeting, name, and on the control address the cluster.
//!
//! ```text
//!   accept ── a permit of GREETING_MAX ── greeting within GREETING_TIMEOUT ──▶ the channel of its address
//!                                              └─ refused: close with the reason, a line in the log
//! ```
//!
//! Always true: what goes into a channel has a certificate that bears the name that it gives; a channel that is full
//! holds up its own address only; who is refused again and again for one reason is a line a minute. Nothing here answers a greeting that fits: that is for whoever takes the call.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use godwit_domain::NodeName;
use godwit_transfer::control::{self, ControlError};
use godwit_transfer::drive::chain;
use godwit_transfer::drive::target::Inbound;
use godwit_wire::migration::{GREETING_BYTES, Mismatch, Role, TargetFrame};
use godwit_wire::session::{ASK_BYTES_MAX, CLUSTER_BYTES_MAX, Hello};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::REFUSED;
use super::frames::{self, FrameError};
use crate::identity::peer_is;

/// Connections of one address that may be greeting at once. A node has a handful of migrations, and a leader a session
/// with every node; more at once is a flood, and waits.
const GREETING_MAX: usize = 64;
/// How long a peer may take from its first packet to the end of its greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// After how long the same refusal of the same host is said again, and how many of them are remembered.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(60);
const SAID_MAX: usize = 256;

/// A node that has called the control address, and is the one that it says.
#[derive(Debug)]
pub struct ControlCall {
    /// The connection.
    pub connection: Connection,
    /// Its first stream, after the [`Hello`].
    pub stream: (SendStream, RecvStream),
    /// What it called for: [`Role::Peer`] or [`Role::Session`].
    pub role: Role,
    /// Who it is. It means this node's cluster.
    pub hello: Hello,
}

/// Why a peer was not listened to.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("handshake")]
    Handshake(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Greeting(#[from] ControlError),
    #[error(transparent)]
    Hello(#[from] FrameError),
    #[error("it ended before its hello")]
    NoHello,
    #[error(
        "it asks for a {0} on the control address, which answers peers and sessions; dial the migration address"
    )]
    Role(Role),
    #[error("it greets as {0}, its certificate is another node's")]
    Identity(NodeName),
    #[error("it belongs to cluster {theirs}, this node to {ours}")]
    Cluster { theirs: String, ours: String },
    #[error("no greeting within {} s", GREETING_TIMEOUT.as_secs())]
    Timeout,
}

impl Refusal {
    /// Whether either side gave up before the peer was authenticated, and not over a certificate.
    fn went_away(&self) -> bool {
        use quinn::{ConnectionError, TransportErrorCode};
        match self {
            // This node is stopping, and its endpoint with it; or the peer has thought better of it, or is cut off.
            Self::Handshake(
                ConnectionError::LocallyClosed
                | ConnectionError::ApplicationClosed(_)
                | ConnectionError::TimedOut,
            ) => true,
            Self::Handshake(ConnectionError::ConnectionClosed(close)) => {
                close.error_code == TransportErrorCode::APPLICATION_ERROR
            }
            _ => false,
        }
    }
}

/// Answers the migration address until its endpoint closes.
pub(super) async fn migrations(endpoint: Endpoint, calls: mpsc::Sender<Inbound>) {
    accept(endpoint, calls, hear_migration).await;
}

/// Answers the control address until its endpoint closes.
pub(super) async fn control(endpoint: Endpoint, cluster: String, calls: mpsc::Sender<ControlCall>) {
    let cluster: Arc<str> = cluster.into();
    accept(endpoint, calls, move |connection| hear_control(connection, Arc::clone(&cluster))).await;
}

/// Accepts connections, hears their greetings beside each other, and passes on what comes of them.
async fn accept<C, H, F>(endpoint: Endpoint, calls: mpsc::Sender<C>, hear: H)
where
    C: Send + 'static,
    H: Fn(Connection) -> F + Clone + Send + 'static,
    F: Future<Output = Result<C, Refusal>> + Send,
{
    let greeting = Arc::new(Semaphore::new(GREETING_MAX));
    let said = Arc::new(Said::default());
    let mut tasks = JoinSet::new();
    while let Ok(permit) = Arc::clone(&greeting).acquire_owned().await {
        let Some(incoming) = endpoint.accept().await else { break };
        let (calls, hear, said) = (calls.clone(), hear.clone(), Arc::clone(&said));
        tasks.spawn(async move {
            let peer = incoming.remote_address();
            match greeted(incoming, hear).await {
                // A node that is stopping takes no calls; its endpoint closes the connection.
                Ok(call) => drop(calls.send(call).await),
                // It was started again, or had no patience, which is no fault of its.
                Err(refusal) if refusal.went_away() => {
                    tracing::info!(%peer, reason = chain(&refusal), "a peer went away while it was connecting");
                }
                Err(refusal) => {
                    let reason = chain(&refusal);
                    if said.is_new(peer.ip(), &reason) {
                        tracing::warn!(%peer, reason, "peer refused");
                    }
                }
            }
            drop(permit);
        });
        while tasks.try_join_next().is_some() {}
    }
}

/// Whom was refused why, lately: a node of another version calls twice a second, and a log is read by people.
#[derive(Debug, Default)]
struct Said(Mutex<BTreeMap<(IpAddr, String), Instant>>);

impl Said {
    /// Whether this was not said within the last [`SAY_AGAIN_AFTER`].
    fn is_new(&self, peer: IpAddr, reason: &str) -> bool {
        let now = Instant::now();
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.retain(|_, at| now.duration_since(*at) < SAY_AGAIN_AFTER);
        if said.len() >= SAID_MAX {
            said.clear();
        }
        let key = (peer, reason.to_owned());
        let is_new = !said.contains_key(&key);
        if is_new {
            said.insert(key, now);
        }
        is_new
    }
}

async fn greeted<C, H, F>(incoming: Incoming, hear: H) -> Result<C, Refusal>
where
    H: Fn(Connection) -> F,
    F: Future<Output = Result<C, Refusal>>,
{
    let deadline = Instant::now() + GREETING_TIMEOUT;
    let connecting = incoming.accept()?;
    let connection = timeout_at(deadline, connecting).await.map_err(|_| Refusal::Timeout)??;
    let heard = timeout_at(deadline, hear(connection.clone())).await.unwrap_or(Err(Refusal::Timeout));
    if let Err(refusal) = &heard {
        connection.close(REFUSED.into(), chain(refusal).as_bytes());
    }
    heard
}

async fn hear_migration(connection: Connection) -> Result<Inbound, Refusal> {
    let (send, mut receive) = connection.accept_bi().await?;
    // What is said here goes before pages that are waiting.
    let _ = send.set_priority(1);
    let (lane, preamble) = control::hear_greeting(&mut receive).await?;
    check_name(&connection, &preamble.source)?;
    Ok(Inbound { lane, connection, control: (send, receive), preamble })
}

async fn hear_control(connection: Connection, cluster: Arc<str>) -> Result<ControlCall, Refusal> {
    let (send, mut receive) = connection.accept_bi().await?;
    let mut greeting = [0; GREETING_BYTES];
    let what = "the greeting";
    receive.read_exact(&mut greeting).await.map_err(|why| FrameError::Read { what, why })?;
    let role = match Role::read_greeting(greeting).map_err(ControlError::from)? {
        role @ (Role::Peer | Role::Session) => role,
        role @ (Role::Migration | Role::Pages) => return Err(Refusal::Role(role)),
    };
    let hello: Hello = frames::read(&mut receive, "hello", ASK_BYTES_MAX).await?.ok_or(Refusal::NoHello)?;
    check_name(&connection, &hello.name)?;
    if *hello.cluster != *cluster {
        let theirs = hello.cluster.chars().take(CLUSTER_BYTES_MAX).flat_map(char::escape_default).collect();
        return Err(Refusal::Cluster { theirs, ours: cluster.to_string() });
    }
    Ok(ControlCall { connection, stream: (send, receive), role, hello })
}

/// A peer is the one whose name its certificate bears, whatever it says.
fn check_name(connection: &Connection, name: &NodeName) -> Result<(), Refusal> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    if chain.is_some_and(|chain| peer_is(&chain, name)) {
        Ok(())
    } else {
        Err(Refusal::Identity(name.clone()))
    }
}

/// Refuses a peer whose preamble does not fit, by name.
pub async fn refuse(inbound: Inbound, mismatch: Mismatch, message: String) {
    let Inbound { connection, control: (mut send, _), preamble, .. } = inbound;
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
