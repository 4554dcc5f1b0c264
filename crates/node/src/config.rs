//! What a node is told by its operator, read once from a TOML file and checked once.
//!
//! ```text
//!   node.toml ──64 KiB at most──▶ text ──▶ Written: known keys, right kinds ──▶ Raw ──▶ NodeConfig
//!                                              │                                 │
//!                                              └──────── ConfigError ◀───────────┘
//!                                         file, line, key, rule, corrected line
//! ```
//!
//! Always true: whoever holds a [`NodeConfig`] need not ask again whether a value makes sense, and every path
//! in it is absolute. `config/node.toml` holds every key with its default and reason; a test loads it.

mod error;
mod keys;
#[cfg(test)]
mod tests;
mod written;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use godwit_domain::{NodeName, Quantity};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

pub use error::ConfigError;
use keys::Key;
use written::Written;

/// Largest config file, in bytes. A full one with every comment is a tenth of it.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Smallest UDP payload that QUIC works with (RFC 9000, 14).
const UDP_PAYLOAD_BYTES_MIN: u16 = 1200;
/// Largest UDP payload: up to 10 packets leave in one call as one datagram for the kernel to cut (GSO), and
/// 10 x 6,550 is just below 65,507, the most that one IPv4 datagram carries.
const UDP_PAYLOAD_BYTES_MAX: u16 = 6550;
/// What fits a link of 1,500 bytes with IPv6 and UDP headers (40 + 8).
const UDP_PAYLOAD_BYTES_DEFAULT: u16 = 1452;

/// Enough for 3 ms at 10 Gbit/s: a receiver that loses the processor for that long loses no packet.
const SOCKET_BUFFER_DEFAULT: Quantity = Quantity::from_bytes(4 << 20);
/// Largest socket buffer: the kernel keeps twice the number in a signed 32-bit integer.
const SOCKET_BUFFER_MAX: Quantity = Quantity::from_bytes(1 << 30);

const FILTER_DEFAULT: &str = "info";

/// All that a node is told by its operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The file that this was read from.
    pub file: PathBuf,
    /// This node's name in the cluster.
    pub name: NodeName,
    /// The folder that holds what must outlive the process. Absolute.
    pub state: PathBuf,
    /// Who the node is, and whom it believes.
    pub identity: IdentityFiles,
    /// Where pages come in, and how they leave.
    pub migration: MigrationConfig,
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
    /// The UDP address for migrations. Port 0: the kernel chooses.
    pub listen: SocketAddr,
    /// Largest UDP payload that is sent, in bytes; 1,200 to 6,550.
    pub udp_payload_bytes_max: u16,
    /// Size of the socket's send buffer and of its receive buffer; 1 byte to 1 GiB.
    pub socket_buffer_bytes: Quantity,
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
    state: Option<String>,
    #[serde(default)]
    identity: RawIdentity,
    #[serde(default)]
    migration: RawMigration,
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
        Ok(Self {
            file: file.to_owned(),
            name: name(&written, raw.name)?,
            state: state(&written, raw.state)?,
            identity: IdentityFiles {
                ca: path(&written, &keys::CA, raw.identity.ca, file)?,
                certificate: path(&written, &keys::CERTIFICATE, raw.identity.certificate, file)?,
                key: path(&written, &keys::KEY, raw.identity.key, file)?,
            },
            migration: MigrationConfig {
                listen: listen(&written, raw.migration.listen)?,
                udp_payload_bytes_max: udp_payload(&written, raw.migration.udp_payload_bytes_max)?,
                socket_buffer_bytes: socket_buffer(&written, raw.migration.socket_buffer_bytes)?,
            },
            log: LogConfig {
                format: format(&written, raw.log.format)?,
                filter: filter(&written, raw.log.filter)?,
            },
        })
    }

    /// The error for an endpoint that found its address taken.
    pub fn address_in_use(&self) -> ConfigError {
        let address = self.migration.listen;
        let mut other = address;
        other.set_port(address.port().checked_add(1).unwrap_or(address.port() - 1));
        ConfigError::AddressInUse {
            file: self.file.clone(),
            key: keys::LISTEN.name,
            address,
            corrected: keys::LISTEN.line(&quoted(&other.to_string())).into(),
        }
    }
}

fn required(written: &Written<'_>, key: &Key, value: Option<String>) -> Result<String, ConfigError> {
    value.ok_or_else(|| written.missing(key))
}

fn name(written: &Written<'_>, raw: Option<String>) -> Result<NodeName, ConfigError> {
    let text = required(written, &keys::NAME, raw)?;
    text.parse().map_err(|error: godwit_domain::ids::NameError| {
        let tame: String = text
            .to_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(63)
            .collect();
        let tame = tame.trim_matches('-');
        let valid =
            if tame.parse::<NodeName>().is_ok() { quoted(tame) } else { keys::NAME.example.to_owned() };
        written.value(&keys::NAME, error.to_string(), &valid)
    })
}

