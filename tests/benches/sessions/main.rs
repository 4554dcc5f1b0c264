//! A thousand nodes and their leader: what sessions cost, how fast migrations are granted, and what an election does to both.
//!
//! ```text
//!   three voters: `godwit` processes ══ QUIC, mutual TLS, loopback ══ 1,000 nodes (`nodes`), in this process
//!        │
//!        ├─ idle          CPU and memory of the leader and of a voter that follows, without and with sessions
//!        ├─ a queue       migrations asked for, granted and over, a second
//!        └─ its end       SIGTERM, and SIGKILL, with a queue and with migrations that run ─▶ the next grant; the running ones
//! ```
//!
//! Always true:
//! - voters are whole nodes, and sessions are real ones: certificates, QUIC, frames, questions for the quorum. Only guests,
//!   and so the copying, are not there;
//! - nothing is asserted about times: the nodes' CPU, and other people's, is this machine's too. That what was running was not
//!   touched is: no entry of the log is about it after the leader's end;
//! - nothing is left behind, however it ends.
//!
//! ```text
//!   cargo bench -p godwit --bench sessions                   QUICK=1: 50 nodes, to see that it works
//! ```

mod nodes;

use std::collections::BTreeSet;
use std::error::Error;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use godwit::cli;
use godwit::lab::cluster::{Cluster, NodeSpec};
use godwit::lab::sweeper::Sweeper;
use godwit_domain::{GuestName, GuestSpec, Labels, MigrationId, NodeName, Overrides};
use godwit_node::group::now_ms;
use godwit_wire::admin::Act;
use nodes::Fleet;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Something went wrong; in one line.
type Failure = Box<dyn Error + Send + Sync>;

const VOTERS: [&str; 3] = ["voter-a", "voter-b", "voter-c"];
/// Requests of operators under way.
const OPERATORS: usize = 16;
/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// How often a request is made, and the rest in between.
const TRIES_MAX: u32 = 20;
const AGAIN: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&*error);
            ExitCode::FAILURE
        }
    }
}

/// How much of everything.
#[derive(Clone, Copy)]
struct Size {
    nodes: u64,
    guests: u64,
    /// Permits of the cluster.
    at_once: u32,
    /// Migrations that go on running.
    held: usize,
    idle: Duration,
}

impl Size {
    fn asked() -> Self {
        let quick = std::env::var("QUICK").is_ok_and(|value| !value.is_empty() && value != "0");
        if quick {
            Self { nodes: 50, guests: 100, at_once: 20, held: 6, idle: Duration::from_secs(1) }
        } else {
            Self { nodes: 1_000, guests: 2_000, at_once: 200, held: 20, idle: Duration::from_secs(10) }
        }
    }
}

fn bench() -> Result<(), Failure> {
    let size = Size::asked();
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    say(&format!("{cores} cores, Linux {}", kernel.trim()))?;
    say(&format!("cargo bench -p godwit --bench sessions ({} nodes)", size.nodes))?;
    let program = Path::new(env!("CARGO_BIN_EXE_godwit"));
    let dir = tempfile::Builder::new().prefix("godwit-bench-").tempdir()?.keep();
    let mark = dir.file_name().and_then(|name| name.to_str()).unwrap_or("godwit-bench").to_owned();
    let sweeper = Sweeper::start(program, &mark, Some(&dir))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(run(size, program, &dir, &mark));
    sweeper.sweep()?;
    outcome
}

