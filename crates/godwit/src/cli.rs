//! The command line: a noun, then a verb. Data on stdout, talk on stderr.
//!
//! ```text
//!   node run, guest run, ca, lab      done by this process
//!   policy explain -f                 too: manifests are read here, no node is asked
//!   everything else ──▶ asking        asked of a node over its admin socket, shown as a table, YAML or one line of JSON
//!   get, apply, edit, …               kubectl's words for the objects that manifests describe
//! ```
//!
//! Always true: exit code 0 means done, 1 refused or failed, 2 bad usage, 3 that nobody knows; what went wrong names the
//! thing, the rule and what would satisfy it.

mod apply;
mod asking;
mod ca;
mod control;
mod disaster;
mod drain;
mod edit;
mod failure;
mod follow;
mod get;
mod guest;
mod live;
mod machines;
mod migration;
mod node;
mod object;
mod offline;
mod policy;
mod sources;
mod stop;
mod wait;
mod workload;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use godwit_admin::render;
use godwit_transfer::drive::chain;
use godwit_wire::admin::Act;

use crate::lab;
use asking::Asking;
use failure::Failure;
pub use machines::{MachineArgs, RunnerKind};
pub use workload::WorkloadArgs;

/// Live migration of running guests between hosts, under rules a whole cluster agrees on.
#[derive(Debug, Parser)]
#[command(name = "godwit", version, propagate_version = false)]
struct Cli {
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Move a guest between nodes on this machine, and see that its memory arrives whole
    Lab(lab::LabArgs),
    /// Certificates of the cluster
    #[command(subcommand)]
    Ca(ca::Ca),
    /// Hosts that guests run on
    #[command(subcommand)]
    Node(node::Node),
    /// Guests
    #[command(subcommand)]
    Guest(guest::Guest),
    /// Move a guest to another node while it runs
    Migrate(Box<migration::Migrate>),
    /// Moves of guests, asked for, under way and over
    #[command(subcommand)]
    Migration(migration::Migration),
    /// Settings for groups of guests
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Move everything away from a node; the same as `node drain`
    Drain(drain::Drain),
    /// Show objects of a kind
    Get(get::Get),
    /// Show everything that is known of one object
    Describe(get::Describe),
    /// Make objects, or change them, as manifests have them
    Apply(apply::Apply),
    /// Make objects that are not there yet
    Create(apply::Create),
    /// Change an object in an editor
    Edit(edit::Edit),
    /// Remove objects
    Delete(apply::Delete),
    /// Change the labels of an object
    Label(apply::Label),
    /// The group of nodes that agrees on everything
    #[command(subcommand)]
    Control(control::Control),
    /// The cluster at a glance
    Status(Asking),
    /// Print the version
    Version,
    /// Ends what a lab left behind. Started by the lab itself.
    #[command(hide = true)]
    LabSweeper(lab::sweeper::SweeperArgs),
}

/// How the lab prints its report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().noun {
        Noun::Lab(arguments) => return lab::main(arguments),
        Noun::LabSweeper(arguments) => return lab::sweeper::main(&arguments),
        Noun::Ca(command) => command.run(),
        Noun::Node(command) => command.run(),
        Noun::Guest(command) => command.run(),
        Noun::Migrate(arguments) => arguments.run(),
        Noun::Migration(command) => command.run(),
        Noun::Policy(command) => command.run(),
        Noun::Drain(arguments) => arguments.run(),
        Noun::Get(arguments) => arguments.run(),
        Noun::Describe(arguments) => arguments.run(),
        Noun::Apply(arguments) => arguments.run(),
        Noun::Create(arguments) => arguments.run(),
        Noun::Edit(arguments) => arguments.run(),
        Noun::Delete(arguments) => arguments.run(),
        Noun::Label(arguments) => arguments.run(),
        Noun::Control(command) => command.run(),
        Noun::Status(asking) => asking.show(Act::Status, render::status),
        Noun::Version => print(&format!("godwit {}", env!("CARGO_PKG_VERSION"))).map_err(Failure::from),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.tell()),
    }
}

/// Says on stderr what went wrong, with its causes.
pub fn complain(error: &(dyn Error + 'static)) {
    talk(&format!("godwit: {}", chain(error)));
}

/// Data for stdout. A reader that has gone (`| head`) is no failure worth a word.
pub fn print(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// A line for whoever watches.
fn talk(text: &str) {
    // Nothing is left to be done about a stderr that is gone.
    let _ = writeln!(io::stderr(), "{text}");
}
