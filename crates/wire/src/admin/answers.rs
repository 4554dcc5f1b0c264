//! What is answered over the admin socket: rows for lists, details for one thing.
//!
//! Always true: units stand in the names of keys; what is not known is absent or null, never a made-up number.

use core::net::SocketAddr;
use std::collections::BTreeMap;

use godwit_domain::policy::PolicyName;
use godwit_domain::progress::{Measured, Progress};
use godwit_domain::{
    Epoch, GuestName, GuestSpec, InstanceId, Labels, MigrationId, NodeName, Overrides, Priority,
};
use serde::{Deserialize, Serialize};

use super::SettingRow;
use crate::handoff::Stats;

/// Answer to [`super::Act::Version`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The node.
    pub node: NodeName,
    /// Its version.
    pub version: String,
}

/// Nothing more to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// A sentence about what follows from it, if something does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// The cluster at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster's name.
    pub cluster: String,
    /// Who answers.
    pub answered_by: NodeName,
    /// Nobody leads: this is what the answering node has seen agreed so far, maybe not the latest.
    pub stale: bool,
    /// Who leads, in which term.
    pub leader: Option<NodeName>,
    /// The term.
    pub term: u64,
    /// Up to which entry the answer is.
    pub applied: u64,
    /// Replicated time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Nodes.
    pub nodes: Vec<NodeRow>,
    /// Guests by what they are: running, migrating, lost and so on.
    pub guests: BTreeMap<String, u64>,
    /// Migrations that are not over.
    pub migrations: Vec<MigrationRow>,
    /// Nodes that have not said what they have since the control group was founded anew.
    #[serde(default)]
    pub unheard: Vec<NodeName>,
}

/// How a voter and its group stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlStatus {
    /// The cluster's name.
    pub cluster: String,
    /// The node that answers.
    pub node: NodeName,
    /// What it is: leader, follower, learner, candidate, halted, or none if it has no place in the group.
    pub role: String,
    /// The term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeName>,
    /// Every voter.
    pub voters: Vec<NodeName>,
    /// The group, if the node has heard of one: 32 hexadecimal digits.
    pub group: Option<String>,
    /// Everyone in it.
    pub members: Vec<MemberRow>,
    /// The change of the group that is under way, in words.
    pub change: Option<String>,
    /// Up to which entry its state is.
    pub applied: u64,
    /// Up to which entry the log is agreed.
    pub committed: u64,
    /// First and last entry in its log.
    pub log: (u64, u64),
    /// How long ago a quorum was asked that has answered, in milliseconds. The leader alone knows.
    pub quorum_age_ms: Option<u64>,
    /// `running`, or why it takes no part.
    pub condition: String,
    /// With whom this node's session is, if it has one.
    pub session: Option<NodeName>,
}

/// A member of the control group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    /// The node.
    pub node: NodeName,
    /// Its number in the group: 16 hexadecimal digits.
    pub voter: String,
    /// `voter` or `learner`.
    pub state: String,
    /// Whether it answers. The leader alone knows.
    pub answers: Option<bool>,
    /// How many agreed entries it lacks. The leader alone knows.
    pub behind: Option<u64>,
}

/// What has become of a node in the control group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberDetail {
    /// The node.
    pub node: NodeName,
    /// What the request did: `added`, `removed` or `unchanged`; none where it only looks.
    pub done: Option<String>,
    /// `voter`, `learner` or `none`.
    pub state: String,
    /// How many agreed entries it lacks.
    pub behind: Option<u64>,
    /// For what it waits before it votes.
    pub waits_for: Option<String>,
    /// Every voter.
    pub voters: Vec<NodeName>,
}

/// A piece of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupPiece {
    /// Its bytes, two hexadecimal digits each; they follow the piece before.
    pub hex: String,
}

/// Answer to [`super::Act::ControlBackup`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupMade {
    /// Bytes of all pieces together.
    pub bytes: u64,
}

/// A node in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its name.
    pub name: NodeName,
    /// `reachable`, `unreachable` or `fenced`.
    pub state: String,
    /// Since when it has not been heard, as the leader counts, in milliseconds.
    pub unreachable_for_ms: Option<u64>,
    /// Whether it votes, and leads: `leader`, `voter`, `learner` or `-`.
    pub control: String,
    /// Control address.
    pub control_address: SocketAddr,
    /// Migration address.
    pub migration_address: SocketAddr,
    /// Guests that run there or are to.
    pub guests: u64,
    /// Memory that it offers.
    pub memory_bytes: u64,
    /// Memory that no guest and no reservation takes.
    pub free_memory_bytes: u64,
    /// Migrations that leave it.
    pub outbound: u64,
    /// Migrations that enter it.
    pub inbound: u64,
    /// Whether it takes guests: `yes`, `cordoned` or `draining`.
    pub takes_guests: String,
    /// Its labels, from its config and from manifests.
    pub labels: Labels,
}

