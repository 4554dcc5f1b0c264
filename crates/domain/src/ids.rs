//! The names of things. Each kind of name is its own type, checked once where it comes in.
//!
//! Always true: a [`NodeName`] is a DNS label, because it becomes the name in a certificate; a
//! [`GuestName`] is `NAMESPACE/NAME`, two DNS labels; an [`InstanceId`] never names two processes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest DNS label (RFC 1035, 2.3.4), in bytes.
const LABEL_BYTES_MAX: usize = 63;

/// Why a name was refused, with the rule and what would satisfy it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {got:?} is not valid: {rule}")]
pub struct NameError {
    what: &'static str,
    got: String,
    rule: &'static str,
}

fn check_label(what: &'static str, text: &str) -> Result<(), NameError> {
    let rule = if text.is_empty() {
        "it must not be empty"
    } else if text.len() > LABEL_BYTES_MAX {
        "it must be 63 bytes or shorter"
    } else if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        "it may hold lower-case letters a-z, digits and '-' only"
    } else if text.starts_with('-') || text.ends_with('-') {
        "it must begin and end with a letter or digit"
    } else {
        return Ok(());
    };
    // The message repeats at most one label of what was given: an error line has a bound too.
    Err(NameError { what, got: text.chars().take(LABEL_BYTES_MAX).collect(), rule })
}

/// A control group for all time: whoever speaks of what is agreed says in which. A group that is founded anew is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u128);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for GroupId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let rule = "it must be 32 hexadecimal digits";
        let digits =
            Some(text).filter(|text| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()));
        let number = digits.and_then(|text| u128::from_str_radix(text, 16).ok());
        let got = || text.chars().take(LABEL_BYTES_MAX).collect();
        number.map(Self).ok_or_else(|| NameError { what: "group id", got: got(), rule })
    }
}

/// As text where people read it, since few readers of JSON take so large a number.
impl Serialize for GroupId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { to.collect_str(self) } else { self.0.serialize(to) }
    }
}

impl<'de> Deserialize<'de> for GroupId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            let text = std::borrow::Cow::<str>::deserialize(from)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            u128::deserialize(from).map(Self)
        }
    }
}

/// A host's name in the cluster: one DNS label, for example `node-a`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The DNS name that this node's certificate carries.
    pub fn certificate_name(&self) -> String {
        format!("{}.node.godwit", self.0)
    }
}

impl FromStr for NodeName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check_label("node name", text)?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for NodeName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A guest's name, `NAMESPACE/NAME`; the namespace is `default` where none is given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestName {
    namespace: String,
    name: String,
}

impl GuestName {
    /// The part before the slash.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The part after the slash.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for GuestName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        check_label("guest namespace", namespace)?;
        check_label("guest name", name)?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl TryFrom<String> for GuestName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<GuestName> for String {
    fn from(guest: GuestName) -> Self {
        guest.to_string()
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A migration's name: one DNS label, for example `migration-1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MigrationId(String);

impl MigrationId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MigrationId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check_label("migration name", text)?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for MigrationId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<MigrationId> for String {
    fn from(id: MigrationId) -> Self {
        id.0
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One runner process holding one guest. Drawn at random when the process is made, never used again:
/// a licence that names an instance can not be mistaken for one that names its successor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(u128);

impl InstanceId {
    /// From 16 random bytes that the caller drew.
    pub const fn from_random(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId({self})")
    }
}

impl FromStr for InstanceId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let bad = || NameError {
            what: "instance id",
            got: text.chars().take(LABEL_BYTES_MAX).collect(),
            rule: "it must be 32 lower-case hexadecimal digits",
        };
        if !hex {
            return Err(bad());
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| bad())
    }
}

impl TryFrom<String> for InstanceId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.to_string()
    }
}

/// One stint of a licence. Every entry that decides who may run a guest ends the epoch and makes the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch in which a new guest first runs.
    pub const FIRST: Self = Self(1);

    /// The epoch after this one. Saturates: 2^64 hand-overs do not happen.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_where_they_come_in() {
        let long = "a".repeat(64);
        for (text, rule) in [
            ("", "empty"),
            ("Node", "lower-case"),
            ("node a", "lower-case"),
            ("-a", "begin and end"),
            ("a-", "begin and end"),
            ("a/b", "lower-case"),
            ("../a", "lower-case"),
            (long.as_str(), "63 bytes"),
        ] {
            let error = text.parse::<NodeName>().expect_err(text).to_string();
            assert!(error.contains(rule), "{text:?} gave {error}");
        }
        assert_eq!(
            "node-a".parse::<NodeName>().map(|n| n.certificate_name()),
            Ok("node-a.node.godwit".into())
        );
    }

    #[test]
    fn a_guest_without_namespace_is_in_default() {
        assert_eq!("vm1".parse::<GuestName>().map(|g| g.to_string()), Ok("default/vm1".into()));
        assert_eq!("lab/vm1".parse::<GuestName>().map(|g| g.namespace().to_owned()), Ok("lab".into()));
        for bad in ["a/b/c", "/a", "a/", "A/b"] {
            assert!(bad.parse::<GuestName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_instance_id_reads_back_as_written() {
        let id = InstanceId::from_random([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("AB".repeat(16).parse::<InstanceId>().is_err());
        assert!("+b".repeat(16).parse::<InstanceId>().is_err());
    }
}
