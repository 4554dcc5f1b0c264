//! How an operator asks a node: the admin socket's two ends, and answers as tables. `godwit_wire::admin` has the words.
//!
//! ```text
//!   bind      the socket appears in its folder, complete and for its owner alone
//!   server    connection ─▶ lines ─▶ request ─▶ Desk ─▶ events, one last line
//!   client    ask ─▶ events ─▶ the last line, or what became of it
//!   render    answers ─▶ tables for people
//! ```
//!
//! Always true: nothing here decides: what a request means is the [`Desk`]'s. Whatever comes in has a bound in bytes and
//! in time; what is no request is answered by name, and never ends the node.

mod bind;
pub mod client;
mod gone;
mod lines;
pub mod render;
mod request;
pub mod server;

pub use client::{AskError, Client, ClientError, read_as};
pub use server::{AdminSocket, BindError, Desk, Limits};
