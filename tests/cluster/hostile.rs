//! A peer with a good certificate that speaks nonsense: each is refused by name, costs nothing, and breaks nothing.
//!
//! ```text
//!   greeting ─▶ preamble ─▶ does it fit what was agreed? ─▶ frames, batches
//!      └─ close       └─ close            └─ Refused, close        └─ close, the migration ends
//! ```

use std::error::Error;

use godwit_domain::ownership::{Entry, Phase, Side};
use godwit_domain::registry::{GuestUid, Registry};
use godwit_domain::{Epoch, InstanceId, MigrationId, PageRun, Round};
use godwit_transfer::control::{self, hear_target};
use godwit_wire::batch::{Batch, Class, ClassedRun, HEAD_BYTES, RUN_BYTES};
use godwit_wire::migration::{
    Final, Mismatch, Mode, Preamble, Role, SessionId, SourceFrame, TargetFrame, state_digest,
};
use libtest_mimic::Trial;
use quinn::{Connection, RecvStream, SendStream};

use crate::support::peer::{dial, end_of, papers_of};
use crate::support::puppet::Puppet;
use crate::support::world::{MIB, World, guest, guest_of, node};
use crate::support::{Outcome, stories};

/// The guest's RAM in MiB.
const MEMORY: u64 = 64;
/// The guest that a false `node-a` has and `node-b` waits for.
const GUEST: GuestUid = GuestUid(1);
/// A guest that goes from a true `node-c` to `node-b`.
const TRUE_GUEST: GuestUid = GuestUid(2);

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_greeting_or_preamble_that_is_none_is_refused_by_name,
        a_preamble_that_does_not_fit_is_refused_by_name,
        nonsense_after_a_good_preamble_ends_the_migration_by_name
    ]
}

// ---- before the preamble ---------------------------------------------------------------------------------------

async fn a_greeting_or_preamble_that_is_none_is_refused_by_name(world: &mut World) -> Outcome {
    world.three_with(guest_of(MEMORY, 8)).await?;
    world.announce(&["peer refused"]);
    let address = world.cluster.node_detail(&node("node-b")).await?.row.migration_address;
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
        let connection = dial(world, ("node-b", address), &papers_of(world, "node-a")).await?;
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
    let puppet = node_b_and_a_false_source(world).await?;
    world.announce(&["peer refused", "giving up", "migration failed"]);
    let good = prepare(&puppet, 1).await?;
    let another = InstanceId::from_random([7; 16]);
    let unfit = [
        (Preamble { migration: "unheard-of".parse()?, ..good.clone() }, Mismatch::Migration, "no migration"),
        (
            Preamble { guest: "default/vm2".parse()?, ..good.clone() },
            Mismatch::Migration,
            "not expected here",
        ),
        (Preamble { token: another, ..good.clone() }, Mismatch::Token, "the token is not that of the runner"),
        (Preamble { epoch: Epoch(0), ..good.clone() }, Mismatch::Epoch, "epoch 0 is over, 1 rules"),
        (Preamble { memory_bytes: 32 * MIB, ..good.clone() }, Mismatch::Shape, "memory of 33554432 bytes"),
        (Preamble { page_bytes: 65_536, ..good.clone() }, Mismatch::Shape, "pages of 65536 bytes"),
    ];
    for (preamble, which, why) in unfit {
        let (connection, _send, mut receive) = call(world, &puppet, &preamble).await?;
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
    let (connection, _send, mut receive) = call(world, &puppet, &good).await?;
    assert_eq!(hear_target(&mut receive).await?, TargetFrame::Welcome { held: false });
    comes_back(world, &puppet, &connection, &good).await?;
    prove(world, &puppet).await
}

/// The peer that was welcome goes without a word, which ends nothing: it may come back, and know of a later epoch by
/// then. An operator ends the migration.
async fn comes_back(world: &World, puppet: &Puppet, first: &Connection, good: &Preamble) -> Outcome {
    first.close(0_u32.into(), b"never mind");
    let line = world.logs("node-b", "waiting for it to come back").await;
    assert!(line.contains("never mind"), "the reason should be the peer's: {line}");
    let later = Preamble { epoch: good.epoch.next(), ..good.clone() };
    let (connection, _send, mut receive) = call(world, puppet, &later).await?;
    assert_eq!(hear_target(&mut receive).await?, TargetFrame::Welcome { held: true });
    // It hears to the end what is held, which is nothing yet.
    loop {
        match hear_target(&mut receive).await? {
            TargetFrame::Held { stamps, last, .. } => {
                assert!(stamps.0.iter().all(|byte| *byte == 0), "a page is held that nobody has sent");
                if last {
                    break;
                }
            }
            other => return Err(format!("Held should follow Welcome: {other:?}").into()),
        }
    }
    let (migration, reason) = (good.migration.clone(), "no more of this".to_owned());
    puppet.agree(GUEST, Entry::End { migration, side: Side::Operator, reason: reason.clone() })?;
    assert_eq!(puppet.end_of(&good.migration).await, Phase::Cancelled { reason });
    let end = end_of(&connection).await;
    assert!(end.contains("migration is over"), "the close should say that the migration is over: {end}");
    puppet.runner_goes("node-b").await
}

// ---- after the preamble ----------------------------------------------------------------------------------------

/// What is said once the node has said Welcome.
enum Nonsense {
    OnAPageStream(Vec<u8>),
    OnTheControlStream(Vec<u8>),
}

async fn nonsense_after_a_good_preamble_ends_the_migration_by_name(world: &mut World) -> Outcome {
    use Nonsense::{OnAPageStream, OnTheControlStream};
    let puppet = node_b_and_a_false_source(world).await?;
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
        (OnAPageStream(packed_batch(&[0xaa; 100])), "no LZ4 block of exactly 4096 bytes"),
        // One byte, repeated 25,000 times.
        (
            OnAPageStream(packed_batch(&[&[0x1f, 0xdd, 1, 0][..], &[0xff; 100]].concat())),
            "of exactly 4096 bytes",
        ),
        (OnAPageStream(packed_batch(&[0xdd; 4096])), "a packed payload must be shorter"),
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
        let preamble = prepare(&puppet, number).await?;
        let (connection, mut send, mut receive) = call(world, &puppet, &preamble).await?;
        assert_eq!(hear_target(&mut receive).await?, TargetFrame::Welcome { held: false });
        match nonsense {
            OnTheControlStream(bytes) => send.write_all(&bytes).await?,
            OnAPageStream(bytes) => connection.open_uni().await?.write_all(&bytes).await?,
        }
        let end = end_of(&connection).await;
        assert!(end.contains(why), "nonsense {number} should be answered with {why:?}: {end}");
        let reason = puppet.failure_of(&preamble.migration).await?;
        assert!(reason.contains(why), "nonsense {number}: the migration's reason is {reason}");
        puppet.runner_goes("node-b").await?;
        world.logs("node-b", why).await;
    }
    prove(world, &puppet).await
}

