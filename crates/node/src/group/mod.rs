//! A node that votes: its replica of what is agreed, and, while it leads, the floor on which the nodes' sessions stand.
//!
//! ```text
//!   session ─▶ serve ─▶ Floor (who is here, since when others are not, how migrations do)
//!                 │                      │
//!   desk ◀────────┘        lead: next admission ─▶ propose
//! ```
//!
//! Always true: what decides is in the log; the floor is the leader's own, and gone with its leadership. Nothing that is
//! read here is told as present unless this voter leads.

mod copies;
pub mod decide;
pub mod desk;
mod enroll;
mod floor;
mod lead;
mod rows;
mod serve;
pub mod told;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix::Addr;
use godwit_control::{
    ChangeError, ChangeMembers, Condition, ControlActor, HandOn, Image, ImageNow, Members, NodeId, Proposals,
    ProposeError, Prove, Query, QuorumAge, Role, Status, StatusNow, View, Wanted,
};
use godwit_domain::NodeName;
use godwit_domain::registry::{Command, MemberChange, Refusal, Registry, RequestKey, Stamped};
use godwit_wire::log;
use tokio::sync::watch;

pub use floor::Floor;
pub use lead::lead;
pub use serve::serve;

use crate::book::{self, Keeper};
use crate::replica::{Bells, Replica};

