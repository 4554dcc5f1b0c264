//! `godwit lab`: node processes on this machine, a guest that writes its memory, moves under load, each verified.
//!
//! ```text
//!   folder, mark ─▶ sweeper ─▶ nodes ─▶ leader ─▶ guest ─▶ move, ticks, verify ─▶ move on, … ─▶ table or JSON
//!                                                 scenes: which guests, and how they move
//! ```
//!
//! Always true: what the lab reports, it has seen: ticks are read from the runners' own files, memory is compared
//! page by page, the nodes' memory comes from the kernel. It leaves nothing behind, however it ends, but the folder
//! if asked to keep it.

pub mod cluster;
mod machine;
pub mod render;
mod scenes;
mod seen;
pub mod sweeper;
pub mod ticks;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use godwit_domain::precopy;
use godwit_domain::{GuestName, GuestSpec, NodeName, Overrides, Quantity};
use godwit_guest::runner::{Tick, read_ticks};
use godwit_transfer::drive::chain;
use godwit_wire::handoff::{Stats, Verified};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{self, MachineArgs, Output, RunnerKind, WorkloadArgs};
use cluster::{Cluster, ClusterError, Moved, STEP_TIMEOUT};
use machine::MachineScene;
use render::{LabReport, Live, Move};
use scenes::Scene;
use seen::{Measured, judge};
use sweeper::Sweeper;
pub use ticks::monotonic_ns;

/// How often a guest is asked whether it has ticked at its target yet.
const ASK_INTERVAL: Duration = Duration::from_millis(2);
/// Nodes that vote: three, or five where there are as many.
const VOTERS: [usize; 2] = [3, 5];
/// Ticks that the guest must have written at the target, so that none of the first is missed.
const TICKS_AFTER: usize = 20;

/// What a lab is like.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// Node processes; the first three (of five or more: five) vote in the control group
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=16))]
    nodes: u8,
    /// Moves of one guest: to the next node each time, and round again. Without this and --bandwidth, three guests move in
    /// three ways
    #[arg(long)]
    moves: Option<u32>,
    /// What runs the guest. A virtual machine needs --kernel or --disk, and goes round in three ways
    #[arg(long, value_enum, default_value = "builtin")]
    runner: RunnerKind,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Bytes per second that a migration may send; 0 for no limit
    #[arg(long)]
    bandwidth: Option<Quantity>,
    /// Switch over when the predicted downtime fits into this
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=2_000_000))]
    max_downtime_ms: u64,
    /// Keep the lab's folder: configs, logs and ticks
    #[arg(long)]
    keep: bool,
    /// How to print the result
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Why a lab failed.
#[derive(Debug, thiserror::Error)]
enum LabError {
    #[error("refused")]
    Refused(#[from] precopy::CanNotOutrun),
    #[error("{0}")]
    Option(String),
    #[error("lab folder")]
    Folder(#[source] io::Error),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("migration to {target} failed: {reason}; the guest runs on where it was")]
    Failed { target: NodeName, reason: String },
    #[error("ticks of {}", path.display())]
    Ticks { path: PathBuf, source: io::Error },
    #[error("memory is wrong after the move to {target}: {wrong} of {pages} pages, the first are {first:?}")]
    Wrong { target: NodeName, wrong: u64, pages: u64, first: Vec<u64> },
    #[error(
        "{mismatched} of {checked} pages that the guest had not written at {target} were not those of its source: the audit \
         has found them"
    )]
    Audit { target: NodeName, mismatched: u64, checked: u64 },
    #[error("{lost} ticks were lost or written twice in the move to {target}")]
    TicksLost { target: NodeName, lost: u64 },
    #[error(
        "the guest wrote {achieved}/s of the {asked}/s asked during the move to {target}: this machine can not keep \
         up; ask for less with --dirty-rate"
    )]
    Starved { target: NodeName, asked: String, achieved: String },
    #[error(
        "the guest should run at {target} with a quarter of its memory missing: {missing} bytes were, and it ticked \
         {ticks} times meanwhile"
    )]
    NotPostCopy { target: NodeName, missing: u64, ticks: usize },
    #[error("interrupted")]
    Interrupted,
}

