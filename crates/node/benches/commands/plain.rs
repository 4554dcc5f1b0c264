//! B: raft-rs on the same disk, and nothing else. Three threads, each with a queue.
//!
//! ```text
//!   generator ─ entries ─▶ leader ══ messages ══ two others
//!       ▲──── "applied" ──────┘
//! ```
//!
//! Always true: a voter takes what waits, as many at once as the actor does, and then acts once; it answers nothing before
//! its disk is synced.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_control::{Disk, DiskSource, NodeId, Position};
use godwit_wire::log;
use protobuf::Message as _;
use raft::eraftpb::{Entry, Message, Snapshot};
use raft::storage::MemStorage;
use raft::{RawNode, Storage};

use super::agreed::commands;
use super::support::disks::{Counted, Told};
use super::support::fleet::stamped;
use super::support::voters::{folder, names};
use super::{Failure, Numbers, Round, cpu_time};

/// What is taken before a voter acts, as by the actor.
const INPUTS_PER_TURN_MAX: usize = 128;
const TICK: Duration = Duration::from_millis(100);
/// Applied entries after which the log is cut, and those that stay.
const CUT_AFTER: u64 = 4096;
const KEPT: u64 = 1024;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

enum Input {
    Message(Vec<u8>),
    Propose { number: usize, entry: Vec<u8> },
    Campaign,
    Stop,
}

pub(crate) struct Plain {
    voters: BTreeMap<NodeId, Sender<Input>>,
    threads: Vec<JoinHandle<Result<(), Failure>>>,
    leader: Sender<Input>,
    applied: Receiver<usize>,
    told: Arc<Told>,
    entries: Vec<Vec<u8>>,
}

impl Plain {
    pub(crate) fn start(dir: &Path) -> Result<Self, Failure> {
        let told = Arc::<Told>::default();
        let (report, applied) = channel();
        let queues: BTreeMap<NodeId, _> = names().into_keys().map(|id| (id, channel::<Input>())).collect();
        let voters: BTreeMap<_, _> = queues.iter().map(|(id, (queue, _))| (*id, queue.clone())).collect();
        let mut threads = Vec::new();
        for (id, (_, inputs)) in queues {
            let mut source = Counted { folder: folder(dir, id)?, told: Arc::clone(&told) };
            let mut disk = source.open()?;
            disk.load()?;
            let others = voters.iter().filter(|(other, _)| **other != id);
            let peers = others.map(|(id, queue)| (id.get(), queue.clone())).collect();
            let voter = Voter {
                node: node(id)?,
                disk,
                peers,
                waiting: VecDeque::new(),
                report: report.clone(),
                cut: 0,
            };
            threads.push(std::thread::spawn(move || voter.run(&inputs)));
        }
        let leader = voters.values().next().ok_or("three voters")?.clone();
        leader.send(Input::Campaign)?;
        let entries = commands(8).into_iter().map(|command| log::encode_entry(&stamped(command)));
        let entries = entries.collect::<Result<_, _>>()?;
        Ok(Self { voters, threads, leader, applied, told, entries })
    }

