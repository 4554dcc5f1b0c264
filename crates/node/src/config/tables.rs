//! The tables in which the operator chooses the names: this node's networks and labels, and what is called otherwise here.
//!
//! ```text
//!   NAME = "IP:PORT" ──▶ name, address, differs from every other ──▶ MigrationConfig::networks
//!   KEY = "VALUE"    ──▶ as Kubernetes has them, not the node's own ──▶ NodeConfig::labels
//!   "FROM" = "TO"    ──▶ not empty ──▶ NodeConfig::qemu_renamed
//!        └──▶ Written::named(table, name, rule, a line that keeps it) ──▶ ConfigError
//! ```
//!
//! Always true: a line that an error offers is accepted; where there is none, it offers to take the line out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use godwit_domain::labels::{self, LABELS_MAX, LabelError, Labels};
use godwit_domain::settings::is_network;

use super::HOSTNAME;
use super::error::ConfigError;
use super::keys::{self, Key};
use super::values::{MIGRATION_PORT, another_port, bare, hears, quoted};
use super::written::Written;

/// Most networks of one node. Each is a socket with its buffers; hosts have a handful of interfaces.
const NETWORKS_MAX: usize = 16;
/// Most names that are others on this host.
const RENAMES_MAX: usize = 64;
/// Longest name of a network, in bytes, as `is_network` has it.
const NETWORK_BYTES_MAX: usize = 63;

/// The named migration networks. `others` are the addresses that this node listens on besides, with their keys.
pub(super) fn networks(
    written: &Written<'_>,
    raw: Option<BTreeMap<String, String>>,
    others: [(&Key, SocketAddr); 2],
) -> Result<BTreeMap<String, SocketAddr>, ConfigError> {
    let raw = raw.unwrap_or_default();
    if raw.len() > NETWORKS_MAX {
        let rule = format!(
            "it must hold at most {NETWORKS_MAX} networks, as each is a socket with buffers of its own"
        );
        return Err(written.count(&keys::NETWORKS, raw.len(), &rule));
    }
    let meets = |a: SocketAddr, b: SocketAddr| a.port() != 0 && (hears(a, b) || hears(b, a));
    let listens = |address: SocketAddr| others.iter().find(|(_, other)| meets(*other, address));
    // The same address, or the same one with a port that is free.
    let free = |address: SocketAddr| {
        let here = |address| raw.values().any(|text| text.parse() == Ok(address));
        if listens(address).is_none() && !here(address) {
            return address;
        }
        another_port(address, |other| listens(other).is_some() || here(other))
    };
    let mut networks = BTreeMap::<String, SocketAddr>::new();
    for (name, text) in &raw {
        let refused = |rule: String, line: &str| written.named(&keys::NETWORKS, name, rule, line);
        let line =
            |name: &str, address: SocketAddr| format!("{} = {}", bare(name), quoted(&address.to_string()));
        let parsed = network_address(text);
        if !is_network(name) {
            let rule = format!(
                "the name of a network must be 1 to {NETWORK_BYTES_MAX} of a-z, 0-9, '-', '.' and '/', as the setting \
                 `network` names it"
            );
            let tame = tame_network(name).filter(|tame| !raw.contains_key(tame));
            let line = tame.zip(parsed.ok()).map(|(name, address)| line(&name, address));
            return Err(refused(rule, &line.unwrap_or_else(|| written.without(&keys::NETWORKS, name))));
        }
        let address = parsed.map_err(|valid| {
            let rule = "it must be an IP address that this host has in that network, and a port (the other nodes are \
                        told it as it stands, so not 0.0.0.0 or [::]; host names are not looked up; with port 0 the \
                        kernel chooses)";
            let line = valid.map(|valid| line(name, free(valid)));
            refused(rule.to_owned(), &line.unwrap_or_else(|| written.example(&keys::NETWORKS, name)))
        })?;
        let listen = listens(address).map(|(key, _)| format!("`{}` in [{}]", key.name, key.section));
        let network = || {
            networks.iter().find(|(_, other)| meets(**other, address)).map(|(name, _)| format!("`{name}`"))
        };
        if let Some(other) = listen.or_else(network) {
            return Err(refused(format!("it must differ from {other}"), &line(name, free(address))));
        }
        networks.insert(name.clone(), address);
    }
    Ok(networks)
}

