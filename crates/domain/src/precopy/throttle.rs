//! Auto-converge: a guest that writes faster than its pages are sent is given less time, step by step.
//!
//! ```text
//!   round end: fits, or the rest has halved ─▶ stays as it is
//!              neither, for the 2nd time in a row ─▶ 20 %
//!              neither, and throttled already     ─▶ 10 % more, up to 80 %
//! ```
//!
//! Always true: without permission it is 0; it never falls while the copy goes on, so that a guest that was slowed down
//! enough is not let loose again; it never exceeds [`PERCENT_MAX`].

use super::{Limits, Standing};

/// The first step, in percent of the time: as in QEMU, whose users know it. Less is lost in a guest's own ups and downs.
pub const PERCENT_FIRST: u8 = 20;
/// Each further step, as in QEMU.
pub const PERCENT_STEP: u8 = 10;
/// The most that is taken. QEMU goes to 99, where a guest does not answer its own watchdogs any more; here a fifth of its
/// time is left to it, and what that does not bring down the deadline decides.
pub const PERCENT_MAX: u8 = 80;

/// Rounds in a row that must bring nothing before the first step: one may be a moment's burst.
const FRUITLESS_ROUNDS: u8 = 2;

/// How far a guest is throttled, and what led to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttle {
    percent: u8,
    fruitless: u8,
}

impl Throttle {
    /// Percent of the time that is taken from the guest's writers, 0 to [`PERCENT_MAX`].
    pub fn percent(self) -> u8 {
        self.percent
    }

    /// At the end of a round.
    #[must_use]
    pub fn after_round(self, limits: &Limits, now: &Standing) -> Self {
        if !limits.allowed.throttle {
            return Self::default();
        }
        if now.still_halves() || now.fits(limits) {
            return Self { fruitless: 0, ..self };
        }
        let fruitless = self.fruitless.saturating_add(1);
        let percent = match self.percent {
            0 if fruitless < FRUITLESS_ROUNDS => 0,
            0 => PERCENT_FIRST,
            percent => percent.saturating_add(PERCENT_STEP).min(PERCENT_MAX),
        };
        Self { percent, fruitless }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::precopy::Allowed;
    use crate::units::Round;

    const MIB: u64 = 1 << 20;

    fn limits(throttle: bool) -> Limits {
        Limits { allowed: Allowed { throttle, ..Allowed::default() }, ..Limits::defaults_for(1 << 30) }
    }

    /// At 100 MiB/s 30 MiB fit into 300 ms.
    fn standing(left_mib: u64, before_mib: u64) -> Standing {
        Standing {
            round: Round(3),
            left_bytes: left_mib * MIB,
            left_before_bytes: before_mib * MIB,
            send_rate: 100 * MIB,
            fixed: Duration::ZERO,
        }
    }

    fn percents(rounds: &[(u64, u64)]) -> Vec<u8> {
        let step = |throttle: &mut Throttle, (left, before): &(u64, u64)| {
            *throttle = throttle.after_round(&limits(true), &standing(*left, *before));
            Some(throttle.percent())
        };
        rounds.iter().scan(Throttle::default(), step).collect()
    }

    #[test]
    fn steps_follow_rounds_that_bring_nothing() {
        const BAD: (u64, u64) = (200, 200);
        const HALVED: (u64, u64) = (100, 200);
        const FITS: (u64, u64) = (30, 31);
        for (rounds, expected, why) in [
            (vec![BAD], vec![0], "one may be a burst"),
            (vec![BAD, BAD], vec![0, 20], "two in a row"),
            (vec![BAD, HALVED, BAD, BAD], vec![0, 0, 0, 20], "not in a row"),
            (vec![BAD, FITS, BAD], vec![0, 0, 0], "what fits is fruit enough"),
            (
                vec![BAD, BAD, BAD, HALVED, BAD],
                vec![0, 20, 30, 30, 40],
                "each such round once it is throttled",
            ),
            (vec![(101, 200), (101, 200)], vec![0, 20], "a little less than half is not half"),
            (vec![BAD; 10], vec![0, 20, 30, 40, 50, 60, 70, 80, 80, 80], "bounded"),
        ] {
            assert_eq!(percents(&rounds), expected, "{why}");
        }
    }

    #[test]
    fn a_permission_that_is_withdrawn_counts_at_once() {
        let bad = standing(200, 200);
        let mut throttle = Throttle::default();
        for _ in 0..4 {
            throttle = throttle.after_round(&limits(true), &bad);
        }
        assert_eq!(throttle.percent(), 40);
        assert_eq!(throttle.after_round(&limits(false), &bad), Throttle::default());
    }

    proptest! {
        #[test]
        fn it_never_falls_and_never_exceeds_its_bound(rounds in prop::collection::vec((0_u64..400, 0_u64..400), 0..60)) {
            let seen = percents(&rounds);
            prop_assert!(seen.is_sorted(), "{seen:?}");
            prop_assert!(seen.iter().all(|percent| *percent <= PERCENT_MAX), "{seen:?}");
        }
    }
}
