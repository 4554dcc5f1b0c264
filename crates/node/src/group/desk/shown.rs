//! Objects of a kind, as manifests have them, with a status, and as rows of a table.

use std::collections::BTreeMap;

use godwit_domain::machine::Body;
use godwit_domain::registry::{Guest, ParallelLimits, Registry};
use godwit_domain::settings::Shown;
use godwit_domain::{GuestName, Priority};
use godwit_wire::admin::{MigrationRow, Objects};
use godwit_wire::manifest::{self, Kind, Manifest, MigrationWish, NameWish, SettingsKind};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::Group;
use super::problem::{self, gone, refused};
use super::rows::{self, Beside};
use super::{Answered, next_look};

/// An object: its namespace and name, itself, its row.
struct Item {
    namespace: String,
    name: String,
    object: Value,
    row: Vec<String>,
}

pub(super) async fn get(
    group: &Group,
    kind: &str,
    name: Option<String>,
    namespace: Option<String>,
) -> Answered {
    let kind: Kind = kind.parse().map_err(|error: manifest::KindError| {
        refused("a kind is one of those that there are", error.to_string(), "godwit get vmi")
    })?;
    let beside = Beside::of(group);
    let found = group.read(move |registry| {
        let beside = match kind {
            Kind::VirtualMachineInstanceMigration => beside.with_queue(registry),
            _ => beside,
        };
        let mut items = items(registry, &beside, kind);
        items.retain(|item| {
            namespace.as_ref().is_none_or(|only| !kind.is_namespaced() || item.namespace == *only)
        });
        items.retain(|item| name.as_ref().is_none_or(|only| item.name == *only || is_settings(kind)));
        (items, name)
    });
    let (items, name) = found.await.ok_or_else(gone)?;
    if let (Some(name), true) = (name, items.is_empty()) {
        let message = format!("no {kind} {name}");
        let hint = format!("godwit get {} -A shows those that there are", kind.to_string().to_lowercase());
        return Err(problem::not_found("the object must exist", message, hint));
    }
    super::json(&objects(kind, items))
}

/// The same, again and again: first all, then what has changed.
pub(super) async fn watch(
    group: &Group,
    kind: &str,
    name: Option<String>,
    namespace: Option<String>,
    events: mpsc::Sender<Value>,
) -> Answered {
    let mut told: BTreeMap<String, Value> = BTreeMap::new();
    loop {
        // Something that is not there yet may come.
        let now = match get(group, kind, name.clone(), namespace.clone()).await {
            Ok(now) => serde_json::from_value::<Objects>(now).ok(),
            Err(problem) if problem.code == godwit_wire::admin::Code::NotFound => None,
            Err(problem) => return Err(problem),
        };
        if let Some(mut now) = now {
            let key = |item: &Value| item.pointer("/metadata").map(Value::to_string).unwrap_or_default();
            let news: Vec<bool> = now.items.iter().map(|item| told.get(&key(item)) != Some(item)).collect();
            told = now.items.iter().map(|item| (key(item), item.clone())).collect();
            let mut new = news.iter();
            now.items.retain(|_| new.next().copied().unwrap_or(true));
            let mut new = news.iter();
            now.rows.retain(|_| new.next().copied().unwrap_or(true));
            if !now.items.is_empty() && events.send(super::json(&now)?).await.is_err() {
                return super::json(&now);
            }
        }
        next_look(group).await;
        if events.is_closed() || !group.leads() {
            return Err(problem::leadership_lost());
        }
    }
}

fn is_settings(kind: Kind) -> bool {
    matches!(kind, Kind::HyperConverged | Kind::KubeVirt)
}

fn objects(kind: Kind, items: Vec<Item>) -> Objects {
    let (head, narrow): (&[&str], usize) = match kind {
        Kind::HyperConverged | Kind::KubeVirt => (&["NAME", "SET"], 2),
        Kind::MigrationPolicy => (&["NAME", "SELECTS", "SETS"], 3),
        Kind::Namespace => (&["NAME", "LABELS"], 2),
        Kind::Node => (&["NAME", "STATE", "TAKES GUESTS", "FREE", "GUESTS", "LABELS"], 5),
        Kind::VirtualMachine => (&["NAMESPACE", "NAME", "STATE", "NODE", "LABELS"], 4),
        Kind::VirtualMachineInstance => (&["NAMESPACE", "NAME", "STATE", "NODE", "MEMORY", "LABELS"], 5),
        Kind::VirtualMachineInstanceMigration => {
            (&["NAMESPACE", "NAME", "VMI", "PHASE", "SOURCE", "TARGET", "POLICY", "DETAIL"], 6)
        }
    };
    Objects {
        kind: kind.to_string(),
        head: head.iter().map(|text| (*text).to_owned()).collect(),
        rows: items.iter().map(|item| item.row.clone()).collect(),
        items: items.into_iter().map(|item| item.object).collect(),
        narrow,
    }
}

