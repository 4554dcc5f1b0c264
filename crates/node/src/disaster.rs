//! A control group that is founded anew, while no node of this folder runs: from a backup, or from what one voter has left.
//!
//! ```text
//!   restore   backup file ──────────────────────────┐
//!                                                   ├─▶ Registry ─▶ STATE/control.new, STATE/book ─▶ STATE/control
//!   recover   STATE/control, replayed to its end ───┘       └ its first entry: Found (every guest is in doubt)
//! ```
//!
//! Always true: the new group has one voter, this node, and a number that no group had; nothing that is there is removed,
//! what is given up is put away (STATE/control.left); one that was interrupted while it changed names is undone by the next
//! (STATE/control.founding says so); all that can be wrong is found before anything is written; a node
//! that runs on the folder keeps everybody else out by its lock.

mod places;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_control::founding::{self, Replayed};
use godwit_control::{
    DiskError, DiskSource, Identity, Member, NodeId, Position, SledFolder, StartError, members,
};
use godwit_domain::registry::{Command, Founding, Registry, Stamped};
use godwit_domain::{GroupId, NodeName};
use godwit_wire::backup::{self, BACKUP_BYTES_MAX, BackupError, Head};
use godwit_wire::codec::CodecError;
use godwit_wire::log;
use godwit_wire::session::SUCCEEDS_MAX;

use crate::app::{self, AppError};
use crate::book::{Book, BookError, Keeper, Place};
use crate::config::NodeConfig;
use crate::files;
use crate::group::{self, desk};
use crate::replica::Replica;
use places::Places;

