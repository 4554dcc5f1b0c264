//! What a process that knows nothing of Godwit is made to lend: one system call is run in it, and its descriptors are
//! duplicated.
//!
//! ```text
//!   seize ─▶ interrupt ─▶ registers kept ─▶ one `syscall` of its vdso, a single step ─▶ registers as they were ─▶ detach
//!                                              userfaultfd(…) = 23          pidfd_getfd(process, 23) ─▶ ours
//! ```
//!
//! The process stands still for some tenths of a millisecond. A descriptor that is made so stays open in it: that is what the
//! law of the userfaultfd asks for, since whoever made it must not lose its last copy.
//!
//! Always true: the thread has its own registers again before it is let go, whatever happened in between; a system call that
//! it was in is begun again by the kernel, as after any signal; signals that came meanwhile are sent again.
//!
//! aarch64: written after the kernel's sources and never run.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdGetfdFlags};

use crate::Userfaultfd;

/// How long a thread may take to stop. One that waits for a page stops at once; one in the middle of a disk's write may not.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether it has.
const STOP_LOOK: Duration = Duration::from_micros(50);
/// Signals that may come while the one step is done. More are no accident.
const SIGNALS_MAX: usize = 16;
/// Largest vdso that is searched: that of Linux has 8 KiB.
const VDSO_BYTES_MAX: u64 = 64 << 10;

/// How a userfaultfd is made.
const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
/// The request of `/dev/userfaultfd` that makes one (`linux/userfaultfd.h`: `_IO(0xAA, 0x00)`).
const USERFAULTFD_IOC_NEW: u64 = 0xAA00;

