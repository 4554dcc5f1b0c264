//! The leader's side: its loop, whose decisions are real, and its end of the nodes' sessions, whose words are real.
//!
//! ```text
//!   applied, a session comes or goes, a second ─▶ decide::{due, next, asked, judged} ─▶ one proposal, and look again
//!   Hello ─▶ Join ─▶ Leads ─▶ bells ─▶ told::pushed      Ask ─▶ told::may_say ─▶ proposal ─▶ Answer
//! ```

use std::collections::{BTreeMap, BTreeSet};

use godwit_control::Role;
use godwit_domain::ownership::{Entry, Side};
use godwit_domain::registry::{Command, Due, GuestUid, Registry, RequestKey, Stamped, Wish};
use godwit_domain::{MigrationId, NodeName};
use godwit_node::group::{decide, told};
use godwit_wire::log;
use godwit_wire::session::{Answer as Reply, Push};

use crate::event::{Event, Welcome};
use crate::operator::Request;
use crate::voter::Input;
use crate::watched::Answer;
use crate::world::{At, Who, World, ms};

const LOOK_US: u64 = ms(1000);
const DECLINED_REST_US: u64 = ms(10_000);
const UNANSWERED_US: u64 = ms(60_000);
const SETTLED_US: u64 = ms(4000);
/// A promotion that was refused is tried again after this.
const PROMOTED_AGAIN_US: u64 = ms(200);
/// How long a session may be silent.
const SILENT_US: u64 = ms(3000);

/// What a voter has while it leads.
#[derive(Debug)]
pub(crate) struct Leading {
    pub(crate) term: u64,
    began: u64,
    pub(crate) sessions: BTreeMap<NodeName, u64>,
    silent: BTreeMap<NodeName, u64>,
    tried_again: BTreeMap<MigrationId, u64>,
    judged_at: u64,
    promoted_at: u64,
    /// A proposal of the loop is under way; something has happened meanwhile.
    proposing: bool,
}

impl Leading {
    /// Whether it proposes a promotion now; one that is refused does not keep it from everything else.
    pub(crate) fn may_promote(&mut self, now: u64) -> bool {
        let may = self.promoted_at + PROMOTED_AGAIN_US <= now;
        if may {
            (self.promoted_at, self.proposing) = (now, true);
        }
        may
    }
}

/// A node's session with a leader, both ends.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) node: Who,
    pub(crate) voter: Who,
    pub(crate) name: NodeName,
    /// When each end heard the other last.
    node_heard: u64,
    voter_heard: u64,
    /// Pushes so far, and those that came.
    pushes: u64,
    pub(crate) taken: u64,
    /// Since which entry those are in the group of whom it was told.
    told: u64,
    /// The node's end is over, and the voter's.
    pub(crate) over: (bool, bool),
}

/// Who waits for a voter's answer.
#[derive(Debug)]
pub(crate) enum Asking {
    /// The leader's loop.
    Loop(Who, u64),
    /// A node that joins.
    Join { voter: Who, node: Who, attempt: u64, name: NodeName },
    /// A node's proposal.
    Node { voter: Who, session: u64, pending: u64 },
    /// An operator wants the present, to look or to change.
    Proof { voter: Who, request: Request, must: u64 },
    /// An operator's change.
    Change { voter: Who, request: Request },
}

impl World {
    // ---- proposals -----------------------------------------------------------------------------------------

    /// Proposes to a voter; whoever asks is answered.
    pub(crate) fn propose_at(
        &mut self,
        at: At,
        request: Option<RequestKey>,
        command: Command,
        asking: Asking,
    ) {
        let (number, entry) = self.proposal(at, request, command, asking);
        self.input(at, Some(Input::Propose(number, entry)));
    }

    /// An entry with this voter's time, and the number under which it is answered.
    pub(crate) fn proposal(
        &mut self,
        at: At,
        request: Option<RequestKey>,
        command: Command,
        asking: Asking,
    ) -> (u64, Vec<u8>) {
        let stamped = Stamped { time_ms: self.wall_ms(at), request, command };
        let entry = log::encode_entry(&stamped).unwrap_or_else(|error| unreachable!("{error}"));
        let number = self.number();
        self.law.proposed(number, &entry);
        self.asking.insert(number, asking);
        (number, entry)
    }

    pub(crate) fn prove_at(&mut self, at: At, asking: Asking) {
        let number = self.number();
        self.asking.insert(number, asking);
        self.input(at, Some(Input::Prove(number)));
    }

