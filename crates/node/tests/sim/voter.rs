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

use godwit_control::{Condition, Config, DiskError, Driver, Members, NodeId, ProposeError, Role, StartError};
use godwit_node::replica::Bells;

use crate::disk::{Folder, PLANNED};
use crate::event::Event;
use crate::leader::Leading;
use crate::watched::{Answer, Caller, Seen, Sent, Shared, Watched, Wire, drain};
use crate::world::{At, Who, World, ms};

/// Ticks of a voter, in microseconds of its own clock.
const TICK_US: u64 = 100_000;

/// Something for a voter.
#[derive(Debug)]
pub(crate) enum Input {
    Tick,
    Peer(At, Arc<[u8]>),
    Propose(u64, Vec<u8>),
    Prove(u64),
}

/// See the module.
pub(crate) struct Voter {
    pub(crate) id: NodeId,
    pub(crate) disk: Folder,
    starts: u64,
    driver: Option<Driver<Watched>>,
    sent: Shared<Sent>,
    seen: Shared<Seen>,
    /// What it has answered, which is not heard before what it rests on is synced.
    answers: Shared<(u64, Answer)>,
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
    pub(crate) leading: Option<Leading>,
}

impl Voter {
    pub(crate) fn new(id: NodeId, founders: Members) -> Self {
        Self {
            id,
            disk: Folder::new(founders),
            starts: 0,
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
}

impl World {
    pub(crate) fn voter(&mut self, at: At) -> Option<&mut Voter> {
        self.machines[at].voter.as_mut()
    }

    /// `false`: it did not start, and is tried again.
    pub(crate) fn start_voter(&mut self, at: At) -> bool {
        let (voters, now) = (self.voters.clone(), self.local(at));
        let Some(voter) = self.voter(at) else { return true };
        voter.starts += 1;
        let mut config = Config::new(voter.id, voters, voter.id.get() * 1000 + voter.starts);
        (config.snapshot_entries, config.keep_entries) = (40, 8);
        (voter.sent, voter.seen, voter.bells) = (Arc::default(), Arc::default(), Arc::default());
        let outbox = Arc::new(Wire { sent: Arc::clone(&voter.sent), disk: voter.disk.clone() });
        let machine = Watched::new(Arc::clone(&voter.bells), Arc::clone(&voter.seen));
        let started = Driver::start(config, machine, Box::new(voter.disk.clone()), outbox, now);
        (voter.role, voter.term, voter.leading) = (Role::Follower, 0, None);
        voter.turn_comes = false;
        self.law.forget_voter(at);
        match started {
            Ok(driver) => {
                if let Some(voter) = self.voter(at) {
                    voter.driver = Some(driver);
                }
                self.law.started(at);
                let (who, first) = (self.who(at), self.random.u64(0..TICK_US));
                self.later(first, Event::Tick(who));
                self.input(at, None);
                true
            }
            Err(StartError::Disk(DiskError::Damaged { .. })) if self.is_torn(at) => {
                self.note(|world| format!("{}: its disk is damaged, as planned", world.machines[at].name));
                false
            }
            Err(StartError::Disk(error)) if chain(&error).contains(PLANNED) => {
                self.note(|world| format!("{}: does not start: {}", world.machines[at].name, chain(&error)));
                self.later(ms(150), Event::Start(at));
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
        let unsaid = drain(&voter.answers).into_iter().map(|(number, _)| number);
        let unread = waiting.into_iter().filter_map(|input| match input {
            Input::Propose(number, _) | Input::Prove(number) => Some(number),
            Input::Tick | Input::Peer(..) => None,
        });
        let unknown: Vec<u64> = unsaid.chain(unread).collect();
        for number in unknown {
            if let Some(asking) = self.asking.remove(&number) {
                self.heard(asking, Answer::Unknown);
            }
        }
    }

    pub(crate) fn tick(&mut self, who: Who) {
        let us = TICK_US * 1000 / self.machines[who.at].clock.rate;
        let us = if self.calm { us } else { us + self.random.u64(0..8000) };
        self.later(us, Event::Tick(who));
        self.input(who.at, Some(Input::Tick));
    }

    pub(crate) fn peer(&mut self, at: At, from: At, bytes: Arc<[u8]>) {
        self.input(at, Some(Input::Peer(from, bytes)));
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
            Input::Peer(from, bytes) => {
                let from = NodeId::new(from as u64 + 1).unwrap_or_else(|| unreachable!("not 0"));
                if let Err(error) = driver.receive(from, &bytes) {
                    panic!("a voter's message is not taken: {}", chain(&error));
                }
            }
            Input::Propose(number, entry) => {
                let mut caller = Caller::new(number, &answers);
                let reply = Box::new(move |reply| match reply {
                    Ok(outcome) => caller.hear(Answer::Agreed(outcome)),
                    Err(ProposeError::Unknown) => caller.hear(Answer::Unknown),
                    Err(_) => caller.hear(Answer::NotTaken),
                });
                driver.propose(entry, now, reply);
            }
            Input::Prove(number) => {
                let mut caller = Caller::new(number, &answers);
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
        let who = self.who(at);
        self.later(busy, Event::Synced(who));
    }

    /// A slow sync has ended: what rests on it is seen, and what came in meanwhile is taken.
    pub(crate) fn synced(&mut self, at: At) {
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

    fn send(&mut self, from: At, sent: Vec<Sent>) {
        for Sent { to, bytes, .. } in sent {
            let to = usize::try_from(to.get() - 1).unwrap_or_default();
            let bytes: Arc<[u8]> = bytes.into();
            let copies = if self.rarely(from, to, 2) { 2 } else { 1 };
            for _ in 0..copies {
                if let Some(us) = self.carry(from, to) {
                    let to = self.who(to);
                    self.later(us, Event::Peer { to, from, bytes: Arc::clone(&bytes) });
                }
            }
        }
    }

    /// What a voter has become and done, and what follows from it.
    fn observe(&mut self, at: At) {
        let Some(voter) = self.machines[at].voter.as_mut() else { return };
        let Some(driver) = voter.driver.as_ref() else { return };
        let view = driver.view();
        let seen = drain(&voter.seen);
        let (was, is) = ((voter.role, voter.term), (view.role, view.term));
        (voter.role, voter.term) = is;
        let has_applied = !seen.is_empty();
        for seen in seen {
            self.applied(at, seen);
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
            self.compare(at);
        }
        let stays = was == is && is.0 == Role::Leader;
        if (was.0 == Role::Leader && !stays) || (is.0 != Role::Leader && self.leads(at)) {
            self.stop_leading(at);
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
        for (number, answer) in answers.unwrap_or_default() {
            self.law.answered(number, &answer);
            if let Some(asking) = self.asking.remove(&number) {
                self.heard(asking, answer);
            }
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
