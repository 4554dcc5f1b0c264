//! What a key takes, and who may set it. The tables are in `tests/vectors`.

use super::*;

#[test]
fn unset_inherits_and_an_explicit_zero_is_a_value() {
    let gib = 1 << 30;
    let mut overrides = Overrides::default();
    assert_eq!(overrides.effective(6 * gib).limits.completion_timeout, Some(Duration::from_secs(4800)));
    for text in ["completionTimeoutPerGiB=0", "progressTimeout=0", "maxDowntimeMs=50"] {
        overrides.set(text).expect(text);
    }
    overrides.set("bandwidthPerMigration=64Mi").expect("a quantity");
    let Settings { bandwidth, limits, .. } = overrides.effective(gib);
    assert_eq!((limits.completion_timeout, limits.progress_timeout), (None, None));
    assert_eq!(limits.downtime_max, Duration::from_millis(50));
    assert_eq!(bandwidth, Bandwidth::from_setting(64 << 20));
    let mut later = Overrides::default();
    later.set("completionTimeoutPerGiB=10").expect("a number");
    let both = later.above(overrides).effective(2 * gib).limits;
    assert_eq!(both.completion_timeout, Some(Duration::from_secs(20)));
    assert_eq!(both.downtime_max, Duration::from_millis(50));
}

#[test]
fn what_is_refused_is_named_with_its_rule_and_changes_nothing() {
    let mut overrides = Overrides::default();
    for (text, word) in [
        ("bandwidth", "key=value"),
        ("bandwidth=1", "no setting"),
        ("bandwidthPerMigration=64mi", "64mi"),
        ("maxDowntimeMs=0", "1 to 2000000"),
        ("maxDowntimeMs=2000001", "1 to 2000000"),
        ("progressTimeout=-1", "progressTimeout"),
        ("completionTimeoutPerGiB=1.5", "whole number"),
        ("network=a", "for the whole cluster"),
        ("allowPostCopy=yes", "true or false"),
        ("postCopyTrigger=late", "deadline or early"),
        ("priority=drain", "low, normal or high"),
    ] {
        let error = overrides.set(text).expect_err(text).to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
    assert_eq!(overrides, Overrides::default());
    assert!(Overrides { max_downtime_ms: Some(0), ..overrides }.check().is_err());
}