/// This node's voter. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Group(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    me: NodeName,
    cluster: String,
    keeper: Keeper,
    proposals: Proposals<Replica>,
    view: watch::Receiver<View>,
    bells: Arc<Bells>,
    floor: Floor,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAgreed {
    /// It was agreed on and refused: nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It was not taken.
    #[error("{0}")]
    NotTaken(String),
    /// A rule of the group forbids this change of it.
    #[error(transparent)]
    Forbidden(#[from] ChangeError),
    /// Nobody knows.
    #[error("it is not known whether it is agreed; look, or ask again")]
    Unknown,
}

/// This host's time, in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// A founder's number: made of its name, so that nobody has to give them out. Whoever is added later gets another.
pub fn voter_id(name: &NodeName) -> NodeId {
    // FNV-1a, 64 bits. 0 is nobody.
    let hash = name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    NodeId::new(hash.max(1)).unwrap_or_else(|| unreachable!("it is at least 1"))
}

impl Group {
    /// The voter behind this address.
    pub fn new(
        me: NodeName,
        cluster: String,
        keeper: Keeper,
        proposals: Proposals<Replica>,
        view: watch::Receiver<View>,
        bells: Arc<Bells>,
    ) -> Self {
        Self(Arc::new(Inner { me, cluster, keeper, proposals, view, bells, floor: Floor::default() }))
    }

    /// This node.
    pub fn me(&self) -> &NodeName {
        &self.0.me
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.0.cluster
    }

    /// What the node knows of the group.
    pub fn keeper(&self) -> &Keeper {
        &self.0.keeper
    }

    /// Where the group's messages go.
    pub fn control(&self) -> &Addr<ControlActor<Replica>> {
        self.0.proposals.addr()
    }

    /// Who is in the group, as far as this voter has applied it.
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.0.view.borrow().members)
    }

    /// Every voter.
    pub fn voters(&self) -> Vec<NodeName> {
        let members = self.members();
        let voters = members.iter().filter(|(_, member)| member.votes);
        let mut names: Vec<NodeName> = voters.map(|(_, member)| member.name.clone()).collect();
        names.sort();
        names
    }

    /// Whether a node with this number is in the group, by what this voter has applied or by what was told.
    pub fn is_in(&self, id: NodeId, name: &NodeName) -> bool {
        book::is_in(&self.members(), self.0.keeper.now().as_ref(), id, name)
    }

    /// Waits until this voter was removed from the group; `false`: it has ended without that.
    pub async fn removed(&self) -> bool {
        self.watch().wait_for(|view| view.condition == Condition::Removed).await.is_ok()
    }

    /// Waits until this voter takes part; `false`: it has ended without that.
    pub async fn runs(&self) -> bool {
        self.watch().wait_for(|view| view.condition == Condition::Running).await.is_ok()
    }

    /// What the voter is and how far.
    pub fn view(&self) -> View {
        self.0.view.borrow().clone()
    }

    /// The same, to wait for changes.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.0.view.clone()
    }

    /// Whether it leads.
    pub fn leads(&self) -> bool {
        self.0.view.borrow().role == Role::Leader
    }

    /// Who leads, as far as it knows.
    pub fn leader(&self) -> Option<NodeName> {
        let leader = self.0.view.borrow().leader?;
        let told = || self.0.keeper.now()?.members.get(leader).map(|member| member.name.clone());
        self.members().get(leader).map(|member| member.name.clone()).or_else(told)
    }

    /// Agrees on a change of the group, as the answer to an operator's request.
    pub async fn change_for(
        &self,
        request: Option<RequestKey>,
        wanted: Wanted,
        change: MemberChange,
    ) -> Result<(), NotAgreed> {
        let (Wanted::Add(node) | Wanted::Promote(node) | Wanted::Remove(node)) = &wanted;
        let command = Command::Member { node: node.clone(), change };
        let entry = self.entry(request, command)?;
        let change = ChangeMembers::<Result<(), Refusal>>::new(wanted, entry);
        // A voter that stops now may have proposed it before: closed is not the same as not taken.
        agreed(self.control().send(change).await.unwrap_or(Err(ProposeError::Unknown)))
    }

    /// Asks that another voter leads.
    pub async fn hand_on(&self) {
        let _ = self.control().send(HandOn).await;
    }

    /// Agrees on a command, with this leader's time.
    pub async fn propose(&self, command: Command) -> Result<(), NotAgreed> {
        self.propose_for(None, command).await
    }

    /// The same, as the answer to an operator's request: a repeated one gets the first answer.
    pub async fn propose_for(&self, request: Option<RequestKey>, command: Command) -> Result<(), NotAgreed> {
        let entry = self.entry(request, command)?;
        agreed(self.0.proposals.propose(entry).await)
    }

    fn entry(&self, request: Option<RequestKey>, command: Command) -> Result<Vec<u8>, NotAgreed> {
        if !self.control().connected() {
            return Err(NotAgreed::NotTaken("this voter has stopped".to_owned()));
        }
        log::encode_entry(&Stamped { time_ms: now_ms(), request, command })
            .map_err(|error| NotAgreed::NotTaken(error.to_string()))
    }

    /// Looks at what is agreed, as far as this voter has applied it. `None`: it has stopped.
    pub async fn read<R: Send + 'static>(
        &self,
        look: impl FnOnce(&Registry) -> R + Send + 'static,
    ) -> Option<R> {
        self.control().send(Query::new(|replica: &Replica| look(replica.registry()))).await.ok()
    }

    /// Proof that what is read here after the answer holds everything that was agreed before this was asked. `false`: this
    /// voter does not lead, or no quorum answers.
    pub async fn is_present(&self) -> bool {
        self.control().send(Prove).await.unwrap_or(false)
    }

    /// How long ago a quorum was asked that has answered since.
    pub async fn quorum_age(&self) -> Option<Duration> {
        self.control().send(QuorumAge).await.ok().flatten()
    }

    /// All that is agreed, as far as this voter has applied it.
    pub async fn image(&self) -> Option<Image> {
        self.control().send(ImageNow).await.ok().flatten()
    }

    /// Everything about the voter.
    pub async fn status(&self) -> Option<Status> {
        self.control().send(StatusNow).await.ok()
    }

    /// The leader's floor.
    pub fn floor(&self) -> &Floor {
        &self.0.floor
    }

    fn bells(&self) -> &Bells {
        &self.0.bells
    }
}

/// What a voter's answer comes to.
fn agreed(answer: Result<Result<(), Refusal>, ProposeError>) -> Result<(), NotAgreed> {
    match answer {
        Ok(applied) => Ok(applied?),
        Err(ProposeError::Unknown) => Err(NotAgreed::Unknown),
        Err(ProposeError::Forbidden(rule)) => Err(NotAgreed::Forbidden(rule)),
        Err(refused) => Err(NotAgreed::NotTaken(refused.to_string())),
    }
}