    pub(crate) fn round(&mut self, under_way: usize, length: Duration) -> Result<Round, Failure> {
        let (disks, cpu, began) = (self.told.count(), cpu_time(), Instant::now());
        let (mut asked, mut took_us, mut next) = (vec![began; under_way], Vec::new(), 0);
        let mut propose = |asked: &mut Vec<Instant>, number: usize| {
            let entry = self.entries.get(next % self.entries.len()).cloned().unwrap_or_default();
            next += 1;
            asked[number] = Instant::now();
            self.leader.send(Input::Propose { number, entry })
        };
        for number in 0..under_way {
            propose(&mut asked, number)?;
        }
        let mut open = under_way;
        while open > 0 {
            let number = self.applied.recv_timeout(PATIENCE)?;
            took_us.push(asked[number].elapsed().as_secs_f64() * 1e6);
            if began.elapsed() < length {
                propose(&mut asked, number)?;
            } else {
                open -= 1;
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let cpu_seconds = cpu_time().saturating_sub(cpu).as_secs_f64();
        let disks = self.told.count().since(disks);
        Ok(Round { commands: took_us.len() as u64, seconds, cpu_seconds, took_us: Numbers(took_us), disks })
    }

    pub(crate) fn end(self) -> Result<(), Failure> {
        for queue in self.voters.values() {
            queue.send(Input::Stop)?;
        }
        for thread in self.threads {
            thread.join().map_err(|_| "a voter's thread has panicked")??;
        }
        Ok(())
    }
}

/// The settings are those of the group's engine.
fn node(id: NodeId) -> Result<RawNode<MemStorage>, Failure> {
    let config = raft::Config {
        id: id.get(),
        election_tick: 10,
        heartbeat_tick: 2,
        max_size_per_msg: 256 << 10,
        max_inflight_msgs: 64,
        check_quorum: true,
        pre_vote: true,
        max_uncommitted_size: 16 << 20,
        max_committed_size_per_ready: 1 << 20,
        ..raft::Config::default()
    };
    let voters: Vec<u64> = names().into_keys().map(NodeId::get).collect();
    let storage = MemStorage::new_with_conf_state((voters, Vec::new()));
    Ok(RawNode::new(&config, storage, &slog::Logger::root(slog::Discard, slog::o!()))?)
}

struct Voter {
    node: RawNode<MemStorage>,
    disk: Box<dyn Disk>,
    peers: BTreeMap<u64, Sender<Input>>,
    /// Those who wait for their entries, in order.
    waiting: VecDeque<usize>,
    report: Sender<usize>,
    /// The entry after which the log was cut last.
    cut: u64,
}

impl Voter {
    fn run(mut self, inputs: &Receiver<Input>) -> Result<(), Failure> {
        let mut next_tick = Instant::now() + TICK;
        let mut early = Vec::new();
        loop {
            match inputs.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(Input::Stop) => return Ok(()),
                Ok(input) => {
                    self.take(input, &mut early)?;
                    for input in inputs.try_iter().take(INPUTS_PER_TURN_MAX - 1).collect::<Vec<_>>() {
                        if matches!(input, Input::Stop) {
                            return Ok(());
                        }
                        self.take(input, &mut early)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if Instant::now() >= next_tick {
                self.node.tick();
                next_tick += TICK;
            }
            while self.node.has_ready() {
                self.ready()?;
            }
            if self.node.raft.state == raft::StateRole::Leader {
                for input in std::mem::take(&mut early) {
                    self.take(input, &mut early)?;
                }
            }
            self.cut_log()?;
        }
    }

    fn take(&mut self, input: Input, early: &mut Vec<Input>) -> Result<(), Failure> {
        match input {
            // Those of before an election are out of place, which raft says as an error.
            Input::Message(bytes) => drop(self.node.step(Message::parse_from_bytes(&bytes)?)),
            Input::Propose { .. } if self.node.raft.state != raft::StateRole::Leader => early.push(input),
            Input::Propose { number, entry } => {
                self.node.propose(vec![1], entry)?;
                self.waiting.push_back(number);
            }
            Input::Campaign => self.node.campaign()?,
            Input::Stop => {}
        }
        Ok(())
    }

    fn send(&self, messages: Vec<Message>) -> Result<(), Failure> {
        for message in messages {
            if let Some(queue) = self.peers.get(&message.to) {
                // One that has stopped hears nothing.
                let _ = queue.send(Input::Message(message.write_to_bytes()?));
            }
        }
        Ok(())
    }

    /// What the engine's does, in the same order.
    fn ready(&mut self) -> Result<(), Failure> {
        let mut ready = self.node.ready();
        self.send(ready.take_messages())?;
        let hard = ready.hs().cloned();
        if !ready.entries().is_empty() || hard.is_some() {
            let known = self.node.store().initial_state()?.hard_state;
            let hard = hard.unwrap_or(known);
            self.disk.append(ready.entries(), &hard)?;
            let mut storage = self.node.store().wl();
            storage.append(ready.entries())?;
            storage.set_hardstate(hard);
        }
        if ready.must_sync() {
            self.disk.sync()?;
        }
        self.send(ready.take_persisted_messages())?;
        let mut agreed = ready.take_committed_entries();
        let mut light = self.node.advance_append(ready);
        self.send(light.take_messages())?;
        agreed.append(&mut light.take_committed_entries());
        self.apply(&agreed)?;
        self.node.advance_apply();
        Ok(())
    }

    fn apply(&mut self, agreed: &[Entry]) -> Result<(), Failure> {
        for entry in agreed.iter().filter(|entry| !entry.get_context().is_empty()) {
            std::hint::black_box(entry);
            if let Some(number) = self.waiting.pop_front() {
                self.report.send(number)?;
            }
        }
        Ok(())
    }

    /// With a snapshot of nothing in front.
    fn cut_log(&mut self) -> Result<(), Failure> {
        let applied = self.node.raft.raft_log.applied;
        if applied < self.cut + CUT_AFTER {
            return Ok(());
        }
        self.cut = applied;
        let base = applied - KEPT;
        let position = Position { term: self.node.store().term(base)?, index: base };
        let state = self.node.store().initial_state()?;
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = applied;
        metadata.term = self.node.store().term(applied)?;
        metadata.set_conf_state(state.conf_state);
        self.disk.save_snapshot(&snapshot, position, &self.node.raft.hard_state())?;
        self.disk.sync()?;
        self.node.store().wl().compact(base)?;
        Ok(())
    }
}
