//! A guest of a few instructions under KVM: what its virtual processors write is seen, and what they miss is served.
//!
//! ```text
//!   a virtual processor           this process                    the crate
//!   stores to pages  ───────────▶ its mapping ◀── scan ────────── Tracker
//!   loads from holes ── waits ──▶ its mapping ◀── read, fill ──── Faults
//!   out dx, eax      ───────────▶ the answer
//! ```
//!
//! Always true: KVM reaches the memory through the mapping of this process, as it does for QEMU: a store goes by tables of
//! its own, which the kernel must have cleared when a page was protected, and a load from a hole waits in the kernel. So
//! the userfaultfd is a full one. Where `/dev/kvm` does not open, the tests say so and are skipped.
#![cfg(target_arch = "x86_64")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use godwit_domain::{PAGE_SIZE, PageCount, PageIndex, PageRun};
use godwit_memory::ram::PAGE_WORDS;
use godwit_memory::uffd::open_own_pagemap;
use godwit_memory::{Faults, Memfd, PageSet, Ram, Tracker, Userfaultfd};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

/// The memory that is tracked or served.
const PAGES: PageCount = PageCount(4096);
/// Where the guest sees it.
const RAM_AT: u32 = 0x0100_0000;
/// Where the guest sees its program, a page that nobody tracks.
const CODE_AT: u32 = 0x0001_0000;
/// Where the sum begins in it; the stores begin at 0.
const SUM: u32 = 64;
/// What the answer is written to.
const PORT: u16 = 0x80;
const DEADLINE: Duration = Duration::from_secs(60);

/// Stores ebx to ecx pages from esi on, edi bytes apart; then answers with ebx.
const STORES: [u8; 11] = [
    0x89, 0x1e, // mov [esi], ebx
    0x01, 0xfe, // add esi, edi
    0x49, // dec ecx
    0x75, 0xf9, // jnz
    0x89, 0xd8, // mov eax, ebx
    0xef, // out dx, eax
    0xf4, // hlt
];
/// Answers with the sum of the words at such places.
const SUMS: [u8; 11] = [
    0x31, 0xc0, // xor eax, eax
    0x03, 0x06, // add eax, [esi]
    0x01, 0xfe, // add esi, edi
    0x49, // dec ecx
    0x75, 0xf9, // jnz
    0xef, // out dx, eax
    0xf4, // hlt
];

/// A machine with its memory; each processor is ordered about by its own thread.
struct Machine {
    memory: Memfd,
    ram: Ram,
    _code: Ram,
    vm: VmFd,
}

impl Machine {
    /// `None`: not here, which was said.
    fn new() -> Option<Self> {
        let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(vm) => vm,
            Err(error) => return skip(&format!("no virtual machine of /dev/kvm: {error}")),
        };
        if let Err(error) = Userfaultfd::open() {
            return skip(&format!("no userfaultfd for faults in the kernel: {error}"));
        }
        // Somewhere that is not memory: some processors need it to run what is no 64-bit code.
        vm.set_tss_address(0xfffb_d000).expect("set a place for the task state");
        let memory = Memfd::create("kvm-ram", PAGES).expect("memfd");
        let ram = Ram::map(&memory).expect("map");
        let code = Memfd::create("kvm-code", PageCount(1)).expect("memfd");
        let mut program = [0; PAGE_SIZE];
        program[..STORES.len()].copy_from_slice(&STORES);
        program[SUM as usize..][..SUMS.len()].copy_from_slice(&SUMS);
        code.write(PageIndex(0), &program).expect("write the program");
        let code = Ram::map(&code).expect("map");
        for (slot, at, ram) in [(0, CODE_AT, &code), (1, RAM_AT, &ram)] {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: at.into(),
                memory_size: ram.pages().bytes(),
                userspace_addr: ram.address(),
            };
            // SAFETY: the range is a whole mapping, which nobody refers to, and which lives as long as the machine.
            unsafe { vm.set_user_memory_region(region) }.expect("give the machine its memory");
        }
        Some(Self { memory, ram, _code: code, vm })
    }

    fn processor(&self, id: u64) -> Processor {
        let vcpu = self.vm.create_vcpu(id).expect("make a virtual processor");
        let mut special = vcpu.get_sregs().expect("get its registers");
        // All memory as it is, in 32 bits.
        let flat = kvm_segment {
            limit: u32::MAX,
            selector: 0x10,
            type_: 3,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..kvm_segment::default()
        };
        (special.ds, special.es, special.ss) = (flat, flat, flat);
        special.cs = kvm_segment { selector: 0x8, type_: 11, ..flat };
        special.cr0 |= 1;
        vcpu.set_sregs(&special).expect("set its registers");
        Processor { vcpu }
    }

    /// The first word of a page, as the file has it.
    fn word(&self, page: u32) -> u32 {
        let mut bytes = [0; PAGE_SIZE];
        self.memory.read(PageIndex(page), &mut bytes).expect("read");
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn tracker(&self) -> Tracker {
        let pagemap = open_own_pagemap().expect("pagemap");
        Tracker::arm(full_userfaultfd(), pagemap, self.ram.address(), PAGES.bytes()).expect("arm")
    }
}

