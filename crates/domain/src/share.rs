//! One node's bandwidth, shared between the migrations that leave it.
//!
//! ```text
//!   budget 100, limits 10, 60, none   ─▶   10, 45, 45       who needs less leaves the rest to the others
//! ```
//!
//! Always true: nobody gets more than its own limit; who gets less than another is at its limit (max-min); the shares
//! together do not exceed the budget, unless it is below a byte per second for each.

use crate::units::Bandwidth;

/// Max-min fair shares of `budget` between migrations with these limits of their own, in their order. A byte that can not
/// be split goes to those that come first. A share is at least 1 byte per second, since 0 would mean "no limit".
pub fn max_min(budget: Bandwidth, caps: &[Bandwidth]) -> Vec<Bandwidth> {
    let Some(budget) = budget.bytes_per_second() else { return caps.to_vec() };
    let cap_of = |at: usize| caps[at].bytes_per_second().unwrap_or(u64::MAX);
    let mut order: Vec<usize> = (0..caps.len()).collect();
    // The most modest first, so that what they leave is known when the others share; the last to come first among
    // equals, so that what is rounded down there is left to those that came first.
    order.sort_by_key(|at| (cap_of(*at), std::cmp::Reverse(*at)));
    let (mut shares, mut left, mut others) =
        (vec![Bandwidth::UNLIMITED; caps.len()], budget, order.len() as u64);
    for at in order {
        let share = (left / others).min(cap_of(at)).max(1);
        shares[at] = Bandwidth::from_setting(share);
        left = left.saturating_sub(share);
        others -= 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(caps: &[u64]) -> Vec<Bandwidth> {
        caps.iter().map(|cap| Bandwidth::from_setting(*cap)).collect()
    }

    fn shares(budget: u64, caps: &[u64]) -> Vec<u64> {
        let shares = max_min(Bandwidth::from_setting(budget), &limits(caps));
        shares.into_iter().map(|share| share.bytes_per_second().unwrap_or(0)).collect()
    }

    #[test]
    fn who_needs_less_leaves_the_rest_to_the_others() {
        for (budget, caps, expected, why) in [
            (100, vec![], vec![], "nobody"),
            (100, vec![0], vec![100], "one without a limit gets all"),
            (100, vec![30], vec![30], "one with a limit gets no more"),
            (100, vec![0, 0], vec![50, 50], "equal shares"),
            (100, vec![10, 60, 0], vec![10, 45, 45], "the modest one leaves 5 to each"),
            (100, vec![0, 60, 10], vec![45, 45, 10], "in their order"),
            (100, vec![10, 20, 30], vec![10, 20, 30], "there is enough for all"),
            (100, vec![0, 0, 0], vec![34, 33, 33], "the odd byte goes to the first"),
            (2, vec![0, 0, 0], vec![1, 1, 1], "never 0, which would mean no limit"),
            (0, vec![0, 7], vec![0, 7], "no budget: each has its own limit"),
            (u64::MAX, vec![0, 0], vec![1 << 63, (1 << 63) - 1], "no overflow"),
        ] {
            assert_eq!(shares(budget, &caps), expected, "{why}");
        }
    }

    proptest! {
        #[test]
        fn shares_are_max_min(budget in 1_u64..2000, caps in prop::collection::vec(0_u64..300, 0..12)) {
            let shares = shares(budget, &caps);
            let cap_of = |cap: u64| if cap == 0 { u64::MAX } else { cap };
            let highest = shares.iter().copied().max().unwrap_or(0);
            for (share, cap) in shares.iter().zip(&caps) {
                prop_assert!(*share >= 1 && *share <= cap_of(*cap), "{share} of {cap}");
                // A byte that can not be split makes the only difference.
                prop_assert!(*share == cap_of(*cap) || *share + 1 >= highest, "{share} of {cap}: {shares:?}");
            }
            let (sum, wanted) = (shares.iter().sum::<u64>(), caps.iter().fold(0_u64, |sum, cap| sum.saturating_add(cap_of(*cap))));
            let all = budget.min(wanted).max(caps.len() as u64);
            prop_assert_eq!(sum, all, "all of it is used, and no more: {:?}", shares);
        }
    }
}
