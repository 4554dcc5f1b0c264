//! A cluster of a story's own: nodes `node-a`, `node-b`, `node-c` that vote, one guest, and the questions that stories ask.
//!
//! Always true: everything lies in one folder that goes with the story; every process carries the story's mark; stories
//! ask and order over admin sockets, as an operator does.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use godwit::lab::cluster::{Cluster, ClusterError, How, Moved, NodeSpec, Watched};
use godwit::lab::monotonic_ns;
use godwit::lab::ticks::{self, TickReport};
use godwit_domain::progress::SourceReport;
use godwit_domain::{GuestName, GuestSpec, Labels, NodeName, Overrides, Quantity};
use godwit_guest::runner::{Tick, read_ticks};
use godwit_wire::admin::{Act, GuestDetail, MigrationDetail, MoveMode};
use godwit_wire::handoff::RunState;

use super::place::{Place, logs_in};
use super::program::program;
use super::witness::Witness;
use super::{LOOK_INTERVAL, Outcome, PATIENCE, until};

/// The unit of all sizes here.
pub(crate) const MIB: u64 = 1 << 20;
/// The voters of every story's cluster.
pub(crate) const VOTERS: [&str; 3] = ["node-a", "node-b", "node-c"];
/// How long a whole move may take.
const MOVE_TIMEOUT: Duration = Duration::from_secs(60);
/// Ticks that must have been written after a moment, so that the gap around it is complete.
const TICKS_AFTER: usize = 50;
/// Warnings that any story may cause: they are about the host. One so busy that a leader hears of no quorum for the time
/// of an election makes it follow; that the group leads again, and how soon, is said by stories about it.
const HARMLESS: [&str; 2] =
    ["socket buffers are smaller than asked", "stepped down to follower since quorum is not active"];

/// See the module.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    dir: PathBuf,
    announced: Vec<&'static str>,
    witness: Witness,
}

impl World {
    pub(crate) fn new(place: &Place) -> Result<Self, Box<dyn Error>> {
        let cluster = Cluster::new(program(), &place.dir, &place.mark, &VOTERS.map(node))?;
        Ok(Self { cluster, dir: place.dir.clone(), announced: Vec::new(), witness: Witness::start() })
    }

