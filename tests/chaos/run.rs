//! One run: a cluster of five hosts, guests, operators, faults, and what must hold all the time and at the end.
//!
//! ```text
//!   Field (hosts) ◀── Director ◀── turns ── Eyes ── audit logs, ticks, cables
//!      nodes ◀── Herd (guests), moves, Operators (histories)
//!   … time passes … ─▶ heal ─▶ all migrations end ─▶ judge ─▶ Report | what was violated, and the line that replays it
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use godwit_domain::NodeName;
use godwit_wire::admin::{Act, GuestRow, Status};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::containers::{self, Containers};
use crate::director::{Director, Fault, Faults};
use crate::doors::Doors;
use crate::eyes::{Counter, Eyes};
use crate::field::{Field, Net};
use crate::hands::{Hand, Namespaces};
use crate::herd::Herd;
use crate::linear::Operators;
use crate::moves;
use crate::plan::Plan;
use crate::support::world::{World, node};
use crate::verdict::{Report, Violated, judge};

/// The hosts.
const NODES: [&str; 5] = ["node-a", "node-b", "node-c", "node-d", "node-e"];
/// The first so many vote.
pub(crate) const VOTERS: usize = 3;
/// What a node's log says of a voter that takes no part until somebody does something.
const DEAD_VOTER: [&str; 2] = ["this voter is dead until", "this voter takes no part; guests go on"];
/// How long the first settings may take to be agreed on.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long all guests may take to tick once more.
const TICK_TIMEOUT: Duration = Duration::from_secs(10);

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
        hand: Hand::Namespaces(Namespaces { cluster: &mut world.cluster, field, far: BTreeMap::new() }),
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
        let told = format!("{why}\nreplay: {}\nfaults and audit logs: {}", plan.replay(test), kept.display());
        if why.is::<Violated>() { Violated(told).into() } else { told.into() }
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
    let deadline = Instant::now() + START_TIMEOUT;
    // Whoever leads may lose that a moment after the start.
    while let Err(why) = doors.apply(&settings[0]).await {
        if Instant::now() >= deadline {
            return Err(why);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    let herd = Herd::new(Arc::clone(&doors), plan.guests, rng.fork());
    let operators = Operators::start(sockets, rng.u64(..), settings);
    let mut busy = JoinSet::new();
    busy.spawn(Arc::clone(&herd).keep());
    busy.spawn(Arc::clone(&herd).compare());
    busy.spawn(moves::ask_on_and_on(Arc::clone(&doors), Arc::clone(&herd), rng.fork()));
    let mut director = Director::new(
        hand,
        &eyes,
        Arc::clone(&herd),
        nodes.clone(),
        Arc::clone(faults),
        plan.lean,
        rng.fork(),
    );
    director.direct(plan.length, &mut heard).await?;
    let ended = director.ended;
    violated(&eyes, &herd)?;
    busy.shutdown().await;
    herd.close();

    let healed = Instant::now();
    let history = operators.finish().await;
    let rows = settle(&doors, &herd, &nodes, plan.patience).await?;
    all_vote(&folders)?;
    let settled = healed.elapsed();
    for row in &rows {
        // A node that is asked may have lost its leader a moment ago.
        let deadline = Instant::now() + plan.patience;
        while let Err(why) = herd.verify(row).await {
            if Instant::now() >= deadline {
                return Err(format!("{} can not be compared: {why}", row.name).into());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    all_tick(&eyes, &herd, &rows).await?;
    eyes.close();
    violated(&eyes, &herd)?;
    let seen = eyes.seen();
    let faults = faults.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(judge(&seen, &faults, &herd, &history, ended, settled)?)
}

/// What has been seen by now that must not be.
fn violated(eyes: &Eyes, herd: &Herd) -> Result<(), Box<dyn Error>> {
    let mut all = eyes.seen().violations.clone();
    all.extend(herd.violations());
    if all.is_empty() { Ok(()) } else { Err(Violated(all.join("\n")).into()) }
}

/// Nothing is broken any more: every node answers, and every migration ends. The guests that there are.
async fn settle(
    doors: &Doors,
    herd: &Arc<Herd>,
    nodes: &[NodeName],
    patience: Duration,
) -> Result<Vec<GuestRow>, Box<dyn Error>> {
    let deadline = Instant::now() + patience;
    loop {
        let given_up = herd.clear().await;
        let status = doors.ask::<Status>(Act::Status).await;
        let is_well = status.as_ref().is_ok_and(|status| {
            let here = |node: &NodeName| {
                status.nodes.iter().any(|row| row.name == *node && row.state == "reachable")
            };
            !status.stale && status.migrations.is_empty() && nodes.iter().all(here)
        });
        let rows = herd.rows().await;
        if let Ok(rows) = &rows
            && is_well
            && given_up == 0
            && rows.iter().all(|row| row.state == "running")
        {
            return Ok(rows.clone());
        }
        if Instant::now() > deadline {
            let what = format!("after {patience:?} without a fault not all is well: {status:?}\n{rows:?}");
            return Err(Violated(what).into());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// No voter has died: whatever the disk did and whoever was killed, it takes part again when that is over, without an operator.
fn all_vote(folders: &[(NodeName, PathBuf)]) -> Result<(), Violated> {
    for (node, dir) in folders {
        let log = fs::read_to_string(dir.join("node.log")).unwrap_or_default();
        let died = |line: &&str| DEAD_VOTER.iter().any(|words| line.contains(words));
        if let Some(line) = log.lines().find(died) {
            return Err(format!("the voter of {node} has died: {line}").into());
        }
    }
    Ok(())
}

/// Every guest that is there goes on ticking, where it is agreed to be.
async fn all_tick(eyes: &Eyes, herd: &Herd, rows: &[GuestRow]) -> Result<(), Box<dyn Error>> {
    let since = godwit::lab::monotonic_ns();
    let numbers = eyes.seen().guests();
    let deadline = Instant::now() + TICK_TIMEOUT;
    loop {
        let still = |row: &&GuestRow| {
            let seen = eyes.seen();
            let uid = numbers.get(&row.name);
            let last = uid.and_then(|uid| seen.ticks.last_of(&uid.0.to_string()));
            !last.is_some_and(|last| last.last_ns > since && Some(&last.node) == row.node.as_ref())
        };
        let silent: Vec<_> = rows.iter().filter(still).collect();
        violated(eyes, herd)?;
        if silent.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let what = format!("guests that do not tick where they are said to run: {silent:?}");
            return Err(Violated(what).into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Settings that operators choose among, all of them sane.
fn settings(network: Option<&str>) -> Vec<String> {
    let network = network.map(|name| format!("network: {name}, ")).unwrap_or_default();
    let of = |(cluster, outbound, inbound, recovery): (u32, u32, Option<u32>, u32)| {
        let inbound =
            inbound.map(|limit| format!("parallelInboundMigrationsPerNode: {limit}, ")).unwrap_or_default();
        format!(
            "apiVersion: hco.kubevirt.io/v1beta1\nkind: HyperConverged\nmetadata: {{name: kubevirt-hyperconverged}}\n\
             spec: {{liveMigrationConfig: {{parallelMigrationsPerCluster: {cluster}, parallelOutboundMigrationsPerNode: \
             {outbound}, {inbound}{network}recoveryTimeout: {recovery}}}}}\n"
        )
    };
    [
        (6, 3, None, 6),
        (8, 4, None, 5),
        (4, 2, None, 8),
        (6, 3, Some(2), 7),
        (10, 5, Some(4), 6),
        (5, 2, Some(3), 4),
    ]
    .map(of)
    .to_vec()
}

/// Keeps what a run has left beside its logs.
fn keep(folders: &[(NodeName, PathBuf)], test: &str, faults: &[Fault]) -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-audit"));
    let _ = fs::remove_dir_all(&kept);
    let _ = fs::create_dir_all(&kept);
    let told: Vec<_> = faults.iter().map(|fault| format!("{fault}\n")).collect();
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

#[expect(
    clippy::print_stderr,
    reason = "whoever wants to replay a run must see it, whatever becomes of the run"
)]
pub(crate) fn tell(what: &str) {
    eprintln!("\n{what}");
}
