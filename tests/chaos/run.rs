//! One run: a cluster of five hosts, guests, operators, faults, and what must hold all the time and at the end.
//!
//! ```text
//!   Field (hosts) ◀── Director ◀── turns ── Eyes ── audit logs, ticks, cables
//!      nodes ◀── Herd (guests), moves, Operators (histories)
//!   … time passes … ─▶ heal ─▶ all migrations end ─▶ judge ─▶ Report | what was violated, and the line that replays it
//! ```

use std::error::Error;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use godwit_domain::NodeName;
use godwit_domain::ownership::Entry;
use godwit_domain::registry::Command;
use godwit_wire::admin::{Act, Status};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::courses::Stage;
use crate::containers::{self, Containers};
use crate::director::{Director, Fault, Faults};
use crate::doors::Doors;
use crate::eyes::{Counter, Eyes, Seen};
use crate::field::{Field, Net};
use crate::hands::{Hand, Namespaces};
use crate::herd::{Herd, HerdReport};
use crate::ledger::Grants;
use crate::linear::{Judged, Operators};
use crate::moves;
use crate::plan::Plan;
use crate::support::world::{World, node};
use crate::table::{Struck, outcomes};
use crate::wire::{self, WireReport};

/// The hosts.
const NODES: [&str; 5] = ["node-a", "node-b", "node-c", "node-d", "node-e"];
/// The first so many vote.
const VOTERS: usize = 3;
/// How long it may take, once nothing is broken any more, until every migration is over and every node answers.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long all guests may take to tick once more.
const TICK_TIMEOUT: Duration = Duration::from_secs(10);

/// What was seen, if all was well.
pub(crate) struct Report {
    pub(crate) struck: Struck,
    pub(crate) migrations: usize,
    outcomes: String,
    herd: HerdReport,
    ticks: (usize, u64, usize),
    wire: WireReport,
    grants: Grants,
    judged: Judged,
    ended: Vec<String>,
    settled: Duration,
}

/// Where a run takes place.
pub(crate) struct Site<'a> {
    /// What strikes.
    pub(crate) hand: Hand<'a>,
    /// Each node's folder: `admin.sock`, `node.log`, `guests`, `audit`.
    pub(crate) folders: Vec<(NodeName, PathBuf)>,
    /// The kernel's counters.
    pub(crate) sent: Counter,
}

/// A run over processes in network namespaces. Errors: what was violated, with the line that runs it again.
pub(crate) async fn in_namespaces(
    world: &mut World,
    plan: &Plan,
    test: &str,
) -> Result<Report, Box<dyn Error>> {
    // Nothing that nodes warn of here says that a promise is broken.
    world.announce(&[" WARN ", " ERROR "]);
    let dir = world.folder("");
    let field = Arc::new(Field::new(&dir, &NODES, VOTERS, plan.seed)?);
    let mut specs = field.specs();
    if let Some(bug) = plan.planted {
        let planted = ("GODWIT_PLANTED".to_owned(), bug.to_owned());
        specs.iter_mut().for_each(|spec| spec.environment.push(planted.clone()));
    }
    world.start_as(specs).await?;
    let cables = Arc::clone(&field);
    let site = Site {
        folders: NODES.map(node).map(|node| (node.clone(), world.cluster.node_dir(&node))).to_vec(),
        sent: Box::new(move |node| cables.sent(node, Net::Pages).map_err(|error| error.to_string())),
        hand: Hand::Namespaces(Namespaces { cluster: &mut world.cluster, field }),
    };
    run(site, plan, test).await
}

/// A run over the lab of containers, which this starts and puts away. The image must have been built.
pub(crate) async fn in_containers(plan: &Plan, test: &str) -> Result<Report, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    containers::lab("up").await?;
    let ran = async {
        let hosts = Containers::find(dir.path(), NODES.map(node).to_vec()).await?;
        let counters = hosts.counters();
        let site = Site {
            folders: hosts.folders(),
            sent: Box::new(move |node| Ok(counters.sent(node))),
            hand: Hand::Containers(hosts),
        };
        run(site, plan, test).await
    };
    let ran = ran.await;
    let put_away = containers::lab("down").await;
    let report = ran?;
    put_away?;
    Ok(report)
}

/// A run anywhere.
pub(crate) async fn run(site: Site<'_>, plan: &Plan, test: &str) -> Result<Report, Box<dyn Error>> {
    tell(&plan.replay(test));
    let (faults, folders) = (Faults::default(), site.folders.clone());
    let ran = run_at(site, plan, &faults).await;
    ran.map_err(|why| {
        let faults = faults.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = keep(&folders, test, &faults);
        format!("{why}\nreplay: {}\nfaults and audit logs: {}", plan.replay(test), kept.display()).into()
    })
}

