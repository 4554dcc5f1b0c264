//! A guest moves over a bad link, and nothing of it is lost that the link loses.
//!
//! ```text
//!   node-a ── pages ──▶ relay ──▶ node-b          the puppet leads; delay, jitter, stragglers, copies, loss each way
//!   node-a ◀── sessions, six relays ──▶ node-b ◀──▶ node-c          a group that agrees over such links
//! ```
//!
//! How long anything takes is not looked at: `crate::link` tells the line that replays what the link did.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use godwit_domain::GuestSpec;
use godwit_domain::registry::GuestUid;
use libtest_mimic::Trial;

use crate::link::{self, Chance, Plan, Relay, Way};
use crate::support::puppet::Puppet;
use crate::support::world::{MIB, VOTERS, World, guest, guest_of, node};
use crate::support::{Outcome, stories};

/// The guest that moves.
const GUEST: GuestUid = GuestUid(1);
/// The unit of all delays here.
const MS: Duration = Duration::from_millis(1);

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_guest_arrives_whole_over_a_link_that_loses_and_swaps,
        a_guest_arrives_whole_over_a_long_link,
        a_link_that_is_cut_when_it_is_dialed_first_is_dialed_again,
        pages_come_after_their_guest_over_links_of_1_5_and_20_ms,
        a_group_agrees_over_links_that_lose_and_swap
    ]
}

/// Five milliseconds each way, and everything that a bad link does.
fn bad() -> Plan {
    Plan {
        jitter: MS,
        straggling: Chance::percent(1),
        lag: 3 * MS,
        duplication: Chance::percent(1),
        loss: Chance::percent(1),
        ..Plan::delayed(5 * MS)
    }
}

/// A guest that such a link can carry: few pages, of which it writes 64 in a second.
fn small() -> GuestSpec {
    GuestSpec { dirty_rate_bytes_per_second: 256 << 10, ..guest_of(8, 1) }
}

async fn a_guest_arrives_whole_over_a_link_that_loses_and_swaps(world: &mut World) -> Outcome {
    let relay = move_over(world, bad(), small()).await?;
    let (there, back) = (relay.counts(Way::There), relay.counts(Way::Back));
    assert!(there.lost > 0 && there.straggled > 0 && there.duplicated > 0, "{there:?}");
    // There are fewer of them: not each kind of fate must have met one.
    assert!(back.lost + back.straggled + back.duplicated > 0, "{back:?}");
    Ok(())
}

async fn a_guest_arrives_whole_over_a_long_link(world: &mut World) -> Outcome {
    let relay = move_over(world, Plan::delayed(20 * MS), guest_of(64, 4)).await?;
    let counts = relay.counts(Way::There);
    assert_eq!((counts.lost, counts.overflowed), (0, 0), "{counts:?}");
    Ok(())
}

async fn a_link_that_is_cut_when_it_is_dialed_first_is_dialed_again(world: &mut World) -> Outcome {
    let puppet = Puppet::start(world)?;
    puppet.start_node(world, "node-a").await?;
    puppet.start_node(world, "node-b").await?;
    let relay = link::before(&puppet, "node-b", Plan::delayed(MS))?;
    relay.cut_both();
    puppet.create(GUEST, guest(), "node-a", small())?;
    puppet.born(GUEST).await;
    puppet.runs_under_the_agreed_epoch(GUEST, "node-a").await?;
    let mended = async {
        world.logs("node-a", "the target can not be reached yet").await;
        relay.mend();
    };
    let (moved, ()) = tokio::join!(puppet.move_and_prove(world, GUEST, "node-b"), mended);
    moved
}

/// Half of it there, half of it back. It is large, so that most is missing when it goes.
async fn pages_come_after_their_guest_over_links_of_1_5_and_20_ms(world: &mut World) -> Outcome {
    let puppet = Puppet::start(world)?;
    puppet.start_node(world, "node-a").await?;
    puppet.start_node(world, "node-b").await?;
    let (mut from, mut to) = ("node-a", "node-b");
    puppet.create(GUEST, guest(), "node-a", guest_of(256, 2))?;
    puppet.born(GUEST).await;
    puppet.runs_under_the_agreed_epoch(GUEST, "node-a").await?;
    for round_trip_ms in [1, 5, 20] {
        let relay = link::before(&puppet, to, Plan::delayed(MS * round_trip_ms / 2))?;
        let report = puppet.post_copy_and_prove(world, GUEST, to).await?;
        assert!(report.missing_at_resume_bytes > 16 * MIB && report.faults > 0, "{report:?}");
        // A page that nobody has sent yet comes no sooner than the link allows.
        assert!(
            report.latency_percentile_us(99) >= u64::from(round_trip_ms) * 1000,
            "{round_trip_ms} ms: {report:?}"
        );
        assert!(relay.counts(Way::There).delivered > 0);
        puppet.runner_goes(from).await?;
        (from, to) = (to, from);
    }
    Ok(())
}

async fn a_group_agrees_over_links_that_lose_and_swap(world: &mut World) -> Outcome {
    let mut specs: Vec<_> = VOTERS.iter().map(|name| world.cluster.spec(&node(name))).collect();
    let mesh = link::between(&mut specs, bad())?;
    world.start_as(specs).await?;
    world.create(guest_of(64, 8)).await?;
    world.move_and_prove("node-b").await?;
    // Whoever leads has a session with each other: at least two of the links were used.
    let used = mesh.values().filter(|relay| relay.counts(Way::Back).delivered > 0).count();
    assert!(used >= 2, "{used} links were used");
    Ok(())
}

/// Moves the guest from `node-a` to `node-b` over such a link and proves that it is whole. The pages went that way.
async fn move_over(world: &mut World, plan: Plan, spec: GuestSpec) -> Result<Arc<Relay>, Box<dyn Error>> {
    let puppet = Puppet::start(world)?;
    puppet.start_node(world, "node-a").await?;
    puppet.start_node(world, "node-b").await?;
    let relay = link::before(&puppet, "node-b", plan)?;
    let pages = spec.memory_bytes / 4096;
    puppet.create(GUEST, guest(), "node-a", spec)?;
    puppet.born(GUEST).await;
    puppet.runs_under_the_agreed_epoch(GUEST, "node-a").await?;
    puppet.move_and_prove(world, GUEST, "node-b").await?;
    let counts = relay.counts(Way::There);
    // Nine of ten pages are not empty, and no datagram holds two.
    assert!(counts.delivered > pages / 3, "the pages went another way: {counts:?}");
    assert_eq!(relay.unsent(), 0);
    Ok(relay)
}
