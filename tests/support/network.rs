//! Two network namespaces joined by a cable of 1,500 bytes MTU, as two hosts would be.
//!
//! ```text
//!   godwit-PID-N-a: cable, 192.0.2.1 ◀────▶ godwit-PID-N-b: cable, 192.0.2.2
//! ```
//!
//! Always true: a process that waits for this one's end removes them, however it ends.

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use godwit::lab::cluster::NodeSpec;

use super::world::node;

/// The name of each end of the cable.
const CABLE: &str = "cable";

/// See the module.
pub(crate) struct Network {
    names: [String; 2],
    remover: Child,
}

impl Network {
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        use std::os::unix::process::CommandExt;
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NETWORKS.fetch_add(1, Ordering::Relaxed));
        let names = ["a", "b"].map(|end| format!("godwit-{process}-{number}-{end}"));
        let [a, b] = &names;
        let remove = format!("cat; ip netns del {a}; ip netns del {b}");
        // A group of its own: an interrupt at the terminal must not end it.
        let mut remover = Command::new("sh");
        remover.args(["-c", &remove]).process_group(0);
        remover.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let network = Self { remover: remover.spawn()?, names: names.clone() };
        for name in &names {
            ip(&["netns", "add", name])?;
        }
        ip(&["-n", a, "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", b])?;
        for (name, address) in names.iter().zip(["192.0.2.1/24", "192.0.2.2/24"]) {
            ip(&["-n", name, "addr", "add", address, "dev", CABLE])?;
            ip(&["-n", name, "link", "set", CABLE, "up"])?;
        }
        Ok(network)
    }

    /// How nodes `node-a` and `node-b` are started on their hosts.
    pub(crate) fn nodes(&self) -> [NodeSpec; 2] {
        let [a, b] = &self.names;
        [("node-a", a, 1), ("node-b", b, 2)].map(|(name, namespace, host)| NodeSpec {
            name: node(name),
            listen: SocketAddr::from((Ipv4Addr::new(192, 0, 2, host), 0)),
            wrapper: ["ip", "netns", "exec", namespace].map(str::to_owned).to_vec(),
            environment: Vec::new(),
            udp_payload_bytes_max: 1452,
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.remover.stdin.take());
        let _ = self.remover.wait();
    }
}

/// What is missing here for a network of one's own.
pub(crate) fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root for network namespaces");
    }
    Network::new().err().map(|_| "needs network namespaces and `ip`")
}

/// Bytes and packets that a process's host has sent over its cable.
pub(crate) fn sent(pid: u32) -> Result<(u64, u64), Box<dyn Error>> {
    let devices = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("cable:"));
    // Eight numbers of what came in stand before those of what went out.
    let mut numbers = line.ok_or("no cable")?.split_whitespace().skip(8).map(str::parse);
    let mut next = || numbers.next().ok_or("a short line");
    Ok((next()??, next()??))
}

fn ip(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {arguments:?}: {said}").into()) }
}
