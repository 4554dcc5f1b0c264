//! What the kernel was asked: after the last write to the log, before the word that it is durable, a sync.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use common::{entry, hard, identity};
use godwit_control::sled_disk::SledFolder;
use godwit_control::storage::DiskSource;

const CHILD: &str = "GODWIT_SYNC_CHILD";
const WORD: &str = "durable:";
const WORDS: usize = 30;

/// Not a test by itself: what is watched.
#[test]
fn child_that_appends_and_says_so() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let mut disk = SledFolder::new(folder, identity(1)).open().expect("opens");
    disk.load().expect("loads");
    for index in 1..=WORDS as u64 {
        disk.append(&[entry(1, index, 9000)], &hard(1, 1, 0)).expect("appends");
        disk.sync().expect("syncs");
        eprintln!("{WORD} {index}");
    }
}

/// One watched call: who, its name, the rest of its line; `done` if it has returned.
struct Call<'t> {
    name: &'t str,
    rest: &'t str,
    begun: usize,
    done: usize,
}

/// The calls of a trace, in order of their return. A call that another thread interrupted stands on two lines.
fn calls(trace: &str) -> Vec<Call<'_>> {
    let mut open = BTreeMap::new();
    let mut calls = Vec::new();
    for (line_number, line) in trace.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if rest.starts_with("<... ") {
            if let Some((name, rest, begun)) = open.remove(thread) {
                calls.push(Call { name, rest, begun, done: line_number });
            }
        } else if let Some((name, rest)) = rest.split_once('(') {
            if rest.ends_with("<unfinished ...>") {
                open.insert(thread, (name, rest, line_number));
            } else {
                calls.push(Call { name, rest, begun: line_number, done: line_number });
            }
        }
    }
    calls
}

#[test]
fn nothing_is_called_durable_before_its_sync() {
    let dir = tempfile::tempdir().expect("a folder");
    let trace = dir.path().join("trace");
    let watched = ["-e", "trace=pwrite64,write,sync_file_range,fdatasync,fsync"];
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-s", "80"]).args(watched).arg("-o").arg(&trace);
    strace.arg(std::env::current_exe().expect("itself"));
    strace.args(["--exact", "child_that_appends_and_says_so", "--nocapture"]);
    strace.env(CHILD, dir.path().join("log"));
    match strace.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            return common::skip(&format!("strace failed: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Err(error) => return common::skip(&format!("strace does not run: {error}")),
    }
    let trace = fs::read_to_string(trace).expect("a trace");
    let calls = calls(&trace);
    let of_log = |call: &&Call<'_>| call.rest.contains("/log/db>");
    let mut words = 0;
    for word in calls.iter().filter(|call| call.name == "write" && call.rest.contains(WORD)) {
        words += 1;
        let before = || calls.iter().filter(|call| call.done < word.begun).filter(of_log);
        let written = before().filter(|call| call.name == "pwrite64").map(|call| call.done).max();
        let synced = before().filter(|call| call.name == "fdatasync").map(|call| call.begun).max();
        assert!(
            written.is_some() && synced > written,
            "word {words}: written {written:?}, synced {synced:?}"
        );
    }
    assert_eq!(words, WORDS);
    let folder_synced = calls.iter().any(|call| call.name == "fsync" && call.rest.contains("/log>"));
    assert!(folder_synced, "the folder was not synced");
}
