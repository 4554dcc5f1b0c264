//! A migration's steps on this host: a target prepares, a source begins; what a restarted node finds is ended in order.
//!
//! ```text
//!   Preparing, to here ─▶ runner ─▶ Accept, and wait for the source
//!   Copying, from here ─▶ runs: begin a page session, everything dirty │ sealed by a process before: CallOff
//!   Copying or HandedOver to here, nothing of it known ─▶ give up
//!   handed over in post-copy, nothing of it known ─▶ from here: serve its pages │ runs here: what is a hole is missing
//! ```
//!
//! Always true: a guest has at most one transfer here; a second instance of a guest is made only when no other is left.

use std::sync::Arc;

use actix::{Actor, AsyncContext, Context, Handler};
use godwit_domain::ownership::{CALL_OFFS_MAX, Entry, Licence, Mode, Ownership, Phase, Side};
use godwit_domain::progress::Measured;
use godwit_domain::registry::{Command, Milestone};
use godwit_domain::{Epoch, InstanceId, MigrationId};
use godwit_transfer::actor::{self, TransferActor};
use godwit_transfer::admit::Expected;
use godwit_transfer::drive::target::{self, Target, Track};
use godwit_transfer::drive::{Report, Tells, Told};
use godwit_wire::handoff::RunState;
use godwit_wire::migration::SessionId;
use godwit_wire::session::{Ask, GuestView};
use tokio::sync::watch;

use super::{NodeActor, Transfer, rules};
use crate::files;
use crate::local::{Handle, OwnedRole};
use crate::outbound::{self, Errand, Outbound, Reach};
use crate::owed::free_memory_bytes;
use crate::records::About;
use crate::resumed;

/// Memory that stays free beside an arriving guest, so that the host itself can go on.
const SPARE_BYTES: u64 = 64 << 20;

impl NodeActor {
    /// Does what a migration needs next here. `true`: there is nothing else to do for now.
    pub(super) fn step(&mut self, ctx: &mut Context<Self>, view: &GuestView) -> bool {
        let Some(attempt) = &view.ownership.attempt else { return false };
        let migration = &attempt.migration;
        match &attempt.phase {
            Phase::Preparing { source, target } if *target == self.name => {
                self.prepare(ctx, view, migration, source)
            }
            Phase::Copying { source, target } => {
                if self.here.contains_key(&source.instance) {
                    return self.leave(ctx, view, migration, source, target);
                }
                self.here.contains_key(&target.instance) && self.forget_arrival(ctx, target.instance)
            }
            Phase::HandedOver { mode: Mode::StopAndCopy, target, .. } => {
                self.here.contains_key(&target.instance) && self.forget_arrival(ctx, target.instance)
            }
            Phase::HandedOver { mode: Mode::PostCopy, source, target, .. }
            | Phase::PostCopy { source, target, .. } => {
                if self.here.contains_key(&source.instance) {
                    return self.serve(ctx, view, migration, source, target);
                }
                self.here.contains_key(&target.instance) && self.go_on(ctx, view, migration, source, target)
            }
            Phase::Pending
            | Phase::Preparing { .. }
            | Phase::Succeeded
            | Phase::Failed { .. }
            | Phase::Cancelled { .. } => false,
        }
    }

    // ---- the target ----------------------------------------------------------------------------------------

