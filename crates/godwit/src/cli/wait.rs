//! A migration until it is over: `migrate --wait` and `migration watch`.
//!
//! Always true: whoever stops waiting leaves the migration going, and is told so, with how to end it.

use godwit_admin::render;
use godwit_domain::{MigrationId, NodeName};
use godwit_wire::admin::{Act, MigrationDetail};
use indicatif::ProgressBar;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::asking::{Asking, Changing, block_on};
use super::failure::Failure;
use super::follow::Sight;
use super::live::Live;
use super::talk;

/// The exit code of a command that was interrupted, as shells have it.
pub(super) const INTERRUPTED: u8 = 130;

/// Asks for a migration and waits until it is over.
pub(super) fn migrate(changing: &Changing, act: Act) -> Result<(), Failure> {
    let asking = &changing.asking;
    let id = changing.ids()?.next();
    let (last, detail) = block_on(async {
        // From here on: an interrupt between the request and its answer must not end us without a word.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut client = asking.connect().await?;
        let asked = tokio::select! {
            asked = client.ask_under(Some(id.clone()), act, |_| {}) => {
                asked.map_err(|error| changing.refuse(error.problem(), &id))?
            }
            _ = interrupt.recv() => {
                talk(&format!(
                    "interrupted: the migration may have been asked for; `{}` shows it, and asked for again with \
                     --request-id {id} it is the same",
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
    let mut live = Live::start();
    show(&mut live, asked);
    let sight = sight(asking, name);
    let ended = tokio::select! {
        // It was in sight a moment ago: whoever answered has agreed on it.
        ended = sight.follow(Some(Instant::now()), is_over, |_, detail| show(&mut live, detail)) => Some(ended),
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

fn sight<'a>(asking: &'a Asking, migration: &MigrationId) -> Sight<'a> {
    Sight {
        asking,
        act: Act::MigrationWatch { migration: migration.clone() },
        again: format!("migration watch {migration}"),
        goes_on: "the migration goes on",
    }
}

fn is_over(detail: &MigrationDetail) -> bool {
    detail.over
}

/// Prints each change of a migration, one a line, until it is over.
pub(super) fn watch(asking: &Asking, migration: &MigrationId) -> Result<(), Failure> {
    let mut last = String::new();
    sight(asking, migration).print(is_over, |value, detail| {
        let line = asking.one_of_several(value, || render::migration_line(detail));
        if line == last {
            return Vec::new();
        }
        last.clone_from(&line);
        vec![line]
    })
}

fn show(live: &mut Live, detail: &MigrationDetail) {
    let line = || render::migration_line(&MigrationDetail { progress: None, ..detail.clone() });
    // A copy may have hundreds of rounds: what differs in its numbers alone is no news in a log.
    let news = |line: &str| line.chars().filter(|c| !c.is_ascii_digit()).collect();
    live.show(line, news, |bar| show_bar(bar, detail));
}

fn show_bar(bar: &ProgressBar, detail: &MigrationDetail) {
    let row = &detail.row;
    let place = |node: Option<&NodeName>| node.map_or("?", |node| node.as_str()).to_owned();
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
