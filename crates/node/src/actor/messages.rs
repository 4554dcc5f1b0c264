//! What comes to the node actor from outside: pushes and questions of the leader, calls of peers, runners that were
//! found or started.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{AsyncContext, Context, Handler, Message, ResponseFuture};
use godwit_domain::registry::GuestUid;
use godwit_guest::client::Attached;
use godwit_transfer::actor;
use godwit_transfer::admit::{self, Unfit};
use godwit_transfer::drive::target::Inbound;
use godwit_transfer::drive::{Told, chain};
use godwit_wire::handoff::RunState;
use godwit_wire::migration::Mismatch;
use godwit_wire::session::{GuestView, Here as Shown, NodeAnswer, NodeAsk, Push};

use super::look::Died;
use super::{Here, MAKE_AGAIN_AFTER, NodeActor, Transfer, rules};
use crate::fabric;
use crate::local::{LocalError, Sought, until_ended};
use crate::outbound::Reach;
use crate::records::About;

/// The leader has pushed what has changed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Pushed(pub Push);

/// The session is over. What is known stays, but is not complete any more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct SessionEnded;

/// A quorum has answered a question that was asked so long ago.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct QuorumAnswered(pub Duration);

/// Whether a guest leaves this node: a switchover will want to know that a quorum has just answered.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub struct Leaves;

/// The leader asks.
#[derive(Debug, Message)]
#[rtype(result = "NodeAnswer")]
pub struct Questioned(pub NodeAsk);

/// A peer has called and greeted.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Called(pub Inbound);

/// Runners that were there before this process, and those that may be and were not reached.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Found(pub Sought);

/// A runner was started, or not.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Started {
    pub(super) about: About,
    pub(super) result: Result<Attached, LocalError>,
}

/// Another keeper has taken over a QEMU.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct KeptAgain(Attached);

impl NodeActor {
    /// `is_new`: nobody else has told it anything.
    fn take_in(&mut self, ctx: &mut Context<Self>, about: About, attached: Attached, is_new: bool) {
        let (uid, instance, standing) = (about.uid, attached.hello.instance, attached.hello.standing);
        tracing::info!(guest = %attached.hello.guest, %instance, ?standing, "runner is here");
        let attached = Arc::new(attached);
        self.watch(ctx, Arc::clone(&attached));
        let here = Here {
            about,
            attached,
            standing,
            whole: false,
            busy: false,
            run_sent: false,
            dead: false,
            stale: false,
            greeted: !is_new,
            served_early: false,
        };
        self.here.insert(instance, here);
        if !is_new {
            self.refresh(ctx, instance);
        }
        self.look(ctx, uid);
    }

    /// Hears of a runner's end. That of a keeper alone is none: another takes over its QEMU.
    fn watch(&self, ctx: &mut Context<Self>, attached: Arc<Attached>) {
        let (instance, dir) = (attached.hello.instance, attached.dir.clone());
        let (home, runners) = (ctx.address(), self.runners.clone());
        tokio::spawn(async move {
            let process = loop {
                match attached.process() {
                    Ok(process) => break process,
                    Err(error) => {
                        tracing::error!(%instance, %error, "the runner's end would not be seen; tried again")
                    }
                }
                tokio::time::sleep(MAKE_AGAIN_AFTER).await;
            };
            drop(attached);
            until_ended(process).await;
            while let Some(again) = runners.keep_again(&dir).await {
                match again {
                    Ok(attached) => {
                        let _ = home.send(KeptAgain(attached)).await;
                        return;
                    }
                    Err(error) => {
                        tracing::error!(%instance, error = chain(&error), "nobody keeps a QEMU that lives; tried again");
                        tokio::time::sleep(MAKE_AGAIN_AFTER).await;
                    }
                }
            }
            let _ = home.send(Died(instance)).await;
        });
    }

    fn see(&mut self, view: GuestView) {
        // An older view than the one in hand tells nothing.
        if self.views.get(&view.uid).is_some_and(|known| rules::is_older(&view.ownership, &known.ownership)) {
            return;
        }
        for transfer in self.transfers.values_mut().filter(|transfer| transfer.uid == view.uid) {
            if let Some(expected) = &mut transfer.expected {
                expected.epoch = view.ownership.spoken_epoch();
            }
            if let (Some(reach), Some(address)) = (&transfer.reach, view.target_address) {
                reach.send_replace(Reach { address, epoch: view.ownership.spoken_epoch() });
            }
            transfer.actor.do_send(actor::Order(Told::View(Box::new(view.ownership.clone()))));
            transfer.settings = view.settings;
        }
        self.share_bandwidth();
        let is_gone = view.ownership.life == godwit_domain::ownership::Life::Purged;
        if is_gone && self.runners_of(view.uid).next().is_none() {
            self.views.remove(&view.uid);
        } else {
            self.views.insert(view.uid, view);
        }
    }

