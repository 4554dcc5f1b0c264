//! One migration as an operator sees it: asked for, watched, and looked at when it is over.

use std::time::Duration;

use godwit_admin::{AskError, Client, read_as};
use godwit_domain::progress::{AuditReport, Measured, PostCopyReport, SourceReport};
use godwit_domain::{GuestName, Labels, NodeName, Overrides};
use godwit_wire::admin::{Act, Code, MigrationDetail, MoveMode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Cluster, ClusterError, LOOK_INTERVAL, STEP_TIMEOUT};

/// Changes of a migration that may wait to be looked at.
const WATCHED_MAX: usize = 64;

/// How a migration ended.
#[derive(Debug)]
pub enum Moved {
    /// The guest runs at the target.
    Succeeded {
        /// What the source measured.
        source: SourceReport,
        /// From "complete and licensed" to "runs" at the target, in microseconds.
        resume_us: u64,
        /// What the target measured while pages were missing, if it ended as post-copy.
        post_copy: Option<Box<PostCopyReport>>,
        /// What came of comparing both sides afterwards, if that was asked for and was told in time.
        audit: Option<AuditReport>,
    },
    /// It runs where it ran, for this reason.
    Failed(String),
}

/// A migration as it was seen at some moment.
pub type Watched = MigrationDetail;

/// How a guest shall move.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// The move's own settings.
    pub overrides: Overrides,
    /// As the operator says; `None`: pre-copy, and whatever the settings allow at the deadline.
    pub mode: Option<MoveMode>,
}

impl From<Overrides> for How {
    fn from(overrides: Overrides) -> Self {
        Self { overrides, mode: None }
    }
}

impl Cluster {
    /// Moves a guest and waits until it is over. `watch` sees every change that is seen, and may do what it likes.
    pub async fn migrate(
        &mut self,
        guest: &GuestName,
        target: &NodeName,
        how: impl Into<How>,
        limit: Duration,
        mut watch: impl AsyncFnMut(&mut Self, &Watched),
    ) -> Result<Moved, ClusterError> {
        let How { overrides, mode } = how.into();
        let act = Act::Migrate {
            guest: guest.clone(),
            migration: None,
            to: Some(target.clone()),
            selector: Labels::new(),
            overrides,
            mode,
            dry_run: false,
        };
        let asked: MigrationDetail = read_as(self.ask_any(act).await?)?;
        let name = asked.row.name.clone();
        let deadline = Instant::now() + limit;
        let mut last = asked;
        while !last.over || last.permits_held {
            if Instant::now() > deadline {
                return Err(ClusterError::Timeout { what: format!("the end of {name}"), limit });
            }
            let Some(mut changes) = self.watcher(&last).await else {
                tokio::time::sleep(LOOK_INTERVAL).await;
                continue;
            };
            // The stream ends with the migration, or with the node or leader that was asked: then another is.
            while let Ok(Some(change)) = tokio::time::timeout_at(deadline, changes.recv()).await {
                last = change;
                watch(self, &last).await;
            }
        }
        self.outcome(&last, overrides.audit == Some(true)).await
    }

    /// A stream of a migration's changes, from any node that answers.
    async fn watcher(&self, migration: &MigrationDetail) -> Option<mpsc::Receiver<MigrationDetail>> {
        let (changes, seen) = mpsc::channel(WATCHED_MAX);
        let name = migration.row.name.clone();
        for process in self.nodes.values() {
            let Ok(mut client) = Client::connect(&process.socket).await else { continue };
            tokio::spawn(async move {
                let tell = |value| {
                    if let Ok(change) = read_as::<MigrationDetail>(value) {
                        // Whoever is slower than this many changes misses some of them.
                        let _ = changes.try_send(change);
                    }
                };
                let last = client.ask(Act::MigrationWatch { migration: name }, tell).await;
                if let Ok(Ok(last)) = last.map(read_as::<MigrationDetail>) {
                    let _ = changes.send(last).await;
                }
            });
            return Some(seen);
        }
        None
    }

    /// How it ended, once both sides have said what they measured, and, of a stop-and-copy, what the audit found.
    async fn outcome(&self, ended: &MigrationDetail, audited: bool) -> Result<Moved, ClusterError> {
        if ended.row.phase != "Succeeded" {
            let detail = ended.row.detail.clone().unwrap_or_default();
            return Ok(Moved::Failed(detail));
        }
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            match self.migration(&ended.row.name).await {
                Ok(MigrationDetail {
                    measured: Measured { source: Some(source), resume_us: Some(resume_us), post_copy, audit },
                    ..
                }) => {
                    let told = !audited || audit.is_some() || post_copy.is_some();
                    let post_copy = post_copy.map(Box::new);
                    if told || Instant::now() > deadline {
                        return Ok(Moved::Succeeded { source, resume_us, post_copy, audit });
                    }
                }
                Ok(_) => {}
                Err(ClusterError::Ask(AskError::Problem(problem)))
                    if problem.code == Code::Unavailable || problem.code == Code::Unknown => {}
                Err(error) => return Err(error),
            }
            if Instant::now() > deadline {
                let what = format!("the numbers of {}", ended.row.name);
                return Err(ClusterError::Timeout { what, limit: STEP_TIMEOUT });
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}
