//! Labels of one object, changed one by one.
//!
//! ```text
//!   label ─▶ Command::Label ─▶ log ─▶ the registry: those that are there, changed
//! ```
//!
//! Always true: what is not named stays as it is, whoever else changes the object at that moment; a label that has another
//! value is changed only where that is said. The registry sees to both.

use std::collections::BTreeMap;

use godwit_domain::NodeName;
use godwit_domain::registry::{Command, Labelled};
use godwit_wire::manifest::Kind;

use super::super::Group;
use super::Answered;
use super::asked::Asked;
use super::objects::{Plan, carry_out, guest_name, invalid, read};
use super::problem::{self, refused};

/// What is done about a `label` command.
#[derive(Debug, Clone)]
pub(super) struct Relabel {
    /// Set, and, without a value, removed.
    pub(super) labels: BTreeMap<String, Option<String>>,
    /// A label that has another value may be changed.
    pub(super) overwrite: bool,
}

pub(super) async fn label(
    group: &Group,
    asked: Asked,
    kind: &str,
    name: String,
    namespace: Option<String>,
    change: Relabel,
    dry_run: bool,
) -> Answered {
    let kind: Kind = kind.parse().map_err(|error| invalid(&error))?;
    let mut notes = Vec::new();
    let (name, of) = match kind {
        Kind::Namespace => (name.clone(), Labelled::Namespace(name)),
        Kind::Node => {
            let node: NodeName = name.parse().map_err(|error| invalid(&error))?;
            let of = node.clone();
            let known = read(group, move |registry| Some(registry.nodes.get(&of)?.labels.clone()));
            let of_config = known.await?.ok_or_else(|| super::no_node(&node))?;
            let stays =
                change.labels.iter().find(|(key, value)| value.is_none() && of_config.contains_key(*key));
            notes.extend(stays.map(|(key, _)| format!("label {key} is in the node's config: it stays")));
            (name, Labelled::Node(node))
        }
        Kind::VirtualMachine => {
            let guest = guest_name(&name, namespace)?;
            notes.push(
                "no policy looks at a VirtualMachine's own labels: spec.template.metadata.labels count"
                    .to_owned(),
            );
            (guest.to_string(), Labelled::Machine(guest))
        }
        Kind::VirtualMachineInstance => {
            let guest = guest_name(&name, namespace)?;
            let of = guest.clone();
            if !read(group, move |registry| registry.guest_named(&of).is_some()).await? {
                return Err(super::no_guest(&guest));
            }
            (guest.to_string(), Labelled::Instance(guest))
        }
        Kind::HyperConverged
        | Kind::KubeVirt
        | Kind::MigrationPolicy
        | Kind::VirtualMachineInstanceMigration => {
            let message = format!("labels of a {kind} are not kept: nothing selects by them");
            return Err(refused(
                "labels are those of ns, no, vm and vmi",
                message,
                "godwit edit changes the object",
            ));
        }
    };
    let command = Command::Label { of, change: change.labels, overwrite: change.overwrite };
    let plan = Plan { notes, ..Plan::simple(kind, name, "labeled", command) };
    carry_out(group, asked, plan, dry_run).await?.ok_or_else(problem::contended)
}
