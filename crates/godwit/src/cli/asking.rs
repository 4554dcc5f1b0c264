//! One question to a node: where it is asked, and how the answer is shown.
//!
//! ```text
//!   --socket, else $GODWIT_SOCKET, else the usual place ─▶ Client ─▶ ask ─▶ table, YAML, or one line of JSON
//!                                                            └───────┴──▶ Problem ─▶ stderr; with -o json on stdout too
//!   Asking     looks                   Changing   changes something, under a request id
//! ```
//!
//! Always true: with `-o json` stdout holds JSON only, one value a line, also where the answer is no. A change whose
//! outcome is not known names the id under which it can be asked for again without being made twice.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use godwit_admin::client::{changes, new_request_id, read_as};
use godwit_admin::{AskError, Client, ClientError};
use godwit_domain::registry::REQUEST_ID_BYTES_MAX;
use godwit_wire::admin::{Act, Code, Problem};
use godwit_wire::manifest;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime;

use super::failure::Failure;
use super::print;

/// The environment variable that names the socket, where no option does.
const SOCKET_VARIABLE: &str = "GODWIT_SOCKET";
/// Where a node's socket is, if nobody says otherwise.
const SOCKET_DEFAULT: &str = "/run/godwit/admin.sock";
/// Room for the number that stands behind an id where there are several changes.
const NUMBER_BYTES: usize = 8;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// For people with much room
    Wide,
    /// As manifests are written
    Yaml,
    /// For programs: one value a line
    Json,
}

/// Where a node is asked, and how its answer is shown.
#[derive(Debug, Clone, Args)]
pub(super) struct Asking {
    /// The node's admin socket [default: $GODWIT_SOCKET, else /run/godwit/admin.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub(super) output: Format,
}

/// The same for what changes something.
#[derive(Debug, Clone, Args)]
pub(super) struct Changing {
    #[command(flatten)]
    pub(super) asking: Asking,
    /// An id for this change [default: a new one]. Asked again under it, it is made once, and answered as before
    #[arg(long, value_name = "ID", value_parser = request_id)]
    request_id: Option<String>,
}

/// Ids for one change after another: ID, ID.1, ID.2 and so on.
#[derive(Debug)]
pub(super) struct RequestIds {
    first: String,
    given: usize,
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
        self.try_ask(None, act).map_err(|problem| self.refuse(problem))
    }

    /// The same for somebody who knows what to do without an answer.
    pub(super) fn try_ask(&self, request_id: Option<String>, act: Act) -> Result<Value, Problem> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            Problem::new(Code::Failed, "threads", error.to_string(), "look what the system has run out of")
        })?;
        runtime.block_on(async {
            let mut client = self.try_connect().await.map_err(|error| error.problem())?;
            // What only looks is not remembered.
            let request_id = request_id.filter(|_| changes(&act));
            let asked = match request_id {
                None => client.ask(act, |_| {}).await,
                Some(id) => client.ask_under(Some(id), act, |_| {}).await,
            };
            asked.map_err(|error| error.problem())
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
            Format::Json => print(&answer.to_string())?,
            Format::Yaml => print(manifest::yaml(answer).trim_end())?,
            Format::Table | Format::Wide => print(&table(&self.read(answer)?))?,
        }
        Ok(())
    }

    /// One of several values as a line, or as one of several documents; for people as it is told.
    pub(super) fn one_of_several(&self, value: &Value, told: impl FnOnce() -> String) -> String {
        match self.output {
            Format::Json => value.to_string(),
            Format::Yaml => format!("---\n{}", manifest::yaml(value).trim_end()),
            Format::Table | Format::Wide => told(),
        }
    }

    /// Whether there is room for everything.
    pub(super) fn is_wide(&self) -> bool {
        self.output == Format::Wide
    }

    /// Whether people read it, and no program.
    pub(super) fn is_for_people(&self) -> bool {
        matches!(self.output, Format::Table | Format::Wide)
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
        self.refuse_as(json!({"error": problem}), problem)
    }

    fn refuse_as(&self, told: Value, problem: Problem) -> Failure {
        if self.output == Format::Json {
            // It is said on stderr as well, and the exit code says it a third time.
            let _ = print(&told.to_string());
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

impl Changing {
    /// Asks for one change and prints its answer.
    pub(super) fn show<T: DeserializeOwned>(
        &self,
        act: Act,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let answer = self.ask(&mut self.ids()?, act)?;
        self.asking.print(&answer, table)
    }

    /// Asks for one change under the next id.
    pub(super) fn ask(&self, ids: &mut RequestIds, act: Act) -> Result<Value, Failure> {
        let id = ids.next();
        self.asking.try_ask(Some(id.clone()), act).map_err(|problem| self.refuse(problem, &id))
    }

    /// Ids for what this command changes.
    pub(super) fn ids(&self) -> Result<RequestIds, Failure> {
        let first = match &self.request_id {
            Some(id) => id.clone(),
            None => new_request_id().map_err(|problem| self.asking.refuse(problem))?,
        };
        Ok(RequestIds { first, given: 0 })
    }

    /// A problem with a change; if its outcome is not known, with how to learn it.
    pub(super) fn refuse(&self, problem: Problem, id: &str) -> Failure {
        if problem.code != Code::Unknown {
            return self.asking.refuse(problem);
        }
        // Of several changes the whole command is repeated: what is done already is answered, and not done again.
        let whole = id.split_once('.').filter(|_| self.request_id.is_none()).map_or(id, |(first, _)| first);
        let whole = self.request_id.as_deref().unwrap_or(whole);
        let try_ = format!("ask again with --request-id {whole}: it is made once; or {}", problem.try_);
        let problem = Problem { try_, ..problem };
        self.asking.refuse_as(json!({"error": problem, "request_id": whole}), problem)
    }
}

impl RequestIds {
    /// The next one.
    pub(super) fn next(&mut self) -> String {
        let number = self.given;
        self.given += 1;
        if number == 0 { self.first.clone() } else { format!("{}.{number}", self.first) }
    }
}

fn request_id(text: &str) -> Result<String, String> {
    let longest = REQUEST_ID_BYTES_MAX - NUMBER_BYTES;
    if text.is_empty() || text.len() > longest || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("a request id is 1 to {longest} letters, digits and signs, without blanks"));
    }
    Ok(text.to_owned())
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

    #[test]
    fn ids_are_numbered_from_the_second_on_and_all_fit() {
        let longest = "x".repeat(REQUEST_ID_BYTES_MAX - NUMBER_BYTES);
        let mut ids = RequestIds { first: request_id(&longest).expect("it fits"), given: 0 };
        assert_eq!([ids.next(), ids.next()], [longest.clone(), format!("{longest}.1")]);
        ids.given = 999_999;
        assert!(ids.next().len() <= REQUEST_ID_BYTES_MAX);
        for bad in ["", "a b", "ä", "a\n", &format!("{longest}x")] {
            assert!(request_id(bad).is_err(), "{bad:?}");
        }
    }
}