/// A node with what is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    /// As in a list.
    #[serde(flatten)]
    pub row: NodeRow,
    /// Its boot, as it said.
    pub boot: String,
    /// Instances that a fence waits for, if it is fenced.
    pub fence_waits_for: Vec<InstanceId>,
    /// Guests that the cluster places there.
    pub placed: Vec<GuestRow>,
    /// Migrations that wait to leave it or are leaving it, in order.
    pub leaving: Vec<MigrationRow>,
    /// Its migration addresses on named networks.
    pub networks: BTreeMap<String, SocketAddr>,
    /// How its drain stands, if it is drained.
    pub drain: Option<DrainDetail>,
    /// Runners that it has, if it answers.
    pub runners: Option<Vec<RunnerRow>>,
}

/// How a drain stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainDetail {
    /// `draining`, `drained`, `stuck` (guests are left and nothing more happens by itself) or `cancelled`.
    pub state: String,
    /// When it began, in milliseconds since the Unix epoch.
    pub began_ms: u64,
    /// Guests that it has moved.
    pub moved: u64,
    /// Guests that are left.
    pub left: Vec<DrainGuest>,
}

/// A guest that is still on a drained node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainGuest {
    /// The guest.
    pub guest: GuestName,
    /// Whether it will not move by itself.
    pub stuck: bool,
    /// What is done with it, or why it can not move.
    pub why: String,
    /// How often its migration has failed in a row.
    pub failed: u32,
    /// When it is tried again, in milliseconds since the Unix epoch.
    pub retry_at_ms: Option<u64>,
}

/// A runner on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerRow {
    /// Its guest.
    pub guest: GuestName,
    /// Itself.
    pub instance: InstanceId,
    /// What it does, in a word.
    pub state: String,
    /// Its folder on that node.
    pub dir: String,
    /// The transfer that it is part of.
    pub transfer: Option<String>,
}

/// Answer to [`super::Act::NodeFence`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// The node.
    pub node: NodeName,
    /// Guests that are lost by it, with whether a copy is kept that `guest recover` can go back to.
    pub lost: Vec<LostGuest>,
    /// What the operator must know.
    pub note: String,
}

/// A guest that a fence has made Lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostGuest {
    /// Its name.
    pub guest: GuestName,
    /// Where an older copy of it is kept, if there is one.
    pub kept_on: Option<NodeName>,
}

/// A guest in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRow {
    /// Its name.
    pub name: GuestName,
    /// `creating`, `running`, `migrating`, `unreachable`, `lost`, `stopping`.
    pub state: String,
    /// Who owns it: where it runs, or will in a moment.
    pub node: Option<NodeName>,
    /// The present epoch.
    pub epoch: Epoch,
    /// RAM.
    pub memory_bytes: u64,
    /// Its unfinished migration.
    pub migration: Option<MigrationId>,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDetail {
    /// As in a list.
    #[serde(flatten)]
    pub row: GuestRow,
    /// Its number, used for no other guest.
    pub uid: String,
    /// The runner that owns it.
    pub instance: Option<InstanceId>,
    /// If it is lost: the copies that are kept, the last owner first. If it is not known who runs it: what nodes have said.
    pub copies: Vec<CopyRow>,
    /// If it is lost: why its runner has ended, in its own words, where the node that had it can be asked and knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// If its runner was told to run it and does not: why, in its own words, where its node can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_run: Option<String>,
    /// How often an older copy of it was run.
    pub rollbacks: u32,
    /// What the built-in runner was told.
    pub spec: GuestSpec,
    /// The labels by which it gets its policy.
    pub labels: Labels,
    /// Labels that every node must carry that runs it.
    pub node_selector: Labels,
    /// The policy in force.
    pub policy: Option<PolicyName>,
    /// Migrations, oldest first, the present one last.
    pub migrations: Vec<MigrationRow>,
}

/// A copy of a lost guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRow {
    /// Where.
    pub node: NodeName,
    /// The runner.
    pub instance: InstanceId,
    /// What it is: `last owner` or `kept source`; in a group that was founded anew, as its node says.
    pub what: String,
}

/// Answer to [`super::Act::GuestStats`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStats {
    /// Where it runs.
    pub node: NodeName,
    /// The folder of its runner there, with its ticks.
    pub dir: String,
    /// The numbers.
    pub stats: Stats,
}

