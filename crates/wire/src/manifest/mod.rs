//! KubeVirt's manifests, in and out: its own YAML, unchanged.
//!
//! ```text
//!   text ─ documents ─▶ JSON values ─ read ─▶ Manifest (checked) + notes for people
//!   text ◀── yaml ───── JSON value ◀─ show ── Manifest
//!
//!   scalar, documents, write   YAML            fields     a map, and what nobody asked for
//!   kind, object               which object    settings, guest, runner, migration   what is in it
//! ```
//!
//! Always true: what concerns migration and is not understood is refused, naming object, path and rule; elsewhere it is
//! noted as ignored. `read(&show(m))` is `m` again. Never here: whether the object fits what the cluster has.

mod documents;
mod fields;
mod guest;
mod kind;
mod migration;
mod object;
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

pub use documents::{DEPTH_MAX, DOCUMENTS_MAX, TEXT_BYTES_MAX, VALUES_MAX, documents};
pub use kind::{Kind, KindError};
pub use migration::{MigrationWish, NameWish};
pub use object::{DEFAULT_NAMESPACE, read, read_in};
pub use show::show;
pub use write::yaml;

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
