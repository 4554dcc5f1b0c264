//! Who is in the control group: places that machines take and leave, who hears of it, and people who change it.
//!
//! ```text
//!   people ─▶ add, remove ─▶ leader ─▶ change, agreed ─▶ Welcome, Push ─▶ book ─▶ duty ─▶ a log is begun, or moved away
//!                               └─ its loop: a learner that has learnt votes
//! ```
//!
//! What is real: what a change may be, book, duty, whose voice is heard, whom a node asks, when a learner is promoted. What
//! the desk asks before a change, and that a leader hands on before it goes, is as in `godwit_node::group::desk`.
//!
//! Always true: a log that was moved away is never opened again; its disk stays, for whoever counts who has what.

use std::sync::Arc;

use godwit_control::{Members, NodeId, Wanted};
use godwit_domain::NodeName;
use godwit_domain::registry::{Command, MemberChange, RequestKey};
use godwit_node::book::{Book, Place};
use godwit_node::group::decide;
use godwit_node::seat::{self, Duty};
use godwit_node::session;
use godwit_wire::session::Membership;

use crate::event::Event;
use crate::leader::Asking;
use crate::operator::{Act, Request};
use crate::voter::{Input, Voter};
use crate::world::{At, Who, World, ms};

/// Time before a place is tried again that could not be taken.
const RETRY_US: u64 = ms(5000);

impl World {
    // ---- a machine's place ---------------------------------------------------------------------------------

    /// What there is to do about a machine's place. `false`: it could not be done now.
    pub(crate) fn take_seat(&mut self, at: At) -> bool {
        loop {
            let machine = &self.machines[at];
            let Some(book) = &machine.book else { return true };
            let voter = machine.voter.as_ref();
            let open = book.place.filter(|_| voter.is_some_and(Voter::is_open));
            let removed = voter.is_some_and(Voter::is_removed);
            match seat::duty(&machine.name, book, open, removed, voter.is_some()) {
                Duty::Nothing => return true,
                Duty::Open(place) => return self.open_log(at, place),
                Duty::Leave => self.leave_seat(at),
                Duty::Lost(voter) => panic!("one group: {} has lost the log of {voter}", machine.name),
            }
        }
    }

    /// The same, in a process that runs.
    pub(crate) fn tend_seat(&mut self, at: At) {
        if self.machines[at].runs && !self.take_seat(at) {
            let who = self.who(at);
            self.later(RETRY_US, Event::Seat(who));
        }
    }

    fn open_log(&mut self, at: At, place: Place) -> bool {
        let machine = &mut self.machines[at];
        let Some(book) = machine.book.as_mut() else { return true };
        if book.place != Some(place) {
            (book.place, machine.voter) = (Some(place), None);
        }
        if machine.voter.is_none() {
            let voter = Voter::new(place.voter, book.founders.clone());
            let older = self.disks.insert(place.voter, voter.disk.clone());
            assert!(older.is_none(), "one group: the number {} is used twice", place.voter);
            machine.voter = Some(voter);
        }
        let is_open = self.start_voter(at);
        if let Some(place) = self.machines[at].book.as_mut().and_then(|book| book.place.as_mut()) {
            place.opened |= is_open;
        }
        is_open
    }

    fn leave_seat(&mut self, at: At) {
        self.stop_leading(at);
        let voter = self.machines[at].voter.as_ref().filter(|voter| voter.is_open());
        let members = voter.map(|voter| Arc::clone(&voter.members));
        self.stop_voter(at);
        self.law.forget_voter(at);
        let machine = &mut self.machines[at];
        machine.voter = None;
        if let Some(book) = machine.book.as_mut() {
            book.left(members.as_deref());
        }
        self.note(|world| format!("{}: leaves the group", world.machines[at].name));
    }

    /// A node is told who is in the group.
    pub(crate) fn is_told(&mut self, at: At, membership: &Membership) {
        let known = self.machines[at].book.as_ref();
        let book = Book::learned(known, membership).unwrap_or_else(|error| panic!("one group: {error}"));
        if known != Some(&book) {
            self.machines[at].book = Some(book);
            self.tend_seat(at);
        }
    }

