//! A Linux guest under QEMU, and what it says of itself on its serial line (`tests/vm/README.md`).
//!
//! ```text
//!   tests/vm/build.sh ─▶ vmlinuz, initramfs ─▶ spec ─▶ QEMU of one node after another
//!                                                        └▶ console.log of each ─▶ one text, in the order of moves ─▶ Said
//!   clock: a UDP port that answers with this host's time: by it the guest tells how long it was away
//! ```
//!
//! Always true: what was said on the source stands before what was said on the target; a line that began on one and ended on the
//! other is one line.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use godwit::lab::monotonic_ns;
use godwit_domain::GuestSpec;
use godwit_domain::qemu::Machine;
use godwit_guest::qemu::command::{default_program, of_machine};

use crate::support::world::{MIB, World};
use crate::support::{LOOK_INTERVAL, Outcome};

/// How long a guest may take to boot and to write all that it will check; under load it has taken 20 s.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long it may take to compare everything once more.
const LAP_TIMEOUT: Duration = Duration::from_secs(60);

/// Why no virtual machine can be tried here; `None`: nothing is missing.
pub(crate) fn missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<&'static str>> = OnceLock::new();
    *MISSING.get_or_init(|| {
        let there = |name: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|dir| dir.join(name).exists())
        };
        if !there(&default_program()) {
            return Some("needs QEMU: apt-get install --no-install-recommends qemu-system-x86");
        }
        if !there("busybox") || !there("cpio") {
            return Some("needs a guest: apt-get install --no-install-recommends busybox-static cpio");
        }
        if !rustix::process::geteuid().is_root() {
            return Some("needs root: a userfaultfd of another process");
        }
        None
    })
}

/// QEMU for this processor.
pub(crate) fn program() -> String {
    default_program()
}

/// QEMU's version, major and minor; that of a folder, or the one which is found.
pub(crate) fn version(folder: Option<&Path>) -> Result<(u32, u32), Box<dyn Error>> {
    let program = folder.map_or_else(|| program().into(), |folder| folder.join(program()));
    let said = Command::new(&program).arg("--version").output()?.stdout;
    let said = String::from_utf8(said)?;
    let found = said.split_whitespace().skip_while(|word| *word != "version").nth(1);
    let mut numbers = found.into_iter().flat_map(|version| version.split('.')).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(format!("{}: no version in {said:?}", program.display()).into()),
    }
}

/// A QEMU that a story starts by hand, in a cgroup of its own as a service is. It does not outlive the story.
pub(crate) struct ByHand {
    process: Child,
    cgroup: PathBuf,
}

impl ByHand {
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let process = command.spawn()?;
        let root = Path::new("/sys/fs/cgroup");
        let root = if root.join("cgroup.procs").exists() { root.to_owned() } else { root.join("cpu") };
        let by_hand = Self { cgroup: root.join(format!("godwit-by-hand-{}", process.id())), process };
        fs::create_dir(&by_hand.cgroup)?;
        fs::write(by_hand.cgroup.join("cgroup.procs"), by_hand.pid())?;
        Ok(by_hand)
    }

    pub(crate) fn pid(&self) -> String {
        self.process.id().to_string()
    }

    /// Whether it is where it was put.
    pub(crate) fn is_in_its_cgroup(&self) -> bool {
        let inside = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap_or_default();
        inside.lines().any(|pid| pid == self.pid())
    }

    /// How it has ended; `None`: it runs.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.process.try_wait()
    }

    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.process.wait()
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// The kernel and the first file system, made once.
fn built() -> Result<&'static Path, Box<dyn Error>> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root = root.canonicalize().map_err(|error| error.to_string())?;
        let out = root.join("target/vm/guest");
        let status = Command::new(root.join("tests/vm/build.sh")).arg(&out).status();
        match status.map_err(|error| error.to_string())? {
            status if status.success() => Ok(out),
            status => Err(format!("tests/vm/build.sh: {status}")),
        }
    });
    built.as_deref().map_err(|error| error.clone().into())
}

/// What a guest is started with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VmSpec {
    pub(crate) memory_mib: u64,
    pub(crate) processors: u32,
    /// Pages written in a second.
    pub(crate) rate: u32,
}

impl Default for VmSpec {
    fn default() -> Self {
        Self { memory_mib: 512, processors: 1, rate: 2000 }
    }
}

/// A guest of a story, and where it has been.
pub(crate) struct Vm {
    processors: u32,
    /// Folders of its runners, in the order in which they ran it.
    dirs: Vec<PathBuf>,
}

/// What it has said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    ticks: Vec<Tick>,
    /// What it has done and compared, by name: laps, and what it had to do with the world.
    pub(crate) counts: BTreeMap<String, u64>,
    /// How much was not as it must be.
    pub(crate) wrong: u64,
    /// Its own words about that.
    pub(crate) bad: Vec<String>,
    ready: bool,
}

