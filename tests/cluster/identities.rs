//! Who may speak to a node: a certificate of the cluster's authority, only in its own name, only of its own cluster.
//!
//! ```text
//!   migration address   who greets in whose name        control address   and for which cluster, as what
//! ```

use std::error::Error;
use std::net::SocketAddr;
use std::time::Instant;

use godwit_domain::registry::{BootId, Node};
use godwit_domain::{Epoch, InstanceId, NodeName};
use godwit_node::ca;
use godwit_node::fabric::frames;
use godwit_transfer::control;
use godwit_wire::codec;
use godwit_wire::migration::{Preamble, Role, SessionId};
use godwit_wire::session::{ASK_BYTES_MAX, Hello, Welcome};
use libtest_mimic::Trial;
use quinn::{Connection, RecvStream};
use rustix::process::Signal;

use super::membership::signal;
use crate::support::peer::{Papers, dial, end_of, papers_of};
use crate::support::world::{MIB, World, guest, guest_of, node};
use crate::support::{Outcome, PATIENCE, stories};

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_peer_without_a_certificate_is_refused,
        a_peer_with_the_certificate_of_another_authority_is_refused,
        a_peer_that_speaks_in_the_name_of_another_node_is_refused,
        a_session_with_the_certificate_of_another_authority_is_refused,
        a_node_of_another_cluster_is_refused_by_name,
        a_peer_that_is_no_voter_is_refused,
        whoever_hears_nothing_of_the_leader_is_told_of_the_next_one
    ]
}

// ---- the migration address -------------------------------------------------------------------------------------

async fn a_peer_without_a_certificate_is_refused(world: &mut World) -> Outcome {
    refuses(world, &Papers::None, "peer sent no certificates").await
}

async fn a_peer_with_the_certificate_of_another_authority_is_refused(world: &mut World) -> Outcome {
    let papers = foreign_papers(world)?;
    refuses(world, &papers, "UnknownIssuer").await
}

async fn a_peer_that_speaks_in_the_name_of_another_node_is_refused(world: &mut World) -> Outcome {
    let papers = papers_of(world, "node-x");
    refuses(world, &papers, "it greets as node-a, its certificate is another node's").await
}

/// `node-b` refuses whoever comes with these papers and greets as `node-a`, says why, and goes on serving.
async fn refuses(world: &mut World, papers: &Papers, why: &'static str) -> Outcome {
    world.three_with(guest_of(64, 8)).await?;
    world.announce(&["peer refused"]);
    let address = world.cluster.node_detail(&node("node-b")).await?.row.migration_address;
    is_not_heard(world, address, papers, async |connection| greet_as_node_a(connection).await).await;
    let line = world.logs("node-b", why).await;
    assert!(line.contains("peer refused"), "{line}");
    world.move_and_prove("node-b").await?;
    Ok(())
}

async fn greet_as_node_a(connection: &Connection) -> Outcome {
    let preamble = Preamble {
        migration: "migration-1".parse()?,
        guest: guest(),
        source: node("node-a"),
        epoch: Epoch::FIRST,
        token: InstanceId::from_random([1; 16]),
        session: SessionId(1),
        link: 1,
        memory_bytes: 64 * MIB,
        page_bytes: 4096,
    };
    let (mut send, _receive) = connection.open_bi().await?;
    Ok(control::greet(&mut send, Role::Migration, &preamble).await?)
}

// ---- the control address ---------------------------------------------------------------------------------------

async fn a_session_with_the_certificate_of_another_authority_is_refused(world: &mut World) -> Outcome {
    world.three_with(guest_of(64, 8)).await?;
    world.announce(&["peer refused"]);
    let (address, papers) = (control_address(world)?, foreign_papers(world)?);
    let greet = async |connection: &Connection| say_hello(connection, Role::Session, "node-a", "lab").await;
    is_not_heard(world, address, &papers, greet).await;
    let line = world.logs("node-b", "UnknownIssuer").await;
    assert!(line.contains("peer refused"), "{line}");
    world.move_and_prove("node-b").await?;
    Ok(())
}

async fn a_node_of_another_cluster_is_refused_by_name(world: &mut World) -> Outcome {
    world.three_with(guest_of(64, 8)).await?;
    world.announce(&["peer refused"]);
    let why = "it belongs to cluster elsewhere, this node to lab";
    for role in [Role::Session, Role::Peer] {
        // Even a voter, with the certificate of this cluster's authority.
        let end = said_hello(world, role, "node-a", "elsewhere").await?;
        assert!(end.contains(why), "a {role} should be refused with {why:?}: {end}");
    }
    world.logs("node-b", why).await;
    world.move_and_prove("node-b").await?;
    Ok(())
}

