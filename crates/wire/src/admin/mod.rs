//! What an operator and a node say to each other over the admin socket: one JSON object per line.
//!
//! ```text
//!   {"v":1,"id":"…","do":"migrate","guest":"default/vm1","to":"node-b"}  ──▶
//!         ◀── {"id":"…","event":{…}}       none, one or many
//!         ◀── {"id":"…","ok":{…}}   or   {"id":"…","error":{"code","rule","message","try"}}
//! ```
//!
//! Always true: no line is above [`LINE_BYTES_MAX`]; units stand in the names of keys; a count above 2^53 - 1, which many
//! readers of JSON round, is refused; each request gets exactly one last line.

mod answers;
mod explained;

use std::collections::BTreeMap;

use godwit_domain::{GuestName, GuestSpec, InstanceId, Labels, MigrationId, NodeName, Overrides};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::handoff::Verified;

pub use answers::*;
pub use explained::*;

/// The version of this protocol.
pub const ADMIN_VERSION: u16 = 1;
/// Longest request, in bytes.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Longest answer, in bytes.
pub const REPLY_BYTES_MAX: usize = 4 << 20;
/// Longest id of a request, in bytes.
pub const ID_BYTES_MAX: usize = 128;
/// Greatest count that every reader of JSON takes as it stands.
pub const COUNT_MAX: u64 = (1 << 53) - 1;

