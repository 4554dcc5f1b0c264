//! More than half of the voters are gone: the group is founded anew, from a backup or from what one voter has left, and the
//! guests never notice.
//!
//! ```text
//!   node-a, node-b, node-c vote and are lost      node-d, node-e have guests, and follow to the group that comes after
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use godwit::lab::cluster::{Cluster, NodeSpec, free_addresses};
use godwit::lab::{monotonic_ns, ticks};
use godwit_domain::{GuestName, GuestSpec, NodeName};
use godwit_wire::admin::{Act, ControlStatus};
use godwit_wire::backup;
use libtest_mimic::Trial;
use tokio::process::Command;

use crate::support::program::{Ran, program};
use crate::support::world::{MIB, VOTERS, World, guest, guest_of, limited_to, node};
use crate::support::{LOOK_INTERVAL, Outcome, PATIENCE, stories};

/// Nodes that have guests and do not vote.
const WORKERS: [&str; 2] = ["node-d", "node-e"];
/// The cluster's name in every config.
const CLUSTER: &str = "lab";
/// What a node's folder keeps though everything that it knew is lost.
const KEPT: [&str; 5] = ["node.toml", "node.pem", "node.key", "ca.pem", "node.log"];

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_backup_founds_the_group_anew_when_every_voter_is_lost,
        a_guest_that_moved_after_the_backup_stays_where_it_is,
        a_voter_that_is_left_founds_the_group_anew,
        what_is_no_backup_of_this_cluster_is_refused_and_nothing_changes,
        founders_that_lost_their_disks_do_not_found_the_group_again
    ]
}

/// Three voters and two workers; the guest is on `node-d`.
async fn begin(world: &mut World, spec: GuestSpec) -> Outcome {
    // Whoever votes is killed: the others say that they step down, lose their leader or a session.
    world.announce(&["giving up", "connection to the target lost"]);
    let names = WORKERS.map(node);
    let addresses = free_addresses(&names)?;
    let mut specs: Vec<NodeSpec> = VOTERS.iter().map(|name| world.cluster.spec(&node(name))).collect();
    for (name, control) in addresses {
        specs.push(NodeSpec { control, ..world.cluster.spec(&name) });
    }
    world.start_as(specs).await?;
    world.cluster.create_guest(&guest(), &node("node-d"), spec).await?;
    Ok(())
}

/// The command line, with nothing on stdin.
async fn godwit(words: &[&str], socket: Option<&Path>) -> Result<Ran, Box<dyn Error>> {
    let mut command = Command::new(program());
    command.args(words).stdin(Stdio::null()).kill_on_drop(true);
    command.envs(socket.map(|socket| ("GODWIT_SOCKET", socket)));
    Ok(command.output().await?.into())
}

