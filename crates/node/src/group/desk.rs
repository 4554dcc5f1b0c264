//! Where operators' requests are answered: at the leader, or, when nobody leads, from a replica and said to be stale.
//!
//! ```text
//!   Request ─▶ look (rows) ───────────────────────────▶ ok
//!          ├─▶ propose ─▶ wait until it shows ─────────▶ ok | error
//!          └─▶ ask the node that has the guest ────────▶ ok | error
//! ```
//!
//! Always true: before anything is looked at, a quorum has said that this voter leads, and everything that was agreed until
//! then is applied, so no answer is older than its question; what is acknowledged is agreed; an outcome that nobody knows is said to be unknown; a refusal names the
//! rule and what would satisfy it.

mod acts;
mod asked;
mod backup;
mod members;
mod moves;
mod objects;
mod problem;
mod relabel;
mod shown;

use std::time::Duration;

use godwit_domain::machine::Body;
use godwit_domain::ownership::{Life, Phase};
use godwit_domain::registry::{Guest, GuestUid, NodeChange, Registry};
use godwit_domain::{GuestName, MigrationId, NodeName};
use godwit_wire::admin::{Act, Body as ReplyBody, Done, NodeDetail, Problem, Reply, Request, Status};
use godwit_wire::session::{ASK_BYTES_MAX, Answer, NodeAnswer, NodeAsk, PUSH_BYTES_MAX};
use quinn::{RecvStream, SendStream};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::rows::{self, Beside};
use super::{Group, NotAgreed};
use crate::fabric::frames;
use acts::Still;
use asked::Asked;
use objects::Verb;
use problem::{gone, no_guest, no_migration, no_node};

pub(crate) use backup::counted;
pub(crate) use moves::free_name;

/// How often a migration that is watched is looked at though nothing was agreed: its progress is the leader's alone.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);
/// Rest between two looks of whoever watches: the log may take a thousand entries in a second.
const WATCH_REST: Duration = Duration::from_millis(25);
/// How long the numbers of a migration are waited for: they follow its end, unless a node has just died.
const MEASURED_PATIENCE: Duration = Duration::from_secs(2);
/// How long a node may take to answer something quick.
const NODE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node may take for a word without which the answer goes out.
const WORD_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it may take to compare all of a guest's memory.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(600);

/// Longest answer, in bytes: a frame, less what surrounds a line in it.
const ANSWER_BYTES_MAX: usize = PUSH_BYTES_MAX - 64;

/// How an answer ends.
pub type Answered = Result<Value, Problem>;

type Work = std::pin::Pin<Box<dyn Future<Output = Answered> + Send>>;

/// Answers a forwarded request on its stream.
pub async fn answer(group: Group, line: String, mut send: SendStream, _receive: RecvStream) {
    let Ok(request) = serde_json::from_str::<Request>(&line) else {
        return tracing::warn!("a forwarded request is none");
    };
    let id = request.id.clone();
    let (events, mut told) = mpsc::channel(16);
    let mut work: Work = Box::pin(async move { handle(&group, request, events).await });
    loop {
        let (mut bodies, mut last) = (Vec::new(), None);
        tokio::select! {
            biased;
            Some(event) = told.recv() => bodies.push(ReplyBody::Event(event)),
            answered = &mut work => {
                // What was told before it was answered goes before the answer.
                bodies.extend(std::iter::from_fn(|| told.try_recv().ok()).map(ReplyBody::Event));
                last = Some(answered.map_or_else(ReplyBody::Error, ReplyBody::Ok));
            }
            _ = send.stopped() => {
                // Whoever asked has gone away. Who watches ends when nobody hears him; what was begun is ended by whoever began it.
                drop(told);
                tokio::spawn(work);
                return;
            }
        }
        let is_last = last.is_some();
        for body in bodies.into_iter().chain(last) {
            let Some(line) = line_of(&id, body) else { return };
            // Whoever has gone away hears nothing more, and what was begun for him alone ends here.
            if frames::write(&mut send, "answer", &Answer::Line(line), PUSH_BYTES_MAX).await.is_err() {
                return;
            }
        }
        if is_last {
            let _ = send.finish();
            return;
        }
    }
}

