//! A peer with a good certificate that speaks nonsense: each is refused by name, costs nothing, and breaks nothing.
//!
//! ```text
//!   greeting ─▶ preamble ─▶ does it fit what was agreed? ─▶ frames, batches
//!      └─ close       └─ close            └─ Refused, close        └─ close, the migration ends
//! ```

use std::error::Error;

use godwit::lab::cluster::Event;
use godwit_domain::ownership::Entry;
use godwit_domain::{Epoch, InstanceId, PageRun, Round};
use godwit_transfer::control::{self, hear_target};
use godwit_wire::batch::{Batch, Class, ClassedRun, HEAD_BYTES, RUN_BYTES};
use godwit_wire::migration::{
    Final, Mismatch, Mode, Preamble, Role, SessionId, SourceFrame, TargetFrame, state_digest,
};
use godwit_wire::orders::Order;
use libtest_mimic::Trial;
use quinn::{Connection, RecvStream, SendStream};

use crate::support::peer::{dial, end_of, papers_of};
use crate::support::world::{MIB, World, guest, guest_of, node};
use crate::support::{Outcome, PATIENCE, stories};

/// The guest's RAM in MiB.
const MEMORY: u64 = 64;

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_greeting_or_preamble_that_is_none_is_refused_by_name,
        a_preamble_that_does_not_fit_is_refused_by_name,
        nonsense_after_a_good_preamble_ends_the_migration_by_name
    ]
}

// ---- before the preamble ---------------------------------------------------------------------------------------

async fn a_greeting_or_preamble_that_is_none_is_refused_by_name(world: &mut World) -> Outcome {
    world.pair_with(guest_of(MEMORY, 8)).await?;
    world.announce(&["peer refused"]);
    let greeting = |then: &[u8]| [&Role::Migration.greeting()[..], then].concat();
    let said = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "not a godwit peer: the first bytes are [47, 45, 54, 20]"),
        (vec![0; 64], "not a godwit peer"),
        (b"GDWT\x63\x00\x01\x00".to_vec(), "peer speaks protocol version 99, this node speaks 1"),
        (b"GDWT\x01\x00\x07\x00".to_vec(), "peer asks for role 7"),
        (b"GDW".to_vec(), "control stream ended while reading the greeting"),
        (greeting(&[200, 0, 0, 0, 1, 2, 3]), "control stream ended while reading the preamble"),
        (greeting(&[0xff; 4]), "frame of 4294967295 bytes; at most 1024 are allowed here"),
        (greeting(&[16, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]), "malformed preamble"),
    ];
    for (bytes, why) in said {
        let connection = dial(world, "node-b", &papers_of(world, "node-a")).await?;
        let (mut send, _receive) = connection.open_bi().await?;
        send.write_all(&bytes).await?;
        send.finish()?;
        let end = end_of(&connection).await;
        assert!(end.contains(why), "{bytes:02x?} should be refused with {why:?}: {end}");
        world.logs("node-b", why).await;
    }
    world.move_and_prove("node-b").await?;
    Ok(())
}

// ---- the preamble ----------------------------------------------------------------------------------------------

async fn a_preamble_that_does_not_fit_is_refused_by_name(world: &mut World) -> Outcome {
    world.pair_with(guest_of(MEMORY, 8)).await?;
    world.announce(&["peer refused", "giving up", "migration failed"]);
    let good = prepare(world, 1).await?;
    let another = InstanceId::from_random([7; 16]);
    let unfit = [
        (Preamble { migration: "unheard-of".parse()?, ..good.clone() }, Mismatch::Migration, "no migration"),
        (
            Preamble { guest: "default/vm2".parse()?, ..good.clone() },
            Mismatch::Migration,
            "not expected here",
        ),
        (Preamble { token: another, ..good.clone() }, Mismatch::Token, "the token is not that of the runner"),
        (Preamble { epoch: Epoch(9), ..good.clone() }, Mismatch::Epoch, "epoch 9 is not the present one, 1"),
        (Preamble { memory_bytes: 32 * MIB, ..good.clone() }, Mismatch::Shape, "memory of 33554432 bytes"),
        (Preamble { page_bytes: 65_536, ..good.clone() }, Mismatch::Shape, "pages of 65536 bytes"),
    ];
    for (preamble, which, why) in unfit {
        let (connection, _send, mut receive) = call(world, &preamble).await?;
        match hear_target(&mut receive).await? {
            TargetFrame::Refused { mismatch, message } => {
                assert_eq!(mismatch, which, "{message}");
                assert!(message.contains(why), "the refusal should say {why:?}: {message}");
            }
            other => return Err(format!("{preamble:?} was answered with {other:?}").into()),
        }
        let end = end_of(&connection).await;
        assert!(end.contains(why), "the close should say {why:?}: {end}");
        world.logs("node-b", why).await;
    }
    // None of it has touched the migration that waits.
    let (connection, _send, mut receive) = call(world, &good).await?;
    assert_eq!(hear_target(&mut receive).await?, TargetFrame::Welcome { held: false });
    drop_call(world, &connection).await?;
    world.move_and_prove("node-b").await?;
    Ok(())
}

/// The peer that was welcome goes without a word, which ends the migration.
async fn drop_call(world: &mut World, connection: &Connection) -> Outcome {
    connection.close(0_u32.into(), b"never mind");
    let reason = ended(world).await?;
    assert!(reason.contains("never mind"), "the reason should be the peer's: {reason}");
    Ok(())
}

