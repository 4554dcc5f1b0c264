//! What goes wrong, at random and, more often, just where it hurts: near a hand-over.
//!
//! ```text
//!   misfortune, now and then ────────────────┐
//!   tempt: a pause, a hand-over, a start ────┴─▶ strike ─▶ mended after a while
//! ```
//!
//! Always true: everything that breaks is mended by itself, but for a torn disk.

use fastrand::Rng;
use godwit_control::Role;
use godwit_control::envelope::is_snapshot;
use godwit_domain::ownership::{Ownership, Phase};
use godwit_domain::registry::GuestUid;
use godwit_domain::{InstanceId, NodeName};

use crate::disk::Trouble;
use crate::event::Event;
use crate::world::{At, World, ms};

/// Something that breaks.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    Kill(At),
    PowerCut(At),
    RunnerDies(At, InstanceId),
    Cut {
        a: At,
        b: At,
        one_way: bool,
        us: u64,
    },
    Alone(At, u64),
    Slow {
        a: At,
        b: At,
        us: u64,
    },
    Sleeps(At, u64),
    Disk(At, Trouble),
    DiskFull(At, u64),
    ClockJumps(At, u64),
    /// It is not heard by other voters, and what they have sent it comes late; then it is stunned.
    Dazed(At, u64),
    /// It falls asleep, and wakes when others have gone on, of which it hears only a while after.
    Stunned(At, u64),
}

/// How a history is troubled.
#[derive(Debug)]
pub(crate) struct Luck {
    pub(crate) guests: usize,
    /// How likely a moment inside a hand-over tempts fate, in percent.
    tempting: u32,
    /// Time between two misfortunes at most.
    rest_us: u64,
    /// How often people think of the control group, in percent of what they do.
    pub(crate) changing: u32,
    /// How few voters they leave it.
    pub(crate) fewest: usize,
    /// A disk may be torn; and it was.
    tears: bool,
    torn: bool,
}

impl Luck {
    /// `apart`: voters have machines of their own, where nothing but a voter is lost with a disk.
    pub(crate) fn new(random: &mut Rng, apart: bool) -> Self {
        let tears = apart && random.u32(0..12) == 0;
        Self {
            guests: random.usize(1..=3),
            tempting: random.u32(15..45),
            rest_us: random.u64(ms(600)..ms(3000)),
            changing: if random.u32(0..4) == 0 { 0 } else { random.u32(3..12) },
            fewest: [1, 2, 2, 3, 3, 3][random.usize(0..6)],
            tears,
            torn: !tears,
        }
    }

    /// Whether a disk may be torn.
    pub(crate) fn tears(&self) -> bool {
        self.tears
    }
}

impl World {
    /// Anything, anywhere.
    pub(crate) fn misfortune(&mut self) {
        let rest = self.luck.rest_us;
        let us = self.random.u64(ms(100)..rest);
        self.later(us, Event::Misfortune);
        if self.calm {
            return;
        }
        let at = self.random.usize(0..self.machines.len());
        let other = self.random.usize(0..self.machines.len());
        let fate = self.fate(at, other);
        let inside = self.anybody_inside();
        self.strike(fate, inside);
    }

    /// A guest is inside its hand-over: something breaks, more likely than not, to those that matter to it.
    pub(crate) fn tempt(&mut self, at: At, uid: GuestUid) {
        if self.calm || self.random.u32(0..100) >= self.luck.tempting {
            return;
        }
        let mut involved = self.involved(uid);
        involved.push(at);
        involved.extend(self.leader());
        let one = involved[self.random.usize(0..involved.len())];
        let other = involved[self.random.usize(0..involved.len())];
        let fate = self.fate(one, other);
        let us = self.random.u64(0..ms(12));
        self.later(us, Event::Strike { fate, inside: Some(uid) });
    }

    /// An election: its winner is cut off from those who voted, one of whom forgets; or is slow to be heard.
    pub(crate) fn tempt_election(&mut self, at: At, role: Role) {
        let odds = match role {
            Role::PreCandidate => 15,
            Role::Leader => 30,
            Role::Follower | Role::Candidate | Role::Halted => 0,
        };
        if self.calm || self.random.u32(0..100) >= odds {
            return;
        }
        let others = self.other_voters(at);
        let Some(other) = self.random.choice(others) else { return };
        let us = self.random.u64(ms(1500)..ms(4000));
        self.strike(Fate::Cut { a: at, b: other, one_way: false, us }, None);
        if role == Role::Leader {
            match self.random.u32(0..3) {
                0 => {
                    let soon = self.random.u64(ms(20)..ms(120));
                    self.kill(other);
                    self.later(soon, Event::Start(other));
                }
                1 => {
                    for other in 0..self.machines.len() {
                        self.links.slow(at, other, self.now + ms(400), ms(400));
                    }
                }
                _ => self.strike(Fate::Dazed(at, us / 2), None),
            }
        }
    }

