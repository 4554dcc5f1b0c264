//! A source's node dies between a scan and the first byte of its round: what the scan had found is lost with it.
//!
//! ```text
//!   scan (the kernel forgets what it told) ─▶ ✝ ─▶ restarted: nothing is known to be clean ─▶ whole pass, verified
//!                                              └▶ the same with "what the target has is clean" ─▶ caught by `verify`
//! ```

use std::error::Error;

use godwit_domain::Overrides;
use libtest_mimic::Trial;

use crate::support::world::{MIB, World, guest_of, limited_to, node};
use crate::support::{Outcome, story};

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
    ]
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
    // It writes its working set once in a good while: what was lost is not soon written again.
    let mut spec = guest_of(96, 24);
    spec.working_set_bytes = 72 * MIB;
    world.create(spec).await?;
    let slow = Overrides { max_downtime_ms: Some(20), ..limited_to(64) };
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
