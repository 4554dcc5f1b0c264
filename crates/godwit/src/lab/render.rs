//! How a lab is shown: live progress on a terminal, a table or one JSON object at the end.

use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use godwit_domain::precopy::{Prediction, Step};
use godwit_domain::progress::{LATENCY_BUCKETS, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::machine::MachineMove;

/// One move, as it is reported.
#[derive(Debug, Clone, Serialize)]
pub struct Move {
    /// The guest.
    pub guest: String,
    /// How the missing pages came.
    pub mode: &'static str,
    /// From where.
    pub source: String,
    /// To where.
    pub target: String,
    /// Size of RAM.
    pub memory_bytes: u64,
    /// Bytes of UDP payload that the source sent.
    pub wire_bytes: u64,
    /// Rounds, the last one included.
    pub rounds: u16,
    /// From the order to the end.
    pub total_ms: f64,
    /// The longest gap between two ticks across the move: what the guest saw.
    pub downtime_ms: f64,
    /// Standing still, last scan, device state saved.
    pub pause_ms: f64,
    /// Last pages and device state to the target, and loaded there.
    pub state_ms: f64,
    /// What of the commit stuck out behind that.
    pub commit_ms: f64,
    /// From "complete and licensed" to "runs".
    pub resume_ms: f64,
    /// Downtime as it was predicted when the guest was stopped; null: nothing had arrived by then.
    pub predicted_downtime_ms: Option<f64>,
    /// What was expected after the first round, if anything was.
    pub prediction: Option<Prediction>,
    /// How long the whole move was expected to take then; null: it was not expected to end.
    pub predicted_total_ms: Option<f64>,
    /// By how much longer it took, below 0: shorter.
    pub predicted_total_error_ms: Option<f64>,
    /// The same of the downtime, as the source saw it.
    pub predicted_downtime_error_ms: Option<f64>,
    /// What was done about it, round by round.
    pub steps: Vec<Step>,
    /// Gaps and repeats in the guest's ticks.
    pub ticks_lost: u64,
    /// As `downtime_ms`.
    pub tick_gap_max_ms: f64,
    /// Every page was compared with what it must hold, and none differed.
    pub verified: bool,
    /// Pages that were compared.
    pub pages_verified: u64,
    /// Pages that differed.
    pub pages_wrong: u64,
    /// Pages that both sides had and the guest had not written since, which were compared; none in post-copy.
    pub audit_checked_pages: Option<u64>,
    /// Of them, those that were not alike.
    pub audit_mismatched_pages: Option<u64>,
    /// Pages sent with their bytes.
    pub raw_pages: u64,
    /// Those bytes.
    pub raw_bytes: u64,
    /// Pages sent as zeros, without bytes.
    pub zero_pages: u64,
    /// Pages sent packed.
    pub packed_pages: u64,
    /// Bytes that those were packed into.
    pub packed_bytes: u64,
    /// What the source spent on trying and packing.
    pub packing_ms: f64,
    /// Pages that rounds left out because they had been written again.
    pub skipped_pages: u64,
    /// Dirty rate that was asked for, bytes per second.
    pub dirty_rate_asked: u64,
    /// Dirty rate that the guest achieved during the move, bytes per second.
    pub dirty_rate_achieved: u64,
    /// Bytes of pages that were missing when the guest began to run at the target; 0 in pre-copy.
    pub postcopy_missing_at_resume_bytes: u64,
    /// From then until the last page was there.
    pub postcopy_ms: f64,
    /// Ticks of the guest in that time.
    pub ticks_while_missing: usize,
    /// Times that the guest waited for a page.
    pub faults: u64,
    /// Half of these waits took no longer than this.
    pub fault_p50_us_max: u64,
    /// 99 of 100 of them took no longer than this.
    pub fault_p99_us_max: u64,
    /// How many took 2^n to 2^(n+1) microseconds.
    pub fault_latency_log2_us: [u64; LATENCY_BUCKETS],
    /// All waits of all threads together.
    pub blocked_ms: f64,
}

/// The whole lab, as `-o json` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct LabReport {
    /// Every move succeeded and was verified, and the guest wrote as it should.
    pub ok: bool,
    /// Node processes.
    pub nodes: usize,
    /// Who led the control group when the first move began.
    pub leader: Option<String>,
    /// In which term.
    pub term: u64,
    /// The largest resident memory that any node process had.
    pub node_rss_bytes_max: u64,
    /// The moves, in order.
    pub migrations: Vec<Move>,
    /// Those of a virtual machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub machine: Vec<MachineMove>,
    /// What went wrong, if something did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The lab's folder, if it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
}

