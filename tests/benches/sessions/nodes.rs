//! A thousand nodes, as far as their leader can tell: each with a certificate and a session of its own, and without guests.
//!
//! ```text
//!   voters, one after another ── Hello ─▶ the leader ─▶ pushes ─▶ what a view asks of this node ─▶ proposal
//!                                              └────▶ questions about a guest: it runs
//! ```
//!
//! Always true: what is said, when and in which order is what a node says (`node::session`, `node::actor`), a question for
//! the quorum every 250 ms while a guest leaves among it; a proposal is repeated until it is answered; a session that breaks is sought again as
//! a node does. Nothing is copied: a migration is over as soon as its entries are agreed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use godwit_domain::ownership::{Entry, Life, Mode, Phase};
use godwit_domain::registry::{BootId, Command, GuestUid, Milestone, Node};
use godwit_domain::{Epoch, InstanceId, MigrationId, NodeName};
use godwit_node::ca;
use godwit_node::config::IdentityFiles;
use godwit_node::fabric::frames;
use godwit_node::identity::Identity;
use godwit_node::session::silence;
use godwit_wire::codec;
use godwit_wire::handoff::{RunState, Standing, Stats};
use godwit_wire::migration::Role;
use godwit_wire::session::{
    ASK_BYTES_MAX, Answer, Ask, GuestView, Hello, NodeAnswer, NodeAsk, PUSH_BYTES_MAX, Push, Welcome,
};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, IdleTimeout, RecvStream, SendStream, TransportConfig};
use tokio::task::JoinSet;

use super::Failure;

/// Sockets that the nodes share: one would be served by one task.
const SOCKETS: usize = 16;
/// The cluster's name in every config.
const CLUSTER: &str = "lab";
const GIB: u64 = 1 << 30;

// These are a node's (`node::session`, `node::fabric`).
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const LOST_FOR: Duration = Duration::from_secs(2);
const LOST_DIAL_TIMEOUT: Duration = Duration::from_millis(500);
const LEAVING_INTERVAL: Duration = Duration::from_millis(50);
const WELCOME_TIMEOUT: Duration = Duration::from_secs(8);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_millis(500);
const QUORUM_INTERVAL: Duration = Duration::from_millis(250);
const KEEPALIVE: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Rest before a proposal is made again.
const AGAIN: Duration = Duration::from_millis(100);

/// What was seen of all of them.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Sessions that stand now.
    pub(crate) sessions: AtomicUsize,
    /// Migrations of which a target was told, and when first.
    granted: Mutex<BTreeMap<MigrationId, Instant>>,
    /// Sessions that began, and when.
    began: Mutex<Vec<Instant>>,
    /// Migrations that go on running, and how many more will.
    held: Mutex<(BTreeSet<MigrationId>, usize)>,
}

impl Seen {
    pub(crate) fn grants(&self) -> Vec<Instant> {
        let granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        granted.values().copied().collect()
    }

    /// When sessions began, since then.
    pub(crate) fn begun_since(&self, since: Instant) -> Vec<Instant> {
        let began = self.began.lock().unwrap_or_else(PoisonError::into_inner);
        began.iter().copied().filter(|at| *at > since).collect()
    }

    pub(crate) fn held(&self) -> BTreeSet<MigrationId> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// The next so many that run go on running. Returns how many do already.
    pub(crate) fn hold(&self, count: usize) -> usize {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.1 = count;
        held.0.len()
    }

    fn grant(&self, migration: &MigrationId) {
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        granted.entry(migration.clone()).or_insert_with(Instant::now);
    }

    /// Whether this one goes on running.
    fn holds(&self, migration: &MigrationId) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (migrations, more) = &mut *held;
        if *more > 0 && migrations.insert(migration.clone()) {
            *more -= 1;
        }
        migrations.contains(migration)
    }
}

/// All nodes. They end with this.
pub(crate) struct Fleet {
    pub(crate) seen: Arc<Seen>,
    pub(crate) names: Vec<NodeName>,
    _tasks: JoinSet<()>,
}

