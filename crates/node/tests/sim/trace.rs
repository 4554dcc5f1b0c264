//! The log of a history: a line an event, and a digest of the lines, whoever reads them.

use std::fmt::Write;

#[derive(Debug, Default)]
pub(crate) struct Trace {
    on: bool,
    text: String,
}

impl Trace {
    pub(crate) fn new(on: bool) -> Self {
        Self { on, text: String::new() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// A line, at so many microseconds.
    pub(crate) fn line(&mut self, now: u64, what: &str) {
        let _ = writeln!(self.text, "{:>9}.{:03} ms  {what}", now / 1000, now % 1000);
    }

    /// Everything so far.
    pub(crate) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }
}
