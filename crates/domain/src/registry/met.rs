//! What an operator's change meets, so that its answer is about the very state that it has changed.
//!
//! ```text
//!   leader: look ─▶ Met ─▶ Command::If { met, command } ─▶ log ─▶ still so? ─yes─▶ command
//!                                                                     └─no─▶ refused: look again
//! ```
//!
//! Labels that are changed one by one need no look: what they are changed in is in the registry.
//!
//! Always true: a change that meets something else has no effect and is not remembered as an answer; one that meets what
//! it would make has no effect either, and is remembered.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::guests::is_ending;
use super::{Applied, Command, Guest, GuestUid, NodeChange, Refusal, Registry};
use crate::ids::{GuestName, NodeName};
use crate::labels::{self, Labels};
use crate::machine::{Body, Machine};

/// What is there, compared with what a change would make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// Nothing.
    Absent,
    /// Something else.
    Other,
    /// This.
    Same,
}

/// What a change meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Met {
    /// What is there.
    pub found: Found,
    /// The guest of that name, if the change is about one and it is there.
    pub guest: Option<GuestUid>,
}

/// What has labels that operators change one by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Labelled {
    /// A project; it need not be known before.
    Namespace(String),
    /// A node that has joined: those above its config's.
    Node(NodeName),
    /// A `VirtualMachine`'s own.
    Machine(GuestName),
    /// A guest's own.
    Instance(GuestName),
}

impl Registry {
    /// What this command would meet now. A command that puts no object meets something else, always.
    pub fn met(&self, command: &Command) -> Met {
        let known = |is_same: Option<bool>| Met { found: found(is_same), guest: None };
        match command {
            Command::PutSettings { settings } => known(Some(self.settings == *settings)),
            Command::PutPolicy { name, policy } => {
                known(self.policies.get(name).map(|known| known == policy))
            }
            Command::PutNamespace { name, labels } => {
                known(self.namespaces.get(name).map(|known| known == labels))
            }
            Command::Node { node, change: NodeChange::Put { labels, cordoned } } => {
                let wish = self.node_wishes.get(node);
                let is_same = wish.map(|wish| (&wish.labels, wish.cordoned) == (labels, *cordoned));
                known(is_same.or_else(|| self.nodes.contains_key(node).then_some(false)))
            }
            Command::PutMachine { name, machine, .. } => self.met_machine(name, machine),
            Command::PutInstance { name, labels, body, .. } => self.met_instance(name, labels, body.as_ref()),
            Command::Migrate { migration, .. } => known(self.guest_of(migration).map(|_| false)),
            Command::Join { .. }
            | Command::DeletePolicy { .. }
            | Command::DeleteNamespace { .. }
            | Command::Node { .. }
            | Command::DeleteMachine { .. }
            | Command::Set { .. }
            | Command::Reached { .. }
            | Command::Placeable { .. }
            | Command::ForgetMigration { .. }
            | Command::Measured { .. }
            | Command::Admit { .. }
            | Command::Guest { .. }
            | Command::Fence { .. }
            | Command::FenceSeen { .. }
            | Command::RemoveNode { .. }
            | Command::Member { .. }
            | Command::If { .. }
            | Command::Label { .. }
            | Command::Found { .. }
            | Command::Testify { .. } => known(Some(false)),
        }
    }

    fn met_machine(&self, name: &GuestName, machine: &Machine) -> Met {
        let (known, guest) = (self.machines.get(name), self.guest_named(name));
        let body = machine.body.as_ref().or_else(|| known?.body.as_ref());
        // Whether its guest is there, or goes, as it shall.
        let settled = match guest {
            Some((_, guest)) => machine.runs != is_ending(guest),
            None => !machine.runs || body.is_none(),
        };
        let is_same = known.map(|known| {
            let Machine { labels, runs, template_labels, body: _ } = known;
            settled
                && (labels, *runs, template_labels)
                    == (&machine.labels, machine.runs, &machine.template_labels)
                && known.body.as_ref() == body
        });
        let is_same = is_same.or_else(|| guest.map(|_| false));
        Met { found: found(is_same), guest: guest.map(|(uid, _)| uid) }
    }