    /// A voter has answered.
    pub(crate) fn heard(&mut self, asking: Asking, answer: Answer) {
        match asking {
            Asking::Loop(voter, term) => self.loop_heard(voter, term, &answer),
            Asking::Join { voter, node, attempt, name } => {
                let welcome = match answer {
                    Answer::Agreed(Ok(())) => self.enter(voter, node, &name),
                    Answer::Agreed(Err(_)) | Answer::NotTaken | Answer::Unknown | Answer::Proven(_) => None,
                };
                self.say_welcome(voter, node, attempt, welcome);
            }
            Asking::Node { voter, session, pending } => {
                let reply = match answer {
                    Answer::Agreed(Ok(())) => Reply::Applied,
                    Answer::Agreed(Err(refusal)) => Reply::Refused { why: refusal.to_string() },
                    Answer::NotTaken | Answer::Unknown | Answer::Proven(_) => {
                        Reply::Unknown { why: "not agreed".to_owned() }
                    }
                };
                self.reply(voter, session, pending, reply);
            }
            Asking::Proof { voter, request, must } => {
                let is_proven = matches!(answer, Answer::Proven(true));
                self.proven(voter, request, must, is_proven);
            }
            Asking::Change { voter, request } => {
                let outcome = match answer {
                    Answer::Agreed(outcome) => Some(outcome),
                    Answer::NotTaken | Answer::Unknown | Answer::Proven(_) => None,
                };
                self.changed(voter, request, outcome);
            }
        }
    }

    /// What a voter that can be seen has applied.
    pub(crate) fn registry_of(&self, at: At) -> Option<&Registry> {
        let voter = self.machines[at].voter.as_ref()?;
        Some(voter.seen()?.machine().registry())
    }

    // ---- the loop ------------------------------------------------------------------------------------------

    pub(crate) fn begin_leading(&mut self, at: At, term: u64) {
        let now = self.now;
        let Some(voter) = self.voter(at) else { return };
        voter.leading = Some(Leading {
            term,
            began: now,
            sessions: BTreeMap::new(),
            silent: BTreeMap::new(),
            tried_again: BTreeMap::new(),
            judged_at: now,
            promoted_at: 0,
            proposing: false,
        });
        let who = self.who(at);
        self.later(LOOK_US, Event::LeaderLooks(who, term));
    }

    pub(crate) fn stop_leading(&mut self, at: At) {
        let Some(leading) = self.voter(at).and_then(|voter| voter.leading.take()) else { return };
        for id in leading.sessions.into_values() {
            self.close_session(id);
        }
    }

    /// A voter closes a session: its node hears of it, or it does not.
    fn close_session(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.over.1 = true;
        let (node, voter) = (session.node, session.voter);
        if let Some(us) = self.carry(voter.at, node.at) {
            self.later(us, Event::Closed { to: node, session: id });
        }
    }

    pub(crate) fn leader_looks_again(&mut self, who: Who, term: u64) {
        let leads = |leading: &Leading| leading.term == term;
        if !self.voter(who.at).and_then(|voter| voter.leading.as_ref()).is_some_and(leads) {
            return;
        }
        self.later(LOOK_US, Event::LeaderLooks(who, term));
        self.leader_looks(who.at);
    }

    fn loop_heard(&mut self, voter: Who, term: u64, answer: &Answer) {
        if !self.is(voter) {
            return;
        }
        let Some(leading) = self.voter(voter.at).and_then(|voter| voter.leading.as_mut()) else { return };
        if leading.term != term {
            return;
        }
        leading.proposing = false;
        // What was refused or is unknown waits for the next look.
        if matches!(answer, Answer::Agreed(Ok(()))) {
            self.leader_looks(voter.at);
        }
    }

    /// One decision after the other: each is agreed before the next is looked for.
    pub(crate) fn leader_looks(&mut self, at: At) {
        let (now, wall) = (self.now, self.wall_ms(at));
        let Some(voter) = self.machines[at].voter.as_mut() else { return };
        let Some(driver) = voter.seen() else { return };
        if driver.view().role != Role::Leader {
            return;
        }
        let Some(leading) = self.machines[at].voter.as_ref().and_then(|voter| voter.leading.as_ref()) else {
            return;
        };
        if leading.proposing {
            return;
        }
        let term = leading.term;
        if self.promotes(at, term) {
            return;
        }
        let Some(registry) = self.registry_of(at) else { return };
        let Some(leading) = self.machines[at].voter.as_ref().and_then(|voter| voter.leading.as_ref()) else {
            return;
        };
        let judges = now - leading.began > SETTLED_US && now - leading.judged_at >= LOOK_US;
        let decided = decision(registry, leading, now, wall, judges);
        if let Some(leading) = self.voter(at).and_then(|voter| voter.leading.as_mut()) {
            leading.proposing = decided.is_some();
            leading.tried_again.retain(|_, tried| *tried + DECLINED_REST_US > now);
            if judges {
                leading.judged_at = now;
            }
            if let Some((_, Some(tried))) = &decided {
                leading.tried_again.insert(tried.clone(), now);
            }
        }
        let Some((command, _)) = decided else { return };
        let who = self.who(at);
        self.propose_at(at, None, command, Asking::Loop(who, term));
    }

