//! A voter: the real driver on a disk that may fail, and what becomes of its outputs.
//!
//! ```text
//!   input ─▶ driver ─▶ turn ─┬─▶ messages ─▶ links
//!                            ├─▶ applied ──▶ law          not before a slow sync has ended:
//!                            ├─▶ answers ──▶ who asked    a crash before that takes them along
//!                            └─▶ bells ────▶ pushes
//! ```
//!
//! Always true: nobody sees what rests on a sync that has not ended.

use std::sync::Arc;

use godwit_control::envelope::peek;
use godwit_control::{
    Condition, Config, DiskError, Driver, Members, NodeId, ProposeError, Role, StartError, Wanted,
};
use godwit_node::book;
use godwit_node::replica::Bells;

use crate::disk::{Folder, PLANNED};
use crate::event::Event;
use crate::leader::Leading;
use crate::watched::{Answer, Answers, Caller, Done, Seen, Sent, Shared, Watched, Wire, drain, drain_early};
use crate::world::{At, Who, World, ms};

/// Ticks of a voter, in microseconds of its own clock.
const TICK_US: u64 = 100_000;

/// Something for a voter.
#[derive(Debug)]
pub(crate) enum Input {
    Tick,
    Peer((NodeId, At), Arc<[u8]>),
    Propose(u64, Vec<u8>),
    /// A change of the group, and the entry that goes with it.
    Change(u64, Wanted, Vec<u8>),
    /// Another one shall lead.
    HandOn,
    Prove(u64),
}

/// See the module.
pub(crate) struct Voter {
    pub(crate) id: NodeId,
    pub(crate) disk: Folder,
    /// Who has founded its group.
    founders: Members,
    /// Which opening of which log this is.
    opened: u64,
    driver: Option<Driver<Watched>>,
    sent: Shared<Sent>,
    seen: Shared<Done<Seen>>,
    /// What it has answered; behind a slow sync it is not heard before that has ended.
    answers: Answers,
    pub(crate) bells: Arc<Bells>,
    /// A slow sync is under way, and its end has not been seen.
    is_syncing: bool,
    /// What came in meanwhile.
    waiting: Vec<Input>,
    /// What leaves when it has ended.
    late: Vec<Sent>,
    turn_comes: bool,
    /// What it was when it was looked at last.
    pub(crate) role: Role,
    pub(crate) term: u64,
    /// Who was in the group then.
    pub(crate) members: Arc<Members>,
    pub(crate) leading: Option<Leading>,
}

impl Voter {
    /// One whose log is empty.
    pub(crate) fn new(id: NodeId, founders: Members) -> Self {
        Self {
            id,
            disk: Folder::new(founders.clone()),
            members: Arc::new(founders.clone()),
            founders,
            opened: 0,
            driver: None,
            sent: Arc::default(),
            seen: Arc::default(),
            answers: Arc::default(),
            bells: Arc::default(),
            is_syncing: false,
            waiting: Vec::new(),
            late: Vec::new(),
            turn_comes: false,
            role: Role::Follower,
            term: 0,
            leading: None,
        }
    }

    /// The driver, if what it shows can be seen.
    pub(crate) fn seen(&self) -> Option<&Driver<Watched>> {
        self.driver.as_ref().filter(|_| !self.is_syncing)
    }

    /// Its log is open.
    pub(crate) fn is_open(&self) -> bool {
        self.driver.is_some()
    }

    /// It has applied that it is in the group no more.
    pub(crate) fn is_removed(&self) -> bool {
        self.seen().is_some_and(|driver| driver.view().condition == Condition::Removed)
    }
}

impl World {
    pub(crate) fn voter(&mut self, at: At) -> Option<&mut Voter> {
        self.machines[at].voter.as_mut()
    }

