use std::path::PathBuf; use godwit_domain::NodeName;
pub(crate) struct Operators; pub(crate) struct History; #[derive(Debug)] pub(crate) struct Judged; pub(crate) struct Acknowledged { pub(crate) request_id: String }
impl Operators { pub(crate) fn start(_: Vec<(NodeName, PathBuf)>, _: u64, _: Vec<String>) -> Self { Self } pub(crate) async fn finish(self) -> History { History } }
impl History { pub(crate) fn judge(&self) -> Result<Judged, String> { Ok(Judged) } pub(crate) fn acknowledged(&self) -> Vec<Acknowledged> { vec![] } }
pub(crate) fn trials() -> Vec<libtest_mimic::Trial> { vec![] }