/// A line of an answer; one that is too long says that it is.
fn line_of(id: &str, body: ReplyBody) -> Option<String> {
    let line = serde_json::to_string(&Reply { id: id.to_owned(), body }).ok()?;
    if line.len() <= ANSWER_BYTES_MAX {
        return Some(line);
    }
    let body = ReplyBody::Error(problem::too_long(line.len()));
    serde_json::to_string(&Reply { id: id.to_owned(), body }).ok()
}

/// Answers a request, at the leader.
pub async fn handle(group: &Group, request: Request, events: mpsc::Sender<Value>) -> Answered {
    // Asked anew for each request: a leader that slept, or was cut off a moment ago, does not know that another leads.
    if !group.is_present().await {
        return Err(problem::no_quorum());
    }
    let Request { act, request_id, .. } = request;
    let asked = Asked::new(request_id.filter(|_| !only_looks(&act)), &act)?;
    if let Some(earlier) = asked.clone().earlier(group).await? {
        return again(group, act, earlier.made).await;
    }
    match act {
        Act::Version | Act::ControlStatus => Err(problem::not_here()),
        Act::Status | Act::NodeList | Act::GuestList | Act::MigrationList => look_now(group, act).await,
        Act::ControlAdd { node } => members::add(group, asked, node).await,
        Act::ControlRemove { node } => members::remove(group, asked, node).await,
        Act::ControlWatch { node } => members::watch(group, node, events).await,
        Act::ControlBackup => backup::make(group, events).await,
        Act::NodeShow { node } => acts::node_show(group, node).await,
        Act::GuestShow { guest } => guest_detail(group, guest).await,
        Act::MigrationShow { migration } => migration_detail(group, migration).await,
        Act::MigrationWatch { migration } => watch(group, migration, events).await,
        Act::MigrationExplain { .. } | Act::PolicyExplain { .. } => look_now(group, act).await,
        Act::NodeFence { node, although_reachable } => {
            acts::fence(group, asked, node, although_reachable).await
        }
        Act::NodeRemove { node } => acts::remove(group, asked, node).await,
        Act::NodeDrain { node } => moves::change_node(group, asked, node, NodeChange::Drain).await,
        Act::NodeDrainCancel { node } => {
            moves::change_node(group, asked, node, NodeChange::CancelDrain).await
        }
        Act::NodeDrainWatch { node } => moves::watch_drain(group, node, events).await,
        Act::NodeUncordon { node } => moves::change_node(group, asked, node, NodeChange::Uncordon).await,
        Act::GuestCreate { guest, node, spec, labels } => {
            acts::create(group, asked, guest, node, Body::of(spec), labels).await
        }
        Act::GuestVerify { guest } => acts::verify(group, guest).await,
        Act::GuestStats { guest } => acts::stats(group, guest).await,
        Act::GuestStop { guest } => acts::stop(group, asked, guest).await,
        Act::GuestPowerButton { guest } => acts::power_button(group, guest).await,
        Act::GuestRelease { guest } => acts::release(group, asked, guest).await,
        Act::GuestRecover { guest, accept_rollback, instance } => {
            acts::recover(group, asked, guest, accept_rollback, instance).await
        }
        Act::Migrate { .. } => moves::migrate(group, asked, act).await,
        Act::MigrationSet { migration, overrides } => moves::set(group, asked, migration, overrides).await,
        Act::MigrationCancel { migration } => moves::cancel(group, asked, migration).await,
        Act::Apply { object, namespace, create, dry_run } => {
            objects::apply(group, asked, &object, namespace, Verb { create, dry_run }).await
        }
        Act::Get { kind, name, namespace, watch: false } => shown::get(group, &kind, name, namespace).await,
        Act::Get { kind, name, namespace, watch: true } => {
            shown::watch(group, &kind, name, namespace, events).await
        }
        Act::Delete { kind, name, namespace, dry_run } => {
            objects::delete(group, asked, &kind, name, namespace, dry_run).await
        }
        Act::Label { kind, name, namespace, labels, overwrite, dry_run } => {
            let change = relabel::Relabel { labels, overwrite };
            relabel::label(group, asked, &kind, name, namespace, change, dry_run).await
        }
    }
}

