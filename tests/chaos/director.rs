//! Who is struck by what, and when: at random, and at the turns of migrations.
//!
//! ```text
//!   a moment of its own ───────────────┐
//!   a migration has come to a stage ───┴─▶ a node, a kind ─▶ begin ─▶ … ─▶ undo
//! ```
//!
//! Always true: a node suffers one fault at a time, and at most [`AT_ONCE`] nodes suffer; every fault that was begun is
//! undone, at the end at the latest; everything random comes from the seed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use godwit::lab::monotonic_ns;
use godwit_domain::{InstanceId, NodeName};
use tokio::sync::mpsc;

use crate::courses::{Stage, Turn};
use crate::eyes::Eyes;
use crate::faults::{Kind, Undo};
use crate::hands::Hand;
use crate::herd::Herd;
use crate::plan::{Lean, Side};
use crate::run::VOTERS;
use crate::support::Outcome;

/// Nodes that suffer at once. Two voters of three leave no quorum for as long as it takes.
const AT_ONCE: usize = 2;
/// Mean time between two faults that nothing asks for.
const MEAN_MS: u64 = 3_000;
/// Shortest time between two strikes.
const STRIKE_INTERVAL: Duration = Duration::from_millis(700);
/// A process that was just started again is left alone for so long.
const REST_AFTER_START: Duration = Duration::from_millis(700);

/// So much later nodes that do not vote hear and say everything, where the plan leans to something.
/// Nodes that do not vote are so far from those that do: what is between two entries lasts longer than chance needs to
/// strike.
const FAR: Duration = Duration::from_millis(25);
/// A target that is held back hears of a hand-over after this time, and is heard to run the guest after twice this time.
const HELD_BACK: Duration = Duration::from_millis(400);
/// How long a fault lasts then: a killed process is back while what it has missed goes on.
const LEANT_LASTS: Duration = Duration::from_millis(150);

/// How long a host is off that is fenced: it must first be missed.
const FENCED_LASTS: Duration = Duration::from_secs(7);

/// A fault.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) node: NodeName,
    pub(crate) begun_ns: u64,
    pub(crate) undone_ns: u64,
    /// What it was meant for.
    pub(crate) meant: Option<Stage>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, node, begun_ns, undone_ns, meant } = self;
        let meant = meant.map_or("", Stage::name);
        write!(f, "{begun_ns} {undone_ns} {node} {} {meant}", kind.name())
    }
}

/// All faults of a run, in order: whoever looks for the cause of a failure wants them.
pub(crate) type Faults = Arc<Mutex<Vec<Fault>>>;

struct Due {
    at: Instant,
    node: NodeName,
    undo: Undo,
    fault: usize,
}

/// See the module.
pub(crate) struct Director<'a> {
    hand: Hand<'a>,
    eyes: &'a Eyes,
    herd: Arc<Herd>,
    nodes: Vec<NodeName>,
    lean: Option<Lean>,
    rng: Rng,
    due: Vec<Due>,
    /// Nodes that suffer, or rest from it, and until when.
    busy: BTreeMap<NodeName, Instant>,
    struck_at: Instant,
    strikes: BTreeMap<Stage, u32>,
    faults: Faults,
    /// Node processes that have ended by themselves.
    pub(crate) ended: Vec<String>,
}

impl<'a> Director<'a> {
    pub(crate) fn new(
        hand: Hand<'a>,
        eyes: &'a Eyes,
        herd: Arc<Herd>,
        nodes: Vec<NodeName>,
        faults: Faults,
        lean: Option<Lean>,
        rng: Rng,
    ) -> Self {
        Self {
            hand,
            eyes,
            herd,
            nodes,
            lean,
            rng,
            due: Vec::new(),
            busy: BTreeMap::new(),
            struck_at: Instant::now(),
            strikes: Stage::ALL.map(|stage| (stage, 0)).into(),
            faults,
            ended: Vec::new(),
        }
    }

