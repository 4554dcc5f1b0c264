//! The server at a real socket, and clients of every kind: good, silly, slow, gone.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Raw, Server, event, ok, soon};
use godwit_admin::Limits;
use godwit_wire::admin::{Body, COUNT_MAX, Code, LINE_BYTES_MAX, REPLY_BYTES_MAX, Request};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, mpsc};

const STATUS: &str = "{\"v\":1,\"id\":\"a\",\"do\":\"status\"}\n";

#[tokio::test]
async fn a_good_request_gets_its_answer() {
    let server = Server::echo(Limits::default());
    let mut raw = Raw::connect(&server.path).await;
    raw.send("{\"v\":1,\"id\":\"x\",\"do\":\"guest-show\",\"guest\":\"vm1\"}\n").await;
    assert_eq!(raw.reply().await, ok("x", json!({"asked": {"do": "guest-show", "guest": "default/vm1"}})));
}

#[tokio::test]
async fn events_come_before_the_last_line_and_requests_one_after_another() {
    let server = Server::start(Limits::default(), async |request: Request, replies: mpsc::Sender<Body>| {
        for number in 0..100 {
            let _ = replies.send(Body::Event(json!(number))).await;
        }
        let _ = replies.send(Body::Ok(json!(request.id))).await;
        let _ = replies.send(Body::Event(json!("behind the last word"))).await;
    });
    let mut raw = Raw::connect(&server.path).await;
    raw.send(format!("{STATUS}{}", STATUS.replace("\"a\"", "\"b\""))).await;
    for id in ["a", "b"] {
        for number in 0..100 {
            assert_eq!(raw.reply().await, event(id, json!(number)));
        }
        assert_eq!(raw.reply().await, ok(id, json!(id)));
    }
}

#[tokio::test]
async fn a_desk_that_says_no_last_word_gets_one() {
    let server = Server::start(Limits::default(), async |request: Request, replies: mpsc::Sender<Body>| {
        match request.id.as_str() {
            "panics" => panic!("as the test wants"),
            "keeps its sender" => {
                let kept = replies.clone();
                tokio::spawn(async move {
                    kept.closed().await;
                });
            }
            _ => {}
        }
        let _ = replies.send(Body::Event(json!(1))).await;
    });
    let mut raw = Raw::connect(&server.path).await;
    for id in ["is silent", "panics", "keeps its sender"] {
        raw.send(STATUS.replace("\"a\"", &format!("\"{id}\""))).await;
        if id != "panics" {
            assert_eq!(raw.reply().await, event(id, json!(1)));
        }
        let (told, problem) = raw.problem().await;
        assert_eq!((told.as_str(), problem.code), (id, Code::Unknown));
    }
}

#[tokio::test]
async fn garbage_is_answered_by_name_and_the_connection_goes_on() {
    let server = Server::echo(Limits::default());
    let mut raw = Raw::connect(&server.path).await;
    let lines: [(&[u8], &str, &str); 7] = [
        (b"\n", "", "json"),
        (b"hello\n", "", "json"),
        (b"{\"v\":1,\"id\":\"a\",\"do\":\"fly\"}\n", "a", "do"),
        (b"{\"v\":9,\"id\":\"a\",\"do\":\"status\"}\n", "a", "v"),
        (b"{\"v\":1,\"id\":\"a\",\"do\":\"guest-show\"}\n", "a", "field"),
        (b"{\"v\":1,\"id\":\"a\",\"do\":\"\xff\xfe\"}\n", "a", "utf-8"),
        (b"\x00\x01\x02\xff\n", "", "utf-8"),
    ];
    for (number, (line, id, rule)) in lines.into_iter().enumerate() {
        raw.send(line).await;
        let (told, problem) = raw.problem().await;
        assert_eq!((told.as_str(), problem.code, problem.rule.as_str()), (id, Code::Invalid, rule));
        raw.is_served(&number.to_string()).await;
    }
}

