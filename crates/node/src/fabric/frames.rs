//! Values on a QUIC stream, each a frame of `wire::codec` under its own cap.
//!
//! ```text
//!   write(stream, what, value, cap) ──▶ length │ body ──▶ read(stream, what, cap)
//!                                                         Some(value) │ None: it ended between two frames
//! ```
//!
//! Always true: nothing is sent above its cap, and a length above it is refused before anything is allocated; an end
//! inside a frame is an error. Nothing here knows what the values mean, nor waits under a clock: the caller does.

use godwit_transfer::drive::chain;
use godwit_wire::codec::{self, CodecError, LENGTH_BYTES};
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why no value could be said or heard. The text has the whole reason.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The value is too large for its cap, or the bytes are no such value.
    #[error("{what}: {why}")]
    Codec {
        /// What was said or expected.
        what: &'static str,
        /// What is wrong with it.
        why: CodecError,
    },
    /// The stream ended inside a frame or broke.
    #[error("the stream broke while {what} was read: {}", chain(.why))]
    Read {
        /// What was expected.
        what: &'static str,
        /// How it broke.
        why: ReadExactError,
    },
    /// The stream broke.
    #[error("the stream broke while {what} was written: {}", chain(.why))]
    Write {
        /// What was said.
        what: &'static str,
        /// How it broke.
        why: WriteError,
    },
}

/// Writes a value as one frame with a body of at most `cap` bytes. Not cancel safe: a write that is given up leaves
/// half a frame on the stream, and the stream is of no more use.
///
/// # Errors
/// If the value is larger than that or the stream breaks.
pub async fn write<T: Serialize>(
    stream: &mut SendStream,
    what: &'static str,
    value: &T,
    cap: usize,
) -> Result<(), FrameError> {
    let frame = codec::encode_frame(what, value, cap).map_err(|why| FrameError::Codec { what, why })?;
    stream.write_all(&frame).await.map_err(|why| FrameError::Write { what, why })
}

/// Reads a frame with a body of at most `cap` bytes; `None`: the peer has ended the stream after its last whole frame.
/// Not cancel safe: a read that is given up may have taken half a frame off the stream, and the stream is of no more
/// use.
///
/// # Errors
/// If the frame is larger than that or no such value, or the stream breaks.
pub async fn read<T: DeserializeOwned>(
    stream: &mut RecvStream,
    what: &'static str,
    cap: usize,
) -> Result<Option<T>, FrameError> {
    let Some(body) = read_body(stream, what, cap).await? else { return Ok(None) };
    codec::decode_body(what, &body).map(Some).map_err(|why| FrameError::Codec { what, why })
}

/// Reads a frame's body as it is. Not cancel safe, as [`read`].
pub(crate) async fn read_body(
    stream: &mut RecvStream,
    what: &'static str,
    cap: usize,
) -> Result<Option<Vec<u8>>, FrameError> {
    let mut length = [0; LENGTH_BYTES];
    match stream.read_exact(&mut length).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(why) => return Err(FrameError::Read { what, why }),
    }
    let bytes = codec::body_length(length, cap).map_err(|why| FrameError::Codec { what, why })?;
    let mut body = vec![0; bytes];
    stream.read_exact(&mut body).await.map_err(|why| FrameError::Read { what, why })?;
    Ok(Some(body))
}
