//! A migration's two sides, as the sessions of `godwit_transfer` drive them, without pages: what is told, sealed,
//! proposed and given up, and when.
//!
//! ```text
//!   source:  Copying ─ quorum answered ─▶ Stopping ─▶ Closing ─ view ─▶ HandedOver ─▶ over
//!                └──────────── fails ────────┴──────────┴─▶ Ending ─ view ─▶ resumed, over
//!   target:  Receiving ─ Final ─▶ Loading ─▶ Loaded ─ licence ─▶ Starting ─▶ Running ─▶ over
//!                └── fails ────────┴───────────┴─▶ given up
//! ```
//!
//! Always true: a guest that stands still is resumed by a view alone; once the target was told to run nothing is given up.

use godwit_domain::agent::RunnerState;
use godwit_domain::ownership::{Entry, Mode, Ownership, Phase, Side};
use godwit_domain::registry::GuestUid;
use godwit_domain::{Epoch, InstanceId, MigrationId};

use crate::agent::Owed;
use crate::event::{Event, Final};
use crate::host::Order;
use crate::world::{At, Who, World, ms};

/// How old a quorum's answer may be before a switchover.
const QUORUM_US: u64 = ms(1000);

/// One side of a migration, in one process.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub(crate) uid: GuestUid,
    pub(crate) migration: MigrationId,
    pub(crate) instance: InstanceId,
    /// Where the other side is.
    pub(crate) peer: Option<At>,
    pub(crate) stage: Stage,
    /// Since when it has no link.
    pub(crate) alone_since: u64,
    /// How long it goes on without one, in microseconds.
    pub(crate) patience_us: u64,
    /// It does not act before.
    pub(crate) not_before: u64,
    pub(crate) mode: Mode,
    /// The epoch under which the source's guest runs, or that it has sealed.
    pub(crate) epoch: Epoch,
    pub(crate) target: InstanceId,
    pub(crate) closing: Closing,
    pub(crate) proposed: bool,
    /// When its time is up.
    pub(crate) deadline: u64,
    /// A source's page session; a target's: the one that it was linked to last.
    pub(crate) session: u64,
}

/// What became of a source's closing frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    Kept,
    Left,
    Withheld,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    Copying,
    Stopping,
    Closing,
    HandedOver,
    Ending,
    Receiving,
    Loading(Epoch),
    Loaded(Epoch),
    Starting(Epoch),
    Running(Epoch),
}

impl Transfer {
    pub(crate) fn is_source(&self) -> bool {
        matches!(
            self.stage,
            Stage::Copying | Stage::Stopping | Stage::Closing | Stage::HandedOver | Stage::Ending
        )
    }

    pub(crate) fn has_started_nothing(&self) -> bool {
        matches!(self.stage, Stage::Receiving | Stage::Loading(_) | Stage::Loaded(_))
    }

    /// A guest stands still for it.
    pub(crate) fn is_inside(&self) -> bool {
        matches!(self.stage, Stage::Stopping | Stage::Closing | Stage::HandedOver)
    }
}

impl World {
    fn begins(&mut self, at: At, uid: GuestUid, view: &Ownership, instance: InstanceId, stage: Stage) {
        let Some(attempt) = &view.attempt else { return };
        let (source, target) = match &attempt.phase {
            Phase::Copying { source, target }
            | Phase::HandedOver { source, target, .. }
            | Phase::PostCopy { source, target, .. } => (source.node.clone(), Some(target.clone())),
            Phase::Preparing { source, .. } => (source.node.clone(), None),
            Phase::Pending | Phase::Succeeded | Phase::Failed { .. } | Phase::Cancelled { .. } => return,
        };
        let mode = match &attempt.phase {
            Phase::HandedOver { mode, .. } => *mode,
            Phase::PostCopy { .. } => Mode::PostCopy,
            _ if self.random.u32(0..10) < 3 => Mode::PostCopy,
            _ => Mode::StopAndCopy,
        };
        let is_target = target.as_ref().is_none_or(|target| target.instance == instance);
        let peer = if is_target { self.at_of(&source) } else { None };
        let peer = peer.or_else(|| target.as_ref().and_then(|target| self.at_of(&target.node)));
        let serves = stage == Stage::HandedOver;
        let transfer = Transfer {
            uid,
            migration: attempt.migration.clone(),
            instance,
            peer,
            stage,
            alone_since: self.now,
            patience_us: self.random.u64(ms(300)..ms(2500)),
            not_before: self.now + self.random.u64(ms(5)..ms(150)),
            mode,
            epoch: view.spoken_epoch(),
            target: target.map_or(instance, |target| target.instance),
            closing: if serves { Closing::Left } else { Closing::Kept },
            proposed: false,
            deadline: self.now + self.random.u64(ms(500)..ms(20_000)),
            session: if is_target { 0 } else { self.number() },
        };
        let (migration, who) = (transfer.migration.clone(), self.who(at));
        self.note(|world| format!("{}: {migration}: {:?} begins", world.machines[at].name, transfer.stage));
        if let Some(agent) = self.agent(at) {
            agent.transfers.insert(migration.clone(), transfer);
        }
        self.transfer_sees(at, &migration, view);
        let us = self.random.u64(ms(1)..ms(20));
        self.later(us, Event::Move(who, migration));
    }

