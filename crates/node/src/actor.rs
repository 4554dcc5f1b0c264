//! The node actor: knows the guests and transfers of this host, does what it is ordered, tells what happened.
//!
//! ```text
//!   Order ──▶ NodeActor ──▶ runners (tasks)            Fact ◀── proposals, progress, answers
//!   Call  ──▶     │     ──▶ TransferActor, one per migration and side
//!   View  ──▶  reconcile: what does this host still owe, given what is agreed?
//! ```
//!
//! Always true:
//! - a handler answers at once; whatever waits for a runner or the network is a task whose end comes home as a message;
//! - a guest has at most one instance here, and one transfer;
//! - without a transfer, the view alone decides: the owner's runner is resumed under its epoch, any other that no
//!   unfinished migration names is discarded. So a lost message costs time, never correctness.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, ResponseFuture, WrapFuture};
use godwit_domain::ownership::{Entry, Ownership, Side};
use godwit_domain::{Epoch, GuestName, InstanceId, MigrationId, NodeName, PageCount};
use godwit_guest::client::Attached;
use godwit_transfer::actor::{self, TransferActor};
use godwit_transfer::admit::{self, Expected, Unfit};
use godwit_transfer::drive::target::{self, Inbound, Target};
use godwit_transfer::drive::{Tells, Told, chain};
use godwit_wire::migration::{Mismatch, SessionId};
use godwit_wire::orders::{Fact, Order, Report};
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::fabric::{self, Fabric};
use crate::local::{Handle, LocalError, Role, Runners};
use crate::outbound::{self, Outbound};
use crate::owed::{fresh_instance, random, resume_if_behind};

/// An order from whoever controls this node.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Ordered(pub Order);

/// A peer has called and greeted.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Called(pub Inbound);

/// A runner was started, or found, or not.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Attachment {
    /// Its guest.
    pub guest: GuestName,
    /// The migration for which it was made, if for one.
    pub arriving: Option<Arriving>,
    /// Itself.
    pub result: Result<Attached, LocalError>,
}

/// The migration for which a runner was made.
#[derive(Debug, Clone)]
pub struct Arriving {
    migration: MigrationId,
    source: NodeName,
    epoch: Epoch,
}

/// A runner was ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Discarded(GuestName, InstanceId);

#[derive(Debug)]
struct Transfer {
    guest: GuestName,
    actor: Addr<TransferActor>,
    /// What a target waits for; `None`: this side is the source.
    expected: Option<Expected>,
}

/// See the module.
#[derive(Debug)]
pub struct NodeActor {
    name: NodeName,
    fabric: Fabric,
    runners: Runners,
    facts: mpsc::Sender<Fact>,
    guests: BTreeMap<GuestName, Arc<Attached>>,
    views: BTreeMap<GuestName, Ownership>,
    transfers: BTreeMap<MigrationId, Transfer>,
    /// Guests for which a runner is being started.
    starting: BTreeSet<GuestName>,
    /// Guests that are to arrive as soon as an older instance here is gone, with their size.
    arriving: BTreeMap<GuestName, (Arriving, u64)>,
}

impl NodeActor {
    /// The actor of a node, which tells its facts into this channel.
    pub fn new(name: NodeName, fabric: Fabric, runners: Runners, facts: mpsc::Sender<Fact>) -> Self {
        Self {
            name,
            fabric,
            runners,
            facts,
            guests: BTreeMap::new(),
            views: BTreeMap::new(),
            transfers: BTreeMap::new(),
            starting: BTreeSet::new(),
            arriving: BTreeMap::new(),
        }
    }

    /// Tells a fact. Progress that finds no room is left out: a newer one follows.
    fn tell(&self, ctx: &mut Context<Self>, fact: Fact) {
        if let Err(mpsc::error::TrySendError::Full(fact)) = self.facts.try_send(fact)
            && !matches!(fact, Fact::Progress { .. })
        {
            let facts = self.facts.clone();
            let send = async move {
                let _ = facts.send(fact).await;
            };
            ctx.spawn(send.into_actor(self));
        }
    }

    fn refuse(&self, ctx: &mut Context<Self>, about: &dyn std::fmt::Display, message: String) {
        tracing::warn!(%about, message, "order refused");
        self.tell(ctx, Fact::Refused { about: about.to_string(), message });
    }

