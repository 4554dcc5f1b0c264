//! Three voters as actors in one process, each on its thread: the leader dies, the quorum goes, time is real.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::{Addr, System};
use common::{Ledger, id, identity, voters};
use godwit_control::Proposals;
use godwit_control::actor::{Campaign, ControlActor, ControlHandle, FromPeer, Query, QuorumAge, StatusNow};
use godwit_control::driver::{Condition, Config, Outbox, ProposeError, Role, View};
use godwit_control::group::NodeId;
use godwit_control::memory_disk::MemoryFolder;
use godwit_control::sled_disk::SledFolder;
use godwit_control::storage::DiskSource;
use tokio::sync::mpsc;

type Voter = ControlHandle<Ledger>;
type Peers = Arc<Mutex<BTreeMap<NodeId, Addr<ControlActor<Ledger>>>>>;

/// How long anything may take. An election takes two seconds at most; the machine may be busy with other things.
const DEADLINE: Duration = Duration::from_secs(60);

/// A voter's channel to its peers, and a task that carries what is in it.
struct Channel(mpsc::Sender<(NodeId, Vec<u8>)>);

impl Outbox for Channel {
    fn send(&self, to: NodeId, bytes: Vec<u8>) {
        // Full: lost, as on a network.
        let _ = self.0.try_send((to, bytes));
    }
}

struct Cluster {
    voters: BTreeMap<u64, Voter>,
    peers: Peers,
    cut: Arc<AtomicBool>,
}

impl Cluster {
    fn new() -> Self {
        Self { voters: BTreeMap::new(), peers: Peers::default(), cut: Arc::default() }
    }

    fn start(&mut self, n: u64, source: impl DiskSource + 'static) {
        let (channel, mut sent) = mpsc::channel::<(NodeId, Vec<u8>)>(256);
        let (peers, cut) = (Arc::clone(&self.peers), Arc::clone(&self.cut));
        tokio::spawn(async move {
            while let Some((to, bytes)) = sent.recv().await {
                let peer = peers.lock().expect("not poisoned").get(&to).cloned();
                if let Some(peer) = peer.filter(|_| !cut.load(Ordering::SeqCst)) {
                    let _ = peer.send(FromPeer { from: id(n), bytes }).await;
                }
            }
        });
        let mut config = Config::new(id(n), voters(), n + 10);
        // A sync of a busy disk may take seconds, and is no reason to lose the leadership or an answer.
        config.propose_timeout = Duration::from_secs(12);
        config.engine.election_ticks = 30;
        let handle = Voter::start(config, Ledger::default(), Box::new(source), Arc::new(Channel(channel)))
            .expect("starts");
        self.peers.lock().expect("not poisoned").insert(id(n), handle.addr().clone());
        self.voters.insert(n, handle);
    }

    /// Waits until one voter's view is so.
    async fn until(&self, n: u64, what: &str, mut so: impl FnMut(&View) -> bool) {
        let mut view = self.voters[&n].view();
        let seen =
            tokio::time::timeout(DEADLINE, view.wait_for(|view| so(view))).await.map(|seen| seen.is_ok());
        assert_eq!(seen, Ok(true), "voter {n}: not within {DEADLINE:?}: {what}: {:?}", self.voters[&n]);
    }

    /// Whoever any of them says leads.
    async fn leader(&self) -> u64 {
        let any = *self.voters.keys().next().expect("a voter");
        let alive: Vec<_> = self.voters.keys().map(|n| Some(id(*n))).collect();
        self.until(any, "someone who lives leads", |view| alive.contains(&view.leader)).await;
        let leader = self.voters[&any].view().borrow().leader.expect("leads").get();
        self.until(leader, "it knows that it leads", |view| view.role == Role::Leader).await;
        leader
    }

    fn stop(self) {
        for voter in self.voters.into_values() {
            voter.stop().expect("stops");
        }
    }
}

fn in_system(test: impl Future<Output = ()>) {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
    };
    System::with_tokio_rt(runtime).block_on(test);
}

