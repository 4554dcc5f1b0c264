//! Why a QEMU ended by itself, in words for whoever finds its guest lost.
//!
//! ```text
//!   QMP's last event, SHUTDOWN ──┐
//!   how its process ended ───────┼─▶ one line ─▶ DIR/ended ─▶ the node that has seen the runner end: its log, `guest show`
//!   the last line of qemu.log ───┘
//! ```
//!
//! Always true: the line has no control characters and is at most [`WORDS_CHARS_MAX`] characters long, whoever wrote what it quotes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde_json::Value;

use super::kept::Kept;
use super::qmp::Qmp;

/// Its file in a runner's folder.
const NAME: &str = "ended";
/// Longest line that is told, in characters.
pub const WORDS_CHARS_MAX: usize = 500;
/// Most that is read of a file's end, in bytes.
const TAIL_BYTES_MAX: u64 = 4 << 10;
/// How long the last events of a socket whose other end is gone may take.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(1);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It was no child of ours: nobody tells us.
    Unknown,
}

/// How this process ended, which must be over. If it is a child, it is no zombie afterwards.
pub(super) fn how(process: &OwnedFd) -> How {
    match waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(status), _) => How::Exited(status),
            (None, Some(signal)) => How::Killed(signal),
            (None, None) => How::Unknown,
        },
        Ok(None) | Err(_) => How::Unknown,
    }
}

/// Whether a process ends within so long.
pub(super) fn within(process: &OwnedFd, limit: Duration) -> bool {
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    let limit = Timespec::try_from(limit).ok();
    poll(&mut ended, limit.as_ref()).is_ok_and(|ready| ready > 0)
}

/// The reason of the last `SHUTDOWN` among what a QEMU that has ended has left to read.
pub(super) fn reason(qmp: &mut Qmp) -> Option<String> {
    let (mut last, deadline) = (None, Instant::now() + EVENTS_TIMEOUT);
    while let Ok(Some(event)) = qmp.event(deadline) {
        if event.get("event").and_then(Value::as_str) == Some("SHUTDOWN") {
            last = event.pointer("/data/reason").and_then(Value::as_str).map(str::to_owned);
        }
    }
    last
}

/// What is told of an end. `pressed`: its power button was.
pub(super) fn words(reason: Option<&str>, how: How, pressed: bool, log: Option<&str>) -> String {
    let mut told = match (reason, how) {
        (Some("guest-shutdown"), _) => "the guest shut itself down".to_owned(),
        (Some("guest-reset"), _) => {
            "the guest asked for a reset, by a reboot or a panic, and its QEMU ends at one (-no-reboot); console.log has \
             what it said"
                .to_owned()
        }
        (Some("guest-panic"), _) => "the guest panicked".to_owned(),
        (Some("host-signal"), _) => "a signal told QEMU to end".to_owned(),
        (Some("host-qmp-quit"), _) => "somebody told QEMU to quit over another control socket".to_owned(),
        (Some(_), _) => "QEMU ended by itself".to_owned(),
        (None, How::Exited(status)) => format!("QEMU exited with status {status}"),
        (None, How::Killed(signal)) => format!("QEMU was killed by signal {signal}"),
        (None, How::Unknown) => "QEMU's process has ended".to_owned(),
    };
    if let Some(reason) = reason {
        told.push_str(&format!(" (QEMU says: {reason})"));
    }
    if pressed {
        told.push_str(", after its power button was pressed");
    }
    // An end in order leaves nothing to look for.
    let in_order = reason.is_some() && matches!(how, How::Exited(0) | How::Unknown);
    if let Some(log) = log.filter(|_| !in_order) {
        told.push_str(&format!("; the end of qemu.log: {log}"));
    }
    plain(&told)
}

/// The last line of QEMU's own log in this folder.
pub(super) fn log(dir: &Path) -> Option<String> {
    let text = tail(&dir.join("qemu.log")).ok()?;
    let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(last.to_owned())
}

/// Leaves the words in a runner's folder.
///
/// # Errors
/// What the system said.
pub(super) fn leave(dir: &Path, words: &str) -> io::Result<()> {
    // Whoever reads it waits for this process to end first.
    std::fs::write(dir.join(NAME), words)
}