/// The answer to a request that was answered before: how what it has made, or changed, stands now.
async fn again(group: &Group, act: Act, made: Option<String>) -> Answered {
    let note = || json(&Done { note: Some("done before, under the same request id".to_owned()) });
    match act {
        Act::Migrate { .. } => match made.and_then(|made| made.parse().ok()) {
            Some(migration) => migration_detail(group, migration).await,
            None => note(),
        },
        Act::MigrationSet { migration, .. } | Act::MigrationCancel { migration } => {
            migration_detail(group, migration).await
        }
        Act::ControlAdd { node } => members::detail(group, node, Some("added")).await,
        Act::ControlRemove { node } => members::detail(group, node, Some("removed")).await,
        Act::GuestCreate { guest, .. } => acts::await_created(group, guest, made).await,
        Act::GuestRecover { guest, .. } => guest_detail(group, guest).await,
        Act::NodeDrain { node } | Act::NodeDrainCancel { node } | Act::NodeUncordon { node } => {
            acts::node_show(group, node).await
        }
        Act::NodeFence { node, .. } => acts::fenced_before(group, node).await,
        Act::Apply { .. } | Act::Delete { .. } | Act::Label { .. } => objects::again(group, made).await,
        _ => note(),
    }
}

/// Whether a request only looks, so that a replica may answer it when nobody leads.
pub fn only_looks(act: &Act) -> bool {
    matches!(
        act,
        Act::Status
            | Act::NodeList
            | Act::NodeShow { .. }
            | Act::GuestList
            | Act::GuestShow { .. }
            | Act::MigrationList
            | Act::MigrationShow { .. }
            | Act::MigrationExplain { .. }
            | Act::PolicyExplain { .. }
    )
}

/// Answers from what this voter has seen agreed so far, whoever leads: it may be old, also if this voter thinks that it
/// leads, and where there is room for it the answer says so.
pub async fn look(group: &Group, act: Act) -> Answered {
    look_as(group, act, true).await
}

async fn look_now(group: &Group, act: Act) -> Answered {
    look_as(group, act, false).await
}

async fn look_as(group: &Group, act: Act, stale: bool) -> Answered {
    let beside = Beside::of(group);
    let (cluster, me, view) = (group.cluster().to_owned(), group.me().clone(), group.view());
    let found = group.read(move |registry| {
        let beside = queued_for(&act, registry, beside);
        look_at(registry, &beside, act, (cluster, me, view, stale))
    });
    found.await.unwrap_or_else(|| Err(gone()))
}

/// With as much of the queue as the answer shows.
fn queued_for(act: &Act, registry: &Registry, beside: Beside) -> Beside {
    match act {
        Act::Status | Act::MigrationList => beside.with_queue(registry),
        Act::MigrationShow { migration } | Act::MigrationExplain { migration } => {
            beside.with_places(registry, registry.guest_of(migration).map(|(uid, _)| uid))
        }
        Act::GuestShow { guest } => {
            beside.with_places(registry, registry.guest_named(guest).map(|(uid, _)| uid))
        }
        Act::NodeShow { node } => beside.with_places(registry, registry.owned_by(node).map(|(uid, _)| uid)),
        _ => beside,
    }
}

type Head = (String, NodeName, godwit_control::View, bool);

fn look_at(registry: &Registry, beside: &Beside, act: Act, head: Head) -> Answered {
    match act {
        Act::Status => json(&status(registry, beside, head)),
        Act::NodeList => {
            let nodes = registry.nodes.iter();
            json(&nodes.map(|(name, node)| rows::node_row(registry, beside, name, node)).collect::<Vec<_>>())
        }
        Act::NodeShow { node } => match rows::node_detail(registry, beside, &node) {
            Some(detail) => json(&detail),
            None => Err(no_node(&node)),
        },
        Act::GuestList => {
            json(&living(registry).map(|(_, guest)| rows::guest_row(beside, guest)).collect::<Vec<_>>())
        }
        Act::GuestShow { guest } => match registry.guest_named(&guest) {
            Some((uid, found)) => json(&rows::guest_detail(registry, beside, uid, found)),
            None => Err(no_guest(&guest)),
        },
        Act::MigrationList => json(&migrations(registry, beside)),
        Act::MigrationShow { migration } => detail_of(registry, beside, &migration),
        Act::MigrationExplain { migration } => moves::explain(registry, beside, &migration),
        Act::PolicyExplain { guest } => moves::explain_policy(registry, &guest),
        _ => Err(problem::not_here()),
    }
}

