//! The hosts as the kernel knows them: a namespace for each, two cables to a hub, and a process that removes it all.
//!
//! ```text
//!   godwit-PID-fN-a                      godwit-PID-fN-hub                     godwit-PID-fN-b
//!   control, 192.0.2.1 ────▶ control1 ┐ bridge control ┌ control2 ◀──── control, 192.0.2.2
//!   pages, 198.51.100.1 ───▶ pages1   ┐ bridge pages   ┌ pages2 ◀────── pages, 198.51.100.2
//! ```
//!
//! Always true: a process that waits for this one's end removes namespaces, mounts and the folder, however it ends.
//! Nothing here knows what a node is.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::support::Outcome;

/// A host's two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Net {
    /// Where the voters and the sessions are: 1,500 bytes MTU.
    Control,
    /// Where guests move: 9,000 bytes MTU.
    Pages,
}

impl Net {
    pub(crate) const ALL: [Self; 2] = [Self::Control, Self::Pages];

    /// What the host's end of the cable is called, and the bridge in the hub.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Pages => "pages",
        }
    }

    const fn mtu(self) -> u16 {
        match self {
            Self::Control => 1500,
            Self::Pages => 9000,
        }
    }

    /// The address of the host with this number, from 1.
    pub(super) const fn address(self, host: u8) -> Ipv4Addr {
        match self {
            Self::Control => Ipv4Addr::new(192, 0, 2, host),
            Self::Pages => Ipv4Addr::new(198, 51, 100, host),
        }
    }

    /// The hub's end of that host's cable.
    pub(super) fn port(self, host: u8) -> String {
        format!("{}{host}", self.name())
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Rack {
    pub(super) hub: String,
    /// The namespaces of the hosts, the first that of host 1.
    pub(super) hosts: Vec<String>,
    /// A folder that goes with the rack. Below it, in `HOST/DISK`, lie the hosts' disks.
    pub(super) folder: PathBuf,
    remover: Child,
}

impl Rack {
    /// Hosts of these names, on each of which are these disks: a name and its size in bytes.
    pub(super) fn new(names: &[&str], disks: &[(&str, u64)]) -> Result<Self, Box<dyn Error>> {
        static RACKS: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("godwit-{}-f{}", std::process::id(), RACKS.fetch_add(1, Ordering::Relaxed));
        let hosts: Vec<_> = names.iter().map(|name| format!("{prefix}-{name}")).collect();
        let hub = format!("{prefix}-hub");
        let folder = tempfile::Builder::new().prefix("godwit-field-").tempdir()?.keep();
        let of_host = |name| disks.iter().map(move |(disk, bytes)| (Path::new(name).join(disk), *bytes));
        let disks: Vec<_> =
            names.iter().flat_map(of_host).map(|(at, bytes)| (folder.join(at), bytes)).collect();
        let mounts = disks.iter().map(|(mount, _)| mount.as_path());
        let remover = start_remover(hosts.iter().chain([&hub]), mounts, &folder)?;
        let rack = Self { hub, hosts, folder, remover };
        rack.lay_cables()?;
        for (mount, bytes) in disks {
            std::fs::create_dir_all(&mount)?;
            let (size, mount) = (format!("size={bytes}"), mount.display().to_string());
            run(&["mount", "-t", "tmpfs", "-o", &size, "godwit-field", &mount], "")?;
        }
        Ok(rack)
    }

    fn lay_cables(&self) -> Outcome {
        run(&["ip", "netns", "add", &self.hub], "")?;
        let mut ports = String::new();
        for net in Net::ALL {
            let name = net.name();
            ports += &format!("link add {name} type bridge\nlink set {name} up\n");
        }
        self.ip(&self.hub, &ports)?;
        ports.clear();
        for (number, host) in (1..).zip(&self.hosts) {
            run(&["ip", "netns", "add", host], "")?;
            let mut cables = "link set lo up\n".to_owned();
            for net in Net::ALL {
                let (name, port, mtu, address) =
                    (net.name(), net.port(number), net.mtu(), net.address(number));
                // No addresses of IPv6: what they chat would be counted.
                cables += &format!(
                    "link add {name} mtu {mtu} type veth peer name {port} mtu {mtu} netns {}\n",
                    self.hub
                );
                cables += &format!("link set {name} addrgenmode none\naddr add {address}/24 dev {name}\n");
                cables += &format!("link set {name} up\n");
                ports += &format!("link set {port} addrgenmode none\nlink set {port} master {name} up\n");
            }
            self.ip(host, &cables)?;
        }
        self.ip(&self.hub, &ports)
    }

    /// Commands of `ip`, one a line, in one namespace.
    pub(super) fn ip(&self, namespace: &str, lines: &str) -> Outcome {
        run(&["ip", "-n", namespace, "-batch", "-"], lines)
    }

    /// The same, of `tc`.
    pub(super) fn tc(&self, namespace: &str, lines: &str) -> Outcome {
        run(&["tc", "-n", namespace, "-batch", "-"], lines)
    }

    /// Rules of `nft`: all of them hold, or none.
    pub(super) fn nft(&self, namespace: &str, rules: &str) -> Outcome {
        run(&["ip", "netns", "exec", namespace, "nft", "-f", "-"], rules)
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        drop(self.remover.stdin.take());
        let _ = self.remover.wait();
    }
}

fn start_remover<'n>(
    namespaces: impl Iterator<Item = &'n String>,
    mounts: impl Iterator<Item = &'n Path>,
    folder: &Path,
) -> io::Result<Child> {
    use std::os::unix::process::CommandExt;
    let mut script = "cat >/dev/null".to_owned();
    namespaces.for_each(|name| script += &format!("; ip netns del {name}"));
    // Lazily: a node that is still there keeps its disk until it ends.
    mounts.for_each(|mount| script += &format!("; umount -l '{}'", mount.display()));
    script += &format!("; rm -rf --one-file-system '{}'", folder.display());
    let mut remover = Command::new("sh");
    // A group of its own: an interrupt at the terminal must not end it.
    remover.args(["-c", &script]).process_group(0);
    remover.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Does something in a namespace, on a thread that goes there. Threads that it starts are there too, and sockets and
/// files of `/proc/thread-self/net` that it opens stay there.
pub(super) fn inside<T: Send>(namespace: &str, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let there = || {
        let namespace = File::open(Path::new("/run/netns").join(namespace))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        act()
    };
    let done = std::thread::scope(|scope| scope.spawn(there).join());
    done.unwrap_or_else(|_| Err(io::Error::other("panicked in a namespace")))
}

/// Runs a command with these lines on stdin. An error has the command, the lines, and what it said.
fn run(words: &[&str], lines: &str) -> Outcome {
    let named = |what: &dyn std::fmt::Display| format!("{}: {what}\n{lines}", words.join(" "));
    let (first, rest) = words.split_first().ok_or("no command")?;
    let mut command = Command::new(first);
    command.args(rest).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| named(&error))?;
    // Shorter than a pipe's buffer; one that ends without reading says why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().map_err(|error| named(&error))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(named(&said.trim()).into()) }
}
