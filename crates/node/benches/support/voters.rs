//! Three voters as nodes have them, without the network between them.
//!
//! ```text
//!   voter ─ Outbox: queue, bounded ─ task: one message after the other ─▶ FromPeer ─▶ voter      (as node::peers does)
//! ```
//!
//! Always true: each has its log in a folder of its own on this machine's disk, synced as a node's is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::Addr;
use godwit_control::{
    Campaign, Config, ControlActor, ControlHandle, FromPeer, Identity, NodeId, Outbox, Role, SledFolder,
    Voters,
};
use godwit_domain::NodeName;
use godwit_node::book::{Book, Keeper};
use godwit_node::group::{Group, voter_id};
use godwit_node::replica::{Bells, Replica};
use tokio::sync::mpsc;

use super::Failure;
use super::disks::{Counted, Told};

/// Messages that may wait for one voter, as in a node.
const QUEUE: usize = 256;
/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: &str = "bench";

/// Where each voter is, if it runs.
type Homes = Arc<Mutex<BTreeMap<NodeId, Addr<ControlActor<Replica>>>>>;

/// Three voters, of which some may be stopped.
pub(crate) struct Trio {
    pub(crate) voters: BTreeMap<NodeId, Voter>,
    pub(crate) told: Arc<Told>,
    names: BTreeMap<NodeId, NodeName>,
    homes: Homes,
    dir: PathBuf,
    starts: u64,
}

/// One that runs.
pub(crate) struct Voter {
    pub(crate) handle: ControlHandle<Replica>,
    pub(crate) group: Group,
}

/// Queues to the other voters.
struct Channels(BTreeMap<NodeId, mpsc::Sender<Vec<u8>>>);

impl Outbox for Channels {
    fn send(&self, to: NodeId, bytes: Vec<u8>) {
        // Full: raft repeats it.
        let _ = self.0.get(&to).map(|queue| queue.try_send(bytes));
    }
}

/// The voters' numbers and names, in order of number.
pub(crate) fn names() -> BTreeMap<NodeId, NodeName> {
    let names =
        (0..3).map(|n| format!("voter-{n}").parse::<NodeName>().unwrap_or_else(|_| unreachable!("a name")));
    names.map(|name| (voter_id(&name), name)).collect()
}

/// Where a voter keeps its log.
pub(crate) fn folder(dir: &std::path::Path, id: NodeId) -> Result<SledFolder, Failure> {
    let identity = Identity::new(CLUSTER, id, Voters::new(names())?)?;
    Ok(SledFolder::new(folder_of(dir, id).join("control"), identity))
}

fn folder_of(dir: &std::path::Path, id: NodeId) -> PathBuf {
    dir.join(id.to_string())
}

impl Trio {
    /// None runs yet.
    pub(crate) fn new(dir: PathBuf) -> Self {
        let (voters, told, homes) = (BTreeMap::new(), Arc::default(), Homes::default());
        Self { voters, told, names: names(), homes, dir, starts: 0 }
    }

    /// Every voter's number.
    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.names.keys().copied().collect()
    }

    /// Starts a voter with what its folder holds. Called within an actix system.
    pub(crate) fn start(&mut self, id: NodeId) -> Result<(), Failure> {
        self.starts += 1;
        let name = self.names.get(&id).ok_or("no such voter")?.clone();
        let config = Config::new(id, Voters::new(self.names.clone())?, self.starts);
        let source = Counted { folder: folder(&self.dir, id)?, told: Arc::clone(&self.told) };
        let bells = Arc::new(Bells::default());
        let replica = Replica::new(Arc::clone(&bells));
        let outbox = Arc::new(self.channels(id));
        let handle = ControlHandle::start(config, replica, Box::new(source), outbox)?;
        let (addr, view) = (handle.addr().clone(), handle.view());
        self.homes.lock().unwrap_or_else(PoisonError::into_inner).insert(id, addr.clone());
        let keeper = Keeper::open(&folder_of(&self.dir, id))?;
        if keeper.now().is_none() {
            keeper.begin(Book::founding(CLUSTER, &Voters::new(self.names.clone())?, Some(id)))?;
        }
        let proposals = handle.proposals().clone();
        let group = Group::new(name, CLUSTER.to_owned(), keeper, proposals, view, bells);
        self.voters.insert(id, Voter { handle, group });
        Ok(())
    }

    fn channels(&self, me: NodeId) -> Channels {
        let others = self.names.keys().filter(|id| **id != me);
        Channels(others.map(|to| (*to, carry(me, *to, Arc::clone(&self.homes)))).collect())
    }

    /// Stops a voter, its disk closed in order.
    pub(crate) async fn stop(&mut self, id: NodeId) -> Result<(), Failure> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let voter = self.voters.remove(&id).ok_or("it does not run")?;
        drop(voter.group);
        Ok(tokio::task::spawn_blocking(move || voter.handle.stop()).await??)
    }

    /// Makes this voter lead.
    pub(crate) async fn elect(&self, id: NodeId) -> Result<&Voter, Failure> {
        let voter = self.voters.get(&id).ok_or("it does not run")?;
        let began = Instant::now();
        while !voter.group.leads() {
            voter.handle.addr().send(Campaign).await?;
            let mut view = voter.group.watch();
            let leads = view.wait_for(|view| view.role == Role::Leader);
            let _ = tokio::time::timeout(Duration::from_secs(1), leads).await;
            if began.elapsed() > PATIENCE {
                return Err("no voter came to lead within a minute".into());
            }
        }
        Ok(voter)
    }

    /// Waits until a voter has applied so much.
    pub(crate) async fn applied(&self, id: NodeId, index: u64) -> Result<(), Failure> {
        let voter = self.voters.get(&id).ok_or("it does not run")?;
        let mut view = voter.group.watch();
        let applied = view.wait_for(|view| view.applied >= index);
        tokio::time::timeout(PATIENCE, applied)
            .await
            .map_err(|_| "it did not catch up within a minute")??;
        Ok(())
    }

    /// Stops all.
    pub(crate) async fn end(mut self) -> Result<(), Failure> {
        for id in self.ids() {
            if self.voters.contains_key(&id) {
                self.stop(id).await?;
            }
        }
        Ok(())
    }
}

/// Carries messages from one voter to another, one after the other.
fn carry(from: NodeId, to: NodeId, homes: Homes) -> mpsc::Sender<Vec<u8>> {
    let (queue, mut messages) = mpsc::channel::<Vec<u8>>(QUEUE);
    tokio::spawn(async move {
        while let Some(bytes) = messages.recv().await {
            let home = homes.lock().unwrap_or_else(PoisonError::into_inner).get(&to).cloned();
            if let Some(home) = home {
                let _ = home.send(FromPeer { from, bytes }).await;
            }
        }
    });
    queue
}
