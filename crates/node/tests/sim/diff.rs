//! An agreed entry and what it changes, as lines of a log.

use std::fmt::Write;

use godwit_domain::ownership::{Licence, Life, Permits, Phase};
use godwit_domain::registry::{Guest, Refusal, Registry, Stamped};

use crate::host::short;

/// The entry, and each guest, node and setting that it has changed.
pub(crate) fn of(
    index: u64,
    before: &Registry,
    after: &Registry,
    stamped: &Stamped,
    outcome: &Result<(), Refusal>,
) -> String {
    let mut text = format!("agreed {index}: {:?}", stamped.command);
    if let Err(refusal) = outcome {
        let _ = write!(text, "\n        refused: {refusal}");
    }
    for (uid, guest) in &after.guests {
        let was = before.guests.get(uid).map(told);
        let is = told(guest);
        if was.as_ref() != Some(&is) {
            let _ = write!(text, "\n      - {}\n      + {is}", was.unwrap_or_else(|| "none".to_owned()));
        }
    }
    for (uid, guest) in before.guests.iter().filter(|(uid, _)| !after.guests.contains_key(uid)) {
        let _ = write!(text, "\n      - {} ({uid} is forgotten)", told(guest));
    }
    for (name, node) in &after.nodes {
        if before.nodes.get(name) != Some(node) {
            let fence =
                node.fenced.as_ref().map_or(String::new(), |fenced| format!(", fenced: {}", fenced.len()));
            let _ = write!(text, "\n      + node {name}: boot {}{fence}", node.boot.0);
        }
    }
    if before.settings != after.settings {
        let _ = write!(text, "\n      + limits {:?}", after.limits());
    }
    text
}

fn told(guest: &Guest) -> String {
    let ownership = &guest.ownership;
    let mut text = format!("{} {} {}", guest.name.name(), ownership.epoch, life(&ownership.life));
    if let Some(attempt) = &ownership.attempt {
        let permits = match &attempt.permits {
            Permits::None => "",
            Permits::Held { .. } => ", holds permits",
        };
        let _ = write!(text, "; {} {}{permits}", attempt.migration, phase(&attempt.phase));
    }
    text
}

fn at(licence: &Licence) -> String {
    format!("{}@{}", short(licence.instance), licence.node)
}

fn life(life: &Life) -> String {
    match life {
        Life::Creating(node) => format!("Creating at {node}"),
        Life::Alive(owner) => format!("Alive {}", at(owner)),
        Life::Lost { last, kept } => {
            let kept = kept.as_ref().map_or("nothing".to_owned(), at);
            format!("Lost, last {}, kept {kept}", at(last))
        }
        Life::Deleting(left) => format!("Deleting, {} left", left.len()),
        Life::Purged => "Purged".to_owned(),
        Life::Unsure(doubt) => format!("Unsure, {} claims", doubt.claims.len()),
    }
}

fn phase(phase: &Phase) -> String {
    let name = phase.name();
    match phase {
        Phase::Preparing { source, target } => format!("{name} {} to {target}", at(source)),
        Phase::Copying { source, target } => format!("{name} {} to {}", at(source), at(target)),
        Phase::HandedOver { source, target, mode, source_gone } => {
            format!("{name} {} to {}, {mode:?}{}", at(source), at(target), gone(*source_gone))
        }
        Phase::PostCopy { source, target, source_gone } => {
            format!("{name} {} to {}{}", at(source), at(target), gone(*source_gone))
        }
        Phase::Failed { reason } | Phase::Cancelled { reason } => format!("{name}: {reason}"),
        Phase::Pending | Phase::Succeeded => name.to_owned(),
    }
}

fn gone(source_gone: bool) -> &'static str {
    if source_gone { ", source gone" } else { "" }
}