/// Runs the lab and prints what came of it.
pub fn main(arguments: LabArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::complain(&error);
            return ExitCode::FAILURE;
        }
    };
    let output = arguments.output;
    let mut report = LabReport {
        ok: false,
        nodes: usize::from(arguments.nodes),
        leader: None,
        term: 0,
        node_rss_bytes_max: 0,
        migrations: Vec::new(),
        machine: Vec::new(),
        error: None,
        kept: None,
    };
    let outcome = runtime.block_on(run(&arguments, &mut report));
    report.ok = outcome.is_ok();
    if let Err(error) = &outcome {
        report.error = Some(chain(error));
    }
    print_report(&report, output);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&error);
            if matches!(error, LabError::Interrupted) { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

fn print_report(report: &LabReport, output: Output) {
    let text = match output {
        Output::Json => serde_json::to_string(report).unwrap_or_default(),
        Output::Table if !report.machine.is_empty() => machine::table(&report.machine),
        Output::Table if report.migrations.is_empty() => return,
        Output::Table => {
            let rss = render::bytes(report.node_rss_bytes_max);
            format!("{}\nlargest node process: {rss} resident", render::table(&report.migrations))
        }
    };
    // A reader that has gone wants no result.
    let _ = cli::print(&text);
}

async fn run(arguments: &LabArgs, report: &mut LabReport) -> Result<(), LabError> {
    let lab = Lab::check(arguments)?;
    let program = std::env::current_exe().map_err(LabError::Folder)?;
    let dir = tempfile::Builder::new().prefix("godwit-lab-").tempdir().map_err(LabError::Folder)?.keep();
    let mark = dir.file_name().and_then(|name| name.to_str()).unwrap_or("godwit-lab").to_owned();
    let remove = (!arguments.keep).then_some(dir.as_path());
    let sweeper = Sweeper::start(&program, &mark, remove).map_err(LabError::Folder)?;
    let outcome = tokio::select! {
        outcome = lab.moves(&program, &dir, &mark, report) => outcome,
        () = interrupted() => Err(LabError::Interrupted),
    };
    if arguments.keep {
        report.kept = Some(dir.display().to_string());
        talk(&format!("kept: {}", dir.display()));
    }
    sweeper.sweep().map_err(LabError::Folder)?;
    outcome
}

async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals end the lab at once, and the sweeper does the rest.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn talk(text: &str) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "{text}");
}

/// A lab whose options were checked.
struct Lab {
    nodes: Vec<NodeName>,
    scenes: Vec<Scene>,
    /// Instead of the scenes.
    machine: Option<MachineScene>,
}

/// How often a scene is played whose guest wrote too little.
const PLAYS_MAX: u32 = 3;
/// Moves of one guest, where a limit is given and not how many.
const MOVES: u32 = 2;
/// Moves of a virtual machine: each way once.
const MACHINE_MOVES: u32 = 3;

impl Lab {
    fn check(arguments: &LabArgs) -> Result<Self, LabError> {
        let option = |error: &dyn std::fmt::Display| LabError::Option(error.to_string());
        let workload = &arguments.workload;
        let overrides = Overrides {
            bandwidth_per_migration: Some(arguments.bandwidth.unwrap_or_default()),
            max_downtime_ms: Some(arguments.max_downtime_ms),
            audit: Some(true),
            ..Overrides::default()
        };
        let names = ('a'..='z').take(usize::from(arguments.nodes)).map(|letter| format!("node-{letter}"));
        let nodes =
            names.map(|name| name.parse()).collect::<Result<_, _>>().map_err(|error| option(&error))?;
        let guest = |name: &str| name.parse::<GuestName>().map_err(|error| option(&error));
        let spec = GuestSpec {
            memory_bytes: workload.memory.bytes(),
            working_set_bytes: workload.working_set_bytes(),
            dirty_rate_bytes_per_second: workload.dirty_rate.bytes(),
            pattern: workload.pattern.to_string(),
            zero_percent: workload.zero,
            compressible_percent: workload.compressible,
            threads: workload.threads,
            seed: workload.seed,
            tick_interval_ms: 1,
            qemu: None,
        };
        let machine = match arguments.runner {
            RunnerKind::Builtin => None,
            RunnerKind::Qemu => {
                let spec = arguments.machine.clone().spec(workload.memory.bytes());
                let spec = spec.map_err(LabError::Option)?;
                let moves = usize::try_from(arguments.moves.unwrap_or(MACHINE_MOVES)).unwrap_or(usize::MAX);
                Some(MachineScene { guest: guest("default/lab")?, spec, overrides, moves })
            }
        };
        let scenes = match (arguments.moves, arguments.bandwidth) {
            _ if machine.is_some() => Vec::new(),
            (None, None) => {
                let names =
                    [guest("default/lab")?, guest("default/lab-limited")?, guest("default/lab-busy")?];
                scenes::three_ways(names, &spec, overrides)?
            }
            (moves, _) => {
                let moves = usize::try_from(moves.unwrap_or(MOVES)).unwrap_or(usize::MAX);
                vec![scenes::round_trip(guest("default/lab")?, spec, overrides, moves)?]
            }
        };
        Ok(Self { nodes, scenes, machine })
    }

