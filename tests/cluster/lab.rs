//! `godwit lab` from outside: what it prints, how it ends, and that it leaves nothing behind.
//!
//! ```text
//!   TMPDIR=FOLDER godwit lab …       every process of the lab inherits TMPDIR, which tells it from any other lab's
//!      └─▶ FOLDER/godwit-lab-…/      what must be gone at the end, however it ends
//! ```

use std::error::Error;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::support::program::{Ran, program};
use crate::support::{Outcome, PATIENCE, short_story, unless, until};

/// How long what a lab started may outlive it.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a lab may say that this machine is too busy for it.
const ATTEMPTS_MAX: usize = 4;
/// The user without any rights, on every Linux.
const NOBODY: u32 = 65_534;
/// A lab that is still copying when somebody looks.
const SLOW: [&str; 8] =
    ["--memory", "128Mi", "--bandwidth", "32Mi", "--dirty-rate", "8Mi", "--compressible", "0"];

/// What the whole report has.
const REPORT: [&str; 4] = ["ok", "nodes", "node_rss_bytes_max", "migrations"];
/// What each of its moves has.
const MOVE: [&str; 24] = [
    "guest",
    "mode",
    "source",
    "target",
    "memory_bytes",
    "wire_bytes",
    "rounds",
    "total_ms",
    "downtime_ms",
    "pause_ms",
    "state_ms",
    "commit_ms",
    "resume_ms",
    "ticks_lost",
    "tick_gap_max_ms",
    "verified",
    "raw_pages",
    "raw_bytes",
    "zero_pages",
    "packed_pages",
    "packed_bytes",
    "packing_ms",
    "postcopy_missing_at_resume_bytes",
    "faults",
];

pub(crate) fn trials() -> Vec<Trial> {
    let not_root = (!rustix::process::geteuid().is_root()).then_some("needs root to become another user");
    let nobody = short_story("a_lab_needs_no_rights", as_nobody);
    vec![
        short_story("a_lab_prints_one_object_with_every_field_and_leaves_nothing", good),
        short_story("a_lab_that_is_interrupted_leaves_nothing", interrupted),
        short_story("a_lab_that_is_killed_leaves_nothing", killed),
        short_story("a_lab_that_finds_wrong_memory_fails_and_leaves_nothing", failing),
        short_story("a_lab_that_could_never_end_is_refused_with_the_numbers", refused),
        short_story("a_lab_keeps_its_folder_if_asked_to", keeping),
        unless(not_root, nobody),
    ]
}

/// A lab that runs, in a folder of its own.
struct Lab {
    folder: tempfile::TempDir,
    child: Child,
}

impl Lab {
    fn start(words: &[&str]) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(program());
        Self::begin(folder, command.args(["lab", "-o", "json"]).args(words))
    }

    fn begin(folder: tempfile::TempDir, command: &mut Command) -> Result<Self, Box<dyn Error>> {
        command.env("TMPDIR", folder.path()).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn()?;
        Ok(Self { folder, child })
    }

    /// Waits until pages flow.
    async fn copies(&self) {
        until("the lab's second node has a source", PATIENCE, || {
            let log = entries(self.folder.path()).pop()?.join("node-b/node.log");
            fs::read_to_string(log).ok()?.contains("source connected").then_some(())
        })
        .await;
    }

    fn signal(&self, signal: Signal) -> Outcome {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(kill_process(pid.ok_or("the lab has ended")?, signal)?)
    }

    /// The end of a lab that was fed: one that says that this machine is too busy for it is begun anew.
    async fn of_a_fed_guest(
        start: impl Fn() -> Result<Self, Box<dyn Error>>,
    ) -> Result<(Ran, tempfile::TempDir), Box<dyn Error>> {
        for _ in 1..ATTEMPTS_MAX {
            let (ran, folder) = start()?.end().await?;
            if !ran.stderr.contains("this machine can not keep up") {
                return Ok((ran, folder));
            }
        }
        start()?.end().await
    }

    async fn end(self) -> Result<(Ran, tempfile::TempDir), Box<dyn Error>> {
        let output = tokio::time::timeout(2 * PATIENCE, self.child.wait_with_output()).await;
        Ok((output.map_err(|_| "the lab does not end")??.into(), self.folder))
    }
}