    /// The runner of a guest that counts: the owner's, or any.
    fn runner(&self, uid: GuestUid) -> Option<&Here> {
        let licensed = |instance| self.views.get(&uid).is_some_and(|view| view.ownership.licenses(instance));
        let owner = self.runners_of(uid).find(|(instance, _)| licensed(**instance));
        owner.or_else(|| self.runners_of(uid).next()).map(|(_, here)| here)
    }

    fn not_here(&self, uid: GuestUid) -> NodeAnswer {
        NodeAnswer::Failed { message: format!("guest number {uid} is not on node {}", self.name) }
    }

    fn shown(&self) -> Vec<Shown> {
        let shown = self.here.iter().map(|(instance, here)| {
            let transfer = self.transfers.iter().find(|(_, transfer)| transfer.instance == *instance);
            let side = |expected| if expected { "arrives by" } else { "leaves by" };
            let epoch = here.standing.epoch;
            // Nothing is done about it: whose it is, an operator may know.
            let unknown = self.complete && !self.asked && !self.views.contains_key(&here.about.uid);
            let unknown = if unknown { "; the control group does not know it" } else { "" };
            let state = match here.standing.state {
                RunState::Incoming => "waits for its guest".to_owned(),
                RunState::Running => format!("runs under epoch {epoch}"),
                RunState::Paused => format!("paused, epoch {epoch} sealed"),
            };
            Shown {
                guest: here.attached.hello.guest.clone(),
                instance: *instance,
                state: format!("{state}{unknown}"),
                dir: here.attached.dir.display().to_string(),
                transfer: transfer.map(|(migration, transfer)| {
                    format!("{} {migration}", side(transfer.expected.is_some()))
                }),
            }
        });
        shown.collect()
    }
}

impl Handler<Pushed> for NodeActor {
    type Result = ();

    fn handle(&mut self, Pushed(push): Pushed, ctx: &mut Self::Context) {
        let was_complete = self.complete;
        self.complete |= push.complete;
        let was_fenced = self.fenced.is_some();
        if self.fenced != push.fenced {
            self.fence_asked.clear();
        }
        self.fenced = push.fenced;
        self.asked = push.asked;
        let seen: Vec<GuestUid> = push.guests.iter().map(|view| view.uid).collect();
        push.guests.into_iter().for_each(|view| self.see(view));
        self.proposals.forget_refusals();
        self.say_what_is_here(ctx);
        if !was_complete || was_fenced {
            return self.look_at_all(ctx);
        }
        if self.fenced.is_some() {
            return self.obey_fence(ctx);
        }
        seen.into_iter().for_each(|uid| self.look(ctx, uid));
    }
}

impl Handler<SessionEnded> for NodeActor {
    type Result = ();

    fn handle(&mut self, _: SessionEnded, _: &mut Self::Context) {
        // Runners and transfers go on with what is known; new work waits for the next session's pushes.
        self.complete = false;
    }
}

impl Handler<QuorumAnswered> for NodeActor {
    type Result = ();

    fn handle(&mut self, QuorumAnswered(age): QuorumAnswered, _: &mut Self::Context) {
        self.quorum_asked = Instant::now().checked_sub(age).max(self.quorum_asked);
        for transfer in self.transfers.values().filter(|transfer| transfer.expected.is_none()) {
            transfer.actor.do_send(actor::Order(Told::Quorum(age)));
        }
    }
}

impl Handler<Leaves> for NodeActor {
    type Result = bool;

    fn handle(&mut self, _: Leaves, _: &mut Self::Context) -> Self::Result {
        self.transfers.values().any(|transfer| transfer.expected.is_none())
    }
}

impl Handler<Questioned> for NodeActor {
    type Result = ResponseFuture<NodeAnswer>;