async fn run_at(site: Site<'_>, plan: &Plan, faults: &Faults) -> Result<Report, Box<dyn Error>> {
    let Site { hand, folders, sent } = site;
    let mut rng = Rng::with_seed(plan.seed);
    let nodes: Vec<NodeName> = folders.iter().map(|(node, _)| node.clone()).collect();
    let sockets: Vec<_> = folders.iter().map(|(node, dir)| (node.clone(), dir.join("admin.sock"))).collect();
    let (turns, mut heard) = mpsc::unbounded_channel();
    let mut eyes = Eyes::open(&folders, sent, turns)?;
    let doors = Arc::new(Doors::new(sockets.clone(), rng.u64(..)));
    let settings = settings(plan.network);
    doors.apply(&settings[0]).await?;

    let herd = Herd::new(Arc::clone(&doors), plan.guests, rng.fork());
    let operators = Operators::start(sockets, rng.u64(..), settings);
    let mut busy = JoinSet::new();
    busy.spawn(Arc::clone(&herd).keep());
    busy.spawn(Arc::clone(&herd).compare());
    busy.spawn(moves::ask_on_and_on(Arc::clone(&doors), Arc::clone(&herd), rng.fork()));
    let mut director =
        Director::new(hand, &eyes, Arc::clone(&herd), nodes.clone(), Arc::clone(faults), rng.fork());
    director.direct(plan.length, &mut heard).await?;
    let ended = director.ended;
    violated(&eyes, &herd)?;
    busy.shutdown().await;
    herd.close();

    let healed = Instant::now();
    let history = operators.finish().await;
    settle(&doors, &herd, &nodes).await?;
    let settled = healed.elapsed();
    for row in herd.rows().await? {
        herd.verify(&row).await.map_err(|why| format!("{} can not be compared: {why}", row.name))?;
    }
    all_tick(&eyes, &herd).await?;
    eyes.close();
    violated(&eyes, &herd)?;
    let mut seen = eyes.seen();
    let faults = faults.lock().unwrap_or_else(PoisonError::into_inner);
    judge(&mut seen, &faults, &herd, history, ended, settled)
}

/// What has been seen by now that must not be.
fn violated(eyes: &Eyes, herd: &Herd) -> Result<(), Box<dyn Error>> {
    let mut all = eyes.seen().violations.clone();
    all.extend(herd.violations());
    if all.is_empty() { Ok(()) } else { Err(all.join("\n").into()) }
}

