//! How long a guest waits for a page in post-copy, while everything else is pushed at full speed. Nothing is asserted about
//! times: other people's work on the same machine is in them, which is why the two ways take turns.
//!
//! ```text
//!   A   faults and control on one socket, pages in bulk on another       as nodes do
//!   B   all on one socket                                                what that is worth
//!   for 1 and 16 threads that touch pages at random, or one after another:  A B A B … ─▶ log2 histogram, p50, p99
//! ```
//!
//! Always true: each move begins with nothing copied (`--mode post-copy`), without a limit, so that every page of the guest
//! is pushed or fetched while its threads run; a wait is measured by the target from the event of the kernel to the placed
//! page; percentiles are upper bounds of their buckets.
//!
//! The nodes run the `godwit` binary that cargo builds with this benchmark: the release profile, with the test-only
//! feature `planted-bugs` compiled in, which B uses.
//!
//! ```text
//!   cargo bench -p godwit --bench faults -- --runs 3 --memory 512Mi
//! ```

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use godwit::lab::cluster::{Cluster, How, Moved, NodeSpec, STEP_TIMEOUT};
use godwit::lab::sweeper::Sweeper;
use godwit::{cli, lab::render};
use godwit_domain::progress::PostCopyReport;
use godwit_domain::{GuestName, GuestSpec, NodeName, Overrides, Quantity};
use godwit_wire::admin::MoveMode;

/// Something went wrong; in one line.
type Failure = Box<dyn Error + Send + Sync>;

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
/// The ways that are compared, with what switches them on.
const WAYS: [(&str, Option<(&str, &str)>); 2] =
    [("A two sockets", None), ("B one socket", Some(("GODWIT_PLANTED", "one-socket")))];
/// Threads of the guest, and how they touch memory.
const GUESTS: [(u8, &str); 4] = [(1, "uniform"), (1, "streaming"), (16, "uniform"), (16, "streaming")];
/// Bytes per second that the guest writes: as fast as pages come, or faster.
const DIRTY_RATE: u64 = 1 << 30;

struct Options {
    runs: usize,
    memory: Quantity,
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&*error);
            ExitCode::FAILURE
        }
    }
}

fn read_options() -> Result<Options, Failure> {
    let mut options = Options { runs: 3, memory: Quantity::from_bytes(512 << 20) };
    // Cargo says `--bench` to every benchmark.
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(option) = words.next() {
        let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--runs" => options.runs = value.parse()?,
            "--memory" => options.memory = value.parse()?,
            _ => return Err(format!("{option} is none of --runs --memory").into()),
        }
    }
    Ok(options)
}

fn bench() -> Result<(), Failure> {
    let options = read_options()?;
    let (cores, kernel) =
        (std::thread::available_parallelism()?, std::fs::read_to_string("/proc/sys/kernel/osrelease")?);
    let memory = render::bytes(options.memory.bytes());
    say(&format!("{cores} cores, Linux {}; a guest of {memory}, {} runs each", kernel.trim(), options.runs))?;
    let program = Path::new(env!("CARGO_BIN_EXE_godwit"));
    let dir = tempfile::Builder::new().prefix("godwit-bench-").tempdir()?.keep();
    let mark = dir.file_name().and_then(|name| name.to_str()).unwrap_or("godwit-bench").to_owned();
    let sweeper = Sweeper::start(program, &mark, Some(&dir))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(compare(&options, program, &dir, &mark));
    sweeper.sweep()?;
    outcome
}

async fn compare(options: &Options, program: &Path, dir: &Path, mark: &str) -> Result<(), Failure> {
    let mut ways = Vec::new();
    for (at, (_, environment)) in WAYS.iter().enumerate() {
        let all: Vec<NodeName> = NODES.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        let mut cluster = Cluster::new(program, &dir.join(at.to_string()), mark, &all)?;
        let environment: Vec<(String, String)> =
            environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let spec = |node| NodeSpec { environment: environment.clone(), ..cluster.spec(node) };
        let specs = all.iter().map(spec).collect();
        cluster.start_nodes(specs).await?;
        cluster.leader().await?;
        cluster.are_reachable(&all).await?;
        ways.push(cluster);
    }
    for (threads, pattern) in GUESTS {
        let mut sums = [PostCopyReport::default(); WAYS.len()];
        for run in 0..=options.runs {
            for (cluster, sum) in ways.iter_mut().zip(&mut sums) {
                let report = move_once(cluster, options, threads, pattern).await?;
                // The first is not counted: memory that the host has never backed costs more.
                if run > 0 {
                    add(sum, &report);
                }
            }
        }
        for ((name, _), sum) in WAYS.iter().zip(&sums) {
            tell(&format!("{threads:>2} threads, {pattern:<9}  {name:<13}"), sum)?;
        }
    }
    for cluster in ways {
        cluster.shut_down().await;
    }
    Ok(())
}

async fn move_once(
    cluster: &mut Cluster,
    options: &Options,
    threads: u8,
    pattern: &str,
) -> Result<PostCopyReport, Failure> {
    let guest: GuestName = "default/bench".parse()?;
    let spec = GuestSpec {
        memory_bytes: options.memory.bytes(),
        working_set_bytes: options.memory.bytes(),
        dirty_rate_bytes_per_second: DIRTY_RATE,
        pattern: pattern.into(),
        zero_percent: 0,
        compressible_percent: 0,
        threads,
        seed: 1,
        tick_interval_ms: 100,
        qemu: None,
    };
    cluster.create_guest(&guest, &"node-a".parse()?, spec).await?;
    let overrides = Overrides { allow_post_copy: Some(true), ..Overrides::default() };
    let how = How { overrides, mode: Some(MoveMode::PostCopy) };
    let silent = async |_: &mut Cluster, _: &_| {};
    let moved = cluster.migrate(&guest, &"node-b".parse()?, how, STEP_TIMEOUT, silent).await?;
    let wrong = cluster.verify(&guest).await?.wrong;
    cluster.delete_guest(&guest).await?;
    match moved {
        Moved::Succeeded { post_copy: Some(report), .. } if wrong == 0 => Ok(*report),
        other => Err(format!("not a good post-copy, {wrong} pages wrong: {other:?}").into()),
    }
}

fn add(sum: &mut PostCopyReport, report: &PostCopyReport) {
    sum.faults += report.faults;
    sum.took_us += report.took_us;
    sum.blocked_us += report.blocked_us;
    for (sum, count) in sum.latency_log2_us.iter_mut().zip(report.latency_log2_us) {
        *sum += count;
    }
}

fn tell(what: &str, sum: &PostCopyReport) -> Result<(), Failure> {
    let percentile = |percent| sum.latency_percentile_us(percent);
    say(&format!(
        "{what}  {:>7} faults  p50 < {:>6} us  p99 < {:>6} us  all pages in {:.2} s",
        sum.faults,
        percentile(50),
        percentile(99),
        sum.took_us as f64 / 1e6
    ))?;
    let buckets = (0..).zip(sum.latency_log2_us).filter(|(_, count)| *count > 0);
    let buckets: Vec<String> = buckets.map(|(power, count)| format!("{}: {count}", 1_u64 << power)).collect();
    say(&format!("      from us: {}", buckets.join("  ")))
}

/// A line for stdout, at once: a run takes long, and whoever waits wants to see it.
fn say(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
