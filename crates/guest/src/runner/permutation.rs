//! Seeded shuffles of `0..n` that need no table and run backwards: a Feistel network with cycle walking.
//!
//! ```text
//!   i ─▶ split into two halves ─▶ 4 rounds: one half is xored with a hash of the other ─▶ join
//!        ▲                                                                             │
//!        └──────────────── outside 0..n? once more ("cycle walking") ◀─────────────────┘
//! ```
//!
//! Always true: [`Permutation::apply`] maps `0..n` onto itself one to one, and [`Permutation::invert`] undoes it.
//! The network permutes the next power of two, below `2n`, so the walk takes two turns or fewer on average; it
//! ends because the cycle that starts inside `0..n` must come back to it.

/// 2^64 divided by the golden ratio: the step of splitmix64, whose outputs for consecutive inputs look unrelated.
pub(super) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// Two rounds for each half. Fewer leave neighbours visibly together; nobody attacks this.
const ROUNDS: u64 = 4;

/// The finish of splitmix64: one to one, and each input bit sways each output bit.
pub(super) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A key for one purpose out of a key for many.
pub(super) const fn subkey(key: u64, purpose: u64) -> u64 {
    mix(key ^ mix(purpose.wrapping_add(GOLDEN)))
}

/// A shuffle of `0..n`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permutation {
    key: u64,
    n: u32,
    left_bits: u32,
    right_bits: u32,
}

impl Permutation {
    /// The shuffle of `0..n` that belongs to a key.
    pub(super) const fn new(key: u64, n: u32) -> Self {
        let bits = if n < 2 { 0 } else { 32 - (n - 1).leading_zeros() };
        Self { key, n, left_bits: bits / 2, right_bits: bits - bits / 2 }
    }

    /// Where `i` goes.
    ///
    /// # Panics
    /// If `i` is not below `n`: the walk would be that of another cycle, which may never come inside.
    pub(super) fn apply(&self, i: u32) -> u32 {
        self.walk(i, |network, i| (0..ROUNDS).fold(i, |i, round| network.round(round, i)))
    }

    /// What goes to `i`.
    ///
    /// # Panics
    /// As [`Self::apply`].
    pub(super) fn invert(&self, i: u32) -> u32 {
        self.walk(i, |network, i| (0..ROUNDS).rev().fold(i, |i, round| network.round(round, i)))
    }

    fn walk(&self, i: u32, once: impl Fn(&Self, u32) -> u32) -> u32 {
        assert!(i < self.n, "{i} is not one of the first {} numbers", self.n);
        let mut at = once(self, i);
        while at >= self.n {
            at = once(self, at);
        }
        at
    }

    /// One round. It undoes itself, because the half that is hashed stays as it is.
    fn round(&self, round: u64, value: u32) -> u32 {
        // As wide numbers: a shift by 32 is an error in a narrow one, and the right half of nothing has 0 bits.
        let value = u64::from(value);
        let right_mask = (1_u64 << self.right_bits) - 1;
        let left_mask = (1_u64 << self.left_bits) - 1;
        let (left, right) = (value >> self.right_bits, value & right_mask);
        let key = self.key.wrapping_add(round.wrapping_mul(GOLDEN));
        let (left, right) = if round.is_multiple_of(2) {
            (left, right ^ (mix(key ^ left) & right_mask))
        } else {
            (left ^ (mix(key ^ right) & left_mask), right)
        };
        ((left << self.right_bits | right) & 0xffff_ffff) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_is_met_once_and_found_again(key: u64, n in 1_u32..3000) {
            let shuffle = Permutation::new(key, n);
            let mut met = vec![false; n as usize];
            for i in 0..n {
                let to = shuffle.apply(i);
                prop_assert!(!std::mem::replace(&mut met[to as usize], true), "{} twice", to);
                prop_assert_eq!(shuffle.invert(to), i);
            }
        }

        #[test]
        fn the_greatest_sizes_come_back_too(key: u64, n in (u32::MAX - 5)..=u32::MAX, i in 0..u32::MAX - 5) {
            let shuffle = Permutation::new(key, n);
            prop_assert_eq!(shuffle.invert(shuffle.apply(i)), i);
        }
    }

    #[test]
    fn another_key_is_another_order() {
        let order = |key| (0..100).map(|i| Permutation::new(key, 100).apply(i)).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
        assert_ne!(order(1), (0..100).collect::<Vec<_>>());
    }
}
