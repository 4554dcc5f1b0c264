//! What is moved: the two sides of a migration, the rate limit, and the pump between memory and QUIC.
//!
//! ```text
//!   source ─ session, decides ─┐                      ┌─ target ─ session, decides
//!   drive::source ─ does ──────┴── QUIC connection ───┴─ drive::target ─ does
//!        │ batches: memory thread ▶ limiter ▶ page streams ▶ memory thread
//!   audit ─ afterwards: digests of both sides, compared
//!   actor ─ one per migration and side: orders in, facts out
//! ```
//!
//! Always true: sessions ([`source`], [`target`], [`limiter`]) are pure, time is an argument; page bytes never
//! pass through a mailbox; memory per migration is bounded by the window, and 4 bytes a page beside it.
//!
//! Never here: who may run a guest (the log says so, by views), how a connection came to be (the fabric).

pub mod actor;
pub mod admit;
pub mod audit;
mod compress;
pub mod control;
pub mod drive;
pub mod limiter;
mod meter;
mod pages;
#[cfg(feature = "planted-bugs")]
pub mod planted;
pub mod source;
mod stamps;
pub mod target;
pub mod transport;
mod young;