#[tokio::test]
async fn a_line_that_was_not_ended_is_answered_when_the_stream_ends() {
    let server = Server::echo(Limits::default());
    let mut raw = Raw::connect(&server.path).await;
    raw.send(STATUS.trim_end()).await;
    raw.write.shutdown().await.expect("half of it");
    assert_eq!(raw.reply().await, ok("a", json!({"asked": {"do": "status"}})));
    raw.ends().await;
    // A torn one is no request.
    let mut raw = Raw::connect(&server.path).await;
    raw.send(&STATUS[..STATUS.len() - 4]).await;
    raw.write.shutdown().await.expect("half of it");
    assert_eq!(raw.problem().await.1.rule, "json");
    raw.ends().await;
}

#[tokio::test]
async fn the_longest_line_is_read_and_a_longer_one_ends_the_connection() {
    let server = Server::echo(Limits::default());
    let mut raw = Raw::connect(&server.path).await;
    let blank = " ".repeat(LINE_BYTES_MAX - (STATUS.len() - 1));
    raw.send(format!("{blank}{STATUS}")).await;
    assert_eq!(raw.reply().await, ok("a", json!({"asked": {"do": "status"}})));
    // However much more comes: it is not read.
    raw.send(format!("{blank} {STATUS}{STATUS}{}", "x".repeat(LINE_BYTES_MAX))).await;
    let (id, problem) = raw.problem().await;
    assert_eq!((id.as_str(), problem.code, problem.rule.as_str()), ("", Code::Invalid, "length"));
    assert!(problem.message.contains(&LINE_BYTES_MAX.to_string()), "{}", problem.message);
    raw.ends().await;
    Raw::connect(&server.path).await.is_served("b").await;
}

#[tokio::test]
async fn half_a_line_holds_no_slot_for_ever() {
    let limits = Limits { connections: 1, silent: Duration::from_millis(50), ..Limits::default() };
    let server = Server::echo(limits);
    let mut raw = Raw::connect(&server.path).await;
    raw.send("{\"v\":1,").await;
    let (id, problem) = raw.problem().await;
    assert_eq!((id.as_str(), problem.code, problem.rule.as_str()), ("", Code::Invalid, "silence"));
    raw.ends().await;
    has_a_slot(&server).await;
}