    /// Where the cluster's certificate authority is.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// A new folder of the story.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Warnings and errors with these words belong to the story.
    pub(crate) fn announce(&mut self, words: &[&'static str]) {
        self.announced.extend(words);
    }

    // ---- acts ------------------------------------------------------------------------------------------------

    /// Starts these nodes together, and waits for a leader with whom all have a session.
    pub(crate) async fn start_as(&mut self, specs: Vec<NodeSpec>) -> Outcome {
        let names: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
        self.cluster.start_nodes(specs).await?;
        self.cluster.leader().await?;
        Ok(self.cluster.are_reachable(&names).await?)
    }

    /// The three voters on loopback, with these environments.
    pub(crate) async fn start_with(&mut self, environment: &[(&str, &str, &str)]) -> Outcome {
        let spec = |name: &str| {
            let of = environment.iter().filter(|(node, ..)| *node == name);
            let environment = of.map(|(_, key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            NodeSpec { environment, ..self.cluster.spec(&node(name)) }
        };
        let specs = VOTERS.iter().map(|name| spec(name)).collect();
        self.start_as(specs).await
    }

    /// Three nodes, and the guest on `node-a`.
    pub(crate) async fn three_with(&mut self, spec: GuestSpec) -> Outcome {
        self.start_with(&[]).await?;
        self.create(spec).await
    }

    /// Makes the guest on `node-a`.
    pub(crate) async fn create(&mut self, spec: GuestSpec) -> Outcome {
        self.cluster.create_guest(&guest(), &node("node-a"), spec).await?;
        Ok(())
    }

    /// Moves the guest, watched.
    pub(crate) async fn migrate(
        &mut self,
        target: &str,
        how: impl Into<How>,
        watch: impl AsyncFnMut(&mut Cluster, &Watched),
    ) -> Result<Moved, ClusterError> {
        // Boxed: a story waits for several of them.
        Box::pin(self.cluster.migrate(&guest(), &node(target), how.into(), MOVE_TIMEOUT, watch)).await
    }

    /// Asks for a move and does not wait for it.
    pub(crate) async fn ask_for(
        &self,
        target: &str,
        overrides: Overrides,
    ) -> Result<MigrationDetail, Box<dyn Error>> {
        self.ask_in(target, overrides, None).await
    }

    /// The same, in post-copy at once.
    pub(crate) async fn ask_post_copy(
        &self,
        target: &str,
        overrides: Overrides,
    ) -> Result<MigrationDetail, Box<dyn Error>> {
        self.ask_in(target, overrides, Some(MoveMode::PostCopy)).await
    }

    async fn ask_in(
        &self,
        target: &str,
        overrides: Overrides,
        mode: Option<MoveMode>,
    ) -> Result<MigrationDetail, Box<dyn Error>> {
        let (guest, to) = (guest(), Some(node(target)));
        let asked = self
            .cluster
            .ask_any(Act::Migrate {
                guest,
                migration: None,
                to,
                selector: Labels::new(),
                overrides,
                mode,
                dry_run: false,
            })
            .await?;
        Ok(serde_json::from_value(asked)?)
    }

    /// Moves the guest, which must succeed.
    pub(crate) async fn move_to(
        &mut self,
        target: &str,
        overrides: Overrides,
    ) -> Result<SourceReport, Box<dyn Error>> {
        match self.migrate(target, overrides, async |_, _| {}).await? {
            Moved::Succeeded { source, .. } => Ok(source),
            Moved::Failed(reason) => Err(format!("the move to {target} failed: {reason}").into()),
        }
    }

    /// Moves the guest, and sees that it runs there alone, has lost nothing and that its memory is whole.
    pub(crate) async fn move_and_prove(&mut self, target: &str) -> Result<SourceReport, Box<dyn Error>> {
        let (since, epoch) = (monotonic_ns(), self.epoch().await?);
        let report = self.move_to(target, unlimited()).await?;
        // At once: the guest heals what it writes again.
        assert_eq!(self.wrong_pages().await?, 0, "pages wrong after the move to {target}");
        let seen = self.ticks_after(since, monotonic_ns(), target).await;
        assert_eq!(seen.lost, 0, "ticks lost or written twice in the move to {target}: {seen:?}");
        assert_eq!(self.owner().await?, Some(node(target)), "the owner after the move");
        assert_eq!(self.epoch().await?, epoch + 1, "a move makes one new epoch");
        Ok(report)
    }

    // ---- questions -------------------------------------------------------------------------------------------

    /// What is agreed about the guest.
    pub(crate) async fn guest(&self) -> Result<GuestDetail, ClusterError> {
        self.cluster.guest(&guest()).await
    }

    /// The epoch that is agreed.
    pub(crate) async fn epoch(&self) -> Result<u64, ClusterError> {
        Ok(self.guest().await?.row.epoch.0)
    }

    /// Who owns the guest.
    pub(crate) async fn owner(&self) -> Result<Option<NodeName>, ClusterError> {
        Ok(self.guest().await?.row.node)
    }

    /// Pages that do not hold what they must.
    pub(crate) async fn wrong_pages(&self) -> Result<u64, ClusterError> {
        Ok(self.cluster.verify(&guest()).await?.wrong)
    }

    /// Waits until something asked again and again is so.
    pub(crate) async fn comes<T>(&self, what: &str, mut look: impl AsyncFnMut(&Cluster) -> Option<T>) -> T {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(seen) = look(&self.cluster).await {
                return seen;
            }
            assert!(std::time::Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until the guest's runner runs under the epoch that is agreed.
    pub(crate) async fn runs_under_the_agreed_epoch(&self) -> Outcome {
        self.comes("the guest runs under the agreed epoch", async |cluster| {
            let standing = cluster.stats(&guest()).await.ok()?.standing;
            let agreed = cluster.guest(&guest()).await.ok()?.row.epoch;
            (standing.state == RunState::Running && standing.epoch == agreed).then_some(())
        })
        .await;
        Ok(())
    }

    /// The ticks since `since`, once enough were written on this node after `moment`.
    pub(crate) async fn ticks_after(&self, since: u64, moment: u64, on: &str) -> TickReport {
        let what = format!("{TICKS_AFTER} ticks are written on {on}");
        until(&what, PATIENCE, || {
            let all = self.ticks();
            let there = all.iter().filter(|tick| tick.node == node(on) && tick.monotonic_ns >= moment);
            (there.count() >= TICKS_AFTER).then(|| ticks::report(&all, since, u64::MAX))
        })
        .await
    }

    /// A guest that nobody may stop has ticked all the time since a moment: but for this long, and for as long as the whole
    /// machine stood still between the same two ticks.
    pub(crate) fn ran_on(&self, seen: &TickReport, since_ns: u64, gap_ns_max: u64) {
        let mut times: Vec<u64> = self.ticks().iter().map(|tick| tick.monotonic_ns).collect();
        times.retain(|at| *at >= since_ns);
        times.sort_unstable();
        let pairs = times.iter().zip(times.iter().skip(1));
        let (from, to) = pairs.max_by_key(|(from, to)| *to - *from).expect("ticks");
        let machine_ns = self.witness.late_ns(*from, *to);
        let what = format!(
            "{seen:?}; this machine stood still for {machine_ns} ns, {gap_ns_max} are allowed beside that"
        );
        assert_eq!(seen.lost, 0, "ticks were lost or written twice: {what}");
        assert!(seen.gap_ns_max < gap_ns_max + machine_ns, "the guest stood still: {what}");
    }

    /// For how many nanoseconds between two moments this machine let somebody stand still.
    pub(crate) fn stood_still_ns(&self, from_ns: u64, to_ns: u64) -> u64 {
        self.witness.late_ns(from_ns, to_ns)
    }

    /// Every tick that any runner has written.
    pub(crate) fn ticks(&self) -> Vec<Tick> {
        let dirs = self.cluster.runner_dirs();
        dirs.iter().flat_map(|dir| read_ticks(dir).expect("whole ticks")).collect()
    }

    /// Waits until a node has no runner of the guest.
    pub(crate) async fn runner_goes(&self, on: &str) -> Outcome {
        self.comes(&format!("the runner on {on} is gone"), async |cluster| {
            let runners = cluster.node_detail(&node(on)).await.ok()?.runners?;
            runners.is_empty().then_some(())
        })
        .await;
        Ok(())
    }

    /// A node's log so far.
    pub(crate) fn log_of(&self, name: &str) -> String {
        fs::read_to_string(self.cluster.node_dir(&node(name)).join("node.log")).unwrap_or_default()
    }

    /// Waits for a line of a node's log with these words.
    pub(crate) async fn logs(&self, name: &str, words: &str) -> String {
        until(&format!("{name} logs {words:?}"), PATIENCE, || {
            self.log_of(name).lines().find(|line| line.contains(words)).map(str::to_owned)
        })
        .await
    }

    // ---- the end ---------------------------------------------------------------------------------------------

    /// Ends guests and nodes in order; then no log may hold a warning that the story did not announce.
    pub(crate) async fn close(self) -> Outcome {
        self.cluster.shut_down().await;
        let mut unexpected = Vec::new();
        for (path, text) in logs_in(&self.dir) {
            let bad = |line: &&str| [" WARN ", " ERROR ", "panicked"].iter().any(|word| line.contains(word));
            let known =
                |line: &&str| HARMLESS.iter().chain(&self.announced).any(|words| line.contains(words));
            let lines = text.lines().filter(bad).filter(|line| line.contains("panicked") || !known(line));
            unexpected.extend(lines.map(|line| format!("{}: {line}", path.display())));
        }
        if unexpected.is_empty() { Ok(()) } else { Err(unexpected.join("\n").into()) }
    }
}

pub(crate) fn node(name: &str) -> NodeName {
    name.parse().expect("a node's name")
}

/// The guest of every story.
pub(crate) fn guest() -> GuestName {
    "default/vm1".parse().expect("a guest's name")
}

/// A guest of so many MiB that writes half of them, so many MiB in a second. Its pages do not shrink: how long it takes
/// follows from the limit alone.
pub(crate) fn guest_of(memory: u64, dirty_rate: u64) -> GuestSpec {
    GuestSpec {
        working_set_bytes: memory * MIB / 2,
        dirty_rate_bytes_per_second: dirty_rate * MIB,
        zero_percent: 10,
        compressible_percent: 0,
        threads: 2,
        seed: 7,
        ..GuestSpec::idle(memory * MIB)
    }
}

pub(crate) fn unlimited() -> Overrides {
    limited_to(0)
}

/// So many MiB in a second at most; 0 for no limit.
pub(crate) fn limited_to(bandwidth: u64) -> Overrides {
    Overrides {
        bandwidth_per_migration: Some(Quantity::from_bytes(bandwidth * MIB)),
        completion_timeout_per_gib: Some(0),
        progress_timeout: Some(MOVE_TIMEOUT.as_secs()),
        max_downtime_ms: None,
        ..Overrides::default()
    }
}
