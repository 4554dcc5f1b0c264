//! Lines with a bound, out of a stream of bytes.
//!
//! ```text
//!   read ─▶ buffer ─┬─ newline ───────────────▶ Line
//!                   ├─ more than the cap ─────▶ TooLong      (for good: nobody knows where the next one begins)
//!                   ├─ the stream's end ──────▶ Torn, then End
//!                   └─ nothing comes ─────────▶ Silent in the middle of a line, Idle between two
//! ```
//!
//! Always true: one byte more than the cap is the most that is held; a caller that stops waiting loses nothing.

use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// How much is read at once. Most lines are far shorter.
const CHUNK_BYTES: usize = 8 << 10;

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A line, without its newline.
    Line(BytesMut),
    /// What stood behind the last newline when the stream ended.
    Torn(BytesMut),
    /// A line above the cap.
    TooLong,
    /// Half a line, and nothing since.
    Silent,
    /// Nothing since the last line.
    Idle,
    /// The stream has ended.
    End,
}

/// How long the next byte may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Between lines.
    pub(crate) idle: Duration,
    /// In the middle of a line.
    pub(crate) silent: Duration,
}

impl Patience {
    /// Waits as long as it takes.
    pub(crate) const ENDLESS: Self = Self { idle: Duration::MAX, silent: Duration::MAX };
}

/// The lines of one stream.
#[derive(Debug)]
pub(crate) struct Lines {
    buffer: BytesMut,
    /// So much of the buffer was searched for a newline and has none.
    searched: usize,
    bytes_max: usize,
    ended: bool,
}

impl Lines {
    /// Lines of at most this many bytes, the newline not counted.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { buffer: BytesMut::new(), searched: 0, bytes_max, ended: false }
    }

    /// The next line of this stream, which must be the same each time.
    pub(crate) async fn next(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        patience: Patience,
    ) -> io::Result<Heard> {
        loop {
            if let Some(heard) = self.take() {
                return Ok(heard);
            }
            let room = (self.bytes_max + 1).saturating_sub(self.buffer.len()).min(CHUNK_BYTES);
            self.buffer.reserve(room);
            let half = !self.buffer.is_empty();
            let limit = if half { patience.silent } else { patience.idle };
            let mut into = (&mut self.buffer).limit(room);
            match tokio::time::timeout(limit, stream.read_buf(&mut into)).await {
                Ok(read) => self.ended = read? == 0,
                Err(_) if half => return Ok(Heard::Silent),
                Err(_) => return Ok(Heard::Idle),
            }
        }
    }

    /// What the buffer has, if it has something.
    fn take(&mut self) -> Option<Heard> {
        let fresh = self.buffer.get(self.searched..).unwrap_or_default();
        if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
            let mut line = self.buffer.split_to(self.searched + at + 1);
            line.truncate(line.len() - 1);
            self.searched = 0;
            return Some(Heard::Line(line));
        }
        self.searched = self.buffer.len();
        if self.buffer.len() > self.bytes_max {
            return Some(Heard::TooLong);
        }
        match (self.ended, self.buffer.is_empty()) {
            (false, _) => None,
            (true, true) => Some(Heard::End),
            (true, false) => {
                self.searched = 0;
                Some(Heard::Torn(self.buffer.split()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn all(bytes: &[u8], cap: usize) -> Vec<Heard> {
        let (mut lines, mut stream, mut heard) = (Lines::new(cap), bytes, Vec::new());
        loop {
            let next = lines.next(&mut stream, Patience::ENDLESS).await.expect("a slice can be read");
            let last = matches!(next, Heard::End | Heard::TooLong);
            heard.push(next);
            if last {
                return heard;
            }
        }
    }

    fn line(text: &str) -> Heard {
        Heard::Line(text.into())
    }

    #[tokio::test]
    async fn lines_are_divided_and_have_a_bound() {
        assert_eq!(all(b"ab\n\ncd\n", 2).await, [line("ab"), line(""), line("cd"), Heard::End]);
        assert_eq!(all(b"ab\nc", 2).await, [line("ab"), Heard::Torn("c".into()), Heard::End]);
        assert_eq!(all(b"ab\nabc\nd\n", 2).await, [line("ab"), Heard::TooLong]);
        assert_eq!(all(b"abc", 2).await, [Heard::TooLong]);
        assert_eq!(all(b"", 2).await, [Heard::End]);
    }

    #[tokio::test]
    async fn no_more_than_the_cap_is_held() {
        let cap = 20_000;
        let (mut lines, endless) = (Lines::new(cap), vec![b'x'; 1 << 20]);
        let mut stream = endless.as_slice();
        let heard = lines.next(&mut stream, Patience::ENDLESS).await.expect("a slice can be read");
        assert_eq!((heard, lines.buffer.len()), (Heard::TooLong, cap + 1));
        assert_eq!(endless.len() - stream.len(), cap + 1);
    }

    #[tokio::test]
    async fn silence_in_a_line_is_no_idleness() {
        let patience = Patience { idle: Duration::from_millis(20), silent: Duration::from_millis(10) };
        let (mut near, mut far) = tokio::io::duplex(64);
        let mut lines = Lines::new(10);
        let mut next = async || lines.next(&mut far, patience).await.expect("a pipe can be read");
        assert_eq!(next().await, Heard::Idle);
        near.write_all(b"half").await.expect("room");
        assert_eq!(next().await, Heard::Silent);
        near.write_all(b" line\n").await.expect("room");
        assert_eq!(next().await, line("half line"), "who stops waiting loses nothing");
    }
}
