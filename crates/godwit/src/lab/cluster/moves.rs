//! One migration through the ledger: start, accept, send off, and see both sides to their end.

use std::time::Duration;

use godwit_domain::ownership::{Entry, Ownership, Phase, Side};
use godwit_domain::{GuestName, InstanceId, MigrationId, NodeName};
use godwit_wire::orders::{Fact, Order, Report, Settings, SourceReport};
use tokio::time::Instant;

use super::{Cluster, ClusterError, Event};

/// How a migration ended.
#[derive(Debug)]
pub enum Moved {
    /// The guest runs at the target.
    Succeeded {
        /// What the source measured.
        source: SourceReport,
        /// From "complete and licensed" to "runs" at the target, in microseconds.
        resume_us: u64,
    },
    /// It runs where it ran, for this reason.
    Failed(String),
}

impl Cluster {
    /// Moves a guest and waits for both sides to end. `watch` sees every event and may order things.
    pub async fn migrate(
        &mut self,
        guest: &GuestName,
        target: &NodeName,
        settings: Settings,
        limit: Duration,
        mut watch: impl AsyncFnMut(&mut Self, &MigrationId, &Event),
    ) -> Result<Moved, ClusterError> {
        self.migrations += 1;
        let migration: MigrationId = format!("migration-{}", self.migrations).parse().map_err(|_| {
            ClusterError::Refused { about: guest.to_string(), message: "the migration's name is none".into() }
        })?;
        let source = self.ledger.get(guest).and_then(Ownership::owner).map(|owner| owner.instance);
        self.begin(guest, &migration, target).await?;
        let deadline = Instant::now() + limit;
        let (mut source_report, mut resume_us) = (None, None);
        // Whose memory is to go at the end: the source's runner, or the target's if it fails.
        let (mut accepted, mut gone) = (None, Vec::new());
        loop {
            let Ok(event) = tokio::time::timeout_at(deadline, self.next()).await else {
                return Err(ClusterError::Timeout { what: format!("the end of {migration}"), limit });
            };
            watch(self, &migration, &event).await;
            match event {
                Event::Agreed(of, Entry::Accept { instance, .. }) if of == *guest => {
                    accepted = Some(instance);
                    self.send_off(guest, &migration, target, instance, settings).await;
                }
                Event::Fact(_, Fact::Ended { migration: of, report }) if of == migration => match report {
                    Report::Source(report) => source_report = Some(report),
                    Report::Target { resume_us: took } => resume_us = Some(took),
                    Report::Failed { .. } => {}
                },
                Event::Fact(_, Fact::Gone { instance, .. }) => gone.push(instance),
                Event::NodeEnded(node) => self.mourn(guest, &migration, &node).await,
                Event::Agreed(..) | Event::Fact(..) => {}
            }
            let Some(attempt) = self.ledger.get(guest).and_then(|ownership| ownership.attempt.as_ref())
            else {
                continue;
            };
            let target_lives = self.nodes.get(target).is_some_and(|node| !node.ended);
            match (&attempt.phase, source_report, resume_us) {
                (Phase::Failed { reason }, ..) => {
                    let swept = accepted.is_none_or(|instance| gone.contains(&instance));
                    if swept || !target_lives {
                        return Ok(Moved::Failed(reason.clone()));
                    }
                }
                (Phase::Succeeded, Some(measured), Some(resume_us))
                    if source.is_some_and(|instance| gone.contains(&instance)) =>
                {
                    return Ok(Moved::Succeeded { source: measured, resume_us });
                }
                _ => {}
            }
        }
    }

    async fn begin(
        &mut self,
        guest: &GuestName,
        migration: &MigrationId,
        target: &NodeName,
    ) -> Result<(), ClusterError> {
        self.agree(guest, Entry::Request { migration: migration.clone() }).await?;
        let start = Entry::Start { migration: migration.clone(), target: target.clone() };
        if let Err(refused) = self.agree(guest, start).await {
            let reason = refused.to_string();
            self.agree(guest, Entry::End { migration: migration.clone(), side: Side::Control, reason })
                .await?;
            return Err(refused);
        }
        if let Some((ownership, owner)) = self.ledger.get(guest).and_then(|held| Some((held, held.owner()?)))
        {
            let prepare = Order::Prepare {
                migration: migration.clone(),
                guest: guest.clone(),
                source: owner.node.clone(),
                epoch: ownership.epoch,
                memory_bytes: self.memory.get(guest).copied().unwrap_or(0),
            };
            self.order(target, &prepare).await;
        }
        Ok(())
    }

    async fn send_off(
        &mut self,
        guest: &GuestName,
        migration: &MigrationId,
        target: &NodeName,
        token: InstanceId,
        settings: Settings,
    ) {
        let held = self.ledger.get(guest).and_then(|held| Some((held, held.owner()?.node.clone())));
        let (Some((ownership, source)), Some(node)) = (held, self.nodes.get(target)) else { return };
        let order = Order::Migrate {
            migration: migration.clone(),
            guest: guest.clone(),
            target: target.clone(),
            address: node.address,
            token,
            epoch: ownership.epoch,
            settings,
        };
        self.order(&source, &order).await;
    }

    /// A node process has died: what it was part of ends, unless the guest was handed over already.
    async fn mourn(&mut self, guest: &GuestName, migration: &MigrationId, node: &NodeName) {
        let is_source =
            self.ledger.get(guest).and_then(Ownership::owner).is_some_and(|owner| owner.node == *node);
        // With its process the node's session and token are gone: it has let go, as if it had said so itself.
        let side = if is_source { Side::Source } else { Side::Target };
        let reason = format!("the process of node {node} has ended");
        // Refused after a hand-over, and then the target decides.
        let _ = self.agree(guest, Entry::End { migration: migration.clone(), side, reason }).await;
    }
}
