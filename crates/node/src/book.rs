//! What this node knows of its control group: which one it is, who is in it and where they are reached. On disk, so that
//! a node that is started again finds a group that has changed since its config was written.
//!
//! ```text
//!   STATE/book, JSON    ◀── learn ── Welcome, Push (whoever is in the group says who else is)
//!       └──▶ seat (am I in it?)   session (whom to ask)   peers (where they are)
//! ```
//!
//! Always true: a book is of one group; it gets newer, never older; what is told elsewhere of a group is on disk first. A
//! node without a place follows to a group that has taken the place of its own; what it was told before is void then, and
//! whoever sees that (`Keeper::followed`) begins anew.
//! The config says where to ask first, and its addresses go before those that are told: an operator has written them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use godwit_control::{Member, Members, NodeId, Voters, group};
use godwit_domain::{GroupId, NodeName};
use godwit_wire::session::{MEMBERS_MAX, Membership, SUCCEEDS_MAX, Seated};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::files;

/// Largest book, in bytes: members with names and addresses are below 200 each.
const BYTES_MAX: u64 = 64 << 10;

/// Voters that are remembered as heard, beside those who are in the group.
const HEARD_MAX: usize = 64;
/// How often what could not be written down is tried again.
const LEARN_AGAIN: Duration = Duration::from_secs(2);

/// This node's place in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its number.
    pub voter: NodeId,
    /// The entry by which it came in, or a later one at which it was in; 0: it is a founder.
    pub since: u64,
    /// Its log was opened, so that something may have been said in its name.
    pub opened: bool,
    /// What that log is known by, drawn before it is opened; 0: it was not drawn yet.
    #[serde(default)]
    pub log: u64,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// The group.
    pub group: GroupId,
    /// Who was in it before its first entry.
    pub founders: Members,
    /// Who is in it, as far as this node was told.
    pub members: Members,
    /// Where members were reached, as they were told.
    pub addresses: BTreeMap<NodeName, SocketAddr>,
    /// The place that this node has taken and not left.
    pub place: Option<Place>,
    /// Groups whose places it has taken, the oldest first.
    #[serde(default)]
    pub succeeds: Vec<GroupId>,
    /// Members whose voters this node's has heard, and what their logs were known by.
    #[serde(default)]
    pub heard: BTreeMap<NodeId, u64>,
}

/// Why what was told is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// It is about others.
    #[error("it belongs to group {theirs}, this node to group {ours}")]
    OtherGroup {
        /// Theirs.
        theirs: GroupId,
        /// This node's.
        ours: GroupId,
    },
    /// It has taken the place of this node's group, in which this node has a place.
    #[error(
        "control group {theirs} has taken the place of {ours}, in which this node is voter {voter}: that one was given up, and \
         what this voter alone knows is lost. Stop this node, move STATE/control and STATE/book away and start it again: its \
         guests run on, and it joins as a node that does not vote"
    )]
    GivenUp {
        /// Theirs.
        theirs: GroupId,
        /// This node's.
        ours: GroupId,
        /// Its number there.
        voter: NodeId,
    },
    /// It is none.
    #[error("what was told of the control group can not be: {0}")]
    Impossible(&'static str),
    /// It could not be written down.
    #[error("{}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a voter is not heard.
#[derive(Debug, thiserror::Error)]
pub enum NotHeard {
    /// A voter has lost its log, and begun another.
    #[error(
        "the log of voter {voter} is not the one that was heard in its name before: that was lost, and with it what it has \
         promised. Replace it: godwit control remove {node}, and then godwit control add {node}"
    )]
    OtherLog {
        /// The voter.
        voter: NodeId,
        /// Its node.
        node: NodeName,
    },
    /// That it was heard could not be written down.
    #[error("that it was heard could not be written down")]
    Unwritten(#[from] BookError),
}

/// The book of a running node. Clones are the same.
#[derive(Debug, Clone)]
pub struct Keeper {
    path: Arc<Path>,
    book: Arc<watch::Sender<Option<Book>>>,
    /// One writes after the other: a place that was just taken is not forgotten over news.
    writing: Arc<Mutex<()>>,
    /// That its group was given up is said once.
    complained: Arc<AtomicBool>,
}

impl Book {
    /// Of a group that these voters found. `place`: this node is one of them.
    pub fn founding(cluster: &str, voters: &Voters, place: Option<NodeId>) -> Self {
        let founders = Members::founding(voters);
        Self {
            group: group::founded(cluster, voters),
            members: founders.clone(),
            founders,
            addresses: BTreeMap::new(),
            place: place.map(|voter| Place { voter, since: 0, opened: false, log: 0 }),
            succeeds: Vec::new(),
            heard: BTreeMap::new(),
        }
    }

