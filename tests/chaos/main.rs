//! Faults at random over a whole cluster, and an observer who believes nobody.
//!
//! ```text
//!   field      hosts, networks, disks and clocks, and what can be done to them
//!   faults     what can befall a host      director  who is struck by what, and when
//!   hands      how it is done              containers  the same in the lab of docker/compose.yaml
//!   herd       the guests                  moves     their migrations
//!   linear     operators and the histories of what they were told
//!   eyes       the observer: ledger (audit logs), courses (of migrations), ticks, wire
//!   run        one run        verdict    what must hold        plan  how long, from which seed        table  what it was like
//! ```
//!
//! `CHAOS_MINUTES=11 CHAOS_SEED=4711 cargo test -p godwit --test chaos`; with `CHAOS_PLANTED=1` bugs are planted and must be
//! found, with `CHAOS_LAB=1` the lab of containers suffers too. It needs root for network namespaces; where there are none
//! it is shown as ignored, with the reason.

mod containers;
mod courses;
mod director;
mod doors;
mod eyes;
mod faults;
mod field;
mod hands;
mod herd;
mod ledger;
mod linear;
mod moves;
mod plan;
mod run;
#[allow(dead_code, reason = "each suite needs a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod table;
mod ticks;
mod verdict;
mod wire;

use std::time::Duration;

use libtest_mimic::{Arguments, Trial};

use courses::Stage;
use faults::Kind;
use plan::{Lean, Plan, Side};
use support::world::World;
use support::{Outcome, short_story, stories, story, unless};
use verdict::Violated;

/// A run in the lab of containers, if that is asked for: it needs an engine and an image that somebody has built.
const LAB: &str = "a_lab_of_containers_under_faults_keeps_its_promises";
const LAB_VARIABLE: &str = "CHAOS_LAB";

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let mut own = vec![
        short_story("what_must_not_be_is_seen_in_ticks", ticks::tests::what_must_not_be_is_seen),
        short_story("more_than_was_granted_is_seen_on_the_wire", wire::tests::more_than_was_granted_is_seen),
    ];
    let missing = field::missing();
    let planted = std::env::var(PLANTED_VARIABLE).ok().map(|named| bugs(&named));
    let runs = stories![a_cluster_under_faults_keeps_its_promises];
    let runs = runs.into_iter().chain(planted.into_iter().flatten().map(finds));
    own.extend(runs.map(|run| unless(missing.as_deref(), run)));
    own.extend(std::env::var_os(LAB_VARIABLE).map(|_| short_story(LAB, lab_keeps_its_promises)));
    let all = [field::trials(), linear::trials(), ledger::trials(), own];
    libtest_mimic::run(&arguments, all.into_iter().flatten().collect()).exit();
}

/// Bugs of the hand-over that the simulation knows, in every node of a cluster: each breaks a promise within minutes.
const PLANTED: [(&str, Option<Lean>); 5] = [
    ("epoch-stays", None),
    ("hand-back-by-time-out", lean(Stage::Committed, Side::Source, Kind::KillNode, 0)),
    ("free-at-hand-over", lean(Stage::Committed, Side::Source, Kind::KillNode, 0)),
    ("vouch-hands-back", fenced(lean(Stage::Committed, Side::Target, Kind::KillHost, 0))),
    // Right after the commit a target has every page or will miss them: where it has, the loss of its source is nothing to it.
    ("source-loss-is-guest-loss", lean(Stage::Committed, Side::Source, Kind::KillRunner, 0)),
];
/// Those that take luck: they are found two times of three.
const SELDOM: [(&str, Option<Lean>); 2] = [
    ("restart-forgets", lean(Stage::Committed, Side::Target, Kind::KillCutOff, 600)),
    ("absent-never-started", lean(Stage::Committed, Side::Target, Kind::KillHost, 600)),
];
/// They are looked for if that is asked for, since it takes minutes: `1` for all of these, or names with commas between.
const PLANTED_VARIABLE: &str = "CHAOS_PLANTED";
/// How long a bug may go unseen.
const PLANTED_LENGTH: Duration = Duration::from_secs(480);
/// And how long a migration may then take to end: a bug may be that it never does.
const PLANTED_PATIENCE: Duration = Duration::from_secs(45);

const fn lean(stage: Stage, side: Side, kind: Kind, after_ms: u64) -> Option<Lean> {
    Some(Lean { stage, side, kind, after_ms, fences: false })
}

const fn fenced(lean: Option<Lean>) -> Option<Lean> {
    match lean {
        Some(lean) => Some(Lean { fences: true, ..lean }),
        None => None,
    }
}

fn bugs(named: &str) -> Vec<(&'static str, Option<Lean>)> {
    if named == "1" {
        return PLANTED.to_vec();
    }
    let known = || PLANTED.iter().chain(&SELDOM);
    let lean = |bug: &str| known().find(|(name, _)| *name == bug).and_then(|(_, lean)| *lean);
    // As long as the process, of which there is one.
    named.split(',').map(|bug| (&*bug.to_owned().leak(), lean(bug))).collect()
}

fn finds((bug, lean): (&'static str, Option<Lean>)) -> Trial {
    story(&format!("{bug}_is_planted_and_found"), async move |world| {
        let plan = Plan {
            planted: Some(bug),
            lean,
            length: PLANTED_LENGTH,
            patience: PLANTED_PATIENCE,
            ..Plan::from_environment()?
        };
        match Box::pin(run::in_namespaces(world, &plan, bug)).await {
            Err(why) if why.is::<Violated>() => {
                run::tell(&format!("{bug}: {}", why.to_string().chars().take(400).collect::<String>()));
                Ok(())
            }
            Err(why) => Err(why),
            Ok(report) => Err(format!("nobody has noticed {bug} in {PLANTED_LENGTH:?}:\n{report}").into()),
        }
    })
}

/// Minutes are those of [`Plan`]; the image `godwit:dev` must have been built and no lab be up.
async fn lab_keeps_its_promises() -> Outcome {
    let plan = Plan { network: Some("migration"), ..Plan::from_environment()? };
    let report = Box::pin(run::in_containers(&plan, LAB)).await?;
    run::tell(&report.to_string());
    Ok(())
}

async fn a_cluster_under_faults_keeps_its_promises(world: &mut World) -> Outcome {
    let plan = Plan::from_environment()?;
    let report = Box::pin(run::in_namespaces(world, &plan, "a_cluster_under_faults")).await?;
    verdict::is_enough(&report, &plan)?;
    run::tell(&report.to_string());
    Ok(())
}
