//! Pages that are not here yet, while the guest runs.
//!
//! ```text
//!   register ─▶ the guest touches a hole ─▶ it waits, and its page is an event ─▶ read
//!                                            somebody fills the page ─▶ the kernel wakes it
//! ```
//!
//! Always true:
//! - from [`Faults::register`] on, an access to a hole waits until the hole is filled, whoever lives or dies, as long as
//!   the runner keeps its userfaultfd open (**Law**);
//! - the kernel arbitrates: a page that is there is never written over. What was there first stays, and who waits is woken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use godwit_domain::{PAGE_BYTES, PAGE_SIZE, PageIndex, PageRun};
use rustix::io::Errno;

use crate::sys::{self, EVENT_ADDRESS_AT, EVENT_BYTES, EVENT_PAGEFAULT, Filled};
use crate::uffd::{UffdError, Userfaultfd};

/// Events that are read at once: more than a guest has threads.
const EVENTS_AT_ONCE: usize = 64;
/// How often a fill that does not get on is tried again. The kernel asks for it while the runner's mappings change, which
/// takes microseconds.
const TRIES_MAX: u32 = 100_000;

/// The missing pages of one guest, from outside its process.
#[derive(Debug)]
pub struct Faults {
    uffd: Userfaultfd,
    address: u64,
    bytes: u64,
}

impl Faults {
    /// From now on whoever touches a hole of `bytes` at `address` of the process that made `uffd` waits. Done again it
    /// changes nothing.
    pub fn register(uffd: Userfaultfd, address: u64, bytes: u64) -> Result<Self, UffdError> {
        uffd.enable_tracking()?;
        uffd.register_missing(address, bytes)?;
        Ok(Self { uffd, address, bytes })
    }

    /// Reads, without waiting, for which pages somebody has begun to wait. A page may come more than once.
    pub fn read(&self, mut each: impl FnMut(PageIndex)) -> io::Result<()> {
        loop {
            let mut events = [0; EVENT_BYTES * EVENTS_AT_ONCE];
            let read = match rustix::io::read(&self.uffd, &mut events) {
                Ok(read) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in events.get(..read).unwrap_or_default().chunks_exact(EVENT_BYTES) {
                let address = event.get(EVENT_ADDRESS_AT..).and_then(|rest| rest.first_chunk());
                if let (Some(&EVENT_PAGEFAULT), Some(address)) = (event.first(), address) {
                    let offset = u64::from_ne_bytes(*address).saturating_sub(self.address);
                    each(PageIndex(u32::try_from(offset / PAGE_BYTES).unwrap_or(u32::MAX)));
                }
            }
            if read < EVENT_BYTES * EVENTS_AT_ONCE {
                return Ok(());
            }
        }
    }

    /// Fills whole pages from `first` on with `from`; what is there already stays.
    pub fn fill(&self, first: PageIndex, from: &[u8]) -> Result<(), UffdError> {
        let whole = PageRun::new(first.0, u32::try_from(from.len() / PAGE_SIZE).unwrap_or(u32::MAX));
        self.fill_with(whole, "UFFDIO_COPY", |address, done| {
            let begin = usize::try_from(done).unwrap_or(usize::MAX);
            sys::uffdio_copy(&self.uffd, address + done, from.get(begin..).unwrap_or_default())
        })
    }

    /// Fills a run with zeros; what is there already stays.
    pub fn fill_zero(&self, run: PageRun) -> Result<(), UffdError> {
        let bytes = run.count.bytes();
        self.fill_with(run, "UFFDIO_ZEROPAGE", |address, done| {
            sys::uffdio_zeropage(&self.uffd, address + done, bytes - done)
        })
    }

    /// `EEXIST`: that page is there, whoever waits for it is woken, and it goes on behind it. `EAGAIN`: it has come only
    /// so far.
    fn fill_with(
        &self,
        run: PageRun,
        what: &'static str,
        mut fill: impl FnMut(u64, u64) -> Filled,
    ) -> Result<(), UffdError> {
        let failed = |source: io::Error| UffdError::Ioctl { what, source };
        if run.end() * PAGE_BYTES > self.bytes {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "outside the guest's memory")));
        }
        let address = self.address + run.first.offset_bytes();
        let (mut done, mut idle) = (0, 0);
        while done < run.count.bytes() {
            let (filled, problem) = fill(address, done);
            done += filled;
            idle = if filled > 0 { 0 } else { idle + 1 };
            match problem {
                None => {}
                Some(Errno::EXIST) => {
                    sys::uffdio_wake(&self.uffd, address + done, PAGE_BYTES).map_err(failed)?;
                    done += PAGE_BYTES;
                }
                Some(Errno::AGAIN | Errno::INTR) if idle < TRIES_MAX => std::thread::yield_now(),
                Some(error) => return Err(failed(error.into())),
            }
        }
        Ok(())
    }

    /// Nobody waits for a page any more: what is a hole reads as zeros. Only when every page is here.
    pub fn unregister(&self) -> Result<(), UffdError> {
        self.uffd.unregister(self.address, self.bytes)
    }
}