impl Fleet {
    /// Starts so many nodes, with certificates of the CA in that folder.
    pub(crate) fn start(
        count: u64,
        dir: &Path,
        voters: &BTreeMap<NodeName, SocketAddr>,
    ) -> Result<Self, Failure> {
        let sockets = (0..SOCKETS).map(|_| Endpoint::client(([127, 0, 0, 1], 0).into()));
        let sockets: Vec<Endpoint> = sockets.collect::<Result<_, _>>()?;
        let seen = Arc::<Seen>::default();
        let (mut names, mut tasks) = (Vec::new(), JoinSet::new());
        for (number, socket) in (0..count).zip(sockets.iter().cycle()) {
            let name: NodeName = format!("sim-{number:04}").parse()?;
            let issued = ca::issue(&dir.join("ca"), &name, &dir.join("sim").join(name.as_str()))?;
            let files = IdentityFiles { ca: issued.ca, certificate: issued.certificate, key: issued.key };
            let identity = Identity::load(&files, &name)?;
            let one = One {
                number,
                name: name.clone(),
                socket: socket.clone(),
                client: client(&identity)?,
                voters: voters.clone(),
                seen: Arc::clone(&seen),
                born: Mutex::default(),
                leaving: Mutex::default(),
            };
            tasks.spawn(one.seek());
            names.push(name);
        }
        Ok(Self { seen, names, _tasks: tasks })
    }
}

fn client(identity: &Identity) -> Result<ClientConfig, Failure> {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEPALIVE))
        .max_idle_timeout(Some(IdleTimeout::try_from(SILENCE_MAX)?));
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(identity.client())?));
    client.transport_config(Arc::new(transport));
    Ok(client)
}

/// One node.
struct One {
    number: u64,
    name: NodeName,
    socket: Endpoint,
    client: ClientConfig,
    voters: BTreeMap<NodeName, SocketAddr>,
    seen: Arc<Seen>,
    /// Guests of which it is agreed that they were born here.
    born: Mutex<BTreeSet<GuestUid>>,
    /// Guests that leave this node.
    leaving: Mutex<BTreeSet<GuestUid>>,
}

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

