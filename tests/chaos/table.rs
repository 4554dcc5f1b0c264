//! What a run was like, for people: faults by kind and stage, migrations by outcome, what was compared.

use std::collections::BTreeMap;
use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use godwit_domain::{MigrationId, NodeName};

use crate::courses::{Course, Stage};
use crate::director::Fault;
use crate::faults::Kind;

/// How many faults befell migrations in each stage.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Struck {
    /// By kind and stage: begun while a migration was in it, and in force at some moment of it.
    by: BTreeMap<(Kind, Stage), (u32, u32)>,
    all: BTreeMap<Kind, u32>,
}

impl Struck {
    /// Counts. A fault befalls a migration if it is its source's, its target's or the leader's.
    pub(crate) fn count(
        faults: &[Fault],
        courses: &BTreeMap<MigrationId, Course>,
        leaders: &[(u64, NodeName)],
    ) -> Self {
        let mut struck = Self::default();
        for fault in faults {
            *struck.all.entry(fault.kind).or_insert(0) += 1;
            let led = leaders.iter().rev().find(|(since, _)| *since <= fault.begun_ns);
            let leads = led.is_some_and(|(_, leader)| *leader == fault.node);
            let concerned = courses
                .values()
                .filter(|course| leads || [&course.source, &course.target].contains(&&fault.node));
            let spans: Vec<_> = concerned.flat_map(|course| &course.spans).collect();
            for stage in Stage::ALL {
                let of = || spans.iter().filter(|(of, ..)| *of == stage);
                let begun = of().any(|(_, from, until)| (*from..*until).contains(&fault.begun_ns));
                let in_force =
                    of().any(|(_, from, until)| *from < fault.undone_ns && fault.begun_ns < *until);
                let cell = struck.by.entry((fault.kind, stage)).or_insert((0, 0));
                cell.0 += u32::from(begun);
                cell.1 += u32::from(in_force);
            }
        }
        struck
    }

    /// Faults.
    pub(crate) fn faults(&self) -> u32 {
        self.all.values().sum()
    }

    /// Faults that began in this stage.
    pub(crate) fn begun_in(&self, stage: Stage) -> u32 {
        self.by.iter().filter(|((_, of), _)| *of == stage).map(|(_, (begun, _))| begun).sum()
    }

    /// Begun in each stage, and in force.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        let mut head = vec!["fault".to_owned(), "in all".to_owned()];
        head.extend(Stage::ALL.map(|stage| format!("in {}", stage.name())));
        table.set_header(head);
        let mut sums = [(0, 0); Stage::ALL.len()];
        for (kind, all) in &self.all {
            let mut row = vec![kind.name().to_owned(), all.to_string()];
            for (stage, sum) in Stage::ALL.into_iter().zip(&mut sums) {
                let (begun, in_force) = self.by.get(&(*kind, stage)).copied().unwrap_or_default();
                *sum = (sum.0 + begun, sum.1 + in_force);
                row.push(format!("{begun} ({in_force})"));
            }
            table.add_row(row);
        }
        let mut last = vec!["all".to_owned(), self.faults().to_string()];
        last.extend(sums.map(|(begun, in_force)| format!("{begun} ({in_force})")));
        table.add_row(last);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!(
            "{table}\n(begun while a migration of that host, or any of the leader's, was in that phase; in brackets: in force)\n"
        )
    }
}

/// Migrations by manner and outcome.
pub(crate) fn outcomes(courses: &BTreeMap<MigrationId, Course>) -> String {
    let mut counts: BTreeMap<(&str, String), u32> = BTreeMap::new();
    for course in courses.values() {
        let (end, reason) = course.end.clone().unwrap_or(("not over", String::new()));
        let stages: Vec<_> = course.spans.iter().map(|(stage, ..)| *stage).collect();
        let why = match end {
            "Succeeded" if stages.contains(&Stage::PostCopy) => "by post-copy".to_owned(),
            "Succeeded" => "by stop and copy".to_owned(),
            _ => without_names(&reason),
        };
        *counts.entry((end, why)).or_insert(0) += 1;
    }
    let mut told = String::new();
    for ((end, why), count) in counts {
        let _ = writeln!(told, "  {count:>5}  {end} {why}");
    }
    told
}

/// A reason without what differs each time.
fn without_names(reason: &str) -> String {
    let reason = reason.split([':', ';', '(']).next().unwrap_or_default();
    let word = |word: &str| {
        let differs = word.starts_with("node-") || word.chars().any(|letter| letter.is_ascii_digit());
        if differs { "…".to_owned() } else { word.to_owned() }
    };
    reason.split(' ').map(word).collect::<Vec<_>>().join(" ")
}
