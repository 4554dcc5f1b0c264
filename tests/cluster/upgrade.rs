//! Nodes are stopped and started one after another, as for a new version; and versions that can not work together.
//!
//! ```text
//!   guests move all the time ── node-a ↻ ── node-b ↻ ── node-c ↻ ── node-d ↻ ──▶ every guest whole, no tick lost
//!   node-d comes back as another version ─▶ refused by name ─▶ its guest ticks on, nothing moves ─▶ the right one: it moves
//! ```

use std::collections::BTreeMap;

use godwit::lab::monotonic_ns;
use godwit::lab::ticks;
use godwit_domain::GuestName;
use godwit_guest::runner::{Tick, read_ticks};
use godwit_wire::admin::{Act, MigrationDetail};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::world::{VOTERS, World, guest, guest_of, limited_to, node, unlimited};
use crate::support::{Outcome, stories};

/// Three that vote, and one that does not.
const NODES: [&str; 4] = ["node-a", "node-b", "node-c", "node-d"];

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_rolling_restart_under_migrations_loses_nothing,
        a_node_that_speaks_another_version_is_refused_by_name_and_nothing_moves,
        a_runner_that_speaks_another_version_is_left_alone_and_nothing_takes_its_place
    ]
}

// ---- one after another ------------------------------------------------------------------------------------------

async fn a_rolling_restart_under_migrations_loses_nothing(world: &mut World) -> Outcome {
    world.announce(&[
        "connection to the target lost",
        "connection to the source lost",
        "was restarted before the guest ran there",
        "migration failed",
        "giving up",
        "voter",
        "session",
        "not told",
        "no leader",
        "found in post-copy",
        "the transfer has stopped",
        "did not begin",
        "more messages than it takes",
    ]);
    start_four(world).await?;
    let mut homes: BTreeMap<GuestName, usize> = BTreeMap::new();
    for (at, name) in NODES.iter().enumerate() {
        let name: GuestName = if at == 0 { guest() } else { format!("vm-{}", &name[5..]).parse()? };
        world.cluster.create_guest(&name, &node(NODES[at]), guest_of(48, 4)).await?;
        homes.insert(name, at);
    }
    let since = monotonic_ns();
    let (mut succeeded, mut failed) = (0, 0);
    for restarted in NODES {
        let mut asked = Vec::new();
        for (name, at) in &homes {
            asked.push((
                name.clone(),
                (at + 1) % NODES.len(),
                move_it(world, name, NODES[(at + 1) % NODES.len()]).await?,
            ));
        }
        let first = asked[0].2.row.name.clone();
        world
            .comes("pages flow", async |cluster| {
                cluster.migration(&first).await.ok()?.progress.filter(|progress| progress.wire_bytes > 0)
            })
            .await;
        restart(world, restarted).await?;
        for (name, to, migration) in asked {
            let ended = is_over(world, &migration).await;
            match ended.row.phase.as_str() {
                "Succeeded" => {
                    homes.insert(name, to);
                    succeeded += 1;
                }
                // Its target was this node: its runner there had waited for the guest, or it was just being called. It is asked
                // for again.
                phase => {
                    let reason = ended.row.detail.clone().unwrap_or_default();
                    let is_known = ["restarted", "connect to"].iter().any(|words| reason.contains(words));
                    assert!(phase == "Failed" && is_known, "{ended:?}");
                    assert_eq!(NODES[to], restarted, "{ended:?}");
                    failed += 1;
                }
            }
        }
    }
    assert!(succeeded >= 3 * NODES.len() && failed <= NODES.len(), "{succeeded} succeeded, {failed} failed");
    for (name, at) in &homes {
        let detail = world.cluster.guest(name).await?;
        assert_eq!(detail.row.node, Some(node(NODES[*at])), "{detail:?}");
        assert_eq!(world.cluster.verify(name).await?.wrong, 0, "{name}");
    }
    for name in homes.keys() {
        let seen = ticks::report(&ticks_of(world, name)?, since, u64::MAX);
        assert!(seen.lost == 0 && seen.count > 0, "{name}: {seen:?}");
    }
    Ok(())
}

/// What all runners of one guest have written.
fn ticks_of(world: &World, name: &GuestName) -> Result<Vec<Tick>, Box<dyn std::error::Error>> {
    let mut all = Vec::new();
    for dir in world.cluster.runner_dirs() {
        if std::fs::read_to_string(dir.join("runner.log"))?.contains(&format!("guest={name} ")) {
            all.extend(read_ticks(&dir)?);
        }
    }
    Ok(all)
}

