//! A guest that runs at its target before its pages are there.
//!
//! ```text
//!   96 MiB, half of it written all the time ── 32 MiB/s ──▶ never fits: it goes, and the rest follows
//!      ticks on node-a ──┤ handed over ├── ticks on node-b while pages are missing ──▶ all pages ──▶ node-a lets go
//! ```
//!
//! Always true of every story: never two ticks alike, none lost; the memory is compared page by page, the missing ones too:
//! whoever compares waits for them.

use godwit::lab::cluster::{Cluster, How, Moved, Watched};
use godwit::lab::monotonic_ns;
use godwit_domain::progress::{Course, PostCopyReport, SourceReport};
use godwit_domain::settings::PostCopyTrigger;
use godwit_domain::{GuestSpec, Overrides};
use godwit_wire::admin::{Act, MoveMode};
use libtest_mimic::Trial;

use crate::ownership::kill_runner;
use crate::support::world::{MIB, World, guest, guest_of, limited_to, node};
use crate::support::{LOOK_INTERVAL, Outcome, stories};

/// MiB per second that may be sent.
const BANDWIDTH: u64 = 32;

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        at_the_deadline_a_guest_that_writes_too_fast_runs_on_at_its_target,
        where_it_may_go_early_it_does_not_wait_for_a_deadline,
        asked_for_at_once_it_goes_with_nothing_copied,
        post_copy_is_refused_where_it_is_not_allowed,
        a_changed_timeout_makes_it_later_or_earlier,
        a_source_that_is_lost_for_good_leaves_waiting_and_never_zeros,
        a_source_that_comes_back_before_its_target_has_reported_takes_nothing_back,
        the_source_comes_back_and_sends_what_is_missing,
        the_target_comes_back_and_asks_for_what_is_missing
    ]
}

fn busy() -> GuestSpec {
    guest_of(96, 96)
}

fn allowed() -> Overrides {
    Overrides { allow_post_copy: Some(true), ..limited_to(BANDWIDTH) }
}

fn at_once() -> How {
    How { overrides: allowed(), mode: Some(MoveMode::PostCopy) }
}

/// Whether the guest runs at its target, and pages may be missing.
pub(crate) fn is_post_copy(seen: &Watched) -> bool {
    seen.row.detail.as_ref().is_some_and(|detail| detail.starts_with("PostCopy"))
}

/// Moves the guest to `node-b`, which must go post-copy and be whole in the end.
pub(crate) async fn goes(
    world: &mut World,
    how: How,
    watch: impl AsyncFnMut(&mut Cluster, &Watched),
) -> Result<(SourceReport, PostCopyReport), Box<dyn std::error::Error>> {
    let since = monotonic_ns();
    let moved = world.migrate("node-b", how, watch).await?;
    let Moved::Succeeded { source, post_copy, .. } = moved else { return Err(format!("{moved:?}").into()) };
    let post_copy = post_copy.ok_or("it did not end as post-copy")?;
    assert_eq!(world.wrong_pages().await?, 0, "{source:?} {post_copy:?}");
    let seen = world.ticks_after(since, monotonic_ns(), "node-b").await;
    assert_eq!(seen.lost, 0, "ticks lost or written twice: {seen:?}");
    assert_eq!(world.owner().await?, Some(node("node-b")));
    world.runner_goes("node-a").await?;
    Ok((source, *post_copy))
}

async fn at_the_deadline_a_guest_that_writes_too_fast_runs_on_at_its_target(world: &mut World) -> Outcome {
    world.three_with(busy()).await?;
    let how = Overrides { completion_timeout_per_gib: Some(48), ..allowed() };
    let mut courses = Vec::new();
    let (source, post_copy) = goes(world, how.into(), async |_, seen| {
        courses.extend(seen.progress.as_ref().map(|progress| progress.course));
    })
    .await?;
    assert!(courses.contains(&Course::PostCopy), "nobody could see it: {courses:?}");
    assert!(source.rounds > 2 && !source.paused_to_finish, "{source:?}");
    assert!(post_copy.missing_at_resume_bytes > 8 * MIB, "{post_copy:?}");
    assert_eq!(post_copy.stuck_pages, 0, "nobody holds a page of it: {post_copy:?}");
    // It can move on, and is tracked as ever.
    world.move_and_prove("node-c").await?;
    Ok(())
}

/// There is no deadline at all.
async fn where_it_may_go_early_it_does_not_wait_for_a_deadline(world: &mut World) -> Outcome {
    world.three_with(busy()).await?;
    let how = Overrides { post_copy_trigger: Some(PostCopyTrigger::Early), ..allowed() };
    let (source, post_copy) = goes(world, how.into(), async |_, _| {}).await?;
    assert!(source.rounds > 1 && post_copy.missing_at_resume_bytes > 8 * MIB, "{source:?} {post_copy:?}");
    Ok(())
}

