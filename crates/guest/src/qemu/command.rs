//! QEMU's command line: what of a running one another host can repeat, and what one is started with.
//!
//! ```text
//!   /proc/PID/cmdline ──▶ portable ──▶ Qemu (agreed on by the group) ──▶ launch, at any node ──▶ arguments of a process
//!                            └▶ objections, each with its cure
//! ```
//!
//! *Portable* is without what belongs to one process: its memory file, its control sockets, whether it waits. The memory backend
//! stands as `{ram}` in it. Sockets of consoles have names without a folder: QEMU is started in its runner's folder.
//!
//! Always true: what is not understood is kept as it is, and what is known not to work elsewhere is an objection. Never here: a
//! file, a process; whether a path is there is seen where it is needed.

use godwit_domain::qemu::{CONSOLE_SOCKET, Machine, Qemu, RAM};

/// The socket of its control line, in the runner's folder.
pub const QMP_SOCKET: &str = "qmp.sock";

/// A folder that nobody knows any more. No path has such a byte.
const UNKNOWN: &str = "\u{0}";

/// Why a QEMU can not be moved, and what would cure it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    /// What is found.
    pub what: String,
    /// What would make it movable.
    pub cure: String,
}

impl std::fmt::Display for Objection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n    cure: {}", self.what, self.cure)
    }
}

pub(super) fn objection(what: impl Into<String>, cure: impl Into<String>) -> Objection {
    Objection { what: what.into(), cure: cure.into() }
}

/// Options that stand alone and belong to one process.
const ALONE: [&str; 4] = ["S", "s", "daemonize", "preconfig"];
/// Options that belong to one process, with what follows them.
const DROPPED: [&str; 9] =
    ["incoming", "pidfile", "qmp", "qmp-pretty", "monitor", "mon", "D", "trace", "gdb"];
/// Options whose value is a path.
const PATHS: [&str; 13] = [
    "kernel", "initrd", "bios", "hda", "hdb", "hdc", "hdd", "cdrom", "fda", "pflash", "dtb", "L", "mtdblock",
];
/// Keys within an option whose value is a path.
const PATH_KEYS: [&str; 2] = ["file=", "filename="];
/// Devices of which a part of the state is not in guest memory nor in QEMU's stream, or that write guest memory unseen.
const DEVICES: [(&str, &str, &str); 7] = [
    ("vfio-", "hardware that is passed through writes guest memory unseen", "use a virtio device instead"),
    ("vhost-user", "another process writes guest memory unseen", "use the virtio device of QEMU itself"),
    ("vhost-vsock", "the kernel writes guest memory for a host's socket", "remove the device"),
    ("virtio-balloon", "a balloon takes pages away unseen", "start it without -device virtio-balloon"),
    ("virtio-mem", "memory is plugged and unplugged", "give all memory with -m"),
    ("ivshmem", "memory is shared with other processes", "remove the device"),
    ("pc-dimm", "memory is plugged", "give all memory with -m"),
];

/// What of a QEMU's arguments (the program's name not among them) another host can repeat.
///
/// # Errors
/// All objections there are.
pub fn portable(
    program: &str,
    arguments: &[String],
    folder: &str,
    ram_id: &str,
) -> Result<Qemu, Vec<Objection>> {
    let mut objections = by_libvirt(arguments);
    // It has left the folder in which it was started, and from which relative paths count.
    let has_left = arguments.iter().any(|argument| argument.trim_start_matches('-') == "daemonize");
    let folder = if has_left { UNKNOWN } else { folder };
    let mut kept = Vec::new();
    let monitors = monitors_of(arguments);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(name) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            kept.push(absolute(argument, folder));
            continue;
        };
        if ALONE.contains(&name) {
            continue;
        }
        if !takes_value(name) {
            if name == "snapshot" {
                objections.push(forgets("-snapshot"));
            }
            kept.push(argument.clone());
            continue;
        }
        let Some(value) = rest.next() else {
            kept.push(argument.clone());
            break;
        };
        let is_monitor =
            name == "chardev" && monitors.iter().any(|id| value_of(value, "id") == Some(id.as_str()));
        if DROPPED.contains(&name) || is_monitor {
            continue;
        }
        match option(name, value, folder, ram_id) {
            Ok(value) => kept.extend([argument.clone(), value]),
            Err(objection) => objections.push(objection),
        }
    }
    for path in kept.iter().filter(|argument| argument.contains(UNKNOWN)) {
        objections.push(objection(
            format!(
                "{}: a path from a folder that -daemonize has left",
                path.replace(&format!("{UNKNOWN}/"), "")
            ),
            "name files by their whole paths",
        ));
    }
    let kept = kept.iter().map(|argument| argument.replace(UNKNOWN, "")).collect();
    let qemu =
        Qemu { program: program.to_owned(), arguments: kept, ram_id: ram_id.to_owned(), adopted: None };
    if let Err(rule) = qemu.check() {
        objections.push(objection(rule, "put options into a file that every host has (-readconfig FILE)"));
    }
    if objections.is_empty() { Ok(qemu) } else { Err(objections) }
}

