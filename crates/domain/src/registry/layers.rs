//! Which settings hold for a migration now: the cluster's, the policy in force, its own. And what a change of any of them
//! does to those that are not over.
//!
//! Always true: a change counts at the entry that makes it, for waiting and running migrations alike, and is taken down on
//! each whose settings it changes.

use std::collections::BTreeSet;

use super::{Applied, Effect, Guest, GuestUid, Refusal, Registry, State, concerned};
use crate::ids::NodeName;
use crate::labels::{self, Labels};
use crate::policy::{self, Policy, PolicyName, Subject};
use crate::settings::{ClusterSettings, Layers, Overrides, Priority, Resolved, Settings, resolve};

/// Most policies that are kept.
const POLICIES_MAX: usize = 1000;
/// Most projects that are kept.
const NAMESPACES_MAX: usize = 10_000;

/// What holds for a guest's migration, and by which policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// The policy in force.
    pub policy: Option<PolicyName>,
    /// The settings with their origins.
    pub resolved: Resolved,
}

static NO_LABELS: Labels = Labels::new();

impl State {
    /// Its labels from config and from manifests, which win.
    pub fn labels_of_node(&self, name: &NodeName) -> Labels {
        let mut labels = self.nodes.get(name).map(|node| node.labels.clone()).unwrap_or_default();
        labels.extend(self.node_wishes.get(name).map(|wish| wish.labels.clone()).unwrap_or_default());
        labels
    }

    /// Whether a node takes no guests.
    pub fn is_cordoned(&self, name: &NodeName) -> bool {
        self.node_wishes.get(name).is_some_and(|wish| wish.cordoned)
    }

    /// Whether a node is not on the migration network, if there is one.
    pub(super) fn lacks_network(&self, name: &NodeName) -> bool {
        let Some(network) = &self.settings.network else { return false };
        self.nodes.get(name).is_some_and(|node| !node.networks.contains_key(network))
    }
}

impl Registry {
    /// The labels by which a guest gets its policy.
    pub fn subject<'a>(&'a self, guest: &'a Guest) -> Subject<'a> {
        let template = self.machines.get(&guest.name).and_then(|machine| machine.template_labels.as_ref());
        let namespace = self.namespaces.get(guest.name.namespace());
        Subject { guest: template.unwrap_or(&guest.labels), namespace: namespace.unwrap_or(&NO_LABELS) }
    }

    /// What holds for this guest: for its present migration, or, without one, for the next.
    pub fn in_force(&self, guest: &Guest) -> InForce {
        let chosen = policy::choose(&self.policies, self.subject(guest));
        let open = guest.ownership.attempt.as_ref().is_some_and(|attempt| !attempt.phase.is_over());
        let own = guest.record.as_ref().filter(|_| open).map(|record| &record.wish.overrides);
        self.with_overrides(chosen, own)
    }

    /// What would hold for its next migration with these overrides.
    pub fn in_force_with(&self, guest: &Guest, own: &Overrides) -> InForce {
        self.with_overrides(policy::choose(&self.policies, self.subject(guest)), Some(own))
    }

    fn with_overrides(&self, chosen: Option<(&PolicyName, &Policy)>, own: Option<&Overrides>) -> InForce {
        let layers = Layers {
            cluster: &self.settings,
            policy: chosen.map(|(_, policy)| &policy.overrides),
            migration: own,
        };
        InForce { policy: chosen.map(|(name, _)| name.clone()), resolved: resolve(layers) }
    }

    /// What a node is told of it.
    pub fn settings_of(&self, guest: &Guest) -> Settings {
        let bytes = guest.memory_bytes().saturating_add(guest.body.local_disks_bytes);
        let mut settings = self.in_force(guest).resolved.settings(bytes);
        settings.limits.allowed.post_copy &= !guest.body.critical;
        settings
    }

    // ---- commands ------------------------------------------------------------------------------------------

    pub(super) fn put_settings(&mut self, settings: ClusterSettings) -> Applied {
        settings.migration.check()?;
        if let Some(priority) = settings.migration.priority {
            let rule = "it is left to policies and migrations";
            return Err(Refusal::Invalid(format!(
                "priority is {priority} in the cluster's settings; {rule}"
            )));
        }
        if self.settings == settings {
            return Ok(BTreeSet::new());
        }
        // Limits bind grants alone: no migration is told of them.
        let limits_alone = self.settings
            == ClusterSettings {
                parallel_migrations_per_cluster: self.settings.parallel_migrations_per_cluster,
                parallel_outbound_migrations_per_node: self.settings.parallel_outbound_migrations_per_node,
                parallel_inbound_migrations_per_node: self.settings.parallel_inbound_migrations_per_node,
                ..settings.clone()
            };
        let whom = if limits_alone { BTreeSet::new() } else { self.index.open.clone() };
        Ok(self.relayer("the cluster's settings", whom, |registry| {
            registry.state.settings = settings;
            registry.index.refresh_all(&registry.state);
        }))
    }

