//! A node's session with the leader: found, held, lost, found again.
//!
//! ```text
//!   voters, one after another ── Hello ──▶ Elsewhere ─▶ the one that is named
//!   (book, then config)              └───▶ Leads ─▶ pushes ─▶ node actor, book
//!                                                   questions ◀─ whoever holds a Leader
//!   nothing heard for a while ─ Hello, after this term ─▶ the other voters ─▶ a later leader: on to it    (silence)
//! ```
//!
//! Always true: there is at most one session; a question whose answer does not come has an unknown outcome; the age of
//! the quorum's answer is counted from before the question was sent, so it is never told too small.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use actix::Addr;
use godwit_domain::NodeName;
use godwit_domain::registry::Node;
use godwit_transfer::drive::chain;
use godwit_wire::migration::Role;
use godwit_wire::session::{
    ASK_BYTES_MAX, Answer, Ask, Hello, Membership, NodeAsk, PUSH_BYTES_MAX, Push, Welcome,
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::actor::{Leaves, NodeActor, Pushed, Questioned, QuorumAnswered, SessionEnded};
use crate::book::{Book, BookError, Keeper};
use crate::fabric::{Fabric, REFUSED, frames};

pub mod silence;

/// How long a voter may take to say Welcome: a Join has to be agreed on.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(8);
/// Time between two rounds through the voters, at first and at most.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_millis(500);
/// How often the leader is asked when a quorum has answered: a switchover wants an answer of the last second.
const QUORUM_INTERVAL: Duration = Duration::from_millis(250);
/// How often it is looked whether a guest leaves this node. While none does nobody needs the answer, and a thousand nodes
/// that ask all the same would keep a leader busy with nothing else.
const LEAVING_INTERVAL: Duration = Duration::from_millis(50);
/// How long a leader counts as lost: until another must have been elected, if it is.
const LOST_FOR: Duration = Duration::from_secs(2);
/// How long one may take to be there that may be off, while another may lead soon.
const LOST_DIAL_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a question waits for its answer; a proposal is answered within five seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);

/// Where the leader is, for whoever has a question. Clones see the same session.
#[derive(Debug, Clone)]
pub struct Leader(watch::Receiver<Option<Link>>);

#[derive(Debug, Clone)]
struct Link {
    leader: NodeName,
    connection: Connection,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It was not asked.
    #[error("this node has no session with a leader")]
    NoSession,
    /// It was asked, and nobody knows what became of it.
    #[error("the session broke before the answer: {0}")]
    Lost(String),
}

impl Leader {
    /// Who leads, if this node has a session with it.
    pub fn name(&self) -> Option<NodeName> {
        self.0.borrow().as_ref().map(|link| link.leader.clone())
    }

    /// Waits until there is a session, so long at most.
    pub async fn wait(&self, limit: Duration) -> bool {
        let mut link = self.0.clone();
        matches!(tokio::time::timeout(limit, link.wait_for(Option::is_some)).await, Ok(Ok(_)))
    }

    /// Asks something that has one answer.
    pub async fn ask(&self, ask: &Ask) -> Result<Answer, AskError> {
        let exchange = async {
            let mut answers = self.begin(ask).await?;
            let lost = |error: frames::FrameError| AskError::Lost(chain(&error));
            let answer = frames::read::<Answer>(&mut answers, "answer", ASK_BYTES_MAX).await.map_err(lost)?;
            answer.ok_or_else(|| AskError::Lost("it ended without an answer".to_owned()))
        };
        let late = || AskError::Lost(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()));
        tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.unwrap_or_else(|_| Err(late()))
    }

    /// Asks something; the answers are read from the stream.
    pub async fn begin(&self, ask: &Ask) -> Result<RecvStream, AskError> {
        let link = self.0.borrow().clone().ok_or(AskError::NoSession)?;
        let opened = link.connection.open_bi().await;
        let (mut send, receive) = opened.map_err(|error| AskError::Lost(error.to_string()))?;
        let written = frames::write(&mut send, "question", ask, ASK_BYTES_MAX).await;
        written.map_err(|error| AskError::Lost(chain(&error)))?;
        let _ = send.finish();
        Ok(receive)
    }
}

/// What a session is made of.
#[derive(Debug)]
pub struct Seeker {
    /// How to get there.
    pub fabric: Fabric,
    /// Who says Hello.
    pub name: NodeName,
    /// To which cluster.
    pub cluster: String,
    /// What the node is.
    pub node: Node,
    /// Where the config says that a leader may be.
    pub known: BTreeMap<NodeName, SocketAddr>,
    /// What is known of the group.
    pub keeper: Keeper,
}

