//! The state machine by itself: entries applied, snapshots, admission.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use godwit_control::StateMachine;
use godwit_domain::NodeName;
use godwit_domain::registry::Command;
use godwit_node::replica::{Bells, Replica};
use godwit_wire::log;

use super::support::fleet::{self, node_name, stamped};
use super::support::{Failure, Numbers, resident_bytes};
use super::{Size, Table};

pub(super) const MEMORY: &str = "registry: memory, MiB";
pub(super) const SNAPSHOT: &str = "snapshot: MiB";

const MIB: f64 = (1_u64 << 20) as f64;
const SNAPSHOTS: usize = 5;
/// A node's own limits alone bind.
pub(super) const OF_NODE: u32 = 2;
pub(super) const NO_LIMIT: u32 = 1_000_000;

/// Everything that makes the cluster, in order. Nothing may start.
pub(super) fn commands(size: Size) -> impl Iterator<Item = (&'static str, Command)> {
    let nodes = (0..size.nodes).map(|n| ("entry: Join, us each", fleet::join(n)));
    let limits = ("entry: PutSettings, us each", fleet::limits(0, OF_NODE));
    let made = (0..size.guests).flat_map(move |n| {
        let home = node_name(n % size.nodes);
        [("entry: PutInstance, us each", fleet::create(n, home)), ("entry: Born, us each", fleet::born(n))]
    });
    let asked = (0..size.waiting).map(move |n| ("entry: Migrate, us each", fleet::ask(n, size.nodes)));
    nodes.chain([limits]).chain(made).chain(asked)
}

pub(super) fn measure(size: Size, table: &mut Table) -> Result<(), Failure> {
    let before = resident_bytes();
    let mut replica = Replica::new(Arc::<Bells>::default());
    let mut index = 0;
    let mut apply = |replica: &mut Replica, command: Command| -> Result<f64, Failure> {
        let entry = log::encode_entry(&stamped(command))?;
        index += 1;
        let began = Instant::now();
        replica.apply(index, &entry)?;
        Ok(began.elapsed().as_secs_f64())
    };
    let mut kinds: Vec<(&'static str, Numbers)> = Vec::new();
    for (kind, command) in commands(size) {
        let took = apply(&mut replica, command)?;
        if kinds.last().is_none_or(|(last, _)| *last != kind)
            && !kinds.iter().any(|(known, _)| *known == kind)
        {
            kinds.push((kind, Numbers::default()));
        }
        kinds.iter_mut().filter(|(known, _)| *known == kind).for_each(|(_, all)| all.0.push(took * 1e6));
    }
    table.add(MEMORY, resident_bytes().saturating_sub(before) as f64 / MIB);
    let all: Vec<f64> = kinds.iter().flat_map(|(_, all)| all.0.iter().copied()).collect();
    table.add("entries applied a second, thousands", all.len() as f64 * 1e3 / all.iter().sum::<f64>());
    for (kind, took) in &kinds {
        table.add(kind, took.median());
    }
    snapshots(&replica, table)?;

    let reachable: BTreeSet<NodeName> = (0..size.nodes).map(node_name).collect();
    apply(&mut replica, fleet::limits(NO_LIMIT, OF_NODE))?;
    let (mut decided, mut applied) = (Numbers::default(), Numbers::default());
    loop {
        let began = Instant::now();
        let next = replica.registry().next_admission(&reachable);
        decided.0.push(began.elapsed().as_secs_f64() * 1e6);
        let Some((guest, migration, target)) = next else { break };
        applied.0.push(apply(&mut replica, Command::Admit { guest, migration, target })? * 1e6);
    }
    table.add("admission: granted until the nodes' limits bind", applied.0.len() as f64);
    let whole = decided.0.iter().chain(&applied.0).sum::<f64>() / 1e3;
    table.add("admission: all of them, decided and applied, ms", whole);
    table.add("admission: a decision, us each", decided.median());
    table.add("admission: a decision, us, p99", decided.quantile(0.99));
    table.add("admission: the one that finds nothing, us", decided.0.last().copied().unwrap_or(f64::NAN));
    table.add("entry: Admit, us each", applied.median());
    Ok(())
}

fn snapshots(replica: &Replica, table: &mut Table) -> Result<(), Failure> {
    let (mut made, mut read, mut bytes) = (Numbers::default(), Numbers::default(), 0);
    for _ in 0..SNAPSHOTS {
        let began = Instant::now();
        let snapshot = replica.snapshot();
        made.0.push(began.elapsed().as_secs_f64() * 1e3);
        bytes = snapshot.len();
        let mut other = Replica::new(Arc::default());
        let began = Instant::now();
        other.restore(1, &snapshot)?;
        read.0.push(began.elapsed().as_secs_f64() * 1e3);
        if other.registry() != replica.registry() {
            return Err("a snapshot is not the state that it was made of".into());
        }
    }
    table.add(SNAPSHOT, bytes as f64 / MIB);
    table.add("snapshot: made and encoded, ms", made.median());
    table.add("snapshot: decoded and counted, ms", read.median());
    Ok(())
}