async fn run(size: Size, program: &Path, dir: &Path, mark: &str) -> Result<(), Failure> {
    let names: Vec<NodeName> = VOTERS.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    let mut cluster = Cluster::new(program, dir, mark, &names)?;
    // Voters take no guests: all that happens is between the others.
    let specs =
        names.iter().map(|name| NodeSpec { memory_bytes: Some(1 << 20), ..cluster.spec(name) }).collect();
    cluster.start_nodes(specs).await?;
    let (leader, _) = cluster.leader().await?;
    cluster.are_reachable(&names).await?;
    let mut bench = Bench { size, cluster, names, leader };
    let alone = bench.idle("idle, voters alone").await?;

    let began = Instant::now();
    let fleet = Fleet::start(size.nodes, dir, bench.cluster.voters())?;
    let made = began.elapsed();
    bench.all_here(&fleet).await?;
    say(&format!(
        "{} certificates made in {:.1} s; every node has its session {:.1} s later",
        size.nodes,
        made.as_secs_f64(),
        (began.elapsed() - made).as_secs_f64()
    ))?;
    let with = bench.idle("idle, with sessions").await?;
    let session_kib = with.bytes.saturating_sub(alone.bytes) as f64 / 1024.0 / size.nodes as f64;
    say(&format!("  a session takes {session_kib:.0} KiB of the leader's memory"))?;

    bench.populate(&fleet).await?;
    let grants = bench.first_half(&fleet).await?;
    let quarter = size.guests / 4;
    let ended = bench.election(&fleet, End::Told, 2 * quarter..3 * quarter).await?;
    let killed = bench.election(&fleet, End::Killed, 3 * quarter..4 * quarter).await?;
    drop(fleet);
    bench.cluster.shut_down().await;
    say(&format!(
        "sessions: {} nodes take {:.0} % of a core and {session_kib:.0} KiB each of their leader; {grants:.0} grants/s; \
         granted again {ended:.2} s after the leader was told to end, {killed:.2} s after one was killed",
        size.nodes,
        (with.cpu_share - alone.cpu_share) * 100.0
    ))
}

/// What a process took.
struct Took {
    /// Of one core.
    cpu_share: f64,
    /// Resident, at the end.
    bytes: u64,
}

/// How a leader ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// SIGTERM: it closes its connections.
    Told,
    /// SIGKILL: they fall silent.
    Killed,
}

struct Bench {
    size: Size,
    cluster: Cluster,
    names: Vec<NodeName>,
    leader: NodeName,
}

impl Bench {
    /// Nothing happens, for a while; what the leader takes.
    async fn idle(&self, what: &str) -> Result<Took, Failure> {
        let length = self.size.idle;
        let watch = Watch::start(self);
        tokio::time::sleep(length).await;
        watch.tell(self, what)
    }

    async fn all_here(&self, fleet: &Fleet) -> Result<(), Failure> {
        until("every node has a session", || fleet.seen.sessions.load(Relaxed) == fleet.names.len()).await
    }

    /// Many operators, each with one request at a time, at a voter that lives.
    async fn ask_all(&self, acts: Vec<Act>) -> Result<(), Failure> {
        let asked = stream::iter(acts).map(|act| self.ask(act)).buffer_unordered(OPERATORS);
        let answers: Vec<Result<(), Failure>> = asked.collect().await;
        answers.into_iter().collect()
    }

