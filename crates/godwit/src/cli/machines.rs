//! Virtual machines that QEMU runs, as the command line knows them: made, adopted, left alone, their consoles.
//!
//! ```text
//!   guest create --runner qemu ─▶ MachineArgs ─▶ portable arguments ─▶ GuestSpec
//!   guest adopt  --pid --qmp   ─▶ looked at here, by this process ─▶ GuestSpec, with that process in it ─▶ the node
//!   guest console ─▶ the serial line's socket in the runner's folder, on the node where the guest runs
//! ```
//!
//! Always true: a QEMU that is only looked at (`--dry-run`) is changed in nothing.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use godwit_admin::render;
use godwit_domain::qemu::{CONSOLE_SOCKET, Machine};
use godwit_domain::{Adopted, GuestName, GuestSpec, NodeName, Qemu};
use godwit_guest::qemu::command::{default_program, of_machine};
use godwit_guest::qemu::{self, Inspected, Objection};
use godwit_wire::admin::{Act, Code, GuestDetail, GuestStats, Problem, Version};

use super::asking::{Asking, Changing};
use super::failure::Failure;
use super::guest::{Named, label};

/// What runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RunnerKind {
    /// A process whose memory is really written; no hypervisor is needed
    Builtin,
    /// A virtual machine
    Qemu,
}

/// What a virtual machine is made of. Paths must be the same on every node (or see `[qemu.rename]` in a node's config).
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Virtual machine (--runner qemu)")]
pub struct MachineArgs {
    /// Processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    cpus: u32,
    /// What carries out its instructions [default: kvm where it works, else tcg]
    #[arg(long, value_name = "kvm|tcg")]
    accel: Option<String>,
    /// A kernel to boot
    #[arg(long, value_name = "PATH")]
    kernel: Option<String>,
    /// Its first file system
    #[arg(long, value_name = "PATH", requires = "kernel")]
    initrd: Option<String>,
    /// Its command line
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "console=ttyS0")]
    append: String,
    /// A disk that every node reaches; may be given more than once
    #[arg(long = "disk", value_name = "PATH")]
    disks: Vec<String>,
    /// A tap for its network card, or \"user\" for QEMU's own network
    #[arg(long, value_name = "TAP")]
    network: Option<String>,
    /// The program [default: qemu-system- and this processor's name]
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<String>,
    /// One more argument of QEMU; may be given more than once
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    more: Vec<String>,
}

impl MachineArgs {
    /// The virtual machine, with this much RAM.
    ///
    /// # Errors
    /// All objections to what was added, in one text.
    pub fn spec(self, memory_bytes: u64) -> Result<GuestSpec, String> {
        let Self { cpus, accel, kernel, initrd, append, disks, network, qemu, more } = self;
        let machine = Machine {
            program: qemu.unwrap_or_else(default_program),
            memory_bytes,
            processors: cpus,
            accelerator: accel,
            kernel: kernel.map(|kernel| (kernel, initrd, append)),
            disks,
            network,
            more,
        };
        let qemu = of_machine(&machine).map_err(|objections| outside("this machine", &objections))?;
        Ok(GuestSpec { qemu: Some(qemu), ..GuestSpec::idle(memory_bytes) })
    }
}

#[derive(Debug, Args)]
pub(super) struct GuestAdopt {
    #[command(flatten)]
    named: Named,
    /// QEMU's process on this host
    #[arg(long)]
    pid: i32,
    /// A control socket (QMP) of it that nobody else uses: it serves one client at a time
    #[arg(long, value_name = "SOCKET")]
    qmp: PathBuf,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// A label, by which the guest gets its policy
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    changing: Changing,
}

impl GuestAdopt {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { named, pid, qmp, dry_run, labels, changing } = self;
        let guest = named.name()?;
        let qmp = std::path::absolute(qmp).map_err(Failure::usage)?;
        let inspected = qemu::inspect(pid, &qmp)
            .map_err(|objections| Failure::failed(outside(&format!("QEMU {pid}"), &objections)))?;
        let began = qemu::started_ticks(pid).map_err(Failure::failed)?;
        let began = began.ok_or_else(|| Failure::failed(format!("process {pid} has ended")))?;
        if dry_run {
            return super::print(&would(&guest, &inspected)).map_err(Failure::from);
        }
        let version: Version = changing.asking.read(&changing.asking.ask(Act::Version)?)?;
        let adopted = Adopted { pid, started_ticks: began, qmp: qmp.display().to_string() };
        let spec = inspected.spec();
        let qemu = spec.qemu.clone().map(|qemu| Qemu { adopted: Some(adopted), ..qemu });
        let (node, labels) = (Some(version.node), labels.into_iter().collect());
        changing
            .show(Act::GuestCreate { guest, node, spec: GuestSpec { qemu, ..spec }, labels }, render::guest)
    }
}

