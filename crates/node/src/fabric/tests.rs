//! Two nodes of one cluster, and strangers, on loopback in one process.

mod networks;

use godwit_domain::{Epoch, InstanceId, NodeName};
use godwit_transfer::drive::source::Lines;
use godwit_transfer::target::Lane;
use godwit_wire::migration::{Preamble, Role, SessionId};
use godwit_wire::session::{ASK_BYTES_MAX, Hello};
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::task::JoinHandle;

use super::*;
use crate::ca;
use crate::config::IdentityFiles;
use crate::files::tests::Scratch;

/// Far beyond what anything here takes; whoever waits this long waits for ever.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for something under the deadline.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("within the deadline")
}

pub(crate) fn name(name: &str) -> NodeName {
    name.parse().expect("node name")
}

/// A CA, and the nodes that it vouches for.
pub(crate) struct Cluster {
    scratch: Scratch,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new();
        ca::init(&scratch.path().join("ca")).expect("init");
        Self { scratch }
    }

    /// Binds a node. `control` is its control address; none of these nodes is a voter, so the port may be 0.
    pub(crate) fn bind(&self, node: &str, cluster: &str, control: &str) -> Fabric {
        self.try_bind(node, cluster, control, "").expect("bind")
    }

    /// `networks` are the lines of its named networks.
    fn try_bind(
        &self,
        node: &str,
        cluster: &str,
        control: &str,
        networks: &str,
    ) -> Result<Fabric, FabricError> {
        let out = self.scratch.path().join(node);
        let files = ca::issue(&self.scratch.path().join("ca"), &name(node), &out).expect("issue");
        let text = format!(
            r#"name = "{node}"
cluster = "{cluster}"
state = "/nowhere"
[identity]
ca = "ca.pem"
certificate = "node.pem"
key = "node.key"
[migration]
listen = "127.0.0.1:0"
socket_buffer_bytes = "64Ki"
[migration.networks]
{networks}
[control]
listen = "{control}"
voters = {{ x = "10.0.0.1:1", y = "10.0.0.2:1", z = "10.0.0.3:1" }}
"#
        );
        let config = NodeConfig::parse(&text, &out.join("node.toml")).expect("config");
        let files = IdentityFiles { ca: files.ca, certificate: files.certificate, key: files.key };
        let identity = Identity::load(&files, &config.name).expect("identity");
        Fabric::bind(&config, &identity)
    }

    /// Binds a node of the usual cluster, and answers.
    pub(crate) fn serve(&self, node: &str) -> Serving {
        self.serve_in(node, "")
    }

    /// The same with named networks.
    fn serve_in(&self, node: &str, networks: &str) -> Serving {
        Serving::new(self.try_bind(node, "one", "127.0.0.1:0", networks).expect("bind"))
    }
}

/// A node that answers.
pub(crate) struct Serving {
    pub(crate) fabric: Fabric,
    pub(crate) migrations: mpsc::Receiver<Inbound>,
    pub(crate) control: mpsc::Receiver<ControlCall>,
    task: JoinHandle<()>,
}

impl Serving {
    pub(crate) fn new(fabric: Fabric) -> Self {
        let (to_migrations, migrations) = mpsc::channel(4);
        let (to_control, control) = mpsc::channel(4);
        let task = tokio::spawn(fabric.clone().serve(to_migrations, to_control));
        Self { fabric, migrations, control, task }
    }

    pub(crate) fn control_address(&self) -> SocketAddr {
        self.fabric.control_address().expect("address")
    }

    /// Ends it, tells the peers, and frees its addresses.
    pub(crate) async fn end(self) {
        self.fabric.close().await;
        soon(self.task).await.expect("serve ends with its endpoints");
    }
}

pub(crate) fn hello(node: &str, cluster: &str) -> Hello {
    let cluster = cluster.to_owned();
    Hello { cluster, name: name(node), group: None, voter: None, log: 0, node: None, after: None }
}

fn preamble(source: &str) -> Preamble {
    Preamble {
        migration: "m".parse().expect("migration"),
        guest: "lab/vm1".parse().expect("guest"),
        source: name(source),
        epoch: Epoch(1),
        token: InstanceId::from_random([7; 16]),
        session: SessionId(1),
        link: 1,
        memory_bytes: 4096,
        page_bytes: 4096,
    }
}

