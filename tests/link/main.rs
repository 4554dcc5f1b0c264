//! A bad link of our own, since the kernel here makes none: between two nodes stands a relay that delays, swaps, repeats
//! and loses datagrams, as a plan says and a seed decides.
//!
//! ```text
//!   one_way   one direction, pure: what arrives, when, how often
//!   relay     sockets and a thread around two of them; port: one of its sockets
//!   fates     what must hold of the first:  tables and properties, no clock
//!   sockets   what must hold of the second: real datagrams
//! ```
//!
//! Stories of clusters have both from `tests/support/link.rs`, which puts a relay between their nodes.

mod fates;
mod one_way;
mod relay;
mod sockets;
