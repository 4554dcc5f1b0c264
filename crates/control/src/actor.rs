//! The shell around a voter: clock, thread and mailbox.
//!
//! ```text
//!   entries ─▶ inbox ─ Come ─┐
//!   FromPeer, Tick, … ───────┴▶ mailbox ─▶ Driver inputs ┐   all that waits,
//!                                                        ▼   then one
//!                                 View ◀─ watch ◀── Driver::turn
//! ```
//!
//! Always true:
//! - a voter runs on an arbiter of its own: a sync of its disk, a fraction of a millisecond and sometimes many, holds
//!   up no other actor;
//! - messages are taken as they come and acted on together in one turn, so one sync serves many; after
//!   `INPUTS_PER_TURN_MAX` of them a turn comes first;
//! - what is proposed while earlier proposals are under way waits for their answers, `HELD_WITHIN` at most, and goes with
//!   all that has come by then: else each would have a sync of its own on every voter's disk, one after the other. Those
//!   who were answered together and come back are waited for, `COMPANY_WITHIN` at most. Who is alone waits for nothing;
//! - a caller whose answer is lost with the actor learns that nobody knows.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use actix::{Actor, ActorContext, Addr, Arbiter, AsyncContext, Context, Handler, Message, MessageResult};
use tokio::sync::watch;

use crate::answer::Later;
use crate::driver::{Caller, Config, Driver, Image, Outbox};
use crate::group::NodeId;
use crate::inbox::{Brought, Inbox, Proposals};
use crate::machine::StateMachine;
use crate::members::Wanted;
use crate::status::{ProposeError, StartError, Status, View, chain};
use crate::storage::DiskSource;

/// Time between two ticks. Heartbeats come every two, elections after ten to twenty: a quorum's loss is seen within
/// two seconds, and a scheduler's hiccup of half a second is none.
pub const TICK: Duration = Duration::from_millis(100);
/// Messages that may wait: some for each voter, and a few callers. A sender waits for room.
const MAILBOX: usize = 64;
/// Messages taken before a turn comes.
const INPUTS_PER_TURN_MAX: usize = 128;
/// How long a proposal waits for those before it. A commit takes a few milliseconds where voters are near, and where they
/// are far this is little beside it.
const HELD_WITHIN: Duration = Duration::from_millis(10);
/// How long one waits for those who were answered with the one before it: as long as it takes to wake them all.
const COMPANY_WITHIN: Duration = Duration::from_millis(1);
/// As many do not wait for more.
const HELD_MAX: usize = 256;

/// Agree on a change of the group. `R` is the state machine's reply.
pub struct ChangeMembers<R> {
    wanted: Wanted,
    entry: Vec<u8>,
    reply: PhantomData<fn() -> R>,
}

impl<R> ChangeMembers<R> {
    /// This change, and an entry that is applied together with it.
    pub fn new(wanted: Wanted, entry: Vec<u8>) -> Self {
        Self { wanted, entry, reply: PhantomData }
    }
}

impl<R> fmt::Debug for ChangeMembers<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeMembers").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

impl<R: 'static> Message for ChangeMembers<R> {
    type Result = Result<R, ProposeError>;
}

/// A peer's message, as its outbox gave it to the network. Only bytes of that very peer: the connection knows whose.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct FromPeer {
    /// Whose connection it came by.
    pub from: NodeId,
    /// What it sent.
    pub bytes: Vec<u8>,
}

/// Everything about this voter.
#[derive(Debug, Message)]
#[rtype(result = "Status")]
pub struct StatusNow;

/// How long ago a quorum was asked that has answered since.
#[derive(Debug, Message)]
#[rtype(result = "Option<Duration>")]
pub struct QuorumAge;

/// Proof that a [`Query`] that is sent after the answer sees everything that was agreed before this was asked. `false`:
/// this voter does not lead, or no quorum answers.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub struct Prove;

/// The whole state, as far as this voter has applied it. `None`: it takes no part, or it has just begun.
#[derive(Debug, Message)]
#[rtype(result = "Option<Image>")]
pub struct ImageNow;

/// Look at the replicated state, as far as this voter has applied it.
pub struct Query<S, R>(Box<dyn FnOnce(&S) -> R + Send>);

impl<S, R> Query<S, R> {
    /// With this function, which must be quick.
    pub fn new(look: impl FnOnce(&S) -> R + Send + 'static) -> Self {
        Self(Box::new(look))
    }
}

impl<S, R> fmt::Debug for Query<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Query")
    }
}

impl<S: 'static, R: Send + 'static> Message for Query<S, R> {
    type Result = R;
}

/// Ask to lead without waiting for a timeout.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Campaign;

/// Let another voter lead, if this one does and another answers.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct HandOn;

/// Close the disk and end.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Stop;

/// Entries lie in the inbox.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Come;

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Turn;

