//! The raw ioctls of userfaultfd and PAGEMAP_SCAN, nothing else.
//!
//! Why not a library: the crates that wrap userfaultfd lack WP_ASYNC, and none has PAGEMAP_SCAN. Numbers and
//! layouts are those of Linux's `include/uapi/linux/{userfaultfd,fs}.h` (6.7 and later).

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// `UFFD_API`.
const UFFD_API: u64 = 0xAA;
const UFFDIO: u8 = 0xAA;

/// What a `UFFDIO_API` asks for and answers.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct UffdioApi {
    pub(crate) api: u64,
    pub(crate) features: u64,
    pub(crate) ioctls: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct UffdioWriteprotect {
    range: UffdioRange,
    mode: u64,
}

/// One run of a PAGEMAP_SCAN: addresses `start..end` and what they have in common.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PageRegion {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) categories: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeroed: i64,
}

const _: () = assert!(size_of::<UffdioCopy>() == 40);
const _: () = assert!(size_of::<UffdioZeropage>() == 32);
const _: () = assert!(size_of::<UffdioRange>() == 16);
const _: () = assert!(size_of::<UffdioApi>() == 24);
const _: () = assert!(size_of::<UffdioRegister>() == 32);
const _: () = assert!(size_of::<UffdioWriteprotect>() == 24);
const _: () = assert!(size_of::<PageRegion>() == 24);
const _: () = assert!(size_of::<PmScanArg>() == 96);

/// `UFFDIO_REGISTER_MODE_MISSING`.
pub(crate) const REGISTER_MODE_MISSING: u64 = 1 << 0;
/// `UFFDIO_REGISTER_MODE_WP`.
pub(crate) const REGISTER_MODE_WP: u64 = 1 << 1;
/// `UFFDIO_WRITEPROTECT_MODE_WP`.
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
/// `PAGE_IS_WRITTEN`.
const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// `PM_SCAN_WP_MATCHING`: protect again, in the same step, exactly what is reported.
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
/// `PM_SCAN_CHECK_WPASYNC`: fail (`EPERM`) where the range is not registered in that mode.
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

/// An ioctl whose argument is a struct that the kernel reads and writes.
struct Update<'a, T, const OPCODE: Opcode>(&'a mut T);

// SAFETY: the argument pointer comes from a live unique reference to a `repr(C)` struct whose size is part of
// OPCODE (each opcode below is computed from the same type), so the kernel reads and writes inside it only.
unsafe impl<T, const OPCODE: Opcode> Ioctl for Update<'_, T, OPCODE> {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

/// `USERFAULTFD_IOC_NEW` on `/dev/userfaultfd`: the argument is the flags by value, the answer a descriptor.
struct NewUserfaultfd(usize);

// SAFETY: the kernel takes the argument as a number and follows no pointer.
unsafe impl Ioctl for NewUserfaultfd {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(UFFDIO, 0x00)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: a non-negative answer of this ioctl is a fresh descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

const OPEN_FLAGS: i32 = 0o2_000_000 | 0o4000; // O_CLOEXEC | O_NONBLOCK

/// Makes a userfaultfd through the device, which asks for no privilege but access to the device.
pub(crate) fn userfaultfd_from_device(device: impl AsFd) -> io::Result<OwnedFd> {
    let flags = usize::try_from(OPEN_FLAGS).map_err(io::Error::other)?;
    // SAFETY: `NewUserfaultfd` passes a number; nothing of ours is read or written.
    Ok(unsafe { ioctl(device, NewUserfaultfd(flags)) }?)
}

/// Makes a userfaultfd by the system call; `user_mode_only` needs no privilege and serves no kernel access.
pub(crate) fn userfaultfd_from_syscall(user_mode_only: bool) -> io::Result<OwnedFd> {
    let mut flags = rustix::mm::UserfaultfdFlags::CLOEXEC | rustix::mm::UserfaultfdFlags::NONBLOCK;
    if user_mode_only {
        // UFFD_USER_MODE_ONLY (5.11); not named by the library.
        flags |= rustix::mm::UserfaultfdFlags::from_bits_retain(1);
    }
    // SAFETY: making a userfaultfd changes no mapping; memory changes only once a range is registered.
    Ok(unsafe { rustix::mm::userfaultfd(flags) }?)
}

/// `UFFDIO_API`: asks for features, answers with what the kernel has.
pub(crate) fn uffdio_api(uffd: impl AsFd, features: u64) -> io::Result<UffdioApi> {
    const OP: Opcode = opcode::read_write::<UffdioApi>(UFFDIO, 0x3F);
    let mut arg = UffdioApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: see `Update`; the opcode is made from the argument's type.
    unsafe { ioctl(uffd, Update::<_, OP>(&mut arg)) }?;
    Ok(arg)
}

/// `UFFDIO_REGISTER` of a range, in one of the modes above.
pub(crate) fn uffdio_register(uffd: impl AsFd, start: u64, len: u64, mode: u64) -> io::Result<()> {
    const OP: Opcode = opcode::read_write::<UffdioRegister>(UFFDIO, 0x00);
    let mut arg = UffdioRegister { range: UffdioRange { start, len }, mode, ioctls: 0 };
    // SAFETY: see `Update`. Registering changes no contents: a store to a protected page is resolved by the kernel, an
    // access to a missing one waits.
    unsafe { ioctl(uffd, Update::<_, OP>(&mut arg)) }?;
    Ok(())
}

/// `UFFDIO_UNREGISTER` of a range.
pub(crate) fn uffdio_unregister(uffd: impl AsFd, start: u64, len: u64) -> io::Result<()> {
    const OP: Opcode = opcode::read::<UffdioRange>(UFFDIO, 0x01);
    let mut arg = UffdioRange { start, len };
    // SAFETY: see `Update`; the kernel only reads the range.
    unsafe { ioctl(uffd, Update::<_, OP>(&mut arg)) }?;
    Ok(())
}

/// `UFFDIO_WRITEPROTECT`: protects a range, holes included where WP_UNPOPULATED was asked for.
pub(crate) fn uffdio_writeprotect(uffd: impl AsFd, start: u64, len: u64) -> io::Result<()> {
    const OP: Opcode = opcode::read_write::<UffdioWriteprotect>(UFFDIO, 0x06);
    let mut arg = UffdioWriteprotect { range: UffdioRange { start, len }, mode: WRITEPROTECT_MODE_WP };
    // SAFETY: see `Update`.
    unsafe { ioctl(uffd, Update::<_, OP>(&mut arg)) }?;
    Ok(())
}

/// `PAGEMAP_SCAN` for written pages in `start..end`, protecting again what it reports. Answers how many
/// regions were filled and where the walk stopped.
pub(crate) fn pagemap_scan_written(
    pagemap: impl AsFd,
    start: u64,
    end: u64,
    regions: &mut [PageRegion],
) -> io::Result<(usize, u64)> {
    const OP: Opcode = opcode::read_write::<PmScanArg>(b'f', 16);
    let mut arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        start,
        end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        // Only this mask: others miss pages that were zapped and written, on kernels without two fixes of 2026.
        category_mask: PAGE_IS_WRITTEN,
        return_mask: PAGE_IS_WRITTEN,
        ..PmScanArg::default()
    };
    // SAFETY: see `Update`; `vec` and `vec_len` describe `regions`, which is borrowed mutably until the end of
    // the call, and every bit pattern is a valid `PageRegion`.
    let filled = unsafe { ioctl(pagemap, Update::<_, OP>(&mut arg)) }?;
    let filled = usize::try_from(filled).map_err(|_| Errno::INVAL)?;
    Ok((filled.min(regions.len()), arg.walk_end))
}

