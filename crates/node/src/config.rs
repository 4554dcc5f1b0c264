//! What a node is told by its operator, read once from a TOML file and checked once.
//!
//! ```text
//!   node.toml ──64 KiB at most──▶ text ──▶ Written: known keys, right kinds ──▶ Raw ──values──▶ NodeConfig
//!                                              │                                       │
//!                                              └───────────── ConfigError ◀────────────┘
//!                                         file, line, key, rule, corrected line
//! ```
//!
//! Always true: whoever holds a [`NodeConfig`] need not ask again whether a value makes sense, and every path
//! in it is absolute. `config/node.toml` holds every key with its default and reason; a test loads it.

mod error;
mod keys;
mod tables;
#[cfg(test)]
mod tests;
mod values;
mod written;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use godwit_domain::labels::Labels;
use godwit_domain::{NodeName, Quantity};
use serde::Deserialize;

pub use error::ConfigError;
use written::Written;

/// Largest config file, in bytes. A full one with every comment is a tenth of it.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What a host keeps for itself where `memory` is left out: the kernel, this node and what guests cost beside their
/// memory. A tenth, because the latter grows with the host, and never less than this.
const MEMORY_KEPT_BYTES_MIN: u64 = 1 << 30;
/// Part of a host's memory that it keeps for itself.
const MEMORY_KEPT_PART: u64 = 10;
/// Largest answer of the kernel about its memory, in bytes. A usual one is a thirtieth of it.
const MEMINFO_BYTES_MAX: u64 = 64 << 10;

/// The label that every node sets itself, to its own name.
pub const HOSTNAME: &str = "kubernetes.io/hostname";

/// All that a node is told by its operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The file that this was read from.
    pub file: PathBuf,
    /// This node's name in the cluster.
    pub name: NodeName,
    /// The cluster's name, one DNS label. Whoever names another is not listened to.
    pub cluster: String,
    /// Memory offered to guests, in bytes; `None`: what [`Self::memory_offered_bytes`] takes from the host.
    pub memory_bytes: Option<u64>,
    /// What the operator tells of this node, for those who choose among nodes. Without [`HOSTNAME`].
    pub labels: Labels,
    /// The folder that holds what must outlive the process. Absolute.
    pub state: PathBuf,
    /// Who the node is, and whom it believes.
    pub identity: IdentityFiles,
    /// Where pages come in, and how they leave.
    pub migration: MigrationConfig,
    /// Where nodes speak of what is agreed, and who agrees.
    pub control: ControlConfig,
    /// How the operator speaks to this node.
    pub admin: AdminConfig,
    /// Parts of a QEMU's arguments, most often beginnings of paths, that are others on this host: from and to.
    pub qemu_renamed: Vec<(String, String)>,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// The files that make a node's identity. All absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The cluster's CA certificate.
    pub ca: PathBuf,
    /// This node's certificate.
    pub certificate: PathBuf,
    /// The key of this node's certificate.
    pub key: PathBuf,
}

/// How guests come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationConfig {
    /// The UDP address for migrations that name no network. Port 0: the kernel chooses.
    pub listen: SocketAddr,
    /// The UDP addresses for those that name one: 16 at most, each a specific one that nothing else here listens on.
    /// Port 0: the kernel chooses.
    pub networks: BTreeMap<String, SocketAddr>,
    /// Largest UDP payload that is sent, in bytes; 1,200 to 6,550.
    pub udp_payload_bytes_max: u16,
    /// Size of the socket's send buffer and of its receive buffer; 1 byte to 1 GiB.
    pub socket_buffer_bytes: Quantity,
}

/// Where nodes speak of what is agreed, and who agrees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlConfig {
    /// The UDP address for the group's messages and sessions. Port 0, never of a voter: the kernel chooses.
    pub listen: SocketAddr,
    /// The 3 or 5 voters and where the other nodes reach them. If this node is one of them, `listen` is its address
    /// here, or any address with its port.
    pub voters: BTreeMap<NodeName, SocketAddr>,
}

/// How the operator speaks to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// The Unix socket. Absolute, 107 bytes at most.
    pub socket: PathBuf,
}

