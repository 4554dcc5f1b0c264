//! What a migration costs above the bare transport under it. Nothing is asserted about times: other people's work
//! on the same machine is in them, which is why the two take turns.
//!
//! ```text
//!   A   guest ─ runner ─ node-a ══ QUIC ══ node-b ─ runner      SourceReport::total_us, CPU of both nodes
//!   B                raw client ══ QUIC ══ raw server           first byte to "all of it is here", CPU of both
//!   A B A B …  at each UDP payload ─▶ a line a run ─▶ best, median, A/B
//! ```
//!
//! Always true:
//! - A moves an idle guest whose every page is random: each is sent once, with all of its bytes;
//! - B ([`support`]) has the node's identities, socket buffers, transport settings and runtime, read from the same
//!   node.toml; it reads no memory and writes none, so A/B holds what pages cost and what we add to that;
//! - the CPU of both holds the handshake, and the time of both the search for the path's MTU;
//! - one pair at each size is not counted: in a virtual machine, memory that the host has never backed costs several
//!   times as much to fill, and whoever comes first would pay for it;
//! - nothing is left behind, however it ends.
//!
//! The nodes run the `godwit` binary that cargo builds with this benchmark: the release profile, with the test-only
//! feature `planted-bugs` compiled in and every bug off.
//!
//! ```text
//!   cargo bench -p godwit --bench transport -- --pairs 5 --memory 2Gi --udp-payload 1452 --streams 1
//! ```

mod support;

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use godwit::lab::cluster::{Cluster, Moved, NodeSpec, STEP_TIMEOUT};
use godwit::lab::sweeper::Sweeper;
use godwit::{cli, lab::render};
use godwit_domain::{GuestName, GuestSpec, NodeName, Overrides, PAGE_BYTES, Quantity};
use godwit_transfer::transport::PAGE_STREAMS;

/// Something went wrong; in one line.
type Failure = Box<dyn Error + Send + Sync>;

/// What the nodes send by default, and the most that they may.
const UDP_PAYLOADS: [u16; 2] = [1452, 6540];
/// The nodes between which the guest goes back and forth, and a third so that they can agree.
const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
/// The names of the two in what is printed.
const NAMES: [&str; 2] = ["A migration", "B raw QUIC"];
/// The pair that is not counted.
const WARM_UP: usize = 0;
const GIB: f64 = (1_u64 << 30) as f64;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.split_first() {
        Some((role, rest)) if role == support::SERVER => support::serve(rest),
        Some((role, rest)) if role == support::CLIENT => support::send(rest),
        _ => bench(&words),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&*error);
            ExitCode::FAILURE
        }
    }
}

/// What was asked for.
struct Options {
    pairs: usize,
    memory: Quantity,
    udp_payloads: Vec<u16>,
    streams: usize,
}

impl Options {
    fn read(words: &[String]) -> Result<Self, Failure> {
        let mut options = Self {
            pairs: 3,
            memory: Quantity::from_bytes(1 << 30),
            udp_payloads: UDP_PAYLOADS.to_vec(),
            streams: PAGE_STREAMS,
        };
        // Cargo says `--bench` to every benchmark.
        let mut words = words.iter().filter(|word| *word != "--bench");
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
            match option.as_str() {
                "--pairs" => options.pairs = value.parse()?,
                "--memory" => options.memory = value.parse()?,
                "--udp-payload" => options.udp_payloads = vec![value.parse()?],
                "--streams" => options.streams = value.parse()?,
                _ => {
                    return Err(
                        format!("{option} is none of --pairs --memory --udp-payload --streams").into()
                    );
                }
            }
        }
        if options.pairs == 0 || !(1..=PAGE_STREAMS).contains(&options.streams) {
            return Err(format!("--pairs must be 1 or more, --streams 1 to {PAGE_STREAMS}").into());
        }
        Ok(options)
    }

    /// How long one run may take before something is wrong.
    fn limit(&self) -> Duration {
        STEP_TIMEOUT + Duration::from_secs(self.memory.bytes() >> 23)
    }
}

