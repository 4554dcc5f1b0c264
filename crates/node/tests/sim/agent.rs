//! What a node's process knows, and what it proposes until it is answered. Gone with the process.
//!
//! ```text
//!   seek ─▶ Hello ─▶ session ─▶ pushes ─▶ views ─▶ look (look)
//!                        └◀── proposals, each again and again until it is answered ◀──┘
//! ```
//!
//! The rules are those of `godwit_node::actor` and `session`; what they rest on there (connections, mailboxes) is here
//! the world's.

use std::collections::{BTreeMap, BTreeSet};

use godwit_domain::agent::RunnerState;
use godwit_domain::ownership::{Entry, Life};
use godwit_domain::registry::{Command, GuestUid};
use godwit_domain::{InstanceId, MigrationId, NodeName};
use godwit_node::actor::rules;
use godwit_wire::session::{Answer, GuestView, Push};

use crate::event::{Event, Welcome};
use crate::moves::Transfer;
use crate::world::{At, Who, World, ms};

const AGAIN_MIN_US: u64 = ms(50);
const AGAIN_MAX_US: u64 = ms(500);
const ANSWER_TIMEOUT_US: u64 = ms(8000);
const QUORUM_EVERY_US: u64 = ms(250);
const LOOK_EVERY_US: u64 = ms(1000);

/// A runner as this process knows it.
#[derive(Debug, Clone)]
pub(crate) struct Here {
    pub(crate) uid: GuestUid,
    pub(crate) state: RunnerState,
    pub(crate) busy: bool,
    pub(crate) run_sent: bool,
    pub(crate) dead: bool,
}

/// What is proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owed {
    Guest(GuestUid, Entry),
    FenceSeen,
}

#[derive(Debug)]
pub(crate) struct Pending {
    owed: Owed,
    attempt: u64,
    pause_us: u64,
    /// It is under way in this session.
    asked_in: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Agent {
    pub(crate) session: Option<u64>,
    seeking: u64,
    hint: Option<NodeName>,
    next_voter: usize,
    pub(crate) views: BTreeMap<GuestUid, GuestView>,
    pub(crate) complete: bool,
    pub(crate) fenced: Option<BTreeSet<InstanceId>>,
    pub(crate) fence_answered: bool,
    pub(crate) here: BTreeMap<InstanceId, Here>,
    pub(crate) transfers: BTreeMap<MigrationId, Transfer>,
    pub(crate) starting: BTreeSet<GuestUid>,
    pub(crate) pending: BTreeMap<u64, Pending>,
    refused: Vec<(GuestUid, Entry)>,
    /// When a question was asked that a quorum has answered.
    pub(crate) quorum_asked: Option<u64>,
}

impl World {
    pub(crate) fn agent(&mut self, at: At) -> Option<&mut Agent> {
        self.machines[at].agent.as_mut()
    }

    pub(crate) fn start_agent(&mut self, at: At) {
        let machine = &mut self.machines[at];
        let here = machine.host.runners.iter().map(|(instance, process)| {
            let (uid, state) = (process.uid, process.state.clone());
            (*instance, Here { uid, state, busy: false, run_sent: false, dead: false })
        });
        machine.agent = Some(Agent { here: here.collect(), ..Agent::default() });
        let who = self.who(at);
        let first = self.random.u64(0..ms(30));
        self.later(first, Event::Seek(who));
        let first = self.random.u64(ms(500)..ms(1500));
        self.later(first, Event::Look(who));
    }

    // ---- the session ---------------------------------------------------------------------------------------

    pub(crate) fn seek(&mut self, who: Who) {
        let attempt = self.number();
        let order = self.whom_to_ask(who.at);
        let Some(agent) = self.machines[who.at].agent.as_mut() else { return };
        if agent.session.is_some() {
            return;
        }
        agent.seeking = attempt;
        let hint = agent.hint.take();
        agent.next_voter += 1;
        let next = order[agent.next_voter % order.len()];
        let voter = hint.and_then(|name| self.at_of(&name)).unwrap_or(next);
        let to = self.who(voter);
        if let Some(us) = self.carry(who.at, voter) {
            self.later(us, Event::Hello { to, from: who, attempt });
        }
        self.later(ms(400), Event::SeekTimeout(who, attempt));
    }

    pub(crate) fn seek_timeout(&mut self, who: Who, attempt: u64) {
        if self.agent(who.at).is_some_and(|agent| agent.session.is_none() && agent.seeking == attempt) {
            self.seek(who);
        }
    }