    /// Starts a runner; how it went comes home as an [`Attachment`].
    fn start_runner(
        &mut self,
        ctx: &mut Context<Self>,
        guest: GuestName,
        arriving: Option<Arriving>,
        spec: Spec,
    ) {
        self.starting.insert(guest.clone());
        let (runners, home) = (self.runners.clone(), ctx.address());
        let span = tracing::info_span!("runner", %guest);
        let start = async move {
            let result = match fresh_instance() {
                Ok(instance) => runners.start(&guest, instance, spec.role()).await,
                Err(source) => Err(LocalError::Start(source)),
            };
            let _ = home.send(Attachment { guest, arriving, result }).await;
        };
        tokio::spawn(start.instrument(span));
    }

    fn create(&mut self, ctx: &mut Context<Self>, guest: GuestName, spec: godwit_wire::orders::GuestSpec) {
        if self.guests.contains_key(&guest) || self.starting.contains(&guest) {
            return self.refuse(ctx, &guest, "a guest of this name is here already".into());
        }
        self.start_runner(ctx, guest, None, Spec::Fresh(spec));
    }

    fn prepare(&mut self, ctx: &mut Context<Self>, guest: GuestName, arriving: Arriving, memory_bytes: u64) {
        if let Some(attached) = self.guests.get(&guest) {
            // A second instance could be mistaken for the first: it goes before another comes.
            let owns = self.views.get(&guest).is_some_and(|view| view.licenses(attached.hello.instance));
            if !owns {
                self.arriving.insert(guest.clone(), (arriving, memory_bytes));
                return self.reconcile(ctx, &guest);
            }
        }
        if self.starting.contains(&guest) || self.is_over(&guest, &arriving) {
            // Ordered twice, or too late.
            return;
        }
        let unfit = if self.guests.contains_key(&guest) {
            Some("the guest runs here".to_owned())
        } else if PageCount::of_memory(memory_bytes).is_none() {
            Some(format!("memory of {memory_bytes} bytes is no whole number of 4,096-byte pages"))
        } else {
            None
        };
        match unfit {
            Some(reason) => {
                let migration = arriving.migration;
                self.tell(ctx, Fact::Proposal { guest, entry: end_by(Side::Target, migration, reason) });
            }
            None => self.start_runner(ctx, guest, Some(arriving), Spec::Incoming(memory_bytes)),
        }
    }

    /// Whether the migration for which a runner is, or was to be, made has ended meanwhile.
    fn is_over(&self, guest: &GuestName, arriving: &Arriving) -> bool {
        self.views.get(guest).is_some_and(|view| view.epoch > arriving.epoch)
    }

    fn migrate(&mut self, ctx: &mut Context<Self>, guest: GuestName, order: MigrateOrder) {
        let Some(attached) = self.guests.get(&guest).cloned() else {
            let reason = format!("guest {guest} is not on node {}", self.name);
            let entry = end_by(Side::Source, order.migration, reason);
            return self.tell(ctx, Fact::Proposal { guest, entry });
        };
        if self.transfers.contains_key(&order.migration) {
            return;
        }
        let mut session = [0; 8];
        let drawn = random(&mut session);
        let MigrateOrder { migration, target, address, token, epoch, settings } = order;
        if let Err(error) = drawn {
            let entry = end_by(Side::Source, migration, error.to_string());
            return self.tell(ctx, Fact::Proposal { guest, entry });
        }
        let outbound = Outbound {
            migration: migration.clone(),
            source: self.name.clone(),
            target,
            address,
            token,
            epoch,
            settings,
            session: SessionId(u64::from_ne_bytes(session)),
            guest: attached,
            fabric: self.fabric.clone(),
        };
        let work = Box::new(move |told, tells| Box::pin(outbound::run(outbound, told, tells)) as _);
        self.begin(ctx, guest, migration, None, work);
    }

    fn begin(
        &mut self,
        ctx: &mut Context<Self>,
        guest: GuestName,
        migration: MigrationId,
        expected: Option<Expected>,
        work: actor::Work,
    ) {
        let facts = ctx.address().recipient();
        let actor = TransferActor::new(guest.clone(), migration.clone(), facts, work).start();
        self.transfers.insert(migration, Transfer { guest, actor, expected });
    }

