//! Every key that a config may hold: one table for the checks, the hints and the example lines.
//!
//! Always true: the table and the raw structs of [`super`] name the same keys (a test compares them), and
//! every example is a value that is accepted.

/// What a key's value looks like in TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text in quotes.
    Text,
    /// A number of bytes, in quotes because it may have a suffix.
    Bytes,
    /// A whole number.
    Number,
    /// A table of texts, each under a name that the operator chose.
    Table(Lines),
}

/// What stands in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lines {
    /// Nodes and their addresses.
    Voters,
    /// Networks and this node's address in each.
    Networks,
    /// Labels and their values.
    Labels,
    /// Beginnings of paths and names, and what they are here.
    Renames,
}

impl Lines {
    /// What a table of these must be.
    pub(super) fn table_rule(self) -> &'static str {
        match self {
            Self::Voters | Self::Networks => "it must be a table, NAME = \"IP:PORT\" for each",
            Self::Labels => "it must be a table, KEY = \"VALUE\" for each",
            Self::Renames => "it must be a table, \"FROM\" = \"TO\" for each",
        }
    }

    /// What one of them must be, whether it is wrong or a table that nobody asked for.
    pub(super) fn text_rule(self, is_table: bool) -> &'static str {
        match self {
            // What makes a table of it is most often a dot in its name.
            Self::Networks | Self::Labels | Self::Renames if is_table => {
                "it must be text in quotes (what stands before the '=' needs quotes too where it has a '.' or '/')"
            }
            Self::Voters | Self::Networks | Self::Labels | Self::Renames => "it must be text in quotes",
        }
    }
}

/// One key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Its section; empty at the top of the file.
    pub(super) section: &'static str,
    /// Its name.
    pub(super) name: &'static str,
    /// What its value looks like.
    pub(super) kind: Kind,
    /// A value as one would write it. For an optional key: the default.
    pub(super) example: &'static str,
}

const fn key(section: &'static str, name: &'static str, kind: Kind, example: &'static str) -> Key {
    Key { section, name, kind, example }
}

pub(super) const NAME: Key = key("", "name", Kind::Text, r#""node-a""#);
pub(super) const CLUSTER: Key = key("", "cluster", Kind::Text, r#""cluster-a""#);
pub(super) const STATE: Key = key("", "state", Kind::Text, r#""/var/lib/godwit""#);
/// Its default is the host's; about this is what a host with 64 GiB gives.
pub(super) const MEMORY: Key = key("", "memory", Kind::Bytes, r#""57Gi""#);
/// By default there are none.
pub(super) const LABELS: Key = key("", "labels", Kind::Table(Lines::Labels), r#"{ zone = "a" }"#);
pub(super) const CA: Key = key("identity", "ca", Kind::Text, r#""ca.pem""#);
pub(super) const CERTIFICATE: Key = key("identity", "certificate", Kind::Text, r#""node.pem""#);
pub(super) const KEY: Key = key("identity", "key", Kind::Text, r#""node.key""#);
pub(super) const LISTEN: Key = key("migration", "listen", Kind::Text, r#""10.0.0.1:7400""#);
pub(super) const UDP_PAYLOAD: Key = key("migration", "udp_payload_bytes_max", Kind::Number, "1452");
pub(super) const SOCKET_BUFFER: Key = key("migration", "socket_buffer_bytes", Kind::Bytes, r#""4Mi""#);
/// By default there are none.
pub(super) const NETWORKS: Key =
    key("migration", "networks", Kind::Table(Lines::Networks), r#"{ storage = "10.1.0.1:7400" }"#);
pub(super) const CONTROL_LISTEN: Key = key("control", "listen", Kind::Text, r#""10.0.0.1:7300""#);
pub(super) const VOTERS: Key = key(
    "control",
    "voters",
    Kind::Table(Lines::Voters),
    r#"{ node-a = "10.0.0.1:7300", node-b = "10.0.0.2:7300", node-c = "10.0.0.3:7300" }"#,
);
pub(super) const SOCKET: Key = key("admin", "socket", Kind::Text, r#""/run/godwit/admin.sock""#);
/// By default there are none.
pub(super) const RENAME: Key =
    key("qemu", "rename", Kind::Table(Lines::Renames), r#"{ "/srv/images/" = "/mnt/images/" }"#);
pub(super) const FORMAT: Key = key("log", "format", Kind::Text, r#""text""#);
pub(super) const FILTER: Key = key("log", "filter", Kind::Text, r#""info""#);

/// All of them, in the order of the example file.
pub(super) const KEYS: [Key; 18] = [
    NAME,
    CLUSTER,
    STATE,
    MEMORY,
    LABELS,
    CA,
    CERTIFICATE,
    KEY,
    LISTEN,
    UDP_PAYLOAD,
    SOCKET_BUFFER,
    NETWORKS,
    CONTROL_LISTEN,
    VOTERS,
    SOCKET,
    RENAME,
    FORMAT,
    FILTER,
];

/// How like two words must be (Jaro-Winkler, 0 to 1) before one is offered for the other. Slips of one or two
/// letters and missing ends lie above, words that only share some letters below.
const LIKENESS_MIN: f64 = 0.8;

impl Key {
    /// The key with a value, as one line of the file.
    pub(super) fn line(&self, value: &str) -> String {
        format!("  {} = {value}", self.name)
    }

    /// The same line below its section's head.
    pub(super) fn line_in_section(&self, value: &str) -> String {
        match self.section {
            "" => self.line(value),
            section => format!("  [{section}]\n{}", self.line(value)),
        }
    }

    /// The section that holds what stands in this key's table.
    pub(super) fn table(&self) -> String {
        match self.section {
            "" => self.name.to_owned(),
            section => format!("{section}.{}", self.name),
        }
    }
}

/// The key of this name in this section.
pub(super) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// The key whose table this section is, and what stands in it.
pub(super) fn table(section: &str) -> Option<(&'static Key, Lines)> {
    KEYS.iter().find_map(|key| match key.kind {
        Kind::Table(lines) if key.table() == section => Some((key, lines)),
        _ => None,
    })
}

/// Whether a section of this name exists.
pub(super) fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

/// The sections that have a name, each once.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    KEYS.iter()
        .map(|key| key.section)
        .filter(move |section| std::mem::replace(&mut last, section) != *section)
}

/// The keys of this section that are tables.
pub(super) fn tables_of(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section == section && matches!(key.kind, Kind::Table(_)))
}

/// Where a key of this section stands, for people.
pub(super) fn place(section: &str) -> Box<str> {
    if section.is_empty() { "at the top of the file".into() } else { format!("in [{section}]").into() }
}

/// Of the candidates the one most like `word`, if any is like it at all.
pub(super) fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    // An operator may write kebab-case or capitals out of habit; neither should make words unlike.
    let word = word.to_lowercase().replace('-', "_");
    candidates
        .map(|candidate| (strsim::jaro_winkler(&word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
