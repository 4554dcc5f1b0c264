//! The cluster's certificate authority: one key in one folder, which vouches for nodes by name.
//!
//! ```text
//!   init  ──▶ DIR/ca.key (0600)  DIR/ca.pem
//!                 │ signs
//!   issue ──▶ OUT/node.key (0600)  OUT/node.pem  OUT/ca.pem      for one node's name
//! ```
//!
//! Always true: a CA is never overwritten; two CAs never share a name, so a certificate of one can not be
//! mistaken for one of the other; nothing is written by `issue` that does not verify. The CA's key is needed
//! to issue and never to run: keep its folder off the nodes.

use std::io;
use std::path::{Path, PathBuf};

use godwit_domain::NodeName;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Date, Duration, OffsetDateTime};

use crate::files::{self, MODE_PUBLIC, MODE_SECRET};
use crate::identity;

/// How long a CA is meant to be used. Another CA means issuing every node anew, so it should outlive the
/// hosts. (TLS looks at a trusted CA's name and key, not at its dates: the end is a mark for people.)
const CA_VALIDITY: Duration = Duration::days(10 * 365);
/// How long a node is believed. There is no revocation, so this bounds how long a lost key is worth stealing;
/// two years is an interval at which someone still remembers how a certificate is replaced.
const NODE_VALIDITY: Duration = Duration::days(2 * 365);
/// Certificates begin this much before they are made: hosts' clocks differ, and a new certificate must be
/// valid at once on the one that is most behind.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::HOUR;

/// Largest certificate or key file that is read, in bytes. Ours have about one thousand.
const PEM_BYTES_MAX: u64 = 64 << 10;

/// The files of a new CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaFiles {
    /// The certificate, for everyone.
    pub certificate: PathBuf,
    /// The key, for nobody else.
    pub key: PathBuf,
}

/// The files of a node's new identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedFiles {
    /// A copy of the CA's certificate.
    pub ca: PathBuf,
    /// The node's certificate.
    pub certificate: PathBuf,
    /// Its key, for the node alone.
    pub key: PathBuf,
    /// The day on which the certificate ends (UTC).
    pub expires: Date,
}

/// Why a CA could not be made or could not issue.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is a CA here already.
    #[error(
        "{} exists: a CA is never overwritten, as every certificate that it issued would be worth nothing; take \
         another folder",
        .0.display()
    )]
    Exists(PathBuf),
    /// A file of the CA can not be read.
    #[error("read {} (a CA's folder holds ca.pem and ca.key; `godwit ca init` makes one)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file or folder can not be written.
    #[error("write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file of the CA does not hold what its name says.
    #[error("{} holds no usable {what} in PEM form: put the original back", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What the reader says.
        #[source]
        source: rcgen::Error,
    },
    /// The CA's certificate and key are not a pair, or the CA is none.
    #[error(
        "a certificate signed with {} does not verify against {}: both must come from one `godwit ca init`",
        key.display(),
        certificate.display()
    )]
    Mismatch {
        /// The CA's certificate.
        certificate: PathBuf,
        /// The CA's key.
        key: PathBuf,
        /// What the verifier says.
        #[source]
        source: webpki::Error,
    },
    /// The kernel gave no random bytes.
    #[error("draw random bytes")]
    Random(#[source] io::Error),
    /// A key or certificate could not be made.
    #[error("make {what}")]
    Make {
        /// Which.
        what: &'static str,
        /// What the library says.
        #[source]
        source: rcgen::Error,
    },
}

/// Makes a CA in a folder, which is made too where it is missing.
///
/// # Errors
/// If the folder holds a CA or half of one already, or can not be written.
pub fn init(dir: &Path) -> Result<CaFiles, CaError> {
    let files = CaFiles { certificate: dir.join("ca.pem"), key: dir.join("ca.key") };
    for path in [&files.certificate, &files.key] {
        // Asked before anything is made; `files::create` makes sure of it. A dangling link is something too.
        if path.symlink_metadata().is_ok() {
            return Err(CaError::Exists(path.clone()));
        }
    }
    let id = u64::from_be_bytes(files::random().map_err(CaError::Random)?);
    let mut params = dated(CA_VALIDITY)?;
    params.distinguished_name.push(DnType::CommonName, format!("Godwit CA {id:016x}"));
    // No CA below this one: whoever it vouches for can not vouch for others.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // Even a program that trusts this CA for everything can believe it about nodes only.
    let permitted_subtrees = vec![GeneralSubtree::DnsName("node.godwit".to_owned())];
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });

    let key = new_key("the CA's key")?;
    let certificate = params.self_signed(&key).map_err(making("the CA's certificate"))?;
    files::folder(dir).map_err(writing(dir))?;
    create(&files.key, key.serialize_pem().as_bytes(), MODE_SECRET)?;
    create(&files.certificate, certificate.pem().as_bytes(), MODE_PUBLIC)?;
    Ok(files)
}

