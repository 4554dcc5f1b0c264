//! What is touched: guest memory and the kernel's tools for it. **The only crate with `unsafe`.**
//!
//! ```text
//!   pages    PageSet: which pages           (plain data, no kernel)
//!   memfd    the file that is a guest's RAM: read, write, punch, holes, seals
//!   uffd     userfaultfd: made by the runner, used by the node
//!   faults   pages that are not here yet: who waits for them, and filling them in
//!   tracker  which pages were written since the last look (write-protect + PAGEMAP_SCAN)
//!   adopt    a userfaultfd and other descriptors of a process that knows nothing of us
//!   ram      the runner's own mapping, where the guest stores
//!   folios   large folios, made and held fast on purpose: for tests
//!   probe    does this kernel have what we need?
//!   sys      the raw ioctls, nothing else
//! ```
//!
//! # Safety
//!
//! What the crate upholds, so that its callers need no `unsafe`:
//! - no Rust reference to guest memory ever exists: another process writes it at the same time. The node's side
//!   reads and writes through the file (`pread`, `pwrite`), the runner's through single-word volatile access;
//! - a mapping is never larger than its file and the file is sealed against shrinking, so no access faults;
//! - every descriptor is owned from the moment the kernel returns it;
//! - every kernel struct has its size asserted at compile time.
//!
//! Never here: a clock, a network, a thread of its own.

pub mod adopt;
pub mod faults;
#[cfg(any(test, feature = "folios"))]
pub mod folios;
pub mod memfd;
pub mod pages;
pub mod probe;
pub mod ram;
mod sys;
pub mod tracker;
pub mod uffd;

pub use faults::Faults;
pub use memfd::Memfd;
pub use pages::PageSet;
pub use ram::Ram;
pub use tracker::Tracker;
pub use uffd::Userfaultfd;
