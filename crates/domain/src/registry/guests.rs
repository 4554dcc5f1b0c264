//! Commands about guests: they are wished for, made, changed, and entries about who may run them.

use std::collections::BTreeSet;

use super::{Applied, Effect, Guest, GuestUid, Home, Refusal, Registry};
use crate::guest::PATTERN_BYTES_MAX;
use crate::ids::{GuestName, NodeName};
use crate::labels::{self, Labels};
use crate::machine::{Body, Machine};
use crate::ownership::{Entry, Licence, Life, Ownership, Permits, Phase, Side};
use crate::qemu::Qemu;

/// Earlier migrations that are kept of a guest, beside the last one: five in all.
const EARLIER_KEPT_MAX: usize = 4;

/// Guests that are gone everywhere and still known by their numbers, so that a node that comes back late hears of it.
const PURGED_KEPT_MAX: usize = 1000;

impl Registry {
    pub(super) fn put_machine(&mut self, name: GuestName, machine: Machine, home: Option<Home>) -> Applied {
        labels::check(&machine.labels)?;
        if let Some(labels) = &machine.template_labels {
            labels::check(labels)?;
        }
        let known = self.machines.get(&name);
        if let Some(body) = &machine.body {
            labels::check(&body.node_selector)?;
        }
        let body = machine.body.clone().or_else(|| known?.body.clone());
        let mut effects = BTreeSet::new();
        match (self.guest_named(&name), &body) {
            (Some((_, guest)), _) if is_ending(guest) && machine.runs => return Err(Refusal::Ending(name)),
            (Some((uid, _)), _) if home.as_ref().is_some_and(|home| home.uid != uid) => {
                return Err(Refusal::NameTaken(name));
            }
            (Some((_, guest)), _) => {
                machine.body.as_ref().map_or(Ok(()), |body| changeable(&name, &guest.body, body))?;
            }
            (None, None) if known.is_some() => {}
            (None, None) => return Err(Refusal::NoBody(name)),
            (None, Some(body)) => {
                if let Some(home) = home {
                    // Its labels are those of the template, for as long as that has some.
                    effects = self.make(name.clone(), Labels::new(), body.clone(), home)?;
                }
            }
        }
        let (whom, runs) = (self.guest_named(&name).map(|(uid, _)| uid), machine.runs);
        effects.extend(self.relayer("its VirtualMachine", whom, |registry| {
            if let (Some(uid), Some(body)) = (whom, machine.body.clone()) {
                // The guest is there; what may change while it runs follows its VirtualMachine.
                let _ = registry.change(uid, |guest, _| {
                    guest.body = body;
                    Ok(())
                });
            }
            registry.state.machines.insert(name, Machine { body, ..machine });
        }));
        if let (Some(uid), false) = (whom, runs) {
            effects.extend(self.end_guest(uid));
        }
        Ok(effects)
    }

    /// Ends a guest that a machine does not wish for any more.
    fn end_guest(&mut self, uid: GuestUid) -> BTreeSet<Effect> {
        // One that is ending already is refused, and goes on ending.
        self.entry(uid, Entry::Delete).unwrap_or_default()
    }

    pub(super) fn delete_machine(&mut self, name: &GuestName) -> Applied {
        if !self.machines.contains_key(name) {
            return Err(Refusal::NoMachine(name.clone()));
        }
        let why = "its VirtualMachine was deleted";
        let whom = self.guest_named(name).map(|(uid, _)| uid);
        let mut effects = self.relayer(why, whom, |registry| {
            registry.state.machines.remove(name);
        });
        effects.extend(whom.map(|uid| self.end_guest(uid)).unwrap_or_default());
        Ok(effects)
    }

    pub(super) fn put_instance(
        &mut self,
        name: GuestName,
        labels: Labels,
        body: Option<Body>,
        home: Option<Home>,
    ) -> Applied {
        labels::check(&labels)?;
        if let Some((uid, guest)) = self.guest_named(&name) {
            if is_ending(guest) {
                return Err(Refusal::Ending(name));
            }
            if home.as_ref().is_some_and(|home| home.uid != uid) {
                return Err(Refusal::NameTaken(name));
            }
            if let Some(body) = &body {
                changeable(&name, &guest.body, body)?;
            }
            return Ok(self.relayer("its manifest", [uid], |registry| {
                // The guest is there.
                let _ = registry.change(uid, |guest, _| {
                    guest.labels = labels;
                    guest.body = body.unwrap_or_else(|| guest.body.clone());
                    Ok(())
                });
            }));
        }
        match (body, home) {
            (Some(body), Some(home)) => self.make(name, labels, body, home),
            (None, _) | (_, None) => Err(Refusal::NoBody(name)),
        }
    }

