use std::path::PathBuf; use godwit_domain::NodeName; use godwit_domain::registry::{Command, RequestKey};
#[derive(Debug, Clone)] pub(crate) struct Applied { pub(crate) index: u64, pub(crate) time_ms: u64, pub(crate) applied_ms: u64, pub(crate) seen_ns: u64, pub(crate) request: Option<RequestKey>, pub(crate) command: Command, pub(crate) refused: Option<String> }
#[derive(Debug)] pub(crate) struct Ledger;
#[derive(Debug)] pub(crate) struct Grants;
impl Ledger { pub(crate) fn new(_: Vec<(NodeName, PathBuf)>) -> Self { todo!() }
 pub(crate) fn poll(&mut self) -> Result<Vec<Applied>, String> { todo!() }
 pub(crate) fn all(&self) -> &[Applied] { todo!() }
 pub(crate) fn has_all(&self, _: &[crate::linear::Acknowledged]) -> Result<(), String> { todo!() }
 pub(crate) fn judge(&self) -> Result<Grants, String> { todo!() } }
pub(crate) fn trials() -> Vec<libtest_mimic::Trial> { vec![] }
