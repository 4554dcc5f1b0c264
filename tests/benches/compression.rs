//! What packing gains where the link is slow, and what it costs where there is nothing to gain. Nothing is asserted
//! about times: other people's work on the same machine is in them, which is why the two take turns.
//!
//! ```text
//!   node-a ══▶ node-b   A  packing as it is       one guest, there and back; the source decides
//!   node-a ◀══ node-b   B  packing off
//!   then a new cluster in which node-a is the one that does not pack, and so on: a node's own luck is in both
//!
//!   mixed    40 % zero, 45 % compressible, 15 % random; under a limit     ─▶ seconds, A/B
//!   random   nothing else; without one                                   ─▶ CPU seconds of both nodes, A/B
//!   vain     the same, under the limit: what looks worth trying, and is not
//! ```
//!
//! Always true:
//! - memory is compared page by page after every run;
//! - zero pages are left out in A and in B: what is compared is packing alone;
//! - a ratio is of two runs that followed each other, so that what is busy for a minute is busy in both; what is said
//!   is the median for each casting of the two nodes, and the (geometric) mean of the two castings;
//! - one pair of each cluster is not counted;
//! - nothing is left behind, however it ends.
//!
//! The nodes run the `godwit` binary that cargo builds with this benchmark: the release profile, with the test-only
//! feature `planted-bugs` compiled in. It holds the switch for B, which no real build has.
//!
//! ```text
//!   cargo bench -p godwit --bench compression -- --guest mixed --castings 2 --pairs 3 --memory 512Mi --bandwidth 64Mi
//! ```

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
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
/// What the source is like.
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
    /// One of the three; all, if it is not said.
    guest: Option<String>,
    /// Clusters; in each the two nodes change their roles.
    castings: usize,
    /// Pairs of runs in each.
    pairs: usize,
    memory: Quantity,
    bandwidth: Quantity,
}

impl Options {
    fn read(words: &[String]) -> Result<Self, Failure> {
        let mut options = Self {
            guest: None,
            castings: 2,
            pairs: 3,
            memory: Quantity::from_bytes(512 << 20),
            bandwidth: Quantity::from_bytes(64 << 20),
        };
        let mut words = words.iter();
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
            match option.as_str() {
                "--guest" => options.guest = Some(value.clone()),
                "--castings" => options.castings = value.parse()?,
                "--pairs" => options.pairs = value.parse()?,
                "--memory" => options.memory = value.parse()?,
                "--bandwidth" => options.bandwidth = value.parse()?,
                _ => {
                    let all = "--guest --castings --pairs --memory --bandwidth";
                    return Err(format!("{option} is none of {all}").into());
                }
            }
        }
        if options.pairs == 0 || options.castings < 2 || options.bandwidth.bytes() == 0 {
            return Err("--pairs and --bandwidth must be 1 or more, --castings 2 or more".into());
        }
        Ok(options)
    }

    /// The guests, with the limit that each moves under; 0 for none.
    fn guests(&self) -> [(&'static str, GuestSpec, Quantity); 3] {
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
            qemu: None,
        };
        let mixed = GuestSpec {
            // A little is written all the while, so that there are rounds.
            working_set_bytes: memory_bytes / 8 / PAGE_BYTES * PAGE_BYTES,
            dirty_rate_bytes_per_second: self.bandwidth.bytes() / 16,
            zero_percent: 40,
            compressible_percent: 45,
            ..random.clone()
        };
        let vain = ("vain", random.clone(), self.bandwidth);
        [("mixed", mixed, self.bandwidth), ("random", random, Quantity::from_bytes(0)), vain]
    }
}

/// What one run measured.
#[derive(Clone, Copy)]
struct Sample {
    seconds: f64,
    cpu_seconds: f64,
    sent_mib: f64,
    /// What of it the source spent on trying and packing.
    packing_seconds: f64,
}

/// Runs that followed each other: A, B.
type Pair = [Sample; 2];

fn bench(words: &[String]) -> Result<(), Failure> {
    let options = Options::read(words)?;
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    say(&format!("{cores} cores, Linux {}", kernel.trim()))?;
    say(&format!(
        "{} of RAM, a limit of {}/s, {} castings of {} pairs after a warm-up",
        render::bytes(options.memory.bytes()),
        render::bytes(options.bandwidth.bytes()),
        options.castings,
        options.pairs
    ))?;
    let program = Path::new(env!("CARGO_BIN_EXE_godwit"));
    let dir = tempfile::Builder::new().prefix("godwit-bench-").tempdir()?.keep();
    let mark = dir.file_name().and_then(|name| name.to_str()).unwrap_or("godwit-bench").to_owned();
    let sweeper = Sweeper::start(program, &mark, Some(&dir))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let is_asked = |name: &str| options.guest.as_ref().is_none_or(|guest| guest == name);
    let asked = options.guests().into_iter().filter(|(name, ..)| is_asked(name));
    let outcome = asked.into_iter().try_for_each(|(name, spec, limit)| {
        // The pairs of the one casting, and those of the other.
        let mut pairs = [Vec::new(), Vec::new()];
        for casting in 0..options.castings {
            let place = Place { program, dir: dir.join(format!("{name}-{casting}")), mark: &mark };
            let plain = casting.is_multiple_of(2);
            pairs[usize::from(!plain)].extend(runtime.block_on(async {
                let mut series = Series::start(&place, usize::from(plain), spec.clone(), limit).await?;
                let pairs = series.run(name, options.pairs).await;
                series.cluster.shut_down().await;
                pairs
            })?);
        }
        conclude(name, &pairs)
    });
    sweeper.sweep()?;
    outcome
}

