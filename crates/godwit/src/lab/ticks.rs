//! What a guest's ticks say of a move: written by the runners themselves, read here by a third process.
//!
//! Always true: a tick that was written twice, on one node or two, counts as lost, as does one that was not written.

use godwit_guest::runner::Tick;

/// A guest's ticks around a move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TickReport {
    /// Numbers missing, and numbers that stand more than once.
    pub lost: u64,
    /// The longest time between two ticks, in nanoseconds.
    pub gap_ns_max: u64,
    /// How many there were.
    pub count: u64,
}

/// Looks at all ticks that a guest's runners wrote from `since_ns` on, in whatever order they are given. Gaps that end
/// after `until_ns` are not the move's: by then the guest is held still so that its memory can be compared.
pub fn report(ticks: &[Tick], since_ns: u64, until_ns: u64) -> TickReport {
    let mut seen: Vec<(u64, u64)> = ticks
        .iter()
        .filter(|tick| tick.monotonic_ns >= since_ns)
        .map(|tick| (tick.monotonic_ns, tick.tick))
        .collect();
    seen.sort_unstable();
    let gaps = seen.windows(2).filter(|pair| pair[1].0 <= until_ns).map(|pair| pair[1].0 - pair[0].0);
    let gap_ns_max = gaps.max().unwrap_or(0);
    let mut numbers: Vec<u64> = seen.iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    let written = numbers.len() as u64;
    numbers.dedup();
    let distinct = numbers.len() as u64;
    let span = match (numbers.first(), numbers.last()) {
        (Some(first), Some(last)) => last - first + 1,
        _ => 0,
    };
    TickReport { lost: (span - distinct) + (written - distinct), gap_ns_max, count: written }
}

/// This host's monotonic clock, the one that ticks carry.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(tick: u64, node: &str, ms: u64) -> Tick {
        Tick { tick, node: node.parse().expect("a name"), monotonic_ns: ms * 1_000_000 }
    }

    #[test]
    fn a_clean_move_loses_nothing_and_shows_its_gap() {
        let ticks = [tick(3, "b", 50), tick(1, "a", 1), tick(2, "a", 2), tick(4, "b", 51)];
        let report = report(&ticks, 0, u64::MAX);
        assert_eq!(report, TickReport { lost: 0, gap_ns_max: 48_000_000, count: 4 });
    }

    #[test]
    fn a_gap_and_a_repeat_are_losses() {
        let twice = [tick(1, "a", 1), tick(2, "a", 2), tick(2, "b", 3), tick(3, "b", 4)];
        assert_eq!(report(&twice, 0, u64::MAX).lost, 1);
        let gap = [tick(1, "a", 1), tick(4, "b", 9)];
        assert_eq!(report(&gap, 0, u64::MAX).lost, 2);
        assert_eq!(report(&gap, 0, 5_000_000).gap_ns_max, 0);
        assert_eq!(report(&gap, 5_000_000, u64::MAX), TickReport { lost: 0, gap_ns_max: 0, count: 1 });
        assert_eq!(report(&[], 0, u64::MAX), TickReport::default());
    }
}
