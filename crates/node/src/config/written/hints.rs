//! What could have been meant: hints and lines that would be accepted, for what stands in a config and can not be.
//!
//! ```text
//!   entry ──▶ the nearest key, section or table that is still free ──▶ ConfigError
//!   line of a table ──▶ one that the table would accept │ the line, taken out
//! ```
//!
//! Always true: what is set already is not offered again.

use godwit_domain::NodeName;
use godwit_domain::labels;
use godwit_domain::settings::is_network;

use super::super::HOSTNAME;
use super::super::error::ConfigError;
use super::super::keys::{self, Key, Kind, Lines};
use super::super::values::{CONTROL_PORT, MIGRATION_PORT, bare};
use super::{Entry, Written, refuse_kind, repeatable, shown};

impl Written<'_> {
    pub(super) fn unknown_section(&self, entry: &Entry<'_>) -> ConfigError {
        let inner = !entry.section.is_empty();
        let full = if inner { format!("{}.{}", entry.section, entry.name) } else { entry.name.clone() };
        let heads = keys::tables_of("").map(|key| key.name).chain(keys::sections());
        let known = heads.map(|head| format!("[{head}]")).collect::<Vec<_>>().join(", ");
        // As with keys: a section that is there already can not be what was meant.
        let free = keys::sections().filter(|section| !inner && !self.has(section));
        let tables = keys::tables_of(&entry.section).filter(|key| self.entry(key).is_none());
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

    pub(super) fn unknown_key(&self, entry: &Entry<'_>) -> ConfigError {
        // A key that is set already can not be what was meant: the corrected file would hold it twice.
        let free = |key: &&Key| self.entry(key).is_none();
        let value = |key: &Key| match refuse_kind(key, entry) {
            None => repeatable(entry.written).unwrap_or(key.example).to_owned(),
            Some((_, valid)) => valid,
        };
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

    /// A line that the table would accept for this name, or without it if this can be none.
    pub(in super::super) fn example(&self, table: &Key, name: &str) -> String {
        let section = table.table();
        let has = |text: &str, within: &dyn Fn(&str) -> bool| {
            let mut entries = self.entries.iter().filter(|entry| within(&entry.section));
            entries.any(|entry| entry.written.contains(text))
        };
        match table.kind {
            Kind::Table(Lines::Labels) if labels::check_one(name, "").is_ok() && name != HOSTNAME => {
                format!("{} = \"a\"", bare(name))
            }
            Kind::Table(Lines::Networks) if is_network(name) => {
                // Sockets of this node that hear on every address leave none of their port.
                let everywhere = |port: &u16| {
                    let addresses = ["0.0.0.0", "[::]"].map(|any| format!("{any}:{port}"));
                    addresses.iter().any(|address| has(address, &|within| within != section))
                };
                let port = (MIGRATION_PORT..).find(|port| !everywhere(port)).unwrap_or(MIGRATION_PORT);
                let mut addresses = (1..=u8::MAX).map(|host| format!("\"10.1.0.{host}:{port}\""));
                let address = addresses.find(|address| !has(address, &|_| true));
                format!("{} = {}", bare(name), address.unwrap_or_default())
            }
            Kind::Table(Lines::Renames) if !name.is_empty() => format!("{} = \"/mnt/images/\"", bare(name)),
            Kind::Table(Lines::Labels | Lines::Networks | Lines::Renames) => self.without(table, name),
            Kind::Table(Lines::Voters) | Kind::Text | Kind::Bytes | Kind::Number => {
                let name = if name.parse::<NodeName>().is_ok() { name } else { "node-a" };
                let mut addresses = (1..=u8::MAX).map(|host| format!("\"10.0.0.{host}:{CONTROL_PORT}\""));
                let address = addresses.find(|address| !has(address, &|within| within == section));
                format!("{name} = {}", address.unwrap_or_default())
            }
        }
    }

    /// What is left of a line that nothing can mend.
    pub(in super::super) fn without(&self, table: &Key, name: &str) -> String {
        let section = table.table();
        let entry = self.entries.iter().find(|entry| entry.section == section && entry.name == name);
        let value = entry.and_then(|entry| repeatable(entry.written)).unwrap_or("…");
        format!("# {} = {value}", shown(name))
    }
}
