//! People: they make guests, move, cancel, drain, fence, recover and delete them, change who votes, look, and ask again
//! until they are answered.
//!
//! ```text
//!   request ─▶ a voter that leads ─ proof ─▶ answered before? ─▶ command ─▶ acknowledged
//!      └──────────── no answer: the same request again ◀──┘
//! ```
//!
//! Always true: a request keeps its id; a host is vouched for only while it is off.

use std::collections::BTreeMap;

use godwit_domain::agent::RunnerState;
use godwit_domain::machine::Body;
use godwit_domain::ownership::{Entry, Life, Permits, Phase, Side};
use godwit_domain::registry::{BootId, Command, GuestUid, Home, NodeChange, Registry, RequestKey, Wish};
use godwit_domain::settings::ClusterSettings;
use godwit_domain::{GuestSpec, Labels, NodeName};

use crate::event::Event;
use crate::leader::Asking;
use crate::world::{At, Who, World, ms};

/// How often a request is asked again.
const TRIES_MAX: u64 = 8;

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Look,
    Create {
        uid: GuestUid,
        name: String,
        bytes: u64,
    },
    Migrate {
        uid: GuestUid,
        timeout_s: u64,
    },
    Cancel {
        uid: GuestUid,
    },
    Recover {
        uid: GuestUid,
    },
    Delete {
        uid: GuestUid,
    },
    Fence {
        node: NodeName,
        boot: u128,
    },
    Change {
        node: NodeName,
        change: NodeChange,
    },
    Limits {
        cluster: u32,
        outbound: u32,
        inbound: u32,
    },
    /// This node shall be in the control group, or not any more.
    Seat {
        node: NodeName,
        is_in: bool,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) number: u64,
    pub(crate) attempt: u64,
    pub(crate) act: Act,
}

#[derive(Debug, Default)]
pub(crate) struct Operator {
    /// Requests without an answer.
    pub(crate) open: BTreeMap<u64, Request>,
    named: u64,
}

impl World {
    /// People do something.
    pub(crate) fn operate(&mut self) {
        let us = if self.calm { ms(150) } else { self.random.u64(ms(15)..ms(110)) };
        self.later(us, Event::Operate);
        if self.operator.open.len() > 12 {
            return;
        }
        let act = if self.calm { self.mend() } else { self.wish() };
        if let Some(act) = act {
            self.request(act);
        }
    }

    pub(crate) fn request(&mut self, act: Act) {
        let number = self.number();
        self.note(|_| format!("operator: request {number}: {act:?}"));
        let request = Request { number, attempt: 0, act };
        self.operator.open.insert(number, request);
        self.ask_leader(number);
    }

    /// Asks any voter that takes itself for the leader.
    fn ask_leader(&mut self, number: u64) {
        let leads = |at: &At| {
            let voter = self.machines[*at].voter.as_ref();
            self.machines[*at].runs && voter.is_some_and(|voter| voter.leading.is_some())
        };
        let leaders: Vec<At> = (0..self.machines.len()).filter(leads).collect();
        let chosen = self.random.choice(leaders);
        let Some(request) = self.operator.open.get_mut(&number) else { return };
        request.attempt += 1;
        let request = request.clone();
        if request.attempt > TRIES_MAX {
            self.operator.open.remove(&number);
            return;
        }
        let patience = if matches!(request.act, Act::Look) { ms(4000) } else { ms(1500) };
        self.later(patience, Event::RequestTimeout { number, attempt: request.attempt });
        if let Some(at) = chosen {
            let (to, us) = (self.who(at), self.random.u64(200..3000));
            self.later(us, Event::Request { to, request });
        }
    }

    pub(crate) fn request_timeout(&mut self, number: u64, attempt: u64) {
        if self.operator.open.get(&number).is_some_and(|request| request.attempt == attempt) {
            self.ask_leader(number);
        }
    }

    /// At a voter that leads, or has until a moment ago.
    pub(crate) fn requested(&mut self, to: Who, request: Request) {
        let must = self.law.top;
        self.note(|world| {
            format!(
                "{}: is asked for request {}, {must} is agreed",
                world.machines[to.at].name, request.number
            )
        });
        self.prove_at(to.at, Asking::Proof { voter: to, request, must });
    }

    /// A voter knows whether it shows the present.
    pub(crate) fn proven(&mut self, voter: Who, request: Request, must: u64, is_proven: bool) {
        if !is_proven || !self.is(voter) {
            return;
        }
        self.shows_the_present(voter.at, must);
        let Some(registry) = self.registry_of(voter.at) else { return };
        if let Act::Look = request.act {
            self.operator.open.remove(&request.number);
            self.cover.reads += 1;
            return;
        }
        let (id, digest) = (request.number.to_string(), request.number);
        if let Some(Ok(answered)) = registry.requests.answer(&id, digest) {
            let outcome = answered.outcome.clone();
            return self.acknowledged(&request, outcome);
        }
        if let Act::Seat { node, is_in } = &request.act {
            let (node, is_in) = (node.clone(), *is_in);
            return self.seat_asked(voter, request, &node, is_in);
        }
        let Some(command) = command(registry, &request.act) else {
            self.operator.open.remove(&request.number);
            return;
        };
        let key = RequestKey { id, digest, made: None };
        self.propose_at(voter.at, Some(key), command, Asking::Change { voter, request });
    }

