//! What a runner and its node say to each other over the hand-off socket. `docs/handoff.md` is the same in prose.
//!
//! ```text
//!   node connects ──▶ runner: one line Hello, with three descriptors (memory, userfaultfd, pagemap)
//!   node  {"id":1,"do":"pause","epoch":4}        ──▶
//!         ◀── runner {"id":1,"ok":{"kind":"done"}}   or   {"id":1,"error":{"rule":"…","message":"…"}}
//! ```
//!
//! A device state follows the line that says how many bytes it has: it is no text, and a guest stands still meanwhile.
//!
//! Always true: one JSON object per line, no line above [`LINE_BYTES_MAX`]; the runner speaks only when asked,
//! but for Hello; of several connections the last one wins and unread commands of the others are dropped.

use godwit_domain::{Epoch, GuestName, InstanceId, NodeName};
use serde::{Deserialize, Serialize};

/// The version of this protocol. A node refuses a runner that speaks another, by name.
pub const HANDOFF_VERSION: u16 = 1;

/// Longest line, in bytes.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// Largest device state that a runner may save, in bytes. QEMU's is 0.3-0.7 MB; three times that is room enough.
pub const STATE_BYTES_MAX: usize = 2 << 20;

/// The first line of every connection, said by the runner. Three descriptors travel with it, in this order:
/// the memory file, a userfaultfd made by the runner's process, its open `/proc/self/pagemap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`HANDOFF_VERSION`].
    pub v: u16,
    /// The guest that the runner holds.
    pub guest: GuestName,
    /// This runner process.
    pub instance: InstanceId,
    /// The node that made the runner.
    pub node: NodeName,
    /// The runner's process id, for people.
    pub pid: u32,
    /// The guest's RAM, in ascending and gapless order of `offset_bytes`. One region today; a list so that a
    /// machine with a hole below 4 GiB needs no new version.
    pub regions: Vec<Region>,
    /// How the runner stands.
    pub standing: Standing,
}

/// A piece of guest RAM: where it lies in the memory file and where the runner has mapped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Address in the runner's own address space. The userfaultfd and the pagemap speak in these.
    pub address: u64,
    /// Length in bytes; a multiple of 4,096.
    pub bytes: u64,
    /// Offset in the memory file, in bytes.
    pub offset_bytes: u64,
}

/// What a runner knows of itself. It dies with the runner, which is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// What it does now.
    pub state: RunState,
    /// The highest epoch that it ran under or that is sealed; 0 if it never ran. A resume must be above it.
    pub epoch: Epoch,
    /// The epoch of the state it has loaded, if it has loaded one and not run since.
    pub loaded: Option<Epoch>,
}

/// The three states of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Made to receive a guest; has never run.
    Incoming,
    /// The guest runs.
    Running,
    /// Sealed and paused.
    Paused,
}

/// One command of the node. Fields that a runner does not know are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the node, returned in the reply.
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub command: Command,
}

/// What a node may ask of a runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Command {
    /// Seal this epoch and stand still. Refused if the runner runs under another. Repeated: the same answer.
    Pause {
        /// The epoch the runner runs under.
        epoch: Epoch,
    },
    /// Give the device state. Only when paused; always the same bytes until resumed.
    Save,
    /// Take a device state. Only when incoming, or paused and never run.
    Load {
        /// The epoch that was sealed when it was saved.
        epoch: Epoch,
        /// Its size, at most [`STATE_BYTES_MAX`]. So many bytes follow the line.
        bytes: u32,
    },
    /// Run under this epoch, which must be above every epoch this runner ran under or sealed. To a running
    /// guest: note the new epoch and run on.
    Resume {
        /// The licence's epoch.
        epoch: Epoch,
    },
    /// Let the guest's writers run this share of the time less, 0 to 99.
    Throttle {
        /// Percent of time taken away.
        percent: u8,
    },
    /// Compare every page with what it must hold. The guest stands still meanwhile.
    Verify,
    /// Leave the guest's process running at `stop`. Of a QEMU that was adopted alone.
    Release,
    /// Press the power button of a guest that runs. Of a virtual machine alone: what it does about it is for the guest to say.
    PowerButton,
    /// Say how things stand.
    Stats,
    /// End the process; the guest's memory is gone.
    Stop,
}

/// One answer of a runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's id.
    pub id: u64,
    /// The outcome.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done.
    Ok(Answer),
    /// It was refused and nothing has changed.
    Error(Refusal),
}

/// What a refused command broke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("runner refused ({rule}): {message}")]
pub struct Refusal {
    /// The rule, one word: `epoch`, `state`, `range`, `format`.
    pub rule: String,
    /// A sentence for people.
    pub message: String,
}

/// The contents of a good answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Answer {
    /// Done; nothing more to say.
    Done,
    /// To [`Command::Save`].
    State {
        /// The device state's size, at most [`STATE_BYTES_MAX`]. So many bytes follow the line.
        bytes: u32,
    },
    /// To [`Command::Verify`].
    Verified(Verified),
    /// To [`Command::Stats`].
    Stats(Stats),
}

/// The result of comparing every page with what it must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Pages compared, that is all of them.
    pub pages: u64,
    /// Pages that hold something else than they must.
    pub wrong: u64,
    /// The first few wrong pages' numbers, for people.
    pub first_wrong: Vec<u64>,
    /// How long the comparison took, in milliseconds.
    pub took_ms: u64,
}

/// How a guest does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// As in [`Hello`].
    pub standing: Standing,
    /// Size of RAM in bytes.
    pub memory_bytes: u64,
    /// Asked dirty rate, bytes per second.
    pub dirty_rate_asked: u64,
    /// Achieved dirty rate over the last second or so of running, bytes per second.
    pub dirty_rate_achieved: u64,
    /// Pages written since the guest was made, on whatever host, first fill not counted.
    pub pages_written: u64,
    /// Time the guest has run, on whatever host, in microseconds.
    pub running_us: u64,
    /// The last tick written.
    pub tick: u64,
    /// Throttle in percent.
    pub throttle_percent: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_as_documented() {
        let request = Request { id: 1, command: Command::Pause { epoch: Epoch(4) } };
        assert_eq!(
            serde_json::to_string(&request).expect("serialises"),
            r#"{"id":1,"do":"pause","epoch":4}"#
        );
        let text = r#"{"do":"pause","epoch":4,"id":1,"later":true}"#;
        assert_eq!(serde_json::from_str::<Request>(text).expect("parses"), request);
        let reply = Reply { id: 1, outcome: Outcome::Ok(Answer::Done) };
        assert_eq!(serde_json::to_string(&reply).expect("serialises"), r#"{"id":1,"ok":{"kind":"done"}}"#);
        let refusal = Refusal { rule: "epoch".into(), message: "epoch 3 is sealed".into() };
        let reply = Reply { id: 2, outcome: Outcome::Error(refusal) };
        let text = serde_json::to_string(&reply).expect("serialises");
        assert_eq!(text, r#"{"id":2,"error":{"rule":"epoch","message":"epoch 3 is sealed"}}"#);
        assert_eq!(serde_json::from_str::<Reply>(&text).expect("parses"), reply);
    }
}
