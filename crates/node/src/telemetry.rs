//! What a node tells its operator: one line per event, to standard error.
//!
//! ```text
//!   GODWIT_LOG, else the config's filter ──▶ which events
//!   the config's format                  ──▶ text for people, JSON for programs
//! ```
//!
//! Always true: a line carries the fields of every span around its event, so whoever enters a span with
//! `guest` and `migration` has them in each line. Standard output stays free for answers.

use std::io::{IsTerminal, stderr};

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::LogFormat;

/// The environment variable whose filter wins over the config's: one run is looked at more closely without
/// touching a file that all runs share.
pub const FILTER_VARIABLE: &str = "GODWIT_LOG";

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not follow the grammar.
    #[error(
        "{origin} {filter:?} is not valid: it must be a level, or `target=level` pairs with commas between \
         them (for example info or info,godwit_transfer=debug)"
    )]
    Filter {
        /// Where the filter came from.
        origin: &'static str,
        /// As it was given.
        filter: String,
        /// What the parser says.
        #[source]
        source: ParseError,
    },
    /// This process logs already.
    #[error("start logging, which one process does once")]
    Twice(#[source] TryInitError),
}

/// Starts logging for the whole process.
///
/// # Errors
/// If a filter is not valid or logging has been started before.
pub fn init(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let filter = choose_filter(std::env::var(FILTER_VARIABLE).ok(), filter)?;
    subscriber(format, filter, stderr().is_terminal(), stderr).try_init().map_err(TelemetryError::Twice)
}

/// An empty variable means the same as none, as `GODWIT_LOG= godwit …` is how a shell unsets one for one run.
fn choose_filter(variable: Option<String>, config: &str) -> Result<EnvFilter, TelemetryError> {
    let (origin, filter) = match variable.filter(|text| !text.trim().is_empty()) {
        Some(text) => ("environment variable GODWIT_LOG", text),
        None => ("filter", config.to_owned()),
    };
    EnvFilter::try_new(&filter).map_err(|source| TelemetryError::Filter { origin, filter, source })
}

type AnySubscriber = Box<dyn Subscriber + Send + Sync>;

fn subscriber<W>(format: LogFormat, filter: EnvFilter, ansi: bool, writer: W) -> AnySubscriber
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(writer);
    match format {
        LogFormat::Text => Box::new(builder.finish()),
        LogFormat::Json => {
            Box::new(builder.json().flatten_event(true).with_current_span(true).with_span_list(true).finish())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written for one event inside a migration's span, and one below the filter.
    fn written(format: LogFormat) -> String {
        let lines = Lines::default();
        let sink = lines.clone();
        let filter = choose_filter(None, "info").expect("filter");
        tracing::subscriber::with_default(subscriber(format, filter, false, move || sink.clone()), || {
            let _outer = tracing::info_span!("migration", migration = "migration-1").entered();
            let _inner = tracing::info_span!("session", guest = "lab/vm1").entered();
            tracing::info!(round = 3, "sent");
            tracing::debug!("below the filter");
        });
        let bytes = lines.0.lock().expect("lock").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn every_line_names_its_guest_and_migration() {
        let text = written(LogFormat::Text);
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in ["migration=\"migration-1\"", "guest=\"lab/vm1\"", "round=3", "sent"] {
            assert!(text.contains(part), "{part} in {text}");
        }

        let json: serde_json::Value = serde_json::from_str(&written(LogFormat::Json)).expect("one JSON line");
        assert_eq!(json["message"], "sent");
        assert_eq!(json["round"], 3);
        assert_eq!(json["span"]["guest"], "lab/vm1");
        assert_eq!(json["spans"][0]["migration"], "migration-1");
    }

    #[test]
    fn the_environment_wins_and_names_itself_when_wrong() {
        let filter = |variable: Option<&str>| choose_filter(variable.map(str::to_owned), "warn");
        assert_eq!(filter(Some("debug")).expect("filter").to_string(), "debug");
        assert_eq!(filter(Some(" ")).expect("filter").to_string(), "warn");
        assert_eq!(filter(None).expect("filter").to_string(), "warn");
        let error = filter(Some("godwit=loud")).expect_err("no level").to_string();
        assert!(error.starts_with("environment variable GODWIT_LOG \"godwit=loud\" is not valid"), "{error}");
    }
}