    pub(crate) fn changed(&mut self, _: Who, request: Request, outcome: Option<crate::law::Outcome>) {
        if let Some(outcome) = outcome {
            self.acknowledged(&request, outcome);
        }
    }

    fn acknowledged(&mut self, request: &Request, outcome: crate::law::Outcome) {
        self.note(|_| format!("operator: request {} is answered: {outcome:?}", request.number));
        self.operator.open.remove(&request.number);
        self.cover.acknowledged += 1;
        self.law.promises(request.number.to_string(), request.number, outcome);
    }

    // ---- what is wished for --------------------------------------------------------------------------------

    fn wish(&mut self) -> Option<Act> {
        let guests = self.luck.guests;
        let alive = |life: &Life| matches!(life, Life::Alive(_) | Life::Creating(_));
        let truth = &self.law.truth;
        let living = truth.guests.values().filter(|guest| alive(&guest.ownership.life)).count();
        let creating = self.operator.open.values().filter(|it| matches!(it.act, Act::Create { .. })).count();
        if living + creating < guests {
            return Some(self.create());
        }
        if self.random.u32(0..100) < self.luck.changing
            && let Some(act) = self.wish_for_a_seat()
        {
            return Some(act);
        }
        match self.random.u32(0..100) {
            0..50 => self.wish_for_a_move(),
            50..74 => Some(Act::Look),
            74..80 => self.wish_for_an_end(),
            80..86 => self.mend_the_lost(),
            86..90 => self.vouch(),
            90..94 => self.wish_for_a_drain(),
            94..97 => Some(Act::Limits {
                cluster: self.random.u32(1..=4),
                outbound: self.random.u32(1..=2),
                inbound: self.random.u32(1..=2),
            }),
            97 if self.random.u32(0..6) == 0 => {
                let uid = self.any_guest()?;
                Some(Act::Delete { uid })
            }
            _ => self.end_what_waits_for_ever(),
        }
    }

    fn create(&mut self) -> Act {
        self.operator.named += 1;
        let name = format!("vm{}", self.operator.named);
        Act::Create { uid: GuestUid(self.number()), name, bytes: 1 }
    }

    fn any_guest(&mut self) -> Option<GuestUid> {
        let all: Vec<GuestUid> = self.law.truth.guests.keys().copied().collect();
        self.random.choice(all)
    }

    fn wish_for_a_move(&mut self) -> Option<Act> {
        let free = self.law.truth.guests.iter().filter(|(_, guest)| {
            let attempt = guest.ownership.attempt.as_ref();
            let is_free = attempt.is_none_or(|it| it.phase.is_over() && it.permits == Permits::None);
            is_free && matches!(guest.ownership.life, Life::Alive(_))
        });
        let free: Vec<GuestUid> = free.map(|(uid, _)| *uid).collect();
        let uid = self.random.choice(free)?;
        let asked = |request: &Request| matches!(request.act, Act::Migrate { uid: of, .. } if of == uid);
        if self.operator.open.values().any(asked) {
            return None;
        }
        Some(Act::Migrate { uid, timeout_s: self.random.u64(1..20) })
    }

    fn wish_for_an_end(&mut self) -> Option<Act> {
        let open: Vec<GuestUid> = self.law.truth.migrating().map(|(uid, _)| uid).collect();
        self.random.choice(open).map(|uid| Act::Cancel { uid })
    }

    fn wish_for_a_drain(&mut self) -> Option<Act> {
        if let Some(node) = self.law.truth.drains.keys().next().cloned() {
            let change = if self.random.bool() { NodeChange::Uncordon } else { NodeChange::CancelDrain };
            return Some(Act::Change { node, change });
        }
        let mut wishes = self.law.truth.node_wishes.iter();
        if let Some((node, _)) = wishes.find(|(_, wish)| wish.cordoned) {
            return Some(Act::Change { node: node.clone(), change: NodeChange::Uncordon });
        }
        let nodes: Vec<NodeName> = self.law.truth.nodes.keys().cloned().collect();
        let node = self.random.choice(nodes)?;
        Some(Act::Change { node, change: NodeChange::Drain })
    }

    /// A host that is off.
    fn vouch(&mut self) -> Option<Act> {
        let off = self.machines.iter().filter(|machine| !machine.on);
        let off: Vec<(NodeName, u128)> = off.map(|machine| (machine.name.clone(), machine.boot)).collect();
        let (node, boot) = self.random.choice(off)?;
        Some(Act::Fence { node, boot })
    }

