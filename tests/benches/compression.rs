//! What compression gains where the link is slow, and what it costs where there is nothing to gain. Nothing is asserted
//! about times: other people's work on the same machine is in them, which is why the two take turns.
//!
//! ```text
//!   node-a ══▶ node-b   A  compression as it is       one guest, there and back; the source decides
//!   node-a ◀══ node-b   B  compression off
//!   mixed    40 % zero, 45 % compressible, 15 % random; under a limit     ─▶ seconds, A/B
//!   random   nothing else; without one                                   ─▶ CPU seconds of both nodes, A/B
//! ```
//!
//! Always true:
//! - memory is compared page by page after every run;
//! - zero pages are left out in A and in B: what is compared is packing alone;
//! - one pair of each guest is not counted;
//! - nothing is left behind, however it ends.
//!
//! The nodes run the `godwit` binary that cargo builds with this benchmark: the release profile, with the test-only
//! feature `planted-bugs` compiled in. It holds the switch for B, which no real build has.
//!
//! ```text
//!   cargo bench -p godwit --bench compression -- --pairs 3 --memory 512Mi --bandwidth 64Mi
//! ```

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use godwit::lab::cluster::{Cluster, Moved, NodeSpec, STEP_TIMEOUT};
use godwit::lab::sweeper::Sweeper;
use godwit::{cli, lab::render};
use godwit_domain::{GuestName, GuestSpec, NodeName, Overrides, PAGE_BYTES, Quantity};

/// Something went wrong; in one line.
type Failure = Box<dyn Error + Send + Sync>;

/// Between the first two the guest goes back and forth; a third so that they can agree.
const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
/// What the source is like in the two directions.
const NAMES: [&str; 2] = ["A as it is", "B off"];
/// The pair that is not counted.
const WARM_UP: usize = 0;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match bench(&words) {
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
    bandwidth: Quantity,
}

impl Options {
    fn read(words: &[String]) -> Result<Self, Failure> {
        let mut options = Self {
            pairs: 3,
            memory: Quantity::from_bytes(512 << 20),
            bandwidth: Quantity::from_bytes(64 << 20),
        };
        let mut words = words.iter();
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
            match option.as_str() {
                "--pairs" => options.pairs = value.parse()?,
                "--memory" => options.memory = value.parse()?,
                "--bandwidth" => options.bandwidth = value.parse()?,
                _ => return Err(format!("{option} is none of --pairs --memory --bandwidth").into()),
            }
        }
        if options.pairs == 0 || options.bandwidth.bytes() == 0 {
            return Err("--pairs and --bandwidth must be 1 or more".into());
        }
        Ok(options)
    }

    /// The two guests, with the limit that each moves under; 0 for none.
    fn guests(&self) -> [(&'static str, GuestSpec, Quantity); 2] {
        let memory_bytes = self.memory.bytes();
        let random = GuestSpec {
            memory_bytes,
            working_set_bytes: 0,
            dirty_rate_bytes_per_second: 0,
            pattern: "uniform".into(),
            zero_percent: 0,
            compressible_percent: 0,
            threads: 1,
            seed: 1,
            tick_interval_ms: 100,
        };
        let mixed = GuestSpec {
            // A little is written all the while, so that there are rounds.
            working_set_bytes: memory_bytes / 8 / PAGE_BYTES * PAGE_BYTES,
            dirty_rate_bytes_per_second: self.bandwidth.bytes() / 16,
            zero_percent: 40,
            compressible_percent: 45,
            ..random.clone()
        };
        [("mixed", mixed, self.bandwidth), ("random", random, Quantity::from_bytes(0))]
    }
}

/// What one run measured.
#[derive(Clone, Copy)]
struct Sample {
    seconds: f64,
    cpu_seconds: f64,
    wire_bytes: u64,
}

fn bench(words: &[String]) -> Result<(), Failure> {
    let options = Options::read(words)?;
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    say(&format!("{cores} cores, Linux {}", kernel.trim()))?;
    say(&format!(
        "{} of RAM, mixed under {}/s, {} pairs after a warm-up",
        render::bytes(options.memory.bytes()),
        render::bytes(options.bandwidth.bytes()),
        options.pairs
    ))?;
    let program = Path::new(env!("CARGO_BIN_EXE_godwit"));
    let dir = tempfile::Builder::new().prefix("godwit-bench-").tempdir()?.keep();
    let mark = dir.file_name().and_then(|name| name.to_str()).unwrap_or("godwit-bench").to_owned();
    let sweeper = Sweeper::start(program, &mark, Some(&dir))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = options.guests().into_iter().try_for_each(|(name, spec, limit)| {
        let dir = dir.join(name);
        let samples = runtime.block_on(async {
            let mut series = Series::start(program, &dir, &mark, spec, limit).await?;
            let samples = series.run(name, options.pairs).await;
            series.cluster.shut_down().await;
            samples
        })?;
        conclude(name, &samples)
    });
    sweeper.sweep()?;
    outcome
}

