//! Manifests: made, changed and removed, one object at a time.
//!
//! ```text
//!   object ─ read ─▶ Manifest ─▶ look: what its command would meet ─▶ dry run: applied to a copy, and thrown away
//!                                 ▲                             └──▶ proposed, if it meets that, and seen through
//!                                 └────────── it has met something else
//! ```
//!
//! Always true: an object is judged by the registry, with a dry run as without; what it says that is not understood was
//! refused before anything was proposed; `created`, `configured` and `unchanged` are about the very state that the
//! command has met, whoever else changes the object at that moment, and whoever leads.

use godwit_domain::labels::Labels;
use godwit_domain::machine::{Body, Machine};
use godwit_domain::ownership::{Entry, Life, Side};
use godwit_domain::registry::{
    Command, Found, GuestUid, Home, Met, NodeChange, Refusal, Registry, Stamped, Wish,
};
use godwit_domain::{ClusterSettings, GuestName, NodeName};
use godwit_wire::admin::{Applied, Code, POST_COPY_PRICE, Problem};
use godwit_wire::manifest::{self, Kind, Manifest, MigrationWish, NameWish};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::{Group, NotAgreed, now_ms};
use super::acts;
use super::asked::Asked;
use super::problem::{self, gone, refused};
use super::{Answered, json};
use crate::files;

/// How often an object is looked at anew, since somebody else has changed it between the look and the agreement: each
/// time one of the others has got through.
const TRIES_MAX: usize = 64;

/// How an object is to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verb {
    /// It must not be there yet.
    pub(super) create: bool,
    /// Only say what would be done.
    pub(super) dry_run: bool,
}

/// What an object comes to.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) done: &'static str,
    /// What is agreed on, and, where `done` says what it meets, only if it meets that.
    pub(super) command: Command,
    /// A guest that is made by it, with its memory in bytes.
    pub(super) makes: Option<(GuestName, Home, u64)>,
    /// A guest that is ended by it.
    pub(super) ends: Option<(GuestName, GuestUid)>,
    pub(super) notes: Vec<String>,
}

impl Plan {
    /// A plan that makes and ends no guest.
    pub(super) fn simple(kind: Kind, name: String, done: &'static str, command: Command) -> Self {
        Self { kind, name, done, command, makes: None, ends: None, notes: Vec::new() }
    }
}

pub(super) async fn apply(
    group: &Group,
    asked: Asked,
    object: &Value,
    namespace: Option<String>,
    verb: Verb,
) -> Answered {
    let namespace = namespace.as_deref().unwrap_or(manifest::DEFAULT_NAMESPACE);
    let (manifest, notes) = manifest::read_in(object, namespace).map_err(|error| invalid(&error))?;
    for _ in 0..TRIES_MAX {
        let planned = plan(group, manifest.clone(), verb).await;
        // Asked twice at once: what the first one has done since is no reason to refuse the second.
        if let Some(first) = asked.clone().earlier(group).await? {
            return again(group, first.made).await;
        }
        let mut plan = planned?;
        plan.notes.splice(0..0, notes.clone());
        if let Some(answer) = carry_out(group, asked.clone(), plan, verb.dry_run).await? {
            return Ok(answer);
        }
    }
    Err(problem::contended())
}

pub(super) fn invalid(error: &dyn std::error::Error) -> Problem {
    let rule = "a manifest says what it is, and nothing about migration that is not known here";
    refused(rule, error.to_string(), "docs/settings.md and docs/policies.md have examples")
}

/// Does it, unless it is a dry run. `None`: it has met something else than was planned for, and nothing was done.
pub(super) async fn carry_out(
    group: &Group,
    asked: Asked,
    plan: Plan,
    dry_run: bool,
) -> Result<Option<Value>, Problem> {
    let Plan { kind, name, done, command, makes, ends, notes } = plan;
    let applied = Applied { kind: kind.to_string(), name, done: done.to_owned(), dry_run, notes };
    let is_same = matches!(&command, Command::If { met, .. } if met.found == Found::Same);
    // Only whoever gave it an id may ask for this answer again.
    if is_same && asked.is_once() {
        return json(&applied).map(Some);
    }
    let agreed = if dry_run {
        let stamped = Stamped { time_ms: now_ms(), request: None, command };
        let tried = read(group, move |registry| registry.clone().apply(stamped));
        tried.await?.map(|_| None).map_err(NotAgreed::Refused)
    } else {
        let makes_uid = makes.as_ref().map(|(_, home, _)| home.uid.0);
        let made = serde_json::to_string(&Made { applied: applied.clone(), makes: makes_uid }).ok();
        asked.propose(group, made, command).await
    };
    match agreed {
        Ok(None) => {}
        Ok(Some(first)) => return again(group, first.made).await.map(Some),
        Err(NotAgreed::Refused(Refusal::MetOther(_))) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    if let Some((guest, Home { uid, node }, memory_bytes)) = makes.filter(|_| !dry_run) {
        acts::settle_in(group, &guest, (uid, node), memory_bytes).await?;
    }
    if let Some((guest, uid)) = ends.filter(|_| !dry_run) {
        acts::until_gone(group, &guest, uid).await?;
    }
    json(&applied).map(Some)
}

/// What must be known to answer a request again.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    applied: Applied,
    /// The guest that was made.
    makes: Option<u64>,
}

