//! How much a guest writes in how long: the busiest and the quietest that was seen lately.
//!
//! ```text
//!   bytes ▲           ┌──── busiest      each scan is a point: so long, so many different pages; each round's scans are
//!         │      ┌────┘                  further ones, longer. Between points: the middle. Below the first: the bend of a set
//!         │   ╱──┘  ┌────── quietest     that is written at random, its size from how often two scans meet (mark and
//!         │  ╱ ─────┘                    recapture). Beyond the last: as it went on last, or not at all.
//!         └──────────────▶ time
//! ```
//!
//! Always true: it never falls with time; the quietest is at or below what was ever seen of a window as long.

use std::time::Duration;

use super::Scan;
use crate::units::PAGE_BYTES;

/// Windows are told apart by the power of two of their milliseconds: up to 17 minutes.
const OCTAVES: usize = 21;
/// A window this short says more about when the guest's threads slept than about what they do.
pub(super) const WINDOW_MIN: Duration = Duration::from_millis(5);
/// Fewer pages than this met in two scans by chance.
const MET_PAGES_MIN: u64 = 16;

/// A window, and the bytes of different pages written in it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    seconds: f64,
    bytes: f64,
}

impl Point {
    fn rate(self) -> f64 {
        self.bytes / self.seconds
    }
}

/// What some stretch of the copy has shown.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    busiest: [Option<Point>; OCTAVES],
    quietest: [Option<Point>; OCTAVES],
    /// The shortest time in which a set of pages is written again, in seconds, as scans so far apart see it; infinite: none
    /// is.
    bend: [f64; OCTAVES],
}

impl Default for Seen {
    fn default() -> Self {
        Self { busiest: [None; OCTAVES], quietest: [None; OCTAVES], bend: [f64::INFINITY; OCTAVES] }
    }
}

impl Seen {
    /// `alone`: what was written in the round before this scan is of no use.
    pub(super) fn note(&mut self, scan: &Scan, alone: bool) {
        self.point(scan.since_last, scan.written);
        if alone {
            return;
        }
        self.point(scan.since_round_began, scan.unique);
        if let (Some(bend), Some(kept)) = (bend_of(scan), self.bend.get_mut(octave(scan.since_last))) {
            *kept = kept.min(bend);
        }
    }

    fn point(&mut self, window: Duration, pages: u64) {
        if window < WINDOW_MIN {
            return;
        }
        let point = Point { seconds: window.as_secs_f64(), bytes: float(pages * PAGE_BYTES) };
        if let Some(kept) = self.busiest.get_mut(octave(window)) {
            *kept = kept.filter(|kept| kept.rate() >= point.rate()).or(Some(point));
        }
        if let Some(kept) = self.quietest.get_mut(octave(window)) {
            *kept = kept.filter(|kept| kept.rate() <= point.rate()).or(Some(point));
        }
    }

    fn with(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for (kept, new) in both.busiest.iter_mut().zip(other.busiest) {
            *kept = [*kept, new].into_iter().flatten().max_by(|a, b| a.rate().total_cmp(&b.rate()));
        }
        for (kept, new) in both.quietest.iter_mut().zip(other.quietest) {
            *kept = [*kept, new].into_iter().flatten().min_by(|a, b| a.rate().total_cmp(&b.rate()));
        }
        for (kept, new) in both.bend.iter_mut().zip(other.bend) {
            *kept = kept.min(new);
        }
        both
    }

    /// The most that was written, with what `earlier` has shown.
    pub(super) fn busiest(&self, earlier: &Self, guest_bytes: u64) -> Curve {
        let both = self.with(earlier);
        let mut points: Vec<Point> = both.busiest.iter().copied().flatten().collect();
        points.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let mut most = 0.0;
        for point in &mut points {
            most = f64::max(most, point.bytes);
            point.bytes = most;
        }
        // What longer windows say of it is more of a guess, the more so the longer they are.
        let first = both.busiest.iter().position(Option::is_some);
        let bend = first.and_then(|first| both.bend.get(first).copied()).unwrap_or(f64::INFINITY);
        Curve { points, bend, goes_on: true, guest_bytes: float(guest_bytes) }
    }

