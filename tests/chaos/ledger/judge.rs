//! The log as a whole, judged: replayed by the product's rules, and counted once more without them.

use std::collections::{BTreeMap, BTreeSet};

use godwit_domain::registry::{Command, Found, Met, Refusal, Registry, Stamped};

use super::count::Count;
use super::course::Courses;
use super::{Applied, Course, Ledger};

/// What was granted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grants {
    /// Entries with a command.
    pub(crate) entries: u64,
    /// Admissions that were applied.
    pub(crate) admitted: u64,
    /// Admissions that were refused when they were applied.
    pub(crate) refused: u64,
    /// The most migrations that held permits at once.
    pub(crate) most_at_once: u64,
    /// How often another limit came into force.
    pub(crate) limits_changed: u64,
    /// Every migration: those that are over in the order of their ends, then the others.
    pub(crate) courses: Vec<Course>,
}

impl Ledger {
    /// At the end, after a last [`Self::poll`]. Replays everything through a fresh registry, where each entry must come out as the
    /// voters wrote, and counts permits, memory, epochs and migrations from the entries alone. Errors: voters disagree, an
    /// entry is missing, or a rule was broken.
    pub(crate) fn judge(&self) -> Result<Grants, String> {
        if let Some(finding) = &self.finding {
            return Err(finding.clone());
        }
        if let Some((index, pending)) = self.pending.first_key_value() {
            return Err(format!(
                "a hole: entries after {} and up to {} are in no voter's log, entry {index} is",
                self.known, pending.after
            ));
        }
        judge(&self.all)
    }

    /// Whether each of these requests, which were acknowledged as done, was agreed, and once: the id stands in the log, the
    /// first entry under it was applied, and what a repetition would have made under another name was never admitted. A
    /// request that found everything as it wanted it (a migration cancelled already, an object that is the same) makes no
    /// entry: do not ask for its id.
    pub(crate) fn acknowledged(&self, ids: &[String]) -> Result<(), String> {
        acknowledged(&self.all, ids)
    }
}

/// The same of entries that are there without a hole.
pub(super) fn judge(all: &[Applied]) -> Result<Grants, String> {
    let mut grants = Grants::default();
    let (mut registry, mut count, mut courses) = (Registry::default(), Count::default(), Courses::default());
    // A registry remembers an hour of them; no run is that long.
    let mut answered = BTreeSet::new();
    for applied in all {
        let at = |why: String| format!("entry {}: {why}: {:?}", applied.index, applied.command);
        let is_new = match applied.command.bare() {
            Command::Migrate { migration, .. } => registry.guest_of(migration).is_none(),
            _ => false,
        };
        let (time_ms, command) = (applied.time_ms, applied.command.clone());
        let outcome = registry.apply(Stamped { time_ms, request: applied.request.clone(), command });
        let refused = outcome.err().map(|refusal| refusal.to_string());
        if refused != applied.refused {
            return Err(at(format!(
                "replayed it comes out as {refused:?}, and the voters have {:?}",
                applied.refused
            )));
        }
        grants.entries += 1;
        let is_admission = matches!(applied.command, Command::Admit { .. });
        grants.refused += u64::from(is_admission && refused.is_some());
        if has_met_other(applied) {
            continue;
        }
        // A request that was answered before has no second effect.
        let is_first = applied.request.as_ref().is_none_or(|key| answered.insert(key.id.clone()));
        if refused.is_some() || !is_first {
            continue;
        }
        grants.admitted += u64::from(is_admission);
        count.apply(applied.command.bare(), is_new).map_err(at)?;
        courses.follow(applied, &registry);
    }
    (grants.most_at_once, grants.limits_changed) = (count.most_at_once, count.limits_changed);
    grants.courses = courses.all();
    Ok(grants)
}

/// Whether the object was another than the leader has looked at: the leader looks again, and asks under the same id.
fn has_met_other(applied: &Applied) -> bool {
    let Command::If { .. } = &applied.command else { return false };
    let met = Met { found: Found::Absent, guest: None };
    applied.refused.as_ref().is_some_and(|refused| *refused == Refusal::MetOther(met).to_string())
}

fn acknowledged(all: &[Applied], ids: &[String]) -> Result<(), String> {
    let mut by_id: BTreeMap<&str, Vec<&Applied>> = BTreeMap::new();
    for applied in all {
        if let Some(key) = applied.request.as_ref().filter(|_| !has_met_other(applied)) {
            by_id.entry(&key.id).or_default().push(applied);
        }
    }
    let admitted = all.iter().filter_map(|applied| match &applied.command {
        Command::Admit { migration, .. } if applied.refused.is_none() => Some(migration),
        _ => None,
    });
    let admitted: BTreeSet<_> = admitted.collect();
    for id in ids {
        let Some((first, again)) = by_id.get(id.as_str()).and_then(|entries| entries.split_first()) else {
            return Err(format!("request {id} was acknowledged and stands in no entry"));
        };
        if let Some(refused) = &first.refused {
            return Err(format!(
                "request {id} was acknowledged, and entry {} refused: {refused}",
                first.index
            ));
        }
        for other in again {
            let (other, first) = (other.command.bare(), first.command.bare());
            if other == first {
                continue;
            }
            // Asked twice at once, each time with a name of its own: the later one must be nobody's.
            if let Command::Migrate { migration, .. } = other
                && let Command::Migrate { migration: made, .. } = first
                && migration != made
                && admitted.contains(migration)
            {
                return Err(format!("request {id} was carried out twice, as {made} and as {migration}"));
            }
        }
    }
    Ok(())
}
