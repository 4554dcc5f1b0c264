//! One object: what kind it is, what it is called, and who reads the rest of it.
//!
//! ```text
//!   kind, apiVersion ─▶ Kind ─ metadata ─▶ name, namespace ─▶ settings | guest | migration ─▶ Manifest
//!                                                                    └─ what nobody asked for ─▶ refused, or a note
//! ```

use std::fmt::Display;
use std::str::FromStr;

use godwit_domain::GuestName;
use godwit_domain::policy::PolicyName;
use serde_json::Value;

use super::fields::{Fault, Fields, Notes, no_placeholder, shown, what};
use super::{Kind, Manifest, ManifestError, NameWish, SettingsKind, guest, migration, runner, settings};

/// The namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// An annotation of KubeVirt's for which a migration has a field here (`spec.unschedulableTimeoutSeconds`).
const TIMEOUT_OF_OLD: &str = "kubevirt.io/migrationUnschedulablePodTimeoutSeconds";

/// Reads one object, in the namespace `default` unless it names another. With it, notes for people: what was
/// accepted and ignored, and what is unusual.
///
/// # Errors
/// The first thing that was refused, with object, path and rule.
pub fn read(document: &Value) -> Result<(Manifest, Vec<String>), ManifestError> {
    read_in(document, DEFAULT_NAMESPACE)
}

/// Reads one object, in this namespace unless it names another. See [`read`].
///
/// # Errors
/// The first thing that was refused, with object, path and rule.
pub fn read_in(document: &Value, default_namespace: &str) -> Result<(Manifest, Vec<String>), ManifestError> {
    let mut notes = Notes::default();
    let kind = kind_of(document, &mut notes)?;
    let named = |key| document.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Value::as_str);
    let manifest =
        object(kind, document, default_namespace, &mut notes).map_err(|Fault { path, rule }| {
            let name = named("name").or_else(|| named("generateName")).map_or_else(String::new, shown);
            let object = match named("namespace").filter(|_| kind.is_namespaced()) {
                Some(namespace) => format!("{kind} {}/{name}", shown(namespace)),
                None => format!("{kind} {name}"),
            };
            ManifestError::Field { object: object.trim_end().to_owned(), path, rule }
        })?;
    Ok((manifest, notes.finish()))
}

fn kind_of(document: &Value, notes: &mut Notes) -> Result<Kind, ManifestError> {
    let Some(map) = document.as_object() else {
        return Err(ManifestError::NoObject(format!("this is {}", what(document))));
    };
    let word = |key: &str| match map.get(key) {
        Some(Value::String(word)) => Ok(word.as_str()),
        Some(other) => Err(ManifestError::NoObject(format!("its {key} is {}, not text", what(other)))),
        None => Err(ManifestError::NoObject(format!("it has no {key}"))),
    };
    let name = word("kind")?;
    let kind =
        Kind::named(name).ok_or_else(|| ManifestError::Kind { kind: shown(name), known: Kind::known() })?;
    let version = word("apiVersion")?;
    let others = kind.other_api_versions();
    if version != kind.api_version() && !others.contains(&version) {
        let all = std::iter::once(kind.api_version()).chain(others.iter().copied());
        let must = all.collect::<Vec<_>>().join(" or ");
        return Err(ManifestError::ApiVersion { kind, got: shown(version), must });
    }
    if kind == Kind::VirtualMachine && version == Kind::MigrationPolicy.api_version() {
        notes.say(format!("apiVersion {version} is read as {} for a {kind}", kind.api_version()));
    }
    Ok(kind)
}

fn object(
    kind: Kind,
    document: &Value,
    default_namespace: &str,
    notes: &mut Notes,
) -> Result<Manifest, Fault> {
    let mut top = Fields::of(document, "")?;
    for known in ["apiVersion", "kind", "status"] {
        top.value(known);
    }
    let mut metadata =
        top.fields("metadata")?.ok_or_else(|| Fault::new("metadata.name", "a name is required"))?;
    let spec = top.fields("spec")?;
    let name = name_of(kind, &mut metadata)?;
    let namespace = namespace_of(kind, &mut metadata, default_namespace, notes)?;
    let manifest = match kind {
        Kind::HyperConverged => settings_object(SettingsKind::HyperConverged, name, namespace, spec, notes)?,
        Kind::KubeVirt => settings_object(SettingsKind::KubeVirt, name, namespace, spec, notes)?,
        Kind::MigrationPolicy => {
            Manifest::Policy { name: parse(&metadata, name)?, policy: settings::policy(spec)? }
        }
        Kind::Namespace => {
            check_namespace(name).map_err(|rule| metadata.fault("name", rule))?;
            if let Some(spec) = spec {
                notes.ignore_rest(&spec);
            }
            Manifest::Namespace {
                name: name.to_owned(),
                labels: metadata.labels("labels")?.unwrap_or_default(),
            }
        }
        Kind::Node => {
            let labels = metadata.labels("labels")?.unwrap_or_default();
            Manifest::Node { name: parse(&metadata, name)?, labels, cordoned: cordoned(spec, notes)? }
        }
        Kind::VirtualMachine => {
            let name = parse(&metadata, &format!("{namespace}/{name}"))?;
            Manifest::Machine { name, machine: guest::machine(&mut metadata, spec, notes)? }
        }
        Kind::VirtualMachineInstance => {
            let name = parse(&metadata, &format!("{namespace}/{name}"))?;
            let (labels, body) = guest::instance(&mut metadata, spec, notes)?;
            Manifest::Instance { name, labels, body }
        }
        Kind::VirtualMachineInstanceMigration => {
            let wish = match metadata.text("generateName")? {
                Some(prefix) if name.is_empty() => {
                    migration::generated(prefix).map_err(|rule| metadata.fault("generateName", rule))?
                }
                Some(_) | None => NameWish::Named(parse(&metadata, name)?),
            };
            Manifest::Migration(migration::wish(wish, namespace, spec)?)
        }
    };
    finish(kind, &top, &mut metadata, notes)?;
    Ok(manifest)
}

