//! What a plain word of YAML is: nothing, a truth, a number or text. As `kubectl` reads it.
//!
//! ```text
//!   ~ null          nothing         0644 0o17 0x1F   whole numbers     64Mi  1_000  12:30   text
//!   true yes on     a truth         1e6  .5  5.      numbers           .inf  .nan           refused
//! ```
//!
//! `yes`, `no`, `on`, `off` and octal `0644` are YAML 1.1, which Kubernetes still reads; whoever moves a manifest here
//! must not find that it means something else. Always true: a number too great for 64 bits becomes the nearest
//! floating one, which every range check then refuses; nothing here panics.

use serde_json::{Number, Value};

/// Longest text of a number that is written out in full; beyond it an exponent is shorter and reads the same.
const DIGITS_MAX: usize = 24;

/// What a plain word is; `None`: a number that JSON does not have.
pub(super) fn resolve(word: &str) -> Option<Value> {
    Some(match word {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Value::Bool(false),
        _ => match number(word) {
            Some(number) => number?,
            None => Value::String(word.to_owned()),
        },
    })
}

/// `None`: no number at all. `Some(None)`: one that JSON does not have.
fn number(word: &str) -> Option<Option<Value>> {
    let (negative, digits) = match word.strip_prefix(['+', '-']) {
        Some(digits) => (word.starts_with('-'), digits),
        None => (false, word),
    };
    if matches!(digits, ".inf" | ".Inf" | ".INF") || matches!(word, ".nan" | ".NaN" | ".NAN") {
        return Some(None);
    }
    let based = [("0x", 16), ("0o", 8), ("0", 8)].into_iter().find_map(|(prefix, base)| {
        let rest = digits.strip_prefix(prefix)?;
        let fits = !rest.is_empty() && rest.chars().all(|c| c.is_digit(base));
        fits.then(|| u64::from_str_radix(rest, base).map_err(|_| rest.to_owned()))
    });
    match based {
        // A based number beyond 64 bits has no use; it is no word either.
        Some(Err(_)) => return Some(None),
        Some(Ok(value)) => return Some(Some(whole(negative, value))),
        None => {}
    }
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Some(digits.parse().map_or_else(|_| float(word), |value| Some(whole(negative, value))));
    }
    is_float(digits).then(|| float(word))
}

fn whole(negative: bool, value: u64) -> Value {
    match (negative, i64::try_from(-i128::from(value))) {
        (false, _) => Value::from(value),
        (true, Ok(value)) => Value::from(value),
        (true, Err(_)) => float(&format!("-{value}")).unwrap_or(Value::Null),
    }
}

fn float(text: &str) -> Option<Value> {
    text.parse().ok().and_then(Number::from_f64).map(Value::Number)
}

/// Digits with an optional fraction and an optional exponent.
fn is_float(digits: &str) -> bool {
    let (mantissa, exponent) = digits.split_once(['e', 'E']).map_or((digits, "0"), |(m, e)| (m, e));
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    !(before.is_empty() && after.is_empty())
        && [before, after].into_iter().all(all_digits)
        && !exponent.is_empty()
        && all_digits(exponent)
}

/// A number as text that [`godwit_domain::Quantity`] reads: `1e6` of a manifest is `1000000`.
pub(super) fn text_of(number: &Number) -> String {
    match number.as_f64() {
        Some(value) if number.is_f64() => {
            let long = value.to_string();
            if long.len() > DIGITS_MAX { format!("{value:e}") } else { long }
        }
        Some(_) | None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use godwit_domain::Quantity;
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_words_are_what_kubernetes_takes_them_for() {
        for (word, is) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("true", json!(true)),
            ("True", json!(true)),
            ("yes", json!(true)),
            ("OFF", json!(false)),
            ("y", json!("y")),
            ("tRue", json!("tRue")),
            ("0", json!(0)),
            ("-0", json!(0)),
            ("+5", json!(5)),
            ("-5", json!(-5)),
            ("0644", json!(420)),
            ("0o17", json!(15)),
            ("0x1F", json!(31)),
            ("089", json!(89)),
            ("1e6", json!(1_000_000.0)),
            (".5", json!(0.5)),
            ("5.", json!(5.0)),
            ("1e", json!("1e")),
            (".", json!(".")),
            ("-", json!("-")),
            ("+-5", json!("+-5")),
            ("1_000", json!("1_000")),
            ("64Mi", json!("64Mi")),
            ("12:30", json!("12:30")),
            ("2001-01-01", json!("2001-01-01")),
            ("18446744073709551615", json!(u64::MAX)),
            ("18446744073709551616", json!(18_446_744_073_709_551_616.0)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("-9223372036854775809", json!(-9_223_372_036_854_775_809.0)),
            ("inf", json!("inf")),
        ] {
            assert_eq!(resolve(word), Some(is), "{word:?}");
        }
        for word in [".inf", "-.INF", ".nan", "1e999", "0xfffffffffffffffff"] {
            assert_eq!(resolve(word), None, "{word:?}");
        }
    }

    #[test]
    fn a_number_becomes_a_text_that_a_quantity_reads() {
        for (word, text, bytes) in [
            ("1e6", "1000000", 1_000_000),
            ("1.5", "1.5", 2),
            ("42", "42", 42),
            ("1e300", "1e300", i64::MAX as u64),
            ("18446744073709551616", "18446744073709552000", i64::MAX as u64),
        ] {
            let Some(Value::Number(number)) = resolve(word) else { panic!("{word} is a number") };
            assert_eq!(text_of(&number), text);
            assert_eq!(text.parse::<Quantity>().map(Quantity::bytes), Ok(bytes), "{word}");
        }
    }
}
