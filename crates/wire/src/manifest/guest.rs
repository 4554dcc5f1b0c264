//! Guests: a `VirtualMachine` (the wish) and a `VirtualMachineInstance` (the running self). One spec, two places.
//!
//! ```text
//!   memory        domain.memory.guest, else domain.resources.requests.memory
//!   where         nodeSelector
//!   local disks   volumes[].emptyDisk.capacity, volumes[].hostDisk.capacity, annotation godwit.dev/local-disks
//!   the rest      listed as ignored; affinity is refused, for it would be broken at the next move
//! ```

use godwit_domain::machine::{Body, Machine};
use godwit_domain::{Labels, Quantity};
use serde_json::Value;

use super::fields::{Fault, Fields, Notes, what};
use super::runner::{Annotations, check_memory};

/// Fields of metadata that Kubernetes fills in.
pub(super) const SERVERS_METADATA: [&str; 9] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "finalizers",
    "ownerReferences",
    "selfLink",
];

/// Reads a `VirtualMachine`.
pub(super) fn machine(
    metadata: &mut Fields<'_>,
    spec: Option<Fields<'_>>,
    notes: &mut Notes,
) -> Result<Machine, Fault> {
    let labels = metadata.labels("labels")?.unwrap_or_default();
    let own = Annotations::of(metadata)?;
    let mut machine = Machine { labels, runs: true, template_labels: None, body: None };
    let mut annotations = own;
    if let Some(mut spec) = spec {
        machine.runs = runs(&mut spec, notes)?;
        if let Some(mut template) = spec.fields("template")? {
            if let Some(mut inner) = template.fields("metadata")? {
                machine.template_labels = inner.labels("labels")?;
                annotations = Annotations::of(&mut inner)?.above(annotations);
                for key in SERVERS_METADATA {
                    inner.value(key);
                }
                notes.ignore_rest(&inner);
            }
            if let Some(guest) = template.fields("spec")? {
                machine.body = Some(body(guest, &annotations, notes)?);
            }
            notes.ignore_rest(&template);
        }
        notes.ignore_rest(&spec);
    }
    if machine.body.is_none() {
        annotations.refuse_without_body("spec.template.spec")?;
    }
    Ok(machine)
}

/// Reads a `VirtualMachineInstance`.
pub(super) fn instance(
    metadata: &mut Fields<'_>,
    spec: Option<Fields<'_>>,
    notes: &mut Notes,
) -> Result<(Labels, Option<Body>), Fault> {
    let labels = metadata.labels("labels")?.unwrap_or_default();
    let annotations = Annotations::of(metadata)?;
    let body = spec.map(|spec| body(spec, &annotations, notes)).transpose()?;
    if body.is_none() {
        annotations.refuse_without_body("spec")?;
    }
    Ok((labels, body))
}

/// Whether it shall run.
fn runs(spec: &mut Fields<'_>, notes: &mut Notes) -> Result<bool, Fault> {
    let running = spec.truth("running")?;
    let strategy = spec.text("runStrategy")?;
    match (running, strategy) {
        (Some(_), Some(_)) => Err(spec.fault("runStrategy", "excludes spec.running: keep one of the two")),
        (Some(running), None) => Ok(running),
        (None, None | Some("Always" | "RerunOnFailure" | "Once")) => Ok(true),
        (None, Some("Manual")) => {
            notes.say("runStrategy Manual: the guest is started, and runs until it is stopped");
            Ok(true)
        }
        (None, Some("Halted")) => Ok(false),
        (None, Some("WaitAsReceiver")) => {
            Err(spec.fault("runStrategy", "WaitAsReceiver: decentralized migration is not built"))
        }
        (None, Some(other)) => {
            let got = what(&Value::from(other));
            let rule = format!("must be Always, RerunOnFailure, Manual, Once or Halted, not {got}");
            Err(spec.fault("runStrategy", rule))
        }
    }
}

fn body(mut spec: Fields<'_>, annotations: &Annotations<'_>, notes: &mut Notes) -> Result<Body, Fault> {
    let memory = memory(&mut spec, notes)?;
    let mut body = annotations.body(memory)?;
    body.node_selector = spec.labels("nodeSelector")?.unwrap_or_default();
    let disks = local_disks(&mut spec, annotations, notes)?;
    body.local_disks_bytes = Quantity::from_bytes(body.local_disks_bytes.saturating_add(disks)).bytes();
    for key in ["affinity", "topologySpreadConstraints"] {
        let asks = spec.value(key).filter(|value| !is_empty(value));
        if asks.is_some() {
            let rule = "is not built, and a move could break it: name the labels of the wanted nodes in nodeSelector";
            return Err(spec.fault(key, rule));
        }
    }
    if spec.value("evictionStrategy").is_some() {
        notes.say(format!("ignored: {} (a drain moves every guest)", spec.path("evictionStrategy")));
    }
    if spec.value("tolerations").is_some_and(|value| !is_empty(value)) {
        notes.say(format!("ignored: {} (nodes have no taints here)", spec.path("tolerations")));
    }
    notes.ignore_rest(&spec);
    Ok(body)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn memory(spec: &mut Fields<'_>, notes: &mut Notes) -> Result<Quantity, Fault> {
    let path = spec.path("domain");
    let mut found: Option<(String, Quantity)> = None;
    if let Some(mut domain) = spec.fields("domain")? {
        if let Some(mut memory) = domain.fields("memory")? {
            found = memory.quantity("guest")?.map(|value| (memory.path("guest"), value));
            notes.ignore_rest(&memory);
        }
        if let Some(mut resources) = domain.fields("resources")? {
            if let Some(mut requests) = resources.fields("requests")? {
                let requested = requests.quantity("memory")?.map(|value| (requests.path("memory"), value));
                found = found.or(requested);
                notes.ignore_rest(&requests);
            }
            notes.ignore_rest(&resources);
        }
        notes.ignore_rest(&domain);
    }
    let missing = || Fault::new(format!("{path}.memory.guest"), "memory is required, for example 1Gi");
    let (path, memory) = found.ok_or_else(missing)?;
    check_memory(path, memory)
}

/// Bytes of the disks that live on the node.
fn local_disks(
    spec: &mut Fields<'_>,
    annotations: &Annotations<'_>,
    notes: &mut Notes,
) -> Result<u64, Fault> {
    let mut bytes = 0_u64;
    for (index, volume) in spec.list("volumes")?.iter().enumerate() {
        let mut volume = Fields::of(volume, format!("{}[{index}]", spec.path("volumes")))?;
        volume.value("name");
        for source in ["emptyDisk", "hostDisk"] {
            let Some(mut disk) = volume.fields(source)? else { continue };
            match disk.quantity("capacity")? {
                Some(capacity) => bytes = bytes.saturating_add(capacity.bytes()),
                None if annotations.name_local_disks() => {}
                None => {
                    let rule = "is required, because a local disk counts in the deadline; \
                                or annotate the guest with godwit.dev/local-disks: SIZE";
                    return Err(disk.fault("capacity", rule));
                }
            }
            for key in ["path", "type", "shared"] {
                disk.value(key);
            }
            notes.ignore_rest(&disk);
        }
        notes.ignore_rest(&volume);
    }
    Ok(bytes)
}
