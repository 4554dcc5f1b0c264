//! What the releases say and write down can be read by this one: see `tests/support/releases.rs`.

#[path = "../../../tests/support/releases.rs"]
mod releases;
#[path = "../../../tests/support/samples.rs"]
mod samples;

use std::fmt::Debug;

use godwit_domain::registry::Stamped;
use godwit_domain::{Epoch, PAGE_SIZE, PageRun, Round};
use godwit_wire::batch::{Batch, Class, ClassedRun, HEAD_BYTES, Head};
use godwit_wire::handoff::{self, Answer, Command, Outcome, Region, Reply, Request};
use godwit_wire::migration::{self, GREETING_BYTES, Role, SessionId};
use godwit_wire::{backup, codec, log, session};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value that travels as a frame of its own.
fn frame<T: Serialize + DeserializeOwned + Debug + PartialEq>(what: &'static str, cap: usize) {
    let decode = |bytes: &[u8]| {
        let (length, body) = bytes.split_first_chunk().expect("a length");
        assert_eq!(codec::body_length(*length, cap), Ok(body.len()));
        codec::decode_body::<T>(what, body)
    };
    releases::check(what, |value: &T| codec::encode_frame(what, value, cap).expect("fits"), decode);
}

#[test]
fn log_entries_are_read() {
    releases::check::<Stamped, _>(
        "log-entry",
        |entry| log::encode_entry(entry).expect("fits"),
        log::decode_entry,
    );
}

#[test]
fn snapshots_are_read() {
    releases::check(
        "snapshot",
        |registry| log::encode_snapshot(registry).expect("fits"),
        log::decode_snapshot,
    );
}

#[test]
fn backups_are_read() {
    releases::check::<backup::Head, _>(
        "backup",
        |head| backup::encode(head, b"a state").expect("fits"),
        |bytes| backup::decode(bytes).map(|(head, _)| head),
    );
}

#[test]
fn sessions_are_understood() {
    frame::<session::Hello>("hello", session::ASK_BYTES_MAX);
    frame::<session::Welcome>("welcome", session::ASK_BYTES_MAX);
    frame::<session::Push>("push", session::PUSH_BYTES_MAX);
    frame::<session::Ask>("ask", session::ASK_BYTES_MAX);
    frame::<session::Answer>("answer", session::ASK_BYTES_MAX);
    frame::<session::NodeAsk>("node-ask", session::ASK_BYTES_MAX);
    frame::<session::NodeAnswer>("node-answer", session::PUSH_BYTES_MAX);
}

#[test]
fn migrations_are_understood() {
    frame::<migration::Preamble>("preamble", migration::PREAMBLE_BYTES_MAX);
    frame::<migration::SourceFrame>("source-frame", migration::FRAME_BYTES_MAX);
    frame::<migration::TargetFrame>("target-frame", migration::FRAME_BYTES_MAX);
    let roles = vec![Role::Migration, Role::Peer, Role::Session, Role::Pages];
    releases::check_these(
        "greeting",
        roles,
        |role| role.greeting().to_vec(),
        |bytes| Role::read_greeting(<[u8; GREETING_BYTES]>::try_from(bytes).expect("a greeting's length")),
    );
}

/// One JSON object a line. Commands and answers say themselves which they are, so they are listed here by hand.
#[test]
fn runners_are_understood() {
    let standing =
        handoff::Standing { state: handoff::RunState::Paused, epoch: Epoch(4), loaded: Some(Epoch(3)) };
    let hello = handoff::Hello {
        v: handoff::HANDOFF_VERSION,
        guest: "default/vm".parse().expect("a name"),
        instance: "0123456789abcdef0123456789abcdef".parse().expect("an id"),
        node: "node-a".parse().expect("a name"),
        pid: 7,
        regions: vec![Region { address: 1 << 40, bytes: 1 << 20, offset_bytes: 0 }],
        standing,
    };
    lines("handoff-hello", vec![hello]);
    let epoch = Epoch(4);
    let commands = [
        Command::Pause { epoch },
        Command::Save,
        Command::Load { epoch, bytes: 70_000 },
        Command::Resume { epoch },
        Command::Throttle { percent: 99 },
        Command::Verify,
        Command::Stats,
        Command::Stop,
        Command::PowerButton,
    ];
    lines("handoff-request", (1..).zip(commands).map(|(id, command)| Request { id, command }).collect());
    let verified = handoff::Verified { pages: 9, wrong: 1, first_wrong: vec![3], took_ms: 2 };
    let stats = handoff::Stats {
        standing,
        memory_bytes: 1 << 20,
        dirty_rate_asked: 2,
        dirty_rate_achieved: 3,
        pages_written: 4,
        running_us: 5,
        tick: 6,
        throttle_percent: 7,
    };
    let refusal = handoff::Refusal { rule: "epoch".into(), message: "no".into() };
    let outcomes = [
        Outcome::Ok(Answer::Done),
        Outcome::Ok(Answer::State { bytes: 70_000 }),
        Outcome::Ok(Answer::Verified(verified)),
        Outcome::Ok(Answer::Stats(stats)),
        Outcome::Error(refusal),
    ];
    lines("handoff-reply", (1..).zip(outcomes).map(|(id, outcome)| Reply { id, outcome }).collect());
}

fn lines<T: Serialize + DeserializeOwned + Debug + PartialEq>(what: &str, values: Vec<T>) {
    let encode = |value: &T| serde_json::to_vec(value).expect("JSON");
    releases::check_these(what, values, encode, |bytes| serde_json::from_slice(bytes));
}

/// A batch as it stands on a page stream: head, table and payload; plain, and with a packed payload announced.
#[test]
fn batches_are_read() {
    let page = u8::try_from(PAGE_SIZE % 251).unwrap_or(0);
    let payload = vec![page; PAGE_SIZE];
    let runs = vec![
        ClassedRun { run: PageRun::new(3, 1), class: Class::Raw },
        ClassedRun { run: PageRun::new(9, 2), class: Class::Zero },
    ];
    let batch = Batch { session: SessionId(7), round: Round(2), sequence: 5, runs };
    let read = |bytes: &[u8]| {
        let (head, table) = bytes.split_at(HEAD_BYTES);
        let head_bytes = head.try_into().expect("a head");
        let head = Head::decode(head_bytes)?;
        head.complete(head_bytes, table, &payload, 16).map(|batch| (batch, head.packed_bytes()))
    };
    let values = vec![(batch.clone(), None), (batch, Some(100))];
    let encode = |(batch, packed): &(Batch, Option<usize>)| {
        batch.encode(&payload, packed.map(|bytes| u32::try_from(bytes).expect("small")))
    };
    releases::check_these("batch", values, encode, read);
}
