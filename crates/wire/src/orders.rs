//! What a node is told and what it tells: orders travel right, facts travel left.
//!
//! ```text
//!   control ── Order ──▶ node          one JSON object per line
//!   control ◀── Fact ─── node
//! ```
//!
//! An order is a doorbell, never a licence: whether a guest may run says the [`Ownership`] in a
//! [`Order::View`]. A fact that would decide something is a *proposal*; it is true once a view shows it.

use core::net::SocketAddr;

use godwit_domain::ownership::{Entry, Ownership};
pub use godwit_domain::progress::{Progress, SourceReport};
use godwit_domain::{Epoch, GuestName, InstanceId, MigrationId, NodeName};
pub use godwit_domain::{GuestSpec, Settings};
use serde::{Deserialize, Serialize};

use crate::handoff::{RunState, Stats, Verified};

/// Longest line, in bytes.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// What a node is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Order {
    /// Make a new guest with the built-in runner.
    CreateGuest {
        /// Its name.
        guest: GuestName,
        /// What it is like.
        spec: GuestSpec,
    },
    /// Make a runner for a guest that is to arrive, and propose `Accept`.
    Prepare {
        /// The migration.
        migration: MigrationId,
        /// The guest.
        guest: GuestName,
        /// Where it comes from.
        source: NodeName,
        /// The present epoch.
        epoch: Epoch,
        /// Size of its RAM in bytes.
        memory_bytes: u64,
    },
    /// Move a guest that runs here.
    Migrate {
        /// The migration.
        migration: MigrationId,
        /// The guest.
        guest: GuestName,
        /// Where to.
        target: NodeName,
        /// The target's migration address.
        address: SocketAddr,
        /// The target's runner, as accepted.
        token: InstanceId,
        /// The present epoch.
        epoch: Epoch,
        /// Limits of this migration.
        settings: Settings,
    },
    /// Change a running migration's limits.
    Set {
        /// The migration.
        migration: MigrationId,
        /// The limits that hold from now on.
        settings: Settings,
    },
    /// What is agreed about a guest.
    View {
        /// The guest.
        guest: GuestName,
        /// Who may run it.
        ownership: Ownership,
    },
    /// Compare a guest's memory with what it must hold.
    Verify {
        /// The guest.
        guest: GuestName,
    },
    /// Say how a guest does.
    Stats {
        /// The guest.
        guest: GuestName,
    },
    /// End a guest.
    Stop {
        /// The guest.
        guest: GuestName,
    },
}

/// What a node tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "kebab-case")]
pub enum Fact {
    /// The node serves.
    Ready {
        /// Its name.
        node: NodeName,
        /// Its migration address, with the port that the kernel chose where the config says 0.
        migration_address: SocketAddr,
        /// Its process id.
        pid: u32,
        /// The file whose lock it holds: a second node on the same folder is refused.
        state: String,
    },
    /// A runner was found, made by this node or by the one before it.
    Runner {
        /// Its guest.
        guest: GuestName,
        /// Itself.
        instance: InstanceId,
        /// Where its files are.
        dir: String,
        /// How it stands.
        state: RunState,
    },
    /// A runner was ended; its guest's memory is gone.
    Gone {
        /// Its guest.
        guest: GuestName,
        /// Itself.
        instance: InstanceId,
    },
    /// The node proposes an entry about a guest.
    Proposal {
        /// The guest.
        guest: GuestName,
        /// The entry.
        entry: Entry,
    },
    /// How a running migration does.
    Progress {
        /// The migration.
        migration: MigrationId,
        /// The numbers.
        progress: Progress,
    },
    /// One side of a migration has ended.
    Ended {
        /// The migration.
        migration: MigrationId,
        /// What it measured.
        report: Report,
    },
    /// Answer to [`Order::Verify`].
    Verified {
        /// The guest.
        guest: GuestName,
        /// The result.
        result: Verified,
    },
    /// Answer to [`Order::Stats`].
    Stats {
        /// The guest.
        guest: GuestName,
        /// The numbers.
        stats: Stats,
    },
    /// An order could not be carried out.
    Refused {
        /// What it was about.
        about: String,
        /// Why, for people.
        message: String,
    },
}

/// What one side measured. Durations only: two hosts' clocks are never compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "side", rename_all = "kebab-case")]
pub enum Report {
    /// The source's.
    Source(SourceReport),
    /// The target's.
    Target {
        /// From "complete and licensed" to "runs", in microseconds.
        resume_us: u64,
    },
    /// A side that did not get to the end.
    Failed {
        /// Why, for people.
        reason: String,
    },
}