    /// What a machine says of the group.
    pub(crate) fn membership(&self, at: At) -> Option<Box<Membership>> {
        let machine = &self.machines[at];
        let book = machine.book.as_ref()?;
        let voter = machine.voter.as_ref().filter(|voter| voter.is_open());
        let members: &Members = voter.map_or(&book.members, |voter| &voter.members);
        Some(Box::new(book.told(members, |_| None)))
    }

    /// Who leads, as a machine says it.
    pub(crate) fn leader_named_by(&self, at: At) -> Option<NodeName> {
        let machine = &self.machines[at];
        let Some(voter) = machine.voter.as_ref().filter(|voter| voter.is_open()) else {
            let session = self.sessions.get(&machine.agent.as_ref()?.session?)?;
            return Some(self.machines[session.voter.at].name.clone());
        };
        let leader = voter.seen()?.view().leader?;
        let told = machine.book.as_ref().map(|book| &book.members);
        let member = voter.members.get(leader).or_else(|| told?.get(leader))?;
        Some(member.name.clone())
    }

    /// Whom a node asks for the leader, in turn.
    pub(crate) fn whom_to_ask(&self, at: At) -> Vec<At> {
        let known = self.founders.iter().map(|(_, name)| name);
        let order = session::order(self.machines[at].book.as_ref(), known);
        order.iter().filter_map(|name| self.at_of(name)).collect()
    }

    // ---- the leader ----------------------------------------------------------------------------------------

    fn change_at(
        &mut self,
        at: At,
        request: Option<RequestKey>,
        (wanted, change): (Wanted, MemberChange),
        asking: Asking,
    ) {
        let (Wanted::Add(node) | Wanted::Promote(node) | Wanted::Remove(node)) = wanted.clone();
        let command = Command::Member { node: node.clone(), change };
        let (number, entry) = self.proposal(at, request, command, asking);
        self.input(at, Some(Input::Change(number, wanted, entry)));
        self.tempt_change(at, &node);
    }

    /// Whether the leader's loop now lets a learner vote.
    pub(crate) fn promotes(&mut self, at: At, term: u64) -> bool {
        let (now, local) = (self.now, self.local(at));
        let Some(voter) = self.machines[at].voter.as_ref() else { return false };
        if voter.members.learner().is_none() {
            return false;
        }
        let Some(driver) = voter.seen() else { return false };
        let status = driver.status(local);
        let Some(wanted) = decide::promoted(&status.view.members, &status.standing) else { return false };
        let leading = self.voter(at).and_then(|voter| voter.leading.as_mut());
        if !leading.is_some_and(|leading| leading.may_promote(now)) {
            return false;
        }
        let who = self.who(at);
        self.change_at(at, None, (wanted, MemberChange::Promoted), Asking::Loop(who, term));
        true
    }

    /// Somebody wants a node in the group, or out of it, and is at a leader that shows the present.
    pub(crate) fn seat_asked(&mut self, voter: Who, request: Request, node: &NodeName, is_in: bool) {
        let local = self.local(voter.at);
        let Some(driver) = self.machines[voter.at].voter.as_ref().and_then(|voter| voter.seen()) else {
            return;
        };
        let status = driver.status(local);
        let members = &status.view.members;
        let known = driver.machine().registry().nodes.get(node);
        let leading = self.machines[voter.at].voter.as_ref().and_then(|voter| voter.leading.as_ref());
        let is_here = leading.is_some_and(|leading| leading.sessions.contains_key(node));
        let is_done = members.named(node).is_some() == is_in;
        let is_refused = is_in && (!is_here || known.is_none_or(|node| node.fenced.is_some()));
        if is_done || is_refused {
            self.operator.open.remove(&request.number);
            return;
        }
        if !is_in && self.machines[voter.at].name == *node {
            // It hands on first, if it may go at all, and its successor is asked.
            if members.change(&Wanted::Remove(node.clone()), status.id, &status.standing).is_err() {
                self.operator.open.remove(&request.number);
                return;
            }
            self.note(|_| format!("{node}: hands on before it goes"));
            *self.cover.changes.entry("asked to hand on").or_default() += 1;
            return self.input(voter.at, Some(Input::HandOn));
        }
        let key = RequestKey { id: request.number.to_string(), digest: request.number, made: None };
        let wanted = match is_in {
            true => (Wanted::Add(node.clone()), MemberChange::Added),
            false => (Wanted::Remove(node.clone()), MemberChange::Removed),
        };
        self.change_at(voter.at, Some(key), wanted, Asking::Change { voter, request });
    }