fn items(registry: &Registry, beside: &Beside, kind: Kind) -> Vec<Item> {
    match kind {
        Kind::HyperConverged => vec![settings(registry, SettingsKind::HyperConverged)],
        Kind::KubeVirt => vec![settings(registry, SettingsKind::KubeVirt)],
        Kind::MigrationPolicy => policies(registry),
        Kind::Namespace => namespaces(registry),
        Kind::Node => nodes(registry, beside),
        Kind::VirtualMachine => machines(registry, beside),
        Kind::VirtualMachineInstance => instances(registry, beside),
        Kind::VirtualMachineInstanceMigration => migrations(registry, beside),
    }
}

fn pairs<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn entries(entries: Vec<(&'static str, Shown)>) -> String {
    entries.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn item(manifest: &Manifest, status: Option<Value>, row: Vec<String>) -> Item {
    let mut object = manifest::show(manifest);
    if let (Some(object), Some(status)) = (object.as_object_mut(), status) {
        object.insert("status".to_owned(), status);
    }
    Item { namespace: manifest.namespace().unwrap_or_default(), name: manifest.name(), object, row }
}

fn settings(registry: &Registry, kind: SettingsKind) -> Item {
    let (name, namespace) = match kind {
        SettingsKind::HyperConverged => ("kubevirt-hyperconverged", "openshift-cnv"),
        SettingsKind::KubeVirt => ("kubevirt", "kubevirt"),
    };
    let (name, namespace) = (name.to_owned(), namespace.to_owned());
    let set = entries(registry.settings.entries());
    let row = vec![name.clone(), if set.is_empty() { "all defaults".to_owned() } else { set }];
    let ParallelLimits { cluster, outbound, inbound } = registry.limits();
    let status = json!({"limitsInForce": {
        "parallelMigrationsPerCluster": cluster, "parallelOutboundMigrationsPerNode": outbound,
        "parallelInboundMigrationsPerNode": inbound,
    }});
    item(
        &Manifest::Settings { kind, name, namespace, settings: registry.settings.clone() },
        Some(status),
        row,
    )
}

fn policies(registry: &Registry) -> Vec<Item> {
    let item = |(name, policy): (&godwit_domain::policy::PolicyName, &godwit_domain::policy::Policy)| {
        let selects = match (pairs(&policy.namespace_selector), pairs(&policy.guest_selector)) {
            (project, guest) if project.is_empty() && guest.is_empty() => "every guest".to_owned(),
            (project, guest) if project.is_empty() => format!("guest {guest}"),
            (project, guest) if guest.is_empty() => format!("project {project}"),
            (project, guest) => format!("project {project}; guest {guest}"),
        };
        let row = vec![name.to_string(), selects, entries(policy.overrides.entries())];
        item(&Manifest::Policy { name: name.clone(), policy: policy.clone() }, None, row)
    };
    registry.policies.iter().map(item).collect()
}

fn namespaces(registry: &Registry) -> Vec<Item> {
    let item = |(name, labels): (&String, &godwit_domain::Labels)| {
        let row = vec![name.clone(), pairs(labels)];
        item(&Manifest::Namespace { name: name.clone(), labels: labels.clone() }, None, row)
    };
    registry.namespaces.iter().map(item).collect()
}

/// Bytes in a form that is read at a glance: no more than there are.
fn whole_mib(bytes: u64) -> String {
    godwit_domain::Quantity::from_bytes(bytes >> 20 << 20).to_string()
}

fn nodes(registry: &Registry, beside: &Beside) -> Vec<Item> {
    let item = |(name, node): (&godwit_domain::NodeName, &godwit_domain::registry::Node)| {
        let row = rows::node_row(registry, beside, name, node);
        let wish = registry.node_wishes.get(name).cloned().unwrap_or_default();
        let status = json!({
            "state": row.state, "takesGuests": row.takes_guests, "labels": row.labels,
            "memoryBytes": row.memory_bytes, "freeMemoryBytes": row.free_memory_bytes, "guests": row.guests,
        });
        let cells = vec![
            name.to_string(),
            row.state,
            row.takes_guests,
            whole_mib(row.free_memory_bytes),
            row.guests.to_string(),
            pairs(&row.labels),
        ];
        let node = Manifest::Node { name: name.clone(), labels: wish.labels, cordoned: wish.cordoned };
        item(&node, Some(status), cells)
    };
    registry.nodes.iter().map(item).collect()
}

fn machines(registry: &Registry, beside: &Beside) -> Vec<Item> {
    let item = |(name, machine): (&GuestName, &godwit_domain::machine::Machine)| {
        let guest = registry.guest_named(name).map(|(_, guest)| rows::guest_row(beside, guest));
        let state = guest.as_ref().map_or("stopped", |row| row.state.as_str()).to_owned();
        let node = guest.and_then(|row| row.node).map(|node| node.to_string()).unwrap_or_default();
        let labels = machine.template_labels.as_ref().map(pairs).unwrap_or_default();
        let row =
            vec![name.namespace().to_owned(), name.name().to_owned(), state.clone(), node.clone(), labels];
        let manifest = Manifest::Machine { name: name.clone(), machine: machine.clone() };
        item(&manifest, Some(json!({"printableStatus": state, "nodeName": node})), row)
    };
    registry.machines.iter().map(item).collect()
}

fn instances(registry: &Registry, beside: &Beside) -> Vec<Item> {
    let item = |(_, guest): (&godwit_domain::registry::GuestUid, &Guest)| {
        let shown = rows::guest_row(beside, guest);
        let node = shown.node.map(|node| node.to_string()).unwrap_or_default();
        let policy = registry.in_force(guest).policy;
        let method = if guest.body.local_disks_bytes > 0 { "BlockMigration" } else { "LiveMigration" };
        let status = json!({
            "phase": shown.state, "nodeName": node, "migrationMethod": method,
            "migrationPolicyName": policy, "labelsInForce": registry.subject(guest).guest,
        });
        let row = vec![
            guest.name.namespace().to_owned(),
            guest.name.name().to_owned(),
            shown.state,
            node,
            godwit_domain::Quantity::from_bytes(guest.memory_bytes()).to_string(),
            pairs(registry.subject(guest).guest),
        ];
        let (name, labels) = (guest.name.clone(), guest.labels.clone());
        let body: Option<Body> = Some(guest.body.clone());
        item(&Manifest::Instance { name, labels, body }, Some(status), row)
    };
    super::living(registry).map(item).collect()
}

fn migrations(registry: &Registry, beside: &Beside) -> Vec<Item> {
    let rows = super::migrations(registry, beside);
    rows.into_iter().filter_map(|row| migration(registry, row)).collect()
}

fn migration(registry: &Registry, shown: MigrationRow) -> Option<Item> {
    let (_, guest) = registry.guest_of(&shown.name)?;
    let (_, record) = guest.migration(&shown.name)?;
    let node =
        |node: &Option<godwit_domain::NodeName>| node.as_ref().map(ToString::to_string).unwrap_or_default();
    let wish = &record.wish;
    let timeout = wish.unschedulable_timeout_s;
    let default = godwit_domain::registry::UNSCHEDULABLE_TIMEOUT_S;
    let manifest = Manifest::Migration(MigrationWish {
        namespace: guest.name.namespace().to_owned(),
        name: NameWish::Named(shown.name.clone()),
        guest: guest.name.clone(),
        selector: wish.selector.clone(),
        priority: wish.overrides.priority.filter(|priority| *priority != Priority::Drain),
        unschedulable_timeout_seconds: (timeout != default).then_some(timeout),
    });
    let transitions: Vec<Value> = record
        .steps
        .iter()
        .map(rows::step_row)
        .map(
            |step| json!({"phase": step.phase, "phaseTransitionTimeMs": step.time_ms, "reason": step.reason}),
        )
        .collect();
    let status = json!({
        "phase": shown.phase, "detail": shown.detail, "sourceNode": shown.source, "targetNode": shown.target,
        "migrationPolicyName": shown.policy, "priority": shown.priority, "queuePosition": shown.queue_position,
        "phaseTransitionTimestamps": transitions,
    });
    let row = vec![
        guest.name.namespace().to_owned(),
        shown.name.to_string(),
        guest.name.name().to_owned(),
        shown.phase.clone(),
        node(&shown.source),
        node(&shown.target),
        shown.policy.as_ref().map(ToString::to_string).unwrap_or_default(),
        shown.detail.clone().unwrap_or_default(),
    ];
    Some(item(&manifest, Some(status), row))
}