    pub(crate) fn welcome(&mut self, who: Who, attempt: u64, from: At, welcome: Welcome) {
        let from_name = self.machines[from].name.clone();
        let Some(agent) = self.machines[who.at].agent.as_mut() else { return };
        match welcome {
            Welcome::Leads(id, membership) => {
                let is_wanted = agent.session.is_none() && agent.seeking == attempt;
                let Some(session) = self.sessions.get_mut(&id) else { return };
                // It may have been closed before this word of it came.
                if !is_wanted || session.over.0 {
                    session.over.0 = true;
                    return;
                }
                agent.session = Some(id);
                self.note(|world| {
                    format!("{}: session with {}", world.machines[who.at].name, world.machines[from].name)
                });
                self.is_told(who.at, &membership);
                self.ask_quorum(who, id);
                let pending: Vec<u64> = self
                    .agent(who.at)
                    .map(|agent| agent.pending.keys().copied().collect())
                    .unwrap_or_default();
                for pending in pending {
                    let us = self.random.u64(0..ms(50));
                    self.later(us, Event::Again { to: who, pending });
                }
            }
            Welcome::Elsewhere(leader, membership) => {
                if agent.session.is_some() || agent.seeking != attempt {
                    return;
                }
                let other = leader.filter(|leader| from_name != *leader);
                let us = if other.is_some() { 0 } else { ms(60) };
                agent.hint = other;
                agent.seeking = 0;
                self.later(us, Event::Seek(who));
                if let Some(membership) = membership {
                    self.is_told(who.at, &membership);
                }
            }
        }
    }

