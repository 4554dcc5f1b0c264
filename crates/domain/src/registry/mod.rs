//! What the cluster agrees on: settings, policies and labels, nodes, guests and who may run them, migrations and drains.
//!
//! ```text
//!   log entry (time, command) ──apply──▶ Registry ──▶ effects: "node N, look at guest G"
//!                                          │
//!                                          ├─ ownership, per guest (crate::ownership)
//!                                          ├─ layers: which settings hold for a migration (crate::policy, crate::settings)
//!                                          └─ admission: which waiting migration goes where
//! ```
//!
//! Always true:
//! - `apply` is a function of state and entry only: the same log twice gives the same registry;
//! - replicated time never runs back; a refused command changes nothing but the time and the memory of requests;
//! - what can be counted is counted (`index`), not stored: permits in use and memory reserved follow from the migrations;
//! - no more is granted than the limits in force allow, whoever proposes it;
//! - an effect is a doorbell: lost, it costs time and never correctness, since a node asks what it still owes.
//!
//! Never here: who is reachable (the leader knows, and passes it in), reply channels, clocks, chance.

mod admission;
mod command;
mod drain;
mod founding;
mod guests;
mod index;
mod layers;
mod met;
mod migrations;
mod nodes;
mod order;
mod places;
mod reasons;
mod record;
mod requests;
#[cfg(test)]
mod tests;
mod waiters;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::guest::GuestSpec;
use crate::ids::{GuestName, InstanceId, MigrationId, NodeName};
use crate::labels::Labels;
use crate::machine::{Body, Machine};
use crate::ownership::{Attempt, Ownership};
use crate::policy::{Policy, PolicyName};
use crate::settings::ClusterSettings;

pub use admission::Waiting;
pub use command::{BootId, Command, GuestUid, Home, MemberChange, Milestone, NodeChange, Refusal, Stamped};
pub use drain::{Drain, Due, Tries, retry_after_ms};
pub use founding::{Founding, TESTIFIED_MAX, Testified};
pub use layers::InForce;
pub use met::{Found, Labelled, Met};
pub use reasons::{Obstacle, WaitReason};
pub use record::{Change, Finished, PREPARING_TARGET, RUNNING, Record, Step, UNSCHEDULABLE_TIMEOUT_S, Wish};
pub use requests::{Answered, REQUEST_ID_BYTES_MAX, RequestKey, Requests};

use guests::{concerned, licences_of, takes_memory_on};
use index::{Index, counts_on, free_bytes};

/// How many migrations may run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParallelLimits {
    /// In the cluster (`parallelMigrationsPerCluster`); 0: nothing starts.
    pub cluster: u32,
    /// From one node (`parallelOutboundMigrationsPerNode`); 0: nothing leaves.
    pub outbound: u32,
    /// To one node (`parallelInboundMigrationsPerNode`); 0: nothing enters.
    pub inbound: u32,
}

impl Default for ParallelLimits {
    fn default() -> Self {
        Self { cluster: 5, outbound: 2, inbound: 2 }
    }
}

/// A host, as it says of itself when it joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Where other nodes reach it for sessions and the log.
    pub control: core::net::SocketAddr,
    /// Its config says so, with a port: it will be there after its next start, too.
    pub control_stays: bool,
    /// Where pages come in.
    pub migration: core::net::SocketAddr,
    /// Its present boot, as it said when it joined.
    pub boot: BootId,
    /// Memory that it offers to guests, in bytes.
    pub memory_bytes: u64,
    /// Labels from its config, `kubernetes.io/hostname` among them.
    pub labels: Labels,
    /// Where pages come in on named networks.
    pub networks: BTreeMap<String, core::net::SocketAddr>,
    /// It was vouched to be off. Until it has stopped these and said so, it gets no guests and no orders.
    pub fenced: Option<BTreeSet<InstanceId>>,
}

impl Node {
    /// One without labels and named networks, whose control address stays.
    pub fn new(
        control: core::net::SocketAddr,
        migration: core::net::SocketAddr,
        boot: BootId,
        memory_bytes: u64,
    ) -> Self {
        let (labels, networks) = (Labels::new(), BTreeMap::new());
        let (control_stays, fenced) = (true, None);
        Self { control, control_stays, migration, boot, memory_bytes, labels, networks, fenced }
    }
}

/// What operators want of a node, whether it has joined or not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeWish {
    /// Labels above those of its config.
    pub labels: Labels,
    /// It takes no guests.
    pub cordoned: bool,
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Its name. Used again only after it is purged.
    pub name: GuestName,
    /// Its own labels; those of its VirtualMachine's template, if there are any, count instead.
    pub labels: Labels,
    /// What it is like, its size among it.
    pub body: Body,
    /// Who may run it.
    pub ownership: Ownership,
    /// Of the migration that the ownership speaks of: what was asked, and what became of it.
    pub record: Option<Record>,
    /// Earlier migrations, oldest first.
    pub finished: Vec<Finished>,
}

