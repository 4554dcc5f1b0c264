//! What this host owes about one guest now, and the doing of it.
//!
//! ```text
//!   look ─▶ a transfer is at it? its session decides ─▶ nothing
//!        ─▶ a step of a migration (migrate) ─▶ done for now
//!        ─▶ duties ─▶ Make, Run, Seal, Destroy: a task each; Propose
//! ```
//!
//! Always true: looking twice is as looking once; a runner has one task at a time.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::{AsyncContext, Context, Handler, Message};
use godwit_domain::agent::{self, Arrived, Duty, Local, RunnerState, Tombstone};
use godwit_domain::ownership::Life;
use godwit_domain::registry::{Command, GuestUid};
use godwit_domain::{Epoch, GuestName, InstanceId};
use godwit_guest::client::Attached;
use godwit_transfer::drive::chain;
use godwit_wire::handoff::{RunState, Standing};
use tracing::Instrument;

use super::proposals::until_answered;
use super::rules::needs_to_know_all;
use super::{GuestView, Here, MAKE_AGAIN_AFTER, NodeActor};
use crate::local::{LocalError, OwnedRole};
use crate::owed::resume_if_behind;
use crate::records::{About, Buried};

/// Rest after a guest could not be run, before it is looked at again.
const RUN_AGAIN_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

/// A runner's task has ended; this is how it stands now, or it does not answer.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Refreshed(pub(super) InstanceId, pub(super) Option<Standing>);

/// A runner was ended by this node.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Gone(Arc<Attached>);

/// A runner's process has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Died(pub(super) InstanceId);

/// The fence was answered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct FenceAnswered;

impl NodeActor {
    /// See the module.
    pub(super) fn look(&mut self, ctx: &mut Context<Self>, uid: GuestUid) {
        if !self.complete {
            return;
        }
        if self.fenced.is_some() {
            return self.obey_fence(ctx);
        }
        let Some(view) = self.views.get(&uid).cloned() else { return };
        if let Life::Unsure(_) = view.ownership.life {
            // Nobody's: what its last migration would need is not done, and what was said of its runners stays so.
            return;
        }
        let has_transfer = self.transfers.values().any(|transfer| transfer.uid == uid);
        // Whatever a runner would answer, that of a guest which is deleted is ended.
        let ends = matches!(view.ownership.life, Life::Deleting(_) | Life::Purged);
        let is_busy = self.starting.contains(&uid)
            || self.runners_of(uid).any(|(_, here)| here.busy || here.stale && !ends);
        if has_transfer || is_busy && !self.waits_for_pages(&view) {
            return;
        }
        if self.step(ctx, &view) || is_busy {
            return;
        }
        let duties = agent::duties(&self.name, &view.ownership, &self.local(uid));
        let not_sure = !self.unreached.is_empty();
        for duty in duties.into_iter().filter(|duty| !(not_sure && needs_to_know_all(duty))) {
            self.act(ctx, uid, &view.name, duty);
        }
    }

    /// Whether a runner that has greeted may wait for a page, and answer nothing else before it has it: then its pages are served
    /// first.
    fn waits_for_pages(&self, view: &GuestView) -> bool {
        self.runners_of(view.uid).any(|(instance, here)| {
            let may_run = here.greeted && here.standing.state == RunState::Running;
            may_run && view.ownership.may_lack_pages(*instance)
        })
    }

    /// What is here of a guest, as the tables know it.
    fn local(&self, uid: GuestUid) -> Local {
        let transfers = self.transfers.iter().filter(|(_, transfer)| transfer.uid == uid);
        let buried = self.records.buried(uid);
        Local {
            runners: self.runners_of(uid).map(|(instance, here)| self.as_known(*instance, here)).collect(),
            tombstones: buried
                .map(|buried| Tombstone { instance: buried.instance, reason: buried.reason.clone() })
                .collect(),
            withheld: self.records.withheld(uid).collect(),
            transfers: transfers.map(|(migration, _)| migration.clone()).collect(),
        }
    }

