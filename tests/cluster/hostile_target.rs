//! A guest is sent to a target that is none, or that speaks nonsense: the move ends by name, and the guest never stops.
//!
//! ```text
//!   node-a ── dials ──▶ false target          the puppet agrees that node-b has joined there and accepted the guest
//! ```

use std::error::Error;

use godwit::lab::monotonic_ns;
use godwit_domain::ownership::Entry;
use godwit_domain::registry::GuestUid;
use godwit_domain::{Epoch, InstanceId, MigrationId};
use godwit_transfer::control;
use godwit_wire::codec::Blob;
use godwit_wire::migration::TargetFrame;
use libtest_mimic::Trial;
use quinn::{Connection, Endpoint};

use crate::support::peer::{listen, papers_of};
use crate::support::puppet::Puppet;
use crate::support::world::{World, guest, guest_of};
use crate::support::{Outcome, PATIENCE, stories};

/// The guest that is sent astray.
const GUEST: GuestUid = GuestUid(1);

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        the_guest_never_stops_for_a_target_that_speaks_nonsense,
        a_target_with_the_certificate_of_another_node_hears_nothing
    ]
}

async fn the_guest_never_stops_for_a_target_that_speaks_nonsense(world: &mut World) -> Outcome {
    let puppet = node_a_and_its_guest(world).await?;
    world.announce(&["giving up", "migration failed"]);
    let since = monotonic_ns();
    let endpoint = listen(&papers_of(world, "node-b"))?;
    for (number, (answer, why)) in (1..).zip(answers()?) {
        let migration = begin(&puppet, &endpoint, number)?;
        let connection = called(&endpoint).await??;
        // The link's second connection, which hears nothing.
        let pages = called(&endpoint).await??;
        let (mut send, mut receive) = connection.accept_bi().await?;
        control::hear_greeting(&mut receive).await?;
        send.write_all(&answer).await?;
        let reason = puppet.failure_of(&migration).await?;
        drop(pages);
        assert!(reason.contains(why), "answer {number} should end the move with {why:?}: {reason}");
    }
    puppet.runs_under_the_agreed_epoch(GUEST, "node-a").await?;
    let seen = world.ticks_after(since, monotonic_ns(), "node-a").await;
    world.ran_on(&seen, since, 250_000_000);
    puppet.start_node(world, "node-b").await?;
    puppet.move_and_prove(world, GUEST, "node-b").await
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
    let puppet = node_a_and_its_guest(world).await?;
    world.announce(&["the migration did not begin", "migration failed"]);
    let endpoint = listen(&papers_of(world, "node-x"))?;
    let migration = begin(&puppet, &endpoint, 1)?;
    assert!(called(&endpoint).await?.is_err(), "it was greeted");
    let reason = puppet.failure_of(&migration).await?;
    assert!(reason.contains("connect to node-b at") && reason.contains("certificate"), "{reason}");
    puppet.start_node(world, "node-b").await?;
    puppet.move_and_prove(world, GUEST, "node-b").await
}

async fn node_a_and_its_guest(world: &mut World) -> Result<Puppet, Box<dyn Error>> {
    let puppet = Puppet::start(world)?;
    puppet.start_node(world, "node-a").await?;
    puppet.create(GUEST, guest(), "node-a", guest_of(64, 8))?;
    puppet.born(GUEST).await;
    puppet.runs_under_the_agreed_epoch(GUEST, "node-a").await?;
    Ok(puppet)
}

/// Has it agreed that the guest goes to `node-b`, which is at this endpoint and has accepted it.
fn begin(puppet: &Puppet, endpoint: &Endpoint, number: u8) -> Result<MigrationId, Box<dyn Error>> {
    let migration: MigrationId = format!("astray-{number}").parse()?;
    puppet.join("node-b", endpoint.local_addr()?)?;
    puppet.send(GUEST, &migration, "node-b")?;
    let (epoch, instance) = (puppet.epoch(GUEST)?, InstanceId::from_random([number; 16]));
    puppet.agree(GUEST, Entry::Accept { migration: migration.clone(), epoch, instance })?;
    Ok(migration)
}

/// The next call, or why it came to nothing.
async fn called(endpoint: &Endpoint) -> Result<Result<Connection, quinn::ConnectionError>, Box<dyn Error>> {
    let incoming = tokio::time::timeout(PATIENCE, endpoint.accept()).await?.ok_or("no endpoint")?;
    Ok(incoming.await)
}