fn would(guest: &GuestName, inspected: &Inspected) -> String {
    let Inspected { pid, version, name, memory_bytes, address, qemu } = inspected;
    let name = name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
    format!(
        "QEMU {version}, process {pid}{name}: can be adopted as {guest}\n\
         RAM        {} at {address:#x}, backend {}\n\
         would be   stopped for less than a millisecond to make a userfaultfd in it; watched over its QMP socket\n\
         elsewhere  {} {}\n\
         nothing was changed",
        render::units::bytes(*memory_bytes),
        qemu.ram_id,
        qemu.program,
        qemu.arguments.join(" "),
    )
}

fn outside(what: &str, objections: &[Objection]) -> String {
    let all: Vec<String> = objections.iter().map(|objection| format!("  - {objection}")).collect();
    format!("{what} can not be moved:\n{}", all.join("\n"))
}

#[derive(Debug, Args)]
pub(super) struct GuestConsole {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    asking: Asking,
}

impl GuestConsole {
    /// Bytes from the console to stdout, and from stdin to it, until either ends.
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { named, asking } = self;
        let guest = named.name()?;
        // What is agreed on says where it is, also if the node there does not answer.
        let detail: GuestDetail = asking.read(&asking.ask(Act::GuestShow { guest: guest.clone() })?)?;
        let version: Version = asking.read(&asking.ask(Act::Version)?)?;
        if let Some(problem) = out_of_reach(&detail, &version.node) {
            return Err(asking.refuse(problem));
        }
        let stats: GuestStats = asking.read(&asking.ask(Act::GuestStats { guest: guest.clone() })?)?;
        let dir = PathBuf::from(stats.dir);
        let path = dir.join(CONSOLE_SOCKET);
        // Its own path may be too long for a socket.
        let folder = std::fs::File::open(&dir).map_err(Failure::failed)?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&folder);
        let near = format!("/proc/self/fd/{number}/{CONSOLE_SOCKET}");
        let stream = UnixStream::connect(near).map_err(|error| {
            Failure::failed(format!(
                "{}: {error}; a QEMU that was adopted has the serial line that it was started with, until it moves",
                path.display()
            ))
        })?;
        if io::stdin().is_terminal() {
            super::talk(&format!("console of {guest}; end it with Ctrl-C"));
        }
        copy_both(&stream).map_err(Failure::failed)
    }
}

/// Why the console of a guest is not reached from this node.
fn out_of_reach(detail: &GuestDetail, here: &NodeName) -> Option<Problem> {
    let guest = &detail.row.name;
    if detail.spec.qemu.is_none() {
        let message = format!("guest {guest} is run by the built-in runner, and has no console");
        let try_ = format!("godwit guest stats {guest} shows what it does");
        return Some(Problem::new(Code::Refused, "a virtual machine has a console", message, try_));
    }
    let there = detail.row.node.as_ref().filter(|node| *node != here)?;
    let message = format!("guest {guest} runs on node {there}, and this is node {here}");
    let try_ = format!("on node {there}: godwit guest console {guest}");
    Some(Problem::new(Code::Refused, "a console is reached on the node that runs its guest", message, try_))
}

fn copy_both(stream: &UnixStream) -> io::Result<()> {
    let mut keyboard = stream.try_clone()?;
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(read) = io::stdin().lock().read(&mut bytes) {
            let typed = bytes.get(..read).unwrap_or_default();
            if typed.is_empty() || keyboard.write_all(typed).is_err() {
                break;
            }
        }
        let _ = keyboard.shutdown(Shutdown::Write);
    });
    let (mut reader, mut out, mut bytes) = (stream, io::stdout().lock(), [0; 4096]);
    loop {
        match reader.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                out.write_all(bytes.get(..read).unwrap_or_default())?;
                out.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
