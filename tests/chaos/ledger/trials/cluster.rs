//! A real cluster's log: three voters, migrations with limits that change in between, one voter killed and back. And the
//! log of voters that have a bug.

use std::time::Duration;

use godwit_domain::ownership::Mode;
use godwit_domain::{GuestName, GuestSpec, Labels, NodeName, Overrides};
use godwit_wire::admin::{Act, MigrationDetail};
use godwit_wire::manifest;

use super::super::{Grants, Ledger, Moment};
use crate::support::world::{MIB, VOTERS, World, guest_of, limited_to, node};
use crate::support::{Outcome, PATIENCE, until};

const GUESTS: u64 = 6;

fn name_of(number: u64) -> GuestName {
    format!("default/g{number}").parse().expect("a guest's name")
}

async fn limit_to(world: &World, cluster: u64) -> Outcome {
    let text = format!(
        "apiVersion: hco.kubevirt.io/v1beta1\nkind: HyperConverged\nmetadata: {{name: kubevirt-hyperconverged}}\n\
         spec: {{liveMigrationConfig: {{parallelMigrationsPerCluster: {cluster}, parallelOutboundMigrationsPerNode: 6}}}}\n"
    );
    for object in manifest::documents(&text)? {
        world.cluster.ask_any(Act::Apply { object, namespace: None, create: false, dry_run: false }).await?;
    }
    Ok(())
}

async fn ask_for(
    world: &World,
    number: u64,
    target: &NodeName,
) -> Result<MigrationDetail, Box<dyn std::error::Error>> {
    let act = Act::Migrate {
        guest: name_of(number),
        migration: None,
        to: Some(target.clone()),
        selector: Labels::new(),
        overrides: Overrides::default(),
        mode: None,
        dry_run: false,
    };
    Ok(serde_json::from_value(world.cluster.ask_any(act).await?)?)
}

pub(super) async fn a_real_clusters_log_is_whole_and_right(world: &mut World) -> Outcome {
    let folders = VOTERS.map(|name| (node(name), world.cluster.node_dir(&node(name))));
    let mut ledger = Ledger::new(folders.to_vec());
    ledger.poll()?;
    world.start_with(&[]).await?;
    let (leader, _) = world.cluster.leader().await?;
    let others: Vec<NodeName> = VOTERS.map(node).into_iter().filter(|name| *name != leader).collect();
    let (stays, dies) = (leader, others[1].clone());
    let source = others[0].clone();
    for number in 0..GUESTS {
        world.cluster.create_guest(&name_of(number), &source, GuestSpec::idle(8 * MIB)).await?;
    }
    for (limit, numbers) in [(1, 0..2), (3, 2..4)] {
        limit_to(world, limit).await?;
        for number in numbers {
            ask_for(world, number, &stays).await?;
        }
    }
    ledger.poll()?;
    world.cluster.kill_node(&dies).await?;
    limit_to(world, 2).await?;
    for number in 4..GUESTS {
        ask_for(world, number, &stays).await?;
    }
    let over = |grants: &Grants| grants.courses.iter().filter(|course| course.ended.is_some()).count();
    let limit = PATIENCE + Duration::from_secs(30);
    until("all migrations are over, by the log", limit, || {
        ledger.poll().expect("no finding");
        let grants = ledger.judge().expect("nothing is wrong so far");
        (over(&grants) == usize::try_from(GUESTS).expect("few")).then_some(())
    })
    .await;
    world.cluster.restart_node(&dies).await?;
    // What it writes now is compared with what the others have written.
    limit_to(world, 4).await?;
    until("the one that was away has written everything", PATIENCE, || {
        let alone = {
            let folder = world.cluster.node_dir(&dies);
            let mut alone = Ledger::new(vec![(dies.clone(), folder)]);
            alone.poll().expect("its own log is a log");
            alone.all().len()
        };
        ledger.poll().expect("no finding");
        (alone == ledger.all().len()).then_some(())
    })
    .await;
    let grants = ledger.judge()?;
    assert_eq!((grants.admitted, grants.limits_changed), (GUESTS, 4), "{grants:?}");
    assert!((1..=3).contains(&grants.most_at_once), "{grants:?}");
    for course in &grants.courses {
        assert_eq!((course.phase, course.reason.as_ref()), ("Succeeded", None), "{course:?}");
        assert_eq!((course.source.as_ref(), course.target.as_ref()), (Some(&source), Some(&stays)));
        assert_eq!((course.mode, course.running), (Some(Mode::StopAndCopy), course.ended));
        let steps = [course.admitted, course.accepted, course.handed_over, course.ended];
        let indexes: Vec<_> = std::iter::once(course.requested)
            .chain(steps.into_iter().flatten())
            .map(|moment: Moment| moment.index)
            .collect();
        assert!(indexes.len() == 5 && indexes.is_sorted(), "{course:?}");
    }
    Ok(())
}

/// To voters that take the same epoch for the next one, a migration that was cancelled changes nothing.
pub(super) async fn a_bug_of_the_voters_is_found_in_their_log(world: &mut World) -> Outcome {
    // The runner does not take the same epoch twice, whatever its node says.
    world.announce(&["migration failed", "the guest was not resumed"]);
    let folders = VOTERS.map(|name| (node(name), world.cluster.node_dir(&node(name))));
    let mut ledger = Ledger::new(folders.to_vec());
    world.start_with(&VOTERS.map(|name| (name, "GODWIT_PLANTED", "epoch-stays"))).await?;
    world.create(guest_of(32, 1)).await?;
    let asked = world.ask_for("node-b", limited_to(1)).await?;
    let name = asked.row.name;
    world
        .comes("it copies", async |cluster| {
            let detail = cluster.migration(&name).await.ok()?;
            (detail.row.phase == "Running").then_some(())
        })
        .await;
    world.cluster.ask_any(Act::MigrationCancel { migration: name.clone() }).await?;
    world
        .comes("its permits are back", async |cluster| {
            (!cluster.migration(&name).await.ok()?.permits_held).then_some(())
        })
        .await;
    ledger.poll()?;
    ledger.judge()?;
    world.ask_for("node-c", limited_to(1)).await?;
    let found = until("the judge finds it", PATIENCE, || {
        ledger.poll().expect("the voters agree: each has the bug");
        ledger.judge().err()
    })
    .await;
    assert!(found.contains("epoch 1 is over, 2 rules") && found.contains("Accept"), "{found}");
    Ok(())
}
