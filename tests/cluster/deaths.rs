//! Node processes are killed, one at each phase of a move. Runners are processes of their own, and feel nothing.
//!
//! ```text
//!   pre-copy        target, source, leader │ pause to commit   source, target, leader │ after it   target
//! ```
//!
//! Always true of every story: never two ticks alike; the guest goes on at one place, whole; the next move succeeds.

use godwit::lab::cluster::{Cluster, Moved, Watched};
use godwit::lab::monotonic_ns;
use godwit_domain::NodeName;
use libtest_mimic::Trial;

use crate::rules;
use crate::support::world::{MIB, World, guest, guest_of, limited_to, node, unlimited};
use crate::support::{LOOK_INTERVAL, Outcome, PATIENCE, stories};

/// The longest time between two ticks that a guest may show which nobody has paused. A processor that is shared
/// with everything else here makes for some of it.
const GAP_MS_MAX: u64 = 250;
/// Holds the proposal of a hand-over for some seconds after the pause, in the source's node.
const HOLD: (&str, &str, &str) = ("node-a", "GODWIT_PLANTED", "hold-hand-over");

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        the_guest_never_stops_when_the_targets_node_dies,
        the_source_of_a_copy_comes_back_and_sends_everything_again,
        a_copy_goes_on_when_the_leader_dies,
        a_switchover_ends_well_when_the_leader_dies_between_pause_and_commit,
        a_paused_guest_is_taken_back_by_its_restarted_source,
        a_target_that_dies_in_a_switchover_hands_the_guest_back
    ]
}

/// Whether a copy is in the middle of its first round.
fn is_copying(seen: &Watched) -> bool {
    seen.progress.as_ref().is_some_and(|progress| {
        progress.round == 1 && progress.wire_bytes > 16 * MIB && progress.left_bytes > 16 * MIB
    })
}

fn is_switching_over(seen: &Watched) -> bool {
    seen.progress.as_ref().is_some_and(|progress| progress.switching_over) && !seen.over
}

