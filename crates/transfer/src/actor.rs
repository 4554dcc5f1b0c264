//! One actor per migration and side: takes orders at once, and stops with the task that does the work.
//!
//! ```text
//!   node actor ── Told ──▶ TransferActor ── channel ──▶ driver (task) ── Tells ──▶ node actor
//! ```
//!
//! Always true: a handler only puts an order into the driver's channel; what the driver tells goes to the node actor
//! by messages that wait for room; the actor stops when the driver has ended, and not before.

use std::pin::Pin;

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message, Recipient};
use godwit_domain::{GuestName, MigrationId};
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::drive::{Report, Tells, Told};

/// Orders that may wait for the driver. It takes them within milliseconds; more waiting than this means that it
/// hangs, which is worth an error.
const ORDERS_MAX: usize = 32;

/// What the driver may have told and the node not taken yet.
const TELLS_MAX: usize = 16;

/// The work: a driver, ready to run with its two channels.
pub type Work = Box<
    dyn FnOnce(mpsc::Receiver<Told>, mpsc::Sender<Tells>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send,
>;

/// What a driver told, with whom it is about.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Fact {
    /// The guest.
    pub guest: GuestName,
    /// The migration.
    pub migration: MigrationId,
    /// What was told.
    pub tells: Tells,
}

/// An order to the driver.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Order(pub Told);

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct DriverEnded;

/// One side of one migration.
pub struct TransferActor {
    guest: GuestName,
    migration: MigrationId,
    facts: Recipient<Fact>,
    work: Option<Work>,
    orders: Option<mpsc::Sender<Told>>,
}

impl std::fmt::Debug for TransferActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransferActor").field("migration", &self.migration).finish_non_exhaustive()
    }
}

impl TransferActor {
    /// An actor that begins its work when started.
    pub fn new(guest: GuestName, migration: MigrationId, facts: Recipient<Fact>, work: Work) -> Self {
        Self { guest, migration, facts, work: Some(work), orders: None }
    }
}

impl Actor for TransferActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(work) = self.work.take() else { return };
        let (orders, told) = mpsc::channel(ORDERS_MAX);
        let (tells, mut heard) = mpsc::channel(TELLS_MAX);
        self.orders = Some(orders);
        let span = tracing::info_span!("transfer", guest = %self.guest, migration = %self.migration);
        let driver = tokio::spawn(work(told, tells).instrument(span));
        let (guest, migration, facts) = (self.guest.clone(), self.migration.clone(), self.facts.clone());
        let ended = ctx.address();
        tokio::spawn(async move {
            while let Some(tells) = heard.recv().await {
                let fact = Fact { guest: guest.clone(), migration: migration.clone(), tells };
                // A node actor that has stopped hears nothing; the process is ending.
                let _ = facts.send(fact).await;
            }
            match driver.await {
                Ok(()) => {}
                // Nobody cancels it but the runtime: the process is ending.
                Err(error) if error.is_cancelled() => return,
                Err(error) => {
                    tracing::error!(%guest, %migration, %error, "a transfer's task died");
                    // Whoever waits for its end gets one.
                    let tells = Tells::Ended(Report::Stopped);
                    let _ =
                        facts.send(Fact { guest: guest.clone(), migration: migration.clone(), tells }).await;
                }
            }
            let _ = ended.send(DriverEnded).await;
        });
    }
}

impl Handler<Order> for TransferActor {
    type Result = ();

    fn handle(&mut self, Order(told): Order, _: &mut Self::Context) {
        let Some(orders) = &self.orders else { return };
        // While the driver waits for its peer, room is kept for what must not be lost: a newer answer follows.
        if matches!(told, Told::Quorum(_)) && orders.capacity() < ORDERS_MAX / 2 {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(order)) = orders.try_send(told) {
            tracing::error!(guest = %self.guest, migration = %self.migration, ?order, "the driver hangs: order dropped");
        }
    }
}

impl Handler<DriverEnded> for TransferActor {
    type Result = ();

    fn handle(&mut self, _: DriverEnded, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
