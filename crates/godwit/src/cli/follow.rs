//! A migration until it is over: `migrate --wait` and `migration watch`.
//!
//! ```text
//!   connect ─▶ migration-watch ─▶ change, change, … ─▶ over
//!      ▲            │ the node or the leader that was asked is gone: only looked, so another look does no harm
//!      └────────────┘ as long as it was not out of sight for too long
//! ```
//!
//! Always true: nothing here decides how the migration goes; whoever stops waiting leaves it going, and is told so.

use std::io::IsTerminal;
use std::time::Duration;

use godwit_admin::client::read_as;
use godwit_admin::{AskError, render};
use godwit_domain::MigrationId;
use godwit_wire::admin::{Act, Code, MigrationDetail, Problem};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::asking::{Asking, block_on};
use super::failure::Failure;
use super::{Output, print, talk};

/// How long a migration may be out of sight: an election takes a few seconds, a node's restart a few more.
const BLIND_MAX: Duration = Duration::from_secs(60);
/// Time between two looks for somebody who can be asked.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The exit code of a command that was interrupted, as shells have it.
const INTERRUPTED: u8 = 130;

/// Asks for a migration and waits until it is over.
pub(super) fn migrate(asking: &Asking, act: Act) -> Result<(), Failure> {
    let (last, detail) = block_on(async {
        // From here on: an interrupt between the request and its answer must not end us without a word.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut client = asking.connect().await?;
        let asked = tokio::select! {
            asked = client.ask(act, |_| {}) => asked.map_err(|error| asking.no_answer(&error))?,
            _ = interrupt.recv() => {
                talk(&format!(
                    "interrupted: the migration may have been asked for; `{}` shows it",
                    asking.command("migration list")
                ));
                return Err(Failure::Told(INTERRUPTED));
            }
        };
        drop(client);
        let asked: MigrationDetail = asking.read(&asked)?;
        Box::pin(wait(asking, &asked, &mut interrupt)).await
    })?;
    asking.print(&last, render::migration)?;
    if detail.row.phase == "Succeeded" {
        return Ok(());
    }
    let why = detail.row.detail.as_deref().unwrap_or("no reason is known");
    Err(Failure::failed(format!("migration {} {}: {why}", detail.row.name, detail.row.phase)))
}

/// The end of a migration that was asked for, as it came and as it is read.
async fn wait(
    asking: &Asking,
    asked: &MigrationDetail,
    interrupt: &mut Signal,
) -> Result<(Value, MigrationDetail), Failure> {
    let name = &asked.row.name;
    let mut live = Live::start(asked);
    let ended = tokio::select! {
        // It was in sight a moment ago: whoever answered has agreed on it.
        ended = follow(asking, name, Some(Instant::now()), |_, detail| live.show(detail)) => Some(ended),
        _ = interrupt.recv() => None,
    };
    drop(live);
    ended.unwrap_or_else(|| {
        talk(&format!(
            "interrupted: migration {name} goes on; `{}` shows it, `{}` ends it",
            asking.command(&format!("migration watch {name}")),
            asking.command(&format!("migration cancel {name}"))
        ));
        Err(Failure::Told(INTERRUPTED))
    })
}

/// Prints each change of a migration, one a line, until it is over.
pub(super) fn watch(asking: &Asking, migration: &MigrationId) -> Result<(), Failure> {
    let line_of = |value: &Value, detail: &MigrationDetail| match asking.output {
        Output::Json => value.to_string(),
        Output::Table => render::migration_line(detail),
    };
    let (tell, told) = oneshot::channel();
    let mut tell = Some(tell);
    let mut last = String::new();
    let show = |value: &Value, detail: &MigrationDetail| {
        let line = line_of(value, detail);
        if line != last {
            if let Err(error) = print(&line) {
                // Nobody reads any more, so nobody is watched for.
                tell.take().map(|tell| tell.send(error));
            }
            last = line;
        }
    };
    block_on(async {
        tokio::select! {
            ended = Box::pin(follow(asking, migration, None, show)) => ended.map(drop),
            Ok(error) = told => Err(error.into()),
        }
    })
}