/// The name; empty where a migration's is to be made.
fn name_of<'a>(kind: Kind, metadata: &mut Fields<'a>) -> Result<&'a str, Fault> {
    let generates = kind == Kind::VirtualMachineInstanceMigration && metadata.text("generateName")?.is_some();
    for key in ["name", "generateName", "namespace"] {
        if let Some(text) = metadata.text(key)? {
            no_placeholder(text).map_err(|rule| metadata.fault(key, rule))?;
        }
    }
    match metadata.text("name")? {
        Some(name) => Ok(name),
        None if generates => Ok(""),
        None if metadata.text("generateName")?.is_some() => {
            Err(metadata
                .fault("generateName", format!("only migrations are named so: give this {kind} a name")))
        }
        None => Err(metadata.fault("name", "a name is required")),
    }
}

fn namespace_of<'a>(
    kind: Kind,
    metadata: &mut Fields<'a>,
    default: &'a str,
    notes: &mut Notes,
) -> Result<&'a str, Fault> {
    match metadata.text("namespace")? {
        Some(_) if !kind.is_namespaced() => {
            notes.say(format!("ignored: metadata.namespace (a {kind} belongs to none)"));
            Ok(default)
        }
        given => {
            let namespace = given.unwrap_or(default);
            check_namespace(namespace).map_err(|rule| metadata.fault("namespace", rule))?;
            Ok(namespace)
        }
    }
}

/// A namespace is what can stand before the slash of a guest's name.
fn check_namespace(text: &str) -> Result<(), String> {
    if text.contains('/') {
        return Err(format!("namespace {:?} is not valid: it must not hold a '/'", shown(text)));
    }
    format!("{text}/x").parse::<GuestName>().map(|_| ()).map_err(|error| error.to_string())
}

fn parse<T: FromStr>(metadata: &Fields<'_>, name: &str) -> Result<T, Fault>
where
    T::Err: Display,
{
    name.parse().map_err(|error| metadata.fault("name", format!("{error}")))
}

fn settings_object(
    kind: SettingsKind,
    name: &str,
    namespace: &str,
    spec: Option<Fields<'_>>,
    notes: &mut Notes,
) -> Result<Manifest, Fault> {
    if name.parse::<PolicyName>().is_err() {
        let rule =
            format!("{:?} is no name: it must be a DNS name, such as kubevirt-hyperconverged", shown(name));
        return Err(Fault::new("metadata.name", rule));
    }
    settings::note_name(kind, namespace, name, notes);
    let settings = settings::cluster(kind, spec, notes)?;
    Ok(Manifest::Settings { kind, name: name.to_owned(), namespace: namespace.to_owned(), settings })
}

fn cordoned(spec: Option<Fields<'_>>, notes: &mut Notes) -> Result<bool, Fault> {
    let Some(mut spec) = spec else { return Ok(false) };
    let cordoned = spec.truth("unschedulable")?;
    notes.ignore_rest(&spec);
    Ok(cordoned.unwrap_or(false))
}

/// What is left at the top and in the metadata.
fn finish(kind: Kind, top: &Fields<'_>, metadata: &mut Fields<'_>, notes: &mut Notes) -> Result<(), Fault> {
    for known in ["labels"].iter().chain(&guest::SERVERS_METADATA) {
        metadata.value(known);
    }
    let is_guest = matches!(kind, Kind::VirtualMachine | Kind::VirtualMachineInstance);
    if let Some(mut annotations) = metadata.fields("annotations")?.filter(|_| !is_guest) {
        // Other people's are none of our business; ours would be lost without a word.
        let ours =
            annotations.all().filter(|(key, _)| key.starts_with(runner::PREFIX) || *key == TIMEOUT_OF_OLD);
        let ours: Vec<&str> = ours.map(|(key, _)| key).collect();
        ours.into_iter().for_each(|key| notes.ignore(annotations.path(key)));
    }
    notes.ignore_rest(metadata);
    match kind {
        Kind::HyperConverged
        | Kind::KubeVirt
        | Kind::MigrationPolicy
        | Kind::VirtualMachineInstanceMigration => {
            top.refuse_rest("apiVersion, kind, metadata, spec and status")
        }
        Kind::Namespace | Kind::Node | Kind::VirtualMachine | Kind::VirtualMachineInstance => {
            notes.ignore_rest(top);
            Ok(())
        }
    }
}
