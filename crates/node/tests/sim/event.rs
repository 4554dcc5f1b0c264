//! Everything that can happen, and to whom.

use std::sync::Arc;

use godwit_control::NodeId;
use godwit_domain::ownership::Mode;
use godwit_domain::registry::{Command, GuestUid};
use godwit_domain::{Epoch, InstanceId, MigrationId, NodeName};
use godwit_wire::session::{Answer, Membership, Push};

use crate::host::Order;
use crate::luck::Fate;
use crate::operator::Request;
use crate::world::{At, Who, World};

/// The closing frame of a switchover.
#[derive(Debug, Clone)]
pub(crate) struct Final {
    pub(crate) migration: MigrationId,
    pub(crate) sealed: Epoch,
    pub(crate) target: InstanceId,
    pub(crate) age: u64,
    pub(crate) mode: Mode,
}

/// A voter's answer to a node that looks for the leader.
#[derive(Debug, Clone)]
pub(crate) enum Welcome {
    Leads(u64, Box<Membership>),
    Elsewhere(Option<NodeName>, Option<Box<Membership>>),
}

#[derive(Debug)]
pub(crate) enum Event {
    // ---- a voter
    Tick(Who, u64),
    /// What came in is acted on.
    Turn(Who),
    /// A slow sync has ended.
    Synced(Who, u64),
    Peer {
        to: Who,
        from: (NodeId, At),
        bytes: Arc<[u8]>,
    },
    /// The leader's loop looks though nothing has happened.
    LeaderLooks(Who, u64),
    /// A place is tried again that could not be taken.
    Seat(Who),

    // ---- a node's session
    Seek(Who),
    SeekTimeout(Who, u64),
    Hello {
        to: Who,
        from: Who,
        attempt: u64,
    },
    Welcome {
        to: Who,
        attempt: u64,
        from: At,
        welcome: Welcome,
    },
    Keep(u64),
    Closed {
        to: Who,
        session: u64,
    },
    Push {
        to: Who,
        session: u64,
        number: u64,
        push: Box<Push>,
    },
    Ask {
        to: Who,
        session: u64,
        pending: u64,
        command: Box<Command>,
    },
    Answer {
        to: Who,
        session: u64,
        pending: u64,
        answer: Box<Answer>,
    },
    AskQuorum(Who, u64),
    Quorum {
        to: Who,
        session: u64,
        asked: u64,
    },
    QuorumAge {
        to: Who,
        asked: u64,
        age_us: u64,
    },
    AskTimeout {
        to: Who,
        pending: u64,
        attempt: u64,
    },
    Again {
        to: Who,
        pending: u64,
    },

    // ---- a node
    Look(Who),
    Obey {
        to: Who,
        instance: InstanceId,
        order: Order,
    },
    /// A runner's process is there; the node that asked for it may be gone.
    Spawned {
        at: At,
        boot: u128,
        who: Who,
        uid: GuestUid,
        made: Epoch,
        arriving: Option<MigrationId>,
    },
    Started {
        to: Who,
        uid: GuestUid,
        instance: Option<InstanceId>,
        made: Epoch,
        arriving: Option<MigrationId>,
    },
    Died {
        to: Who,
        instance: InstanceId,
    },
    Move(Who, MigrationId),
    Final {
        to: Who,
        from: At,
        closed: Final,
    },

    // ---- people and fate
    Operate,
    Request {
        to: Who,
        request: Request,
    },
    RequestTimeout {
        number: u64,
        attempt: u64,
    },
    Misfortune,
    Strike {
        fate: Fate,
        inside: Option<GuestUid>,
    },
    Start(At),
    Boot(At),
    Room(At),
}

