//! Connections between nodes: QUIC endpoints, mutual TLS, and a greeting that says who speaks and what for before
//! anything else is believed.
//!
//! ```text
//!   dial(address, name) ────────── TLS: its certificate bears that name ── greeting, preamble ──▶ migration address
//!       over a network: from this node's address in it, to the other's
//!   dial_control(address, name) ── TLS: its certificate bears that name ── greeting, hello ─────▶ control address
//!
//!   serve ── TLS: a certificate of our CA ── greeting ── its certificate bears the name that it says
//!       migration addresses ──▶ Inbound        control address, and it means our cluster ──▶ ControlCall
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

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use godwit_transfer::drive::target::Inbound;
use quinn::Endpoint;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::{Listen, NodeConfig};
use crate::identity::Identity;

pub use answer::{ControlCall, refuse};
pub use dial::DialError;
pub use endpoint::FabricError;

/// Tells a peer, in its close, that it was refused.
pub(crate) const REFUSED: u32 = 1;
/// Tells a peer, in its close, that it broke a rule.
pub(crate) const BROKE_RULE: u32 = 2;
/// Tells a peer, in its close, that this node stops.
pub(crate) const STOPPING: u32 = 3;
/// How long peers are told that the node stops. One that does not hear it sees silence.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The two sockets of an address in a migration network.
#[derive(Debug, Clone)]
struct Migrating {
    /// The address itself: what comes in, and what must not wait of what leaves.
    urgent: Endpoint,
    /// On another port: pages that leave in bulk, so that no fault waits behind them in a queue of this host.
    bulk: Endpoint,
}

impl Migrating {
    /// Where pages leave in bulk.
    #[cfg(not(feature = "planted-bugs"))]
    fn for_pages(&self) -> &Endpoint {
        &self.bulk
    }

    /// The same; a benchmark compares it with one socket for all.
    #[cfg(feature = "planted-bugs")]
    fn for_pages(&self) -> &Endpoint {
        if godwit_transfer::planted::is_on("one-socket") { &self.urgent } else { &self.bulk }
    }
}

/// The endpoints of a node: its migration addresses and its control address.
#[derive(Debug, Clone)]
pub struct Fabric {
    /// For migrations that name no network.
    migration: Migrating,
    /// For those that name one: each leaves from, and comes in on, the address in that network.
    networks: Arc<BTreeMap<String, Migrating>>,
    control: Endpoint,
    /// Who does not mean this cluster is not listened to on the control address.
    cluster: String,
}

impl Fabric {
    /// Binds all addresses. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If an address can not be had or QUIC can not be set up.
    pub fn bind(config: &NodeConfig, identity: &Identity) -> Result<Self, FabricError> {
        let migration = endpoint::migration(config, identity, Listen::Migration, config.migration.listen)?;
        let networks = config.migration.networks.iter().map(|(name, address)| {
            let endpoint = endpoint::migration(config, identity, Listen::Network(name), *address)?;
            Ok((name.clone(), endpoint))
        });
        let networks = Arc::new(networks.collect::<Result<_, FabricError>>()?);
        let control = endpoint::control(config, identity)?;
        Ok(Self { migration, networks, control, cluster: config.cluster.clone() })
    }

    /// The migration address that was bound, with the port that the kernel chose.
    ///
    /// # Errors
    /// If the socket is gone.
    pub fn migration_address(&self) -> io::Result<SocketAddr> {
        self.migration.urgent.local_addr()
    }

    /// The same in each named network.
    ///
    /// # Errors
    /// If a socket is gone.
    pub fn network_addresses(&self) -> io::Result<BTreeMap<String, SocketAddr>> {
        let networks = self.networks.iter();
        networks.map(|(name, endpoint)| Ok((name.clone(), endpoint.urgent.local_addr()?))).collect()
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
        let mut answering = JoinSet::new();
        answering.spawn(answer::control(self.control, self.cluster, control));
        for endpoint in std::iter::once(&self.migration).chain(self.networks.values()) {
            answering.spawn(answer::migrations(endpoint.urgent.clone(), migrations.clone()));
        }
        // The receiver hears the end when the last of them has ended.
        drop(migrations);
        while answering.join_next().await.is_some() {}
    }

    /// Closes every connection and tells the peers, so that they need not wait for silence. Nothing is answered and
    /// nobody can be dialed afterwards.
    pub async fn close(&self) {
        let migrating = || std::iter::once(&self.migration).chain(self.networks.values());
        let endpoints = || migrating().flat_map(|on| [&on.urgent, &on.bulk]).chain([&self.control]);
        for endpoint in endpoints() {
            endpoint.close(STOPPING.into(), b"the node stops");
        }
        // All are being told already; it is waited for one after the other.
        let told = async {
            for endpoint in endpoints() {
                endpoint.wait_idle().await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, told).await;
    }
}
