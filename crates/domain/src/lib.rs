//! What is true. Pure values and pure functions; everything that decides stands here.
//!
//! ```text
//!   ids ── units ── quantity          the words
//!   agent                             what a node owes about a guest
//!   ownership                         who may run a guest: licences, epochs, entries
//!   registry                          what the cluster agrees on: nodes, guests, admission
//!   precopy                           another round, switch over, throttle, pause, or give up
//!   share                             one node's bandwidth between its migrations
//!   machine                           a guest as manifests describe it
//!   labels, policy                    which policy a guest gets, and why not another
//!   settings, guest, progress         what a migration and a guest are told, and how it goes
//! ```
//!
//! Always true: the same inputs give the same outputs. Nothing here knows a clock, a socket, a file, a
//! thread or a random number; time and chance come in as arguments.

#![deny(clippy::wildcard_enum_match_arm)]

pub mod agent;
pub mod guest;
pub mod ids;
pub mod labels;
pub mod machine;
pub mod ownership;
pub mod planted;
pub mod policy;
pub mod precopy;
pub mod progress;
pub mod qemu;
pub mod quantity;
pub mod registry;
pub mod settings;
pub mod share;
pub mod units;

pub use guest::GuestSpec;
pub use ids::{Epoch, GroupId, GuestName, InstanceId, MigrationId, NodeName};
pub use labels::Labels;
pub use qemu::{Adopted, Qemu};
pub use quantity::{Quantity, QuantityError};
pub use settings::{ClusterSettings, Overrides, Priority, Settings};
pub use units::{Bandwidth, PAGE_BYTES, PAGE_SIZE, PageCount, PageIndex, PageRun, Round};