    fn handle(&mut self, Questioned(ask): Questioned, _: &mut Self::Context) -> Self::Result {
        let at_once =
            |answer: NodeAnswer| -> ResponseFuture<NodeAnswer> { Box::pin(std::future::ready(answer)) };
        let failed = |error: &(dyn std::error::Error + 'static)| NodeAnswer::Failed { message: chain(error) };
        match ask {
            NodeAsk::Show => at_once(NodeAnswer::Here(self.shown())),
            NodeAsk::WhyNot(uid) => {
                at_once(NodeAnswer::Why(self.not_made.get(&uid).map(|(why, _)| why.clone())))
            }
            NodeAsk::Release(uid) => {
                let Some(here) = self.runner(uid) else { return at_once(self.not_here(uid)) };
                let attached = Arc::clone(&here.attached);
                Box::pin(async move {
                    let released = attached.runner.release().await;
                    released.map_or_else(|error| failed(&error), |()| NodeAnswer::Released)
                })
            }
            NodeAsk::PowerButton(uid) => {
                let Some(here) = self.runner(uid) else { return at_once(self.not_here(uid)) };
                let attached = Arc::clone(&here.attached);
                Box::pin(async move {
                    let pressed = attached.runner.power_button().await;
                    pressed.map_or_else(|error| failed(&error), |()| NodeAnswer::Pressed)
                })
            }
            NodeAsk::WhyEnded(instance) => {
                let why = match self.here.get(&instance) {
                    Some(here) => {
                        let view = self.views.get(&here.about.uid);
                        let may_run = view.is_some_and(|view| view.ownership.licenses(instance));
                        here.attached.runner.why_not_run().filter(|_| may_run)
                    }
                    None => self.runners.why_ended(instance),
                };
                at_once(NodeAnswer::Why(why))
            }
            NodeAsk::Verify(uid) => {
                let Some(here) = self.runner(uid) else { return at_once(self.not_here(uid)) };
                let attached = Arc::clone(&here.attached);
                Box::pin(async move {
                    attached.runner.verify().await.map_or_else(|error| failed(&error), NodeAnswer::Verified)
                })
            }
            NodeAsk::Stats(uid) => {
                let Some(here) = self.runner(uid) else { return at_once(self.not_here(uid)) };
                let attached = Arc::clone(&here.attached);
                Box::pin(async move {
                    let dir = attached.dir.display().to_string();
                    let stats = attached.runner.stats().await;
                    stats.map_or_else(|error| failed(&error), |stats| NodeAnswer::Stats { stats, dir })
                })
            }
        }
    }
}

impl Handler<Found> for NodeActor {
    type Result = ();

    fn handle(&mut self, Found(sought): Found, ctx: &mut Self::Context) {
        self.unreached = sought.unreached;
        self.seeking = false;
        for (about, attached) in sought.found {
            self.take_in(ctx, about, attached, false);
        }
    }
}

impl Handler<Started> for NodeActor {
    type Result = ();

    fn handle(&mut self, Started { about, result }: Started, ctx: &mut Self::Context) {
        self.starting.remove(&about.uid);
        match result {
            Ok(attached) => {
                self.not_made.remove(&about.uid);
                self.take_in(ctx, about, attached, true);
            }
            Err(error) => {
                let why = chain(&error);
                tracing::warn!(uid = %about.uid, why, "a runner was not made");
                self.not_made.insert(about.uid, (why.clone(), Instant::now()));
                self.not_prepared(ctx, &about, why);
                self.look(ctx, about.uid);
            }
        }
    }
}

impl Handler<KeptAgain> for NodeActor {
    type Result = ();

    fn handle(&mut self, KeptAgain(mut attached): KeptAgain, ctx: &mut Self::Context) {
        let instance = attached.hello.instance;
        let arrives = |transfer: &Transfer| transfer.instance == instance && transfer.expected.is_some();
        let arrives = self.transfers.values().any(arrives);
        let Some(here) = self.here.get_mut(&instance) else {
            // It was ended here meanwhile.
            let runners = self.runners.clone();
            tokio::spawn(async move { runners.discard(&attached).await });
            return;
        };
        if arrives {
            // Its driver has told it what to do, and goes on to: it may be the only one that runs the guest.
            let known = here.attached.runner.clone();
            let new = std::mem::replace(&mut attached.runner, known.clone());
            tokio::spawn(async move { known.follow(new).await });
        }
        let attached = Arc::new(attached);
        (here.standing, here.attached) = (attached.hello.standing, Arc::clone(&attached));
        // Whatever a task at the old connection comes home with, how it stands is asked.
        (here.stale, here.greeted) = (true, true);
        let (uid, busy) = (here.about.uid, here.busy);
        self.watch(ctx, attached);
        if !busy {
            self.refresh(ctx, instance);
        }
        self.look(ctx, uid);
    }
}

impl Handler<Called> for NodeActor {
    type Result = ();

    fn handle(&mut self, Called(inbound): Called, _: &mut Self::Context) {
        let preamble = &inbound.preamble;
        let waiting: Option<_> =
            self.transfers.get(&preamble.migration).and_then(|t| Some((t, t.expected.as_ref()?)));
        let fits = match waiting {
            None => {
                let message =
                    format!("no migration {} is expected on node {}", preamble.migration, self.name);
                Err(Unfit::new(Mismatch::Migration, message))
            }
            Some((transfer, expected)) => admit::check(expected, preamble).map(|()| transfer),
        };
        match fits {
            Ok(transfer) => transfer.actor.do_send(actor::Order(Told::Linked(Box::new(inbound)))),
            Err(unfit) => {
                let message = unfit.to_string();
                tokio::spawn(fabric::refuse(inbound, unfit.mismatch, message));
            }
        }
    }
}
