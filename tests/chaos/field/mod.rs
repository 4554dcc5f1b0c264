//! The hosts on which the chaos suite runs its nodes, and what can be done to them.
//!
//! ```text
//!   Field ─ rack     namespaces and cables, and who removes them
//!         ─ cable    cut, slow, lossy: as lines for the kernel
//!         ─ relays   late: as plans for relays of our own
//!         ─ disk     small disks that can be full
//!   proofs           each of it seen from outside;   ends: what is left when a field is gone, and a cluster on it
//! ```
//!
//! Each host has two cables, `control` (1,500 bytes MTU) and `pages` (9,000). A host is called as its node.
//!
//! Whatever calls the kernel's commands blocks for some 10 ms.
//!
//! Always true: whatever is done can be done twice, and [`Field::heal`] undoes it all; hosts, disks and mounts go with
//! the field, also when the process is killed. A field knows nothing of nodes but their names, ports and folders.

mod cable;
mod disk;
mod ends;
mod proofs;
mod rack;
mod relays;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use godwit::lab::cluster::NodeSpec;
use godwit_domain::NodeName;
use libtest_mimic::Trial;

use crate::support::{Outcome, unless};
pub(crate) use cable::Way;
use cable::{Cable, End};
pub(crate) use disk::Disk;
pub(crate) use rack::Net;
use rack::{Rack, inside};
use relays::{CONTROL_PORT, Delay, PAGES_PORT, Relays};

/// It fits the cable, and ten of them, a burst, stay with their headers below the 65,536 bytes that a device takes in
/// one piece. Ten of 6,550, the largest that a node's config takes, do not: the kernel then cuts up every burst.
const UDP_PAYLOAD_BYTES_MAX: u16 = 6540;

/// See the module.
#[derive(Debug)]
pub(crate) struct Field {
    names: Vec<NodeName>,
    voters: usize,
    /// `/proc/net/dev` of each host, open: it can be read whether or not any process is there.
    counters: Vec<File>,
    relays: Relays,
    wrongs: Mutex<Wrongs>,
    /// The last to go.
    rack: Rack,
}

/// What is wrong now. Who changes it holds it until the kernel has been told.
#[derive(Debug, Default)]
struct Wrongs {
    cables: BTreeMap<End, Cable>,
    delays: BTreeMap<End, Delay>,
}

impl Field {
    /// Hosts for these nodes, at most 254, of which the first so many vote, and for each the disks that stand in its
    /// state folder `dir/NAME`. What chance decides about delays follows from the seed.
    ///
    /// # Errors
    /// What the kernel does not have, or does not let this user do.
    pub(crate) fn new(dir: &Path, names: &[&str], voters: usize, seed: u64) -> Result<Self, Box<dyn Error>> {
        let names_of_nodes = names.iter().map(|name| name.parse()).collect::<Result<Vec<NodeName>, _>>()?;
        let rack = Rack::new(names, &Disk::ALL.map(Disk::measures))?;
        for name in names {
            Disk::ALL.iter().try_for_each(|disk| disk.put(&rack.folder.join(name), &dir.join(name)))?;
        }
        let counter = |host: &String| inside(host, || File::open("/proc/thread-self/net/dev"));
        let counters = rack.hosts.iter().map(counter).collect::<Result<_, _>>()?;
        let relays = Relays::start(&rack, voters, seed)?;
        let field = Self { names: names_of_nodes, voters, counters, relays, wrongs: Mutex::default(), rack };
        field.heal()?;
        Ok(field)
    }

    /// How the nodes are started.
    pub(crate) fn specs(&self) -> Vec<NodeSpec> {
        let hosts = || (1_u8..).zip(&self.names);
        let spec = |(host, name): (u8, &NodeName)| {
            let voters = hosts().take(self.voters);
            let address = |voter| (Net::Control.address(voter), CONTROL_PORT).into();
            let voters = voters.map(|(voter, name)| (name.clone(), address(voter))).collect();
            NodeSpec {
                control: (Net::Control.address(host), CONTROL_PORT).into(),
                migration: (Net::Pages.address(host), PAGES_PORT).into(),
                wrapper: self.wrapper_of(host, Duration::ZERO),
                udp_payload_bytes_max: UDP_PAYLOAD_BYTES_MAX,
                ..NodeSpec::on_loopback(name.clone(), &voters)
            }
        };
        hosts().map(spec).collect()
    }

