//! Handshakes in memory: two nodes, one pair of byte pipes, no network.

use super::*;
use crate::ca;
use crate::files::tests::Scratch;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};
use std::fs;

/// Two clusters, `ours` and `theirs`, whose nodes get their identities on demand.
struct World(Scratch);

impl World {
    fn new() -> Self {
        let scratch = Scratch::new();
        for cluster in ["ours", "theirs"] {
            ca::init(&scratch.path().join(cluster)).expect("init");
        }
        Self(scratch)
    }

    fn files(&self, cluster: &str, name: &str) -> IdentityFiles {
        let out = self.0.path().join(format!("{cluster}-{name}"));
        let issued = ca::issue(&self.0.path().join(cluster), &node(name), &out).expect("issue");
        IdentityFiles { ca: issued.ca, certificate: issued.certificate, key: issued.key }
    }

    fn identity(&self, cluster: &str, name: &str) -> Identity {
        Identity::load(&self.files(cluster, name), &node(name)).expect("load")
    }
}

fn node(name: &str) -> NodeName {
    name.parse().expect("node name")
}

/// The error chain as one line, as a user sees it.
fn told(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        line.push_str(": ");
        line.push_str(&error.to_string());
        next = error.source();
    }
    line
}

/// A server that has accepted and a client that has connected, or who refused and why.
fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    dialled: &str,
) -> Result<(ClientConnection, ServerConnection), String> {
    let dialled = ServerName::try_from(node(dialled).certificate_name()).expect("name");
    let mut client = ClientConnection::new(client, dialled).expect("client");
    let mut server = ServerConnection::new(server).expect("server");
    // A handshake is two flights each way; a third round must have nothing left to say.
    for _ in 0..3 {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).expect("write");
        }
        let mut bytes = flight.as_slice();
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).expect("read");
            server.process_new_packets().map_err(|error| format!("server: {error}"))?;
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).expect("write");
        }
        let mut bytes = flight.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).expect("read");
            client.process_new_packets().map_err(|error| format!("client: {error}"))?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn refused(client: Arc<ClientConfig>, server: Arc<ServerConfig>, dialled: &str) -> String {
    handshake(client, server, dialled).expect_err("a handshake that must fail")
}

#[test]
fn nodes_of_one_cluster_know_each_other_by_name() {
    let world = World::new();
    let [a, b] = ["node-a", "node-b"].map(|name| world.identity("ours", name));
    let (client, server) = handshake(a.client(), b.server(), "node-b").expect("handshake");

    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(client.alpn_protocol(), Some(ALPN));
    assert_eq!(server.alpn_protocol(), Some(ALPN));
    let suite = client.negotiated_cipher_suite().expect("suite").suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert!(peer_is(server.peer_certificates().expect("chain"), &node("node-a")));
    assert!(!peer_is(server.peer_certificates().expect("chain"), &node("node-b")));
    assert!(peer_is(client.peer_certificates().expect("chain"), &node("node-b")));
    assert!(!peer_is(&[], &node("node-b")));
    assert!(!peer_is(&[vec![0x30, 0].into()], &node("node-b")));
}

#[test]
fn both_configs_are_fit_for_quic() {
    let identity = World::new().identity("ours", "node-a");
    quinn::crypto::rustls::QuicServerConfig::try_from(identity.server()).expect("server");
    quinn::crypto::rustls::QuicClientConfig::try_from(identity.client()).expect("client");
}

