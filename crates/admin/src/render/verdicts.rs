//! What would happen, and what holds: settings with their origins, nodes with what speaks against them, policies.

use std::collections::BTreeMap;

use godwit_domain::NodeName;
use godwit_domain::policy::Candidate;
use godwit_domain::settings::Origin;
use godwit_wire::admin::{Explained, SettingRow, Verdicts};

use super::{facts, joined, list, maybe, sections};

/// `policy explain`.
pub fn explained(explained: &Explained) -> String {
    let Explained { vm, namespace, policy, candidates, settings, notes } = explained;
    let none = "none matches: the cluster's settings hold".to_owned();
    let first = facts([
        ("VM", vm.clone()),
        ("namespace", namespace.clone()),
        ("policy", policy.as_ref().map_or(none, ToString::to_string)),
    ]);
    let cells = |candidate: &Candidate| {
        let Candidate { policy, matched, labels, keys, reason } = candidate;
        let matched = if *matched { "yes" } else { "no" }.to_owned();
        [policy.to_string(), matched, labels.to_string(), joined(keys), reason.clone()]
    };
    let head = ["policy", "matches", "labels", "keys", "why"];
    sections(
        first,
        [
            ("policies", list("there are none", head, &[2], candidates.iter().map(cells))),
            ("settings", settings_of(settings)),
            ("notes", lines(notes)),
        ],
    )
}

/// `migrate --dry-run`.
pub fn verdicts(verdicts: &Verdicts) -> String {
    let Verdicts { guest, source, target, waits_for, nodes, policy, settings, notes } = verdicts;
    let to = target.as_ref().map_or_else(|| "no node can take it".to_owned(), ToString::to_string);
    let first = facts([
        ("guest", guest.to_string()),
        ("from", source.to_string()),
        ("would go to", to),
        ("would wait for", maybe(waits_for.as_ref())),
        ("policy", maybe(policy.as_ref())),
    ]);
    sections(
        first,
        [("nodes", verdicts_of(nodes)), ("settings", settings_of(settings)), ("notes", lines(notes))],
    )
}

/// Per node whether it could take the guest.
pub(super) fn verdicts_of(nodes: &BTreeMap<NodeName, Option<String>>) -> String {
    let cells = |(node, why): (&NodeName, &Option<String>)| {
        let could = if why.is_none() { "yes" } else { "no" };
        [node.to_string(), could.to_owned(), maybe(why.as_ref())]
    };
    list("there are none", ["node", "could take it", "why not"], &[], nodes.iter().map(cells))
}

/// Settings with where they come from; empty if there are none.
pub(super) fn settings_of<'s>(settings: impl IntoIterator<Item = (&'s String, &'s SettingRow)>) -> String {
    let cells = |(key, SettingRow { value, origin }): (&String, &SettingRow)| {
        let origin = match origin {
            Origin::Default => "default",
            Origin::Cluster => "cluster",
            Origin::Policy => "policy",
            Origin::Migration => "migration",
        };
        [key.clone(), value.to_string(), origin.to_owned()]
    };
    list("", ["setting", "value", "set by"], &[], settings.into_iter().map(cells))
}

fn lines(notes: &[String]) -> String {
    let lines: Vec<String> = notes.iter().map(|note| format!("- {note}")).collect();
    lines.join("\n")
}
