//! Who acts: what a node is told, who it is, and how it speaks to its operator.
//!
//! ```text
//!   ca ──▶ node.pem, node.key ──▶ identity       whom to believe, and how to be believed
//!   node.toml ──────────────────▶ config         read once, checked once
//!                                 telemetry      one line per event, to standard error
//! ```
//!
//! Always true: a file is read under a size cap, and a secret has mode 0600 from its first byte.

pub mod actor;
pub mod app;
pub mod ca;
pub mod config;
pub mod fabric;
mod files;
pub mod identity;
pub mod local;
pub mod outbound;
mod owed;
pub mod telemetry;
