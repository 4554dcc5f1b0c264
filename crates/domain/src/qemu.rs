//! A virtual machine that QEMU runs: what is agreed of it, and the arguments of one that is made here.
//!
//! ```text
//!   Machine (cpus, disks, kernel, …) ─▶ arguments ─┐
//!   a QEMU that runs already ─ what of it is portable ─┴─▶ Qemu ─▶ the registry ─▶ any node starts it
//! ```
//!
//! *Portable* arguments are without what belongs to one process: its memory file, its control sockets, whether it waits. Where the
//! path of the memory file belongs, they have [`RAM`]; sockets have names without a folder, as QEMU is started in its runner's.
//!
//! Never here: a file or a process; whether a path is there is seen by whoever starts it.

use serde::{Deserialize, Serialize};

/// What stands for the path of the memory file.
pub const RAM: &str = "{ram}";
/// The socket of its serial line, in the runner's folder.
pub const CONSOLE_SOCKET: &str = "console.sock";

/// Most arguments of a QEMU.
pub const QEMU_ARGUMENTS_MAX: usize = 256;
/// Most bytes of its program's path and arguments together. Every node holds them, for every guest.
pub const QEMU_BYTES_MAX: usize = 16 << 10;

/// A virtual machine as QEMU is told of it, on whatever node. What belongs to one process alone (its memory file, its
/// sockets, whether it waits for a guest) is not in it: whoever starts it adds that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qemu {
    /// The program: a path, or a name that is looked for as a shell would.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The memory backend of which its RAM is made (`-object …,id=`): the stream of its state names it.
    pub ram_id: String,
    /// The process that ran before anybody here knew of it: the guest's first. No other is ever started in its place, so a
    /// guest that was adopted does not boot a second time beside itself.
    pub adopted: Option<Adopted>,
}

/// A QEMU on the guest's first node, which was started by somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopted {
    /// Its process.
    pub pid: i32,
    /// When it was started, in clock ticks since boot: with the number, it is that process alone.
    pub started_ticks: u64,
    /// A control socket of it that has no other client.
    pub qmp: String,
}

impl Qemu {
    /// Whether it is small enough to be agreed on.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn check(&self) -> Result<(), String> {
        let Self { program, arguments, ram_id, adopted } = self;
        let socket = adopted.as_ref().map_or(0, |adopted| adopted.qmp.len());
        let bytes = program.len() + ram_id.len() + socket + arguments.iter().map(String::len).sum::<usize>();
        if arguments.len() > QEMU_ARGUMENTS_MAX || bytes > QEMU_BYTES_MAX {
            return Err(format!(
                "QEMU has {} arguments of {bytes} bytes together; at most {QEMU_ARGUMENTS_MAX} of {QEMU_BYTES_MAX} are taken",
                arguments.len()
            ));
        }
        if program.is_empty() || ram_id.is_empty() {
            return Err("QEMU has no program or no memory backend's id; both are needed".to_owned());
        }
        if arguments.iter().chain([program, ram_id]).any(|text| text.contains('\0')) {
            return Err("an argument of QEMU has a zero byte in it; none can".to_owned());
        }
        Ok(())
    }
}

impl Qemu {
    /// Whether a disk of it may write its memory past the page cache: then a page can change after it was seen to be written.
    pub fn has_direct_io(&self) -> bool {
        const WORDS: [&str; 5] =
            ["cache=none", "cache=directsync", "direct=on", "aio=native", "\"direct\":true"];
        self.arguments.iter().any(|argument| WORDS.iter().any(|word| argument.contains(word)))
    }
}

/// What a machine of ours is made of.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// The program.
    pub program: String,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// Processors.
    pub processors: u32,
    /// `kvm` or `tcg`; `None`: the first that works on the host.
    pub accelerator: Option<String>,
    /// A kernel to boot, its first file system and its command line.
    pub kernel: Option<(String, Option<String>, String)>,
    /// Disks, as paths that every host has.
    pub disks: Vec<String>,
    /// A tap for its network card; `user`: QEMU's own network.
    pub network: Option<String>,
    /// Anything else.
    pub more: Vec<String>,
}

impl Machine {
    /// The portable arguments of a machine. What is said beside (`more`) is not looked at.
    pub fn arguments(&self) -> Qemu {
        let Machine { program, memory_bytes, processors, accelerator, kernel, disks, network, more } = self;
        let mut words: Vec<String> = Vec::new();
        let mut option = |name: &str, value: String| words.extend([format!("-{name}"), value]);
        option("machine", format!("{},memory-backend=ram", machine_type(program)));
        option("m", format!("{}K", memory_bytes >> 10));
        option("object", format!("memory-backend-file,id=ram,size={memory_bytes},mem-path={RAM},share=on"));
        option("smp", processors.to_string());
        match accelerator {
            Some(accelerator) => option("accel", accelerator.clone()),
            // The first that works; a guest that runs under one does not load under the other, and stays where it is.
            None => {
                option("accel", "kvm".into());
                option("accel", "tcg".into());
            }
        }
        option("display", "none".into());
        let console = format!(
            "socket,id=console,path={CONSOLE_SOCKET},server=on,wait=off,logfile=console.log,logappend=on"
        );
        option("chardev", console);
        option("serial", "chardev:console".into());
        if let Some((path, initrd, append)) = kernel {
            option("kernel", path.clone());
            if let Some(initrd) = initrd {
                option("initrd", initrd.clone());
            }
            option("append", append.clone());
        }
        for (at, disk) in disks.iter().enumerate() {
            let format = if has_ending(disk, "qcow2") { "qcow2" } else { "raw" };
            // A comma would end the path.
            let disk = disk.replace(',', ",,");
            // Other caches keep pages of the file that another host has changed.
            option("drive", format!("if=none,id=disk{at},file={disk},format={format},cache=none"));
            option("device", format!("virtio-blk-pci,drive=disk{at}"));
        }
        match network.as_deref() {
            None => {}
            Some("user") => {
                option("netdev", "user,id=net0".into());
                option("device", "virtio-net-pci,netdev=net0".into());
            }
            Some(tap) => {
                option("netdev", format!("tap,id=net0,ifname={tap},script=no,downscript=no"));
                option("device", "virtio-net-pci,netdev=net0".into());
            }
        }
        words.extend(["-nodefaults".to_owned(), "-no-user-config".to_owned()]);
        words.extend(more.iter().cloned());
        Qemu { program: program.clone(), arguments: words, ram_id: "ram".to_owned(), adopted: None }
    }
}

fn machine_type(program: &str) -> &'static str {
    if program.ends_with("aarch64") { "virt" } else { "q35" }
}

fn has_ending(path: &str, ending: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, found)| found.eq_ignore_ascii_case(ending))
}