    /// A runner for an arriving guest is there: wait for its pages, and say so.
    fn arrive(&mut self, ctx: &mut Context<Self>, guest: GuestName, arriving: Arriving, attached: &Attached) {
        let Arriving { migration, source, epoch } = arriving;
        let instance = attached.hello.instance;
        let memory = match attached.memory() {
            Ok(memory) => memory,
            Err(error) => {
                let entry = end_by(Side::Target, migration, format!("guest memory: {error}"));
                return self.tell(ctx, Fact::Proposal { guest, entry });
            }
        };
        let expected = Expected { guest: guest.clone(), source, instance, pages: attached.pages(), epoch };
        let runner = Handle(attached.runner.clone());
        let target = Target { migration: migration.clone(), instance, memory, runner };
        let work = Box::new(move |told, tells| Box::pin(target::run(target, told, tells)) as _);
        self.begin(ctx, guest.clone(), migration.clone(), Some(expected), work);
        self.tell(ctx, Fact::Proposal { guest, entry: Entry::Accept { migration, epoch, instance } });
    }

    fn view(&mut self, ctx: &mut Context<Self>, guest: GuestName, ownership: Ownership) {
        // An older view than the one in hand tells nothing.
        if self.views.get(&guest).is_some_and(|present| present.epoch > ownership.epoch) {
            return;
        }
        for transfer in self.transfers.values().filter(|transfer| transfer.guest == guest) {
            transfer.actor.do_send(actor::Order(Told::View(Box::new(ownership.clone()))));
        }
        self.views.insert(guest.clone(), ownership);
        self.reconcile(ctx, &guest);
    }

    /// What does this host still owe about a guest? Nothing while a transfer is at it.
    fn reconcile(&mut self, ctx: &mut Context<Self>, guest: &GuestName) {
        if self.transfers.values().any(|transfer| transfer.guest == *guest) {
            return;
        }
        let (Some(attached), Some(view)) = (self.guests.get(guest).cloned(), self.views.get(guest).cloned())
        else {
            return;
        };
        let instance = attached.hello.instance;
        let span = tracing::info_span!("reconcile", %guest, %instance);
        if view.licenses(instance) {
            let (facts, guest) = (self.facts.clone(), guest.clone());
            let resume = async move {
                if let Err(error) = resume_if_behind(&attached, view.epoch).await {
                    return tracing::error!(error = chain(&*error), "the guest was not resumed");
                }
                // Said again at every wake-up until it is seen: the process that ran it may have died before it could.
                if let Some(entry) = view.awaits_running(instance) {
                    let _ = facts.send(Fact::Proposal { guest, entry }).await;
                }
            };
            ctx.spawn(resume.instrument(span).into_actor(self));
        } else if !view.names(instance) {
            let (runners, home, guest) = (self.runners.clone(), ctx.address(), guest.clone());
            let discard = async move {
                runners.discard(&attached).await;
                let _ = home.send(Discarded(guest, instance)).await;
            };
            tokio::spawn(discard.instrument(span));
        }
    }

    /// Asks a guest's runner something and tells the answer.
    fn ask<F>(
        &self,
        ctx: &mut Context<Self>,
        guest: GuestName,
        ask: impl FnOnce(Arc<Attached>, GuestName) -> F,
    ) where
        F: Future<Output = Fact> + Send + 'static,
    {
        let Some(attached) = self.guests.get(&guest).cloned() else {
            return self.refuse(ctx, &guest, format!("guest {guest} is not on node {}", self.name));
        };
        let (facts, answer) = (self.facts.clone(), ask(attached, guest));
        tokio::spawn(async move {
            let _ = facts.send(answer.await).await;
        });
    }
}

/// What a runner is to be, as it travels into a task.
enum Spec {
    Fresh(godwit_wire::orders::GuestSpec),
    Incoming(u64),
}

impl Spec {
    fn role(&self) -> Role<'_> {
        match self {
            Self::Fresh(spec) => Role::Fresh(spec),
            Self::Incoming(bytes) => Role::Incoming(*bytes),
        }
    }
}

struct MigrateOrder {
    migration: MigrationId,
    target: NodeName,
    address: core::net::SocketAddr,
    token: InstanceId,
    epoch: Epoch,
    settings: godwit_wire::orders::Settings,
}

/// The end of a migration, as one of its two nodes proposes it.
fn end_by(side: Side, migration: MigrationId, reason: String) -> Entry {
    Entry::End { migration, side, reason }
}

impl Actor for NodeActor {
    type Context = Context<Self>;
}

impl Handler<Ordered> for NodeActor {
    type Result = ();

