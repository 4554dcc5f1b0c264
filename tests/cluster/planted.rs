//! Bugs that are switched on in real processes are found by `verify`, and by nothing but `verify`.
//!
//! ```text
//!   page       0 ──────── written over and over ──────── 30,720 ─── never written ─── 40,960
//! ```
//!
//! The guest writes each of its 30,720 pages once in 2.4 s, and the move takes about 4 s: some 50,000 pages are found
//! dirty. Of every 10,000 one may be dropped; those of the last two seconds are not written again before the guest
//! stands still.

use std::error::Error;

use godwit_domain::Overrides;
use libtest_mimic::Trial;

use crate::support::story;
use crate::support::world::{MIB, World, guest_of, limited_to};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        story("memory_is_whole_after_a_long_move_without_a_bug", async |world| {
            assert_eq!(wrong_pages_with(world, None).await?, 0);
            Ok(())
        }),
        finds("a_dirty_page_that_was_dropped_is_found", "drop-dirty"),
        finds("pages_read_from_the_wrong_place_are_found", "wrong-offset"),
        finds("an_old_batch_written_last_is_found", "wrong-order"),
        finds("pages_sent_as_they_were_in_the_first_round_are_found", "stale-page"),
    ]
}

fn finds(name: &str, bug: &'static str) -> Trial {
    story(name, async move |world| {
        let wrong = wrong_pages_with(world, Some(bug)).await?;
        assert!(wrong > 0, "memory is whole in spite of {bug}");
        Ok(())
    })
}

async fn wrong_pages_with(world: &mut World, bug: Option<&str>) -> Result<u64, Box<dyn Error>> {
    let planted = bug.map(|bug| ["node-a", "node-b"].map(|name| (name, "GODWIT_PLANTED", bug)));
    world.start_with(planted.as_ref().map_or(&[], |planted| planted.as_slice())).await?;
    let mut spec = guest_of(160, 50);
    spec.working_set_bytes = 120 * MIB;
    world.create(spec).await?;
    let overrides = Overrides { max_downtime_ms: Some(200), ..limited_to(90) };
    let report = world.move_to("node-b", overrides).await?;
    let again = (report.pages() + report.skipped_pages).saturating_sub(40_960);
    assert!(again > 30_000, "too few pages were found dirty for the bug to bite: {report:?}");
    Ok(world.wrong_pages().await?)
}
