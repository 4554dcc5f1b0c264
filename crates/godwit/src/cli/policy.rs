//! `godwit policy`: which settings hold for which guests, and why.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use godwit_admin::render;
use godwit_wire::admin::Act;
use godwit_wire::manifest::Kind;

use super::asking::Asking;
use super::failure::Failure;
use super::guest::Named;
use super::{get, offline};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// List all policies
    List(Asking),
    /// Which policy a VM gets, why not another one, and what then holds for its migrations
    Explain(Explain),
}

#[derive(Debug, Args)]
pub(super) struct Explain {
    #[command(flatten)]
    named: Named,
    /// Look at these manifests, and ask no node: a file, a folder of *.yaml, *.yml and *.json, or - for standard input
    #[arg(short, long = "filename", value_name = "PATH")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    asking: Asking,
}

impl PolicyCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(asking) => get::list(&asking, Kind::MigrationPolicy),
            Self::Explain(Explain { named, files, asking }) if files.is_empty() => {
                asking.show(Act::PolicyExplain { guest: named.name()? }, render::explained)
            }
            Self::Explain(Explain { named, files, asking }) => {
                let explained = offline::explain(&asking, &named.name()?, &files)?;
                let value = serde_json::to_value(&explained).map_err(Failure::failed)?;
                asking.print(&value, render::explained)
            }
        }
    }
}