#[derive(Debug, Clone, Copy)]
struct Tick {
    number: u64,
    /// The longest time between two of its turns by the clock outside.
    out_us: u64,
    /// How far that clock was ahead of the guest's own.
    ahead_us: u64,
}

/// How long a guest was away in a move, by the clock outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Away {
    /// It stood still for so long.
    pub(crate) still_us: u64,
    /// Nothing was heard of it for so long: what it did slowly afterwards is in it.
    pub(crate) silent_us: u64,
}

/// Ticks on either side of a move by which it is told how long it stood still.
pub(crate) const TICKS_BESIDE: usize = 20;

impl Vm {
    /// What a guest is made of, whose disk lies in the story's folder.
    pub(crate) fn machine(world: &World, vm: VmSpec) -> Result<Machine, Box<dyn Error>> {
        let (guest, disk) = (built()?, world.folder("disk.img"));
        fs::File::create(&disk)?.set_len(64 * MIB)?;
        let port = clock()?;
        let rate = vm.rate;
        let append = format!(
            "console=ttyS0 quiet panic=-1 oops=panic vmload.lap_s=1 vmload.disk_mib=8 vmload.rate={rate} vmload.out=10.0.2.2:{port}"
        );
        let path = |path: PathBuf| path.display().to_string();
        Ok(Machine {
            program: default_program(),
            memory_bytes: vm.memory_mib * MIB,
            processors: vm.processors,
            accelerator: Some("tcg".into()),
            kernel: Some((path(guest.join("vmlinuz")), Some(path(guest.join("initramfs.cpio.gz"))), append)),
            disks: vec![path(disk)],
            network: Some("user".into()),
            more: vec!["-no-reboot".into()],
        })
    }

    /// The spec of such a guest.
    pub(crate) fn spec(world: &World, vm: VmSpec) -> Result<GuestSpec, Box<dyn Error>> {
        let machine = Self::machine(world, vm)?;
        let qemu = of_machine(&machine).map_err(|objections| format!("{objections:?}"))?;
        Ok(GuestSpec { qemu: Some(qemu), ..GuestSpec::idle(machine.memory_bytes) })
    }

    /// Boots one on `node-a`, and waits until it checks itself.
    pub(crate) async fn boot(world: &mut World, vm: VmSpec) -> Result<Self, Box<dyn Error>> {
        let spec = Self::spec(world, vm)?;
        world.create(spec).await?;
        Self::made(world, vm).await
    }

    /// One that was just made, on whatever node, when it checks itself.
    pub(crate) async fn made(world: &World, vm: VmSpec) -> Result<Self, Box<dyn Error>> {
        let mut guest = Self { processors: vm.processors, dirs: Vec::new() };
        let begun = Instant::now();
        while guest.dirs.is_empty() && begun.elapsed() < BOOT_TIMEOUT {
            tokio::time::sleep(LOOK_INTERVAL).await;
            guest.arrived(world);
        }
        guest.until_ready().await
    }

    /// One that runs already, and says what it says in this folder.
    pub(crate) async fn started_in(folder: PathBuf, vm: VmSpec) -> Result<Self, Box<dyn Error>> {
        Self { processors: vm.processors, dirs: vec![folder] }.until_ready().await
    }

    async fn until_ready(self) -> Result<Self, Box<dyn Error>> {
        self.until("it is ready", BOOT_TIMEOUT, |said| said.ready).await?;
        Ok(self)
    }

    /// Whoever has a console that was not there before has run it since.
    pub(crate) fn arrived(&mut self, world: &World) {
        for dir in world.cluster.runner_dirs() {
            let has_said = fs::metadata(dir.join("console.log")).is_ok_and(|log| log.len() > 0);
            if has_said && !self.dirs.contains(&dir) {
                self.dirs.push(dir);
            }
        }
    }

    /// All that it has said.
    pub(crate) fn said(&self) -> Said {
        let bytes: Vec<u8> =
            self.dirs.iter().flat_map(|dir| fs::read(dir.join("console.log")).unwrap_or_default()).collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut said = Said::default();
        // What follows the last line's end is not whole yet.
        let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
        whole.lines().for_each(|line| said.take(line.trim_end()));
        said
    }

    /// Everything is compared once more, from now on: nothing is wrong, no tick is missing or there twice.
    pub(crate) async fn prove(&mut self, world: &World) -> Outcome {
        self.arrived(world);
        let (before, laps) = (self.said().counts, PROVED_LAPS);
        let processors = u64::from(self.processors);
        let begun = Instant::now();
        loop {
            self.arrived(world);
            let said = self.said();
            let grown = |name: &str, by: u64| {
                said.counts.get(name).copied().unwrap_or(0) >= before.get(name).copied().unwrap_or(0) + by
            };
            let whole = grown("mem", laps * processors)
                && ["area", "file", "disk"].iter().all(|name| grown(name, laps))
                && grown("net", 1);
            if said.wrong > 0 || !said.bad.is_empty() {
                return Err(format!("{} are wrong in the guest: {:?}", said.wrong, said.bad).into());
            }
            said.counts_on()?;
            if whole {
                return Ok(());
            }
            if begun.elapsed() > LAP_TIMEOUT {
                return Err(format!(
                    "it has not compared everything within {LAP_TIMEOUT:?}: {before:?}, {:?}",
                    said.counts
                )
                .into());
            }
            tokio::time::sleep(20 * LOOK_INTERVAL).await;
        }
    }

