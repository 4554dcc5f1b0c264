//! Written once, in order, whole; and what is missing is said.

use std::fs;
use std::path::Path;

use godwit_control::StateMachine;
use godwit_domain::registry::{Node, Registry, Stamped};
use godwit_domain::{NodeName, registry::BootId};
use serde_json::Value;

use super::*;
use crate::replica::Replica;

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

/// An entry that is applied, or (`FenceSeen` of nobody) refused.
fn entry(index: u64) -> Vec<u8> {
    let address = core::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let command = match index.is_multiple_of(3) {
        true => Command::FenceSeen { node: name("nobody") },
        false => {
            let boot = BootId(u128::MAX - u128::from(index));
            Command::Join { name: name("a"), node: Node::new(address, address, boot, 1 << 30) }
        }
    };
    let request = index.is_multiple_of(2).then(|| RequestKey {
        id: format!("r{index}"),
        digest: u64::MAX - index,
        made: None,
    });
    log::encode_entry(&Stamped { time_ms: 1000 + index, request, command }).expect("encodes")
}

fn voter(folder: &Path) -> Replica {
    Replica::new(Arc::default()).audited(Audit::start(folder.to_owned()).expect("starts"))
}

fn apply(replica: &mut Replica, indexes: impl IntoIterator<Item = u64>) {
    for index in indexes {
        let _ = replica.apply(index, &entry(index));
    }
}

fn lines_of(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Indexes of the lines, and gaps as pairs.
fn outline(folder: &Path) -> Vec<String> {
    let at = |line: &Value| match line.get("gap") {
        Some(gap) => format!("{}..{}", gap["after"], gap["before"]),
        None => line["index"].to_string(),
    };
    let files = ["log.4", "log.3", "log.2", "log.1", "log"];
    files.iter().flat_map(|file| lines_of(&folder.join(file))).map(|line| at(&line)).collect()
}

fn numbers(from: u64, to: u64) -> Vec<String> {
    (from..=to).map(|index| index.to_string()).collect()
}

#[test]
fn a_line_says_what_was_applied_and_how_it_came_out() {
    let dir = tempfile::tempdir().expect("folder");
    let folder = dir.path().join("audit");
    let began = wall_clock_ms();
    apply(&mut voter(&folder), [2, 3, 4, 6]);
    let lines = lines_of(&folder.join("log"));
    let mut registry = Registry::default();
    for (line, index) in lines.iter().zip([2, 3, 4, 6]) {
        let stamped = log::decode_entry(&entry(index)).expect("decodes");
        assert_eq!((&line["index"], &line["time_ms"]), (&index.into(), &(1000 + index).into()));
        assert!(line["applied_ms"].as_u64().is_some_and(|at| (began..=wall_clock_ms()).contains(&at)));
        // As text: a boot's number is wider than what a JSON value holds.
        let text = fs::read_to_string(folder.join("log")).expect("reads");
        let command = serde_json::to_string(&stamped.command).expect("JSON");
        assert!(text.lines().any(|text| text.contains(&command)), "{command} is not in {text}");
        assert_eq!(line["request"], serde_json::to_value(&stamped.request).expect("JSON"));
        let refused = registry.apply(stamped).err().map(|refusal| refusal.to_string());
        assert_eq!(line["refused"], serde_json::to_value(&refused).expect("JSON"));
    }
    assert_eq!(lines.len(), 4);
    assert!(lines[1]["refused"].is_string() && lines[2]["refused"].is_null(), "both are met");
    let afters: Vec<_> = lines.iter().map(|line| line["after"].as_u64()).collect();
    assert_eq!(afters, [0, 2, 3, 4].map(Some), "entries without a command are no gap");
    assert_eq!(outline(&folder), ["2", "3", "4", "6"]);
}

#[test]
fn what_is_applied_again_after_a_restart_is_not_written_again() {
    let dir = tempfile::tempdir().expect("folder");
    apply(&mut voter(dir.path()), 1..=5);
    apply(&mut voter(dir.path()), 1..=7);
    let mut third = voter(dir.path());
    third.restore(6, &Replica::new(Arc::default()).snapshot()).expect("restores");
    apply(&mut third, 7..=9);
    drop(third);
    assert_eq!(outline(dir.path()), numbers(1, 9));
}

#[test]
fn what_came_in_a_snapshot_is_a_gap() {
    let dir = tempfile::tempdir().expect("folder");
    let mut replica = voter(dir.path());
    apply(&mut replica, 1..=3);
    replica.restore(10, &Replica::new(Arc::default()).snapshot()).expect("restores");
    apply(&mut replica, [12, 13]);
    drop(replica);
    assert_eq!(outline(dir.path()), ["1", "2", "3", "3..12", "12", "13"]);
    let mut new = voter(&dir.path().join("new"));
    new.restore(10, &Replica::new(Arc::default()).snapshot()).expect("restores");
    apply(&mut new, [11]);
    drop(new);
    assert_eq!(outline(&dir.path().join("new")), ["0..11", "11"], "also where nothing was written before");
}

#[test]
fn a_torn_end_is_cut_off_and_written_again() {
    let dir = tempfile::tempdir().expect("folder");
    apply(&mut voter(dir.path()), 1..=4);
    let path = dir.path().join("log");
    let whole = fs::read(&path).expect("reads");
    let last_line = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').expect("lines") + 1;
    for cut in [last_line + 1, last_line + 30, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).expect("writes");
        apply(&mut voter(dir.path()), 1..=5);
        assert_eq!(outline(dir.path()), numbers(1, 5), "cut at {cut}");
    }
    // Torn just behind a gap's own line: the gap is not said twice.
    fs::write(&path, "{\"gap\":{\"after\":0,\"before\":4}}\n{\"index\":4,").expect("writes");
    let mut replica = voter(dir.path());
    replica.restore(2, &Replica::new(Arc::default()).snapshot()).expect("restores");
    apply(&mut replica, 3..=5);
    drop(replica);
    assert_eq!(outline(dir.path()), ["0..4", "4", "5"]);
}