    /// Opens its log. `false`: it did not start.
    pub(crate) fn start_voter(&mut self, at: At) -> bool {
        let (opened, now) = (self.number(), self.local(at));
        let Some(voter) = self.voter(at) else { return true };
        voter.opened = opened;
        let mut config = Config::joining(voter.id, voter.founders.clone(), opened);
        (config.snapshot_entries, config.keep_entries) = (40, 8);
        (voter.sent, voter.seen, voter.bells) = (Arc::default(), Arc::default(), Arc::default());
        let outbox = Arc::new(Wire { sent: Arc::clone(&voter.sent), disk: voter.disk.clone() });
        let machine = Watched::new(Arc::clone(&voter.bells), Arc::clone(&voter.seen), voter.disk.clone());
        let started = Driver::start(config, machine, Box::new(voter.disk.clone()), outbox, now);
        (voter.role, voter.term, voter.leading) = (Role::Follower, 0, None);
        (voter.turn_comes, voter.is_syncing) = (false, false);
        self.law.forget_voter(at);
        match started {
            Ok(driver) => {
                if let Some(voter) = self.voter(at) {
                    voter.members = driver.view().members;
                    voter.driver = Some(driver);
                }
                self.law.started(at);
                let (who, first) = (self.who(at), self.random.u64(0..TICK_US));
                self.later(first, Event::Tick(who, opened));
                self.input(at, None);
                true
            }
            Err(StartError::Disk(DiskError::Damaged { .. })) if self.is_torn(at) => {
                self.note(|world| format!("{}: its disk is damaged, as planned", world.machines[at].name));
                false
            }
            Err(StartError::Disk(error)) if chain(&error).contains(PLANNED) => {
                self.note(|world| format!("{}: does not start: {}", world.machines[at].name, chain(&error)));
                false
            }
            Err(error) => panic!("voter {} does not start: {}", self.machines[at].name, chain(&error)),
        }
    }

    pub(crate) fn is_torn(&self, at: At) -> bool {
        self.machines[at].voter.as_ref().is_some_and(|voter| voter.disk.is_torn())
    }

    pub(crate) fn stop_voter(&mut self, at: At) {
        let Some(voter) = self.machines[at].voter.as_mut() else { return };
        voter.disk.crash(&mut self.random);
        (voter.is_syncing, voter.role, voter.leading) = (false, Role::Follower, None);
        voter.late.clear();
        let waiting = std::mem::take(&mut voter.waiting);
        drop(voter.driver.take());
        // What it has not said yet nobody knows.
        let unsaid = drain(&voter.answers).into_iter().map(|done| done.what.0);
        let unread = waiting.into_iter().filter_map(|input| match input {
            Input::Propose(number, _) | Input::Change(number, ..) | Input::Prove(number) => Some(number),
            Input::Tick | Input::Peer(..) | Input::HandOn => None,
        });
        let unknown: Vec<u64> = unsaid.chain(unread).collect();
        for number in unknown {
            if let Some(asking) = self.asking.remove(&number) {
                self.heard(asking, Answer::Unknown);
            }
        }
    }

    pub(crate) fn tick(&mut self, who: Who, opened: u64) {
        if !self.has_open(who.at, opened) {
            return;
        }
        let us = TICK_US * 1000 / self.machines[who.at].clock.rate;
        let us = if self.calm { us } else { us + self.random.u64(0..8000) };
        self.later(us, Event::Tick(who, opened));
        self.input(who.at, Some(Input::Tick));
    }

    fn has_open(&self, at: At, opened: u64) -> bool {
        self.machines[at].voter.as_ref().is_some_and(|voter| voter.is_open() && voter.opened == opened)
    }

    /// Nobody hears who is in the group no more.
    pub(crate) fn peer(&mut self, at: At, from: (NodeId, At), bytes: Arc<[u8]>) {
        let (machine, name) = (&self.machines[at], &self.machines[from.1].name);
        let Some(voter) = machine.voter.as_ref().filter(|voter| voter.is_open()) else { return };
        if book::is_in(&voter.members, machine.book.as_ref(), from.0, name) {
            self.input(at, Some(Input::Peer(from, bytes)));
        }
    }

    /// Something comes in, and a turn follows, together with what else comes until then.
    pub(crate) fn input(&mut self, at: At, input: Option<Input>) {
        let Some(voter) = self.voter(at) else { return };
        if voter.is_syncing {
            return voter.waiting.extend(input);
        }
        if let Some(input) = input {
            self.take(at, input);
        }
        let after = self.random.u64(0..300);
        let who = self.who(at);
        if let Some(voter) = self.voter(at)
            && !std::mem::replace(&mut voter.turn_comes, true)
        {
            self.later(after, Event::Turn(who));
        }
    }

