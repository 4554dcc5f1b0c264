//! The guests: so many at once, of all sorts, and another in the place of each that is lost.
//!
//! Always true: a name is used once; a guest is given up only if a fault has killed a runner of it; one that is lost
//! without that is a violation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use godwit_domain::{GuestName, GuestSpec, InstanceId, Labels, NodeName};
use godwit_wire::admin::{Act, GuestDetail, GuestRow};
use godwit_wire::handoff::Verified;
use serde_json::Value;

use crate::doors::Doors;
use crate::support::world::MIB;

/// How often all guests are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(700);
/// How long a guest of which a runner was killed may take to be lost or to run on.
const HURT_PATIENCE: Duration = Duration::from_secs(12);
/// How long a new guest may take: its node may be one that was just killed.
const CREATE_TIMEOUT: Duration = Duration::from_secs(20);
/// The same for the end of one.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a comparison may take: in post-copy it waits for pages.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two attempts to fence a node.
const FENCE_INTERVAL: Duration = Duration::from_millis(300);
/// Time between two comparisons.
const VERIFY_INTERVAL: Duration = Duration::from_millis(1_500);

/// See the module.
#[derive(Debug)]
pub(crate) struct Herd {
    doors: Arc<Doors>,
    size: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    rng: Rng,
    made: usize,
    rows: Vec<GuestRow>,
    creating: usize,
    /// Guests of which a fault has killed a runner, and when.
    hurt: BTreeMap<GuestName, Instant>,
    /// All that ever were, or may have been: how long it takes until it is known that one is lost depends on other faults.
    wounded: BTreeSet<GuestName>,
    /// Runners that a fault has killed.
    killed: BTreeSet<InstanceId>,
    given_up: BTreeSet<GuestName>,
    /// Hosts that an operator has vouched to be off.
    fences: usize,
    verified_bytes: u64,
    comparisons: u64,
    violations: Vec<String>,
}

/// What became of the guests.
#[derive(Debug, Default, Clone)]
pub(crate) struct HerdReport {
    pub(crate) made: usize,
    pub(crate) given_up: usize,
    pub(crate) fences: usize,
    pub(crate) comparisons: u64,
    pub(crate) verified_bytes: u64,
}

