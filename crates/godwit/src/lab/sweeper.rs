//! Leaves nothing of a lab behind, however the lab ends: a process that waits for the lab's end and then ends
//! everything that carries the lab's mark.
//!
//! ```text
//!   lab ── pipe ──▶ sweeper          the pipe closes when the lab exits, is interrupted, or is killed
//!   nodes and runners carry GODWIT_LAB=MARK in their environment: inherited, and readable in /proc
//! ```
//!
//! Always true: the sweeper is started before anything that it would have to end; it ends only what carries the mark.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

/// The environment variable that marks a lab's processes.
pub const MARK_VARIABLE: &str = "GODWIT_LAB";
/// A process that was killed is gone within this, or something is badly wrong with the host.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(20);

/// What the sweeper is started with.
#[derive(Debug, Args)]
pub struct SweeperArgs {
    /// The lab's mark
    #[arg(long)]
    mark: String,
    /// A folder to remove at the end
    #[arg(long)]
    remove: Option<PathBuf>,
}

/// The sweeper of one lab, as the lab holds it.
#[derive(Debug)]
pub struct Sweeper {
    process: Child,
}

impl Sweeper {
    /// Starts it. `remove`: the folder that goes too.
    pub fn start(program: &Path, mark: &str, remove: Option<&Path>) -> std::io::Result<Self> {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(program);
        command.args(["lab-sweeper", "--mark", mark]);
        if let Some(dir) = remove {
            command.arg("--remove").arg(dir);
        }
        // A group of its own: an interrupt at the terminal is for the lab, and must not end the sweeper.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit()).process_group(0);
        Ok(Self { process: command.spawn()? })
    }

    /// Sweeps now and waits for the end of it.
    pub fn sweep(mut self) -> std::io::Result<()> {
        drop(self.process.stdin.take());
        self.process.wait()?;
        Ok(())
    }
}

/// Waits for the end of stdin, then sweeps.
pub fn main(arguments: &SweeperArgs) -> ExitCode {
    let mut ignored = Vec::new();
    // Nothing is ever written; this returns when the lab has gone.
    let _ = std::io::stdin().read_to_end(&mut ignored);
    let swept = sweep(&arguments.mark);
    if let Some(dir) = &arguments.remove {
        let _ = fs::remove_dir_all(dir);
    }
    if swept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends every process with the mark; `false`: some would not end.
fn sweep(mark: &str) -> bool {
    let marked = format!("{MARK_VARIABLE}={mark}");
    let deadline = Instant::now() + SWEEP_TIMEOUT;
    // A process in the middle of exec shows no environment for a moment: one empty look proves nothing.
    let mut empty_looks = 0;
    loop {
        let left = processes_with(marked.as_bytes());
        empty_looks = if left.is_empty() { empty_looks + 1 } else { 0 };
        if empty_looks == 2 {
            return true;
        }
        for pid in left {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn processes_with(variable: &[u8]) -> Vec<Pid> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // Another user's environment can not be read, and is none of ours.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let marked = environment.split(|byte| *byte == 0).any(|entry| entry == variable);
        if marked && u32::try_from(pid) != Ok(own) {
            found.extend(Pid::from_raw(pid));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marked_are_ended() {
        let start =
            |mark: &str| Command::new("sleep").arg("60").env(MARK_VARIABLE, mark).spawn().expect("a process");
        let (mut ours, mut other) = (start("ours-4711"), start("other-4711"));
        // A killed child stays in /proc as a zombie, whose environment is empty.
        assert!(sweep("ours-4711"));
        assert!(!ours.wait().expect("ended").success());
        assert!(other.try_wait().expect("a status").is_none(), "another lab's process lives on");
        other.kill().expect("kill");
        other.wait().expect("ended");
    }
}
