//! A source's node dies between a scan and the first byte of its round: what the scan had found is lost with it.
//!
//! ```text
//!   scan (the kernel forgets what it told) ─▶ ✝ ─▶ restarted: nothing is known to be clean ─▶ whole pass, verified
//!                                              └▶ the same with "what the target has is clean" ─▶ caught by `verify`
//! ```
//!
//! And what a voter has written down of the log before it dies is not written again after.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;

use godwit_domain::{NodeName, Overrides};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::support::world::{MIB, VOTERS, World, guest_of, limited_to, node};
use crate::support::{Outcome, PATIENCE, story, until};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        story("a_source_that_dies_after_a_scan_sends_everything_again", async |world| {
            assert_eq!(wrong_after(world, "die-after-scan", "").await?, 0);
            Ok(())
        }),
        story("resuming_by_what_the_target_has_is_found_by_verify", async |world| {
            let wrong = wrong_after(world, "die-after-scan,resume-by-bitmap", "resume-by-bitmap").await?;
            assert!(wrong > 0, "memory is whole though the scan's pages were never sent");
            Ok(()) as Outcome
        }),
        story("voters_write_down_the_same_log_once_each_though_one_is_killed", one_log),
    ]
}

async fn one_log(world: &mut World) -> Outcome {
    world.three_with(guest_of(32, 1)).await?;
    world.move_to("node-b", limited_to(0)).await?;
    let (leader, _) = world.cluster.leader().await?;
    let dies = VOTERS.map(node).into_iter().find(|name| *name != leader).ok_or("a follower")?;
    let before = audit_log(world, &dies)?;
    assert!(before.len() > 5, "{before:?}");
    world.cluster.kill_node(&dies).await?;
    world.cluster.restart_node(&dies).await?;
    world.move_to("node-c", limited_to(0)).await?;
    let all = until("all voters have written down the same entries", PATIENCE, || {
        let all = VOTERS.map(|name| audit_log(world, &node(name)).expect("a whole log, each entry once"));
        let is_one = |log: &BTreeMap<u64, Value>| log.keys().eq(all[0].keys()) && log.len() > before.len();
        all.iter().all(is_one).then(|| all.clone())
    })
    .await;
    assert!(all.iter().all(|log| *log == all[0]), "{all:?}");
    let hand_overs = all[0].values().filter(|line| line.to_string().contains("HandOver"));
    assert_eq!(hand_overs.count(), 2);
    Ok(())
}

/// What a voter has applied, by its index, but for what is its host's own. Errors: an entry that is there twice.
fn audit_log(world: &World, name: &NodeName) -> Result<BTreeMap<u64, Value>, Box<dyn Error>> {
    let text = fs::read_to_string(world.cluster.node_dir(name).join("audit/log"))?;
    let mut log = BTreeMap::new();
    // Without the last line's end it is not written yet.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let mut line: Value = serde_json::from_str(line)?;
        let index = line["index"].as_u64().ok_or_else(|| format!("{name} lacks entries: {line}"))?;
        assert!(line["applied_ms"].as_u64() >= Some(1 << 40), "{line}");
        line["applied_ms"] = Value::Null;
        if let Some(twice) = log.insert(index, line) {
            return Err(format!("{name} has written twice: {twice}").into());
        }
    }
    Ok(log)
}

async fn wrong_after(world: &mut World, source: &str, target: &str) -> Result<u64, Box<dyn Error>> {
    let once = world.folder("died");
    let once = once.to_str().ok_or("a path")?;
    let environment = [
        ("node-a", "GODWIT_PLANTED", source),
        ("node-a", "GODWIT_PLANTED_ONCE", once),
        ("node-b", "GODWIT_PLANTED", target),
    ];
    world.start_with(&environment).await?;
    // It writes its working set once in 12 s: what was lost is not written again before the move is over.
    let mut spec = guest_of(96, 6);
    spec.working_set_bytes = 72 * MIB;
    world.create(spec).await?;
    // Less than a switchover takes beside its pages: it does not end meanwhile.
    let slow = Overrides { max_downtime_ms: Some(1), ..limited_to(64) };
    let asked = world.ask_for("node-b", slow).await?;
    world.comes("node-a has died after a scan", async |_| std::fs::exists(once).ok()?.then_some(())).await;
    world.cluster.restart_node(&node("node-a")).await?;
    // Once more there is all the time and room that it needs.
    let set = godwit_wire::admin::Act::MigrationSet {
        migration: asked.row.name.clone(),
        overrides: Overrides { max_downtime_ms: Some(300), ..limited_to(0) },
    };
    world.comes("the move has new limits", async |cluster| cluster.ask_any(set.clone()).await.ok()).await;
    let ended = world
        .comes("the move is over", async |cluster| {
            let detail = cluster.migration(&asked.row.name).await.ok()?;
            (detail.over && !detail.permits_held).then_some(detail)
        })
        .await;
    assert_eq!(ended.row.phase, "Succeeded", "{ended:?}");
    Ok(world.wrong_pages().await?)
}
