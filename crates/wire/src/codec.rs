//! Values to bytes and back: the one file that knows bincode.
//!
//! ```text
//!   frame:  length (u32, little endian) │ body (bincode, variable-length integers)
//! ```
//!
//! Always true: a length above the caller's cap is refused before anything is read or allocated; a body that is
//! too short, too long or garbage is an error, never a panic.

use bincode::Options;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of a frame's length.
pub const LENGTH_BYTES: usize = 4;

/// Why bytes are no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The frame says that it is larger than allowed here.
    #[error("frame of {bytes} bytes; at most {cap} are allowed here")]
    TooLarge {
        /// What it says.
        bytes: usize,
        /// The cap.
        cap: usize,
    },
    /// The body is no such value.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

fn options(cap: usize) -> impl Options {
    bincode::DefaultOptions::new().with_limit(cap as u64).reject_trailing_bytes()
}

/// A value as a whole frame, length first. Refused if the body is above `cap`.
pub fn encode_frame<T: Serialize>(what: &'static str, value: &T, cap: usize) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0; LENGTH_BYTES];
    options(cap)
        .serialize_into(&mut frame, value)
        .map_err(|why| CodecError::Malformed { what, why: why.to_string() })?;
    let body = frame.len() - LENGTH_BYTES;
    let length = u32::try_from(body).map_err(|_| CodecError::TooLarge { bytes: body, cap })?;
    frame.splice(..LENGTH_BYTES, length.to_le_bytes());
    Ok(frame)
}

/// How many bytes of body follow; refused above `cap`.
pub fn body_length(length: [u8; LENGTH_BYTES], cap: usize) -> Result<usize, CodecError> {
    let bytes = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if bytes > cap { Err(CodecError::TooLarge { bytes, cap }) } else { Ok(bytes) }
}

/// A frame's body as a value. All of it must be used.
pub fn decode_body<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, CodecError> {
    options(body.len()).deserialize(body).map_err(|why| CodecError::Malformed { what, why: why.to_string() })
}

/// Bytes that are written as one piece (a plain `Vec<u8>` would be written byte by byte).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BlobVisitor;
        impl Visitor<'_> for BlobVisitor {
            type Value = Blob;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(BlobVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_reads_back_and_a_large_one_is_refused() {
        let value = (7_u64, Blob(vec![1, 2, 3]), "text".to_owned());
        let frame = encode_frame("test", &value, 64).expect("encodes");
        let (length, body) = frame.split_first_chunk().expect("a length");
        assert_eq!(body_length(*length, 64), Ok(body.len()));
        assert_eq!(decode_body("test", body), Ok(value.clone()));
        assert!(encode_frame("test", &value, 5).is_err());
        assert!(matches!(body_length(*length, 5), Err(CodecError::TooLarge { .. })));
        assert!(body_length([0xff; 4], 1 << 20).is_err());
    }

    #[test]
    fn hostile_bodies_are_errors() {
        // A length of 2^63 inside the body, a body cut short, a byte too many.
        for body in [&[253, 0, 0, 0, 0, 0, 0, 0, 0x80][..], &[200], &[], &[1, 9, 9]] {
            assert!(decode_body::<Blob>("blob", body).is_err(), "{body:?}");
        }
    }
}