    /// After what somebody in the group says of it; what is known already and newer stays.
    ///
    /// # Errors
    /// If it is about another group, or can not be.
    pub fn learned(known: Option<&Self>, told: &Membership) -> Result<Self, BookError> {
        if told.succeeds.len() > SUCCEEDS_MAX {
            return Err(BookError::Impossible("more disasters than a group survives"));
        }
        let (founders, members) = (members(0, &told.founders)?, members(told.index, &told.members)?);
        let addresses = told.members.values().filter_map(|it| Some((it.name.clone(), it.address?)));
        let addresses: BTreeMap<_, _> = addresses.collect();
        let (theirs, succeeds, heard) = (told.group, told.succeeds.clone(), BTreeMap::new());
        match known.cloned() {
            Some(known) if known.group != theirs => match known.place {
                _ if !succeeds.contains(&known.group) => {
                    Err(BookError::OtherGroup { theirs, ours: known.group })
                }
                Some(place) => Err(BookError::GivenUp { theirs, ours: known.group, voter: place.voter }),
                None => {
                    Ok(Self { group: theirs, founders, members, addresses, place: None, succeeds, heard })
                }
            },
            Some(known) if known.members.index() > told.index => Ok(known),
            Some(mut known) => {
                known.addresses.extend(addresses);
                known.addresses.retain(|name, _| members.named(name).is_some());
                Ok(Self { members, ..known })
            }
            None => Ok(Self { group: theirs, founders, members, addresses, place: None, succeeds, heard }),
        }
    }

    /// This node has left its place. `members`: who was in the group then, by its own log.
    pub fn left(&mut self, members: Option<&Members>) {
        self.place = None;
        if let Some(newer) = members.filter(|members| members.index() > self.members.index()) {
            self.members = newer.clone();
        }
    }

    /// What this book says to others, with addresses where it has some.
    pub fn told(&self, members: &Members, address: impl Fn(&NodeName) -> Option<SocketAddr>) -> Membership {
        let seated = |(id, member): (NodeId, &Member)| {
            let address = address(&member.name).or_else(|| self.addresses.get(&member.name).copied());
            (id.get(), Seated { name: member.name.clone(), votes: member.votes, address })
        };
        Membership {
            group: self.group,
            founders: self.founders.iter().map(seated).collect(),
            index: members.index(),
            members: members.iter().map(seated).collect(),
            succeeds: self.succeeds.clone(),
            heard: self.heard.keys().map(|id| id.get()).collect(),
        }
    }
}

/// Whether a node with this number is in the group, by what a voter has applied or by what its node was told: of two the
/// later one is right.
pub fn is_in(applied: &Members, book: Option<&Book>, id: NodeId, name: &NodeName) -> bool {
    let told = book.map(|book| &book.members).filter(|told| told.index() > applied.index());
    told.unwrap_or(applied).get(id).is_some_and(|member| member.name == *name)
}

fn members(index: u64, told: &BTreeMap<u64, Seated>) -> Result<Members, BookError> {
    if told.len() > MEMBERS_MAX {
        return Err(BookError::Impossible("more members than a group has"));
    }
    let member = |(id, it): (&u64, &Seated)| {
        let id = NodeId::new(*id).ok_or(BookError::Impossible("a member without a number"))?;
        Ok((id, Member { name: it.name.clone(), votes: it.votes }))
    };
    let by_id = told.iter().map(member).collect::<Result<BTreeMap<_, _>, BookError>>()?;
    let members = Members::told(index, by_id);
    if members.voters().next().is_none() {
        return Err(BookError::Impossible("nobody votes"));
    }
    Ok(members)
}

