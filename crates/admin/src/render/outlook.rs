//! What is to be expected of a copy, what was done about it, and how wrong the expectation was.

use godwit_domain::precopy::{Confidence, Did, Fits, Prediction, Step};
use godwit_domain::progress::{Forecast, SourceReport};

use super::list;
use super::units::{bytes, micros, millis, rate};

/// What is to be expected, as a half-sentence.
pub fn expected(prediction: &Prediction) -> String {
    let Prediction {
        fits,
        downtime_ms,
        left_bytes,
        needed_bandwidth,
        send_rate,
        downtime_max_ms,
        confidence,
    } = prediction;
    let allowed = millis(*downtime_max_ms);
    let text = match fits {
        Fits::Yes { in_ms, round } => {
            let (when, pause) = (millis(*in_ms), millis(*downtime_ms));
            format!("will fit {allowed} in about {when}, after round {round}, with a pause of about {pause}")
        }
        Fits::No => format!(
            "will not fit {allowed}: about {} stay, a pause of {}; needs {} (has {})",
            bytes(*left_bytes),
            millis(*downtime_ms),
            rate(*needed_bandwidth),
            rate(*send_rate)
        ),
    };
    match confidence {
        Confidence::Firm => text,
        Confidence::Early => format!("{text}; an early guess"),
        Confidence::Varies => format!("{text}; it writes now more, now less: a quiet moment may end it"),
    }
}

/// What was done, and why.
pub(super) fn steps_of(steps: &[Step]) -> String {
    list("", ["round", "done", "why"], &[], steps.iter().map(step))
}

fn step(step: &Step) -> [String; 3] {
    let Step { from_round, round, did, before_bytes, left_bytes, downtime_ms } = step;
    let rounds = if from_round == round { round.to_string() } else { format!("{from_round} to {round}") };
    let [before, left, pause] = [bytes(*before_bytes), bytes(*left_bytes), millis(*downtime_ms)];
    let went = if left_bytes > before_bytes { "grew" } else { "went" };
    let change = format!("left {went} from {before} to {left}");
    let (done, why) = match did {
        Did::GoOn => ("went on".to_owned(), format!("{change}; a pause would take {pause}")),
        Did::WaitForQuorum => (
            "went on".to_owned(),
            format!("ready, with {left} left, and no quorum of the control group answered"),
        ),
        Did::Throttle(percent) => (format!("throttled to {percent} %"), change),
        Did::LetFree => ("throttled no longer".to_owned(), "it is not allowed any more".to_owned()),
        Did::SwitchOver => ("switched over".to_owned(), format!("{left} left, which take {pause}")),
        Did::PostCopy => {
            ("stopped for post-copy".to_owned(), format!("{left} left, which would take {pause}"))
        }
        Did::PauseAndFinish => (
            "paused to finish".to_owned(),
            format!("the deadline has passed; {left} left, which take {pause}"),
        ),
        Did::GiveUp => ("gave up".to_owned(), format!("{left} left, which would take {pause}")),
    };
    [rounds, done, why]
}

/// What was expected after the first round, and by how much that was wrong.
pub(super) fn hindsight(report: &SourceReport) -> Vec<(&'static str, String)> {
    let Some(Forecast { prediction, .. }) = report.forecast.as_deref() else { return Vec::new() };
    let apart = |error: i64| {
        let size = micros(error.unsigned_abs());
        if error < 0 {
            format!("{size} shorter than expected")
        } else {
            format!("{size} longer than expected")
        }
    };
    let mut all = vec![("expected after round 1", expected(prediction))];
    all.extend(report.total_error_us().map(|error| ("total was", apart(error))));
    all.extend(report.downtime_error_us().map(|error| ("downtime was", apart(error))));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const NO: Prediction = Prediction {
        fits: Fits::No,
        downtime_ms: 1500,
        left_bytes: 96 * MIB,
        needed_bandwidth: 180 * MIB,
        send_rate: 64 * MIB,
        downtime_max_ms: 300,
        confidence: Confidence::Firm,
    };

    #[test]
    fn what_is_expected_reads_well() {
        let yes = Prediction { fits: Fits::Yes { in_ms: 12_000, round: 4 }, downtime_ms: 80, ..NO };
        let early = Prediction { confidence: Confidence::Early, ..yes };
        let varies = Prediction { confidence: Confidence::Varies, ..NO };
        let no =
            "will not fit 300 ms: about 96.0 MiB stay, a pause of 1.5 s; needs 180.0 MiB/s (has 64.0 MiB/s)";
        let fits = "will fit 300 ms in about 12.0 s, after round 4, with a pause of about 80 ms";
        assert_eq!(expected(&NO), no);
        assert_eq!(expected(&yes), fits);
        assert_eq!(expected(&early), format!("{fits}; an early guess"));
        assert!(
            expected(&varies).starts_with(no) && expected(&varies).ends_with("a quiet moment may end it")
        );
    }

    #[test]
    fn a_step_says_round_deed_and_reason() {
        let grew = Step {
            from_round: 3,
            round: 3,
            did: Did::Throttle(20),
            before_bytes: 90 * MIB,
            left_bytes: 96 * MIB,
            downtime_ms: 1500,
        };
        assert_eq!(step(&grew), ["3", "throttled to 20 %", "left grew from 90.0 MiB to 96.0 MiB"]);
        let on = Step { from_round: 1, did: Did::GoOn, before_bytes: 512 * MIB, ..grew };
        let why = "left went from 512.0 MiB to 96.0 MiB; a pause would take 1.5 s";
        assert_eq!(step(&on), ["1 to 3", "went on", why]);
    }

    #[test]
    fn an_error_is_said_with_its_direction() {
        let report = SourceReport {
            pause_us: 1_400_000,
            forecast: Some(Box::new(Forecast { said_us: 1, prediction: NO })),
            ..SourceReport::default()
        };
        let said = hindsight(&report);
        assert_eq!(said.last(), Some(&("downtime was", "100.000 ms shorter than expected".to_owned())));
        assert_eq!(said.len(), 2, "no end was expected: {said:?}");
        assert!(hindsight(&SourceReport::default()).is_empty());
    }
}
