//! One node process: how it is started, where it is asked, what the kernel says of it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_domain::NodeName;
use tokio::process::Child;

/// How one node is started.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its name.
    pub name: NodeName,
    /// Its migration address; port 0: the kernel chooses.
    pub migration: SocketAddr,
    /// Its control address; that of a voter is the one that the others know.
    pub control: SocketAddr,
    /// Every voter's control address.
    pub voters: BTreeMap<NodeName, SocketAddr>,
    /// A command to start it with, such as `ip netns exec NAME`.
    pub wrapper: Vec<String>,
    /// Further environment.
    pub environment: Vec<(String, String)>,
    /// Largest UDP payload it may send.
    pub udp_payload_bytes_max: u16,
    /// Memory that it offers, in bytes; as much as the host has if not said.
    pub memory_bytes: Option<u64>,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// Its addresses on named migration networks.
    pub networks: Vec<(String, SocketAddr)>,
}

/// Ports of voters in a lab.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// So many of them may be taken in a row.
const TRIES: u16 = 100;

impl NodeSpec {
    /// A node on loopback. Its packets are larger than on a common network: loopback carries them.
    pub fn on_loopback(name: NodeName, voters: &BTreeMap<NodeName, SocketAddr>) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            control: voters.get(&name).copied().unwrap_or(any),
            name,
            migration: any,
            voters: voters.clone(),
            wrapper: Vec::new(),
            environment: Vec::new(),
            udp_payload_bytes_max: 6540,
            memory_bytes: None,
            labels: Vec::new(),
            networks: Vec::new(),
        }
    }
}

/// Control addresses on loopback for so many voters. The ports were free a moment ago, and are of those that the kernel
/// gives to nobody who asks for any (32768 and up, if nobody has set that otherwise): a node may have its own again after
/// a restart.
pub fn free_addresses(names: &[NodeName]) -> std::io::Result<BTreeMap<NodeName, SocketAddr>> {
    let sockets: Vec<UdpSocket> = names.iter().map(|_| on_a_free_port()).collect::<Result<_, _>>()?;
    let addresses = sockets.iter().map(UdpSocket::local_addr);
    names.iter().cloned().zip(addresses).map(|(name, address)| Ok((name, address?))).collect()
}

fn on_a_free_port() -> std::io::Result<UdpSocket> {
    let tried = (0..TRIES).find_map(|_| UdpSocket::bind(("127.0.0.1", fastrand::u16(PORTS))).ok());
    tried.map_or_else(|| UdpSocket::bind(("127.0.0.1", 0)), Ok)
}

/// A running node process.
#[derive(Debug)]
pub struct NodeProcess {
    pub(super) spec: NodeSpec,
    pub(super) child: Child,
    /// Its admin socket.
    pub socket: PathBuf,
    /// Its process id, for people and for those who kill.
    pub pid: u32,
}

impl NodeProcess {
    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

/// A node's config.
pub(super) fn config_of(cluster: &str, spec: &NodeSpec, dir: &Path, socket: &Path) -> String {
    let memory = spec.memory_bytes.map(|bytes| format!("memory = \"{bytes}\"\n")).unwrap_or_default();
    let voters: String =
        spec.voters.iter().map(|(name, address)| format!("{name} = \"{address}\"\n")).collect();
    let labels: String = spec.labels.iter().map(|(key, value)| format!("{key:?} = {value:?}\n")).collect();
    let networks: String =
        spec.networks.iter().map(|(name, address)| format!("{name:?} = \"{address}\"\n")).collect();
    format!(
        "cluster = \"{cluster}\"\nname = \"{}\"\nstate = {:?}\n{memory}\n[identity]\nca = \"ca.pem\"\n\
         certificate = \"node.pem\"\nkey = \"node.key\"\n\n[control]\nlisten = \"{}\"\n\n[control.voters]\n\
         {voters}\n[migration]\nlisten = \"{}\"\nudp_payload_bytes_max = {}\n\n[migration.networks]\n{networks}\n\
         [labels]\n{labels}\n[admin]\nsocket = {:?}\n",
        spec.name,
        dir.display().to_string(),
        spec.control,
        spec.migration,
        spec.udp_payload_bytes_max,
        socket.display().to_string(),
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