    /// A runner as the tables know it.
    fn as_known(&self, instance: InstanceId, here: &Here) -> agent::Runner {
        let Standing { state, epoch, loaded } = here.standing;
        let has_run = state != RunState::Incoming;
        let state = match state {
            RunState::Running => RunnerState::Running(epoch),
            RunState::Paused => RunnerState::Paused(epoch),
            RunState::Incoming => {
                let migration = here.about.arriving.clone();
                RunnerState::Incoming { arrived: loaded.map(|sealed| Arrived { migration, sealed }) }
            }
        };
        // One that arrives in post-copy may lack pages though it runs: that it is whole is for its session to say.
        let ownership = self.views.get(&here.about.uid).map(|view| &view.ownership);
        let lacks = ownership.is_some_and(|ownership| ownership.may_lack_pages(instance));
        let whole = !lacks && (here.whole || here.about.arriving.is_none() || has_run);
        agent::Runner { instance, state, made: here.about.made, whole }
    }

    fn act(&mut self, ctx: &mut Context<Self>, uid: GuestUid, name: &GuestName, duty: Duty) {
        match duty {
            Duty::Make => {
                let recently = |tried: &(String, std::time::Instant)| tried.1.elapsed() < MAKE_AGAIN_AFTER;
                let Some(view) = self.views.get(&uid) else { return };
                let (role, made) = (OwnedRole::Fresh(view.spec.clone()), view.ownership.epoch);
                if !self.not_made.get(&uid).is_some_and(recently) {
                    self.start_runner(ctx, name.clone(), About { uid, made, arriving: None }, role);
                }
            }
            Duty::Run(instance, epoch) => self.run(ctx, instance, epoch),
            Duty::Seal(instance) => self.seal(ctx, instance),
            Duty::Destroy(instance) => self.destroy(ctx, instance),
            Duty::Propose(entry) => self.propose(ctx, uid, entry),
        }
    }

    /// Asks a runner how it stands.
    pub(super) fn refresh(&mut self, ctx: &mut Context<Self>, instance: InstanceId) {
        let Some(here) = self.here.get_mut(&instance) else { return };
        here.busy = true;
        let (attached, home) = (here.attached.clone(), ctx.address());
        tokio::spawn(async move {
            let standing = attached.runner.stats().await.ok().map(|stats| stats.standing);
            let _ = home.send(Refreshed(instance, standing)).await;
        });
    }

    /// Runners that did not answer are asked again.
    pub(super) fn ask_the_silent(&mut self, ctx: &mut Context<Self>) {
        let silent = self.here.iter().filter(|(_, here)| here.stale && !here.busy);
        for instance in silent.map(|(instance, _)| *instance).collect::<Vec<_>>() {
            self.refresh(ctx, instance);
        }
    }

    fn run(&mut self, ctx: &mut Context<Self>, instance: InstanceId, epoch: Epoch) {
        let Some(here) = self.here.get_mut(&instance) else { return };
        (here.busy, here.run_sent) = (true, true);
        let (attached, home) = (here.attached.clone(), ctx.address());
        let span = tracing::info_span!("run", guest = %attached.hello.guest, %instance, %epoch);
        let task = async move {
            if let Err(error) = resume_if_behind(&attached, epoch).await {
                tracing::error!(error = chain(&*error), "the guest was not resumed");
                tokio::time::sleep(RUN_AGAIN_AFTER).await;
            }
            let standing = attached.runner.stats().await.ok().map(|stats| stats.standing);
            let _ = home.send(Refreshed(instance, standing)).await;
        };
        tokio::spawn(task.instrument(span));
    }

    pub(super) fn seal(&mut self, ctx: &mut Context<Self>, instance: InstanceId) {
        let Some(here) = self.here.get_mut(&instance) else { return };
        here.busy = true;
        let (attached, epoch, home) = (here.attached.clone(), here.standing.epoch, ctx.address());
        tracing::warn!(guest = %attached.hello.guest, %instance, %epoch, "vouched to be off: sealed and paused");
        tokio::spawn(async move {
            if let Err(error) = attached.runner.pause(epoch).await {
                tracing::error!(%instance, error = chain(&error), "a guest that was vouched to be off was not paused");
            }
            let standing = attached.runner.stats().await.ok().map(|stats| stats.standing);
            let _ = home.send(Refreshed(instance, standing)).await;
        });
    }