/// What an operator asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`ADMIN_VERSION`].
    pub v: u16,
    /// Chosen by whoever asks, returned with every answer.
    pub id: String,
    /// The same for a request and its repetition: the second gets the first answer and has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What is asked.
    #[serde(flatten)]
    pub act: Act,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Act {
    /// The node's version. Answer: [`Version`].
    Version,
    /// The cluster at a glance. Answer: [`Status`].
    Status,
    /// How the asked node's voter and the group stand. Answered by the node that is asked. Answer: [`ControlStatus`].
    ControlStatus,
    /// Take a node into the control group; answered when it learns. Answer: [`MemberDetail`].
    ControlAdd {
        /// Which; it has joined, and answers.
        node: NodeName,
    },
    /// Take a node out of the control group. Answer: [`MemberDetail`].
    ControlRemove {
        /// Which.
        node: NodeName,
    },
    /// A node that is taken into the control group, until it votes or is in it no more. Events and answer: [`MemberDetail`].
    ControlWatch {
        /// Which.
        node: NodeName,
    },
    /// A backup of what is agreed. Events: its bytes, [`BackupPiece`] by piece. Answer: [`BackupMade`].
    ControlBackup,
    /// Every node. Answer: list of [`NodeRow`].
    NodeList,
    /// One node, with what is on it. Answer: [`NodeDetail`].
    NodeShow {
        /// Which.
        node: NodeName,
    },
    /// Move everything away from a node, which takes no guests any more. Answer: [`NodeDetail`].
    NodeDrain {
        /// Which.
        node: NodeName,
    },
    /// The drain of a node asks for nothing more; the node still takes no guests. Answer: [`NodeDetail`].
    NodeDrainCancel {
        /// Which.
        node: NodeName,
    },
    /// The drain of a node until nothing is left, or nothing more happens by itself. Events and answer: [`NodeDetail`].
    NodeDrainWatch {
        /// Which.
        node: NodeName,
    },
    /// A node takes guests again; its drain is over. Answer: [`NodeDetail`].
    NodeUncordon {
        /// Which.
        node: NodeName,
    },
    /// Vouch that a node is off. Answer: [`Fenced`].
    NodeFence {
        /// Which.
        node: NodeName,
        /// Fence it though it answers: it will stop its guests by itself.
        #[serde(default)]
        although_reachable: bool,
    },
    /// Forget a node that holds nothing. Answer: [`Done`].
    NodeRemove {
        /// Which.
        node: NodeName,
    },
    /// Make a guest; answered when it runs. Answer: [`GuestDetail`].
    GuestCreate {
        /// Its name.
        guest: GuestName,
        /// Where; the node with most free memory if not said.
        node: Option<NodeName>,
        /// What it is like.
        spec: GuestSpec,
        /// Its labels.
        #[serde(default)]
        labels: Labels,
    },
    /// Every guest. Answer: list of [`GuestRow`].
    GuestList,
    /// One guest. Answer: [`GuestDetail`].
    GuestShow {
        /// Which.
        guest: GuestName,
    },
    /// Compare a guest's memory with what it must hold. Answer: [`Verified`].
    GuestVerify {
        /// Which.
        guest: GuestName,
    },
    /// How a guest does, from its runner. Answer: [`GuestStats`].
    GuestStats {
        /// Which.
        guest: GuestName,
    },
    /// End a guest for good; answered when it is gone everywhere it can be reached. Answer: [`Done`].
    GuestStop {
        /// Which.
        guest: GuestName,
    },
    /// Press the power button of a guest that runs; answered when it is pressed, whatever the guest does then. Answer: [`Done`].
    GuestPowerButton {
        /// Which.
        guest: GuestName,
    },
    /// Forget a guest whose QEMU was adopted, and leave that running. Answer: [`Done`].
    GuestRelease {
        /// Which.
        guest: GuestName,
    },
    /// Run a lost guest again from the copy that is kept. Answer: [`GuestDetail`].
    GuestRecover {
        /// Which.
        guest: GuestName,
        /// It may be an older copy of the guest: needed.
        #[serde(default)]
        accept_rollback: bool,
        /// Which copy; needed only where there are two.
        instance: Option<InstanceId>,
    },
    /// Move a guest; answered when the migration is agreed on, at once. Answer: [`MigrationDetail`].
    Migrate {
        /// Which.
        guest: GuestName,
        /// The migration's name; made from the guest's if not said.
        migration: Option<MigrationId>,
        /// Where to; anywhere if not said.
        to: Option<NodeName>,
        /// Labels that its target must carry, for this attempt alone.
        #[serde(default)]
        selector: Labels,
        /// Its settings above the policy's.
        #[serde(default)]
        overrides: Overrides,
        /// How it moves; as its settings say if not said.
        #[serde(default)]
        mode: Option<MoveMode>,
        /// Only say where it would go, and why not elsewhere. Answer: [`Verdicts`].
        #[serde(default)]
        dry_run: bool,
    },
    /// Every migration that is kept. Answer: list of [`MigrationRow`].
    MigrationList,
    /// One migration. Answer: [`MigrationDetail`].
    MigrationShow {
        /// Which.
        migration: MigrationId,
    },
    /// Why a migration waits, goes where it goes, and under which settings. Answer: [`MigrationExplained`].
    MigrationExplain {
        /// Which.
        migration: MigrationId,
    },
    /// One migration until it is over. Events and answer: [`MigrationDetail`].
    MigrationWatch {
        /// Which.
        migration: MigrationId,
    },
    /// Change a migration's settings, at once. Answer: [`MigrationDetail`].
    MigrationSet {
        /// Which.
        migration: MigrationId,
        /// What is set; the rest stays.
        overrides: Overrides,
    },
    /// End a migration before its hand-over. Answer: [`MigrationDetail`].
    MigrationCancel {
        /// Which.
        migration: MigrationId,
    },
    /// Which policy a guest gets, and why not another. Answer: [`Explained`].
    PolicyExplain {
        /// Which.
        guest: GuestName,
    },
    /// Make an object as a manifest has it. Answer: [`Applied`].
    Apply {
        /// One object, as [`crate::manifest`] reads it.
        object: Value,
        /// The namespace of objects that name none.
        #[serde(default)]
        namespace: Option<String>,
        /// It must not be there yet.
        #[serde(default)]
        create: bool,
        /// Only say what would be done.
        #[serde(default)]
        dry_run: bool,
    },
    /// Objects of a kind. Events, where they are watched, and answer: [`Objects`].
    Get {
        /// The kind, or a short name of it.
        kind: String,
        /// One of this name.
        #[serde(default)]
        name: Option<String>,
        /// In this namespace; in all if not said.
        #[serde(default)]
        namespace: Option<String>,
        /// Say again what has changed, until whoever asks goes away.
        #[serde(default)]
        watch: bool,
    },
    /// Remove an object. Answer: [`Applied`].
    Delete {
        /// The kind, or a short name of it.
        kind: String,
        /// Its name.
        name: String,
        /// Its namespace.
        #[serde(default)]
        namespace: Option<String>,
        /// Only say what would be done.
        #[serde(default)]
        dry_run: bool,
    },
    /// Change labels of an object. Answer: [`Applied`].
    Label {
        /// The kind, or a short name of it.
        kind: String,
        /// Its name.
        name: String,
        /// Its namespace.
        #[serde(default)]
        namespace: Option<String>,
        /// Labels to set, and, without a value, to remove.
        labels: BTreeMap<String, Option<String>>,
        /// A label that has another value may be changed.
        #[serde(default)]
        overwrite: bool,
        /// Only say what would be done.
        #[serde(default)]
        dry_run: bool,
    },
}

