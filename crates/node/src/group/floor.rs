//! What the leader alone knows: which nodes have a session with it, since when the others have none, and how running
//! migrations do. Never in the log: nothing is decided by it but where to send what next.
//!
//! Always true: a node has at most one session, the last one; what a leader has collected goes with its leadership.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_domain::progress::Progress;
use godwit_domain::{MigrationId, NodeName};
use quinn::Connection;
use tokio::sync::Notify;

/// Migrations whose progress is remembered. More than may run anywhere near at once.
const PROGRESS_MAX: usize = 1024;
/// How old a leadership must be before a node without a session is one that does not answer: a node looks for its leader
/// at least every half second, and gives a silent one up after three.
const SETTLED_AFTER: Duration = Duration::from_secs(4);

/// See the module.
#[derive(Debug, Default)]
pub struct Floor {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    sessions: BTreeMap<NodeName, (u64, Connection)>,
    last: u64,
    silent: BTreeMap<NodeName, Instant>,
    progress: BTreeMap<MigrationId, Progress>,
}

impl Floor {
    /// The leadership begins.
    pub fn open(&self) {
        self.lock().began = Some(Instant::now());
    }

    /// When the leadership began.
    pub fn began(&self) -> Option<Instant> {
        self.lock().began
    }

    /// Whether every node that answers has had the time to say so.
    pub fn is_settled(&self) -> bool {
        self.began().is_some_and(|began| began.elapsed() > SETTLED_AFTER)
    }

    /// A node's session begins; an older one of it ends. Returns its number.
    pub fn enter(&self, node: &NodeName, connection: Connection) -> u64 {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        if let Some((_, older)) = state.sessions.insert(node.clone(), (number, connection)) {
            older.close(0_u32.into(), b"another session of this node has begun");
        }
        state.silent.remove(node);
        drop(state);
        self.changed.notify_one();
        number
    }

    /// A session has ended.
    pub fn leave(&self, node: &NodeName, number: u64) {
        let mut state = self.lock();
        if state.sessions.get(node).is_some_and(|(present, _)| *present == number) {
            state.sessions.remove(node);
            state.silent.insert(node.clone(), Instant::now());
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The leadership has ended, and with it every session.
    pub fn clear(&self) {
        let mut state = self.lock();
        for (_, (_, connection)) in std::mem::take(&mut state.sessions) {
            connection.close(0_u32.into(), b"this voter does not lead any more");
        }
        *state = State { last: state.last, ..State::default() };
    }

    /// Waits until somebody comes or goes.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Who is here.
    pub fn reachable(&self) -> BTreeSet<NodeName> {
        self.lock().sessions.keys().cloned().collect()
    }

    /// A node's session.
    pub fn session(&self, node: &NodeName) -> Option<Connection> {
        self.lock().sessions.get(node).map(|(_, connection)| connection.clone())
    }

    /// Since when a node is not here, if it was.
    pub fn silent_since(&self, node: &NodeName) -> Option<Instant> {
        self.lock().silent.get(node).copied()
    }

    /// Nodes that were here and are not, and since when.
    pub fn silent(&self) -> BTreeMap<NodeName, Instant> {
        self.lock().silent.clone()
    }

    /// Notes how a migration does.
    pub fn note(&self, migration: MigrationId, progress: Progress) {
        let mut state = self.lock();
        if state.progress.len() >= PROGRESS_MAX && !state.progress.contains_key(&migration) {
            state.progress.pop_first();
        }
        state.progress.insert(migration, progress);
    }

    /// How migrations did when they were last heard; of some that are over, too.
    pub fn all_progress(&self) -> BTreeMap<MigrationId, Progress> {
        self.lock().progress.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
