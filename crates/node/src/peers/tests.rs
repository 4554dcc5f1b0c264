//! Two voters on loopback: what one sends, the other's control actor gets.

use actix::{Actor, Context, Handler};

use super::*;
use crate::fabric::tests::{Cluster, Serving, hello, name, rebind, soon};

const SENDER: NodeId = NodeId::new(1).expect("not 0");
const RECEIVER: NodeId = NodeId::new(2).expect("not 0");
const PROBE: &[u8] = b"probe";
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// In place of the control actor.
struct Collector(mpsc::UnboundedSender<FromPeer>);

impl Actor for Collector {
    type Context = Context<Self>;
}

impl Handler<FromPeer> for Collector {
    type Result = ();
    fn handle(&mut self, message: FromPeer, _: &mut Self::Context) {
        let _ = self.0.send(message);
    }
}

/// A voter that listens.
struct Receiver {
    address: SocketAddr,
    fabric: Fabric,
    heard: mpsc::UnboundedReceiver<FromPeer>,
    task: tokio::task::JoinHandle<()>,
}

impl Receiver {
    fn new(serving: Serving) -> Self {
        let (to_heard, heard) = mpsc::unbounded_channel();
        let control = Collector(to_heard).start();
        let (address, fabric) = (serving.control_address(), serving.fabric.clone());
        let task = tokio::spawn(async move {
            let mut serving = serving;
            let mut hearing = JoinSet::new();
            while let Some(call) = serving.control.recv().await {
                assert_eq!((call.role, &call.hello.name), (Role::Peer, &name("a")));
                hearing.spawn(hear(call, SENDER, control.clone().recipient(), || true));
            }
            while hearing.join_next().await.is_some() {}
        });
        Self { address, fabric, heard, task }
    }

    /// The next message that is no probe.
    async fn next(&mut self) -> Vec<u8> {
        loop {
            let message = soon(self.heard.recv()).await.expect("a message");
            assert_eq!(message.from, SENDER);
            if message.bytes != PROBE {
                return message.bytes;
            }
        }
    }

    /// Sends probes until one comes.
    async fn reached_by(&mut self, peers: &Peers) {
        let probing = async {
            loop {
                peers.send(RECEIVER, PROBE.to_vec());
                tokio::select! {
                    message = self.heard.recv() => return message,
                    () = tokio::time::sleep(PROBE_INTERVAL) => {}
                }
            }
        };
        assert!(soon(probing).await.is_some());
    }

    async fn end(self) {
        self.fabric.close().await;
        soon(self.task).await.expect("ends with its endpoint");
    }
}

fn peers(fabric: &Fabric, receiver: SocketAddr) -> Arc<Peers> {
    let met = |of: &str, address| Met { name: name(of), addresses: vec![address] };
    let me = met("a", fabric.control_address().expect("address"));
    let peers = Peers::start(fabric.clone(), name("a"), "one".to_owned(), (GroupId(1), SENDER, 5));
    peers.set([(SENDER, me), (RECEIVER, met("b", receiver))].into());
    peers
}

#[actix::test]
async fn messages_arrive_in_order_up_to_the_largest() {
    let cluster = Cluster::new();
    let a = cluster.serve("a");
    let mut b = Receiver::new(cluster.serve("b"));
    let peers = peers(&a.fabric, b.address);
    b.reached_by(&peers).await;
    let messages: Vec<_> = (0..100_u8)
        .map(|number| vec![number; if number % 25 == 0 { 1 << 20 } else { usize::from(number) + 1 }])
        .chain([Vec::new(), vec![7; PEER_BYTES_MAX]])
        .collect();
    messages.iter().for_each(|message| peers.send(RECEIVER, message.clone()));
    for message in messages {
        assert!(b.next().await == message, "{} bytes, beginning with {:?}", message.len(), message.first());
    }
    assert_eq!(peers.dropped(RECEIVER), 0);
    // Neither this voter itself nor an unknown one nor too large a message is a reason to fail.
    peers.send(SENDER, vec![1]);
    peers.send(NodeId::new(9).expect("not 0"), vec![1]);
    peers.send(RECEIVER, vec![1; PEER_BYTES_MAX + 1]);
    peers.send(RECEIVER, b"last".to_vec());
    assert_eq!(b.next().await, b"last");
}