    /// The command to start a node on its host, its monotonic clock so much later; whole seconds.
    ///
    /// # Panics
    /// As all that follow, where no host has this name.
    pub(crate) fn wrapper(&self, node: &NodeName, clock_shift: Duration) -> Vec<String> {
        self.wrapper_of(self.host(node), clock_shift)
    }

    fn wrapper_of(&self, host: u8, clock_shift: Duration) -> Vec<String> {
        let mut words = ["ip", "netns", "exec", self.namespace(host)].map(str::to_owned).to_vec();
        if let seconds @ 1.. = clock_shift.as_secs() {
            let seconds = seconds.to_string();
            let shift = ["unshare", "-T", "--monotonic", &seconds, "--boottime", &seconds];
            words.extend(shift.map(str::to_owned));
        }
        words
    }

    // ---- cables ----------------------------------------------------------------------------------------------

    /// Cuts a cable. A later cut takes an earlier one's place.
    pub(crate) fn cut(&self, node: &NodeName, net: Net, way: Way) -> Outcome {
        self.change(node, net, |cable| cable.cut = Some(way))
    }

    /// Ends a cut of either way.
    pub(crate) fn mend(&self, node: &NodeName, net: Net) -> Outcome {
        self.change(node, net, |cable| cable.cut = None)
    }

    /// So many bytes in a second pass the cable, each way, Ethernet's headers among them. At least 1.
    pub(crate) fn slow(&self, node: &NodeName, net: Net, bytes_per_s: u64) -> Outcome {
        self.change(node, net, |cable| cable.slow = Some(bytes_per_s.max(1)))
    }

    /// As many as it carries.
    pub(crate) fn fast(&self, node: &NodeName, net: Net) -> Outcome {
        self.change(node, net, |cable| cable.slow = None)
    }

    /// So many of a hundred packets are lost, each way.
    pub(crate) fn lossy(&self, node: &NodeName, net: Net, percent: u8) -> Outcome {
        self.change(node, net, |cable| cable.loss = percent.min(100))
    }

    /// None is lost.
    pub(crate) fn lossless(&self, node: &NodeName, net: Net) -> Outcome {
        self.lossy(node, net, 0)
    }

    fn change(&self, node: &NodeName, net: Net, change: impl FnOnce(&mut Cable)) -> Outcome {
        let end = (self.host(node), net);
        let mut wrongs = self.wrongs();
        let cable = wrongs.cables.entry(end).or_default();
        let before = *cable;
        change(cable);
        let now = *cable;
        if now.slow != before.slow {
            self.rack.tc(self.namespace(end.0), &now.queue(net.name()))?;
            self.rack.tc(&self.rack.hub, &now.queue(&net.port(end.0)))?;
        }
        self.rack.ip(&self.rack.hub, &now.port(end))?;
        self.rack.nft(&self.rack.hub, &cable::rules(&wrongs.cables))
    }

    /// Each datagram is so much longer on the way, and up to `jitter` more, evenly drawn: those of nodes that call
    /// this one and are called by it, both ways, on `Control` from and to voters; on `Pages` those of migrations *to*
    /// this node, both ways. It never fails; relays do it.
    pub(crate) fn delay(&self, node: &NodeName, net: Net, delay: Duration, jitter: Duration) {
        let mut wrongs = self.wrongs();
        wrongs.delays.insert((self.host(node), net), (delay, jitter));
        self.relays.delay(&wrongs.delays);
    }

    /// No longer than it takes.
    pub(crate) fn prompt(&self, node: &NodeName, net: Net) {
        self.delay(node, net, Duration::ZERO, Duration::ZERO);
    }

    /// Bytes and packets that a host has sent on a cable since the field is there, as the kernel counts them: with
    /// Ethernet's headers, and a burst that was handed to it in one piece as one packet. About 20 µs.
    pub(crate) fn sent(&self, node: &NodeName, net: Net) -> Result<(u64, u64), Box<dyn Error>> {
        let file = self.counters.get(usize::from(self.host(node) - 1)).ok_or("no such host")?;
        let mut buffer = [0; 4096];
        let length = file.read_at(&mut buffer, 0)?;
        let devices = std::str::from_utf8(buffer.get(..length).unwrap_or_default())?;
        let of = |line: &'_ str| Some(line.trim().strip_prefix(net.name())?.strip_prefix(':')?.to_owned());
        let line = devices.lines().find_map(of).ok_or_else(|| format!("no cable in {devices}"))?;
        // Eight numbers of what came in stand before those of what went out.
        let mut numbers = line.split_whitespace().skip(8).map(str::parse);
        let mut next = || numbers.next().ok_or("a short line");
        Ok((next()??, next()??))
    }

