//! Migrations over named networks. Every address that begins with 127 is this host's own, so it stands in several.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_travel_in_the_network_that_they_name() {
    let cluster = Cluster::new();
    let mut a = cluster.serve_in("a", "storage = \"127.0.1.1:0\"\n\"vlan/20\" = \"127.0.2.1:0\"");
    let b = cluster.serve_in("b", "storage = \"127.0.1.2:0\"\n\"vlan/20\" = \"127.0.2.2:0\"");
    let address = |node: &Serving, network: Option<&str>| match network {
        None => node.fabric.migration_address().expect("address"),
        Some(network) => node.fabric.network_addresses().expect("addresses")[network],
    };
    for (network, to, from) in [
        (None, "127.0.0.1", "127.0.0.1"),
        (Some("storage"), "127.0.1.1", "127.0.1.2"),
        (Some("vlan/20"), "127.0.2.1", "127.0.2.2"),
    ] {
        let theirs = address(&a, network);
        let dialed = soon(b.fabric.dial(theirs, &name("a"), network, &preamble("b"))).await.expect("dial");
        let ours = address(&b, network);
        assert_eq!((ours.ip().to_string(), theirs.ip().to_string()), (from.to_owned(), to.to_owned()));
        assert_eq!([&dialed.urgent, &dialed.bulk].map(Connection::remote_address), [theirs; 2]);
        let mut lanes = Vec::new();
        for _ in 0..2 {
            let inbound = soon(a.migrations.recv()).await.expect("an inbound connection");
            assert_eq!(inbound.preamble, preamble("b"));
            assert_eq!(inbound.connection.local_ip(), Some(theirs.ip()), "where it came in");
            let came_from = inbound.connection.remote_address();
            assert_eq!(came_from.ip(), ours.ip());
            assert_eq!(
                came_from.port() == ours.port(),
                inbound.lane == Lane::Urgent,
                "pages have a port of their own"
            );
            lanes.push(inbound.lane);
        }
        assert!(lanes.contains(&Lane::Urgent) && lanes.contains(&Lane::Bulk), "{lanes:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_in_a_network_is_a_migration_address_like_any_other() {
    let cluster = Cluster::new();
    let mut a = cluster.serve_in("a", "storage = \"127.0.1.1:0\"");
    let b = cluster.serve_in("b", "storage = \"127.0.1.2:0\"");
    let address = a.fabric.network_addresses().expect("addresses")["storage"];
    // Another node's name, and a stranger's certificate.
    let storage = Some("storage");
    let wrong = soon(b.fabric.dial(address, &name("c"), storage, &preamble("b"))).await;
    assert!(matches!(wrong, Err(DialError::Handshake { .. })), "{wrong:?}");
    let lying = soon(b.fabric.dial(address, &name("a"), storage, &preamble("c"))).await.expect("dial");
    let told = "it greets as c, its certificate is another node's";
    assert_eq!(closed(&lying.urgent).await, (u64::from(REFUSED), told.to_owned()));
    let stranger = Cluster::new().serve_in("b", "storage = \"127.0.1.3:0\"");
    let refused = soon(stranger.fabric.dial(address, &name("a"), storage, &preamble("b"))).await;
    assert!(matches!(refused, Err(DialError::Handshake { .. })), "{refused:?}");
    let (session, ..) = dialed(&b.fabric, ("a", address), Role::Session, &hello("b", "one")).await;
    let told = "it asks for a session on the migration address, which answers migrations only; dial the control address";
    assert_eq!(closed(&session).await, (u64::from(REFUSED), told.to_owned()));
    assert!(a.migrations.try_recv().is_err(), "nobody came out");

    let Lines { urgent: connection, .. } =
        soon(b.fabric.dial(address, &name("a"), storage, &preamble("b"))).await.expect("dial");
    let _inbound = soon(a.migrations.recv()).await.expect("an inbound migration");
    a.end().await;
    assert_eq!(closed(&connection).await, (u64::from(STOPPING), "the node stops".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lacks_a_network_says_so_and_dials_nobody() {
    let cluster = Cluster::new();
    let mut a = cluster.serve_in("a", "storage = \"127.0.1.1:0\"");
    let b = cluster.serve("b");
    let address = a.fabric.network_addresses().expect("addresses")["storage"];
    let lacking = soon(b.fabric.dial(address, &name("a"), Some("storage"), &preamble("b"))).await;
    assert_eq!(
        lacking.expect_err("refused").to_string(),
        format!(
            "connect to a at {address} over network storage: this node has no such network; give it an address there: \
             `\"storage\" = \"IP:PORT\"` under [migration.networks] in its config"
        )
    );
    assert!(a.migrations.try_recv().is_err(), "nobody came out");
}

#[tokio::test]
async fn a_taken_address_in_a_network_is_told_as_such() {
    let cluster = Cluster::new();
    let a = cluster.try_bind("a", "one", "127.0.0.1:0", "storage = \"127.0.1.1:0\"").expect("bind");
    let address = a.network_addresses().expect("addresses")["storage"];
    match cluster.try_bind("b", "one", "127.0.0.1:0", &format!("net = \"{address}\"")) {
        Err(FabricError::Address(error)) => {
            let told = format!(
                "`net` in [migration.networks]: another process on this host already uses UDP address {address}"
            );
            assert!(error.to_string().contains(&told), "{error}");
        }
        other => panic!("{other:?}"),
    }
}