    fn prepare(
        &mut self,
        ctx: &mut Context<Self>,
        view: &GuestView,
        migration: &MigrationId,
        source: &Licence,
    ) -> bool {
        let (uid, epoch) = (view.uid, view.ownership.epoch);
        let about = About { uid, made: epoch, arriving: Some(migration.clone()) };
        let made = self.runners_of(uid).find(|(_, here)| here.about == about);
        if let Some((instance, here)) = made {
            let fits = here.standing.state == RunState::Incoming && here.standing.loaded.is_none();
            let instance = *instance;
            return fits && self.arrive(ctx, view, migration, source, instance);
        }
        if self.runners_of(uid).next().is_some() {
            // An older one is in the way. It goes by its own duty, and then there is another look.
            return false;
        }
        if !self.unreached.is_empty() {
            // One that is not reached may be of this guest: another node is better off with it.
            tracing::warn!(guest = %view.name, "declined: not every runner here is reached");
            self.propose(ctx, uid, Entry::Decline { migration: migration.clone(), epoch });
            return true;
        }
        let (free, needed) = (free_memory_bytes(), view.spec.memory_bytes + SPARE_BYTES);
        if free.is_some_and(|free| free < needed) {
            let free = free.unwrap_or(0);
            tracing::warn!(guest = %view.name, free, needed, "declined: not enough memory is really free");
            let migration = migration.clone();
            self.propose(ctx, uid, Entry::Decline { migration, epoch });
            return true;
        }
        self.tell_reached(migration, Milestone::PreparingTarget);
        self.start_runner(ctx, view.name.clone(), about, OwnedRole::Incoming(view.spec.clone()));
        true
    }

    /// The runner for an arriving guest could not be made.
    pub(super) fn not_prepared(&mut self, ctx: &mut Context<Self>, about: &About, why: String) {
        let Some(migration) = about.arriving.clone() else { return };
        tracing::warn!(%migration, why, "declined");
        self.propose(ctx, about.uid, Entry::Decline { migration, epoch: about.made });
    }

    fn arrive(
        &mut self,
        ctx: &mut Context<Self>,
        view: &GuestView,
        migration: &MigrationId,
        source: &Licence,
        instance: InstanceId,
    ) -> bool {
        let Some(here) = self.here.get(&instance) else { return false };
        let memory = match here.attached.memory() {
            Ok(memory) => Arc::new(memory),
            Err(error) => {
                self.give_up(ctx, instance, format!("guest memory: {error}"));
                return true;
            }
        };
        let (guest, epoch) = (view.name.clone(), view.ownership.epoch);
        let pages = here.attached.pages();
        let expected = Expected { guest, source: source.node.clone(), instance, pages, epoch };
        let runner = Handle(here.attached.runner.clone());
        let (attached, tracked) = (Arc::clone(&here.attached), Arc::clone(&here.attached));
        let target = Target {
            migration: migration.clone(),
            instance,
            memory,
            begins: target::Begins::Empty(Box::new(move || attached.serve_faults())),
            track: Some(Track::new(move || tracked.track())),
            // Faults are served by the same userfaultfd: where they may be, it is armed as late as can be.
            track_now: view.settings.audit && !view.settings.limits.allowed.post_copy,
            runner,
            recovery_timeout: view.settings.recovery_timeout,
        };
        let work = Box::new(move |told, tells| Box::pin(target::run(target, told, tells)) as _);
        self.begin(ctx, view, migration, instance, Some(expected), work);
        self.propose(ctx, view.uid, Entry::Accept { migration: migration.clone(), epoch, instance });
        true
    }

    /// An instance that waits for a guest, and no session of this process that would know what has come.
    fn forget_arrival(&mut self, ctx: &mut Context<Self>, instance: InstanceId) -> bool {
        let waits = self.here.get(&instance).is_some_and(|here| here.standing.state == RunState::Incoming);
        if waits {
            let reason =
                format!("the process of target node {} was restarted before the guest ran there", self.name);
            self.give_up(ctx, instance, reason);
        }
        waits
    }

