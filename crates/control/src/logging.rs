//! raft's log lines, brought to tracing: the one file that knows slog's drains.
//!
//! raft tells its ordinary life (elections, votes) at level info; here that is debug, because a node's own lines say
//! what an operator needs. What raft warns of stays a warning.

use std::fmt::Write;

use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record};

struct ToTracing;

/// A line's fields as ` key=value …`.
#[derive(Default)]
struct Fields(String);

impl slog::Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}")?;
        Ok(())
    }
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, context: &OwnedKVList) -> Result<(), Never> {
        macro_rules! tell {
            ($level:ident) => {
                if tracing::enabled!(target: "raft", tracing::Level::$level) {
                    let mut fields = Fields::default();
                    // A field that can not be written is left out of a log line.
                    let _ = record.kv().serialize(record, &mut fields);
                    let _ = context.serialize(record, &mut fields);
                    tracing::event!(target: "raft", tracing::Level::$level, "{}{}", record.msg(), fields.0);
                }
            };
        }
        match record.level() {
            Level::Critical | Level::Error => tell!(ERROR),
            Level::Warning => tell!(WARN),
            Level::Info => tell!(DEBUG),
            Level::Debug | Level::Trace => tell!(TRACE),
        }
        Ok(())
    }
}

/// The logger that raft is given.
pub(crate) fn logger() -> Logger {
    Logger::root(ToTracing, slog::o!())
}
