//! Deadlines: seconds per GiB, times the bytes that are moved.

use std::time::Duration;

use godwit_domain::precopy::{GaveUp, judge_time};
use godwit_domain::{Overrides, Quantity};

const GIB: u64 = 1 << 30;

/// A deadline in seconds as the rules print it, and in whole milliseconds.
type Expected = (&'static str, u64);

/// Size, then the deadline at 150 and at 800.
const DEADLINES: &[(&str, Expected, Expected)] = &[
    ("64Mi", ("9.375", 9_375), ("50", 50_000)),
    ("953Mi", ("139.6", 139_599), ("744.5", 744_531)),
    ("954Mi", ("139.7", 139_746), ("745.3", 745_312)),
    ("1Gi", ("150", 150_000), ("800", 800_000)),
    ("4Gi", ("600", 600_000), ("3200", 3_200_000)),
    ("6Gi", ("900", 900_000), ("4800", 4_800_000)),
    ("8Gi", ("1200", 1_200_000), ("6400", 6_400_000)),
    ("64Gi", ("9600", 9_600_000), ("51200", 51_200_000)),
];

fn bytes_of(size: &str) -> u64 {
    size.parse::<Quantity>().expect(size).bytes()
}

fn deadline(seconds_per_gib: u64, bytes: u64) -> Option<Duration> {
    let overrides = Overrides { completion_timeout_per_gib: Some(seconds_per_gib), ..Overrides::default() };
    overrides.effective(bytes).limits.completion_timeout
}

#[test]
fn a_deadline_is_seconds_per_gib_times_size() {
    for (size, at_150, at_800) in DEADLINES {
        for (per_gib, (printed, millis)) in [(150, at_150), (800, at_800)] {
            let it = deadline(per_gib, bytes_of(size)).expect("a deadline");
            assert_eq!(it, Duration::from_millis(*millis), "{size} at {per_gib}");
            let decimals = printed.split_once('.').map_or(0, |(_, decimals)| decimals.len());
            assert_eq!(format!("{:.decimals$}", it.as_secs_f64()), *printed, "{size} at {per_gib}");
        }
    }
}

#[test]
fn it_is_800_unless_set() {
    for (size, _, (_, millis)) in DEADLINES {
        let unset = Overrides::default().effective(bytes_of(size)).limits.completion_timeout;
        assert_eq!(unset, Some(Duration::from_millis(*millis)), "{size}");
    }
}

#[test]
fn there_is_no_floor_and_no_rounding_to_gib() {
    for (per_gib, bytes, millis) in [
        (1, GIB, 1_000),
        (1, GIB / 4, 250),
        (150, 1 << 20, 146),
        (800, 4096, 3),
        (800, GIB + 1, 800_000),
        (800, GIB + (4 << 20), 803_125),
        (i32::MAX.unsigned_abs().into(), 64 * GIB, 137_438_953_408_000),
    ] {
        assert_eq!(deadline(per_gib, bytes), Some(Duration::from_millis(millis)), "{bytes} at {per_gib}");
    }
}

#[test]
fn zero_is_no_deadline_at_any_size() {
    for (size, ..) in DEADLINES {
        assert_eq!(deadline(0, bytes_of(size)), None, "{size}");
        let overrides = Overrides { completion_timeout_per_gib: Some(0), ..Overrides::default() };
        let century = Duration::from_secs(100 * 365 * 86_400);
        assert_eq!(judge_time(&overrides.effective(bytes_of(size)).limits, century, Duration::ZERO), None);
    }
}

#[test]
fn local_disks_count_as_memory_does() {
    for (memory, disks, per_gib, seconds) in [
        ("4Gi", "2Gi", 800, 4800),
        ("1Gi", "63Gi", 150, 9600),
        ("6Gi", "0", 800, 4800),
        ("6Gi", "512Mi", 800, 5200),
    ] {
        let at = deadline(per_gib, bytes_of(memory) + bytes_of(disks));
        assert_eq!(at, Some(Duration::from_secs(seconds)), "{memory} and {disks} of disks at {per_gib}");
    }
}

#[test]
fn it_passes_at_its_millisecond_and_not_before() {
    let limits = Overrides { completion_timeout_per_gib: Some(150), ..Overrides::default() }
        .effective(bytes_of("64Mi"))
        .limits;
    let at = Duration::from_millis(9_375);
    assert_eq!(judge_time(&limits, at - Duration::from_millis(1), Duration::ZERO), None);
    assert_eq!(judge_time(&limits, at, Duration::ZERO), Some(GaveUp::CompletionTimeout(at)));
}