fn json<T: Serialize>(value: &T) -> Answered {
    serde_json::to_value(value).map_err(|error| problem::failed("answer", error.to_string()))
}

fn living(registry: &Registry) -> impl Iterator<Item = (&GuestUid, &Guest)> {
    registry.guests.iter().filter(|(_, guest)| guest.ownership.life != Life::Purged)
}

fn migrations(registry: &Registry, beside: &Beside) -> Vec<godwit_wire::admin::MigrationRow> {
    let of = |guest: &Guest| {
        let kept = guest.finished.iter().map(|finished| finished.attempt.migration.clone());
        kept.chain(guest.ownership.attempt.iter().map(|attempt| attempt.migration.clone()))
            .collect::<Vec<_>>()
    };
    let all = registry.guests.values().flat_map(|guest| {
        of(guest).into_iter().filter_map(move |name| rows::migration_row(beside, guest, &name))
    });
    let mut rows: Vec<_> = all.collect();
    rows.sort_by(|a, b| (a.asked_ms, &a.name).cmp(&(b.asked_ms, &b.name)));
    rows
}

fn status(registry: &Registry, beside: &Beside, (cluster, answered_by, view, stale): Head) -> Status {
    let mut guests = std::collections::BTreeMap::new();
    for (_, guest) in living(registry) {
        *guests.entry(rows::guest_row(beside, guest).state).or_insert(0) += 1;
    }
    let nodes = registry.nodes.iter();
    let open = |row: &godwit_wire::admin::MigrationRow| {
        !matches!(row.phase.as_str(), "Succeeded" | "Failed" | "Cancelled")
    };
    Status {
        cluster,
        answered_by,
        stale,
        leader: beside.leader.clone(),
        term: view.term,
        applied: view.applied,
        time_ms: registry.time_ms,
        nodes: nodes.map(|(name, node)| rows::node_row(registry, beside, name, node)).collect(),
        guests,
        migrations: migrations(registry, beside).into_iter().filter(open).collect(),
        unheard: registry.unheard.iter().cloned().collect(),
    }
}

fn detail_of(registry: &Registry, beside: &Beside, migration: &MigrationId) -> Answered {
    let found = registry
        .guest_of(migration)
        .and_then(|(_, guest)| rows::migration_detail(registry, beside, guest, migration));
    match found {
        Some(detail) => json(&detail),
        None => Err(no_migration(migration)),
    }
}

/// With why it is lost or does not run, if its node knows.
async fn guest_detail(group: &Group, guest: GuestName) -> Answered {
    let mut detail = look_now(group, Act::GuestShow { guest: guest.clone() }).await?;
    let why = acts::why_still(group, &guest).await;
    if let (Some((still, why)), Some(fields)) = (why, detail.as_object_mut()) {
        let name = if still == Still::Lost { "ended" } else { "not_run" };
        fields.insert(name.to_owned(), Value::String(why));
    }
    Ok(detail)
}

/// With why a guest that was handed over does not run at its target, if that node knows.
async fn migration_detail(group: &Group, migration: MigrationId) -> Answered {
    let mut detail = look_now(group, Act::MigrationShow { migration: migration.clone() }).await?;
    let arrives = move |registry: &Registry| {
        let (_, guest) = registry.guest_of(&migration)?;
        let attempt = guest.ownership.attempt.as_ref().filter(|attempt| attempt.migration == migration)?;
        matches!(attempt.phase, Phase::HandedOver { .. } | Phase::PostCopy { .. }).then(|| guest.name.clone())
    };
    if let Some(Some(guest)) = group.read(arrives).await
        && let Some((_, why)) = acts::why_still(group, &guest).await
        && let Some(fields) = detail.as_object_mut()
    {
        fields
            .insert("waits_for".to_owned(), Value::String(format!("the guest to run at its target: {why}")));
    }
    Ok(detail)
}

