//! The node actor: knows the runners and transfers of this host, sees what is agreed, and does what it owes.
//!
//! ```text
//!   Pushed (views) ─┐
//!   runners ────────┼─▶ look(guest) ─▶ duties (godwit_domain::agent) ─▶ tasks: run, seal, destroy, make
//!   a second passes ┘        │                                    └──▶ proposals, until they are answered
//!                            └─▶ TransferActor, one per migration and side
//! ```
//!
//! Always true:
//! - a handler answers at once; whatever waits for a runner or the network is a task whose end comes home as a message;
//! - nothing is done before everything that concerns this node was seen once, and, while it is fenced, nothing but
//!   stopping what the fence names;
//! - beside a transfer the view and the runners alone decide, by the tables of the hand-over: a lost message or a
//!   restart costs time, never correctness.

mod look;
mod messages;
mod migrate;
mod proposals;
pub mod rules;
mod sharing;
mod testify;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, AsyncContext, Context};
use godwit_domain::registry::GuestUid;
use godwit_domain::{InstanceId, MigrationId, NodeName};
use godwit_guest::client::Attached;
use godwit_transfer::actor::TransferActor;
use godwit_transfer::admit::Expected;
use godwit_transfer::drive::Told;
use godwit_wire::handoff::Standing;
use godwit_wire::session::GuestView;
use tokio::sync::watch;

pub use messages::{Called, Found, Leaves, Pushed, Questioned, QuorumAnswered, SessionEnded};
use proposals::Proposals;

use crate::fabric::Fabric;
use crate::local::Runners;
use crate::outbound::Reach;
use crate::records::{About, Records};
use crate::session::Leader;

/// How often every guest is looked at though nothing was heard.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// After how long a runner that could not be made is tried again.
const MAKE_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// A runner on this host.
#[derive(Debug)]
struct Here {
    about: About,
    attached: Arc<Attached>,
    standing: Standing,
    /// Every page of its guest is here, as far as this process has seen.
    whole: bool,
    /// A task is at it; it is looked at again when that has ended.
    busy: bool,
    /// This process may have told it to run.
    run_sent: bool,
    /// Its process has ended.
    dead: bool,
    /// It did not answer when it was asked last: how it stands is not known.
    stale: bool,
    /// How it stands was told by a greeting alone: it may be at something that it was told before.
    greeted: bool,
    /// Its pages are served although no more is known of it than its greeting.
    served_early: bool,
}

/// One side of a migration.
#[derive(Debug)]
struct Transfer {
    uid: GuestUid,
    instance: InstanceId,
    actor: Addr<TransferActor>,
    /// What a target waits for; `None`: this side is the source.
    expected: Option<Expected>,
    /// What is agreed.
    settings: godwit_domain::Settings,
    /// What its driver was told: the same, with its share of the node's bandwidth.
    told: godwit_domain::Settings,
    /// The leader was told that pages are sent.
    running_told: bool,
    /// Where its driver finds how the target is reached now, should it have to dial again; `None`: this side is the target.
    reach: Option<watch::Sender<Reach>>,
    /// It has succeeded, and its two sides are being compared.
    audits: bool,
}

/// See the module.
#[derive(Debug)]
pub struct NodeActor {
    name: NodeName,
    fabric: Fabric,
    runners: Runners,
    leader: Leader,
    records: Records,
    views: BTreeMap<GuestUid, GuestView>,
    /// Everything that concerns this node was pushed since the session began.
    complete: bool,
    fenced: Option<BTreeSet<InstanceId>>,
    fence_answered: bool,
    /// Runners that were asked how they stand since the fence came.
    fence_asked: BTreeSet<InstanceId>,
    here: BTreeMap<InstanceId, Here>,
    /// Folders of runners that may live and were not reached: until they are, nobody is missed and nothing is made.
    unreached: Vec<PathBuf>,
    seeking: bool,
    transfers: BTreeMap<MigrationId, Transfer>,
    /// Guests for which a runner is being started.
    starting: BTreeSet<GuestUid>,
    /// Why a runner was not made, and when that was.
    not_made: BTreeMap<GuestUid, (String, Instant)>,
    proposals: Proposals,
    /// When the newest question was asked that a quorum has answered.
    quorum_asked: Option<Instant>,
    telling: BTreeSet<MigrationId>,
    /// The group was founded anew, and waits to hear what is here.
    asked: bool,
    /// It is being told.
    testifying: bool,
    /// What it waits for before it can be told, as the log has it.
    testimony_waits_for: Vec<String>,
}

impl NodeActor {
    /// The actor of a node.
    pub fn new(name: NodeName, fabric: Fabric, runners: Runners, leader: Leader, records: Records) -> Self {
        Self {
            name,
            fabric,
            runners,
            leader,
            records,
            views: BTreeMap::new(),
            complete: false,
            fenced: None,
            fence_answered: false,
            fence_asked: BTreeSet::new(),
            here: BTreeMap::new(),
            unreached: Vec::new(),
            seeking: false,
            transfers: BTreeMap::new(),
            starting: BTreeSet::new(),
            not_made: BTreeMap::new(),
            proposals: Proposals::default(),
            quorum_asked: None,
            telling: BTreeSet::new(),
            asked: false,
            testifying: false,
            testimony_waits_for: Vec::new(),
        }
    }

    fn runners_of(&self, uid: GuestUid) -> impl Iterator<Item = (&InstanceId, &Here)> {
        self.here.iter().filter(move |(_, here)| here.about.uid == uid)
    }

    /// What is agreed, once more, for a driver that was told while it could not listen.
    fn remind_transfers(&self) {
        for transfer in self.transfers.values() {
            if let Some(view) = self.views.get(&transfer.uid) {
                let told = Told::View(Box::new(view.ownership.clone()));
                transfer.actor.do_send(godwit_transfer::actor::Order(told));
            }
        }
    }

    /// Runners that were not reached are tried again.
    fn seek_the_unreached(&mut self, ctx: &mut Context<Self>) {
        if self.unreached.is_empty() || self.seeking {
            return;
        }
        self.seeking = true;
        let (runners, dirs, home) = (self.runners.clone(), self.unreached.clone(), ctx.address());
        tokio::spawn(async move {
            let _ = home.send(Found(runners.seek(dirs).await)).await;
        });
    }

    fn look_at_all(&mut self, ctx: &mut Context<Self>) {
        if self.complete && self.fenced.is_some() {
            return self.obey_fence(ctx);
        }
        let here = self.here.values().map(|here| here.about.uid);
        let all: BTreeSet<GuestUid> = self.views.keys().copied().chain(here).collect();
        for uid in all {
            self.look(ctx, uid);
        }
    }
}

impl Actor for NodeActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(LOOK_INTERVAL, |actor, ctx| {
            actor.proposals.forget_refusals();
            actor.remind_transfers();
            actor.ask_the_silent(ctx);
            actor.seek_the_unreached(ctx);
            actor.say_what_is_here(ctx);
            actor.look_at_all(ctx);
        });
    }
}