/// Those that take no value, of all that QEMU 7 to 10 have. Every other takes one.
fn takes_value(name: &str) -> bool {
    const FLAGS: [&str; 30] = [
        "h",
        "help",
        "version",
        "snapshot",
        "no-fd-bootchk",
        "no-acpi",
        "no-hpet",
        "nographic",
        "nodefaults",
        "no-user-config",
        "no-reboot",
        "no-shutdown",
        "enable-kvm",
        "singlestep",
        "full-screen",
        "no-quit",
        "win2k-hack",
        "rtc-td-hack",
        "portrait",
        "mem-prealloc",
        "only-migratable",
        "enable-sync-profile",
        "no-kvm",
        "xen-attach",
        "xen-domid-restrict",
        "enable-fips",
        "usb",
        "async-teardown",
        "semihosting",
        "old-param",
    ];
    !FLAGS.contains(&name)
}

/// One option's value as another host can have it.
fn option(name: &str, value: &str, folder: &str, ram_id: &str) -> Result<String, Objection> {
    if let Some(found) = descriptor_in(value) {
        return Err(objection(
            format!("-{name} {value}: {found} is a descriptor of this host that no other can have"),
            "name the file, the tap (ifname=NAME,script=no,downscript=no) or the socket instead of passing a descriptor",
        ));
    }
    match name {
        "drive" if matches!(value_of(value, "snapshot"), Some("on" | "yes" | "true")) => {
            Err(forgets(&format!("-drive {value}")))
        }
        "object" if value_of(value, "id") == Some(ram_id) => ram(value),
        "device" => device(value).map(|()| value.to_owned()),
        "netdev" | "nic" | "net" => network(name, value).map(|()| value.to_owned()),
        "serial" if value.starts_with("unix:") => Ok(format!("unix:{CONSOLE_SOCKET},server=on,wait=off")),
        "loadvm" => Err(objection(
            format!("-loadvm {value}: another host would load that snapshot"),
            "start it without -loadvm",
        )),
        "balloon" => Err(objection("-balloon: a balloon takes pages away unseen", "start it without")),
        "mem-path" => Err(objection(format!("-mem-path {value}: its memory is not shared"), ram_cure())),
        _ if PATHS.contains(&name) => Ok(absolute(value, folder)),
        _ => Ok(paths_in(value, folder)),
    }
}

/// What it has written since it was started is in a temporary file that no other host sees.
fn forgets(what: &str) -> Objection {
    objection(
        format!("{what}: what the guest writes to its disk goes to a temporary file of this host"),
        "start it without snapshots of QEMU's own, on a copy of the disk that every host sees",
    )
}

/// The options that make RAM movable.
pub fn ram_cure() -> String {
    "-object memory-backend-file,id=ram,size=SIZE,mem-path=/dev/shm,share=on -machine …,memory-backend=ram (SIZE as in -m)"
        .to_owned()
}

