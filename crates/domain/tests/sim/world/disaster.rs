//! Every voter is lost, and the group is founded anew from something older: hosts follow one by one, late, and until then go
//! on as the last view of the earlier group has it, with nobody who would agree to anything.

use godwit_domain::GroupId;
use godwit_domain::agent::RunnerState;
use godwit_domain::ownership::{Life, Stands};
use godwit_domain::registry::{Command, Founding, Registry, Testified};

use super::{GUEST, World};

/// One of so many states is kept as a backup.
const BACKUP_EVERY: u32 = 6;

impl World {
    /// Now and then what is agreed is backed up.
    pub(super) fn back_up(&mut self) {
        if self.random.u32(0..BACKUP_EVERY) == 0 {
            self.backups.push(self.registry.clone());
        }
    }

    /// The log is gone. What takes its place is a backup, or what one voter has left: all but the last entries, or all.
    pub(super) fn disaster(&mut self) {
        let Some(state) = self.random.choice(0..self.backups.len()).map(|at| self.backups[at].clone()) else {
            return;
        };
        let recent = self.random.bool();
        self.registry = if recent { self.registry.clone() } else { Registry::clone(&state) };
        self.note(|| format!("the group is lost; recent: {recent}"));
        let end = self.history.len() - 1;
        for host in &mut self.hosts {
            host.ends.get_or_insert(end);
        }
        self.proposals.clear();
        self.backups.clear();
        self.disasters += 1;
        let founding = Founding {
            from: GroupId(self.disasters as u128),
            group: GroupId(self.disasters as u128 + 1),
            node: self.names[0].clone(),
            voters: Default::default(),
            from_backup: !recent,
        };
        self.history.push(self.registry.guests[&GUEST].ownership.clone());
        self.commit(Command::Found { founding });
        self.begins = self.history.len() - 1;
        self.ran_through = false;
    }

    /// What may happen about it to this host.
    pub(super) fn around_a_disaster(&mut self, at: usize) {
        match self.random.u32(0..1000) {
            0 if !self.calm => self.disaster(),
            1..20 if self.hosts[at].up => self.follow(at),
            20..60 => self.say_what_is_here(at),
            _ if self.calm && self.hosts[at].up => self.follow(at),
            _ => {}
        }
    }

    /// A host hears of the group that has taken the place of its own, and its node process begins anew.
    pub(super) fn follow(&mut self, at: usize) {
        if self.hosts[at].ends.take().is_none() {
            return;
        }
        self.note(|| format!("{at}: follows"));
        let begins = self.begins;
        let host = &mut self.hosts[at];
        host.begins = begins;
        host.restart_node();
        if host.running().count() > 0 {
            self.ran_through = true;
        }
        // With its process its connections are gone.
        let here: Vec<_> = self.hosts[at].processes.iter().map(|process| process.runner.instance).collect();
        self.finals.retain(|last| !here.contains(&last.target));
        self.join(at);
    }

    /// A host that is asked says what it has.
    pub(super) fn say_what_is_here(&mut self, at: usize) {
        let (name, host) = (self.names[at].clone(), &self.hosts[at]);
        let fenced = self.registry.nodes.get(&name).is_some_and(|node| node.fenced.is_some());
        if !host.up || host.ends.is_some() || !host.commands.is_empty() || fenced {
            return;
        }
        if !self.registry.unheard.contains(&name) {
            return;
        }
        let there = host.processes.iter().map(|process| Testified {
            guest: GUEST,
            instance: process.runner.instance,
            stands: match &process.runner.state {
                RunnerState::Running(epoch) => Stands::Running(*epoch),
                RunnerState::Paused(sealed) => Stands::Paused {
                    sealed: *sealed,
                    withheld: host.withheld.contains(&(process.runner.instance, *sealed)),
                },
                RunnerState::Incoming { arrived } => Stands::Incoming {
                    made: process.runner.made,
                    arrived: arrived.as_ref().map(|arrived| arrived.sealed),
                },
            },
            arriving: process.arriving.clone(),
        });
        let buried = host
            .tombstones
            .iter()
            .filter(|instance| !host.processes.iter().any(|it| it.runner.instance == **instance));
        let buried = buried.map(|instance| Testified {
            guest: GUEST,
            instance: *instance,
            stands: Stands::Buried,
            arriving: None,
        });
        let runners = there.chain(buried).collect();
        self.commit(Command::Testify { node: name, first: true, runners, last: true });
        if let Life::Unsure(doubt) = &self.present().life {
            assert!(!doubt.open, "two runners claim to be the guest: {doubt:?}");
        }
    }

    /// Where nothing has died, a guest that ran when its host followed to the present group is not lost.
    pub(super) fn is_lost_for_nothing(&self) -> bool {
        self.ran_through && self.deaths == 0
    }
}
