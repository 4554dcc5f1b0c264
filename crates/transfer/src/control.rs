//! The control stream: greeting, preamble, then frames, each read with its cap before it is decoded.

use godwit_wire::codec::{self, CodecError, LENGTH_BYTES};
use godwit_wire::migration::{
    FRAME_BYTES_MAX, GREETING_BYTES, GreetingError, PREAMBLE_BYTES_MAX, Preamble, Role, SourceFrame,
    TargetFrame,
};
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};

use crate::target::Lane;

/// Why nothing could be said or heard.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The bytes are no greeting of ours.
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    /// The peer wants something that is not done here.
    #[error(
        "it asks for a {0} on the migration address, which answers migrations only; dial the control address"
    )]
    Role(Role),
    /// The bytes are no frame.
    #[error(transparent)]
    Frame(#[from] CodecError),
    /// The stream ended or broke.
    #[error("control stream ended while reading {what}")]
    Read {
        /// What was expected.
        what: &'static str,
        /// How it broke.
        source: ReadExactError,
    },
    /// The stream broke.
    #[error("control stream broke while writing")]
    Write(#[from] WriteError),
}

/// Says who is speaking and what for.
pub async fn greet(stream: &mut SendStream, role: Role, preamble: &Preamble) -> Result<(), ControlError> {
    stream.write_all(&role.greeting()).await?;
    stream.write_all(&codec::encode_frame("preamble", preamble, PREAMBLE_BYTES_MAX)?).await?;
    Ok(())
}

/// Hears who is speaking and which of a migration's two connections this is; for anything else nobody listens here.
pub async fn hear_greeting(stream: &mut RecvStream) -> Result<(Lane, Preamble), ControlError> {
    let mut greeting = [0; GREETING_BYTES];
    let read = |source| ControlError::Read { what: "the greeting", source };
    stream.read_exact(&mut greeting).await.map_err(read)?;
    let lane = match Role::read_greeting(greeting)? {
        Role::Migration => Lane::Urgent,
        Role::Pages => Lane::Bulk,
        other @ (Role::Peer | Role::Session) => return Err(ControlError::Role(other)),
    };
    let body = read_body(stream, "the preamble", PREAMBLE_BYTES_MAX).await?;
    Ok((lane, codec::decode_body("preamble", &body)?))
}

/// A frame of the source as bytes.
pub fn source_frame(frame: &SourceFrame) -> Result<Vec<u8>, CodecError> {
    codec::encode_frame("source frame", frame, FRAME_BYTES_MAX)
}

/// A frame of the target as bytes.
pub fn target_frame(frame: &TargetFrame) -> Result<Vec<u8>, CodecError> {
    codec::encode_frame("target frame", frame, FRAME_BYTES_MAX)
}

/// Hears the source. Not cancel safe.
pub async fn hear_source(stream: &mut RecvStream) -> Result<SourceFrame, ControlError> {
    let body = read_body(stream, "a source frame", FRAME_BYTES_MAX).await?;
    Ok(codec::decode_body("source frame", &body)?)
}

/// Hears the target. Not cancel safe.
pub async fn hear_target(stream: &mut RecvStream) -> Result<TargetFrame, ControlError> {
    let body = read_body(stream, "a target frame", FRAME_BYTES_MAX).await?;
    Ok(codec::decode_body("target frame", &body)?)
}

async fn read_body(stream: &mut RecvStream, what: &'static str, cap: usize) -> Result<Vec<u8>, ControlError> {
    let mut length = [0; LENGTH_BYTES];
    let read = |source| ControlError::Read { what, source };
    stream.read_exact(&mut length).await.map_err(read)?;
    let mut body = vec![0; codec::body_length(length, cap)?];
    stream.read_exact(&mut body).await.map_err(read)?;
    Ok(body)
}