fn ram(value: &str) -> Result<String, Objection> {
    let size = value_of(value, "size").unwrap_or_default();
    let shared = matches!(value_of(value, "share"), Some("on" | "yes" | "true"));
    let id = value_of(value, "id").unwrap_or_default();
    let is_a_file = value.starts_with("memory-backend-memfd") || value.starts_with("memory-backend-file");
    if matches!(value_of(value, "hugetlb"), Some("on" | "yes" | "true")) {
        return Err(objection(
            format!("-object {value}: its pages are larger than 4 KiB, in which pages are moved"),
            "hugetlb=off",
        ));
    }
    // A memory file that every process sees, and no other.
    if !is_a_file
        || !(shared || value.starts_with("memory-backend-memfd") && value_of(value, "share").is_none())
    {
        return Err(objection(
            format!("-object {value}: its memory is not a shared memory file"),
            ram_cure(),
        ));
    }
    Ok(format!("memory-backend-file,id={id},size={size},mem-path={RAM},share=on"))
}

fn device(value: &str) -> Result<(), Objection> {
    let kind = value.split(',').next().unwrap_or_default();
    match DEVICES.iter().find(|(prefix, ..)| kind.starts_with(prefix)) {
        Some((_, why, cure)) => Err(objection(format!("-device {value}: {why}"), *cure)),
        None => Ok(()),
    }
}

fn network(name: &str, value: &str) -> Result<(), Objection> {
    if value.starts_with("vhost-user") || value.starts_with("vhost-vdpa") {
        return Err(objection(
            format!("-{name} {value}: another process writes guest memory unseen"),
            "use -netdev tap or -netdev user",
        ));
    }
    if matches!(value_of(value, "vhost"), Some("on" | "yes")) {
        return Err(objection(
            format!("-{name} {value}: the kernel's vhost was not tested with dirty tracking"),
            "vhost=off",
        ));
    }
    Ok(())
}

/// `fd=5`, `fds=5:6`, `vhostfd=7`, `/dev/fdset/1`.
fn descriptor_in(value: &str) -> Option<&str> {
    let keys = ["fd=", "fds=", "vhostfd=", "vhostfds="];
    let by_key = value.split(',').find(|part| keys.iter().any(|key| part.starts_with(key)));
    by_key.or_else(|| value.contains("/dev/fdset/").then_some("/dev/fdset"))
}

/// `libvirtd` starts, names and ends its machines itself.
pub(super) fn by_libvirt(arguments: &[String]) -> Vec<Objection> {
    let has = |part: &str| arguments.iter().any(|argument| argument.contains(part));
    if !has("/libvirt/qemu/") && !has("id=charmonitor") {
        return Vec::new();
    }
    vec![objection(
        "it is managed by libvirt, which would start it again where it was: two of one guest",
        "take it out of libvirt first: virsh domxml-to-native qemu-argv, shut the guest down, and start it with \
         `godwit guest create --runner qemu`; or go on moving it with virsh migrate",
    )]
}

/// The ids of character devices that carry a monitor.
fn monitors_of(arguments: &[String]) -> Vec<String> {
    let pairs = arguments.iter().zip(arguments.iter().skip(1));
    let monitors = pairs.filter(|(name, _)| matches!(name.as_str(), "-mon" | "--mon"));
    monitors.filter_map(|(_, value)| chardev_of(value)).collect()
}

fn chardev_of(value: &str) -> Option<String> {
    value_of(value, "chardev").or_else(|| value.split(',').next()).map(str::to_owned)
}

/// The value of a key in `kind,key=value,key=value`.
pub fn value_of<'a>(value: &'a str, key: &str) -> Option<&'a str> {
    value.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
}

/// A relative path, from the folder that the process is in.
fn absolute(path: &str, folder: &str) -> String {
    let has_protocol = path.split_once(':').is_some_and(|(scheme, _)| !scheme.contains('/'));
    if path.is_empty() || path.starts_with('/') || has_protocol {
        return path.to_owned();
    }
    format!("{}/{path}", folder.trim_end_matches('/'))
}