/// The answer to a request that was answered before. A guest that it makes is seen through once more.
pub(super) async fn again(group: &Group, made: Option<String>) -> Answered {
    let made = made.and_then(|made| serde_json::from_str::<Made>(&made).ok());
    let Some(Made { applied, makes }) = made else {
        return Err(problem::failed("request", "its first answer can not be read"));
    };
    if let Some(uid) = makes.map(GuestUid) {
        let found = read(group, move |registry| {
            let guest = registry.guests.get(&uid)?;
            let home = match &guest.ownership.life {
                Life::Creating(node) => Some(node.clone()),
                Life::Alive(_) | Life::Lost { .. } | Life::Deleting(_) | Life::Purged | Life::Unsure(_) => {
                    None
                }
            };
            let ends = matches!(guest.ownership.life, Life::Deleting(_) | Life::Purged);
            Some((guest.name.clone(), home, ends, guest.memory_bytes()))
        });
        match found.await? {
            Some((name, Some(node), _, memory_bytes)) => {
                acts::settle_in(group, &name, (uid, node), memory_bytes).await?;
            }
            Some((_, None, false, _)) => {}
            Some((_, None, true, _)) | None => {
                let message = format!("guest {} was made and is not there any more", applied.name);
                return Err(problem::failed("the guest's runner must start", message));
            }
        }
    }
    json(&applied)
}

async fn plan(group: &Group, manifest: Manifest, verb: Verb) -> Result<Plan, Problem> {
    let (kind, full) = (manifest.kind(), full_name(&manifest));
    let allows_post_copy = match &manifest {
        Manifest::Settings { settings, .. } => settings.migration.allow_post_copy,
        Manifest::Policy { policy, .. } => policy.overrides.allow_post_copy,
        Manifest::Namespace { .. }
        | Manifest::Node { .. }
        | Manifest::Machine { .. }
        | Manifest::Instance { .. }
        | Manifest::Migration(_) => None,
    };
    let mut plan = match manifest {
        Manifest::Settings { settings, .. } => {
            put_plan(group, kind, full, Command::PutSettings { settings }).await?
        }
        Manifest::Policy { name, policy } => {
            put_plan(group, kind, full, Command::PutPolicy { name, policy }).await?
        }
        Manifest::Namespace { name, labels } => {
            put_plan(group, kind, full, Command::PutNamespace { name, labels }).await?
        }
        Manifest::Node { name, labels, cordoned } => {
            let of = name.clone();
            let drains = read(group, move |registry| registry.is_draining(&of)).await?;
            let change = NodeChange::Put { labels, cordoned };
            let mut plan = put_plan(group, kind, full, Command::Node { node: name.clone(), change }).await?;
            if drains && !cordoned {
                plan.notes
                    .push(format!("it is being drained and stays cordoned: godwit node uncordon {name}"));
            }
            plan
        }
        Manifest::Machine { name, machine } => machine_plan(group, kind, full, name, machine).await?,
        Manifest::Instance { name, labels, body } => {
            instance_plan(group, kind, full, name, labels, body).await?
        }
        Manifest::Migration(wish) => migration_plan(group, kind, wish, verb).await?,
    };
    if allows_post_copy == Some(true) {
        plan.notes.push(POST_COPY_PRICE.to_owned());
    }
    let is_settings = matches!(kind, Kind::HyperConverged | Kind::KubeVirt);
    if verb.create && plan.done != "created" && !is_settings {
        let message = format!("{} {} exists", plan.kind, plan.name);
        return Err(refused(
            "what is created is not there yet",
            message,
            "godwit apply changes what is there",
        ));
    }
    Ok(plan)
}