async fn asked_for_at_once_it_goes_with_nothing_copied(world: &mut World) -> Outcome {
    world.three_with(busy()).await?;
    let mut ran_at = None;
    let (source, post_copy) = goes(world, at_once(), async |cluster, seen| {
        if is_post_copy(seen) && ran_at.is_none() {
            let ticks = cluster.stats(&guest()).await.map_or(0, |stats| stats.tick);
            ran_at = Some((ticks, seen.progress.as_ref().map_or(0, |progress| progress.left_bytes)));
        }
        if is_post_copy(seen) {
            // Faults of its own, all over the place, while pages come.
            assert_eq!(cluster.verify(&guest()).await.expect("verified").wrong, 0);
        }
    })
    .await?;
    assert!(
        ran_at.is_some_and(|(ticks, _)| ticks > 0),
        "it did not run while pages were missing: {ran_at:?}"
    );
    assert!(post_copy.missing_at_resume_bytes >= 24 * MIB, "{post_copy:?}");
    assert!(post_copy.faults > 0 && post_copy.blocked_us > 0, "{post_copy:?}");
    let waits: u64 = post_copy.latency_log2_us.iter().sum();
    assert_eq!(waits, post_copy.faults, "every wait is counted: {post_copy:?}");
    assert!(source.wire_bytes < 2 * 96 * MIB, "pages went twice: {source:?}");
    Ok(())
}

async fn post_copy_is_refused_where_it_is_not_allowed(world: &mut World) -> Outcome {
    world.three_with(guest_of(16, 1)).await?;
    let how = How { overrides: limited_to(0), mode: Some(MoveMode::PostCopy) };
    let refused = world.migrate("node-b", how, async |_, _| {}).await.expect_err("refused").to_string();
    assert!(refused.contains("allowPostCopy is not in force"), "{refused}");
    Ok(())
}

async fn a_changed_timeout_makes_it_later_or_earlier(world: &mut World) -> Outcome {
    world.three_with(busy()).await?;
    // 96 MiB: 10 s per GiB are 0.94 s, 64 are 6 s.
    for (to, first, then, least_ms, most_ms) in
        [("node-b", Some(10), 64, 6_000, u64::MAX), ("node-c", None, 10, 0, 6_000)]
    {
        let begun = Overrides { completion_timeout_per_gib: Some(first.unwrap_or(0)), ..allowed() };
        let asked = world.ask_for(to, begun).await?;
        let changed = Overrides { completion_timeout_per_gib: Some(then), ..Overrides::default() };
        let set = Act::MigrationSet { migration: asked.row.name.clone(), overrides: changed };
        world.cluster.ask_any(set).await?;
        let ended = world
            .comes("it is over", async |cluster| {
                let detail = cluster.migration(&asked.row.name).await.ok()?;
                (detail.over && !detail.permits_held).then_some(detail)
            })
            .await;
        assert_eq!(ended.row.phase, "Succeeded", "{ended:?}");
        // Replicated time, of one group: from the first page to the hand-over.
        let at = |phase: &str| {
            ended.steps.iter().find(|step| step.phase.starts_with(phase)).map(|step| step.time_ms)
        };
        let (began, went) =
            (at("TargetReady").ok_or("it never began")?, at("PostCopy").ok_or("no post-copy")?);
        let copied_ms = went - began;
        assert!(copied_ms >= least_ms && copied_ms < most_ms, "{copied_ms} ms, set to {then}: {ended:?}");
        assert_eq!(world.wrong_pages().await?, 0);
    }
    Ok(())
}

/// Nobody has the missing pages any more. Whoever touches one waits; what is there is whole.
async fn a_source_that_is_lost_for_good_leaves_waiting_and_never_zeros(world: &mut World) -> Outcome {
    world.announce(&[
        "connection to the source lost",
        "gone for good",
        "fenced",
        "the guest was deleted",
        "runner is busy and does not end by itself",
        "more messages than it takes",
    ]);
    world.three_with(busy()).await?;
    let source = world.guest().await?.instance.ok_or("no owner")?;
    let asked = world.ask_post_copy("node-b", allowed()).await?;
    world
        .comes("it runs without most of its pages", async |cluster| {
            let detail = cluster.migration(&asked.row.name).await.ok()?;
            let missing = detail.progress.as_ref().is_some_and(|progress| progress.left_bytes > 32 * MIB);
            (is_post_copy(&detail) && missing).then_some(())
        })
        .await;
    world.cluster.kill_node(&node("node-a")).await?;
    kill_runner(source).await?;
    world
        .comes("node-a is unreachable", async |cluster| {
            let detail = cluster.node_detail(&node("node-a")).await.ok()?;
            (detail.row.state == "unreachable").then_some(())
        })
        .await;
    world.cluster.ask_any(Act::NodeFence { node: node("node-a"), although_reachable: false }).await?;
    let said = world
        .comes("it is said", async |cluster| {
            let detail = cluster.migration(&asked.row.name).await.ok()?.row.detail?;
            detail.contains("gone for good").then_some(detail)
        })
        .await;
    assert!(said.contains("whoever touches a missing page waits"), "{said}");
    world.logs("node-b", "the source is gone for good and pages are missing").await;
    // Its threads wait: nothing of it is written to where zeros would stand in for a page.
    let before = world.cluster.stats(&guest()).await?.pages_written;
    world
        .comes("every thread waits", async |cluster| {
            let first = cluster.stats(&guest()).await.ok()?.pages_written;
            tokio::time::sleep(10 * LOOK_INTERVAL).await;
            (cluster.stats(&guest()).await.ok()?.pages_written == first).then_some(())
        })
        .await;
    assert!(world.cluster.stats(&guest()).await?.pages_written >= before);
    // Whoever compares its memory waits as well. It can be ended all the same.
    let ends = async {
        world
            .comes("its runner answers nobody else", async |cluster| {
                cluster.stats(&guest()).await.is_err().then_some(())
            })
            .await;
        world.cluster.ask_any(Act::GuestStop { guest: guest() }).await?;
        world.runner_goes("node-b").await
    };
    let compared = guest();
    let (compared, ended) = tokio::join!(world.cluster.verify(&compared), ends);
    assert!(compared.is_err(), "compared with pages that are missing: {compared:?}");
    ended
}

