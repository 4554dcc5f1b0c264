//! Guests whose memory lies in large folios, 512 pages each, at both ends.
//!
//! ```text
//!   a story ─▶ the memory file of a runner, by /proc ─▶ its pages are made large folios while guest and node use them
//!                                                   └─▶ a page is held, as by a device: its folio can not be split, so
//!                                                       what is punched of it stays, and no access to it would ever wait
//! ```
//!
//! Always true: no setting of the system is touched, so nothing is to be restored.

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;

use godwit::lab::cluster::Cluster;
use godwit::lab::monotonic_ns;
use godwit_domain::{Overrides, PageIndex};
use godwit_memory::folios::{FOLIO_PAGES, Pin, make_large};
use libtest_mimic::Trial;

use crate::postcopy::{busy, goes};
use crate::support::world::{World, guest, guest_of, limited_to, node};
use crate::support::{Outcome, stories};

/// A folio of the working set of [`busy`]: it comes, and is written again.
const WRITTEN: u32 = 5;
/// One near the end of its memory, which is never written again: whoever loses it is found out.
const LATE: u32 = 44;

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_guest_of_large_folios_arrives_whole_and_moves_on,
        what_stays_of_a_folio_with_a_pinned_page_comes_before_the_guest_runs
    ]
}

/// The memory file of the guest's runner on a node; `None`: none is there.
fn memory_on(cluster: &Cluster, name: &str) -> Option<File> {
    let dir = cluster.node_dir(&node(name)).display().to_string();
    let file = format!("/memfd:godwit {} ", guest());
    let of_node = |process: &Path| {
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&dir)
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let files = processes.filter(|process| of_node(process)).flat_map(|process| {
        fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path())
    });
    let is_it = |path: &Path| fs::read_link(path).is_ok_and(|to| to.display().to_string().starts_with(&file));
    files.filter(|path| is_it(path)).find_map(|path| File::open(path).ok())
}

/// Makes all of a memory large folios; how many they are.
fn make_all_large(memory: &File) -> Result<u32, Box<dyn Error>> {
    let pages = u32::try_from(memory.metadata()?.len() / godwit_domain::PAGE_BYTES)?;
    let folios = pages / FOLIO_PAGES;
    for folio in 0..folios {
        make_large(memory, PageIndex(folio * FOLIO_PAGES))
            .map_err(|error| format!("folio {folio}: {error}"))?;
    }
    Ok(folios)
}

async fn a_guest_of_large_folios_arrives_whole_and_moves_on(world: &mut World) -> Outcome {
    world.three_with(guest_of(64, 8)).await?;
    let memory = memory_on(&world.cluster, "node-a").ok_or("no memory")?;
    assert_eq!(make_all_large(&memory)?, 32);
    let since = monotonic_ns();
    let mut arriving = None;
    let moved = world
        .migrate("node-b", limited_to(32), async |cluster, _| {
            // While pages are written there.
            if arriving.is_none() {
                arriving = memory_on(cluster, "node-b").map(|memory| make_all_large(&memory));
            }
        })
        .await?;
    assert_eq!(world.wrong_pages().await?, 0, "{moved:?}");
    assert_eq!(arriving.ok_or("the memory at the target was never seen")??, 32);
    let seen = world.ticks_after(since, monotonic_ns(), "node-b").await;
    assert_eq!(seen.lost, 0, "ticks lost or written twice: {seen:?}");
    world.move_and_prove("node-c").await?;
    Ok(())
}

async fn what_stays_of_a_folio_with_a_pinned_page_comes_before_the_guest_runs(world: &mut World) -> Outcome {
    world.three_with(busy()).await?;
    make_all_large(&memory_on(&world.cluster, "node-a").ok_or("no memory")?)?;
    // 96 MiB take 6 s, and have 3.
    let how =
        Overrides { allow_post_copy: Some(true), completion_timeout_per_gib: Some(32), ..limited_to(16) };
    let mut pins = Vec::new();
    let (source, post_copy) = goes(world, how.into(), async |cluster, _| {
        let memory = if pins.is_empty() { memory_on(cluster, "node-b") } else { None };
        for page in
            memory.iter().flat_map(|_| [WRITTEN, LATE]).map(|folio| PageIndex(folio * FOLIO_PAGES + 20))
        {
            let pin =
                memory.as_ref().map(|memory| make_large(memory, page).and_then(|()| Pin::on(memory, page)));
            pins.extend(pin);
        }
    })
    .await?;
    let pins: Vec<Pin> = pins.into_iter().collect::<Result<_, _>>()?;
    assert_eq!(pins.len(), 2, "the memory at the target was never seen");
    eprintln!("{source:?} {post_copy:?}");
    let most = 2 * u64::from(FOLIO_PAGES);
    assert!((1..=most).contains(&post_copy.stuck_pages), "{source:?} {post_copy:?}");
    // All else came while it ran.
    assert!(post_copy.missing_at_resume_bytes > 0 && post_copy.faults > 0, "{source:?} {post_copy:?}");
    drop(pins);
    world.move_and_prove("node-c").await?;
    Ok(())
}
