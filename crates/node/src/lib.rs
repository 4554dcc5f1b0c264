//! Who acts: a host's node, from its config to what it does about its guests; and, where it votes, its part in the group.
//!
//! ```text
//!   config, identity (ca) ─▶ app ─▶ fabric ── peers ──▶ other voters
//!                                     │ └──── session ─▶ the leader ─▶ group (serve, lead, desk), on replica ─▶ audit log
//!                                     └────── migrations ─▶ actor ─▶ local runners, outbound transfers, records
//!   admin socket ─▶ front ─▶ leader
//!   consent: a group is founded once    disaster: and anew, from a backup or one voter's disk, while no node runs
//! ```
//!
//! Always true: a file is read under a size cap, a secret has mode 0600 from its first byte, and whoever speaks on a
//! connection has been authenticated before it is heard.

pub mod actor;
pub mod app;
pub mod audit;
pub mod book;
pub mod ca;
pub mod config;
mod consent;
pub mod disaster;
pub mod fabric;
mod files;
pub mod front;
pub mod group;
pub mod identity;
pub mod local;
pub mod outbound;
mod owed;
pub mod peers;
pub mod records;
pub mod replica;
mod resumed;
pub mod seat;
pub mod session;
pub mod telemetry;
