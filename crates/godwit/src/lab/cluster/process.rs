//! One node process: how it is started, what it says, what the kernel says of it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use godwit_domain::NodeName;
use godwit_wire::orders::LINE_BYTES_MAX;
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, LinesCodec};

use super::Heard;

/// How one node is started.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its name.
    pub name: NodeName,
    /// Its migration address; port 0: the kernel chooses.
    pub listen: SocketAddr,
    /// A command to start it with, such as `ip netns exec NAME`.
    pub wrapper: Vec<String>,
    /// Further environment.
    pub environment: Vec<(String, String)>,
    /// Largest UDP payload it may send.
    pub udp_payload_bytes_max: u16,
}

impl NodeSpec {
    /// A node on loopback. Its packets are larger than on a common network: loopback carries them.
    pub fn on_loopback(name: NodeName) -> Self {
        Self {
            name,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            wrapper: Vec::new(),
            environment: Vec::new(),
            udp_payload_bytes_max: 6550,
        }
    }
}

/// A running node process.
#[derive(Debug)]
pub struct NodeProcess {
    pub(super) spec: NodeSpec,
    pub(super) child: Child,
    pub(super) stdin: ChildStdin,
    pub(super) ended: bool,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process id, for people and for those who kill.
    pub pid: u32,
}

/// Reads a node's facts until it ends.
pub(super) async fn listen(
    node: NodeName,
    stdout: tokio::process::ChildStdout,
    hear: mpsc::Sender<(NodeName, Heard)>,
) {
    let mut lines = FramedRead::new(stdout, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
    while let Some(Ok(line)) = lines.next().await {
        match serde_json::from_str(&line) {
            Ok(fact) => {
                if hear.send((node.clone(), Heard::Fact(fact))).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%node, %error, line, "not a fact"),
        }
    }
    let _ = hear.send((node, Heard::Ended)).await;
}

pub(super) fn config_of(spec: &NodeSpec, dir: &Path) -> String {
    format!(
        "name = \"{}\"\nstate = {:?}\n\n[identity]\nca = \"ca.pem\"\ncertificate = \"node.pem\"\nkey = \"node.key\"\n\n\
         [migration]\nlisten = \"{}\"\nudp_payload_bytes_max = {}\n",
        spec.name,
        dir.display().to_string(),
        spec.listen,
        spec.udp_payload_bytes_max
    )
}

/// `VmHWM` of a process in bytes; 0 if it is gone.
pub(super) fn high_water_mark(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// User and system time of a process (`/proc/PID/stat`, fields 14 and 15, in ticks of 10 ms).
pub(super) fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold spaces: count from behind it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