/// How the other side closed a connection: code and reason.
async fn closed(connection: &Connection) -> (u64, String) {
    match soon(connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
        }
        other => panic!("not closed by the peer: {other:?}"),
    }
}

type Dialed = (Connection, SendStream, RecvStream);

async fn dialed(from: &Fabric, to: (&str, SocketAddr), role: Role, hello: &Hello) -> Dialed {
    soon(from.dial_control(to.1, &name(to.0), role, hello)).await.expect("dial")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_and_peers_come_out_authenticated_and_are_answered() {
    let cluster = Cluster::new();
    let mut a = cluster.serve("a");
    let b = cluster.serve("b");
    for role in [Role::Session, Role::Peer] {
        let (_connection, _send, mut receive) =
            dialed(&b.fabric, ("a", a.control_address()), role, &hello("b", "one")).await;
        let mut call = soon(a.control.recv()).await.expect("a call");
        assert_eq!((call.role, &call.hello), (role, &hello("b", "one")));
        soon(frames::write(&mut call.stream.0, "text", &"come in", ASK_BYTES_MAX)).await.expect("write");
        call.stream.0.finish().expect("finish");
        let heard = soon(frames::read::<String>(&mut receive, "text", ASK_BYTES_MAX)).await.expect("read");
        assert_eq!(heard.as_deref(), Some("come in"));
        assert!(soon(frames::read::<String>(&mut receive, "text", 8)).await.expect("the end").is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_come_out_on_their_own_address() {
    let cluster = Cluster::new();
    let mut a = cluster.serve("a");
    let b = cluster.serve("b");
    let address = a.fabric.migration_address().expect("address");
    let _dialed = soon(b.fabric.dial(address, &name("a"), None, &preamble("b"))).await.expect("dial");
    let inbound = soon(a.migrations.recv()).await.expect("an inbound migration");
    assert_eq!(inbound.preamble, preamble("b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_dial_itself() {
    let cluster = Cluster::new();
    let mut a = cluster.serve("a");
    let (_connection, mut send, _receive) =
        dialed(&a.fabric, ("a", a.control_address()), Role::Session, &hello("a", "one")).await;
    let mut call = soon(a.control.recv()).await.expect("a call");
    assert_eq!(call.hello.name, name("a"));
    soon(frames::write(&mut send, "number", &7_u64, ASK_BYTES_MAX)).await.expect("write");
    assert_eq!(soon(frames::read::<u64>(&mut call.stream.1, "number", 9)).await.expect("read"), Some(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_and_another_name_are_refused_by_name() {
    let cluster = Cluster::new();
    let mut a = cluster.serve("a");
    let b = cluster.serve("b");
    let long = "x".repeat(10_000);
    for (said, told) in [
        (hello("b", "two"), "it belongs to cluster two, this node to one"),
        (hello("c", "one"), "it greets as c, its certificate is another node's"),
        (hello("b", "one\n"), "it belongs to cluster one\\n, this node to one"),
        (hello("b", &long), "it belongs to cluster xxx"),
    ] {
        let (connection, ..) = dialed(&b.fabric, ("a", a.control_address()), Role::Session, &said).await;
        let (code, reason) = closed(&connection).await;
        assert_eq!(code, u64::from(REFUSED));
        assert!(reason.starts_with(told) && reason.len() < 200, "{reason}");
    }
    assert!(a.control.try_recv().is_err(), "nobody came out");

    // The dialer looks too: at the address of another node nothing is said at all.
    let wrong =
        soon(b.fabric.dial_control(a.control_address(), &name("c"), Role::Peer, &hello("b", "one"))).await;
    assert!(matches!(wrong, Err(DialError::Handshake { .. })), "{wrong:?}");
    // A node of another CA is a stranger, whatever it says.
    let stranger = Cluster::new().serve("b");
    let refused =
        soon(stranger.fabric.dial_control(a.control_address(), &name("a"), Role::Peer, &hello("b", "one")))
            .await;
    assert!(matches!(refused, Err(DialError::Handshake { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_address_refuses_the_roles_of_the_other() {
    let cluster = Cluster::new();
    let mut a = cluster.serve("a");
    let b = cluster.serve("b");
    let migration_address = a.fabric.migration_address().expect("address");
    for role in [Role::Peer, Role::Session] {
        let (connection, ..) = dialed(&b.fabric, ("a", migration_address), role, &hello("b", "one")).await;
        let told = format!(
            "it asks for a {role} on the migration address, which answers migrations only; dial the control address"
        );
        assert_eq!(closed(&connection).await, (u64::from(REFUSED), told));
    }
    let Lines { urgent: connection, .. } =
        soon(b.fabric.dial(a.control_address(), &name("a"), None, &preamble("b"))).await.expect("dial");
    let told = "it asks for a migration on the control address, which answers peers and sessions; dial the \
                migration address";
    assert_eq!(closed(&connection).await, (u64::from(REFUSED), told.to_owned()));
    assert!(a.control.try_recv().is_err() && a.migrations.try_recv().is_err(), "nobody came out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_hello_or_a_large_one_is_refused() {
    let cluster = Cluster::new();
    let a = cluster.serve("a");
    let b = cluster.serve("b");
    let greeting = Role::Session.greeting();
    let large = u32::try_from(ASK_BYTES_MAX + 1).expect("fits").to_le_bytes();
    let too_large =
        format!("hello: frame of {} bytes; at most {ASK_BYTES_MAX} are allowed here", ASK_BYTES_MAX + 1);
    for (said, told) in [
        (greeting.to_vec(), "it ended before its hello"),
        ([&greeting[..], &[9, 0, 0, 0, 1]].concat(), "the stream broke while hello was read"),
        ([&greeting[..], &large].concat(), too_large.as_str()),
        (b"GET / HTTP/1.1".to_vec(), "not a godwit peer"),
    ] {
        let connecting = b.fabric.control.connect(a.control_address(), "a.node.godwit").expect("connect");
        let connection = soon(connecting).await.expect("handshake");
        let (mut send, _receive) = soon(connection.open_bi()).await.expect("stream");
        soon(send.write_all(&said)).await.expect("write");
        send.finish().expect("finish");
        let (code, reason) = closed(&connection).await;
        assert!(code == u64::from(REFUSED) && reason.starts_with(told), "{code} {reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_questions_are_open_at_once_in_both_directions() {
    let cluster = Cluster::new();
    let mut a = cluster.serve("a");
    let b = cluster.serve("b");
    let (ours, _send, _receive) =
        dialed(&b.fabric, ("a", a.control_address()), Role::Session, &hello("b", "one")).await;
    let call = soon(a.control.recv()).await.expect("a call");
    // One of the dialer's streams is the first one.
    for (connection, streams) in [(ours, 255), (call.connection.clone(), 256)] {
        let mut held = Vec::new();
        for _ in 0..streams {
            held.push(soon(connection.open_bi()).await.expect("a stream"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_told_and_frees_the_addresses() {
    let cluster = Cluster::new();
    let mut a = cluster.serve("a");
    let b = cluster.serve("b");
    let address = a.control_address();
    let (connection, ..) = dialed(&b.fabric, ("a", address), Role::Peer, &hello("b", "one")).await;
    let call = soon(a.control.recv()).await.expect("a call");
    drop(call.stream);
    a.end().await;
    assert_eq!(closed(&connection).await, (u64::from(STOPPING), "the node stops".to_owned()));
    drop(call.connection);
    rebind(&cluster, "a", address).await;
}

/// Binds a node to the control address that it had. The old socket goes a moment after its last connection.
pub(crate) async fn rebind(cluster: &Cluster, node: &str, address: SocketAddr) -> Serving {
    let bound = async {
        loop {
            match cluster.try_bind(node, "one", &address.to_string(), "") {
                Ok(fabric) => return fabric,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    Serving::new(soon(bound).await)
}

#[tokio::test]
async fn a_taken_control_address_is_told_as_such() {
    let cluster = Cluster::new();
    let a = cluster.bind("a", "one", "127.0.0.1:0");
    let address = a.control_address().expect("address").to_string();
    match cluster.try_bind("b", "one", &address, "") {
        Err(FabricError::Address(error)) => {
            assert!(error.to_string().contains("`listen` in [control]"), "{error}");
            assert!(error.to_string().contains(&address), "{error}");
        }
        other => panic!("{other:?}"),
    }
}
