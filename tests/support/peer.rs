//! A peer that says to a node whatever a story wants, with whatever certificate; it dials, or waits to be dialled.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use godwit_domain::NodeName;
use godwit_node::{ca, identity};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, ServerConfig};
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

impl Papers {
    fn issue(&self) -> Result<Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>, Box<dyn Error>> {
        let Self::Of(authority, name) = self else { return Ok(None) };
        let dir = tempfile::tempdir()?;
        let issued = ca::issue(authority, name, dir.path())?;
        let certificate = CertificateDer::from_pem_file(&issued.certificate)?;
        Ok(Some((certificate, PrivateKeyDer::from_pem_file(&issued.key)?)))
    }
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// A connection to an address of a node. The endpoint goes with the last handle to the connection.
pub(crate) async fn dial(
    world: &World,
    (to, address): (&str, SocketAddr),
    papers: &Papers,
) -> Result<Connection, Box<dyn Error>> {
    let mut believed = RootCertStore::empty();
    believed.add(CertificateDer::from_pem_file(world.ca().join("ca.pem"))?)?;
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(believed);
    let mut config = match papers.issue()? {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key)?,
    };
    config.alpn_protocols = vec![identity::ALPN.to_vec()];
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    let endpoint = Endpoint::client(loopback())?;
    Ok(endpoint.connect_with(config, address, &node(to).certificate_name())?.await?)
}

/// An endpoint that can be taken for a node's migration address.
pub(crate) fn listen(papers: &Papers) -> Result<Endpoint, Box<dyn Error>> {
    let (certificate, key) = papers.issue()?.ok_or("a server needs papers")?;
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![identity::ALPN.to_vec()];
    let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
    Ok(Endpoint::server(config, loopback())?)
}

/// How the node ended this connection: its reason, for people.
pub(crate) async fn end_of(connection: &Connection) -> String {
    match tokio::time::timeout(PATIENCE, connection.closed()).await {
        Ok(ConnectionError::ApplicationClosed(close)) => close.to_string(),
        Ok(other) => other.to_string(),
        Err(_) => panic!("the node kept the connection"),
    }
}