/// What a node is asked, and must do.
async fn done(world: &World, at: &str, words: &str) -> Result<Ran, Box<dyn Error>> {
    let socket = world.cluster.node(&node(at)).ok_or("no node")?.socket.clone();
    let ran = godwit(&words.split_whitespace().collect::<Vec<_>>(), Some(&socket)).await?;
    if ran.code == Some(0) { Ok(ran) } else { Err(format!("godwit {words}: {ran:?}").into()) }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn config_of(world: &World, name: &str) -> String {
    text(&world.cluster.node_dir(&node(name)).join("node.toml"))
}

/// A backup, asked of one node.
async fn back_up(world: &World, at: &str) -> Result<PathBuf, Box<dyn Error>> {
    let file = world.folder("backup");
    let ran = done(world, at, &format!("control backup {}", file.display())).await?;
    assert!(ran.stdout.contains("node-a, node-b, node-c") && ran.stdout.contains("guests"), "{ran:?}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    Ok(file)
}

/// Kills a node's process; its runners live on.
async fn kill(world: &mut World, names: &[&str]) -> Outcome {
    for name in names {
        world.cluster.kill_node(&node(name)).await?;
        while !world.cluster.has_ended(&node(name)) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
    Ok(())
}

/// Everything that a node knew is gone.
fn wipe(world: &World, name: &str) -> Outcome {
    for entry in fs::read_dir(world.cluster.node_dir(&node(name)))? {
        let path = entry?.path();
        let kept = path.file_name().is_some_and(|file| KEPT.iter().any(|kept| file == *kept));
        match (kept, path.is_dir()) {
            (true, _) => {}
            (false, true) => fs::remove_dir_all(path)?,
            (false, false) => fs::remove_file(path)?,
        }
    }
    Ok(())
}

/// Every file of a node's folder that is not its log, with its bytes.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else if path
            .file_name()
            .is_some_and(|name| name != "node.log" && name != "lock" && name != "admin.sock")
        {
            all.insert(path.clone(), fs::read(path).unwrap_or_default());
        }
    }
    all
}

async fn restore(world: &World, at: &str, file: &Path) -> Result<Ran, Box<dyn Error>> {
    godwit(&["control", "restore", &text(file), "--config", &config_of(world, at)], None).await
}

async fn status(cluster: &Cluster, at: &str) -> Option<ControlStatus> {
    serde_json::from_value(cluster.ask(&node(at), Act::ControlStatus).await.ok()?).ok()
}

/// Waits until a guest is in this state, as the node that is asked knows.
async fn is(world: &World, of: &GuestName, state: &str) {
    world
        .comes(&format!("{of} is {state}"), async |cluster| {
            cluster.guest(of).await.ok().filter(|guest| guest.row.state == state).map(drop)
        })
        .await;
}

/// Waits until all of a guest's migrations are over and hold nothing.
async fn nothing_moves(world: &World, of: &GuestName) {
    world
        .comes(&format!("every move of {of} is over"), async |cluster| {
            for row in cluster.guest(of).await.ok()?.migrations {
                let detail = cluster.migration(&row.name).await.ok()?;
                if !detail.over || detail.permits_held {
                    return None;
                }
            }
            Some(())
        })
        .await;
}

/// Every voter is lost, and the group is founded anew on `node-a`; the two others vote again.
async fn lose_all_and_restore(world: &mut World, file: &Path) -> Outcome {
    kill(world, &VOTERS).await?;
    for name in VOTERS {
        wipe(world, name)?;
    }
    let ran = restore(world, "node-a", file).await?;
    assert!(ran.code == Some(0) && ran.stdout.contains("founded: control group"), "{ran:?}");
    // Those that lost their disks are there before the one that was restored: they wait for it.
    for name in ["node-b", "node-c", "node-a"] {
        world.cluster.restart_node(&node(name)).await?;
    }
    world.cluster.leader().await?;
    let all: Vec<NodeName> = VOTERS.iter().chain(&WORKERS).map(|name| node(name)).collect();
    world.cluster.are_reachable(&all).await?;
    for name in ["node-b", "node-c"] {
        let ran = done(world, "node-a", &format!("control add {name}")).await?;
        assert!(ran.stdout.contains("it votes"), "{ran:?}");
    }
    Ok(())
}

/// Since this moment no tick of the guest was lost or written twice, and it ticks on there.
async fn ticks_on(world: &World, since: u64, on: &str) {
    let seen = world.ticks_after(since, monotonic_ns(), on).await;
    assert_eq!(seen.lost, 0, "{seen:?}");
}

async fn a_backup_founds_the_group_anew_when_every_voter_is_lost(world: &mut World) -> Outcome {
    begin(world, guest_of(64, 2)).await?;
    let since = monotonic_ns();
    let asked = world.ask_for("node-e", limited_to(4)).await?;
    world
        .comes("pages flow", async |cluster| {
            let detail = cluster.migration(&asked.row.name).await.ok()?;
            (detail.row.phase == "Running").then_some(())
        })
        .await;
    let file = back_up(world, "node-d").await?;
    lose_all_and_restore(world, &file).await?;
    is(world, &guest(), "running").await;
    nothing_moves(world, &guest()).await;
    let ended = world.cluster.migration(&asked.row.name).await?;
    assert!(ended.row.phase == "Failed", "{ended:?}");
    assert_eq!(world.owner().await?, Some(node("node-d")));
    world.runs_under_the_agreed_epoch().await?;
    world.runner_goes("node-e").await?;
    ticks_on(world, since, "node-d").await;
    assert_eq!(world.wrong_pages().await?, 0);
    world.move_and_prove("node-e").await?;
    // The new group bears the loss of one, whoever it is.
    kill(world, &["node-a"]).await?;
    world.cluster.leader().await?;
    world.cluster.are_reachable(&["node-b", "node-c", "node-d", "node-e"].map(node)).await?;
    world.move_and_prove("node-d").await?;
    Ok(())
}

async fn a_guest_that_moved_after_the_backup_stays_where_it_is(world: &mut World) -> Outcome {
    begin(world, guest_of(32, 2)).await?;
    let file = back_up(world, "node-a").await?;
    world.move_and_prove("node-e").await?;
    world.runner_goes("node-d").await?;
    let later: GuestName = "default/later".parse()?;
    world.cluster.create_guest(&later, &node("node-d"), GuestSpec::idle(8 * MIB)).await?;
    let since = monotonic_ns();
    lose_all_and_restore(world, &file).await?;
    is(world, &guest(), "running").await;
    assert_eq!(world.owner().await?, Some(node("node-e")), "it is where it runs");
    world.runs_under_the_agreed_epoch().await?;
    let of_this = |all: Vec<godwit_guest::runner::Tick>| {
        let here = all.into_iter().filter(|tick| tick.node == node("node-e") && tick.monotonic_ns >= since);
        here.collect::<Vec<_>>()
    };
    crate::support::until("it ticks on", PATIENCE, || (of_this(world.ticks()).len() > 200).then_some(()))
        .await;
    assert_eq!(ticks::report(&of_this(world.ticks()), since, u64::MAX).lost, 0);
    assert_eq!(world.wrong_pages().await?, 0);
    // What was made after the backup is nobody's to end, and is shown where it is.
    let shown = world
        .comes("the runner of the guest that nobody knows is shown", async |cluster| {
            let runners = cluster.node_detail(&node("node-d")).await.ok()?.runners?;
            runners.into_iter().find(|row| row.guest == later && row.state.contains("does not know it"))
        })
        .await;
    assert!(shown.state.starts_with("runs under epoch"), "{shown:?}");
    assert!(world.cluster.guest(&later).await.is_err(), "it is not in the backup");
    let only = world.cluster.node_detail(&node("node-d")).await?.runners.unwrap_or_default();
    assert_eq!(only.len(), 1, "nothing of the other one runs there: {only:?}");
    world.move_to("node-d", limited_to(0)).await?;
    assert_eq!(world.wrong_pages().await?, 0);
    Ok(())
}

async fn a_voter_that_is_left_founds_the_group_anew(world: &mut World) -> Outcome {
    world.announce(&["this node's control group was given up", "an operator vouches that it is off"]);
    begin(world, guest_of(32, 2)).await?;
    let at_c: GuestName = "default/at-c".parse()?;
    world.cluster.create_guest(&at_c, &node("node-c"), GuestSpec::idle(8 * MIB)).await?;
    let since = monotonic_ns();
    kill(world, &VOTERS).await?;
    let (folder, config) = (world.cluster.node_dir(&node("node-a")), config_of(world, "node-a"));
    let recover = ["control", "recover", "--config", &config];
    let before = contents(&folder);
    for wrong in [&[][..], &["--yes-really", "prod"][..]] {
        let ran = godwit(&[&recover[..], wrong].concat(), None).await?;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("is not the name of this cluster"), "{ran:?}");
        assert!(
            ran.stderr.contains("node-b, node-c") && ran.stderr.contains("must never come back"),
            "{ran:?}"
        );
        assert_eq!(book_of(&before), book_of(&contents(&folder)), "nothing has changed");
    }
    let ran = godwit(&[&recover[..], &["--yes-really", CLUSTER]].concat(), None).await?;
    assert!(ran.code == Some(0) && ran.stdout.contains("founded: control group"), "{ran:?}");
    assert!(folder.join("control.left").exists(), "what is given up is put away");
    world.cluster.restart_node(&node("node-a")).await?;
    world.cluster.leader().await?;
    world.cluster.are_reachable(&["node-a", "node-d", "node-e"].map(node)).await?;
    // What its own runner confirms needs nobody else's word.
    is(world, &guest(), "running").await;
    world.runs_under_the_agreed_epoch().await?;
    is(world, &at_c, "unsure").await;
    world.move_to("node-e", limited_to(0)).await?;
    assert_eq!(world.wrong_pages().await?, 0);
    // One comes back as what it was.
    world.cluster.restart_node(&node("node-c")).await?;
    world.logs("node-c", "this node's control group was given up").await;
    world.logs("node-a", "node node-c speaks for control group").await;
    let old = status(&world.cluster, "node-c").await.ok_or("no status")?;
    let new = status(&world.cluster, "node-a").await.ok_or("no status")?;
    assert!(old.role != "leader" && old.group != new.group, "{old:?}");
    // As a node like any other it is welcome, with its guest.
    kill(world, &["node-c"]).await?;
    let folder = world.cluster.node_dir(&node("node-c"));
    for name in ["control", "book"] {
        fs::rename(folder.join(name), folder.join(format!("{name}.old")))?;
    }
    world.cluster.restart_node(&node("node-c")).await?;
    done(world, "node-a", "node fence node-b").await?;
    is(world, &at_c, "running").await;
    let ran = done(world, "node-a", "control add node-c").await?;
    assert!(ran.stdout.contains("it votes"), "{ran:?}");
    assert_eq!(world.cluster.verify(&at_c).await?.wrong, 0);
    let all: Vec<_> = world.ticks().into_iter().filter(|tick| tick.node == node("node-c")).collect();
    assert_eq!(ticks::report(&all, since, u64::MAX).lost, 0, "it has run all the time");
    Ok(())
}