    fn take(&mut self, at: At, input: Input) {
        let now = self.local(at);
        let Some(voter) = self.machines[at].voter.as_mut() else { return };
        let answers = Arc::clone(&voter.answers);
        let Some(driver) = voter.driver.as_mut() else { return };
        match input {
            Input::Tick => driver.tick(now),
            Input::Peer((from, _), bytes) => {
                if let Err(error) = driver.receive(from, &bytes) {
                    // Who has come again is somebody else, and not who was meant.
                    let to = peek(&bytes).map(|message| message.to);
                    assert!(
                        to.is_ok_and(|to| to != voter.id.get()),
                        "a message is not taken: {}",
                        chain(&error)
                    );
                }
            }
            Input::Propose(number, entry) => {
                driver.propose(entry, now, replied(number, &answers, &voter.disk))
            }
            Input::Change(number, wanted, entry) => {
                driver.change(&wanted, entry, now, replied(number, &answers, &voter.disk));
            }
            Input::HandOn => driver.hand_on(),
            Input::Prove(number) => {
                let mut caller = Caller::new(number, &answers, &voter.disk);
                driver.prove(now, Box::new(move |is_proven| caller.hear(Answer::Proven(is_proven))));
            }
        }
        self.hear_answers(at);
    }

    /// What has come in is acted on.
    pub(crate) fn turn(&mut self, at: At) {
        let local = self.local(at);
        let Some(voter) = self.machines[at].voter.as_mut() else { return };
        voter.turn_comes = false;
        if voter.is_syncing {
            return;
        }
        let Some(driver) = voter.driver.as_mut() else { return };
        while driver.turn(local) {}
        let busy = voter.disk.take_busy();
        let (late, early): (Vec<Sent>, Vec<Sent>) =
            drain(&voter.sent).into_iter().partition(|sent| sent.late);
        voter.late = late;
        self.send(at, early);
        if busy == 0 {
            return self.observe(at);
        }
        if let Some(voter) = self.voter(at) {
            voter.is_syncing = true;
        }
        self.note(|world| format!("{}: a sync takes {} ms", world.machines[at].name, busy / 1000));
        self.see_early(at);
        let who = self.who(at);
        let opened = self.voter(at).map_or(0, |voter| voter.opened);
        self.later(busy, Event::Synced(who, opened));
    }

    /// What was applied before a slow sync, and is answered meanwhile.
    fn see_early(&mut self, at: At) {
        let Some(voter) = self.machines[at].voter.as_ref() else { return };
        let Some(driver) = voter.driver.as_ref() else { return };
        let (view, before) = (driver.view(), Arc::clone(&voter.members));
        let (seen, answers) = (drain_early(&voter.seen), drain_early(&voter.answers));
        for seen in seen {
            if let (Seen::Applied { index, .. }, Role::Leader) = (&seen, view.role) {
                self.quorum_has(at, *index, [&before, &view.members]);
            }
            self.applied(at, seen);
        }
        for (number, answer) in answers {
            self.answer(number, answer);
        }
    }

    /// A slow sync has ended: what rests on it is seen, and what came in meanwhile is taken.
    pub(crate) fn synced(&mut self, at: At, opened: u64) {
        if !self.has_open(at, opened) {
            return;
        }
        let Some(voter) = self.machines[at].voter.as_mut() else { return };
        voter.is_syncing = false;
        voter.disk.settle();
        let (late, waiting) = (std::mem::take(&mut voter.late), std::mem::take(&mut voter.waiting));
        self.send(at, late);
        self.observe(at);
        // Ticks that were missed are one.
        let mut ticked = false;
        for input in waiting {
            if !matches!(input, Input::Tick) || !std::mem::replace(&mut ticked, true) {
                self.input(at, Some(input));
            }
        }
    }

    fn send(&mut self, at: At, sent: Vec<Sent>) {
        let Some(id) = self.voter(at).map(|voter| voter.id) else { return };
        for Sent { to, bytes, .. } in sent {
            let Some(to) = self.where_is(at, to) else { continue };
            let bytes: Arc<[u8]> = bytes.into();
            let from = at;
            self.tempt_snapshot(from, to, &bytes);
            let copies = if self.rarely(from, to, 2) { 2 } else { 1 };
            for _ in 0..copies {
                if let Some(us) = self.carry(from, to) {
                    let to = self.who(to);
                    self.later(us, Event::Peer { to, from: (id, from), bytes: Arc::clone(&bytes) });
                }
            }
        }
    }