impl AsFd for Faults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::PAGE_WORDS;
    use crate::{Memfd, PageSet, Ram, Tracker};
    use godwit_domain::PageCount;

    const PAGES: PageCount = PageCount(64);

    fn registered() -> (Memfd, Ram, Faults) {
        let memory = Memfd::create("test", PAGES).expect("memfd");
        let ram = Ram::map(&memory).expect("map");
        let (uffd, _) = Userfaultfd::open_for_builtin().expect("userfaultfd");
        let faults = Faults::register(uffd, ram.address(), PAGES.bytes()).expect("register");
        (memory, ram, faults)
    }

    fn word(ram: &Ram, page: u32) -> u64 {
        let mut words = [0; PAGE_WORDS];
        ram.read_page(PageIndex(page), &mut words);
        words[0]
    }

    fn page_of(word: u64) -> Vec<u8> {
        word.to_ne_bytes().repeat(PAGE_WORDS)
    }

    fn until_waited_for(faults: &Faults, pages: usize) -> Vec<u32> {
        let mut waited_for = Vec::new();
        while waited_for.len() < pages {
            faults.read(|page| waited_for.push(page.0)).expect("read");
            std::thread::yield_now();
        }
        waited_for.sort_unstable();
        waited_for
    }

    #[test]
    fn whoever_touches_a_hole_waits_until_it_is_filled() {
        let (memory, ram, faults) = registered();
        memory.write(PageIndex(4), &page_of(4)).expect("write");
        assert_eq!(word(&ram, 4), 4, "what is there is read at once");
        std::thread::scope(|scope| {
            let readers: Vec<_> = [7, 63]
                .into_iter()
                .map(|page| {
                    scope.spawn({
                        let ram = &ram;
                        move || word(ram, page)
                    })
                })
                .collect();
            assert_eq!(until_waited_for(&faults, 2), [7, 63]);
            assert!(readers.iter().all(|reader| !reader.is_finished()));
            faults.fill(PageIndex(7), &page_of(77)).expect("fill");
            faults.fill_zero(PageRun::new(63, 1)).expect("fill");
            let read: Vec<u64> = readers.into_iter().map(|reader| reader.join().expect("reads")).collect();
            assert_eq!(read, [77, 0]);
        });
        let mut more = 0;
        faults.read(|_| more += 1).expect("read");
        assert_eq!(more, 0, "nobody waits any more");
    }

    #[test]
    fn what_is_there_is_never_written_over() {
        let (memory, ram, faults) = registered();
        memory.write(PageIndex(2), &page_of(2)).expect("write");
        memory.seal_against_other_writers().expect("seal");
        faults.fill(PageIndex(5), &page_of(5)).expect("a sealed memory is filled all the same");
        let run: Vec<u8> = (0..8).flat_map(|_| page_of(9)).collect();
        faults.fill(PageIndex(0), &run).expect("fill around what is there");
        assert_eq!((0..8).map(|page| word(&ram, page)).collect::<Vec<_>>(), [9, 9, 2, 9, 9, 5, 9, 9]);
        faults.fill_zero(PageRun::new(0, 10)).expect("fill around what is there");
        assert_eq!((6..10).map(|page| word(&ram, page)).collect::<Vec<_>>(), [9, 9, 0, 0]);
        assert!(faults.fill(PageIndex(63), &run).is_err(), "outside");
    }

    #[test]
    fn a_page_that_is_filled_by_two_wakes_who_waits() {
        let (_memory, ram, faults) = registered();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| word(&ram, 3));
            assert_eq!(until_waited_for(&faults, 1), [3]);
            faults.fill(PageIndex(3), &page_of(1)).expect("fill");
            faults.fill(PageIndex(3), &page_of(2)).expect("again");
            assert_eq!(reader.join().expect("reads"), 1);
        });
    }

    #[test]
    fn another_process_takes_over_and_tracks_afterwards() {
        let (memory, ram, faults) = registered();
        let pagemap = crate::uffd::open_own_pagemap().expect("pagemap");
        let copy = || Userfaultfd::from_handed_over(faults.as_fd().try_clone_to_owned().expect("dup"));
        let again = Faults::register(copy(), ram.address(), PAGES.bytes()).expect("register again");
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| word(&ram, 1));
            assert_eq!(until_waited_for(&faults, 1), [1], "read by one that dies");
            assert_eq!(memory.holes().expect("seek").len(), PAGES);
            again.fill(PageIndex(1), &page_of(11)).expect("fill");
            assert_eq!(reader.join().expect("reads"), 11);
        });
        again.unregister().expect("unregister");
        assert_eq!(word(&ram, 2), 0, "nobody waits any more");
        let mut tracker = Tracker::arm(copy(), pagemap, ram.address(), PAGES.bytes()).expect("arm");
        ram.write_page(PageIndex(9), &[1; PAGE_WORDS]);
        let mut written = PageSet::empty(PAGES);
        tracker.scan(|run| written.insert_run(run)).expect("scan");
        assert_eq!(written.runs().collect::<Vec<_>>(), [PageRun::new(9, 1)]);
    }
}
