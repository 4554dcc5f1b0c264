//! A: the group as nodes have it, asked by clients that have one command under way each.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use godwit_control::NodeId;
use godwit_domain::registry::Command;
use godwit_node::group::Group;
use tokio::task::JoinSet;

use super::support::fleet::{self, Mover, node_name};
use super::support::voters::Trio;
use super::{Failure, Numbers, Round, cpu_time};

const NODES: u64 = 32;
/// A guest for each client.
const GUESTS: u64 = 128;
/// More than will ever run at once.
const NO_LIMIT: u32 = 100_000;

pub(crate) struct Agreed {
    trio: Trio,
    leader: NodeId,
    movers: Vec<Mover>,
}

impl Agreed {
    pub(crate) async fn start(dir: PathBuf) -> Result<Self, Failure> {
        let mut trio = Trio::new(dir);
        for id in trio.ids() {
            trio.start(id)?;
        }
        let leader = trio.ids()[0];
        let group = trio.elect(leader).await?.group.clone();
        let joins = (0..NODES).map(fleet::join);
        let made = (0..GUESTS).flat_map(|n| [fleet::create(n, node_name(n % NODES)), fleet::born(n)]);
        for command in joins.chain([fleet::limits(NO_LIMIT, NO_LIMIT)]).chain(made) {
            group.propose(command).await?;
        }
        Ok(Self { trio, leader, movers: movers() })
    }

    pub(crate) async fn round(&mut self, under_way: usize, length: Duration) -> Result<Round, Failure> {
        let group = &self.trio.voters.get(&self.leader).ok_or("it runs")?.group;
        let (disks, cpu, began) = (self.trio.told.count(), cpu_time(), Instant::now());
        let mut clients = JoinSet::new();
        for mover in self.movers.drain(..under_way) {
            clients.spawn(client(group.clone(), mover, began + length));
        }
        let mut took_us = Vec::new();
        while let Some(done) = clients.join_next().await {
            let (mover, took) = done??;
            self.movers.push(mover);
            took_us.extend(took);
        }
        let seconds = began.elapsed().as_secs_f64();
        let cpu_seconds = cpu_time().saturating_sub(cpu).as_secs_f64();
        let disks = self.trio.told.count().since(disks);
        Ok(Round { commands: took_us.len() as u64, seconds, cpu_seconds, took_us: Numbers(took_us), disks })
    }

    pub(crate) async fn end(self) -> Result<(), Failure> {
        self.trio.end().await
    }
}

fn movers() -> Vec<Mover> {
    (0..GUESTS).map(|n| Mover::new(n, [node_name(n % NODES), node_name((n + 1) % NODES)])).collect()
}

/// What one guest's moves say, in order: as many as there are in so many moves.
pub(crate) fn commands(moves: usize) -> Vec<Command> {
    let mut mover = movers().swap_remove(0);
    (0..moves * fleet::STEPS).map(|_| mover.next()).collect()
}

async fn client(group: Group, mut mover: Mover, until: Instant) -> Result<(Mover, Vec<f64>), Failure> {
    let mut took_us = Vec::new();
    while Instant::now() < until {
        let command = mover.next();
        let asked = Instant::now();
        group.propose(command).await?;
        took_us.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    Ok((mover, took_us))
}
