//! What must hold at the end of a run, what a run has seen, and what it must have seen to say anything.
//!
//! ```text
//!   ticks ── each once, in order      entries ── the same at all voters, no grant above a limit, all that was acknowledged
//!   histories ── linearizable         wire ── no more than granted      migrations ── over      runners ── gone only if killed
//! ```

use std::error::Error;
use std::fmt;
use std::time::Duration;

use godwit_domain::ownership::Entry;
use godwit_domain::registry::Command;

use crate::courses::Stage;
use crate::director::Fault;
use crate::eyes::Seen;
use crate::herd::{Herd, HerdReport};
use crate::ledger::Grants;
use crate::linear::{History, Judged};
use crate::plan::Plan;
use crate::support::Outcome;
use crate::table::{Struck, outcomes};
use crate::wire::{self, WireReport};

/// A promise was broken, or looks so.
#[derive(Debug)]
pub(crate) struct Violated(pub(crate) String);

impl fmt::Display for Violated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Violated {}

impl From<String> for Violated {
    fn from(why: String) -> Self {
        Self(why)
    }
}

/// What was seen, if all was well.
pub(crate) struct Report {
    pub(crate) struck: Struck,
    pub(crate) migrations: usize,
    outcomes: String,
    herd: HerdReport,
    ticks: (usize, u64, usize),
    wire: WireReport,
    grants: Grants,
    judged: Judged,
    ended: Vec<String>,
    settled: Duration,
}

/// Everything that must hold of what was seen.
pub(crate) fn judge(
    seen: &Seen,
    faults: &[Fault],
    herd: &Herd,
    history: &History,
    ended: Vec<String>,
    settled: Duration,
) -> Result<Report, Violated> {
    let wrong = seen.ticks.wrong();
    if !wrong.is_empty() {
        return Err(format!("ticks that must not be: {wrong:?}").into());
    }
    let killed = herd.killed();
    for entry in seen.ledger.all() {
        if let Command::Guest { entry: Entry::Gone { instance }, .. } = &entry.command
            && entry.refused.is_none()
            && !killed.contains(instance)
        {
            let what =
                format!("runner {instance} is gone, and no fault has killed it (entry {})", entry.index);
            return Err(what.into());
        }
    }
    let grants = seen.ledger.judge()?;
    let acknowledged: Vec<_> = history.acknowledged().into_iter().map(|change| change.request_id).collect();
    seen.ledger.acknowledged(&acknowledged)?;
    let judged = history.judge()?;
    let wire = wire::judge(&seen.wire, &seen.courses.all)?;
    if let Some((name, course)) = seen.courses.all.iter().find(|(_, course)| course.end.is_none()) {
        return Err(format!("{name} never ended: {course:?}").into());
    }
    if let Some(by_itself) = ended.iter().find(|what| !what.contains("full disk")) {
        return Err(format!("a node process has ended by itself: {by_itself}").into());
    }
    Ok(Report {
        struck: Struck::count(faults, &seen.courses.all, &seen.leaders),
        migrations: seen.courses.all.len(),
        outcomes: outcomes(&seen.courses.all),
        herd: herd.report(),
        ticks: seen.ticks.counts(),
        wire,
        grants,
        judged,
        ended,
        settled,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { herd, wire, .. } = self;
        let mib = |bytes: u64| bytes >> 20;
        writeln!(f, "{}", self.struck.table())?;
        writeln!(f, "{} migrations:\n{}", self.migrations, self.outcomes)?;
        let (guests, ticks, stretches) = self.ticks;
        writeln!(
            f,
            "{guests} guests, {ticks} ticks in {stretches} stretches: none twice, none missing, none out of order"
        )?;
        writeln!(
            f,
            "{} guests made, {} given up since a fault had killed a runner of theirs; {} hosts fenced; {} comparisons of memory, {} MiB, no page wrong",
            herd.made,
            herd.given_up,
            herd.fences,
            herd.comparisons,
            mib(herd.verified_bytes)
        )?;
        writeln!(
            f,
            "{} MiB on the page network, {} seconds judged, the fullest {} % of what was granted",
            mib(wire.bytes),
            wire.seconds_judged,
            wire.fullest_percent
        )?;
        let Grants { entries, admitted, refused, most_at_once, limits_changed, .. } = &self.grants;
        writeln!(
            f,
            "{entries} entries, the same at every voter, {refused} of them refused; {admitted} admissions, none above a limit, \
             {most_at_once} at once at most; limits changed {limits_changed} times"
        )?;
        writeln!(f, "{}", self.judged)?;
        writeln!(f, "node processes that have ended by themselves: {:?}", self.ended)?;
        writeln!(f, "all well {:.1} s after the last fault", self.settled.as_secs_f64())
    }
}

/// What a run in earnest must have seen.
pub(crate) fn is_enough(report: &Report, plan: &Plan) -> Outcome {
    // Ten minutes are 200 faults and 300 migrations, and 30 faults in each phase; of less time half of its share.
    let seconds = u32::try_from(plan.length.as_secs()).unwrap_or(u32::MAX);
    let least = |of: u32| if seconds < 600 { of * seconds / 1_200 } else { of };
    let phases =
        Stage::ALL.map(|stage| (report.struck.begun_in(stage), 30, format!("faults in {}", stage.name())));
    // Of a minute a phase's share is one: as good as none, by chance.
    let phases = phases.into_iter().filter(|(_, of, _)| least(*of) >= 3);
    let all = [
        (report.struck.faults(), 200, "faults".to_owned()),
        (u32::try_from(report.migrations)?, 300, "migrations".to_owned()),
    ];
    let few = all.into_iter().chain(phases).filter(|(seen, of, _)| *seen < least(*of));
    let few: Vec<_> = few.map(|(seen, of, what)| format!("{seen} {what}, not {}", least(of))).collect();
    if few.is_empty() {
        Ok(())
    } else {
        Err(format!("too little has happened: {}\n{report}", few.join("; ")).into())
    }
}
