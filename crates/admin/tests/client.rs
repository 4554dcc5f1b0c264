//! The client against a real server, and against one that does everything wrong.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Server, soon};
use godwit_admin::{AskError, Client, ClientError, Limits};
use godwit_wire::admin::{Act, Body, Code, Problem, REPLY_BYTES_MAX, Request, Version};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

async fn connect(path: &Path) -> Client {
    soon("a connection", Client::connect(path)).await.expect("a connection")
}

async fn ask(client: &mut Client) -> Result<Value, AskError> {
    soon("an answer", client.ask(Act::Version, |_| {})).await
}

/// A server that answers its first connection with what a function makes of each request's id, and then hangs up.
fn misbehaving(answers: impl Fn(&str) -> String + Send + 'static) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("admin.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("a request");
        let request: Request = serde_json::from_str(&line).expect("a request");
        stream.write_all(answers(&request.id).as_bytes()).await.expect("room");
    });
    (dir, path)
}

#[tokio::test]
async fn answers_come_with_their_events_and_kinds() {
    let server = Server::start(Limits::default(), async |request: Request, replies: mpsc::Sender<Body>| {
        let last = match request.act {
            Act::Version => Body::Ok(json!({"node": "node-a", "version": "1.2.3"})),
            Act::GuestList => {
                for number in 0..3 {
                    let _ = replies.send(Body::Event(json!(number))).await;
                }
                Body::Ok(json!("end"))
            }
            _ => Body::Error(Problem::new(Code::Refused, "rule", "message", "try")),
        };
        let _ = replies.send(last).await;
    });
    let mut client = connect(&server.path).await;
    let version: Version = client.ask_as(Act::Version).await.expect("a version");
    assert_eq!(version, Version { node: "node-a".parse().expect("a name"), version: "1.2.3".into() });
    let mut events = Vec::new();
    let answer = client.ask(Act::GuestList, |event| events.push(event)).await;
    assert_eq!((answer.ok(), events), (Some(json!("end")), vec![json!(0), json!(1), json!(2)]));
    match client.ask(Act::Status, |_| {}).await {
        Err(AskError::Problem(problem)) => assert_eq!(problem.code, Code::Refused),
        other => panic!("{other:?}"),
    }
    let other_kind = client.ask_as::<Version>(Act::GuestList).await;
    assert!(matches!(other_kind, Err(AskError::Protocol(_))), "{other_kind:?}");
    // None of it is in the way of the next.
    client.ask_as::<Version>(Act::Version).await.expect("a version");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_lost_and_not_refused() {
    for answer in ["", "{\"id\":\"ID\",\"event\":1}\n", "{\"id\":\"ID\",\"ok\":1}", "{\"id\":\"ID\",\"o"] {
        let (_dir, path) = misbehaving(|id| answer.replace("ID", id));
        let mut client = connect(&path).await;
        let error = ask(&mut client).await.expect_err("no last line");
        assert!(matches!(error, AskError::Lost), "{answer}: {error:?}");
        assert_eq!(error.problem().code, Code::Unknown);
        assert!(matches!(ask(&mut client).await, Err(AskError::Lost)));
    }
}

#[tokio::test]
async fn a_server_that_ends_in_the_middle_leaves_its_asker_lost() {
    let mut server = Server::start(Limits::default(), async |_: Request, replies: mpsc::Sender<Body>| {
        let _ = replies.send(Body::Event(json!(1))).await;
        std::future::pending::<()>().await;
    });
    let mut client = connect(&server.path).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let asked = tokio::spawn(async move {
        client
            .ask(Act::Version, |_| {
                let _ = tell.send(());
            })
            .await
    });
    soon("the event", told.recv()).await.expect("an event");
    server.end().await;
    let outcome = soon("the end of the answer", asked).await.expect("no panic");
    assert!(matches!(outcome, Err(AskError::Lost)), "{outcome:?}");
}

#[tokio::test]
async fn what_is_no_answer_is_told_so() {
    let long = format!("{{\"id\":\"ID\",\"ok\":\"{}\"}}\n", "x".repeat(REPLY_BYTES_MAX));
    for answer in
        ["hello\n", "{}\n", "{\"id\":\"another\",\"ok\":1}\n", "{\"id\":\"\",\"ok\":1}\n", "\u{ff}\n", &long]
    {
        let answer = answer.to_owned();
        let (_dir, path) = misbehaving(move |id| answer.replace("ID", id));
        let error = ask(&mut connect(&path).await).await.expect_err("no answer");
        assert!(matches!(error, AskError::Protocol(_)), "{error:?}");
        assert_eq!(error.problem().code, Code::Unknown);
    }
}

#[tokio::test]
async fn an_answer_has_the_time_that_its_asker_gives_it() {
    let server = Server::start(Limits::default(), async |request: Request, replies: mpsc::Sender<Body>| {
        if request.act == Act::Status {
            std::future::pending::<()>().await;
        }
        let _ = replies.send(Body::Ok(json!(1))).await;
    });
    let mut client = connect(&server.path).await.with_timeout(Duration::from_millis(50));
    let error = client.ask(Act::Status, |_| {}).await.expect_err("no answer");
    assert!(matches!(error, AskError::TimedOut(_)), "{error:?}");
    assert_eq!(error.problem().code, Code::Unknown);
}

#[tokio::test]
async fn an_answer_that_nobody_waited_for_is_not_taken_for_another() {
    let (_dir, path) = {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("admin.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            let mut stream = BufReader::new(stream);
            let (mut first, mut second) = (String::new(), String::new());
            stream.read_line(&mut first).await.expect("a request");
            stream.read_line(&mut second).await.expect("a request");
            for (number, line) in [(1, first), (2, second)] {
                let request: Request = serde_json::from_str(&line).expect("a request");
                let answer = format!("{{\"id\":\"{}\",\"ok\":{number}}}\n", request.id);
                stream.write_all(answer.as_bytes()).await.expect("room");
            }
        });
        (dir, path)
    };
    let mut client = connect(&path).await.with_timeout(Duration::from_millis(50));
    assert!(matches!(ask(&mut client).await, Err(AskError::TimedOut(_))));
    client = client.with_timeout(common::DEADLINE);
    assert_eq!(ask(&mut client).await.expect("its own answer"), json!(2));
}

