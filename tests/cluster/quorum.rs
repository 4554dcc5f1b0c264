//! The group is cut: a leader that is alone hands nothing over, and a guest is not stopped without a quorum.
//!
//! ```text
//!   voters node-a, node-b, node-c      guests on node-d, node-e, which do not vote
//! ```

use std::time::Duration;

use godwit::lab::monotonic_ns;
use godwit_wire::admin::{Act, Status};
use libtest_mimic::Trial;

use crate::support::network::{self, Network};
use crate::support::world::{VOTERS, World, guest, guest_of, limited_to, node, unlimited};
use crate::support::{Outcome, stories, story, unless};

const HOLD: (&str, &str) = ("GODWIT_PLANTED", "hold-hand-over");

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = stories![
        without_a_quorum_copying_goes_on_and_the_guest_is_not_stopped,
        a_guest_caught_between_pause_and_commit_waits_for_the_quorum
    ];
    let alone = story("a_leader_that_is_cut_off_hands_nothing_over", cut_off);
    trials.push(unless(network::missing(), alone));
    trials
}

/// Three voters, and two nodes beside them that hold guests; the guest is on `node-d`.
async fn five_with(world: &mut World, environment: Vec<(String, String)>) -> Outcome {
    let mut specs: Vec<_> = VOTERS.iter().map(|name| world.cluster.spec(&node(name))).collect();
    for name in ["node-d", "node-e"] {
        let mut spec = world.cluster.spec(&node(name));
        spec.environment.clone_from(&environment);
        specs.push(spec);
    }
    world.start_as(specs).await?;
    world.cluster.create_guest(&guest(), &node("node-d"), guest_of(96, 8)).await?;
    Ok(())
}

async fn kill_quorum(world: &mut World) -> Outcome {
    for name in ["node-a", "node-b"] {
        world.cluster.kill_node(&node(name)).await?;
    }
    Ok(())
}

async fn restart_quorum(world: &mut World) -> Outcome {
    for name in ["node-a", "node-b"] {
        world.cluster.restart_node(&node(name)).await?;
    }
    world.cluster.leader().await?;
    Ok(())
}

async fn without_a_quorum_copying_goes_on_and_the_guest_is_not_stopped(world: &mut World) -> Outcome {
    five_with(world, Vec::new()).await?;
    let since = monotonic_ns();
    let asked = world.ask_for("node-e", limited_to(32)).await?;
    world
        .comes("pages flow", async |cluster| {
            cluster.migration(&asked.row.name).await.ok()?.progress.filter(|progress| progress.wire_bytes > 0)
        })
        .await;
    kill_quorum(world).await?;
    // Three seconds of copying lie between: it ends all its rounds without anybody's consent, and says what it waits for.
    world.logs("node-d", "waits for a quorum").await;
    let seen = world.ticks_after(since, monotonic_ns(), "node-d").await;
    world.ran_on(&seen, since, 250_000_000);
    world
        .comes("node-c says that nobody leads", async |cluster| {
            let status = cluster.ask(&node("node-c"), Act::Status).await.ok()?;
            let status: Status = serde_json::from_value(status).ok()?;
            (status.stale && status.leader.is_none()).then_some(())
        })
        .await;
    restart_quorum(world).await?;
    succeeds(world, asked.row.name.as_str(), since).await
}

async fn a_guest_caught_between_pause_and_commit_waits_for_the_quorum(world: &mut World) -> Outcome {
    five_with(world, vec![(HOLD.0.into(), HOLD.1.into())]).await?;
    let since = monotonic_ns();
    let asked = world.ask_for("node-e", unlimited()).await?;
    world.logs("node-d", "the hand-over is held for a while").await;
    kill_quorum(world).await?;
    let paused = monotonic_ns();
    // The proposal comes after this, and nobody can agree to it: the guest stands still, here and there.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let late = world.ticks().into_iter().filter(|tick| tick.monotonic_ns > paused).count();
    assert_eq!(late, 0, "it runs somewhere though nobody could agree on where");
    restart_quorum(world).await?;
    succeeds(world, asked.row.name.as_str(), since).await
}

async fn succeeds(world: &mut World, migration: &str, since: u64) -> Outcome {
    let name = migration.parse()?;
    let ended = world
        .comes("the move is over", async |cluster| {
            let detail = cluster.migration(&name).await.ok()?;
            (detail.over && !detail.permits_held).then_some(detail)
        })
        .await;
    assert_eq!(ended.row.phase, "Succeeded", "{ended:?}");
    world
        .comes("its memory is whole", async |cluster| {
            cluster.verify(&guest()).await.ok().filter(|verified| verified.wrong == 0)
        })
        .await;
    let seen = world.ticks_after(since, monotonic_ns(), "node-e").await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    Ok(())
}

async fn cut_off(world: &mut World) -> Outcome {
    let network = Network::new()?;
    let mut specs = network.nodes();
    specs[0].environment = vec![(HOLD.0.into(), HOLD.1.into())];
    world.start_as(specs).await?;
    world.announce(&["giving up", "migration failed", "sendmsg error"]);
    // The source's own node leads, so that its proposals reach a leader whatever happens to the cables.
    for _ in 0..20 {
        let (leader, _) = world.cluster.leader().await?;
        if leader == node("node-a") {
            break;
        }
        world.cluster.kill_node(&leader).await?;
        world.cluster.leader().await?;
        world.cluster.restart_node(&leader).await?;
        world.cluster.are_reachable(&[leader]).await?;
    }
    assert_eq!(world.cluster.leader().await?.0, node("node-a"), "it was not elected in twenty elections");
    world.create(guest_of(64, 8)).await?;
    let (since, before) = (monotonic_ns(), world.epoch().await?);
    world.ask_for("node-b", unlimited()).await?;
    world.logs("node-a", "the hand-over is held for a while").await;
    network.plug("node-a", false)?;
    // The others elect a leader, who knows of no hand-over; the old one can propose what it likes.
    world
        .comes("the others have a leader", async |cluster| {
            let status = cluster.ask(&node("node-b"), Act::Status).await.ok()?;
            let status: Status = serde_json::from_value(status).ok()?;
            (!status.stale && status.leader != Some(node("node-a"))).then_some(())
        })
        .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let shown = world.cluster.ask(&node("node-b"), Act::GuestShow { guest: guest() }).await?;
    let detail: godwit_wire::admin::GuestDetail = serde_json::from_value(shown)?;
    assert_eq!(
        (detail.row.node, detail.row.epoch.0),
        (Some(node("node-a")), before),
        "nothing was handed over"
    );
    assert!(world.ticks().iter().all(|tick| tick.node == node("node-a")), "it ran at the target");
    network.plug("node-a", true)?;
    world.cluster.are_reachable(&VOTERS.map(node)).await?;
    world.runs_under_the_agreed_epoch().await?;
    let place = world.owner().await?.ok_or("no owner")?;
    let seen = world.ticks_after(since, monotonic_ns(), place.as_str()).await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    assert_eq!(world.wrong_pages().await?, 0);
    Ok(())
}
