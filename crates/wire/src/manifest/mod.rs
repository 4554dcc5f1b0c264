//! KubeVirt's manifests, in and out: its own YAML, unchanged.
//!
//! ```text
//!   text ─ documents ─▶ JSON values ─ read ─▶ Manifest (checked) + notes for people
//!   text ◀── yaml ───── JSON value ◀─ show ── Manifest
//!
//!   scalar, documents, write   YAML            fields     a map, and what nobody asked for
//!   kind                       which object    settings, guest, runner, migration   what is in it
//! ```
//!
//! Always true: what concerns migration and is not understood is refused, naming object, path and rule; elsewhere it is
//! noted as ignored. `read(&show(m))` is `m` again. Never here: whether the object fits what the cluster has.

mod documents;
mod fields;
mod guest;
mod kind;
mod migration;
mod runner;
mod scalar;
mod settings;
mod show;
#[cfg(test)]
mod tests;
mod write;

use godwit_domain::labels::Labels;
use godwit_domain::machine::{Body, Machine};
use godwit_domain::policy::{Policy, PolicyName};
use godwit_domain::{ClusterSettings, GuestName, NodeName};
use serde_json::Value;

use fields::{Fault, Fields, Notes, no_placeholder, shown, what};

pub use documents::{DEPTH_MAX, DOCUMENTS_MAX, TEXT_BYTES_MAX, VALUES_MAX, documents};
pub use kind::{Kind, KindError};
pub use migration::{MigrationWish, NameWish};
pub use show::show;
pub use write::yaml;

/// The namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// An object, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// The cluster's settings, whole: what it does not set has its default.
    Settings {
        /// As whose object they are written.
        kind: SettingsKind,
        /// Its name. Any will do.
        name: String,
        /// Its namespace. Any will do.
        namespace: String,
        /// What it sets.
        settings: ClusterSettings,
    },
    /// A `MigrationPolicy`.
    Policy {
        /// Its name.
        name: PolicyName,
        /// What it asks for and sets.
        policy: Policy,
    },
    /// A project.
    Namespace {
        /// Its name, a DNS label.
        name: String,
        /// Its labels.
        labels: Labels,
    },
    /// A host.
    Node {
        /// Its name.
        name: NodeName,
        /// Labels that this manifest gives it.
        labels: Labels,
        /// No guest shall come to it (`spec.unschedulable`).
        cordoned: bool,
    },
    /// A `VirtualMachine`.
    Machine {
        /// The guest.
        name: GuestName,
        /// How it is wished for.
        machine: Machine,
    },
    /// A `VirtualMachineInstance`.
    Instance {
        /// The guest.
        name: GuestName,
        /// Its own labels.
        labels: Labels,
        /// What it is like; `None`: nothing is said.
        body: Option<Body>,
    },
    /// A `VirtualMachineInstanceMigration`.
    Migration(MigrationWish),
}

/// As whose object the cluster's settings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingsKind {
    /// OpenShift Virtualization's.
    HyperConverged,
    /// KubeVirt's own.
    KubeVirt,
}

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Too long a text.
    #[error("the manifests are {bytes} bytes; at most {TEXT_BYTES_MAX} are read at once: split them")]
    Long {
        /// Its length in bytes.
        bytes: usize,
    },
    /// Too many documents.
    #[error("more than {DOCUMENTS_MAX} documents; at most that many are read at once: split them")]
    ManyDocuments,
    /// Too many values.
    #[error("more than {VALUES_MAX} values; at most that many are read at once: split the manifests")]
    ManyValues,
    /// It is no YAML, or none that is read here.
    #[error("document {document}, line {line}: {rule}")]
    Yaml {
        /// Which document, from 1.
        document: usize,
        /// Which line of the whole text, from 1.
        line: usize,
        /// What is wrong.
        rule: String,
    },
    /// A document that is no map, or does not say what it is.
    #[error("{0}; a manifest is a map with apiVersion, kind, metadata and, mostly, spec")]
    NoObject(String),
    /// No such kind.
    #[error("kind {kind:?} is not known here; there are {known}")]
    Kind {
        /// What was written.
        kind: String,
        /// All that there are.
        known: String,
    },
    /// The kind under another version.
    #[error("a {kind} has apiVersion {must}, not {got}")]
    ApiVersion {
        /// The kind.
        kind: Kind,
        /// What was written.
        got: String,
        /// The right ones.
        must: String,
    },
    /// Something inside it.
    #[error("{object}: {path}: {rule}")]
    Field {
        /// Kind and name.
        object: String,
        /// Where.
        path: String,
        /// What is wrong, and what would do.
        rule: String,
    },
}

impl Manifest {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Settings { kind: SettingsKind::HyperConverged, .. } => Kind::HyperConverged,
            Self::Settings { kind: SettingsKind::KubeVirt, .. } => Kind::KubeVirt,
            Self::Policy { .. } => Kind::MigrationPolicy,
            Self::Namespace { .. } => Kind::Namespace,
            Self::Node { .. } => Kind::Node,
            Self::Machine { .. } => Kind::VirtualMachine,
            Self::Instance { .. } => Kind::VirtualMachineInstance,
            Self::Migration(_) => Kind::VirtualMachineInstanceMigration,
        }
    }

    /// Its name; of a name that is to be made, how it begins.
    pub fn name(&self) -> String {
        match self {
            Self::Settings { name, .. } | Self::Namespace { name, .. } => name.clone(),
            Self::Policy { name, .. } => name.to_string(),
            Self::Node { name, .. } => name.to_string(),
            Self::Machine { name, .. } | Self::Instance { name, .. } => name.name().to_owned(),
            Self::Migration(MigrationWish { name: NameWish::Named(id), .. }) => id.to_string(),
            Self::Migration(MigrationWish { name: NameWish::Generated(prefix), .. }) => prefix.clone(),
        }
    }

    /// Its project, if its kind belongs to one.
    pub fn namespace(&self) -> Option<String> {
        match self {
            Self::Settings { namespace, .. } | Self::Migration(MigrationWish { namespace, .. }) => {
                Some(namespace.clone())
            }
            Self::Machine { name, .. } | Self::Instance { name, .. } => Some(name.namespace().to_owned()),
            Self::Policy { .. } | Self::Namespace { .. } | Self::Node { .. } => None,
        }
    }
}

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

fn parse<T: std::str::FromStr>(metadata: &Fields<'_>, name: &str) -> Result<T, Fault>
where
    T::Err: std::fmt::Display,
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
    for known in ["labels", "annotations"].iter().chain(&guest::SERVERS_METADATA) {
        metadata.value(known);
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
