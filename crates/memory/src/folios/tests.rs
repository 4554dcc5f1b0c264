//! What a memory of large folios does, on the kernel that is here.
//!
//! Always true: each fact is asked of a memory file as a runner makes it, whose folios were made large, and of a file on a
//! tmpfs whose folios are large by themselves (`huge=always`), mounted nowhere and gone with its last descriptor.

use std::os::fd::AsFd;

use godwit_domain::{PAGE_SIZE, PageCount, PageIndex, PageRun};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::{FOLIO_PAGES, Pin, make_large};
use crate::ram::PAGE_WORDS;
use crate::{Faults, Memfd, PageSet, Ram, Tracker, Userfaultfd};

/// Three folios.
const PAGES: PageCount = PageCount(3 * FOLIO_PAGES);
/// A page of the middle one.
const PINNED: PageIndex = PageIndex(FOLIO_PAGES + 20);

/// Says why a test that needs something of its machine did not run; fails where tests must run.
fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
    assert!(
        std::env::var_os("GODWIT_TESTS_MUST_RUN").is_none_or(|must| must != "1"),
        "must run here, but {why}"
    );
}

/// An empty memory on a tmpfs of its own. `None`: not here, which was said.
fn on_tmpfs() -> Option<Memfd> {
    let make = || {
        let tmpfs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&tmpfs, "huge", "always")?;
        rustix::mount::fsconfig_create(&tmpfs)?;
        let root = rustix::mount::fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&root, ".", flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::ftruncate(&file, PAGES.bytes())?;
        Ok::<_, rustix::io::Errno>(Memfd::of(file, PAGES))
    };
    match make() {
        Ok(memory) => Some(memory),
        Err(error) => {
            skip(&format!("a tmpfs with huge=always can not be mounted ({error}); it takes root"));
            None
        }
    }
}

fn word_of(page: u32) -> u64 {
    0x1000_0000_0000 + u64::from(page)
}

fn page_of(word: u64) -> Vec<u8> {
    word.to_ne_bytes().repeat(PAGE_WORDS)
}

fn word(ram: &Ram, page: u32) -> u64 {
    let mut words = [0; PAGE_WORDS];
    ram.read_page(PageIndex(page), &mut words);
    words[0]
}

/// Full memories of three large folios each.
fn large() -> impl Iterator<Item = (&'static str, Memfd)> {
    let made = Memfd::create("test", PAGES).expect("memfd");
    let all = [("made large", Some(made)), ("huge=always", on_tmpfs())];
    all.into_iter().filter_map(|(name, memory)| Some((name, memory?))).inspect(|(name, memory)| {
        (0..PAGES.0).for_each(|page| memory.write(PageIndex(page), &page_of(word_of(page))).expect("write"));
        if *name == "made large" {
            let folios = (0..PAGES.0).step_by(FOLIO_PAGES as usize);
            folios.for_each(|first| make_large(memory, PageIndex(first)).expect("a large folio"));
        }
    })
}

fn registered(memory: &Memfd, ram: &Ram) -> Faults {
    let (uffd, _) = Userfaultfd::open_for_builtin().expect("userfaultfd");
    Faults::register(uffd, ram.address(), memory.pages().bytes()).expect("register")
}

fn pages_of(runs: &[PageRun]) -> PageSet {
    let mut set = PageSet::empty(PAGES);
    runs.iter().for_each(|run| set.insert_run(*run));
    set
}