    pub(crate) fn arrive(
        &mut self,
        at: At,
        uid: GuestUid,
        view: &Ownership,
        migration: &MigrationId,
        instance: InstanceId,
    ) {
        self.begins(at, uid, view, instance, Stage::Receiving);
        let entry = Entry::Accept { migration: migration.clone(), epoch: view.epoch, instance };
        self.owe(at, Owed::Guest(uid, entry));
    }

    pub(crate) fn resume_arrival(
        &mut self,
        at: At,
        uid: GuestUid,
        view: &Ownership,
        instance: InstanceId,
    ) -> bool {
        self.begins(at, uid, view, instance, Stage::Running(view.epoch));
        true
    }

    pub(crate) fn set_out(&mut self, at: At, uid: GuestUid, view: &Ownership, instance: InstanceId) {
        self.begins(at, uid, view, instance, Stage::Copying);
    }

    pub(crate) fn serve(&mut self, at: At, uid: GuestUid, view: &Ownership, instance: InstanceId) {
        self.begins(at, uid, view, instance, Stage::HandedOver);
    }

    pub(crate) fn transfer(&mut self, at: At, migration: &MigrationId) -> Option<&mut Transfer> {
        self.agent(at)?.transfers.get_mut(migration)
    }

    /// It is over; what is owed follows from the view again.
    pub(crate) fn ends(&mut self, at: At, migration: &MigrationId) {
        let Some(transfer) = self.agent(at).and_then(|agent| agent.transfers.remove(migration)) else {
            return;
        };
        self.note(|world| format!("{}: {migration}: {:?} ends", world.machines[at].name, transfer.stage));
        self.look(at, transfer.uid);
    }

    // ---- what runners say ----------------------------------------------------------------------------------

    pub(crate) fn transfer_paused(&mut self, at: At, migration: &MigrationId, epoch: Epoch) {
        let now = self.now;
        let after = self.random.u64(0..ms(25));
        let Some(transfer) = self.transfer(at, migration) else { return };
        if transfer.stage == Stage::Stopping && transfer.epoch == epoch {
            transfer.stage = Stage::Closing;
            transfer.not_before = now + after;
            let uid = transfer.uid;
            self.tempt(at, uid);
        }
    }

    pub(crate) fn transfer_loaded(&mut self, at: At, closed: &Final) {
        let Some(transfer) = self.transfer(at, &closed.migration) else { return };
        if transfer.stage != Stage::Loading(closed.sealed) {
            return;
        }
        transfer.stage = Stage::Loaded(closed.sealed);
        let uid = transfer.uid;
        let view = self.agent(at).and_then(|agent| agent.views.get(&uid)).map(|view| view.ownership.clone());
        if let Some(view) = view {
            self.transfer_sees(at, &closed.migration, &view);
        }
    }

    pub(crate) fn transfer_runs(&mut self, at: At, migration: &MigrationId) {
        let Some(transfer) = self.transfer(at, migration) else { return };
        let Stage::Starting(epoch) = transfer.stage else { return };
        transfer.stage = Stage::Running(epoch);
        let uid = transfer.uid;
        let entry = Entry::Running { migration: migration.clone(), epoch };
        self.owe(at, Owed::Guest(uid, entry));
    }