fn state(written: &Written<'_>, raw: Option<String>) -> Result<PathBuf, ConfigError> {
    let path = PathBuf::from(required(written, &keys::STATE, raw)?);
    if path.is_absolute() {
        return Ok(path);
    }
    // Unlike the identity's files it is not relative to the config: state does not belong beside configs.
    Err(written.value(&keys::STATE, "it must be an absolute path", keys::STATE.example))
}

fn path(written: &Written<'_>, key: &Key, raw: Option<String>, file: &Path) -> Result<PathBuf, ConfigError> {
    let text = required(written, key, raw)?;
    if text.is_empty() {
        return Err(written.value(key, "it must not be empty", key.example));
    }
    Ok(file.parent().unwrap_or(Path::new("/")).join(text))
}

fn listen(written: &Written<'_>, raw: Option<String>) -> Result<SocketAddr, ConfigError> {
    let text = required(written, &keys::LISTEN, raw)?;
    text.parse().map_err(|_| {
        let valid = match text.parse::<IpAddr>() {
            Ok(ip) => quoted(&SocketAddr::new(ip, 7400).to_string()),
            Err(_) => keys::LISTEN.example.to_owned(),
        };
        let rule = "it must be an IP address and a port (host names are not looked up; with port 0 the kernel \
                    chooses)";
        written.value(&keys::LISTEN, rule, &valid)
    })
}

fn udp_payload(written: &Written<'_>, raw: Option<i64>) -> Result<u16, ConfigError> {
    let Some(number) = raw else { return Ok(UDP_PAYLOAD_BYTES_DEFAULT) };
    let range = UDP_PAYLOAD_BYTES_MIN..=UDP_PAYLOAD_BYTES_MAX;
    u16::try_from(number).ok().filter(|bytes| range.contains(bytes)).ok_or_else(|| {
        let valid = match number {
            ..=0 => UDP_PAYLOAD_BYTES_DEFAULT,
            _ if number < i64::from(UDP_PAYLOAD_BYTES_MIN) => UDP_PAYLOAD_BYTES_MIN,
            _ => UDP_PAYLOAD_BYTES_MAX,
        };
        let rule = format!(
            "it must be {UDP_PAYLOAD_BYTES_MIN} to {UDP_PAYLOAD_BYTES_MAX} (QUIC needs the least; ten of the \
             most leave as one datagram)"
        );
        written.value(&keys::UDP_PAYLOAD, rule, &valid.to_string())
    })
}

fn socket_buffer(written: &Written<'_>, raw: Option<String>) -> Result<Quantity, ConfigError> {
    let Some(text) = raw else { return Ok(SOCKET_BUFFER_DEFAULT) };
    let refused = |rule: String, valid: Quantity| {
        written.value(&keys::SOCKET_BUFFER, rule, &quoted(&valid.to_string()))
    };
    let rule = format!("it must be more than 0 and at most {SOCKET_BUFFER_MAX}");
    match text.parse::<Quantity>() {
        Err(error) => Err(refused(error.to_string(), SOCKET_BUFFER_DEFAULT)),
        Ok(quantity) if quantity.bytes() == 0 => Err(refused(rule, SOCKET_BUFFER_DEFAULT)),
        Ok(quantity) if quantity > SOCKET_BUFFER_MAX => Err(refused(rule, SOCKET_BUFFER_MAX)),
        Ok(quantity) => Ok(quantity),
    }
}

fn format(written: &Written<'_>, raw: Option<String>) -> Result<LogFormat, ConfigError> {
    match raw.as_deref() {
        None => Ok(LogFormat::default()),
        Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => {
            let valid =
                if other.to_lowercase().contains("json") { r#""json""# } else { keys::FORMAT.example };
            Err(written.value(&keys::FORMAT, r#"it must be "text" or "json""#, valid))
        }
    }
}

fn filter(written: &Written<'_>, raw: Option<String>) -> Result<String, ConfigError> {
    let Some(text) = raw else { return Ok(FILTER_DEFAULT.to_owned()) };
    // The filter's own reader takes an empty text for "errors only", which nobody would mean by it.
    if text.trim().is_empty() {
        return Err(written.value(
            &keys::FILTER,
            r#"it must not be empty ("off" logs nothing)"#,
            keys::FILTER.example,
        ));
    }
    match EnvFilter::try_new(&text) {
        Ok(_) => Ok(text),
        Err(error) => {
            let rule =
                format!("it must be a level, or `target=level` pairs with commas between them ({error})");
            Err(written.value(&keys::FILTER, rule, keys::FILTER.example))
        }
    }
}

/// Text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