/// Why a process does not lend what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It can not be traced.
    #[error(
        "process {pid} can not be traced; it takes root or CAP_SYS_PTRACE (in a container: --cap-add SYS_PTRACE), no other \
         debugger at it, and kernel.yama.ptrace_scope below 3"
    )]
    Trace {
        /// The process.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// It did not stop.
    #[error("process {pid} did not stop within {} s; it may hang in the kernel (state D)", STOP_TIMEOUT.as_secs())]
    NotStopped {
        /// The process.
        pid: i32,
    },
    /// It ended.
    #[error("process {pid} has ended")]
    Ended {
        /// The process.
        pid: i32,
    },
    /// There is no instruction to use.
    #[error(
        "process {pid} has no vdso with a system call in it; only native 64-bit processes can be adopted"
    )]
    NoVdso {
        /// The process.
        pid: i32,
    },
    /// The step was not one system call.
    #[error("process {pid} did not do the one step it was asked for: {what}")]
    Step {
        /// The process.
        pid: i32,
        /// What it did.
        what: String,
    },
    /// Its system call failed.
    #[error(
        "process {pid} can not make a userfaultfd; one without privilege needs /dev/userfaultfd (in a container: --device \
         /dev/userfaultfd) or vm.unprivileged_userfaultfd=1"
    )]
    Userfaultfd {
        /// The process.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A descriptor can not be duplicated.
    #[error(
        "descriptor {fd} of process {pid} can not be taken; in a container it takes --cap-add SYS_PTRACE"
    )]
    Descriptor {
        /// The process.
        pid: i32,
        /// The descriptor's number there.
        fd: i32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes a userfaultfd of that process's memory. It stays open there, under the number that is answered.
///
/// # Errors
/// See [`AdoptError`]. The process is as it was.
pub fn userfaultfd_of(process: impl AsFd, pid: Pid) -> Result<(Userfaultfd, i32), AdoptError> {
    let made = system_call(pid, libc::SYS_userfaultfd, [FLAGS, 0, 0])?;
    lent(process, pid, made)
}

/// As [`userfaultfd_of`], for a process without privilege: by `/dev/userfaultfd`, of which it holds this descriptor. Whoever
/// may open that device decides, and not who uses it.
///
/// # Errors
/// See [`AdoptError`]. The process is as it was.
pub fn userfaultfd_by(process: impl AsFd, pid: Pid, device: i32) -> Result<(Userfaultfd, i32), AdoptError> {
    let device = u64::try_from(device).unwrap_or(u64::MAX);
    let made = system_call(pid, libc::SYS_ioctl, [device, USERFAULTFD_IOC_NEW, FLAGS])?;
    lent(process, pid, made)
}

fn lent(process: impl AsFd, pid: Pid, made: i64) -> Result<(Userfaultfd, i32), AdoptError> {
    let raw = pid.as_raw_nonzero().get();
    if made < 0 {
        let source = i32::try_from(-made)
            .map_or_else(|_| io::Error::other("no error number"), io::Error::from_raw_os_error);
        return Err(AdoptError::Userfaultfd { pid: raw, source });
    }
    let fd = i32::try_from(made)
        .map_err(|_| AdoptError::Step { pid: raw, what: format!("it answered {made}") })?;
    Ok((again(process, pid, fd)?, fd))
}

/// Takes a userfaultfd that was made there by [`userfaultfd_of`].
///
/// # Errors
/// If there is no such descriptor, or it may not be taken.
pub fn again(process: impl AsFd, pid: Pid, fd: i32) -> Result<Userfaultfd, AdoptError> {
    descriptor_of(process, pid, fd).map(Userfaultfd::from_handed_over)
}

/// Duplicates a descriptor of that process.
///
/// # Errors
/// If there is no such descriptor, or it may not be taken.
pub fn descriptor_of(process: impl AsFd, pid: Pid, fd: i32) -> Result<OwnedFd, AdoptError> {
    let refused = |error: rustix::io::Errno| AdoptError::Descriptor {
        pid: pid.as_raw_nonzero().get(),
        fd,
        source: error.into(),
    };
    rustix::process::pidfd_getfd(process, fd, PidfdGetfdFlags::empty()).map_err(refused)
}

/// Closes a descriptor there: a process that is left alone again keeps nothing of ours.
///
/// # Errors
/// See [`AdoptError`].
pub fn close_in(pid: Pid, fd: i32) -> Result<(), AdoptError> {
    system_call(pid, libc::SYS_close, [u64::try_from(fd).unwrap_or(u64::MAX), 0, 0]).map(|_| ())
}

/// Runs one system call in the main thread of a process, and answers what it answered: a negative number is an error's.
fn system_call(pid: Pid, number: i64, arguments: [u64; 3]) -> Result<i64, AdoptError> {
    let pid = pid.as_raw_nonzero().get();
    let at = vdso_call(pid).map_err(|_| AdoptError::NoVdso { pid })?.ok_or(AdoptError::NoVdso { pid })?;
    let thread = Traced::seize(pid)?;
    let registers = thread.registers()?;
    let answer = thread.step(&registers, at, number, arguments);
    thread.set_registers(&registers)?;
    answer
}

/// A thread that is traced. Dropped: it is let go, and its signals are sent again.
struct Traced {
    pid: i32,
    signals: std::cell::RefCell<Vec<i32>>,
}

type Registers = libc::user_regs_struct;

impl Traced {
    fn seize(pid: i32) -> Result<Self, AdoptError> {
        let refused = |source| AdoptError::Trace { pid, source };
        ptrace(libc::PTRACE_SEIZE, pid, 0, 0).map_err(refused)?;
        let thread = Self { pid, signals: std::cell::RefCell::default() };
        ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0).map_err(refused)?;
        loop {
            let status = thread.wait()?;
            if status >> 16 == libc::PTRACE_EVENT_STOP {
                return Ok(thread);
            }
            // On its way to us it met a signal, which is its own.
            ptrace(libc::PTRACE_CONT, pid, 0, libc::WSTOPSIG(status) as usize).map_err(refused)?;
        }
    }

    /// Waits until the thread stands still; answers the status that tells why.
    fn wait(&self) -> Result<i32, AdoptError> {
        let begun = Instant::now();
        loop {
            let mut status = 0;
            // SAFETY: `status` is ours and lives until the call returns; a thread that is not ours to wait for is an error.
            let got = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL | libc::WNOHANG) };
            match got {
                0 if begun.elapsed() > STOP_TIMEOUT => return Err(AdoptError::NotStopped { pid: self.pid }),
                0 => std::thread::sleep(STOP_LOOK),
                _ if got == self.pid && libc::WIFSTOPPED(status) => return Ok(status),
                -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(AdoptError::Ended { pid: self.pid }),
            }
        }
    }

    fn step(
        &self,
        registers: &Registers,
        at: u64,
        number: i64,
        arguments: [u64; 3],
    ) -> Result<i64, AdoptError> {
        let wrong = |what: String| AdoptError::Step { pid: self.pid, what };
        self.set_registers(&arch::calling(registers, at, number, arguments))?;
        for _ in 0..SIGNALS_MAX {
            ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, 0)
                .map_err(|error| wrong(format!("step: {error}")))?;
            let status = self.wait()?;
            let signal = libc::WSTOPSIG(status);
            if signal == libc::SIGTRAP {
                let after = self.registers()?;
                return match arch::answer(&after, at) {
                    Some(answer) => Ok(answer),
                    None => Err(wrong(format!("it stands at another place than behind {at:#x}"))),
                };
            }
            // It would run the handler instead of our call.
            self.signals.borrow_mut().push(signal);
        }
        Err(wrong(format!("more than {SIGNALS_MAX} signals came meanwhile")))
    }

    fn registers(&self) -> Result<Registers, AdoptError> {
        // SAFETY: a struct of numbers, for which all zeros is a value.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        self.transfer_registers(libc::PTRACE_GETREGSET, &raw mut registers)?;
        Ok(registers)
    }

    fn set_registers(&self, registers: &Registers) -> Result<(), AdoptError> {
        let mut registers = *registers;
        self.transfer_registers(libc::PTRACE_SETREGSET, &raw mut registers)
    }

    fn transfer_registers(&self, request: libc::c_uint, registers: *mut Registers) -> Result<(), AdoptError> {
        const NT_PRSTATUS: usize = 1;
        let mut vector = libc::iovec { iov_base: registers.cast(), iov_len: size_of::<Registers>() };
        let refused = |source| AdoptError::Trace { pid: self.pid, source };
        ptrace(request, self.pid, NT_PRSTATUS, (&raw mut vector) as usize).map_err(refused)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // One that does not stand still can not be let go; it is when this process ends.
        let _ = ptrace(libc::PTRACE_DETACH, self.pid, 0, 0);
        for signal in self.signals.borrow().iter() {
            // SAFETY: sending a signal touches no memory; one that has ended meanwhile is an error, and no harm.
            unsafe { libc::kill(self.pid, *signal) };
        }
    }
}