/// Where the present session is kept: written here, read through [`Leader`].
#[derive(Debug)]
pub struct Place(watch::Sender<Option<Link>>);

/// An empty place, and its reader.
pub fn place() -> (Place, Leader) {
    let (sender, receiver) = watch::channel(None);
    (Place(sender), Leader(receiver))
}

impl Seeker {
    /// Keeps a session with whoever leads. Ends with the actor.
    pub async fn seek(self, actor: Addr<NodeActor>, Place(place): Place) {
        let mut hint: Option<NodeName> = None;
        let mut last: Option<(NodeName, Instant)> = None;
        let mut pause = RETRY_MIN;
        // Why each voter has not given one, as it was said last.
        let mut said: BTreeMap<NodeName, String> = BTreeMap::new();
        while actor.connected() {
            let lost =
                last.as_ref().filter(|(_, at)| at.elapsed() < LOST_FOR).map(|(voter, _)| voter.clone());
            let order = order(self.keeper.now().as_ref(), self.known.keys());
            for voter in hint.take().into_iter().chain(lost_last(order, lost.as_ref())) {
                match self.call(&voter, lost.as_ref() == Some(&voter), None).await {
                    Ok(Called::Leads(session)) => {
                        pause = RETRY_MIN;
                        said.clear();
                        last = Some((self.keep(session, &actor, &place).await, Instant::now()));
                        break;
                    }
                    // Who names the one that was lost may not have noticed yet. It is asked last anyway.
                    Ok(Called::Elsewhere(leader)) => {
                        hint = leader.filter(|leader| *leader != voter && Some(leader) != lost.as_ref());
                    }
                    Err(error) if said.get(&voter) == Some(&error) => {}
                    Err(error) => {
                        tracing::info!(%voter, error, "no session");
                        said.insert(voter.clone(), error);
                    }
                }
                if let Some(leader) = hint.as_ref().filter(|leader| !self.addresses(leader).is_empty()) {
                    tracing::debug!(%leader, "leads, as {voter} says");
                    break;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Keeps a session, and the next one if another leader is found before this one is given up. Returns whose was lost.
    async fn keep(
        &self,
        mut session: Session,
        actor: &Addr<NodeActor>,
        place: &watch::Sender<Option<Link>>,
    ) -> NodeName {
        loop {
            let Session { leader, term, connection, pushes } = session;
            tracing::info!(%leader, term, "session with the leader");
            place.send_replace(Some(Link { leader: leader.clone(), connection: connection.clone() }));
            let asker = Leader(place.subscribe());
            let (reason, next) = tokio::select! {
                reason = hold(&connection, pushes, (actor, &self.keeper), &asker) => (reason, None),
                next = self.successor(&leader, term, &connection) => {
                    connection.close(0_u32.into(), b"another voter leads");
                    (format!("it is silent, and {} leads in term {}", next.leader, next.term), Some(next))
                }
            };
            place.send_replace(None);
            tracing::info!(%leader, reason, "session lost");
            let _ = actor.send(SessionEnded).await;
            match next {
                Some(next) => session = next,
                None => return leader,
            }
        }
    }

    /// A session with a leader of a later term, found while this one is silent. Ends with nothing else.
    async fn successor(&self, silent: &NodeName, term: u64, connection: &Connection) -> Session {
        loop {
            silence::falls_silent(connection).await;
            tracing::debug!(leader = %silent, "has fallen silent: the other voters are asked who leads");
            tokio::select! {
                found = self.find_later(silent, term) => if let Some(found) = found { return found },
                () = silence::is_heard_again(connection) => {}
            }
        }
    }

    /// Asks the others once.
    async fn find_later(&self, silent: &NodeName, term: u64) -> Option<Session> {
        let mut order = order(self.keeper.now().as_ref(), self.known.keys());
        order.retain(|voter| voter != silent);
        // A thousand nodes do not all ask the same one.
        let first = self.name.as_str().bytes().map(usize::from).sum::<usize>();
        let first = first.checked_rem(order.len())?;
        order.rotate_left(first);
        let mut asked = Vec::new();
        while let Some(voter) = order.first().cloned() {
            order.retain(|other| *other != voter);
            match self.call(&voter, true, Some(term)).await {
                Ok(Called::Leads(session)) if session.term > term => return Some(session),
                // One that has not noticed that it was deposed.
                Ok(Called::Leads(older)) => older.connection.close(0_u32.into(), b"an earlier leader"),
                Ok(Called::Elsewhere(Some(leader))) if leader != *silent && !asked.contains(&leader) => {
                    order.insert(0, leader);
                }
                Ok(Called::Elsewhere(_)) | Err(_) => {}
            }
            asked.push(voter);
        }
        None
    }

    /// Where a voter may be: an operator's word goes first.
    fn addresses(&self, voter: &NodeName) -> Vec<SocketAddr> {
        let told = self.keeper.now().and_then(|book| book.addresses.get(voter).copied());
        let mut addresses: Vec<SocketAddr> = self.known.get(voter).copied().into_iter().collect();
        addresses.extend(told.filter(|told| !addresses.contains(told)));
        addresses
    }

    /// What a node says of its control group, without a session coming of it; `None`: it knows of none. `Err`: it has not
    /// said so in time.
    pub(crate) async fn membership_of(
        &self,
        voter: &NodeName,
        limit: Duration,
    ) -> Result<Option<Membership>, String> {
        let asked = async {
            let address = self.known.get(voter).ok_or("nobody has said where it is")?;
            let hello = self.hello(None);
            let dialed = self.fabric.dial_control(*address, voter, Role::Session, &hello).await;
            let (connection, _send, mut receive) = dialed.map_err(|error| chain(&error))?;
            let welcome = frames::read::<Welcome>(&mut receive, "welcome", ASK_BYTES_MAX).await;
            connection.close(0_u32.into(), b"that was all");
            match welcome.map_err(|error| chain(&error))? {
                Some(Welcome::Leads { membership, .. }) => Ok(Some(membership)),
                Some(Welcome::Elsewhere { membership, .. }) => Ok(membership),
                Some(Welcome::Refused { message }) => Err(message),
                None => Err("it ended without a welcome".to_owned()),
            }
        };
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err("it does not answer".to_owned()))
    }

    fn hello(&self, after: Option<u64>) -> Hello {
        Hello {
            cluster: self.cluster.clone(),
            name: self.name.clone(),
            group: self.keeper.now().map(|book| book.group),
            voter: None,
            log: 0,
            node: Some(self.node.clone()),
            after,
        }
    }

    async fn call(&self, voter: &NodeName, in_haste: bool, after: Option<u64>) -> Result<Called, String> {
        let mut called = Err("nobody has said where it is".to_owned());
        for address in self.addresses(voter) {
            called = self.call_at(voter, address, in_haste, after).await;
            if called.is_ok() {
                break;
            }
        }
        called
    }

    async fn call_at(
        &self,
        voter: &NodeName,
        address: SocketAddr,
        in_haste: bool,
        after: Option<u64>,
    ) -> Result<Called, String> {
        let hello = self.hello(after);
        let dialing = self.fabric.dial_control(address, voter, Role::Session, &hello);
        let dialed = match in_haste {
            true => {
                tokio::time::timeout(LOST_DIAL_TIMEOUT, dialing).await.map_err(|_| "it does not answer")?
            }
            false => dialing.await,
        };
        let (connection, _send, mut receive) = dialed.map_err(|error| chain(&error))?;
        let welcome = frames::read::<Welcome>(&mut receive, "welcome", ASK_BYTES_MAX);
        let welcome =
            tokio::time::timeout(WELCOME_TIMEOUT, welcome).await.map_err(|_| "no welcome in time")?;
        match welcome.map_err(|error| chain(&error))? {
            Some(Welcome::Leads { membership, term }) => match self.keeper.learn_or_later(membership) {
                Err(
                    error @ (BookError::OtherGroup { .. }
                    | BookError::Impossible(_)
                    | BookError::GivenUp { .. }),
                ) => {
                    connection.close(REFUSED.into(), error.to_string().as_bytes());
                    tracing::error!(%voter, %error, "this voter leads another group");
                    Err(error.to_string())
                }
                Err(error @ BookError::Disk { .. }) => {
                    tracing::error!(
                        error = chain(&error),
                        "who is in the control group could not be written down"
                    );
                    Ok(Called::leads(voter, term, connection, receive))
                }
                Ok(()) => Ok(Called::leads(voter, term, connection, receive)),
            },
            Some(Welcome::Elsewhere { leader, membership }) => {
                connection.close(0_u32.into(), b"on to the leader");
                if let Some(membership) = membership {
                    self.keeper.learn(&membership).map_err(|error| chain(&error))?;
                }
                Ok(Called::Elsewhere(leader))
            }
            Some(Welcome::Refused { message }) => {
                tracing::error!(%voter, message, "this node is not welcome in the cluster");
                Err(message)
            }
            None => Err("it ended without a welcome".to_owned()),
        }
    }
}

/// Whom to ask for the leader: those who voted when this node last heard of it, then those whom the config names.
pub fn order<'a>(book: Option<&Book>, known: impl Iterator<Item = &'a NodeName>) -> Vec<NodeName> {
    let members = book.into_iter().flat_map(|book| book.members.iter());
    let (votes, learns): (Vec<_>, Vec<_>) = members.partition(|(_, member)| member.votes);
    let told = votes.into_iter().chain(learns).map(|(_, member)| member.name.clone());
    let mut order: Vec<NodeName> = told.collect();
    for name in known {
        if !order.contains(name) {
            order.push(name.clone());
        }
    }
    order
}

/// The leader that was just lost is asked last: its host may be off, and to find that out takes longer than to be sent on
/// by another.
fn lost_last(order: Vec<NodeName>, lost: Option<&NodeName>) -> Vec<NodeName> {
    let (last, mut first): (Vec<_>, Vec<_>) = order.into_iter().partition(|voter| Some(voter) == lost);
    first.extend(last);
    first
}

/// What a leader has granted.
#[derive(Debug)]
struct Session {
    leader: NodeName,
    term: u64,
    connection: Connection,
    pushes: RecvStream,
}

enum Called {
    Leads(Session),
    Elsewhere(Option<NodeName>),
}

impl Called {
    fn leads(leader: &NodeName, term: u64, connection: Connection, pushes: RecvStream) -> Self {
        Self::Leads(Session { leader: leader.clone(), term, connection, pushes })
    }
}

/// Holds a session until it breaks; returns why.
async fn hold(
    connection: &Connection,
    mut pushes: RecvStream,
    (actor, keeper): (&Addr<NodeActor>, &Keeper),
    leader: &Leader,
) -> String {
    let mut tasks = JoinSet::new();
    let (home, keeper) = (actor.clone(), keeper.clone());
    tasks.spawn(async move {
        while let Ok(Some(mut push)) = frames::read::<Push>(&mut pushes, "push", PUSH_BYTES_MAX).await {
            if let Some(membership) = push.membership.take()
                && let Err(error) = keeper.learn_or_later(membership)
            {
                tracing::error!(error = chain(&error), "who is in the control group was not taken");
            }
            if home.send(Pushed(push)).await.is_err() {
                return;
            }
        }
    });
    let (home, questions) = (actor.clone(), connection.clone());
    tasks.spawn(async move {
        while let Ok((send, receive)) = questions.accept_bi().await {
            tokio::spawn(question(home.clone(), send, receive));
        }
    });
    let (home, leader) = (actor.clone(), leader.clone());
    tasks.spawn(async move {
        loop {
            match home.send(Leaves).await {
                Ok(true) => {}
                Ok(false) => {
                    tokio::time::sleep(LEAVING_INTERVAL).await;
                    continue;
                }
                Err(_) => return,
            }
            let asked = Instant::now();
            if let Ok(Answer::QuorumAge(Some(age_ms))) = leader.ask(&Ask::Quorum).await {
                let age = asked.elapsed() + Duration::from_millis(age_ms);
                if home.send(QuorumAnswered(age)).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(QUORUM_INTERVAL).await;
        }
    });
    // Any of them ends with the connection; a session that brings no pushes any more is none.
    tasks.join_next().await;
    connection.close(0_u32.into(), b"the session is over");
    tasks.shutdown().await;
    connection.close_reason().map(|reason| reason.to_string()).unwrap_or_default()
}

async fn question(actor: Addr<NodeActor>, mut send: SendStream, mut receive: RecvStream) {
    let Ok(Some(ask)) = frames::read::<NodeAsk>(&mut receive, "question", ASK_BYTES_MAX).await else {
        return;
    };
    let Ok(answer) = actor.send(Questioned(ask)).await else { return };
    if frames::write(&mut send, "answer", &answer, PUSH_BYTES_MAX).await.is_ok() {
        let _ = send.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_that_was_lost_is_asked_last() {
        let names = |texts: [&str; 3]| texts.map(|text| text.parse::<NodeName>().expect("a name")).to_vec();
        let lost = names(["a", "x", "y"]);
        assert_eq!(lost_last(names(["a", "b", "c"]), None), names(["a", "b", "c"]));
        assert_eq!(lost_last(names(["a", "b", "c"]), lost.first()), names(["b", "c", "a"]));
        assert_eq!(
            lost_last(names(["a", "b", "c"]), lost.last()),
            names(["a", "b", "c"]),
            "it votes no more"
        );
    }
}
