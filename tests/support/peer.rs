//! A peer that says to a node whatever a story wants, with whatever certificate.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use godwit_domain::NodeName;
use godwit_node::{ca, identity};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::PATIENCE;
use super::world::{World, node};

/// What a peer shows of itself.
pub(crate) enum Papers {
    None,
    /// The certificate for this node of the authority in a folder.
    Of(Box<Path>, NodeName),
}

/// Papers for a node of the story's own cluster.
pub(crate) fn papers_of(world: &World, name: &str) -> Papers {
    Papers::Of(world.ca().into(), node(name))
}

/// A connection to a node's migration address. The endpoint goes with the last handle to the connection.
pub(crate) async fn dial(world: &World, to: &str, papers: &Papers) -> Result<Connection, Box<dyn Error>> {
    let mut believed = RootCertStore::empty();
    believed.add(CertificateDer::from_pem_file(world.ca().join("ca.pem"))?)?;
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(believed);
    let mut config = match papers {
        Papers::None => builder.with_no_client_auth(),
        Papers::Of(authority, name) => {
            let dir = tempfile::tempdir()?;
            let issued = ca::issue(authority, name, dir.path())?;
            let certificate = CertificateDer::from_pem_file(&issued.certificate)?;
            builder.with_client_auth_cert(vec![certificate], PrivateKeyDer::from_pem_file(&issued.key)?)?
        }
    };
    config.alpn_protocols = vec![identity::ALPN.to_vec()];
    let endpoint = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    let address = world.cluster.node(&node(to)).ok_or("no such node")?.address;
    Ok(endpoint.connect_with(config, address, &node(to).certificate_name())?.await?)
}

/// How the node ended this connection: its reason, for people.
pub(crate) async fn end_of(connection: &Connection) -> String {
    match tokio::time::timeout(PATIENCE, connection.closed()).await {
        Ok(ConnectionError::ApplicationClosed(close)) => close.to_string(),
        Ok(other) => other.to_string(),
        Err(_) => panic!("the node kept the connection"),
    }
}