    async fn moves(
        &self,
        program: &Path,
        dir: &Path,
        mark: &str,
        report: &mut LabReport,
    ) -> Result<(), LabError> {
        let voting = VOTERS.into_iter().rev().find(|count| *count <= self.nodes.len()).unwrap_or_default();
        let voters = self.nodes.get(..voting).unwrap_or_default();
        let mut cluster = Cluster::new(program, dir, mark, voters)?;
        cluster.start_nodes(self.nodes.iter().map(|node| cluster.spec(node)).collect()).await?;
        let (leader, term) = cluster.leader().await?;
        cluster.are_reachable(&self.nodes).await?;
        for node in &self.nodes {
            let part = match (*node == leader, voters.contains(node)) {
                (true, _) => format!("leads the control group, term {term}"),
                (false, true) => "votes".to_owned(),
                (false, false) => "does not vote".to_owned(),
            };
            let pid = cluster.node(node).map_or(0, |process| process.pid);
            talk(&format!("{node}: process {pid}, {part}"));
        }
        (report.leader, report.term) = (Some(leader.to_string()), term);
        let outcome = match &self.machine {
            Some(scene) => scene.play(&mut cluster, &self.nodes, &mut report.machine).await,
            None => self.play_all(&mut cluster, report).await,
        };
        cluster.shut_down().await;
        outcome
    }

    async fn play_all(&self, cluster: &mut Cluster, report: &mut LabReport) -> Result<(), LabError> {
        for (from, scene) in self.scenes.iter().enumerate() {
            // Each begins where the one before has ended.
            let nodes: Vec<&NodeName> = self.nodes.iter().cycle().skip(from).take(self.nodes.len()).collect();
            let (mut scene, moved_before, mut plays) = (scene.clone(), report.migrations.len(), 1);
            // A host that stands still for half a second starves a guest once; one that is too slow does so each time.
            while let Err(error) = scene.play(cluster, &nodes, report).await {
                if plays == PLAYS_MAX || !matches!(error, LabError::Starved { .. }) {
                    return Err(error);
                }
                plays += 1;
                talk(&format!("{error}; once more, with another guest"));
                report.migrations.truncate(moved_before);
                cluster.delete_guest(&scene.guest).await?;
                let again = format!("{}-again", scene.guest).parse::<GuestName>();
                scene.guest = again.map_err(|error| LabError::Option(error.to_string()))?;
            }
            if self.scenes.len() > 1 {
                cluster.delete_guest(&scene.guest).await?;
            }
        }
        Ok(())
    }
}

impl Scene {
    async fn play(
        &self,
        cluster: &mut Cluster,
        nodes: &[&NodeName],
        report: &mut LabReport,
    ) -> Result<(), LabError> {
        let Some(first) = nodes.first() else { return Ok(()) };
        let memory = render::bytes(self.spec.memory_bytes);
        let rate = render::bytes(self.spec.dirty_rate_bytes_per_second);
        if let Some(title) = self.title {
            talk(title);
        }
        talk(&format!("guest {}: {memory} of RAM on {first}, writing {rate}/s", self.guest));
        cluster.create_guest(&self.guest, first, self.spec.clone()).await?;
        let round = nodes.iter().cycle();
        for (source, target) in round.clone().zip(round.skip(1)).take(self.moves) {
            let moved = self.move_once(cluster, source, target).await?;
            report.migrations.push(moved.clone());
            report.node_rss_bytes_max = report.node_rss_bytes_max.max(cluster.rss_bytes_max());
            judge(&moved, target, self.post_copy)?;
        }
        Ok(())
    }

