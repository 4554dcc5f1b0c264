//! A config as it was written: which keys stand on which line with which text. Knows nothing of meaning
//! beyond which keys exist and what their values look like.
//!
//! ```text
//!   text ──parse──▶ entries ──check──▶ every key known and of its kind
//!                      │
//!                      └──▶ errors with line, written value and corrected line
//!
//!   hints    what could have been meant
//! ```
//!
//! A table, such as `[control.voters]`, is a key of its section, and each line in it an entry of its own.
//!
//! Always true: of several faults the one that stands first in the file is told.

mod hints;

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::keys::{self, Key, Kind};

/// Longest piece of the file that an error repeats, in characters: enough for any path one would write.
const SHOWN_CHARS_MAX: usize = 200;

/// One key with its value, where they were written.
struct Entry<'t> {
    section: String,
    name: String,
    /// Where the key begins in the text, in bytes.
    start: usize,
    /// The value as written.
    written: &'t str,
    shape: Shape,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Table,
    Text,
    /// A whole number between -2^63 and 2^63 - 1.
    Number,
    Other,
}

/// A config file's text and what stands in it.
pub(super) struct Written<'t> {
    file: &'t Path,
    text: &'t str,
    /// The known sections that the file has, also those without keys. Not one that is there only because a table
    /// in it has a head of its own: its own head may still be written.
    sections: Vec<String>,
    entries: Vec<Entry<'t>>,
}

impl<'t> Written<'t> {
    /// Reads the text as TOML, and refuses keys that nobody knows and values of the wrong kind.
    pub(super) fn parse(text: &'t str, file: &'t Path) -> Result<Self, ConfigError> {
        let mut this = Self { file, text, sections: Vec::new(), entries: Vec::new() };
        let table = DeTable::parse(text).map_err(|error| this.syntax(&error))?;
        for (name, value) in table.get_ref() {
            match value.get_ref() {
                DeValue::Table(section) if keys::is_section(name.get_ref()) => {
                    let is_head = |value: &toml::Spanned<DeValue<'_>>| {
                        matches!(value.get_ref(), DeValue::Table(_)) && this.at(value).starts_with('[')
                    };
                    if is_head(value) || !section.iter().any(|(_, value)| is_head(value)) {
                        this.sections.push(name.get_ref().to_string());
                    }
                    for (key, value) in section {
                        this.push(name.get_ref(), (key.get_ref(), key.span().start), value);
                        this.push_lines(&format!("{}.{}", name.get_ref(), key.get_ref()), value);
                    }
                }
                _ => {
                    this.push("", (name.get_ref(), name.span().start), value);
                    this.push_lines(name.get_ref(), value);
                }
            }
        }
        this.entries.sort_by_key(|entry| entry.start);
        this.entries.iter().try_for_each(|entry| this.check(entry))?;
        Ok(this)
    }

    fn push(&mut self, section: &str, (name, start): (&str, usize), value: &toml::Spanned<DeValue<'_>>) {
        let shape = match value.get_ref() {
            DeValue::Table(_) => Shape::Table,
            DeValue::String(_) => Shape::Text,
            DeValue::Integer(number) if i64::from_str_radix(number.as_str(), number.radix()).is_ok() => {
                Shape::Number
            }
            _ => Shape::Other,
        };
        let written = self.at(value);
        self.entries.push(Entry {
            section: section.to_owned(),
            name: name.to_owned(),
            start,
            written,
            shape,
        });
    }

    /// Pushes what stands in a table, if this is one that we know.
    fn push_lines(&mut self, table: &str, value: &toml::Spanned<DeValue<'_>>) {
        if let DeValue::Table(names) = value.get_ref()
            && keys::table(table).is_some()
        {
            for (name, value) in names {
                self.push(table, (name.get_ref(), name.span().start), value);
            }
        }
    }

    /// The text of a value; of a table with a head, its head.
    fn at<T>(&self, value: &toml::Spanned<T>) -> &'t str {
        self.text.get(value.span()).unwrap_or_default()
    }

    fn check(&self, entry: &Entry<'_>) -> Result<(), ConfigError> {
        if let Some(key) = keys::find(&entry.section, &entry.name) {
            return match refuse_kind(key, entry) {
                None => Ok(()),
                Some((rule, value)) => Err(self.value(key, rule, &value)),
            };
        }
        if let Some((table, lines)) = keys::table(&entry.section) {
            if entry.shape == Shape::Text {
                return Ok(());
            }
            let rule = lines.text_rule(entry.shape == Shape::Table);
            return Err(self.named(table, &entry.name, rule, &self.example(table, &entry.name)));
        }
        if entry.shape == Shape::Table || (entry.section.is_empty() && keys::is_section(&entry.name)) {
            return Err(self.unknown_section(entry));
        }
        Err(self.unknown_key(entry))
    }

    /// The error for a known key whose value breaks a rule; `value` is one that does not.
    pub(super) fn value(&self, key: &Key, rule: impl Into<Box<str>>, value: &str) -> ConfigError {
        self.refuse((key.section, key.name), None, rule.into(), key.line(value))
    }

    /// The same for a table with so many names in it.
    pub(super) fn count(&self, key: &Key, count: usize, rule: &str) -> ConfigError {
        let value = format!("a table of {count}").into();
        self.refuse((key.section, key.name), Some(value), rule.into(), key.line(key.example))
    }

    /// The same for a name in a table or what stands under it; `line` is one that would be accepted.
    pub(super) fn named(
        &self,
        table: &Key,
        name: &str,
        rule: impl Into<Box<str>>,
        line: &str,
    ) -> ConfigError {
        self.refuse((&table.table(), name), None, rule.into(), format!("  {line}"))
    }

    fn refuse(
        &self,
        (section, name): (&str, &str),
        value: Option<Box<str>>,
        rule: Box<str>,
        corrected: String,
    ) -> ConfigError {
        let entry = self.entries.iter().find(|entry| entry.section == section && entry.name == name);
        let value = value.or_else(|| entry.map(|entry| shown(entry.written))).unwrap_or_default();
        ConfigError::Value {
            file: self.file.to_owned(),
            line: entry.map_or(0, |entry| self.position(entry.start).0),
            key: shown(name),
            place: keys::place(section),
            value,
            rule,
            corrected: corrected.into(),
        }
    }

    /// The error for a required key that is not there.
    pub(super) fn missing(&self, key: &Key) -> ConfigError {
        let at = match key.section {
            "" => "above the first section".to_owned(),
            section if self.has(section) => format!("under [{section}]"),
            _ => "at the end".to_owned(),
        };
        let example = self.line(key, key.example);
        ConfigError::Missing {
            file: self.file.to_owned(),
            key: key.name,
            place: keys::place(key.section),
            at: at.into(),
            example: example.into(),
        }
    }

    /// The error of the TOML reader, with its place in the text.
    pub(super) fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let (line, column) = self.position(error.span().map_or(self.text.len(), |span| span.start));
        ConfigError::Syntax { file: self.file.to_owned(), line, column, rule: shown(error.message()) }
    }

    fn has(&self, section: &str) -> bool {
        self.sections.iter().any(|known| known == section)
    }

    /// The line with this value, below its section's head where the file does not have that section yet.
    fn line(&self, key: &Key, value: &str) -> String {
        if self.has(key.section) { key.line(value) } else { key.line_in_section(value) }
    }

    fn entry(&self, key: &Key) -> Option<&Entry<'t>> {
        self.entries.iter().find(|entry| entry.section == key.section && entry.name == key.name)
    }

    /// Line and column of a byte of the text, both from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (line, column)
    }
}

