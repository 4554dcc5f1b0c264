//! A JSON value as YAML, in blocks, for people to read and edit.
//!
//! Always true: [`super::documents()`] gives the same value again (but for a document that is nothing, which it leaves out);
//! a word that any reader of YAML could take for something else than text stands in quotes.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::scalar;

/// Longest key that stands before its colon as it is, in bytes. YAML itself ends at 1024 characters.
const SIMPLE_KEY_MAX: usize = 512;

/// Writes one document. Its depth is that of the value, and whoever made it bounded that.
pub fn yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block_map(&mut out, map, 0),
        Value::Array(list) if !list.is_empty() => block_list(&mut out, list, 0),
        Value::Object(_)
        | Value::Array(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_) => {
            leaf(&mut out, value);
            out.push('\n');
        }
    }
    out
}

fn block_map(out: &mut String, map: &Map<String, Value>, depth: usize) {
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 {
            indent(out, depth);
        }
        if key.len() > SIMPLE_KEY_MAX {
            out.push_str("? ");
            text(out, key);
            out.push('\n');
            indent(out, depth);
        } else {
            text(out, key);
        }
        out.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                indent(out, depth + 1);
                block_map(out, map, depth + 1);
            }
            Value::Array(list) if !list.is_empty() => {
                out.push('\n');
                indent(out, depth + 1);
                block_list(out, list, depth + 1);
            }
            other => {
                out.push(' ');
                leaf(out, other);
                out.push('\n');
            }
        }
    }
}

fn block_list(out: &mut String, list: &[Value], depth: usize) {
    for (index, value) in list.iter().enumerate() {
        if index > 0 {
            indent(out, depth);
        }
        out.push_str("- ");
        match value {
            Value::Object(map) if !map.is_empty() => block_map(out, map, depth + 1),
            Value::Array(list) if !list.is_empty() => block_list(out, list, depth + 1),
            other => {
                leaf(out, other);
                out.push('\n');
            }
        }
    }
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// A value without anything in it, on one line.
fn leaf(out: &mut String, value: &Value) {
    match value {
        Value::String(word) => text(out, word),
        Value::Null => out.push_str("null"),
        Value::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
    }
}

fn text(out: &mut String, word: &str) {
    if is_plain(word) { out.push_str(word) } else { quote(out, word) }
}

/// Whether every reader of YAML, old or new, takes this for text when it stands without quotes.
fn is_plain(word: &str) -> bool {
    let letters = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphabetic());
    let first = word.bytes().next();
    let shape = if first.is_some_and(|b| b.is_ascii_digit()) {
        // `64Mi`, and nothing that could be a date, a time or a number of any base.
        letters(word.trim_start_matches(|c: char| c.is_ascii_digit()))
    } else {
        first.is_some_and(|b| b.is_ascii_alphabetic())
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
    };
    let truth_of_old = matches!(word, "y" | "Y" | "n" | "N");
    shape && !truth_of_old && scalar::resolve(word) == Some(Value::String(word.to_owned()))
}

fn quote(out: &mut String, word: &str) {
    out.push('"');
    for c in word.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            c if c.is_alphanumeric() => out.push(c),
            // Breaks, marks and what does not print: by number, so that it is seen and survives.
            c => {
                let code = u32::from(c);
                // Writing to a string does not fail.
                let _ =
                    if code <= 0xffff { write!(out, "\\u{code:04x}") } else { write!(out, "\\U{code:08x}") };
            }
        }
    }
    out.push('"');
}
