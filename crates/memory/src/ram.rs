//! The mapping of guest RAM in the runner's own process: the only place where a page is touched through memory.
//!
//! Why not safe: the built-in guest must *store* to its RAM as a machine would, so that the kernel's write
//! protection sees it; a `pwrite` is invisible to dirty tracking. No Rust reference to guest memory is ever
//! made: the node's process reads and writes the same pages at the same time.

use std::os::fd::AsFd;
use std::ptr::{self, NonNull};

use godwit_domain::{PAGE_SIZE, PageCount, PageIndex};
use rustix::mm::{MapFlags, ProtFlags};

use crate::memfd::Memfd;

/// Words of 8 bytes in a page.
pub const PAGE_WORDS: usize = PAGE_SIZE / 8;

/// Guest RAM mapped shared and writable. Unmapped when dropped.
#[derive(Debug)]
pub struct Ram {
    base: NonNull<u8>,
    pages: PageCount,
}

// SAFETY: `Ram` is an address range and a length. All access goes through raw volatile loads and stores of
// single words, never through references, so threads may share it; what they write to the same page at the
// same time is torn, as on real hardware, and never undefined to the compiler beyond those words.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Maps all of a memory file. Errors: `mmap`'s, most likely `ENOMEM`.
    pub fn map(memory: &Memfd) -> std::io::Result<Self> {
        let pages = memory.pages();
        let bytes = usize::try_from(pages.bytes()).map_err(std::io::Error::other)?;
        // SAFETY: a fresh shared mapping at an address the kernel chooses replaces no other mapping. The file
        // is sealed against shrinking, so no page inside it can be cut off later (no SIGBUS).
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memory.as_fd(),
                0,
            )?
        };
        let base =
            NonNull::new(base.cast::<u8>()).ok_or_else(|| std::io::Error::other("mmap returned null"))?;
        Ok(Self { base, pages })
    }

    /// Where it is mapped in this process.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Its size.
    pub fn pages(&self) -> PageCount {
        self.pages
    }

    /// Stores a whole page, word by word.
    ///
    /// # Panics
    /// If the page lies outside: an index of ours is wrong, and going on would write over something else.
    pub fn write_page(&self, page: PageIndex, words: &[u64; PAGE_WORDS]) {
        let base = self.page_base(page);
        for (i, word) in words.iter().enumerate() {
            let at = base.wrapping_add(i);
            // SAFETY: `page_base` proved that the page lies inside the mapping, which lives as long as `self`;
            // `i` is below PAGE_WORDS and the mapping is page-aligned, so the word is inside and aligned.
            unsafe { at.write_volatile(*word) };
        }
    }

    /// Loads a whole page, word by word.
    ///
    /// # Panics
    /// As [`Self::write_page`].
    pub fn read_page(&self, page: PageIndex, words: &mut [u64; PAGE_WORDS]) {
        let base = self.page_base(page);
        for (i, word) in words.iter_mut().enumerate() {
            let at = base.wrapping_add(i);
            // SAFETY: as in `write_page`; a volatile load takes whatever is there.
            *word = unsafe { at.read_volatile() };
        }
    }

    fn page_base(&self, page: PageIndex) -> *mut u64 {
        assert!(page.0 < self.pages.0, "page {} is outside a RAM of {} pages", page.0, self.pages.0);
        self.base.as_ptr().wrapping_add(page.0 as usize * PAGE_SIZE).cast::<u64>()
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `map` made; nothing else holds a pointer into it once `self` goes.
        // A failing munmap leaks the range, which is harmless.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.pages.0 as usize * PAGE_SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_seen_by_the_file_and_by_a_load() {
        let memory = Memfd::create("test", PageCount(3)).expect("memfd");
        let ram = Ram::map(&memory).expect("map");
        ram.write_page(PageIndex(1), &[0x0102_0304_0506_0708; PAGE_WORDS]);
        let mut words = [0; PAGE_WORDS];
        ram.read_page(PageIndex(1), &mut words);
        assert_eq!(words, [0x0102_0304_0506_0708; PAGE_WORDS]);
        let mut bytes = vec![0; PAGE_SIZE];
        memory.read(PageIndex(1), &mut bytes).expect("pread");
        assert_eq!(bytes[..8], 0x0102_0304_0506_0708_u64.to_ne_bytes());
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_page_outside_is_never_touched() {
        let memory = Memfd::create("test", PageCount(1)).expect("memfd");
        Ram::map(&memory).expect("map").write_page(PageIndex(1), &[0; PAGE_WORDS]);
    }
}
