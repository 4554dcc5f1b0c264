//! A guest is sent to a target that is none, or that speaks nonsense: the move ends by name, and the guest never stops.
//!
//! ```text
//!   node-a ── dials ──▶ false target          the ledger says that node-b has accepted the guest there
//! ```

use std::error::Error;

use godwit::lab::cluster::Event;
use godwit::lab::monotonic_ns;
use godwit_domain::ownership::Entry;
use godwit_domain::{Epoch, InstanceId, MigrationId};
use godwit_transfer::control;
use godwit_wire::codec::Blob;
use godwit_wire::migration::TargetFrame;
use godwit_wire::orders::Order;
use libtest_mimic::Trial;
use quinn::Endpoint;

use crate::support::peer::{listen, papers_of};
use crate::support::world::{World, guest, guest_of, node, unlimited};
use crate::support::{Outcome, PATIENCE, stories};

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        the_guest_never_stops_for_a_target_that_speaks_nonsense,
        a_target_with_the_certificate_of_another_node_hears_nothing
    ]
}

async fn the_guest_never_stops_for_a_target_that_speaks_nonsense(world: &mut World) -> Outcome {
    world.start(&["node-a"]).await?;
    world.create(guest_of(64, 8)).await?;
    world.announce(&["giving up", "migration failed"]);
    let since = monotonic_ns();
    let endpoint = listen(&papers_of(world, "node-b"))?;
    for (number, (answer, why)) in (1..).zip(answers()?) {
        begin(world, &endpoint, number).await?;
        let connection = endpoint.accept().await.ok_or("no endpoint")?.await?;
        let (mut send, mut receive) = connection.accept_bi().await?;
        control::hear_greeting(&mut receive).await?;
        send.write_all(&answer).await?;
        let reason = ended(world).await?;
        assert!(reason.contains(why), "answer {number} should end the move with {why:?}: {reason}");
    }
    world.runs_under_the_agreed_epoch().await?;
    let seen = world.ticks_after(since, monotonic_ns(), "node-a").await;
    assert!(seen.lost == 0 && seen.gap_ns_max < 250_000_000, "the guest stood still: {seen:?}");
    world.start(&["node-b"]).await?;
    world.move_and_prove("node-b").await?;
    Ok(())
}

/// What is said to a good greeting, and with which words the move must end.
type Answer = (Vec<u8>, &'static str);

fn answers() -> Result<Vec<Answer>, Box<dyn Error>> {
    let welcome = || TargetFrame::Welcome { held: false };
    let said = |frames: &[TargetFrame]| -> Result<Vec<u8>, Box<dyn Error>> {
        let frames: Result<Vec<_>, _> = frames.iter().map(control::target_frame).collect();
        Ok(frames?.concat())
    };
    let held = TargetFrame::Held { segment: 0, stamps: Blob(vec![0; 16]), last: true };
    let ack = TargetFrame::Ack { batches: 1 << 40, pages: 1 << 40 };
    Ok(vec![
        (vec![0xff; 64], "frame of 4294967295 bytes; at most 65536 are allowed here"),
        (vec![4, 0, 0, 0, 9, 9, 9, 9], "malformed target frame"),
        (said(&[welcome(), welcome()])?, "target said Welcome twice on one connection"),
        (said(std::slice::from_ref(&ack))?, "target said Ack before anything was sent"),
        (said(&[welcome(), ack])?, "target said Ack for more than was sent"),
        (said(&[welcome(), held])?, "target said Held unasked"),
        (said(&[welcome(), TargetFrame::Complete { epoch: Epoch(7) }])?, "for an epoch that was not sealed"),
        (said(&[TargetFrame::Failed { message: "out of cheese".into() }])?, "out of cheese"),
    ])
}

async fn a_target_with_the_certificate_of_another_node_hears_nothing(world: &mut World) -> Outcome {
    world.start(&["node-a"]).await?;
    world.create(guest_of(64, 8)).await?;
    world.announce(&["the migration did not begin", "migration failed"]);
    let endpoint = listen(&papers_of(world, "node-x"))?;
    begin(world, &endpoint, 1).await?;
    let refused = endpoint.accept().await.ok_or("no endpoint")?.await;
    assert!(refused.is_err(), "it was greeted");
    let reason = ended(world).await?;
    assert!(reason.contains("connect to node-b at") && reason.contains("certificate"), "{reason}");
    world.start(&["node-b"]).await?;
    world.move_and_prove("node-b").await?;
    Ok(())
}

/// Has it agreed that the guest goes to `node-b`, and sends it to this endpoint.
async fn begin(world: &mut World, endpoint: &Endpoint, number: u8) -> Outcome {
    let migration: MigrationId = format!("astray-{number}").parse()?;
    let (epoch, token) = (Epoch(world.epoch()), InstanceId::from_random([number; 16]));
    let start = Entry::Start { migration: migration.clone(), target: node("node-b") };
    let accept = Entry::Accept { migration: migration.clone(), epoch, instance: token };
    world.cluster.agree(&guest(), Entry::Request { migration: migration.clone() }).await?;
    world.cluster.agree(&guest(), start).await?;
    world.cluster.agree(&guest(), accept).await?;
    let (target, address, settings) = (node("node-b"), endpoint.local_addr()?, unlimited());
    let order = Order::Migrate { migration, guest: guest(), target, address, token, epoch, settings };
    world.cluster.order(&node("node-a"), &order).await;
    Ok(())
}

/// Waits for the agreed end of the move.
async fn ended(world: &mut World) -> Result<String, Box<dyn Error>> {
    let end = |event| match event {
        Event::Agreed(_, Entry::End { reason, .. }) => Some(reason),
        _ => None,
    };
    Ok(world.cluster.wait("end of the move", PATIENCE, end).await?)
}