/// A request whose answer is nothing but that it was done. `data` is a number, or the address of what lives in the caller until
/// this returns.
fn ptrace(request: libc::c_uint, pid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: the requests used here write nowhere but, for register sets, to the `iovec` at `data`, which its one caller keeps
    // alive with the struct it describes.
    let answer = unsafe { libc::ptrace(request, pid, address, data) };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Where in the process's vdso a system call instruction stands.
fn vdso_call(pid: i32) -> io::Result<Option<u64>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let Some((begin, end)) = maps.lines().find(|line| line.ends_with("[vdso]")).and_then(range_of) else {
        return Ok(None);
    };
    let mut code = vec![0; usize::try_from((end - begin).min(VDSO_BYTES_MAX)).map_err(io::Error::other)?];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut code, begin)?;
    let at = code.windows(arch::CALL.len()).position(|bytes| bytes == arch::CALL);
    Ok(at.map(|at| begin + at as u64))
}

/// The addresses at the beginning of a line of `/proc/PID/maps`.
fn range_of(line: &str) -> Option<(u64, u64)> {
    let (begin, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    Some((u64::from_str_radix(begin, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::Registers;

    /// `syscall`.
    pub(super) const CALL: [u8; 2] = [0x0f, 0x05];

    pub(super) fn calling(registers: &Registers, at: u64, number: i64, [a, b, c]: [u64; 3]) -> Registers {
        // No call is under way any more, so the kernel begins none again before ours.
        let none = u64::MAX;
        Registers {
            rip: at,
            rax: number.cast_unsigned(),
            orig_rax: none,
            rdi: a,
            rsi: b,
            rdx: c,
            ..*registers
        }
    }

    pub(super) fn answer(registers: &Registers, at: u64) -> Option<i64> {
        (registers.rip == at + CALL.len() as u64).then(|| registers.rax.cast_signed())
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::Registers;

    /// `svc #0`.
    pub(super) const CALL: [u8; 4] = [0x01, 0x00, 0x00, 0xd4];

    pub(super) fn calling(registers: &Registers, at: u64, number: i64, [a, b, c]: [u64; 3]) -> Registers {
        let mut calling = *registers;
        calling.pc = at;
        calling.regs[8] = number.cast_unsigned();
        [calling.regs[0], calling.regs[1], calling.regs[2]] = [a, b, c];
        calling
    }

    pub(super) fn answer(registers: &Registers, at: u64) -> Option<i64> {
        (registers.pc == at + CALL.len() as u64).then(|| registers.regs[0].cast_signed())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process of another's making, which sleeps in a system call or counts without one.
    fn stranger(script: &str) -> (Child, Pid, OwnedFd) {
        let child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let pid = Pid::from_child(&child);
        let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("pidfd");
        // It has begun, but the kernel may still be making its memory.
        let deadline = Instant::now() + Duration::from_secs(10);
        while vdso_call(pid.as_raw_nonzero().get()).is_ok_and(|at| at.is_none()) && Instant::now() < deadline
        {
            std::thread::yield_now();
        }
        (child, pid, process)
    }

    fn descriptors(pid: Pid) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).expect("fd").count()
    }

    #[test]
    fn a_stranger_lends_a_userfaultfd_and_goes_on_as_if_nothing_had_been() {
        for script in
            ["read line; exit 7", "i=0; while test $i -lt 30000; do i=$((i+1)); done; read line; exit 7"]
        {
            // Before it says something it may have a library open.
            let (mut child, pid, process) = stranger(&format!("echo begun; {script}"));
            let mut begun = [0; 6];
            child.stdout.as_mut().expect("piped").read_exact(&mut begun).expect("it says something");
            let before = descriptors(pid);
            for _ in 0..20 {
                let (uffd, fd) = userfaultfd_of(&process, pid).expect("lends one");
                uffd.enable_tracking().expect("it is one");
                let copy = again(&process, pid, fd).expect("a second time");
                assert_ne!(
                    rustix::fs::fstat(uffd.as_fd()).expect("stat").st_ino,
                    0,
                    "a descriptor of ours: {copy:?}"
                );
                close_in(pid, fd).expect("closed there");
            }
            assert_eq!(descriptors(pid), before, "nothing of ours is left");
            drop(child.stdin.take());
            assert_eq!(child.wait().expect("ends").code(), Some(7), "{script}");
        }
    }

    #[test]
    fn who_has_ended_or_is_traced_by_nobody_is_told_so() {
        let (mut child, pid, process) = stranger("read line");
        drop(child.stdin.take());
        child.wait().expect("ends");
        let error = userfaultfd_of(process, pid).expect_err("nobody is there");
        assert!(matches!(error, AdoptError::NoVdso { .. } | AdoptError::Trace { .. }), "{error}");
    }

    #[test]
    fn a_line_of_maps_is_read() {
        let line = "7ffd1b5f2000-7ffd1b5f4000 r-xp 00000000 00:00 0                          [vdso]";
        assert_eq!(range_of(line), Some((0x7ffd_1b5f_2000, 0x7ffd_1b5f_4000)));
        assert_eq!(range_of("nonsense"), None);
    }
}
