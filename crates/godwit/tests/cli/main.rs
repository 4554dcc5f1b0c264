//! The command line against a node that a test writes: what is asked, what is printed, and how it ends.
//!
//! ```text
//!   godwit … (a process) ──▶ admin socket ──▶ a function of the request
//!
//!   desk       the node             asks, waits        questions, and what is waited for
//!   objects    kubectl's words      edits              one object in an editor
//!   explains   policies without a node              stops        a guest's power button
//! ```
//!
//! Always true: a test waits for states, each with a deadline.

mod asks;
mod desk;
mod edits;
mod explains;
mod objects;
mod stops;
mod waits;