    fn handle(&mut self, Ordered(order): Ordered, ctx: &mut Self::Context) {
        match order {
            Order::CreateGuest { guest, spec } => self.create(ctx, guest, spec),
            Order::Prepare { migration, guest, source, epoch, memory_bytes } => {
                self.prepare(ctx, guest, Arriving { migration, source, epoch }, memory_bytes);
            }
            Order::Migrate { migration, guest, target, address, token, epoch, settings } => {
                let order = MigrateOrder { migration, target, address, token, epoch, settings };
                self.migrate(ctx, guest, order);
            }
            Order::Set { migration, settings } => match self.transfers.get(&migration) {
                Some(transfer) => transfer.actor.do_send(actor::Order(Told::Settings(settings))),
                None => self.refuse(ctx, &migration, "no such migration runs here".into()),
            },
            Order::View { guest, ownership } => self.view(ctx, guest, ownership),
            Order::Verify { guest } => self.ask(ctx, guest, |attached, guest| async move {
                match attached.runner.verify().await {
                    Ok(result) => Fact::Verified { guest, result },
                    Err(error) => Fact::Refused { about: guest.to_string(), message: chain(&error) },
                }
            }),
            Order::Stats { guest } => self.ask(ctx, guest, |attached, guest| async move {
                match attached.runner.stats().await {
                    Ok(stats) => Fact::Stats { guest, stats },
                    Err(error) => Fact::Refused { about: guest.to_string(), message: chain(&error) },
                }
            }),
            Order::Stop { guest } => {
                if let Some(attached) = self.guests.get(&guest).cloned() {
                    let (runners, home) = (self.runners.clone(), ctx.address());
                    tokio::spawn(async move {
                        runners.discard(&attached).await;
                        let _ = home.send(Discarded(guest, attached.hello.instance)).await;
                    });
                }
            }
        }
    }
}

impl Handler<Attachment> for NodeActor {
    type Result = ();

    fn handle(&mut self, Attachment { guest, arriving, result }: Attachment, ctx: &mut Self::Context) {
        self.starting.remove(&guest);
        let attached = match result {
            Ok(attached) => attached,
            Err(error) => {
                let reason = chain(&error);
                return match arriving {
                    None => self.refuse(ctx, &guest, reason),
                    Some(Arriving { migration, .. }) => {
                        self.tell(
                            ctx,
                            Fact::Proposal { guest, entry: end_by(Side::Target, migration, reason) },
                        );
                    }
                };
            }
        };
        let (instance, state) = (attached.hello.instance, attached.hello.standing.state);
        let dir = attached.dir.display().to_string();
        self.tell(ctx, Fact::Runner { guest: guest.clone(), instance, dir, state });
        // One whose migration has ended meanwhile is nobody's, and goes when the view is looked at.
        if let Some(arriving) = arriving.filter(|arriving| !self.is_over(&guest, arriving)) {
            self.arrive(ctx, guest.clone(), arriving, &attached);
        }
        self.guests.insert(guest.clone(), Arc::new(attached));
        self.reconcile(ctx, &guest);
    }
}

impl Handler<Discarded> for NodeActor {
    type Result = ();

    fn handle(&mut self, Discarded(guest, instance): Discarded, ctx: &mut Self::Context) {
        if self.guests.get(&guest).is_some_and(|attached| attached.hello.instance == instance) {
            self.guests.remove(&guest);
            self.tell(ctx, Fact::Gone { guest: guest.clone(), instance });
            if let Some((arriving, memory_bytes)) = self.arriving.remove(&guest) {
                self.prepare(ctx, guest, arriving, memory_bytes);
            }
        }
    }
}

impl Handler<Called> for NodeActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Called(inbound): Called, _: &mut Self::Context) -> Self::Result {
        let preamble = &inbound.preamble;
        let waiting = self.transfers.get(&preamble.migration).and_then(|t| Some((t, t.expected.as_ref()?)));
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
        Box::pin(std::future::ready(()))
    }
}

impl Handler<actor::Fact> for NodeActor {
    type Result = ();

    fn handle(&mut self, actor::Fact { guest, migration, tells }: actor::Fact, ctx: &mut Self::Context) {
        match tells {
            Tells::Proposal(entry) => self.tell(ctx, Fact::Proposal { guest, entry }),
            Tells::Progress(progress) => self.tell(ctx, Fact::Progress { migration, progress }),
            Tells::Ended(report) => {
                if let Report::Failed { reason } = &report {
                    tracing::warn!(%guest, %migration, reason, "migration failed");
                }
                self.transfers.remove(&migration);
                self.tell(ctx, Fact::Ended { migration, report });
                self.reconcile(ctx, &guest);
            }
        }
    }
}