/// Microseconds as milliseconds with three digits.
pub fn millis(micros: u64) -> f64 {
    // Exact below 2^53 µs, that is 285 years.
    micros as f64 / 1000.0
}

/// The same of a difference.
pub fn millis_apart(micros: i64) -> f64 {
    micros as f64 / 1000.0
}

/// Bytes for people: `104.2 MiB`.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let unit = units.get(unit).copied().unwrap_or_default();
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

/// The table of moves.
pub fn table(moves: &[Move]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "move",
        "rounds",
        "wire",
        "total",
        "downtime",
        "pause",
        "state",
        "commit",
        "resume",
        "missing at resume",
        "faults",
        "ticks lost",
        "verified",
        "audited",
    ]);
    for moved in moves {
        let ms = |value: f64| format!("{value:.1} ms");
        let verified = if moved.verified {
            format!("all {} pages", moved.pages_verified)
        } else {
            format!("{} PAGES WRONG", moved.pages_wrong)
        };
        let audited = match (moved.audit_checked_pages, moved.audit_mismatched_pages) {
            (Some(checked), Some(0)) => format!("{checked} pages"),
            (_, Some(mismatched)) => format!("{mismatched} PAGES DIFFER"),
            (_, None) => "-".to_owned(),
        };
        let (missing, faults) = match moved.mode {
            "post-copy" => (
                bytes(moved.postcopy_missing_at_resume_bytes),
                format!("{}, p99 < {} us", moved.faults, moved.fault_p99_us_max),
            ),
            _ => ("-".to_owned(), "-".to_owned()),
        };
        table.add_row([
            format!("{} → {}", moved.source, moved.target),
            moved.rounds.to_string(),
            bytes(moved.wire_bytes),
            format!("{:.2} s", moved.total_ms / 1000.0),
            ms(moved.downtime_ms),
            ms(moved.pause_ms),
            ms(moved.state_ms),
            ms(moved.commit_ms),
            ms(moved.resume_ms),
            missing,
            faults,
            moved.ticks_lost.to_string(),
            verified,
            audited,
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Live progress of one move. Says nothing where stderr is no terminal.
#[derive(Debug)]
pub struct Live {
    bar: ProgressBar,
}

impl Live {
    /// Begins to show.
    pub fn start(title: String, memory_bytes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(memory_bytes), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{prefix}  {bar:24} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(title);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    /// Shows how far it is.
    pub fn show(&self, progress: &Progress) {
        let left = progress.left_bytes.saturating_add(progress.dirty_bytes);
        self.bar.set_position(self.bar.length().unwrap_or(0).saturating_sub(left));
        // Before anything has arrived there is nothing to predict from.
        let downtime = match progress.send_rate {
            0 => "not known yet".to_owned(),
            _ => format!("{} ms", progress.predicted_downtime_ms),
        };
        let expected = progress.prediction.as_ref();
        let expected =
            expected.map_or_else(String::new, |said| format!(", {}", godwit_admin::render::expected(said)));
        self.bar.set_message(format!(
            "round {}, {} left, {}/s out, {}/s written, downtime now {downtime}{expected}",
            progress.round,
            bytes(left),
            bytes(progress.send_rate),
            bytes(progress.dirty_rate),
        ));
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1 << 30), "1.0 GiB");
        assert_eq!(millis(1234), 1.234);
    }
}