async fn a_peer_that_is_no_voter_is_refused(world: &mut World) -> Outcome {
    world.three_with(guest_of(64, 8)).await?;
    world.announce(&["peer refused"]);
    let end = said_hello(world, Role::Peer, "node-x", "lab").await?;
    assert!(end.contains("node node-x is no voter here"), "{end}");
    world.move_and_prove("node-b").await?;
    Ok(())
}

/// A voter that is asked who leads after a term keeps the answer back until it knows, and says at once who it is.
async fn whoever_hears_nothing_of_the_leader_is_told_of_the_next_one(world: &mut World) -> Outcome {
    world.three_with(guest_of(16, 1)).await?;
    let (leader, term) = world.cluster.leader().await?;
    let voters = world.cluster.voters().clone();
    let mut followers = voters.into_iter().filter(|(name, _)| *name != leader);
    let (to, address) = followers.next().ok_or("three vote")?;
    let asked = || async {
        let connection = dial(world, (to.as_str(), address), &papers_of(world, "node-x")).await?;
        let node = Node::new(address, address, BootId(1), MIB);
        let hello = Hello { node: Some(node), after: Some(term), ..hello_of("node-x", "lab") };
        let mut receive = say(&connection, Role::Session, &hello).await?;
        let welcome = frames::read::<Welcome>(&mut receive, "welcome", ASK_BYTES_MAX).await?;
        Ok::<_, Box<dyn Error>>((welcome, connection))
    };
    let mut first = Box::pin(asked());
    // Who leads is known, and not said: it is the one that is not heard.
    tokio::select! {
        biased;
        answer = &mut first => return Err(format!("it is answered with {answer:?}").into()),
        leads = world.cluster.leader() => assert_eq!(leads?, (leader.clone(), term)),
    }
    signal(world, leader.as_str(), Signal::KILL)?;
    let began = Instant::now();
    let mut answer = first.await?.0;
    // On a slow host nobody may be elected by then.
    while !is_later(answer.as_ref(), &leader, term) {
        assert!(began.elapsed() < PATIENCE, "{answer:?}");
        answer = asked().await?.0;
    }
    Ok(())
}

fn is_later(welcome: Option<&Welcome>, silent: &NodeName, after: u64) -> bool {
    match welcome {
        Some(Welcome::Leads { term, .. }) => *term > after,
        Some(Welcome::Elsewhere { leader, .. }) => leader.as_ref().is_some_and(|leader| leader != silent),
        Some(Welcome::Refused { .. }) | None => false,
    }
}

/// Greets `node-b` under this name, with the certificate for it, and returns how that was ended.
async fn said_hello(world: &World, role: Role, name: &str, cluster: &str) -> Result<String, Box<dyn Error>> {
    let to = ("node-b", control_address(world)?);
    let connection = dial(world, to, &papers_of(world, name)).await?;
    say_hello(&connection, role, name, cluster).await?;
    Ok(end_of(&connection).await)
}

async fn say_hello(connection: &Connection, role: Role, name: &str, cluster: &str) -> Outcome {
    say(connection, role, &hello_of(name, cluster)).await.map(drop)
}

fn hello_of(name: &str, cluster: &str) -> Hello {
    let (cluster, name) = (cluster.to_owned(), node(name));
    Hello { cluster, name, group: None, voter: None, log: 0, node: None, after: None }
}

async fn say(connection: &Connection, role: Role, hello: &Hello) -> Result<RecvStream, Box<dyn Error>> {
    let hello = codec::encode_frame("hello", hello, ASK_BYTES_MAX)?;
    let (mut send, receive) = connection.open_bi().await?;
    send.write_all(&[&role.greeting()[..], &hello].concat()).await?;
    Ok(receive)
}

fn control_address(world: &World) -> Result<SocketAddr, Box<dyn Error>> {
    Ok(*world.cluster.voters().get(&node("node-b")).ok_or("node-b does not vote")?)
}

// ---- both ------------------------------------------------------------------------------------------------------

/// A certificate for `node-a`, of an authority that the cluster knows nothing of.
fn foreign_papers(world: &World) -> Result<Papers, Box<dyn Error>> {
    let other = world.folder("other-ca");
    ca::init(&other)?;
    Ok(Papers::Of(other.into(), node("node-a")))
}

/// Whoever calls `node-b` there with these papers gets no answer but an end.
async fn is_not_heard(
    world: &World,
    address: SocketAddr,
    papers: &Papers,
    greet: impl AsyncFnOnce(&Connection) -> Outcome,
) {
    // A client takes its part of the handshake for done before the node has seen its certificate.
    match dial(world, ("node-b", address), papers).await {
        Ok(connection) => {
            // Whether the greeting gets out depends on who is faster; it must not matter.
            let _ = greet(&connection).await;
            let end = end_of(&connection).await;
            assert!(!end.contains("closed by peer: 0"), "closed as if nothing were: {end}");
        }
        Err(refused) => assert!(!refused.to_string().contains("timed out"), "not an answer: {refused}"),
    }
}