    /// What is known stays, but is not complete any more.
    pub(crate) fn session_ended(&mut self, at: At, id: u64) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.over.0 = true;
        }
        let who = self.who(at);
        let Some(agent) = self.machines[at].agent.as_mut() else { return };
        if agent.session != Some(id) {
            return;
        }
        (agent.session, agent.complete) = (None, false);
        let mut lost = Vec::new();
        for (number, pending) in &mut agent.pending {
            if pending.asked_in.take().is_some() {
                lost.push(*number);
            }
        }
        self.note(|world| format!("{}: session lost", world.machines[at].name));
        let us = self.random.u64(0..ms(50));
        self.later(us, Event::Seek(who));
        for pending in lost {
            self.later(AGAIN_MIN_US, Event::Again { to: who, pending });
        }
    }

    pub(crate) fn push_comes(&mut self, to: Who, id: u64, number: u64, push: Box<Push>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.over.0 || self.machines[to.at].agent.as_ref().is_none_or(|agent| agent.session != Some(id))
        {
            return if session.taken == 0 && !session.over.0 {
                // The welcome is not here yet.
                self.later(ms(1), Event::Push { to, session: id, number, push });
            };
        }
        let from = session.voter.at;
        // One stream: in order, and what a link has lost is sent again.
        if session.taken + 1 != number || !self.is_linked(from, to.at) {
            return self.later(ms(3), Event::Push { to, session: id, number, push });
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.taken = number;
        }
        self.pushed(to.at, *push);
    }

    fn pushed(&mut self, at: At, push: Push) {
        if let Some(membership) = &push.membership {
            self.is_told(at, membership);
        }
        // It may have died of its disk.
        let Some(agent) = self.machines[at].agent.as_mut().filter(|agent| agent.session.is_some()) else {
            return;
        };
        let (was_complete, was_fenced) = (agent.complete, agent.fenced.is_some());
        agent.complete |= push.complete;
        if agent.fenced != push.fenced {
            agent.fence_answered = false;
        }
        agent.fenced = push.fenced;
        agent.refused.clear();
        let is_fenced = agent.fenced.is_some();
        let seen: Vec<GuestUid> = push.guests.iter().map(|view| view.uid).collect();
        push.guests.into_iter().for_each(|view| self.see(at, view));
        if !was_complete || was_fenced {
            return self.look_at_all(at);
        }
        if is_fenced {
            return self.obey_fence(at);
        }
        seen.into_iter().for_each(|uid| self.look(at, uid));
    }

    fn see(&mut self, at: At, view: GuestView) {
        let Some(agent) = self.machines[at].agent.as_mut() else { return };
        if agent.views.get(&view.uid).is_some_and(|known| rules::is_older(&view.ownership, &known.ownership))
        {
            return;
        }
        let of = |transfer: &&Transfer| transfer.uid == view.uid;
        let told: Vec<MigrationId> =
            agent.transfers.values().filter(of).map(|transfer| transfer.migration.clone()).collect();
        let no_runner = !agent.here.values().any(|here| here.uid == view.uid);
        if view.ownership.life == Life::Purged && no_runner {
            agent.views.remove(&view.uid);
        } else {
            agent.views.insert(view.uid, view.clone());
        }
        for migration in told {
            self.transfer_sees(at, &migration, &view.ownership);
        }
    }

    // ---- the quorum ----------------------------------------------------------------------------------------

    pub(crate) fn ask_quorum(&mut self, who: Who, id: u64) {
        let asked = self.now;
        if self.agent(who.at).is_none_or(|agent| agent.session != Some(id)) {
            return;
        }
        self.later(QUORUM_EVERY_US, Event::AskQuorum(who, id));
        let Some(to) = self.sessions.get(&id).map(|session| session.voter) else { return };
        if let Some(us) = self.carry(who.at, to.at) {
            self.later(us, Event::Quorum { to, session: id, asked });
        }
    }

    /// Counted from before the question was sent.
    pub(crate) fn quorum_age(&mut self, at: At, asked: u64, age_us: u64) {
        if let Some(agent) = self.agent(at) {
            agent.quorum_asked = agent.quorum_asked.max(Some(asked.saturating_sub(age_us)));
        }
    }

    // ---- proposals -----------------------------------------------------------------------------------------

    pub(crate) fn owe(&mut self, at: At, owed: Owed) {
        let number = self.number();
        let Some(agent) = self.machines[at].agent.as_mut() else { return };
        if agent.pending.values().any(|pending| pending.owed == owed) {
            return;
        }
        if let Owed::Guest(uid, entry) = &owed
            && agent.refused.iter().any(|(of, known)| of == uid && known == entry)
        {
            return;
        }
        self.note(|world| format!("{}: proposes {owed:?}", world.machines[at].name));
        if let Owed::Guest(uid, entry) = &owed {
            self.cover.fact(entry);
            if matches!(entry, Entry::HandOver { .. }) {
                self.tempt(at, *uid);
            }
        }
        if let Some(agent) = self.agent(at) {
            let pending = Pending { owed, attempt: 0, pause_us: AGAIN_MIN_US, asked_in: None };
            agent.pending.insert(number, pending);
        }
        let who = self.who(at);
        self.ask_again(who, number);
    }

    /// Asks whoever leads, if there is a session.
    pub(crate) fn ask_again(&mut self, who: Who, number: u64) {
        let name = self.machines[who.at].name.clone();
        let Some(agent) = self.machines[who.at].agent.as_mut() else { return };
        let session = agent.session;
        let Some(pending) = agent.pending.get_mut(&number) else { return };
        if pending.asked_in.is_some() {
            return;
        }
        let us = pending.pause_us;
        pending.pause_us = (us * 2).min(AGAIN_MAX_US);
        let Some(id) = session else {
            return self.later(us, Event::Again { to: who, pending: number });
        };
        pending.asked_in = Some(id);
        pending.attempt += 1;
        let attempt = pending.attempt;
        let command = match &pending.owed {
            Owed::Guest(guest, entry) => Command::Guest { guest: *guest, entry: entry.clone() },
            Owed::FenceSeen => Command::FenceSeen { node: name },
        };
        self.later(ANSWER_TIMEOUT_US, Event::AskTimeout { to: who, pending: number, attempt });
        let Some(to) = self.sessions.get(&id).map(|session| session.voter) else { return };
        let us = self.transit(who.at, to.at);
        let command = Box::new(command);
        self.later(us, Event::Ask { to, session: id, pending: number, command });
    }

    /// No answer: what became of it is unknown.
    pub(crate) fn ask_timeout(&mut self, who: Who, number: u64, attempt: u64) {
        let Some(agent) = self.machines[who.at].agent.as_mut() else { return };
        let Some(pending) = agent.pending.get_mut(&number) else { return };
        if pending.attempt == attempt && pending.asked_in.take().is_some() {
            self.ask_again(who, number);
        }
    }

    pub(crate) fn answered(&mut self, to: Who, session: u64, number: u64, answer: Answer) {
        let Some(open) = self.sessions.get(&session) else { return };
        let from = open.voter.at;
        if open.over.0 {
            return;
        }
        if !self.is_linked(from, to.at) {
            let answer = Box::new(answer);
            return self.later(ms(60), Event::Answer { to, session, pending: number, answer });
        }
        let Some(agent) = self.machines[to.at].agent.as_mut() else { return };
        let Some(pending) = agent.pending.get_mut(&number) else { return };
        let refused = match answer {
            Answer::Applied => false,
            Answer::Refused { .. } => true,
            Answer::Unknown { .. } | Answer::QuorumAge(_) | Answer::Noted | Answer::Line(_) => {
                if pending.asked_in.take().is_some() {
                    let us = pending.pause_us;
                    self.later(us, Event::Again { to, pending: number });
                }
                return;
            }
        };
        let Some(pending) = agent.pending.remove(&number) else { return };
        match pending.owed {
            Owed::Guest(uid, entry) => {
                if refused {
                    agent.refused.push((uid, entry));
                }
                self.look(to.at, uid);
            }
            // It is told that it is fenced until it is not.
            Owed::FenceSeen => {}
        }
    }

    /// A second has passed.
    pub(crate) fn look_at_all_now_and_then(&mut self, who: Who) {
        self.later(LOOK_EVERY_US, Event::Look(who));
        if let Some(agent) = self.agent(who.at) {
            agent.refused.clear();
        }
        self.remind_transfers(who.at);
        self.look_at_all(who.at);
    }
}