/// A migration in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationRow {
    /// Its name.
    pub name: MigrationId,
    /// Its guest.
    pub guest: GuestName,
    /// `Pending`, `Scheduling`, `PreparingTarget`, `TargetReady`, `Running`, `Cancelling`, `Succeeded`, `Failed` or `Cancelled`.
    pub phase: String,
    /// More about the phase: `PreCopy round 3`, `SwitchingOver`, `PostCopy`; why it waits; why it ended.
    pub detail: Option<String>,
    /// From where.
    pub source: Option<NodeName>,
    /// Where to, once that is known.
    pub target: Option<NodeName>,
    /// When it was asked for, in milliseconds since the Unix epoch.
    pub asked_ms: u64,
    /// Its class in the queue.
    pub priority: Priority,
    /// The policy in force.
    pub policy: Option<PolicyName>,
    /// Its place in the queue, if it waits; 1 is the first.
    pub queue_position: Option<u64>,
}

/// One migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationDetail {
    /// As in a list.
    #[serde(flatten)]
    pub row: MigrationRow,
    /// Whether it has ended.
    pub over: bool,
    /// The node that was asked for.
    pub asked_target: Option<NodeName>,
    /// Labels of the target that were asked for.
    pub asked_selector: Labels,
    /// The node whose drain has asked for it.
    pub drains: Option<NodeName>,
    /// The migration network that it goes over, if it is not the default one.
    pub network: Option<String>,
    /// Why it waits, with everything that it waits for.
    pub waits_for: Option<String>,
    /// Migrations that hold what it waits for.
    pub holders: Vec<MigrationId>,
    /// Nodes whose permits it holds: cluster, outbound and inbound.
    pub permits_held: bool,
    /// How often it was called off after a pause.
    pub call_offs: u8,
    /// Its settings above the policy's.
    pub overrides: Overrides,
    /// What holds for it, and where that comes from.
    pub settings: BTreeMap<String, SettingRow>,
    /// What was changed of its settings, and by what.
    pub changes: Vec<ChangeRow>,
    /// Per node why it can not take the guest, if it waits for a target.
    pub obstacles: BTreeMap<NodeName, String>,
    /// The phases that it came through, with replicated time.
    pub steps: Vec<StepRow>,
    /// How it does, as its source said last.
    pub progress: Option<Progress>,
    /// What was measured of it.
    pub measured: Measured,
}

/// A phase that a migration entered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRow {
    /// Replicated time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The phase.
    pub phase: String,
    /// Why.
    pub reason: Option<String>,
}

/// Other settings hold for a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRow {
    /// Replicated time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// What has changed them, and which.
    pub what: String,
}

/// What was done with an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Its kind.
    pub kind: String,
    /// Its name, with its namespace if it has one.
    pub name: String,
    /// `created`, `configured`, `unchanged`, `deleted`, `labeled`; with a dry run, what would be done.
    pub done: String,
    /// Nothing was done.
    pub dry_run: bool,
    /// What was ignored or is unusual in it, and what follows from it.
    pub notes: Vec<String>,
}

/// Objects of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objects {
    /// The kind.
    pub kind: String,
    /// Each as a manifest has it, with its status.
    pub items: Vec<serde_json::Value>,
    /// Heads of the columns of a table of them.
    pub head: Vec<String>,
    /// Rows of that table, as many as items.
    pub rows: Vec<Vec<String>>,
    /// So many columns are enough where space is short.
    pub narrow: usize,
}

/// Where a guest would go, and why not elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// The guest.
    pub guest: GuestName,
    /// Where it runs.
    pub source: NodeName,
    /// Where it would go; `None`: no node can take it.
    pub target: Option<NodeName>,
    /// Why it would not start at once, if it would not.
    pub waits_for: Option<String>,
    /// Per node: `None` if it could take the guest, else why not.
    pub nodes: BTreeMap<NodeName, Option<String>>,
    /// The policy in force.
    pub policy: Option<PolicyName>,
    /// What would hold.
    pub settings: BTreeMap<String, SettingRow>,
    /// What is worth to know before.
    pub notes: Vec<String>,
}

/// Why a migration waits or goes where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationExplained {
    /// Everything about it.
    #[serde(flatten)]
    pub detail: MigrationDetail,
    /// Per node: `None` if it could take the guest now, else why not.
    pub nodes: BTreeMap<NodeName, Option<String>>,
    /// Migrations that go before it in the queue, at most the ten next ones.
    pub before: Vec<MigrationId>,
}
