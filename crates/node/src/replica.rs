//! The registry as the control group's state machine, and the bells that it rings.
//!
//! ```text
//!   entry (bytes) ─▶ decode ─▶ Registry::apply ─▶ reply to whoever proposed it
//!                                    ├─ outcome ─▶ Audit
//!                                    └─ effects ─▶ Bells: node ─▶ guests that have changed ─▶ its session, if it has one
//! ```
//!
//! Always true: the same entries give the same registry; an entry that this build can not read stops the voter, since
//! skipping it would make it differ from the others; bells hold names, never news: whoever hears one looks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use godwit_control::{RestoreError, StateMachine};
use godwit_domain::NodeName;
use godwit_domain::registry::{Command, GuestUid, Refusal, Registry};
use godwit_wire::log;
use tokio::sync::Notify;

use crate::audit::Audit;

/// See the module.
#[derive(Debug)]
pub struct Replica {
    registry: Registry,
    bells: Arc<Bells>,
    audit: Option<Audit>,
}

impl Replica {
    /// The empty state.
    pub fn new(bells: Arc<Bells>) -> Self {
        Self { registry: Registry::default(), bells, audit: None }
    }

    /// The same, and what is applied is written down.
    #[must_use]
    pub fn audited(self, audit: Audit) -> Self {
        Self { audit: Some(audit), ..self }
    }

    /// What is agreed, as far as this voter has seen.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl StateMachine for Replica {
    type Reply = Result<(), Refusal>;

    fn apply(&mut self, index: u64, entry: &[u8]) -> Self::Reply {
        let stamped = match log::decode_entry(entry) {
            Ok(stamped) => stamped,
            // The driver takes a panic for the death of this voter, which it is.
            Err(error) => panic!("entry {index} can not be read by this version: {error}"),
        };
        let about_node = match &stamped.command {
            Command::Fence { node, .. } | Command::FenceSeen { node } | Command::Testify { node, .. } => {
                Some(node.clone())
            }
            _ => None,
        };
        let outcome = self.registry.apply(stamped);
        if let Some(audit) = &mut self.audit {
            audit.note(index, entry, outcome.as_ref().err());
        }
        let effects = outcome?;
        let mut bells = self.bells.lock();
        for effect in effects {
            bells.ring(&effect.node, Some(effect.guest));
        }
        if let Some(node) = about_node {
            bells.ring(&node, None);
        }
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        match log::encode_snapshot(&self.registry) {
            Ok(bytes) => bytes,
            Err(error) => panic!("the state can not be written: {error}"),
        }
    }

    fn restore(&mut self, index: u64, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.registry = log::decode_snapshot(snapshot).map_err(RestoreError::new)?;
        if let Some(audit) = &mut self.audit {
            audit.restored(index);
        }
        // What has changed meanwhile is not known: everybody looks at everything.
        let all: BTreeSet<GuestUid> = self.registry.guests.keys().copied().collect();
        self.bells.lock().ring_all(&all);
        Ok(())
    }
}

/// Who has a session here, and which guests it has to look at.
#[derive(Debug, Default)]
pub struct Bells(Mutex<BTreeMap<NodeName, Bell>>);

#[derive(Debug)]
struct Bell {
    session: u64,
    rung: Rung,
    ear: Arc<Notify>,
}

/// What has changed for a node since it was last asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rung {
    /// These guests.
    pub guests: BTreeSet<GuestUid>,
    /// Something about the node itself.
    pub node: bool,
}

impl Rung {
    /// Whether nothing has.
    pub fn is_empty(&self) -> bool {
        self.guests.is_empty() && !self.node
    }
}

struct Locked<'a>(MutexGuard<'a, BTreeMap<NodeName, Bell>>);

impl Bells {
    /// A session's bell. The one of an older session of that node is taken down.
    pub fn hang(&self, node: NodeName, session: u64) -> Arc<Notify> {
        let ear = Arc::new(Notify::new());
        let rung = Rung { guests: BTreeSet::new(), node: true };
        self.lock().0.insert(node, Bell { session, rung, ear: Arc::clone(&ear) });
        ear
    }

    /// What has changed, once; `None`: another session of the node has hung its own.
    pub fn take(&self, node: &NodeName, session: u64) -> Option<Rung> {
        let mut bells = self.lock();
        let bell = bells.0.get_mut(node).filter(|bell| bell.session == session)?;
        Some(std::mem::take(&mut bell.rung))
    }