/// A change whose answer says what it has met.
async fn put_plan(group: &Group, kind: Kind, name: String, command: Command) -> Result<Plan, Problem> {
    let (met, command) = meets(group, command, |_| ()).await?.0;
    Ok(Plan::simple(kind, name, done(met), conditional(met, command)))
}

/// What a command would meet, and whatever else is to be seen at the same moment.
async fn meets<R: Send + 'static>(
    group: &Group,
    command: Command,
    look: impl FnOnce(&Registry) -> R + Send + 'static,
) -> Result<((Met, Command), R), Problem> {
    read(group, move |registry| ((registry.met(&command), command), look(registry))).await
}

fn conditional(met: Met, command: Command) -> Command {
    Command::If { met, command: Box::new(command) }
}

fn done(met: Met) -> &'static str {
    match met.found {
        Found::Absent => "created",
        Found::Other => "configured",
        Found::Same => "unchanged",
    }
}

async fn machine_plan(
    group: &Group,
    kind: Kind,
    full: String,
    name: GuestName,
    machine: Machine,
) -> Result<Plan, Problem> {
    let (runs, of, body) = (machine.runs, name.clone(), machine.body.clone());
    let put = Command::PutMachine { name: name.clone(), machine, home: None };
    let ((met, mut command), (body, ending)) = meets(group, put, move |registry| {
        let guest = registry.guest_named(&of);
        let ending = guest.is_some_and(|(_, guest)| matches!(guest.ownership.life, Life::Deleting(_)));
        (body.or_else(|| registry.machines.get(&of)?.body.clone()), ending)
    })
    .await?;
    let makes = match body.filter(|_| runs && met.guest.is_none()) {
        Some(body) => Some((name.clone(), acts::home(group, None, &body).await?, body.spec.memory_bytes)),
        None => None,
    };
    let ends = met.guest.filter(|_| !runs && !ending).map(|uid| (name.clone(), uid));
    let notes = ends.iter().map(|_| format!("guest {name} runs and shall not: it is stopped")).collect();
    if let Command::PutMachine { home, .. } = &mut command {
        *home = makes.as_ref().map(|(_, home, _)| home.clone());
    }
    Ok(Plan { makes, ends, notes, ..Plan::simple(kind, full, done(met), conditional(met, command)) })
}

async fn instance_plan(
    group: &Group,
    kind: Kind,
    full: String,
    name: GuestName,
    labels: Labels,
    body: Option<Body>,
) -> Result<Plan, Problem> {
    let of = name.clone();
    let put = Command::PutInstance { name: name.clone(), labels, body: body.clone(), home: None };
    let ((met, mut command), has_template) = meets(group, put, move |registry| {
        let machine = registry.machines.get(&of).filter(|_| registry.guest_named(&of).is_some());
        machine.is_some_and(|machine| machine.template_labels.is_some())
    })
    .await?;
    let mut notes = Vec::new();
    if has_template {
        notes.push(format!("VirtualMachine {name} has labels in its template: those count, not these"));
    }
    let makes = match body.filter(|_| met.guest.is_none()) {
        Some(body) => Some((name.clone(), acts::home(group, None, &body).await?, body.spec.memory_bytes)),
        None => None,
    };
    if let Command::PutInstance { home, .. } = &mut command {
        *home = makes.as_ref().map(|(_, home, _)| home.clone());
    }
    Ok(Plan { makes, notes, ..Plan::simple(kind, full, done(met), conditional(met, command)) })
}

async fn migration_plan(
    group: &Group,
    kind: Kind,
    asked: MigrationWish,
    verb: Verb,
) -> Result<Plan, Problem> {
    let MigrationWish { name, guest, selector, priority, unschedulable_timeout_seconds, .. } = asked;
    let migration = match name {
        NameWish::Named(name) => name,
        NameWish::Generated(prefix) if verb.create => {
            let random: [u8; 4] = files::random().map_err(|error| invalid(&error))?;
            format!("{prefix}{:05x}", u32::from_ne_bytes(random) & 0xf_ffff)
                .parse()
                .map_err(|error| invalid(&error))?
        }
        NameWish::Generated(_) => {
            let message = "metadata.generateName makes another migration each time".to_owned();
            return Err(refused(
                "what is applied has a name",
                message,
                "godwit create -f FILE, or metadata.name",
            ));
        }
    };
    let mut wish = Wish { selector, ..Wish::default() };
    wish.overrides.priority = priority;
    wish.unschedulable_timeout_s = unschedulable_timeout_seconds.unwrap_or(wish.unschedulable_timeout_s);
    let of = guest.clone();
    let uid = read(group, move |registry| registry.guest_named(&of).map(|(uid, _)| uid)).await?;
    let uid = uid.ok_or_else(|| super::no_guest(&guest))?;
    let name = migration.to_string();
    let (met, command) = meets(group, Command::Migrate { guest: uid, migration, wish }, |_| ()).await?.0;
    // One that is there is proposed again all the same: whether it is the same one, the registry knows.
    let done = if met.found == Found::Absent { "created" } else { "unchanged" };
    Ok(Plan::simple(kind, name, done, conditional(met, command)))
}