/// See the module.
pub struct ControlActor<S: StateMachine> {
    driver: Box<Driver<S>>,
    began: Instant,
    last_tick: Instant,
    view: watch::Sender<View>,
    /// Taken since the last turn; above 0, a turn is on its way.
    inputs: usize,
    inbox: Arc<Inbox<S::Reply>>,
    /// Entries that are not proposed yet, with their callers.
    held: Vec<Brought<S::Reply>>,
    /// When the first of them came.
    held_since: Instant,
    /// How many were proposed together last: as many may come back when they are answered.
    together: usize,
    /// Callers whose entries were proposed and who are not answered.
    open: Arc<AtomicUsize>,
}

impl<S: StateMachine> fmt::Debug for ControlActor<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlActor").field("driver", &self.driver).finish_non_exhaustive()
    }
}

/// A running voter.
pub struct ControlHandle<S: StateMachine> {
    proposals: Proposals<S>,
    view: watch::Receiver<View>,
    arbiter: Arbiter,
}

impl<S: StateMachine> fmt::Debug for ControlHandle<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlHandle").field("view", &*self.view.borrow()).finish_non_exhaustive()
    }
}

impl<S: StateMachine> ControlHandle<S> {
    /// Starts a voter on a thread of its own. Called within an actix system; the disk is opened here, so what is
    /// wrong with it is told here.
    pub fn start(
        config: Config,
        machine: S,
        source: Box<dyn DiskSource>,
        outbox: Arc<dyn Outbox>,
    ) -> Result<Self, StartError> {
        let began = Instant::now();
        let driver = Box::new(Driver::start(config, machine, source, outbox, Duration::ZERO)?);
        let (view, seen) = watch::channel(driver.view());
        let arbiter = Arbiter::new();
        let inbox = Arc::<Inbox<S::Reply>>::default();
        let taken = Arc::clone(&inbox);
        let addr = ControlActor::start_in_arbiter(&arbiter.handle(), move |ctx| {
            ctx.set_mailbox_capacity(MAILBOX);
            ControlActor {
                driver,
                began,
                last_tick: began,
                view,
                inputs: 0,
                inbox: taken,
                held: Vec::new(),
                held_since: began,
                together: 0,
                open: Arc::default(),
            }
        });
        Ok(Self { proposals: Proposals { inbox, addr }, view: seen, arbiter })
    }

    /// Where to send messages.
    pub fn addr(&self) -> &Addr<ControlActor<S>> {
        self.proposals.addr()
    }

    /// Where to bring entries.
    pub fn proposals(&self) -> &Proposals<S> {
        &self.proposals
    }

    /// What this voter is and how far its state machine is; it changes after each turn that changed it.
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Agrees on an entry.
    pub async fn propose(&self, entry: Vec<u8>) -> Result<S::Reply, ProposeError> {
        self.proposals.propose(entry).await
    }

    /// Closes the disk and ends the thread. Blocks until both have happened.
    pub fn stop(self) -> io::Result<()> {
        // The arbiter's queue is in order: the actor ends with its thread, and its disk with it.
        let _ = self.addr().try_send(Stop);
        self.arbiter.stop();
        self.arbiter.join().map_err(|_| io::Error::other("the control thread has panicked"))
    }
}

impl<S: StateMachine> ControlActor<S> {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Something came in: a turn follows what else waits.
    fn input(&mut self, ctx: &mut Context<Self>) {
        // The interval is looked at when the mailbox is empty, which under load it may never be.
        self.tick_after(TICK);
        if self.inputs == 0 {
            ctx.notify(Turn);
        }
        self.inputs += 1;
        if self.inputs >= INPUTS_PER_TURN_MAX {
            self.turn(ctx);
        }
    }

    /// A tick, if the last is at least so long ago.
    fn tick_after(&mut self, pause: Duration) {
        if self.last_tick.elapsed() >= pause {
            self.last_tick = Instant::now();
            self.driver.tick(self.now());
        }
    }

    /// Takes what has come. Whoever comes next sends for this voter if it has nothing to wait for, else it looks by itself:
    /// after a while, or when those are answered that are under way.
    fn gather(&mut self, ctx: &mut Context<Self>) {
        let (held, alone) = (self.held.len(), self.is_alone());
        let wanted = if alone { self.together.min(HELD_MAX) } else { HELD_MAX };
        let brought = self.inbox.take(|come| match held + come {
            0 => 1,
            there => wanted.saturating_sub(there),
        });
        if held == 0 && !brought.is_empty() {
            self.held_since = Instant::now();
            if !alone || brought.len() < wanted {
                ctx.run_later(if alone { COMPANY_WITHIN } else { HELD_WITHIN }, Self::input);
            }
        }
        self.held.extend(brought);
    }

