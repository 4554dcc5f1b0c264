//! Connections between nodes: two QUIC endpoints, mutual TLS, and a greeting that says who speaks and what for before
//! anything else is believed.
//!
//! ```text
//!   dial(address, name) ────────── TLS: its certificate bears that name ── greeting, preamble ──▶ migration address
//!   dial_control(address, name) ── TLS: its certificate bears that name ── greeting, hello ─────▶ control address
//!
//!   serve ── TLS: a certificate of our CA ── greeting ── its certificate bears the name that it says
//!       migration address ──▶ Inbound          control address, and it means our cluster ──▶ ControlCall
//!
//!   endpoint  sockets and how QUIC is set up      dial    connections that leave
//!   answer    connections that come in            frames  values on a stream
//! ```
//!
//! Always true: what comes out of [`Fabric::serve`] is authenticated and says truly which node speaks; everything
//! else is refused by name, logged once, and cost a bounded amount of memory and time; a flood on one address takes
//! nothing from the other. A node may dial itself. Nothing here knows what is said after the greeting.

mod answer;
mod dial;
mod endpoint;
pub mod frames;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use godwit_transfer::drive::target::Inbound;
use quinn::Endpoint;
use tokio::sync::mpsc;

use crate::config::NodeConfig;
use crate::identity::Identity;

pub use answer::{ControlCall, refuse};
pub use dial::DialError;
pub use endpoint::FabricError;

/// Tells a peer, in its close, that it was refused.
const REFUSED: u32 = 1;
/// Tells a peer, in its close, that it broke a rule.
pub(crate) const BROKE_RULE: u32 = 2;
/// Tells a peer, in its close, that this node stops.
pub(crate) const STOPPING: u32 = 3;
/// How long peers are told that the node stops. One that does not hear it sees silence.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The endpoints of a node: its migration address and its control address.
#[derive(Debug, Clone)]
pub struct Fabric {
    migration: Endpoint,
    control: Endpoint,
    /// Who does not mean this cluster is not listened to on the control address.
    cluster: String,
}

impl Fabric {
    /// Binds both addresses. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If an address can not be had or QUIC can not be set up.
    pub fn bind(config: &NodeConfig, identity: &Identity) -> Result<Self, FabricError> {
        let migration = endpoint::migration(config, identity)?;
        let control = endpoint::control(config, identity)?;
        Ok(Self { migration, control, cluster: config.cluster.clone() })
    }

    /// The migration address that was bound, with the port that the kernel chose.
    ///
    /// # Errors
    /// If the socket is gone.
    pub fn migration_address(&self) -> io::Result<SocketAddr> {
        self.migration.local_addr()
    }

    /// The control address that was bound, with the port that the kernel chose.
    ///
    /// # Errors
    /// If the socket is gone.
    pub fn control_address(&self) -> io::Result<SocketAddr> {
        self.control.local_addr()
    }

    /// Answers peers until the endpoints close. Whoever has greeted as it should comes out of the channel of the
    /// address that it called. The greetings that are under way end with this future.
    pub async fn serve(self, migrations: mpsc::Sender<Inbound>, control: mpsc::Sender<ControlCall>) {
        tokio::join!(
            answer::migrations(self.migration, migrations),
            answer::control(self.control, self.cluster, control)
        );
    }

    /// Closes every connection and tells the peers, so that they need not wait for silence. Nothing is answered and
    /// nobody can be dialed afterwards.
    pub async fn close(&self) {
        for endpoint in [&self.migration, &self.control] {
            endpoint.close(STOPPING.into(), b"the node stops");
        }
        let told = async { tokio::join!(self.migration.wait_idle(), self.control.wait_idle()) };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, told).await;
    }
}