    /// The group changes, or is about to: something breaks between those that matter to it.
    pub(crate) fn tempt_change(&mut self, leader: At, node: &NodeName) {
        if self.calm || self.random.u32(0..100) >= self.luck.tempting {
            return;
        }
        let others = self.other_voters(leader);
        let other = self.random.choice(others).unwrap_or(leader);
        let member = self.at_of(node).unwrap_or(leader);
        let us = self.random.u64(ms(300)..ms(4000));
        let fate = match self.random.u32(0..9) {
            0 => Fate::Kill(leader),
            1 => Fate::Kill(member),
            2 => Fate::Kill(other),
            3 => Fate::Alone(leader, us),
            4 => Fate::Alone(member, us),
            5 => Fate::Cut { a: leader, b: other, one_way: self.random.bool(), us },
            6 => Fate::Cut { a: leader, b: member, one_way: self.random.bool(), us },
            7 => Fate::Sleeps(leader, us),
            _ => Fate::Dazed(leader, us / 2),
        };
        *self.cover.changes.entry("faults at a change").or_default() += 1;
        let us = self.random.u64(0..ms(12));
        self.later(us, Event::Strike { fate, inside: self.anybody_inside() });
    }

    /// A snapshot is on its way: one of its ends dies, or the link.
    pub(crate) fn tempt_snapshot(&mut self, from: At, to: At, bytes: &[u8]) {
        if self.calm || !is_snapshot(bytes) || self.random.u32(0..100) >= self.luck.tempting {
            return;
        }
        let us = self.random.u64(ms(30)..ms(2500));
        let fate = match self.random.u32(0..4) {
            0 => Fate::Kill(from),
            1 => Fate::Kill(to),
            2 => Fate::Cut { a: from, b: to, one_way: self.random.bool(), us },
            _ => Fate::Slow { a: from, b: to, us },
        };
        *self.cover.changes.entry("faults at a snapshot").or_default() += 1;
        let us = self.random.u64(0..ms(4));
        self.later(us, Event::Strike { fate, inside: self.anybody_inside() });
    }

    fn other_voters(&self, at: At) -> Vec<At> {
        let votes = |other: &At| *other != at && self.machines[*other].voter.is_some();
        (0..self.machines.len()).filter(votes).collect()
    }

    fn involved(&self, uid: GuestUid) -> Vec<At> {
        let guest = self.law.truth.guests.get(&uid);
        let nodes = guest.map(|guest| nodes_of(&guest.ownership)).unwrap_or_default();
        nodes.iter().filter_map(|node| self.at_of(node)).collect()
    }

    fn fate(&mut self, at: At, other: At) -> Fate {
        let votes = self.machines[at].voter.is_some();
        let us = self.random.u64(ms(30)..ms(2500));
        if self.may_tear(at) && self.random.u32(0..8) == 0 {
            self.luck.torn = true;
            return Fate::Disk(at, Trouble::Torn);
        }
        match self.random.u32(0..100) {
            0..24 => Fate::Kill(at),
            24..27 => Fate::PowerCut(at),
            27..31 => {
                let runners: Vec<InstanceId> = self.machines[at].host.runners.keys().copied().collect();
                self.random.choice(runners).map_or(Fate::Kill(at), |instance| Fate::RunnerDies(at, instance))
            }
            31..48 if at != other => Fate::Cut { a: at, b: other, one_way: self.random.bool(), us },
            31..52 => Fate::Alone(at, us),
            52..62 => Fate::Slow { a: at, b: other, us },
            62..70 => Fate::Sleeps(at, us),
            70..84 if votes => Fate::Disk(at, Trouble::SlowSync(us / 4)),
            84..91 if votes => Fate::Disk(at, Trouble::Fails(self.random.u32(0..4))),
            91..96 if votes => Fate::DiskFull(at, us),
            96 | 97 => Fate::ClockJumps(at, self.random.u64(0..60_000)),
            98 | 99 if votes => Fate::Dazed(self.leader().unwrap_or(at), us),
            _ => Fate::Kill(at),
        }
    }

    /// Of a voter's, once, where nothing else is lost with it.
    fn may_tear(&self, at: At) -> bool {
        let machine = &self.machines[at];
        let votes = self.law.group.names().get(&machine.name) == Some(&true);
        !self.luck.torn && !machine.hosts && votes && machine.voter.is_some()
    }

    /// It happens. `inside`: the guest whose hand-over it is meant for.
    pub(crate) fn strike(&mut self, fate: Fate, inside: Option<GuestUid>) {
        if self.calm {
            return;
        }
        let is_inside = inside.is_some_and(|uid| self.is_inside(uid));
        let mark = if is_inside { ", inside a hand-over" } else { "" };
        self.note(|_| format!("fate: {fate:?}{mark}"));
        if let Some(name) = self.breaks(fate) {
            self.cover.fault(name);
            self.cover.inside += u64::from(is_inside);
        }
    }