/// How far a `UFFDIO_COPY` or `UFFDIO_ZEROPAGE` has come, in bytes, and why not further.
pub(crate) type Filled = (u64, Option<Errno>);

/// `UFFDIO_COPY`: places bytes where nothing is, at `dst` of the memory that the userfaultfd is of, and wakes who waits
/// for them.
pub(crate) fn uffdio_copy(uffd: impl AsFd, dst: u64, bytes: &[u8]) -> Filled {
    const OP: Opcode = opcode::read_write::<UffdioCopy>(UFFDIO, 0x03);
    let (src, len) = (bytes.as_ptr() as u64, bytes.len() as u64);
    let mut arg = UffdioCopy { dst, src, len, mode: 0, copied: 0 };
    // SAFETY: see `Update`; the kernel reads `len` bytes at `src`, which is `bytes`, borrowed until the end of the call.
    // It writes only into memory that is registered with this userfaultfd, which no reference of ours points to.
    let outcome = unsafe { ioctl(uffd, Update::<_, OP>(&mut arg)) };
    filled(outcome.err(), arg.copied, len)
}

/// `UFFDIO_ZEROPAGE`: as [`uffdio_copy`], with zeros.
pub(crate) fn uffdio_zeropage(uffd: impl AsFd, start: u64, len: u64) -> Filled {
    const OP: Opcode = opcode::read_write::<UffdioZeropage>(UFFDIO, 0x04);
    let mut arg = UffdioZeropage { range: UffdioRange { start, len }, mode: 0, zeroed: 0 };
    // SAFETY: see `Update` and `uffdio_copy`; no memory of ours is read.
    let outcome = unsafe { ioctl(uffd, Update::<_, OP>(&mut arg)) };
    filled(outcome.err(), arg.zeroed, len)
}

/// Where it failed at once the count is the negative error number, which is no progress.
fn filled(error: Option<Errno>, done: i64, len: u64) -> Filled {
    match error {
        None => (len, None),
        Some(errno) => (u64::try_from(done).unwrap_or(0).min(len), Some(errno)),
    }
}

/// `UFFDIO_WAKE`: whoever waits for a page of this range looks again.
pub(crate) fn uffdio_wake(uffd: impl AsFd, start: u64, len: u64) -> io::Result<()> {
    const OP: Opcode = opcode::read::<UffdioRange>(UFFDIO, 0x02);
    let mut arg = UffdioRange { start, len };
    // SAFETY: see `Update`; the kernel only reads the range.
    unsafe { ioctl(uffd, Update::<_, OP>(&mut arg)) }?;
    Ok(())
}

/// Bytes of one event (`struct uffd_msg`).
pub(crate) const EVENT_BYTES: usize = 32;
/// `UFFD_EVENT_PAGEFAULT`.
pub(crate) const EVENT_PAGEFAULT: u8 = 0x12;
/// Where the faulting address stands in it.
pub(crate) const EVENT_ADDRESS_AT: usize = 16;
