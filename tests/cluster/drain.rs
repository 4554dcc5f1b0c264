//! A node is emptied, and requests that are repeated.
//!
//! ```text
//!   drain node-a ─▶ cordoned ─▶ every guest leaves within the limits ─▶ drained; what can not move says why
//!   the same request again, at another leader ─▶ the first answer, and no second effect
//! ```

use godwit_admin::Client;
use godwit_domain::{GuestName, Labels, Overrides};
use godwit_wire::admin::{Act, MigrationDetail, MigrationRow, NodeDetail};
use libtest_mimic::Trial;

use super::rules::apply;
use crate::support::world::{VOTERS, World, guest_of, node};
use crate::support::{Outcome, stories};

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_drained_node_is_empty_and_what_can_not_move_says_why,
        a_repeated_request_gets_the_first_answer_from_the_next_leader_too
    ]
}

fn name(number: usize) -> GuestName {
    format!("default/d-{number}").parse().expect("a name")
}

async fn drain(world: &World) -> Option<NodeDetail> {
    world.cluster.node_detail(&node("node-a")).await.ok()
}

async fn a_drained_node_is_empty_and_what_can_not_move_says_why(world: &mut World) -> Outcome {
    world.start_with(&[]).await?;
    for number in 0..4 {
        world.cluster.create_guest(&name(number), &node("node-a"), guest_of(16, 1)).await?;
    }
    // One asks for a node that there is none like, and one has disks that do not move.
    let stubborn = "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nmetadata: {name: picky}\n\
                    spec: {domain: {memory: {guest: 16Mi}}, nodeSelector: {kubernetes.io/hostname: node-a}}\n---\n\
                    apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\n\
                    metadata: {name: disks, annotations: {godwit.dev/local-disks: 1Gi}}\n\
                    spec: {domain: {memory: {guest: 16Mi}}, nodeSelector: {kubernetes.io/hostname: node-a}}\n";
    apply(&world.cluster, stubborn).await?;
    world.cluster.ask_any(Act::NodeDrain { node: node("node-a") }).await?;
    let stuck = world
        .comes("only those that can not move are left", async |_| {
            let drain = drain(world).await?.drain?;
            (drain.state == "stuck" && drain.left.len() == 2).then_some(drain)
        })
        .await;
    assert_eq!(stuck.moved, 4, "{stuck:?}");
    let why = |name: &str| {
        let left = stuck.left.iter().find(|left| left.guest.name() == name);
        left.map(|left| left.why.clone()).unwrap_or_default()
    };
    assert!(why("disks").contains("local disks"), "{stuck:?}");
    assert!(why("picky").contains("node-b: its label kubernetes.io/hostname is \"node-b\""), "{stuck:?}");
    let refused = world.cluster.create_guest(&name(9), &node("node-a"), guest_of(16, 1)).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("cordoned")));
    // Uncordoned, nothing of the drain comes back; what it asked for last ends with it.
    world.cluster.ask_any(Act::NodeDrainCancel { node: node("node-a") }).await?;
    world.cluster.ask_any(Act::NodeUncordon { node: node("node-a") }).await?;
    world
        .comes("nothing waits any more", async |cluster| {
            let rows =
                serde_json::from_value::<Vec<MigrationRow>>(cluster.ask_any(Act::MigrationList).await.ok()?);
            let open =
                |row: &MigrationRow| !matches!(row.phase.as_str(), "Succeeded" | "Failed" | "Cancelled");
            rows.ok()?.iter().all(|row| !open(row)).then_some(())
        })
        .await;
    assert!(
        drain(world).await.is_some_and(|detail| detail.drain.is_none() && detail.row.takes_guests == "yes")
    );
    for number in 0..4 {
        assert_eq!(world.cluster.verify(&name(number)).await?.wrong, 0);
        assert_ne!(world.cluster.guest(&name(number)).await?.row.node, Some(node("node-a")));
    }
    Ok(())
}

async fn a_repeated_request_gets_the_first_answer_from_the_next_leader_too(world: &mut World) -> Outcome {
    let specs =
        VOTERS.iter().chain(&["node-d", "node-e"]).map(|name| world.cluster.spec(&node(name))).collect();
    world.start_as(specs).await?;
    world.cluster.create_guest(&name(0), &node("node-d"), guest_of(16, 1)).await?;
    let act = Act::Migrate {
        guest: name(0),
        migration: None,
        to: Some(node("node-e")),
        selector: Labels::new(),
        overrides: Overrides::default(),
        mode: None,
        dry_run: false,
    };
    let socket =
        world.cluster.node(&node("node-d")).map(|process| process.socket.clone()).ok_or("no node")?;
    let ask = async |act: &Act| -> Result<MigrationDetail, Box<dyn std::error::Error>> {
        let mut client = Client::connect(&socket).await?;
        Ok(serde_json::from_value(client.ask_under(Some("the-same".to_owned()), act.clone(), |_| {}).await?)?)
    };
    let first = ask(&act).await?;
    world
        .comes("the move is over", async |cluster| {
            let detail = cluster.migration(&first.row.name).await.ok()?;
            (detail.row.phase == "Succeeded" && !detail.permits_held).then_some(())
        })
        .await;
    let (leader, _) = world.cluster.leader().await?;
    world.cluster.kill_node(&leader).await?;
    world.cluster.leader().await?;
    world.cluster.are_reachable(&[node("node-d"), node("node-e")]).await?;
    // Asked for anew it would be refused: the guest is at node-e already.
    let again = ask(&act).await?;
    assert_eq!(again.row.name, first.row.name, "{again:?}");
    let other = Act::MigrationCancel { migration: first.row.name.clone() };
    let taken = ask(&other).await.expect_err("another request under the same id").to_string();
    assert!(taken.contains("used for another request"), "{taken}");
    world.cluster.restart_node(&leader).await?;
    Ok(())
}
