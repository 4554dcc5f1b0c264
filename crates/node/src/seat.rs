//! This node's place in the control group: taken when the group has given it one, left when the group has taken it back,
//! both while the node runs.
//!
//! ```text
//!   book: I am in it ─▶ take the place (on disk) ─▶ open: disk, replica, voter, peers ─▶ Group, for whoever asks
//!   removed, as the log says or a newer book ─────▶ close ─▶ leave the place ─▶ STATE/control.left
//! ```
//!
//! Always true: a place is on disk before anything is said in its name; a number whose log is gone or damaged is not used
//! again, since it may have voted, and its node serves its guests on; whoever has left holds no disk, speaks to no peer and is
//! a node like any other.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use godwit_control::{
    Condition, Config, ControlHandle, DiskError, Identity, Members, NodeId, SledFolder, StartError,
};
use godwit_domain::NodeName;
use godwit_transfer::drive::chain;
use rustix::io::Errno;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::audit::{self, Audit};
use crate::book::{Book, BookError, Keeper, Place};
use crate::fabric::Fabric;
use crate::files;
use crate::group::{self, Group};
use crate::peers::{Met, Peers};
use crate::replica::{Bells, Replica};

/// Time before a place is tried again that could not be taken or left.
const RETRY: Duration = Duration::from_secs(5);

/// What a seat needs of its node.
#[derive(Debug, Clone)]
pub struct Whereabouts {
    /// This node.
    pub name: NodeName,
    /// Its cluster.
    pub cluster: String,
    /// Its folder.
    pub state: PathBuf,
    /// How to get to the others.
    pub fabric: Fabric,
    /// Where the config says that nodes are.
    pub known: BTreeMap<NodeName, SocketAddr>,
}

