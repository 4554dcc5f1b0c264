//! What is said: every message, its bytes, and the caps that hold before anything is decoded.
//!
//! ```text
//!   handoff     runner ⇄ node      JSON lines and three descriptors     docs/handoff.md
//!   migration   source ⇄ target    control frames on one QUIC stream    docs/protocol.md
//!   batch       source ─▶ target   pages on the page streams            docs/protocol.md
//!   session     node ⇄ leader      frames on QUIC streams               docs/protocol.md
//!   log         the group's log    versioned entries and snapshots
//!   backup      what a group has agreed on, as a file
//!   admin       operator ⇄ node    JSON lines                           docs/protocol.md
//!   manifest    KubeVirt's YAML, in and out
//!   codec       the one place that knows bincode
//! ```
//!
//! Always true: a length is checked against its cap before a byte of what it counts is read or allocated;
//! decoding never panics; nothing here reads a clock, a socket or a file.

pub mod admin;
pub mod backup;
pub mod batch;
pub mod codec;
pub mod handoff;
pub mod log;
pub mod manifest;
pub mod migration;
pub mod session;
