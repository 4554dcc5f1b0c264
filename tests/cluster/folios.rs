//! Guests whose memory lies in large folios, 512 pages each, at both ends.
//!
//! ```text
//!   a story ─▶ the memory file of a runner, by /proc ─▶ its pages are made large folios while guest and node use them
//!                                                   └─▶ a page is held, as by a device: its folio can not be split, so
//!                                                       what is punched of it stays, and no access to it would ever wait
//! ```
//!
//! Always true: no setting of the system is touched, so nothing is to be restored.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use godwit::lab::cluster::Cluster;
use godwit::lab::monotonic_ns;
use godwit_domain::{GuestSpec, Overrides, PAGE_SIZE, PageIndex};
use godwit_memory::folios::{FOLIO_PAGES, Pin, make_large};
use libtest_mimic::Trial;

use crate::postcopy::{goes, is_post_copy};
use crate::support::world::{World, guest, guest_of, limited_to, node};
use crate::support::{Outcome, stories};

/// The folio of [`straddling`] of which half is in the working set, and half comes once and for all: so never all of it is missing. A folio that is
/// punched from end to end is gone, whoever holds on to it.
const HALF_WRITTEN: u32 = 24;

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
    files
        .filter(|path| is_it(path))
        .find_map(|path| OpenOptions::new().read(true).write(true).open(path).ok())
}

/// Makes large folios of all of a memory that is there; which ones they are.
fn make_large_what_is_there(memory: &File) -> BTreeSet<u32> {
    let pages = memory.metadata().expect("its size").len() / godwit_domain::PAGE_BYTES;
    let folios = 0..u32::try_from(pages).expect("a guest's pages") / FOLIO_PAGES;
    folios.filter(|folio| make_large(memory, PageIndex(folio * FOLIO_PAGES)).is_ok()).collect()
}

/// Makes all of the guest's memory on `node-a` large folios.
fn make_large_at_the_source(world: &World) -> Outcome {
    let memory = memory_on(&world.cluster, "node-a").ok_or("no memory")?;
    let folios = memory.metadata()?.len() / godwit_domain::PAGE_BYTES / u64::from(FOLIO_PAGES);
    assert_eq!(make_large_what_is_there(&memory).len() as u64, folios);
    Ok(())
}

async fn a_guest_of_large_folios_arrives_whole_and_moves_on(world: &mut World) -> Outcome {
    world.three_with(guest_of(64, 8)).await?;
    make_large_at_the_source(world)?;
    let since = monotonic_ns();
    let mut arrived = BTreeSet::new();
    let moved = world
        .migrate("node-b", limited_to(24), async |cluster, _| {
            // While pages are written there.
            arrived.extend(memory_on(cluster, "node-b").iter().flat_map(make_large_what_is_there));
        })
        .await?;
    assert_eq!(world.wrong_pages().await?, 0, "{moved:?}");
    assert!(arrived.len() >= 16, "of 32 these were made large at the target: {arrived:?}");
    let seen = world.ticks_after(since, monotonic_ns(), "node-b").await;
    assert_eq!(seen.lost, 0, "ticks lost or written twice: {seen:?}");
    make_large_what_is_there(&memory_on(&world.cluster, "node-b").ok_or("no memory")?);
    world.move_and_prove("node-c").await?;
    Ok(())
}

/// Makes a large folio at this place and holds on to a page of it.
fn pin(memory: &File, folio: u32) -> io::Result<Pin> {
    let page = PageIndex(folio * FOLIO_PAGES + 20);
    match make_large(memory, page) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            // Nothing of it has come yet, and of nothing no folio is made: zeros are as good as a hole.
            memory.write_all_at(&[0; PAGE_SIZE], page.offset_bytes())?;
            make_large(memory, page)?;
        }
        other => other?,
    }
    Pin::on(memory, page)
}

/// Writes 49 MiB all the time, faster than may be sent, and each page of it rarely enough that what is lost is not soon healed.
fn straddling() -> GuestSpec {
    guest_of(98, 24)
}

async fn what_stays_of_a_folio_with_a_pinned_page_comes_before_the_guest_runs(world: &mut World) -> Outcome {
    world.three_with(straddling()).await?;
    make_large_at_the_source(world)?;
    // 98 MiB take 6 s, and have 5: by then the working set went once, and part of the rest did.
    let how =
        Overrides { allow_post_copy: Some(true), completion_timeout_per_gib: Some(52), ..limited_to(16) };
    let (mut held, mut wrong) = (None, None);
    let (source, post_copy) = goes(world, how.into(), async |cluster, seen| {
        if held.is_none() {
            held = memory_on(cluster, "node-b").map(|memory| pin(&memory, HALF_WRITTEN));
        }
        if is_post_copy(seen) && wrong.is_none() {
            // At once: the guest heals what it writes again.
            wrong = cluster.verify(&guest()).await.ok().map(|verified| verified.wrong);
        }
    })
    .await?;
    let held: Pin = held.ok_or("the memory at the target was never seen")??;
    assert_eq!(wrong, Some(0), "{post_copy:?}");
    // Never all of the folio, and nothing of any other.
    assert!((1..u64::from(FOLIO_PAGES)).contains(&post_copy.stuck_pages), "{source:?} {post_copy:?}");
    // All else came while it ran.
    assert!(post_copy.missing_at_resume_bytes > 0 && post_copy.faults > 0, "{source:?} {post_copy:?}");
    drop(held);
    world.move_and_prove("node-c").await?;
    Ok(())
}