/// What one run measured.
#[derive(Clone, Copy)]
struct Sample {
    bytes_per_second: f64,
    cpu_seconds_per_gib: f64,
}

impl Sample {
    fn of(bytes: u64, took: Duration, cpu: Duration) -> Self {
        let bytes = bytes as f64;
        Self {
            bytes_per_second: bytes / took.as_secs_f64(),
            cpu_seconds_per_gib: cpu.as_secs_f64() / (bytes / GIB),
        }
    }
}

fn bench(words: &[String]) -> Result<(), Failure> {
    let options = Options::read(words)?;
    introduce(words, &options)?;
    let program = Path::new(env!("CARGO_BIN_EXE_godwit"));
    let dir = tempfile::Builder::new().prefix("godwit-bench-").tempdir()?.keep();
    let mark = dir.file_name().and_then(|name| name.to_str()).unwrap_or("godwit-bench").to_owned();
    let sweeper = Sweeper::start(program, &mark, Some(&dir))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = options.udp_payloads.iter().try_for_each(|udp_payload| {
        let dir = dir.join(udp_payload.to_string());
        let samples = runtime.block_on(series(&options, *udp_payload, program, &dir, &mark))?;
        conclude(*udp_payload, &samples)
    });
    sweeper.sweep()?;
    outcome
}

/// Machine and command: what a number is worth nothing without.
fn introduce(words: &[String], options: &Options) -> Result<(), Failure> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let arguments: Vec<_> = words.iter().filter(|word| *word != "--bench").cloned().collect();
    let arguments = if arguments.is_empty() { String::new() } else { format!(" -- {}", arguments.join(" ")) };
    say(&format!("{cores} cores, Linux {}", kernel.trim()))?;
    say(&format!("cargo bench -p godwit --bench transport{arguments}"))?;
    say(&format!(
        "{} a run, {} pairs after a warm-up; B sends chunks of 1 MiB on {} streams",
        render::bytes(options.memory.bytes()),
        options.pairs,
        options.streams
    ))
}

/// All runs at one size of packets: A, B, A, B, …
async fn series(
    options: &Options,
    udp_payload: u16,
    program: &Path,
    dir: &Path,
    mark: &str,
) -> Result<[Vec<Sample>; 2], Failure> {
    let mut migrations = Migrations::start(options, udp_payload, program, dir, mark).await?;
    let raw = support::Raw {
        configs: migrations.nodes.clone().map(|node| migrations.cluster.node_dir(&node).join("node.toml")),
        bytes: options.memory.bytes(),
        streams: options.streams,
        mark,
    };
    let mut samples = [Vec::new(), Vec::new()];
    for pair in WARM_UP..=options.pairs {
        let a = migrations.run().await?;
        tell(udp_payload, pair, NAMES[0], a)?;
        let b = tokio::time::timeout(options.limit(), raw.run()).await??;
        tell(udp_payload, pair, NAMES[1], b)?;
        if pair != WARM_UP {
            samples[0].push(a);
            samples[1].push(b);
        }
    }
    migrations.cluster.shut_down().await;
    Ok(samples)
}

/// A: one guest, moved back and forth between two node processes.
struct Migrations {
    cluster: Cluster,
    nodes: [NodeName; 2],
    guest: GuestName,
    memory_bytes: u64,
    limit: Duration,
}

impl Migrations {
    async fn start(
        options: &Options,
        udp_payload: u16,
        program: &Path,
        dir: &Path,
        mark: &str,
    ) -> Result<Self, Failure> {
        let all: Vec<NodeName> = NODES.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        let nodes = [all[0].clone(), all[1].clone()];
        let guest: GuestName = "default/bench".parse()?;
        let memory_bytes = options.memory.bytes();
        let mut cluster = Cluster::new(program, dir, mark, &all)?;
        let spec = |node| NodeSpec { udp_payload_bytes_max: udp_payload, ..cluster.spec(node) };
        let specs = all.iter().map(spec).collect();
        cluster.start_nodes(specs).await?;
        cluster.leader().await?;
        cluster.are_reachable(&all).await?;
        cluster.create_guest(&guest, &nodes[0], idle(memory_bytes)).await?;
        Ok(Self { cluster, nodes, guest, memory_bytes, limit: options.limit() })
    }

