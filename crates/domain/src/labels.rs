//! Labels: the words by which guests, projects and nodes are told apart.
//!
//! Always true: a key and a value that are accepted here are as Kubernetes has them; a selector asks for the very value,
//! case and all, and `""` means "present and empty".

use std::collections::BTreeMap;

/// Labels of one object, or what a selector asks for.
pub type Labels = BTreeMap<String, String>;

/// Most labels of one object: more is no way to tell things apart, and each replica keeps them all.
pub const LABELS_MAX: usize = 64;
/// Longest name part of a key, and longest value, in bytes (Kubernetes, "Labels and Selectors").
const PART_BYTES_MAX: usize = 63;
/// Longest prefix of a key, in bytes.
const PREFIX_BYTES_MAX: usize = 253;

/// Why labels were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A key.
    #[error(
        "label key {0:?} is not valid: a name of at most 63 letters, digits, '-', '_' and '.', that begins and ends with a \
         letter or digit; before it, if wanted, a DNS name and '/'"
    )]
    Key(String),
    /// A value.
    #[error(
        "label {key} has the value {value:?}, which is not valid: at most 63 letters, digits, '-', '_' and '.', that begin \
         and end with a letter or digit; or nothing"
    )]
    Value {
        /// The key.
        key: String,
        /// The value, shortened.
        value: String,
    },
    /// Too many.
    #[error("{0} labels; at most {LABELS_MAX} are kept")]
    TooMany(usize),
}

/// Checks every key and value.
pub fn check(labels: &Labels) -> Result<(), LabelError> {
    if labels.len() > LABELS_MAX {
        return Err(LabelError::TooMany(labels.len()));
    }
    labels.iter().try_for_each(|(key, value)| check_one(key, value))
}

/// Checks one.
pub fn check_one(key: &str, value: &str) -> Result<(), LabelError> {
    let short = |text: &str| text.chars().take(PART_BYTES_MAX).collect::<String>();
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let prefix_is_fine = prefix.is_none_or(|prefix| {
        prefix.len() <= PREFIX_BYTES_MAX
            && prefix
                .split('.')
                .all(|part| is_word(part, |b| b == b'-') && !part.bytes().any(|b| b.is_ascii_uppercase()))
    });
    let in_word = |b| matches!(b, b'-' | b'_' | b'.');
    if !prefix_is_fine || !is_word(name, in_word) {
        return Err(LabelError::Key(short(key)));
    }
    if !value.is_empty() && !is_word(value, in_word) {
        return Err(LabelError::Value { key: short(key), value: short(value) });
    }
    Ok(())
}

fn is_word(text: &str, inside: impl Fn(u8) -> bool) -> bool {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= PART_BYTES_MAX
        && ends(text.bytes().next())
        && ends(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || inside(b))
}

/// Whether these labels carry all that a selector asks for.
pub fn carry(labels: &Labels, selector: &Labels) -> bool {
    missing(labels, selector).is_none()
}

/// The first that a selector asks for and these labels do not carry.
pub fn missing<'a>(labels: &Labels, selector: &'a Labels) -> Option<(&'a str, &'a str)> {
    let missing = selector.iter().find(|(key, value)| labels.get(*key) != Some(*value));
    missing.map(|(key, value)| (key.as_str(), value.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_those_of_kubernetes() {
        for (key, value) in [
            ("app", "my-app"),
            ("kubevirt.io/environment", "production"),
            ("xyz-workloads-type", ""),
            ("hpc-workloads", "True"),
            ("kubernetes.io/hostname", "ip-172-28-114-199.example"),
            ("A_b.c", "x_Y.z"),
        ] {
            assert_eq!(check_one(key, value), Ok(()), "{key}={value}");
        }
        let long = "a".repeat(64);
        for (key, value) in [
            ("", "a"),
            ("-a", "a"),
            ("a/b/c", "a"),
            ("a/", "a"),
            ("/a", "a"),
            ("UP.io/a", "a"),
            ("a", "-a"),
            ("a", "a b"),
            ("a", "<x>"),
            ("a", &long),
            (&long, "a"),
        ] {
            assert!(check_one(key, value).is_err(), "{key}={value}");
        }
        let many: Labels = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
        assert_eq!(check(&many), Err(LabelError::TooMany(65)));
    }

    #[test]
    fn a_selector_asks_for_the_very_value() {
        let labels: Labels = [("a", "1"), ("b", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let ask = |key: &str, value: &str| carry(&labels, &[(key.to_owned(), value.to_owned())].into());
        assert!(ask("a", "1") && ask("b", "") && carry(&labels, &Labels::new()));
        assert!(!ask("a", "") && !ask("b", "1") && !ask("c", "") && !ask("A", "1"));
    }
}