/// Why no group was founded. Nothing has changed, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum DisasterError {
    /// A node runs on the folder, or it can not be used.
    #[error(transparent)]
    App(#[from] Box<AppError>),
    /// There is something in the folder that a backup would take the place of.
    #[error(
        "{} is there: this node {what}. A backup is restored where there is neither a log nor a book; a voter that is left of a \
         group is recovered (godwit control recover). To give up what is there, move STATE/control and STATE/book away; \
         guests and records may stay", path.display()
    )]
    NotEmpty {
        /// What is there.
        path: PathBuf,
        /// What it means.
        what: String,
    },
    /// The backup can not be used.
    #[error("backup {}", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: BackupError,
    },
    /// The backup is another cluster's.
    #[error("backup {} is of cluster {theirs}, and this node is of cluster {ours}", path.display())]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// Its cluster.
        theirs: String,
        /// This node's.
        ours: String,
    },
    /// What it holds can not be read.
    #[error("{0}")]
    State(&'static str, #[source] CodecError),
    /// A file.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The book.
    #[error("what this node knows of its control group")]
    Book(#[from] BookError),
    /// The node does not vote.
    #[error("node {0} has no place in a control group: {1}. Only a voter can be recovered from")]
    NoVoter(NodeName, &'static str),
    /// The log.
    #[error("the log of this voter")]
    Log(#[from] StartError),
    /// The disk.
    #[error("the log of this voter")]
    Disk(#[from] DiskError),
    /// The host lacks something.
    #[error("{0}")]
    Host(&'static str, #[source] io::Error),
}

/// A group that was founded.
#[derive(Debug, Clone)]
pub struct Founded {
    /// Its id.
    pub group: GroupId,
    /// From what: who it was, and what is in it.
    pub from: Head,
}

/// What a voter has left, before anything is given up for it.
#[derive(Debug)]
pub struct Survey {
    /// What is here.
    pub head: Head,
    /// Up to this entry it knew that the log was agreed; what follows may have been, and is taken.
    pub committed: u64,
    /// Who was in the group beside this node, and whether it voted.
    pub others: Vec<(NodeName, bool)>,
    registry: Registry,
    last: Position,
    _lock: File,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DisasterError {
    let path = path.to_owned();
    move |source| DisasterError::File { path, source }
}

/// Founds a group from a backup, in a folder where there is none.
///
/// # Errors
/// If the folder has one, a node runs on it, or the backup is damaged, of another release or of another cluster.
pub fn restore(config: &NodeConfig, file: &Path) -> Result<Founded, DisasterError> {
    let _lock = app::lock(&config.state).map_err(Box::new)?;
    undo_what_was_interrupted(&config.state)?;
    empty(&config.state)?;
    let bytes = files::read_capped(file, BACKUP_BYTES_MAX as u64).map_err(at(file))?;
    let refused = |source| DisasterError::Backup { path: file.to_owned(), source };
    let (head, state) = backup::decode(&bytes).map_err(refused)?;
    if head.cluster != config.cluster {
        let (path, theirs, ours) = (file.to_owned(), head.cluster, config.cluster.clone());
        return Err(DisasterError::OtherCluster { path, theirs, ours });
    }
    let registry =
        log::decode_snapshot(state).map_err(|source| DisasterError::State("the backup's state", source))?;
    let base = Position { term: head.term, index: head.index };
    let group = found(config, &head, &registry, base, true)?;
    Ok(Founded { group, from: head })
}

/// Refuses a folder that has a place for a group, taken or not.
fn empty(state: &Path) -> Result<(), DisasterError> {
    if let Some(book) = Keeper::open(state)?.now() {
        let what = match book.place {
            Some(place) => format!("is voter {} of control group {}", place.voter, book.group),
            None => format!("belongs to control group {}", book.group),
        };
        return Err(DisasterError::NotEmpty { path: state.join("book"), what });
    }
    let log = state.join("control");
    match fs::read_dir(&log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at(&log)(error)),
        Ok(_) => Err(DisasterError::NotEmpty { path: log, what: "has a voter's log".to_owned() }),
    }
}

/// Looks what a voter has left. Nothing is changed; no node can start on the folder while this is kept.
///
/// # Errors
/// If a node runs on it, it was no voter's, or the log can not be read.
pub fn survey(config: &NodeConfig) -> Result<Survey, DisasterError> {
    let lock = app::lock(&config.state).map_err(Box::new)?;
    undo_what_was_interrupted(&config.state)?;
    let none = |why| DisasterError::NoVoter(config.name.clone(), why);
    let book = Keeper::open(&config.state)?.now().ok_or_else(|| none("it has never heard of one"))?;
    let place = book.place.ok_or_else(|| none("it does not vote"))?;
    let log = config.state.join("control");
    if !log.exists() {
        return Err(none("its log is gone, and with it what it has agreed to"));
    }
    let me = (place.voter, config.name.clone());
    let identity = Identity::seated(config.cluster.clone(), book.group, me, book.founders.clone());
    let mut replica = Replica::new(Arc::default());
    let mut disk = SledFolder::new(log, identity).that_has_begun(place.opened).open()?;
    let Replayed { members, last, committed } = founding::replay(disk.as_mut(), &mut replica)?;
    drop(disk);
    if !members.get(place.voter).is_some_and(|me| me.votes) {
        return Err(none(
            "it did not vote yet, or no more, as far as its log says: a voter has agreed to more",
        ));
    }
    if last.index == 0 {
        return Err(none("its log is empty: nothing was ever agreed on, so found a cluster instead"));
    }
    let registry = replica.registry().clone();
    let voters = members.iter().filter(|(_, it)| it.votes).map(|(_, it)| it.name.clone());
    let head = Head {
        cluster: config.cluster.clone(),
        group: book.group,
        succeeds: book.succeeds.clone(),
        node: config.name.clone(),
        voters: voters.collect(),
        index: last.index,
        term: last.term,
        made_ms: registry.time_ms,
        nodes: 0,
        guests: 0,
        migrations: 0,
    };
    let other = |(_, it): (NodeId, &Member)| (it.name != config.name).then(|| (it.name.clone(), it.votes));
    Ok(Survey {
        head: desk::counted(head, &registry),
        committed,
        others: members.iter().filter_map(other).collect(),
        registry,
        last,
        _lock: lock,
    })
}

impl Survey {
    /// Founds a group from this. The log that is here is put away.
    ///
    /// # Errors
    /// If that can not be written.
    pub fn recover(self, config: &NodeConfig) -> Result<Founded, DisasterError> {
        let group = found(config, &self.head, &self.registry, self.last, false)?;
        Ok(Founded { group, from: self.head })
    }
}

fn found(
    config: &NodeConfig,
    head: &Head,
    registry: &Registry,
    base: Position,
    from_backup: bool,
) -> Result<GroupId, DisasterError> {
    let state = &config.state;
    let group = files::random()
        .map(u128::from_ne_bytes)
        .map_err(|error| DisasterError::Host("random numbers", error))?;
    let group = GroupId(group);
    let voter = members::new_id(&config.name, base);
    let founders = founding::alone(0, voter, config.name.clone());
    let others: BTreeSet<NodeName> =
        head.voters.iter().filter(|name| **name != config.name).cloned().collect();
    let command = Command::Found {
        founding: Founding {
            from: head.group,
            group,
            node: config.name.clone(),
            voters: others,
            from_backup,
        },
    };
    let time_ms = group::now_ms().max(registry.time_ms);
    let encoded = |what| move |source| DisasterError::State(what, source);
    let entry = log::encode_entry(&Stamped { time_ms, request: None, command })
        .map_err(encoded("the first entry"))?;
    let snapshot = log::encode_snapshot(registry).map_err(encoded("the state"))?;

    let places = Places::of(state);
    remove(&places.new)?;
    let identity =
        Identity::seated(config.cluster.clone(), group, (voter, config.name.clone()), founders.clone());
    let mut disk = SledFolder::new(&places.new, identity).open()?;
    let members = founding::alone(base.index, voter, config.name.clone());
    founding::found(disk.as_mut(), &members, base, &snapshot, entry)?;
    drop(disk);

    let mut succeeds = head.succeeds.clone();
    succeeds.push(head.group);
    succeeds.drain(..succeeds.len().saturating_sub(SUCCEEDS_MAX));
    let book = Book {
        group,
        founders,
        members,
        addresses: Default::default(),
        place: Some(Place { voter, since: base.index, opened: true, log: 0 }),
        succeeds,
        heard: Default::default(),
    };
    // Until the last a node that starts here finds a log that is not its own, and says so.
    let changed =
        places.change(group).and_then(|()| Ok(Keeper::open(state).and_then(|keeper| keeper.replace(book))?));
    if let Err(error) = changed {
        undo_what_was_interrupted(state)?;
        // It is founded, if its last step was taken and only not known to last.
        return if is_of(state, group)? { Ok(group) } else { Err(error) };
    }
    // Left behind, the next one removes it.
    let _ = fs::remove_file(&places.founding);
    Ok(group)
}

fn is_of(state: &Path, group: GroupId) -> Result<bool, DisasterError> {
    Ok(Keeper::open(state)?.now().is_some_and(|book| book.group == group))
}

fn undo_what_was_interrupted(state: &Path) -> Result<(), DisasterError> {
    let book = Keeper::open(state)?.now();
    Places::of(state).undo(book.map(|book| book.group))
}

fn remove(folder: &Path) -> Result<(), DisasterError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(folder)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