    /// The guest runs here in post-copy, and the process that took it in is gone: what is a hole is missing.
    fn go_on(
        &mut self,
        ctx: &mut Context<Self>,
        view: &GuestView,
        migration: &MigrationId,
        source: &Licence,
        target: &Licence,
    ) -> bool {
        let Some(here) = self.here.get(&target.instance) else { return false };
        match here.standing.state {
            // It has not run: it is loaded and lacks nothing that the source could not send again.
            RunState::Incoming => return self.forget_arrival(ctx, target.instance),
            // It is relabelled by its own duty first.
            RunState::Running if here.standing.epoch == view.ownership.epoch => {}
            RunState::Running | RunState::Paused => return false,
        }
        let (attached, epoch) = (Arc::clone(&here.attached), view.ownership.epoch);
        let expected = Expected {
            guest: view.name.clone(),
            source: source.node.clone(),
            instance: target.instance,
            pages: attached.pages(),
            epoch: view.ownership.spoken_epoch(),
        };
        let (instance, name, limit) = (target.instance, migration.clone(), view.settings.recovery_timeout);
        let work = Box::new(move |told, tells| {
            Box::pin(resumed::run(attached, name, instance, epoch, limit, told, tells)) as _
        });
        self.begin(ctx, view, migration, target.instance, Some(expected), work);
        if let Some(here) = self.here.get_mut(&target.instance) {
            here.served_early = here.greeted;
        }
        true
    }

    // ---- the source ----------------------------------------------------------------------------------------

    /// The guest was handed over in post-copy and stands still here, and the process that sent its pages is gone.
    fn serve(
        &mut self,
        ctx: &mut Context<Self>,
        view: &GuestView,
        migration: &MigrationId,
        source: &Licence,
        target: &Licence,
    ) -> bool {
        let Some(here) = self.here.get(&source.instance) else { return false };
        if here.standing.state != RunState::Paused || here.standing.epoch != view.ownership.spoken_epoch() {
            return false;
        }
        if !rules::may_serve(&view.ownership, source.instance, self.records.withheld(view.uid)) {
            return false;
        }
        self.set_out(ctx, view, migration, source, target, Errand::Serve);
        true
    }

    fn leave(
        &mut self,
        ctx: &mut Context<Self>,
        view: &GuestView,
        migration: &MigrationId,
        source: &Licence,
        target: &Licence,
    ) -> bool {
        let Some(here) = self.here.get(&source.instance) else { return false };
        let (present, epoch) = (view.ownership.epoch, here.standing.epoch);
        match here.standing.state {
            // It is relabelled, or runs on, by its own duty first.
            RunState::Running | RunState::Paused if epoch < present => false,
            RunState::Running => {
                self.set_out(ctx, view, migration, source, target, Errand::Copy);
                true
            }
            RunState::Paused => {
                self.call_off(ctx, view, migration);
                true
            }
            RunState::Incoming => false,
        }
    }

    /// Sealed by a process that is gone, with what it knew: the pause is taken back, and everything is sent again.
    fn call_off(&mut self, ctx: &mut Context<Self>, view: &GuestView, migration: &MigrationId) {
        let migration = migration.clone();
        let call_offs = view.ownership.attempt.as_ref().map_or(0, |attempt| attempt.call_offs);
        let entry = if call_offs < CALL_OFFS_MAX {
            Entry::CallOff { migration, epoch: view.ownership.epoch }
        } else {
            let reason = format!("called off {CALL_OFFS_MAX} times");
            Entry::End { migration, side: Side::Source, reason }
        };
        self.propose(ctx, view.uid, entry);
    }