impl Keeper {
    /// The book in this folder, if there is one.
    ///
    /// # Errors
    /// If there is one that can not be read.
    pub fn open(state: &Path) -> Result<Self, BookError> {
        let path = state.join("book");
        let failed = |source| BookError::Disk { path: path.clone(), source };
        let book = match files::read_capped(&path, BYTES_MAX) {
            Ok(bytes) => {
                let read = serde_json::from_slice(&bytes);
                Some(read.map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let book = Arc::new(watch::Sender::new(book));
        Ok(Self { path: path.into(), book, writing: Arc::default(), complained: Arc::default() })
    }

    /// As it is now.
    pub fn now(&self) -> Option<Book> {
        self.book.borrow().clone()
    }

    /// The same, to wait for changes.
    pub fn watch(&self) -> watch::Receiver<Option<Book>> {
        self.book.subscribe()
    }

    /// Takes what somebody in the group says of it, if it is newer.
    ///
    /// # Errors
    /// If it is about another group, can not be, or can not be written down. A group that has taken the place of the one
    /// that is known is followed, unless this node has a place in that: its log may hold what the other lacks.
    pub fn learn(&self, told: &Membership) -> Result<(), BookError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.now();
        let new = Book::learned(known.as_ref(), told).inspect_err(|error| self.complain(error))?;
        if known.as_ref().is_some_and(|known| known.group != new.group) {
            tracing::info!(to = %new.group, "the control group was founded anew; followed");
        }
        if known.as_ref() == Some(&new) { Ok(()) } else { self.write(new) }
    }

    /// The same; what can not be written down now is later, when there is room: whoever leads says it once.
    ///
    /// # Errors
    /// As for [`Keeper::learn`], of the first attempt.
    pub fn learn_or_later(&self, told: Membership) -> Result<(), BookError> {
        let learnt = self.learn(&told);
        if let Err(BookError::Disk { .. }) = learnt {
            let keeper = self.clone();
            tokio::spawn(async move {
                let is_known = |book: Book| book.group == told.group && book.members.index() > told.index;
                loop {
                    tokio::time::sleep(LEARN_AGAIN).await;
                    let is_over = keeper.now().is_some_and(is_known)
                        || !matches!(keeper.learn(&told), Err(BookError::Disk { .. }));
                    if is_over {
                        return;
                    }
                }
            });
        }
        learnt
    }

    /// Once: that a node is in a group which was given up is for its operator.
    fn complain(&self, error: &BookError) {
        let is_given_up = matches!(error, BookError::GivenUp { .. });
        if is_given_up && !self.complained.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "this node's control group was given up");
        }
    }

    /// Waits until this node belongs to another group than before. Never ends where that does not happen.
    pub async fn followed(&self) {
        let mut book = self.watch();
        let first = match book.wait_for(Option::is_some).await {
            Ok(book) => book.as_ref().map(|book| book.group),
            Err(_) => return std::future::pending().await,
        };
        if book.wait_for(|book| book.as_ref().map(|book| book.group) != first).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A member's voter, of this node and with this log, has spoken to this node's.
    ///
    /// # Errors
    /// See [`NotHeard`].
    pub fn heard(&self, voter: NodeId, node: &NodeName, log: u64) -> Result<(), NotHeard> {
        let mut known = None;
        self.change(|book| {
            known = Some(*book.heard.entry(voter).or_insert(log));
            // Numbers are never used again: those who have left are of no interest, once they are many.
            if book.heard.len() > HEARD_MAX {
                let members = &book.members;
                book.heard.retain(|id, _| *id == voter || members.get(*id).is_some());
            }
        })?;
        match known {
            Some(known) if known != log => Err(NotHeard::OtherLog { voter, node: node.clone() }),
            Some(_) | None => Ok(()),
        }
    }

    /// This node has taken a place.
    ///
    /// # Errors
    /// If that can not be written down.
    pub fn take(&self, place: Place) -> Result<(), BookError> {
        self.change(|book| book.place = Some(place))
    }

    /// This node has left its place. `members`: who was in the group then, by its own log.
    ///
    /// # Errors
    /// If that can not be written down.
    pub fn leave(&self, members: Option<&Members>) -> Result<(), BookError> {
        self.change(|book| book.left(members))
    }

    fn change(&self, change: impl FnOnce(&mut Book)) -> Result<(), BookError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(book) = self.now() else { return Ok(()) };
        let mut changed = book.clone();
        change(&mut changed);
        if changed == book { Ok(()) } else { self.write(changed) }
    }

