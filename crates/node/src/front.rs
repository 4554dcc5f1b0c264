//! The admin socket's desk on every node: what the node knows itself is answered here, all else by the leader.
//!
//! ```text
//!   Request ─▶ version, control status ─▶ this node
//!          └─▶ session? ─yes─▶ leader, line by line
//!                       └─no─▶ only looks, and this node votes? ─▶ its replica, said to be stale
//!                                                          └─▶ "no leader"
//! ```
//!
//! Always true: a request is forwarded once; if the session breaks after that, the outcome is unknown and said so.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use godwit_admin::Desk;
use godwit_control::{Member, NodeId, Role, Standing};
use godwit_domain::NodeName;
use godwit_transfer::drive::chain;
use godwit_wire::admin::{Act, Body, Code, ControlStatus, MemberRow, Problem, Reply, Request, Version};
use godwit_wire::session::{Answer, Ask, PUSH_BYTES_MAX};
use tokio::sync::mpsc;

use crate::fabric::frames;
use crate::group::desk;
use crate::seat::Seat;
use crate::session::{AskError, Leader};

/// How long a request waits for a leader: an election takes two seconds at most.
const LEADER_TIMEOUT: Duration = Duration::from_secs(4);

/// How long somebody is asked again to take a node out of the group that has led it: it hands on first.
const HAND_ON_TIMEOUT: Duration = Duration::from_secs(15);
/// Time between two of these questions.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug, Clone)]
pub struct Front {
    /// This node.
    pub node: NodeName,
    /// Its cluster.
    pub cluster: String,
    /// Its session.
    pub leader: Leader,
    /// Its place in the control group.
    pub seat: Seat,
}

impl Desk for Front {
    fn ask(&self, request: Request, replies: mpsc::Sender<Body>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let front = self.clone();
        Box::pin(async move {
            let last = match request.act {
                Act::Version => front.version(),
                Act::ControlStatus => front.control_status().await,
                Act::ControlRemove { .. } => front.remove(&request, &replies).await,
                _ => front.forward(&request, &replies).await,
            };
            // Whoever asked may have gone.
            let _ = replies.send(last).await;
        })
    }
}

fn row(id: NodeId, member: &Member, standing: Option<&Standing>) -> MemberRow {
    MemberRow {
        node: member.name.clone(),
        voter: format!("{:016x}", id.get()),
        state: if member.votes { "voter" } else { "learner" }.to_owned(),
        answers: standing.map(|standing| standing.answering.contains(&id)),
        behind: standing.and_then(|standing| standing.behind.get(&id).copied()),
    }
}

fn json<T: serde::Serialize>(value: &T) -> Body {
    match serde_json::to_value(value) {
        Ok(value) => Body::Ok(value),
        Err(error) => Body::Error(Problem::new(Code::Failed, "an answer is JSON", error.to_string(), "")),
    }
}

impl Front {
    fn version(&self) -> Body {
        json(&Version { node: self.node.clone(), version: env!("CARGO_PKG_VERSION").to_owned() })
    }

    async fn control_status(&self) -> Body {
        let group = self.seat.group();
        let book = self.seat.keeper().now();
        let members = group.as_ref().map(|group| group.members());
        let members = members.or_else(|| Some(book.as_ref()?.members.clone().into())).unwrap_or_default();
        let voters = members.iter().filter(|(_, member)| member.votes);
        let mut answer = ControlStatus {
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            role: "none".to_owned(),
            term: 0,
            leader: self.leader.name(),
            voters: voters.map(|(_, member)| member.name.clone()).collect(),
            group: book.map(|book| book.group.to_string()),
            members: members.iter().map(|(id, member)| row(id, member, None)).collect(),
            change: members.learner().map(|(_, name)| format!("{name} learns, and will vote")),
            applied: 0,
            committed: 0,
            log: (0, 0),
            quorum_age_ms: None,
            condition: self.seat.out_of_order().unwrap_or_else(|| "does not vote".to_owned()),
            session: self.leader.name(),
        };
        let Some(group) = group else { return json(&answer) };
        match group.status().await {
            Some(status) => {
                let standing = Some(&status.standing).filter(|_| status.view.role == Role::Leader);
                answer.members = members.iter().map(|(id, member)| row(id, member, standing)).collect();
                let votes = members.get(status.id).is_some_and(|member| member.votes);
                answer.role = match status.view.role {
                    Role::Follower if !votes => "learner".to_owned(),
                    role => format!("{role:?}").to_lowercase(),
                };
                answer.term = status.view.term;
                answer.leader = group.leader();
                answer.applied = status.view.applied;
                answer.committed = status.committed;
                answer.log = status.log;
                let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                answer.quorum_age_ms = status.quorum_age.map(ms);
                answer.condition = status.view.condition.to_string();
            }
            None => answer.condition = "its voter has stopped".to_owned(),
        }
        json(&answer)
    }

