//! The rate limit of one migration: how many bytes may be sent by now. Knows no clock and no socket.
//!
//! ```text
//!   long bucket   fills at rate,          holds 1 s of it      the average over the run
//!   short bucket  fills at rate + 2 %,    holds 15 ms of it    the peak over any second
//! ```
//!
//! What is charged are bytes of UDP payload as the connection counts them: pages, headers, retransmissions.
//! They are known only after the fact, so a chunk is charged by estimate when it is handed over and corrected
//! by the connection's own counter: what counts is always the larger of the two.
//!
//! Always true: over any second no more than 5 % above the rate is let go; what a stall lost within the last
//! second is made up for at 2 % above the rate, so the average stays within 3 %.

use std::time::Duration;

use godwit_domain::Bandwidth;

/// How much faster than the rate a backlog may be worked off.
const CATCH_UP_PER_MILLE: u64 = 20;
/// What the short bucket holds, in time.
const BURST: Duration = Duration::from_millis(15);
/// What the long bucket holds, in time: a loss older than this is not made up for.
const MEMORY: Duration = Duration::from_secs(1);

/// A token bucket that holds bytes × nanoseconds, so that no rounding is lost.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    rate: u64,
    capacity: i128,
    level: i128,
}

const NANOS: i128 = 1_000_000_000;

impl Bucket {
    fn full(rate: u64, holds: Duration) -> Self {
        let capacity = i128::from(rate) * i128::try_from(holds.as_nanos()).unwrap_or(i128::MAX >> 64);
        Self { rate, capacity, level: capacity }
    }

