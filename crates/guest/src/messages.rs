//! How commands and answers stand on the hand-off socket, as the node writes and reads them.
//!
//! ```text
//!   {"id":3,"do":"load","epoch":4,"bytes":5}\n hello          a line, and what it says follows it
//!   {"id":3,"ok":{"kind":"state","bytes":5}}\n hello
//! ```
//!
//! Always true: a line and what follows it are capped before they are read; half a message stays where it is until the rest
//! comes, so a caller who goes away in the middle takes nothing along.

use std::io;

use bytes::{Buf, BytesMut};
use godwit_wire::handoff::{Answer, LINE_BYTES_MAX, Outcome, Reply, Request, STATE_BYTES_MAX};
use tokio_util::codec::{Decoder, Encoder};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    /// An answer whose state has not come whole.
    begun: Option<(Reply, usize)>,
    /// So much of what has come is no whole line.
    looked_at: usize,
}

/// A command, and the device state that it takes along.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) state: Vec<u8>,
}

/// An answer, and the device state that it brings.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) reply: Reply,
    pub(crate) state: Vec<u8>,
}

impl Encoder<Asked> for Messages {
    type Error = io::Error;

    fn encode(&mut self, asked: Asked, into: &mut BytesMut) -> io::Result<()> {
        let line = serde_json::to_vec(&asked.request)?;
        into.reserve(line.len() + 1 + asked.state.len());
        into.extend_from_slice(&line);
        into.extend_from_slice(b"\n");
        into.extend_from_slice(&asked.state);
        Ok(())
    }
}

impl Decoder for Messages {
    type Item = Answered;
    type Error = io::Error;

    fn decode(&mut self, from: &mut BytesMut) -> io::Result<Option<Answered>> {
        if self.begun.is_none() {
            let Some(line) = self.line(from)? else { return Ok(None) };
            let reply: Reply = serde_json::from_slice(&line)
                .map_err(|error| invalid(format!("not a line of the hand-off: {error}")))?;
            let bytes = match &reply.outcome {
                Outcome::Ok(Answer::State { bytes }) => *bytes as usize,
                Outcome::Ok(Answer::Done | Answer::Verified(_) | Answer::Stats(_)) | Outcome::Error(_) => 0,
            };
            if bytes > STATE_BYTES_MAX {
                return Err(invalid(format!("a state of {bytes} bytes; at most {STATE_BYTES_MAX} are read")));
            }
            self.begun = Some((reply, bytes));
        }
        let Some((reply, bytes)) = self.begun.take_if(|(_, bytes)| from.len() >= *bytes) else {
            // All of it, in as few reads as there can be.
            let missing = self.begun.as_ref().map_or(0, |(_, bytes)| bytes.saturating_sub(from.len()));
            from.reserve(missing);
            return Ok(None);
        };
        Ok(Some(Answered { reply, state: from.split_to(bytes).into() }))
    }
}

impl Messages {
    fn line(&mut self, from: &mut BytesMut) -> io::Result<Option<BytesMut>> {
        let end = from.iter().skip(self.looked_at).position(|byte| *byte == b'\n');
        if end.map_or(from.len(), |end| self.looked_at + end) > LINE_BYTES_MAX {
            return Err(invalid(format!("a line of more than {LINE_BYTES_MAX} bytes")));
        }
        let Some(end) = end else {
            self.looked_at = from.len();
            return Ok(None);
        };
        let line = from.split_to(std::mem::take(&mut self.looked_at) + end);
        from.advance(1);
        Ok(Some(line))
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_domain::Epoch;
    use godwit_wire::handoff::Command;

    #[test]
    fn a_state_follows_the_line_that_announces_it() {
        let mut into = BytesMut::new();
        let request = Request { id: 3, command: Command::Load { epoch: Epoch(4), bytes: 5 } };
        Messages::default().encode(Asked { request, state: b"he\nlo".to_vec() }, &mut into).expect("fits");
        assert_eq!(&into[..], b"{\"id\":3,\"do\":\"load\",\"epoch\":4,\"bytes\":5}\nhe\nlo");
    }

    #[test]
    fn answers_are_read_in_whatever_pieces_they_come() {
        let said = b"{\"id\":1,\"ok\":{\"kind\":\"done\"}}\n{\"id\":2,\"ok\":{\"kind\":\"state\",\"bytes\":5}}\nhe\nlo\
                     {\"id\":3,\"ok\":{\"kind\":\"done\"}}\n";
        for piece in [1, 3, 40, said.len()] {
            let (mut messages, mut come, mut read) = (Messages::default(), BytesMut::new(), Vec::new());
            for bytes in said.chunks(piece) {
                come.extend_from_slice(bytes);
                while let Some(Answered { reply, state }) = messages.decode(&mut come).expect("reads") {
                    read.push((reply.id, state));
                }
            }
            assert_eq!(read, [(1, vec![]), (2, b"he\nlo".to_vec()), (3, vec![])], "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_too_long_is_not_read() {
        let mut come = BytesMut::from(&vec![b' '; LINE_BYTES_MAX + 1][..]);
        assert!(Messages::default().decode(&mut come).is_err());
        let line = format!("{{\"id\":2,\"ok\":{{\"kind\":\"state\",\"bytes\":{}}}}}\n", STATE_BYTES_MAX + 1);
        let error = Messages::default().decode(&mut BytesMut::from(line.as_bytes())).expect_err("too much");
        assert!(error.to_string().contains("at most 2097152"), "{error}");
    }
}
