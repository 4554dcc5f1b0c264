//! `godwit ca`: the certificates of a cluster.

use std::path::PathBuf;

use clap::Subcommand;
use godwit_domain::NodeName;
use godwit_node::ca;

use super::failure::Failure;
use super::print;

#[derive(Debug, Subcommand)]
pub(super) enum Ca {
    /// Make a cluster's certificate authority in a folder
    Init {
        /// The folder
        dir: PathBuf,
    },
    /// Issue a node's certificate
    Issue {
        /// The node's name
        node: NodeName,
        /// The authority's folder
        #[arg(long)]
        ca: PathBuf,
        /// Where to write node.pem, node.key and ca.pem
        #[arg(long)]
        out: PathBuf,
    },
}

impl Ca {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Init { dir } => {
                let files = ca::init(&dir).map_err(Failure::failed)?;
                print(&format!("{}\n{}", files.certificate.display(), files.key.display()))?;
            }
            Self::Issue { node, ca, out } => {
                let files = ca::issue(&ca, &node, &out).map_err(Failure::failed)?;
                let shown =
                    [&files.ca, &files.certificate, &files.key].map(|file| file.display().to_string());
                print(&format!("{}\nvalid until {}", shown.join("\n"), files.expires))?;
            }
        }
        Ok(())
    }
}