/// Every change until it is over, the last one included. A migration that was never in sight is not waited for.
async fn follow(
    asking: &Asking,
    migration: &MigrationId,
    mut out_of_sight_since: Option<Instant>,
    mut show: impl FnMut(&Value, &MigrationDetail),
) -> Result<(Value, MigrationDetail), Failure> {
    loop {
        let mut seen = false;
        let looked = look(asking, migration, |value, detail| {
            seen = true;
            show(value, detail);
        });
        let problem = match looked.await {
            Ok((value, detail)) if detail.over => return Ok((value, detail)),
            // The node's last word, and not the migration's: somebody else may know more.
            Ok(_) => AskError::Lost.problem(),
            Err(problem) => problem,
        };
        if seen {
            out_of_sight_since = Some(Instant::now());
        }
        let passes = matches!(problem.code, Code::Unavailable | Code::Unknown);
        let for_long = out_of_sight_since.is_none_or(|since| since.elapsed() > BLIND_MAX);
        if !passes || for_long {
            return Err(asking.refuse(advised(asking, migration, problem)));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// One connection's worth of changes.
async fn look(
    asking: &Asking,
    migration: &MigrationId,
    mut show: impl FnMut(&Value, &MigrationDetail),
) -> Result<(Value, MigrationDetail), Problem> {
    let mut client = asking.try_connect().await.map_err(|error| error.problem())?;
    let mut shown = |value: &Value| {
        let detail = read_as::<MigrationDetail>(value.clone())?;
        show(value, &detail);
        Ok::<_, AskError>(detail)
    };
    let act = Act::MigrationWatch { migration: migration.clone() };
    let on_event = |value| {
        // One that can not be read is passed over: the last line can not be read either then, and that is told.
        let _ = shown(&value);
    };
    let last = client.ask(act, on_event).await.map_err(|error| error.problem())?;
    let detail = shown(&last).map_err(|error| error.problem())?;
    Ok((last, detail))
}

/// What to do about a migration that nobody could be asked about. A node that said no has said what would do.
fn advised(asking: &Asking, migration: &MigrationId, problem: Problem) -> Problem {
    match problem.code {
        Code::Unavailable | Code::Unknown => {
            let again = asking.command(&format!("migration watch {migration}"));
            Problem { try_: format!("`{again}`: the migration goes on; {}", problem.try_), ..problem }
        }
        _ => problem,
    }
}

/// How a migration goes, on stderr: a bar on a terminal, else a line for each phase.
enum Live {
    Bar(ProgressBar),
    Lines(String),
}

impl Live {
    fn start(asked: &MigrationDetail) -> Self {
        let mut live = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix}  {bar:24} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(200));
            Self::Bar(bar)
        } else {
            Self::Lines(String::new())
        };
        live.show(asked);
        live
    }

    fn show(&mut self, detail: &MigrationDetail) {
        match self {
            Self::Bar(bar) => show_bar(bar, detail),
            Self::Lines(last) => {
                let line = render::migration_line(&MigrationDetail { progress: None, ..detail.clone() });
                // A copy may have hundreds of rounds: what differs in its numbers alone is no news in a log.
                let news: String = line.chars().filter(|c| !c.is_ascii_digit()).collect();
                if news != *last {
                    talk(&line);
                    *last = news;
                }
            }
        }
    }
}

fn show_bar(bar: &ProgressBar, detail: &MigrationDetail) {
    let row = &detail.row;
    let place = |node: Option<&godwit_domain::NodeName>| node.map_or("?", |node| node.as_str()).to_owned();
    bar.set_prefix(format!("{} {} → {}", row.guest, place(row.source.as_ref()), place(row.target.as_ref())));
    let phase = row.detail.as_deref().unwrap_or(&row.phase);
    let Some(progress) = detail.progress.as_ref().filter(|_| !detail.over) else {
        bar.set_message(phase.to_owned());
        return;
    };
    let left = progress.left_bytes.saturating_add(progress.dirty_bytes);
    // The first round begins with all of the guest's memory, so the most that was ever left is the whole.
    let whole = bar.length().unwrap_or(0).max(left);
    bar.set_length(whole);
    bar.set_position(whole - left);
    bar.set_message(format!("{phase}, {}", render::in_short(progress)));
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
