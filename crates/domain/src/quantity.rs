//! Byte counts as an operator writes them: `64Mi`, `1.5Gi`, `100M`, `1e6`.
//!
//! The grammar is that of Kubernetes quantities: optional sign, digits with an optional fraction, then one
//! suffix of none, `n u m k M G T P E`, `Ki Mi Gi Ti Pi Ei`, or an exponent. Case matters.
//!
//! Always true: a value above 0 and below one byte is refused; any other is rounded *up* to a whole byte;
//! above 2^63 - 1 it stays there; a negative one is refused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest text that is read as a quantity, in bytes. Longer ones have no use and cost time to read.
const TEXT_BYTES_MAX: usize = 64;
/// The greatest quantity, as in Kubernetes.
const VALUE_MAX: u64 = i64::MAX as u64;

/// A number of bytes (or bytes per second) that an operator wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Quantity(u64);

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text does not follow the grammar.
    #[error("quantity {0:?} is not a number with a suffix such as Ki, Mi, Gi, k, M or G (for example 64Mi)")]
    Grammar(String),
    /// The value is negative.
    #[error("quantity {0:?} is negative; it must be 0 or more")]
    Negative(String),
    /// The value lies between 0 and one byte.
    #[error("quantity {0:?} is more than 0 and less than one byte; the smallest is 1")]
    BelowOne(String),
}

impl Quantity {
    /// A quantity of so many bytes; above 2^63 - 1 it stays there.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(if bytes > VALUE_MAX { VALUE_MAX } else { bytes })
    }

    /// Its value in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// A suffix as `2^two × 10^ten`.
fn scale(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            // Out of any use; saturate instead of failing, as the value itself does.
            let magnitude = digits.parse::<i32>().unwrap_or(999).min(999);
            (0, if exponent.starts_with('-') { -magnitude } else { magnitude })
        }
    })
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let shown = || text.chars().take(TEXT_BYTES_MAX).collect::<String>();
        let grammar = || QuantityError::Grammar(shown());
        if text.len() > TEXT_BYTES_MAX {
            return Err(grammar());
        }
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let number_len = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_len);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(grammar());
        }
        let (two, ten) = scale(suffix).ok_or_else(grammar)?;
        let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
        let fraction_len = i32::try_from(fraction.len()).map_err(|_| grammar())?;
        let value = ceil_value(&digits, two, ten - fraction_len);
        let negative = text.starts_with('-');
        match value {
            Value::Zero => Ok(Self(0)),
            _ if negative => Err(QuantityError::Negative(shown())),
            Value::BelowOne => Err(QuantityError::BelowOne(shown())),
            Value::Bytes(bytes) => Ok(Self::from_bytes(bytes)),
        }
    }
}

enum Value {
    Zero,
    BelowOne,
    Bytes(u64),
}

/// `digits × 2^two × 10^ten`, rounded up, exact at any size: a number of at most 64 digits is multiplied and
/// divided as a list of decimal digits, least significant first.
fn ceil_value(digits: &[u8], two: u32, ten: i32) -> Value {
    let mut number: Vec<u8> = digits.iter().rev().copied().collect();
    if number.iter().all(|d| *d == 0) {
        return Value::Zero;
    }
    for _ in 0..two {
        double(&mut number);
    }
    let mut lost = false;
    if ten < 0 {
        let drop = usize::try_from(-ten).unwrap_or(usize::MAX).min(number.len());
        lost = number.iter().take(drop).any(|d| *d != 0);
        number.drain(..drop);
    } else {
        let zeros = usize::try_from(ten).unwrap_or(0);
        number.splice(0..0, std::iter::repeat_n(0, zeros));
    }
    let whole = number
        .iter()
        .rev()
        .try_fold(0_u64, |sum, digit| sum.checked_mul(10).and_then(|sum| sum.checked_add(u64::from(*digit))));
    match whole {
        Some(0) => Value::BelowOne,
        Some(bytes) => Value::Bytes(bytes.saturating_add(u64::from(lost))),
        None => Value::Bytes(u64::MAX),
    }
}

fn double(number: &mut Vec<u8>) {
    let mut carry = 0;
    for digit in number.iter_mut() {
        let twice = *digit * 2 + carry;
        *digit = twice % 10;
        carry = twice / 10;
    }
    if carry > 0 {
        number.push(carry);
    }
}

impl TryFrom<String> for Quantity {
    type Error = QuantityError;
    fn try_from(text: String) -> Result<Self, QuantityError> {
        text.parse()
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> Self {
        quantity.to_string()
    }
}

impl fmt::Display for Quantity {
    /// Writes the shortest exact binary form: `67108864` is `64Mi`, `1000` stays `1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffixes = ["Ei", "Pi", "Ti", "Gi", "Mi", "Ki"];
        for (i, suffix) in suffixes.iter().enumerate() {
            let unit = 1_u64 << (60 - 10 * i);
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{suffix}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_parse_as_in_kubernetes() {
        for (text, bytes) in [
            ("64Mi", 67_108_864),
            ("0Mi", 0),
            ("0", 0),
            ("-0", 0),
            ("2048Mi", 2_147_483_648),
            ("100M", 100_000_000),
            ("1e6", 1_000_000),
            ("1E6", 1_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("1.5Gi", 1_610_612_736),
            ("217Ki", 222_208),
            ("0.1Gi", 107_374_183),
            ("1.5", 2),
            ("1e-0", 1),
            (".5k", 500),
            ("5.", 5),
            ("+1k", 1000),
            ("1000m", 1),
            ("1500m", 2),
            ("9Ei", VALUE_MAX),
            ("1e99", VALUE_MAX),
            ("9223372036854775807", VALUE_MAX),
            ("9223372036854775808", VALUE_MAX),
        ] {
            assert_eq!(text.parse(), Ok(Quantity(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "64 Mi", "64mi", "64MB", "1K", "1e", "1e+", "Mi", "1.2.3", ".", "0x10", "1_000", "٣"]
        {
            assert!(matches!(text.parse::<Quantity>(), Err(QuantityError::Grammar(_))), "{text:?}");
        }
        assert!(matches!("-64Mi".parse::<Quantity>(), Err(QuantityError::Negative(_))));
        for text in ["100m", "0.5", "1n", "1e-3"] {
            assert!(matches!(text.parse::<Quantity>(), Err(QuantityError::BelowOne(_))), "{text:?}");
        }
        assert!("9".repeat(65).parse::<Quantity>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(bytes in 0..=VALUE_MAX) {
            prop_assert_eq!(Quantity(bytes).to_string().parse(), Ok(Quantity(bytes)));
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
