//! What operators of a busy cluster do all day: guests are moved, moves are changed and taken back.
//!
//! Always true: every move has a limit of its own, so that what may be on the wire is known.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use godwit_domain::{Labels, MigrationId, NodeName, Overrides, Quantity};
use godwit_wire::admin::{Act, MigrationDetail, MoveMode};
use serde_json::Value;

use crate::doors::Doors;
use crate::herd::Herd;
use crate::support::world::MIB;

/// Moves that are open at once, those that wait included.
const OPEN_MAX: usize = 10;
/// Rest between two moves that are asked for.
const INTERVAL: Duration = Duration::from_millis(200);

/// Asks for moves until it is told to end.
pub(crate) async fn ask_on_and_on(doors: Arc<Doors>, herd: Arc<Herd>, mut rng: Rng) {
    let nodes: Vec<NodeName> = doors.nodes().cloned().collect();
    loop {
        tokio::time::sleep(INTERVAL).await;
        if herd.moving() >= OPEN_MAX {
            continue;
        }
        let Some(guest) = rng.choice(herd.at_rest()) else { continue };
        let others: Vec<_> =
            nodes.iter().filter(|node| Some(*node) != guest.node.as_ref()).cloned().collect();
        let to = if rng.u8(..4) > 0 { rng.choice(others) } else { None };
        let (mode, overrides) = manner(&mut rng);
        let act = Act::Migrate {
            guest: guest.name,
            migration: None,
            to,
            selector: Labels::new(),
            overrides,
            mode,
            dry_run: false,
        };
        // Refused or unknown: another one will do.
        let Ok(asked) = doors.ask::<MigrationDetail>(act).await else { continue };
        let name = asked.row.name;
        match rng.u8(..20) {
            0 | 1 => drop(tokio::spawn(cancel(Arc::clone(&doors), name, rng.u64(0..=3_000)))),
            2 | 3 => drop(tokio::spawn(quicken(Arc::clone(&doors), name, rng.u64(0..=1_500)))),
            _ => {}
        }
    }
}

fn manner(rng: &mut Rng) -> (Option<MoveMode>, Overrides) {
    let bandwidth = Quantity::from_bytes(rng.u64(4..=16) * MIB);
    let common = Overrides {
        bandwidth_per_migration: Some(bandwidth),
        max_downtime_ms: Some(*[50, 300, 1_500].get(rng.usize(..3)).unwrap_or(&300)),
        progress_timeout: Some(15),
        completion_timeout_per_gib: Some(0),
        allow_post_copy: Some(true),
        ..Overrides::default()
    };
    match rng.u8(..10) {
        // It never fits, or hardly ever: at the deadline it goes.
        0..=2 => (None, Overrides { completion_timeout_per_gib: Some(rng.u64(40..=160)), ..common }),
        3..=5 => (Some(MoveMode::PostCopy), common),
        6 => (None, Overrides { allow_auto_converge: Some(true), audit: Some(true), ..common }),
        _ => (None, common),
    }
}

async fn cancel(doors: Arc<Doors>, migration: MigrationId, after_ms: u64) {
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    let _ = doors.ask::<Value>(Act::MigrationCancel { migration }).await;
}

async fn quicken(doors: Arc<Doors>, migration: MigrationId, after_ms: u64) {
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    let overrides =
        Overrides { bandwidth_per_migration: Some(Quantity::from_bytes(20 * MIB)), ..Overrides::default() };
    let _ = doors.ask::<Value>(Act::MigrationSet { migration, overrides }).await;
}