/// Nothing is broken any more: every node answers, and every migration ends.
async fn settle(doors: &Doors, herd: &Arc<Herd>, nodes: &[NodeName]) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let given_up = herd.clear().await;
        let status = doors.ask::<Status>(Act::Status).await;
        let is_well = status.as_ref().is_ok_and(|status| {
            let here = |node: &NodeName| status.nodes.iter().any(|row| row.name == *node && row.state == "reachable");
            !status.stale && status.migrations.is_empty() && nodes.iter().all(here)
        });
        let rows = herd.rows().await.unwrap_or_default();
        if is_well && given_up == 0 && rows.iter().all(|row| row.state == "running") {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("after {SETTLE_TIMEOUT:?} without a fault not all is well: {status:?}\n{rows:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Every guest that is there goes on ticking, where it is agreed to be.
async fn all_tick(eyes: &Eyes, herd: &Herd) -> Result<(), Box<dyn Error>> {
    let since = godwit::lab::monotonic_ns();
    let rows = herd.rows().await?;
    let numbers = eyes.seen().guests();
    let deadline = Instant::now() + TICK_TIMEOUT;
    loop {
        let still = |row: &&godwit_wire::admin::GuestRow| {
            let seen = eyes.seen();
            let uid = numbers.get(&row.name);
            let last = uid.and_then(|uid| seen.ticks.of(&uid.0.to_string()).pop());
            !last.is_some_and(|last| last.last_ns > since && Some(&last.node) == row.node.as_ref())
        };
        let silent: Vec<_> = rows.iter().filter(still).collect();
        if silent.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("guests that do not tick where they are said to run: {silent:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn judge(
    seen: &mut Seen,
    faults: &[Fault],
    herd: &Herd,
    history: crate::linear::History,
    ended: Vec<String>,
    settled: Duration,
) -> Result<Report, Box<dyn Error>> {
    let wrong = seen.ticks.wrong();
    if !wrong.is_empty() {
        return Err(format!("ticks that must not be: {wrong:?}").into());
    }
    let killed = herd.killed();
    for entry in seen.ledger.all() {
        if let Command::Guest { entry: Entry::Gone { instance }, .. } = &entry.command
            && entry.refused.is_none()
            && !killed.contains(instance)
        {
            return Err(format!("runner {instance} is gone, and no fault has killed it (entry {})", entry.index).into());
        }
    }
    let grants = seen.ledger.judge()?;
    let acknowledged: Vec<_> = history.acknowledged().into_iter().map(|change| change.request_id).collect();
    seen.ledger.acknowledged(&acknowledged)?;
    let judged = history.judge()?;
    let wire = wire::judge(&seen.wire, &seen.courses.all)?;
    if let Some((name, course)) = seen.courses.all.iter().find(|(_, course)| course.end.is_none()) {
        return Err(format!("{name} never ended: {course:?}").into());
    }
    if let Some(by_itself) = ended.iter().find(|what| !what.contains("full disk")) {
        return Err(format!("a node process has ended by itself: {by_itself}").into());
    }
    Ok(Report {
        struck: Struck::count(faults, &seen.courses.all, &seen.leaders),
        migrations: seen.courses.all.len(),
        outcomes: outcomes(&seen.courses.all),
        herd: herd.report(),
        ticks: seen.ticks.counts(),
        wire,
        grants,
        judged,
        ended,
        settled,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { herd, wire, .. } = self;
        let mib = |bytes: u64| bytes >> 20;
        writeln!(f, "{}", self.struck.table())?;
        writeln!(f, "{} migrations:\n{}", self.migrations, self.outcomes)?;
        let (guests, ticks, stretches) = self.ticks;
        writeln!(f, "{guests} guests, {ticks} ticks in {stretches} stretches: none twice, none missing, none out of order")?;
        writeln!(
            f,
            "{} guests made, {} given up since a fault had killed a runner of theirs; {} comparisons of memory, {} MiB, no page wrong",
            herd.made,
            herd.given_up,
            herd.comparisons,
            mib(herd.verified_bytes)
        )?;
        writeln!(
            f,
            "{} MiB on the page network, {} seconds judged, the fullest {} % of what was granted",
            mib(wire.bytes),
            wire.seconds_judged,
            wire.fullest_percent
        )?;
        let Grants { entries, admitted, refused, most_at_once, limits_changed, .. } = &self.grants;
        writeln!(
            f,
            "{entries} entries, the same at every voter, {refused} of them refused; {admitted} admissions, none above a limit, \
             {most_at_once} at once at most; limits changed {limits_changed} times"
        )?;
        writeln!(f, "{}", self.judged)?;
        writeln!(f, "node processes that have ended by themselves: {:?}", self.ended)?;
        writeln!(f, "all well {:.1} s after the last fault", self.settled.as_secs_f64())
    }
}

/// Settings that operators choose among, all of them sane.
fn settings(network: Option<&str>) -> Vec<String> {
    let network = network.map(|name| format!("network: {name}, ")).unwrap_or_default();
    let of = |(cluster, outbound, inbound, recovery): (u32, u32, Option<u32>, u32)| {
        let inbound = inbound.map(|limit| format!("parallelInboundMigrationsPerNode: {limit}, ")).unwrap_or_default();
        format!(
            "apiVersion: hco.kubevirt.io/v1beta1\nkind: HyperConverged\nmetadata: {{name: kubevirt-hyperconverged}}\n\
             spec: {{liveMigrationConfig: {{parallelMigrationsPerCluster: {cluster}, parallelOutboundMigrationsPerNode: \
             {outbound}, {inbound}{network}recoveryTimeout: {recovery}}}}}\n"
        )
    };
    [(6, 3, None, 6), (8, 4, None, 5), (4, 2, None, 8), (6, 3, Some(2), 7), (10, 5, Some(4), 6), (5, 2, Some(3), 4)]
        .map(of)
        .to_vec()
}

/// Keeps what a run has left beside its logs.
fn keep(folders: &[(NodeName, PathBuf)], test: &str, faults: &[Fault]) -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-audit"));
    let _ = fs::remove_dir_all(&kept);
    let _ = fs::create_dir_all(&kept);
    let told: Vec<_> = faults.iter().map(|fault| format!("{fault:?}\n")).collect();
    let _ = fs::write(kept.join("faults"), told.concat());
    for (name, dir) in folders {
        for entry in fs::read_dir(dir.join("audit")).into_iter().flatten().flatten() {
            let to = kept.join(name.as_str());
            let _ = fs::create_dir_all(&to);
            let _ = fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
    kept
}

#[expect(clippy::print_stderr, reason = "whoever wants to replay a run must see it, whatever becomes of the run")]
pub(crate) fn tell(what: &str) {
    eprintln!("\n{what}");
}

/// What a run in earnest must have seen.
pub(crate) fn is_enough(report: &Report, plan: &Plan) -> Result<(), Box<dyn Error>> {
    // Ten minutes are 200 faults and 300 migrations, and 30 faults in each phase; a shorter run is a part of that.
    let share = (plan.length.as_secs_f64() / 600.0).min(1.0);
    let least = |of: u32| (f64::from(of) * share * if share < 1.0 { 0.5 } else { 1.0 }) as u32;
    let mut few = Vec::new();
    if report.struck.faults() < least(200) {
        few.push(format!("{} faults, not {}", report.struck.faults(), least(200)));
    }
    if u32::try_from(report.migrations)? < least(300) {
        few.push(format!("{} migrations, not {}", report.migrations, least(300)));
    }
    for stage in Stage::ALL {
        if report.struck.begun_in(stage) < least(30) {
            few.push(format!("{} faults in {}, not {}", report.struck.begun_in(stage), stage.name(), least(30)));
        }
    }
    if few.is_empty() { Ok(()) } else { Err(format!("too little has happened: {}\n{report}", few.join("; ")).into()) }
}
