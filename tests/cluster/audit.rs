//! What arrived is compared with what left, while the source still has it and the guest runs on.
//!
//! ```text
//!   node-a  copies ─▶ stands still ──────────── digests ─────┬─▶ lets go
//!   node-b            runs, what it writes is known ─ compares ┘      numbers at once, what was found in the end
//! ```

use godwit::lab::cluster::Moved;
use godwit_domain::progress::AuditReport;
use godwit_domain::{MigrationId, Overrides};
use godwit_wire::admin::{Act, MigrationDetail};
use libtest_mimic::Trial;

use crate::support::world::{MIB, World, guest, guest_of, limited_to, node};
use crate::support::{Outcome, stories, story};

/// An audit whose source says nothing behind the first piece, so that it is under way for as long as a story needs.
const STALLS: (&str, &str, &str) = ("node-a", "GODWIT_PLANTED", "stall-audit");

pub(crate) fn trials() -> Vec<Trial> {
    let mut all = stories![
        nothing_differs_after_a_clean_move_and_it_was_looked_at,
        a_guest_that_moves_back_or_is_deleted_does_not_wait_for_its_audit
    ];
    all.extend([
        finds("an_audit_finds_pages_read_from_the_wrong_place", "wrong-offset"),
        finds("an_audit_finds_pages_sent_as_they_were_in_the_first_round", "stale-page"),
        outlives("a_source_that_dies_while_it_is_audited_harms_nobody", "node-a"),
        outlives("a_target_that_dies_while_it_audits_harms_nobody", "node-b"),
    ]);
    all
}

fn audited(bandwidth: u64) -> Overrides {
    Overrides { audit: Some(true), ..limited_to(bandwidth) }
}

/// What the audit of a move found, which must have succeeded.
async fn audit_of(
    world: &mut World,
    target: &str,
    overrides: Overrides,
) -> Result<AuditReport, Box<dyn std::error::Error>> {
    match world.migrate(target, overrides, async |_, _| {}).await? {
        Moved::Succeeded { audit: Some(report), .. } => Ok(report),
        other => Err(format!("no audit: {other:?}").into()),
    }
}

async fn nothing_differs_after_a_clean_move_and_it_was_looked_at(world: &mut World) -> Outcome {
    let spec = guest_of(128, 20);
    let pages = spec.memory_bytes / 4096;
    world.three_with(spec).await?;
    for target in ["node-b", "node-c"] {
        let report = audit_of(world, target, audited(0)).await?;
        assert_eq!(world.wrong_pages().await?, 0);
        assert!(report.complete && report.mismatched_pages == 0, "{report:?}");
        assert_eq!(report.checked_pages + report.written_pages, pages, "{report:?}");
        assert!(report.checked_pages >= pages / 2, "half of it is never written: {report:?}");
    }
    world.runner_goes("node-a").await?;
    // Tracked as ever, and whoever did not ask is not audited.
    world.move_and_prove("node-a").await?;
    let last = world.guest().await?.migrations.pop().ok_or("three moves")?;
    assert_eq!(world.cluster.migration(&last.name).await?.measured.audit, None);
    Ok(())
}

fn finds(name: &str, bug: &'static str) -> Trial {
    story(name, async move |world| {
        world.announce(&["audit: "]);
        world.start_with(&["node-a", "node-b"].map(|name| (name, "GODWIT_PLANTED", bug))).await?;
        // It takes much longer to write its working set once than an audit takes.
        let mut spec = guest_of(160, 20);
        spec.working_set_bytes = 120 * MIB;
        world.create(spec).await?;
        let report =
            audit_of(world, "node-b", Overrides { max_downtime_ms: Some(50), ..audited(60) }).await?;
        assert!(report.mismatched_pages > 0, "all alike in spite of {bug}: {report:?}");
        world.logs("node-a", "ERROR").await;
        world.logs("node-b", "ERROR").await;
        Ok(())
    })
}

// ---- while it is under way -------------------------------------------------------------------------------------

/// Moves the guest to `node-b`, and does not wait for its audit, which is under way.
async fn move_into_an_audit(world: &mut World) -> Result<MigrationId, Box<dyn std::error::Error>> {
    let name = world.ask_for("node-b", audited(0)).await?.row.name;
    let ended = world
        .comes("the move is over and measured", async |cluster| {
            let detail: MigrationDetail = cluster.migration(&name).await.ok()?;
            let measured = detail.measured.source.is_some() && detail.measured.resume_us.is_some();
            (detail.over && !detail.permits_held && measured).then_some(detail)
        })
        .await;
    assert_eq!((ended.row.phase.as_str(), ended.measured.audit), ("Succeeded", None), "{ended:?}");
    let here = world.cluster.node_detail(&node("node-a")).await?.runners.unwrap_or_default();
    assert_eq!(here.len(), 1, "the source keeps its copy: {here:?}");
    Ok(name)
}

/// The audit of this migration, which was cut short.
async fn was_cut_short(world: &World, name: &MigrationId) {
    let report = world
        .comes("the audit is told", async |cluster| cluster.migration(name).await.ok()?.measured.audit)
        .await;
    assert!(!report.complete && report.mismatched_pages == 0, "{report:?}");
}

async fn a_guest_that_moves_back_or_is_deleted_does_not_wait_for_its_audit(world: &mut World) -> Outcome {
    world.start_with(&[STALLS]).await?;
    world.create(guest_of(96, 10)).await?;
    let first = move_into_an_audit(world).await?;
    world.move_and_prove("node-a").await?;
    was_cut_short(world, &first).await;
    move_into_an_audit(world).await?;
    world.cluster.ask_any(Act::GuestStop { guest: guest() }).await?;
    for name in ["node-a", "node-b"] {
        world.runner_goes(name).await?;
        assert!(!world.log_of(name).contains("time is up"), "it was waited for");
    }
    Ok(())
}

fn outlives(name: &str, victim: &'static str) -> Trial {
    story(name, async move |world| {
        world.announce(&[
            "a voter",
            "the connection to a voter is lost",
            "session ends",
            "progress was not told",
        ]);
        world.start_with(&[STALLS]).await?;
        world.create(guest_of(96, 10)).await?;
        let name = move_into_an_audit(world).await?;
        world.cluster.kill_node(&node(victim)).await?;
        if victim == "node-a" {
            was_cut_short(world, &name).await;
        }
        world.cluster.restart_node(&node(victim)).await?;
        world.runner_goes("node-a").await?;
        world.move_and_prove("node-c").await?;
        Ok(())
    })
}
