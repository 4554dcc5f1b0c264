//! One owner, whatever dies: what comes back by itself, what an operator must say, and what a fenced node does first.

use std::error::Error;
use std::fs;
use std::time::Duration;

use godwit::lab::cluster::ClusterError;
use godwit::lab::monotonic_ns;
use godwit_admin::AskError;
use godwit_domain::InstanceId;
use godwit_wire::admin::{Act, Code, Fenced, GuestDetail, MigrationDetail, Problem};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::world::{World, guest, guest_of, node, unlimited};
use crate::support::{Outcome, PATIENCE, stories, until};

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_target_host_that_dies_before_it_said_running_leaves_the_choice_to_an_operator,
        a_fenced_node_that_comes_back_stops_what_the_fence_names_before_anything_else,
        a_cancelled_move_leaves_the_guest_where_it_is
    ]
}

/// The refusal that an order must meet.
fn refusal(asked: Result<serde_json::Value, ClusterError>) -> Result<Problem, Box<dyn Error>> {
    match asked {
        Err(ClusterError::Ask(AskError::Problem(problem))) => Ok(problem),
        other => Err(format!("refused was expected, not {other:?}").into()),
    }
}

/// Kills the runner process of this instance, as the death of its host would.
pub(crate) async fn kill_runner(instance: InstanceId) -> Outcome {
    let name = instance.to_string();
    let pids = || {
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let of = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_it = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).any(|word| word == name.as_bytes())
        };
        of.filter(is_it).collect::<Vec<_>>()
    };
    for pid in pids() {
        kill_process(Pid::from_raw(pid).ok_or("no pid")?, Signal::KILL)?;
    }
    until("the killed runner is gone", PATIENCE, || pids().is_empty().then_some(())).await;
    Ok(())
}

async fn a_target_host_that_dies_before_it_said_running_leaves_the_choice_to_an_operator(
    world: &mut World,
) -> Outcome {
    world.start_with(&[("node-b", "GODWIT_PLANTED", "never-report")]).await?;
    world.announce(&["fenced", "recovered", "migration failed", "vouched to be off"]);
    world.create(guest_of(64, 8)).await?;
    let copy = world.guest().await?.instance.ok_or("no owner")?;
    let since = monotonic_ns();
    let asked = world.ask_for("node-b", unlimited()).await?;
    // The hand-over is agreed, the guest runs at the target, and nobody has heard of it.
    let target = world
        .comes("the guest is handed over", async |cluster| {
            let detail = cluster.guest(&guest()).await.ok()?;
            (detail.row.node == Some(node("node-b"))).then_some(detail.instance).flatten()
        })
        .await;
    world.ticks_after(since, since, "node-b").await;
    world.cluster.kill_node(&node("node-b")).await?;
    kill_runner(target).await?;
    world
        .comes("node-b is unreachable", async |cluster| {
            let detail = cluster.node_detail(&node("node-b")).await.ok()?;
            (detail.row.state == "unreachable").then_some(())
        })
        .await;
    // Nothing happens by itself: nobody knows whether the guest runs there.
    let detail = world.guest().await?;
    assert_eq!((detail.row.node, detail.row.state.as_str()), (Some(node("node-b")), "unreachable"));
    let recover = |accept_rollback| Act::GuestRecover { guest: guest(), accept_rollback, instance: None };
    let problem = refusal(world.cluster.ask_any(recover(true)).await)?;
    assert!(problem.message.contains("Alive"), "only a lost guest is recovered: {problem:?}");

    let fence = Act::NodeFence { node: node("node-b"), although_reachable: false };
    let fenced: Fenced = serde_json::from_value(world.cluster.ask_any(fence).await?)?;
    assert_eq!(fenced.lost.len(), 1, "{fenced:?}");
    assert_eq!(fenced.lost[0].kept_on, Some(node("node-a")), "{fenced:?}");
    let lost = world.guest().await?;
    assert_eq!((lost.row.state.as_str(), lost.copies.len()), ("lost", 2), "{lost:?}");
    let failed: MigrationDetail = world.cluster.migration(&asked.row.name).await?;
    assert_eq!((failed.row.phase.as_str(), failed.permits_held), ("Failed", false));
    let runners = world.cluster.node_detail(&node("node-a")).await?.runners.unwrap_or_default();
    assert!(runners.iter().any(|runner| runner.instance == copy), "the paused copy is kept: {runners:?}");

    let problem = refusal(world.cluster.ask_any(recover(false)).await)?;
    assert_eq!((problem.code, problem.try_.as_str()), (Code::Refused, "--accept-rollback"), "{problem:?}");
    let back: GuestDetail = serde_json::from_value(world.cluster.ask_any(recover(true)).await?)?;
    assert_eq!((back.instance, back.rollbacks), (Some(copy), 1), "recorded as a rollback: {back:?}");
    world.runs_under_the_agreed_epoch().await?;
    world.ticks_after(since, monotonic_ns(), "node-a").await;
    // The fenced node has nothing left to stop, says so, and takes guests again.
    world.cluster.restart_node_as(&node("node-b"), |spec| spec.environment.clear()).await?;
    reachable_again(world).await;
    world.move_and_prove("node-b").await?;
    Ok(())
}

