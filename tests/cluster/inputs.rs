//! Bad input to a running cluster: lines on the admin socket, a guest that fits nowhere, a log that is torn. Each a clear
//! answer; nothing acknowledged is lost.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use godwit_wire::admin::{Act, NodeRow};
use libtest_mimic::Trial;

use crate::support::world::{MIB, VOTERS, World, guest, guest_of, node, unlimited};
use crate::support::{Outcome, PATIENCE, stories};

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        nonsense_on_the_admin_socket_is_answered_by_name_and_harms_nobody,
        a_guest_that_fits_nowhere_waits_and_says_why_per_node,
        a_voter_with_a_torn_log_says_so_and_the_others_go_on
    ]
}

async fn nonsense_on_the_admin_socket_is_answered_by_name_and_harms_nobody(world: &mut World) -> Outcome {
    world.three_with(guest_of(64, 8)).await?;
    let socket = world.cluster.node(&node("node-b")).ok_or("no node")?.socket.clone();
    assert_eq!(fs::metadata(&socket)?.permissions().mode() & 0o777, 0o600);
    let say = |bytes: &[u8]| -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(bytes)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut said = String::new();
        BufReader::new(stream).read_to_string(&mut said)?;
        Ok(said)
    };
    let huge = vec![b'x'; (64 << 10) + 2];
    for (line, word) in [
        (&b"garbage\n"[..], "invalid"),
        (&b"{\"v\":1,\"id\":\"1\",\"do\":\"fly\"}\n"[..], "fly"),
        (&b"{\"v\":9,\"id\":\"1\",\"do\":\"status\"}\n"[..], "v"),
        (&b"{\"v\":1,\"id\":\"1\",\"do\":\"stat"[..], "invalid"),
        (&b"\xff\xfe\n"[..], "invalid"),
        (&huge[..], "65536"),
        (&b"{\"v\":1,\"id\":\"1\",\"do\":\"guest-show\",\"guest\":\"default/none\"}\n"[..], "not-found"),
    ] {
        let said = say(line)?;
        let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
        assert!(said.contains("\"error\"") && said.contains(word), "{shown} was answered with {said:?}");
    }
    // A client that says half a line and then nothing holds up nobody.
    let mut silent = UnixStream::connect(&socket)?;
    silent.write_all(b"{\"v\":1,")?;
    let good =
        say(b"{\"v\":1,\"id\":\"7\",\"do\":\"guest-list\"}\n{\"v\":1,\"id\":\"8\",\"do\":\"version\"}\n")?;
    let lines: Vec<_> = good.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("default/vm1") && lines[1].contains("\"8\""), "{good}");
    drop(silent);
    let mut stream = UnixStream::connect(&socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"{\"v\":1,\"id\":\"9\",\"do\":\"status\"}")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut last = String::new();
    BufReader::new(stream).read_line(&mut last)?;
    assert!(last.contains("\"ok\""), "a last line needs no end: {last}");
    world.move_and_prove("node-b").await?;
    Ok(())
}

async fn a_guest_that_fits_nowhere_waits_and_says_why_per_node(world: &mut World) -> Outcome {
    let sized = |name: &&str| {
        let mut spec = world.cluster.spec(&node(name));
        spec.memory_bytes = Some(if *name == "node-a" { 256 * MIB } else { 64 * MIB });
        spec
    };
    let specs = VOTERS.iter().map(sized).collect();
    world.start_as(specs).await?;
    let refused = world.cluster.create_guest(&guest(), &node("node-b"), guest_of(128, 8)).await;
    let refused = refused.expect_err("it does not fit").to_string();
    assert!(refused.contains("67108864") && refused.contains("134217728"), "the numbers: {refused}");
    world.create(guest_of(128, 8)).await?;
    let asked = serde_json::json!({"do": "migrate", "guest": "default/vm1", "migration": null, "to": null});
    let act: Act = serde_json::from_value(asked)?;
    let asked: godwit_wire::admin::MigrationDetail =
        serde_json::from_value(world.cluster.ask_any(act).await?)?;
    let waits = world.cluster.migration(&asked.row.name).await?;
    assert_eq!(
        (waits.row.phase.as_str(), waits.row.queue_position, waits.permits_held),
        ("Pending", Some(1), false)
    );
    let why = |name: &str| waits.obstacles.get(&node(name)).cloned().unwrap_or_default();
    assert!(why("node-a").contains("runs there"), "{waits:?}");
    for name in ["node-b", "node-c"] {
        assert!(why(name).contains("67108864 bytes are free, 134217728 are needed"), "{waits:?}");
    }
    world.cluster.ask_any(Act::MigrationCancel { migration: asked.row.name.clone() }).await?;
    assert_eq!(world.cluster.migration(&asked.row.name).await?.row.phase, "Cancelled");
    world.runs_under_the_agreed_epoch().await?;
    let rows: Vec<NodeRow> = serde_json::from_value(world.cluster.ask_any(Act::NodeList).await?)?;
    let free = rows.iter().map(|row| row.free_memory_bytes).collect::<Vec<_>>();
    assert_eq!(free, [128 * MIB, 64 * MIB, 64 * MIB], "nothing is held back");
    Ok(())
}

async fn a_voter_with_a_torn_log_says_so_and_the_others_go_on(world: &mut World) -> Outcome {
    world.announce(&["sled", "this voter takes no part"]);
    world.three_with(guest_of(64, 8)).await?;
    let (leader, _) = world.cluster.leader().await?;
    let torn = VOTERS.map(node).into_iter().find(|name| *name != leader && *name != node("node-a"));
    let torn = torn.ok_or("a follower")?;
    world.cluster.kill_node(&torn).await?;
    let log = world.cluster.node_dir(&torn).join("control/db");
    let bytes = fs::read(&log)?;
    // Everything that was ever written is there, but for a hole of nonsense in the middle of it.
    let mut broken = bytes.clone();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    for byte in broken.iter_mut().take(used).skip(used / 2) {
        *byte ^= 0x5a;
    }
    fs::write(&log, &broken)?;
    world.cluster.restart_node(&torn).await?;
    world.logs(torn.as_str(), "is damaged: ").await;
    world.cluster.are_reachable(std::slice::from_ref(&torn)).await?;
    world.move_to(other_than(&torn), unlimited()).await?;
    assert_eq!(
        world.wrong_pages().await?,
        0,
        "nothing acknowledged is lost: the guest is where it was agreed"
    );
    Ok(())
}

/// A target that is neither the guest's place nor this node.
fn other_than(torn: &godwit_domain::NodeName) -> &'static str {
    if *torn == node("node-b") { "node-c" } else { "node-b" }
}