    /// A runner of a transfer has died.
    pub(crate) fn transfer_bereft(&mut self, at: At, instance: InstanceId) {
        let Some(agent) = self.machines[at].agent.as_ref() else { return };
        let of = agent.transfers.values().find(|transfer| transfer.instance == instance).cloned();
        let Some(transfer) = of else { return };
        let (uid, migration) = (transfer.uid, transfer.migration.clone());
        if transfer.has_started_nothing() {
            // The session has started nothing and its runner is gone: both together are proof.
            self.machines[at].host.tombstones.insert((uid, instance));
        }
        self.ends(at, &migration);
    }

    // ---- what comes over the link --------------------------------------------------------------------------

    pub(crate) fn final_comes(&mut self, to: Who, from: At, closed: Final) {
        if !self.is_linked(from, to.at) {
            return;
        }
        let Some(transfer) = self.transfer(to.at, &closed.migration) else { return };
        let newer = match transfer.stage {
            Stage::Receiving => true,
            Stage::Loading(known) | Stage::Loaded(known) => closed.sealed > known,
            _ => false,
        };
        if !newer || transfer.instance != closed.target {
            return;
        }
        transfer.stage = Stage::Loading(closed.sealed);
        transfer.mode = closed.mode;
        let instance = transfer.instance;
        self.order(to.at, instance, Order::Load(closed));
    }

    // ---- time ----------------------------------------------------------------------------------------------

    /// A little time has passed.
    pub(crate) fn moves(&mut self, who: Who, migration: &MigrationId) {
        let at = who.at;
        let now = self.now;
        let Some(transfer) = self.transfer(at, migration).cloned() else { return };
        let us = self.random.u64(ms(8)..ms(40));
        self.later(us, Event::Move(who, migration.clone()));
        if transfer.not_before > now {
            return;
        }
        let linked = transfer.peer.is_some_and(|peer| self.has_other_side(at, peer, &transfer));
        if let (true, Some(transfer)) = (linked, self.transfer(at, migration)) {
            transfer.alone_since = now;
        }
        if let (true, true, Some(peer)) = (linked, transfer.is_source(), transfer.peer) {
            self.links_to(peer, &transfer);
        }
        let is_alone = !linked && now - transfer.alone_since > transfer.patience_us;
        match transfer.stage {
            Stage::Copying | Stage::Stopping | Stage::Closing if is_alone => {
                self.source_fails(at, &transfer, Side::Source);
            }
            Stage::Copying | Stage::Closing if now > transfer.deadline && !self.calm => {
                self.source_fails(at, &transfer, Side::Deadline);
            }
            Stage::Copying if linked => self.switch_over(at, &transfer),
            Stage::Closing | Stage::HandedOver => self.close(at, &transfer, linked),
            Stage::Receiving if is_alone || (!linked && self.is_licensed(at, &transfer)) => {
                self.target_fails(at, &transfer);
            }
            Stage::Receiving | Stage::Loaded(_) if !self.calm && self.random.u32(0..700) == 0 => {
                self.target_fails(at, &transfer);
            }
            Stage::Running(epoch) => self.pages_come(at, &transfer, epoch, linked),
            Stage::Copying
            | Stage::Stopping
            | Stage::Ending
            | Stage::Receiving
            | Stage::Loading(_)
            | Stage::Loaded(_)
            | Stage::Starting(_) => {}
        }
    }

    /// A new page session makes void what came in another, as long as nothing runs.
    fn links_to(&mut self, at: At, source: &Transfer) {
        let Some(target) = self.transfer(at, &source.migration) else { return };
        if std::mem::replace(&mut target.session, source.session) != source.session
            && matches!(target.stage, Stage::Loading(_) | Stage::Loaded(_))
            && source.stage == Stage::Copying
        {
            target.stage = Stage::Receiving;
        }
    }

    /// It owns the guest: it starts with what it has, or gives it back.
    fn is_licensed(&self, at: At, transfer: &Transfer) -> bool {
        let view = self.machines[at].agent.as_ref().and_then(|agent| agent.views.get(&transfer.uid));
        view.is_some_and(|view| view.ownership.licenses(transfer.instance))
    }

    /// The source dials with its target's instance for a token: another one refuses it.
    fn has_other_side(&self, at: At, peer: At, transfer: &Transfer) -> bool {
        let agent = self.machines[peer].agent.as_ref();
        let other = agent.and_then(|agent| agent.transfers.get(&transfer.migration));
        let fits =
            |other: &Transfer| other.target == transfer.target && other.is_source() != transfer.is_source();
        other.is_some_and(fits) && self.is_awake(peer) && self.is_linked(at, peer)
    }