    fn make(&mut self, name: GuestName, labels: Labels, body: Body, home: Home) -> Applied {
        let Home { uid, node } = home;
        labels::check(&body.node_selector)?;
        if body.spec.pattern.len() > PATTERN_BYTES_MAX {
            return Err(Refusal::Invalid(format!(
                "pattern has {} bytes; at most {PATTERN_BYTES_MAX}",
                body.spec.pattern.len()
            )));
        }
        if let Some(qemu) = &body.spec.qemu {
            qemu.check().map_err(Refusal::Invalid)?;
            self.is_no_ones_yet(qemu, &node)?;
        }
        if self.guests.contains_key(&uid) {
            return Err(Refusal::UidTaken(uid));
        }
        self.usable(&node)?;
        if self.is_cordoned(&node) {
            return Err(Refusal::Cordoned(node));
        }
        let (free, needs) = (self.free_memory_bytes(&node), body.spec.memory_bytes);
        if needs > free {
            return Err(Refusal::NoMemory { node, free, needs });
        }
        let effects = BTreeSet::from([Effect { node: node.clone(), guest: uid }]);
        let ownership = Ownership::new(node.clone());
        let guest = Guest { name, labels, body, ownership, record: None, finished: Vec::new() };
        self.index.learn(uid, &guest);
        self.state.guests.insert(uid, guest);
        self.index.refresh(&self.state, &node);
        Ok(effects)
    }

    /// One process is one guest. Where that guest is gone from, the process has ended.
    fn is_no_ones_yet(&self, qemu: &Qemu, node: &NodeName) -> Result<(), Refusal> {
        let process = |qemu: &Qemu| qemu.adopted.as_ref().map(|adopted| (adopted.pid, adopted.started_ticks));
        let Some(wanted) = process(qemu) else { return Ok(()) };
        let is_it = |guest: &&Guest| {
            guest.ownership.life != Life::Purged
                && guest.body.spec.qemu.as_ref().and_then(process) == Some(wanted)
                && guest.ownership.holders.contains(node)
        };
        self.guests.values().find(is_it).map_or(Ok(()), |guest| {
            Err(Refusal::Invalid(format!(
                "QEMU {} on node {node} is guest {} already; godwit guest unadopt {} forgets that one",
                wanted.0, guest.name, guest.name
            )))
        })
    }

    pub(super) fn guest_entry(&mut self, uid: GuestUid, entry: Entry) -> Applied {
        // Admission alone starts, and asking alone requests: both look at more than one guest. So does whoever settles a doubt.
        if let Entry::Start { .. }
        | Entry::Request { .. }
        | Entry::Found
        | Entry::Unclaimed { .. }
        | Entry::Claimed { .. }
        | Entry::Settle { .. } = entry
        {
            return Err(Refusal::NotByEntry(entry.name().into()));
        }
        self.entry(uid, entry)
    }

    pub(super) fn entry(&mut self, uid: GuestUid, entry: Entry) -> Applied {
        let declines = matches!(entry, Entry::Decline { .. });
        let by_operator = matches!(entry, Entry::End { side: Side::Operator, .. });
        let recovers = matches!(entry, Entry::Recover { .. });
        let (nodes, ended) = self.change(uid, |guest, time_ms| {
            let mut nodes = concerned(&guest.ownership);
            let was_open = is_open(&guest.ownership);
            let asked = guest.ownership.attempt.as_ref().and_then(|a| a.phase.target_node()).cloned();
            guest.ownership.apply(entry)?;
            if let (Some(record), Some(attempt)) = (&mut guest.record, &guest.ownership.attempt) {
                record.note(time_ms, &attempt.phase);
                if let (true, Some(node)) = (declines, asked) {
                    record.declined.retain(|known| *known != node);
                    record.declined.push(node);
                }
            }
            let ended = was_open && !is_open(&guest.ownership);
            if ended {
                let surplus = guest.finished.len().saturating_sub(EARLIER_KEPT_MAX);
                guest.finished.drain(..surplus);
            }
            nodes.extend(concerned(&guest.ownership));
            if recovers {
                // A copy that was kept and is not chosen is named by nobody any more: its node must hear that it may go.
                nodes.extend(guest.ownership.holders.iter().cloned());
            }
            Ok((nodes, ended))
        })?;
        if ended {
            self.note_for_drain(uid, by_operator);
        }
        if declines {
            self.end_if_its_drain_is_over(uid);
        }
        self.forget_purged(uid);
        Ok(nodes.into_iter().map(|node| Effect { node, guest: uid }).collect())
    }
}

impl Registry {
    /// A migration that waits again, and whose drain was ended meanwhile, ends too.
    fn end_if_its_drain_is_over(&mut self, uid: GuestUid) {
        let Some(guest) = self.guests.get(&uid) else { return };
        let Some(drained) = guest.record.as_ref().and_then(|record| record.wish.drains.clone()) else {
            return;
        };
        let Some(attempt) = &guest.ownership.attempt else { return };
        if !self.is_draining(&drained) {
            let reason = format!("the drain of {drained} was ended by an operator");
            let end = Entry::End { migration: attempt.migration.clone(), side: Side::Operator, reason };
            // It waits: nothing can refuse its end.
            let _ = self.entry(uid, end);
        }
    }

