//! The objects that operators change, as manifests that are asked for and as answers that are read.
//!
//! ```text
//!   policy      bandwidthPerMigration: so many bytes        selects guests that nobody has
//!   namespace   label chaos/content                         no guest is in it
//!   label       one of two labels of one more namespace     each is changed alone; absent: without it
//!   node        label chaos/content of its Node manifest    absent: without that label
//!   settings    one of the given manifests, whole           always there
//! ```
//!
//! Always true: a content is a number; what is read back is compared with all of what that number was written as, so a
//! content that is half one and half another is found too. Nothing here asks anybody.

use std::fmt;

use godwit_domain::ClusterSettings;
use godwit_wire::admin::Objects;
use godwit_wire::manifest::{self, Manifest, documents};
use serde_json::{Value as Json, json};

use super::register::{State, Value};

/// The key of the label that namespaces and nodes carry.
const LABEL: &str = "chaos/content";
/// The keys of the labels that are changed one by one.
pub(super) const KEYS: [&str; 2] = ["chaos/one", "chaos/two"];
/// A policy's content is its bandwidth in bytes a second above this: no limit in practice.
const BANDWIDTH: u64 = 1 << 40;
/// The content of settings that none of the given manifests made.
pub(super) const FOREIGN: Value = 0;

/// What kind of thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Policy,
    Namespace,
    /// A label with this key, of a namespace that is changed in no other way.
    Label(&'static str),
    Node,
    Settings,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Object {
    pub(super) kind: Kind,
    pub(super) name: String,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Label(key) => write!(f, "label {key} of {}", self.name),
            _ => write!(f, "{} {}", self.noun(), self.name),
        }
    }
}

impl Object {
    /// The name of its kind in a request.
    pub(super) fn noun(&self) -> &'static str {
        match self.kind {
            Kind::Policy => "migrationpolicy",
            Kind::Namespace | Kind::Label(_) => "namespace",
            Kind::Node => "node",
            Kind::Settings => "hyperconverged",
        }
    }

    /// Whether it can be removed without harm to anybody.
    pub(super) fn can_go(&self) -> bool {
        matches!(self.kind, Kind::Policy | Kind::Namespace | Kind::Label(_))
    }

    /// Whether it can be created: a label is set.
    pub(super) fn can_come(&self) -> bool {
        matches!(self.kind, Kind::Policy | Kind::Namespace)
    }
}

/// The manifests of settings among which operators choose: content `n` is the `n`th, from 1.
#[derive(Debug)]
pub(super) struct Choices(Vec<(Json, ClusterSettings)>);

impl Choices {
    /// Reads them. Errors: one is no manifest of settings, or two say the same.
    pub(super) fn read(texts: &[String]) -> Result<Self, String> {
        let mut choices: Vec<(Json, ClusterSettings)> = Vec::new();
        for text in texts {
            let mut documents = documents(text).map_err(|error| format!("{error}: {text}"))?;
            let (Some(document), true) = (documents.pop(), documents.is_empty()) else {
                return Err(format!("one manifest, please: {text}"));
            };
            match manifest::read(&document) {
                Ok((Manifest::Settings { settings, .. }, _)) => {
                    if choices.iter().any(|(_, known)| *known == settings) {
                        return Err(format!("said twice: {text}"));
                    }
                    choices.push((document, settings));
                }
                Ok((other, _)) => return Err(format!("{} is no settings object: {text}", other.kind())),
                Err(error) => return Err(format!("{error}: {text}")),
            }
        }
        Ok(Self(choices))
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The manifest that gives an object this content.
    pub(super) fn manifest(&self, object: &Object, value: Value) -> Json {
        let name = &object.name;
        let labelled = |kind: &str| {
            let labels = json!({ LABEL: value.to_string() });
            json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "labels": labels } })
        };
        match object.kind {
            Kind::Policy => json!({
                "apiVersion": "migrations.kubevirt.io/v1alpha1", "kind": "MigrationPolicy",
                "metadata": { "name": name },
                "spec": {
                    "bandwidthPerMigration": BANDWIDTH + value,
                    "selectors": { "virtualMachineInstanceSelector": { "chaos": "none" } },
                },
            }),
            Kind::Namespace | Kind::Label(_) => labelled("Namespace"),
            Kind::Node => labelled("Node"),
            Kind::Settings => {
                let chosen = usize::try_from(value).ok().and_then(|value| self.0.get(value.checked_sub(1)?));
                chosen.map_or(Json::Null, |(document, _)| document.clone())
            }
        }
    }

    /// What an answer to a get says that an object is. Errors: it is nothing that was ever asked for.
    pub(super) fn seen(&self, object: &Object, answer: Json) -> Result<State, String> {
        let shown = answer.to_string();
        let objects: Objects = serde_json::from_value(answer).map_err(|error| format!("{error}: {shown}"))?;
        let [item] = objects.items.as_slice() else {
            return Err(format!("one {object} was asked for: {shown}"));
        };
        let (found, _) = manifest::read(item).map_err(|error| format!("{error}: {item}"))?;
        if let (Kind::Label(key), Manifest::Namespace { labels, .. }) = (object.kind, &found) {
            let value = labels.get(key).map(|value| value.parse()).transpose();
            return value.map_err(|_| format!("{object} has a content that nobody gave it: {item}"));
        }
        let value = match &found {
            Manifest::Settings { settings, .. } => {
                let chosen = self.0.iter().position(|(_, known)| known == settings);
                return Ok(Some(chosen.map_or(FOREIGN, |chosen| chosen as u64 + 1)));
            }
            // Whether it takes guests is another one's business.
            Manifest::Node { labels, .. } => match labels.get(LABEL) {
                Some(value) => return value.parse().map(Some).map_err(|_| format!("{object}: {item}")),
                None => return Ok(None),
            },
            Manifest::Policy { policy, .. } => {
                policy.overrides.bandwidth_per_migration.and_then(|is| is.bytes().checked_sub(BANDWIDTH))
            }
            Manifest::Namespace { labels, .. } => labels.get(LABEL).and_then(|value| value.parse().ok()),
            Manifest::Machine { .. } | Manifest::Instance { .. } | Manifest::Migration(_) => None,
        };
        let value = value.ok_or_else(|| format!("{object} has a content that nobody gave it: {item}"))?;
        match manifest::read(&self.manifest(object, value)) {
            Ok((asked, _)) if asked == found => Ok(Some(value)),
            Ok(_) | Err(_) => Err(format!("{object} is not as anybody asked for: {item}")),
        }
    }
}
