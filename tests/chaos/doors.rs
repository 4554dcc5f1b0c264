//! The admin sockets of all nodes, of which some are dead, some stopped and some cut off.
//!
//! Always true: an answer comes within [`ASK_TIMEOUT`] or is none; who is asked is left to chance, and a node that can not
//! be connected to is passed over.

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use godwit_admin::{AskError, Client};
use godwit_domain::NodeName;
use godwit_wire::admin::{Act, Applied, Code, Problem};
use godwit_wire::manifest;
use serde::de::DeserializeOwned;

/// How long one answer may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Doors {
    sockets: Vec<(NodeName, PathBuf)>,
    rng: Mutex<Rng>,
}

impl Doors {
    pub(crate) fn new(sockets: Vec<(NodeName, PathBuf)>, seed: u64) -> Self {
        Self { sockets, rng: Mutex::new(Rng::with_seed(seed)) }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.sockets.iter().map(|(name, _)| name)
    }

    /// Applies every document of a manifest.
    pub(crate) async fn apply(&self, text: &str) -> Result<(), Box<dyn Error>> {
        for object in manifest::documents(text)? {
            let act = Act::Apply { object, namespace: None, create: false, dry_run: false };
            self.ask::<Applied>(act).await?;
        }
        Ok(())
    }

    /// Asks some node.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, act: Act) -> Result<T, AskError> {
        self.ask_within(ASK_TIMEOUT, act).await
    }

    /// The same with another limit.
    pub(crate) async fn ask_within<T: DeserializeOwned>(
        &self,
        limit: Duration,
        act: Act,
    ) -> Result<T, AskError> {
        let mut order: Vec<_> = self.sockets.iter().collect();
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).shuffle(&mut order);
        for (_, socket) in order {
            let Ok(client) = Client::connect(socket).await else { continue };
            let answer = client.with_timeout(limit).ask(act, |_| {}).await?;
            return serde_json::from_value(answer).map_err(|error| AskError::Protocol(error.to_string()));
        }
        let nobody = "no node of the cluster can be connected to";
        Err(Problem::new(Code::Unavailable, "chaos", nobody.to_owned(), "wait until one lives").into())
    }
}