/// That a slot gets free. Its holder has been told, but may not be quite gone.
async fn has_a_slot(server: &Server) {
    soon("a free slot", async {
        loop {
            let mut raw = Raw::connect(&server.path).await;
            raw.send(STATUS).await;
            if matches!(raw.reply().await.body, Body::Ok(_)) {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word() {
    let limits = Limits { idle: Duration::from_millis(50), ..Limits::default() };
    let server = Server::echo(limits);
    let mut raw = Raw::connect(&server.path).await;
    raw.is_served("a").await;
    raw.ends().await;
}

#[tokio::test]
async fn connections_have_a_bound() {
    let server = Server::echo(Limits { connections: 2, ..Limits::default() });
    let (mut first, mut second) = (Raw::connect(&server.path).await, Raw::connect(&server.path).await);
    first.is_served("a").await;
    second.is_served("b").await;
    let mut third = Raw::connect(&server.path).await;
    let (id, problem) = third.problem().await;
    assert_eq!((id.as_str(), problem.code, problem.rule.as_str()), ("", Code::Unavailable, "connections"));
    third.ends().await;
    first.is_served("c").await;
    drop(second);
    has_a_slot(&server).await;
}

/// Says when it is dropped.
struct Tell(Arc<Notify>);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// A server whose desk says one thing and then works for ever; and what tells that the work was dropped.
fn endless(limits: Limits) -> (Server, Arc<Notify>) {
    let dropped = Arc::new(Notify::new());
    let tell = Arc::clone(&dropped);
    let server = Server::start(limits, move |_: Request, replies: mpsc::Sender<Body>| {
        let tell = Tell(Arc::clone(&tell));
        async move {
            let _tell = tell;
            let _ = replies.send(Body::Event(json!("begun"))).await;
            std::future::pending::<()>().await;
        }
    });
    (server, dropped)
}

#[tokio::test]
async fn work_ends_when_its_asker_goes_away() {
    let (server, dropped) = endless(Limits::default());
    let mut raw = Raw::connect(&server.path).await;
    raw.send(STATUS).await;
    assert_eq!(raw.reply().await, event("a", json!("begun")));
    drop(raw);
    soon("the end of the work", dropped.notified()).await;
}

#[tokio::test]
async fn work_ends_when_the_server_does_and_the_socket_is_removed() {
    let (mut server, dropped) = endless(Limits::default());
    let mut raw = Raw::connect(&server.path).await;
    raw.send(STATUS).await;
    assert_eq!(raw.reply().await, event("a", json!("begun")));
    server.end().await;
    soon("the end of the work", dropped.notified()).await;
    raw.ends().await;
    assert!(!server.path.exists());
}

#[tokio::test]
async fn an_asker_that_has_said_all_still_gets_its_answer() {
    let go = Arc::new(Notify::new());
    let wait = Arc::clone(&go);
    let server = Server::start(Limits::default(), move |_: Request, replies: mpsc::Sender<Body>| {
        let wait = Arc::clone(&wait);
        async move {
            let _ = replies.send(Body::Event(json!("begun"))).await;
            wait.notified().await;
            let _ = replies.send(Body::Ok(json!("done"))).await;
        }
    });
    let mut raw = Raw::connect(&server.path).await;
    raw.send(STATUS).await;
    raw.write.shutdown().await.expect("half of it");
    assert_eq!(raw.reply().await, event("a", json!("begun")));
    go.notify_one();
    assert_eq!(raw.reply().await, ok("a", json!("done")));
    raw.ends().await;
}

#[tokio::test]
async fn who_does_not_read_is_no_reader() {
    let dropped = Arc::new(Notify::new());
    let tell = Arc::clone(&dropped);
    let limits = Limits { write: Duration::from_millis(50), ..Limits::default() };
    let server = Server::start(limits, move |_: Request, replies: mpsc::Sender<Body>| {
        let tell = Tell(Arc::clone(&tell));
        async move {
            let _tell = tell;
            let much = Value::from("x".repeat(100_000));
            while replies.send(Body::Event(much.clone())).await.is_ok() {}
            std::future::pending::<()>().await;
        }
    });
    let mut raw = Raw::connect(&server.path).await;
    raw.send(STATUS).await;
    soon("the end of the work", dropped.notified()).await;
}

#[tokio::test]
async fn answers_have_bounds() {
    let server = Server::start(Limits::default(), async |request: Request, replies: mpsc::Sender<Body>| {
        let answer = match request.id.as_str() {
            "long" => Value::from("x".repeat(REPLY_BYTES_MAX)),
            _ => json!({"predicted_downtime_ms": u64::MAX}),
        };
        let _ = replies.send(Body::Ok(answer)).await;
    });
    let mut raw = Raw::connect(&server.path).await;
    raw.send(STATUS).await;
    assert_eq!(raw.reply().await, ok("a", json!({"predicted_downtime_ms": COUNT_MAX})));
    raw.send(STATUS.replace("\"a\"", "\"long\"")).await;
    let (id, problem) = raw.problem().await;
    assert_eq!((id.as_str(), problem.code, problem.rule.as_str()), ("long", Code::Failed, "length"));
}

#[test]
fn nothing_that_comes_in_ends_the_server() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let server = runtime.block_on(async { Server::echo(Limits::default()) });
    let pieces = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8);
    proptest!(ProptestConfig::with_cases(64), |(pieces in pieces, half in any::<bool>())| {
        runtime.block_on(async {
            let mut raw = Raw::connect(&server.path).await;
            for piece in &pieces {
                raw.send(piece).await;
            }
            if half {
                // Every line of it gets one line, and then it ends.
                let sent: Vec<u8> = pieces.concat();
                let mut lines = sent.iter().filter(|byte| **byte == b'\n').count();
                lines += usize::from(sent.last().is_some_and(|last| *last != b'\n'));
                raw.write.shutdown().await.expect("half of it");
                for _ in 0..lines {
                    assert_eq!(raw.problem().await.1.code, Code::Invalid);
                }
                raw.ends().await;
            }
            drop(raw);
            Raw::connect(&server.path).await.is_served("good").await;
        });
    });
}