fn paths_in(value: &str, folder: &str) -> String {
    let part = |part: &str| match PATH_KEYS.iter().find_map(|key| Some((key, part.strip_prefix(key)?))) {
        Some((key, path)) => format!("{key}{}", absolute(path, folder)),
        None => part.to_owned(),
    };
    value.split(',').map(part).collect::<Vec<_>>().join(",")
}

/// How a QEMU of ours begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// As a new machine, which waits to be run for the first time.
    Fresh,
    /// As an empty one, which waits for a state.
    Incoming,
}

/// The arguments of a process. `ram` is a path to the memory file as that process sees it; `renamed` are the beginnings of paths
/// and names that are others on this host.
pub fn launch(qemu: &Qemu, begin: Begin, ram: &str, renamed: &[(String, String)]) -> Vec<String> {
    let here = |argument: &String| {
        renamed.iter().fold(argument.replace(RAM, ram), |text, (from, to)| text.replace(from, to))
    };
    let mut arguments: Vec<String> = qemu.arguments.iter().map(here).collect();
    // It never runs by itself, whatever happens to it.
    arguments.push("-S".into());
    arguments.extend(["-qmp".into(), format!("unix:{QMP_SOCKET},server=on,wait=off")]);
    if begin == Begin::Incoming {
        arguments.extend(["-incoming".into(), "defer".into()]);
    }
    arguments
}

/// The portable arguments of a machine of ours, to which others were added.
///
/// # Errors
/// All objections to those.
pub fn of_machine(machine: &Machine) -> Result<Qemu, Vec<Objection>> {
    let Qemu { program, arguments, ram_id, .. } = machine.arguments();
    portable(&program, &arguments, "/", &ram_id)
}