    fn met_instance(&self, name: &GuestName, labels: &Labels, body: Option<&Body>) -> Met {
        let guest = self.guest_named(name);
        let is_same = |guest: &Guest| {
            !is_ending(guest) && guest.labels == *labels && body.is_none_or(|body| *body == guest.body)
        };
        Met { found: found(guest.map(|(_, guest)| is_same(guest))), guest: guest.map(|(uid, _)| uid) }
    }

    /// A change, if it meets this.
    pub(super) fn change_if(&mut self, met: Met, command: Command) -> Applied {
        if matches!(command, Command::If { .. }) {
            return Err(Refusal::NotByEntry("a condition within a condition".into()));
        }
        let now = self.met(&command);
        if now != met {
            return Err(Refusal::MetOther(now));
        }
        if met.found == Found::Same { Ok(BTreeSet::new()) } else { self.command(command) }
    }

    /// Sets labels, and removes those without a value; the others stay.
    pub(super) fn label(
        &mut self,
        of: Labelled,
        change: &BTreeMap<String, Option<String>>,
        overwrite: bool,
    ) -> Applied {
        let changed = |labels: &Labels| relabelled(labels, change, overwrite);
        match of {
            Labelled::Namespace(name) => {
                let labels = changed(self.namespaces.get(&name).unwrap_or(&Labels::new()))?;
                self.put_namespace(name, labels)
            }
            Labelled::Node(name) => {
                if !self.nodes.contains_key(&name) {
                    return Err(Refusal::NoNode(name));
                }
                let known = self.node_wishes.get(&name).map(|wish| &wish.labels);
                let labels = changed(known.unwrap_or(&Labels::new()))?;
                labels::check(&labels)?;
                self.change_facts(&name.clone(), |state| {
                    state.node_wishes.entry(name).or_default().labels = labels;
                });
                Ok(BTreeSet::new())
            }
            Labelled::Machine(name) => {
                let machine = self.machines.get(&name).ok_or_else(|| Refusal::NoMachine(name.clone()))?;
                let machine = Machine { labels: changed(&machine.labels)?, ..machine.clone() };
                self.put_machine(name, machine, None)
            }
            Labelled::Instance(name) => {
                let (_, guest) = self.guest_named(&name).ok_or_else(|| Refusal::NoBody(name.clone()))?;
                let labels = changed(&guest.labels)?;
                self.put_instance(name, labels, None, None)
            }
        }
    }
}

impl Command {
    /// What is to be done, without its condition.
    pub fn bare(&self) -> &Self {
        if let Self::If { command, .. } = self { command } else { self }
    }
}

/// `None`: nothing is there.
fn found(is_same: Option<bool>) -> Found {
    match is_same {
        None => Found::Absent,
        Some(false) => Found::Other,
        Some(true) => Found::Same,
    }
}

fn relabelled(
    labels: &Labels,
    change: &BTreeMap<String, Option<String>>,
    overwrite: bool,
) -> Result<Labels, Refusal> {
    let mut changed = labels.clone();
    for (key, value) in change {
        match (value, labels.get(key)) {
            (Some(value), Some(is)) if value != is && !overwrite => {
                return Err(Refusal::Labelled { key: key.clone(), is: is.clone() });
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

/// Reads a command that has no condition. One in another in another, ten thousand deep, fits into a frame, and whoever read it would
/// run out of stack: so the second is refused before it is read.
pub(super) fn without_condition<'de, D: Deserializer<'de>>(from: D) -> Result<Box<Command>, D::Error> {
    thread_local! {
        static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
    }
    if IS_INSIDE.replace(true) {
        return Err(D::Error::custom("a condition within a condition"));
    }
    let command = Box::deserialize(from);
    IS_INSIDE.set(false);
    command
}
