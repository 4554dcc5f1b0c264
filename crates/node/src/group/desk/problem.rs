//! What can be wrong with a request: each with its rule, and what would satisfy it.

use godwit_domain::registry::Refusal;
use godwit_domain::{GuestName, MigrationId, NodeName};
use godwit_wire::admin::{Code, Problem};

use super::NotAgreed;

pub(super) fn no_guest(guest: &GuestName) -> Problem {
    let message = format!("no guest {guest}");
    Problem::new(Code::NotFound, "the guest must exist", message, "godwit guest list shows those that do")
}

pub(super) fn no_migration(migration: &MigrationId) -> Problem {
    let message = format!("no migration {migration}");
    let hint = "godwit migration list shows those that are kept: the last six of each guest";
    Problem::new(Code::NotFound, "the migration must be kept", message, hint)
}

pub(super) fn no_node(node: &NodeName) -> Problem {
    let message = format!("no node {node}");
    let hint = "a node joins by itself when it is started; godwit node list shows those that have";
    Problem::new(Code::NotFound, "the node must have joined", message, hint)
}

pub(super) fn unreachable(node: &NodeName) -> Problem {
    let message = format!("node {node} has no session with the leader");
    let hint = format!(
        "see whether its process runs and the network is whole; if the machine is off for good: godwit node fence {node}"
    );
    Problem::new(Code::Failed, "the node must be reachable", message, hint)
}

pub(super) fn refused(rule: &str, message: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem::new(Code::Refused, rule, message, hint)
}

pub(super) fn not_found(rule: &str, message: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem::new(Code::NotFound, rule, message, hint)
}

pub(super) fn too_long(bytes: usize) -> Problem {
    let message = format!("the answer has {bytes} bytes, more than are sent at once");
    Problem::new(
        Code::Failed,
        "an answer has 4 MiB at most",
        message,
        "ask for one thing, or one namespace, instead of all",
    )
}

pub(super) fn failed(rule: &str, message: impl Into<String>) -> Problem {
    Problem::new(Code::Failed, rule, message, "see the node's log")
}

pub(super) fn gone() -> Problem {
    Problem::new(
        Code::Unavailable,
        "the voter must live",
        "this node's voter has stopped",
        "see the node's log",
    )
}

pub(super) fn not_here() -> Problem {
    Problem::new(
        Code::Invalid,
        "the request must be one of the leader's",
        "it is answered by each node itself",
        "ask a node",
    )
}

pub(super) fn no_quorum() -> Problem {
    let message = "no quorum of the control group answers";
    let hint = "nothing can be agreed until more than half of the voters are back; godwit control status on each says who";
    Problem::new(Code::Unavailable, "a quorum of voters must answer", message, hint)
}

pub(super) fn contended() -> Problem {
    let message = "others change it again and again at this moment; nothing was done";
    Problem::new(Code::Unavailable, "a change meets what was looked at", message, "ask again in a moment")
}

pub(super) fn handed_on(node: &NodeName) -> Problem {
    let message = format!("node {node} has led and hands the leadership on; nothing was proposed");
    Problem::new(
        Code::Unavailable,
        "a leader that is removed hands on first",
        message,
        "ask again in a moment",
    )
}

pub(super) fn leadership_lost() -> Problem {
    let message = "the leadership was lost while the answer was waited for";
    Problem::new(Code::Unknown, "the leader must stay", message, "look how things stand, and ask again")
}

impl From<NotAgreed> for Problem {
    fn from(error: NotAgreed) -> Self {
        match error {
            NotAgreed::Refused(refusal) => of_refusal(&refusal),
            NotAgreed::Forbidden(rule) => super::members::of_rule(rule),
            NotAgreed::NotTaken(why) => {
                Self::new(Code::Unavailable, "the leader must take it", why, "ask again in a moment")
            }
            NotAgreed::Unknown => {
                let hint = "look how things stand (status, show), and ask again if it was not done";
                Self::new(Code::Unknown, "the leader must stay until it is agreed", error.to_string(), hint)
            }
        }
    }
}

