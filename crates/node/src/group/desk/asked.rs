//! A request as it was asked: with an id, its repetition gets the first answer.
//!
//! Always true: the registry remembers, not this leader, so the answer is the same after an election.

use godwit_control::Wanted;
use godwit_domain::registry::{
    Answered as Remembered, Command, MemberChange, REQUEST_ID_BYTES_MAX, RequestKey,
};
use godwit_wire::admin::{Act, Problem, digest};

use super::super::{Group, NotAgreed};
use super::problem::{gone, refused};

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    key: Option<(String, u64)>,
}

impl Asked {
    /// Without an id.
    pub(super) fn once() -> Self {
        Self { key: None }
    }

    /// Under this id, if there is one.
    pub(super) fn new(id: Option<String>, act: &Act) -> Result<Self, Problem> {
        let Some(id) = id else { return Ok(Self::once()) };
        if id.is_empty() || id.len() > REQUEST_ID_BYTES_MAX {
            let message = format!("a request id of {} bytes", id.len());
            let rule = "a request id has 1 to 128 bytes";
            return Err(refused(rule, message, "32 random hexadecimal digits do"));
        }
        let digest = digest(act).map_err(|error| super::problem::failed("request", error.to_string()))?;
        Ok(Self { key: Some((id, digest)) })
    }

    /// What this request was answered before. `Err`: that it was refused.
    pub(super) async fn earlier(self, group: &Group) -> Result<Option<Remembered>, Problem> {
        let Some((id, digest)) = self.key else { return Ok(None) };
        let earlier = group.read(move |registry| match registry.requests.answer(&id, digest) {
            Some(Ok(answered)) => Some(Ok(answered.clone())),
            Some(Err(taken)) => Some(Err(taken)),
            None => None,
        });
        match earlier.await.ok_or_else(gone)? {
            None => Ok(None),
            Some(Err(taken)) => Err(NotAgreed::Refused(taken).into()),
            Some(Ok(Remembered { outcome: Err(refusal), .. })) => Err(NotAgreed::Refused(refusal).into()),
            Some(Ok(answered)) => Ok(Some(answered)),
        }
    }

    /// Whether nobody can ask for its answer again.
    pub(super) fn is_once(&self) -> bool {
        self.key.is_none()
    }

    /// Agrees on a change of the group.
    pub(super) async fn change(
        self,
        group: &Group,
        wanted: Wanted,
        change: MemberChange,
    ) -> Result<(), NotAgreed> {
        let key = self.key.map(|(id, digest)| RequestKey { id, digest, made: None });
        group.change_for(key, wanted, change).await
    }

    /// Agrees on the command that this request comes to. `made`: what must be known to answer it again. Returns the first
    /// answer, if the same request, asked twice at once, through two nodes say, got one that is not this.
    pub(super) async fn propose(
        self,
        group: &Group,
        made: Option<String>,
        command: Command,
    ) -> Result<Option<Remembered>, NotAgreed> {
        let Some((id, digest)) = self.key else {
            return group.propose_for(None, command).await.map(|()| None);
        };
        let key = RequestKey { id: id.clone(), digest, made: made.clone() };
        group.propose_for(Some(key), command).await?;
        let first = group.read(move |registry| match registry.requests.answer(&id, digest) {
            Some(Ok(answered)) => Some(answered.clone()),
            Some(Err(_)) | None => None,
        });
        Ok(first.await.flatten().filter(|first| first.made != made))
    }
}