    /// One that leads hands on before it goes, and its successor is asked: nothing was proposed before, or it is done once.
    async fn remove(&self, request: &Request, replies: &mpsc::Sender<Body>) -> Body {
        let since = Instant::now();
        loop {
            let answer = self.forward(request, replies).await;
            let passes = match &answer {
                Body::Error(problem) => match problem.code {
                    Code::Unavailable => true,
                    Code::Unknown => request.request_id.is_some(),
                    Code::Invalid | Code::NotFound | Code::Refused | Code::Failed => false,
                },
                Body::Event(_) | Body::Ok(_) => false,
            };
            if !passes || since.elapsed() > HAND_ON_TIMEOUT {
                return answer;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn forward(&self, request: &Request, replies: &mpsc::Sender<Body>) -> Body {
        let group = self.seat.group();
        if let Some(group) = &group
            && let Some(answered) = desk::planted::stale_read(group, &request.act).await
        {
            return answered.map_or_else(Body::Error, Body::Ok);
        }
        let looks = desk::only_looks(&request.act);
        // Whoever only looks is told at once what is known, and that it may be old.
        let patience = if looks && group.is_some() { LEADER_TIMEOUT / 4 } else { LEADER_TIMEOUT };
        if !self.leader.wait(patience).await {
            return self.without_leader(request).await;
        }
        match self.at_leader(request, replies).await {
            Body::Error(problem) if problem.code == Code::Unavailable && looks => {
                self.without_leader(request).await
            }
            body => body,
        }
    }

    async fn without_leader(&self, request: &Request) -> Body {
        if let Some(group) = self.seat.group().filter(|_| desk::only_looks(&request.act)) {
            return desk::look(&group, request.act.clone()).await.map_or_else(Body::Error, Body::Ok);
        }
        let message = format!("node {} knows no leader of cluster {}", self.node, self.cluster);
        let hint = "nothing was asked of anybody; godwit control status on each voter says how it stands";
        Body::Error(Problem::new(Code::Unavailable, "a quorum of voters must have a leader", message, hint))
    }

    async fn at_leader(&self, request: &Request, replies: &mpsc::Sender<Body>) -> Body {
        let unknown = |why: String| {
            let hint = "look how things stand (status, show), and ask again if it was not done";
            Body::Error(Problem::new(Code::Unknown, "the leader must stay until it has answered", why, hint))
        };
        let Ok(line) = serde_json::to_string(request) else {
            return unknown("the request is no JSON".to_owned());
        };
        let mut answers = match self.leader.begin(&Ask::Admin(line)).await {
            Ok(answers) => answers,
            Err(AskError::NoSession) => return self.without_leader(request).await,
            Err(AskError::Lost(why)) => return unknown(why),
        };
        loop {
            let line = match frames::read::<Answer>(&mut answers, "answer", PUSH_BYTES_MAX).await {
                Ok(Some(Answer::Line(line))) => line,
                Ok(Some(other)) => return unknown(format!("the leader answered {other:?}")),
                Ok(None) => return unknown("the leader ended without an answer".to_owned()),
                Err(error) => return unknown(chain(&error)),
            };
            match serde_json::from_str::<Reply>(&line) {
                Ok(Reply { body: event @ Body::Event(_), .. }) => {
                    if replies.send(event).await.is_err() {
                        return unknown("whoever asked has gone".to_owned());
                    }
                }
                Ok(Reply { body, .. }) => return body,
                Err(error) => return unknown(error.to_string()),
            }
        }
    }
}
