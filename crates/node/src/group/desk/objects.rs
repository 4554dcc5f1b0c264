//! Manifests: made, changed and removed, one object at a time.
//!
//! ```text
//!   object ─ read ─▶ Manifest ─▶ the command that it comes to ─▶ dry run: applied to a copy, and thrown away
//!                       └─ as it is already: unchanged      └──▶ proposed, and seen through
//! ```
//!
//! Always true: an object is judged by the registry, with a dry run as without; what it says that is not understood was
//! refused before anything was proposed.

use godwit_domain::labels::Labels;
use godwit_domain::machine::{Body, Machine};
use godwit_domain::ownership::{Entry, Life, Side};
use godwit_domain::registry::{Command, GuestUid, Home, NodeChange, Registry, Stamped, Wish};
use godwit_domain::{ClusterSettings, GuestName, NodeName};
use godwit_wire::admin::{Applied, Code, POST_COPY_PRICE, Problem};
use godwit_wire::manifest::{self, Kind, Manifest, MigrationWish, NameWish};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::{Group, NotAgreed, now_ms};
use super::acts;
use super::asked::Asked;
use super::problem::{gone, refused};
use super::{Answered, json};
use crate::files;

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
    pub(super) command: Option<Command>,
    /// A guest that is made by it, with its memory in bytes.
    pub(super) makes: Option<(GuestName, Home, u64)>,
    /// A guest that is ended by it.
    pub(super) ends: Option<(GuestName, GuestUid)>,
    pub(super) notes: Vec<String>,
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
    let mut plan = plan(group, manifest, verb).await?;
    plan.notes.splice(0..0, notes);
    carry_out(group, asked, plan, verb.dry_run).await
}

pub(super) fn invalid(error: &dyn std::error::Error) -> Problem {
    let rule = "a manifest says what it is, and nothing about migration that is not known here";
    refused(rule, error.to_string(), "docs/settings.md and docs/policies.md have examples")
}

pub(super) async fn carry_out(group: &Group, asked: Asked, plan: Plan, dry_run: bool) -> Answered {
    let Plan { kind, name, done, command, makes, ends, notes } = plan;
    let applied = Applied { kind: kind.to_string(), name, done: done.to_owned(), dry_run, notes };
    let Some(command) = command else { return json(&applied) };
    if dry_run {
        let stamped = Stamped { time_ms: now_ms(), request: None, command };
        let tried = group.read(move |registry| registry.clone().apply(stamped).map(drop));
        tried.await.ok_or_else(gone)?.map_err(NotAgreed::Refused)?;
        return json(&applied);
    }
    let makes_uid = makes.as_ref().map(|(_, home, _)| home.uid.0);
    let made = serde_json::to_string(&Made { applied: applied.clone(), makes: makes_uid }).ok();
    asked.propose(group, made, command).await?;
    if let Some((guest, Home { uid, node }, memory_bytes)) = makes {
        acts::settle_in(group, &guest, (uid, node), memory_bytes).await?;
    }
    if let Some((guest, uid)) = ends {
        acts::until_gone(group, &guest, uid).await?;
    }
    json(&applied)
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
        return Err(super::problem::failed("request", "its first answer can not be read"));
    };
    if let Some(uid) = makes.map(GuestUid) {
        let found = read(group, move |registry| {
            let guest = registry.guests.get(&uid)?;
            let home = match &guest.ownership.life {
                Life::Creating(node) => Some(node.clone()),
                Life::Alive(_) | Life::Lost { .. } | Life::Deleting(_) | Life::Purged => None,
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
                return Err(super::problem::failed("the guest's runner must start", message));
            }
        }
    }
    json(&applied)
}

