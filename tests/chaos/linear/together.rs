//! A real cluster without faults, where two operators change one object at the same moment, through two nodes.
//!
//! ```text
//!   node-a ◀─ label one-7 ─┐            ┌─ create ─▶ one is `created`, the other refused
//!   node-b ◀─ label two-7 ─┴ lab: both  └─ one request, asked twice at once ─▶ one answer
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use godwit_admin::client::{AskError, Client, new_request_id};
use godwit_wire::admin::{Act, Applied, Code, Objects};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::world::{World, node};
use crate::support::{Outcome, story};

/// Labels that each of two operators sets on one object.
const LABELS: usize = 25;
/// Objects that two operators make at once.
const MADE: usize = 25;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time between two questions of which the first was asked in an election.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        story("labels_that_two_operators_set_at_once_are_all_there", labels),
        story("of_two_operators_who_create_one_object_one_has_created_it", creates),
        story("a_request_that_is_repeated_has_its_first_answer", repeated),
    ]
}

/// Two clients, each of its own node.
async fn two(world: &mut World) -> Result<(Client, Client), Box<dyn Error>> {
    world.start_with(&[]).await?;
    let socket =
        |name| world.cluster.node(&node(name)).map(|process| process.socket.clone()).ok_or("no node");
    let (a, b) = (socket("node-a")?, socket("node-b")?);
    let client = async |path| Ok::<_, Box<dyn Error>>(Client::connect(path).await?.with_timeout(PATIENCE));
    Ok((client(&a).await?, client(&b).await?))
}

/// Asks past elections, of which a busy host may have some: under one id, so that it is one request.
async fn asked(client: &mut Client, id: Option<&str>, act: Act) -> Result<Value, AskError> {
    let id = id.map_or_else(new_request_id, |id| Ok(id.to_owned()));
    let id = id.map_err(|error| AskError::Protocol(error.to_string()))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.ask_under(Some(id.clone()), act.clone(), |_| {}).await {
            Err(AskError::Problem(problem))
                if matches!(problem.code, Code::Unavailable | Code::Unknown) && Instant::now() < deadline =>
            {
                tokio::time::sleep(ASK_INTERVAL).await;
            }
            answer => return answer,
        }
    }
}

/// What is asked for, and what was done.
async fn done(client: &mut Client, id: Option<&str>, act: Act) -> Result<String, AskError> {
    let answer = asked(client, id, act).await?;
    serde_json::from_value::<Applied>(answer)
        .map(|applied| applied.done)
        .map_err(|error| AskError::Protocol(error.to_string()))
}

fn project(name: &str, content: &str, create: bool) -> Act {
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { "content": content } },
    });
    Act::Apply { object, namespace: None, create, dry_run: false }
}

fn label(kind: &str, name: &str, key: String) -> Act {
    let (kind, name) = (kind.to_owned(), name.to_owned());
    let labels = [(key, Some("set".to_owned()))].into_iter().collect();
    Act::Label { kind, name, namespace: None, labels, overwrite: false, dry_run: false }
}

async fn shown(client: &mut Client, kind: &str, name: &str) -> Result<Value, Box<dyn Error>> {
    let (kind, name) = (kind.to_owned(), Some(name.to_owned()));
    let answer = asked(client, None, Act::Get { kind, name, namespace: None, watch: false }).await?;
    Ok(serde_json::from_value::<Objects>(answer)?.items.pop().ok_or("it is not there")?)
}

async fn labels(world: &mut World) -> Outcome {
    let (mut a, mut b) = two(world).await?;
    for (kind, name) in [("namespace", "lab"), ("node", "node-c")] {
        for number in 0..LABELS {
            let one = label(kind, name, format!("one-{number}"));
            let other = label(kind, name, format!("two-{number}"));
            let both = tokio::join!(done(&mut a, None, one), done(&mut b, None, other));
            assert_eq!((both.0?, both.1?), ("labeled".to_owned(), "labeled".to_owned()));
        }
        let object = shown(&mut a, kind, name).await?;
        let is_there = |key: &String| object["metadata"]["labels"][key.as_str()] == "set";
        let all = (0..LABELS).flat_map(|number| [format!("one-{number}"), format!("two-{number}")]);
        let lost: Vec<String> = all.filter(|key| !is_there(key)).collect();
        assert!(lost.is_empty(), "{kind} {name} has lost {lost:?}");
    }
    Ok(())
}

async fn creates(world: &mut World) -> Outcome {
    let (mut a, mut b) = two(world).await?;
    for number in 0..MADE {
        let name = format!("made-{number}");
        let (one, other) = (project(&name, "one", true), project(&name, "other", true));
        let (one, other) = tokio::join!(done(&mut a, None, one), done(&mut b, None, other));
        let (created, refused, content) = match (one, other) {
            (Ok(created), Err(refused)) => (created, refused, "one"),
            (Err(refused), Ok(created)) => (created, refused, "other"),
            both => return Err(format!("{name}: not one created and one refused: {both:?}").into()),
        };
        assert_eq!(created, "created");
        assert!(matches!(&refused, AskError::Problem(problem) if problem.code == Code::Refused), "{refused}");
        let object = shown(&mut a, "namespace", &name).await?;
        assert_eq!(object["metadata"]["labels"]["content"], content, "{name} is as its creator wants it");
        // Applied by two at once, it is created once and changed once.
        let name = format!("applied-{number}");
        let (one, other) = (project(&name, "one", false), project(&name, "other", false));
        let both = tokio::join!(done(&mut a, None, one), done(&mut b, None, other));
        let mut both = [both.0?, both.1?];
        both.sort_unstable();
        assert_eq!(both, ["configured", "created"], "{name}");
    }
    Ok(())
}

async fn repeated(world: &mut World) -> Outcome {
    let (mut a, mut b) = two(world).await?;
    for number in 0..MADE {
        let (name, id) = (format!("made-{number}"), new_request_id()?);
        let create = || project(&name, "one", true);
        let both = tokio::join!(done(&mut a, Some(&id), create()), done(&mut b, Some(&id), create()));
        assert_eq!((both.0?, both.1?), ("created".to_owned(), "created".to_owned()), "{name}: one request");
    }
    let (id, same) = (new_request_id()?, || project("made-0", "one", false));
    assert_eq!(done(&mut a, Some(&id), same()).await?, "unchanged");
    assert_eq!(done(&mut b, None, project("made-0", "two", false)).await?, "configured");
    assert_eq!(done(&mut b, Some(&id), same()).await?, "unchanged", "it was so when it was asked first");
    assert_eq!(shown(&mut a, "namespace", "made-0").await?["metadata"]["labels"]["content"], "two");
    Ok(())
}
