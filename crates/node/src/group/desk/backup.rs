//! A backup of all that is agreed, piece by piece to whoever asks.
//!
//! Always true: whoever leads was proven to before this is asked, so everything that was acknowledged until then is in it;
//! it was read back before it leaves.

use godwit_control::Image;
use godwit_domain::ownership::Life;
use godwit_domain::registry::Registry;
use godwit_wire::admin::{BackupMade, BackupPiece};
use godwit_wire::{backup, log};
use serde_json::Value;
use tokio::sync::mpsc;

use super::super::{Group, now_ms};
use super::problem::{self, gone};
use super::{Answered, json};

/// Bytes of one piece. Its line has twice as many, and something around them.
const PIECE_BYTES: usize = 1 << 20;

pub(super) async fn make(group: &Group, events: mpsc::Sender<Value>) -> Answered {
    let failed = |why: String| problem::failed("what is agreed must fit into a backup", why);
    let image = group.image().await.ok_or_else(gone)?;
    let book = group.keeper().now().ok_or_else(gone)?;
    let head = backup::Head {
        cluster: group.cluster().to_owned(),
        group: book.group,
        succeeds: book.succeeds,
        node: group.me().clone(),
        voters: image.members.iter().filter(|(_, it)| it.votes).map(|(_, it)| it.name.clone()).collect(),
        index: image.position.index,
        term: image.position.term,
        made_ms: now_ms(),
        nodes: 0,
        guests: 0,
        migrations: 0,
    };
    // A full registry takes a second: not on a thread that serves others.
    let encoded = tokio::task::spawn_blocking(move || encode(head, &image)).await;
    let bytes = encoded.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
    for piece in bytes.chunks(PIECE_BYTES) {
        let piece = BackupPiece { hex: piece.iter().map(|byte| format!("{byte:02x}")).collect() };
        if events.send(json(&piece)?).await.is_err() {
            break;
        }
    }
    tracing::info!(bytes = bytes.len(), "a backup was made of all that is agreed");
    json(&BackupMade { bytes: count(bytes.len()) })
}

fn encode(head: backup::Head, image: &Image) -> Result<Vec<u8>, String> {
    let registry = log::decode_snapshot(&image.state).map_err(|error| error.to_string())?;
    let head = counted(head, &registry);
    backup::encode(&head, &image.state).map_err(|error| error.to_string())
}

/// The head, with what is in the registry.
pub(crate) fn counted(head: backup::Head, registry: &Registry) -> backup::Head {
    let guests = registry.guests.values().filter(|guest| guest.ownership.life != Life::Purged);
    backup::Head {
        nodes: count(registry.nodes.len()),
        guests: count(guests.count()),
        migrations: count(registry.migrating().count()),
        ..head
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
