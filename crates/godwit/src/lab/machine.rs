//! `godwit lab --runner qemu`: a virtual machine of the caller's own goes round, once in each of three ways.
//!
//! ```text
//!   kernel, first file system ─▶ boots on node-a ─ pre-copy ─▶ node-b ─ post-copy ─▶ node-c ─ post-copy after rounds ─▶ node-a
//!                                                      └─ compared with the source by an audit
//! ```
//!
//! What the guest does is its own affair, so what is proved here is what can be seen from outside: it runs at its target alone, and
//! after a pre-copy every page that it has not written since is what it was at the source.

use std::time::Duration;

use comfy_table::{Table, presets};
use godwit_domain::progress::AuditReport;
use godwit_domain::settings::PostCopyTrigger;
use godwit_domain::{GuestName, GuestSpec, NodeName, Overrides, Quantity};
use godwit_wire::admin::MoveMode;
use serde::Serialize;

use super::cluster::{Cluster, How, Moved, STEP_TIMEOUT};
use super::{LabError, render, talk};

const MIB: u64 = 1 << 20;
/// How long a guest may take to say its first word on its serial line. One that never speaks is moved all the same.
const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(60);
/// And how long it is left alone after it, to become busy with something.
const SETTLE: Duration = Duration::from_secs(3);
/// What the third move may send per second: little enough that rounds do not come to an end.
const THROTTLED: u64 = 128 * MIB;

/// One move, as it is reported.
#[derive(Debug, Clone, Serialize)]
pub struct MachineMove {
    way: &'static str,
    source: String,
    target: String,
    total_ms: f64,
    /// From the order to stand still to "runs at the target", as the two nodes measure it.
    downtime_ms: f64,
    wire_bytes: u64,
    rounds: u16,
    /// What was still missing when it ran at the target.
    missing_bytes: u64,
    audit: Option<AuditReport>,
}

/// The guest, and what it is moved by.
pub(super) struct MachineScene {
    pub(super) guest: GuestName,
    pub(super) spec: GuestSpec,
    pub(super) overrides: Overrides,
    pub(super) moves: usize,
}

impl MachineScene {
    fn ways(&self) -> [(&'static str, How); 3] {
        let allowed = Overrides { allow_post_copy: Some(true), ..self.overrides };
        let after_rounds = Overrides {
            post_copy_trigger: Some(PostCopyTrigger::Early),
            completion_timeout_per_gib: Some(2),
            max_downtime_ms: Some(1),
            bandwidth_per_migration: Some(Quantity::from_bytes(THROTTLED)),
            ..allowed
        };
        [
            ("pre-copy", self.overrides.into()),
            ("post-copy", How { overrides: allowed, mode: Some(MoveMode::PostCopy) }),
            ("post-copy after rounds", after_rounds.into()),
        ]
    }

    /// Boots it and moves it.
    pub(super) async fn play(
        &self,
        cluster: &mut Cluster,
        nodes: &[NodeName],
        done: &mut Vec<MachineMove>,
    ) -> Result<(), LabError> {
        let Some(first) = nodes.first() else { return Ok(()) };
        talk(&format!(
            "guest {}: {} of RAM, under QEMU on {first}",
            self.guest,
            render::bytes(self.spec.memory_bytes)
        ));
        cluster.create_guest(&self.guest, first, self.spec.clone()).await?;
        first_word(cluster).await;
        let round = nodes.iter().cycle();
        let pairs = round.clone().zip(round.skip(1));
        let ways = self.ways();
        for ((source, target), (way, how)) in pairs.zip(ways.iter().cycle()).take(self.moves) {
            talk(&format!("{source} → {target}: {way}"));
            let limit = 4 * STEP_TIMEOUT;
            let moved = cluster.migrate(&self.guest, target, *how, limit, async |_, _| {}).await?;
            let (report, resume_us, post_copy, audit) = match moved {
                Moved::Succeeded { source, resume_us, post_copy, audit } => {
                    (source, resume_us, post_copy, audit)
                }
                Moved::Failed(reason) => return Err(LabError::Failed { target: target.clone(), reason }),
            };
            let ms = |us: u64| Duration::from_micros(us).as_secs_f64() * 1000.0;
            done.push(MachineMove {
                way,
                source: source.to_string(),
                target: target.to_string(),
                total_ms: ms(report.total_us),
                downtime_ms: ms(report.pause_us + report.state_us + report.commit_us + resume_us),
                wire_bytes: report.wire_bytes,
                rounds: report.rounds,
                missing_bytes: post_copy.as_ref().map_or(0, |report| report.missing_at_resume_bytes),
                audit: audit.filter(|_| post_copy.is_none()),
            });
            if let Some(AuditReport { mismatched_pages, checked_pages, .. }) = audit
                && mismatched_pages > 0
            {
                return Err(LabError::Audit {
                    target: target.clone(),
                    mismatched: mismatched_pages,
                    checked: checked_pages,
                });
            }
        }
        Ok(())
    }
}

async fn first_word(cluster: &Cluster) {
    let spoken = async {
        let has_said = || {
            cluster
                .runner_dirs()
                .iter()
                .any(|dir| dir.join("console.log").metadata().is_ok_and(|log| log.len() > 0))
        };
        while !has_said() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(SETTLE).await;
    };
    if tokio::time::timeout(FIRST_WORD_TIMEOUT + SETTLE, spoken).await.is_err() {
        talk("it says nothing on its serial line; it is moved all the same");
    }
}

/// For people.
pub(super) fn table(moves: &[MachineMove]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "move",
        "way",
        "total",
        "downtime",
        "sent",
        "missing when it ran",
        "compared with the source",
    ]);
    for moved in moves {
        let compared = match moved.audit {
            Some(AuditReport { checked_pages, mismatched_pages: 0, .. }) => {
                format!("{checked_pages} pages, all alike")
            }
            Some(AuditReport { mismatched_pages, .. }) => format!("{mismatched_pages} PAGES DIFFER"),
            None => "-".to_owned(),
        };
        table.add_row([
            format!("{} → {}", moved.source, moved.target),
            moved.way.to_owned(),
            format!("{:.2} s", moved.total_ms / 1000.0),
            format!("{:.1} ms", moved.downtime_ms),
            render::bytes(moved.wire_bytes),
            render::bytes(moved.missing_bytes),
            compared,
        ]);
    }
    table.to_string()
}
