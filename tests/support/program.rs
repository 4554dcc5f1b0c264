//! The program under test, as a shell starts it: arguments in; exit code, stdout and stderr out.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// How long a command may run.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// The binary, built with bugs that can be switched on.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_godwit"))
}

/// What a command that has ended left.
#[derive(Debug)]
pub(crate) struct Ran {
    /// `None`: a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// Runs `godwit` with these arguments and nothing on stdin.
pub(crate) async fn godwit<S: AsRef<OsStr>>(arguments: &[S]) -> io::Result<Ran> {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(RUN_TIMEOUT, command.output()).await;
    Ok(ended.map_err(|_| io::Error::other(format!("{command:?} did not end")))??.into())
}
