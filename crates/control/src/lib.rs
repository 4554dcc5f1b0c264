//! What is agreed: one replicated log, its disk, and the promises to those who asked for an entry.
//!
//! ```text
//!   Propose ─▶ ControlActor ─▶ Driver ─▶ Engine ─▶ RawNode (raft)
//!   FromPeer ─▶    │             │         └─ ready: send, store, sync, send, apply ─▶ Disk (sled | memory)
//!   Tick ─────▶    │             ├─ StateMachine::apply ─▶ reply
//!                  │             └─ Promises ─▶ the caller
//!                  └─ Outbox ─▶ peers (the node owns the sockets)
//!
//!   group      who founds it                     machine    what it agrees on: the caller's trait
//!   members    who is in it, and how that changes
//!   storage    the disk as a trait, the log as raft reads it
//!   memory_disk  a disk that can be cut off      sled_disk  the disk of a node (records, mark)
//!   envelope   messages between voters           engine     raft, without clock, socket and file
//!   founding     a group of one, from a state; a log replayed
//!   promises   who waits for which entry         proofs     who waits for proof that he looks at the present
//!   driver     one voter's whole life, deterministic
//!   status     what a voter tells of itself      actor      the shell with clock and thread
//!   answer     to a message, after its handler         logging    raft's log lines, bridged to tracing
//! ```
//!
//! Always true:
//! - nothing is answered, and no vote or acknowledgement leaves, before what it rests on is synced;
//! - the driver's world is its arguments: time, seed, disk and outbox. The same inputs give the same outputs;
//! - a reply says what became of an entry or that nobody knows. It never says "no" of one that may be in the log.

pub mod actor;
mod answer;
pub mod driver;
pub mod engine;
pub mod envelope;
pub mod founding;
pub mod group;
mod inbox;
mod logging;
pub mod machine;
mod mark;
pub mod members;
pub mod memory_disk;
pub mod promises;
pub mod proofs;
mod records;
pub mod sled_disk;
pub mod status;
pub mod storage;

pub use actor::{
    Campaign, ChangeMembers, ControlActor, ControlHandle, FromPeer, HandOn, ImageNow, Prove, Query,
    QuorumAge, StatusNow, Stop,
};
pub use driver::{Condition, Config, Driver, Image, Outbox, ProposeError, Role, StartError, Status, View};
pub use engine::Position;
pub use group::{GroupError, Identity, NodeId, Voters};
pub use inbox::Proposals;
pub use machine::{RestoreError, StateMachine};
pub use members::{Change, ChangeError, Member, Members, Standing, Wanted};
pub use sled_disk::SledFolder;
pub use storage::{Disk, DiskError, DiskSource};