impl One {
    /// As `node::session::Seeker` does.
    async fn seek(self) {
        let me = Arc::new(self);
        let mut hint: Option<NodeName> = None;
        let mut last: Option<(NodeName, Instant)> = None;
        let mut pause = RETRY_MIN;
        loop {
            let lost =
                last.as_ref().filter(|(_, at)| at.elapsed() < LOST_FOR).map(|(voter, _)| voter.clone());
            let others = me.voters.keys().filter(|voter| lost.as_ref() != Some(*voter)).cloned();
            let order = hint.take().into_iter().chain(others).chain(lost.clone());
            for voter in order.collect::<Vec<_>>() {
                match me.call(&voter, lost.as_ref() == Some(&voter), None).await {
                    Ok(Called::Leads(session)) => {
                        pause = RETRY_MIN;
                        last = Some((me.keep(session).await, Instant::now()));
                        break;
                    }
                    Ok(Called::Elsewhere(leader)) => {
                        hint = leader.filter(|leader| *leader != voter && Some(leader) != lost.as_ref());
                    }
                    Err(_) => {}
                }
                if hint.as_ref().is_some_and(|leader| me.voters.contains_key(leader)) {
                    break;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// A session, and the next one if another leader is found while this one is silent. Returns whose was lost.
    async fn keep(self: &Arc<Self>, mut session: Session) -> NodeName {
        loop {
            let Session { leader, term, connection, pushes } = session;
            self.seen.began.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            self.seen.sessions.fetch_add(1, Relaxed);
            let next = tokio::select! {
                () = self.hold(connection.clone(), pushes) => None,
                next = self.successor(&leader, term, &connection) => Some(next),
            };
            self.seen.sessions.fetch_sub(1, Relaxed);
            connection.close(0_u32.into(), b"the session is over");
            match next {
                Some(next) => session = next,
                None => return leader,
            }
        }
    }

    async fn successor(&self, silent: &NodeName, term: u64, connection: &Connection) -> Session {
        loop {
            silence::falls_silent(connection).await;
            tokio::select! {
                found = self.find_later(silent, term) => if let Some(found) = found { return found },
                () = silence::is_heard_again(connection) => {}
            }
        }
    }

    async fn find_later(&self, silent: &NodeName, term: u64) -> Option<Session> {
        let mut order: Vec<NodeName> = self.voters.keys().filter(|voter| *voter != silent).cloned().collect();
        let first = usize::try_from(self.number).unwrap_or_default().checked_rem(order.len())?;
        order.rotate_left(first);
        let mut asked = Vec::new();
        while let Some(voter) = order.first().cloned() {
            order.retain(|other| *other != voter);
            match self.call(&voter, true, Some(term)).await {
                Ok(Called::Leads(session)) if session.term > term => return Some(session),
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

    async fn call(&self, voter: &NodeName, in_haste: bool, after: Option<u64>) -> Result<Called, Failure> {
        let address = *self.voters.get(voter).ok_or("no such voter")?;
        let here = SocketAddr::from(([127, 0, 0, 1], 9));
        let mut node = Node::new(here, here, BootId(1), 64 * GIB);
        node.labels.insert("kubernetes.io/hostname".to_owned(), self.name.to_string());
        let hello = Hello {
            cluster: CLUSTER.to_owned(),
            name: self.name.clone(),
            group: None,
            voter: None,
            log: 0,
            node: Some(node),
            after,
        };
        let limit = if in_haste { LOST_DIAL_TIMEOUT } else { DIAL_TIMEOUT };
        let dial = async {
            let name = voter.certificate_name();
            let connection = self.socket.connect_with(self.client.clone(), address, &name)?.await?;
            let (mut send, receive) = connection.open_bi().await?;
            let hello = codec::encode_frame("hello", &hello, ASK_BYTES_MAX)?;
            send.write_all(&[&Role::Session.greeting()[..], &hello].concat()).await?;
            Ok::<_, Failure>((connection, send, receive))
        };
        let (connection, _send, mut receive) = tokio::time::timeout(limit, dial).await??;
        let welcome = frames::read::<Welcome>(&mut receive, "welcome", ASK_BYTES_MAX);
        match tokio::time::timeout(WELCOME_TIMEOUT, welcome).await?? {
            Some(Welcome::Leads { term, .. }) => {
                let leader = voter.clone();
                Ok(Called::Leads(Session { leader, term, connection, pushes: receive }))
            }
            Some(Welcome::Elsewhere { leader, .. }) => {
                connection.close(0_u32.into(), b"on to the leader");
                Ok(Called::Elsewhere(leader))
            }
            Some(Welcome::Refused { message }) => Err(message.into()),
            None => Err("it ended without a welcome".into()),
        }
    }

    /// A session, until it breaks.
    async fn hold(self: &Arc<Self>, connection: Connection, mut pushes: RecvStream) {
        let mut tasks = JoinSet::new();
        let (asking, me) = (connection.clone(), Arc::clone(self));
        tasks.spawn(async move {
            loop {
                let leaves = !me.leaving.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
                if leaves && ask(&asking, &Ask::Quorum).await.is_err() {
                    return;
                }
                tokio::time::sleep(if leaves { QUORUM_INTERVAL } else { LEAVING_INTERVAL }).await;
            }
        });
        let (questions, me) = (connection.clone(), Arc::clone(self));
        tasks.spawn(async move {
            while let Ok((send, receive)) = questions.accept_bi().await {
                tokio::spawn(Arc::clone(&me).question(send, receive));
            }
        });
        while let Ok(Some(push)) = frames::read::<Push>(&mut pushes, "push", PUSH_BYTES_MAX).await {
            for view in push.guests {
                let owed = self.owed(&view);
                if !owed.is_empty() {
                    tasks.spawn(Arc::clone(self).propose_all(connection.clone(), owed));
                }
            }
            while tasks.try_join_next().is_some() {}
        }
        tasks.shutdown().await;
    }

    /// What a view asks of this node, in order.
    fn owed(&self, view: &GuestView) -> Vec<Command> {
        let (uid, epoch) = (view.uid, view.ownership.epoch);
        let entry = |entry| Command::Guest { guest: uid, entry };
        if matches!(&view.ownership.life, Life::Creating(node) if *node == self.name) {
            return vec![entry(Entry::Born { instance: self.instance(uid, epoch) })];
        }
        let Some(attempt) = &view.ownership.attempt else { return Vec::new() };
        let leaves = matches!(&attempt.phase, Phase::Copying { source, .. } if source.node == self.name);
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        if leaves {
            leaving.insert(uid);
        } else {
            leaving.remove(&uid);
        }
        drop(leaving);
        let migration = attempt.migration.clone();
        match &attempt.phase {
            Phase::Preparing { target, .. } if *target == self.name => {
                self.seen.grant(&migration);
                let milestone = Milestone::PreparingTarget;
                let instance = self.instance(uid, epoch);
                let reached = Command::Reached { migration: migration.clone(), milestone };
                vec![reached, entry(Entry::Accept { migration, epoch, instance })]
            }
            Phase::Copying { source, .. } if source.node == self.name && !self.seen.holds(&migration) => {
                let reached =
                    Command::Reached { migration: migration.clone(), milestone: Milestone::Running };
                vec![reached, entry(Entry::HandOver { migration, epoch, mode: Mode::StopAndCopy })]
            }
            Phase::HandedOver { target, .. } if target.node == self.name => {
                let measured = Command::Measured { migration: migration.clone(), measured: Box::default() };
                vec![entry(Entry::Running { migration, epoch }), measured]
            }
            _ => Vec::new(),
        }
    }

    fn instance(&self, GuestUid(guest): GuestUid, Epoch(epoch): Epoch) -> InstanceId {
        let here = u128::from(self.number + 1) << 32 | u128::from(epoch);
        InstanceId::from_random((u128::from(guest) << 64 | here).to_be_bytes())
    }

    /// Each, once the one before was answered.
    async fn propose_all(self: Arc<Self>, connection: Connection, commands: Vec<Command>) {
        for command in commands {
            let born = match &command {
                Command::Guest { guest, entry: Entry::Born { .. } } => Some(*guest),
                _ => None,
            };
            let ask_it = Ask::Propose(command);
            loop {
                match ask(&connection, &ask_it).await {
                    Ok(Answer::Unknown { .. }) => tokio::time::sleep(AGAIN).await,
                    Ok(_) => break,
                    // What is still owed is pushed again in the next session.
                    Err(_) => return,
                }
            }
            self.born.lock().unwrap_or_else(PoisonError::into_inner).extend(born);
        }
    }

    /// Every guest that was born runs.
    async fn question(self: Arc<Self>, mut send: SendStream, mut receive: RecvStream) {
        let asked = frames::read::<NodeAsk>(&mut receive, "question", ASK_BYTES_MAX).await;
        let Ok(Some(asked)) = asked else { return };
        let is_born = |uid| self.born.lock().unwrap_or_else(PoisonError::into_inner).contains(&uid);
        let answer = match asked {
            NodeAsk::Stats(uid) if is_born(uid) => NodeAnswer::Stats { stats: runs(), dir: String::new() },
            NodeAsk::WhyNot(_) | NodeAsk::WhyEnded(_) => NodeAnswer::Why(None),
            NodeAsk::Show => NodeAnswer::Here(Vec::new()),
            NodeAsk::Stats(_) | NodeAsk::Verify(_) | NodeAsk::Release(_) | NodeAsk::PowerButton(_) => {
                NodeAnswer::Failed { message: "not here".to_owned() }
            }
        };
        if frames::write(&mut send, "answer", &answer, PUSH_BYTES_MAX).await.is_ok() {
            let _ = send.finish();
        }
    }
}

async fn ask(connection: &Connection, ask: &Ask) -> Result<Answer, Failure> {
    let (mut send, mut receive) = connection.open_bi().await?;
    frames::write(&mut send, "question", ask, ASK_BYTES_MAX).await?;
    let _ = send.finish();
    frames::read::<Answer>(&mut receive, "answer", ASK_BYTES_MAX).await?.ok_or_else(|| "no answer".into())
}

fn runs() -> Stats {
    Stats {
        standing: Standing { state: RunState::Running, epoch: Epoch::FIRST, loaded: None },
        memory_bytes: 0,
        dirty_rate_asked: 0,
        dirty_rate_achieved: 0,
        pages_written: 0,
        running_us: 0,
        tick: 0,
        throttle_percent: 0,
    }
}
