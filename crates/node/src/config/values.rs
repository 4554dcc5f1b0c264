//! One reader a value: from what was written to what it means, or the rule that it breaks.
//!
//! ```text
//!   Raw's field ──▶ default, parse, bounds ──▶ NodeConfig's field
//!                        └──▶ Written::value(key, rule, a value that keeps it) ──▶ ConfigError
//! ```
//!
//! Always true: a value that an error offers is accepted. Nothing here looks at the host: the same text gives the
//! same config everywhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use godwit_domain::ids::NameError;
use godwit_domain::{NodeName, Quantity};
use tracing_subscriber::EnvFilter;

use super::error::ConfigError;
use super::keys::{self, Key};
use super::written::Written;
use super::{ControlConfig, LogFormat, RawControl};

/// Smallest UDP payload that QUIC works with (RFC 9000, 14).
const UDP_PAYLOAD_BYTES_MIN: u16 = 1200;
/// Largest UDP payload: up to 10 packets leave in one call as one datagram for the kernel to cut (GSO), and
/// 10 x 6,540, with Ethernet's, IP's and UDP's headers, is just below 65,536, the most that a device takes in one piece.
const UDP_PAYLOAD_BYTES_MAX: u16 = 6540;
/// What fits a link of 1,500 bytes with IPv6 and UDP headers (40 + 8).
const UDP_PAYLOAD_BYTES_DEFAULT: u16 = 1452;

/// Enough for 3 ms at 10 Gbit/s: a receiver that loses the processor for that long loses no packet.
const SOCKET_BUFFER_DEFAULT: Quantity = Quantity::from_bytes(4 << 20);
/// Largest socket buffer: the kernel keeps twice the number in a signed 32-bit integer.
const SOCKET_BUFFER_MAX: Quantity = Quantity::from_bytes(1 << 30);

/// Longest path of a Unix socket, in bytes: the kernel takes 108 with the zero at their end.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const SOCKET_DEFAULT: &str = "/run/godwit/admin.sock";

/// What is offered for an address without a port.
pub(super) const MIGRATION_PORT: u16 = 7400;
pub(super) const CONTROL_PORT: u16 = 7300;

const FILTER_DEFAULT: &str = "info";

pub(super) fn name(written: &Written<'_>, raw: Option<String>) -> Result<NodeName, ConfigError> {
    let text = required(written, &keys::NAME, raw)?;
    text.parse().map_err(|error: NameError| {
        let valid = tame(&text).map_or(keys::NAME.example.to_owned(), |tame| quoted(&tame));
        written.value(&keys::NAME, error.to_string(), &valid)
    })
}

/// A cluster's name keeps the rule of a node's name, and is told under its own.
pub(super) fn cluster(written: &Written<'_>, raw: Option<String>) -> Result<String, ConfigError> {
    let text = required(written, &keys::CLUSTER, raw)?;
    match text.parse::<NodeName>() {
        Ok(name) => Ok(name.into()),
        Err(error) => {
            let valid = tame(&text).map_or(keys::CLUSTER.example.to_owned(), |tame| quoted(&tame));
            let rule = error.to_string().replacen("node name", "cluster name", 1);
            Err(written.value(&keys::CLUSTER, rule, &valid))
        }
    }
}

/// The nearest name that keeps the rule, if enough of it is left.
fn tame(text: &str) -> Option<String> {
    let tame: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    let tame = tame.trim_matches('-');
    tame.parse::<NodeName>().is_ok().then(|| tame.to_owned())
}

pub(super) fn state(written: &Written<'_>, raw: Option<String>) -> Result<PathBuf, ConfigError> {
    let path = PathBuf::from(required(written, &keys::STATE, raw)?);
    if path.is_absolute() {
        return Ok(path);
    }
    // Unlike the identity's files it is not relative to the config: state does not belong beside configs.
    Err(written.value(&keys::STATE, "it must be an absolute path", keys::STATE.example))
}

pub(super) fn memory(written: &Written<'_>, raw: Option<String>) -> Result<Option<u64>, ConfigError> {
    let Some(text) = raw else { return Ok(None) };
    let refused = |rule: String| Err(written.value(&keys::MEMORY, rule, keys::MEMORY.example));
    match text.parse::<Quantity>() {
        Err(error) => refused(error.to_string()),
        Ok(quantity) if quantity.bytes() == 0 => refused("it must be more than 0".to_owned()),
        Ok(quantity) => Ok(Some(quantity.bytes())),
    }
}

pub(super) fn path(
    written: &Written<'_>,
    key: &Key,
    raw: Option<String>,
    file: &Path,
) -> Result<PathBuf, ConfigError> {
    let text = required(written, key, raw)?;
    if text.is_empty() {
        return Err(written.value(key, "it must not be empty", key.example));
    }
    Ok(file.parent().unwrap_or(Path::new("/")).join(text))
}

pub(super) fn migration_listen(
    written: &Written<'_>,
    raw: Option<String>,
) -> Result<SocketAddr, ConfigError> {
    listen(written, &keys::LISTEN, raw, MIGRATION_PORT)
}

fn listen(
    written: &Written<'_>,
    key: &Key,
    raw: Option<String>,
    port: u16,
) -> Result<SocketAddr, ConfigError> {
    let text = required(written, key, raw)?;
    text.parse().map_err(|_| {
        let valid = match text.parse::<IpAddr>() {
            Ok(ip) => quoted(&SocketAddr::new(ip, port).to_string()),
            Err(_) => key.example.to_owned(),
        };
        let rule = "it must be an IP address and a port (host names are not looked up; with port 0 the kernel \
                    chooses)";
        written.value(key, rule, &valid)
    })
}