    /// The machine of a member, as far as this one knows it.
    fn where_is(&self, at: At, id: NodeId) -> Option<At> {
        let machine = &self.machines[at];
        let applied = machine.voter.as_ref()?.driver.as_ref()?.view().members;
        let told = machine.book.as_ref().map(|book| &book.members);
        let told = told.filter(|told| told.index() > applied.index());
        let member = applied.get(id).or_else(|| told.and_then(|told| told.get(id)))?;
        self.at_of(&member.name)
    }

    /// What a voter has become and done, and what follows from it.
    fn observe(&mut self, at: At) {
        let Some(voter) = self.machines[at].voter.as_mut() else { return };
        let Some(driver) = voter.driver.as_ref() else { return };
        let view = driver.view();
        let seen = drain(&voter.seen);
        let (was, is) = ((voter.role, voter.term), (view.role, view.term));
        (voter.role, voter.term) = is;
        let members = std::mem::replace(&mut voter.members, Arc::clone(&view.members));
        let has_applied = !seen.is_empty();
        for seen in seen {
            self.applied(at, seen.what);
        }
        self.hear_answers(at);
        if let Condition::Crashed { why } = &view.condition {
            assert!(why.contains(PLANNED), "voter {} died: {why}", self.machines[at].name);
            self.note(|world| format!("{}: its voter died: {why}", world.machines[at].name));
            self.kill(at);
            let after = self.random.u64(ms(50)..ms(800));
            return self.later(after, Event::Start(at));
        }
        if was != is {
            self.note(|world| format!("{}: {:?} in term {}", world.machines[at].name, is.0, is.1));
            if is.0 == Role::Leader {
                self.law.leads(at, is.1);
            }
            self.tempt_election(at, is.0);
        }
        if has_applied {
            let name = self.machines[at].name.clone();
            self.law.group.is_seen(&name, &view.members, view.applied);
            if is.0 == Role::Leader {
                self.quorum_has(at, view.applied, [&members, &view.members]);
            }
            self.compare(at);
        }
        let stays = was == is && is.0 == Role::Leader;
        if (was.0 == Role::Leader && !stays) || (is.0 != Role::Leader && self.leads(at)) {
            self.stop_leading(at);
        }
        if view.condition == Condition::Removed {
            return self.tend_seat(at);
        }
        if is.0 == Role::Leader {
            if !self.leads(at) {
                self.begin_leading(at, is.1);
            }
            if has_applied {
                self.leader_looks(at);
            }
            self.push_what_rings(at);
        }
    }

    fn leads(&self, at: At) -> bool {
        self.machines[at].voter.as_ref().is_some_and(|voter| voter.leading.is_some())
    }

    /// Whoever waits hears what a voter has answered.
    fn hear_answers(&mut self, at: At) {
        let answers = self.machines[at].voter.as_ref().map(|voter| drain(&voter.answers));
        for done in answers.unwrap_or_default() {
            let (number, answer) = done.what;
            self.answer(number, answer);
        }
    }

    fn answer(&mut self, number: u64, answer: Answer) {
        self.law.answered(number, &answer);
        if let Some(asking) = self.asking.remove(&number) {
            self.heard(asking, answer);
        }
    }

    /// Who leads now, as far as anybody knows: the latest.
    pub(crate) fn leader(&self) -> Option<At> {
        let leads =
            |at: &At| self.machines[*at].voter.as_ref().is_some_and(|voter| voter.role == Role::Leader);
        let term = |at: &At| self.machines[*at].voter.as_ref().map_or(0, |voter| voter.term);
        (0..self.machines.len()).filter(|at| self.machines[*at].runs && leads(at)).max_by_key(term)
    }
}

/// What is called with a voter's reply.
fn replied(
    number: u64,
    answers: &Answers,
    disk: &Folder,
) -> godwit_control::driver::Caller<crate::law::Outcome> {
    let mut caller = Caller::new(number, answers, disk);
    Box::new(move |reply| match reply {
        Ok(outcome) => caller.hear(Answer::Agreed(outcome)),
        Err(ProposeError::Unknown) => caller.hear(Answer::Unknown),
        Err(_) => caller.hear(Answer::NotTaken),
    })
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