/// How a guest moves, where that is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveMode {
    /// Pages first, then the guest.
    PreCopy,
    /// The guest at once, its pages after it.
    PostCopy,
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's.
    pub id: String,
    /// What is answered.
    #[serde(flatten)]
    pub body: Body,
}

/// What a line of an answer says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Body {
    /// More follows.
    Event(Value),
    /// Done.
    Ok(Value),
    /// Not done, or not known.
    Error(Problem),
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// What kind.
    pub code: Code,
    /// The rule that it breaks, in a few words.
    pub rule: String,
    /// For people.
    pub message: String,
    /// What would satisfy the rule.
    #[serde(rename = "try")]
    pub try_: String,
}

/// Kinds of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The line is no request.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// A rule forbids it; nothing has changed.
    Refused,
    /// It was tried and failed.
    Failed,
    /// Nobody can be asked who would know; nothing was proposed.
    Unavailable,
    /// It may or may not be done, now or later.
    Unknown,
}

impl Code {
    /// The exit code of a command that ends with it: 1 refused or failed, 2 usage, 3 outcome unknown.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::NotFound | Self::Refused | Self::Failed => 1,
            Self::Invalid => 2,
            Self::Unavailable | Self::Unknown => 3,
        }
    }
}

/// A digest of what is asked, by which a repeated request is told from another one.
pub fn digest(act: &Act) -> Result<u64, serde_json::Error> {
    Ok(xxhash_rust::xxh3::xxh3_64(serde_json::to_string(act)?.as_bytes()))
}

/// The greatest count in a value, if it is above [`COUNT_MAX`].
pub fn count_too_large(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().filter(|count| *count > COUNT_MAX),
        Value::Array(items) => items.iter().find_map(count_too_large),
        Value::Object(fields) => fields.values().find_map(count_too_large),
        Value::Null | Value::Bool(_) | Value::String(_) => None,
    }
}

impl Problem {
    /// With all that it says.
    pub fn new(
        code: Code,
        rule: impl Into<String>,
        message: impl Into<String>,
        try_: impl Into<String>,
    ) -> Self {
        Self { code, rule: rule.into(), message: message.into(), try_: try_.into() }
    }
}

impl Verified {
    /// Whether every page holds what it must.
    pub fn is_whole(&self) -> bool {
        self.wrong == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_documentation_says() {
        let line = r#"{"v":1,"id":"x","do":"migrate","guest":"default/vm1","to":"node-b"}"#;
        let request: Request = serde_json::from_str(line).expect("a request");
        let Act::Migrate { guest, to, migration, overrides, .. } = request.act else { panic!("{request:?}") };
        assert_eq!(
            (guest.to_string().as_str(), to.map(|to| to.to_string())),
            ("default/vm1", Some("node-b".into()))
        );
        assert_eq!((migration, overrides), (None, Overrides::default()));
        let reply = Reply { id: "x".into(), body: Body::Ok(Value::from(1)) };
        assert_eq!(serde_json::to_string(&reply).expect("JSON"), r#"{"id":"x","ok":1}"#);
        let problem = Problem::new(Code::NotFound, "guest", "no guest", "create it");
        let reply = Reply { id: "x".into(), body: Body::Error(problem) };
        assert_eq!(
            serde_json::to_string(&reply).expect("JSON"),
            r#"{"id":"x","error":{"code":"not-found","rule":"guest","message":"no guest","try":"create it"}}"#
        );
    }

    #[test]
    fn a_count_that_readers_round_is_found_wherever_it_stands() {
        let value = serde_json::json!({"a": [1, {"b": 9_007_199_254_740_992_u64}]});
        assert_eq!(count_too_large(&value), Some(1 << 53));
        assert_eq!(count_too_large(&serde_json::json!({"a": 9_007_199_254_740_991_u64})), None);
    }
}
