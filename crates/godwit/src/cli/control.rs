//! `godwit control`: the group of nodes that agrees on everything, and who is in it.
//!
//! ```text
//!   add ─▶ it learns ─ progress on stderr ─▶ it votes: 0
//!                                         └▶ it was removed again: 1
//! ```
//!
//! Always true: whoever stops waiting leaves the change going; added again it is looked at, and nothing is done twice.

use clap::Subcommand;
use godwit_admin::render;
use godwit_domain::NodeName;
use godwit_wire::admin::{Act, MemberDetail};
use tokio::time::Instant;

use super::asking::{Asking, Changing, block_on};
use super::failure::Failure;
use super::follow::Sight;
use super::talk;

#[derive(Debug, Subcommand)]
pub(super) enum Control {
    /// How the asked node and its group stand
    Status(Asking),
    /// Take a node into the group: it learns what is agreed, and then votes
    Add {
        /// The node; it has joined, and listens on an address of its own that stays
        node: NodeName,
        /// Do not wait until it votes
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        changing: Changing,
    },
    /// Take a node out of the group; it goes on as a node that does not vote
    Remove {
        /// The node
        node: NodeName,
        #[command(flatten)]
        changing: Changing,
    },
}

impl Control {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Status(asking) => asking.show(Act::ControlStatus, render::control),
            Self::Remove { node, changing } => changing.show(Act::ControlRemove { node }, render::member),
            Self::Add { node, no_wait: true, changing } => {
                changing.show(Act::ControlAdd { node }, render::member)
            }
            Self::Add { node, no_wait: false, changing } => add(&changing, node),
        }
    }
}

fn add(changing: &Changing, node: NodeName) -> Result<(), Failure> {
    let asking = &changing.asking;
    let answer = changing.ask(&mut changing.ids()?, Act::ControlAdd { node: node.clone() })?;
    let asked: MemberDetail = asking.read(&answer)?;
    if asked.state == "voter" {
        return asking.print(&answer, render::member);
    }
    talk(&render::member(&asked));
    let sight = Sight {
        asking,
        act: Act::ControlWatch { node: node.clone() },
        again: format!("control add {node}"),
        goes_on: "it goes on learning",
    };
    let mut told = String::new();
    let show = |detail: &MemberDetail| {
        let line = render::member(detail);
        if line != told {
            talk(&line);
            told = line;
        }
    };
    let mut show = show;
    let over = |detail: &MemberDetail| detail.state != "learner";
    let (last, detail) =
        block_on(Box::pin(sight.follow(Some(Instant::now()), over, |_, detail| show(detail))))?;
    if detail.state != "voter" {
        let message = format!("{node} was removed from the control group before it voted");
        return Err(Failure::refused(
            "a node that votes has learnt",
            message,
            format!("godwit control add {node}"),
        ));
    }
    asking.print(&last, render::member)
}
