//! One question to a node: where it is asked, and how the answer is shown.
//!
//! ```text
//!   --socket, else $GODWIT_SOCKET, else the usual place ─▶ Client ─▶ ask ─▶ table, or one line of JSON
//!                                                            └───────┴──▶ Problem ─▶ stderr; with -o json on stdout too
//! ```
//!
//! Always true: with `-o json` stdout holds JSON only, one value a line, also where the answer is no.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use godwit_admin::client::read_as;
use godwit_admin::{AskError, Client, ClientError};
use godwit_wire::admin::{Act, Problem};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime;

use super::failure::Failure;
use super::{Output, print};

/// The environment variable that names the socket, where no option does.
const SOCKET_VARIABLE: &str = "GODWIT_SOCKET";
/// Where a node's socket is, if nobody says otherwise.
const SOCKET_DEFAULT: &str = "/run/godwit/admin.sock";

/// Where a node is asked, and how its answer is shown.
#[derive(Debug, Clone, Args)]
pub(super) struct Asking {
    /// The node's admin socket [default: $GODWIT_SOCKET, else /run/godwit/admin.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub(super) output: Output,
}

impl Asking {
    /// Asks one thing and prints its answer.
    pub(super) fn show<T: DeserializeOwned>(
        &self,
        act: Act,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let answer = self.ask(act)?;
        self.print(&answer, table)
    }

    /// Asks one thing.
    pub(super) fn ask(&self, act: Act) -> Result<Value, Failure> {
        block_on(async {
            let mut client = self.connect().await?;
            client.ask(act, |_| {}).await.map_err(|error| self.no_answer(&error))
        })
    }

    /// A connection to the node.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        self.try_connect().await.map_err(|error| self.refuse(error.problem()))
    }

    /// A connection to the node, by somebody who knows what to do without.
    pub(super) async fn try_connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.path()).await
    }

    /// Prints an answer.
    pub(super) fn print<T: DeserializeOwned>(
        &self,
        answer: &Value,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.output {
            Output::Json => print(&answer.to_string())?,
            Output::Table => print(&table(&self.read(answer)?))?,
        }
        Ok(())
    }

    /// An answer as a value of its kind.
    pub(super) fn read<T: DeserializeOwned>(&self, answer: &Value) -> Result<T, Failure> {
        read_as(answer.clone()).map_err(|error| self.no_answer(&error))
    }

    pub(super) fn no_answer(&self, error: &AskError) -> Failure {
        self.refuse(error.problem())
    }

    /// A problem, which programs read where they read answers.
    pub(super) fn refuse(&self, problem: Problem) -> Failure {
        if self.output == Output::Json {
            // It is said on stderr as well, and the exit code says it a third time.
            let _ = print(&json!({"error": problem}).to_string());
        }
        problem.into()
    }

    /// A command that asks the same node, to be pasted.
    pub(super) fn command(&self, words: &str) -> String {
        match &self.socket {
            Some(path) => format!("godwit {words} --socket {}", path.display()),
            None => format!("godwit {words}"),
        }
    }

    fn path(&self) -> PathBuf {
        choose(self.socket.clone(), std::env::var_os(SOCKET_VARIABLE))
    }
}

/// An empty variable means the same as none.
fn choose(option: Option<PathBuf>, variable: Option<OsString>) -> PathBuf {
    let variable = variable.filter(|path| !path.is_empty()).map(PathBuf::from);
    option.or(variable).unwrap_or_else(|| SOCKET_DEFAULT.into())
}

/// Runs to the end on this thread: a client has one thing to wait for.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_wins_over_the_variable_and_that_over_the_default() {
        let option = || Some(PathBuf::from("/option"));
        assert_eq!(choose(option(), Some("/variable".into())), PathBuf::from("/option"));
        assert_eq!(choose(None, Some("/variable".into())), PathBuf::from("/variable"));
        assert_eq!(choose(None, Some("".into())), PathBuf::from(SOCKET_DEFAULT));
        assert_eq!(choose(None, None), PathBuf::from(SOCKET_DEFAULT));
    }
}