// ---- a node dies ------------------------------------------------------------------------------------------------

/// Kills a node once the guest runs with most of its pages missing, and starts it again once it has ticked on.
async fn dies_in_post_copy(
    world: &mut World,
    victim: &str,
) -> Result<PostCopyReport, Box<dyn std::error::Error>> {
    world.announce(&[
        "connection to the target lost",
        "connection to the source lost",
        "found in post-copy",
        "a voter",
        "the connection to a voter is lost",
        "session ends",
        "progress was not told",
    ]);
    world.three_with(busy()).await?;
    let mut killed = false;
    let (_, post_copy) = goes(world, at_once(), async |cluster, seen| {
        let missing = seen.progress.as_ref().map_or(0, |progress| progress.left_bytes);
        if is_post_copy(seen) && missing > 32 * MIB && !std::mem::replace(&mut killed, true) {
            let before = cluster.stats(&guest()).await.map_or(0, |stats| stats.tick);
            cluster.kill_node(&node(victim)).await.expect("killed");
            assert!(before > 0, "it ran");
            cluster.restart_node(&node(victim)).await.expect("started again");
        }
    })
    .await?;
    assert!(killed, "it was never seen with pages missing");
    Ok(post_copy)
}

/// It is handed over, runs there, and nobody has heard of it: the new process knows not what the old one has sent.
async fn a_source_that_comes_back_before_its_target_has_reported_takes_nothing_back(
    world: &mut World,
) -> Outcome {
    world.start_with(&[("node-b", "GODWIT_PLANTED", "never-report")]).await?;
    world.announce(&["connection to the", "found in post-copy", "a voter", "session ends"]);
    world.create(busy()).await?;
    let since = monotonic_ns();
    let asked = world.ask_post_copy("node-b", allowed()).await?;
    world
        .comes("the guest is handed over", async |cluster| {
            let owner = cluster.guest(&guest()).await.ok()?.row.node;
            (owner == Some(node("node-b"))).then_some(())
        })
        .await;
    world.ticks_after(since, since, "node-b").await;
    world.cluster.kill_node(&node("node-a")).await?;
    world.cluster.restart_node(&node("node-a")).await?;
    world.logs("node-a", "connected to the target link=1").await;
    // Its pages go on coming meanwhile.
    world.cluster.kill_node(&node("node-b")).await?;
    world.cluster.restart_node_as(&node("node-b"), |spec| spec.environment.clear()).await?;
    let ended = world
        .comes("it is over", async |cluster| {
            let detail = cluster.migration(&asked.row.name).await.ok()?;
            (detail.over && !detail.permits_held).then_some(detail)
        })
        .await;
    assert_eq!(ended.row.phase, "Succeeded", "{ended:?}");
    assert_eq!(world.wrong_pages().await?, 0);
    let seen = world.ticks_after(since, monotonic_ns(), "node-b").await;
    assert_eq!(seen.lost, 0, "ticks lost or written twice: {seen:?}");
    assert_eq!(world.owner().await?, Some(node("node-b")));
    Ok(())
}

async fn the_source_comes_back_and_sends_what_is_missing(world: &mut World) -> Outcome {
    let post_copy = dies_in_post_copy(world, "node-a").await?;
    assert!(post_copy.faults > 0, "{post_copy:?}");
    Ok(())
}

async fn the_target_comes_back_and_asks_for_what_is_missing(world: &mut World) -> Outcome {
    let post_copy = dies_in_post_copy(world, "node-b").await?;
    assert!(post_copy.missing_at_resume_bytes > 0, "{post_copy:?}");
    Ok(())
}