    /// Moves the guest to the other node, which is then the first of the two.
    async fn run(&mut self) -> Result<Sample, Failure> {
        let target = self.nodes[1].clone();
        let before = self.cpu_time();
        let silent = async |_: &mut Cluster, _: &_| {};
        let moved =
            self.cluster.migrate(&self.guest, &target, Overrides::default(), self.limit, silent).await?;
        let cpu = self.cpu_time().saturating_sub(before);
        let source = match moved {
            Moved::Succeeded { source, .. } => source,
            Moved::Failed(reason) => return Err(format!("migration to {target} failed: {reason}").into()),
        };
        self.nodes.swap(0, 1);
        if source.raw_pages * PAGE_BYTES != self.memory_bytes {
            let (raw, zero) = (source.raw_pages, source.zero_pages);
            return Err(
                format!("not every page was sent once with its bytes: {raw} were, {zero} as zeros").into()
            );
        }
        Ok(Sample::of(self.memory_bytes, Duration::from_micros(source.total_us), cpu))
    }

    /// CPU time of both nodes so far.
    fn cpu_time(&self) -> Duration {
        self.nodes.iter().map(|node| self.cluster.cpu_time(node)).sum()
    }
}

/// A guest of random pages that writes none of them.
fn idle(memory_bytes: u64) -> GuestSpec {
    GuestSpec {
        memory_bytes,
        working_set_bytes: 0,
        dirty_rate_bytes_per_second: 0,
        pattern: "uniform".into(),
        zero_percent: 0,
        compressible_percent: 0,
        threads: 1,
        seed: 1,
        // Rarely: it idles beside B.
        tick_interval_ms: 100,
        qemu: None,
    }
}

fn tell(udp_payload: u16, pair: usize, name: &str, sample: Sample) -> Result<(), Failure> {
    let Sample { bytes_per_second, cpu_seconds_per_gib } = sample;
    let rate = bytes_per_second / 1e9;
    let pair = if pair == WARM_UP { "warm-up".to_owned() } else { format!("pair {pair}") };
    say(&format!(
        "UDP payload {udp_payload}  {pair:<7}  {name:<11}  {rate:.3} GB/s  {cpu_seconds_per_gib:.2} CPU-s/GiB"
    ))
}

/// Best and median of each, and A/B of both.
fn conclude(udp_payload: u16, samples: &[Vec<Sample>; 2]) -> Result<(), Failure> {
    say(&format!("\nUDP payload {udp_payload}                   best   median"))?;
    let rates = samples.each_ref().map(|runs| {
        let mut rates: Vec<_> = runs.iter().map(|run| run.bytes_per_second / 1e9).collect();
        rates.sort_by(|one, other| other.total_cmp(one));
        best_and_median(&rates)
    });
    compare("GB/s", &rates)?;
    let costs = samples.each_ref().map(|runs| {
        let mut costs: Vec<_> = runs.iter().map(|run| run.cpu_seconds_per_gib).collect();
        costs.sort_by(f64::total_cmp);
        best_and_median(&costs)
    });
    compare("CPU-s/GiB", &costs)?;
    say("")
}

fn compare(unit: &str, of_each: &[[f64; 2]; 2]) -> Result<(), Failure> {
    for (name, [best, median]) in NAMES.iter().zip(of_each) {
        say(&format!("  {name:<12} {unit:<12} {best:>9.3} {median:>8.3}"))?;
    }
    let [[a_best, a_median], [b_best, b_median]] = of_each;
    let ratios = [a_best / b_best, a_median / b_median];
    say(&format!("  {:<12} {unit:<12} {:>9.3} {:>8.3}", "A/B", ratios[0], ratios[1]))
}

/// Of numbers that are sorted, best first.
fn best_and_median(sorted: &[f64]) -> [f64; 2] {
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle - 1), at(middle)) };
    [at(0), median]
}

/// A line for stdout, at once: a run takes long, and whoever waits wants to see it.
fn say(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