fn book_of(contents: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<(&PathBuf, &Vec<u8>)> {
    contents.iter().filter(|(path, _)| path.ends_with("book") || path.ends_with("control/mark")).collect()
}

async fn what_is_no_backup_of_this_cluster_is_refused_and_nothing_changes(world: &mut World) -> Outcome {
    begin(world, guest_of(16, 1)).await?;
    let file = back_up(world, "node-e").await?;
    let good = fs::read(&file)?;
    let running = restore(world, "node-a", &file).await?;
    assert!(
        running.code == Some(1) && running.stderr.contains("in use by another node process"),
        "{running:?}"
    );
    kill(world, &["node-a"]).await?;
    let voter = restore(world, "node-a", &file).await?;
    assert!(voter.code == Some(1) && voter.stderr.contains("godwit control recover"), "{voter:?}");
    wipe(world, "node-a")?;
    let folder = world.cluster.node_dir(&node("node-a"));
    let before = contents(&folder);
    let mut damaged = good.clone();
    if let Some(byte) = damaged.get_mut(good.len() / 2) {
        *byte ^= 1;
    }
    let mut newer = good.clone();
    if let Some(byte) = newer.get_mut(8) {
        *byte = 9;
    }
    let (head, state) = backup::decode(&good)?;
    let foreign = backup::encode(&backup::Head { cluster: "prod".to_owned(), ..head }, state)?;
    let cut = good.get(..good.len() - 40).unwrap_or_default().to_vec();
    let bad = [
        (damaged, "damaged"),
        (cut, "cut short"),
        (newer, "has version 9; this build reads 1"),
        (foreign, "is of cluster prod, and this node is of cluster lab"),
        (b"nothing of the kind".to_vec(), "no backup"),
        (Vec::new(), "no backup"),
    ];
    for (bytes, why) in bad {
        fs::write(&file, bytes)?;
        let ran = restore(world, "node-a", &file).await?;
        assert!(ran.code == Some(1) && ran.stderr.contains(why), "{why}: {ran:?}");
        assert_eq!(contents(&folder), before, "{why}: nothing has changed");
    }
    let none = restore(world, "node-a", &world.folder("none")).await?;
    assert!(none.code == Some(1) && none.stderr.contains("none"), "{none:?}");
    let nothing = godwit(&["control", "recover", "--config", &config_of(world, "node-a")], None).await?;
    assert!(
        nothing.code == Some(1) && nothing.stderr.contains("Only a voter can be recovered from"),
        "{nothing:?}"
    );
    let nowhere = done(world, "node-e", "control backup /nowhere/backup").await;
    assert!(nowhere.is_err_and(|error| error.to_string().contains("/nowhere/backup")));
    Ok(())
}

async fn founders_that_lost_their_disks_do_not_found_the_group_again(world: &mut World) -> Outcome {
    world.announce(&["the log of this voter is gone"]);
    begin(world, guest_of(16, 1)).await?;
    let before = status(&world.cluster, "node-a").await.ok_or("no status")?;
    kill(world, &VOTERS).await?;
    for name in ["node-b", "node-c"] {
        wipe(world, name)?;
        world.cluster.restart_node(&node(name)).await?;
    }
    world.logs("node-b", "the control group is founded when all its founders are there").await;
    world.logs("node-c", "the control group is founded when all its founders are there").await;
    // The one that is left knows that it has heard them.
    world.cluster.restart_node(&node("node-a")).await?;
    for name in ["node-b", "node-c"] {
        world.logs(name, "the log of this voter is gone").await;
        let now = status(&world.cluster, name).await.ok_or("no status")?;
        assert!(now.role == "none" && now.group == before.group, "{now:?}");
    }
    let alone = status(&world.cluster, "node-a").await.ok_or("no status")?;
    assert!(alone.role != "leader", "{alone:?}");
    Ok(())
}
