//! Tables that say what the pure rules answer, each row as the written rules have it.
//!
//! ```text
//!   quantities   64Mi ─▶ 67108864, and what is refused
//!   deadlines    6Gi × 800 ─▶ 4800 s
//!   policies     labels and policies ─▶ the one that a guest gets; the same against a naive model
//!   settings     key and value ─▶ taken or refused; three layers ─▶ what holds, and from where
//! ```
//!
//! Always true: what is expected here was worked out from the rules, not read off the code.

mod deadlines;
mod policies;
mod quantities;
mod settings;
