//! Objects as KubeVirt writes them: the inverse of reading.
//!
//! Always true: [`super::read`] of what stands here gives the object again, and notes nothing but an unusual name of a
//! settings object or that it sets nothing; what has its default is left out.

use godwit_domain::machine::{Body, Machine};
use godwit_domain::settings::Shown;
use godwit_domain::{ClusterSettings, Labels, Overrides, Quantity};
use serde_json::{Map, Value, json};

use super::{Manifest, MigrationWish, NameWish, SettingsKind, runner};

/// KubeVirt's form of an object: `apiVersion`, `kind`, `metadata`, `spec`.
pub fn show(manifest: &Manifest) -> Value {
    let mut metadata = Map::new();
    let generated =
        matches!(manifest, Manifest::Migration(MigrationWish { name: NameWish::Generated(_), .. }));
    let name = if generated { "generateName" } else { "name" };
    metadata.insert(name.to_owned(), Value::from(manifest.name()));
    if let Some(namespace) = manifest.namespace() {
        metadata.insert("namespace".to_owned(), Value::from(namespace));
    }
    let spec = match manifest {
        Manifest::Settings { kind, settings, .. } => Some(match kind {
            SettingsKind::HyperConverged => json!({ "liveMigrationConfig": cluster(settings) }),
            SettingsKind::KubeVirt => json!({ "configuration": { "migrations": cluster(settings) } }),
        }),
        Manifest::Policy { policy, .. } => {
            let mut selectors = Map::new();
            put_labels(&mut selectors, "namespaceSelector", &policy.namespace_selector);
            put_labels(&mut selectors, "virtualMachineInstanceSelector", &policy.guest_selector);
            let mut spec = overrides(&policy.overrides);
            spec.insert("selectors".to_owned(), Value::Object(selectors));
            Some(Value::Object(spec))
        }
        Manifest::Namespace { labels, .. } => {
            put_labels(&mut metadata, "labels", labels);
            None
        }
        Manifest::Node { labels, cordoned, .. } => {
            put_labels(&mut metadata, "labels", labels);
            cordoned.then(|| json!({ "unschedulable": true }))
        }
        Manifest::Machine { machine: shown, .. } => {
            put_labels(&mut metadata, "labels", &shown.labels);
            Some(machine(shown))
        }
        Manifest::Instance { labels, body: shown, .. } => {
            put_labels(&mut metadata, "labels", labels);
            shown.as_ref().map(|shown| body(shown, &mut metadata))
        }
        Manifest::Migration(wish) => Some(migration(wish)),
    };
    let kind = manifest.kind();
    let mut object = json!({ "apiVersion": kind.api_version(), "kind": kind.name(), "metadata": metadata });
    if let (Some(object), Some(spec)) = (object.as_object_mut(), spec) {
        object.insert("spec".to_owned(), spec);
    }
    object
}

fn put_labels(map: &mut Map<String, Value>, key: &str, labels: &Labels) {
    if !labels.is_empty() {
        map.insert(key.to_owned(), json!(labels));
    }
}

fn overrides(overrides: &Overrides) -> Map<String, Value> {
    let entries = overrides.entries().into_iter();
    let shown = entries.map(|(key, shown)| {
        let value = match shown {
            Shown::Whole(number) => Value::from(number),
            Shown::Truth(truth) => Value::from(truth),
            Shown::Text(text) => Value::from(text),
            Shown::Unset(()) => Value::Null,
        };
        (key.to_owned(), value)
    });
    shown.collect()
}

fn cluster(settings: &ClusterSettings) -> Map<String, Value> {
    let ClusterSettings {
        migration,
        parallel_migrations_per_cluster,
        parallel_outbound_migrations_per_node,
        parallel_inbound_migrations_per_node,
        network,
        node_bandwidth,
        recovery_timeout,
    } = settings;
    let mut map = overrides(migration);
    let own = [
        ("parallelMigrationsPerCluster", parallel_migrations_per_cluster.map(Value::from)),
        ("parallelOutboundMigrationsPerNode", parallel_outbound_migrations_per_node.map(Value::from)),
        ("parallelInboundMigrationsPerNode", parallel_inbound_migrations_per_node.map(Value::from)),
        ("network", network.as_deref().map(Value::from)),
        ("nodeBandwidth", node_bandwidth.map(|value| Value::from(value.to_string()))),
        ("recoveryTimeout", recovery_timeout.map(Value::from)),
    ];
    map.extend(own.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    map
}

fn machine(machine: &Machine) -> Value {
    let Machine { labels: _, runs, template_labels, body: shown } = machine;
    let mut metadata = Map::new();
    if let Some(labels) = template_labels {
        // Labels of nothing are not the same as none: see `Machine::template_labels`.
        metadata.insert("labels".to_owned(), json!(labels));
    }
    let mut template = Map::new();
    if let Some(shown) = shown {
        template.insert("spec".to_owned(), body(shown, &mut metadata));
    }
    if !metadata.is_empty() {
        template.insert("metadata".to_owned(), Value::Object(metadata));
    }
    json!({ "runStrategy": if *runs { "Always" } else { "Halted" }, "template": template })
}

/// The spec; what KubeVirt has no field for goes to the annotations.
fn body(body: &Body, metadata: &mut Map<String, Value>) -> Value {
    let annotations: Map<String, Value> =
        runner::show(body).into_iter().map(|(key, value)| (key, Value::from(value))).collect();
    if !annotations.is_empty() {
        metadata.insert("annotations".to_owned(), Value::Object(annotations));
    }
    let memory = Quantity::from_bytes(body.spec.memory_bytes).to_string();
    let mut spec = Map::new();
    spec.insert("domain".to_owned(), json!({ "memory": { "guest": memory } }));
    put_labels(&mut spec, "nodeSelector", &body.node_selector);
    Value::Object(spec)
}

fn migration(wish: &MigrationWish) -> Value {
    let MigrationWish { namespace: _, name: _, guest, selector, priority, unschedulable_timeout_seconds } =
        wish;
    let mut spec = Map::new();
    spec.insert("vmiName".to_owned(), Value::from(guest.name()));
    put_labels(&mut spec, "addedNodeSelector", selector);
    if let Some(priority) = priority {
        spec.insert("priority".to_owned(), Value::from(priority.to_string()));
    }
    if let Some(seconds) = unschedulable_timeout_seconds {
        spec.insert("unschedulableTimeoutSeconds".to_owned(), Value::from(*seconds));
    }
    Value::Object(spec)
}