    /// Of a guest that is gone everywhere the number alone is kept, and that not for ever.
    fn forget_purged(&mut self, uid: GuestUid) {
        if self.guests.get(&uid).is_none_or(|guest| guest.ownership.life != Life::Purged) {
            return;
        }
        // The guest is there.
        let _ = self.change(uid, |guest, _| {
            guest.finished.clear();
            guest.record = None;
            guest.ownership.attempt = None;
            Ok(())
        });
        self.state.purged.push_back(uid);
        while self.purged.len() > PURGED_KEPT_MAX {
            let Some(oldest) = self.state.purged.pop_front() else { return };
            if let Some(guest) = self.state.guests.remove(&oldest) {
                self.index.forget(oldest, &guest);
            }
        }
    }
}

pub(super) fn is_ending(guest: &Guest) -> bool {
    matches!(guest.ownership.life, Life::Deleting(_))
}

fn is_open(ownership: &Ownership) -> bool {
    ownership.attempt.as_ref().is_some_and(|attempt| !attempt.phase.is_over())
}

/// What a running guest is made of stays; where it may go and what is said of it may change.
fn changeable(name: &GuestName, is: &Body, shall: &Body) -> Result<(), Refusal> {
    let fixed = |what: &'static str| Err(Refusal::Fixed { guest: name.clone(), what: what.into() });
    labels::check(&shall.node_selector)?;
    if is.spec.memory_bytes != shall.spec.memory_bytes {
        return fixed("memory");
    }
    if is.spec != shall.spec {
        return fixed("workload (godwit.dev/…)");
    }
    // A migration that waits would move without them.
    if is.local_disks_bytes != shall.local_disks_bytes {
        return fixed("local disks");
    }
    Ok(())
}

/// The runners that a guest's ownership speaks of.
pub(super) fn licences_of(ownership: &Ownership) -> Vec<Licence> {
    let mut licences: Vec<Licence> = ownership.owner().cloned().into_iter().collect();
    match &ownership.life {
        Life::Lost { last, kept } => {
            licences.push(last.clone());
            licences.extend(kept.clone());
        }
        Life::Unsure(doubt) => licences.extend(doubt.licences()),
        Life::Creating(_) | Life::Alive(_) | Life::Deleting(_) | Life::Purged => {}
    }
    match ownership.attempt.as_ref().map(|attempt| &attempt.phase) {
        Some(
            Phase::Copying { source, target }
            | Phase::HandedOver { source, target, .. }
            | Phase::PostCopy { source, target, .. },
        ) => licences.extend([source.clone(), target.clone()]),
        Some(Phase::Preparing { source, .. }) => licences.push(source.clone()),
        Some(Phase::Pending | Phase::Succeeded | Phase::Failed { .. } | Phase::Cancelled { .. }) | None => {}
    }
    licences
}

/// The nodes that an entry about a guest concerns.
pub(super) fn concerned(ownership: &Ownership) -> BTreeSet<NodeName> {
    let mut nodes: BTreeSet<NodeName> =
        licences_of(ownership).into_iter().map(|licence| licence.node).collect();
    if let Some(attempt) = &ownership.attempt {
        nodes.extend(attempt.phase.target_node().cloned());
        // Of an ended migration: either may give its permits back, and must hear when the other has.
        if let Permits::Held { source, target } = &attempt.permits {
            nodes.extend([source.clone(), target.clone()]);
        }
    }
    match &ownership.life {
        Life::Deleting(left) => nodes.extend(left.iter().cloned()),
        Life::Creating(node) => nodes.extend([node.clone()]),
        Life::Alive(_) | Life::Lost { .. } | Life::Purged | Life::Unsure(_) => {}
    }
    nodes
}

/// The nodes on which a guest, a copy of it that is kept, or a reservation for it takes memory.
pub(super) fn takes_memory_on(ownership: &Ownership) -> BTreeSet<NodeName> {
    let mut nodes: BTreeSet<NodeName> =
        licences_of(ownership).into_iter().map(|licence| licence.node).collect();
    if let Some(Permits::Held { target, .. }) = ownership.attempt.as_ref().map(|attempt| &attempt.permits) {
        nodes.insert(target.clone());
    }
    match &ownership.life {
        Life::Creating(at) => nodes.extend([at.clone()]),
        Life::Deleting(left) => nodes.extend(left.iter().cloned()),
        Life::Alive(_) | Life::Lost { .. } | Life::Purged | Life::Unsure(_) => {}
    }
    nodes
}