    async fn move_once(
        &self,
        cluster: &mut Cluster,
        source: &NodeName,
        target: &NodeName,
    ) -> Result<Move, LabError> {
        let before = cluster.stats(&self.guest).await?;
        let since_ns = monotonic_ns();
        let live = Live::start(format!("{source} → {target}"), self.spec.memory_bytes);
        let mut look = None;
        let watch = async |cluster: &mut Cluster, seen: &cluster::Watched| {
            if let Some(progress) = &seen.progress {
                live.show(progress);
            }
            if seen.row.phase == "Succeeded" && look.is_none() {
                look = Some(first_look(cluster, &self.guest).await);
            }
        };
        let moved = cluster.migrate(&self.guest, target, self.how, self.limit, watch).await?;
        drop(live);
        let (measured, resume_us, post_copy, audit) = match moved {
            Moved::Succeeded { source, resume_us, post_copy, audit } => {
                (source, resume_us, post_copy.map(|report| *report), audit)
            }
            Moved::Failed(reason) => return Err(LabError::Failed { target: target.clone(), reason }),
        };
        let (after, asked_ns, verified) = match look {
            Some(looked) => looked?,
            None => first_look(cluster, &self.guest).await?,
        };
        let took_us = post_copy.map_or(0, |report| report.took_us);
        let (ticks, ticks_while_missing) =
            self.ticks_around(cluster, target, since_ns, asked_ns, took_us).await?;
        let audit = audit.filter(|_| post_copy.is_none());
        let seen = Measured {
            before,
            after,
            measured,
            resume_us,
            post_copy,
            audit,
            ticks,
            ticks_while_missing,
            verified,
        };
        Ok(self.entry(source, target, &seen))
    }

    /// The ticks since the move began, once enough were written at the target; and how many there were within so many
    /// microseconds of the first one there.
    async fn ticks_around(
        &self,
        cluster: &Cluster,
        target: &NodeName,
        since_ns: u64,
        asked_ns: u64,
        took_us: u64,
    ) -> Result<(ticks::TickReport, usize), LabError> {
        let deadline = tokio::time::Instant::now() + STEP_TIMEOUT;
        loop {
            let all = all_ticks(cluster)?;
            let there = all.iter().filter(|tick| tick.node == *target && tick.monotonic_ns >= since_ns);
            let times: Vec<u64> = there.map(|tick| tick.monotonic_ns).collect();
            if times.len() >= TICKS_AFTER {
                // The gap of the move ends with the first tick there.
                let first_ns = times.iter().min().copied().unwrap_or(0);
                let within = times.iter().filter(|at| **at - first_ns < took_us * 1000).count();
                let missing = if took_us > 0 { within } else { 0 };
                return Ok((ticks::report(&all, since_ns, first_ns.max(asked_ns)), missing));
            }
            if tokio::time::Instant::now() > deadline {
                let what = format!("{TICKS_AFTER} ticks of the guest at {target}");
                return Err(ClusterError::Timeout { what, limit: STEP_TIMEOUT }.into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What is asked of a guest the moment that it runs at the target: its numbers until it has ticked there, which ends the
/// gap that the move made, then its memory. At once, because what is wrong would be written over sooner or later, and
/// then nobody could see it.
async fn first_look(cluster: &Cluster, guest: &GuestName) -> Result<(Stats, u64, Verified), LabError> {
    let first = cluster.stats(guest).await?;
    let deadline = tokio::time::Instant::now() + STEP_TIMEOUT;
    loop {
        let after = cluster.stats(guest).await?;
        if after.tick > first.tick {
            let asked_ns = monotonic_ns();
            return Ok((after, asked_ns, cluster.verify(guest).await?));
        }
        if tokio::time::Instant::now() > deadline {
            return Err(
                ClusterError::Timeout { what: format!("a tick of {guest}"), limit: STEP_TIMEOUT }.into()
            );
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

/// Every tick of every runner that the cluster has had.
fn all_ticks(cluster: &Cluster) -> Result<Vec<Tick>, LabError> {
    let mut all = Vec::new();
    for dir in cluster.runner_dirs() {
        let ticks = read_ticks(&dir);
        all.extend(ticks.map_err(|source| LabError::Ticks { path: dir.clone(), source })?);
    }
    Ok(all)
}
