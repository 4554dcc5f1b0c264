//! Who votes, by law: counted here by name, entry by entry, and by what is on disks.
//!
//! ```text
//!   agreed Member entries ─▶ names, since each entry ◀─ compared ─ what every voter takes for the group
//!   a leader that applies an entry ─▶ on how many of the voters' disks is it?
//! ```
//!
//! | law | in words |
//! |---|---|
//! | one group | since each entry all take the same members for the group; a number is of one member, once; a machine that was removed leaves |
//! | a quorum | what a leader takes for agreed is on the disks of more than half of those who vote |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use godwit_control::{Members, NodeId, Voters};
use godwit_domain::NodeName;
use godwit_domain::registry::{Command, MemberChange};

use crate::world::{At, World};

/// Names, and whether each votes.
pub(crate) type Names = BTreeMap<NodeName, bool>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Group {
    since: BTreeMap<u64, Names>,
    /// What a voter took for the group first.
    seen: BTreeMap<u64, Arc<Members>>,
    /// Numbers that were members' and are not any more.
    gone: BTreeSet<NodeId>,
}

impl Group {
    pub(crate) fn new(founders: &Voters) -> Self {
        let names = founders.iter().map(|(_, name)| (name.clone(), true)).collect();
        Self { since: BTreeMap::from([(0, names)]), seen: BTreeMap::new(), gone: BTreeSet::new() }
    }

    /// Since which entry, and who.
    pub(crate) fn now(&self) -> (u64, &Names) {
        self.at(u64::MAX)
    }

    pub(crate) fn names(&self) -> &Names {
        self.now().1
    }

    fn at(&self, index: u64) -> (u64, &Names) {
        let Some((since, names)) = self.since.range(..=index).next_back() else {
            unreachable!("it was founded")
        };
        (*since, names)
    }

    /// An entry is agreed.
    pub(crate) fn learns(&mut self, index: u64, command: &Command) -> Option<(NodeName, MemberChange)> {
        let Command::Member { node, change } = command.bare() else { return None };
        let mut names = self.names().clone();
        match change {
            MemberChange::Added => drop(names.entry(node.clone()).or_insert(false)),
            MemberChange::Promoted => {
                names.entry(node.clone()).and_modify(|votes| *votes = true);
            }
            MemberChange::Removed => drop(names.remove(node)),
        }
        if names == *self.names() || !names.values().any(|votes| *votes) {
            return None;
        }
        let learners = names.values().filter(|votes| !**votes).count();
        assert!(learners <= 1, "one group: {learners} learn at once, since entry {index}");
        self.since.insert(index, names);
        Some((node.clone(), *change))
    }

    /// A voter takes these for the group, after this entry.
    pub(crate) fn is_seen(&mut self, by: &NodeName, members: &Arc<Members>, applied: u64) {
        let (since, names) = self.at(applied);
        let theirs: Names = members.iter().map(|(_, it)| (it.name.clone(), it.votes)).collect();
        assert!(
            since == members.index() && *names == theirs,
            "one group: {by} takes {theirs:?} for the group since entry {}, and it is {names:?} since {since}",
            members.index()
        );
        if let Some(first) = self.seen.get(&since) {
            return assert_eq!(first, members, "one group: {by} has other numbers, since entry {since}");
        }
        if let Some((_, before)) = self.seen.range(..since).next_back() {
            let left = before.iter().map(|(id, _)| id).filter(|id| members.get(*id).is_none());
            self.gone.extend(left);
        }
        let again = members.iter().find(|(id, _)| self.gone.contains(id));
        assert!(again.is_none(), "one group: {again:?} has a number that somebody had before");
        self.seen.insert(since, Arc::clone(members));
    }
}

impl World {
    /// A leader has taken an entry for agreed. Of a change that was agreed meanwhile those count that were before it, or
    /// those that are after it.
    pub(crate) fn quorum_has(&self, at: At, index: u64, groups: [&Members; 2]) {
        let Some(voter) = self.machines[at].voter.as_ref() else { return };
        let term = voter.disk.term_at(index);
        let has = |id: &NodeId| self.disks.get(id).is_some_and(|disk| disk.has(index, term));
        let is_agreed = |members: &Members| {
            let (having, all) = (members.voters().filter(has).count(), members.voters().count());
            having * 2 > all
        };
        assert!(
            groups.into_iter().any(is_agreed),
            "a quorum: {} takes entry {index} for agreed, which half of {:?} have at most",
            self.machines[at].name,
            groups[1].iter().map(|(_, member)| member.name.as_str()).collect::<Vec<_>>()
        );
    }
}
