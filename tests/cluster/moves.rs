//! A guest under load moves, there and back.

use godwit_domain::{Epoch, GuestSpec, PAGE_BYTES};
use libtest_mimic::Trial;

use crate::support::world::{World, guest, guest_of, limited_to, node};
use crate::support::{Outcome, stories};

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_guest_under_load_moves_there_and_back,
        a_guest_keeps_the_pace_of_its_ticks,
        a_hole_and_a_zero_page_cost_nothing_on_the_wire,
        a_guest_whose_pages_shrink_sends_less_under_a_limit_and_arrives_whole,
        a_guest_of_random_pages_is_tried_now_and_then_and_never_packed
    ]
}

async fn a_guest_under_load_moves_there_and_back(world: &mut World) -> Outcome {
    world.three_with(guest_of(128, 50)).await?;
    let before = world.cluster.stats(&guest()).await?;
    for target in ["node-b", "node-c", "node-a"] {
        let report = world.move_and_prove(target).await?;
        assert!(report.rounds > 1, "under load one round is never enough: {report:?}");
    }
    assert_eq!(world.epoch().await?, Epoch::FIRST.0 + 3);
    let after = world.cluster.stats(&guest()).await?;
    assert!(
        after.pages_written > before.pages_written && after.tick > before.tick,
        "it worked on all the time"
    );
    let detail = world.guest().await?;
    assert_eq!((detail.row.state.as_str(), detail.rollbacks), ("running", 0));
    let names: Vec<_> =
        detail.migrations.iter().map(|row| (row.phase.as_str(), row.target.clone())).collect();
    let to = |name| ("Succeeded", Some(node(name)));
    assert_eq!(names, [to("node-b"), to("node-c"), to("node-a")], "all are remembered, in order");
    Ok(())
}

async fn a_guest_keeps_the_pace_of_its_ticks(world: &mut World) -> Outcome {
    world.three_with(GuestSpec { tick_interval_ms: 20, ..guest_of(16, 1) }).await?;
    world.move_to("node-b", limited_to(0)).await?;
    let since = godwit::lab::monotonic_ns();
    world.ticks_after(since, since, "node-b").await;
    let there: Vec<_> = world.ticks().into_iter().filter(|tick| tick.monotonic_ns >= since).collect();
    let (first, last) = (there.first().ok_or("no tick")?, there.last().ok_or("no tick")?);
    let ticks = last.tick - first.tick;
    let mean_ms = (last.monotonic_ns - first.monotonic_ns) / ticks / 1_000_000;
    assert!(mean_ms >= 15, "{ticks} ticks, one in {mean_ms} ms, not in 20");
    Ok(())
}

async fn a_hole_and_a_zero_page_cost_nothing_on_the_wire(world: &mut World) -> Outcome {
    let mut spec = guest_of(128, 4);
    spec.working_set_bytes /= 8;
    (spec.zero_percent, spec.compressible_percent) = (80, 20);
    world.three_with(spec.clone()).await?;
    let report = world.move_and_prove("node-b").await?;
    assert!(report.zero_pages * 4096 >= spec.memory_bytes / 100 * 79, "{report:?}");
    assert!(report.wire_bytes < spec.memory_bytes / 3, "{report:?}");
    Ok(())
}

async fn a_guest_whose_pages_shrink_sends_less_under_a_limit_and_arrives_whole(world: &mut World) -> Outcome {
    let spec = GuestSpec { compressible_percent: 80, ..guest_of(128, 4) };
    let memory_bytes = spec.memory_bytes;
    world.three_with(spec).await?;
    let report = world.move_to("node-b", limited_to(32)).await?;
    assert_eq!(world.wrong_pages().await?, 0);
    assert!(report.wire_bytes < memory_bytes / 2, "{} bytes sent of {memory_bytes}", report.wire_bytes);
    // The bytes of the classes are those on the wire, but for heads, control frames and the transport's own.
    let of_pages = report.packed_bytes + report.raw_pages * PAGE_BYTES;
    assert!(report.packed_pages > report.raw_pages, "{report:?}");
    assert!(of_pages < report.wire_bytes && of_pages > report.wire_bytes / 10 * 8, "{of_pages}: {report:?}");
    Ok(())
}

async fn a_guest_of_random_pages_is_tried_now_and_then_and_never_packed(world: &mut World) -> Outcome {
    world.three_with(guest_of(128, 4)).await?;
    let report = world.move_to("node-b", limited_to(64)).await?;
    assert_eq!(world.wrong_pages().await?, 0);
    assert_eq!((report.packed_pages, report.packed_bytes), (0, 0), "{report:?}");
    assert!(report.packing_us > 0, "nobody has looked: {report:?}");
    Ok(())
}