    // ---- people --------------------------------------------------------------------------------------------

    /// One more, or one fewer. A change that is under way is mostly waited for.
    pub(crate) fn wish_for_a_seat(&mut self) -> Option<Act> {
        if self.operator.open.values().any(|request| matches!(request.act, Act::Seat { .. })) {
            return None;
        }
        let group = self.law.group.names().clone();
        let act = |node: NodeName, is_in| Some(Act::Seat { node, is_in });
        if let Some((learner, _)) = group.iter().find(|(_, votes)| !**votes) {
            return if self.random.u32(0..12) == 0 { act(learner.clone(), false) } else { None };
        }
        let machines = || self.machines.iter().enumerate();
        let outside: Vec<NodeName> = machines()
            .filter(|(_, it)| !group.contains_key(&it.name))
            .map(|(_, it)| it.name.clone())
            .collect();
        // Whoever lets a group shrink whose disks do not all come back might end it.
        let may_go = |(at, _): &(At, _)| match self.luck.tears() {
            true => self.is_torn(*at),
            false => group.len() > self.luck.fewest,
        };
        let inside: Vec<(NodeName, bool)> = machines()
            .filter(|(_, it)| group.contains_key(&it.name))
            .filter(may_go)
            .map(|(_, it)| (it.name.clone(), it.runs))
            .collect();
        let dead = inside.iter().find(|(_, runs)| !runs).map(|(name, _)| name.clone());
        if let Some(dead) = dead.filter(|_| self.random.bool()) {
            return act(dead, false);
        }
        if (group.len() <= 3 || self.random.bool())
            && let Some(node) = self.random.choice(outside)
        {
            return act(node, true);
        }
        let (node, _) = self.random.choice(inside)?;
        act(node, false)
    }

    /// Whoever is to learn on a machine that does not start is waited for in vain.
    pub(crate) fn let_go(&self) -> Option<Act> {
        let learners = self.law.group.names().iter().filter(|(_, votes)| !**votes);
        let mut names = learners.map(|(name, _)| name);
        let node = names.find(|name| self.at_of(name).is_some_and(|at| self.is_torn(at)))?;
        Some(Act::Seat { node: node.clone(), is_in: false })
    }

    // ---- the end -------------------------------------------------------------------------------------------

    /// What is not as the group says.
    pub(crate) fn seats_unsettled(&self) -> Option<String> {
        let (since, names) = self.law.group.now();
        if let Some((learner, _)) = names.iter().find(|(_, votes)| !**votes) {
            return Some(format!("{learner} does not vote yet"));
        }
        self.machines.iter().enumerate().filter(|(at, _)| !self.is_torn(*at)).find_map(|(_, machine)| {
            let name = &machine.name;
            let Some(book) = &machine.book else { return Some(format!("{name} has heard of no group")) };
            if book.members.index() != since {
                let known = book.members.index();
                return Some(format!("{name} knows the group of entry {known}, it is of entry {since}"));
            }
            let id: Option<NodeId> = book.members.named(name).map(|(id, _)| id);
            let (place, log) = (book.place.map(|place| place.voter), machine.voter.as_ref());
            let open = log.filter(|voter| voter.is_open()).map(|voter| voter.id);
            let as_it_should = place == id && open == id && log.is_some() == id.is_some();
            (!as_it_should).then(|| format!("{name} is {id:?}, its place is {place:?}, its log {open:?}"))
        })
    }
}
