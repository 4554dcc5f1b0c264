//! What is running: the hand-off protocol's two ends.
//!
//! ```text
//!   runner   the built-in guest: a process of its own whose RAM is really written
//!   client   the node's end of the hand-off socket
//! ```

pub mod client;
pub mod runner;