    /// Begins a book, where there is none.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn begin(&self, book: Book) -> Result<(), BookError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.now().is_some() { Ok(()) } else { self.write(book) }
    }

    /// Another book in place of the one that is there. Only while no node runs.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn replace(&self, book: Book) -> Result<(), BookError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(book)
    }

    /// Writes a book, and tells everybody.
    fn write(&self, book: Book) -> Result<(), BookError> {
        let failed = |source| BookError::Disk { path: self.path.to_path_buf(), source };
        let bytes = serde_json::to_vec_pretty(&book).map_err(|error| failed(error.into()))?;
        files::replace(&self.path, &bytes, files::MODE_SECRET).map_err(failed)?;
        self.book.send_replace(Some(book));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Scratch;

    fn name(text: &str) -> NodeName {
        text.parse().expect("a name")
    }

    fn voters() -> Voters {
        let id = |n| NodeId::new(n).expect("not 0");
        Voters::new((1..=3).map(|n| (id(n), name(&format!("node-{n}"))))).expect("a group")
    }

    fn told(index: u64, with: &[(u64, &str, bool)]) -> Membership {
        let founding = Book::founding("c", &voters(), None);
        let mut told = founding.told(&founding.members, |_| None);
        told.index = index;
        for (id, of, votes) in with {
            let address = Some(SocketAddr::from(([127, 0, 0, 1], 7)));
            told.members.insert(*id, Seated { name: name(of), votes: *votes, address });
        }
        told
    }

    #[actix::test]
    async fn what_finds_no_room_is_learnt_when_there_is_some() {
        let scratch = Scratch::new();
        let state = scratch.path().join("state");
        std::fs::create_dir(&state).expect("made");
        let keeper = Keeper::open(&state).expect("opens");
        std::fs::remove_dir_all(&state).expect("removed");
        let learnt = keeper.learn_or_later(told(7, &[]));
        assert!(matches!(learnt, Err(BookError::Disk { .. })), "{learnt:?}");
        std::fs::create_dir(&state).expect("made");
        let mut book = keeper.watch();
        let later = tokio::time::timeout(Duration::from_secs(30), book.wait_for(Option::is_some)).await;
        assert!(later.expect("in time").is_ok());
        assert_eq!(Keeper::open(&state).expect("opens again").now(), keeper.now());
    }

    #[test]
    fn a_book_outlives_its_process_and_gets_no_older() {
        let scratch = Scratch::new();
        let keeper = Keeper::open(scratch.path()).expect("opens");
        assert_eq!(keeper.now(), None);
        keeper.learn(&told(7, &[(9, "node-9", false)])).expect("takes it");
        keeper.learn(&told(4, &[])).expect("passes it over");
        let place = Place { voter: NodeId::new(9).expect("not 0"), since: 7, opened: true, log: 5 };
        keeper.take(place).expect("writes");
        let book = Keeper::open(scratch.path()).expect("opens again").now().expect("a book");
        assert_eq!(book, keeper.now().expect("a book"));
        assert_eq!((book.members.index(), book.place.map(|place| place.since)), (7, Some(7)));
        assert_eq!(book.addresses.len(), 1);
        assert_eq!(book.founders, Members::founding(&voters()));
        // One that leaves by its own log knows that it is out before anybody says so.
        let by_its_log = members(8, &told(8, &[]).members).expect("members");
        keeper.leave(Some(&by_its_log)).expect("writes");
        let left = keeper.now().expect("a book");
        assert_eq!((left.members.index(), left.members.named(&name("node-9")), left.place), (8, None, None));
        let mut elsewhere = told(9, &[]);
        elsewhere.group = GroupId(1);
        assert!(matches!(keeper.learn(&elsewhere), Err(BookError::OtherGroup { .. })));
    }

    #[test]
    fn who_has_begun_another_log_is_not_heard() {
        let scratch = Scratch::new();
        let keeper = Keeper::open(scratch.path()).expect("opens");
        keeper.learn(&told(7, &[(9, "node-9", false)])).expect("takes it");
        let (nine, node) = (NodeId::new(9).expect("not 0"), name("node-9"));
        keeper.heard(nine, &node, 5).expect("the first time");
        keeper.heard(nine, &node, 5).expect("the same");
        let other = keeper.heard(nine, &node, 6).expect_err("another");
        assert!(other.to_string().contains("godwit control remove node-9"), "{other}");
        let again = Keeper::open(scratch.path()).expect("opens again");
        assert!(matches!(again.heard(nine, &node, 6), Err(NotHeard::OtherLog { .. })), "it is on disk");
        again.heard(nine, &node, 5).expect("the same");
        assert_eq!(again.now().map(|book| book.told(&book.members, |_| None).heard), Some([9].into()));
    }

    #[test]
    fn what_can_not_be_is_not_taken() {
        let scratch = Scratch::new();
        let keeper = Keeper::open(scratch.path()).expect("opens");
        let mut nobody = told(7, &[]);
        nobody.members.clear();
        let mut numberless = told(7, &[]);
        numberless.members.insert(0, Seated { name: name("node-9"), votes: true, address: None });
        let many: Vec<(u64, &str, bool)> = (10..40).map(|n| (n, "x", true)).collect();
        for bad in [nobody, numberless, told(7, &many)] {
            assert!(matches!(keeper.learn(&bad), Err(BookError::Impossible(_))), "{bad:?}");
        }
        assert_eq!(keeper.now(), None);
    }
}