/// Where a cluster is started.
struct Place<'a> {
    program: &'a Path,
    dir: PathBuf,
    mark: &'a str,
}

/// One guest between two nodes, of which one does not pack.
struct Series {
    cluster: Cluster,
    nodes: [NodeName; 2],
    /// Which of the two that is.
    off: usize,
    guest: GuestName,
    overrides: Overrides,
    limit: Duration,
}

impl Series {
    async fn start(
        place: &Place<'_>,
        off: usize,
        spec: GuestSpec,
        bandwidth: Quantity,
    ) -> Result<Self, Failure> {
        let all: Vec<NodeName> = NODES.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        let nodes = [all[0].clone(), all[1].clone()];
        let guest: GuestName = "default/bench".parse()?;
        let mut cluster = Cluster::new(place.program, &place.dir, place.mark, &all)?;
        let node = |name: &NodeName| {
            let switch = || ("GODWIT_PLANTED".to_owned(), "no-compression".to_owned());
            let environment = (*name == nodes[off]).then(switch).into_iter().collect();
            NodeSpec { environment, ..cluster.spec(name) }
        };
        let specs = all.iter().map(node).collect();
        cluster.start_nodes(specs).await?;
        cluster.leader().await?;
        cluster.are_reachable(&all).await?;
        // The slowest link at which a run still ends within this.
        let limit = STEP_TIMEOUT + Duration::from_secs(4 * (spec.memory_bytes >> 20).max(1));
        cluster.create_guest(&guest, &nodes[0], spec).await?;
        let overrides = Overrides { bandwidth_per_migration: Some(bandwidth), ..Overrides::default() };
        Ok(Self { cluster, nodes, off, guest, overrides, limit })
    }

    /// There and back, again and again. Where node-a does not pack, B comes first.
    async fn run(&mut self, name: &str, count: usize) -> Result<Vec<Pair>, Failure> {
        let mut pairs = Vec::new();
        for number in WARM_UP..=count {
            let there = self.told(name, number, 0).await?;
            let back = self.told(name, number, 1).await?;
            if number != WARM_UP {
                pairs.push(if self.off == 0 { [back, there] } else { [there, back] });
            }
        }
        Ok(pairs)
    }

    /// One run out of one of the two nodes, and a line about it.
    async fn told(&mut self, name: &str, pair: usize, source: usize) -> Result<Sample, Failure> {
        let target = self.nodes[1 - source].clone();
        let sample = self.one(&target).await?;
        let counts = if pair == WARM_UP { "warm-up".to_owned() } else { format!("pair {pair}") };
        let Sample { seconds, cpu_seconds, sent_mib, packing_seconds } = sample;
        let what = NAMES[usize::from(source == self.off)];
        say(&format!(
            "{name:<7} to {target} {counts:<8} {what:<11} {seconds:>8.3} s {cpu_seconds:>7.2} CPU-s \
             {sent_mib:>8.1} MiB sent, packing {packing_seconds:.4} s"
        ))?;
        Ok(sample)
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
            sent_mib: source.wire_bytes as f64 / f64::from(1 << 20),
            packing_seconds: Duration::from_micros(source.packing_us).as_secs_f64(),
        })
    }

    /// CPU time of both nodes so far.
    fn cpu_time(&self) -> Duration {
        self.nodes.iter().map(|node| self.cluster.cpu_time(node)).sum()
    }
}

/// Medians of A and of B, and A/B: in each casting, and of both.
fn conclude(name: &str, castings: &[Vec<Pair>; 2]) -> Result<(), Failure> {
    type Measure = fn(&Sample) -> f64;
    let measures: [(&str, Measure); 3] = [
        ("s", |sample| sample.seconds),
        ("CPU-s", |sample| sample.cpu_seconds),
        ("MiB sent", |sample| sample.sent_mib),
    ];
    say(&format!(
        "\n{name:<12} {:>10} {:>10} {:>22} {:>8}",
        NAMES[0], NAMES[1], "A/B, b off, a off", "both"
    ))?;
    for (unit, measure) in measures {
        let of = |which: usize| median(castings.iter().flatten().map(|pair| measure(&pair[which])).collect());
        let ratio = |pairs: &Vec<Pair>| median(pairs.iter().map(|[a, b]| measure(a) / measure(b)).collect());
        let [one, other] = castings.each_ref().map(ratio);
        let (a, b, both) = (of(0), of(1), (one * other).sqrt());
        say(&format!("  {unit:<10} {a:>10.4} {b:>10.4} {one:>13.3} {other:>8.3} {both:>8.3}"))?;
    }
    let packing = castings.iter().flatten().map(|[a, _]| a.packing_seconds / a.cpu_seconds * 100.0);
    say(&format!("  of A's CPU time, trying and packing took {:.2} %\n", median(packing.collect())))
}

/// The one in the middle.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let at = |i: usize| numbers.get(i).copied().unwrap_or(f64::NAN);
    let middle = numbers.len() / 2;
    if numbers.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle - 1), at(middle)) }
}

/// A line for stdout, at once: a run takes long, and whoever waits wants to see it.
fn say(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
