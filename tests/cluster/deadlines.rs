//! A guest that writes faster than its pages may be sent: what an operator allows decides what becomes of its move.
//!
//! ```text
//!   64 MiB, half of them written all the time ── 32 MiB/s ──▶ never fits into 300 ms
//!     nothing allowed            Cancelled at the deadline, and the guest has not noticed
//!     allowWorkloadDisruption    paused to finish: a long pause, and nothing lost
//!     allowAutoConverge          throttled until it fits, and free again: at the target, or when its node comes back
//!     more bandwidth             as much as the source said that it needs, and it completes
//! ```

use godwit::lab::cluster::{Cluster, Moved};
use godwit::lab::monotonic_ns;
use godwit_domain::precopy::{Confidence, Did, Fits};
use godwit_domain::progress::Course;
use godwit_domain::{GuestSpec, Overrides, Quantity};
use godwit_wire::admin::Act;
use libtest_mimic::Trial;

use crate::support::world::{World, guest, guest_of, limited_to, node};
use crate::support::{Outcome, stories};

const MIB: u64 = 1 << 20;
/// MiB per second that may be sent.
const BANDWIDTH: u64 = 32;
/// Seconds per GiB: 4 s for this guest.
const COMPLETION_TIMEOUT: u64 = 64;
/// A downtime of `maxDowntimeMs` as it is by default, and what a busy host adds.
const LONG_NS: u64 = 300_000_000;

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        where_nothing_is_allowed_a_guest_that_writes_too_fast_stays_undisturbed,
        where_disruption_is_allowed_it_is_paused_to_finish,
        where_auto_converge_is_allowed_it_is_throttled_and_free_again_at_the_target,
        a_guest_that_can_not_fit_is_told_what_it_needs_and_completes_with_it,
        a_throttled_guest_whose_node_has_died_is_free_again_when_it_is_found
    ]
}

/// It writes half of its memory again in half a second: faster than that half can be sent.
fn busy() -> GuestSpec {
    guest_of(64, 64)
}

fn until_the_deadline() -> Overrides {
    Overrides { completion_timeout_per_gib: Some(COMPLETION_TIMEOUT), ..limited_to(BANDWIDTH) }
}

async fn where_nothing_is_allowed_a_guest_that_writes_too_fast_stays_undisturbed(
    world: &mut World,
) -> Outcome {
    world.announce(&["giving up", "migration failed"]);
    world.three_with(busy()).await?;
    let since = monotonic_ns();
    let asked = world.ask_for("node-b", until_the_deadline()).await?;
    let ended = world
        .comes("it is over", async |cluster| {
            let detail = cluster.migration(&asked.row.name).await.ok()?;
            (detail.over && !detail.permits_held).then_some(detail)
        })
        .await;
    assert_eq!(ended.row.phase, "Cancelled", "{ended:?}");
    let reason = ended.row.detail.unwrap_or_default();
    assert!(reason.starts_with("CompletionTimeout: not complete after 4 s"), "{reason}");
    world.runs_under_the_agreed_epoch().await?;
    assert_eq!(world.wrong_pages().await?, 0);
    let seen = world.ticks_after(since, monotonic_ns(), "node-a").await;
    world.ran_on(&seen, since, LONG_NS);
    assert_eq!(world.owner().await?, Some(node("node-a")));
    world.runner_goes("node-b").await
}

async fn where_disruption_is_allowed_it_is_paused_to_finish(world: &mut World) -> Outcome {
    world.three_with(busy()).await?;
    let since = monotonic_ns();
    let allowed = Overrides { allow_workload_disruption: Some(true), ..until_the_deadline() };
    let mut courses = Vec::new();
    let moved = world
        .migrate("node-b", allowed, async |_, seen| {
            courses.extend(seen.progress.as_ref().map(|progress| progress.course))
        })
        .await?;
    let Moved::Succeeded { source, .. } = moved else { return Err(format!("{moved:?}").into()) };
    assert!(source.paused_to_finish && source.throttle_percent_max == 0, "{source:?}");
    assert!(source.predicted_downtime_us * 1000 > LONG_NS, "it would have fitted: {source:?}");
    assert!(courses.contains(&Course::PausesToFinish), "nobody could see why it stood still: {courses:?}");
    assert_eq!(world.wrong_pages().await?, 0);
    let seen = world.ticks_after(since, monotonic_ns(), "node-b").await;
    assert!(seen.lost == 0 && seen.gap_ns_max > LONG_NS, "{seen:?}");
    assert_eq!(world.owner().await?, Some(node("node-b")));
    Ok(())
}

