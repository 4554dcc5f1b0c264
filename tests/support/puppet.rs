//! A puppet that leads: it plays the control group's leader to real node processes and agrees on what a story says, so
//! that a node waits for a guest whose source is a false one, or sends a guest to a false target.
//!
//! ```text
//!   story ── apply ──▶ registry ◀── Ask::Propose ── node process        no log, no other voter:
//!                         └─ Push, after every change ──▶ ▲             what is applied is agreed
//!   story ── ask ── NodeAsk ──────────────────────────────┘
//! ```
//!
//! Always true: what is applied obeys the registry's rules, as in a cluster; a node proposes what a leader would take
//! from it, and hears of guests that concern it. Its endpoint and its checks of names are a real node's. It goes with
//! the story's runtime, so that nodes have a leader until they end.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use godwit::lab::cluster::NodeSpec;
use godwit::lab::monotonic_ns;
use godwit_domain::machine::Body;
use godwit_domain::ownership::{Entry, Permits, Phase};
use godwit_domain::progress::PostCopyReport;
use godwit_domain::registry::{BootId, Command, GuestUid, Home, Node, Refusal, Registry, Stamped, Wish};
use godwit_domain::{
    Epoch, GroupId, GuestName, GuestSpec, InstanceId, Labels, MigrationId, NodeName, Overrides,
};
use godwit_node::ca;
use godwit_node::config::NodeConfig;
use godwit_node::fabric::{ControlCall, Fabric, frames};
use godwit_node::identity::Identity;
use godwit_wire::handoff::{RunState, Stats};
use godwit_wire::session::{
    ASK_BYTES_MAX, Answer, Ask, GuestView, Membership, NodeAnswer, NodeAsk, PUSH_BYTES_MAX, Push, Seated,
    Welcome,
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{mpsc, watch};

use super::world::{World, limited_to, node, unlimited};
use super::{LOOK_INTERVAL, Outcome, PATIENCE};

/// Its name; the first of the voters, so that nodes try it first.
const ME: &str = "node-l";
/// The cluster in every config of the lab.
const CLUSTER: &str = "lab";
/// The others that vote, as the configs have it. Nobody is there.
const SILENT: [&str; 2] = ["node-x1", "node-x2"];
/// Calls that may wait to be served.
const CALLS_MAX: usize = 16;

/// See the module. Clones are the same puppet.
#[derive(Clone)]
pub(crate) struct Puppet(Arc<Inner>);

struct Inner {
    voters: BTreeMap<NodeName, SocketAddr>,
    /// Kept, so that nobody else is ever found at the silent voters' addresses.
    _silent: Vec<UdpSocket>,
    since: Instant,
    state: watch::Sender<State>,
}

#[derive(Default)]
struct State {
    registry: Registry,
    sessions: BTreeMap<NodeName, Connection>,
}

impl Puppet {
    /// Begins to lead a cluster of the world's authority, in which there is nothing yet.
    pub(crate) fn start(world: &World) -> Result<Self, Box<dyn Error>> {
        let fabric = fabric(world)?;
        let silent = SILENT.map(|_| UdpSocket::bind(("127.0.0.1", 0)));
        let silent = silent.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut voters = BTreeMap::from([(node(ME), fabric.control_address()?)]);
        for (name, socket) in SILENT.iter().zip(&silent) {
            voters.insert(node(name), socket.local_addr()?);
        }
        let (since, state) = (Instant::now(), watch::Sender::new(State::default()));
        let puppet = Self(Arc::new(Inner { voters, _silent: silent, since, state }));
        // Nobody migrates to it.
        let (migrations, _) = mpsc::channel(1);
        let (control, mut calls) = mpsc::channel(CALLS_MAX);
        tokio::spawn(fabric.serve(migrations, control));
        let serving = puppet.clone();
        tokio::spawn(async move {
            while let Some(call) = calls.recv().await {
                tokio::spawn(serving.clone().serve(call));
            }
        });
        Ok(puppet)
    }

    /// Starts a node process that does not vote and finds its leader here; returns when it has.
    pub(crate) async fn start_node(&self, world: &mut World, name: &str) -> Outcome {
        world.cluster.start_node(NodeSpec::on_loopback(node(name), &self.0.voters)).await?;
        self.wait(&format!("{name} has a session"), |state| state.sessions.get(&node(name)).map(|_| ()))
            .await;
        Ok(())
    }

    // ---- what is agreed ----------------------------------------------------------------------------------------

    /// Has something agreed; the nodes that it concerns are told.
    pub(crate) fn apply(&self, command: Command) -> Result<(), Refusal> {
        let time_ms = u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut outcome = Ok(());
        self.0.state.send_modify(|state| {
            outcome = state.registry.apply(Stamped { time_ms, request: None, command }).map(|_| ());
        });
        outcome
    }

    /// Has something agreed about a guest.
    pub(crate) fn agree(&self, guest: GuestUid, entry: Entry) -> Result<(), Refusal> {
        self.apply(Command::Guest { guest, entry })
    }

    /// Has a node join that is none. Others are told that it takes guests at this address.
    pub(crate) fn join(&self, name: &str, migration: SocketAddr) -> Result<(), Refusal> {
        let (boot, memory_bytes) = (BootId(1), 1 << 40);
        let node_itself = Node::new(migration, migration, boot, memory_bytes);
        self.apply(Command::Join { name: node(name), node: node_itself })
    }

    /// Has a new guest agreed on. If its node lives, it will make its runner.
    pub(crate) fn create(
        &self,
        uid: GuestUid,
        name: GuestName,
        on: &str,
        spec: GuestSpec,
    ) -> Result<(), Refusal> {
        self.apply(Command::PutInstance {
            name,
            labels: Labels::new(),
            body: Some(Body::of(spec)),
            home: Some(Home { uid, node: node(on) }),
        })
    }

    /// Has it agreed that a guest shall go to this node now.
    pub(crate) fn send(&self, guest: GuestUid, migration: &MigrationId, target: &str) -> Result<(), Refusal> {
        let (migration, target) = (migration.clone(), node(target));
        let wish = Wish { target: Some(target.clone()), overrides: unlimited(), ..Wish::default() };
        self.apply(Command::Migrate { guest, migration: migration.clone(), wish })?;
        self.apply(Command::Admit { guest, migration, target })
    }

    /// Looks at what is agreed.
    pub(crate) fn registry<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.0.state.borrow().registry)
    }

    /// Waits until something is agreed.
    pub(crate) async fn until<T>(&self, what: &str, mut look: impl FnMut(&Registry) -> Option<T>) -> T {
        self.wait(what, |state| look(&state.registry)).await
    }

    async fn wait<T>(&self, what: &str, mut look: impl FnMut(&State) -> Option<T>) -> T {
        let mut state = self.0.state.subscribe();
        let seen = async {
            loop {
                let seen = look(&state.borrow_and_update());
                if let Some(seen) = seen {
                    return seen;
                }
                state.changed().await.expect("the puppet lives as long as whoever asks it");
            }
        };
        match tokio::time::timeout(PATIENCE, seen).await {
            Ok(seen) => seen,
            Err(_) => panic!("waited {PATIENCE:?} in vain until {what}"),
        }
    }

    /// The migration address that a node has joined with.
    pub(crate) fn migration_address(&self, of: &str) -> Result<SocketAddr, String> {
        let address = self.registry(|registry| registry.nodes.get(&node(of)).map(|node| node.migration));
        address.ok_or_else(|| format!("{of} has not joined"))
    }

    /// Waits until a new guest's runner is agreed on.
    pub(crate) async fn born(&self, guest: GuestUid) -> InstanceId {
        let owner = |registry: &Registry| Some(registry.guests.get(&guest)?.ownership.owner()?.instance);
        self.until("the guest is born", owner).await
    }

    /// The epoch that is agreed.
    pub(crate) fn epoch(&self, guest: GuestUid) -> Result<Epoch, String> {
        let epoch = self.registry(|registry| registry.guests.get(&guest).map(|guest| guest.ownership.epoch));
        epoch.ok_or_else(|| format!("no guest {guest}"))
    }

    /// Waits until a migration is over and holds nothing any more; how it ended.
    pub(crate) async fn end_of(&self, migration: &MigrationId) -> Phase {
        let over = |registry: &Registry| {
            let (attempt, _) = registry.guest_of(migration)?.1.migration(migration)?;
            (attempt.phase.is_over() && attempt.permits == Permits::None).then(|| attempt.phase.clone())
        };
        self.until(&format!("{migration} is over"), over).await
    }

    /// Waits until a migration has failed, and why.
    pub(crate) async fn failure_of(&self, migration: &MigrationId) -> Result<String, String> {
        let end = self.end_of(migration).await;
        end.failure().map(str::to_owned).ok_or_else(|| format!("{migration} ended as {}", end.name()))
    }

    // ---- what nodes say ------------------------------------------------------------------------------------------

    /// Asks a node.
    pub(crate) async fn ask(&self, of: &str, ask: NodeAsk) -> Result<NodeAnswer, Box<dyn Error>> {
        let session = self.0.state.borrow().sessions.get(&node(of)).cloned();
        let connection = session.ok_or_else(|| format!("{of} has no session"))?;
        let exchange = async {
            let (mut send, mut receive) = connection.open_bi().await?;
            frames::write(&mut send, "question", &ask, ASK_BYTES_MAX).await?;
            send.finish()?;
            let answer = frames::read::<NodeAnswer>(&mut receive, "answer", PUSH_BYTES_MAX).await?;
            Ok::<_, Box<dyn Error>>(answer.ok_or("it ended without an answer")?)
        };
        tokio::time::timeout(PATIENCE, exchange).await?
    }

    /// Asks a node again and again, until it answers what is waited for.
    async fn says<T>(
        &self,
        of: &str,
        ask: NodeAsk,
        what: &str,
        look: impl Fn(NodeAnswer) -> Option<T>,
    ) -> Result<T, Box<dyn Error>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(of, ask.clone()).await?;
            let told = format!("{answer:?}");
            if let Some(seen) = look(answer) {
                return Ok(seen);
            }
            if Instant::now() > deadline {
                return Err(format!("waited {PATIENCE:?} in vain until {what}; {of} says {told}").into());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until a node has no runner of any guest.
    pub(crate) async fn runner_goes(&self, on: &str) -> Outcome {
        let none = |answer| matches!(answer, NodeAnswer::Here(runners) if runners.is_empty()).then_some(());
        self.says(on, NodeAsk::Show, "its runners are gone", none).await
    }

    /// Waits until a guest runs on this node under the epoch that is agreed.
    pub(crate) async fn runs_under_the_agreed_epoch(&self, guest: GuestUid, on: &str) -> Outcome {
        let what = "the guest runs under the agreed epoch";
        let agreed = self.epoch(guest)?;
        let runs = |answer| match answer {
            NodeAnswer::Stats { stats: Stats { standing, .. }, .. } => {
                (standing.state == RunState::Running && standing.epoch == agreed).then_some(())
            }
            _ => None,
        };
        self.says(on, NodeAsk::Stats(guest), what, runs).await
    }

    /// Moves a guest between two real nodes, and sees that it runs there alone, has lost nothing and is whole.
    pub(crate) async fn move_and_prove(&self, world: &World, guest: GuestUid, target: &str) -> Outcome {
        let migration: MigrationId = format!("proof-{guest}").parse()?;
        let (since, epoch) = (monotonic_ns(), self.epoch(guest)?);
        self.send(guest, &migration, target)?;
        self.prove(world, guest, target, (&migration, since, epoch)).await
    }

    /// The same, in post-copy at once, and slowly: the guest must have the time to touch pages that nobody has sent yet.
    pub(crate) async fn post_copy_and_prove(
        &self,
        world: &World,
        guest: GuestUid,
        target: &str,
    ) -> Result<PostCopyReport, Box<dyn Error>> {
        let (since, epoch) = (monotonic_ns(), self.epoch(guest)?);
        let migration: MigrationId = format!("post-copy-{epoch}").parse()?;
        let overrides = Overrides { allow_post_copy: Some(true), ..limited_to(128) };
        let wish = Wish { target: Some(node(target)), overrides, post_copy_at_once: true, ..Wish::default() };
        self.apply(Command::Migrate { guest, migration: migration.clone(), wish })?;
        self.apply(Command::Admit { guest, migration: migration.clone(), target: node(target) })?;
        self.prove(world, guest, target, (&migration, since, epoch)).await?;
        let measured =
            |registry: &Registry| registry.guests.get(&guest)?.migration(&migration)?.1.measured.post_copy;
        Ok(self.until("the target has said what it measured", measured).await)
    }

    async fn prove(
        &self,
        world: &World,
        guest: GuestUid,
        target: &str,
        (migration, since, epoch): (&MigrationId, u64, Epoch),
    ) -> Outcome {
        assert_eq!(self.end_of(migration).await, Phase::Succeeded);
        // At once: the guest heals what it writes again.
        match self.ask(target, NodeAsk::Verify(guest)).await? {
            NodeAnswer::Verified(verified) => assert_eq!(verified.wrong, 0, "after the move: {verified:?}"),
            other => return Err(format!("{target} does not compare: {other:?}").into()),
        }
        let seen = world.ticks_after(since, monotonic_ns(), target).await;
        assert_eq!(seen.lost, 0, "ticks lost or written twice in the move to {target}: {seen:?}");
        let owner = self.registry(|registry| registry.guests.get(&guest)?.ownership.owner().cloned());
        assert_eq!(owner.map(|owner| owner.node), Some(node(target)), "the owner after the move");
        assert_eq!(self.epoch(guest)?, epoch.next(), "a move makes one new epoch");
        Ok(())
    }

    // ---- sessions --------------------------------------------------------------------------------------------------

    async fn serve(self, call: ControlCall) {
        let ControlCall { connection, stream: (mut send, _receive), hello, .. } = call;
        // A voter's link, which has nothing to say here, or a session.
        let Some(itself) = hello.node else { return };
        let name = hello.name;
        let joined = self.apply(Command::Join { name: name.clone(), node: Node { fenced: None, ..itself } });
        let welcome = match joined {
            Ok(()) => Welcome::Leads { term: 1, membership: self.membership() },
            Err(refusal) => Welcome::Refused { message: refusal.to_string() },
        };
        if frames::write(&mut send, "welcome", &welcome, ASK_BYTES_MAX).await.is_err() {
            return;
        }
        self.0.state.send_modify(|state| {
            state.sessions.insert(name.clone(), connection.clone());
        });
        tokio::spawn(self.clone().push(name.clone(), send));
        while let Ok((send, receive)) = connection.accept_bi().await {
            tokio::spawn(self.clone().answer(name.clone(), send, receive));
        }
        self.0.state.send_modify(|state| {
            let is_this = |known: &Connection| known.stable_id() == connection.stable_id();
            if state.sessions.get(&name).is_some_and(is_this) {
                state.sessions.remove(&name);
            }
        });
    }

    /// The group that the puppet says it leads. Nobody else of it ever speaks.
    fn membership(&self) -> Membership {
        let seated = |(number, (name, address)): (u64, (&NodeName, &SocketAddr))| {
            (number, Seated { name: name.clone(), votes: true, address: Some(*address) })
        };
        let members: BTreeMap<u64, Seated> = (1..).zip(&self.0.voters).map(seated).collect();
        Membership {
            group: GroupId(1),
            founders: members.clone(),
            index: 0,
            members,
            succeeds: Vec::new(),
            heard: std::collections::BTreeSet::new(),
        }
    }

    /// Everything that concerns a node at first, then what has changed of it, until its session ends.
    async fn push(self, name: NodeName, mut send: SendStream) {
        let mut state = self.0.state.subscribe();
        let mut told: Option<BTreeMap<GuestUid, GuestView>> = None;
        loop {
            let now = concerned(&state.borrow_and_update().registry, &name, told.as_ref());
            let changed =
                |view: &&GuestView| told.as_ref().and_then(|told| told.get(&view.uid)) != Some(*view);
            let guests: Vec<GuestView> = now.values().filter(changed).cloned().collect();
            if told.is_none() || !guests.is_empty() {
                let push = Push { fenced: None, membership: None, guests, complete: true, asked: false };
                if frames::write(&mut send, "push", &push, PUSH_BYTES_MAX).await.is_err() {
                    return;
                }
            }
            told = Some(now);
            if state.changed().await.is_err() {
                return;
            }
        }
    }

    async fn answer(self, name: NodeName, mut send: SendStream, mut receive: RecvStream) {
        let Ok(Some(ask)) = frames::read::<Ask>(&mut receive, "question", ASK_BYTES_MAX).await else {
            return;
        };
        let refused = |why: String| Answer::Refused { why };
        let answer = match ask {
            Ask::Propose(command @ (Command::Guest { .. } | Command::Measured { .. })) => {
                self.apply(command).map_or_else(|why| refused(why.to_string()), |()| Answer::Applied)
            }
            Ask::Propose(other) => refused(format!("node {name} does not propose {other:?}")),
            Ask::Quorum => Answer::QuorumAge(Some(0)),
            // Operators are not served: they hear that nobody knows.
            Ask::Progress { .. } | Ask::Admin(_) => Answer::Noted,
        };
        if frames::write(&mut send, "answer", &answer, ASK_BYTES_MAX).await.is_ok() {
            let _ = send.finish();
        }
    }
}