    /// Lets things happen until the time has passed, or something was seen that must not be; then undoes all of it.
    pub(crate) async fn direct(
        &mut self,
        length: Duration,
        turns: &mut mpsc::UnboundedReceiver<Turn>,
    ) -> Outcome {
        let end = Instant::now() + length;
        let mut next = Instant::now() + self.pause();
        let mut later: Vec<(Instant, Turn)> = Vec::new();
        let delay = if self.lean.is_some() { HELD_BACK } else { FAR };
        self.hand.put_far(&self.nodes[VOTERS..], delay);
        while Instant::now() < end && !self.is_violated() {
            self.undo_what_is_due(Instant::now()).await?;
            self.look_after_processes()?;
            if next <= Instant::now() {
                next = Instant::now() + self.pause();
                self.something().await?;
            }
            let now = Instant::now();
            if let Some(at) = later.iter().position(|(at, _)| *at <= now) {
                let (_, turn) = later.swap_remove(at);
                self.strike(&turn).await?;
            }
            let wake = later.iter().map(|(at, _)| *at).chain(self.due.iter().map(|due| due.at)).min();
            let wake = wake.unwrap_or(next).min(next).min(end).min(now + Duration::from_millis(200));
            if let Ok(Some(turn)) = tokio::time::timeout_at(wake.into(), turns.recv()).await {
                match self.strikes_after(&turn) {
                    Duration::ZERO => self.strike(&turn).await?,
                    after => later.push((Instant::now() + after, turn)),
                }
            }
        }
        self.finish().await
    }

    /// How long after a turn something may strike.
    fn strikes_after(&mut self, turn: &Turn) -> Duration {
        let after_ms = match (self.lean, turn.stage) {
            (Some(lean), _) => lean.after_ms,
            // They are over within milliseconds.
            (None, Stage::Pausing | Stage::Committed) => 0,
            (None, Stage::PreCopy | Stage::PostCopy) => self.rng.u64(0..=900),
        };
        Duration::from_millis(after_ms)
    }

    fn is_violated(&self) -> bool {
        let killed = self.herd.killed();
        let seen = self.eyes.seen();
        let by_itself = seen.courses.gone.iter().any(|instance| !killed.contains(instance));
        by_itself || !seen.violations.is_empty() || !self.herd.violations().is_empty()
    }