/// Waits until `node-b` is no longer fenced.
async fn reachable_again(world: &World) {
    world
        .comes("node-b has answered its fence", async |cluster| {
            let detail = cluster.node_detail(&node("node-b")).await.ok()?;
            (detail.row.state == "reachable").then_some(())
        })
        .await;
}

async fn a_fenced_node_that_comes_back_stops_what_the_fence_names_before_anything_else(
    world: &mut World,
) -> Outcome {
    world.three_with(guest_of(64, 8)).await?;
    world.announce(&["fenced", "recovered", "vouched to be off"]);
    world.move_and_prove("node-b").await?;
    let since = monotonic_ns();
    let instance = world.guest().await?.instance.ok_or("no owner")?;
    let fence = |although_reachable| Act::NodeFence { node: node("node-b"), although_reachable };
    let problem = refusal(world.cluster.ask_any(fence(false)).await)?;
    assert!(problem.message.contains("answers"), "a node that answers is not off: {problem:?}");
    world.cluster.kill_node(&node("node-b")).await?;
    world.comes("node-b can be fenced", async |cluster| cluster.ask_any(fence(false)).await.ok()).await;
    // The vouch was false: the runner lives. It writes on until its node is back, which stops it first.
    assert_eq!(world.guest().await?.row.state, "lost");
    world.ticks_after(since, monotonic_ns(), "node-b").await;
    world.cluster.restart_node(&node("node-b")).await?;
    reachable_again(world).await;
    let runners = world.cluster.node_detail(&node("node-b")).await?.runners.unwrap_or_default();
    let stopped = runners.iter().find(|runner| runner.instance == instance).ok_or("it is not kept")?;
    assert!(stopped.state.starts_with("paused"), "{stopped:?}");
    let last = world.ticks().last().map(|tick| tick.monotonic_ns);
    assert_eq!(world.guest().await?.row.state, "lost", "nothing runs it again by itself");
    assert!(world.ticks().iter().map(|tick| Some(tick.monotonic_ns)).max() >= Some(last), "no tick is lost");
    // Whoever knows that it was never off may let it run on.
    let recover = Act::GuestRecover { guest: guest(), accept_rollback: true, instance: Some(instance) };
    world.cluster.ask_any(recover).await?;
    world.runs_under_the_agreed_epoch().await?;
    let seen = world.ticks_after(since, monotonic_ns(), "node-b").await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    world.move_and_prove("node-c").await?;
    Ok(())
}

async fn a_cancelled_move_leaves_the_guest_where_it_is(world: &mut World) -> Outcome {
    world.three_with(guest_of(128, 16)).await?;
    // Whichever side hears of the end first closes the connection, and the other may see that before it hears.
    world.announce(&["migration failed", "giving up"]);
    let since = monotonic_ns();
    let slow = crate::support::world::limited_to(16);
    let asked = world.ask_for("node-b", slow).await?;
    let name = asked.row.name;
    world
        .comes("pages flow", async |cluster| {
            cluster.migration(&name).await.ok()?.progress.filter(|progress| progress.wire_bytes > 0)
        })
        .await;
    let second = world.ask_for("node-c", unlimited()).await.map(|detail| detail.row.name);
    let refused = second.expect_err("a second migration of one guest").to_string();
    assert!(refused.contains(name.as_str()), "it names the first: {refused}");
    for _ in 0..2 {
        // Idempotent.
        world.cluster.ask_any(Act::MigrationCancel { migration: name.clone() }).await?;
    }
    world
        .comes("the permits are back", async |cluster| {
            let detail = cluster.migration(&name).await.ok()?;
            (detail.row.phase == "Cancelled" && !detail.permits_held).then_some(())
        })
        .await;
    world.runner_goes("node-b").await?;
    let seen = world.ticks_after(since, monotonic_ns(), "node-a").await;
    world.ran_on(&seen, since, 250_000_000);
    tokio::time::timeout(Duration::from_secs(60), world.move_and_prove("node-c")).await??;
    Ok(())
}
