//! A cable is pulled while a guest moves, and plugged in again: the move goes on where it was.
//!
//! ```text
//!   node-a ── cable ── switch ── cable ✂ node-b          5 s: longer than a connection lives; 30 s: half of recoveryTimeout
//!                         └───── cable ── node-c          node-b hears neither its source nor the group
//! ```
//!
//! Always true of every story: never two ticks alike, none lost; memory is compared page by page; what had arrived before
//! the cut does not travel again.

use std::time::Duration;

use godwit::lab::cluster::{How, Moved, Watched};
use godwit::lab::monotonic_ns;
use godwit_domain::Overrides;
use godwit_domain::progress::SourceReport;
use godwit_wire::admin::MoveMode;
use libtest_mimic::Trial;

use crate::support::network::{self, Network};
use crate::support::world::{MIB, World, guest, guest_of, limited_to, node};
use crate::support::{Outcome, story, unless};

/// The guest's memory in MiB, and how much of it may be sent in a second.
const MEMORY: u64 = 96;
const BANDWIDTH: u64 = 24;
/// Less than a guest that is copied shows while its host is busy with a lost link.
const LONG_NS: u64 = 400_000_000;

pub(crate) fn trials() -> Vec<Trial> {
    let cut = |name: &str, mode, seconds| {
        story(name, async move |world: &mut World| is_cut(world, mode, Duration::from_secs(seconds)).await)
    };
    [
        cut("a_copy_goes_on_after_a_cut_of_5_s", MoveMode::PreCopy, 5),
        cut("a_copy_goes_on_after_a_cut_of_30_s", MoveMode::PreCopy, 30),
        cut("a_guest_that_lacks_pages_survives_a_cut_of_5_s", MoveMode::PostCopy, 5),
        cut("a_guest_that_lacks_pages_survives_a_cut_of_30_s", MoveMode::PostCopy, 30),
    ]
    .map(|trial| unless(network::missing(), trial))
    .into()
}

/// Whether a good part has arrived, and a good part is still to come.
fn is_half_way(seen: &Watched, mode: MoveMode) -> bool {
    let runs_there = seen.row.detail.as_ref().is_some_and(|detail| detail.starts_with("PostCopy"));
    seen.progress.as_ref().is_some_and(|progress| {
        let arrived = progress.wire_bytes > 20 * MIB;
        arrived && progress.left_bytes > 30 * MIB && (mode == MoveMode::PreCopy) != runs_there
    })
}

async fn is_cut(world: &mut World, mode: MoveMode, cut: Duration) -> Outcome {
    let network = Network::new()?;
    world.announce(&[
        "connection to the target lost",
        "connection to the source lost",
        // A handshake that the cut met.
        "peer refused",
        "sendmsg error",
    ]);
    world.start_as(network.nodes()).await?;
    world.create(guest_of(MEMORY, 4)).await?;
    let since = monotonic_ns();
    let overrides = Overrides { allow_post_copy: Some(true), ..limited_to(BANDWIDTH) };
    let mut was_cut = false;
    let moved = world
        .migrate("node-b", How { overrides, mode: Some(mode) }, async |cluster, seen| {
            if is_half_way(seen, mode) && !std::mem::replace(&mut was_cut, true) {
                network.plug("node-b", false).expect("pulled");
                // The cut itself: as long as it is.
                tokio::time::sleep(cut).await;
                let stats = cluster.stats(&guest()).await;
                assert!(mode == MoveMode::PostCopy || stats.is_ok_and(|stats| stats.tick > 0));
                network.plug("node-b", true).expect("plugged in");
            }
        })
        .await?;
    assert!(was_cut, "it was never half way: {moved:?}");
    let Moved::Succeeded { source, post_copy, .. } = moved else { return Err(format!("{moved:?}").into()) };
    assert_eq!(post_copy.is_some(), mode == MoveMode::PostCopy);
    proven(world, &source, since, mode).await
}

async fn proven(world: &World, source: &SourceReport, since: u64, mode: MoveMode) -> Outcome {
    assert!(source.reconnects > 0, "the connection outlived the cut: {source:?}");
    assert!(source.wire_bytes < (MEMORY + MEMORY / 2) * MIB, "all of it travelled again: {source:?}");
    assert_eq!(world.wrong_pages().await?, 0, "{source:?}");
    let seen = world.ticks_after(since, monotonic_ns(), "node-b").await;
    match mode {
        // Its threads wait for pages: that is the price.
        MoveMode::PostCopy => assert_eq!(seen.lost, 0, "ticks lost or written twice: {seen:?}"),
        _ => world.ran_on(&seen, since, LONG_NS),
    }
    assert_eq!(world.owner().await?, Some(node("node-b")));
    Ok(())
}