    /// A lost guest: back to a copy that is there; without one it is deleted.
    fn mend_the_lost(&mut self) -> Option<Act> {
        let lost =
            self.law.truth.guests.iter().find(|(_, it)| matches!(it.ownership.life, Life::Lost { .. }));
        let uid = *lost?.0;
        let copy = self.machines.iter().any(|machine| {
            let runners = machine.host.runners.values();
            runners.filter(|it| it.uid == uid).any(|it| matches!(it.state, RunnerState::Paused(_)))
        });
        Some(if copy { Act::Recover { uid } } else { Act::Delete { uid } })
    }

    /// In post-copy, a guest whose missing pages are gone with their host waits for ever: its runner is ended.
    pub(crate) fn end_what_waits_for_ever(&mut self) -> Option<Act> {
        let waits = self.law.truth.guests.values().find_map(|guest| {
            match guest.ownership.attempt.as_ref().map(|attempt| &attempt.phase) {
                Some(
                    Phase::PostCopy { target, source_gone: true, .. }
                    | Phase::HandedOver { target, source_gone: true, .. },
                ) => Some(target.clone()),
                _ => None,
            }
        });
        let target = waits?;
        let at = self.at_of(&target.node)?;
        let lacks = self.machines[at].host.runners.get(&target.instance);
        if lacks.is_some_and(|process| !process.whole) {
            self.runner_dies(at, target.instance);
        }
        None
    }

    /// What people do when nothing else goes wrong any more: they let everything go on.
    fn mend(&mut self) -> Option<Act> {
        self.end_what_waits_for_ever();
        let asked = |request: &Request| !matches!(request.act, Act::Look);
        if self.operator.open.values().any(asked) {
            return None;
        }
        let mut wishes = self.law.truth.node_wishes.iter();
        if let Some((node, _)) = wishes.find(|(_, wish)| wish.cordoned) {
            return Some(Act::Change { node: node.clone(), change: NodeChange::Uncordon });
        }
        let limits = self.law.truth.limits();
        if (limits.cluster, limits.outbound, limits.inbound) != (4, 2, 2) {
            return Some(Act::Limits { cluster: 4, outbound: 2, inbound: 2 });
        }
        let named = self.mend_the_lost().or_else(|| self.let_go());
        if named.is_some() {
            return named;
        }
        Some(Act::Look)
    }
}

/// What a request comes to in this state; none: nothing.
fn command(registry: &Registry, act: &Act) -> Option<Command> {
    let guest = |uid| registry.guests.get(uid).map(|guest| &guest.ownership);
    let about = |uid: &GuestUid, entry| Some(Command::Guest { guest: *uid, entry });
    match act {
        Act::Look | Act::Seat { .. } => None,
        Act::Create { uid, name, bytes } => {
            let body = Body::of(GuestSpec::idle(*bytes));
            // Anywhere: the emptiest.
            let all = registry.nodes.keys().cloned().collect();
            let node = registry.best_home(&body, &all).ok()?;
            let home = Some(Home { uid: *uid, node });
            let name = name.parse().ok()?;
            Some(Command::PutInstance { name, labels: Labels::new(), body: Some(body), home })
        }
        Act::Migrate { uid, timeout_s } => {
            let migration = format!("g{}-{}", uid.0, registry.asked + 1).parse().ok()?;
            let wish = Wish { unschedulable_timeout_s: *timeout_s, ..Wish::default() };
            Some(Command::Migrate { guest: *uid, migration, wish })
        }
        Act::Cancel { uid } => {
            let migration = guest(uid)?.attempt.as_ref()?.migration.clone();
            about(uid, Entry::End { migration, side: Side::Operator, reason: "cancelled".to_owned() })
        }
        Act::Recover { uid } => {
            let Life::Lost { last, kept } = &guest(uid)?.life else { return None };
            let instance = kept.as_ref().unwrap_or(last).instance;
            about(uid, Entry::Recover { instance })
        }
        Act::Delete { uid } => about(uid, Entry::Delete),
        Act::Fence { node, boot } => {
            let known = registry.nodes.get(node)?.boot;
            let instances = registry.instances_on(node);
            // A vouch is about the boot that somebody saw go off.
            (known == BootId(*boot)).then(|| Command::Fence { node: node.clone(), boot: known, instances })
        }
        Act::Change { node, change } => Some(Command::Node { node: node.clone(), change: change.clone() }),
        Act::Limits { cluster, outbound, inbound } => {
            let settings = ClusterSettings {
                parallel_migrations_per_cluster: Some(*cluster),
                parallel_outbound_migrations_per_node: Some(*outbound),
                parallel_inbound_migrations_per_node: Some(*inbound),
                ..ClusterSettings::default()
            };
            Some(Command::PutSettings { settings })
        }
    }
}
