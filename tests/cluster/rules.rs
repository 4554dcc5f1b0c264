//! What the group decides, and what a running migration hears of it: policies, settings, a node's bandwidth, a network.
//!
//! ```text
//!   manifest ── apply ──▶ group ──▶ the migration that runs ──▶ bytes on the wire, and a line in its history
//! ```

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use godwit::lab::cluster::Cluster;
use godwit_domain::GuestSpec;
use godwit_wire::admin::{Act, Applied, MigrationDetail};
use godwit_wire::manifest;
use libtest_mimic::Trial;

use crate::support::world::{VOTERS, World, guest, guest_of, node};
use crate::support::{Outcome, stories};

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_policy_that_is_edited_changes_the_migration_that_runs,
        two_migrations_share_what_their_node_may_send,
        pages_go_over_the_network_that_is_named_and_over_no_other,
        a_guest_that_is_stopped_while_it_moves_is_gone_and_so_is_its_migration
    ]
}

/// Applies every document, as an operator does.
pub(crate) async fn apply(cluster: &Cluster, text: &str) -> Result<Vec<Applied>, Box<dyn std::error::Error>> {
    let mut applied = Vec::new();
    for object in manifest::documents(text)? {
        let act = Act::Apply { object, namespace: None, create: false, dry_run: false };
        applied.push(serde_json::from_value(cluster.ask_any(act).await?)?);
    }
    Ok(applied)
}

/// A migration that sends, and what it has sent.
async fn sends(world: &World, name: &godwit_domain::MigrationId) -> u64 {
    world
        .comes("pages flow", async |cluster| {
            let progress = cluster.migration(name).await.ok()?.progress?;
            (progress.wire_bytes > 0).then_some(progress.wire_bytes)
        })
        .await
}

/// A busy host carries less, and tells of it late: it is looked at again.
const LOOKS: usize = 5;

/// Bytes per second that a migration sends, over two seconds.
async fn rate(world: &World, name: &godwit_domain::MigrationId) -> Result<f64, Box<dyn std::error::Error>> {
    let sent = async |detail: MigrationDetail| detail.progress.map_or(0, |progress| progress.wire_bytes);
    let (began, first) = (Instant::now(), sent(world.cluster.migration(name).await?).await);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let last = sent(world.cluster.migration(name).await?).await;
    #[expect(clippy::cast_precision_loss, reason = "a rate to a few percent")]
    Ok((last - first) as f64 / began.elapsed().as_secs_f64())
}

fn policy(bandwidth: &str) -> String {
    format!(
        "apiVersion: migrations.kubevirt.io/v1alpha1\nkind: MigrationPolicy\nmetadata: {{name: careful}}\n\
         spec: {{bandwidthPerMigration: {bandwidth}, selectors: {{namespaceSelector: {{team: db}}}}}}\n"
    )
}

async fn a_policy_that_is_edited_changes_the_migration_that_runs(world: &mut World) -> Outcome {
    world.three_with(guest_of(384, 1)).await?;
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {team: db}}\n";
    apply(&world.cluster, &format!("{namespace}---\n{}", policy("8Mi"))).await?;
    let asked = world.ask_for("node-b", godwit_domain::Overrides::default()).await?;
    let name = asked.row.name.clone();
    assert_eq!(asked.row.policy.as_ref().map(ToString::to_string).as_deref(), Some("careful"), "{asked:?}");
    sends(world, &name).await;
    let slow = rate(world, &name).await?;
    assert!(slow < 8.8 * 1_048_576.0, "{slow} bytes in a second under a policy of 8 MiB");
    apply(&world.cluster, &policy("32Mi")).await?;
    let mut faster = 0.0;
    for _ in 0..LOOKS {
        faster = rate(world, &name).await?;
        if faster > 2.0 * slow {
            break;
        }
    }
    assert!(faster > 2.0 * slow, "{faster} bytes in a second after the policy was raised, {slow} before");
    // The project is another one now: no policy matches any more.
    apply(&world.cluster, "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n").await?;
    let ended = world
        .comes("the move is over", async |cluster| {
            let detail = cluster.migration(&name).await.ok()?;
            (detail.over && !detail.permits_held).then_some(detail)
        })
        .await;
    assert_eq!((ended.row.phase.as_str(), ended.row.policy), ("Succeeded", None));
    let changes: Vec<_> = ended.changes.iter().map(|change| change.what.as_str()).collect();
    assert!(
        matches!(changes.as_slice(), [edited, labels]
            if edited.contains("policy careful") && edited.contains("bandwidthPerMigration 8Mi → 32Mi")
                && labels.contains("labels of project default") && labels.contains("careful → none")),
        "{changes:?}"
    );
    let steps: Vec<_> = ended.steps.iter().map(|step| step.phase.as_str()).collect();
    let way =
        ["Pending", "Scheduling", "PreparingTarget", "TargetReady", "Running", "SwitchingOver", "Succeeded"];
    assert_eq!(steps, way);
    assert_eq!(world.wrong_pages().await?, 0);
    Ok(())
}

