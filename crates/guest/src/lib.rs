//! What is running: the hand-off protocol's two ends.
//!
//! ```text
//!   runner   the built-in guest: a process of its own whose RAM is really written
//!   qemu     the keeper of a QEMU: a process beside it that says for it what a runner says
//!   server   a runner's end of the hand-off socket
//!   client   the node's end of it                     messages   how what is said there is written
//! ```

pub mod client;
mod messages;
pub mod qemu;
pub mod runner;
mod server;
