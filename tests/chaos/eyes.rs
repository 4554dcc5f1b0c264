//! The outside observer: a thread that reads what nodes and runners leave behind, and the kernel's counters.
//!
//! ```text
//!   audit logs, node.log ── every 2 ms ──▶ courses ── turns ──▶ the director, who strikes
//!        └── every 3 s ──▶ judged whole
//!   ticks ── every 200 ms ──▶ TickBook          cables ── every 50 ms ──▶ wire
//! ```
//!
//! Always true: nobody is asked; what stops, stops answering and not being seen.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit::lab::monotonic_ns;
use godwit_domain::registry::{GuestUid, Stamped};
use godwit_domain::{GuestName, MigrationId, NodeName};
use tokio::sync::mpsc;

use crate::courses::{Courses, Turn};
use crate::ledger::Ledger;
use crate::ticks::TickBook;

const LOOK_INTERVAL: Duration = Duration::from_millis(2);
const WIRE_INTERVAL: Duration = Duration::from_millis(50);
const TICKS_INTERVAL: Duration = Duration::from_millis(200);
/// Time between two judgements of the whole log, at least, and in so many times what the last one has taken.
const JUDGE_INTERVAL: Duration = Duration::from_secs(3);
const JUDGE_SHARE: u32 = 30;

/// Bytes and packets that a node's host has sent into the network for pages.
pub(crate) type Counter = Box<dyn Fn(&NodeName) -> Result<(u64, u64), String> + Send>;

/// What a node's cable for pages has carried away by some moment between two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) asked_ns: u64,
    pub(crate) at_ns: u64,
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
}

/// All that was seen.
pub(crate) struct Seen {
    pub(crate) ledger: Ledger,
    pub(crate) courses: Courses,
    pub(crate) ticks: TickBook,
    pub(crate) wire: BTreeMap<NodeName, Vec<Sent>>,
    /// Who has said when that it leads.
    pub(crate) leaders: Vec<(u64, NodeName)>,
    logs: Vec<NodeLog>,
    /// What could not be read, or must not be.
    pub(crate) violations: Vec<String>,
}

/// See the module.
pub(crate) struct Eyes {
    seen: Arc<Mutex<Seen>>,
    closed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Eyes {
    /// Opens them over these nodes and their state folders.
    pub(crate) fn open(
        folders: &[(NodeName, PathBuf)],
        sent: Counter,
        turns: mpsc::UnboundedSender<Turn>,
    ) -> std::io::Result<Self> {
        let logs = folders.iter().map(|(node, dir)| NodeLog::new(node.clone(), dir.join("node.log")));
        let seen = Seen {
            ledger: Ledger::new(folders.to_vec()),
            courses: Courses::default(),
            ticks: TickBook::new(folders.to_vec()),
            wire: BTreeMap::new(),
            leaders: Vec::new(),
            logs: logs.collect(),
            violations: Vec::new(),
        };
        let seen = Arc::new(Mutex::new(seen));
        let closed = Arc::new(AtomicBool::new(false));
        let (of_thread, end) = (Arc::clone(&seen), Arc::clone(&closed));
        let watch = move || {
            let (mut wire_at, mut ticks_at, mut judge_at) = (Instant::now(), Instant::now(), Instant::now());
            while !end.load(Ordering::Acquire) {
                let mut seen = of_thread.lock().unwrap_or_else(PoisonError::into_inner);
                seen.look(&turns);
                if wire_at <= Instant::now() {
                    wire_at = Instant::now() + WIRE_INTERVAL;
                    seen.look_at_wire(&sent);
                }
                if ticks_at <= Instant::now() {
                    ticks_at = Instant::now() + TICKS_INTERVAL;
                    seen.look_at_ticks();
                }
                if judge_at <= Instant::now() {
                    judge_at = seen.judge();
                }
                drop(seen);
                std::thread::sleep(LOOK_INTERVAL);
            }
        };
        let thread = Some(std::thread::Builder::new().name("eyes".to_owned()).spawn(watch)?);
        Ok(Self { seen, closed, thread })
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who leads, for all that is known.
    pub(crate) fn leader(&self) -> Option<NodeName> {
        self.seen().leaders.last().map(|(_, node)| node.clone())
    }

    /// Reads the rest and looks no longer.
    pub(crate) fn close(&mut self) {
        self.closed.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let (unheard, _) = mpsc::unbounded_channel();
        let mut seen = self.seen();
        seen.look(&unheard);
        seen.look_at_ticks();
    }
}

impl Drop for Eyes {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
    }
}

impl Seen {
    fn look(&mut self, turns: &mpsc::UnboundedSender<Turn>) {
        let now = monotonic_ns();
        let mut begun = Vec::new();
        for at in 0..self.logs.len() {
            let node = self.logs[at].node.clone();
            for word in self.logs[at].look() {
                match word {
                    Word::Leads => self.leaders.push((now, node.clone())),
                    Word::Pauses(migration) => begun.extend(self.courses.paused(now, &migration)),
                }
            }
        }
        match self.ledger.poll() {
            Ok(applied) => {
                for entry in applied {
                    let stamped = Stamped {
                        time_ms: entry.time_ms,
                        request: entry.request.clone(),
                        command: entry.command.clone(),
                    };
                    begun.extend(self.courses.applied(now, stamped));
                }
            }
            Err(why) => self.violate(why),
        }
        for turn in begun {
            // Nobody is left to hear it at the end.
            let _ = turns.send(turn);
        }
    }