    /// Nobody waits for an answer.
    fn is_alone(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// Whether what is held is to be proposed.
    fn is_due(&self) -> bool {
        let waited = self.held_since.elapsed();
        let complete = self.is_alone() && (self.held.len() >= self.together || waited >= COMPANY_WITHIN);
        !self.held.is_empty() && (complete || self.held.len() >= HELD_MAX || waited >= HELD_WITHIN)
    }

    fn propose_held(&mut self) {
        let now = self.now();
        self.together = self.held.len();
        self.open.fetch_add(self.together, Ordering::Relaxed);
        let held = std::mem::take(&mut self.held).into_iter().map(|(entry, answer)| {
            let open = Arc::clone(&self.open);
            let caller: Caller<S::Reply> = Box::new(move |outcome| {
                open.fetch_sub(1, Ordering::Relaxed);
                // A caller who has gone away needs no answer.
                let _ = answer.send(outcome);
            });
            (entry, caller)
        });
        self.driver.propose_all(held.collect(), now);
    }

    fn turn(&mut self, ctx: &mut Context<Self>) {
        self.inputs = 0;
        self.gather(ctx);
        if self.is_due() {
            self.propose_held();
        }
        let more = self.driver.turn(self.now());
        self.gather(ctx);
        if more || self.is_due() {
            self.inputs = 1;
            ctx.notify(Turn);
        }
        let view = self.driver.view();
        self.view.send_if_modified(|seen| {
            let changed = *seen != view;
            *seen = view;
            changed
        });
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        // After a stall the interval makes up for every tick it missed, before any message is heard: as many would
        // be an election that nobody needs.
        self.tick_after(TICK / 2);
        self.input(ctx);
    }
}

impl<S: StateMachine> Drop for ControlActor<S> {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl<S: StateMachine> Actor for ControlActor<S> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(TICK, Self::tick);
    }
}

impl<S: StateMachine> Handler<Come> for ControlActor<S> {
    type Result = ();

    fn handle(&mut self, _: Come, ctx: &mut Self::Context) {
        self.input(ctx);
    }
}

impl<S: StateMachine> Handler<ChangeMembers<S::Reply>> for ControlActor<S> {
    type Result = Later<Result<S::Reply, ProposeError>>;

    fn handle(&mut self, change: ChangeMembers<S::Reply>, ctx: &mut Self::Context) -> Self::Result {
        let (later, answer) = Later::new();
        self.driver.change(&change.wanted, change.entry, self.now(), Box::new(answer));
        self.input(ctx);
        later
    }
}

impl<S: StateMachine> Handler<Prove> for ControlActor<S> {
    type Result = Later<bool>;

    fn handle(&mut self, _: Prove, ctx: &mut Self::Context) -> Self::Result {
        let (later, answer) = Later::new();
        self.driver.prove(self.now(), Box::new(answer));
        self.input(ctx);
        later
    }
}

impl<S: StateMachine> Handler<FromPeer> for ControlActor<S> {
    type Result = ();

    fn handle(&mut self, FromPeer { from, bytes }: FromPeer, ctx: &mut Self::Context) {
        if let Err(error) = self.driver.receive(from, &bytes) {
            tracing::warn!(error = chain(&error), "a peer's message was not taken");
        }
        self.input(ctx);
    }
}

impl<S: StateMachine> Handler<StatusNow> for ControlActor<S> {
    type Result = MessageResult<StatusNow>;

    fn handle(&mut self, _: StatusNow, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.driver.status(self.now()))
    }
}

impl<S: StateMachine> Handler<ImageNow> for ControlActor<S> {
    type Result = Option<Image>;

    fn handle(&mut self, _: ImageNow, _: &mut Self::Context) -> Self::Result {
        self.driver.image()
    }
}

impl<S: StateMachine> Handler<QuorumAge> for ControlActor<S> {
    type Result = Option<Duration>;

    fn handle(&mut self, _: QuorumAge, _: &mut Self::Context) -> Self::Result {
        self.driver.quorum_age(self.now())
    }
}

impl<S: StateMachine, R: Send + 'static> Handler<Query<S, R>> for ControlActor<S> {
    type Result = MessageResult<Query<S, R>>;

    fn handle(&mut self, Query(look): Query<S, R>, _: &mut Self::Context) -> Self::Result {
        MessageResult(look(self.driver.machine()))
    }
}

impl<S: StateMachine> Handler<Campaign> for ControlActor<S> {
    type Result = ();

    fn handle(&mut self, _: Campaign, ctx: &mut Self::Context) {
        self.driver.campaign();
        self.input(ctx);
    }
}

impl<S: StateMachine> Handler<HandOn> for ControlActor<S> {
    type Result = ();

    fn handle(&mut self, _: HandOn, ctx: &mut Self::Context) {
        self.driver.hand_on();
        self.input(ctx);
    }
}

impl<S: StateMachine> Handler<Stop> for ControlActor<S> {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl<S: StateMachine> Handler<Turn> for ControlActor<S> {
    type Result = ();

    fn handle(&mut self, _: Turn, ctx: &mut Self::Context) {
        if self.inputs > 0 {
            self.turn(ctx);
        }
    }
}
