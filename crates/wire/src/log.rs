//! What stands in the control group's log and in its snapshots, with the version that it was written in.
//!
//! ```text
//!   entry, snapshot:  version (u8) │ frame (see `codec`)
//! ```
//!
//! Always true: a version that this build does not know is refused by name and never guessed at; the same value gives
//! the same bytes.

use godwit_domain::registry::{Registry, Stamped};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, CodecError};

/// The version that is written, and the only one that is read.
const VERSION: u8 = 1;
/// Largest entry, in bytes: a sled value of the log stays below 64 KiB with what raft adds.
pub const ENTRY_BYTES_MAX: usize = 60 << 10;
/// Largest snapshot, in bytes.
pub const SNAPSHOT_BYTES_MAX: usize = 64 << 20;

/// An entry as bytes.
pub fn encode_entry(entry: &Stamped) -> Result<Vec<u8>, CodecError> {
    encode("log entry", entry, ENTRY_BYTES_MAX)
}

/// Bytes as an entry.
pub fn decode_entry(bytes: &[u8]) -> Result<Stamped, CodecError> {
    decode("log entry", bytes, ENTRY_BYTES_MAX)
}

/// A state as bytes.
pub fn encode_snapshot(registry: &Registry) -> Result<Vec<u8>, CodecError> {
    encode("snapshot", registry, SNAPSHOT_BYTES_MAX)
}

/// Bytes as a state.
pub fn decode_snapshot(bytes: &[u8]) -> Result<Registry, CodecError> {
    decode("snapshot", bytes, SNAPSHOT_BYTES_MAX)
}

fn encode<T: Serialize>(what: &'static str, value: &T, cap: usize) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![VERSION];
    bytes.extend(codec::encode_frame(what, value, cap)?);
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8], cap: usize) -> Result<T, CodecError> {
    let malformed = |why: String| CodecError::Malformed { what, why };
    match bytes.split_first() {
        Some((&VERSION, frame)) => {
            let (length, body) =
                frame.split_first_chunk().ok_or_else(|| malformed("it has no length".to_owned()))?;
            if codec::body_length(*length, cap)? != body.len() {
                return Err(malformed(format!("{} bytes follow a length that says otherwise", body.len())));
            }
            codec::decode_body(what, body)
        }
        Some((other, _)) => Err(malformed(format!("its version is {other}; this build reads {VERSION}"))),
        None => Err(malformed("it is empty".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use godwit_domain::machine::Body;
    use godwit_domain::registry::{BootId, Command, GuestUid, Home, Node, Wish};
    use godwit_domain::{GuestSpec, Labels, Overrides};

    use super::*;

    fn entries() -> Vec<Stamped> {
        let node = |text: &str| text.parse().expect("a name");
        let address = core::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let join = Node::new(address, address, BootId(1), 1 << 40);
        let create = Command::PutInstance {
            name: "vm".parse().expect("a name"),
            labels: Labels::new(),
            body: Some(Body::of(GuestSpec::idle(1 << 20))),
            home: Some(Home { uid: GuestUid(7), node: node("a") }),
        };
        let migrate = Command::Migrate {
            guest: GuestUid(7),
            migration: "m".parse().expect("a name"),
            wish: Wish {
                overrides: Overrides { max_downtime_ms: Some(1), ..Overrides::default() },
                ..Wish::default()
            },
        };
        let commands = [Command::Join { name: node("a"), node: join }, create, migrate];
        (1..).zip(commands).map(|(time_ms, command)| Stamped { time_ms, request: None, command }).collect()
    }

    #[test]
    fn entries_and_the_state_that_they_make_read_back() {
        let mut registry = Registry::default();
        for entry in entries() {
            let bytes = encode_entry(&entry).expect("encodes");
            assert_eq!(decode_entry(&bytes), Ok(entry.clone()));
            let _ = registry.apply(entry);
        }
        assert!(!registry.guests.is_empty() && !registry.nodes.is_empty());
        let bytes = encode_snapshot(&registry).expect("encodes");
        assert_eq!(decode_snapshot(&bytes), Ok(registry));
    }

    #[test]
    fn another_version_and_torn_bytes_are_refused() {
        let mut bytes = encode_entry(&entries()[0]).expect("encodes");
        for cut in 0..bytes.len() {
            assert!(decode_entry(&bytes[..cut]).is_err(), "{cut}");
        }
        bytes[0] = 2;
        let error = decode_entry(&bytes).expect_err("of another version").to_string();
        assert!(error.contains("version is 2"), "{error}");
    }
}
