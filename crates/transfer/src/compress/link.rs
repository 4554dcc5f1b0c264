//! How fast the link is, as the sender of batches sees it, and a cell in which it tells the reader.
//!
//! Always true: a link is measured only while it is full, that is while the sender holds a batch that the link has no
//! room for yet, or the rate limit none. A sender that never waits for room measures nothing, and nothing is packed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A new measurement counts for an eighth.
const WEIGHT: u64 = 8;
/// Thousandths by which the link's rate is taken to rise with each batch that the sender had to wait for: how a link
/// that has become faster is found out.
const DRIFT_PER_MILLE: u64 = 10;
/// Fewer bytes say nothing of a link: a batch of zero pages is a head alone.
const MEASURED_BYTES_MIN: u64 = 64 << 10;

/// How fast the link is. Under a rate limit that is at most the limit.
#[derive(Debug, Default)]
pub(crate) struct LinkMeter {
    bytes: u64,
    ns: u64,
    rate: Option<u64>,
}

impl LinkMeter {
    /// So many bytes were handed to the link, which took so long. If the sender had to wait for them (`starved`), the
    /// link was not full: it can do what it could when it last was, and perhaps more. Under `limit` it can not do more
    /// than that. Bytes per second; `None` while nothing is known.
    pub(crate) fn sent(
        &mut self,
        bytes: u64,
        took: Duration,
        starved: bool,
        limit: Option<u64>,
    ) -> Option<u64> {
        if bytes < MEASURED_BYTES_MIN {
            // Most of what that took was not the link.
        } else if starved {
            self.rate = self.rate.map(|rate| rate.saturating_add(rate / 1000 * DRIFT_PER_MILLE));
        } else {
            let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.bytes = (self.bytes / WEIGHT * (WEIGHT - 1)).saturating_add(bytes);
            self.ns = (self.ns / WEIGHT * (WEIGHT - 1)).saturating_add(ns);
            let per_second = u128::from(self.bytes) * 1_000_000_000 / u128::from(self.ns.max(1));
            self.rate = Some(u64::try_from(per_second).unwrap_or(u64::MAX));
        }
        if let Some(limit) = limit {
            self.rate = Some(self.rate.map_or(limit, |rate| rate.min(limit)));
        }
        self.rate
    }
}

/// The link's rate as the sender tells it to the reader.
#[derive(Debug, Default)]
pub(crate) struct LinkRate(AtomicU64);

impl LinkRate {
    /// Bytes per second; `None` before the link was full for the first time.
    pub(crate) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    pub(crate) fn set(&self, rate: Option<u64>) {
        self.0.store(rate.unwrap_or(0), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_link_is_measured_only_while_it_is_full() {
        let ms = Duration::from_millis;
        let mut meter = LinkMeter::default();
        assert_eq!(meter.sent(MIB, ms(1), true, None), None, "nothing is known of a link that waits");
        assert_eq!(meter.sent(MIB, ms(10), false, None), Some(100 * MIB));
        let after = meter.sent(MIB, Duration::from_nanos(1), true, None).expect("known");
        assert!(after > 100 * MIB && after < 102 * MIB, "{after}");
        assert_eq!(meter.sent(MIB, ms(10), true, Some(64 * MIB)), Some(64 * MIB));
        assert_eq!(LinkMeter::default().sent(0, ms(0), true, Some(5)), Some(5));
        for _ in 0..100 {
            meter.sent(MIB, ms(2), false, None);
        }
        for _ in 0..100 {
            meter.sent(100, ms(1), false, None);
        }
        let faster = meter.sent(MIB, ms(2), false, None).expect("known");
        assert!(faster.abs_diff(500 * MIB) < MIB, "{faster}");
    }

    #[test]
    fn what_is_told_is_what_is_heard() {
        let rate = LinkRate::default();
        assert_eq!(rate.get(), None);
        rate.set(Some(7));
        assert_eq!(rate.get(), Some(7));
        rate.set(None);
        assert_eq!(rate.get(), None);
    }
}
