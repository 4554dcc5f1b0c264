//! The device state of a QEMU: everything about the machine that is not in its RAM, as QEMU's own migration writes it.
//!
//! ```text
//!   save   migrate-set-capabilities x-ignore-shared ─▶ migrate fd: ─▶ read here to its end ─▶ completed
//!   load   migrate-incoming fd: ─▶ written here ─▶ completed, stands still (-S)
//! ```
//!
//! The stream is a pair of sockets, of which QEMU is given one: it has no name that QEMU, whoever it runs as, would have to reach.
//!
//! Always true: it is saved from a machine that was stopped before, so a stream that breaks leaves it standing still and it can
//! be asked again; a state is read to its end or is none; what is larger than its cap is refused. Loading starts nothing.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use godwit_wire::handoff::STATE_BYTES_MAX;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::qmp::{Qmp, QmpError};

/// How long QEMU may take to write or read its state: it takes 6 to 14 ms. In post-copy it waits for pages while it reads.
const STATE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to be set as it was: whoever ends its keeper does not wait for long.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it is asked how far it is, if it does not tell.
const LOOK: Duration = Duration::from_millis(2);
/// What QEMU knows its end of the stream by.
const NAME: &str = "godwit-state";

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("socket of the device state")]
    Socket(#[from] io::Error),
    #[error(
        "the device state is larger than {STATE_BYTES_MAX} bytes: is all of its RAM in the shared memory file?"
    )]
    TooLarge,
    #[error("QEMU says that its {what} {status}: {why}")]
    Failed { what: &'static str, status: String, why: String },
    #[error("QEMU did not end its {what} within {} s", STATE_TIMEOUT.as_secs())]
    Timeout { what: &'static str },
}

/// What is on for as long as a keeper has it: RAM is not in the stream; events tell its end at once; disks are opened when the
/// guest runs, and not before.
const CAPABILITIES: [&str; 3] = ["x-ignore-shared", "events", "late-block-activate"];

/// How it was set before a keeper had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Before {
    /// Of [`CAPABILITIES`], those that were off.
    off: Vec<String>,
    /// Bytes per second; 0: unlimited.
    bandwidth_max: u64,
}

/// Sets what both sides agree on before anything moves.
pub(super) fn prepare(qmp: &mut Qmp) -> Result<Before, QmpError> {
    let all = qmp.execute("query-migrate-capabilities", json!({}))?;
    let is_on = |name: &str| {
        let mut all = all.as_array().into_iter().flatten();
        all.any(|one| one.get("capability") == Some(&json!(name)) && one.get("state") == Some(&json!(true)))
    };
    let off = CAPABILITIES.iter().filter(|name| !is_on(name)).map(|name| (*name).to_owned()).collect();
    let parameters = qmp.execute("query-migrate-parameters", json!({}))?;
    let bandwidth_max = parameters.get("max-bandwidth").and_then(Value::as_u64).unwrap_or(0);
    qmp.execute("migrate-set-capabilities", capabilities(&CAPABILITIES, true))?;
    // Unlimited. Its own limit, 128 MiB/s, would stand in the way of some hundred kilobytes.
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 0 }))?;
    Ok(Before { off, bandwidth_max })
}

/// Sets it as it was.
pub(super) fn restore(qmp: &mut Qmp, before: &Before) -> Result<(), QmpError> {
    let limit = Some(RESTORE_TIMEOUT);
    qmp.execute_within("migrate-set-capabilities", capabilities(&before.off, false), limit)?;
    let bandwidth = json!({ "max-bandwidth": before.bandwidth_max });
    qmp.execute_within("migrate-set-parameters", bandwidth, limit)?;
    Ok(())
}

fn capabilities<N: AsRef<str>>(names: &[N], state: bool) -> Value {
    let one = |name: &N| json!({ "capability": name.as_ref(), "state": state });
    json!({ "capabilities": names.iter().map(one).collect::<Vec<_>>() })
}

/// The state of a machine that stands still.
pub(super) fn save(qmp: &mut Qmp) -> Result<Vec<u8>, StateError> {
    let stream = stream(qmp)?;
    qmp.execute("migrate", json!({ "uri": uri() }))?;
    stream.set_read_timeout(Some(STATE_TIMEOUT))?;
    let mut state = Vec::with_capacity(STATE_BYTES_MAX / 2);
    let cap = planted::cut().unwrap_or(STATE_BYTES_MAX as u64 + 1);
    (&stream).take(cap).read_to_end(&mut state)?;
    // Too much of it, and the reader goes away: that is the stream's end for QEMU, which stays as it is.
    drop(stream);
    let outcome = ended(qmp, "save");
    if state.len() > STATE_BYTES_MAX {
        return Err(StateError::TooLarge);
    }
    outcome.map(|()| state)
}

/// Loads a state into a machine that waits for one.
pub(super) fn load(qmp: &mut Qmp, state: &[u8]) -> Result<(), StateError> {
    let mut stream = stream(qmp)?;
    qmp.execute("migrate-incoming", json!({ "uri": uri() }))?;
    stream.set_write_timeout(Some(STATE_TIMEOUT))?;
    let written =
        stream.write_all(planted::half(state)).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
    match written {
        // It reads no further when it has refused what it has read, and says why.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => ended(qmp, "load"),
    }
}

/// A stream to QEMU, whose end of it is known by [`NAME`].
fn stream(qmp: &mut Qmp) -> Result<UnixStream, StateError> {
    let (ours, theirs) = UnixStream::pair()?;
    qmp.give(NAME, theirs.as_fd())?;
    Ok(ours)
}

fn uri() -> String {
    format!("fd:{NAME}")
}

/// Waits until it has ended.
fn ended(qmp: &mut Qmp, what: &'static str) -> Result<(), StateError> {
    let deadline = Instant::now() + STATE_TIMEOUT;
    while Instant::now() < deadline {
        let said = qmp.execute("query-migrate", json!({}))?;
        let text = |name: &str| said.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        match text("status").as_str() {
            "completed" => return Ok(()),
            "failed" | "cancelled" => {
                let why = match text("error-desc") {
                    why if why.is_empty() => "see qemu.log in the runner's folder".to_owned(),
                    why => why,
                };
                return Err(StateError::Failed { what, status: text("status"), why });
            }
            _ => {
                // It tells by an event when that changes; where it does not, it is asked again.
                qmp.event(Instant::now() + LOOK)?;
            }
        }
    }
    Err(StateError::Timeout { what })
}

/// Broken streams, switched on by tests. Nothing in a real build.
mod planted {
    #[cfg(feature = "planted-bugs")]
    use std::sync::atomic::{AtomicU64, Ordering};

    /// About a tenth of a state.
    #[cfg(feature = "planted-bugs")]
    const TENTH_BYTES: u64 = 63_000;

    /// After how many bytes the reader of a saved state goes away: a tenth more each time, and at last not at all.
    pub(super) fn cut() -> Option<u64> {
        #[cfg(feature = "planted-bugs")]
        if godwit_domain::planted::is_on("state-cut") {
            static TIMES: AtomicU64 = AtomicU64::new(0);
            let times = TIMES.fetch_add(1, Ordering::Relaxed) + 1;
            return (times < 10).then_some(times * TENTH_BYTES);
        }
        None
    }

    /// What is loaded of a state.
    pub(super) fn half(state: &[u8]) -> &[u8] {
        if godwit_domain::planted::is_on("state-half") {
            return state.get(..state.len() / 2).unwrap_or_default();
        }
        state
    }
}
