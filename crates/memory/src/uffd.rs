//! The userfaultfd: made by the runner's process for its own memory, handed to the node, used by the node.
//!
//! **Law.** The runner keeps its own copy open. A userfaultfd whose last copy closes lets the guest read zeros
//! where pages are missing; with a copy open, a guest whose node died waits.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::sys;

/// `UFFD_FEATURE_*` bits that dirty tracking needs, with the kernel that brought each.
const TRACKING: [(u64, &str); 4] = [
    (1 << 0, "PAGEFAULT_FLAG_WP (Linux 5.7)"),
    (1 << 12, "WP_HUGETLBFS_SHMEM (Linux 5.19)"),
    (1 << 13, "WP_UNPOPULATED (Linux 6.4)"),
    (1 << 15, "WP_ASYNC (Linux 6.7)"),
];

/// Why there is no usable userfaultfd.
#[derive(Debug, thiserror::Error)]
pub enum UffdError {
    /// None of the ways to make one worked.
    #[error(
        "no userfaultfd: /dev/userfaultfd: {device}; system call: {syscall}; give this user access to \
         /dev/userfaultfd (in a container: --device /dev/userfaultfd)"
    )]
    Denied {
        /// What the device said.
        device: io::Error,
        /// What the system call said.
        syscall: io::Error,
    },
    /// The kernel lacks features.
    #[error("this kernel's userfaultfd lacks {0}; dirty tracking from outside needs Linux 6.7 or later")]
    Missing(String),
    /// An ioctl failed.
    #[error("userfaultfd {what}")]
    Ioctl {
        /// Which one.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How a userfaultfd came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// By `/dev/userfaultfd`.
    Device,
    /// By the system call.
    Syscall,
    /// By the system call for user mode alone: enough for a guest that makes no system call on its RAM.
    SyscallUserModeOnly,
}

/// A userfaultfd.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
}

impl Userfaultfd {
    /// Makes one that serves any guest: by the device, else by the system call.
    pub fn open() -> Result<(Self, Origin), UffdError> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(0o2_000_000) // O_CLOEXEC
            .open("/dev/userfaultfd")
            .and_then(sys::userfaultfd_from_device);
        let device = match device {
            Ok(fd) => return Ok((Self { fd }, Origin::Device)),
            Err(error) => error,
        };
        match sys::userfaultfd_from_syscall(false) {
            Ok(fd) => Ok((Self { fd }, Origin::Syscall)),
            Err(syscall) => Err(UffdError::Denied { device, syscall }),
        }
    }

    /// As [`Self::open`], and at last for user mode only. For the built-in runner alone, which makes no system
    /// call on its RAM: so an ordinary user needs no privilege at all.
    pub fn open_for_builtin() -> Result<(Self, Origin), UffdError> {
        Self::open().or_else(|denied| match sys::userfaultfd_from_syscall(true) {
            Ok(fd) => Ok((Self { fd }, Origin::SyscallUserModeOnly)),
            Err(_) => Err(denied),
        })
    }

    /// Takes one that a runner handed over.
    pub fn from_handed_over(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Agrees on the features that dirty tracking needs. Once per userfaultfd: the kernel answers `EINVAL` the
    /// second time, which is what a restarted node meets, and fine (a descriptor without the features is found
    /// by the first scan, `EPERM`).
    pub(crate) fn enable_tracking(&self) -> Result<(), UffdError> {
        let features = TRACKING.iter().map(|(bit, _)| bit).sum();
        match sys::uffdio_api(&self.fd, features) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                missing_features().map_or(Ok(()), |missing| Err(UffdError::Missing(missing)))
            }
            Err(source) => Err(UffdError::Ioctl { what: "UFFDIO_API", source }),
        }
    }

    /// Registers a range of the runner's address space for write protection.
    pub(crate) fn register_wp(&self, start: u64, bytes: u64) -> Result<(), UffdError> {
        sys::uffdio_register(&self.fd, start, bytes, sys::REGISTER_MODE_WP)
            .map_err(|source| UffdError::Ioctl { what: "UFFDIO_REGISTER (write protection)", source })
    }

    /// Registers a range for missing pages: an access to a hole waits until somebody fills it. Again: no change.
    pub(crate) fn register_missing(&self, start: u64, bytes: u64) -> Result<(), UffdError> {
        sys::uffdio_register(&self.fd, start, bytes, sys::REGISTER_MODE_MISSING)
            .map_err(|source| UffdError::Ioctl { what: "UFFDIO_REGISTER (missing pages)", source })
    }

    /// Ends the registration of a range: no write to it faults any more.
    pub(crate) fn unregister(&self, start: u64, bytes: u64) -> Result<(), UffdError> {
        sys::uffdio_unregister(&self.fd, start, bytes)
            .map_err(|source| UffdError::Ioctl { what: "UFFDIO_UNREGISTER", source })
    }

    /// Write-protects a registered range.
    pub(crate) fn write_protect(&self, start: u64, bytes: u64) -> Result<(), UffdError> {
        sys::uffdio_writeprotect(&self.fd, start, bytes)
            .map_err(|source| UffdError::Ioctl { what: "UFFDIO_WRITEPROTECT", source })
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The names of the tracking features that this kernel lacks; `None` if it has them all, or if no userfaultfd
/// can be had here to ask (then the one in hand decides by itself).
fn missing_features() -> Option<String> {
    let (fresh, _) = Userfaultfd::open_for_builtin().ok()?;
    let has = sys::uffdio_api(&fresh.fd, 0).ok()?.features;
    let missing: Vec<&str> =
        TRACKING.iter().filter(|(bit, _)| has & bit == 0).map(|(_, name)| *name).collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// Opens this process's own pagemap, to be handed to the node: permission is checked now, so the descriptor
/// works for a node that could not open it.
pub fn open_own_pagemap() -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open("/proc/self/pagemap", flags, rustix::fs::Mode::empty())?)
}

#[cfg(test)]
impl Userfaultfd {
    pub(crate) fn as_fd_clone(&self) -> OwnedFd {
        self.fd.try_clone().expect("dup")
    }
}