    pub(super) fn destroy(&mut self, ctx: &mut Context<Self>, instance: InstanceId) {
        let Some(here) = self.here.get_mut(&instance) else { return };
        here.busy = true;
        let (attached, runners, home) = (here.attached.clone(), self.runners.clone(), ctx.address());
        tokio::spawn(async move {
            runners.discard(&attached).await;
            let _ = home.send(Gone(attached)).await;
        });
    }

    /// A target's session has ended and says that it started nothing; its runner is gone. Both together are proof.
    pub(super) fn bury_gone(
        &mut self,
        ctx: &mut Context<Self>,
        uid: GuestUid,
        instance: InstanceId,
        reason: String,
    ) {
        self.here.remove(&instance);
        if let Err(error) = self.records.bury_dead(Buried { instance, uid, reason }) {
            tracing::error!(%instance, %error, "no tombstone could be written");
        }
        self.look(ctx, uid);
    }

    /// Tombstone, then kill, then, by its duty, the statement. Only of a runner that stands `Incoming`.
    pub(super) fn give_up(&mut self, ctx: &mut Context<Self>, instance: InstanceId, reason: String) {
        let Some(here) = self.here.get(&instance) else { return };
        if here.standing.state != RunState::Incoming || here.run_sent {
            return tracing::error!(%instance, reason, "not given up: it may have run");
        }
        tracing::info!(guest = %here.attached.hello.guest, %instance, reason, "given up before it ran");
        let buried = Buried { instance, uid: here.about.uid, reason };
        match self.records.bury(buried) {
            Ok(()) => self.destroy(ctx, instance),
            // Without the proof nothing may be said; it is tried again at the next look.
            Err(error) => tracing::error!(%instance, %error, "no tombstone could be written"),
        }
    }

    /// Starts a runner; how it went comes home.
    pub(super) fn start_runner(
        &mut self,
        ctx: &mut Context<Self>,
        guest: GuestName,
        about: About,
        role: OwnedRole,
    ) {
        self.starting.insert(about.uid);
        let (runners, home) = (self.runners.clone(), ctx.address());
        let span = tracing::info_span!("runner", %guest);
        let start = async move {
            let result = match crate::owed::fresh_instance() {
                Ok(instance) => runners.start(&guest, instance, &about, role.borrow()).await,
                Err(source) => Err(LocalError::Start(source)),
            };
            let _ = home.send(super::messages::Started { about, result }).await;
        };
        tokio::spawn(start.instrument(span));
    }

    /// A fenced node stops what the fence names and says so. Until that is agreed it does nothing else.
    pub(super) fn obey_fence(&mut self, ctx: &mut Context<Self>) {
        let named: BTreeSet<InstanceId> = self.fenced.clone().unwrap_or_default();
        let mut all_stand_still = true;
        for instance in named {
            let Some(here) = self.here.get(&instance) else {
                // One that lives, for all that is known, is not reached yet.
                all_stand_still &= !self.unreached.iter().any(|dir| dir.ends_with(instance.to_string()));
                continue;
            };
            if !here.busy && self.fence_asked.insert(instance) {
                // A session may have run it a moment ago: how it stood before the fence came says nothing.
                self.refresh(ctx, instance);
            }
            let in_transfer = self.transfers.values().any(|transfer| transfer.instance == instance);
            let Some(here) = self.here.get(&instance) else { continue };
            let stands_still = here.standing.state != RunState::Running && !here.busy && !here.stale;
            all_stand_still &= stands_still && !in_transfer;
            if here.standing.state == RunState::Running && !here.busy {
                self.seal(ctx, instance);
            }
        }
        if all_stand_still && !self.fence_answered {
            self.fence_answered = true;
            let (leader, node, home) = (self.leader.clone(), self.name.clone(), ctx.address());
            tokio::spawn(async move {
                tracing::warn!(%node, "fenced; all that the fence names stands still");
                until_answered(&leader, Command::FenceSeen { node }, None).await;
                let _ = home.send(FenceAnswered).await;
            });
        }
    }
}

