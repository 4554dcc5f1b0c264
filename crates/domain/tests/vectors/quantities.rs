//! Quantities: what is read, to the byte, and what is refused.

use godwit_domain::Quantity;
use godwit_domain::quantity::QuantityError;
use godwit_domain::settings::{Given, Overrides, Setting};
use proptest::prelude::*;

/// Where Kubernetes' quantities end.
const GREATEST: u64 = 9_223_372_036_854_775_807;

const TAKEN: &[(&str, u64)] = &[
    ("64Mi", 67_108_864),
    ("+64Mi", 67_108_864),
    ("0", 0),
    ("0Mi", 0),
    ("-0", 0),
    ("0.0k", 0),
    ("1Gi", 1_073_741_824),
    ("2048Mi", 2_147_483_648),
    ("100M", 100_000_000),
    ("1e6", 1_000_000),
    ("1E6", 1_000_000),
    ("1M", 1_000_000),
    ("1e9", 1_000_000_000),
    ("1G", 1_000_000_000),
    ("217Ki", 222_208),
    ("1536Ki", 1_572_864),
    ("1E", 1_000_000_000_000_000_000),
    ("1.5Gi", 1_610_612_736),
    ("1k", 1_000),
    ("1T", 1_000_000_000_000),
    ("1P", 1_000_000_000_000_000),
    ("1Ti", 1_099_511_627_776),
    ("1Pi", 1_125_899_906_842_624),
    ("1Ei", 1_152_921_504_606_846_976),
    ("5.", 5),
    (".5k", 500),
    ("1", 1),
    ("67108864", 67_108_864),
    // From one byte on, a part of a byte counts as a whole one.
    ("0.1Gi", 107_374_183),
    ("1.5", 2),
    ("1.000000001", 2),
    ("1000m", 1),
    ("1001m", 2),
    ("1000000u", 1),
    ("1000000000n", 1),
    ("25e-1", 3),
    // The greatest there is, and what stays there.
    ("9223372036854775806", GREATEST - 1),
    ("9223372036854775807", GREATEST),
    ("9223372036854775808", GREATEST),
    ("9223372036854775807.5", GREATEST),
    ("7Ei", 8_070_450_532_247_928_832),
    ("8Ei", GREATEST),
    ("10E", GREATEST),
    ("1e19", GREATEST),
    ("1e99999999999", GREATEST),
];

const NO_QUANTITY: &[&str] = &[
    "", "64 Mi", " 64Mi", "64Mi ", "64mi", "64MI", "64MB", "64MiB", "1K", "1e", "1E+", "1e-", "Mi", "-", "+",
    ".", "-.", "1e1.5", "1e6Mi", "1Mi6", "--1", "+-1", "1.2.3", "1,5", "1_000", "0x10", "inf", "NaN", "1ki",
    "1Kib", "1g", "1Ki\n", "１Mi",
];

const NEGATIVE: &[&str] = &["-64Mi", "-1", "-0.5", "-1e6", "-1n", "-8Ei"];

const BELOW_ONE: &[&str] =
    &["100m", "0.5", "999m", "999999u", "999999999n", "1n", ".9", "1e-1", "0.0009k", "1e-99999999999"];

/// Each way in which a manifest or a command line can hold the text.
fn ways(text: &str) -> [Given<'_>; 3] {
    [Given::Word(text), Given::Text(text), Given::Number(text)]
}

#[test]
fn a_quantity_is_exact_to_the_byte() {
    for (text, bytes) in TAKEN {
        assert_eq!(text.parse::<Quantity>().map(Quantity::bytes), Ok(*bytes), "{text}");
        for given in ways(text) {
            let expected = Setting::BandwidthPerMigration(Quantity::from_bytes(*bytes));
            assert_eq!(Setting::read("bandwidthPerMigration", given), Ok(expected), "{given:?}");
        }
        let mut overrides = Overrides::default();
        overrides.set(&format!("bandwidthPerMigration={text}")).expect(text);
        let in_force = overrides.effective(1 << 30).bandwidth.bytes_per_second();
        assert_eq!(in_force, (*bytes > 0).then_some(*bytes), "{text}: 0 is no limit, any other is this one");
    }
}

#[test]
fn what_is_refused_is_named_and_says_why() {
    let refused =
        |texts: &'static [&'static str], why: &'static str| texts.iter().map(move |text| (*text, why));
    let all = refused(NO_QUANTITY, "is not a number with a suffix")
        .chain(refused(NEGATIVE, "is negative; it must be 0 or more"))
        .chain(refused(BELOW_ONE, "is more than 0 and less than one byte"));
    for (text, why) in all {
        let message = text.parse::<Quantity>().expect_err(text).to_string();
        assert!(message.starts_with(&format!("quantity {text:?} {why}")), "{message}");
        for given in ways(text) {
            let error = Setting::read("bandwidthPerMigration", given).expect_err(text);
            assert_eq!(error.to_string(), format!("bandwidthPerMigration: {message}"));
        }
    }
}

#[test]
fn a_text_without_end_is_refused_and_not_repeated_whole() {
    for text in ["1".repeat(65), "0".repeat(1 << 20), "é".repeat(1 << 16), format!("1{}Mi", "0".repeat(64))]
    {
        let error = text.parse::<Quantity>().expect_err("longer than any use");
        assert!(matches!(error, QuantityError::Grammar(_)));
        assert!(error.to_string().len() < 300);
    }
    assert_eq!("0".repeat(64).parse::<Quantity>().map(Quantity::bytes), Ok(0));
}

/// Numerator and denominator of each suffix.
const SUFFIXES: &[(&str, u128, u128)] = &[
    ("", 1, 1),
    ("n", 1, 1_000_000_000),
    ("u", 1, 1_000_000),
    ("m", 1, 1_000),
    ("k", 1_000, 1),
    ("M", 1_000_000, 1),
    ("G", 1_000_000_000, 1),
    ("T", 1_000_000_000_000, 1),
    ("P", 1_000_000_000_000_000, 1),
    ("E", 1_000_000_000_000_000_000, 1),
    ("Ki", 1 << 10, 1),
    ("Mi", 1 << 20, 1),
    ("Gi", 1 << 30, 1),
    ("Ti", 1 << 40, 1),
    ("Pi", 1 << 50, 1),
    ("Ei", 1 << 60, 1),
    ("e7", 10_000_000, 1),
    ("E+2", 100, 1),
    ("e-4", 1, 10_000),
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    /// The same in fractions of wide whole numbers: small enough here that none overflows.
    #[test]
    fn any_number_with_any_suffix_is_its_fraction_rounded_up(
        whole in 0_u64..100_000_000,
        fraction in "[0-9]{0,6}",
        (suffix, times, over) in prop::sample::select(SUFFIXES),
    ) {
        let of_fraction = |text: &str| format!("{text:0<6}").parse::<u128>().expect("six digits");
        let millionths = u128::from(whole) * 1_000_000 + of_fraction(&fraction);
        let (above, below) = (millionths * times, 1_000_000 * over);
        let text = format!("{whole}.{fraction}{suffix}");
        let read = text.parse::<Quantity>();
        if above > 0 && above < below {
            prop_assert_eq!(read, Err(QuantityError::BelowOne(text)));
        } else {
            let bytes = u64::try_from(above.div_ceil(below)).unwrap_or(GREATEST).min(GREATEST);
            prop_assert_eq!(read.map(Quantity::bytes), Ok(bytes));
        }
    }
}