/// A node as it is agreed on; `None` within: it is not known. `None`: the voter has stopped.
async fn node_now(group: &Group, node: &NodeName) -> Option<Option<NodeDetail>> {
    let (beside, name) = (Beside::of(group), node.clone());
    let look = move |registry: &Registry| {
        let beside = beside.with_places(registry, registry.owned_by(&name).map(|(uid, _)| uid));
        rows::node_detail(registry, &beside, &name)
    };
    group.read(look).await
}

/// Every change of a migration, until it is over, holds nothing any more and, if it has succeeded, was measured.
async fn watch(group: &Group, migration: MigrationId, events: mpsc::Sender<Value>) -> Answered {
    let mut last = Value::Null;
    let mut over_since = None;
    loop {
        let now = migration_detail(group, migration.clone()).await?;
        let flag = |name: &str| now.get(name).and_then(Value::as_bool).unwrap_or(false);
        if flag("over") && !flag("permits_held") {
            let since = *over_since.get_or_insert_with(tokio::time::Instant::now);
            if is_measured(&now) || since.elapsed() > MEASURED_PATIENCE {
                return Ok(now);
            }
        }
        if now != last {
            last = now.clone();
            if events.send(now).await.is_err() {
                return Ok(last);
            }
        }
        next_look(group).await;
        if events.is_closed() || !group.leads() {
            return Err(problem::leadership_lost());
        }
    }
}

/// Waits until something was agreed, and a while at most: many entries are one look.
async fn next_look(group: &Group) {
    let mut view = group.watch();
    view.mark_unchanged();
    let _ = tokio::time::timeout(WATCH_INTERVAL, view.changed()).await;
    tokio::time::sleep(WATCH_REST).await;
}

/// Whether both sides of a migration that has succeeded have said what they measured.
fn is_measured(detail: &Value) -> bool {
    let measured =
        |name: &str| detail.get("measured").and_then(|all| all.get(name)).is_some_and(|it| !it.is_null());
    let succeeded = detail.get("phase").and_then(Value::as_str) == Some("Succeeded");
    !succeeded || (measured("source") && measured("resume_us"))
}

/// Asks a node something.
async fn ask_node(group: &Group, node: &NodeName, ask: NodeAsk) -> Result<NodeAnswer, Problem> {
    let limit = match ask {
        NodeAsk::Verify(_) => VERIFY_TIMEOUT,
        NodeAsk::WhyEnded(_) => WORD_TIMEOUT,
        NodeAsk::Stats(_)
        | NodeAsk::Show
        | NodeAsk::WhyNot(_)
        | NodeAsk::Release(_)
        | NodeAsk::PowerButton(_) => NODE_TIMEOUT,
    };
    let Some(connection) = group.floor().session(node) else { return Err(problem::unreachable(node)) };
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
        let told = frames::write(&mut send, "question", &ask, ASK_BYTES_MAX).await;
        told.map_err(|error| error.to_string())?;
        let _ = send.finish();
        let answer = frames::read::<NodeAnswer>(&mut receive, "answer", PUSH_BYTES_MAX).await;
        answer.map_err(|error| error.to_string())?.ok_or_else(|| "it ended without an answer".to_owned())
    };
    match tokio::time::timeout(limit, exchange).await {
        Ok(Ok(NodeAnswer::Failed { message })) => Err(problem::failed("node", message)),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(why)) => Err(problem::failed("node", format!("node {node}: {why}"))),
        Err(_) => {
            Err(problem::failed("node", format!("node {node} did not answer within {} s", limit.as_secs())))
        }
    }
}

/// A bug that tests switch on: reads are answered by whoever is asked, from what it has applied.
pub mod planted {
    use godwit_wire::admin::Act;

    use super::{Answered, Group};

    /// The answer to a read, if the bug is on.
    #[cfg(feature = "planted-bugs")]
    pub async fn stale_read(group: &Group, act: &Act) -> Option<Answered> {
        match act {
            Act::Get { kind, name, namespace, watch: false }
                if godwit_transfer::planted::is_on("stale-read") =>
            {
                Some(super::shown::get(group, kind, name.clone(), namespace.clone()).await)
            }
            _ => None,
        }
    }

    /// No bug.
    #[cfg(not(feature = "planted-bugs"))]
    pub async fn stale_read(_: &Group, _: &Act) -> Option<Answered> {
        None
    }
}
