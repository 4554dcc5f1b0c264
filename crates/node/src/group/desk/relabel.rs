//! Labels of one object, changed one by one.
//!
//! Always true: what is not named stays as it is; a label that has another value is changed only where that is said.

use std::collections::BTreeMap;

use godwit_domain::NodeName;
use godwit_domain::labels::Labels;
use godwit_domain::machine::Machine;
use godwit_domain::registry::{Command, NodeChange, Refusal};
use godwit_wire::admin::Problem;
use godwit_wire::manifest::Kind;

use super::super::{Group, NotAgreed};
use super::Answered;
use super::asked::Asked;
use super::objects::{Plan, carry_out, guest_name, invalid, read};
use super::problem::refused;

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
    let (name, command) = match kind {
        Kind::Namespace => {
            let of = name.clone();
            let labels = read(group, move |registry| registry.namespaces.get(&of).cloned()).await?;
            let labels = change.of(kind, &name, &labels.unwrap_or_default())?;
            (name.clone(), Command::PutNamespace { name, labels })
        }
        Kind::Node => {
            let node: NodeName = name.parse().map_err(|error| invalid(&error))?;
            let of = node.clone();
            let known = read(group, move |registry| {
                registry.nodes.contains_key(&of).then(|| {
                    (
                        registry.node_wishes.get(&of).cloned().unwrap_or_default(),
                        registry.nodes[&of].labels.clone(),
                    )
                })
            });
            let (wish, of_config) = known.await?.ok_or_else(|| super::no_node(&node))?;
            let labels = change.of(kind, &name, &wish.labels)?;
            let stays =
                change.labels.iter().find(|(key, value)| value.is_none() && of_config.contains_key(*key));
            notes.extend(stays.map(|(key, _)| format!("label {key} is in the node's config: it stays")));
            (name, Command::Node { node, change: NodeChange::Put { labels, cordoned: wish.cordoned } })
        }
        Kind::VirtualMachine => {
            let guest = guest_name(&name, namespace)?;
            let of = guest.clone();
            let machine = read(group, move |registry| registry.machines.get(&of).cloned()).await?;
            let missing = || Problem::from(NotAgreed::Refused(Refusal::NoMachine(guest.clone())));
            let machine = machine.ok_or_else(missing)?;
            let labels = change.of(kind, guest.name(), &machine.labels)?;
            notes.push(
                "no policy looks at a VirtualMachine's own labels: spec.template.metadata.labels count"
                    .to_owned(),
            );
            let machine = Machine { labels, ..machine };
            (guest.to_string(), Command::PutMachine { name: guest, machine, home: None })
        }
        Kind::VirtualMachineInstance => {
            let guest = guest_name(&name, namespace)?;
            let of = guest.clone();
            let labels =
                read(group, move |registry| Some(registry.guest_named(&of)?.1.labels.clone())).await?;
            let labels = change.of(kind, guest.name(), &labels.ok_or_else(|| super::no_guest(&guest))?)?;
            (guest.to_string(), Command::PutInstance { name: guest, labels, body: None, home: None })
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
    let plan = Plan { kind, name, done: "labeled", command: Some(command), makes: None, ends: None, notes };
    carry_out(group, asked, plan, dry_run).await
}

impl Relabel {
    fn of(&self, kind: Kind, name: &str, labels: &Labels) -> Result<Labels, Problem> {
        let mut changed = labels.clone();
        for (key, value) in &self.labels {
            match (value, labels.get(key)) {
                (Some(value), Some(known)) if value != known && !self.overwrite => {
                    let message = format!("label {key} of {kind} {name} is {known:?}");
                    return Err(refused(
                        "a label that is there is not changed by chance",
                        message,
                        "--overwrite",
                    ));
                }
                (Some(value), _) => {
                    changed.insert(key.clone(), value.clone());
                }
                (None, _) => {
                    changed.remove(key);
                }
            }
        }
        Ok(changed)
    }
}