/// What stands on stdout, which must be one JSON object.
fn report(ran: &Ran) -> Result<Value, Box<dyn Error>> {
    let report: Value = serde_json::from_str(&ran.stdout).map_err(|error| format!("{error} in {ran:?}"))?;
    assert!(report.is_object() && ran.stdout.trim().lines().count() == 1, "{ran:?}");
    Ok(report)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Processes that inherited this TMPDIR.
fn processes(folder: &Path) -> Vec<String> {
    let inherited = format!("TMPDIR={}", folder.display());
    let carries = |pid: &PathBuf| {
        let environment = fs::read(pid.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == inherited.as_bytes())
    };
    let found = entries(Path::new("/proc")).into_iter().filter(carries);
    found.map(|pid| fs::read_to_string(pid.join("cmdline")).unwrap_or_default().replace('\0', " ")).collect()
}

/// A lab that has ended has ended everything, and removed its folder.
fn has_left_nothing(folder: &Path) {
    assert_eq!((processes(folder), entries(folder)), (vec![], vec![]));
}

async fn good() -> Outcome {
    let (ran, folder) = Lab::of_a_fed_guest(|| Lab::start(&["--memory", "128Mi"])).await?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    good_report(&report(&ran)?);
    has_left_nothing(folder.path());
    Ok(())
}

fn good_report(report: &Value) {
    assert_eq!((&report["ok"], &report["nodes"]), (&Value::from(true), &Value::from(3)), "{report}");
    let leader = report["leader"].as_str().unwrap_or_default();
    assert!(leader.starts_with("node-") && report["term"].as_u64() > Some(0), "{report}");
    assert!(REPORT.iter().all(|field| report.get(field).is_some()), "{report}");
    let moves = report["migrations"].as_array().expect("moves");
    assert_eq!(moves.len(), 3, "{report}");
    for moved in moves {
        for field in MOVE {
            assert!(moved.get(field).is_some_and(|value| !value.is_null()), "no {field} in {moved}");
        }
        assert_eq!((&moved["verified"], &moved["ticks_lost"]), (&Value::from(true), &Value::from(0)));
        assert_eq!(moved["memory_bytes"], Value::from(128 << 20));
        assert_eq!(moved["downtime_ms"], moved["tick_gap_max_ms"]);
    }
    for moved in &moves[..2] {
        assert!(moved["audit_checked_pages"].as_u64() > Some(0), "{moved}");
        assert_eq!(moved["audit_mismatched_pages"], Value::from(0), "{moved}");
    }
    assert!(moves[2]["audit_checked_pages"].is_null(), "post-copy is not audited: {}", moves[2]);
    let ways = moves.iter().map(|moved| (moved["source"].as_str(), moved["target"].as_str()));
    let (a, b, c) = (Some("node-a"), Some("node-b"), Some("node-c"));
    assert_eq!(ways.collect::<Vec<_>>(), [(a, b), (b, c), (c, a)]);
    let modes: Vec<_> = moves.iter().map(|moved| moved["mode"].as_str().unwrap_or_default()).collect();
    assert_eq!(modes, ["pre-copy", "pre-copy", "post-copy"]);
    let busy = &moves[2];
    assert!(busy["postcopy_missing_at_resume_bytes"].as_u64() >= Some(32 << 20), "{busy}");
    assert!(busy["ticks_while_missing"].as_u64() > Some(0) && busy["faults"].as_u64() > Some(0), "{busy}");
}

async fn interrupted() -> Outcome {
    for signal in [Signal::INT, Signal::TERM] {
        let lab = Lab::start(&SLOW)?;
        lab.copies().await;
        lab.signal(signal)?;
        let (ran, folder) = lab.end().await?;
        assert_eq!(ran.code, Some(130), "{ran:?}");
        let report = report(&ran)?;
        assert_eq!((&report["ok"], &report["error"]), (&false.into(), &"interrupted".into()));
        has_left_nothing(folder.path());
    }
    Ok(())
}

async fn killed() -> Outcome {
    let lab = Lab::start(&SLOW)?;
    lab.copies().await;
    assert!(processes(lab.folder.path()).len() >= 7, "lab, sweeper, three nodes, two runners");
    lab.signal(Signal::KILL)?;
    until("everything of the killed lab is gone", SWEEP_TIMEOUT, || {
        let folder = lab.folder.path();
        (processes(folder).is_empty() && entries(folder).is_empty()).then_some(())
    })
    .await;
    let (ran, _) = lab.end().await?;
    assert_eq!((ran.code, ran.stdout.as_str()), (None, ""));
    Ok(())
}

async fn failing() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(program());
    // The guest heals what it writes again: it must take far longer for its working set than the lab to compare.
    command.args([
        "lab",
        "-o",
        "json",
        "--memory",
        "192Mi",
        "--working-set",
        "128Mi",
        "--dirty-rate",
        "40Mi",
    ]);
    command.env("GODWIT_PLANTED", "stale-page");
    let (ran, folder) = Lab::begin(folder, &mut command)?.end().await?;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("memory is wrong after the move to node-b"), "{ran:?}");
    let report = report(&ran)?;
    assert_eq!((&report["ok"], &report["migrations"][0]["verified"]), (&false.into(), &false.into()));
    has_left_nothing(folder.path());
    Ok(())
}

