//! Large folios of a memory, made and held fast on purpose. For tests alone: nothing here is in a real build.
//!
//! ```text
//!   make_large ─▶ 512 pages become one folio ─▶ Pin: a pipe holds one page of it ─▶ a punch zeroes its pages and frees none
//! ```
//!
//! Always true: no setting of the system is touched; the kernel makes large folios where it is asked to (`MADV_COLLAPSE`)
//! whatever is set for those that it makes by itself. What is pinned is let go when its [`Pin`] is dropped.

use std::ffi::c_void;
use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::ptr;

use godwit_domain::{PAGE_BYTES, PAGE_SIZE, PageIndex};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::pipe::{SpliceFlags, splice};

#[cfg(test)]
mod tests;

/// Pages of a large folio: 2 MiB.
pub const FOLIO_PAGES: u32 = 512;
const FOLIO_BYTES: usize = FOLIO_PAGES as usize * PAGE_SIZE;
/// How often the kernel is asked: whoever reads or writes a page at the same moment keeps it from doing so.
const TRIES_MAX: u32 = 1000;

/// Makes one large folio of those 2 MiB of a memory file that hold this page, of which at least one page must be there;
/// holes in it become zeros that are there. Errors: the kernel's, most likely `EINVAL` where it may not (somebody would wait for one of its holes, nothing of it
/// is there, it does not lie within the file) and `EAGAIN`, `EBUSY` or `ENOMEM` where it can not.
pub fn make_large(file: impl AsFd, holding: PageIndex) -> io::Result<()> {
    let first = PageIndex(holding.0 / FOLIO_PAGES * FOLIO_PAGES);
    let window = Window::onto(file, first.offset_bytes())?;
    let mut tries = 0;
    loop {
        match window.collapse() {
            Err(Errno::AGAIN | Errno::BUSY | Errno::INTR) if tries < TRIES_MAX => {
                tries += 1;
                std::thread::yield_now();
            }
            other => return Ok(other?),
        }
    }
}

/// A page that somebody holds on to, as a device does that reads from it. While it is held, its folio can not be split.
#[derive(Debug)]
pub struct Pin {
    _holder: PipeReader,
}

impl Pin {
    /// Holds on to a page of a memory file. An error if it is a hole, which nobody can hold.
    pub fn on(file: impl AsFd, page: PageIndex) -> io::Result<Self> {
        let offset = page.offset_bytes();
        let is_data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(offset)) == Ok(offset);
        if !is_data {
            return Err(io::Error::other(format!("page {} is a hole", page.0)));
        }
        let (holder, held) = io::pipe()?;
        let spliced = splice(&file, Some(&mut offset.clone()), &held, None, PAGE_SIZE, SpliceFlags::empty())?;
        if spliced != PAGE_SIZE {
            return Err(io::Error::other(format!("{spliced} bytes of page {} were taken", page.0)));
        }
        Ok(Self { _holder: holder })
    }
}

/// A mapping of one folio's worth of a file, at an address where the processor could map it whole. It is only read.
struct Window {
    reserved: *mut c_void,
    folio: *mut c_void,
}

impl Window {
    const RESERVED_BYTES: usize = 2 * FOLIO_BYTES;

    fn onto(file: impl AsFd, offset: u64) -> io::Result<Self> {
        debug_assert_eq!(offset % (u64::from(FOLIO_PAGES) * PAGE_BYTES), 0);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address the kernel chooses replaces no other one, and can not be accessed.
        let reserved = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), Self::RESERVED_BYTES, ProtFlags::empty(), flags)?
        };
        // Dropped, and the reservation with it, if the next step fails.
        let mut window = Self {
            reserved,
            folio: reserved.wrapping_byte_add(reserved.addr().wrapping_neg() % FOLIO_BYTES),
        };
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the range lies within the reservation, which is ours alone: one folio, begun less than a folio behind the
        // beginning of a reservation of two. Nothing is read through it, so a file that shrinks does no harm.
        window.folio =
            unsafe { rustix::mm::mmap(window.folio, FOLIO_BYTES, ProtFlags::READ, flags, file, offset)? };
        Ok(window)
    }

    fn collapse(&self) -> Result<(), Errno> {
        // Why not safe, and not rustix: its advices lack this one.
        // SAFETY: the range is the one that `onto` mapped; the advice changes no content.
        let outcome = unsafe { libc::madvise(self.folio, FOLIO_BYTES, libc::MADV_COLLAPSE) };
        if outcome == 0 {
            return Ok(());
        }
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `onto` reserved, and no pointer into it is left.
        let _ = unsafe { rustix::mm::munmap(self.reserved, Self::RESERVED_BYTES) };
    }
}