    // ---- disks -----------------------------------------------------------------------------------------------

    /// Fills a disk to the last page. What has a place on it already can still be written over.
    pub(crate) fn fill_disk(&self, node: &NodeName, disk: Disk) -> Outcome {
        let filled = disk.fill(&self.rack.folder.join(node.as_str()));
        filled.map_err(|error| format!("fill the {disk:?} of {node}: {error}").into())
    }

    /// Makes room on it again.
    pub(crate) fn free_disk(&self, node: &NodeName, disk: Disk) -> Outcome {
        let freed = disk.free(&self.rack.folder.join(node.as_str()));
        freed.map_err(|error| format!("free the {disk:?} of {node}: {error}").into())
    }

    // ---- all -------------------------------------------------------------------------------------------------

    /// Undoes everything, whatever is remembered of it. Clocks are the nodes' own: they go with their processes.
    pub(crate) fn heal(&self) -> Outcome {
        let mut wrongs = self.wrongs();
        *wrongs = Wrongs::default();
        self.relays.delay(&wrongs.delays);
        let well = Cable::default();
        let (mut ports, mut queues) = (String::new(), String::new());
        for host in (1..).take(self.names.len()) {
            for net in Net::ALL {
                ports += &well.port((host, net));
                queues += &well.queue(&net.port(host));
            }
            self.rack.tc(self.namespace(host), &Net::ALL.map(|net| well.queue(net.name())).concat())?;
        }
        self.rack.tc(&self.rack.hub, &queues)?;
        self.rack.ip(&self.rack.hub, &ports)?;
        self.rack.nft(&self.rack.hub, &cable::rules(&wrongs.cables))?;
        let disks = |node| Disk::ALL.into_iter().try_for_each(|disk| self.free_disk(node, disk));
        self.names.iter().try_for_each(disks)
    }

    /// A node's address, for who looks from outside.
    pub(crate) fn address(&self, node: &NodeName, net: Net) -> SocketAddr {
        let port = if net == Net::Control { CONTROL_PORT } else { PAGES_PORT };
        (net.address(self.host(node)), port).into()
    }

    fn wrongs(&self) -> MutexGuard<'_, Wrongs> {
        self.wrongs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host's number, from 1.
    fn host(&self, node: &NodeName) -> u8 {
        let found = (1..).zip(&self.names).find(|(_, name)| *name == node);
        found.map(|(host, _)| host).unwrap_or_else(|| panic!("no host is called {node}"))
    }

    fn namespace(&self, host: u8) -> &str {
        self.rack.hosts.get(usize::from(host - 1)).map(String::as_str).unwrap_or_default()
    }
}

/// The proofs.
pub(crate) fn trials() -> Vec<Trial> {
    let missing = missing();
    let all = proofs::trials().into_iter().chain(ends::trials());
    all.map(|trial| unless(missing.as_deref(), trial)).collect()
}

/// What is missing here for a field.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root for network namespaces".to_owned());
    }
    let why = try_all().err()?.to_string();
    Some(format!("needs namespaces, bridges, tbf and nft: {}", why.lines().next().unwrap_or_default()))
}

/// Whether all that is done to a host can be done here.
fn try_all() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (node, net) = ("probe".parse()?, Net::Pages);
    let field = Field::new(dir.path(), &["probe"], 1, 0)?;
    field.slow(&node, net, 1 << 20)?;
    field.lossy(&node, net, 1)?;
    field.cut(&node, net, Way::In)?;
    let words = field.wrapper(&node, Duration::from_secs(1));
    let (first, rest) = words.split_first().ok_or("no wrapper")?;
    let ran = Command::new(first).args(rest).arg("true").output()?;
    if ran.status.success() { Ok(()) } else { Err(format!("{words:?}: {ran:?}").into()) }
}
