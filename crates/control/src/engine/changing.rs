//! Raft's part in a change of the group: proposed by whoever leads, applied by all, and the leadership handed on.
//!
//! Always true: what raft counts votes by and what is told to the [`Sink`] change at the same entry.

use std::sync::Arc;

use godwit_domain::planted;
use raft::StateRole;
use raft::eraftpb::{Entry, EntryType};

use super::{Engine, NotProposed, Position, Sink};
use crate::group::NodeId;
use crate::members::{self, ChangeError, Members, Standing, Wanted};

/// Whether an entry changes the group.
pub(super) fn is_change(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal
}

impl Engine {
    /// Puts a change of the group at the end of the log, if this voter leads and a rule does not forbid it. The entry is
    /// applied together with it.
    pub fn change(&mut self, wanted: &Wanted, entry: Vec<u8>) -> Result<Position, NotProposed> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return Err(NotProposed::NotLeader);
        }
        if raft.has_pending_conf() {
            return Err(NotProposed::Forbidden(ChangeError::InFlight));
        }
        let position = Position { term: raft.term, index: raft.raft_log.last_index() + 1 };
        let (Wanted::Add(name) | Wanted::Promote(name) | Wanted::Remove(name)) = wanted;
        let fresh = members::new_id(name, position);
        let change = self.members.change(wanted, fresh, &self.standing()).map_err(NotProposed::Forbidden)?;
        // An entry of a size that was refused before.
        let proposal = members::proposal(&change, entry).map_err(|_| NotProposed::Busy)?;
        self.node.propose_conf_change(Vec::new(), proposal).map_err(|_| NotProposed::Busy)?;
        Ok(position)
    }

    /// What a leader knows of the members beside the log. Of anybody else it says little.
    pub fn standing(&self) -> Standing {
        let raft = &self.node.raft;
        let recent = self.ticks.saturating_sub(self.timeouts.base as u64);
        let answers = |id: &NodeId| *id == self.id || self.heard.get(id).is_some_and(|at| *at >= recent);
        let answering = self.members.iter().map(|(id, _)| id).filter(answers).collect();
        let progress = raft.prs().iter().filter_map(|(id, progress)| {
            Some((NodeId::new(*id)?, raft.raft_log.committed.saturating_sub(progress.matched)))
        });
        let behind = progress.filter(|_| raft.state == StateRole::Leader).collect();
        Standing { answering, behind }
    }

    /// Who is in the group, as far as entries are applied.
    pub fn members(&self) -> &Arc<Members> {
        &self.members
    }

    /// Hands the leadership on, if this voter has it. It keeps it if the other does not take it within an election.
    pub fn transfer(&mut self, to: NodeId) {
        self.node.raft.abort_leader_transfer();
        self.node.transfer_leader(to.get());
        self.hold_timeout();
    }

    /// Hands the leadership on to whoever answers and has most.
    pub fn pass_on(&mut self) {
        let standing = self.standing();
        let others = self.members.voters().filter(|id| *id != self.id && standing.answering.contains(id));
        let best = others.min_by_key(|id| (standing.behind.get(id).copied().unwrap_or(u64::MAX), *id));
        if let Some(best) = best {
            self.transfer(best);
        }
    }

    /// Whether this voter is about to tell others that a change is agreed, and its disk does not say so yet.
    pub(super) fn tells_change(&self) -> bool {
        let raft = &self.node.raft;
        let news = self.node.store().hard().commit + 1..=raft.raft_log.committed;
        raft.state == StateRole::Leader && news.contains(&raft.pending_conf_index)
    }

    /// Whether those who are in the group now know, without this voter, that the log is agreed up to this entry: as it leads,
    /// more than half of them have said so; else another one has.
    pub fn is_known(&self, index: u64) -> bool {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return self.told >= index;
        }
        let knows = |id: &NodeId| raft.prs().get(id.get()).is_some_and(|it| it.committed_index >= index);
        let voters = self.members.voters();
        voters.filter(|id| *id != self.id).filter(knows).count() * 2 > self.members.voters().count()
    }

    /// From here on the group is another.
    pub(super) fn apply_change(&mut self, position: Position, entry: &Entry, sink: &mut dyn Sink) {
        let (change, carried, raw) = match members::read(entry.get_data()) {
            Ok(read) => read,
            // The driver takes a panic for the death of this voter, which it is.
            Err(error) => panic!("entry {} can not be read by this version: {error}", position.index),
        };
        if let Some(members) = self.members.changed(position.index, &change) {
            let counts_on =
                planted::is_on("removed-still-counted") && matches!(change, members::Change::Remove { .. });
            let conf = if counts_on {
                Ok(self.node.store().conf().clone())
            } else {
                self.node.apply_conf_change(&raw)
            };
            match conf {
                Ok(conf) => self.node.mut_store().set_conf(conf),
                Err(error) => panic!("entry {} is no change of this group: {error}", position.index),
            }
            tracing::info!(?change, index = position.index, "the control group has changed");
            self.set_members(Arc::new(members));
        } else {
            tracing::warn!(?change, index = position.index, "a change of the control group changes nothing");
        }
        sink.changed(position, &self.members, &carried);
    }

    pub(super) fn set_members(&mut self, members: Arc<Members>) {
        (self.timeouts.rank, self.timeouts.voters) = members.rank(self.id);
        self.members = members;
        self.hold_timeout();
    }
}
