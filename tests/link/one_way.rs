//! One direction of a bad link: which datagrams arrive, when, and how often. Pure: it is told the time and draws from
//! a seed.
//!
//! ```text
//!   offer ─▶ cut? ─▶ room? ─▶ rate ─▶ lost? ─▶ delay + jitter (+ lag of a straggler) ─▶ held ─▶ due
//!                                        └─ a copy, with a jitter of its own ────────────┘
//! ```
//!
//! Always true: what is held never exceeds the plan's bytes; every datagram that was offered is counted once for its
//! end; without jitter and stragglers, and while the plan stays, order is kept. The fate of the n-th datagram that is
//! offered depends on the seed, the plan and n: neither cuts nor what became of others shift it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

/// How often something happens, in parts of a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chance(u32);

impl Chance {
    pub(crate) const NEVER: Self = Self(0);
    const ALWAYS: u32 = 1_000_000;

    /// So many of a hundred; more than 100 is always.
    pub(crate) const fn percent(of_hundred: u32) -> Self {
        Self::of_million(of_hundred.saturating_mul(10_000))
    }

    /// So many of a million; more is always.
    pub(crate) const fn of_million(parts: u32) -> Self {
        Self(if parts > Self::ALWAYS { Self::ALWAYS } else { parts })
    }

    fn strikes(self, draw: u64) -> bool {
        below(draw, u64::from(Self::ALWAYS)) < u64::from(self.0)
    }
}

impl fmt::Display for Chance {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ppm", self.0)
    }
}

/// What a link does to datagrams in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// How long each is on the way, at least.
    pub(crate) delay: Duration,
    /// Up to so much longer, evenly drawn for each. More than the time between two datagrams may swap them.
    pub(crate) jitter: Duration,
    /// How many straggle: they take `lag` longer, so that those behind overtake them.
    pub(crate) straggling: Chance,
    /// How much longer a straggler takes.
    pub(crate) lag: Duration,
    /// How many arrive twice.
    pub(crate) duplication: Chance,
    /// How many never arrive.
    pub(crate) loss: Chance,
    /// Bytes of payload that enter in a second, one datagram after another; 0 for no limit.
    pub(crate) bytes_per_second: u64,
    /// Most bytes held, those on the way and those that wait for the rate. What does not fit is dropped.
    pub(crate) held_bytes_max: usize,
}

impl Plan {
    /// As good as no link at all. Holds 32 MiB: a migration's window of 8 MiB each for a few connections.
    pub(crate) const PERFECT: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        straggling: Chance::NEVER,
        lag: Duration::ZERO,
        duplication: Chance::NEVER,
        loss: Chance::NEVER,
        bytes_per_second: 0,
        held_bytes_max: 32 << 20,
    };

    /// Only a delay.
    pub(crate) const fn delayed(delay: Duration) -> Self {
        Self { delay, ..Self::PERFECT }
    }

    /// How long so many bytes occupy the entrance.
    fn entering(&self, bytes: usize) -> Duration {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let nanos = bytes.saturating_mul(1_000_000_000).checked_div(self.bytes_per_second);
        Duration::from_nanos(nanos.unwrap_or(0))
    }

    fn on_the_way(&self, jitter_draw: u64) -> Duration {
        let most = u64::try_from(self.jitter.as_nanos()).unwrap_or(u64::MAX);
        self.delay + Duration::from_nanos(below(jitter_draw, most.saturating_add(1)))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { delay, jitter, straggling, lag, duplication, loss, bytes_per_second, held_bytes_max } =
            self;
        write!(out, "delay {delay:?} + 0..{jitter:?}, straggling {straggling} by {lag:?}, ")?;
        write!(out, "twice {duplication}, lost {loss}, ")?;
        write!(out, "{bytes_per_second} B/s, holds {held_bytes_max} B")
    }
}

/// What is on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Datagram {
    /// Whose traffic it is: who sent it, or who gets it.
    pub(crate) client: SocketAddr,
    pub(crate) payload: Bytes,
}

