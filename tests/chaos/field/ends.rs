//! What is left when a field is gone, and clusters that live on one.
//!
//! ```text
//!   this process ─▶ a second one of the same program, told by HOLD to make a field and hold it ◀─ SIGKILL
//! ```

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use godwit::lab::cluster::Cluster;
use godwit::lab::monotonic_ns;
use godwit_admin::read_as;
use godwit_wire::admin::{Act, ControlStatus};
use libtest_mimic::Trial;

use super::proofs::Yard;
use super::{Disk, Field, Net};
use crate::support::world::{World, guest, guest_of, node, unlimited};
use crate::support::{Outcome, PATIENCE, short_story, story, until};

/// Where a second process of this program writes what it has, before it waits to be killed.
const HOLD: &str = "GODWIT_FIELD_HOLD";

pub(super) fn trials() -> Vec<Trial> {
    if std::env::var_os(HOLD).is_some() {
        return vec![short_story("a_field_that_is_held", hold)];
    }
    vec![
        short_story("a_field_that_is_dropped_leaves_nothing", dropped),
        short_story("a_field_whose_process_is_killed_leaves_nothing", killed),
        story("a_cluster_of_five_lives_on_a_field_and_moves_a_guest", lives),
        story("a_cluster_on_a_field_waits_for_room_and_bears_another_clock", bears),
    ]
}

/// What a field has on this machine: the names that end with it.
fn has(field: &Field) -> Vec<String> {
    let rack = &field.rack;
    let namespaces = rack.hosts.iter().chain([&rack.hub]).cloned();
    namespaces.chain([rack.folder.display().to_string()]).collect()
}

/// Those of these names that are still here, as a namespace, a mount or a folder.
fn left(names: &[String]) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_here = |name: &&String| {
        let namespace = Path::new("/run/netns").join(name);
        namespace.exists() || Path::new(name).exists() || mounts.contains(name.as_str())
    };
    names.iter().filter(is_here).cloned().collect()
}

async fn dropped() -> Outcome {
    let yard = Yard::new()?;
    let names = has(&yard.field);
    assert_eq!(left(&names), names, "it is there");
    drop(yard);
    assert_eq!(left(&names), [""; 0], "it is gone");
    Ok(())
}

async fn hold() -> Outcome {
    let yard = Yard::new()?;
    let names = has(&yard.field).join("\n");
    let told = std::env::var(HOLD)?;
    fs::write(format!("{told}.new"), names)?;
    fs::rename(format!("{told}.new"), told)?;
    std::future::pending().await
}

async fn killed() -> Outcome {
    let dir = tempfile::tempdir()?;
    let told = dir.path().join("has");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "a_field_that_is_held"]).env(HOLD, &told).env("TMPDIR", dir.path());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let names = until("the other process has a field", PATIENCE, || fs::read_to_string(&told).ok()).await;
    let names: Vec<_> = names.lines().map(str::to_owned).collect();
    assert_eq!(left(&names), names, "it is there");
    child.kill()?;
    child.wait()?;
    until("it is gone", PATIENCE, || left(&names).is_empty().then_some(())).await;
    Ok(())
}

/// A field below a story's cluster, and the cluster on it.
async fn five(world: &mut World) -> Result<Field, Box<dyn Error>> {
    let dir = world.cluster.node_dir(&node("a"));
    let field = Field::new(dir.parent().ok_or("no folder")?, &["a", "b", "c", "d", "e"], 3, 1)?;
    // The network goes before the nodes do.
    world.announce(&["sendmsg error"]);
    world.start_as(field.specs()).await?;
    Ok(field)
}

async fn lives(world: &mut World) -> Outcome {
    let field = five(world).await?;
    world.cluster.create_guest(&guest(), &node("d"), guest_of(256, 16)).await?;
    let (before, since) = (field.sent(&node("d"), Net::Pages)?.0, monotonic_ns());
    let report = world.move_to("e", unlimited()).await?;
    assert_eq!(world.wrong_pages().await?, 0);
    let seen = world.ticks_after(since, monotonic_ns(), "e").await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    let bytes = field.sent(&node("d"), Net::Pages)?.0 - before;
    assert!(bytes >= report.wire_bytes, "{bytes} bytes on the cable, {} sent", report.wire_bytes);
    Ok(())
}

/// How a voter does.
async fn condition(cluster: &Cluster, voter: &str) -> Option<String> {
    let status: ControlStatus = read_as(cluster.ask(&node(voter), Act::ControlStatus).await.ok()?).ok()?;
    Some(status.condition)
}

async fn bears(world: &mut World) -> Outcome {
    const LATER: Duration = Duration::from_secs(3600);
    let field = five(world).await?;
    world.announce(&["No space left on device", "the disk is not ready yet"]);
    field.fill_disk(&node("c"), Disk::Log)?;
    world
        .comes("a voter has no room", async |cluster| {
            cluster.create_guest(&guest(), &node("d"), guest_of(16, 1)).await.ok()?;
            cluster.delete_guest(&guest()).await.ok()?;
            condition(cluster, "c").await.filter(|condition| condition != "running")
        })
        .await;
    field.free_disk(&node("c"), Disk::Log)?;
    world
        .comes("it has room", async |cluster| {
            condition(cluster, "c").await.filter(|condition| condition == "running")
        })
        .await;
    world.cluster.kill_node(&node("b")).await?;
    let wrapper = field.wrapper(&node("b"), LATER);
    world.cluster.restart_node_as(&node("b"), |spec| spec.wrapper = wrapper).await?;
    let pid = world.cluster.node(&node("b")).map_or(0, |process| process.pid);
    let offsets = fs::read_to_string(format!("/proc/{pid}/timens_offsets"))?;
    let offset = offsets.lines().find_map(|line| line.strip_prefix("monotonic")).unwrap_or_default();
    assert_eq!(offset.split_whitespace().next(), Some("3600"), "{offsets}");
    world.cluster.leader().await?;
    Ok(world.cluster.are_reachable(&["a", "b", "c", "d", "e"].map(node)).await?)
}
