//! Who this node is, and whom it believes: mutual TLS 1.3 under one CA, names checked by whoever dials.
//!
//! ```text
//!   ca.pem ──▶ whom to believe ─┐
//!   node.pem ──▶ who we are ────┼──▶ server config   a peer without a certificate of this CA is refused
//!   node.key ──▶ that it is us ─┘└─▶ client config   so is one whose certificate bears another name
//! ```
//!
//! Always true: an [`Identity`] is for the name in the config, comes from the CA in the config, and has the
//! key that fits. A certificate says *which node* speaks; what that node may ask for is decided elsewhere.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_domain::NodeName;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use webpki::{EndEntityCert, KeyUsage};

use crate::config::IdentityFiles;

/// The name of the protocol in the TLS handshake. Its number changes when two versions can not talk at all.
pub const ALPN: &[u8] = b"godwit/1";

/// Largest certificate or key file that is read, in bytes. A chain of four is a tenth of it.
const PEM_BYTES_MAX: u64 = 64 << 10;

/// A node's identity, checked and ready for connections.
#[derive(Clone)]
pub struct Identity {
    name: NodeName,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// Why a node can not prove who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file can not be read or is too large.
    #[error("read {what} {}", path.display())]
    Read {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file holds nothing in PEM form, or something broken.
    #[error("{} holds no {what} in PEM form: `godwit ca issue` writes one", path.display())]
    Pem {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the reader says.
        #[source]
        source: pem::Error,
    },
    /// A certificate's or key's content is broken or not of a usable kind.
    #[error("{what} {} is not usable: `godwit ca issue {name} …` makes one that is", path.display())]
    Unusable {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// This node.
        name: NodeName,
        /// What the verifier says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The certificate is another node's.
    #[error(
        "certificate {} is for {found}, this node is {name}: issue one with `godwit ca issue {name} …`",
        path.display()
    )]
    OtherName {
        /// The certificate.
        path: PathBuf,
        /// The names that it is for.
        found: String,
        /// This node.
        name: NodeName,
    },
    /// The certificate is of another CA.
    #[error(
        "certificate {} was not issued by the CA of {}: issue one there with `godwit ca issue {name} …`, or take \
         the ca.pem that came with it",
        path.display(),
        ca.display()
    )]
    OtherCa {
        /// The certificate.
        path: PathBuf,
        /// The CA's certificate.
        ca: PathBuf,
        /// This node.
        name: NodeName,
    },
    /// The certificate's time is over.
    #[error("certificate {} has expired: issue a new one with `godwit ca issue {name} …`", path.display())]
    Expired {
        /// The certificate.
        path: PathBuf,
        /// This node.
        name: NodeName,
    },
    /// The certificate's time has not come, which means that a clock is wrong.
    #[error("certificate {} is not valid yet by this host's clock: set the clock", path.display())]
    NotYetValid {
        /// The certificate.
        path: PathBuf,
    },
    /// Key and certificate are not a pair.
    #[error(
        "key {} is not the key of certificate {}: both must come from one `godwit ca issue {name} …`",
        key.display(),
        certificate.display()
    )]
    OtherKey {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
        /// This node.
        name: NodeName,
    },
}

impl Identity {
    /// Reads a node's identity and makes sure that it is this node's, from this CA, with this key.
    ///
    /// # Errors
    /// If a file can not be read, or any of that does not hold now.
    pub fn load(files: &IdentityFiles, name: &NodeName) -> Result<Self, IdentityError> {
        let roots = read_certificates("CA certificate", &files.ca)?;
        let chain = read_certificates("certificate", &files.certificate)?;
        let key = read_key(&files.key)?;
        check_certificate(files, name, &chain, &roots)?;

        let provider = provider();
        let unusable = |what, path: &Path, source: rustls::Error| IdentityError::Unusable {
            what,
            path: path.to_owned(),
            name: name.clone(),
            source: source.into(),
        };
        match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let (key, certificate) = (files.key.clone(), files.certificate.clone());
                return Err(IdentityError::OtherKey { key, certificate, name: name.clone() });
            }
            Err(error) => return Err(unusable("key", &files.key, error)),
        }
        let believed = believe(&roots).map_err(|error| unusable("CA certificate", &files.ca, error))?;
        let [for_server, for_client] = [key.clone_key(), key];
        let certificate = |error| unusable("certificate", &files.certificate, error);
        let server = server(&provider, &believed, chain.clone(), for_server).map_err(certificate)?;
        let client = client(&provider, &believed, chain, for_client).map_err(certificate)?;
        Ok(Self { name: name.clone(), server: Arc::new(server), client: Arc::new(client) })
    }

    /// The node that this identity proves.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// For connections that come in.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For connections that go out. Dial with the peer's [`NodeName::certificate_name`] as the server's name.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }
}