    /// The least that was written, with what `earlier` has shown.
    pub(super) fn quietest(&self, earlier: &Self, guest_bytes: u64) -> Curve {
        let both = self.with(earlier);
        let mut points: Vec<Point> = both.quietest.iter().copied().flatten().collect();
        points.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let mut least = f64::INFINITY;
        for point in points.iter_mut().rev() {
            least = f64::min(least, point.bytes);
            point.bytes = least;
        }
        Curve { points, bend: f64::INFINITY, goes_on: false, guest_bytes: float(guest_bytes) }
    }
}

fn octave(window: Duration) -> usize {
    usize::try_from(window.as_millis().max(1).ilog2()).unwrap_or(OCTAVES).min(OCTAVES - 1)
}

/// A set of `set` pages that are written at random, each about once in `bend` seconds, has written
/// `set × (1 − e^(−t/bend))` different ones after t. Of the pages that a scan reports the share `before / set` was
/// known before: that gives the set, and what one scan found in it gives the bend.
fn bend_of(scan: &Scan) -> Option<f64> {
    let new = scan.unique.saturating_sub(scan.unique_before);
    let known_before = scan.written.saturating_sub(new);
    if known_before < MET_PAGES_MIN || scan.since_last < WINDOW_MIN {
        return None;
    }
    let set = float(scan.unique_before) * float(scan.written) / float(known_before);
    let seconds = scan.since_last.as_secs_f64();
    // A set that each scan finds whole is written again in no time: a sixteenth of the window is short enough.
    let share = (float(scan.written) / set.max(1.0)).min(1.0);
    Some((-seconds / (-share).ln_1p()).max(seconds / 16.0)).filter(|bend| bend.is_finite())
}

/// Bytes of different pages written within a time.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    points: Vec<Point>,
    bend: f64,
    /// Whether more is written in longer than was ever watched.
    goes_on: bool,
    guest_bytes: f64,
}

impl Curve {
    pub(super) fn within(&self, seconds: f64) -> f64 {
        let Some(first) = self.points.first() else { return 0.0 };
        if seconds <= first.seconds {
            return first.bytes * self.bent(seconds) / self.bent(first.seconds);
        }
        let next = self.points.partition_point(|point| point.seconds < seconds);
        let before = |n: usize| next.checked_sub(n).and_then(|index| self.points.get(index));
        let bytes = match (before(2), before(1), self.points.get(next)) {
            (_, Some(from), Some(to)) if !self.goes_on => along(*from, *to, seconds),
            // The truth is between the line and the least bent curve that goes through both.
            (_, Some(from), Some(to)) => {
                f64::midpoint(along(*from, *to, seconds), to.bytes.min(from.rate() * seconds))
            }
            (_, Some(last), None) if !self.goes_on => last.bytes,
            (Some(from), Some(to), None) => along(*from, *to, seconds),
            (None, _, _) | (_, None, _) => first.bytes * self.bent(seconds) / self.bent(first.seconds),
        };
        bytes.min(self.guest_bytes)
    }

    /// Whether it is known how much is written in a time as short as this: from a window about as short, or from a bend.
    pub(super) fn knows(&self, seconds: f64) -> bool {
        self.bend.is_finite() || self.points.first().is_some_and(|first| first.seconds <= seconds * 1.5)
    }

    /// The highest rate over windows of so many seconds or more: what must be sent in that time to keep up.
    pub(super) fn rate_over(&self, seconds: f64) -> f64 {
        let longer = self.points.iter().filter(|point| point.seconds > seconds).map(|point| point.rate());
        longer.fold(self.within(seconds) / seconds, f64::max)
    }

    fn bent(&self, seconds: f64) -> f64 {
        if self.bend.is_finite() { -(-seconds / self.bend).exp_m1() } else { seconds }
    }
}

fn along(from: Point, to: Point, seconds: f64) -> f64 {
    from.bytes + (to.bytes - from.bytes) * (seconds - from.seconds) / (to.seconds - from.seconds)
}

/// Counts here are far below 2^53.
pub(super) fn float(count: u64) -> f64 {
    count as f64
}
