//! Network namespaces joined by a switch, each cable of 1,500 bytes MTU, as hosts in a rack would be.
//!
//! ```text
//!   godwit-PID-N-a: cable, 192.0.2.1 ◀──┐
//!   godwit-PID-N-b: cable, 192.0.2.2 ◀──┼──▶ godwit-PID-N-s: a bridge; pulling a cable takes its port down
//!   godwit-PID-N-c: cable, 192.0.2.3 ◀──┘
//! ```
//!
//! Always true: a process that waits for this one's end removes them, however it ends.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use godwit::lab::cluster::NodeSpec;
use godwit_domain::NodeName;

use super::world::{VOTERS, node};

/// The name of the host's end of each cable.
const CABLE: &str = "cable";
/// Every host's control port: each has an address of its own.
const CONTROL_PORT: u16 = 7300;

/// See the module.
pub(crate) struct Network {
    hosts: Vec<String>,
    hub: String,
    remover: Child,
}

impl Network {
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        use std::os::unix::process::CommandExt;
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NETWORKS.fetch_add(1, Ordering::Relaxed));
        let hosts: Vec<_> =
            ["a", "b", "c"].iter().map(|end| format!("godwit-{process}-{number}-{end}")).collect();
        let hub = format!("godwit-{process}-{number}-s");
        let all: Vec<_> = hosts.iter().chain([&hub]).map(|name| format!("ip netns del {name}")).collect();
        // A group of its own: an interrupt at the terminal must not end it.
        let mut remover = Command::new("sh");
        remover.args(["-c", &format!("cat; {}", all.join("; "))]).process_group(0);
        remover.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let network = Self { remover: remover.spawn()?, hosts: hosts.clone(), hub: hub.clone() };
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "switch", "up"])?;
        for (number, name) in (1..).zip(&hosts) {
            let (port, address) = (format!("port{number}"), format!("192.0.2.{number}/24"));
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "add", CABLE, "type", "veth", "peer", "name", &port, "netns", &hub])?;
            ip(&["-n", name, "addr", "add", &address, "dev", CABLE])?;
            ip(&["-n", name, "link", "set", CABLE, "up"])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "switch", "up"])?;
        }
        Ok(network)
    }

    /// How the three voters are started on their hosts.
    pub(crate) fn nodes(&self) -> Vec<NodeSpec> {
        let address = |host: u8, port| SocketAddr::from((Ipv4Addr::new(192, 0, 2, host), port));
        let voters: BTreeMap<NodeName, SocketAddr> =
            (1..).zip(VOTERS).map(|(host, name)| (node(name), address(host, CONTROL_PORT))).collect();
        let spec = |((host, name), namespace): ((u8, &str), &String)| NodeSpec {
            migration: address(host, 0),
            wrapper: ["ip", "netns", "exec", namespace].map(str::to_owned).to_vec(),
            udp_payload_bytes_max: 1452,
            ..NodeSpec::on_loopback(node(name), &voters)
        };
        (1..).zip(VOTERS).zip(&self.hosts).map(spec).collect()
    }

    /// Pulls a host's cable, or plugs it in again.
    pub(crate) fn plug(&self, name: &str, is_in: bool) -> Result<(), Box<dyn Error>> {
        let host = VOTERS.iter().position(|voter| *voter == name).ok_or("no such host")?;
        let port = format!("port{}", host + 1);
        ip(&["-n", &self.hub, "link", "set", &port, if is_in { "up" } else { "down" }])
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