impl Handler<Refreshed> for NodeActor {
    type Result = ();

    fn handle(&mut self, Refreshed(instance, standing): Refreshed, ctx: &mut Self::Context) {
        let Some(here) = self.here.get_mut(&instance) else { return };
        here.busy = false;
        // One that does not answer has died, which its process descriptor tells, or is asked again at the next look.
        here.stale = standing.is_none();
        if let Some(standing) = standing {
            (here.standing, here.greeted) = (standing, false);
            // One that does not run is never said to, whatever the driver that serves it still tells.
            here.served_early &= standing.state == RunState::Incoming;
        }
        if !here.greeted && here.served_early {
            // It was only about to run, and does not: its pages are of no use.
            for transfer in self.transfers.values().filter(|transfer| transfer.instance == instance) {
                let told = godwit_transfer::drive::Told::Cancel("the guest does not run here".to_owned());
                transfer.actor.do_send(godwit_transfer::actor::Order(told));
            }
        }
        let (uid, dead) = (here.about.uid, here.dead);
        if dead {
            return self.mourn(ctx, instance);
        }
        self.look(ctx, uid);
    }
}

impl Handler<Gone> for NodeActor {
    type Result = ();

    fn handle(&mut self, Gone(ended): Gone, ctx: &mut Self::Context) {
        let instance = ended.hello.instance;
        let Some(here) = self.here.get(&instance) else { return };
        if !Arc::ptr_eq(&here.attached, &ended) {
            // Another keeper came while the one before was being ended.
            return self.destroy(ctx, instance);
        }
        let uid = here.about.uid;
        self.here.remove(&instance);
        self.look(ctx, uid);
    }
}

impl Handler<Died> for NodeActor {
    type Result = ();

    fn handle(&mut self, Died(instance): Died, ctx: &mut Self::Context) {
        let Some(here) = self.here.get_mut(&instance) else { return };
        here.dead = true;
        // The task that is at it comes home first; that of one which this node is ending as `Gone`.
        if !here.busy {
            self.mourn(ctx, instance);
        }
    }
}

impl NodeActor {
    /// A runner is no more, and not by this node's hand. If it can not have run, that is written down.
    pub(super) fn mourn(&mut self, ctx: &mut Context<Self>, instance: InstanceId) {
        let Some(here) = self.here.get(&instance) else { return };
        let (uid, state) = (here.about.uid, here.standing.state);
        let why = self.runners.why_ended(instance).unwrap_or_else(|| "without a word".to_owned());
        tracing::warn!(guest = %here.attached.hello.guest, %instance, ?state, why, "a runner has died");
        let owns = self.views.get(&uid).is_some_and(|view| view.ownership.licenses(instance));
        if state == RunState::Incoming && !here.run_sent && !owns {
            let reason = "its runner has died before it ran".to_owned();
            if let Err(error) = self.records.bury_dead(Buried { instance, uid, reason }) {
                tracing::error!(%instance, %error, "no tombstone could be written");
            }
        }
        self.here.remove(&instance);
        for transfer in self.transfers.values().filter(|transfer| transfer.instance == instance) {
            let told = godwit_transfer::drive::Told::Cancel("the guest's runner has died".to_owned());
            transfer.actor.do_send(godwit_transfer::actor::Order(told));
        }
        self.look(ctx, uid);
    }
}

impl Handler<FenceAnswered> for NodeActor {
    type Result = ();

    fn handle(&mut self, _: FenceAnswered, _: &mut Self::Context) {
        // The next push says that the fence is gone; if it does not, the question was not answered.
        self.fence_answered = false;
        if self.fenced.is_some() {
            tracing::debug!("the fence is answered");
        }
    }
}
