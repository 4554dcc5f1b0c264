//! Objects of manifests for people: tables whose columns the node has chosen, and what was done with an object.
//!
//! ```text
//!   Objects ─▶ a table                 get
//!          └─▶ Watched ─▶ rows that are new, in columns that only ever get wider     get -w
//! ```

use std::collections::BTreeMap;

use godwit_wire::admin::{Applied, Objects};

use super::grid;

/// `get`: a table of objects; wide with every column that the node gives, else with those that it thinks enough.
pub fn objects(objects: &Objects, wide: bool) -> String {
    let columns = columns(objects, wide);
    let head: Vec<&str> = objects.head.iter().take(columns).map(String::as_str).collect();
    let rows = objects.rows.iter().map(|row| (0..columns).map(|at| cell(row, at)).collect());
    grid("", &head, &[], rows)
}

fn columns(objects: &Objects, wide: bool) -> usize {
    if wide { objects.head.len() } else { objects.head.len().min(objects.narrow) }
}

/// A row that is shorter than its head is filled up.
fn cell(row: &[String], at: usize) -> String {
    row.get(at).cloned().unwrap_or_default()
}

/// What was done, as `kind/name created`.
pub fn applied(applied: &Applied) -> String {
    let Applied { kind, name, done, dry_run, notes: _ } = applied;
    let dry = if *dry_run { " (dry run)" } else { "" };
    format!("{}/{name} {done}{dry}", kind.to_lowercase())
}

/// Rows that were shown, so that only news are shown again.
#[derive(Debug, Default)]
pub struct Watched {
    rows: BTreeMap<String, Vec<String>>,
    widths: Vec<usize>,
    head_shown: bool,
}

impl Watched {
    /// The lines of what has changed, below the heads if these were not shown yet.
    pub fn news(&mut self, objects: &Objects, wide: bool) -> Vec<String> {
        let columns = columns(objects, wide);
        self.widths.resize(columns, 0);
        let mut news: Vec<Vec<String>> = Vec::new();
        for (item, row) in objects.items.iter().zip(&objects.rows) {
            let row: Vec<String> = (0..columns).map(|at| cell(row, at)).collect();
            let metadata = item.get("metadata");
            let word = |key| metadata.and_then(|metadata| metadata.get(key)?.as_str()).unwrap_or_default();
            let name = format!("{}/{}", word("namespace"), word("name"));
            if self.rows.get(&name) != Some(&row) {
                news.push(row.clone());
                self.rows.insert(name, row);
            }
        }
        if !news.is_empty() && !self.head_shown {
            news.insert(0, objects.head.iter().take(columns).cloned().collect());
            self.head_shown = true;
        }
        for row in &news {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        news.iter().map(|row| self.line(row)).collect()
    }

    fn line(&self, row: &[String]) -> String {
        let cells: Vec<String> = row
            .iter()
            .zip(&self.widths)
            .map(|(cell, width)| format!("{cell:width$}", width = *width))
            .collect();
        cells.join("   ").trim_end().to_owned()
    }
}