    fn breaks(&mut self, fate: Fate) -> Option<&'static str> {
        let now = self.now;
        Some(match fate {
            Fate::Kill(at) => {
                let us = self.random.u64(ms(20)..ms(1500));
                self.later(us, Event::Start(at));
                if !self.machines[at].runs {
                    return None;
                }
                self.kill(at);
                "process killed"
            }
            Fate::PowerCut(at) => {
                let us = self.random.u64(ms(300)..ms(4000));
                self.later(us, Event::Boot(at));
                if !self.machines[at].on {
                    return None;
                }
                self.cut_power(at);
                "power cut"
            }
            Fate::RunnerDies(at, instance) => {
                if !self.machines[at].host.runners.contains_key(&instance) {
                    return None;
                }
                self.runner_dies(at, instance);
                "runner died"
            }
            Fate::Cut { a, b, one_way, us } => {
                self.links.cut(a, b, now + us);
                if !one_way {
                    self.links.cut(b, a, now + us);
                }
                "link cut"
            }
            Fate::Alone(at, us) => {
                for other in (0..self.machines.len()).filter(|other| *other != at) {
                    self.links.cut(at, other, now + us);
                    self.links.cut(other, at, now + us);
                }
                "machine cut off"
            }
            Fate::Slow { a, b, us } => {
                self.links.slow(a, b, now + us, us);
                "link held up"
            }
            Fate::Sleeps(at, us) => {
                self.sleeps(at, us);
                "process stopped for a while"
            }
            Fate::Disk(at, trouble) => {
                self.machines[at].voter.as_ref()?.disk.plan(trouble);
                match trouble {
                    Trouble::SlowSync(_) => "slow sync",
                    Trouble::Fails(_) => "disk fails",
                    Trouble::Torn => "disk torn",
                }
            }
            Fate::DiskFull(at, us) => {
                self.machines[at].voter.as_ref()?.disk.set_full(true);
                self.later(us, Event::Room(at));
                "disk full"
            }
            Fate::Dazed(at, us) => {
                let (wait, sleep) = (self.random.u64(ms(50)..ms(400)), ms(1000) + us);
                for other in self.other_voters(at) {
                    self.links.cut(at, other, now + wait + sleep);
                    self.links.slow(other, at, now + wait, ms(4000));
                }
                self.later(wait, Event::Strike { fate: Fate::Stunned(at, sleep), inside: None });
                "process dazed"
            }
            Fate::Stunned(at, us) => {
                for other in self.other_voters(at) {
                    self.links.cut(other, at, now + us + ms(500));
                }
                self.sleeps(at, us);
                "process stunned"
            }
            Fate::ClockJumps(at, ms) => {
                let clock = &mut self.machines[at].clock;
                clock.offset_ms = clock.offset_ms.saturating_add(ms).saturating_sub(30_000);
                "clock jumped"
            }
        })
    }

    /// Whoever sleeps already is not woken earlier.
    fn sleeps(&mut self, at: At, us: u64) {
        let machine = &mut self.machines[at];
        machine.asleep_until = machine.asleep_until.max(self.now + us);
    }

    pub(crate) fn room(&mut self, at: At) {
        if let Some(voter) = self.voter(at) {
            voter.disk.set_full(false);
        }
    }

    /// Between the seal, or the proposal of its hand-over, and the agreed word that it runs.
    fn is_inside(&self, uid: GuestUid) -> bool {
        let agents = self.machines.iter().filter_map(|machine| machine.agent.as_ref());
        let stands_still = agents
            .flat_map(|agent| agent.transfers.values())
            .any(|transfer| transfer.uid == uid && transfer.is_inside());
        stands_still || self.law.truth.guests.get(&uid).is_some_and(|guest| is_handed_over(&guest.ownership))
    }

    fn anybody_inside(&self) -> Option<GuestUid> {
        self.law.truth.guests.keys().copied().find(|uid| self.is_inside(*uid))
    }
}

fn is_handed_over(ownership: &Ownership) -> bool {
    matches!(ownership.attempt.as_ref().map(|attempt| &attempt.phase), Some(Phase::HandedOver { .. }))
}

fn nodes_of(ownership: &Ownership) -> Vec<NodeName> {
    let mut nodes: Vec<NodeName> = ownership.owner().map(|owner| owner.node.clone()).into_iter().collect();
    if let Some(attempt) = &ownership.attempt {
        nodes.extend(attempt.phase.target_node().cloned());
        nodes.extend(attempt.phase.kept_source().map(|source| source.node.clone()));
    }
    nodes
}