fn of_refusal(refusal: &Refusal) -> Problem {
    let (code, rule, hint) = match refusal {
        Refusal::NoGuest(_) => (Code::NotFound, "the guest must exist", "godwit guest list"),
        Refusal::NoNode(_) => (Code::NotFound, "the node must have joined", "godwit node list"),
        Refusal::NoMigration(_) => (Code::NotFound, "the migration must be kept", "godwit migration list"),
        Refusal::IsOver(_) => (Code::Refused, "the migration must not be over", "ask for another"),
        Refusal::NameTaken(_) => (Code::Refused, "a name is used once at a time", "choose another name"),
        Refusal::UidTaken(_) => (Code::Refused, "a number is used once", "ask again"),
        Refusal::MigrationTaken(_) => (
            Code::Refused,
            "a migration's name is one request's",
            "choose another name, or ask in the same words",
        ),
        Refusal::Fenced(_) => (
            Code::Refused,
            "a fenced node takes nothing",
            "start its node process: it stops what it must, and says so",
        ),
        Refusal::OtherBoot { .. } => (Code::Refused, "a vouch is about one boot", "look at the node again"),
        Refusal::NodeInUse { .. } => {
            (Code::Refused, "a node that is removed holds nothing", "move or stop its guests first")
        }
        Refusal::NoMemory { .. } => (
            Code::Refused,
            "the guest must fit into the node's free memory",
            "choose another node, a smaller guest, or raise `memory` in the node's config",
        ),
        Refusal::Waits { .. } => (Code::Refused, "limits hold", "it is admitted in its turn"),
        Refusal::NotOver(_) => {
            (Code::Refused, "only what is over is forgotten", "godwit migration cancel NAME")
        }
        Refusal::Invalid(_) => {
            (Code::Refused, "a value must be one that the key takes", "docs/settings.md has each")
        }
        Refusal::NoPolicy(_) => (Code::NotFound, "the policy must exist", "godwit policy list"),
        Refusal::NoNamespace(_) => (Code::NotFound, "the project must be known", "godwit get ns"),
        Refusal::NoMachine(_) => (Code::NotFound, "the VirtualMachine must exist", "godwit get vm -A"),
        Refusal::NoBody(_) => (
            Code::Refused,
            "a new guest says how much memory it has",
            "spec.template.spec.domain.memory.guest: 1Gi",
        ),
        Refusal::Fixed { .. } => (
            Code::Refused,
            "what a guest is made of stays while it runs",
            "godwit guest stop NAME, then apply again",
        ),
        Refusal::Ending(_) => {
            (Code::Refused, "a name is used once at a time", "wait until it is gone: godwit guest list")
        }
        Refusal::PostCopy { .. } => (
            Code::Refused,
            "a guest goes post-copy where allowPostCopy is in force for it, and never if it is critical",
            "see what holds for it: godwit policy explain GUEST",
        ),
        Refusal::LocalDisks { .. } => {
            (Code::Refused, "a guest that moves has no local disks", "block migration is not built")
        }
        Refusal::Cordoned(_) => {
            (Code::Refused, "a cordoned node takes no guests", "godwit node uncordon NODE")
        }
        Refusal::NoDrain(_) => (Code::NotFound, "the node must be drained", "godwit drain NODE"),
        Refusal::RequestTaken(_) => {
            (Code::Refused, "a request id is one request's", "leave --request-id out, and one is made")
        }
        Refusal::MetOther(_) => {
            (Code::Unavailable, "a change meets what was looked at", "ask again in a moment")
        }
        Refusal::Labelled { .. } => {
            (Code::Refused, "a label that is there is not changed by chance", "--overwrite")
        }
        Refusal::NotByEntry(_) => (Code::Refused, "it is agreed on in another way", "ask for a migration"),
        Refusal::Ownership(_) => {
            (Code::Refused, "ownership", "godwit guest show NAME says how the guest stands")
        }
    };
    Problem::new(code, rule, refusal.to_string(), hint)
}