    /// Rings for these guests.
    pub fn ring(&self, node: &NodeName, guests: impl IntoIterator<Item = GuestUid>) {
        let mut bells = self.lock();
        for guest in guests {
            bells.ring(node, Some(guest));
        }
    }

    /// Takes a session's bell down.
    pub fn take_down(&self, node: &NodeName, session: u64) {
        let mut bells = self.lock();
        if bells.0.get(node).is_some_and(|bell| bell.session == session) {
            bells.0.remove(node);
        }
    }

    fn lock(&self) -> Locked<'_> {
        Locked(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Locked<'_> {
    fn ring(&mut self, node: &NodeName, guest: Option<GuestUid>) {
        let Some(bell) = self.0.get_mut(node) else { return };
        match guest {
            Some(guest) => {
                bell.rung.guests.insert(guest);
            }
            None => bell.rung.node = true,
        }
        bell.ear.notify_one();
    }

    fn ring_all(&mut self, guests: &BTreeSet<GuestUid>) {
        for bell in self.0.values_mut() {
            bell.rung.guests.extend(guests);
            bell.rung.node = true;
            bell.ear.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use godwit_domain::machine::Body;
    use godwit_domain::registry::{BootId, Home, Node, Stamped};
    use godwit_domain::{GuestSpec, Labels};

    use super::*;

    fn entry(command: Command) -> Vec<u8> {
        log::encode_entry(&Stamped { time_ms: 1, request: None, command }).expect("encodes")
    }

    fn name(text: &str) -> NodeName {
        text.parse().expect("a name")
    }

    fn join(node: &str) -> Vec<u8> {
        let address = core::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let node_itself = Node::new(address, address, BootId(1), 1 << 30);
        entry(Command::Join { name: name(node), node: node_itself })
    }

    fn create(uid: u64, node: &str) -> Vec<u8> {
        let guest = format!("vm{uid}").parse().expect("a name");
        let body = Some(Body::of(GuestSpec::idle(4096)));
        let home = Some(Home { uid: GuestUid(uid), node: name(node) });
        entry(Command::PutInstance { name: guest, labels: Labels::new(), body, home })
    }

    #[test]
    fn a_change_rings_at_those_whom_it_concerns_once() {
        let bells = Arc::new(Bells::default());
        let mut replica = Replica::new(Arc::clone(&bells));
        bells.hang(name("a"), 1);
        bells.hang(name("b"), 2);
        for bytes in [join("a"), join("b"), create(7, "a")] {
            replica.apply(1, &bytes).expect("applied");
        }
        let rung = bells.take(&name("a"), 1).expect("its bell");
        assert_eq!(rung, Rung { guests: BTreeSet::from([GuestUid(7)]), node: true });
        assert_eq!(bells.take(&name("a"), 1), Some(Rung::default()));
        assert_eq!(bells.take(&name("b"), 2), Some(Rung { guests: BTreeSet::new(), node: true }));
        // A later session's bell is not heard by the earlier one.
        bells.hang(name("a"), 3);
        assert_eq!(bells.take(&name("a"), 1), None);
        bells.take_down(&name("a"), 1);
        assert!(bells.take(&name("a"), 3).is_some());
    }

    #[test]
    fn a_snapshot_is_the_same_state_and_rings_everywhere() {
        let bells = Arc::new(Bells::default());
        let mut replica = Replica::new(Arc::default());
        for bytes in [join("a"), create(7, "a")] {
            replica.apply(1, &bytes).expect("applied");
        }
        let mut other = Replica::new(Arc::clone(&bells));
        bells.hang(name("b"), 1);
        other.restore(2, &replica.snapshot()).expect("restores");
        assert_eq!(other.registry(), replica.registry());
        assert!(bells.take(&name("b"), 1).expect("its bell").guests.contains(&GuestUid(7)));
        assert!(other.restore(2, &[9]).is_err());
    }

    #[test]
    #[should_panic(expected = "can not be read by this version")]
    fn an_entry_of_another_version_stops_the_voter() {
        let _ = Replica::new(Arc::default()).apply(1, &[2, 0, 0, 0, 0]);
    }
}