impl Herd {
    pub(crate) fn new(doors: Arc<Doors>, size: usize, rng: Rng) -> Arc<Self> {
        let inner = Inner {
            rng,
            made: 0,
            rows: Vec::new(),
            creating: 0,
            hurt: BTreeMap::new(),
            wounded: BTreeSet::new(),
            killed: BTreeSet::new(),
            given_up: BTreeSet::new(),
            fences: 0,
            verified_bytes: 0,
            comparisons: 0,
            violations: Vec::new(),
        };
        Arc::new(Self { doors, size, inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fault has killed this runner.
    pub(crate) fn hurt(&self, guest: GuestName, instance: InstanceId) {
        let mut inner = self.inner();
        inner.killed.insert(instance);
        inner.wounded.insert(guest.clone());
        inner.hurt.insert(guest, Instant::now());
    }

    /// They may be lost with a host that was killed.
    pub(crate) fn wound(&self, guests: Vec<GuestName>) {
        self.inner().wounded.extend(guests);
    }

    /// Runners that faults have killed.
    pub(crate) fn killed(&self) -> BTreeSet<InstanceId> {
        self.inner().killed.clone()
    }

    /// What has been seen that must not be.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.inner().violations.clone()
    }

    pub(crate) fn report(&self) -> HerdReport {
        let inner = self.inner();
        HerdReport {
            made: inner.made,
            given_up: inner.given_up.len(),
            fences: inner.fences,
            comparisons: inner.comparisons,
            verified_bytes: inner.verified_bytes,
        }
    }

    /// Guests that run and do not move, as of the last look.
    pub(crate) fn at_rest(&self) -> Vec<GuestRow> {
        let inner = self.inner();
        let rests = |row: &&GuestRow| row.state == "running" && row.migration.is_none();
        inner.rows.iter().filter(rests).filter(|row| !inner.given_up.contains(&row.name)).cloned().collect()
    }

    /// Migrations that are not over, as of the last look.
    pub(crate) fn moving(&self) -> usize {
        self.inner().rows.iter().filter(|row| row.migration.is_some()).count()
    }

    /// Keeps them alive until it is told to end.
    pub(crate) async fn keep(self: Arc<Self>) {
        loop {
            self.look().await;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Looks at all guests once; gives up the lost and makes new ones.
    async fn look(self: &Arc<Self>) {
        let Ok(rows) = self.doors.ask::<Vec<GuestRow>>(Act::GuestList).await else { return };
        for row in &rows {
            self.judge(row);
        }
        let mut inner = self.inner();
        let living = rows.iter().filter(|row| !inner.given_up.contains(&row.name)).count();
        inner.rows = rows;
        let room = self.size.saturating_sub(living + inner.creating);
        for _ in 0..room.min(4) {
            inner.creating += 1;
            inner.made += 1;
            let name = format!("default/v-{:03}", inner.made);
            let spec = spec(&mut inner.rng);
            tokio::spawn(Arc::clone(self).create(name, spec));
        }
    }

    fn judge(self: &Arc<Self>, row: &GuestRow) {
        let mut inner = self.inner();
        if inner.given_up.contains(&row.name) {
            return;
        }
        let hurt_for = inner.hurt.get(&row.name).map(Instant::elapsed);
        match (row.state.as_str(), hurt_for) {
            ("lost", _) if inner.wounded.contains(&row.name) => {}
            ("lost", _) => {
                let what = format!("{} is lost, and no runner of it was killed: {row:?}", row.name);
                inner.violations.push(what);
                inner.given_up.insert(row.name.clone());
            }
            // A post-copy whose source was killed waits for ever, as it should.
            (_, Some(since)) if since > HURT_PATIENCE && row.migration.is_some() => {}
            (_, Some(since)) if since > HURT_PATIENCE => {
                inner.hurt.remove(&row.name);
                return;
            }
            _ => return,
        }
        inner.given_up.insert(row.name.clone());
        drop(inner);
        tokio::spawn(Arc::clone(self).stop(row.name.clone()));
    }

    async fn create(self: Arc<Self>, name: String, spec: GuestSpec) {
        let guest: GuestName = name.parse().expect("a guest's name");
        let act = Act::GuestCreate { guest, node: None, spec, labels: Labels::new() };
        // Whether it is there is seen at the next look.
        let _ = self.doors.ask_within::<GuestDetail>(CREATE_TIMEOUT, act).await;
        self.inner().creating -= 1;
    }

    async fn stop(self: Arc<Self>, guest: GuestName) {
        let _ = self.doors.ask_within::<Value>(STOP_TIMEOUT, Act::GuestStop { guest }).await;
    }

    /// Ends those that were given up and are still there. How many are.
    pub(crate) async fn clear(self: &Arc<Self>) -> usize {
        self.look().await;
        let left: Vec<GuestName> = {
            let inner = self.inner();
            let given_up =
                inner.rows.iter().map(|row| &row.name).filter(|name| inner.given_up.contains(*name));
            given_up.cloned().collect()
        };
        for guest in &left {
            Arc::clone(self).stop(guest.clone()).await;
        }
        left.len()
    }

    /// Makes no more guests from now on, and knows of no other faults.
    pub(crate) fn close(&self) {
        let mut inner = self.inner();
        inner.creating = self.size;
    }

    /// Vouches that a node is off, as soon as that is believed, unless it takes too long.
    pub(crate) async fn fence(self: Arc<Self>, node: NodeName, within: Duration) {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            let act = Act::NodeFence { node: node.clone(), although_reachable: false };
            if self.doors.ask::<Value>(act).await.is_ok() {
                self.inner().fences += 1;
                return;
            }
            tokio::time::sleep(FENCE_INTERVAL).await;
        }
    }

    // ---- memory ----------------------------------------------------------------------------------------------

    /// Compares guests, one after the other, whatever they do.
    pub(crate) async fn compare(self: Arc<Self>) {
        loop {
            tokio::time::sleep(VERIFY_INTERVAL).await;
            let chosen = {
                let mut inner = self.inner();
                let of = inner.rows.len();
                if of == 0 {
                    None
                } else {
                    let at = inner.rng.usize(..of);
                    inner.rows.get(at).cloned()
                }
            };
            if let Some(row) = chosen {
                let _ = self.verify(&row).await;
            }
        }
    }

    /// Compares one guest's memory with what it must hold. Errors: it could not be compared now.
    pub(crate) async fn verify(&self, row: &GuestRow) -> Result<(), String> {
        let act = Act::GuestVerify { guest: row.name.clone() };
        let verified: Verified =
            self.doors.ask_within(VERIFY_TIMEOUT, act).await.map_err(|error| error.to_string())?;
        let mut inner = self.inner();
        inner.comparisons += 1;
        inner.verified_bytes += verified.pages * 4096;
        if verified.wrong > 0 {
            inner.violations.push(format!("memory of {} is not whole: {verified:?}", row.name));
        }
        Ok(())
    }

    /// Every guest that is there and was not given up, newly asked for.
    pub(crate) async fn rows(&self) -> Result<Vec<GuestRow>, String> {
        let asked = self.doors.ask::<Vec<GuestRow>>(Act::GuestList).await;
        let mut rows = asked.map_err(|error| error.to_string())?;
        rows.retain(|row| !self.inner().given_up.contains(&row.name));
        Ok(rows)
    }
}

fn spec(rng: &mut Rng) -> GuestSpec {
    let memory_bytes = rng.u64(8..=32) * MIB;
    GuestSpec {
        working_set_bytes: memory_bytes / 2,
        dirty_rate_bytes_per_second: rng.u64(0..=8) * MIB,
        zero_percent: 10,
        compressible_percent: if rng.bool() { 0 } else { 40 },
        threads: 1,
        seed: rng.u64(1..1_000_000),
        tick_interval_ms: 20,
        ..GuestSpec::idle(memory_bytes)
    }
}
