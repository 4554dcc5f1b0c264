//! Counts as people read them.
//!
//! Always true: whole numbers all the way, so that what is shown does not depend on how a float rounds; times are UTC.

/// Bytes: `1023 B`, `1.5 KiB`, `104.2 MiB`.
pub fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit_bytes = 1_u128;
    let mut name = "B";
    for unit in units {
        if u128::from(count) < unit_bytes * 1024 {
            break;
        }
        unit_bytes *= 1024;
        name = unit;
    }
    if unit_bytes == 1 {
        return format!("{count} B");
    }
    let tenths = (u128::from(count) * 10 + unit_bytes / 2) / unit_bytes;
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// Bytes per second.
pub fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// Milliseconds: `250 ms`, `12.3 s`, `4 min 05 s`, `2 h 10 min`, `3 d 04 h`.
pub fn millis(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds}.{} s", ms % 1000 / 100),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Microseconds: as [`millis`], and below a second with three digits behind the point.
pub fn micros(us: u64) -> String {
    if us < 1_000_000 { format!("{}.{:03} ms", us / 1000, us % 1000) } else { millis(us / 1000) }
}

/// Milliseconds since the Unix epoch as ISO 8601 in UTC: `2026-07-01T12:00:00.000Z`.
pub fn utc(ms: u64) -> String {
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = date(days);
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, milli) = (of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// The date of a day since the Unix epoch. Years are counted from March, so that the leap day is a year's last: 400 of
/// them have 146,097 days, and its months have 153 days in five.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_for_people() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 30, "1.0 GiB"),
            (6 << 40, "6.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(rate(64 << 20), "64.0 MiB/s");
    }

    #[test]
    fn durations_are_for_people() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (12_345, "12.3 s"),
            (245_000, "4 min 05 s"),
            (7_800_000, "2 h 10 min"),
            (273_600_000, "3 d 04 h"),
        ] {
            assert_eq!(millis(ms), text);
        }
        assert_eq!((micros(1234).as_str(), micros(12_345_678).as_str()), ("1.234 ms", "12.3 s"));
        assert!(!millis(u64::MAX).is_empty() && !micros(u64::MAX).is_empty());
    }

    #[test]
    fn times_are_utc() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_798_761_600_000, "2027-01-01T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(ms), text);
        }
        assert!(!utc(u64::MAX).is_empty());
    }
}
