//! How fast a thread may write, and how fast the guest did. Knows no clock: time comes in as an argument.
//!
//! ```text
//!   Pace    time that has passed ─▶ credit ─▶ one page each time there is enough of it
//!   Meter   steps at times       ─▶ the achieved dirty rate over the last second of running
//! ```
//!
//! Always true: over any time the pages taken are those earned, to one page; credit never exceeds
//! [`CATCH_UP`], so a guest that was held up does not come back as a storm.

use std::collections::VecDeque;
use std::time::Duration;

use godwit_domain::PAGE_BYTES;
use godwit_domain::units::rate_of;

/// How much lost time is made up for. Longer than the kernel lets a runnable thread wait on a busy host.
const CATCH_UP: Duration = Duration::from_millis(200);
/// Shortest sleep between batches. Finer sleeping costs more in wake-ups than it smooths.
const NAP_MIN: Duration = Duration::from_millis(1);
/// Longest sleep of a slow guest, so that a new throttle or the end is noticed soon.
const NAP_MAX: Duration = Duration::from_millis(20);
/// What a page costs: credit is counted in bytes × nanoseconds × percent, so that nothing is ever rounded.
const PAGE_COST: u128 = PAGE_BYTES as u128 * 1_000_000_000 * 100;

/// A thread's right to write pages.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    credit: u128,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, credit: 0 }
    }

    /// Earns credit for time in which the guest ran, less the throttle's percentage.
    pub(super) fn earn(&mut self, elapsed: Duration, throttle_percent: u8) {
        let full = self.gain(CATCH_UP, 0).max(PAGE_COST);
        self.credit = self.credit.saturating_add(self.gain(elapsed, throttle_percent)).min(full);
    }

    /// Takes the credit for one page, if there is enough.
    pub(super) fn take_page(&mut self) -> bool {
        let Some(rest) = self.credit.checked_sub(PAGE_COST) else { return false };
        self.credit = rest;
        true
    }

    /// How long to sleep until there is credit for a page.
    pub(super) fn nap(&self, throttle_percent: u8) -> Duration {
        let per_nano = self.gain(Duration::from_nanos(1), throttle_percent);
        let nanos = PAGE_COST.saturating_sub(self.credit).checked_div(per_nano).unwrap_or(u128::MAX);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).clamp(NAP_MIN, NAP_MAX)
    }

    fn gain(&self, elapsed: Duration, throttle_percent: u8) -> u128 {
        let share = 100_u8.saturating_sub(throttle_percent);
        elapsed.as_nanos().saturating_mul(u128::from(self.bytes_per_second)).saturating_mul(u128::from(share))
    }
}

/// The rest that a throttled thread owes after a batch that left it behind its pace: there the processor, not
/// the pace, decides how much is written, and taking time away is all that slows the thread down.
pub(super) fn rest_after(busy: Duration, throttle_percent: u8) -> Duration {
    let percent = u32::from(throttle_percent.min(99));
    // A page fault that waited for the network is no work; the bound keeps it from being repaid as such.
    (busy * percent / (100 - percent)).min(CATCH_UP)
}

/// How often the meter is read.
pub(super) const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Samples kept: a second of them, and one to begin from.
const SAMPLES_MAX: usize = 11;

/// Where each thread was at some times of the guest's running.
#[derive(Debug, Default)]
pub(super) struct Meter(VecDeque<(Duration, Vec<u64>)>);

impl Meter {
    /// Notes where the threads are, after so much running. Time does not go back.
    pub(super) fn sample(&mut self, ran: Duration, steps: Vec<u64>) {
        if self.0.len() == SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back((ran, steps));
    }

    /// Bytes per second that each thread stored between the oldest sample and now.
    pub(super) fn stores(&self, ran: Duration, steps: &[u64]) -> Vec<u64> {
        let Some((then, before)) = self.0.front() else { return vec![0; steps.len()] };
        let elapsed = ran.saturating_sub(*then);
        let bytes = steps.iter().zip(before).map(|(now, before)| now.saturating_sub(*before) * PAGE_BYTES);
        bytes.map(|bytes| rate_of(bytes, elapsed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn taken(pace: &mut Pace) -> u64 {
        std::iter::from_fn(|| pace.take_page().then_some(())).count() as u64
    }

    #[test]
    fn the_pages_taken_are_those_earned() {
        for (rate, throttle, expected) in [
            (50 << 20, 0, 128_000),
            (50 << 20, 50, 64_000),
            (50 << 20, 99, 1280),
            (4096, 0, 10),
            (1000, 0, 2),
            (0, 0, 0),
        ] {
            let mut pace = Pace::new(rate);
            let mut sum = 0;
            for _ in 0..10_000 {
                pace.earn(MS, throttle);
                sum += taken(&mut pace);
            }
            assert_eq!(sum, expected, "rate {rate} throttle {throttle}");
        }
    }

    #[test]
    fn lost_time_is_made_up_for_to_a_bound() {
        let mut pace = Pace::new(1000 * PAGE_BYTES);
        pace.earn(Duration::from_millis(150), 0);
        assert_eq!(taken(&mut pace), 150);
        pace.earn(Duration::from_secs(3600), 0);
        assert_eq!(taken(&mut pace), 200);
        let mut slow = Pace::new(PAGE_BYTES);
        slow.earn(Duration::from_secs(3600), 0);
        assert_eq!(taken(&mut slow), 1, "a page is never out of reach");
        let mut fastest = Pace::new(u64::MAX);
        fastest.earn(Duration::MAX, 0);
        assert!(fastest.take_page());
    }

    #[test]
    fn a_nap_ends_when_a_page_is_due_within_bounds() {
        assert_eq!(Pace::new(100 * PAGE_BYTES).nap(0), 10 * MS);
        assert_eq!(Pace::new(100 * PAGE_BYTES).nap(50), 20 * MS);
        assert_eq!(Pace::new(1 << 40).nap(0), NAP_MIN);
        assert_eq!(Pace::new(0).nap(0), NAP_MAX);
    }

    #[test]
    fn a_throttled_thread_rests_for_its_share() {
        assert_eq!(rest_after(MS, 0), Duration::ZERO);
        assert_eq!(rest_after(MS, 50), MS);
        assert_eq!(rest_after(MS, 90), 9 * MS);
        assert_eq!(rest_after(100 * MS, 99), CATCH_UP);
        assert_eq!(rest_after(MS, 255), 99 * MS);
    }

    #[test]
    fn the_meter_tells_the_last_second_only() {
        let mut meter = Meter::default();
        assert_eq!(meter.stores(MS, &[5]), [0]);
        for tenth in 0..=30_u32 {
            // Two seconds at 10 pages a tenth, then one at 20.
            let steps = u64::from(tenth) * 10 + u64::from(tenth.saturating_sub(20)) * 10;
            meter.sample(SAMPLE_EVERY * tenth, vec![steps, 0]);
        }
        assert_eq!(meter.stores(SAMPLE_EVERY * 30, &[400, 0]), [200 * PAGE_BYTES, 0]);
    }
}