    fn set_out(
        &mut self,
        ctx: &mut Context<Self>,
        view: &GuestView,
        migration: &MigrationId,
        source: &Licence,
        target: &Licence,
        errand: Errand,
    ) {
        let Some(here) = self.here.get(&source.instance) else { return };
        let ready = match (view.target_address, files::random::<8>()) {
            (Some(address), Ok(session)) => Ok((address, session)),
            (None, _) => Err(match &view.network {
                Some(network) => {
                    format!("node {} has no address in migration network {network}", target.node)
                }
                None => format!("node {} has no migration address", target.node),
            }),
            (Some(_), Err(error)) => Err(format!("node {} has no random numbers: {error}", self.name)),
        };
        let (address, session) = match ready {
            Ok(ready) => ready,
            // What is missing at the target is nowhere else: it is looked at again when something changes.
            Err(reason) if errand == Errand::Serve => {
                return tracing::error!(%migration, reason, "pages of a guest in post-copy can not be sent");
            }
            Err(reason) => {
                let entry = Entry::End { migration: migration.clone(), side: Side::Source, reason };
                return self.propose(ctx, view.uid, entry);
            }
        };
        let spoken = view.ownership.spoken_epoch();
        let (reach_out, reach) = watch::channel(Reach { address, epoch: spoken });
        let outbound = Outbound {
            errand,
            migration: migration.clone(),
            source: self.name.clone(),
            target: target.node.clone(),
            reach,
            network: view.network.clone(),
            token: target.instance,
            epoch: spoken,
            at_once: view.post_copy_at_once,
            settings: view.settings,
            commit_estimate: self.proposals.commit_estimate(),
            session: SessionId(u64::from_ne_bytes(session)),
            direct_io: view.spec.qemu.as_ref().is_some_and(godwit_domain::Qemu::has_direct_io),
            guest: Arc::clone(&here.attached),
            fabric: self.fabric.clone(),
        };
        let work = Box::new(move |told, tells| Box::pin(outbound::run(outbound, told, tells)) as _);
        self.begin(ctx, view, migration, source.instance, None, work);
        if let Some(transfer) = self.transfers.get_mut(migration) {
            transfer.reach = Some(reach_out);
        }
        if let (Some(asked), Some(transfer)) = (self.quorum_asked, self.transfers.get(migration)) {
            transfer.actor.do_send(actor::Order(Told::Quorum(asked.elapsed())));
        }
    }

    // ---- both ----------------------------------------------------------------------------------------------

    fn begin(
        &mut self,
        ctx: &mut Context<Self>,
        view: &GuestView,
        migration: &MigrationId,
        instance: InstanceId,
        expected: Option<Expected>,
        work: actor::Work,
    ) {
        let facts = ctx.address().recipient();
        let actor = TransferActor::new(view.name.clone(), migration.clone(), facts, work).start();
        let ownership: Ownership = view.ownership.clone();
        actor.do_send(actor::Order(Told::View(Box::new(ownership))));
        let (uid, settings) = (view.uid, view.settings);
        let transfer = Transfer {
            uid,
            instance,
            actor,
            expected,
            settings,
            told: settings,
            running_told: false,
            reach: None,
            audits: false,
        };
        self.transfers.insert(migration.clone(), transfer);
        self.share_bandwidth();
    }

    fn ended(&mut self, ctx: &mut Context<Self>, migration: &MigrationId, report: Report) {
        let Some(Transfer { uid, instance, .. }) = self.transfers.remove(migration) else { return };
        self.share_bandwidth();
        match report {
            Report::Source(report) => {
                self.tell_measured(
                    migration.clone(),
                    Measured { source: Some(report), ..Measured::default() },
                );
            }
            Report::Target { resume_us, post_copy, audit } => {
                let measured = Measured { source: None, resume_us: Some(resume_us), post_copy, audit };
                self.tell_measured(migration.clone(), measured);
            }
            Report::Failed { reason } => tracing::warn!(%migration, reason, "migration failed"),
            Report::Stopped => tracing::warn!(%migration, "the transfer has stopped"),
            Report::GaveUp { reason } => {
                if self.here.contains_key(&instance) {
                    return self.refresh_and_give_up(ctx, instance, reason);
                }
                return self.bury_gone(ctx, uid, instance, reason);
            }
        }
        if self.here.contains_key(&instance) {
            self.refresh(ctx, instance);
        } else {
            self.look(ctx, uid);
        }
    }

    /// The session says that it has started nothing, and its runner's task has ended: so the runner's word is the last.
    fn refresh_and_give_up(&mut self, ctx: &mut Context<Self>, instance: InstanceId, reason: String) {
        let Some(here) = self.here.get_mut(&instance) else { return };
        here.busy = true;
        let (attached, home) = (Arc::clone(&here.attached), ctx.address());
        tokio::spawn(async move {
            let standing = attached.runner.stats().await.ok().map(|stats| stats.standing);
            let _ = home.send(GaveUp(instance, standing, reason)).await;
        });
    }