/// What has become of datagrams. `offered + duplicated` are `delivered`, `lost`, `cut`, `overflowed`, or still held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) offered: u64,
    pub(crate) delivered: u64,
    /// Copies made.
    pub(crate) duplicated: u64,
    /// Stragglers.
    pub(crate) straggled: u64,
    /// Lost as planned.
    pub(crate) lost: u64,
    /// Lost in a cut: offered while it lasted, or on the way when it began.
    pub(crate) cut: u64,
    /// Dropped, as there was no room.
    pub(crate) overflowed: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    plan: Plan,
    rng: Rng,
    is_cut: bool,
    /// When the entrance is free again.
    free_at: Duration,
    /// By the time that it is due, then by the order of coming.
    held: BTreeMap<(Duration, u64), Datagram>,
    held_bytes: usize,
    next: u64,
    counts: Counts,
}

impl Link {
    pub(crate) fn new(plan: Plan, rng: Rng) -> Self {
        let (is_cut, free_at, held) = (false, Duration::ZERO, BTreeMap::new());
        Self { plan, rng, is_cut, free_at, held, held_bytes: 0, next: 0, counts: Counts::default() }
    }

    /// Takes a datagram at a time that never goes back.
    pub(crate) fn offer(&mut self, now: Duration, datagram: Datagram) {
        self.counts.offered += 1;
        // All of it for each, whatever comes of it: otherwise one fate would shift all that follow.
        let fate = Fate::draw(&mut self.rng);
        let bytes = datagram.payload.len();
        if self.is_cut {
            self.counts.cut += 1;
            return;
        }
        if !self.has_room(bytes) {
            self.counts.overflowed += 1;
            return;
        }
        self.free_at = self.free_at.max(now) + self.plan.entering(bytes);
        let entered = self.free_at;
        if self.plan.loss.strikes(fate.loss) {
            self.counts.lost += 1;
            return;
        }
        let mut due = entered + self.plan.on_the_way(fate.jitter);
        if self.plan.straggling.strikes(fate.straggling) {
            self.counts.straggled += 1;
            due += self.plan.lag;
        }
        self.hold(due, datagram.clone());
        if self.plan.duplication.strikes(fate.duplication) && self.has_room(bytes) {
            self.counts.duplicated += 1;
            self.hold(entered + self.plan.on_the_way(fate.jitter_of_copy), datagram);
        }
    }

    /// What arrives by now, in order of arrival.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<Datagram> {
        let mut arrived = Vec::new();
        while let Some(first) = self.held.first_entry().filter(|first| first.key().0 <= now) {
            let datagram = first.remove();
            self.held_bytes -= datagram.payload.len();
            arrived.push(datagram);
        }
        self.counts.delivered += u64::try_from(arrived.len()).unwrap_or(u64::MAX);
        arrived
    }

    /// When the next arrives.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.held.keys().next().map(|(due, _)| *due)
    }

    /// Nothing passes from now on, and what is on the way is lost.
    pub(crate) fn cut(&mut self) {
        self.is_cut = true;
        self.counts.cut += u64::try_from(self.held.len()).unwrap_or(u64::MAX);
        self.held.clear();
        self.held_bytes = 0;
        self.free_at = Duration::ZERO;
    }

    /// Ends a cut.
    pub(crate) fn mend(&mut self) {
        self.is_cut = false;
    }

    /// What is offered from now on has another plan.
    pub(crate) fn change(&mut self, plan: Plan) {
        self.plan = plan;
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes on the way.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.held_bytes.saturating_add(bytes) <= self.plan.held_bytes_max
    }

    fn hold(&mut self, due: Duration, datagram: Datagram) {
        self.held_bytes += datagram.payload.len();
        self.held.insert((due, self.next), datagram);
        self.next += 1;
    }
}

/// What chance has for one datagram.
struct Fate {
    loss: u64,
    straggling: u64,
    jitter: u64,
    duplication: u64,
    jitter_of_copy: u64,
}

impl Fate {
    /// Whole numbers, since drawing from a range may take more than one step of the generator.
    fn draw(rng: &mut Rng) -> Self {
        let mut draw = || rng.u64(..);
        let (loss, straggling, jitter) = (draw(), draw(), draw());
        Self { loss, straggling, jitter, duplication: draw(), jitter_of_copy: draw() }
    }
}

/// A whole draw brought below `limit`, which is not 0.
fn below(draw: u64, limit: u64) -> u64 {
    u64::try_from((u128::from(draw) * u128::from(limit)) >> 64).unwrap_or(0)
}