/// One guest between two nodes, of which the second does not compress.
struct Series {
    cluster: Cluster,
    nodes: [NodeName; 2],
    guest: GuestName,
    overrides: Overrides,
    limit: Duration,
}

impl Series {
    async fn start(
        program: &Path,
        dir: &Path,
        mark: &str,
        spec: GuestSpec,
        bandwidth: Quantity,
    ) -> Result<Self, Failure> {
        let all: Vec<NodeName> = NODES.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        let nodes = [all[0].clone(), all[1].clone()];
        let guest: GuestName = "default/bench".parse()?;
        let mut cluster = Cluster::new(program, dir, mark, &all)?;
        let node = |name: &NodeName| {
            let off = (*name == nodes[1]).then(|| ("GODWIT_PLANTED".to_owned(), "no-compression".to_owned()));
            NodeSpec { environment: off.into_iter().collect(), ..cluster.spec(name) }
        };
        let specs = all.iter().map(node).collect();
        cluster.start_nodes(specs).await?;
        cluster.leader().await?;
        cluster.are_reachable(&all).await?;
        // The slowest link at which a run still ends within this.
        let limit = STEP_TIMEOUT + Duration::from_secs(4 * (spec.memory_bytes >> 20).max(1));
        cluster.create_guest(&guest, &nodes[0], spec).await?;
        let overrides = Overrides { bandwidth_per_migration: Some(bandwidth), ..Overrides::default() };
        Ok(Self { cluster, nodes, guest, overrides, limit })
    }

    /// A, B, A, B, …
    async fn run(&mut self, name: &str, pairs: usize) -> Result<[Vec<Sample>; 2], Failure> {
        let mut samples = [Vec::new(), Vec::new()];
        for pair in WARM_UP..=pairs {
            for (way, samples) in samples.iter_mut().enumerate() {
                let target = self.nodes[1 - way].clone();
                let sample = self.one(&target).await?;
                let counts = if pair == WARM_UP { "warm-up".to_owned() } else { format!("pair {pair}") };
                say(&format!(
                    "{name:<7} {counts:<8} {:<11} {:>8.3} s {:>8.2} CPU-s {:>10} sent",
                    NAMES[way],
                    sample.seconds,
                    sample.cpu_seconds,
                    render::bytes(sample.wire_bytes)
                ))?;
                if pair != WARM_UP {
                    samples.push(sample);
                }
            }
        }
        Ok(samples)
    }

    async fn one(&mut self, target: &NodeName) -> Result<Sample, Failure> {
        let before = self.cpu_time();
        let silent = async |_: &mut Cluster, _: &_| {};
        let moved = self.cluster.migrate(&self.guest, target, self.overrides, self.limit, silent).await?;
        let cpu = self.cpu_time().saturating_sub(before);
        let source = match moved {
            Moved::Succeeded { source, .. } => source,
            Moved::Failed(reason) => return Err(format!("migration to {target} failed: {reason}").into()),
        };
        let verified = self.cluster.verify(&self.guest).await?;
        if verified.wrong > 0 {
            return Err(format!("{} of {} pages are wrong", verified.wrong, verified.pages).into());
        }
        Ok(Sample {
            seconds: Duration::from_micros(source.total_us).as_secs_f64(),
            cpu_seconds: cpu.as_secs_f64(),
            wire_bytes: source.wire_bytes,
        })
    }

    /// CPU time of both nodes so far.
    fn cpu_time(&self) -> Duration {
        self.nodes.iter().map(|node| self.cluster.cpu_time(node)).sum()
    }
}

/// Best and median of each, and A/B of both.
fn conclude(name: &str, samples: &[Vec<Sample>; 2]) -> Result<(), Failure> {
    say(&format!("\n{name:<26}     best   median"))?;
    type Measure = fn(&Sample) -> f64;
    let measures: [(&str, Measure); 3] = [
        ("s", |sample| sample.seconds),
        ("CPU-s", |sample| sample.cpu_seconds),
        ("MiB sent", |sample| sample.wire_bytes as f64 / f64::from(1 << 20)),
    ];
    for (unit, measure) in measures {
        let of_each = samples.each_ref().map(|runs| best_and_median(runs.iter().map(measure).collect()));
        for (name, [best, median]) in NAMES.iter().zip(of_each) {
            say(&format!("  {name:<12} {unit:<12} {best:>8.3} {median:>8.3}"))?;
        }
        let [[a_best, a_median], [b_best, b_median]] = of_each;
        say(&format!("  {:<12} {unit:<12} {:>8.3} {:>8.3}", "A/B", a_best / b_best, a_median / b_median))?;
    }
    say("")
}

/// The least of them, and the one in the middle.
fn best_and_median(mut of_runs: Vec<f64>) -> [f64; 2] {
    of_runs.sort_by(f64::total_cmp);
    let at = |i: usize| of_runs.get(i).copied().unwrap_or(f64::NAN);
    let middle = of_runs.len() / 2;
    let median = if of_runs.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle - 1), at(middle)) };
    [at(0), median]
}

/// A line for stdout, at once: a run takes long, and whoever waits wants to see it.
fn say(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
