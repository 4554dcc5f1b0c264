//! A node's process is killed in the middle of a copy. The guest's runner is another process, and feels nothing.

use godwit::lab::cluster::{Moved, progress_of};
use godwit::lab::monotonic_ns;
use libtest_mimic::Trial;

use crate::support::world::{MIB, World, guest, guest_of, limited_to, node};
use crate::support::{Outcome, stories};

/// The longest time between two ticks that a guest may show which nobody has paused. A processor that is shared
/// with everything else here makes for some of it.
const GAP_MS_MAX: u64 = 250;

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        the_guest_never_stops_when_the_targets_node_dies,
        the_guest_never_stops_when_the_sources_node_dies
    ]
}

async fn the_guest_never_stops_when_the_targets_node_dies(world: &mut World) -> Outcome {
    world.pair_with(guest_of(128, 16)).await?;
    world.announce(&["giving up", "migration failed"]);
    die_in_the_first_round(world, "node-b").await?;
    world.runs_under_the_agreed_epoch().await?;
    world.cluster.restart_node(&node("node-b")).await?;
    // The runner that waited for the guest outlived its node. The next node ends it.
    world.runner_goes("node-b").await?;
    world.move_and_prove("node-b").await?;
    Ok(())
}

async fn the_guest_never_stops_when_the_sources_node_dies(world: &mut World) -> Outcome {
    world.pair_with(guest_of(128, 16)).await?;
    world.announce(&["giving up", "migration failed"]);
    die_in_the_first_round(world, "node-a").await?;
    world.cluster.restart_node(&node("node-a")).await?;
    world.runs_under_the_agreed_epoch().await?;
    world.move_and_prove("node-b").await?;
    Ok(())
}

/// The move to `node-b` fails with the death of a node, and the guest on `node-a` goes on as if nothing were.
async fn die_in_the_first_round(world: &mut World, victim: &str) -> Outcome {
    let since = monotonic_ns();
    let mut killed = None;
    let moved = world
        .migrate("node-b", limited_to(32), async |cluster, _, event| {
            let Some(progress) = progress_of(event) else { return };
            let partly = progress.round == 1 && progress.wire_bytes > 16 * MIB;
            if partly && progress.left_bytes > 16 * MIB && killed.is_none() {
                killed = Some(monotonic_ns());
                cluster.kill_node(&node(victim)).await.expect("killed");
            }
        })
        .await?;
    assert!(killed.is_some(), "nobody was killed before the end: {moved:?}");
    let Moved::Failed(reason) = moved else { return Err(format!("{moved:?} without {victim}").into()) };
    assert!(
        reason.contains(victim) || reason.contains("connection"),
        "the reason names no culprit: {reason}"
    );
    let owner =
        world.cluster.ownership(&guest()).and_then(|held| held.owner()).map(|owner| owner.node.clone());
    assert_eq!(owner, Some(node("node-a")));
    let seen = world.ticks_after(since, monotonic_ns(), "node-a").await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    assert!(seen.gap_ns_max < GAP_MS_MAX * 1_000_000, "the guest stood still: {seen:?}");
    Ok(())
}