/// Says why nothing is tried here: past the harness, which shows nothing of a test that passes.
fn skip(why: &str) -> Option<Machine> {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
    None
}

/// One virtual processor.
struct Processor {
    vcpu: VcpuFd,
}

impl Processor {
    /// Writes `value` to `count` pages.
    fn store(&mut self, first: u32, count: u32, step: i32, value: u32) {
        assert_eq!(self.run(0, first, count, step, value), value);
    }

    /// The sum over the first words of `count` pages.
    fn sum(&mut self, first: u32, count: u32, step: i32) -> u32 {
        self.run(SUM, first, count, step, 0)
    }

    fn run(&mut self, program: u32, first: u32, count: u32, step: i32, value: u32) -> u32 {
        let page = u32::try_from(PAGE_SIZE).expect("small");
        let registers = kvm_regs {
            rip: (CODE_AT + program).into(),
            rflags: 2,
            rsi: (RAM_AT + first * page).into(),
            rcx: count.into(),
            rdi: step.cast_unsigned().wrapping_mul(page).into(),
            rbx: value.into(),
            rdx: PORT.into(),
            ..kvm_regs::default()
        };
        self.vcpu.set_regs(&registers).expect("set its registers");
        let mut answer = None;
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(PORT, bytes)) => {
                    answer = bytes.first_chunk().copied().map(u32::from_ne_bytes)
                }
                Ok(VcpuExit::Hlt) => return answer.expect("it answers before it halts"),
                Ok(other) => panic!("a virtual processor ended with {other:?}"),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => panic!("run a virtual processor: {error}"),
            }
        }
    }
}

fn full_userfaultfd() -> Userfaultfd {
    Userfaultfd::open()
        .expect("a userfaultfd for faults in the kernel, which takes /dev/userfaultfd or root")
        .0
}

fn written(tracker: &mut Tracker) -> Vec<PageRun> {
    let mut pages = PageSet::empty(PAGES);
    tracker.scan(|run| pages.insert_run(run)).expect("scan");
    pages.runs().collect()
}

#[test]
fn what_a_virtual_processor_writes_is_seen_once() {
    let Some(machine) = Machine::new() else { return };
    let mut processor = machine.processor(0);
    processor.store(0, PAGES.0 / 2, 1, 1);
    let mut tracker = machine.tracker();
    assert_eq!(processor.sum(0, PAGES.0, 1), PAGES.0 / 2);
    assert_eq!(written(&mut tracker), [], "loads are no writes");
    // Pages that it has written, pages that it has only read.
    let apart: Vec<_> = (0..500).map(|index| PageRun::new(3 + 8 * index, 1)).collect();
    for value in 2..5 {
        processor.store(3, 500, 8, value);
        assert_eq!(written(&mut tracker), apart);
        assert_eq!(written(&mut tracker), [], "seen once");
        assert!(apart.iter().all(|run| machine.word(run.first.0) == value));
    }
    tracker.disarm().expect("disarm");
    processor.store(0, PAGES.0, 1, 9);
    assert_eq!(processor.sum(PAGES.0 - 1, PAGES.0, -1), 9 * PAGES.0);
}

/// Rounds of a pre-copy against virtual processors that write without a pause, every page again and again.
fn no_write_is_lost(processors: u32) {
    const LAPS: u32 = 40;
    let Some(machine) = Machine::new() else { return };
    let mut tracker = machine.tracker();
    let ended = AtomicUsize::new(0);
    let mut copy = vec![0; PAGES.0 as usize];
    let rounds = AtomicUsize::new(0);
    thread::scope(|scope| {
        for id in 0..processors {
            let (mut processor, ended, rounds) = (machine.processor(id.into()), &ended, &rounds);
            scope.spawn(move || {
                for lap in 1..=LAPS {
                    while lap == LAPS && rounds.load(Ordering::SeqCst) < 3 {
                        // They are to be looked at while they write, however the threads are scheduled.
                        thread::yield_now();
                    }
                    processor.store(id, PAGES.0 / processors, processors.cast_signed(), lap);
                }
                ended.fetch_add(1, Ordering::SeqCst);
            });
        }
        loop {
            let last = ended.load(Ordering::SeqCst) == processors as usize;
            for run in written(&mut tracker) {
                for page in run.first.0..run.first.0 + run.count.0 {
                    copy[page as usize] = machine.word(page);
                }
            }
            rounds.fetch_add(1, Ordering::SeqCst);
            if last {
                break;
            }
        }
    });
    let rounds = rounds.into_inner();
    let stale = copy.iter().filter(|word| **word != LAPS).count();
    assert_eq!(stale, 0, "pages whose last write was not seen, in {rounds} rounds");
    assert_eq!(written(&mut tracker), []);
}

