//! A real cluster whose leader is cut off again and again, while operators ask all of its nodes.
//!
//! ```text
//!   node-a ✂      leads, until it notices: answers its own operators        `stale-read`: from its own replica
//!   node-b ═══ node-c     elect another: agree on what node-a does not know
//! ```
//!
//! With the planted bug the histories show reads that no register would have answered; without it, under the same cuts,
//! they show none.

use std::time::Duration;

use godwit_domain::NodeName;
use godwit_wire::admin::{Act, Status};
use libtest_mimic::Trial;

use super::{History, Judged, Operators};
use crate::support::network::{self, Network};
use crate::support::world::{VOTERS, World, node};
use crate::support::{Outcome, story, unless, until};

/// Cuts after which histories are judged where nothing is planted.
const CUTS: usize = 2;
/// Cuts by which the bug must have shown itself. One is mostly enough.
const CUTS_MAX: usize = 12;
/// Answers that a cluster must have given since a moment, before it is cut, or whole again: so many changes and looks.
const ANSWERS: usize = 6;
/// How long they may take, and an election.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn trials() -> Vec<Trial> {
    let found = story("stale_reads_of_a_leader_that_is_cut_off_are_found", async |world| {
        let (cuts, wrong) = judged_under_cuts(world, Some("stale-read"), CUTS_MAX).await?;
        let Err(wrong) = wrong else { return Err(format!("not found in {cuts} cuts").into()) };
        assert!(wrong.contains("not linearizable") && wrong.contains("get: "), "another fault: {wrong}");
        eprintln!("found after {cuts} cuts:\n{wrong}");
        Ok(())
    });
    let none = story("a_leader_that_is_cut_off_answers_no_stale_reads", async |world| {
        judged_under_cuts(world, None, CUTS).await?.1?;
        Ok(())
    });
    let missing = network::missing();
    vec![unless(missing, found), unless(missing, none)]
}

type Judgement = Result<Judged, String>;

/// Cuts the leader off, `cuts` times or until the history is wrong. Returns how often it did.
async fn judged_under_cuts(
    world: &mut World,
    bug: Option<&str>,
    cuts: usize,
) -> Result<(usize, Judgement), Box<dyn std::error::Error>> {
    world.announce(&["giving up", "sendmsg error", "handshake: timed out"]);
    let network = Network::new()?;
    let mut specs = network.nodes();
    for spec in &mut specs {
        spec.environment.extend(bug.map(|bug| ("GODWIT_PLANTED".to_owned(), bug.to_owned())));
    }
    world.start_as(specs).await?;
    let seed = fastrand::u64(..);
    let operators = Operators::start(sockets(world), seed, settings());
    let mut done = 0;
    while done < cuts {
        cut(world, &network, operators.history()).await?;
        done += 1;
        if operators.history().judge().is_err() {
            break;
        }
    }
    let history = operators.finish().await;
    let judged = history.judge();
    if let Ok(judged) = &judged {
        let Judged { operations, reads, unknown, .. } = judged;
        let acknowledged = history.acknowledged();
        assert!(acknowledged.len() > 2 * ANSWERS, "too few: {acknowledged:?}");
        assert!(*reads > 2 * ANSWERS && operations - reads > 2 * ANSWERS + unknown, "too few: {judged}");
    }
    Ok((done, judged.map_err(|wrong| format!("seed {seed}: {wrong}"))))
}

async fn cut(world: &World, network: &Network, history: &History) -> Outcome {
    answers(history).await;
    let (leader, _) = world.cluster.leader().await?;
    network.plug(leader.as_str(), false)?;
    world
        .comes("the others have a leader", async |cluster| {
            for other in VOTERS.map(node).into_iter().filter(|other| *other != leader) {
                let status = cluster.ask(&other, Act::Status).await.ok()?;
                let status: Status = serde_json::from_value(status).ok()?;
                if status.stale || status.leader.is_none_or(|other| other == leader) {
                    return None;
                }
            }
            Some(())
        })
        .await;
    answers(history).await;
    network.plug(leader.as_str(), true)?;
    Ok(world.cluster.are_reachable(&VOTERS.map(node)).await?)
}

/// Waits until a few changes and looks more were answered.
async fn answers(history: &History) {
    let (changes, looks) = history.answered();
    until("operators are answered", PATIENCE, || {
        let now = history.answered();
        (now.0 >= changes + ANSWERS && now.1 >= looks + ANSWERS).then_some(())
    })
    .await;
}

fn sockets(world: &World) -> Vec<(NodeName, std::path::PathBuf)> {
    let socket =
        |name: NodeName| world.cluster.node(&name).map(|process| (name.clone(), process.socket.clone()));
    VOTERS.map(node).into_iter().filter_map(socket).collect()
}

fn settings() -> Vec<String> {
    let manifest = |limit: u32| {
        format!(
            "apiVersion: hco.kubevirt.io/v1beta1\nkind: HyperConverged\n\
             metadata: {{name: kubevirt-hyperconverged, namespace: openshift-cnv}}\n\
             spec: {{liveMigrationConfig: {{parallelMigrationsPerCluster: {limit}}}}}\n"
        )
    };
    (4..8).map(manifest).collect()
}