/// Issues a certificate for a node with the CA in `dir`, into the folder `out`, which is made where it is
/// missing. Files of an earlier identity there are replaced: this is also how a certificate is renewed.
///
/// # Errors
/// If the CA can not be read or is not whole, or `out` can not be written.
pub fn issue(dir: &Path, node: &NodeName, out: &Path) -> Result<IssuedFiles, CaError> {
    let ca = Ca::load(dir)?;
    let mut params = dated(NODE_VALIDITY)?;
    params.distinguished_name.push(DnType::CommonName, node.certificate_name());
    let name = Ia5String::try_from(node.certificate_name()).map_err(making("the node's name"))?;
    params.subject_alt_names = vec![SanType::DnsName(name)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Both: a node accepts migrations and starts them.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;

    let key = new_key("the node's key")?;
    let certificate = params.signed_by(&key, &ca.issuer).map_err(making("the node's certificate"))?;
    ca.check(certificate.der())?;

    let files = IssuedFiles {
        ca: out.join("ca.pem"),
        certificate: out.join("node.pem"),
        key: out.join("node.key"),
        expires: params.not_after.date(),
    };
    files::folder(out).map_err(writing(out))?;
    replace(&files.ca, ca.pem.as_bytes(), MODE_PUBLIC)?;
    replace(&files.key, key.serialize_pem().as_bytes(), MODE_SECRET)?;
    replace(&files.certificate, certificate.pem().as_bytes(), MODE_PUBLIC)?;
    Ok(files)
}

/// A CA as read back from its folder.
struct Ca {
    files: CaFiles,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn load(dir: &Path) -> Result<Self, CaError> {
        let files = CaFiles { certificate: dir.join("ca.pem"), key: dir.join("ca.key") };
        let pem = read(&files.certificate)?;
        let key = KeyPair::from_pem_and_sign_algo(&read(&files.key)?, &PKCS_ECDSA_P256_SHA256)
            .map_err(|source| CaError::Unusable { path: files.key.clone(), what: "key", source })?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|source| CaError::Unusable {
            path: files.certificate.clone(),
            what: "certificate",
            source,
        })?;
        Ok(Self { files, pem, issuer })
    }

    /// The library signs with whatever key it is given, so a mixed-up folder shows only here.
    fn check(&self, issued: &CertificateDer<'_>) -> Result<(), CaError> {
        let mismatch = |source| CaError::Mismatch {
            certificate: self.files.certificate.clone(),
            key: self.files.key.clone(),
            source,
        };
        let roots: Vec<_> =
            CertificateDer::pem_slice_iter(self.pem.as_bytes()).filter_map(Result::ok).collect();
        identity::verify_issued(issued, &[], &roots).map_err(mismatch)
    }
}

/// What all certificates have in common: when they are valid, a serial number, and no name yet.
fn dated(validity: Duration) -> Result<CertificateParams, CaError> {
    let now = OffsetDateTime::now_utc();
    let mut serial: [u8; 16] = files::random().map_err(CaError::Random)?;
    // A serial number is a positive integer (RFC 5280, 4.1.2.2): a set first bit would make it negative, and
    // leading zeros would not be minimal.
    serial[0] = serial[0] & 0x3f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_DIFFERENCE_MAX;
    params.not_after = now + validity;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params)
}

fn new_key(what: &'static str) -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(making(what))
}

fn read(path: &Path) -> Result<String, CaError> {
    let failed = |source| CaError::Read { path: path.to_owned(), source };
    let bytes = files::read_capped(path, PEM_BYTES_MAX).map_err(failed)?;
    String::from_utf8(bytes)
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error.utf8_error())))
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    files::create(path, bytes, mode).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => CaError::Exists(path.to_owned()),
        _ => CaError::Write { path: path.to_owned(), source },
    })
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    files::replace(path, bytes, mode).map_err(writing(path))
}

fn making(what: &'static str) -> impl FnOnce(rcgen::Error) -> CaError {
    move |source| CaError::Make { what, source }
}