    fn look_at_wire(&mut self, sent: &Counter) {
        let nodes: Vec<_> = self.logs.iter().map(|log| log.node.clone()).collect();
        for node in nodes {
            let asked_ns = monotonic_ns();
            match sent(&node) {
                Ok((bytes, packets)) => {
                    let sent = Sent { asked_ns, at_ns: monotonic_ns(), bytes, packets };
                    self.wire.entry(node).or_default().push(sent);
                }
                Err(error) => self.violate(format!("the cable of {node} is not read: {error}")),
            }
        }
    }

    fn look_at_ticks(&mut self) {
        if let Err(why) = self.ticks.look() {
            self.violate(why);
        }
        for twice in self.ticks.twice() {
            self.violate(format!("a tick of one guest stands twice: {twice:?}"));
        }
    }

    /// Whether all grants so far were right; when to look again.
    fn judge(&mut self) -> Instant {
        let began = Instant::now();
        if let Err(why) = self.ledger.judge() {
            self.violate(why);
        }
        Instant::now() + JUDGE_INTERVAL.max(began.elapsed() * JUDGE_SHARE)
    }

    /// The guests' numbers by their names.
    pub(crate) fn guests(&self) -> BTreeMap<GuestName, GuestUid> {
        self.courses.guests()
    }

    fn violate(&mut self, why: String) {
        if !self.violations.contains(&why) && self.violations.len() < 20 {
            self.violations.push(why);
        }
    }
}

#[derive(Debug)]
struct NodeLog {
    node: NodeName,
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
}

enum Word {
    Leads,
    Pauses(MigrationId),
}

impl NodeLog {
    fn new(node: NodeName, path: PathBuf) -> Self {
        Self { node, path, file: None, rest: Vec::new() }
    }

    fn look(&mut self) -> Vec<Word> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return Vec::new() };
        if file.read_to_end(&mut self.rest).unwrap_or(0) == 0 {
            return Vec::new();
        }
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        String::from_utf8_lossy(&lines).lines().filter_map(word).collect()
    }
}

fn word(line: &str) -> Option<Word> {
    if line.contains("leads the control group") {
        return Some(Word::Leads);
    }
    if !line.contains(": switching over") {
        return None;
    }
    let name = line.split_once("migration=")?.1;
    let name = name.split(|letter: char| letter == '}' || letter.is_whitespace()).next()?;
    name.parse().ok().map(Word::Pauses)
}