async fn where_auto_converge_is_allowed_it_is_throttled_and_free_again_at_the_target(
    world: &mut World,
) -> Outcome {
    world.three_with(busy()).await?;
    let since = monotonic_ns();
    let allowed = Overrides { allow_auto_converge: Some(true), ..limited_to(BANDWIDTH) };
    let (mut shown, mut felt) = (0, 0);
    let moved = world
        .migrate("node-b", allowed, async |cluster, seen| {
            shown = seen.progress.as_ref().map_or(0, |progress| progress.throttle_percent).max(shown);
            if shown > 0 && felt == 0 {
                felt = cluster.stats(&guest()).await.map_or(0, |stats| stats.throttle_percent);
            }
        })
        .await?;
    let Moved::Succeeded { source, .. } = moved else { return Err(format!("{moved:?}").into()) };
    assert!(source.throttle_percent_max > 0 && !source.paused_to_finish, "{source:?}");
    assert!(shown > 0 && felt > 0, "shown {shown} %, felt {felt} %");
    assert_eq!(world.cluster.stats(&guest()).await?.throttle_percent, 0, "at the target");
    assert_eq!(world.wrong_pages().await?, 0);
    let seen = world.ticks_after(since, monotonic_ns(), "node-b").await;
    // It was throttled so that it need not stand still.
    world.ran_on(&seen, since, 1_000_000_000);
    Ok(())
}

async fn a_guest_that_can_not_fit_is_told_what_it_needs_and_completes_with_it(world: &mut World) -> Outcome {
    world.three_with(busy()).await?;
    let asked = world.ask_for("node-b", limited_to(BANDWIDTH)).await?;
    let name = asked.row.name;
    let said = world
        .comes("it is told that it will not fit", async |cluster| {
            let said = cluster.migration(&name).await.ok()?.progress?.prediction?;
            (said.fits == Fits::No && said.confidence != Confidence::Early).then_some(said)
        })
        .await;
    let needed = said.needed_bandwidth;
    assert!(needed > BANDWIDTH * MIB, "it has as much as that: {said:?}");
    assert!(said.left_bytes > 0 && said.downtime_ms > said.downtime_max_ms, "{said:?}");
    let shown = godwit_admin::render::migration(&world.cluster.migration(&name).await?);
    assert!(shown.contains("will not fit 300 ms: about ") && shown.contains("went on"), "{shown}");
    let raised = Quantity::from_bytes(needed * 2);
    let overrides = Overrides { bandwidth_per_migration: Some(raised), ..Overrides::default() };
    world.cluster.ask_any(Act::MigrationSet { migration: name.clone(), overrides }).await?;
    let measured = world
        .comes("it is over and measured", async |cluster| {
            let detail = cluster.migration(&name).await.ok()?;
            (detail.row.phase == "Succeeded").then_some(detail.measured.source?)
        })
        .await;
    let forecast = measured.forecast.as_ref().ok_or("nothing was said after round one")?;
    assert_eq!(forecast.prediction.fits, Fits::No, "{measured:?}");
    assert!(measured.downtime_error_us().is_some() && measured.total_error_us().is_none(), "{measured:?}");
    let last = measured.steps.last().map(|step| step.did);
    assert!(last == Some(Did::SwitchOver) && !measured.paused_to_finish, "{measured:?}");
    assert_eq!(world.wrong_pages().await?, 0);
    assert_eq!(world.owner().await?, Some(node("node-b")));
    Ok(())
}

/// The target dies as well, so that no new session is there to take the throttle back.
async fn a_throttled_guest_whose_node_has_died_is_free_again_when_it_is_found(world: &mut World) -> Outcome {
    world.announce(&["did not begin", "giving up", "migration failed"]);
    world.three_with(busy()).await?;
    let since = monotonic_ns();
    let allowed = Overrides { allow_auto_converge: Some(true), ..limited_to(BANDWIDTH) };
    let asked = world.ask_for("node-b", allowed).await?;
    let throttle = async |cluster: &Cluster| Some(cluster.stats(&guest()).await.ok()?.throttle_percent);
    world
        .comes("it is throttled", async |cluster| throttle(cluster).await.filter(|percent| *percent > 0))
        .await;
    for name in ["node-a", "node-b"] {
        world.cluster.kill_node(&node(name)).await?;
    }
    world.cluster.restart_node(&node("node-a")).await?;
    world
        .comes("it is free again", async |cluster| throttle(cluster).await.filter(|percent| *percent == 0))
        .await;
    world.cluster.restart_node(&node("node-b")).await?;
    let over =
        async |cluster: &Cluster| cluster.migration(&asked.row.name).await.ok().filter(|detail| detail.over);
    let ended = world.comes("it is over", over).await;
    assert_eq!(ended.row.phase, "Failed", "{ended:?}");
    world.runs_under_the_agreed_epoch().await?;
    assert_eq!(world.wrong_pages().await?, 0);
    let seen = world.ticks_after(since, monotonic_ns(), "node-a").await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    world.runner_goes("node-b").await
}