async fn refused() -> Outcome {
    let (ran, folder) = Lab::start(&["--bandwidth", "64Mi", "--dirty-rate", "100Mi"])?.end().await?;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for number in ["writes 100 MiB/s", "64 MiB/s of bandwidth", "more than 106 MiB/s", "less than 60 MiB/s"] {
        assert!(ran.stderr.contains(number), "it should say {number:?}: {ran:?}");
    }
    assert_eq!(report(&ran)?["ok"], Value::from(false));
    has_left_nothing(folder.path());
    Ok(())
}

async fn keeping() -> Outcome {
    let start = || Lab::start(&["--memory", "64Mi", "--moves", "1", "--keep"]);
    let (ran, folder) = Lab::of_a_fed_guest(start).await?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let kept = entries(folder.path());
    assert_eq!(report(&ran)?["kept"].as_str().map(PathBuf::from).as_ref(), kept.first());
    for node in ["node-a", "node-b"] {
        let dir = kept.first().ok_or("nothing was kept")?.join(node);
        assert!(dir.join("node.toml").exists() && dir.join("node.log").exists(), "{dir:?}");
        let ticks = entries(&dir.join("guests")).iter().any(|runner| runner.join("ticks").exists());
        assert!(ticks, "no ticks in {dir:?}");
    }
    assert_eq!(processes(folder.path()), [""; 0]);
    Ok(())
}

async fn as_nobody() -> Outcome {
    let readable = tempfile::tempdir()?;
    fs::set_permissions(readable.path(), fs::Permissions::from_mode(0o755))?;
    let copy = readable.path().join("godwit");
    fs::copy(program(), &copy)?;
    let start = || {
        let folder = tempfile::tempdir()?;
        chown(folder.path(), Some(NOBODY), Some(NOBODY))?;
        let mut command = Command::new(&copy);
        command.args(["lab", "-o", "json", "--memory", "128Mi"]).uid(NOBODY).gid(NOBODY).current_dir("/");
        Lab::begin(folder, &mut command)
    };
    let (ran, folder) = Lab::of_a_fed_guest(start).await?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    good_report(&report(&ran)?);
    has_left_nothing(folder.path());
    Ok(())
}