// ---- after the preamble ----------------------------------------------------------------------------------------

/// What is said once the node has said Welcome.
enum Nonsense {
    OnAPageStream(Vec<u8>),
    OnTheControlStream(Vec<u8>),
}

async fn nonsense_after_a_good_preamble_ends_the_migration_by_name(world: &mut World) -> Outcome {
    use Nonsense::{OnAPageStream, OnTheControlStream};
    world.pair_with(guest_of(MEMORY, 8)).await?;
    world.announce(&["the source broke the protocol", "giving up", "migration failed"]);
    let frame =
        |frame: SourceFrame| Ok::<_, Box<dyn Error>>(OnTheControlStream(control::source_frame(&frame)?));
    let mut spoilt = batch(0, 1);
    spoilt[HEAD_BYTES + RUN_BYTES] ^= 1;
    let said = [
        (OnAPageStream(vec![0xaa; 4096]), "page stream out of step: expected a batch, got 0xaaaaaaaa"),
        (OnAPageStream(batch(u32::MAX - 7, 4)), "it lies outside the guest's memory"),
        (OnAPageStream(batch(u32::try_from(MEMORY)? * 256, 1)), "it lies outside the guest's memory"),
        (OnAPageStream(spoilt), "checksum"),
        (OnTheControlStream(vec![0xff; 64]), "frame of 4294967295 bytes; at most 65536 are allowed here"),
        (OnTheControlStream(vec![4, 0, 0, 0, 9, 9, 9, 9]), "malformed source frame"),
        (
            frame(SourceFrame::Digests { first_segment: 9, digests: vec![1] })?,
            "out of order or for no segment",
        ),
        (frame(final_frame(1 << 20))?, "with another device state than came before it"),
        (frame(final_frame(0))?, "without the stamps of all segments"),
    ];
    for (number, (nonsense, why)) in (1..).zip(said) {
        let preamble = prepare(world, number).await?;
        let (connection, mut send, mut receive) = call(world, &preamble).await?;
        assert_eq!(hear_target(&mut receive).await?, TargetFrame::Welcome { held: false });
        match nonsense {
            OnTheControlStream(bytes) => send.write_all(&bytes).await?,
            OnAPageStream(bytes) => connection.open_uni().await?.write_all(&bytes).await?,
        }
        let end = end_of(&connection).await;
        assert!(end.contains(why), "nonsense {number} should be answered with {why:?}: {end}");
        let reason = ended(world).await?;
        assert!(reason.contains(why), "nonsense {number}: the migration's reason is {reason}");
        world.logs("node-b", why).await;
    }
    world.move_and_prove("node-b").await?;
    Ok(())
}

/// Head and table of a batch with one run of raw pages whose bytes are all `0xdd`, with the payload behind.
fn batch(first: u32, count: u32) -> Vec<u8> {
    let runs = vec![ClassedRun { run: PageRun::new(first, count), class: Class::Raw }];
    let batch = Batch { session: SessionId(1), round: Round::FIRST, sequence: 0, runs };
    let payload = vec![0xdd; count as usize * 4096];
    [batch.encode(&payload), payload].concat()
}

fn final_frame(state_bytes: u32) -> SourceFrame {
    SourceFrame::Final(Final {
        epoch: Epoch::FIRST,
        round: Round::FIRST,
        state_bytes,
        state_digest: state_digest(&[]),
        batches: 0,
        mode: Mode::StopAndCopy,
    })
}

// ---- a migration without a source ------------------------------------------------------------------------------

/// Brings `node-b` to wait for the guest; the preamble is what `node-a` would say.
async fn prepare(world: &mut World, number: u32) -> Result<Preamble, Box<dyn Error>> {
    let migration: godwit_domain::MigrationId = format!("prepared-{number}").parse()?;
    let start = Entry::Start { migration: migration.clone(), target: node("node-b") };
    world.cluster.agree(&guest(), Entry::Request { migration: migration.clone() }).await?;
    world.cluster.agree(&guest(), start).await?;
    let epoch = Epoch(world.epoch());
    let (source, memory_bytes) = (node("node-a"), MEMORY * MIB);
    let order = Order::Prepare {
        migration: migration.clone(),
        guest: guest(),
        source: source.clone(),
        epoch,
        memory_bytes,
    };
    world.cluster.order(&node("node-b"), &order).await;
    let token = world
        .cluster
        .wait("Accept of node-b", PATIENCE, |event| match event {
            Event::Agreed(_, Entry::Accept { instance, .. }) => Some(instance),
            _ => None,
        })
        .await?;
    let session = SessionId(1);
    Ok(Preamble { migration, guest: guest(), source, epoch, token, session, memory_bytes, page_bytes: 4096 })
}

async fn call(
    world: &World,
    preamble: &Preamble,
) -> Result<(Connection, SendStream, RecvStream), Box<dyn Error>> {
    let connection = dial(world, "node-b", &papers_of(world, "node-a")).await?;
    let (mut send, receive) = connection.open_bi().await?;
    control::greet(&mut send, preamble).await?;
    Ok((connection, send, receive))
}

/// Waits for the agreed end of the migration and of the runner that was made for it.
async fn ended(world: &mut World) -> Result<String, Box<dyn Error>> {
    let reason = world
        .cluster
        .wait("end of the migration", PATIENCE, |event| match event {
            Event::Agreed(_, Entry::End { reason, .. }) => Some(reason),
            _ => None,
        })
        .await?;
    world.runner_goes("node-b").await?;
    Ok(reason)
}