#[test]
fn a_node_of_another_cluster_is_refused_on_both_sides() {
    let world = World::new();
    let ours = world.identity("ours", "node-a");
    let theirs = world.identity("theirs", "node-b");
    let error = refused(ours.client(), theirs.server(), "node-b");
    assert_eq!(error, "client: invalid peer certificate: UnknownIssuer");

    // The server's side: a client that believes anyone of ours, and has a certificate of theirs.
    let provider = provider();
    let files = world.files("theirs", "node-b");
    let chain = read_certificates("certificate", &files.certificate).expect("chain");
    let believed =
        believe(&read_certificates("CA", &world.files("ours", "node-b").ca).expect("CA")).expect("roots");
    let intruder = client(&provider, &believed, chain, read_key(&files.key).expect("key")).expect("client");
    let error = refused(Arc::new(intruder), ours.server(), "node-a");
    assert!(error.starts_with("server: invalid peer certificate: UnknownIssuer"), "{error}");
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let world = World::new();
    let ours = world.identity("ours", "node-a");
    let roots = read_certificates("CA", &world.files("ours", "node-b").ca).expect("CA");
    let mut anonymous = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_root_certificates(believe(&roots).expect("roots"))
        .with_no_client_auth();
    anonymous.alpn_protocols = vec![ALPN.to_vec()];
    assert_eq!(refused(Arc::new(anonymous), ours.server(), "node-a"), "server: peer sent no certificates");
}

#[test]
fn a_node_that_answers_in_anothers_place_is_refused() {
    let world = World::new();
    let [a, b] = ["node-a", "node-b"].map(|name| world.identity("ours", name));
    let error = refused(b.client(), a.server(), "node-b");
    assert!(error.starts_with("client: invalid peer certificate: certificate not valid for name"), "{error}");
}

#[test]
fn a_peer_with_another_protocol_is_refused() {
    let world = World::new();
    let [a, b] = ["node-a", "node-b"].map(|name| world.identity("ours", name));
    let mut other = (*a.client()).clone();
    other.alpn_protocols = vec![b"godwit/2".to_vec()];
    let error = refused(Arc::new(other), b.server(), "node-b");
    assert!(error.contains("support"), "{error}");
}

#[test]
fn another_nodes_certificate_is_named() {
    let world = World::new();
    let files = world.files("ours", "node-b");
    let error = Identity::load(&files, &node("node-a")).expect_err("another's");
    let path = files.certificate.display();
    assert_eq!(
        error.to_string(),
        format!(
            "certificate {path} is for node-b.node.godwit, this node is node-a: issue one with \
             `godwit ca issue node-a …`"
        )
    );
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let world = World::new();
    let ours = world.files("ours", "node-a");
    let theirs = world.files("theirs", "node-a");
    let load = |files: &IdentityFiles| told(&Identity::load(files, &node("node-a")).expect_err("mixed up"));

    let error = load(&IdentityFiles { ca: theirs.ca.clone(), ..ours.clone() });
    assert!(
        error.contains("was not issued by the CA of") && error.contains("theirs-node-a/ca.pem"),
        "{error}"
    );
    let error = load(&IdentityFiles { key: theirs.key.clone(), ..ours.clone() });
    assert!(error.contains("theirs-node-a/node.key is not the key of certificate"), "{error}");
    let error = load(&IdentityFiles { certificate: ours.key.clone(), ..ours.clone() });
    assert!(error.contains("node.key holds no certificate in PEM form"), "{error}");
    let error = load(&IdentityFiles { key: ours.ca.clone(), ..ours.clone() });
    assert!(error.contains("ca.pem holds no key in PEM form"), "{error}");
    // The CA's own certificate in the node's place bears no node's name.
    let error = load(&IdentityFiles { certificate: ours.ca.clone(), ..ours.clone() });
    assert!(error.contains("is for no node, this node is node-a"), "{error}");
}

#[test]
fn files_that_can_not_be_read_are_named() {
    let world = World::new();
    let files = world.files("ours", "node-a");
    let load = || told(&Identity::load(&files, &node("node-a")).expect_err("unreadable"));

    fs::write(&files.certificate, "x".repeat((64 << 10) + 1)).expect("write");
    let error = load();
    assert!(error.contains("read certificate") && error.contains("more than 65536 bytes"), "{error}");
    fs::write(&files.certificate, "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
        .expect("write");
    let error = load();
    assert!(error.contains("node.pem is not usable"), "{error}");
    fs::remove_file(&files.key).expect("remove");
    let error = load();
    assert!(error.contains("read key") && error.contains("No such file"), "{error}");
}

#[test]
fn a_printed_identity_holds_no_secret() {
    let identity = World::new().identity("ours", "node-a");
    assert_eq!(format!("{identity:?}"), r#"Identity { name: NodeName("node-a"), .. }"#);
}