    /// How far a migration has come, for people: a word that is lost is not said again.
    fn tell_reached(&self, migration: &MigrationId, milestone: Milestone) {
        let (leader, migration) = (self.leader.clone(), migration.clone());
        tokio::spawn(
            async move { leader.ask(&Ask::Propose(Command::Reached { migration, milestone })).await },
        );
    }

    /// The testimony that `Final` never left, once it is written down: without that the next process might send it, while
    /// the testimony is still on its way.
    fn withheld(&mut self, ctx: &mut Context<Self>, migration: &MigrationId, sealed: Epoch) {
        let Some(transfer) = self.transfers.get(migration) else { return };
        let (uid, instance) = (transfer.uid, transfer.instance);
        if let Err(error) = self.records.withhold(uid, instance, sealed) {
            // The next one serves it, or its target gives it up.
            return tracing::error!(%migration, %error, "what was withheld could not be written down");
        }
        let Some(view) = self.views.get(&uid) else { return };
        let epoch = view.ownership.epoch;
        let testimony = godwit_domain::ownership::Testimony::Withheld;
        let entry = Entry::HandBack { migration: migration.clone(), epoch, testimony };
        self.propose(ctx, uid, entry);
    }
}

/// A target's session has given up; this is how its runner stands.
#[derive(Debug, actix::Message)]
#[rtype(result = "()")]
struct GaveUp(InstanceId, Option<godwit_wire::handoff::Standing>, String);

impl Handler<GaveUp> for NodeActor {
    type Result = ();

    fn handle(&mut self, GaveUp(instance, standing, reason): GaveUp, ctx: &mut Self::Context) {
        let Some(here) = self.here.get_mut(&instance) else { return };
        here.busy = false;
        let uid = here.about.uid;
        if here.dead {
            return self.bury_gone(ctx, uid, instance, reason);
        }
        match standing {
            Some(standing) => here.standing = standing,
            // It does not answer: whether it is what it was, its death will tell.
            None => return self.look(ctx, uid),
        }
        if here.standing.state == RunState::Incoming {
            return self.give_up(ctx, instance, reason);
        }
        self.look(ctx, uid);
    }
}

impl Handler<actor::Fact> for NodeActor {
    type Result = ();

    fn handle(&mut self, actor::Fact { guest, migration, tells }: actor::Fact, ctx: &mut Self::Context) {
        match tells {
            Tells::Proposal(entry) => self.propose_when_known(ctx, guest, migration, entry),
            Tells::Progress(progress) => {
                if let Some(transfer) = self.transfers.get_mut(&migration)
                    && !std::mem::replace(&mut transfer.running_told, true)
                {
                    self.tell_reached(&migration, Milestone::Running);
                }
                // Only the newest is worth anything: while one is on its way no other is sent.
                if self.telling.insert(migration.clone()) {
                    let (leader, home) = (self.leader.clone(), ctx.address());
                    tokio::spawn(async move {
                        let _ = leader.ask(&Ask::Progress { migration: migration.clone(), progress }).await;
                        let _ = home.send(ToldProgress(migration)).await;
                    });
                }
            }
            Tells::Withheld(sealed) => self.withheld(ctx, &migration, sealed),
            Tells::Measured(measured) => self.is_audited(migration, *measured),
            Tells::Ended(report) => self.ended(ctx, &migration, report),
        }
    }
}

#[derive(Debug, actix::Message)]
#[rtype(result = "()")]
struct ToldProgress(MigrationId);

impl Handler<ToldProgress> for NodeActor {
    type Result = ();

    fn handle(&mut self, ToldProgress(migration): ToldProgress, _: &mut Self::Context) {
        self.telling.remove(&migration);
    }
}