/// Where this node is reached in a network, or else what could have been meant.
fn network_address(text: &str) -> Result<SocketAddr, Option<SocketAddr>> {
    let address = match text.parse::<SocketAddr>() {
        Ok(address) => Ok(address),
        Err(_) => Err(text.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, MIGRATION_PORT))),
    };
    let is_specific = |address: &SocketAddr| !address.ip().to_canonical().is_unspecified();
    match address {
        Ok(address) if !is_specific(&address) => Err(None),
        Err(valid) => Err(valid.filter(is_specific)),
        Ok(address) => Ok(address),
    }
}

/// The nearest name of a network, if enough of it is left.
fn tame_network(name: &str) -> Option<String> {
    let may = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '/');
    let tame: String =
        name.to_lowercase().chars().map(|c| if may(c) { c } else { '-' }).take(NETWORK_BYTES_MAX).collect();
    let tame = tame.trim_matches('-');
    is_network(tame).then(|| tame.to_owned())
}

/// What is called otherwise on this host, the longest first: of two that begin alike the more exact one counts.
pub(super) fn renames(
    written: &Written<'_>,
    raw: Option<BTreeMap<String, String>>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let raw = raw.unwrap_or_default();
    if raw.len() > RENAMES_MAX {
        let rule =
            format!("it must hold at most {RENAMES_MAX} names; rename the folder that they have in common");
        return Err(written.count(&keys::RENAME, raw.len(), &rule));
    }
    if raw.contains_key("") {
        let rule = "what is renamed must not be empty, as that stands everywhere".to_owned();
        return Err(written.named(&keys::RENAME, "", rule, &written.without(&keys::RENAME, "")));
    }
    let mut renames: Vec<(String, String)> = raw.into_iter().collect();
    renames.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
    Ok(renames)
}

/// The labels that the operator gives this node.
pub(super) fn labels(
    written: &Written<'_>,
    raw: Option<BTreeMap<String, String>>,
) -> Result<Labels, ConfigError> {
    let labels = raw.unwrap_or_default();
    // One is the node's own.
    if labels.len() >= LABELS_MAX {
        let rule = format!("it must hold at most {} labels, as the node adds {HOSTNAME}", LABELS_MAX - 1);
        return Err(written.count(&keys::LABELS, labels.len(), &rule));
    }
    for (key, value) in &labels {
        if key == HOSTNAME {
            let rule =
                "the node sets it itself, to its own name (`name` at the top of the file); take the line out";
            return Err(written.named(&keys::LABELS, key, rule, &written.without(&keys::LABELS, key)));
        }
        labels::check_one(key, value).map_err(|error| {
            let line = tame_label(key, value, &error)
                .filter(|(tame, _)| tame == key || !labels.contains_key(tame))
                .map(|(key, value)| format!("{} = {}", bare(&key), quoted(&value)));
            let line = line.unwrap_or_else(|| written.without(&keys::LABELS, key));
            written.named(&keys::LABELS, key, error.to_string(), &line)
        })?;
    }
    Ok(labels)
}

/// The nearest label that is one, if enough of it is left.
fn tame_label(key: &str, value: &str, error: &LabelError) -> Option<(String, String)> {
    let may = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let tame = |text: &str| {
        let tame: String = text.chars().map(|c| if may(c) { c } else { '-' }).collect();
        tame.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
    };
    let (key, value) = match error {
        LabelError::Key(_) => (tame(key), value.to_owned()),
        LabelError::Value { .. } | LabelError::TooMany(_) => (key.to_owned(), tame(value)),
    };
    // A long one that was cut would say something else; nothing at all says too little.
    let is_one = key != HOSTNAME && labels::check_one(&key, &value).is_ok();
    (is_one && !value.is_empty()).then_some((key, value))
}