async fn two_migrations_share_what_their_node_may_send(world: &mut World) -> Outcome {
    // The story ends before they do.
    world.announce(&["migration failed", "giving up"]);
    world.start_with(&[]).await?;
    let settings = "apiVersion: kubevirt.io/v1\nkind: KubeVirt\nmetadata: {name: kubevirt, namespace: kubevirt}\n\
                    spec: {configuration: {migrations: {nodeBandwidth: 32Mi}}}\n";
    apply(&world.cluster, settings).await?;
    let mut names = Vec::new();
    for (at, target) in ["node-b", "node-c"].into_iter().enumerate() {
        let name: godwit_domain::GuestName = format!("default/shared-{at}").parse()?;
        world.cluster.create_guest(&name, &node("node-a"), guest_of(256, 1)).await?;
        let act = Act::Migrate {
            guest: name,
            migration: None,
            to: Some(node(target)),
            selector: godwit_domain::Labels::new(),
            overrides: godwit_domain::Overrides::default(),
            mode: None,
            dry_run: false,
        };
        let asked: MigrationDetail = serde_json::from_value(world.cluster.ask_any(act).await?)?;
        names.push(asked.row.name);
    }
    for name in &names {
        sends(world, name).await;
    }
    let all = 32.0 * 1_048_576.0;
    let is_fair = |(first, second): &(f64, f64)| {
        first + second < 1.1 * all && first.max(*second) < 1.5 * first.min(*second)
    };
    let mut looks = Vec::new();
    while !looks.last().is_some_and(is_fair) && looks.len() < LOOKS {
        let (first, second) = tokio::join!(rate(world, &names[0]), rate(world, &names[1]));
        let (first, second) = (first?, second?);
        // What is known of them may be a third of a second old.
        assert!(first + second < 1.25 * all, "together {} bytes in a second", first + second);
        looks.push((first, second));
    }
    assert!(looks.last().is_some_and(is_fair), "bytes per second of the one and the other: {looks:?}");
    let detail = world.cluster.migration(&names[0]).await?;
    assert_eq!(detail.settings["nodeBandwidth"].value.to_string(), "32Mi", "{detail:?}");
    Ok(())
}

/// Where a node's pages come in on a network of its own.
fn on_network(host: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 7, host], 0))
}

async fn pages_go_over_the_network_that_is_named_and_over_no_other(world: &mut World) -> Outcome {
    let specs = (1..).zip(VOTERS).map(|(host, name)| {
        let mut spec = world.cluster.spec(&node(name));
        // The third host lacks it.
        if name != "node-c" {
            spec.networks = vec![("fast".to_owned(), on_network(host))];
        }
        spec
    });
    let specs = specs.collect();
    world.start_as(specs).await?;
    world.create(guest_of(48, 4)).await?;
    let settings = |network: &str| {
        format!(
            "apiVersion: hco.kubevirt.io/v1beta1\nkind: HyperConverged\n\
             metadata: {{name: kubevirt-hyperconverged, namespace: openshift-cnv}}\n\
             spec: {{liveMigrationConfig: {{network: {network}}}}}\n"
        )
    };
    apply(&world.cluster, &settings("fast")).await?;
    let verdict = world.ask_for("node-c", godwit_domain::Overrides::default()).await?;
    let waits = world
        .comes("it says that node-c is not on the network", async |cluster| {
            cluster.migration(&verdict.row.name).await.ok()?.obstacles.get(&node("node-c")).cloned()
        })
        .await;
    assert!(waits.contains("not on the migration network \"fast\""), "{waits}");
    world.cluster.ask_any(Act::MigrationCancel { migration: verdict.row.name }).await?;
    world.move_to("node-b", godwit_domain::Overrides::default()).await?;
    // Between which addresses it went, as the kernel says it to the side that was called.
    let line = world.logs("node-b", "source connected").await;
    assert!(line.contains("from=127.0.7.1:") && line.contains("127.0.7.2"), "{line}");
    assert_eq!(world.wrong_pages().await?, 0);
    Ok(())
}

async fn a_guest_that_is_stopped_while_it_moves_is_gone_and_so_is_its_migration(
    world: &mut World,
) -> Outcome {
    world.announce(&[
        "migration failed",
        "giving up",
        "transfer has stopped",
        "connection lost",
        "did not end by itself",
    ]);
    let spec = GuestSpec { tick_interval_ms: 5, ..guest_of(64, 8) };
    world.three_with(spec).await?;
    let asked = world.ask_for("node-b", crate::support::world::limited_to(8)).await?;
    sends(world, &asked.row.name).await;
    world.cluster.ask_any(Act::GuestStop { guest: guest() }).await?;
    for name in ["node-a", "node-b"] {
        world.runner_goes(name).await?;
    }
    // Its name is free, and permits and memory are back.
    world.create(guest_of(64, 8)).await?;
    world.move_and_prove("node-b").await?;
    let free = world.cluster.node_detail(&node("node-a")).await?.row;
    assert_eq!((free.outbound, free.inbound), (0, 0));
    Ok(())
}
