//! `godwit control`: the group of nodes that agrees on everything, and who is in it.
//!
//! ```text
//!   add ─▶ it learns ─ progress on stderr ─▶ it votes: 0
//!                                         └▶ it was removed again: 1
//!   backup            asked of a node; the pieces become a file
//!   restore, recover  done by this process, on the folder of a node that does not run
//! ```
//!
//! Always true: whoever stops waiting leaves the change going; added again it is looked at, and nothing is done twice.

use std::path::PathBuf;

use clap::Subcommand;
use godwit_admin::render;
use godwit_domain::NodeName;
use godwit_wire::admin::{Act, MemberDetail};
use tokio::time::Instant;

use super::asking::{Asking, Changing, block_on};
use super::failure::Failure;
use super::follow::Sight;
use super::{disaster, talk};

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
    /// Write what is agreed into a file, from which the group can be founded anew
    Backup {
        /// The file; one that is there is replaced as a whole
        file: PathBuf,
        #[command(flatten)]
        asking: Asking,
    },
    /// Found the group anew from a backup, with this node as its only voter. The node does not run, and has no log
    Restore {
        /// The backup
        file: PathBuf,
        /// The node's config
        #[arg(short, long)]
        config: PathBuf,
    },
    /// Found the group anew from what this voter has, when more than half of the voters are lost for good. The node does not run
    Recover {
        /// The node's config
        #[arg(short, long)]
        config: PathBuf,
        /// The cluster's name, for whoever has read before what is lost by it; it is asked for if not said
        #[arg(long, value_name = "CLUSTER")]
        yes_really: Option<String>,
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
            Self::Backup { file, asking } => disaster::backup(&asking, &file),
            Self::Restore { file, config } => disaster::restore(&config, &file),
            Self::Recover { config, yes_really } => disaster::recover(&config, yes_really),
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