/// Why a place was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SeatError {
    /// What is known of the group can not be read or written.
    #[error("what this node knows of its control group")]
    Book(#[from] BookError),
    /// The voter did not start.
    #[error("this node's voter")]
    Voter(#[from] StartError),
    /// The host lacks something.
    #[error("{0}")]
    Host(&'static str, #[source] io::Error),
}

/// See the module. Clones are the same seat.
#[derive(Debug, Clone)]
pub struct Seat(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    about: Whereabouts,
    keeper: Keeper,
    group: watch::Sender<Option<Group>>,
    open: Mutex<Option<Open>>,
    /// The number of which this node does not take the place, and why.
    out_of_order: std::sync::Mutex<Option<(NodeId, String)>>,
}

/// A place that is taken.
#[derive(Debug)]
struct Open {
    place: Place,
    handle: ControlHandle<Replica>,
    /// Dropping them ends them.
    _tasks: JoinSet<()>,
}

/// What is to be done about a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// All is as it should be.
    Nothing,
    /// Take it, or, if it is taken on disk already, go on with it.
    Open(Place),
    /// Close it, and leave the place.
    Leave,
    /// The group counts on what is gone.
    Lost(NodeId),
}

/// By what is known of the group alone. `open`: the place whose log is open; `removed`: the group has taken it back, as that
/// log says; `has_log`: there is one on disk.
pub fn duty(me: &NodeName, book: &Book, open: Option<Place>, removed: bool, has_log: bool) -> Duty {
    let is_in = |place: Place| book.members.get(place.voter).is_some();
    // What is known may be older than the place.
    let is_out = |place: Place| book.members.index() > place.since && !is_in(place);
    if let Some(place) = open {
        return if removed || is_out(place) { Duty::Leave } else { Duty::Nothing };
    }
    match (book.place, book.members.named(me)) {
        (Some(place), _) if is_out(place) => Duty::Leave,
        (Some(place), _) if has_log || !place.opened => Duty::Open(place),
        (Some(place), _) => Duty::Lost(place.voter),
        (None, Some((voter, member))) if !member.votes => {
            Duty::Open(Place { voter, since: book.members.index(), opened: false, log: 0 })
        }
        (None, Some((voter, _))) => Duty::Lost(voter),
        (None, None) => Duty::Nothing,
    }
}

/// Whether a node goes on without its voter: guests are here. Where it has never voted, what is wrong is wrong with its start.
fn stands_by(error: &DiskError, place: Place) -> bool {
    match error {
        DiskError::Damaged { .. } => true,
        // Any other may pass, or is cured by whoever looks after the host.
        DiskError::Io { source, .. } => {
            place.opened && source.raw_os_error() == Some(Errno::IO.raw_os_error())
        }
        _ => false,
    }
}

impl Seat {
    /// A seat that is not taken.
    pub fn new(about: Whereabouts, keeper: Keeper) -> Self {
        let group = watch::Sender::new(None);
        Self(Arc::new(Inner {
            about,
            keeper,
            group,
            open: Mutex::new(None),
            out_of_order: Default::default(),
        }))
    }

    /// Why this node does not take the place that it has in the group; `None`: it does, or has none.
    pub fn out_of_order(&self) -> Option<String> {
        self.0.out_of_order.lock().unwrap_or_else(PoisonError::into_inner).clone().map(|(_, why)| why)
    }

    fn is_out_of_order(&self, voter: NodeId) -> bool {
        let known = self.0.out_of_order.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().is_some_and(|(known, _)| *known == voter)
    }

    fn set_out_of_order(&self, what: Option<(NodeId, String)>) {
        *self.0.out_of_order.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// This node's part in the group, if it has one now.
    pub fn group(&self) -> Option<Group> {
        self.0.group.borrow().clone()
    }

    /// What the node knows of its group.
    pub fn keeper(&self) -> &Keeper {
        &self.0.keeper
    }

    /// Does what there is to do now. Called on the actor system's own thread, which starts the voter's.
    ///
    /// # Errors
    /// If the place can not be taken, or not be left.
    pub async fn look(&self) -> Result<(), SeatError> {
        let Some(book) = self.0.keeper.now() else { return Ok(()) };
        let mut open = self.0.open.lock().await;
        let removed = self.group().is_some_and(|group| group.view().condition == Condition::Removed);
        let has_log = self.log().exists();
        match duty(&self.0.about.name, &book, open.as_ref().map(|open| open.place), removed, has_log) {
            Duty::Nothing => {
                self.note_that_it_has_begun(open.as_mut())?;
                // The group does not count on it any more.
                if open.is_none() {
                    self.set_out_of_order(None);
                }
                Ok(())
            }
            // What was damaged once is not tried again by this process.
            Duty::Open(place) if self.is_out_of_order(place.voter) => Ok(()),
            Duty::Open(place) => match self.take(&book, place) {
                Err(SeatError::Voter(StartError::Disk(error))) if stands_by(&error, place) => {
                    self.stand_by(place.voter, &chain(&error));
                    Ok(())
                }
                taken => {
                    *open = Some(taken?);
                    self.set_out_of_order(None);
                    Ok(())
                }
            },
            Duty::Leave => self.leave(&mut open).await,
            Duty::Lost(voter) => {
                self.stand_by(voter, "the log of this voter is gone, and with it what it has promised");
                Ok(())
            }
        }
    }

    /// This node's voter takes no part; the node does.
    fn stand_by(&self, voter: NodeId, why: &str) {
        let name = &self.0.about.name;
        tracing::error!(
            %voter,
            why,
            "this voter takes no part; guests go on. Replace it: godwit control remove {name}, and then godwit control add \
             {name}"
        );
        self.set_out_of_order(Some((voter, why.to_owned())));
    }

    /// Does what there is to do, again and again.
    pub async fn tend(self) {
        let mut book = self.0.keeper.watch();
        loop {
            book.mark_unchanged();
            if let Err(error) = self.look().await {
                tracing::error!(
                    error = chain(&error),
                    "this node's place in the control group; it is tried again"
                );
                tokio::time::sleep(RETRY).await;
                continue;
            }
            let group = self.group();
            let removed = async {
                match &group {
                    // One that has crashed is not removed, whatever comes.
                    Some(group) if group.removed().await => {}
                    Some(_) | None => std::future::pending().await,
                }
            };
            let unbegun = self.0.open.lock().await.as_ref().is_some_and(|open| !open.place.opened);
            let begun = async {
                match &group {
                    Some(group) if unbegun && group.runs().await => {}
                    Some(_) | None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = book.changed() => if changed.is_err() { return },
                () = removed => {}
                () = begun => {}
            }
        }
    }

    fn log(&self) -> PathBuf {
        self.0.about.state.join("control")
    }

    fn take(&self, book: &Book, place: Place) -> Result<Open, SeatError> {
        let host = |what| move |error| SeatError::Host(what, error);
        let Whereabouts { name, cluster, state, fabric, .. } = &self.0.about;
        if book.place != Some(place) {
            // Of an earlier place that was left.
            self.move_log_away()?;
        }
        let number = || files::random().map(u64::from_ne_bytes).map_err(host("random numbers"));
        let place = if place.log == 0 { Place { log: number()?, ..place } } else { place };
        self.0.keeper.take(place)?;
        let me = (place.voter, name.clone());
        let identity = Identity::seated(cluster.clone(), book.group, me, book.founders.clone());
        let bells = Arc::new(Bells::default());
        let audit = Audit::start(audit::folder_of(state, book.group)).map_err(host("a thread"))?;
        let replica = Replica::new(Arc::clone(&bells)).audited(audit);
        let config = Config::joining(place.voter, book.founders.clone(), number()?);
        let folder = SledFolder::new(self.log(), identity).that_has_begun(place.opened);
        let spoken_by = (book.group, place.voter, place.log);
        let peers = Peers::start(fabric.clone(), name.clone(), cluster.clone(), spoken_by);
        let handle = ControlHandle::start(config, replica, Box::new(folder), Arc::clone(&peers) as _)?;
        let mut begun = Open { place, handle, _tasks: JoinSet::new() };
        if let Err(error) = self.note_that_it_has_begun(Some(&mut begun)) {
            // It votes by now, and has its log open: it is noted at the next look.
            tracing::warn!(error = chain(&error), "that this voter's log has begun is not noted yet");
        }
        let Open { place, handle, _tasks: mut tasks } = begun;
        let (proposals, keeper) = (handle.proposals().clone(), self.0.keeper.clone());
        let group = Group::new(name.clone(), cluster.clone(), keeper, proposals, handle.view(), bells);
        tasks.spawn(group::lead(group.clone()));
        tasks.spawn(introduce(peers, group.clone(), self.0.about.known.clone()));
        tracing::info!(group = %book.group, voter = %place.voter, since = place.since, "in the control group");
        self.0.group.send_replace(Some(group));
        Ok(Open { place, handle, _tasks: tasks })
    }

    /// From then on a log that is gone is missed. One that waits for room on its disk may not have begun it.
    fn note_that_it_has_begun(&self, open: Option<&mut Open>) -> Result<(), SeatError> {
        let Some(open) = open.filter(|open| !open.place.opened) else { return Ok(()) };
        if open.handle.view().borrow().condition == Condition::Running {
            let place = Place { opened: true, ..open.place };
            self.0.keeper.take(place)?;
            open.place = place;
        }
        Ok(())
    }

    async fn leave(&self, open: &mut Option<Open>) -> Result<(), SeatError> {
        let members = open.as_ref().map(|open| Arc::clone(&open.handle.view().borrow().members));
        // Until that is written down the group says that it has removed this voter.
        self.0.keeper.leave(members.as_deref())?;
        self.0.group.send_replace(None);
        if let Some(open) = open.take() {
            tracing::info!(voter = %open.place.voter, "out of the control group, and a node like any other");
            stop(open).await;
        }
        self.move_log_away()?;
        self.set_out_of_order(None);
        Ok(())
    }

    /// What is not needed any more is kept once, for people.
    fn move_log_away(&self) -> Result<(), SeatError> {
        let failed = |error| SeatError::Host("move an earlier log to STATE/control.left", error);
        let (log, left) = (self.log(), self.0.about.state.join("control.left"));
        if !log.exists() {
            return Ok(());
        }
        match fs::remove_dir_all(&left) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        fs::rename(&log, &left).map_err(failed)
    }

    /// The node ends: a voter's disk is closed in order.
    pub async fn close(&self) {
        if let Some(open) = self.0.open.lock().await.take() {
            stop(open).await;
        }
    }
}

async fn stop(open: Open) {
    let Open { handle, _tasks: mut tasks, .. } = open;
    let closed = tokio::task::spawn_blocking(move || handle.stop()).await;
    if !matches!(closed, Ok(Ok(()))) {
        tracing::error!("the control log was not closed in order");
    }
    // Whoever leads clears his floor when he hears of the end; that is soon.
    let _ = tokio::time::timeout(RETRY, async { while tasks.join_next().await.is_some() {} }).await;
}

/// Keeps the peers those who are in the group, by this voter's log or by what was told.
async fn introduce(peers: Arc<Peers>, group: Group, known: BTreeMap<NodeName, SocketAddr>) {
    let (mut view, mut book) = (group.watch(), group.keeper().watch());
    loop {
        let now = view.borrow_and_update().members.clone();
        let told = book.borrow_and_update().clone();
        let everyone = |members: &Members| {
            let met = |(id, member): (NodeId, &godwit_control::Member)| {
                let name = member.name.clone();
                let told = told.as_ref().and_then(|book| book.addresses.get(&name).copied());
                let mut addresses: Vec<SocketAddr> = known.get(&name).copied().into_iter().collect();
                addresses.extend(told.filter(|told| !addresses.contains(told)));
                (id, Met { name, addresses })
            };
            members.iter().map(met).collect::<BTreeMap<_, _>>()
        };
        let mut all = everyone(&now);
        if let Some(book) = told.as_ref().filter(|book| book.members.index() > now.index()) {
            all.extend(everyone(&book.members));
        }
        peers.set(all);
        tokio::select! {
            turned = view.wait_for(|view| view.members != now) => if turned.is_err() { return },
            changed = book.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use godwit_control::{Member, Voters};

    use super::*;

    fn id(n: u64) -> NodeId {
        NodeId::new(n).expect("not 0")
    }

    fn name(n: u64) -> NodeName {
        format!("node-{n}").parse().expect("a name")
    }

    /// A group of 1, 2 and 3 at this entry, and further members; this node is 9.
    fn book(index: u64, with: &[(u64, bool)], place: Option<Place>) -> Book {
        let voters = Voters::new((1..=3).map(|n| (id(n), name(n)))).expect("a group");
        let founding = Book::founding("c", &voters, None);
        let mut by_id: BTreeMap<_, _> =
            founding.members.iter().map(|(id, member)| (id, member.clone())).collect();
        by_id.extend(with.iter().map(|(n, votes)| (id(*n), Member { name: name(9), votes: *votes })));
        Book { members: Members::told(index, by_id), place, ..founding }
    }

    #[test]
    fn a_place_is_taken_and_left_as_the_group_says() {
        let at = |voter, since, opened| Place { voter: id(voter), since, opened, log: 0 };
        let place = at(90, 5, true);
        let due = |book: &Book, open, removed, has_log| duty(&name(9), book, open, removed, has_log);
        assert_eq!(due(&book(0, &[], None), None, false, false), Duty::Nothing, "it is none of them");
        let told = book(5, &[(90, false)], None);
        assert_eq!(due(&told, None, false, true), Duty::Open(at(90, 5, false)), "it is to learn");
        let taken = book(5, &[(90, false)], Some(at(90, 5, false)));
        assert_eq!(due(&taken, None, false, false), Duty::Open(at(90, 5, false)), "nothing was said yet");
        let votes = book(8, &[(90, true)], Some(place));
        assert_eq!(due(&votes, None, false, true), Duty::Open(place), "it was started again");
        assert_eq!(
            due(&votes, None, false, false),
            Duty::Lost(id(90)),
            "its log is gone, and it may have voted"
        );
        assert_eq!(
            due(&book(8, &[(90, true)], None), None, false, true),
            Duty::Lost(id(90)),
            "so is its book"
        );
        assert_eq!(due(&votes, Some(place), false, true), Duty::Nothing);
        assert_eq!(due(&votes, Some(place), true, true), Duty::Leave, "its log says that it is out");
        let older = book(4, &[], Some(place));
        assert_eq!(
            due(&older, Some(place), false, true),
            Duty::Nothing,
            "what is known is older than its place"
        );
        assert_eq!(due(&older, None, false, true), Duty::Open(place), "so it was when it was started again");
        let out = book(9, &[], Some(place));
        assert_eq!(due(&out, Some(place), false, true), Duty::Leave, "it was told that it is out");
        assert_eq!(due(&out, None, false, true), Duty::Leave, "while it was down");
        let again = book(12, &[(91, false)], Some(place));
        assert_eq!(due(&again, None, false, true), Duty::Leave, "first the old place, then the new one");
    }
}