/// Why the QEMU of this runner's folder ended; `None`: it is none of QEMU's, or it was ended and not by itself.
pub fn why_ended(dir: &Path) -> Option<String> {
    match tail(&dir.join(NAME)) {
        Ok(told) => Some(plain(&told)),
        // Its keeper, which would have said more, is gone with it. One that lives has not ended.
        Err(_) if Kept::read(dir).and_then(|kept| kept.lives()).is_ok_and(|lives| !lives) => {
            let log = log(dir).map_or_else(String::new, |log| format!("; the end of qemu.log: {log}"));
            Some(plain(&format!("QEMU has ended, and its keeper with it, as when a host goes down{log}")))
        }
        Err(_) => None,
    }
}

/// The end of a file that may be of any length.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES_MAX)))?;
    let mut read = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut read)?;
    Ok(String::from_utf8_lossy(&read).into_owned())
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WORDS_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    #[test]
    fn each_end_has_its_words() {
        let log = Some("qemu: could not open disk");
        for (reason, how, pressed, expected) in [
            (
                Some("guest-shutdown"),
                How::Exited(0),
                false,
                "the guest shut itself down (QEMU says: guest-shutdown)",
            ),
            (
                Some("guest-shutdown"),
                How::Exited(0),
                true,
                "the guest shut itself down (QEMU says: guest-shutdown), after its power button was pressed",
            ),
            (
                Some("subsystem-reset"),
                How::Unknown,
                false,
                "QEMU ended by itself (QEMU says: subsystem-reset)",
            ),
            (
                Some("host-signal"),
                How::Exited(1),
                false,
                "a signal told QEMU to end (QEMU says: host-signal); the end of qemu.log: qemu: could not open disk",
            ),
            (
                None,
                How::Killed(9),
                false,
                "QEMU was killed by signal 9; the end of qemu.log: qemu: could not open disk",
            ),
            (
                None,
                How::Unknown,
                false,
                "QEMU's process has ended; the end of qemu.log: qemu: could not open disk",
            ),
        ] {
            assert_eq!(words(reason, how, pressed, log), expected);
        }
        let long = words(None, How::Exited(1), false, Some(&"\u{1b}[2J\n".repeat(1000)));
        assert!(long.chars().count() == WORDS_CHARS_MAX && !long.chars().any(char::is_control), "{long}");
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "it is waited for by its descriptor")]
    fn a_child_tells_how_it_ended() {
        for (script, expected) in [("exit 3", How::Exited(3)), ("kill -9 $$", How::Killed(9))] {
            let child =
                Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().expect("a shell");
            let pid = Pid::from_raw(i32::try_from(child.id()).expect("a number")).expect("a process");
            let process = pidfd_open(pid, PidfdFlags::empty()).expect("its descriptor");
            assert!(within(&process, Duration::from_secs(10)));
            assert_eq!(how(&process), expected, "{script}");
            assert_eq!(how(&process), How::Unknown, "it is told once");
        }
    }

    #[test]
    fn what_was_left_is_read_and_a_keeper_that_is_gone_too_leaves_the_log() {
        let dir = tempfile::tempdir().expect("folder");
        assert_eq!(why_ended(dir.path()), None, "nothing of a QEMU is here");
        std::fs::write(dir.path().join("qemu.log"), format!("{}\nthe last word\n\n", "x".repeat(10_000)))
            .expect("written");
        assert_eq!(why_ended(dir.path()), None, "it was ended in order");
        let mut kept = super::super::kept::tests::kept(None);
        kept.write(dir.path()).expect("written");
        assert_eq!(why_ended(dir.path()), None, "it lives");
        kept.started_ticks += 1;
        kept.write(dir.path()).expect("written");
        let told = why_ended(dir.path()).expect("it has ended");
        assert!(told.starts_with("QEMU has ended, and its keeper with it"), "{told}");
        assert!(told.ends_with("; the end of qemu.log: the last word"), "{told}");
        leave(dir.path(), "because").expect("written");
        assert_eq!(why_ended(dir.path()).as_deref(), Some("because"));
    }
}
