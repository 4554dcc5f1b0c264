//! One history of the simulation again, with its log: `cargo xtask sim SEED [--bug NAME] [--step]`.
//!
//! ```text
//!   cargo test --workspace --test sim ─ SIM_SEED, SIM_LOG ─▶ log ─▶ as it is │ entry by entry, with --step
//! ```

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs it; `false`: a law was broken in it.
pub(crate) fn replay(root: &Path, arguments: &[&str]) -> Result<bool, String> {
    let mut seed = None;
    let mut bug = None;
    let mut steps = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "--step" => steps = true,
            "--bug" => bug = Some(*rest.next().ok_or("--bug needs a bug's name")?),
            text => seed = Some(text.parse::<u64>().map_err(|error| format!("{text} is no seed: {error}"))?),
        }
    }
    let seed = seed.ok_or("which history? cargo xtask sim SEED")?;
    let test = if bug.is_some() { "planted_bugs_are_found" } else { "the_laws_hold_in_every_history" };
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(root)
        .args(["test", "--quiet", "--workspace", "--test", "sim", "--", "--nocapture", "--exact", test])
        .envs([
            ("SIM_SEED", seed.to_string()),
            ("SIM_HISTORIES", "1".to_owned()),
            ("SIM_LOG", "1".to_owned()),
        ])
        .stdout(Stdio::piped());
    // What cargo has told this program of itself: build scripts that look at it would build all that rests on them anew.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    if let Some(bug) = bug {
        command.env("SIM_BUG", bug);
    }
    let mut child = command.spawn().map_err(|error| format!("run cargo: {error}"))?;
    let output = child.stdout.take().ok_or("its output can not be read")?;
    for line in BufReader::new(output).lines() {
        let line = line.map_err(|error| format!("read its output: {error}"))?;
        let _ = writeln!(std::io::stdout(), "{line}");
        if steps && line.contains(" ms  agreed ") {
            wait();
        }
    }
    let status = child.wait().map_err(|error| format!("wait for it: {error}"))?;
    Ok(status.success())
}

/// Until somebody presses return.
fn wait() {
    let _ = std::io::stdin().lock().read_line(&mut String::new());
}