#[test]
fn no_write_of_one_virtual_processor_is_lost() {
    no_write_is_lost(1);
}

#[test]
fn no_write_of_two_virtual_processors_is_lost() {
    no_write_is_lost(2);
}

fn content_of(page: u32) -> u32 {
    page.wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995
}

/// The words that every page holds before a guest writes to it: which page it is, and what only its source knows.
fn word_of(page: u32) -> u64 {
    u64::from(content_of(page)) | (u64::from(page) << 32)
}

fn page_of(page: u32) -> Vec<u8> {
    word_of(page).to_ne_bytes().repeat(PAGE_WORDS)
}

/// Of each eight pages one is here. Each virtual processor reads the whole lower half, from one end or the other, and
/// writes its share of the upper half.
fn what_is_missed_is_served(processors: u32) {
    const HALF: u32 = PAGES.0 / 2;
    let Some(machine) = Machine::new() else { return };
    for page in (0..PAGES.0).step_by(8) {
        machine.memory.write(PageIndex(page), &page_of(page)).expect("write");
    }
    let faults =
        Faults::register(full_userfaultfd(), machine.ram.address(), PAGES.bytes()).expect("register");
    let sum = (0..HALF).fold(0_u32, |sum, page| sum.wrapping_add(content_of(page)));
    let (missed, sums) = thread::scope(|scope| {
        // Dropped when this fails: then nobody waits for ever.
        let faults = faults;
        let running: Vec<_> = (0..processors)
            .zip([(0, 1), (HALF - 1, -1)])
            .map(|(id, (first, step))| {
                let mut processor = machine.processor(id.into());
                scope.spawn(move || {
                    let sum = processor.sum(first, HALF, step);
                    processor.store(HALF + id, HALF / processors, processors.cast_signed(), 7);
                    sum
                })
            })
            .collect();
        let missed = serve(&faults, || running.iter().all(thread::ScopedJoinHandle::is_finished));
        let sums: Vec<u32> = running.into_iter().map(|one| one.join().expect("ends")).collect();
        (missed, sums)
    });
    assert!(sums.iter().all(|one| *one == sum), "{sums:?}, not {sum}");
    assert!(missed.iter().all(|page| page % 8 != 0), "a page that was here was missed");
    assert!(missed.len() > 1_000, "only {} pages were missed", missed.len());
    for page in 0..PAGES.0 {
        let mut words = [0; PAGE_WORDS];
        machine.ram.read_page(PageIndex(page), &mut words);
        let first = if page < HALF { word_of(page) } else { 7 | (u64::from(page) << 32) };
        assert_eq!(words[0], first, "page {page}: its store over what was served");
        assert!(words[1..].iter().all(|word| *word == word_of(page)), "page {page} as it was served");
    }
}

/// Serves until `ended`; the pages that somebody has waited for. One page in the background for each that is missed.
fn serve(faults: &Faults, ended: impl Fn() -> bool) -> BTreeSet<u32> {
    let mut missed = BTreeSet::new();
    let mut background = PAGES.0 / 4;
    let begun = Instant::now();
    while !ended() {
        assert!(
            begun.elapsed() < DEADLINE,
            "not served within {DEADLINE:?}: {} pages were missed",
            missed.len()
        );
        let mut waited_for = Vec::new();
        faults.read(|page| waited_for.push(page)).expect("read");
        if waited_for.is_empty() {
            thread::yield_now();
        } else if background < PAGES.0 {
            faults.fill(PageIndex(background), &page_of(background)).expect("fill in the background");
            background += 2;
        }
        for page in waited_for {
            faults.fill(page, &page_of(page.0)).expect("fill");
            missed.insert(page.0);
        }
    }
    missed
}

#[test]
fn what_one_virtual_processor_misses_is_served() {
    what_is_missed_is_served(1);
}

#[test]
fn what_two_virtual_processors_miss_is_served() {
    what_is_missed_is_served(2);
}
