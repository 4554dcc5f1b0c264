//! Logs in files: read while they grow, of voters that start late, fall behind, lie, and rename.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::super::{Applied, Ledger};
use super::script::{Script, join, limits, node};

/// Audit logs of voters of the same entries, in a folder of their own.
struct Logs {
    dir: tempfile::TempDir,
    entries: Vec<Applied>,
}

impl Logs {
    /// Twenty entries, with an index here and there that has none.
    fn new() -> Self {
        let mut script = Script::new(&[("a", 8), ("b", 8), ("c", 8)], &["a", "b"]);
        for count in 0.. {
            if script.all.len() == 20 {
                break;
            }
            assert!(script.say(limits(count, 2, None)));
        }
        Self { dir: tempfile::tempdir().expect("folder"), entries: script.all }
    }

    fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ledger(&self, names: &[&str]) -> Ledger {
        Ledger::new(names.iter().map(|name| (node(name), self.state(name))).collect())
    }

    /// The line about the entry at this place, as a voter writes it that had everything before it.
    fn line(&self, at: usize) -> String {
        let after = at.checked_sub(1).map_or(0, |before| self.entries[before].index);
        line(&self.entries[at], after)
    }

    /// A voter writes these down.
    fn write(&self, name: &str, places: impl IntoIterator<Item = usize>) {
        let text: String = places.into_iter().map(|at| self.line(at)).collect();
        append(&self.state(name), &text);
    }

    /// What a ledger gives out now, as places.
    fn poll(&self, ledger: &mut Ledger) -> Vec<usize> {
        let new = ledger.poll().expect("no finding");
        let place = |applied: &Applied| self.entries.iter().position(|entry| entry.index == applied.index);
        new.iter().map(|applied| place(applied).expect("an entry")).collect()
    }
}

fn line(entry: &Applied, after: u64) -> String {
    format!(
        "{{\"index\":{},\"after\":{after},\"time_ms\":{},\"applied_ms\":{},\"request\":{},\"command\":{},\"refused\":{}}}\n",
        entry.index,
        entry.time_ms,
        entry.applied_ms,
        serde_json::to_string(&entry.request).expect("JSON"),
        serde_json::to_string(&entry.command).expect("JSON"),
        serde_json::to_string(&entry.refused).expect("JSON")
    )
}

fn append(state: &Path, text: &str) {
    fs::create_dir_all(state.join("audit")).expect("folder");
    let mut log = OpenOptions::new().create(true).append(true).open(state.join("audit/log")).expect("opens");
    log.write_all(text.as_bytes()).expect("writes");
}

/// Whatever is asked next, the answer is the same finding.
fn finding(ledger: &mut Ledger) -> String {
    let found = ledger.poll().expect_err("a finding");
    assert_eq!(ledger.poll().expect_err("still"), found);
    assert_eq!(ledger.judge().expect_err("and at the end"), found);
    found
}

pub(super) fn entries_come_once_and_in_order_whoever_writes_first() {
    let logs = Logs::new();
    let mut ledger = logs.ledger(&["a", "b", "c"]);
    assert_eq!(logs.poll(&mut ledger), [0; 0], "nobody has begun");
    logs.write("a", 0..3);
    assert_eq!(logs.poll(&mut ledger), [0, 1, 2]);
    logs.write("b", 0..5);
    assert_eq!(logs.poll(&mut ledger), [3, 4]);
    // One that came late knows the first entries from a snapshot.
    let snapshot = logs.entries[5].index;
    append(&logs.state("c"), &format!("{{\"gap\":{{\"after\":0,\"before\":{}}}}}\n", logs.entries[6].index));
    append(&logs.state("c"), &line(&logs.entries[6], snapshot));
    assert_eq!(logs.poll(&mut ledger), [0; 0], "what is before it is in nobody's log yet");
    let hole = ledger.judge().expect_err("a hole");
    assert!(hole.contains("a hole") && hole.contains(&snapshot.to_string()), "{hole}");
    logs.write("a", 3..20);
    assert_eq!(logs.poll(&mut ledger), (5..20).collect::<Vec<_>>());
    logs.write("b", 5..20);
    assert_eq!(logs.poll(&mut ledger), [0; 0], "known already");
    assert_eq!(ledger.all(), ledger.all().to_vec());
    assert_eq!(ledger.judge().expect("whole").entries, 20);
}