impl fmt::Debug for Identity {
    /// Only the name: the rest holds the key, or says nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whether a peer's certificate bears this node's name. TLS has checked already that it comes from our CA;
/// for connections that come in, this is what ties them to a node.
pub fn peer_is(chain: &[CertificateDer<'_>], name: &NodeName) -> bool {
    let Some(end) = chain.first().and_then(|der| EndEntityCert::try_from(der).ok()) else { return false };
    bears(&end, name)
}

fn bears(end: &EndEntityCert<'_>, name: &NodeName) -> bool {
    ServerName::try_from(name.certificate_name())
        .is_ok_and(|name| end.verify_is_valid_for_subject_name(&name).is_ok())
}

/// Whether one of the roots issued a certificate that now serves for both ends of a connection.
pub(crate) fn verify_issued(
    end: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
) -> Result<(), webpki::Error> {
    let end = EndEntityCert::try_from(end)?;
    let anchors = roots.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    let now = UnixTime::now();
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        end.verify_for_usage(algorithms, &anchors, chain, now, usage, None, None)?;
    }
    Ok(())
}

fn check_certificate(
    files: &IdentityFiles,
    name: &NodeName,
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
) -> Result<(), IdentityError> {
    let path = files.certificate.clone();
    let name = name.clone();
    let [first, rest @ ..] = chain else {
        return Err(IdentityError::Pem { what: "certificate", path, source: pem::Error::NoItemsFound });
    };
    let end = match EndEntityCert::try_from(first) {
        Ok(end) => end,
        Err(error) => {
            return Err(IdentityError::Unusable { what: "certificate", path, name, source: error.into() });
        }
    };
    if !bears(&end, &name) {
        let names: Vec<_> = end.valid_dns_names().collect();
        let found = if names.is_empty() { "no node".to_owned() } else { names.join(", ") };
        return Err(IdentityError::OtherName { path, found, name });
    }
    match verify_issued(first, rest, roots) {
        Ok(()) => Ok(()),
        Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => {
            Err(IdentityError::OtherCa { path, ca: files.ca.clone(), name })
        }
        Err(webpki::Error::CertExpired { .. }) => Err(IdentityError::Expired { path, name }),
        Err(webpki::Error::CertNotValidYet { .. }) => Err(IdentityError::NotYetValid { path }),
        Err(error) => Err(IdentityError::Unusable { what: "certificate", path, name, source: error.into() }),
    }
}

/// Ring, given explicitly so that nothing depends on which provider some library installed for the process.
/// AES-128-GCM comes first: QUIC needs it for its first packets anyway, and it is the fastest here for pages.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    })
}

fn believe(roots: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    Ok(Arc::new(store))
}

fn server(
    provider: &Arc<CryptoProvider>,
    believed: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(believed), Arc::clone(provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session skips the certificates. Migrations are rare and long: nothing is won by it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    provider: &Arc<CryptoProvider>,
    believed: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(Arc::clone(believed))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, IdentityError> {
    crate::files::read_capped(path, PEM_BYTES_MAX).map_err(|source| IdentityError::Read {
        what,
        path: path.to_owned(),
        source,
    })
}

fn read_certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bytes = read(what, path)?;
    let certificates = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let refuse = |source| IdentityError::Pem { what, path: path.to_owned(), source };
    match certificates {
        Ok(list) if list.is_empty() => Err(refuse(pem::Error::NoItemsFound)),
        Ok(list) => Ok(list),
        Err(source) => Err(refuse(source)),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(&read("key", path)?).map_err(|source| IdentityError::Pem {
        what: "key",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
