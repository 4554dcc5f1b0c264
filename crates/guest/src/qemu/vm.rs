//! A QEMU process: started or found, and what of it is lent.
//!
//! ```text
//!   machine.json ─▶ memory file of ours ─▶ QEMU -S ─┐
//!   adopt: PID, QMP socket ─────────────────────────┼─▶ its RAM among its mappings ─▶ userfaultfd, pagemap ─▶ Vm
//!   kept.json: one that a keeper before had ────────┘
//! ```
//!
//! Always true: a QEMU that is started here waits (`-S`) until it is told to run; its RAM is one shared mapping of one memory
//! file, which no other size or seal fits.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use godwit_domain::{Adopted, PageCount};
use godwit_memory::adopt::{self, AdoptError};
use godwit_memory::{Memfd, Userfaultfd};
use rustix::fs::{fstatfs, major, minor};
use rustix::process::{Pid, PidfdFlags};
use serde_json::{Value, json};

use super::cgroup::Cgroup;
use super::command::{self, Begin};
use super::envelope;
use super::keeper::Identity;
use super::kept::{Begun, Kept, MachineFile, started_ticks};
use super::qmp::{Qmp, QmpError};

/// How long QEMU may take to open its control socket, beside a second for each 4 GiB.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How often it is looked for.
const START_LOOK: Duration = Duration::from_millis(5);

/// Makes a userfaultfd for whoever has it open.
const DEVICE: &str = "/dev/userfaultfd";
/// What QEMU knows it by.
const DEVICE_NAME: &str = "godwit-userfaultfd";
/// What `fstatfs` says of a file in memory, a memfd and one in `/dev/shm` (`TMPFS_MAGIC`, linux/magic.h).
const TMPFS: i64 = 0x0102_1994;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// QEMU can not be started.
    #[error("start {program}; it must be installed on this node")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ended before it could be asked.
    #[error("QEMU ended at once ({status}): {words}")]
    Ended {
        /// How.
        status: String,
        /// The end of its log.
        words: String,
    },
    /// It did not open its socket, or does not greet there.
    #[error("QEMU did not greet on its control socket within {} s", .0.as_secs())]
    NotReady(Duration),
    /// It can not be asked.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// It does not lend what is needed.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// It is outside of what can be moved.
    #[error("QEMU can not be moved: {0}")]
    Outside(String),
    /// Its memory is not what it must be.
    #[error("memory of QEMU: {0}")]
    Memory(String),
    /// A file or a descriptor.
    #[error("{what}")]
    System {
        /// What.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> VmError {
    move |source| VmError::System { what: what.into(), source }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) process: OwnedFd,
    pub(super) memory: OwnedFd,
    pub(super) uffd: Userfaultfd,
    pub(super) pagemap: OwnedFd,
    pub(super) address: u64,
    pub(super) pages: PageCount,
    pub(super) processors: u64,
}

/// A shared mapping of a memory file, in `/proc/PID/maps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) address: u64,
    pub(super) bytes: u64,
    pub(super) offset: u64,
    /// Major and minor.
    pub(super) device: (u32, u32),
    pub(super) inode: u64,
}