    /// Undoes everything at once.
    async fn finish(&mut self) -> Outcome {
        self.undo_what_is_due(Instant::now() + Duration::from_secs(3_600)).await?;
        self.hand.heal()
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.rng.u64(MEAN_MS / 3..=MEAN_MS * 5 / 3))
    }

    fn free(&self) -> Vec<NodeName> {
        let now = Instant::now();
        let suffering = self.busy.values().filter(|until| **until > now).count();
        let room = suffering < AT_ONCE;
        // What was to be undone by now may be late.
        let waits = |node: &NodeName| self.due.iter().any(|due| due.node == *node);
        let is_free =
            |node: &&NodeName| room && !waits(node) && self.busy.get(*node).is_none_or(|until| *until <= now);
        self.nodes.iter().filter(is_free).cloned().collect()
    }

    /// A fault that nothing asks for.
    async fn something(&mut self) -> Outcome {
        let free = self.free();
        let leader = self.eyes.leader().filter(|leader| free.contains(leader));
        let node = match leader {
            Some(leader) if self.rng.u8(..4) == 0 => Some(leader),
            _ => self.rng.choice(free),
        };
        let Some(node) = node else { return Ok(()) };
        let kind = self.kind(Kind::weight);
        self.begin(kind, node, None, None).await
    }

    /// The fault that the plan leans to.
    async fn lean(&mut self, lean: Lean, turn: &Turn) -> Outcome {
        let (node, runner) = match lean.side {
            Side::Source => (&turn.source, turn.runners.0),
            Side::Target => (&turn.target, turn.runners.1),
        };
        if turn.stage != lean.stage || !self.free().contains(node) {
            return Ok(());
        }
        self.begin(lean.kind, node.clone(), Some(lean.stage), runner).await
    }

    /// A fault for a migration that has come to some stage: for its source, its target or whoever leads.
    async fn strike(&mut self, turn: &Turn) -> Outcome {
        if let Some(lean) = self.lean {
            return self.lean(lean, turn).await;
        }
        let fewest = self.strikes.values().min().copied().unwrap_or(0);
        let had = self.strikes.get(&turn.stage).copied().unwrap_or(0);
        // The stages that are rare or short are not passed over for those that are common.
        if self.struck_at.elapsed() < STRIKE_INTERVAL || had > fewest + 6 || self.rng.u8(..3) == 0 {
            return Ok(());
        }
        let free = self.free();
        let mut of = vec![turn.source.clone(), turn.target.clone()];
        of.extend(self.eyes.leader());
        of.retain(|node| free.contains(node));
        let Some(node) = self.rng.choice(of) else { return Ok(()) };
        let kind = self.kind(Kind::weight_of_strike);
        self.struck_at = Instant::now();
        *self.strikes.entry(turn.stage).or_insert(0) += 1;
        let runner = if node == turn.source { turn.runners.0 } else { turn.runners.1 };
        self.begin(kind, node, Some(turn.stage), runner).await
    }

    fn kind(&mut self, weight: impl Fn(Kind) -> u32) -> Kind {
        let kinds: Vec<_> = Kind::ALL.into_iter().filter(|kind| self.hand.can(*kind)).collect();
        let all: u32 = kinds.iter().map(|kind| weight(*kind)).sum();
        let mut left = self.rng.u32(..all);
        for kind in kinds {
            match left.checked_sub(weight(kind)) {
                Some(rest) => left = rest,
                None => return kind,
            }
        }
        Kind::KillNode
    }

    async fn begin(
        &mut self,
        kind: Kind,
        node: NodeName,
        meant: Option<Stage>,
        runner: Option<InstanceId>,
    ) -> Outcome {
        // An operator who knows that a host is off says so, half of the time.
        let is_fenced =
            kind == Kind::KillHost && self.lean.map_or_else(|| self.rng.bool(), |lean| lean.fences);
        let lasts = match self.lean {
            _ if is_fenced => FENCED_LASTS,
            // What it has sent must be lost, so it stays cut until that would have arrived.
            Some(_) if matches!(kind, Kind::KillHost | Kind::KillCutOff) => HELD_BACK * 3 / 2,
            Some(_) => LEANT_LASTS,
            None => Duration::from_millis(kind.lasts_ms(&mut self.rng)),
        };
        let begun_ns = monotonic_ns();
        let Some((undo, killed)) = self.hand.begin(kind, &node, runner, &mut self.rng).await? else {
            return Ok(());
        };
        for (guest, instance) in killed {
            self.herd.hurt(guest, instance);
        }
        // That one has never started there is not known any more, though it had ended by itself.
        if kind == Kind::KillHost {
            self.herd.wound(self.eyes.seen().courses.handed_over_to(&node));
        }
        if is_fenced {
            tokio::spawn(Arc::clone(&self.herd).fence(node.clone(), lasts));
        }
        let at = Instant::now() + lasts;
        let rest = if matches!(undo, Undo::Start { .. }) { REST_AFTER_START } else { Duration::ZERO };
        self.busy.insert(node.clone(), at + rest);
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        self.due.push(Due { at, node: node.clone(), undo, fault: faults.len() });
        faults.push(Fault { kind, node, begun_ns, undone_ns: u64::MAX, meant });
        Ok(())
    }

    async fn undo_what_is_due(&mut self, by: Instant) -> Outcome {
        let (due, later) = std::mem::take(&mut self.due).into_iter().partition(|due: &Due| due.at <= by);
        self.due = later;
        for Due { node, undo, fault, .. } in due {
            self.hand.undo(&undo, &node).await?;
            if let Some(fault) = self.faults.lock().unwrap_or_else(PoisonError::into_inner).get_mut(fault) {
                fault.undone_ns = monotonic_ns();
            }
        }
        Ok(())
    }

    /// Starts again what has ended by itself, as an init system does, and takes it down.
    fn look_after_processes(&mut self) -> Outcome {
        for node in self.nodes.clone() {
            let is_started_later =
                self.due.iter().any(|due| due.node == node && matches!(due.undo, Undo::Start { .. }));
            if is_started_later || !self.hand.has_ended(&node) {
                continue;
            }
            let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
            let suffers = self.due.iter().find(|due| due.node == node).and_then(|due| faults.get(due.fault));
            self.ended
                .push(format!("{node}, under {}", suffers.map_or("no fault", |fault| fault.kind.name())));
            self.due.push(Due {
                at: Instant::now() + Duration::from_millis(500),
                node: node.clone(),
                undo: Undo::Start { shift: Duration::ZERO, mend: false },
                fault: usize::MAX,
            });
        }
        Ok(())
    }
}