#[test]
fn a_file_that_is_none_is_left_alone_and_the_voter_goes_on() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("log");
    fs::write(&path, "shopping list\n").expect("writes");
    let mut replica = voter(dir.path());
    apply(&mut replica, 1..=2);
    assert_eq!(replica.registry().nodes.len(), 1);
    drop(replica);
    assert_eq!(fs::read_to_string(&path).expect("reads"), "shopping list\n");
    // Moved away, it goes on.
    let mut replica = voter(dir.path());
    fs::remove_file(&path).expect("removes");
    apply(&mut replica, 1..=2);
    drop(replica);
    assert_eq!(outline(dir.path()), numbers(1, 2));
}

/// So many lines of about 20 bytes, in batches of two.
fn append(book: &mut Book, indexes: std::ops::RangeInclusive<u64>) {
    for first in indexes.clone().step_by(2) {
        let batch = (first..=*indexes.end()).take(2);
        book.append(batch.map(|index| (index, index - 1, format!("{{\"index\":{index}}}").into_bytes())));
    }
}

#[test]
fn a_full_file_is_begun_anew_and_four_before_it_are_kept() {
    let dir = tempfile::tempdir().expect("folder");
    let mut book = Book::of(dir.path(), 100);
    for round in 0..40 {
        append(&mut book, round * 4 + 1..=round * 4 + 4);
        let there = outline(dir.path());
        let first = there.first().and_then(|at| at.parse().ok()).expect("lines");
        assert_eq!(there, numbers(first, round * 4 + 4), "no line twice, none missing");
        if round.is_multiple_of(7) {
            book = Book::of(dir.path(), 100);
            assert_eq!(book.last(), round * 4 + 4);
        }
    }
    let mut files: Vec<_> =
        fs::read_dir(dir.path()).expect("reads").map(|file| file.expect("one").file_name()).collect();
    files.sort();
    assert_eq!(files, ["log", "log.1", "log.2", "log.3", "log.4"]);
    // Renamed and not begun anew: the process ended in between.
    fs::rename(dir.path().join("log"), dir.path().join("log.1")).expect("renames");
    assert_eq!(Book::of(dir.path(), 100).last(), 160);
}

#[test]
fn a_full_disk_leaves_a_gap_and_no_part_of_a_line() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let dir = tempfile::tempdir().expect("folder");
    let mut book = Book::of(dir.path(), 1 << 20);
    append(&mut book, 1..=4);
    book.fill_the_disk().expect("fills");
    append(&mut book, 5..=6);
    // Its file is opened anew, and this time there is room.
    append(&mut book, 7..=8);
    assert_eq!(outline(dir.path()), ["1", "2", "3", "4", "4..7", "7", "8"]);
}

#[test]
fn a_folder_that_can_not_be_made_holds_up_nobody() {
    let dir = tempfile::tempdir().expect("folder");
    let folder = dir.path().join("audit");
    fs::write(&folder, "in the way").expect("writes");
    let mut replica = voter(&folder);
    apply(&mut replica, 1..=4);
    assert_eq!(replica.registry().nodes.len(), 1);
    // The queue is empty once the thread was waited for.
    drop(replica);
    fs::remove_file(&folder).expect("removes");
    apply(&mut voter(&folder), 1..=5);
    assert_eq!(outline(&folder), numbers(1, 5), "what is applied again is written after all");
}

#[test]
fn a_queue_without_room_drops_and_the_next_line_says_so() {
    let dir = tempfile::tempdir().expect("folder");
    let mut audit = Audit::start(dir.path().to_owned()).expect("starts");
    audit.note(1, &entry(1), None);
    audit.waiting_bytes.fetch_add(WAITING_BYTES_MAX, Ordering::Relaxed);
    audit.note(2, &entry(2), None);
    audit.note(3, &entry(3), None);
    audit.waiting_bytes.fetch_sub(WAITING_BYTES_MAX, Ordering::Relaxed);
    audit.note(4, &entry(4), None);
    drop(audit);
    assert_eq!(outline(dir.path()), ["1", "1..4", "4"]);
}
