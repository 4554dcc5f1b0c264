//! Which nodes can take a guest, the best one first; and which carry a label.
//!
//! ```text
//!   node, wish, limits, what is on it ──▶ open nodes, in order: most free memory, fewest inbound, name
//!                                    └──▶ per label: who carries it
//! ```
//!
//! Always true: what stands here follows from the registry as it is. Never here: who is reachable, and what is asked.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::waiters::Needs;
use crate::ids::NodeName;
use crate::labels::Labels;

/// Most free memory first, then fewest inbound; then by name.
pub(super) type Rank = (Reverse<u64>, usize);

/// Where a label is as rare as this, those that carry it are looked at, and not all that are open.
const RARE_IS_ONE_IN: usize = 4;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// Nodes that may take a guest as far as they themselves go, in order.
    in_order: BTreeSet<(Rank, NodeName)>,
    /// The same, by name.
    ranks: BTreeMap<NodeName, Rank>,
    /// Who carries a label: by key, then by value.
    carriers: BTreeMap<String, BTreeMap<String, BTreeSet<NodeName>>>,
}

impl Places {
    /// A node's rank, if it may take a guest; `None`: it may not.
    pub(super) fn rank(&mut self, name: &NodeName, rank: Option<Rank>) {
        let before = self.ranks.get(name).copied();
        if before == rank {
            return;
        }
        if let Some(before) = before {
            self.in_order.remove(&(before, name.clone()));
            self.ranks.remove(name);
        }
        if let Some(rank) = rank {
            self.in_order.insert((rank, name.clone()));
            self.ranks.insert(name.clone(), rank);
        }
    }

    /// A node carries these.
    pub(super) fn label(&mut self, name: &NodeName, labels: Labels) {
        for (key, value) in labels {
            self.carriers.entry(key).or_default().entry(value).or_default().insert(name.clone());
        }
    }

    /// A node does not carry these any more.
    pub(super) fn unlabel(&mut self, name: &NodeName, labels: &Labels) {
        for (key, value) in labels {
            let Some(values) = self.carriers.get_mut(key) else { continue };
            if let Some(carriers) = values.get_mut(value) {
                carriers.remove(name);
            }
            values.retain(|_, carriers| !carriers.is_empty());
            if values.is_empty() {
                self.carriers.remove(key);
            }
        }
    }

    /// Nodes that can take what asks for this, the best first.
    pub(super) fn candidates<'a>(&'a self, needs: &Needs) -> Box<dyn Iterator<Item = &'a NodeName> + 'a> {
        let mut asked: Vec<&'a BTreeSet<NodeName>> = Vec::with_capacity(needs.selector.len());
        for (key, value) in &needs.selector {
            let Some(carriers) = self.carriers.get(key).and_then(|values| values.get(value)) else {
                return Box::new(std::iter::empty());
            };
            asked.push(carriers);
        }
        let bytes = needs.bytes;
        let carries = move |asked: &[&BTreeSet<NodeName>], name: &NodeName| {
            asked.iter().all(|carriers| carriers.contains(name))
        };
        if let Some(target) = &needs.target {
            let known = self.ranks.get_key_value(target);
            let fits = known.filter(|(name, (free, _))| free.0 >= bytes && carries(&asked, name));
            return Box::new(fits.map(|(name, _)| name).into_iter());
        }
        let rarest = asked.iter().copied().min_by_key(|carriers| carriers.len());
        if let Some(rarest) = rarest.filter(|rarest| rarest.len() <= self.ranks.len() / RARE_IS_ONE_IN) {
            let open = rarest.iter().filter_map(|name| self.ranks.get_key_value(name));
            let fit = open.filter(|(name, (free, _))| free.0 >= bytes && carries(&asked, name));
            let mut fit: Vec<_> = fit.map(|(name, rank)| (*rank, name)).collect();
            fit.sort_unstable();
            return Box::new(fit.into_iter().map(|(_, name)| name));
        }
        let roomy = self.in_order.iter().take_while(move |((free, _), _)| free.0 >= bytes);
        Box::new(roomy.map(|(_, name)| name).filter(move |name| carries(&asked, name)))
    }
}
