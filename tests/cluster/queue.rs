//! The leader is killed while 50 migrations wait and 5 run: limits hold all the time, the order is kept, nothing is lost.
//!
//! ```text
//!   guests ── 5 at once, 8 MiB/s each ──▶      the source's cable: bytes by the kernel
//!      two of three hosts; the third leads, and is killed      runners' folders: who has arrived and does not run yet
//! ```
//!
//! What is counted here is counted outside: the registry's own count of permits is not asked.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use godwit_domain::{GuestName, GuestSpec, Labels, NodeName, Overrides};
use godwit_wire::admin::{Act, MigrationRow};
use libtest_mimic::Trial;

use crate::support::network::{self, Network};
use crate::support::world::{MIB, VOTERS, World, node};
use crate::support::{Outcome, story, unless};

/// Guests that move.
const GUESTS: usize = 55;
/// What the cluster allows at once.
const AT_ONCE: usize = 5;
/// What each may send.
const RATE: u64 = 8 * MIB;
/// Memory of each.
const GUEST_BYTES: u64 = 12 * MIB;
/// All of it must be over by then.
const ALL_TIMEOUT: Duration = Duration::from_secs(180);
/// Ethernet, IPv4 and UDP.
const HEADER_BYTES: u64 = 14 + 20 + 8;

pub(crate) fn trials() -> Vec<Trial> {
    let name = "a_leader_that_dies_with_50_waiting_and_5_running_exceeds_no_limit_and_loses_nothing";
    vec![unless(network::missing(), story(name, the_leader_dies))]
}

fn small() -> GuestSpec {
    GuestSpec { tick_interval_ms: 20, compressible_percent: 0, ..GuestSpec::idle(GUEST_BYTES) }
}

fn name_of(number: usize) -> String {
    format!("q-{number:02}")
}