    // ---- sessions, the leader's end ------------------------------------------------------------------------

    pub(crate) fn hello(&mut self, to: Who, from: Who, attempt: u64) {
        let name = self.machines[from.at].name.clone();
        let leads = self.voter(to.at).is_some_and(|voter| voter.leading.is_some());
        let (node, registry) = (self.itself(from.at), self.registry_of(to.at));
        let Some(registry) = registry.filter(|_| leads) else {
            return self.say_welcome(to, from, attempt, None);
        };
        if told::is_known(registry, &name, &node) {
            let welcome = self.enter(to, from, &name);
            return self.say_welcome(to, from, attempt, welcome);
        }
        let join = Command::Join { name: name.clone(), node };
        self.propose_at(to.at, None, join, Asking::Join { voter: to, node: from, attempt, name });
    }

    /// A session begins at its leader.
    fn enter(&mut self, voter: Who, node: Who, name: &NodeName) -> Option<u64> {
        if !self.is(voter) {
            return None;
        }
        let id = self.number();
        let now = self.now;
        let leading = self.voter(voter.at)?.leading.as_mut()?;
        let older = leading.sessions.insert(name.clone(), id);
        leading.silent.remove(name);
        let session = Session {
            node,
            voter,
            name: name.clone(),
            node_heard: now,
            voter_heard: now,
            pushes: 0,
            taken: 0,
            told: self.machines[voter.at].voter.as_ref().map_or(0, |voter| voter.members.index()),
            over: (false, false),
        };
        self.sessions.insert(id, session);
        if let Some(older) = older {
            self.close_session(older);
        }
        self.later(ms(500), Event::Keep(id));
        let bells = self.voter(voter.at).map(|voter| std::sync::Arc::clone(&voter.bells))?;
        bells.hang(name.clone(), id);
        let all =
            self.registry_of(voter.at).map(|registry| told::all_for(registry, name)).unwrap_or_default();
        bells.ring(name, all);
        Some(id)
    }

    fn say_welcome(&mut self, voter: Who, node: Who, attempt: u64, session: Option<u64>) {
        if !self.is(voter) {
            return;
        }
        let welcome = match (session, self.membership(voter.at)) {
            (Some(id), Some(membership)) => Welcome::Leads(id, membership),
            (_, membership) => Welcome::Elsewhere(self.leader_named_by(voter.at), membership),
        };
        let from = voter.at;
        if let Some(us) = self.carry(from, node.at) {
            self.later(us, Event::Welcome { to: node, attempt, from, welcome });
        }
        if session.is_some() {
            self.push_what_rings(voter.at);
            self.leader_looks(voter.at);
        }
    }

    /// Pushes to every node whose bell has rung.
    pub(crate) fn push_what_rings(&mut self, at: At) {
        let Some(voter) = self.machines[at].voter.as_ref() else { return };
        let Some(leading) = voter.leading.as_ref().filter(|_| voter.seen().is_some()) else { return };
        let sessions: Vec<(NodeName, u64)> =
            leading.sessions.iter().map(|(name, id)| (name.clone(), *id)).collect();
        let index = voter.members.index();
        for (name, id) in sessions {
            let news = self.sessions.get(&id).is_some_and(|session| session.told != index);
            let Some(rung) = self.voter(at).and_then(|voter| voter.bells.take(&name, id)) else { continue };
            if rung.is_empty() && !news {
                continue;
            }
            let membership = if news { self.membership(at).map(|membership| *membership) } else { None };
            let guests: Vec<GuestUid> = rung.guests.into_iter().collect();
            let Some(registry) = self.registry_of(at) else { continue };
            let push = Box::new(Push { membership, ..told::pushed(registry, &name, guests, true) });
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.pushes += 1;
            session.told = index;
            let (number, node, voter) = (session.pushes, session.node, session.voter);
            let us = self.transit(voter.at, node.at);
            self.later(us, Event::Push { to: node, session: id, number, push });
        }
    }

    /// A node asks for an entry.
    pub(crate) fn asked(&mut self, to: Who, session: u64, pending: u64, command: Command) {
        let Some(open) = self.sessions.get(&session).filter(|session| !session.over.1) else { return };
        let (name, node) = (open.name.clone(), open.node);
        if !self.is_linked(to.at, node.at) {
            let command = Box::new(command);
            return self.later(ms(60), Event::Ask { to, session, pending, command });
        }
        let may = self.registry_of(to.at).map(|registry| told::may_say(registry, &name, &command));
        match may {
            Some(Ok(())) => {
                self.propose_at(to.at, None, command, Asking::Node { voter: to, session, pending });
            }
            Some(Err(reply)) => self.reply(to, session, pending, reply),
            None => self.reply(to, session, pending, Reply::Unknown { why: "busy".to_owned() }),
        }
    }