#[actix::test]
async fn a_restart_of_the_other_voter_is_survived() {
    let cluster = Cluster::new();
    let a = cluster.serve("a");
    let mut b = Receiver::new(cluster.serve("b"));
    let (address, peers) = (b.address, peers(&a.fabric, b.address));
    for round in 0..3_u8 {
        b.reached_by(&peers).await;
        peers.send(RECEIVER, vec![round]);
        assert_eq!(b.next().await, [round]);
        b.end().await;
        b = Receiver::new(rebind(&cluster, "b", address).await);
    }
    b.reached_by(&peers).await;
}

#[actix::test]
async fn the_end_of_the_peers_is_the_end_of_their_connections() {
    let cluster = Cluster::new();
    let a = cluster.serve("a");
    let mut b = cluster.serve("b");
    let peers = peers(&a.fabric, b.control_address());
    let call = soon(b.control.recv()).await.expect("a call");
    drop(peers);
    soon(call.connection.closed()).await;
}

#[actix::test]
async fn a_message_above_the_cap_ends_the_connection_with_the_reason() {
    let cluster = Cluster::new();
    let a = cluster.serve("a");
    let mut b = Receiver::new(cluster.serve("b"));
    let (node, hello) = (name("b"), hello("a", "one"));
    let dialed = soon(a.fabric.dial_control(b.address, &node, Role::Peer, &hello)).await;
    let (connection, _send, _receive) = dialed.expect("dial");
    let mut stream = soon(connection.open_uni()).await.expect("stream");
    soon(write(&mut stream, b"fits")).await.expect("write");
    let length = u32::try_from(PEER_BYTES_MAX + 1).expect("fits");
    soon(stream.write_all(&length.to_le_bytes())).await.expect("write");
    let ConnectionError::ApplicationClosed(close) = soon(connection.closed()).await else {
        panic!("not closed by the peer")
    };
    assert_eq!(close.error_code.into_inner(), u64::from(BROKE_RULE));
    assert_eq!(
        String::from_utf8_lossy(&close.reason),
        "a voter's message: frame of 1048641 bytes; at most 1048640 are allowed here"
    );
    assert_eq!(b.next().await, b"fits");
}

#[actix::test]
async fn what_nobody_takes_is_dropped_and_counted_without_waiting() {
    let cluster = Cluster::new();
    let a = cluster.serve("a");
    // Nobody answers there: it is a socket that nobody reads.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let peers = peers(&a.fabric, silent.local_addr().expect("address"));
    // The link has no turn between these, so all of the queue is free and none of it is taken.
    (0..QUEUE + 44).for_each(|_| peers.send(RECEIVER, vec![1]));
    assert_eq!(peers.dropped(RECEIVER), 44);
}

#[test]
fn what_waited_too_long_is_dropped_and_what_did_not_stays_first() {
    let (sender, receiver) = mpsc::channel(8);
    let mut waiting = Waiting { receiver, next: None };
    let start = Instant::now();
    for (after, byte) in [(0, 1), (0, 2), (3, 3), (3, 4)] {
        let message = Message { at: start + Duration::from_secs(after), bytes: vec![byte] };
        sender.try_send(message).expect("room");
    }
    assert_eq!(waiting.drop_stale(start), 0);
    assert_eq!(waiting.drop_stale(start + STALE), 0, "at the bound");
    assert_eq!(waiting.drop_stale(start + Duration::from_secs(4)), 2);
    let mut next = || waiting.next.take().or_else(|| waiting.receiver.try_recv().ok()).map(|it| it.bytes);
    assert_eq!((next(), next(), next()), (Some(vec![3]), Some(vec![4]), None));
}

#[test]
fn drops_are_told_of_once_a_minute_and_all_are_counted() {
    let start = Instant::now();
    let mut drops = Drops::default();
    assert_eq!(drops.count(start), Some(1));
    assert_eq!(drops.count(start), None);
    assert_eq!(drops.count(start + Duration::from_secs(59)), None);
    assert_eq!(drops.count(start + WARNING_INTERVAL), Some(3));
    assert_eq!(drops.all, 4);
}