    pub(super) fn put_policy(&mut self, name: PolicyName, policy: Policy) -> Applied {
        policy.check()?;
        if !self.policies.contains_key(&name) && self.policies.len() >= POLICIES_MAX {
            return Err(Refusal::Invalid(format!("there are {POLICIES_MAX} policies, as many as are kept")));
        }
        let why = format!("policy {name}");
        Ok(self.relayer(&why, self.index.open.clone(), |registry| {
            registry.state.policies.insert(name, policy);
        }))
    }

    pub(super) fn delete_policy(&mut self, name: &PolicyName) -> Applied {
        if !self.policies.contains_key(name) {
            return Err(Refusal::NoPolicy(name.clone()));
        }
        Ok(self.relayer(&format!("policy {name} was deleted"), self.index.open.clone(), |registry| {
            registry.state.policies.remove(name);
        }))
    }

    pub(super) fn put_namespace(&mut self, name: String, labels: Labels) -> Applied {
        labels::check(&labels)?;
        // It is the first half of every guest's name in it.
        if format!("{name}/x").parse::<crate::ids::GuestName>().is_err() {
            return Err(Refusal::Invalid(format!("project name {name:?} is no DNS label")));
        }
        if !self.namespaces.contains_key(&name) && self.namespaces.len() >= NAMESPACES_MAX {
            return Err(Refusal::Invalid(format!(
                "there are {NAMESPACES_MAX} projects, as many as are kept"
            )));
        }
        let (why, whom) = (format!("labels of project {name}"), self.open_in(&name));
        Ok(self.relayer(&why, whom, |registry| {
            registry.state.namespaces.insert(name, labels);
        }))
    }

    pub(super) fn delete_namespace(&mut self, name: &str) -> Applied {
        if !self.namespaces.contains_key(name) {
            return Err(Refusal::NoNamespace(name.to_owned()));
        }
        let why = format!("project {name} was deleted");
        Ok(self.relayer(&why, self.open_in(name), |registry| {
            registry.state.namespaces.remove(name);
        }))
    }

    // ---- what follows from a change -------------------------------------------------------------------------

    fn open_in(&self, namespace: &str) -> Vec<GuestUid> {
        let open = self.migrating().filter(|(_, guest)| guest.name.namespace() == namespace);
        open.map(|(uid, _)| uid).collect()
    }

    /// Makes a change and takes down on every migration of these guests that is not over what it changes for it.
    pub(super) fn relayer(
        &mut self,
        why: &str,
        whom: impl IntoIterator<Item = GuestUid>,
        change: impl FnOnce(&mut Self),
    ) -> BTreeSet<Effect> {
        let open = whom.into_iter().filter(|uid| self.index.open.contains(uid));
        let before: Vec<_> = open
            .filter_map(|uid| {
                let guest = self.guests.get(&uid)?;
                Some((uid, self.in_force(guest), guest.body.critical))
            })
            .collect();
        change(self);
        let mut effects = BTreeSet::new();
        for (uid, before, was_critical) in before {
            let Some(guest) = self.guests.get(&uid) else { continue };
            let (after, is_critical) = (self.in_force(guest), guest.body.critical);
            let mut differences = differences(&before, &after);
            if was_critical != is_critical {
                differences.push(format!("godwit.dev/critical {was_critical} → {is_critical}"));
            }
            if !differences.is_empty() {
                self.settle(uid, &after, Some(format!("{why}: {}", differences.join(", "))));
                effects.extend(self.effects_for(uid));
            }
        }
        effects
    }

    /// Takes down what is in force for a guest's migration.
    pub(super) fn settle(&mut self, uid: GuestUid, now: &InForce, what: Option<String>) {
        let (policy, priority) = (now.policy.clone(), now.resolved.priority.value);
        let time_ms = self.time_ms;
        let Some(record) = self.state.guests.get_mut(&uid).and_then(|guest| guest.record.as_mut()) else {
            return;
        };
        record.policy = policy;
        if let Some(what) = what {
            record.note_change(time_ms, what);
        }
        let class = if record.wish.drains.is_some() { Priority::Drain } else { priority };
        if record.class != class {
            // The guest is there. Only its class is counted by.
            let _ = self.change(uid, |guest, _| {
                guest.record.iter_mut().for_each(|record| record.class = class);
                Ok(())
            });
        }
    }

    pub(super) fn effects_for(&self, uid: GuestUid) -> BTreeSet<Effect> {
        let Some(guest) = self.guests.get(&uid) else { return BTreeSet::new() };
        concerned(&guest.ownership).into_iter().map(|node| Effect { node, guest: uid }).collect()
    }
}

fn differences(before: &InForce, after: &InForce) -> Vec<String> {
    let mut differences = Vec::new();
    if before == after {
        return differences;
    }
    if before.policy != after.policy {
        let name =
            |policy: &Option<PolicyName>| policy.as_ref().map_or("none".to_owned(), PolicyName::to_string);
        differences.push(format!("policy in force {} → {}", name(&before.policy), name(&after.policy)));
    }
    let pairs = before.resolved.entries().into_iter().zip(after.resolved.entries());
    let changed = pairs.filter(|((_, before), (_, after))| before.value != after.value);
    differences.extend(
        changed.map(|((key, before), (_, after))| format!("{key} {} → {}", before.value, after.value)),
    );
    differences
}