#[test]
fn another_leader_answers_when_the_leader_is_killed() {
    in_system(async {
        let dir = tempfile::tempdir().expect("a folder");
        let source = |n: u64| SledFolder::new(dir.path().join(n.to_string()), identity(n));
        let mut cluster = Cluster::new();
        (1..=3).for_each(|n| cluster.start(n, source(n)));
        let leader = cluster.leader().await;
        for count in 1..=5 {
            assert_eq!(cluster.voters[&leader].propose(vec![0; 100]).await, Ok(count));
        }
        // Many at once: they share syncs, and each gets the reply of its own entry.
        let proposals = cluster.voters[&leader].proposals().clone();
        let propose = async |proposals: Proposals<Ledger>| proposals.propose(vec![1]).await;
        let many: Vec<_> = (6..70).map(|_| tokio::spawn(propose(proposals.clone()))).collect();
        let mut replies = Vec::new();
        for one in many {
            replies.push(one.await.expect("ran").expect("agreed"));
        }
        replies.sort_unstable();
        assert_eq!(replies, (6..70).collect::<Vec<_>>());

        let killed = cluster.voters.remove(&leader).expect("leads");
        cluster.peers.lock().expect("not poisoned").remove(&id(leader));
        killed.stop().expect("stops");
        let since = Instant::now();
        let next = cluster.leader().await;
        assert_eq!(cluster.voters[&next].propose(b"after".to_vec()).await, Ok(70));
        assert!(since.elapsed() < DEADLINE);

        // The killed one comes back from its disk and catches up.
        cluster.start(leader, source(leader));
        let applied = cluster.voters[&next].view().borrow().applied;
        cluster.until(leader, "it has caught up", |view| view.applied >= applied).await;
        let last =
            cluster.voters[&leader].addr().send(Query::new(|ledger: &Ledger| ledger.entries.last().cloned()));
        assert_eq!(last.await.expect("answers").map(|(_, entry)| entry), Some(b"after".to_vec()));
        let refused = cluster.voters[&leader].propose(vec![]).await;
        assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(id(next)) }));
        cluster.stop();
    });
}

#[test]
fn without_a_quorum_a_caller_learns_that_nobody_knows() {
    in_system(async {
        let mut cluster = Cluster::new();
        (1..=3).for_each(|n| cluster.start(n, MemoryFolder::new(&voters())));
        cluster.voters[&2].addr().send(Campaign).await.expect("hears");
        let leader = cluster.leader().await;
        let addr = cluster.voters[&leader].addr().clone();
        cluster.until(leader, "its first entry is applied", |view| view.applied > 0).await;
        let age = async || addr.send(QuorumAge).await.expect("answers");
        let since = Instant::now();
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while age().await.is_none_or(|age| age > Duration::from_secs(1)) {
            assert!(since.elapsed() < DEADLINE, "no quorum answers");
            look.tick().await;
        }
        let status = addr.send(StatusNow).await.expect("answers");
        assert_eq!(
            (status.id, status.view.role, status.view.leader),
            (id(leader), Role::Leader, Some(id(leader)))
        );
        assert!(status.view.condition == Condition::Running && status.log.1 >= status.committed);

        cluster.cut.store(true, Ordering::SeqCst);
        let answer = tokio::time::timeout(DEADLINE, cluster.voters[&leader].propose(b"alone".to_vec())).await;
        assert_eq!(answer, Ok(Err(ProposeError::Unknown)));
        cluster.until(leader, "it leads no more", |view| view.role != Role::Leader).await;
        assert!(age().await > Some(Duration::from_millis(800)), "a quorum that is away has an age");
        let nothing = addr.send(Query::new(|ledger: &Ledger| ledger.entries.is_empty())).await;
        assert_eq!(nothing, Ok(true));

        cluster.cut.store(false, Ordering::SeqCst);
        let leader = cluster.leader().await;
        assert!(cluster.voters[&leader].propose(b"again".to_vec()).await.is_ok());
        cluster.stop();
    });
}