    /// Waits until it has said so many ticks more than it has by now, wherever it runs.
    pub(crate) async fn ticks_on(&mut self, world: &World, more: usize) -> Outcome {
        self.arrived(world);
        let (count, begun) = (self.said().count(), Instant::now());
        while self.said().count() < count + more {
            if begun.elapsed() > LAP_TIMEOUT {
                return Err(format!("it does not tick any more, after {count}").into());
            }
            tokio::time::sleep(10 * LOOK_INTERVAL).await;
            self.arrived(world);
        }
        Ok(())
    }

    /// Waits until what it says is so.
    async fn until(&self, what: &str, limit: Duration, is_so: impl Fn(&Said) -> bool) -> Outcome {
        let begun = Instant::now();
        loop {
            let said = self.said();
            if is_so(&said) {
                return Ok(());
            }
            if begun.elapsed() > limit {
                return Err(format!("waited {limit:?} in vain until {what}; it says {:?}", said.bad).into());
            }
            tokio::time::sleep(10 * LOOK_INTERVAL).await;
        }
    }
}

/// Laps after which one has begun and ended meanwhile.
const PROVED_LAPS: u64 = 2;

impl Said {
    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        match words.first().copied() {
            Some("tick") => {
                if let (Some(number), Some(out_ns), Some(ahead_ns)) = (number(1), number(4), number(5)) {
                    self.ticks.push(Tick { number, out_us: out_ns / 1000, ahead_us: ahead_ns / 1000 });
                }
            }
            Some("ready") => self.ready = true,
            Some("bad") => self.bad.push(line.to_owned()),
            Some("stat") => {
                // stat S mem W L area L file W L disk R W L net A B wrong N
                for (name, at) in [("mem", 4), ("area", 6), ("file", 9), ("disk", 13), ("net", 16)] {
                    if let Some(count) = number(at) {
                        self.counts.insert(name.to_owned(), count);
                    }
                }
                self.wrong = number(18).unwrap_or(self.wrong);
            }
            Some(_) | None => {}
        }
    }

    /// Its ticks count on, one by one.
    fn counts_on(&self) -> Outcome {
        let numbers = self.ticks.iter().map(|tick| tick.number);
        match numbers.clone().zip(numbers.skip(1)).find(|(tick, next)| tick + 1 != *next) {
            Some((tick, next)) => Err(format!("after tick {tick} it said {next}").into()),
            None => Ok(()),
        }
    }

    /// How many ticks it has said.
    pub(crate) fn count(&self) -> usize {
        self.ticks.len()
    }

    /// How long it was away in a move that was asked for when it had said so many ticks; `None`: not enough of them yet.
    pub(crate) fn away_since(&self, count: usize) -> Option<Away> {
        let (before, after) = self.ticks.split_at_checked(count)?;
        // Not among the last, which a busy host may have held up for longer than the move did: nothing stands beside them yet.
        let after = after.get(..after.len().checked_sub(2 * TICKS_BESIDE)?)?;
        let silent_us = after.iter().map(|tick| tick.out_us).max()?;
        let most = |ticks: &[Tick]| ticks.iter().map(|tick| tick.ahead_us).max();
        // The move is where it was silent longest; the first answers after it are late.
        let at = count + after.iter().position(|tick| tick.out_us == silent_us)?;
        let then = most(self.ticks.get(at + TICKS_BESIDE..at + 2 * TICKS_BESIDE)?)?;
        let base = most(before.get(before.len().saturating_sub(TICKS_BESIDE)..)?)?;
        Some(Away { still_us: then.saturating_sub(base), silent_us })
    }
}

/// Answers each datagram with this host's time, for as long as the tests run.
fn clock() -> Result<u16, Box<dyn Error>> {
    static PORT: OnceLock<Result<u16, String>> = OnceLock::new();
    let port = PORT.get_or_init(|| {
        let start = || {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            let port = socket.local_addr()?.port();
            std::thread::Builder::new().name("clock".into()).spawn(move || {
                let mut asked = [0; 64];
                while let Ok((_, who)) = socket.recv_from(&mut asked) {
                    let _ = socket.send_to(monotonic_ns().to_string().as_bytes(), who);
                }
            })?;
            Ok(port)
        };
        start().map_err(|error: std::io::Error| error.to_string())
    });
    port.clone().map_err(Into::into)
}