/// QEMU for this processor.
pub fn default_program() -> String {
    format!("qemu-system-{}", std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn portable_of(text: &str) -> Result<String, String> {
        let qemu = portable("qemu-system-x86_64", &words(text), "/srv/vm", "ram");
        qemu.map(|qemu| qemu.arguments.join(" "))
            .map_err(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn what_belongs_to_one_process_is_left_out() {
        for (given, portable) in [
            ("-S -m 512M -daemonize -kernel /k", "-m 512M -kernel /k"),
            ("-m 512M -qmp unix:/run/q,server=on -incoming defer", "-m 512M"),
            ("-chardev socket,id=m,path=/run/q -mon chardev=m,mode=control -smp 2", "-smp 2"),
            (
                "-serial unix:/run/console,server -nographic",
                "-serial unix:console.sock,server=on,wait=off -nographic",
            ),
            (
                "-drive file=disk.img,if=virtio -kernel k",
                "-drive file=/srv/vm/disk.img,if=virtio -kernel /srv/vm/k",
            ),
            ("-drive file=nbd://host/disk", "-drive file=nbd://host/disk"),
            ("disk.img -nodefaults", "/srv/vm/disk.img -nodefaults"),
            ("-usb -device usb-tablet -s -m 1G", "-usb -device usb-tablet -m 1G"),
            (
                "-object memory-backend-memfd,id=ram,size=512M,share=on",
                "-object memory-backend-file,id=ram,size=512M,mem-path={ram},share=on",
            ),
            (
                "--object memory-backend-memfd,id=ram,size=1G",
                "--object memory-backend-file,id=ram,size=1G,mem-path={ram},share=on",
            ),
            (
                "-object memory-backend-file,id=ram,size=1G,mem-path=/dev/shm,share=on",
                "-object memory-backend-file,id=ram,size=1G,mem-path={ram},share=on",
            ),
            ("-object rng-random,id=rng", "-object rng-random,id=rng"),
        ] {
            assert_eq!(portable_of(given).as_deref(), Ok(portable), "{given}");
        }
    }

    #[test]
    fn what_no_other_host_can_have_is_refused_with_its_cure() {
        for (given, what, cure) in [
            ("-netdev tap,id=n,fd=5", "fd=5 is a descriptor", "ifname="),
            ("-netdev tap,id=n,fds=5:6", "fds=5:6", "ifname="),
            ("-drive file=/dev/fdset/1", "/dev/fdset", "name the file"),
            ("-netdev tap,id=n,ifname=t,vhost=on", "vhost", "vhost=off"),
            ("-netdev vhost-user,id=n,chardev=c", "another process", "-netdev tap"),
            ("-daemonize -drive file=disk.img", "file=disk.img: a path from a folder", "whole paths"),
            ("-device vfio-pci,host=1", "passed through", "virtio"),
            ("-usb -device vfio-pci,host=1", "passed through", "virtio"),
            ("-snapshot -drive file=/d", "temporary file", "a copy of the disk"),
            ("-drive file=/d,snapshot=on", "temporary file", "a copy of the disk"),
            ("-device virtio-balloon-pci", "balloon", "without -device virtio-balloon"),
            (
                "-object memory-backend-ram,id=ram,size=1G",
                "not a shared memory file",
                "memory-backend-file,id=ram",
            ),
            ("-object memory-backend-memfd,id=ram,size=1G,share=off", "not a shared", "share=on"),
            ("-object memory-backend-file,id=ram,size=1G,mem-path=/x", "not a shared", "share=on"),
            (
                "-object memory-backend-memfd,id=ram,size=1G,share=on,hugetlb=on",
                "larger than 4 KiB",
                "hugetlb=off",
            ),
            ("-mem-path /dev/shm", "not shared", "mem-path=/dev/shm,share=on"),
            (
                "-chardev socket,id=charmonitor,path=/var/lib/libvirt/qemu/m",
                "libvirt",
                "guest create --runner qemu",
            ),
        ] {
            let error = portable_of(given).expect_err(given);
            assert!(error.contains(what) && error.contains(cure), "{given}: {error}");
        }
        let both = portable_of("-device vfio-pci -device pc-dimm").expect_err("two").lines().count();
        assert_eq!(both, 4, "all objections are told, not the first");
    }

    #[test]
    fn a_process_is_started_with_what_is_its_own() {
        let given = "-object memory-backend-memfd,id=ram,size=1G,share=on -drive file=/old/disk";
        let qemu = portable("q", &words(given), "/", "ram").expect("portable");
        let renamed = [("/old/".to_owned(), "/new/".to_owned())];
        assert_eq!(
            launch(&qemu, Begin::Incoming, "/proc/self/fd/9", &renamed).join(" "),
            "-object memory-backend-file,id=ram,size=1G,mem-path=/proc/self/fd/9,share=on -drive file=/new/disk -S \
             -qmp unix:qmp.sock,server=on,wait=off -incoming defer"
        );
        assert!(!launch(&qemu, Begin::Fresh, "/x", &[]).contains(&"-incoming".to_owned()));
        // As docs/qemu.md says it for a host whose QEMU has another option for its user.
        let qemu = portable("q", &words("-m 1G -runas 107:36"), "/", "ram").expect("portable");
        let renamed = [("-runas", "-run-with"), ("107:36", "user=107:36")];
        let renamed = renamed.map(|(from, to)| (from.to_owned(), to.to_owned()));
        let line = launch(&qemu, Begin::Fresh, "/x", &renamed).join(" ");
        assert!(line.starts_with("-m 1G -run-with user=107:36 -S"), "{line}");
    }

    #[test]
    fn a_machine_of_ours_is_portable() {
        let machine = Machine {
            program: default_program(),
            memory_bytes: 512 << 20,
            processors: 2,
            kernel: Some(("/boot/k".into(), Some("/boot/i".into()), "console=ttyS0 quiet".into())),
            disks: vec!["/srv/a.qcow2".into()],
            network: Some("user".into()),
            ..Machine::default()
        };
        let qemu = of_machine(&machine).expect("no objection");
        let line = qemu.arguments.join(" ");
        for part in
            ["id=ram,size=536870912", "-append console=ttyS0 quiet", "format=qcow2", "-smp 2", "-netdev user"]
        {
            assert!(line.contains(part), "{part} in {line}");
        }
        let more = words("-device virtio-balloon-pci");
        assert!(of_machine(&Machine { more, ..machine }).is_err(), "the same rules hold for what is added");
    }
}
