//! How long a voter waits for a leader before it asks to be one: a function of its rank, a seed and the round.
//!
//! Always true: two voters of one group never wait equally long in one round, as long as there are ticks enough.

/// Election timeouts.
#[derive(Debug)]
pub(super) struct Timeouts {
    pub(super) rank: usize,
    pub(super) voters: usize,
    pub(super) base: usize,
    pub(super) seed: u64,
    /// Counts this voter's elections.
    pub(super) round: usize,
}

impl Timeouts {
    /// Between `base` and twice that: a slot of its own for each rank, rotating, and chance within it.
    pub(super) fn ticks(&self) -> usize {
        let voters = self.voters.max(1);
        let width = (self.base / voters).max(1);
        let slot = (self.rank + self.round) % voters;
        let mixed = xxhash_rust::xxh3::xxh3_64_with_seed(&self.round.to_le_bytes(), self.seed);
        let within = usize::try_from(mixed % width as u64).unwrap_or_default();
        self.base + (slot * width + within).min(self.base - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_voters_differ_and_stay_in_range() {
        for (voters, base) in [(3, 10), (5, 10), (5, 4), (3, 20)] {
            for round in 0..50 {
                let ticks: Vec<usize> = (0..voters)
                    .map(|rank| Timeouts { rank, voters, base, seed: rank as u64 * 7, round }.ticks())
                    .collect();
                let mut apart = ticks.clone();
                apart.sort_unstable();
                apart.dedup();
                assert!(ticks.iter().all(|ticks| (base..2 * base).contains(ticks)), "{ticks:?}");
                assert!(base < voters || apart.len() == voters, "{ticks:?}");
            }
        }
    }
}