    fn reply(&mut self, voter: Who, session: u64, pending: u64, reply: Reply) {
        if !self.is(voter) {
            return;
        }
        let Some(open) = self.sessions.get(&session).filter(|session| !session.over.1) else { return };
        let node = open.node;
        let us = self.transit(voter.at, node.at);
        self.later(us, Event::Answer { to: node, session, pending, answer: Box::new(reply) });
    }

    pub(crate) fn quorum_asked(&mut self, to: Who, session: u64, asked: u64) {
        let Some(open) = self.sessions.get(&session).filter(|session| !session.over.1) else { return };
        let (node, local) = (open.node, self.local(to.at));
        let voter = self.machines[to.at].voter.as_ref();
        let driver = voter.filter(|voter| voter.role == Role::Leader).and_then(|voter| voter.seen());
        let Some(age) = driver.and_then(|driver| driver.quorum_age(local)) else { return };
        let age_us = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        let us = self.transit(to.at, node.at);
        self.later(us, Event::QuorumAge { to: node, asked, age_us });
    }

    /// Both ends of a session look whether they have heard the other.
    pub(crate) fn keep(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (node, voter) = (session.node, session.voter);
        let alive = |at: Who| self.is(at) && self.is_awake(at.at);
        let open = self.is_linked(node.at, voter.at);
        let hears_voter = open && alive(voter) && !session.over.1;
        let hears_node = open && alive(node) && !session.over.0;
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if hears_voter {
            session.node_heard = now;
        }
        if hears_node {
            session.voter_heard = now;
        }
        let node_ends = !session.over.0 && now - session.node_heard > SILENT_US;
        let voter_ends = !session.over.1 && now - session.voter_heard > SILENT_US;
        if node_ends {
            self.session_ended(node.at, id);
        }
        if voter_ends {
            self.gives_up_on(id);
        }
        let gone = |who: Who, over: bool| over || !self.is(who);
        let Some(session) = self.sessions.get(&id) else { return };
        if gone(session.node, session.over.0) && gone(session.voter, session.over.1) {
            self.sessions.remove(&id);
        } else {
            self.later(ms(500), Event::Keep(id));
        }
    }

    /// The leader takes a node for gone.
    fn gives_up_on(&mut self, id: u64) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.over.1 = true;
        let (voter, name) = (session.voter, session.name.clone());
        if !self.is(voter) {
            return;
        }
        if let Some(voter) = self.voter(voter.at) {
            voter.bells.take_down(&name, id);
            if let Some(leading) = voter.leading.as_mut().filter(|it| it.sessions.get(&name) == Some(&id)) {
                leading.sessions.remove(&name);
                leading.silent.insert(name, now);
            }
        }
        self.leader_looks(voter.at);
    }
}

/// What the leader's loop does next, and the migration that is asked for again.
fn decision(
    registry: &Registry,
    leading: &Leading,
    now: u64,
    wall_ms: u64,
    judges: bool,
) -> Option<(Command, Option<MigrationId>)> {
    let reachable: BTreeSet<NodeName> = leading.sessions.keys().cloned().collect();
    if let Some((migration, Due { node, guest, avoid })) = decide::due(registry, wall_ms).into_iter().next() {
        let wish = Wish { drains: Some(node), avoid, ..Wish::default() };
        return Some((Command::Migrate { guest, migration, wish }, None));
    }
    let rests = leading.tried_again.iter().filter(|(_, tried)| **tried + DECLINED_REST_US > now);
    let resting: Vec<MigrationId> = rests.map(|(migration, _)| migration.clone()).collect();
    if let Some(decide::Next { guest, migration, target, again }) =
        decide::next(registry, &reachable, &resting)
    {
        let tried = again.then(|| migration.clone());
        return Some((Command::Admit { guest, migration, target }, tried));
    }
    let end = |guest, migration, reason: &str| {
        let entry = Entry::End { migration, side: Side::Control, reason: reason.to_owned() };
        Some((Command::Guest { guest, entry }, None))
    };
    for decide::Asked { guest, migration, target, is_over } in decide::asked(registry, wall_ms) {
        let since = leading.silent.get(&target).copied().unwrap_or(leading.began);
        let silent = !leading.sessions.contains_key(&target) && now - since > UNANSWERED_US;
        if is_over || silent {
            return end(guest, migration, "its target does not answer");
        }
    }
    if !judges {
        return None;
    }
    match decide::judged(registry, &reachable, wall_ms).into_iter().next()? {
        decide::Judged::Turned { migration, placeable } => {
            Some((Command::Placeable { migration, is: placeable }, None))
        }
        decide::Judged::Hopeless { guest, migration, .. } => end(guest, migration, "unschedulable"),
    }
}