    /// Asks again what was refused: a node that has lost its session is back in a moment.
    async fn ask(&self, act: Act) -> Result<(), Failure> {
        let at = self.names.iter().find(|name| **name != self.leader).ok_or("three voters")?;
        let mut tries = 0;
        while let Err(error) = self.cluster.ask(at, act.clone()).await {
            tries += 1;
            if tries == TRIES_MAX {
                return Err(error.into());
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }

    /// How many may run in the cluster.
    async fn limit(&self, at_once: u32) -> Result<(), Failure> {
        let object = json!({
            "apiVersion": "hco.kubevirt.io/v1beta1", "kind": "HyperConverged",
            "metadata": {"name": "kubevirt-hyperconverged"},
            "spec": {"liveMigrationConfig": {
                "parallelMigrationsPerCluster": at_once,
                "parallelOutboundMigrationsPerNode": 4, "parallelInboundMigrationsPerNode": 4,
            }},
        });
        self.ask_all(vec![Act::Apply { object, namespace: None, create: false, dry_run: false }]).await
    }

    /// Guests, dealt out over the nodes.
    async fn populate(&self, fleet: &Fleet) -> Result<(), Failure> {
        self.limit(self.size.at_once).await?;
        let homes = fleet.names.iter().cycle();
        let create = |(guest, node): (u64, &NodeName)| -> Result<Act, Failure> {
            let (guest, node) = (guest_name(guest)?, Some(node.clone()));
            Ok(Act::GuestCreate { guest, node, spec: GuestSpec::idle(1 << 30), labels: Labels::new() })
        };
        let acts = (0..self.size.guests).zip(homes).map(create).collect::<Result<Vec<_>, _>>()?;
        let watch = Watch::start(self);
        self.ask_all(acts).await?;
        let rate = self.size.guests as f64 / watch.began.elapsed().as_secs_f64();
        watch.tell(self, "guests created")?;
        say(&format!("  {rate:.0} a second, {OPERATORS} operators"))
    }

    /// Asks for the migrations of these guests.
    async fn ask_for(&self, guests: Range<u64>) -> Result<(), Failure> {
        let act = |guest: u64| -> Result<Act, Failure> {
            Ok(Act::Migrate {
                guest: guest_name(guest)?,
                migration: Some(migration(guest)?),
                to: None,
                selector: Labels::new(),
                overrides: Overrides::default(),
                mode: None,
                dry_run: false,
            })
        };
        self.ask_all(guests.map(act).collect::<Result<Vec<_>, _>>()?).await
    }

    /// Half of the guests move; grants a second.
    async fn first_half(&self, fleet: &Fleet) -> Result<f64, Failure> {
        let half = self.size.guests / 2;
        let watch = Watch::start(self);
        let began = watch.began;
        let asking = async {
            self.ask_for(0..half).await?;
            say(&format!("{half} migrations asked for in {:.1} s", began.elapsed().as_secs_f64()))
        };
        let granted = until("the first half is granted", || fleet.seen.grants().len() as u64 >= half);
        tokio::try_join!(asking, granted)?;
        let last = fleet.seen.grants().into_iter().max().ok_or("some were granted")?;
        let rate = half as f64 / (last - began).as_secs_f64();
        watch.tell(self, "migrations granted and over")?;
        say(&format!("  {rate:.0} grants a second, asking included"))?;
        Ok(rate)
    }

    /// The leader goes with a queue and with migrations that run. Seconds from its end to the next grant.
    async fn election(&mut self, fleet: &Fleet, end: End, guests: Range<u64>) -> Result<f64, Failure> {
        let held = self.size.held / 2;
        let queue = guests.start + held as u64..guests.end;
        let others = fleet.seen.hold(held);
        self.ask_for(guests.start..queue.start).await?;
        until("what is held runs", || fleet.seen.held().len() == others + held).await?;
        self.limit(0).await?;
        let (before, waiting) = (fleet.seen.grants().len(), queue.clone().count());
        self.ask_for(queue).await?;
        self.limit(self.size.at_once).await?;
        let granted = || fleet.seen.grants().len() - before;
        until("some are granted", || granted() > waiting / 8).await?;
        let (killed, killed_ms, leader) = (Instant::now(), now_ms(), self.leader.clone());
        match end {
            End::Told => self.tell(&leader, Signal::TERM)?,
            End::Killed => self.cluster.kill_node(&leader).await?,
        }
        say(&format!(
            "{} of {waiting} were granted when the leader was {}, {} others ran",
            granted(),
            if end == End::Told { "told to end" } else { "killed" },
            fleet.seen.held().len()
        ))?;
        self.names.retain(|name| *name != leader);
        let since = |at: Instant| (at - killed).as_secs_f64();
        self.leader = self.elected().await?;
        let elected = since(Instant::now());
        let watch = Watch::start(self);
        until("all are granted", || granted() >= waiting).await?;
        self.all_here(fleet).await?;
        let sessions = fleet.seen.begun_since(killed);
        let (first, last) = (sessions.iter().min(), sessions.iter().max());
        let grants = fleet.seen.grants().into_iter().filter(|at| *at > killed).map(since);
        let (again, all) = grants.fold((f64::INFINITY, 0.0_f64), |(a, b), at| (a.min(at), b.max(at)));
        say(&format!(
            "  another leads after {elected:.2} s; first session {:.2} s, every session {:.2} s; next grant {again:.2} s, last {all:.2} s",
            first.copied().map_or(f64::NAN, since),
            last.copied().map_or(f64::NAN, since)
        ))?;
        watch.tell(self, "from then to the last session")?;
        let touched = self.touched(&fleet.seen.held(), killed_ms)?;
        if !touched.is_empty() {
            return Err(
                format!("entries are about migrations that were to go on untouched: {touched:?}").into()
            );
        }
        say(&format!("  no entry is about any of the {} that were running", fleet.seen.held().len()))?;
        // All three vote again.
        until_ended(&mut self.cluster, &leader).await?;
        self.cluster.restart_node(&leader).await?;
        self.names.push(leader);
        Ok(again)
    }

    /// Waits until one of those that live leads.
    async fn elected(&self) -> Result<NodeName, Failure> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for name in &self.names {
                let status = self.cluster.ask(name, Act::ControlStatus).await?;
                if status.get("role").and_then(Value::as_str) == Some("leader") {
                    return Ok(name.clone());
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Err("nobody was elected".into())
    }

    /// Lines of the leader's audit log, from then on, that are about one of these.
    fn touched(&self, migrations: &BTreeSet<MigrationId>, since_ms: u64) -> Result<Vec<String>, Failure> {
        let log = std::fs::read_to_string(self.cluster.node_dir(&self.leader).join("audit").join("log"))?;
        let names: Vec<String> = migrations.iter().map(|name| format!("\"{name}\"")).collect();
        let mut lines = 0_u64;
        let mut touched = Vec::new();
        for line in log.lines() {
            let entry: Value = serde_json::from_str(line)?;
            if entry.get("time_ms").and_then(Value::as_u64).is_some_and(|at| at > since_ms) {
                lines += 1;
                touched.extend(names.iter().any(|name| line.contains(name)).then(|| line.to_owned()));
            }
        }
        if lines == 0 {
            return Err("the leader's audit log says nothing of what came after the election".into());
        }
        Ok(touched)
    }

    fn tell(&self, node: &NodeName, signal: Signal) -> Result<(), Failure> {
        let pid = i32::try_from(self.pid(node)).ok().and_then(Pid::from_raw).ok_or("it has no process")?;
        Ok(kill_process(pid, signal)?)
    }

    fn pid(&self, node: &NodeName) -> u32 {
        self.cluster.node(node).map_or(0, |process| process.pid)
    }
}

/// What the leader, and one that follows, take from its start to its end.
struct Watch {
    began: Instant,
    leader: Duration,
    follower: Duration,
}

impl Watch {
    fn start(bench: &Bench) -> Self {
        let (leader, follower) = Self::cpu(bench);
        Self { began: Instant::now(), leader, follower }
    }

    fn cpu(bench: &Bench) -> (Duration, Duration) {
        let follower = bench.names.iter().find(|name| **name != bench.leader);
        (
            bench.cluster.cpu_time(&bench.leader),
            follower.map_or(Duration::ZERO, |it| bench.cluster.cpu_time(it)),
        )
    }

    fn tell(&self, bench: &Bench, what: &str) -> Result<Took, Failure> {
        let seconds = self.began.elapsed().as_secs_f64();
        let (leader, follower) = Self::cpu(bench);
        let share = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64() / seconds;
        let (cpu_share, follows) = (share(leader, self.leader), share(follower, self.follower));
        let bytes = resident_bytes(bench.pid(&bench.leader));
        say(&format!(
            "{what}: {seconds:.1} s, the leader {:.0} % of a core and {:.0} MiB, a voter that follows {:.0} %",
            cpu_share * 100.0,
            bytes as f64 / f64::from(1 << 20),
            follows * 100.0
        ))?;
        Ok(Took { cpu_share, bytes })
    }
}

/// Memory of a process that is in RAM.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

fn guest_name(n: u64) -> Result<GuestName, Failure> {
    Ok(format!("default/vm-{n}").parse()?)
}

fn migration(n: u64) -> Result<MigrationId, Failure> {
    Ok(format!("move-{n}").parse()?)
}

async fn until_ended(cluster: &mut Cluster, node: &NodeName) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !cluster.has_ended(node) {
        if Instant::now() > deadline {
            return Err(format!("node {node} does not end").into());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// Waits until something is so, and a minute at most.
async fn until(what: &str, so: impl Fn() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        if Instant::now() > deadline {
            return Err(format!("within {} s not: {what}", PATIENCE.as_secs()).into());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// A line for stdout, at once: a run takes long, and whoever waits wants to see it.
fn say(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
