//! Something that goes on, seen from here until it is over, or until whoever looks has enough.
//!
//! ```text
//!   connect ─▶ watch ─▶ change, change, … ─▶ over
//!      ▲         │ the node or the leader that was asked is gone: only looked, so another look does no harm
//!      └─────────┘ as long as it was not out of sight for too long
//! ```
//!
//! Always true: nothing here decides how it goes; a no is a no.

use std::time::Duration;

use godwit_admin::AskError;
use godwit_admin::client::read_as;
use godwit_wire::admin::{Act, Code, Problem};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::asking::{Asking, block_on};
use super::failure::Failure;
use super::print;

/// How long something may be out of sight: an election takes a few seconds, a node's restart a few more.
const BLIND_MAX: Duration = Duration::from_secs(60);
/// Time between two looks for somebody who can be asked.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What is looked at.
pub(super) struct Sight<'a> {
    /// Where.
    pub(super) asking: &'a Asking,
    /// Asked for with events; asked again it does no harm.
    pub(super) act: Act,
    /// The words of a command that looks again.
    pub(super) again: String,
    /// What goes on meanwhile.
    pub(super) goes_on: &'static str,
}

impl Sight<'_> {
    /// Every change until it is over, the last one included. What was never in sight is not waited for.
    pub(super) async fn follow<T: DeserializeOwned>(
        &self,
        mut out_of_sight_since: Option<Instant>,
        over: impl Fn(&T) -> bool,
        mut show: impl FnMut(&Value, &T),
    ) -> Result<(Value, T), Failure> {
        loop {
            let mut seen = false;
            let looked = self.look(|value, detail: &T| {
                seen = true;
                show(value, detail);
            });
            let problem = match looked.await {
                Ok((value, detail)) if over(&detail) => return Ok((value, detail)),
                // The node's last word, and not the end: somebody else may know more.
                Ok(_) => AskError::Lost.problem(),
                Err(problem) => problem,
            };
            if seen {
                out_of_sight_since = Some(Instant::now());
            }
            let passes = matches!(problem.code, Code::Unavailable | Code::Unknown);
            let for_long = out_of_sight_since.is_none_or(|since| since.elapsed() > BLIND_MAX);
            if !passes || for_long {
                return Err(self.asking.refuse(self.advised(problem)));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// One connection's worth of changes.
    async fn look<T: DeserializeOwned>(
        &self,
        mut show: impl FnMut(&Value, &T),
    ) -> Result<(Value, T), Problem> {
        let mut client = self.asking.try_connect().await.map_err(|error| error.problem())?;
        let mut shown = |value: &Value| {
            let detail = read_as::<T>(value.clone())?;
            show(value, &detail);
            Ok::<_, AskError>(detail)
        };
        let on_event = |value| {
            // One that can not be read is passed over: the last line can not be read either then, and that is told.
            let _ = shown(&value);
        };
        let last = client.ask(self.act.clone(), on_event).await.map_err(|error| error.problem())?;
        let detail = shown(&last).map_err(|error| error.problem())?;
        Ok((last, detail))
    }

    /// What to do where nobody could be asked. A node that said no has said what would do.
    fn advised(&self, problem: Problem) -> Problem {
        match problem.code {
            Code::Unavailable | Code::Unknown => {
                let again = self.asking.command(&self.again);
                Problem { try_: format!("`{again}`: {}; {}", self.goes_on, problem.try_), ..problem }
            }
            _ => problem,
        }
    }

    /// Prints what is new in each change, until it is over or nobody reads any more.
    pub(super) fn print<T: DeserializeOwned>(
        &self,
        over: impl Fn(&T) -> bool,
        mut news: impl FnMut(&Value, &T) -> Vec<String>,
    ) -> Result<(), Failure> {
        let (tell, told) = oneshot::channel();
        let mut tell = Some(tell);
        let show = |value: &Value, detail: &T| {
            for line in news(value, detail) {
                if let Err(error) = print(&line) {
                    // Nobody reads any more, so nobody is watched for.
                    tell.take().map(|tell| tell.send(error));
                }
            }
        };
        block_on(async {
            tokio::select! {
                ended = Box::pin(self.follow(None, over, show)) => ended.map(drop),
                Ok(error) = told => Err(error.into()),
            }
        })
    }
}
