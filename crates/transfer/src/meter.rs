//! How fast pages arrive and how fast the guest writes, measured from counts and times that are passed in.

use std::time::Duration;

use godwit_domain::units::{PAGE_BYTES, rate_of};

/// Shortest time that a rate is taken over: below it, scheduling noise is most of what one sees.
const WINDOW_MIN: Duration = Duration::from_millis(200);
/// Fewest bytes that a shorter time may give a rate for.
const SHORT_WINDOW_BYTES_MIN: u64 = 8 << 20;

/// Bytes per second over the last window in which there was something to count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter {
    since: Duration,
    bytes: u64,
    rate: u64,
    total_bytes: u64,
    busy: Duration,
}

impl Meter {
    pub(crate) fn new(now: Duration) -> Self {
        Self { since: now, bytes: 0, rate: 0, total_bytes: 0, busy: Duration::ZERO }
    }

    /// So many pages more.
    pub(crate) fn count(&mut self, now: Duration, pages: u64) {
        self.bytes += pages * PAGE_BYTES;
        self.total_bytes += pages * PAGE_BYTES;
        if now.saturating_sub(self.since) >= WINDOW_MIN {
            self.close(now);
        }
    }

    /// A stretch without work ends here: its time does not count.
    pub(crate) fn resume(&mut self, now: Duration) {
        self.since = now;
        self.bytes = 0;
    }

    /// A stretch of work ends here: take its rate, if it was large enough to have one.
    pub(crate) fn pause(&mut self, now: Duration) {
        if self.bytes >= SHORT_WINDOW_BYTES_MIN {
            self.close(now);
        }
    }

    /// The rate in bytes per second; that of all time while no window has closed; 0 if nothing was counted.
    pub(crate) fn rate(&self, now: Duration) -> u64 {
        if self.rate > 0 {
            return self.rate;
        }
        rate_of(self.total_bytes, self.busy + now.saturating_sub(self.since))
    }

    fn close(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.since);
        self.rate = rate_of(self.bytes, elapsed);
        self.busy += elapsed;
        self.resume(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_does_not_count() {
        let at = Duration::from_millis;
        let mut meter = Meter::new(at(0));
        assert_eq!(meter.rate(at(0)), 0);
        meter.count(at(100), 256);
        assert_eq!(meter.rate(at(100)), 10 << 20, "1 MiB in 100 ms, before any window closed");
        meter.count(at(200), 256);
        assert_eq!(meter.rate(at(200)), 10 << 20);
        meter.resume(at(5000));
        meter.count(at(5200), 1024);
        assert_eq!(meter.rate(at(5200)), 20 << 20);
    }
}