async fn plan(group: &Group, manifest: Manifest, verb: Verb) -> Result<Plan, Problem> {
    let (kind, full) = (manifest.kind(), full_name(&manifest));
    let simple = |there: bool, same: bool, command: Command| {
        let done = match (there, same) {
            (false, _) => "created",
            (true, true) => "unchanged",
            (true, false) => "configured",
        };
        let command = Some(command).filter(|_| done != "unchanged");
        Plan { kind, name: full.clone(), done, command, makes: None, ends: None, notes: Vec::new() }
    };
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
            let (there, same) = (true, settings.clone());
            let same = read(group, move |registry| registry.settings == same).await?;
            simple(there, same, Command::PutSettings { settings })
        }
        Manifest::Policy { name, policy } => {
            let (of, new) = (name.clone(), policy.clone());
            let known =
                read(group, move |registry| registry.policies.get(&of).map(|known| *known == new)).await?;
            simple(known.is_some(), known == Some(true), Command::PutPolicy { name, policy })
        }
        Manifest::Namespace { name, labels } => {
            let (of, new) = (name.clone(), labels.clone());
            let known =
                read(group, move |registry| registry.namespaces.get(&of).map(|known| *known == new)).await?;
            simple(known.is_some(), known == Some(true), Command::PutNamespace { name, labels })
        }
        Manifest::Node { name, labels, cordoned } => {
            let (of, new) = (name.clone(), (labels.clone(), cordoned));
            let known = read(group, move |registry| {
                let wish = registry.node_wishes.get(&of);
                let same = wish.is_some_and(|wish| (&wish.labels, wish.cordoned) == (&new.0, new.1));
                (wish.is_some() || registry.nodes.contains_key(&of), same)
            });
            let (there, same) = known.await?;
            let of = name.clone();
            let drains = read(group, move |registry| registry.is_draining(&of)).await?;
            let change = NodeChange::Put { labels, cordoned };
            let mut plan = simple(there, same, Command::Node { node: name.clone(), change });
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

async fn machine_plan(
    group: &Group,
    kind: Kind,
    full: String,
    name: GuestName,
    machine: Machine,
) -> Result<Plan, Problem> {
    let (of, new) = (name.clone(), machine.clone());
    let (known, guest, ending) = read(group, move |registry| {
        let guest = registry.guest_named(&of);
        let ending = guest.is_some_and(|(_, guest)| matches!(guest.ownership.life, Life::Deleting(_)));
        (registry.machines.get(&of).cloned(), guest.map(|(uid, _)| uid), ending)
    })
    .await?;
    let body = machine.body.clone().or_else(|| known.as_ref()?.body.clone());
    let mut notes = Vec::new();
    let makes = match (&body, guest) {
        (Some(body), None) if machine.runs => {
            Some((name.clone(), acts::home(group, None, body).await?, body.spec.memory_bytes))
        }
        _ => None,
    };
    let ends = guest.filter(|_| !machine.runs && !ending).map(|uid| (name.clone(), uid));
    if ends.is_some() {
        notes.push(format!("guest {name} runs and shall not: it is stopped"));
    }
    // One that is being ended is no guest that is as it should be: the registry says so.
    let same = !(ending && machine.runs)
        && known.as_ref().is_some_and(|known| {
            let body = new.body.clone().or_else(|| known.body.clone());
            *known == Machine { body, ..new }
        });
    let done = match (known.is_some() || guest.is_some(), same && makes.is_none() && ends.is_none()) {
        (false, _) => "created",
        (true, true) => "unchanged",
        (true, false) => "configured",
    };
    let home = makes.as_ref().map(|(_, home, _)| home.clone());
    let machine = Machine { body, ..machine };
    let command = Some(Command::PutMachine { name, machine, home }).filter(|_| done != "unchanged");
    Ok(Plan { kind, name: full, done, command, makes, ends, notes })
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
    let known = read(group, move |registry| {
        let (_, guest) = registry.guest_named(&of)?;
        let template = registry.machines.get(&of).and_then(|machine| machine.template_labels.as_ref());
        let ending = matches!(guest.ownership.life, Life::Deleting(_));
        Some((guest.labels.clone(), guest.body.clone(), template.is_some(), ending))
    });
    let known = known.await?;
    let mut notes = Vec::new();
    if known.as_ref().is_some_and(|(_, _, has_template, _)| *has_template) {
        notes.push(format!("VirtualMachine {name} has labels in its template: those count, not these"));
    }
    let makes = match (&body, &known) {
        (Some(body), None) => {
            Some((name.clone(), acts::home(group, None, body).await?, body.spec.memory_bytes))
        }
        _ => None,
    };
    let same = known.as_ref().is_some_and(|(known_labels, known_body, _, ending)| {
        !ending && *known_labels == labels && body.as_ref().is_none_or(|body| body == known_body)
    });
    let done = match (known.is_some(), same) {
        (false, _) => "created",
        (true, true) => "unchanged",
        (true, false) => "configured",
    };
    let home = makes.as_ref().map(|(_, home, _)| home.clone());
    let command = Some(Command::PutInstance { name, labels, body, home }).filter(|_| done != "unchanged");
    Ok(Plan { kind, name: full, done, command, makes, ends: None, notes })
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
    let of = migration.clone();
    let (uid, there) = read(group, {
        let guest = guest.clone();
        move |registry: &Registry| {
            (registry.guest_named(&guest).map(|(uid, _)| uid), registry.guest_of(&of).is_some())
        }
    })
    .await?;
    let uid = uid.ok_or_else(|| super::no_guest(&guest))?;
    // One that is there is proposed again all the same: whether it is the same one, the registry knows.
    let done = if there { "unchanged" } else { "created" };
    let command = Some(Command::Migrate { guest: uid, migration: migration.clone(), wish });
    let name = migration.to_string();
    Ok(Plan { kind, name, done, command, makes: None, ends: None, notes: Vec::new() })
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
    let mut plan = Plan {
        kind,
        name: name.clone(),
        done: "deleted",
        command: None,
        makes: None,
        ends: None,
        notes: Vec::new(),
    };
    match kind {
        Kind::HyperConverged | Kind::KubeVirt => {
            plan.notes.push("every setting has its default again".to_owned());
            plan.command = Some(Command::PutSettings { settings: ClusterSettings::default() });
        }
        Kind::MigrationPolicy => {
            let name = name.parse().map_err(|error| invalid(&error))?;
            plan.command = Some(Command::DeletePolicy { name });
        }
        Kind::Namespace => plan.command = Some(Command::DeleteNamespace { name }),
        Kind::Node => {
            let node: NodeName = name.parse().map_err(|error| invalid(&error))?;
            acts::removable(group, &node).await?;
            plan.command = Some(Command::RemoveNode { node });
        }
        Kind::VirtualMachine | Kind::VirtualMachineInstance => {
            let guest = guest_name(&name, namespace)?;
            let of = guest.clone();
            let (uid, has_machine) = read(group, move |registry| {
                (registry.guest_named(&of).map(|(uid, _)| uid), registry.machines.contains_key(&of))
            })
            .await?;
            plan.name = guest.to_string();
            plan.ends = uid.map(|uid| (guest.clone(), uid));
            plan.command = match (has_machine, uid) {
                (true, _) => Some(Command::DeleteMachine { name: guest }),
                (false, Some(uid)) => Some(Command::Guest { guest: uid, entry: Entry::Delete }),
                (false, None) => return Err(super::no_guest(&guest)),
            };
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
            plan.command = Some(match found.await?.ok_or_else(|| super::no_migration(&migration))? {
                (guest, true) => {
                    plan.notes.push("it was not over: it is cancelled".to_owned());
                    let reason = "cancelled by an operator".to_owned();
                    Command::Guest { guest, entry: Entry::End { migration, side: Side::Operator, reason } }
                }
                (_, false) => Command::ForgetMigration { migration },
            });
        }
    }
    carry_out(group, asked, plan, dry_run).await
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