impl Event {
    /// The process that it is for.
    pub(crate) fn who(&self) -> Option<Who> {
        match self {
            Self::Tick(who, _) | Self::Synced(who, _) | Self::LeaderLooks(who, _) => Some(*who),
            Self::Turn(who) | Self::Seat(who) => Some(*who),
            Self::Seek(who) | Self::SeekTimeout(who, _) | Self::AskQuorum(who, _) => Some(*who),
            Self::Look(who) | Self::Move(who, _) => Some(*who),
            Self::Peer { to, .. }
            | Self::Hello { to, .. }
            | Self::Welcome { to, .. }
            | Self::Closed { to, .. }
            | Self::Push { to, .. }
            | Self::Ask { to, .. }
            | Self::Answer { to, .. }
            | Self::Quorum { to, .. }
            | Self::QuorumAge { to, .. }
            | Self::AskTimeout { to, .. }
            | Self::Again { to, .. }
            | Self::Obey { to, .. }
            | Self::Started { to, .. }
            | Self::Died { to, .. }
            | Self::Final { to, .. }
            | Self::Request { to, .. } => Some(*to),
            Self::Keep(_)
            | Self::Spawned { .. }
            | Self::Operate
            | Self::RequestTimeout { .. }
            | Self::Misfortune
            | Self::Strike { .. }
            | Self::Start(_)
            | Self::Boot(_)
            | Self::Room(_) => None,
        }
    }
}

impl World {
    pub(crate) fn happens(&mut self, event: Event) {
        match event {
            Event::Tick(who, opened) => self.tick(who, opened),
            Event::Turn(who) => self.turn(who.at),
            Event::Synced(who, opened) => self.synced(who.at, opened),
            Event::Peer { to, from, bytes } => self.peer(to.at, from, bytes),
            Event::LeaderLooks(who, term) => self.leader_looks_again(who, term),
            Event::Seat(who) => self.tend_seat(who.at),
            Event::Seek(who) => self.seek(who),
            Event::SeekTimeout(who, attempt) => self.seek_timeout(who, attempt),
            Event::Hello { to, from, attempt } => self.hello(to, from, attempt),
            Event::Welcome { to, attempt, from, welcome } => self.welcome(to, attempt, from, welcome),
            Event::Keep(session) => self.keep(session),
            Event::Closed { to, session } => self.session_ended(to.at, session),
            Event::Push { to, session, number, push } => self.push_comes(to, session, number, push),
            Event::Ask { to, session, pending, command } => self.asked(to, session, pending, *command),
            Event::Answer { to, session, pending, answer } => self.answered(to, session, pending, *answer),
            Event::AskQuorum(who, session) => self.ask_quorum(who, session),
            Event::Quorum { to, session, asked } => self.quorum_asked(to, session, asked),
            Event::QuorumAge { to, asked, age_us } => self.quorum_age(to.at, asked, age_us),
            Event::AskTimeout { to, pending, attempt } => self.ask_timeout(to, pending, attempt),
            Event::Again { to, pending } => self.ask_again(to, pending),
            Event::Look(who) => self.look_at_all_now_and_then(who),
            Event::Obey { to, instance, order } => self.obey(to.at, instance, order),
            Event::Spawned { at, boot, who, uid, made, arriving } => {
                self.spawned(at, boot, who, uid, made, arriving);
            }
            Event::Started { to, uid, instance, made, arriving } => {
                self.started(to.at, uid, instance, made, arriving);
            }
            Event::Died { to, instance } => self.died(to.at, instance),
            Event::Move(who, migration) => self.moves(who, &migration),
            Event::Final { to, from, closed } => self.final_comes(to, from, closed),
            Event::Operate => self.operate(),
            Event::Request { to, request } => self.requested(to, request),
            Event::RequestTimeout { number, attempt } => self.request_timeout(number, attempt),
            Event::Misfortune => self.misfortune(),
            Event::Strike { fate, inside } => self.strike(fate, inside),
            Event::Start(at) => self.start(at),
            Event::Boot(at) => self.boot(at),
            Event::Room(at) => self.room(at),
        }
    }
}
