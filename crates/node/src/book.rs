//! What this node knows of its control group: which one it is, who is in it and where they are reached. On disk, so that
//! a node that is started again finds a group that has changed since its config was written.
//!
//! ```text
//!   STATE/book, JSON    ◀── learn ── Welcome, Push (whoever is in the group says who else is)
//!       └──▶ seat (am I in it?)   session (whom to ask)   peers (where they are)
//! ```
//!
//! Always true: a book is of one group; it gets newer, never older; what is told elsewhere of a group is on disk first.
//! The config says where to ask first, and its addresses go before those that are told: an operator has written them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use godwit_control::{Member, Members, NodeId, Voters, group};
use godwit_domain::{GroupId, NodeName};
use godwit_wire::session::{MEMBERS_MAX, Membership, Seated};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::files;

/// Largest book, in bytes: members with names and addresses are below 200 each.
const BYTES_MAX: u64 = 64 << 10;

/// This node's place in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its number.
    pub voter: NodeId,
    /// The entry by which it came in, or a later one at which it was in; 0: it is a founder.
    pub since: u64,
    /// Its log was opened, so that something may have been said in its name.
    pub opened: bool,
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

/// The book of a running node. Clones are the same.
#[derive(Debug, Clone)]
pub struct Keeper {
    path: Arc<Path>,
    book: Arc<watch::Sender<Option<Book>>>,
    /// One writes after the other: a place that was just taken is not forgotten over news.
    writing: Arc<Mutex<()>>,
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
            place: place.map(|voter| Place { voter, since: 0, opened: false }),
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
        }
    }
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
        Ok(Self { path: path.into(), book: Arc::new(watch::Sender::new(book)), writing: Arc::default() })
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
    /// If it is about another group, can not be, or can not be written down.
    pub fn learn(&self, told: &Membership) -> Result<(), BookError> {
        let (founders, members) = (members(0, &told.founders)?, members(told.index, &told.members)?);
        let addresses = told.members.values().filter_map(|it| Some((it.name.clone(), it.address?)));
        let addresses: BTreeMap<_, _> = addresses.collect();
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.now();
        let new = match known.clone() {
            Some(known) if known.group != told.group => {
                return Err(BookError::OtherGroup { theirs: told.group, ours: known.group });
            }
            Some(known) if known.members.index() > told.index => return Ok(()),
            Some(mut known) => {
                known.addresses.extend(addresses);
                known.addresses.retain(|name, _| members.named(name).is_some());
                Book { members, ..known }
            }
            None => Book { group: told.group, founders, members, addresses, place: None },
        };
        if known.as_ref() == Some(&new) { Ok(()) } else { self.write(new) }
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
        self.change(|book| {
            book.place = None;
            if let Some(newer) = members.filter(|members| members.index() > book.members.index()) {
                book.members = newer.clone();
            }
        })
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

    #[test]
    fn a_book_outlives_its_process_and_gets_no_older() {
        let scratch = Scratch::new();
        let keeper = Keeper::open(scratch.path()).expect("opens");
        assert_eq!(keeper.now(), None);
        keeper.learn(&told(7, &[(9, "node-9", false)])).expect("takes it");
        keeper.learn(&told(4, &[])).expect("passes it over");
        keeper.take(Place { voter: NodeId::new(9).expect("not 0"), since: 7, opened: true }).expect("writes");
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
