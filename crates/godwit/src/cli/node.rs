//! `godwit node`: the daemon itself, and what the cluster knows of its hosts.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use godwit_admin::render;
use godwit_domain::NodeName;
use godwit_node::config::NodeConfig;
use godwit_node::{app, telemetry};
use godwit_wire::admin::{Act, NodeRow};

use super::asking::{Asking, Changing};
use super::drain::Drain;
use super::failure::Failure;
use super::talk;

#[derive(Debug, Subcommand)]
pub(super) enum Node {
    /// Run a node: hold guests on this machine, and move them
    Run {
        /// The node's config
        #[arg(short, long)]
        config: PathBuf,
    },
    /// List all nodes
    List(Asking),
    /// Show a node, with what is on it
    Show {
        /// The node
        node: NodeName,
        #[command(flatten)]
        asking: Asking,
    },
    /// Move everything away from a node
    Drain(Drain),
    /// Let a node take guests again; this ends its drain
    Uncordon {
        /// The node
        node: NodeName,
        #[command(flatten)]
        changing: Changing,
    },
    /// Vouch that a machine is powered off: its guests are lost, and may be run again elsewhere
    Fence {
        /// The node
        node: NodeName,
        /// Fence it though it answers: it stops its guests by itself
        #[arg(long)]
        although_reachable: bool,
        #[command(flatten)]
        changing: Changing,
    },
    /// Forget a node that holds nothing
    Remove {
        /// The node
        node: NodeName,
        #[command(flatten)]
        changing: Changing,
    },
}

impl Node {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Run { config } => run(&config),
            Self::List(asking) => {
                asking.show(Act::NodeList, |rows: &Vec<NodeRow>| render::nodes(rows, asking.is_wide()))
            }
            Self::Show { node, asking } => asking.show(Act::NodeShow { node }, render::node),
            Self::Drain(arguments) => arguments.run(),
            Self::Uncordon { node, changing } => changing.show(Act::NodeUncordon { node }, render::node),
            Self::Fence { node, although_reachable, changing } => {
                talk(&meaning_of_fence(&node, although_reachable));
                changing.show(Act::NodeFence { node, although_reachable }, render::fenced)
            }
            Self::Remove { node, changing } => {
                let what = format!("{node} is removed");
                changing.show(Act::NodeRemove { node }, |done| render::done(&what, done))
            }
        }
    }
}

/// Said before it is done, on stderr: nobody else can vouch for it.
fn meaning_of_fence(node: &NodeName, although_reachable: bool) -> String {
    let vouch = if although_reachable {
        format!(
            "fencing {node} although it may answer: if it does it stops its guests by itself, and if it does not you \
             vouch that the machine is powered off"
        )
    } else {
        format!("fencing {node}: you vouch that the machine is powered off")
    };
    format!(
        "{vouch}. Guests that it owns are lost by this and may be run again elsewhere; if it still ran them, they would \
         run twice."
    )
}

fn run(config: &Path) -> Result<(), Failure> {
    let config = NodeConfig::load(config).map_err(Failure::failed)?;
    telemetry::init(config.log.format, &config.log.filter).map_err(Failure::failed)?;
    app::run(&config).map_err(Failure::failed)
}
