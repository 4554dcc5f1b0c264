//! A cluster of a story's own: nodes `node-a`, `node-b`, …, one guest, and the questions that stories ask of them.
//!
//! Always true: everything lies in one folder that goes with the story; every process carries the story's mark.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use godwit::lab::cluster::{Cluster, ClusterError, Event, Moved, NodeSpec};
use godwit::lab::monotonic_ns;
use godwit::lab::ticks::{self, TickReport};
use godwit_domain::precopy::Limits;
use godwit_domain::{Bandwidth, GuestName, MigrationId, NodeName};
use godwit_guest::runner::{Tick, read_ticks};
use godwit_wire::handoff::RunState;
use godwit_wire::orders::{Fact, GuestSpec, Settings, SourceReport};

use super::place::{Place, logs_in};
use super::program::program;
use super::{Outcome, PATIENCE, until};

/// The unit of all sizes here.
pub(crate) const MIB: u64 = 1 << 20;
/// How long a whole move may take.
const MOVE_TIMEOUT: Duration = Duration::from_secs(60);
/// Ticks that must have been written after a moment, so that the gap around it is complete.
const TICKS_AFTER: usize = 50;
/// A warning that any story may cause: it is about the host.
const HARMLESS: [&str; 1] = ["socket buffers are smaller than asked"];

/// See the module.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    dir: PathBuf,
    announced: Vec<&'static str>,
}

impl World {
    pub(crate) fn new(place: &Place) -> Result<Self, Box<dyn Error>> {
        let cluster = Cluster::new(program(), &place.dir, &place.mark)?;
        Ok(Self { cluster, dir: place.dir.clone(), announced: Vec::new() })
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

    /// Starts nodes on loopback.
    pub(crate) async fn start(&mut self, names: &[&str]) -> Outcome {
        for name in names {
            self.cluster.start_node(NodeSpec::on_loopback(node(name))).await?;
        }
        Ok(())
    }

    /// Two nodes, and the guest on `node-a`.
    pub(crate) async fn pair_with(&mut self, spec: GuestSpec) -> Outcome {
        self.start(&["node-a", "node-b"]).await?;
        self.create(spec).await
    }

    /// Makes the guest on `node-a`.
    pub(crate) async fn create(&mut self, spec: GuestSpec) -> Outcome {
        Ok(self.cluster.create_guest(&guest(), &node("node-a"), spec).await?)
    }

    /// Moves the guest, watched.
    pub(crate) async fn migrate(
        &mut self,
        target: &str,
        settings: Settings,
        watch: impl AsyncFnMut(&mut Cluster, &MigrationId, &Event),
    ) -> Result<Moved, ClusterError> {
        // Boxed: a story waits for several of them.
        Box::pin(self.cluster.migrate(&guest(), &node(target), settings, MOVE_TIMEOUT, watch)).await
    }

    /// Moves the guest, which must succeed.
    pub(crate) async fn move_to(
        &mut self,
        target: &str,
        settings: Settings,
    ) -> Result<SourceReport, Box<dyn Error>> {
        match self.migrate(target, settings, async |_, _, _| {}).await? {
            Moved::Succeeded { source, .. } => Ok(source),
            Moved::Failed(reason) => Err(format!("the move to {target} failed: {reason}").into()),
        }
    }

    /// Moves the guest, and sees that it runs there alone, has lost nothing and that its memory is whole.
    pub(crate) async fn move_and_prove(&mut self, target: &str) -> Result<SourceReport, Box<dyn Error>> {
        let (since, epoch) = (monotonic_ns(), self.epoch());
        let report = self.move_to(target, unlimited()).await?;
        // At once: the guest heals what it writes again.
        assert_eq!(self.wrong_pages().await?, 0, "pages wrong after the move to {target}");
        let seen = self.ticks_after(since, monotonic_ns(), target).await;
        assert_eq!(seen.lost, 0, "ticks lost or written twice in the move to {target}: {seen:?}");
        let owner =
            self.cluster.ownership(&guest()).and_then(|held| held.owner()).map(|owner| owner.node.clone());
        assert_eq!(owner, Some(node(target)), "the ledger's owner after the move");
        assert_eq!(self.epoch(), epoch + 1, "a move makes one new epoch");
        Ok(report)
    }

    // ---- questions -------------------------------------------------------------------------------------------

    /// The epoch that is agreed.
    pub(crate) fn epoch(&self) -> u64 {
        self.cluster.ownership(&guest()).map_or(0, |held| held.epoch.0)
    }

    /// Pages that differ from what they must hold.
    pub(crate) async fn wrong_pages(&mut self) -> Result<u64, Box<dyn Error>> {
        let verified = self.cluster.verify(&guest()).await?;
        let memory = self.cluster.stats(&guest()).await?.memory_bytes;
        assert_eq!(verified.pages * 4096, memory, "every page is compared");
        Ok(verified.wrong)
    }

    /// Waits until the guest runs under the epoch that is agreed, where it is agreed to be.
    pub(crate) async fn runs_under_the_agreed_epoch(&mut self) -> Outcome {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let standing = self.cluster.stats(&guest()).await?.standing;
            if standing.state == RunState::Running && standing.epoch.0 == self.epoch() {
                return Ok(());
            }
            assert!(std::time::Instant::now() < deadline, "{standing:?}; agreed is epoch {}", self.epoch());
        }
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

    fn ticks(&self) -> Vec<Tick> {
        let seen = self.cluster.runners.iter();
        seen.flat_map(|runner| read_ticks(&runner.dir).expect("whole ticks")).collect()
    }

    /// Waits until one of a node's runners has been ended.
    pub(crate) async fn runner_goes(&mut self, on: &str) -> Outcome {
        let gone = |event| match event {
            Event::Fact(from, Fact::Gone { .. }) if from == node(on) => Some(()),
            _ => None,
        };
        Ok(self.cluster.wait(format!("end of the runner on {on}"), PATIENCE, gone).await?)
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

/// A guest of so many MiB that writes half of them, so many MiB in a second.
pub(crate) fn guest_of(memory: u64, dirty_rate: u64) -> GuestSpec {
    GuestSpec {
        memory_bytes: memory * MIB,
        working_set_bytes: memory * MIB / 2,
        dirty_rate_bytes_per_second: dirty_rate * MIB,
        pattern: "uniform".into(),
        zero_percent: 10,
        compressible_percent: 30,
        threads: 2,
        seed: 7,
        tick_interval_ms: 1,
    }
}

pub(crate) fn unlimited() -> Settings {
    limited_to(0)
}

/// So many MiB in a second at most; 0 for no limit.
pub(crate) fn limited_to(bandwidth: u64) -> Settings {
    let limits = Limits {
        downtime_max: Duration::from_millis(300),
        completion_timeout: None,
        progress_timeout: Some(MOVE_TIMEOUT),
    };
    Settings { bandwidth: Bandwidth::from_setting(bandwidth * MIB), limits }
}
