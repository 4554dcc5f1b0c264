//! What the voters have agreed, from their own audit logs, and whether every grant in it was right.
//!
//! ```text
//!   node-a: STATE/audit/log ─ Tail ─┐              ┌─▶ poll: what is new, in order and without a hole
//!   node-b:        …        ─ Tail ─┼─▶ Ledger ────┤
//!   node-c:        …        ─ Tail ─┘  one log     └─▶ judge: replay (the product's rules)
//!                                                           + Count (semantics.md, written once more) ─▶ Grants
//! ```
//!
//! Always true: two voters that disagree about an entry are a finding, at once; an entry is given out when everything
//! before it is known; nothing here asks the cluster.

mod count;
mod course;
mod judge;
mod tail;
mod trials;

use std::collections::BTreeMap;
use std::path::PathBuf;

use godwit::lab::monotonic_ns;
use godwit_domain::NodeName;
use godwit_domain::registry::{Command, RequestKey};

pub(crate) use course::{Course, Moment};
pub(crate) use judge::Grants;
use tail::{Line, Tail};
pub(crate) use trials::trials;

/// An entry that voters have applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Its place in the log.
    pub(crate) index: u64,
    /// When its leader proposed it, in milliseconds since the Unix epoch, by that host's clock.
    pub(crate) time_ms: u64,
    /// When the voter that was read first applied it, by its host's clock.
    pub(crate) applied_ms: u64,
    /// When it was read here first: this host's monotonic clock, in nanoseconds.
    pub(crate) seen_ns: u64,
    /// The operator's request that it answers.
    pub(crate) request: Option<RequestKey>,
    /// What was agreed.
    pub(crate) command: Command,
    /// Why nothing has changed.
    pub(crate) refused: Option<String>,
}

/// One that waits for those before it.
struct Pending {
    applied: Applied,
    /// Nothing stands between this entry and it.
    after: u64,
    /// Who says so.
    said_by: NodeName,
}

/// See the module.
pub(crate) struct Ledger {
    tails: Vec<Tail>,
    pending: BTreeMap<u64, Pending>,
    all: Vec<Applied>,
    /// Everything up to here is in `all`.
    known: u64,
    finding: Option<String>,
}

impl Ledger {
    /// Of these voters, each with its STATE folder, which need not be there yet.
    pub(crate) fn new(folders: Vec<(NodeName, PathBuf)>) -> Self {
        let tails = folders.into_iter().map(|(node, state)| Tail::new(node, &state)).collect();
        Self { tails, pending: BTreeMap::new(), all: Vec::new(), known: 0, finding: None }
    }

    /// What is new, in the order of the log, up to the first entry that no voter's log holds yet. Costs a read and a stat
    /// for each voter. Errors: voters disagree, or a log is none; the same one from then on.
    pub(crate) fn poll(&mut self) -> Result<Vec<Applied>, String> {
        if let Some(finding) = &self.finding {
            return Err(finding.clone());
        }
        let from = self.all.len();
        match self.take_in() {
            Ok(()) => Ok(self.all[from..].to_vec()),
            Err(finding) => {
                self.finding = Some(finding.clone());
                Err(finding)
            }
        }
    }

    /// Everything so far that [`Self::poll`] has given out.
    pub(crate) fn all(&self) -> &[Applied] {
        &self.all
    }

    fn take_in(&mut self) -> Result<(), String> {
        let mut read = Vec::new();
        for tail in &mut self.tails {
            let lines = tail.read()?;
            read.extend(lines.into_iter().map(|line| (tail.node.clone(), line)));
        }
        for (node, line) in read {
            self.learn(node, line)?;
        }
        while let Some(first) = self.pending.first_entry() {
            if first.get().after > self.known {
                return Ok(());
            }
            let Pending { applied, after, said_by } = first.remove();
            if after < self.known {
                return Err(format!(
                    "{said_by} had nothing between entries {after} and {}; others have {}",
                    applied.index, self.known
                ));
            }
            self.known = applied.index;
            self.all.push(applied);
        }
        Ok(())
    }

    fn learn(&mut self, node: NodeName, line: Line) -> Result<(), String> {
        let (after, index) = (line.after, line.index);
        let known = match self.all.binary_search_by_key(&index, |applied| applied.index) {
            Ok(at) => Some(&self.all[at]),
            Err(_) => self.pending.get(&index).map(|pending| &pending.applied),
        };
        match known {
            Some(known) if !is_same(known, &line) => Err(format!(
                "voters disagree about entry {index}: {node} has applied {line:?}, another {known:?}"
            )),
            None if index <= self.known => {
                Err(format!("{node} has an entry {index}; others have none between those around it"))
            }
            Some(_) => {
                if let Some(pending) = self.pending.get_mut(&index)
                    && after < pending.after
                {
                    (pending.after, pending.said_by) = (after, node);
                }
                Ok(())
            }
            None => {
                let Line { index, after: _, time_ms, applied_ms, request, command, refused } = line;
                let seen_ns = monotonic_ns();
                let applied = Applied { index, time_ms, applied_ms, seen_ns, request, command, refused };
                self.pending.insert(index, Pending { applied, after, said_by: node });
                Ok(())
            }
        }
    }
}

/// All but when this host has applied it.
fn is_same(known: &Applied, line: &Line) -> bool {
    (known.time_ms, &known.request, &known.command, &known.refused)
        == (line.time_ms, &line.request, &line.command, &line.refused)
}