/// One of the addresses that a node listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen<'n> {
    /// `listen` in `[migration]`.
    Migration,
    /// That of a network in `[migration.networks]`.
    Network(&'n str),
    /// `listen` in `[control]`.
    Control,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// Which events are logged, as `tracing_subscriber::EnvFilter` reads it.
    pub filter: String,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object per line.
    Json,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Option<String>,
    cluster: Option<String>,
    state: Option<String>,
    memory: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    identity: RawIdentity,
    #[serde(default)]
    migration: RawMigration,
    #[serde(default)]
    control: RawControl,
    #[serde(default)]
    admin: RawAdmin,
    #[serde(default)]
    qemu: RawQemu,
    #[serde(default)]
    log: RawLog,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIdentity {
    ca: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMigration {
    listen: Option<String>,
    udp_payload_bytes_max: Option<i64>,
    socket_buffer_bytes: Option<String>,
    networks: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControl {
    listen: Option<String>,
    voters: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAdmin {
    socket: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQemu {
    rename: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    format: Option<String>,
    filter: Option<String>,
}

impl NodeConfig {
    /// Reads and checks a config file.
    ///
    /// # Errors
    /// If the file can not be read, or anything in it is not as it must be.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { file: file.to_owned(), source };
        // Paths inside start from the file's folder, which must not depend on where the process stands.
        let absolute = std::path::absolute(file).map_err(unreadable)?;
        let bytes = crate::files::read_capped(&absolute, FILE_BYTES_MAX).map_err(unreadable)?;
        let text = String::from_utf8(bytes)
            .map_err(|error| unreadable(io::Error::new(io::ErrorKind::InvalidData, error.utf8_error())))?;
        Self::parse(&text, &absolute)
    }

    /// Checks a config's text; `file` is named in errors, and relative paths start from its folder.
    ///
    /// # Errors
    /// If anything in it is not as it must be.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let written = Written::parse(text, file)?;
        let raw: Raw = toml::from_str(text).map_err(|error| written.syntax(&error))?;
        let name = values::name(&written, raw.name)?;
        let cluster = values::cluster(&written, raw.cluster)?;
        let state = values::state(&written, raw.state)?;
        let memory_bytes = values::memory(&written, raw.memory)?;
        let labels = tables::labels(&written, raw.labels)?;
        let identity = IdentityFiles {
            ca: values::path(&written, &keys::CA, raw.identity.ca, file)?,
            certificate: values::path(&written, &keys::CERTIFICATE, raw.identity.certificate, file)?,
            key: values::path(&written, &keys::KEY, raw.identity.key, file)?,
        };
        let mut migration = MigrationConfig {
            listen: values::migration_listen(&written, raw.migration.listen)?,
            udp_payload_bytes_max: values::udp_payload(&written, raw.migration.udp_payload_bytes_max)?,
            socket_buffer_bytes: values::socket_buffer(&written, raw.migration.socket_buffer_bytes)?,
            networks: BTreeMap::new(),
        };
        let control = values::control(&written, raw.control, &name, migration.listen)?;
        let others = [(&keys::LISTEN, migration.listen), (&keys::CONTROL_LISTEN, control.listen)];
        migration.networks = tables::networks(&written, raw.migration.networks, others)?;
        let admin = AdminConfig { socket: values::socket(&written, raw.admin.socket)? };
        let qemu_renamed = tables::renames(&written, raw.qemu.rename)?;
        let log = LogConfig {
            format: values::format(&written, raw.log.format)?,
            filter: values::filter(&written, raw.log.filter)?,
        };
        let file = file.to_owned();
        Ok(Self {
            file,
            name,
            cluster,
            memory_bytes,
            labels,
            state,
            identity,
            migration,
            control,
            admin,
            qemu_renamed,
            log,
        })
    }

    /// What this node tells of itself: the operator's labels, and [`HOSTNAME`]. At most `LABELS_MAX`.
    pub fn node_labels(&self) -> Labels {
        let mut labels = self.labels.clone();
        labels.insert(HOSTNAME.to_owned(), self.name.to_string());
        labels
    }

    /// Memory offered to guests, in bytes: what the operator says, or else what the host has (`MemTotal` in
    /// `/proc/meminfo`) less a tenth or 1 GiB, whichever is more.
    ///
    /// # Errors
    /// If the operator says nothing and the kernel does not say what there is.
    pub fn memory_offered_bytes(&self) -> io::Result<u64> {
        if let Some(bytes) = self.memory_bytes {
            return Ok(bytes);
        }
        let text = crate::files::read_capped(Path::new("/proc/meminfo"), MEMINFO_BYTES_MAX)?;
        let total = total_memory_bytes(&String::from_utf8_lossy(&text)).ok_or_else(|| {
            let rule = "/proc/meminfo has no line `MemTotal: NUMBER kB`; set `memory` in the config";
            io::Error::new(io::ErrorKind::InvalidData, rule)
        })?;
        Ok(offered_of_bytes(total))
    }

    /// The error for an endpoint that found its address taken.
    pub fn address_in_use(&self, listen: Listen<'_>, address: SocketAddr) -> ConfigError {
        let (section, key) = match listen {
            Listen::Migration => (keys::LISTEN.section.to_owned(), keys::LISTEN.name),
            Listen::Network(name) => (keys::NETWORKS.table(), name),
            Listen::Control => (keys::CONTROL_LISTEN.section.to_owned(), keys::CONTROL_LISTEN.name),
        };
        // On a host with several nodes the next port may well be the next node's.
        let listens = [self.migration.listen, self.control.listen];
        let taken = |other: SocketAddr| {
            let known = listens.iter().chain(self.migration.networks.values());
            known.chain(self.control.voters.values()).any(|known| known.port() == other.port())
        };
        let other = values::another_port(address, taken);
        let line = format!("  {} = {}", values::bare(key), values::quoted(&other.to_string()));
        let voter = self.control.voters.get(&self.name).filter(|_| listen == Listen::Control);
        let (advice, corrected) = match voter {
            None => ("take another port, or 0 and the kernel chooses one", line),
            Some(own) => {
                let own = values::quoted(&SocketAddr::new(own.ip(), other.port()).to_string());
                let line = format!("{line}\n  [{}]\n  {} = {own}", keys::VOTERS.table(), self.name);
                ("take another port, here and in `voters` of every node", line)
            }
        };
        let (file, section, key) = (self.file.clone(), section.into(), key.into());
        ConfigError::AddressInUse { file, section, key, address, advice, corrected: corrected.into() }
    }
}

/// What a host with so much memory offers.
fn offered_of_bytes(total: u64) -> u64 {
    total.saturating_sub(MEMORY_KEPT_BYTES_MIN.max(total / MEMORY_KEPT_PART))
}

/// `MemTotal` of `/proc/meminfo`.
fn total_memory_bytes(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}
