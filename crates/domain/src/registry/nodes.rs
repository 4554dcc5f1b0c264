//! Commands about hosts: they join, are cordoned, drained, fenced and removed.

use std::collections::BTreeSet;

use super::{Applied, BootId, Drain, Effect, Node, NodeChange, Refusal, Registry, concerned};
use crate::ids::{InstanceId, NodeName};
use crate::labels;
use crate::ownership::{Entry, Phase, Side};

/// Most nodes of which operators want something though they have not joined.
const WISHES_MAX: usize = 10_000;

impl Registry {
    pub(super) fn join(&mut self, name: NodeName, mut node: Node) -> Applied {
        labels::check(&node.labels)?;
        // A fence outlives the boot it was about: only the node's own word that it has stopped them ends it.
        node.fenced = self.nodes.get(&name).and_then(|known| known.fenced.clone());
        let owed = self.touched_by(&name);
        let owed = owed.filter(|(_, guest)| guest.ownership.holders.contains(&name));
        let effects = owed.map(|(uid, _)| Effect { node: name.clone(), guest: uid }).collect();
        if self.founding.is_some() && !self.nodes.contains_key(&name) {
            // It may have come after what the group was founded from.
            self.state.unheard.insert(name.clone());
        }
        self.change_facts(&name.clone(), |state| state.nodes.insert(name, node));
        Ok(effects)
    }

    pub(super) fn change_node(&mut self, name: NodeName, change: NodeChange) -> Applied {
        let known = self.nodes.contains_key(&name);
        match change {
            NodeChange::Put { labels, cordoned } => {
                labels::check(&labels)?;
                let is_new = !known && !self.node_wishes.contains_key(&name);
                if is_new && self.node_wishes.len() >= WISHES_MAX {
                    return Err(Refusal::NoNode(name));
                }
                self.change_facts(&name.clone(), |state| {
                    // A drain that goes on keeps the node cordoned: a manifest without a cordon is not meant to end it.
                    let drains = state.drains.get(&name).is_some_and(|drain| !drain.cancelled);
                    if !drains && !cordoned {
                        state.drains.remove(&name);
                    }
                    let wish = state.node_wishes.entry(name).or_default();
                    wish.labels = labels;
                    wish.cordoned = cordoned || drains;
                });
            }
            NodeChange::Uncordon if known || self.node_wishes.contains_key(&name) => {
                self.state.drains.remove(&name);
                self.change_facts(&name.clone(), |state| {
                    state.node_wishes.entry(name.clone()).or_default().cordoned = false;
                });
                return Ok(self.end_what_its_drain_asked(&name));
            }
            NodeChange::Drain if known => {
                let fresh = Drain { began_ms: self.time_ms, ..Drain::default() };
                self.change_facts(&name, |state| {
                    state.node_wishes.entry(name.clone()).or_default().cordoned = true;
                });
                let drain = self.state.drains.entry(name).or_insert_with(|| fresh.clone());
                if drain.cancelled {
                    *drain = fresh;
                }
            }
            NodeChange::CancelDrain => {
                let drain = self.state.drains.get_mut(&name).ok_or_else(|| Refusal::NoDrain(name.clone()))?;
                drain.cancelled = true;
                return Ok(self.end_what_its_drain_asked(&name));
            }
            NodeChange::Uncordon | NodeChange::Drain => return Err(Refusal::NoNode(name)),
        }
        Ok(BTreeSet::new())
    }

    /// Migrations that a drain has asked for and that still wait end with it; those that run go on.
    fn end_what_its_drain_asked(&mut self, name: &NodeName) -> BTreeSet<Effect> {
        let asked = self.owned_by(name).filter(|(_, guest)| {
            let drains = guest.record.as_ref().and_then(|record| record.wish.drains.as_ref());
            drains == Some(name)
        });
        let waiting = asked.filter_map(|(uid, guest)| {
            let attempt = guest.ownership.attempt.as_ref()?;
            matches!(attempt.phase, Phase::Pending).then(|| (uid, attempt.migration.clone()))
        });
        let mut effects = BTreeSet::new();
        for (uid, migration) in waiting.collect::<Vec<_>>() {
            let reason = format!("the drain of {name} was ended by an operator");
            let end = Entry::End { migration, side: Side::Operator, reason };
            // It waits: nothing can refuse its end.
            effects.extend(self.entry(uid, end).unwrap_or_default());
        }
        effects
    }

    pub(super) fn fence(
        &mut self,
        name: &NodeName,
        boot: BootId,
        instances: &BTreeSet<InstanceId>,
    ) -> Applied {
        let node = self.state.nodes.get_mut(name).ok_or_else(|| Refusal::NoNode(name.clone()))?;
        if node.boot != boot {
            // A vouch that comes late, after the node has booted again, is about nothing that lives now.
            return Err(Refusal::OtherBoot { node: name.clone(), vouched: boot, present: node.boot });
        }
        node.fenced.get_or_insert_default().extend(instances);
        self.index.refresh(&self.state, name);
        let mut effects = BTreeSet::new();
        let touched: Vec<_> = self.touched_by(name).map(|(uid, _)| uid).collect();
        for uid in touched {
            let vouch = Entry::Vouch { node: name.clone(), instances: instances.iter().copied().collect() };
            // Guests in which none of them plays a part are not touched.
            if let Ok(touched) = self.entry(uid, vouch) {
                effects.extend(touched);
            }
        }
        self.state.unheard.remove(name);
        effects.extend(self.clear_doubts());
        Ok(effects)
    }

    pub(super) fn fence_seen(&mut self, name: &NodeName) -> Applied {
        let node = self.state.nodes.get_mut(name).ok_or_else(|| Refusal::NoNode(name.clone()))?;
        node.fenced = None;
        if self.founding.is_some() {
            // It may have more than the fence has named.
            self.state.unheard.insert(name.clone());
        }
        self.index.refresh(&self.state, name);
        Ok(BTreeSet::new())
    }

    pub(super) fn remove_node(&mut self, name: &NodeName) -> Applied {
        if !self.nodes.contains_key(name) {
            return Err(Refusal::NoNode(name.clone()));
        }
        if self.unheard.contains(name) {
            return Err(Refusal::Invalid(format!(
                "node {name} has not said what it has since the group was founded anew: a guest may run there of which nobody \
                 knows; start it, or vouch that it is off: godwit node fence {name}"
            )));
        }
        let mut touched = self.touched_by(name);
        if let Some((_, guest)) = touched.find(|(_, guest)| concerned(&guest.ownership).contains(name)) {
            return Err(Refusal::NodeInUse { node: name.clone(), guest: guest.name.clone() });
        }
        drop(touched);
        let touched: Vec<_> = self.touched_by(name).map(|(uid, _)| uid).collect();
        for uid in touched {
            self.change(uid, |guest, _| {
                guest.ownership.holders.remove(name);
                Ok(())
            })?;
        }
        self.change_facts(name, |state| {
            state.nodes.remove(name);
            state.node_wishes.remove(name);
            state.drains.remove(name);
            state.unheard.remove(name);
        });
        Ok(self.clear_doubts())
    }

    pub(super) fn usable(&self, name: &NodeName) -> Result<&Node, Refusal> {
        let node = self.nodes.get(name).ok_or_else(|| Refusal::NoNode(name.clone()))?;
        if node.fenced.is_some() { Err(Refusal::Fenced(name.clone())) } else { Ok(node) }
    }
}