pub(super) fn a_torn_line_is_waited_for_and_may_become_another() {
    let logs = Logs::new();
    let mut ledger = logs.ledger(&["a"]);
    logs.write("a", 0..2);
    let torn = &logs.line(2)[..40];
    append(&logs.state("a"), torn);
    assert_eq!(logs.poll(&mut ledger), [0, 1]);
    // The voter dies, and cuts it off when it starts.
    let path = logs.state("a").join("audit/log");
    let whole = fs::metadata(&path).expect("there").len() - torn.len() as u64;
    OpenOptions::new().write(true).open(&path).expect("opens").set_len(whole).expect("cuts");
    logs.write("a", 2..4);
    assert_eq!(logs.poll(&mut ledger), [2, 3]);
}

pub(super) fn renamed_files_are_followed() {
    let logs = Logs::new();
    let audit = logs.state("a").join("audit");
    let rotate = || {
        for at in (0..4).rev() {
            let name = |at: usize| if at == 0 { "log".to_owned() } else { format!("log.{at}") };
            let _ = fs::rename(audit.join(name(at)), audit.join(name(at + 1)));
        }
    };
    let mut ledger = logs.ledger(&["a"]);
    for at in 0..20 {
        // Before, between and after the looks; more than once between two.
        if at % 3 == 0 {
            logs.write("a", [at]);
            rotate();
        } else {
            logs.write("a", [at]);
        }
        if at % 4 == 2 {
            logs.poll(&mut ledger);
        }
    }
    logs.poll(&mut ledger);
    assert_eq!(ledger.all().len(), 20);
    // Whoever comes late begins with the oldest file that is kept, and says that there is a hole.
    let mut late = logs.ledger(&["a"]);
    assert_eq!(logs.poll(&mut late), [0; 0]);
    assert!(late.judge().expect_err("a hole").contains("a hole"));
}

pub(super) fn voters_that_disagree_are_found() {
    let alter = |logs: &Logs, change: fn(&mut Applied)| {
        let mut other = logs.entries[5].clone();
        change(&mut other);
        line(&other, logs.entries[4].index)
    };
    let changes: [fn(&mut Applied); 4] = [
        |entry| entry.command = join("c", 1),
        |entry| entry.refused = Some("no".to_owned()),
        |entry| entry.time_ms += 1,
        |entry| {
            entry.request =
                Some(godwit_domain::registry::RequestKey { id: "r".to_owned(), digest: 1, made: None });
        },
    ];
    for change in changes {
        for is_known in [true, false] {
            let logs = Logs::new();
            let mut ledger = logs.ledger(&["a", "b"]);
            logs.write("a", 0..if is_known { 8 } else { 5 });
            logs.poll(&mut ledger);
            logs.write("a", if is_known { 8 } else { 5 }..10);
            logs.write("b", 0..5);
            append(&logs.state("b"), &alter(&logs, change));
            let found = finding(&mut ledger);
            assert!(found.contains("disagree about entry"), "{found}");
        }
    }
    // The same entries, and when each has applied them, are nobody's quarrel.
    let logs = Logs::new();
    let mut ledger = logs.ledger(&["a", "b"]);
    logs.write("a", 0..6);
    logs.write("b", 0..5);
    append(&logs.state("b"), &alter(&logs, |entry| entry.applied_ms += 9));
    assert_eq!(logs.poll(&mut ledger).len(), 6);
}

pub(super) fn an_entry_that_others_do_not_have_is_found() {
    for is_first in [true, false] {
        let logs = Logs::new();
        let mut ledger = logs.ledger(&["a", "b"]);
        // To `b` there was nothing between the entries around the sixth.
        logs.write("b", 0..5);
        append(&logs.state("b"), &line(&logs.entries[6], logs.entries[4].index));
        if !is_first {
            logs.poll(&mut ledger);
        }
        logs.write("a", 0..8);
        let found = finding(&mut ledger);
        assert!(found.contains("others have"), "{found}");
    }
}

pub(super) fn a_line_twice_and_a_line_that_is_none_are_found() {
    for (wrong, words) in [
        (Logs::new().line(1), "an entry stands behind entry"),
        ("{\"index\":99}\n".to_owned(), "missing field"),
        ("nonsense\n".to_owned(), "nonsense"),
        ("{\"gap\":7}\n".to_owned(), "gap"),
    ] {
        let logs = Logs::new();
        let mut ledger = logs.ledger(&["a"]);
        logs.write("a", 0..4);
        append(&logs.state("a"), &wrong);
        let found = finding(&mut ledger);
        assert!(found.contains(words) && found.contains("audit log of a"), "{found}");
    }
}