    /// The guest is stopped, if a quorum has answered a moment ago.
    fn switch_over(&mut self, at: At, transfer: &Transfer) {
        let now = self.now;
        let asked = self.agent(at).and_then(|agent| agent.quorum_asked);
        if asked.is_none_or(|asked| now - asked > QUORUM_US) {
            return;
        }
        let runs = self.machines[at].host.runners.get(&transfer.instance);
        if runs.is_none_or(|process| process.state != RunnerState::Running(transfer.epoch)) {
            return;
        }
        if let Some(transfer) = self.transfer(at, &transfer.migration) {
            transfer.stage = Stage::Stopping;
        }
        self.order(at, transfer.instance, Order::Pause(transfer.epoch, transfer.migration.clone()));
        self.tempt(at, transfer.uid);
    }

    /// `Final` and the proposal, in whatever order; `Final` again as long as the other side may lack it.
    fn close(&mut self, at: At, transfer: &Transfer, linked: bool) {
        let (migration, uid) = (transfer.migration.clone(), transfer.uid);
        let proposes = transfer.stage == Stage::Closing && !transfer.proposed && self.random.u32(0..3) > 0;
        let age = self.machines[at].host.runners.get(&transfer.instance).map(|process| process.age);
        let says = transfer.closing != Closing::Withheld && linked && self.random.u32(0..3) > 0;
        if let (true, Some(age), Some(peer)) = (says, age, transfer.peer) {
            if let Some(transfer) = self.transfer(at, &migration) {
                transfer.closing = Closing::Left;
            }
            let (sealed, target, mode) = (transfer.epoch, transfer.target, transfer.mode);
            let closed = Final { migration: migration.clone(), sealed, target, age, mode };
            if let Some(us) = self.carry(at, peer) {
                let to = self.who(peer);
                self.later(us, Event::Final { to, from: at, closed });
            }
        }
        if proposes {
            if let Some(transfer) = self.transfer(at, &migration) {
                transfer.proposed = true;
            }
            let entry = Entry::HandOver { migration, epoch: transfer.epoch, mode: transfer.mode };
            self.owe(at, Owed::Guest(uid, entry));
        }
    }

    /// Nothing more is sent. The guest stays as it is until the log has spoken.
    fn source_fails(&mut self, at: At, transfer: &Transfer, side: Side) {
        let migration = transfer.migration.clone();
        if let Some(transfer) = self.transfer(at, &migration) {
            transfer.stage = Stage::Ending;
        }
        let reason = format!("the source gives up while {:?}", transfer.stage);
        self.owe(at, Owed::Guest(transfer.uid, Entry::End { migration, side, reason }));
    }

    pub(crate) fn target_fails(&mut self, at: At, transfer: &Transfer) {
        if let Some(agent) = self.agent(at) {
            agent.transfers.remove(&transfer.migration);
        }
        let state =
            self.machines[at].host.runners.get(&transfer.instance).map(|process| process.state.clone());
        match state {
            Some(state) => {
                if let Some(here) = self.here(at, transfer.instance) {
                    here.state = state;
                }
                self.give_up(at, transfer.instance);
            }
            None => {
                self.machines[at].host.tombstones.insert((transfer.uid, transfer.instance));
            }
        }
        self.look(at, transfer.uid);
    }

    /// It runs; the rest of its pages comes from a source that has them.
    fn pages_come(&mut self, at: At, transfer: &Transfer, epoch: Epoch, linked: bool) {
        let (uid, migration) = (transfer.uid, transfer.migration.clone());
        let serves = transfer.peer.and_then(|peer| self.machines[peer].agent.as_ref());
        let serves = serves.and_then(|agent| agent.transfers.get(&migration));
        let serves = serves.is_some_and(|other| other.stage == Stage::HandedOver);
        let comes = linked && serves && self.random.u32(0..4) == 0;
        let Some(process) = self.machines[at].host.runners.get_mut(&transfer.instance) else { return };
        process.whole |= comes;
        let is_whole = process.whole;
        if let Some(view) = self.agent(at).and_then(|agent| agent.views.get(&uid)) {
            let awaits = view.ownership.awaits_running(transfer.instance);
            if let Some(entry) = awaits {
                self.owe(at, Owed::Guest(uid, entry));
            }
        }
        if is_whole && transfer.mode == Mode::PostCopy {
            self.owe(at, Owed::Guest(uid, Entry::AllPages { migration, epoch }));
        }
    }
}