#[test]
fn what_is_punched_of_a_pinned_folio_is_zeroed_and_stays_and_is_told() {
    // Beside the pinned page, across the folio's end, and in one of which nobody holds a page.
    let punched = [
        PageRun::new(FOLIO_PAGES, 5),
        PageRun::new(FOLIO_PAGES + 30, 2),
        PageRun::new(2 * FOLIO_PAGES - 1, 2),
        PageRun::new(2 * FOLIO_PAGES + 100, 3),
    ];
    let stays = [
        PageRun::new(FOLIO_PAGES, 5),
        PageRun::new(FOLIO_PAGES + 30, 2),
        PageRun::new(2 * FOLIO_PAGES - 1, 1),
    ];
    for (name, memory) in large() {
        let ram = Ram::map(&memory).expect("map");
        let pin = Pin::on(&memory, PINNED).expect("pin");
        assert_eq!(memory.punch_and_check(&punched).expect("punch"), stays, "{name}");
        let lost = pages_of(&punched);
        for page in 0..PAGES.0 {
            let mut read = vec![0; PAGE_SIZE];
            memory.read(PageIndex(page), &mut read).expect("read");
            let holds = if lost.contains(PageIndex(page)) { 0 } else { word_of(page) };
            assert_eq!(read, page_of(holds), "{name}: page {page}");
        }
        drop(pin);
        assert_eq!(memory.punch_and_check(&punched).expect("punch"), [], "{name}: once it is let go");
        assert_eq!(word(&ram, PINNED.0), word_of(PINNED.0), "{name}: what was held is as it was");
    }
}

#[test]
fn what_stayed_is_written_and_what_is_missing_is_placed() {
    let (stuck, missing) = (PageRun::new(FOLIO_PAGES, 5), PageRun::new(100, 3));
    for (name, memory) in large() {
        let ram = Ram::map(&memory).expect("map");
        let _pin = Pin::on(&memory, PINNED).expect("pin");
        let faults = registered(&memory, &ram);
        assert_eq!(memory.punch_and_check(&[missing, stuck]).expect("punch"), [stuck], "{name}");
        assert_eq!(memory.holes().expect("seek"), pages_of(&[missing]), "{name}: nothing else has gone");

        let come: Vec<u8> = (0..5).flat_map(|page| page_of(70 + page)).collect();
        faults.fill(stuck.first, &come).expect("fill");
        assert_eq!(
            word(&ram, stuck.first.0),
            0,
            "{name}: it is there, so it is not placed, and nobody waits"
        );
        memory.write(stuck.first, &come).expect("write");
        faults.fill(missing.first, &come[..3 * PAGE_SIZE]).expect("fill");

        let here = |run: PageRun| run.pages().map(|page| word(&ram, page.0)).collect::<Vec<_>>();
        assert_eq!((here(missing), here(stuck)), (vec![70, 71, 72], vec![70, 71, 72, 73, 74]), "{name}");
        for page in [0, 99, 103, FOLIO_PAGES + 5, PINNED.0, PAGES.0 - 1] {
            assert_eq!(word(&ram, page), word_of(page), "{name}: page {page}, which never went");
        }
        let mut waited_for = 0;
        faults.read(|_| waited_for += 1).expect("read");
        assert_eq!(waited_for, 0, "{name}: nobody had to wait");
        assert!(memory.holes().expect("seek").is_empty(), "{name}");
    }
}

#[test]
fn one_page_is_written_and_its_neighbours_are_no_holes_any_more_but_one_is_placed_alone() {
    let Some(memory) = on_tmpfs() else { return };
    let ram = Ram::map(&memory).expect("map");
    let faults = registered(&memory, &ram);
    faults.fill(PageIndex(10), &page_of(1)).expect("fill");
    faults.fill_zero(PageRun::new(12, 1)).expect("fill");
    let mut holes = memory.holes().expect("seek");
    assert_eq!(
        holes.runs().collect::<Vec<_>>(),
        [PageRun::new(0, 10), PageRun::new(11, 1), PageRun::new(13, PAGES.0 - 13)]
    );
    memory.write(PINNED, &page_of(1)).expect("write");
    holes.remove_run(PageRun::new(FOLIO_PAGES, FOLIO_PAGES));
    assert_eq!(
        memory.holes().expect("seek"),
        holes,
        "which is why a missing page is placed, and never written"
    );
}

