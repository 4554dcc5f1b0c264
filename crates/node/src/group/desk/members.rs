//! Requests about who is in the control group.
//!
//! ```text
//!   add ─▶ learner agreed: answered ─▶ (enroll) its node takes the place ─▶ (lead) promoted ─▶ watch ends: it votes
//!   remove ─▶ the leader itself? it hands on first, and its successor is asked ─▶ agreed: answered
//! ```
//!
//! Always true: what is there already is `unchanged`; a refusal says which voters must answer, and nothing has changed.

use std::time::Duration;

use godwit_control::{ChangeError, Members, NodeId, Status, Wanted};
use godwit_domain::NodeName;
use godwit_domain::registry::MemberChange;
use godwit_wire::admin::{Code, MemberDetail, Problem};
use serde_json::Value;
use tokio::sync::mpsc;

use super::super::Group;
use super::acts::settled;
use super::asked::Asked;
use super::problem::{self, gone, no_node, refused};
use super::{Answered, json, next_look};

/// How long a successor may take to be elected.
const HAND_ON_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn add(group: &Group, asked: Asked, node: NodeName) -> Answered {
    settled(group).await?;
    if group.members().named(&node).is_some() {
        return detail(group, node, Some("unchanged")).await;
    }
    let name = node.clone();
    let known = group.read(move |registry| {
        let node = registry.nodes.get(&name)?;
        Some((node.control, node.control_stays, node.fenced.is_some()))
    });
    let (address, stays, is_fenced) = known.await.ok_or_else(gone)?.ok_or_else(|| no_node(&node))?;
    if is_fenced || group.floor().session(&node).is_none() {
        return Err(problem::unreachable(&node));
    }
    if address.ip().is_unspecified() || address.port() == 0 {
        let message = format!("node {node} says that it is reached at {address}, where nobody finds it");
        let hint = "give `listen` in [control] of its config the address and port where the others reach it, and start it again";
        return Err(refused("a voter has an address where the others reach it", message, hint));
    }
    if !stays {
        let message =
            format!("node {node} is reached at {address} until it is started again, and elsewhere then");
        let hint = "give `listen` in [control] of its config a port, and start it again";
        return Err(refused("a voter has an address that stays", message, hint));
    }
    asked.change(group, Wanted::Add(node.clone()), MemberChange::Added).await?;
    tracing::info!(%node, "is taken into the control group, and learns");
    detail(group, node, Some("added")).await
}

pub(super) async fn remove(group: &Group, asked: Asked, node: NodeName) -> Answered {
    settled(group).await?;
    if group.members().named(&node).is_none() {
        let name = node.clone();
        let known = group.read(move |registry| registry.nodes.contains_key(&name)).await.ok_or_else(gone)?;
        return if known { detail(group, node, Some("unchanged")).await } else { Err(no_node(&node)) };
    }
    if node == *group.me() {
        hand_on(group, &node).await?;
        return Err(problem::handed_on(&node));
    }
    asked.change(group, Wanted::Remove(node.clone()), MemberChange::Removed).await?;
    tracing::info!(%node, "is taken out of the control group");
    detail(group, node, Some("removed")).await
}

/// A leader that is to be removed lets another one lead first, who is asked then.
async fn hand_on(group: &Group, me: &NodeName) -> Result<(), Problem> {
    let status = group.status().await.ok_or_else(gone)?;
    // Whether it may go at all is known here.
    let checked = status.view.members.change(&Wanted::Remove(me.clone()), status.id, &status.standing);
    checked.map_err(of_rule)?;
    group.hand_on().await;
    let mut view = group.watch();
    let handed = view.wait_for(|view| view.role != godwit_control::Role::Leader);
    match tokio::time::timeout(HAND_ON_TIMEOUT, handed).await {
        Ok(_) => Ok(()),
        Err(_) => {
            let message = format!("node {me} leads, and no other voter has taken the leadership over");
            let hint = "ask again in a moment; godwit control status on each voter says how it stands";
            Err(Problem::new(Code::Failed, "a leader that is removed hands on first", message, hint))
        }
    }
}

/// How a node stands in the group.
pub(super) async fn detail(group: &Group, node: NodeName, done: Option<&str>) -> Answered {
    json(&member_of(&group.status().await.ok_or_else(gone)?, node, done))
}

fn member_of(status: &Status, node: NodeName, done: Option<&str>) -> MemberDetail {
    let members: &Members = &status.view.members;
    let found = members.named(&node);
    let state = match found {
        Some((_, member)) if member.votes => "voter",
        Some(_) => "learner",
        None => "none",
    };
    let behind = found.and_then(|(id, _)| status.standing.behind.get(&id).copied());
    let waits_for = found.filter(|(_, member)| !member.votes).map(|(id, _)| waits_for(status, &node, id));
    let voters = members.iter().filter(|(_, member)| member.votes);
    MemberDetail {
        done: done.map(str::to_owned),
        state: state.to_owned(),
        behind,
        waits_for,
        voters: voters.map(|(_, member)| member.name.clone()).collect(),
        node,
    }
}

/// For what a learner waits, in words.
fn waits_for(status: &Status, node: &NodeName, id: NodeId) -> String {
    if !status.standing.answering.contains(&id) {
        return "it has taken its place and answers".to_owned();
    }
    match status.view.members.change(&Wanted::Promote(node.clone()), id, &status.standing) {
        Ok(_) => "that is agreed".to_owned(),
        Err(ChangeError::Behind { behind, .. }) => {
            let max = godwit_control::members::PROMOTED_BEHIND_MAX;
            format!("it lacks {max} agreed entries at most; it lacks {behind}")
        }
        Err(error) => format!("enough voters answer: {error}"),
    }
}

/// A node that learns, until it votes or is in the group no more.
pub(super) async fn watch(group: &Group, node: NodeName, events: mpsc::Sender<Value>) -> Answered {
    let mut last = Value::Null;
    loop {
        let status = group.status().await.ok_or_else(gone)?;
        let now = member_of(&status, node.clone(), None);
        let learns = now.state == "learner";
        let now = json(&now)?;
        if !learns {
            return Ok(now);
        }
        if now != last {
            last = now.clone();
            if events.send(now).await.is_err() {
                return Ok(last);
            }
        }
        next_look(group).await;
        if events.is_closed() || !group.leads() {
            return Err(problem::leadership_lost());
        }
    }
}

/// What would satisfy a rule of the group.
pub(super) fn of_rule(error: ChangeError) -> Problem {
    let (rule, hint) = match &error {
        ChangeError::InFlight | ChangeError::Learning(_) => {
            ("one change is made at a time", "godwit control status says which; ask again when it is done")
        }
        ChangeError::Member(_) | ChangeError::Votes(_) => {
            ("a node is in the group once", "godwit control status")
        }
        ChangeError::NoMember(_) => ("a member is changed", "godwit control status lists them"),
        ChangeError::LastVoter(_) => {
            ("a group has a voter", "add another one first: godwit control add NODE")
        }
        ChangeError::TooMany(_) => ("a group has seven voters at most", "godwit control remove NODE"),
        ChangeError::NoQuorum { .. } => (
            "more than half of the voters that are left must answer",
            "start those that do not answer, or remove those first; godwit control status at the leader says who",
        ),
        ChangeError::Behind { .. } => ("whoever votes knows what is agreed", "wait until it has caught up"),
    };
    refused(rule, error.to_string(), hint)
}