async fn start_four(world: &mut World) -> Outcome {
    let specs = NODES.iter().map(|name| world.cluster.spec(&node(name))).collect();
    world.start_as(specs).await
}

async fn move_it(
    world: &World,
    name: &GuestName,
    to: &str,
) -> Result<MigrationDetail, Box<dyn std::error::Error>> {
    let act = Act::Migrate {
        guest: name.clone(),
        migration: None,
        to: Some(node(to)),
        selector: godwit_domain::Labels::new(),
        overrides: limited_to(24),
        mode: None,
        dry_run: false,
    };
    Ok(serde_json::from_value(world.cluster.ask_any(act).await?)?)
}

async fn is_over(world: &World, migration: &MigrationDetail) -> MigrationDetail {
    world
        .comes("the move is over", async |cluster| {
            let detail = cluster.migration(&migration.row.name).await.ok()?;
            (detail.over && !detail.permits_held).then_some(detail)
        })
        .await
}

/// As an operator would: told to end, and started again.
async fn restart(world: &mut World, name: &str) -> Outcome {
    restart_as(world, name, None).await?;
    world.cluster.leader().await?;
    Ok(world.cluster.are_reachable(&NODES.map(node)).await?)
}

/// The same, as a version that differs in this.
async fn restart_as(world: &mut World, name: &str, differs: Option<&str>) -> Outcome {
    let name = node(name);
    let pid = world.cluster.node(&name).and_then(|process| Pid::from_raw(i32::try_from(process.pid).ok()?));
    kill_process(pid.ok_or("it runs")?, Signal::TERM)?;
    let environment = differs.map(|what| ("GODWIT_PLANTED".to_owned(), what.to_owned()));
    world.cluster.restart_node_as(&name, |spec| spec.environment = environment.into_iter().collect()).await?;
    Ok(())
}

// ---- versions that do not fit -----------------------------------------------------------------------------------

/// The guest is on `node-d`, which comes back as a version that differs in this, and logs these words.
async fn comes_back_as(world: &mut World, differs: &str, words: &str) -> Outcome {
    start_four(world).await?;
    world.cluster.create_guest(&guest(), &node("node-d"), guest_of(32, 4)).await?;
    let runner = world.guest().await?.instance.ok_or("it runs")?;
    let since = monotonic_ns();
    restart_as(world, "node-d", Some(differs)).await?;
    world.logs("node-d", words).await;
    let asked = world.ask_for("node-a", unlimited()).await?;
    let before = monotonic_ns();
    // It ticks on for a while in which it would have gone otherwise; nobody else was made of it.
    world
        .comes("a hundred ticks more", async |_| {
            (world.ticks().iter().filter(|tick| tick.monotonic_ns > before).count() >= 100).then_some(())
        })
        .await;
    let detail = world.cluster.migration(&asked.row.name).await?;
    assert!(!detail.over && detail.progress.is_none(), "it has begun: {detail:?}");
    let is = world.guest().await?;
    assert_eq!((is.row.node, is.instance), (Some(node("node-d")), Some(runner)));
    // The right version again: it goes at once.
    restart(world, "node-d").await?;
    assert_eq!(is_over(world, &asked).await.row.phase, "Succeeded");
    let seen = world.ticks_after(since, monotonic_ns(), "node-a").await;
    assert_eq!((seen.lost, world.wrong_pages().await?), (0, 0), "{seen:?}");
    Ok(())
}

async fn a_node_that_speaks_another_version_is_refused_by_name_and_nothing_moves(
    world: &mut World,
) -> Outcome {
    world.announce(&["protocol version", "session", "no leader", "voter"]);
    comes_back_as(world, "later-protocol", "peer speaks protocol version 2, this node speaks 1").await?;
    let refused = VOTERS.iter().any(|name| {
        world.log_of(name).contains("peer refused")
            && world.log_of(name).contains("peer speaks protocol version 2")
    });
    assert!(refused, "no voter has said whom it refuses");
    Ok(())
}

async fn a_runner_that_speaks_another_version_is_left_alone_and_nothing_takes_its_place(
    world: &mut World,
) -> Outcome {
    world.announce(&["hand-off version", "session", "no leader", "voter", "not reached"]);
    comes_back_as(world, "later-handoff", "it speaks hand-off version 1, this node speaks 2").await
}
