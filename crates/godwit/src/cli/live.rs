//! How something goes, on stderr: a bar on a terminal, else a line for each news.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::talk;

/// How often a bar shows that somebody still waits.
const TICK_INTERVAL: Duration = Duration::from_millis(200);

/// What is shown while somebody waits.
pub(super) enum Live {
    /// On a terminal.
    Bar(ProgressBar),
    /// In a log; the last news.
    Lines(String),
}

impl Live {
    /// Nothing yet.
    pub(super) fn start() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines(String::new());
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{prefix}  {bar:24} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(TICK_INTERVAL);
        Self::Bar(bar)
    }

    /// Shows how it stands: as a line, if `news` of it differs from the last, or on the bar.
    pub(super) fn show(
        &mut self,
        line: impl FnOnce() -> String,
        news: impl FnOnce(&str) -> String,
        bar: impl FnOnce(&ProgressBar),
    ) {
        match self {
            Self::Bar(shown) => bar(shown),
            Self::Lines(last) => {
                let line = line();
                let news = news(&line);
                if news != *last {
                    talk(&line);
                    *last = news;
                }
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