/// Waits until a hand-over to this node has committed, though nobody runs the guest there.
pub(crate) async fn owned_by(cluster: &Cluster, owner: &NodeName) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while cluster.guest(&guest()).await.ok().and_then(|detail| detail.row.node).as_ref() != Some(owner) {
        assert!(std::time::Instant::now() < deadline, "the hand-over to {owner} did not commit");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn kill(cluster: &mut Cluster, victim: &NodeName) -> u64 {
    cluster.kill_node(victim).await.expect("killed");
    monotonic_ns()
}

async fn the_guest_never_stops_when_the_targets_node_dies(world: &mut World) -> Outcome {
    world.three_with(guest_of(128, 16)).await?;
    // A source can not tell a process that has died from a link that is cut: it dials again as long as it is told to.
    let patience = "apiVersion: hco.kubevirt.io/v1beta1\nkind: HyperConverged\nmetadata: {name: kubevirt-hyperconverged}\n\
                    spec: {liveMigrationConfig: {recoveryTimeout: 2}}\n";
    rules::apply(&world.cluster, patience).await?;
    world.announce(&["giving up", "migration failed", "connection to the target lost"]);
    let since = monotonic_ns();
    let mut killed = None;
    let moved = world
        .migrate("node-b", limited_to(32), async |cluster, seen| {
            if killed.is_none() && is_copying(seen) {
                killed = Some(kill(cluster, &node("node-b")).await);
            }
        })
        .await?;
    assert!(killed.is_some(), "nobody was killed before the end: {moved:?}");
    let Moved::Failed(reason) = moved else { return Err(format!("{moved:?} without node-b").into()) };
    assert!(reason.starts_with("recoveryTimeout: the target could not be reached for 2 s"), "{reason}");
    assert_eq!(world.owner().await?, Some(node("node-a")));
    never_stood_still(world, since).await;
    world.cluster.restart_node(&node("node-b")).await?;
    // The runner that waited for the guest outlived its node. The next process ends it.
    world.runner_goes("node-b").await?;
    world.move_and_prove("node-b").await?;
    Ok(())
}

async fn never_stood_still(world: &World, since: u64) {
    let seen = world.ticks_after(since, monotonic_ns(), "node-a").await;
    world.ran_on(&seen, since, GAP_MS_MAX * 1_000_000);
}

/// What a restarted process knows of is nothing: not one page is taken for clean.
async fn the_source_of_a_copy_comes_back_and_sends_everything_again(world: &mut World) -> Outcome {
    world.three_with(guest_of(128, 16)).await?;
    let since = monotonic_ns();
    let mut killed = None;
    let moved = world
        .migrate("node-b", limited_to(32), async |cluster, seen| {
            if killed.is_none() && is_copying(seen) {
                killed = Some(kill(cluster, &node("node-a")).await);
                cluster.restart_node(&node("node-a")).await.expect("restarted");
            }
        })
        .await?;
    assert!(killed.is_some(), "nobody was killed before the end: {moved:?}");
    let Moved::Succeeded { source, .. } = moved else { return Err(format!("{moved:?}").into()) };
    assert!(source.pages() >= 128 * MIB / 4096, "a whole pass: {source:?}");
    assert_eq!(world.wrong_pages().await?, 0);
    let seen = world.ticks_after(since, monotonic_ns(), "node-b").await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    world.move_and_prove("node-c").await?;
    Ok(())
}

/// Brings the leadership to `node-c`, which has no part in the move.
async fn bystander_leads(world: &mut World) -> Outcome {
    for _ in 0..20 {
        let (leader, _) = world.cluster.leader().await?;
        if leader == node("node-c") {
            return Ok(());
        }
        world.cluster.kill_node(&leader).await?;
        world.cluster.leader().await?;
        world.cluster.restart_node(&leader).await?;
        world.cluster.are_reachable(&[leader]).await?;
    }
    Err("node-c was not elected in twenty elections".into())
}

async fn a_copy_goes_on_when_the_leader_dies(world: &mut World) -> Outcome {
    world.start_with(&[]).await?;
    bystander_leads(world).await?;
    world.create(guest_of(128, 16)).await?;
    let since = monotonic_ns();
    let mut killed = None;
    let moved = world
        .migrate("node-b", limited_to(32), async |cluster, seen| {
            if killed.is_none() && is_copying(seen) {
                killed = Some(kill(cluster, &node("node-c")).await);
            }
        })
        .await?;
    assert!(killed.is_some() && matches!(moved, Moved::Succeeded { .. }), "{killed:?}, {moved:?}");
    assert_eq!(world.wrong_pages().await?, 0);
    let seen = world.ticks_after(since, monotonic_ns(), "node-b").await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    world.cluster.restart_node(&node("node-c")).await?;
    world.cluster.are_reachable(&[node("node-c")]).await?;
    world.move_and_prove("node-c").await?;
    Ok(())
}

async fn a_switchover_ends_well_when_the_leader_dies_between_pause_and_commit(world: &mut World) -> Outcome {
    world.start_with(&[HOLD]).await?;
    bystander_leads(world).await?;
    world.create(guest_of(64, 8)).await?;
    let since = monotonic_ns();
    let mut killed = None;
    let moved = world
        .migrate("node-b", unlimited(), async |cluster, seen| {
            if killed.is_none() && is_switching_over(seen) {
                killed = Some(kill(cluster, &node("node-c")).await);
            }
        })
        .await?;
    assert!(killed.is_some(), "nobody was killed before the end: {moved:?}");
    let place = match moved {
        Moved::Succeeded { .. } => "node-b",
        Moved::Failed(_) => "node-a",
    };
    world.runs_under_the_agreed_epoch().await?;
    assert_eq!(world.owner().await?, Some(node(place)), "{moved:?}");
    assert_eq!(world.wrong_pages().await?, 0);
    let seen = world.ticks_after(since, monotonic_ns(), place).await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    Ok(())
}

/// Sealed, and nobody remembers: the pause is called off, the guest runs on, and everything is sent again.
async fn a_paused_guest_is_taken_back_by_its_restarted_source(world: &mut World) -> Outcome {
    world.start_with(&[HOLD]).await?;
    world.create(guest_of(64, 8)).await?;
    let (since, mut killed) = (monotonic_ns(), None);
    let moved = world
        .migrate("node-b", unlimited(), async |cluster, seen| {
            if killed.is_none() && is_switching_over(seen) {
                killed = Some(kill(cluster, &node("node-a")).await);
                let source = node("node-a");
                cluster.restart_node_as(&source, |spec| spec.environment.clear()).await.expect("restarted");
            }
        })
        .await?;
    assert!(killed.is_some(), "nobody was killed before the end: {moved:?}");
    assert!(matches!(moved, Moved::Succeeded { .. }), "{moved:?}");
    let called_off = world.guest().await?.row.epoch.0;
    assert!(called_off >= 3, "one epoch for the call-off, one for the hand-over: {called_off}");
    assert_eq!(world.wrong_pages().await?, 0);
    let seen = world.ticks_after(since, monotonic_ns(), "node-b").await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    world.move_and_prove("node-c").await?;
    Ok(())
}

/// The next process finds a runner that has never run and nothing that knows what came: tombstone, kill, statement.
async fn a_target_that_dies_in_a_switchover_hands_the_guest_back(world: &mut World) -> Outcome {
    world.start_with(&[HOLD]).await?;
    world.announce(&["giving up", "migration failed"]);
    world.create(guest_of(64, 8)).await?;
    let (since, mut killed) = (monotonic_ns(), None);
    let moved = world
        .migrate("node-b", unlimited(), async |cluster, seen| {
            if killed.is_none() && is_switching_over(seen) {
                killed = Some(kill(cluster, &node("node-b")).await);
                owned_by(cluster, &node("node-b")).await;
                cluster.restart_node(&node("node-b")).await.expect("restarted");
            }
        })
        .await?;
    assert!(killed.is_some(), "nobody was killed before the end: {moved:?}");
    let Moved::Failed(reason) = moved else { return Err(format!("{moved:?}").into()) };
    world.runs_under_the_agreed_epoch().await?;
    assert_eq!(world.owner().await?, Some(node("node-a")), "{reason}");
    let seen = world.ticks_after(since, monotonic_ns(), "node-a").await;
    assert_eq!(seen.lost, 0, "the guest runs on with every tick: {seen:?}");
    assert_eq!(world.wrong_pages().await?, 0);
    world.runner_goes("node-b").await?;
    world.move_and_prove("node-c").await?;
    Ok(())
}