/// Starts QEMU on a new memory, which it finds under `/proc/OUR PID/fd`.
pub(super) fn start(who: &Identity, machine: &MachineFile, begin: Begin) -> Result<(Vm, Qmp, Kept), VmError> {
    let pages = PageCount::of_memory(machine.memory_bytes)
        .ok_or_else(|| VmError::Memory(format!("{} bytes are not whole pages", machine.memory_bytes)))?;
    let dir = who.dir.as_path();
    let memory = Memfd::create("godwit-qemu", pages).map_err(system("make a memory file"))?;
    let ram = format!("/proc/{}/fd/{}", std::process::id(), memory.as_fd().as_raw_fd());
    let arguments = command::launch(&machine.qemu, begin, &ram, &machine.renamed);
    let log = File::create(dir.join("qemu.log")).map_err(system("make qemu.log"))?;
    let program = machine.qemu.program.clone();
    tracing::info!(program, arguments = arguments.join(" "), "starts QEMU");
    let _ = fs::remove_file(dir.join(command::QMP_SOCKET));
    let mut child = Command::new(&program)
        .args(&arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(system("qemu.log"))?)
        .stderr(log)
        .spawn()
        .map_err(|source| VmError::Start { program, source })?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    if let Err(error) = Begun::write(dir, pid) {
        tracing::warn!(%error, "should this keeper be killed now, nobody would know of QEMU's process {pid}");
    }
    let found = greet(dir, &mut child, machine.memory_bytes).and_then(|qmp| {
        let qmp_path = PathBuf::from(command::QMP_SOCKET);
        lend(who, pid, &qmp_path, machine.memory_bytes, qmp, None)
    });
    match found {
        Ok((vm, qmp, kept)) => {
            if begin == Begin::Fresh {
                // An arriving one's pages come by `pwrite`; its node seals when the last has come.
                memory.seal_against_other_writers().map_err(system("seal the memory file"))?;
            }
            // Whoever watches for its end asks how it ended, so that it stays as no zombie.
            drop(child);
            Ok((vm, qmp, kept))
        }
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Takes over a QEMU that runs already.
pub(super) fn adopt(
    who: &Identity,
    running: &Adopted,
    memory_bytes: u64,
) -> Result<(Vm, Qmp, Kept), VmError> {
    let Adopted { pid, started_ticks: began, qmp } = running;
    if started_ticks(*pid).map_err(system("look for the process"))? != Some(*began) {
        return Err(AdoptError::Ended { pid: *pid }.into());
    }
    let path = Path::new(qmp);
    // It was looked at when it was asked for; what counts is how it is now.
    envelope::inspect(*pid, path).map_err(|objections| {
        VmError::Outside(objections.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    })?;
    let (vm, qmp, kept) = lend(who, *pid, path, memory_bytes, Qmp::connect(path)?, None)?;
    Ok((vm, qmp, Kept { adopted: true, ..kept }))
}

/// Takes over from a keeper that has died. QEMU is asked nothing yet: it may wait for a page that a node serves once the keeper
/// has greeted that.
pub(super) fn again(who: &Identity, kept: &Kept, memory_bytes: u64) -> Result<(Vm, Qmp), VmError> {
    let qmp = Qmp::later(&who.dir.join(&kept.qmp))?;
    let (vm, qmp, _) = lend(who, kept.pid, &kept.qmp, memory_bytes, qmp, Some(kept))?;
    Ok((vm, qmp))
}

fn greet(dir: &Path, child: &mut Child, memory_bytes: u64) -> Result<Qmp, VmError> {
    let limit = START_TIMEOUT + Duration::from_secs(memory_bytes >> 32);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().map_err(system("wait for QEMU"))? {
            let words = fs::read_to_string(dir.join("qemu.log")).unwrap_or_default();
            let words = words.lines().last().unwrap_or("without a word").to_owned();
            return Err(VmError::Ended { status: status.to_string(), words });
        }
        match Qmp::connect(&dir.join(command::QMP_SOCKET)) {
            Ok(qmp) => return Ok(qmp),
            // Not there yet, or not listening yet; or it listens, and has not come so far that it greets.
            Err(QmpError::Socket(_) | QmpError::NoGreeting) if Instant::now() < deadline => {
                std::thread::sleep(START_LOOK);
            }
            Err(QmpError::Socket(_) | QmpError::NoGreeting) => return Err(VmError::NotReady(limit)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What is lent of a process that can be asked.
fn lend(
    who: &Identity,
    pid: i32,
    qmp_path: &Path,
    memory_bytes: u64,
    mut qmp: Qmp,
    earlier: Option<&Kept>,
) -> Result<(Vm, Qmp, Kept), VmError> {
    let gone = || VmError::Adopt(AdoptError::Ended { pid });
    let raw = Pid::from_raw(pid).ok_or_else(gone)?;
    let process = rustix::process::pidfd_open(raw, PidfdFlags::empty()).map_err(|_| gone())?;
    let started_ticks = started_ticks(pid).map_err(system("look for the process"))?.ok_or_else(gone)?;
    let (mapping, memory) = ram_of(pid, memory_bytes)?;
    let pages = PageCount::of_memory(memory_bytes).filter(|_| mapping.offset == 0).ok_or_else(|| {
        VmError::Memory(format!("a mapping of {memory_bytes} bytes at offset {}", mapping.offset))
    })?;
    Memfd::from_handed_over(memory.try_clone().map_err(system("descriptor"))?, pages)
        .map_err(|error| VmError::Memory(error.to_string()))?;
    let (uffd, number) = match earlier.map(|kept| kept.userfaultfd) {
        Some(number) => (adopt::again(&process, raw, number)?, number),
        None => make_userfaultfd(&process, raw, &mut qmp)?,
    };
    let pagemap =
        File::open(format!("/proc/{pid}/pagemap")).map_err(system(format!("open /proc/{pid}/pagemap")))?;
    let processors = match earlier.and_then(|kept| kept.processors) {
        Some(processors) => processors,
        None => qmp.execute("query-cpus-fast", json!({}))?.as_array().map_or(1, |all| all.len() as u64),
    };
    let standing = godwit_wire::handoff::Standing {
        state: godwit_wire::handoff::RunState::Incoming,
        epoch: godwit_domain::Epoch(0),
        loaded: None,
    };
    let kept = Kept {
        guest: who.guest.clone(),
        instance: who.instance,
        pid,
        started_ticks,
        qmp: qmp_path.to_owned(),
        userfaultfd: number,
        processors: Some(processors),
        adopted: false,
        released_until_s: None,
        cgroup: Cgroup::of(pid).ok(),
        before: None,
        standing,
        step: None,
    };
    let vm =
        Vm { process, memory, uffd, pagemap: pagemap.into(), address: mapping.address, pages, processors };
    Ok((vm, qmp, kept))
}

/// A userfaultfd of its memory. A QEMU without privilege (`-runas`) may not make one by itself, unless it is given the
/// device, which this process may open.
fn make_userfaultfd(process: &OwnedFd, pid: Pid, qmp: &mut Qmp) -> Result<(Userfaultfd, i32), VmError> {
    let denied = |error: &AdoptError| matches!(error, AdoptError::Userfaultfd { source, .. } if source.kind() == io::ErrorKind::PermissionDenied);
    let refused = match adopt::userfaultfd_of(process, pid) {
        Err(refused) if denied(&refused) => refused,
        made => return Ok(made?),
    };
    let Ok(device) = File::options().read(true).write(true).open(DEVICE) else { return Err(refused.into()) };
    qmp.give(DEVICE_NAME, device.as_fd())?;
    let made = number_of(&device, pid).and_then(|number| Ok(adopt::userfaultfd_by(process, pid, number)?));
    if let Err(error) = qmp.execute("closefd", json!({ "fdname": DEVICE_NAME })) {
        tracing::warn!(%error, "QEMU keeps {DEVICE} open");
    }
    made
}

/// The number by which that process has this device open.
fn number_of(device: &File, pid: Pid) -> Result<i32, VmError> {
    let dir = format!("/proc/{}/fd", pid.as_raw_nonzero());
    let wanted = device.metadata().map_err(system(format!("look at {DEVICE}")))?.rdev();
    let entries = fs::read_dir(&dir).map_err(system(format!("read {dir}")))?;
    let is_it =
        |entry: &fs::DirEntry| fs::metadata(entry.path()).is_ok_and(|metadata| metadata.rdev() == wanted);
    let number = entries.flatten().find(is_it).and_then(|entry| entry.file_name().to_str()?.parse().ok());
    number.ok_or_else(|| system(dir)(io::Error::other("the device that was given to it is not there")))
}

/// The one shared mapping of a memory file of this size, and that file.
pub(super) fn ram_of(pid: i32, memory_bytes: u64) -> Result<(Mapping, OwnedFd), VmError> {
    let path = format!("/proc/{pid}/maps");
    let maps = fs::read_to_string(&path).map_err(system(format!("read {path}")))?;
    let of_that_size: Vec<Mapping> =
        mappings(&maps).into_iter().filter(|mapping| mapping.bytes == memory_bytes).collect();
    let [mapping] = of_that_size.as_slice() else {
        return Err(VmError::Memory(format!(
            "{} shared mappings of a memory file of {memory_bytes} bytes; there must be one: {}",
            of_that_size.len(),
            command::ram_cure()
        )));
    };
    Ok((*mapping, file_of(pid, mapping)?))
}

/// The memory file, opened anew by the descriptor that QEMU keeps of it.
fn file_of(pid: i32, mapping: &Mapping) -> Result<OwnedFd, VmError> {
    let dir = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&dir).map_err(system(format!("read {dir}")))?;
    let is_it = |metadata: fs::Metadata| {
        let device = (major(metadata.dev()), minor(metadata.dev()));
        (device, metadata.ino()) == (mapping.device, mapping.inode)
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        // A descriptor that is closed meanwhile is none of ours.
        if !fs::metadata(&path).is_ok_and(is_it) {
            continue;
        }
        let name = || format!("open {}", path.display());
        let file = File::options().read(true).write(true).open(&path).map_err(system(name()))?;
        // What it was may have been replaced before it was opened.
        if !file.metadata().is_ok_and(is_it) {
            continue;
        }
        let system_of = fstatfs(&file).map_err(|error| system(name())(error.into()))?;
        if system_of.f_type != TMPFS {
            let what = "the file that QEMU has as its RAM is on a disk, or has large pages";
            return Err(VmError::Memory(format!("{what}: {}", command::ram_cure())));
        }
        return Ok(file.into());
    }
    Err(VmError::Memory("QEMU keeps no descriptor of the memory file that it has mapped".into()))
}

/// Shared, writable mappings of files.
pub(super) fn mappings(maps: &str) -> Vec<Mapping> {
    maps.lines().filter_map(mapping_in).collect()
}

fn mapping_in(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let (device, inode, path) = (fields.next()?, fields.next()?, fields.next()?);
    if permissions != "rw-s" || !path.starts_with('/') {
        return None;
    }
    let (begin, end) = range.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (begin, end) = (number(begin)?, number(end)?);
    let bytes = end.checked_sub(begin)?;
    let (major, minor) = device.split_once(':')?;
    let number_of = |text: &str| u32::from_str_radix(text, 16).ok();
    let device = (number_of(major)?, number_of(minor)?);
    Some(Mapping { address: begin, bytes, offset: number(offset)?, device, inode: inode.parse().ok()? })
}

/// Whether the machine runs, as QEMU says.
pub(super) fn runs(qmp: &mut Qmp) -> Result<bool, QmpError> {
    let status = qmp.execute("query-status", json!({}))?;
    Ok(status.get("running").and_then(Value::as_bool).unwrap_or(false))
}

/// Why a machine stands still by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halt {
    /// It can be told to run on.
    Passing,
    /// It has come to an end, and refuses to run.
    Final,
}

/// Whether the machine stands still for a reason of its own: here, or at the source from which it came like that.
pub(super) fn halt(qmp: &mut Qmp) -> Result<Option<Halt>, QmpError> {
    let status = qmp.execute("query-status", json!({}))?;
    Ok(match status.get("status").and_then(Value::as_str) {
        Some("io-error" | "guest-panicked" | "watchdog") => Some(Halt::Passing),
        // QEMU's `runstate_needs_reset`.
        Some("internal-error" | "shutdown") => Some(Halt::Final),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_mappings_of_files_are_found() {
        let maps = "\
7f1e00000000-7f1e20000000 rw-s 00000000 00:01 4242                       /memfd:memory-backend-memfd (deleted)
7f1e20000000-7f1e20021000 rw-p 00000000 00:00 0
7f1e30000000-7f1e30001000 r--s 00000000 00:01 43                         /memfd:x (deleted)
7f1e40000000-7f1e40001000 rw-s 00000000 00:1f 44                         /dev/shm/a name (deleted)
";
        let memfd =
            Mapping { address: 0x7f1e_0000_0000, bytes: 512 << 20, offset: 0, device: (0, 1), inode: 4242 };
        let named = Mapping { address: 0x7f1e_4000_0000, bytes: 4096, offset: 0, device: (0, 31), inode: 44 };
        assert_eq!(mappings(maps), [memfd, named]);
    }

    #[test]
    fn a_file_elsewhere_is_no_memory() {
        let pid = i32::try_from(std::process::id()).expect("a number");
        let file = File::options()
            .read(true)
            .write(true)
            .open("/proc/self/comm")
            .expect("a file that is in no memory");
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        for (file, is_memory) in [(OwnedFd::from(file), false), (memory, true)] {
            let known = rustix::fs::fstat(&file).expect("a file");
            let device = (major(known.st_dev), minor(known.st_dev));
            let mapping = Mapping { address: 0, bytes: 0, offset: 0, device, inode: known.st_ino };
            match file_of(pid, &mapping) {
                Ok(_) => assert!(is_memory),
                Err(error) => {
                    assert!(!is_memory && error.to_string().contains("mem-path=/dev/shm"), "{error}")
                }
            }
        }
    }
}
