//! Answers for people.
//!
//! ```text
//!   a list   ──▶ one table, a line each          nodes, guests, migrations; wide with all that a row holds
//!   objects  ──▶ one table, as the node has it   whatever manifests describe
//!   one thing ─▶ a table of names and values, then a table for each list in it
//!   units        counts as people read them: 1.5 GiB, 12.3 s, 2026-07-01T12:00:00.000Z
//! ```
//!
//! Always true: nothing that an answer holds is left out (of a list, in its wide form); what is not
//! known stands as `-`; times are UTC.

mod control;
mod guests;
mod migrations;
mod nodes;
mod objects;
mod outlook;
mod progress;
pub mod units;
mod verdicts;

use std::collections::BTreeMap;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use godwit_wire::admin::Done;

pub use control::{backup, control, member, status};
pub use guests::{guest, guests, stats, verified};
pub use migrations::{migration, migration_explained, migration_line, migrations};
pub use nodes::{drain_line, fenced, node, nodes, stuck};
pub use objects::{Watched, applied, objects};
pub use outlook::expected;
pub use progress::in_short;
pub use verdicts::{explained, verdicts};

/// What was done, with what follows from it.
pub fn done(what: &str, done: &Done) -> String {
    match &done.note {
        None => what.to_owned(),
        Some(note) => format!("{what}: {note}"),
    }
}

/// What stands where there is nothing.
const NOTHING: &str = "-";

/// A value that may be missing.
fn maybe(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

/// Several values in one place.
fn joined(values: impl IntoIterator<Item = impl ToString>) -> String {
    let all: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    if all.is_empty() { NOTHING.to_owned() } else { all.join(", ") }
}

/// Labels, or what a selector asks for.
fn labels(labels: &BTreeMap<String, String>) -> String {
    joined(labels.iter().map(|(key, value)| format!("{key}={value}")))
}

/// A table in the style of this program.
fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// A table with a line for each thing, or a sentence if there is none. Columns of numbers, named by their place, are
/// aligned to the right.
fn list<const N: usize>(
    none: &str,
    head: [&str; N],
    numbers: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    grid(none, &head, numbers, rows.into_iter().map(Vec::from))
}

/// The same, where only whoever calls knows how many columns there are.
fn grid(none: &str, head: &[&str], numbers: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = plain();
    table.set_header(head.to_vec());
    table.add_rows(rows);
    if table.row_count() == 0 {
        return none.to_owned();
    }
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// A table of names and values.
fn facts<'n>(facts: impl IntoIterator<Item = (&'n str, String)>) -> String {
    let mut table = plain();
    for (name, value) in facts {
        table.add_row([Cell::new(name), Cell::new(value)]);
    }
    table.to_string()
}

/// Tables, one after another, each of the later ones under its title; what is empty is left out.
fn sections<'t>(first: String, others: impl IntoIterator<Item = (&'t str, String)>) -> String {
    let mut text = first;
    for (title, section) in others {
        if !section.is_empty() {
            text.push_str(&format!("\n{title}\n{section}"));
        }
    }
    text
}