/// The rule that a value of the wrong kind breaks, with a value that keeps it.
fn refuse_kind(key: &Key, entry: &Entry<'_>) -> Option<(&'static str, String)> {
    let bare = entry.written.trim_matches(['"', '\'']);
    match (key.kind, entry.shape) {
        (Kind::Text | Kind::Bytes, Shape::Text)
        | (Kind::Number, Shape::Number)
        | (Kind::Table(_), Shape::Table) => None,
        (Kind::Text, _) => Some(("it must be text in quotes", key.example.to_owned())),
        (Kind::Bytes, Shape::Number) => Some(("it must be text in quotes", format!("\"{bare}\""))),
        (Kind::Bytes, _) => Some(("it must be a number of bytes in quotes", key.example.to_owned())),
        (Kind::Number, _) => {
            let value = if bare.parse::<i64>().is_ok() { bare } else { key.example };
            Some(("it must be a whole number without quotes", value.to_owned()))
        }
        (Kind::Table(lines), _) => Some((lines.table_rule(), key.example.to_owned())),
    }
}

/// A value that can be repeated whole in a corrected line.
fn repeatable(written: &str) -> Option<&str> {
    let fits = !written.is_empty() && !written.contains('\n') && written.chars().count() <= SHOWN_CHARS_MAX;
    fits.then_some(written)
}

/// A piece of the file for an error line: bounded, and on one line.
fn shown(text: &str) -> Box<str> {
    let mut shown: String =
        text.chars().take(SHOWN_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown.into()
}
