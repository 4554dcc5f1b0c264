//! What this node has proposed and not yet heard about: put to whoever leads again and again, until it is answered.
//!
//! Always true: one proposal is under way once, however often it is owed; a repetition is the same proposal, which the
//! registry applies once; a refusal is no reason to ask again until something has changed or a second has passed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use actix::{Addr, AsyncContext, Context, Handler, Message};
use godwit_domain::ownership::Entry;
use godwit_domain::progress::Measured;
use godwit_domain::registry::{Command, GuestUid};
use godwit_domain::{GuestName, MigrationId};
use godwit_transfer::actor;
use godwit_transfer::drive::Tells;
use godwit_wire::session::{Answer, Ask};

use super::NodeActor;
use crate::session::Leader;

/// Time between two attempts, at first and at most.
const AGAIN_MIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_millis(500);
/// For how long what was measured is offered. It decides nothing.
const MEASURED_PATIENCE: Duration = Duration::from_secs(60);
/// Commits whose time is remembered: the slowest of them is what the next is expected to take.
const COMMITS_KEPT: usize = 16;
/// What a commit is thought to take until one was measured, and at most: beyond that it is no estimate any more.
const COMMIT_ESTIMATE: Duration = Duration::from_millis(5);
const COMMIT_ESTIMATE_MAX: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    under_way: Vec<(GuestUid, Entry)>,
    refused: Vec<(GuestUid, Entry)>,
    commits: VecDeque<Duration>,
}

impl Proposals {
    /// What the registry refused may be asked again.
    pub(super) fn forget_refusals(&mut self) {
        self.refused.clear();
    }

    /// How long the next commit is expected to take.
    pub(super) fn commit_estimate(&self) -> Duration {
        self.commits.iter().max().copied().unwrap_or(COMMIT_ESTIMATE).min(COMMIT_ESTIMATE_MAX)
    }
}

/// A proposal was answered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Proposed {
    uid: GuestUid,
    entry: Entry,
    refused: Option<String>,
    /// How long it took, if the first attempt was answered.
    took: Option<Duration>,
}

impl NodeActor {
    /// Proposes an entry about a guest.
    pub(super) fn propose(&mut self, ctx: &mut Context<Self>, uid: GuestUid, entry: Entry) {
        let known = (uid, entry.clone());
        if self.proposals.under_way.contains(&known) || self.proposals.refused.contains(&known) {
            return;
        }
        self.proposals.under_way.push(known);
        let (leader, home): (Leader, Addr<Self>) = (self.leader.clone(), ctx.address());
        tokio::spawn(async move {
            planted::hold(&entry).await;
            let command = Command::Guest { guest: uid, entry: entry.clone() };
            let (refused, took) = until_answered(&leader, command, None).await;
            let _ = home.send(Proposed { uid, entry, refused, took }).await;
        });
    }

    /// Proposes what a driver tells. One that serves pages before it is known that the guest runs waits with that.
    pub(super) fn propose_when_known(
        &mut self,
        ctx: &mut Context<Self>,
        guest: GuestName,
        migration: MigrationId,
        entry: Entry,
    ) {
        let Some(transfer) = self.transfers.get(&migration) else { return };
        let uid = transfer.uid;
        if self.here.get(&transfer.instance).is_some_and(|here| here.served_early) {
            let fact = actor::Fact { guest, migration, tells: Tells::Proposal(entry) };
            ctx.notify_later(fact, AGAIN_MIN);
        } else {
            self.propose(ctx, uid, entry);
        }
    }

    /// Offers what was measured, for people.
    pub(super) fn tell_measured(&self, migration: MigrationId, measured: Measured) {
        let leader = self.leader.clone();
        tokio::spawn(async move {
            let command = Command::Measured { migration, measured: Box::new(measured) };
            until_answered(&leader, command, Some(MEASURED_PATIENCE)).await;
        });
    }
}

/// Asks until it is answered; what was refused says why.
pub(super) async fn until_answered(
    leader: &Leader,
    command: Command,
    patience: Option<Duration>,
) -> (Option<String>, Option<Duration>) {
    let began = Instant::now();
    let mut pause = AGAIN_MIN;
    let mut first = true;
    let ask = Ask::Propose(command);
    loop {
        match leader.ask(&ask).await {
            Ok(Answer::Applied) => return (None, first.then(|| began.elapsed())),
            Ok(Answer::Refused { why }) => return (Some(why), None),
            Ok(other) => tracing::debug!(?other, ?ask, "not agreed yet"),
            Err(error) => tracing::debug!(%error, ?ask, "not agreed yet"),
        }
        if patience.is_some_and(|patience| began.elapsed() > patience) {
            return (None, None);
        }
        first = false;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN_MAX);
    }
}

impl Handler<Proposed> for NodeActor {
    type Result = ();

    fn handle(&mut self, Proposed { uid, entry, refused, took }: Proposed, ctx: &mut Self::Context) {
        self.proposals.under_way.retain(|known| *known != (uid, entry.clone()));
        if let Some(took) = took {
            self.proposals.commits.push_back(took);
            if self.proposals.commits.len() > COMMITS_KEPT {
                self.proposals.commits.pop_front();
            }
        }
        if let Some(why) = refused {
            tracing::info!(%uid, entry = entry.name(), why, "proposal refused");
            self.proposals.refused.push((uid, entry));
        }
        self.look(ctx, uid);
    }
}

/// A stop point that tests switch on: time between the pause of a guest and the proposal of its hand-over.
mod planted {
    use godwit_domain::ownership::Entry;

    #[cfg(feature = "planted-bugs")]
    pub(super) async fn hold(entry: &Entry) {
        if matches!(entry, Entry::HandOver { .. }) && godwit_transfer::planted::is_on("hold-hand-over") {
            tracing::info!("planted: the hand-over is held for a while");
            tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        }
        if matches!(entry, Entry::Running { .. }) && godwit_transfer::planted::is_on("never-report") {
            std::future::pending::<()>().await;
        }
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(super) async fn hold(_: &Entry) {}
}