/// What a node is told of, as it stands: guests that it holds something of, and those that it was told of before.
fn concerned(
    registry: &Registry,
    name: &NodeName,
    told: Option<&BTreeMap<GuestUid, GuestView>>,
) -> BTreeMap<GuestUid, GuestView> {
    let known = |uid: &GuestUid| told.is_some_and(|told| told.contains_key(uid));
    let guests = registry.guests.iter();
    let concerned = guests.filter(|(uid, guest)| guest.ownership.holders.contains(name) || known(uid));
    let views = concerned.map(|(uid, guest)| {
        let target = guest.ownership.attempt.as_ref().and_then(|attempt| attempt.phase.target_node());
        let view = GuestView {
            uid: *uid,
            name: guest.name.clone(),
            spec: guest.spec().clone(),
            ownership: guest.ownership.clone(),
            settings: registry.settings_of(guest),
            target_address: target.and_then(|target| registry.nodes.get(target)).map(|node| node.migration),
            network: None,
            post_copy_at_once: guest.record.as_ref().is_some_and(|record| record.wish.post_copy_at_once),
        };
        (*uid, view)
    });
    views.collect()
}

/// A node's endpoints under the puppet's name. It is no voter by its own config, so that the kernel may choose its port.
fn fabric(world: &World) -> Result<Fabric, Box<dyn Error>> {
    let dir = world.folder("puppet");
    ca::issue(&world.ca(), &node(ME), &dir)?;
    let text = format!(
        "name = \"{ME}\"\ncluster = \"{CLUSTER}\"\nstate = {dir:?}\n\n\
         [identity]\nca = \"ca.pem\"\ncertificate = \"node.pem\"\nkey = \"node.key\"\n\n\
         [migration]\nlisten = \"127.0.0.1:0\"\nsocket_buffer_bytes = \"64Ki\"\n\n\
         [control]\nlisten = \"127.0.0.1:0\"\n\
         voters = {{ x = \"10.0.0.1:1\", y = \"10.0.0.2:1\", z = \"10.0.0.3:1\" }}\n"
    );
    let config = NodeConfig::parse(&text, &dir.join("node.toml"))?;
    let identity = Identity::load(&config.identity, &config.name)?;
    Ok(Fabric::bind(&config, &identity)?)
}
