//! Who may speak to a node: a certificate of the cluster's authority, and only in its own name.

use godwit_domain::{Epoch, InstanceId};
use godwit_node::ca;
use godwit_transfer::control;
use godwit_wire::migration::{Preamble, SessionId};
use libtest_mimic::Trial;
use quinn::Connection;

use crate::support::peer::{Papers, dial, end_of, papers_of};
use crate::support::world::{MIB, World, guest, guest_of, node};
use crate::support::{Outcome, stories};

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_peer_without_a_certificate_is_refused,
        a_peer_with_the_certificate_of_another_authority_is_refused,
        a_peer_that_speaks_in_the_name_of_another_node_is_refused
    ]
}

async fn a_peer_without_a_certificate_is_refused(world: &mut World) -> Outcome {
    refuses(world, &Papers::None, "peer sent no certificates").await
}

async fn a_peer_with_the_certificate_of_another_authority_is_refused(world: &mut World) -> Outcome {
    let other = world.folder("other-ca");
    ca::init(&other)?;
    refuses(world, &Papers::Of(other.into(), node("node-a")), "UnknownIssuer").await
}

async fn a_peer_that_speaks_in_the_name_of_another_node_is_refused(world: &mut World) -> Outcome {
    let papers = papers_of(world, "node-x");
    refuses(world, &papers, "it greets as node-a, its certificate is another node's").await
}

/// `node-b` refuses whoever comes with these papers and greets as `node-a`, says why, and goes on serving.
async fn refuses(world: &mut World, papers: &Papers, why: &'static str) -> Outcome {
    world.pair_with(guest_of(64, 8)).await?;
    world.announce(&["peer refused"]);
    // A client takes its part of the handshake for done before the node has seen its certificate.
    match dial(world, "node-b", papers).await {
        Ok(connection) => {
            // Whether the greeting gets out depends on who is faster; it must not matter.
            let _ = greet_as_node_a(&connection).await;
            let end = end_of(&connection).await;
            assert!(!end.contains("closed by peer: 0"), "closed as if nothing were: {end}");
        }
        Err(refused) => assert!(!refused.to_string().contains("timed out"), "not an answer: {refused}"),
    }
    let line = world.logs("node-b", "peer refused").await;
    assert!(line.contains(why), "the log should say {why:?}: {line}");
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
        memory_bytes: 64 * MIB,
        page_bytes: 4096,
    };
    let (mut send, _receive) = connection.open_bi().await?;
    Ok(control::greet(&mut send, &preamble).await?)
}