impl Guest {
    /// Size of its RAM in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.body.spec.memory_bytes
    }

    /// What the built-in runner is told.
    pub fn spec(&self) -> &GuestSpec {
        &self.body.spec
    }

    /// A migration of this guest, the present one or one that is kept.
    pub fn migration(&self, name: &MigrationId) -> Option<(&Attempt, &Record)> {
        let present = self.ownership.attempt.as_ref().zip(self.record.as_ref());
        let kept = self.finished.iter().map(|finished| (&finished.attempt, &finished.record));
        present.into_iter().chain(kept).find(|(attempt, _)| attempt.migration == *name)
    }
}

/// Ring at this node: something about this guest has changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Effect {
    /// Whom it concerns.
    pub node: NodeName,
    /// Which guest.
    pub guest: GuestUid,
}

/// What is agreed. Read through [`Registry`], changed by entries alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Replicated time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The cluster's settings.
    pub settings: ClusterSettings,
    /// Policies.
    pub policies: BTreeMap<PolicyName, Policy>,
    /// Projects and their labels.
    pub namespaces: BTreeMap<String, Labels>,
    /// The hosts.
    pub nodes: BTreeMap<NodeName, Node>,
    /// What operators want of them.
    pub node_wishes: BTreeMap<NodeName, NodeWish>,
    /// Hosts that are emptied.
    pub drains: BTreeMap<NodeName, Drain>,
    /// VirtualMachines.
    pub machines: BTreeMap<GuestName, Machine>,
    /// The guests, by a number that is never used again.
    pub guests: BTreeMap<GuestUid, Guest>,
    /// Guests that are gone everywhere, the oldest first.
    pub purged: VecDeque<GuestUid>,
    /// How many migrations were asked for so far.
    pub asked: u64,
    /// Requests that were answered.
    pub requests: Requests,
    /// How this group took another's place, if it did.
    pub founding: Option<Founding>,
    /// Nodes that have not said since what they have.
    pub unheard: BTreeSet<NodeName>,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    state: State,
    index: Index,
}

impl Deref for Registry {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl Serialize for Registry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.state.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Registry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        State::deserialize(deserializer).map(Self::from)
    }
}

impl From<State> for Registry {
    fn from(state: State) -> Self {
        let index = Index::of(&state);
        Self { state, index }
    }
}

type Applied = Result<BTreeSet<Effect>, Refusal>;

impl Registry {
    /// Applies one entry of the log. Effects tell whom it concerns.
    pub fn apply(&mut self, stamped: Stamped) -> Applied {
        self.state.time_ms = self.time_ms.max(stamped.time_ms);
        let Some(key) = stamped.request else { return self.command(stamped.command) };
        let time_ms = self.time_ms;
        self.state.requests.forget(time_ms);
        match self.requests.answer(&key.id, key.digest) {
            Some(Ok(answered)) => answered.outcome.clone().map(|()| BTreeSet::new()),
            Some(Err(refusal)) => Err(refusal),
            None => {
                let applied = self.command(stamped.command);
                let outcome = applied.as_ref().map(drop).map_err(Clone::clone);
                // Whoever has met something else looks again, and asks under the same id.
                if !matches!(outcome, Err(Refusal::MetOther(_))) {
                    self.state.requests.remember(time_ms, key, outcome);
                }
                applied
            }
        }
    }

    fn command(&mut self, command: Command) -> Applied {
        match command {
            Command::Join { name, node } => self.join(name, node),
            Command::PutSettings { settings } => self.put_settings(settings),
            Command::PutPolicy { name, policy } => self.put_policy(name, policy),
            Command::DeletePolicy { name } => self.delete_policy(&name),
            Command::PutNamespace { name, labels } => self.put_namespace(name, labels),
            Command::DeleteNamespace { name } => self.delete_namespace(&name),
            Command::Node { node, change } => self.change_node(node, change),
            Command::PutMachine { name, machine, home } => self.put_machine(name, machine, home),
            Command::DeleteMachine { name } => self.delete_machine(&name),
            Command::PutInstance { name, labels, body, home } => self.put_instance(name, labels, body, home),
            Command::Migrate { guest, migration, wish } => self.migrate(guest, migration, wish),
            Command::Set { migration, overrides } => self.set(&migration, overrides),
            Command::Reached { migration, milestone } => self.reached(&migration, milestone),
            Command::Placeable { migration, is } => self.note_placeable(&migration, is),
            Command::ForgetMigration { migration } => self.forget_migration(&migration),
            Command::Measured { migration, measured } => self.measured(&migration, *measured),
            Command::Admit { guest, migration, target } => self.admit(guest, migration, target),
            Command::Guest { guest, entry } => self.guest_entry(guest, entry),
            Command::Fence { node, boot, instances } => self.fence(&node, boot, &instances),
            Command::FenceSeen { node } => self.fence_seen(&node),
            Command::RemoveNode { node } => self.remove_node(&node),
            Command::Member { .. } => Ok(BTreeSet::new()),
            Command::If { met, command } => self.change_if(met, *command),
            Command::Label { of, change, overwrite } => self.label(of, &change, overwrite),
            Command::Found { founding } => self.found(founding),
            Command::Testify { node, first, runners, last } => self.testify(node, first, runners, last),
        }
    }