async fn the_leader_dies(world: &mut World) -> Outcome {
    let network = Network::new()?;
    world.announce(&["sendmsg error"]);
    world.start_as(network.nodes()).await?;
    let (leader, _) = world.cluster.leader().await?;
    let others: Vec<NodeName> = VOTERS.map(node).into_iter().filter(|name| *name != leader).collect();
    let (source, target) = (others[0].clone(), others[1].clone());
    let settings = format!(
        "apiVersion: hco.kubevirt.io/v1beta1\nkind: HyperConverged\nmetadata: {{name: kubevirt-hyperconverged}}\n\
         spec: {{liveMigrationConfig: {{bandwidthPerMigration: \"{RATE}\", parallelMigrationsPerCluster: {AT_ONCE}, \
         parallelOutboundMigrationsPerNode: 50, parallelInboundMigrationsPerNode: 50}}}}\n"
    );
    super::rules::apply(&world.cluster, &settings).await?;
    for number in 0..GUESTS {
        let guest: GuestName = format!("default/{}", name_of(number)).parse()?;
        world.cluster.create_guest(&guest, &source, small()).await?;
    }
    let pid = world.cluster.node(&source).map_or(0, |process| process.pid);
    let mut seen = Seen::new(pid, world.cluster.node_dir(&target).join("guests"));
    for number in 0..GUESTS {
        let guest: GuestName = format!("default/{}", name_of(number)).parse()?;
        world.cluster.ask(&target, asked(guest, &target, number)).await?;
        seen.look()?;
    }
    // Five run and fifty wait.
    let full = Instant::now() + Duration::from_secs(30);
    while seen.most_arriving < AT_ONCE && Instant::now() < full {
        seen.look()?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.cluster.kill_node(&leader).await?;
    tracing::info!(%leader, "the leader is killed");
    let over = loop {
        seen.look()?;
        tokio::time::sleep(Duration::from_millis(10)).await;
        if seen.last_asked.elapsed() > Duration::from_millis(500) {
            seen.last_asked = Instant::now();
            let rows = world.cluster.ask(&target, Act::MigrationList).await.ok();
            let rows: Vec<MigrationRow> = rows.map(serde_json::from_value).transpose()?.unwrap_or_default();
            let over = rows.iter().filter(|row| row.phase == "Succeeded").count();
            assert!(rows.iter().all(|row| row.phase != "Failed" && row.phase != "Cancelled"), "{rows:?}");
            if over == GUESTS {
                break rows;
            }
        }
        assert!(seen.began.elapsed() < ALL_TIMEOUT, "not all have moved: {} arrived", seen.arrived.len());
    };
    assert_eq!(over.len(), GUESTS, "nothing is lost");
    seen.judge();
    for number in 0..GUESTS {
        let guest: GuestName = format!("default/{}", name_of(number)).parse()?;
        let verified: godwit_wire::handoff::Verified =
            serde_json::from_value(world.cluster.ask(&target, Act::GuestVerify { guest }).await?)?;
        assert_eq!(verified.wrong, 0, "{}", name_of(number));
    }
    world.cluster.restart_node(&leader).await?;
    Ok(())
}

fn asked(guest: GuestName, to: &NodeName, number: usize) -> Act {
    Act::Migrate {
        guest,
        migration: name_of(number).parse().ok(),
        to: Some(to.clone()),
        selector: Labels::new(),
        overrides: Overrides::default(),
        mode: None,
        dry_run: false,
    }
}

/// What is seen from outside.
struct Seen {
    pid: u32,
    guests: std::path::PathBuf,
    began: Instant,
    last_asked: Instant,
    most_arriving: usize,
    /// Runners at the target: when each was made, and for which migration.
    arrived: BTreeMap<String, (SystemTime, String)>,
    sent: Vec<(Instant, u64)>,
}

impl Seen {
    fn new(pid: u32, guests: std::path::PathBuf) -> Self {
        let now = Instant::now();
        let (arrived, sent) = (BTreeMap::new(), Vec::new());
        Self { pid, guests, began: now, last_asked: now, most_arriving: 0, arrived, sent }
    }

    fn look(&mut self) -> Outcome {
        let (bytes, packets) = network::sent(self.pid)?;
        self.sent.push((Instant::now(), bytes - HEADER_BYTES * packets));
        let mut arriving = 0;
        for entry in fs::read_dir(&self.guests).into_iter().flatten().flatten() {
            let dir = entry.path();
            let Some(migration) = arriving_for(&dir) else { continue };
            let key = entry.file_name().to_string_lossy().into_owned();
            let made = fs::metadata(dir.join("about.json")).and_then(|meta| meta.modified());
            self.arrived.entry(key).or_insert((made?, migration));
            // It lives, and its guest does not run here yet, as it says before it tells its node. A tick comes when it may.
            let said = fs::read_to_string(dir.join("runner.log")).unwrap_or_default();
            let runs = said.contains("runs here for the first time");
            arriving += usize::from(dir.join("runner.sock").exists() && !runs);
        }
        self.most_arriving = self.most_arriving.max(arriving);
        assert!(arriving <= AT_ONCE, "{arriving} guests arrive at once; {AT_ONCE} may");
        Ok(())
    }

    fn judge(&self) {
        assert_eq!(self.most_arriving, AT_ONCE, "the limit was never reached: nothing was shown");
        let mut arrived: Vec<_> = self.arrived.values().collect();
        arrived.sort();
        let mut known = std::collections::BTreeSet::new();
        arrived.retain(|(_, migration)| known.insert(migration.clone()));
        assert_eq!(arrived.len(), GUESTS, "each has arrived");
        for (place, (_, migration)) in arrived.iter().enumerate() {
            let asked: usize = migration.trim_start_matches("q-").parse().expect("a number");
            // Grants of one moment are prepared side by side.
            assert!(asked.abs_diff(place) < AT_ONCE, "{migration} was number {place} to arrive: {arrived:?}");
        }
        let second = |(at, (from, first)): (usize, &(Instant, u64))| {
            let until = *from + Duration::from_secs(1);
            let last = self.sent.iter().skip(at).take_while(|(when, _)| *when <= until).last();
            last.map_or(0, |(_, last)| last - first)
        };
        let most = self.sent.iter().enumerate().map(second).max().unwrap_or(0);
        let allowed = AT_ONCE as u64 * RATE;
        // A migration that ends hands its permit to the next within that second, which may begin with its burst.
        assert!(
            most <= allowed + allowed / 8,
            "{most} bytes in the worst second; {AT_ONCE} may send {allowed}"
        );
    }
}

/// The migration that a runner here was made for.
fn arriving_for(dir: &Path) -> Option<String> {
    let about: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("about.json")).ok()?).ok()?;
    Some(about.get("arriving")?.as_str()?.to_owned())
}
