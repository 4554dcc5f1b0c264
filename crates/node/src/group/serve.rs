//! The leader's end of a node's session.
//!
//! ```text
//!   Hello ─▶ leads? ─no─▶ Elsewhere            of one that has lost its leader: when there is a later one
//!              └─yes─▶ Join agreed ─▶ Leads ─▶ pushes, as the bell rings
//!                                       └────▶ questions, each on a stream of its own
//! ```
//!
//! Always true: a node of another group is refused by name; a node proposes for itself and about guests, nothing else; a fenced node's proposals wait until it has
//! said that it has stopped what it must; a session ends with the leadership.

use std::time::Duration;

use godwit_domain::registry::{Command, GuestUid, Node};
use godwit_domain::{GroupId, NodeName};
use godwit_wire::session::{ASK_BYTES_MAX, Answer, Ask, GUESTS_PER_PUSH_MAX, PUSH_BYTES_MAX, Push, Welcome};
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;

use super::enroll::{self, Told};
use super::{Group, NotAgreed, desk, told};
use crate::fabric::{ControlCall, frames};

/// How long a node that hears nothing of its leader waits here for another: two elections of which the first is split.
const LATER_TIMEOUT: Duration = Duration::from_secs(4);

/// Serves a session until it ends.
pub async fn serve(group: Group, call: ControlCall) {
    let ControlCall { connection, stream: (mut send, _receive), hello, .. } = call;
    let node = hello.name;
    if let Some(term) = hello.after {
        tokio::select! {
            () = knows_later(&group, term) => {}
            // It hears its leader again.
            _ = connection.closed() => return,
        }
    }
    let welcome = greet(&group, &node, hello.group, hello.node).await;
    let told = match &welcome {
        Welcome::Leads { membership, .. } => Some(Told::new(&group, membership)),
        Welcome::Elsewhere { .. } | Welcome::Refused { .. } => None,
    };
    if frames::write(&mut send, "welcome", &welcome, ASK_BYTES_MAX).await.is_err() {
        return;
    }
    let Some(told) = told else {
        let _ = send.finish();
        // The node closes when it has read.
        connection.closed().await;
        return;
    };
    let number = group.floor().enter(&node, connection.clone());
    if !group.leads() {
        // Deposed between Welcome and here: nobody else would close it.
        connection.close(0_u32.into(), b"this voter does not lead any more");
    }
    tracing::info!(%node, session = number, "session begins");
    let mut tasks = JoinSet::new();
    tasks.spawn(push(group.clone(), node.clone(), number, told, send));
    // Ends with the connection, which ends with the leadership.
    while let Ok((send, receive)) = connection.accept_bi().await {
        let (group, node) = (group.clone(), node.clone());
        tasks.spawn(answer(group, node, send, receive));
        while tasks.try_join_next().is_some() {}
    }
    group.floor().leave(&node, number);
    group.bells().take_down(&node, number);
    tasks.shutdown().await;
    tracing::info!(%node, session = number, reason = %closed(&connection), "session ends");
}

/// Waits until there is a leader of a later term, as far as this voter knows, or until that takes too long.
async fn knows_later(group: &Group, term: u64) {
    let mut view = group.watch();
    let later = view.wait_for(|view| view.term > term && view.leader.is_some());
    let _ = tokio::time::timeout(LATER_TIMEOUT, later).await;
}

fn closed(connection: &Connection) -> String {
    connection.close_reason().map(|reason| reason.to_string()).unwrap_or_default()
}

