//! The command line: a noun, then a verb. Data on stdout, talk on stderr.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use godwit_domain::{Epoch, GuestName, InstanceId, NodeName, PageCount, Quantity};
use godwit_guest::runner::{self, Pattern, Role, RunnerConfig, Workload, WorkloadOptions};
use godwit_node::config::{LogFormat, NodeConfig};
use godwit_node::{app, ca, telemetry};
use godwit_transfer::drive::chain;

use crate::lab;

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
    Ca(Ca),
    /// Hosts that guests run on
    #[command(subcommand)]
    Node(Node),
    /// Guests
    #[command(subcommand)]
    Guest(Guest),
    /// Print the version
    Version,
    /// Ends what a lab left behind. Started by the lab itself.
    #[command(hide = true)]
    LabSweeper(lab::sweeper::SweeperArgs),
}

#[derive(Debug, Subcommand)]
enum Ca {
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

#[derive(Debug, Subcommand)]
enum Node {
    /// Run a node. It takes orders on stdin and tells facts on stdout, one JSON object a line
    Run {
        /// The node's config
        #[arg(short, long)]
        config: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Guest {
    /// Run the built-in guest: a process whose memory is really written. It listens on DIR/runner.sock
    Run(Box<GuestRun>),
}

#[derive(Debug, Args)]
struct GuestRun {
    /// The runner's own folder: runner.sock and ticks appear in it
    #[arg(long)]
    dir: PathBuf,
    /// The guest's name, NAMESPACE/NAME
    #[arg(long)]
    guest: GuestName,
    /// The node's name, written into every tick
    #[arg(long)]
    node: NodeName,
    /// This runner's id, 32 hexadecimal digits, drawn at random
    #[arg(long)]
    instance: InstanceId,
    /// Wait for a guest to arrive; its workload comes with it
    #[arg(long)]
    incoming: bool,
    /// Milliseconds between ticks
    #[arg(long, default_value_t = 1)]
    tick_interval_ms: u64,
    #[command(flatten)]
    workload: WorkloadArgs,
}

/// What a built-in guest is like.
#[derive(Debug, Clone, Args)]
pub struct WorkloadArgs {
    /// RAM
    #[arg(long, default_value = "1Gi")]
    pub memory: Quantity,
    /// The part of RAM that is written over and over [default: a quarter of it]
    #[arg(long)]
    pub working_set: Option<Quantity>,
    /// Distinct 4 KiB pages written per second, in bytes; 0 for an idle guest
    #[arg(long, default_value = "100Mi")]
    pub dirty_rate: Quantity,
    /// Order of writes: uniform, hot-set (90 % to a tenth) or streaming
    #[arg(long, default_value = "uniform")]
    pub pattern: Pattern,
    /// Percent of RAM that stays zero, outside the working set
    #[arg(long, default_value_t = 0)]
    pub zero: u8,
    /// Percent of RAM that compresses well; the rest is random
    #[arg(long, default_value_t = 30)]
    pub compressible: u8,
    /// Threads that write
    #[arg(long, default_value_t = 2)]
    pub threads: u8,
    /// What everything random in the guest comes from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl WorkloadArgs {
    /// The working set in bytes: as asked, or a quarter of RAM in whole pages.
    pub fn working_set_bytes(&self) -> u64 {
        let quarter = self.memory.bytes() / 4 / godwit_domain::PAGE_BYTES * godwit_domain::PAGE_BYTES;
        self.working_set.map_or(quarter.max(godwit_domain::PAGE_BYTES), Quantity::bytes)
    }
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// A command that was refused or failed, in one line.
type Failure = Box<dyn Error>;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().noun {
        Noun::Lab(arguments) => return lab::main(arguments),
        Noun::LabSweeper(arguments) => return lab::sweeper::main(&arguments),
        Noun::Ca(command) => run_ca(command),
        Noun::Node(Node::Run { config }) => run_node(&config),
        Noun::Guest(Guest::Run(arguments)) => run_guest(*arguments),
        Noun::Version => print(&format!("godwit {}", env!("CARGO_PKG_VERSION"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&*error);
            ExitCode::FAILURE
        }
    }
}

/// Says on stderr what went wrong, with its causes.
pub fn complain(error: &(dyn Error + 'static)) {
    // Nothing is left to be done about a stderr that is gone.
    let _ = writeln!(std::io::stderr(), "godwit: {}", chain(error));
}

/// Data for stdout. A reader that has gone (`| head`) is no failure worth a word.
pub fn print(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn run_ca(command: Ca) -> Result<(), Failure> {
    match command {
        Ca::Init { dir } => {
            let files = ca::init(&dir)?;
            print(&format!("{}\n{}", files.certificate.display(), files.key.display()))
        }
        Ca::Issue { node, ca, out } => {
            let files = ca::issue(&ca, &node, &out)?;
            let shown = [&files.ca, &files.certificate, &files.key].map(|file| file.display().to_string());
            print(&format!("{}\nvalid until {}", shown.join("\n"), files.expires))
        }
    }
}

fn run_node(config: &std::path::Path) -> Result<(), Failure> {
    let config = NodeConfig::load(config)?;
    telemetry::init(config.log.format, &config.log.filter)?;
    Ok(app::run(&config)?)
}

fn run_guest(arguments: GuestRun) -> Result<(), Failure> {
    telemetry::init(LogFormat::Text, "info")?;
    let GuestRun { dir, guest, node, instance, incoming, tick_interval_ms, workload } = arguments;
    let pages = |what: &str, bytes: u64| {
        let rule = format!("--{what} {bytes} is not a whole number of 4096-byte pages below 16 TiB");
        PageCount::of_memory(bytes).ok_or(rule)
    };
    let memory = pages("memory", workload.memory.bytes())?;
    let role = if incoming {
        Role::Incoming
    } else {
        let working_set = match workload.working_set_bytes() {
            0 => PageCount(0),
            bytes => pages("working-set", bytes)?,
        };
        let options = WorkloadOptions {
            memory,
            working_set,
            dirty_rate_bytes_per_second: workload.dirty_rate.bytes(),
            pattern: workload.pattern,
            zero_percent: workload.zero,
            compressible_percent: workload.compressible,
            threads: workload.threads,
            seed: workload.seed,
        };
        Role::Fresh { workload: Workload::new(options)?, epoch: Epoch::FIRST }
    };
    let tick_interval = Duration::from_millis(tick_interval_ms);
    Ok(runner::run(RunnerConfig { guest, instance, node, dir, memory, role, tick_interval })?)
}