// ---- delete -------------------------------------------------------------------------------------------------

pub(super) async fn delete(
    group: &Group,
    asked: Asked,
    kind: &str,
    name: String,
    namespace: Option<String>,
    dry_run: bool,
) -> Answered {
    let kind: Kind = kind.parse().map_err(|error| invalid(&error))?;
    let (mut full, mut ends, mut notes) = (name.clone(), None, Vec::new());
    let command = match kind {
        Kind::HyperConverged | Kind::KubeVirt => {
            notes.push("every setting has its default again".to_owned());
            Command::PutSettings { settings: ClusterSettings::default() }
        }
        Kind::MigrationPolicy => {
            let name = name.parse().map_err(|error| invalid(&error))?;
            Command::DeletePolicy { name }
        }
        Kind::Namespace => Command::DeleteNamespace { name },
        Kind::Node => {
            let node: NodeName = name.parse().map_err(|error| invalid(&error))?;
            acts::removable(group, &node).await?;
            Command::RemoveNode { node }
        }
        Kind::VirtualMachine | Kind::VirtualMachineInstance => {
            let guest = guest_name(&name, namespace)?;
            let of = guest.clone();
            let (uid, has_machine) = read(group, move |registry| {
                (registry.guest_named(&of).map(|(uid, _)| uid), registry.machines.contains_key(&of))
            })
            .await?;
            full = guest.to_string();
            ends = uid.map(|uid| (guest.clone(), uid));
            match (has_machine, uid) {
                (true, _) => Command::DeleteMachine { name: guest },
                (false, Some(uid)) => Command::Guest { guest: uid, entry: Entry::Delete },
                (false, None) => return Err(super::no_guest(&guest)),
            }
        }
        Kind::VirtualMachineInstanceMigration => {
            let migration: godwit_domain::MigrationId = name.parse().map_err(|error| invalid(&error))?;
            let (of, only) = (migration.clone(), namespace);
            let found = read(group, move |registry| {
                let (uid, guest) = registry.guest_of(&of)?;
                let there = only.is_none_or(|only| guest.name.namespace() == only);
                let open = guest.ownership.phase_of(&of).is_some_and(|phase| !phase.is_over());
                there.then_some((uid, open))
            });
            match found.await?.ok_or_else(|| super::no_migration(&migration))? {
                (guest, true) => {
                    notes.push("it was not over: it is cancelled".to_owned());
                    let reason = "cancelled by an operator".to_owned();
                    Command::Guest { guest, entry: Entry::End { migration, side: Side::Operator, reason } }
                }
                (_, false) => Command::ForgetMigration { migration },
            }
        }
    };
    let plan = Plan { ends, notes, ..Plan::simple(kind, full, "deleted", command) };
    carry_out(group, asked, plan, dry_run).await?.ok_or_else(problem::contended)
}

// ---- helpers -------------------------------------------------------------------------------------------------------

pub(super) fn guest_name(name: &str, namespace: Option<String>) -> Result<GuestName, Problem> {
    let full = match namespace {
        Some(namespace) if !name.contains('/') => format!("{namespace}/{name}"),
        _ => name.to_owned(),
    };
    full.parse().map_err(|error: godwit_domain::ids::NameError| {
        Problem::new(Code::Refused, "a name is a DNS label", error.to_string(), "godwit get vmi -A")
    })
}

fn full_name(manifest: &Manifest) -> String {
    match (manifest.namespace(), manifest.kind().is_namespaced()) {
        (Some(namespace), true) => format!("{namespace}/{}", manifest.name()),
        _ => manifest.name(),
    }
}

pub(super) async fn read<R: Send + 'static>(
    group: &Group,
    look: impl FnOnce(&Registry) -> R + Send + 'static,
) -> Result<R, Problem> {
    group.read(look).await.ok_or_else(gone)
}