#[tokio::test]
async fn who_is_turned_away_is_told_why() {
    let server = Server::echo(Limits { connections: 1, ..Limits::default() });
    let mut first = connect(&server.path).await;
    ask(&mut first).await.expect("served");
    for _ in 0..20 {
        match ask(&mut connect(&server.path).await).await {
            Err(AskError::Problem(problem)) => assert_eq!(problem.rule, "connections"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_node_that_can_not_be_asked_is_named_with_the_way_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("admin.sock");
    let error = Client::connect(&path).await.expect_err("nothing there");
    assert!(matches!(error, ClientError::Missing(_)), "{error:?}");
    let problem = error.problem();
    assert_eq!(problem.code, Code::Unavailable);
    assert!(problem.message.contains(&path.display().to_string()), "{}", problem.message);
    assert!(problem.try_.contains("is the node running?") && problem.try_.contains("GODWIT_SOCKET"));
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let error = Client::connect(&path).await.expect_err("nobody there");
    assert!(matches!(error, ClientError::Refused(_)), "{error:?}");
    // Root may connect to everything.
    if !rustix::process::geteuid().is_root() {
        let _listener = {
            std::fs::remove_file(&path).expect("removed");
            UnixListener::bind(&path).expect("a socket")
        };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).expect("a mode");
        let error = Client::connect(&path).await.expect_err("no permission");
        assert!(matches!(error, ClientError::Denied(_)), "{error:?}");
    }
    let long = dir.path().join("x".repeat(200));
    assert!(matches!(Client::connect(&long).await, Err(ClientError::Other { .. })));
}

#[tokio::test]
async fn ids_are_never_used_twice_on_a_connection() {
    let server = Server::start(Limits::default(), async |request: Request, replies: mpsc::Sender<Body>| {
        let _ = replies.send(Body::Ok(json!(request.id))).await;
    });
    let mut client = connect(&server.path).await;
    let (first, second) = (ask(&mut client).await.expect("an id"), ask(&mut client).await.expect("an id"));
    assert_ne!(first, second);
    assert!(first.as_str().is_some_and(|id| id.starts_with(&std::process::id().to_string())), "{first}");
    drop(UnixStream::connect(&server.path).await);
}

#[tokio::test]
async fn a_change_has_an_id_by_which_its_repetition_is_known() {
    let server = Server::start(Limits::default(), async |request: Request, replies: mpsc::Sender<Body>| {
        let _ = replies.send(Body::Ok(json!(request.request_id))).await;
    });
    let mut client = connect(&server.path).await;
    assert_eq!(ask(&mut client).await.expect("an answer"), Value::Null, "nothing is changed");
    let uncordon = || Act::NodeUncordon { node: "node-a".parse().expect("a name") };
    let mut made = Vec::new();
    for _ in 0..2 {
        let id = client.ask(uncordon(), |_| {}).await.expect("an answer");
        made.push(id.as_str().expect("an id").to_owned());
    }
    assert_ne!(made[0], made[1]);
    assert!(made.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())), "{made:?}");
    let given = client.ask_under(Some("mine".into()), uncordon(), |_| {}).await.expect("an answer");
    assert_eq!(given, json!("mine"));
}