fn writing(path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::Write { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Scratch;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn node(name: &str) -> NodeName {
        name.parse().expect("node name")
    }

    fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(path).expect("open").map(|item| item.expect("certificate")).collect()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").permissions().mode() & 0o777
    }

    #[test]
    fn a_certificate_is_for_its_own_node_and_its_own_ca() {
        let scratch = Scratch::new();
        let [ours, theirs, out] = ["ours", "theirs", "out"].map(|name| scratch.path().join(name));
        init(&ours).expect("init");
        init(&theirs).expect("init another");
        let issued = issue(&ours, &node("node-a"), &out).expect("issue");

        let chain = certificates(&issued.certificate);
        assert_eq!(chain.len(), 1);
        assert!(identity::peer_is(&chain, &node("node-a")));
        assert!(!identity::peer_is(&chain, &node("node-b")));
        assert_eq!(identity::verify_issued(&chain[0], &[], &certificates(&issued.ca)), Ok(()));
        assert_eq!(
            identity::verify_issued(&chain[0], &[], &certificates(&theirs.join("ca.pem"))),
            Err(webpki::Error::UnknownIssuer)
        );
        let end = webpki::EndEntityCert::try_from(&chain[0]).expect("parse");
        assert_eq!(end.valid_dns_names().collect::<Vec<_>>(), ["node-a.node.godwit"]);
    }

    #[test]
    fn a_nodes_certificate_vouches_for_nobody() {
        let scratch = Scratch::new();
        let [ca, a, b] = ["ca", "a", "b"].map(|name| scratch.path().join(name));
        init(&ca).expect("init");
        let issued = issue(&ca, &node("node-a"), &a).expect("issue");
        // A node that poses as a CA: its own certificate and key in a CA's place.
        fs::create_dir(&b).expect("folder");
        fs::copy(&issued.certificate, b.join("ca.pem")).expect("copy");
        fs::copy(&issued.key, b.join("ca.key")).expect("copy");
        let forged = Ca::load(&b).expect("load");
        let mut params = dated(NODE_VALIDITY).expect("params");
        params.subject_alt_names =
            vec![SanType::DnsName(Ia5String::try_from("node-b.node.godwit").expect("name"))];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let forged = params.signed_by(&new_key("a key").expect("key"), &forged.issuer).expect("sign");

        let refused = identity::verify_issued(
            forged.der(),
            &certificates(&issued.certificate),
            &certificates(&ca.join("ca.pem")),
        );
        assert_eq!(refused, Err(webpki::Error::EndEntityUsedAsCa));
    }

    #[test]
    fn keys_are_for_their_owner_and_certificates_for_everyone() {
        let scratch = Scratch::new();
        let [ca, out] = ["ca", "out"].map(|name| scratch.path().join(name));
        let made = init(&ca).expect("init");
        let issued = issue(&ca, &node("node-a"), &out).expect("issue");
        assert_eq!([mode(&made.key), mode(&issued.key)], [0o600; 2]);
        assert_eq!([mode(&made.certificate), mode(&issued.certificate), mode(&issued.ca)], [0o644; 3]);
        assert_eq!(fs::read(&made.certificate).expect("read"), fs::read(&issued.ca).expect("read"));
    }

    #[test]
    fn a_ca_is_never_overwritten() {
        let scratch = Scratch::new();
        for name in ["ca.pem", "ca.key"] {
            let dir = scratch.path().join(name);
            fs::create_dir(&dir).expect("folder");
            fs::write(dir.join(name), "precious").expect("write");
            let error = init(&dir).expect_err("exists").to_string();
            assert!(error.starts_with(&format!("{} exists", dir.join(name).display())), "{error}");
            assert_eq!(fs::read_dir(&dir).expect("list").count(), 1);
        }
    }

    #[test]
    fn a_folder_without_a_whole_ca_issues_nothing() {
        let scratch = Scratch::new();
        let [ours, theirs, out] = ["ours", "theirs", "out"].map(|name| scratch.path().join(name));
        let error = issue(&ours, &node("node-a"), &out).expect_err("no CA").to_string();
        assert!(error.starts_with(&format!("read {}", ours.join("ca.pem").display())), "{error}");

        init(&ours).expect("init");
        init(&theirs).expect("init another");
        fs::copy(theirs.join("ca.key"), ours.join("ca.key")).expect("mix up");
        let error = issue(&ours, &node("node-a"), &out).expect_err("mixed up").to_string();
        assert!(error.contains("both must come from one `godwit ca init`"), "{error}");

        fs::write(ours.join("ca.key"), "no key").expect("spoil");
        let error = issue(&ours, &node("node-a"), &out).expect_err("spoilt").to_string();
        assert!(error.contains("ca.key holds no usable key"), "{error}");
        assert!(!out.exists());
    }
}