/// Head and table of a batch with one run of raw pages whose bytes are all `0xdd`, with the payload behind.
fn batch(first: u32, count: u32) -> Vec<u8> {
    let runs = vec![ClassedRun { run: PageRun::new(first, count), class: Class::Raw }];
    let batch = Batch { session: SessionId(1), round: Round::FIRST, sequence: 0, runs };
    let payload = vec![0xdd; count as usize * 4096];
    [batch.encode(&payload, None), payload].concat()
}

/// A batch of one page, with this behind it in the page's place.
fn packed_batch(block: &[u8]) -> Vec<u8> {
    let runs = vec![ClassedRun { run: PageRun::new(0, 1), class: Class::Raw }];
    let batch = Batch { session: SessionId(1), round: Round::FIRST, sequence: 0, runs };
    let packed_bytes = u32::try_from(block.len()).unwrap_or(u32::MAX);
    [&batch.encode(&[0xdd; 4096], Some(packed_bytes)), block].concat()
}

fn final_frame(state_bytes: u32) -> SourceFrame {
    SourceFrame::Final(Final {
        audit: false,
        epoch: Epoch::FIRST,
        round: Round::FIRST,
        state_bytes,
        state_digest: state_digest(&[]),
        batches: 0,
        mode: Mode::StopAndCopy,
    })
}

// ---- a migration without a source ------------------------------------------------------------------------------

/// A true `node-b`, and a guest whose node and runner are made up.
async fn node_b_and_a_false_source(world: &mut World) -> Result<Puppet, Box<dyn Error>> {
    let puppet = Puppet::start(world)?;
    puppet.start_node(world, "node-b").await?;
    // Nobody dials it.
    puppet.join("node-a", ([127, 0, 0, 1], 9).into())?;
    puppet.create(GUEST, guest(), "node-a", guest_of(MEMORY, 8))?;
    puppet.agree(GUEST, Entry::Born { instance: InstanceId::from_random([1; 16]) })?;
    Ok(puppet)
}

/// Brings `node-b` to wait for the guest; the preamble is what `node-a` would say.
async fn prepare(puppet: &Puppet, number: u32) -> Result<Preamble, Box<dyn Error>> {
    let migration: MigrationId = format!("prepared-{number}").parse()?;
    puppet.send(GUEST, &migration, "node-b")?;
    let accepted = |registry: &Registry| match registry.guests.get(&GUEST)?.ownership.phase_of(&migration)? {
        Phase::Copying { target, .. } => Some(target.instance),
        _ => None,
    };
    let token = puppet.until("node-b accepts the guest", accepted).await;
    let (source, session, memory_bytes) = (node("node-a"), SessionId(1), MEMORY * MIB);
    let epoch = puppet.epoch(GUEST)?;
    let (guest, link, page_bytes) = (guest(), 1, 4096);
    Ok(Preamble { migration, guest, source, epoch, token, session, link, memory_bytes, page_bytes })
}

async fn call(
    world: &World,
    puppet: &Puppet,
    preamble: &Preamble,
) -> Result<(Connection, SendStream, RecvStream), Box<dyn Error>> {
    let address = puppet.migration_address("node-b")?;
    let connection = dial(world, ("node-b", address), &papers_of(world, "node-a")).await?;
    let (mut send, receive) = connection.open_bi().await?;
    control::greet(&mut send, Role::Migration, preamble).await?;
    Ok((connection, send, receive))
}

/// `node-b` is none the worse: a guest of a true node arrives there, whole.
async fn prove(world: &mut World, puppet: &Puppet) -> Outcome {
    puppet.start_node(world, "node-c").await?;
    puppet.create(TRUE_GUEST, "default/vm2".parse()?, "node-c", guest_of(MEMORY, 8))?;
    puppet.born(TRUE_GUEST).await;
    puppet.runs_under_the_agreed_epoch(TRUE_GUEST, "node-c").await?;
    puppet.move_and_prove(world, TRUE_GUEST, "node-b").await
}