    /// How much may run at once.
    pub fn limits(&self) -> ParallelLimits {
        self.settings.limits()
    }

    /// The guest of this name that is not purged.
    pub fn guest_named(&self, name: &GuestName) -> Option<(GuestUid, &Guest)> {
        let uid = self.index.by_name.get(name)?;
        Some((*uid, self.guests.get(uid)?))
    }

    /// The guest that this migration, the present one or one that is kept, is of.
    pub fn guest_of(&self, migration: &MigrationId) -> Option<(GuestUid, &Guest)> {
        let uid = self.index.by_migration.get(migration)?;
        Some((*uid, self.guests.get(uid)?))
    }

    /// Guests with a migration that is not over.
    pub fn migrating(&self) -> impl Iterator<Item = (GuestUid, &Guest)> {
        self.index.open.iter().filter_map(|uid| Some((*uid, self.guests.get(uid)?)))
    }

    /// Migrations that hold permits.
    pub fn granted(&self) -> impl Iterator<Item = (&Attempt, &NodeName, &NodeName)> {
        self.index.granted.iter().filter_map(|(uid, (source, target))| {
            Some((self.guests.get(uid)?.ownership.attempt.as_ref()?, source, target))
        })
    }

    /// Guests that a node owns.
    pub fn owned_by(&self, node: &NodeName) -> impl Iterator<Item = (GuestUid, &Guest)> {
        let owned = self.index.nodes.get(node).into_iter().flat_map(|on_node| &on_node.owned);
        owned.filter_map(|uid| Some((*uid, self.guests.get(uid)?)))
    }

    /// Guests that a node plays a part in, or may hold something of.
    pub fn touched_by(&self, node: &NodeName) -> impl Iterator<Item = (GuestUid, &Guest)> {
        let touched = self.index.nodes.get(node).into_iter().flat_map(|on_node| &on_node.touched);
        touched.filter_map(|uid| Some((*uid, self.guests.get(uid)?)))
    }

    /// Whether a node plays a part in a guest, or may hold something of it.
    pub fn touches(&self, node: &NodeName, guest: GuestUid) -> bool {
        self.index.nodes.get(node).is_some_and(|on_node| on_node.touched.contains(&guest))
    }

    /// Instances that the registry places on a node, and so what a vouch for it is about.
    pub fn instances_on(&self, node: &NodeName) -> BTreeSet<InstanceId> {
        let licences = self.touched_by(node).flat_map(|(_, guest)| licences_of(&guest.ownership));
        licences.filter(|licence| licence.node == *node).map(|licence| licence.instance).collect()
    }

    /// Memory that a node offers and that no guest and no reservation takes, in bytes.
    pub fn free_memory_bytes(&self, name: &NodeName) -> u64 {
        let Some(node) = self.nodes.get(name) else { return 0 };
        free_bytes(node.memory_bytes, self.index.nodes.get(name).map_or(0, |on_node| on_node.taken_bytes))
    }

    /// Migrations that leave a node with their permits.
    pub fn outbound(&self, name: &NodeName) -> usize {
        self.index.nodes.get(name).map_or(0, |on_node| on_node.leaving.len())
    }

    /// Migrations that enter a node with their permits.
    pub fn inbound(&self, name: &NodeName) -> usize {
        self.index.nodes.get(name).map_or(0, |on_node| on_node.entering.len())
    }

    /// Changes one guest; what is counted of it follows. A refusal must leave it as it was.
    fn change<T>(
        &mut self,
        uid: GuestUid,
        change: impl FnOnce(&mut Guest, u64) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let time_ms = self.state.time_ms;
        let guest = self.state.guests.get_mut(&uid).ok_or(Refusal::NoGuest(uid))?;
        let mut nodes = counts_on(&guest.ownership);
        self.index.forget(uid, guest);
        let changed = change(guest, time_ms);
        self.index.learn(uid, guest);
        nodes.extend(counts_on(&guest.ownership));
        for name in nodes {
            self.index.refresh(&self.state, &name);
        }
        changed
    }

    /// Changes what is known or wished of one node; what is counted of it follows.
    fn change_facts<T>(&mut self, name: &NodeName, change: impl FnOnce(&mut State) -> T) -> T {
        self.index.places.unlabel(name, &self.state.labels_of_node(name));
        let changed = change(&mut self.state);
        if self.state.nodes.contains_key(name) {
            self.index.places.label(name, self.state.labels_of_node(name));
        }
        self.index.refresh(&self.state, name);
        changed
    }
}
