//! A config as it was written: which keys stand on which line with which text. Knows nothing of meaning
//! beyond which keys exist and what their values look like.
//!
//! ```text
//!   text ──parse──▶ entries ──check──▶ every key known and of its kind
//!                      │
//!                      └──▶ errors with line, written value and corrected line
//! ```
//!
//! Always true: of several faults the one that stands first in the file is told.

use std::path::Path;

use godwit_domain::NodeName;
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
                        let table = format!("{}.{}", name.get_ref(), key.get_ref());
                        if let DeValue::Table(names) = value.get_ref()
                            && keys::table(&table).is_some()
                        {
                            for (key, value) in names {
                                this.push(&table, (key.get_ref(), key.span().start), value);
                            }
                        }
                    }
                }
                _ => this.push("", (name.get_ref(), name.span().start), value),
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
        if let Some(table) = keys::table(&entry.section) {
            return match entry.shape {
                Shape::Text => Ok(()),
                _ => Err(self.named(
                    table,
                    &entry.name,
                    "it must be text in quotes",
                    &self.example(table, &entry.name),
                )),
            };
        }
        if entry.shape == Shape::Table || (entry.section.is_empty() && keys::is_section(&entry.name)) {
            return Err(self.unknown_section(entry));
        }
        Err(self.unknown_key(entry))
    }

    fn unknown_section(&self, entry: &Entry<'_>) -> ConfigError {
        let inner = !entry.section.is_empty();
        let full = if inner { format!("{}.{}", entry.section, entry.name) } else { entry.name.clone() };
        let known = keys::sections().map(|section| format!("[{section}]")).collect::<Vec<_>>().join(", ");
        // As with keys: a section that is there already can not be what was meant.
        let free = keys::sections().filter(|section| !inner && !self.has(section));
        let tables = keys::KEYS.iter().filter(|key| {
            inner && key.kind == Kind::Addresses && key.section == entry.section && self.entry(key).is_none()
        });
        let nearest = keys::nearest(&entry.name, free.chain(tables.map(|key| key.name)));
        let (hint, corrected) = match nearest {
            Some(section) if section == entry.name => {
                ("it must be a section, not a value".to_owned(), format!("  [{section}]"))
            }
            Some(section) => {
                let head =
                    if inner { format!("[{}.{section}]", entry.section) } else { format!("[{section}]") };
                (format!("the nearest known section is {head}"), format!("  {head}"))
            }
            None => {
                let hint = format!("known sections are {known}; take it out together with its keys");
                (hint, format!("  # [{}]", shown(&full)))
            }
        };
        ConfigError::UnknownSection {
            file: self.file.to_owned(),
            line: self.position(entry.start).0,
            section: shown(&full),
            hint: hint.into(),
            corrected: corrected.into(),
        }
    }

    fn unknown_key(&self, entry: &Entry<'_>) -> ConfigError {
        // A key that is set already can not be what was meant: the corrected file would hold it twice.
        let free = |key: &&Key| self.entry(key).is_none();
        let value = |key: &Key| repeatable(entry.written).unwrap_or(key.example).to_owned();
        let elsewhere = keys::KEYS.iter().filter(free).find(|key| key.name == entry.name);
        let here = || keys::KEYS.iter().filter(|key| key.section == entry.section);
        let nearest = keys::nearest(&entry.name, here().filter(free).map(|key| key.name))
            .and_then(|name| keys::find(&entry.section, name));
        let (hint, corrected) = match (elsewhere, nearest) {
            (Some(key), _) if key.section.is_empty() => {
                ("it belongs above the first section".to_owned(), key.line(&value(key)))
            }
            (Some(key), _) => (format!("it belongs in [{}]", key.section), self.line(key, &value(key))),
            (None, Some(key)) => (format!("the nearest known key is `{}`", key.name), key.line(&value(key))),
            (None, None) => {
                let known = here().map(|key| format!("`{}`", key.name)).collect::<Vec<_>>().join(", ");
                let value = repeatable(entry.written).unwrap_or("…");
                (format!("known keys there are {known}"), format!("  # {} = {value}", shown(&entry.name)))
            }
        };
        ConfigError::UnknownKey {
            file: self.file.to_owned(),
            line: self.position(entry.start).0,
            key: shown(&entry.name),
            place: keys::place(&entry.section),
            hint: hint.into(),
            corrected: corrected.into(),
        }
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

    /// A line that the table would accept for this name, or for another if this can be none.
    pub(super) fn example(&self, table: &Key, name: &str) -> String {
        let section = table.table();
        let taken = |address: &String| {
            self.entries.iter().any(|entry| entry.section == section && entry.written.contains(address))
        };
        let address = (1..=u8::MAX).map(|host| format!("\"10.0.0.{host}:7300\"")).find(|it| !taken(it));
        let name = if name.parse::<NodeName>().is_ok() { name } else { "node-a" };
        format!("{name} = {}", address.unwrap_or_default())
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
        | (Kind::Addresses, Shape::Table) => None,
        (Kind::Text, _) => Some(("it must be text in quotes", key.example.to_owned())),
        (Kind::Bytes, Shape::Number) => Some(("it must be text in quotes", format!("\"{bare}\""))),
        (Kind::Bytes, _) => Some(("it must be a number of bytes in quotes", key.example.to_owned())),
        (Kind::Number, _) => {
            let value = if bare.parse::<i64>().is_ok() { bare } else { key.example };
            Some(("it must be a whole number without quotes", value.to_owned()))
        }
        (Kind::Addresses, _) => {
            Some(("it must be a table, NAME = \"IP:PORT\" for each", key.example.to_owned()))
        }
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