#[test]
fn holes_are_filled_by_nobody_once_somebody_would_wait_for_them_but_before_they_may_be() {
    let punched = PageRun::new(FOLIO_PAGES + 7, 9);
    let holes = |memory: &Memfd| memory.holes().expect("seek").len();
    for (name, memory) in large() {
        let ram = Ram::map(&memory).expect("map");
        assert_eq!(memory.punch_and_check(&[punched]).expect("punch"), [], "{name}");
        make_large(&memory, PINNED).expect("a large folio");
        assert_eq!(holes(&memory), PageCount(0), "{name}: zeros took their place");

        let _faults = registered(&memory, &ram);
        assert_eq!(memory.punch_and_check(&[punched]).expect("punch"), [], "{name}");
        make_large(&memory, PINNED).expect_err("a hole that somebody may wait for");
        assert_eq!(holes(&memory), punched.count, "{name}: still holes");
    }
}

#[test]
fn a_kernel_that_makes_large_folios_by_itself_passes_the_self_test() {
    let Some(memory) = on_tmpfs() else { return };
    let ram = Ram::map(&memory).expect("map");
    crate::probe::punch_makes_a_hole(&memory, &ram)
        .expect("the punched page is a hole, its neighbours are none");
}

#[test]
fn a_page_that_is_a_hole_can_not_be_pinned() {
    let memory = Memfd::create("test", PAGES).expect("memfd");
    memory.write(PageIndex(3), &page_of(1)).expect("write");
    let error = Pin::on(&memory, PageIndex(2)).expect_err("a hole").to_string();
    assert!(error.contains("page 2 is a hole"), "{error}");
    Pin::on(memory.as_fd(), PageIndex(3)).expect("pin");
}

#[test]
fn a_pinned_page_that_is_a_folio_of_its_own_becomes_a_hole() {
    let memory = Memfd::create("test", PageCount(16)).expect("memfd");
    memory.write(PageIndex(0), &page_of(1).repeat(16)).expect("write");
    let _pin = Pin::on(&memory, PageIndex(3)).expect("pin");
    let stayed = memory.punch_and_check(&[PageRun::new(2, 3)]).expect("punch");
    // A kernel that is set to make large folios by itself makes one here.
    let large = memory.data_from(PageIndex(2)).expect("seek").is_some_and(|data| data.first == PageIndex(2));
    assert_eq!(stayed.is_empty(), !large);
}

#[test]
fn a_store_into_a_large_folio_is_seen_and_no_page_of_another() {
    for (name, memory) in large() {
        let ram = Ram::map(&memory).expect("map");
        (0..PAGES.0).for_each(|page| assert_eq!(word(&ram, page), word_of(page), "{name}"));
        let (uffd, _) = Userfaultfd::open_for_builtin().expect("userfaultfd");
        let pagemap = crate::uffd::open_own_pagemap().expect("pagemap");
        let mut tracker = Tracker::arm(uffd, pagemap, ram.address(), PAGES.bytes()).expect("arm");
        let mut scan = || {
            let mut set = PageSet::empty(PAGES);
            tracker.scan(|run| set.insert_run(run)).expect("scan");
            set
        };
        assert!(scan().is_empty(), "{name}: nothing was written");
        // Twice: the second time after a scan that has protected them again.
        for version in 1..=2 {
            let written =
                pages_of(&[PageRun::new(5, 1), PageRun::new(700, 3), PageRun::new(FOLIO_PAGES - 1, 1)]);
            for page in written.runs().flat_map(PageRun::pages) {
                ram.write_page(page, &[version; PAGE_WORDS]);
            }
            let seen = scan();
            for page in written.runs().flat_map(PageRun::pages) {
                assert!(seen.contains(page), "{name}: page {} was written", page.0);
            }
            let beside = seen.runs().flat_map(PageRun::pages).find(|page| page.0 >= 2 * FOLIO_PAGES);
            assert_eq!(beside, None, "{name}: a page of a folio that nobody wrote to");
            assert!(scan().is_empty(), "{name}: seen once");
        }
    }
}