/// The control address and the voters, which must fit each other, this node's name and its migration address.
pub(super) fn control(
    written: &Written<'_>,
    raw: RawControl,
    name: &NodeName,
    migration: SocketAddr,
) -> Result<ControlConfig, ConfigError> {
    let listen = listen(written, &keys::CONTROL_LISTEN, raw.listen, CONTROL_PORT)?;
    let voters = voters(written, raw.voters)?;
    if let Some(own) = voters.get(name).filter(|own| !hears(listen, **own)) {
        let rule = format!(
            "it must be what `voters` has for {name}, or 0.0.0.0 or [::] with the same port, as the other nodes \
             dial that"
        );
        return Err(written.value(&keys::CONTROL_LISTEN, rule, &quoted(&own.to_string())));
    }
    if migration.port() != 0 && (hears(migration, listen) || hears(listen, migration)) {
        let taken = |other: SocketAddr| other.port() == listen.port();
        let rule = "it must differ from `listen` in [control]";
        return Err(written.value(&keys::LISTEN, rule, &quoted(&another_port(migration, taken).to_string())));
    }
    Ok(ControlConfig { listen, voters })
}

/// Whether a socket on `listen` gets what is sent to `address`.
pub(super) fn hears(listen: SocketAddr, address: SocketAddr) -> bool {
    let any = match listen.ip() {
        IpAddr::V4(ip) => ip.is_unspecified() && address.is_ipv4(),
        // It hears IPv4 too.
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    listen == address || (any && listen.port() == address.port())
}

/// The address with the next port that is not taken.
pub(super) fn another_port(address: SocketAddr, taken: impl Fn(SocketAddr) -> bool) -> SocketAddr {
    let port = address.port();
    let above = (port..=u16::MAX).skip(1);
    above
        .chain((1..port).rev())
        .map(|port| SocketAddr::new(address.ip(), port))
        .find(|other| !taken(*other))
        .unwrap_or(address)
}

fn voters(
    written: &Written<'_>,
    raw: Option<BTreeMap<String, String>>,
) -> Result<BTreeMap<NodeName, SocketAddr>, ConfigError> {
    let raw = raw.ok_or_else(|| written.missing(&keys::VOTERS))?;
    if !matches!(raw.len(), 3 | 5) {
        let rule = "it must hold exactly 3 or 5 voters, the same on every node (with 3 the cluster bears the loss \
                    of one, with 5 of two)";
        return Err(written.count(&keys::VOTERS, raw.len(), rule));
    }
    let mut voters = BTreeMap::<NodeName, SocketAddr>::new();
    for (text, address_text) in &raw {
        let refused = |rule: String, line: &str| written.named(&keys::VOTERS, text, rule, line);
        let name: NodeName = text.parse().map_err(|error: NameError| {
            let tame = tame(text).unwrap_or_else(|| "node-a".to_owned());
            let line = match address_text.parse::<SocketAddr>() {
                Ok(_) => format!("{tame} = {}", quoted(address_text)),
                Err(_) => written.example(&keys::VOTERS, &tame),
            };
            refused(error.to_string(), &line)
        })?;
        let address = voter_address(address_text).map_err(|valid| {
            let rule = "it must be the IP address and the port, not 0, where the others reach this voter (host \
                        names are not looked up)";
            let line = valid.map(|valid| format!("{text} = {}", quoted(&valid.to_string())));
            refused(rule.to_owned(), &line.unwrap_or_else(|| written.example(&keys::VOTERS, text)))
        })?;
        if let Some((other, _)) = voters.iter().find(|(_, theirs)| **theirs == address) {
            let written_so = |other: SocketAddr| raw.values().any(|text| text.parse() == Ok(other));
            let valid = another_port(address, written_so);
            let rule = format!("it must differ from the address of {other}");
            return Err(refused(rule, &format!("{text} = {}", quoted(&valid.to_string()))));
        }
        voters.insert(name, address);
    }
    Ok(voters)
}

/// Where a voter is reached, or else what could have been meant.
fn voter_address(text: &str) -> Result<SocketAddr, Option<SocketAddr>> {
    let address =
        text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 0))).map_err(|_| None)?;
    if address.ip().is_unspecified() {
        return Err(None);
    }
    if address.port() == 0 {
        return Err(Some(SocketAddr::new(address.ip(), CONTROL_PORT)));
    }
    Ok(address)
}

pub(super) fn socket(written: &Written<'_>, raw: Option<String>) -> Result<PathBuf, ConfigError> {
    let path = PathBuf::from(raw.unwrap_or_else(|| SOCKET_DEFAULT.to_owned()));
    let rule = if !path.is_absolute() {
        "it must be an absolute path".to_owned()
    } else if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        format!("it must be {SOCKET_PATH_BYTES_MAX} bytes or shorter, as the kernel takes no longer one")
    } else {
        return Ok(path);
    };
    Err(written.value(&keys::SOCKET, rule, keys::SOCKET.example))
}

pub(super) fn udp_payload(written: &Written<'_>, raw: Option<i64>) -> Result<u16, ConfigError> {
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

pub(super) fn socket_buffer(written: &Written<'_>, raw: Option<String>) -> Result<Quantity, ConfigError> {
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

pub(super) fn format(written: &Written<'_>, raw: Option<String>) -> Result<LogFormat, ConfigError> {
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

pub(super) fn filter(written: &Written<'_>, raw: Option<String>) -> Result<String, ConfigError> {
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

fn required(written: &Written<'_>, key: &Key, value: Option<String>) -> Result<String, ConfigError> {
    value.ok_or_else(|| written.missing(key))
}

/// Text as TOML writes it.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A name as TOML writes it before the '='.
pub(super) fn bare(name: &str) -> String {
    let is_bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if !name.is_empty() && name.bytes().all(is_bare) { name.to_owned() } else { quoted(name) }
}