    fn fill(&mut self, elapsed: Duration) {
        let nanos = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX >> 64);
        self.level = (self.level + i128::from(self.rate) * nanos).min(self.capacity);
    }

    /// When the level is no longer below zero.
    fn wait(&self) -> Duration {
        if self.level >= 0 || self.rate == 0 {
            return Duration::ZERO;
        }
        let nanos = (-self.level) / i128::from(self.rate) + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The limiter of one migration.
#[derive(Debug)]
pub struct Limiter {
    bandwidth: Bandwidth,
    buckets: Option<(Bucket, Bucket)>,
    filled_at: Duration,
    /// Bytes charged so far, by estimate or by the counter.
    charged: u64,
    /// Bytes handed over so far, page streams and all, without transport overhead.
    handed_over: u64,
}

impl Limiter {
    /// A limiter that begins now.
    pub fn new(now: Duration, bandwidth: Bandwidth) -> Self {
        let mut limiter = Self { bandwidth, buckets: None, filled_at: now, charged: 0, handed_over: 0 };
        limiter.set(now, bandwidth);
        limiter
    }

    /// Another limit, from now on. What was lost under the old one is forgotten.
    pub fn set(&mut self, now: Duration, bandwidth: Bandwidth) {
        self.bandwidth = bandwidth;
        self.filled_at = now;
        self.buckets = bandwidth.bytes_per_second().map(|rate| {
            let peak = rate.saturating_add(rate.saturating_mul(CATCH_UP_PER_MILLE) / 1000);
            let mut long = Bucket::full(rate, MEMORY);
            // Nothing was lost yet: only the burst is free.
            long.level = i128::from(rate) * i128::try_from(BURST.as_nanos()).unwrap_or(0);
            (long, Bucket::full(peak, BURST))
        });
    }

    /// The limit in force.
    pub fn bandwidth(&self) -> Bandwidth {
        self.bandwidth
    }

    /// May something be sent now? `counter` is the connection's count of bytes sent so far. If not: how long to
    /// wait before asking again.
    pub fn ready(&mut self, now: Duration, counter: u64) -> Result<(), Duration> {
        let expected = self.expected(counter);
        let overdue = expected.saturating_sub(self.charged);
        self.charge(overdue);
        let Some((long, short)) = &mut self.buckets else { return Ok(()) };
        let elapsed = now.saturating_sub(self.filled_at);
        self.filled_at = now;
        long.fill(elapsed);
        short.fill(elapsed);
        let wait = long.wait().max(short.wait());
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// So many bytes were handed to the connection.
    pub fn sent(&mut self, bytes: u64, counter: u64) {
        self.handed_over += bytes;
        let expected = self.expected(counter);
        let overdue = expected.saturating_sub(self.charged);
        self.charge(overdue);
    }

    /// A chunk no larger than this keeps the burst small: what 5 ms carry, 16 KiB to 256 KiB.
    pub fn chunk_bytes(&self) -> usize {
        let by_rate = self.bandwidth.bytes_per_second().map_or(u64::MAX, |rate| rate / 200);
        usize::try_from(by_rate.clamp(16 << 10, 256 << 10)).unwrap_or(256 << 10)
    }

    /// How much the connection may hold unsent: under a limit, what 10 ms carry, so that a stall can not pile up
    /// a burst; else `unlimited`.
    pub fn send_window_bytes(&self, unlimited: u64) -> u64 {
        match self.bandwidth.bytes_per_second() {
            Some(rate) => (rate / 100).clamp(64 << 10, unlimited),
            None => unlimited,
        }
    }

    /// What the counter will show once all that was handed over is out. Transport overhead is 1.5 % at the
    /// smallest packets allowed here; the counter corrects what the estimate misses.
    fn expected(&self, counter: u64) -> u64 {
        counter.max(self.handed_over + self.handed_over / 64)
    }

    fn charge(&mut self, bytes: u64) {
        self.charged += bytes;
        if let Some((long, short)) = &mut self.buckets {
            long.level -= i128::from(bytes) * NANOS;
            short.level -= i128::from(bytes) * NANOS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: u64 = 64 << 20;

    /// Sends as much as the limiter lets go, with stalls, and returns (time, total bytes) at each send.
    fn run(seconds: u64, stalls_ms: &[(u64, u64)], overhead: impl Fn(u64) -> u64) -> Vec<(Duration, u64)> {
        let mut limiter = Limiter::new(Duration::ZERO, Bandwidth::from_setting(RATE));
        let (mut now, mut payload, mut log) = (Duration::ZERO, 0_u64, vec![]);
        let mut stalls = stalls_ms.iter().copied().peekable();
        while now < Duration::from_secs(seconds) {
            if let Some((_, length)) = stalls.next_if(|(at, _)| now >= Duration::from_millis(*at)) {
                now += Duration::from_millis(length);
            }
            match limiter.ready(now, overhead(payload)) {
                Err(wait) => now += wait,
                Ok(()) => {
                    let chunk = limiter.chunk_bytes() as u64;
                    payload += chunk;
                    limiter.sent(chunk, overhead(payload));
                    log.push((now, overhead(payload)));
                    now += Duration::from_micros(50);
                }
            }
        }
        log
    }

    fn most_in_a_second(log: &[(Duration, u64)]) -> u64 {
        let mut begin = 0;
        let mut most = 0;
        for (i, (now, total)) in log.iter().enumerate() {
            while log[begin].0 + Duration::from_secs(1) < *now {
                begin += 1;
            }
            let before = if begin == 0 { 0 } else { log[begin - 1].1 };
            most = most.max(total - before);
            let _ = i;
        }
        most
    }

    #[test]
    fn the_average_and_the_peak_are_kept() {
        for overhead_percent in [0, 2, 4, 10] {
            let log = run(10, &[], |payload| payload + payload * overhead_percent / 100);
            let total = log.last().map_or(0, |(_, total)| *total);
            let want = RATE * 10;
            assert!(total.abs_diff(want) <= want * 3 / 100, "{overhead_percent} %: {total} of {want}");
            let most = most_in_a_second(&log);
            assert!(most <= RATE * 105 / 100, "{overhead_percent} %: {most} in one second");
        }
    }

    #[test]
    fn a_stall_is_made_up_for_without_a_burst() {
        let log = run(20, &[(1000, 200), (5000, 300), (9000, 100)], |p| p + p * 3 / 100);
        let total = log.last().map_or(0, |(_, total)| *total);
        let want = RATE * 20;
        assert!(total.abs_diff(want) <= want * 3 / 100, "{total} of {want}");
        assert!(most_in_a_second(&log) <= RATE * 105 / 100);
    }

    #[test]
    fn a_change_is_in_force_at_once() {
        let mut limiter = Limiter::new(Duration::ZERO, Bandwidth::UNLIMITED);
        limiter.sent(1 << 30, 1 << 30);
        assert_eq!(limiter.ready(Duration::from_secs(1), 1 << 30), Ok(()));
        limiter.set(Duration::from_secs(1), Bandwidth::from_setting(1 << 20));
        // 1 GiB under no limit is no debt under the new one.
        assert_eq!(limiter.ready(Duration::from_secs(1), 1 << 30), Ok(()));
        limiter.sent(1 << 20, 1 << 30);
        let wait = limiter.ready(Duration::from_secs(1), 1 << 30).expect_err("1 MiB is a second's worth");
        assert!(wait > Duration::from_millis(900), "{wait:?}");
        limiter.set(Duration::from_secs(1), Bandwidth::UNLIMITED);
        assert_eq!(limiter.ready(Duration::from_secs(1), 1 << 30), Ok(()));
    }

    proptest! {
        #[test]
        fn no_stalls_make_a_burst(stalls in prop::collection::vec((0_u64..8000, 1_u64..900), 0..6)) {
            let mut stalls = stalls;
            stalls.sort_unstable();
            let log = run(8, &stalls, |p| p + p * 3 / 100);
            prop_assert!(most_in_a_second(&log) <= RATE * 105 / 100);
        }
    }
}