async fn greet(group: &Group, name: &NodeName, theirs: Option<GroupId>, node: Option<Node>) -> Welcome {
    let view = group.view();
    let Some(membership) = enroll::membership(group).await else {
        return Welcome::Elsewhere { leader: None, membership: None };
    };
    let elsewhere = |membership| Welcome::Elsewhere { leader: group.leader(), membership: Some(membership) };
    if theirs.is_some_and(|theirs| membership.succeeds.contains(&theirs)) {
        // It follows, if it may, and comes again.
        return elsewhere(membership);
    }
    if let Some(theirs) = theirs.filter(|theirs| *theirs != membership.group) {
        let ours = membership.group;
        let message = format!(
            "node {name} belongs to control group {theirs}, and {} is in group {ours} of the same cluster; nodes of one \
             cluster belong to one group",
            group.me()
        );
        return Welcome::Refused { message };
    }
    if !group.leads() {
        return elsewhere(membership);
    }
    let Some(node) = node else {
        return Welcome::Refused { message: "a session's Hello says what the node is".to_owned() };
    };
    let (known, asked) = (name.clone(), node.clone());
    let is_known = group.read(move |registry| told::is_known(registry, &known, &asked));
    if is_known.await == Some(true) {
        return Welcome::Leads { term: view.term, membership };
    }
    let join = Command::Join { name: name.clone(), node: Node { fenced: None, ..node } };
    match group.propose(join).await {
        // With the address that it has now.
        Ok(()) => match enroll::membership(group).await {
            Some(membership) => Welcome::Leads { term: view.term, membership },
            None => elsewhere(membership),
        },
        Err(NotAgreed::Refused(refusal)) => Welcome::Refused { message: refusal.to_string() },
        Err(NotAgreed::NotTaken(_) | NotAgreed::Forbidden(_) | NotAgreed::Unknown) => elsewhere(membership),
    }
}

/// Pushes what the bell rings for, everything first.
async fn push(group: Group, node: NodeName, number: u64, mut told: Told, mut send: SendStream) {
    let ear = group.bells().hang(node.clone(), number);
    let name = node.clone();
    let all = group.read(move |registry| told::all_for(registry, &name));
    group.bells().ring(&node, all.await.unwrap_or_default());
    loop {
        let Some(rung) = group.bells().take(&node, number) else { return };
        let mut membership = told.news(&group).await;
        if rung.is_empty() && membership.is_none() {
            tokio::select! {
                () = ear.notified() => {}
                () = told.changed() => {}
            }
            continue;
        }
        let mut guests: Vec<GuestUid> = rung.guests.into_iter().collect();
        loop {
            let rest = guests.split_off(guests.len().min(GUESTS_PER_PUSH_MAX));
            let (now, name, complete) = (guests, node.clone(), rest.is_empty());
            let pushed = group.read(move |registry| told::pushed(registry, &name, now, complete)).await;
            let Some(push) = pushed.map(|push| Push { membership: membership.take(), ..push }) else {
                return;
            };
            if frames::write(&mut send, "push", &push, PUSH_BYTES_MAX).await.is_err() {
                return;
            }
            if rest.is_empty() {
                break;
            }
            guests = rest;
        }
    }
}

async fn answer(group: Group, node: NodeName, mut send: SendStream, mut receive: RecvStream) {
    let ask = match frames::read::<Ask>(&mut receive, "question", ASK_BYTES_MAX).await {
        Ok(Some(ask)) => ask,
        Ok(None) => return,
        Err(error) => return tracing::warn!(%node, %error, "not a question"),
    };
    let answer = match ask {
        Ask::Propose(command) => proposed(&group, &node, command).await,
        Ask::Quorum => {
            // A follower hears of the quorum too; here it is the leader's word that counts.
            let age = group.quorum_age().await.filter(|_| group.leads());
            Answer::QuorumAge(age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
        }
        Ask::Progress { migration, progress } => {
            group.floor().note(migration, progress);
            Answer::Noted
        }
        Ask::Admin(line) => return desk::answer(group, line, send, receive).await,
    };
    if frames::write(&mut send, "answer", &answer, ASK_BYTES_MAX).await.is_ok() {
        let _ = send.finish();
    }
}

async fn proposed(group: &Group, node: &NodeName, command: Command) -> Answer {
    let (name, asked) = (node.clone(), command.clone());
    let look = group.read(move |registry| told::may_say(registry, &name, &asked));
    if let Some(Err(answer)) = look.await {
        return answer;
    }
    match group.propose(command).await {
        Ok(()) => Answer::Applied,
        Err(NotAgreed::Refused(refusal)) => Answer::Refused { why: refusal.to_string() },
        Err(NotAgreed::NotTaken(why)) => Answer::Unknown { why },
        Err(error @ (NotAgreed::Forbidden(_) | NotAgreed::Unknown)) => {
            Answer::Unknown { why: error.to_string() }
        }
    }
}
