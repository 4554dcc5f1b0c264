//! The control group changes while everything runs: who is added votes, who is removed leaves, and guests go on moving.
//!
//! ```text
//!   node-a, node-b, node-c found the group      node-d, node-e, node-f may be taken into it, on control addresses that stay
//! ```

use std::error::Error;
use std::fs;
use std::process::Stdio;

use godwit::lab::cluster::{Cluster, NodeSpec, free_addresses};
use godwit_domain::{GuestName, GuestSpec, Labels, MigrationId, NodeName};
use godwit_wire::admin::{Act, ControlStatus, MemberDetail, MigrationDetail};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use crate::support::program::{Ran, program};
use crate::support::world::{MIB, VOTERS, World, guest_of, node, unlimited};
use crate::support::{Outcome, stories};

/// Nodes that do not vote at first.
const WORKERS: [&str; 3] = ["node-d", "node-e", "node-f"];
/// Moves while every voter is replaced.
const MOVES: usize = 50;
/// Elections of which one of two nodes wins one.
const ELECTIONS_MAX: u32 = 20;
/// Guests that move beside each other.
const GUESTS: usize = 5;

pub(crate) fn trials() -> Vec<Trial> {
    stories![
        a_node_that_is_added_votes,
        every_voter_is_replaced_while_guests_move,
        a_dead_voter_is_replaced,
        a_node_whose_log_is_damaged_or_lost_goes_on_with_its_guests_and_is_given_a_new_place,
        a_voter_that_has_begun_another_log_is_heard_by_nobody,
        one_that_was_removed_while_it_was_away_leaves_when_it_hears_of_it,
        what_would_stop_the_group_is_refused
    ]
}

/// Three voters, and these nodes beside them.
async fn begin(world: &mut World, workers: &[&str]) -> Outcome {
    let names: Vec<NodeName> = workers.iter().map(|name| node(name)).collect();
    let addresses = free_addresses(&names)?;
    let mut specs: Vec<NodeSpec> = VOTERS.iter().map(|name| world.cluster.spec(&node(name))).collect();
    for (name, control) in addresses {
        specs.push(NodeSpec { control, ..world.cluster.spec(&name) });
    }
    world.start_as(specs).await
}

/// The command line, asked of one node.
async fn godwit(world: &World, at: &str, words: &str) -> Result<Ran, Box<dyn Error>> {
    let socket = world.cluster.node(&node(at)).ok_or("no node")?.socket.clone();
    let mut command = Command::new(program());
    command.args(words.split_whitespace()).env("GODWIT_SOCKET", socket);
    command.stdin(Stdio::null()).kill_on_drop(true);
    Ok(command.output().await?.into())
}

/// What must be done.
async fn done(world: &World, at: &str, words: &str) -> Result<Ran, Box<dyn Error>> {
    let ran = godwit(world, at, words).await?;
    if ran.code == Some(0) { Ok(ran) } else { Err(format!("godwit {words}: {ran:?}").into()) }
}

async fn status(cluster: &Cluster, at: &str) -> Option<ControlStatus> {
    serde_json::from_value(cluster.ask(&node(at), Act::ControlStatus).await.ok()?).ok()
}

/// Waits until a node knows of these voters and no others.
async fn votes(world: &World, at: &str, names: &[&str]) {
    let names: Vec<NodeName> = names.iter().map(|name| node(name)).collect();
    let same =
        |voters: &[NodeName]| voters.len() == names.len() && names.iter().all(|name| voters.contains(name));
    world
        .comes(&format!("{at} knows that {names:?} vote"), async |cluster| {
            status(cluster, at).await.filter(|status| same(&status.voters)).map(drop)
        })
        .await;
}

/// Waits until a node has no place in the group.
async fn has_left(world: &World, name: &str) {
    world
        .comes(&format!("{name} has left"), async |cluster| {
            status(cluster, name).await.filter(|status| status.role == "none").map(drop)
        })
        .await;
    world.logs(name, "out of the control group").await;
    let dir = world.cluster.node_dir(&node(name));
    crate::support::until("its log is put away", crate::support::PATIENCE, || {
        (!dir.join("control").exists() && dir.join("control.left").exists()).then_some(())
    })
    .await;
}

async fn a_node_that_is_added_votes(world: &mut World) -> Outcome {
    begin(world, &["node-d"]).await?;
    world.create(guest_of(16, 1)).await?;
    let ran = done(world, "node-d", "control add node-d").await?;
    assert!(ran.stdout.contains("it votes") && ran.stdout.contains("node-d"), "{ran:?}");
    let again = done(world, "node-a", "control add node-d").await?;
    assert!(again.stdout.contains("unchanged"), "{again:?}");
    votes(world, "node-d", &["node-a", "node-b", "node-c", "node-d"]).await;
    let shown = done(world, &world.cluster.leader().await?.0.to_string(), "control status").await?;
    assert!(shown.stdout.contains("entries behind") && shown.stdout.contains("node-d"), "{shown:?}");
    // Of four three are left, and three are needed: nothing is agreed without the new one.
    let (leader, term) = world.cluster.leader().await?;
    world.cluster.kill_node(&leader).await?;
    let next = world
        .comes("another leads", async |cluster| {
            let (next, later) = cluster.leader().await.ok()?;
            (later > term && next != leader).then_some(next)
        })
        .await;
    world.cluster.are_reachable(&[next.clone(), node("node-d")]).await?;
    world.cluster.create_guest(&"default/vm2".parse()?, &next, guest_of(16, 1)).await?;
    // What it has agreed to it knows when it is started again, from its own disk, though its config names it nowhere.
    world.cluster.restart_node(&leader).await?;
    world.cluster.are_reachable(std::slice::from_ref(&leader)).await?;
    world.cluster.kill_node(&node("node-d")).await?;
    world.cluster.restart_node(&node("node-d")).await?;
    votes(world, "node-d", &["node-a", "node-b", "node-c", "node-d"]).await;
    world
        .comes("it takes part", async |cluster| {
            status(cluster, "node-d")
                .await
                .filter(|it| it.role == "follower" || it.role == "leader")
                .map(drop)
        })
        .await;
    Ok(())
}

/// The guest that moves as the n-th.
fn mover(n: usize) -> GuestName {
    format!("default/mover{n}").parse().expect("a name")
}

/// Moves a guest, and waits until that is over. Whoever is asked may have no leader for a moment.
async fn move_once(
    cluster: &Cluster,
    guest: GuestName,
    target: &str,
) -> Result<MigrationDetail, Box<dyn Error>> {
    let since = std::time::Instant::now();
    let migration: MigrationId = format!("{}-{target}-{}", guest.name(), fastrand::u32(..)).parse()?;
    loop {
        let act = Act::Migrate {
            guest: guest.clone(),
            migration: Some(migration.clone()),
            to: Some(node(target)),
            selector: Labels::new(),
            overrides: unlimited(),
            mode: None,
            dry_run: false,
        };
        match cluster.ask_any(act).await {
            Ok(_) => break,
            // The same name is the same request: asked again it is asked once.
            Err(error) if since.elapsed() > crate::support::PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(crate::support::LOOK_INTERVAL * 20).await,
        }
    }
    loop {
        if let Ok(detail) = cluster.migration(&migration).await
            && detail.over
            && !detail.permits_held
        {
            return Ok(detail);
        }
        if since.elapsed() > crate::support::PATIENCE * 2 {
            return Err(format!("{migration} is not over after {:?}", since.elapsed()).into());
        }
        tokio::time::sleep(crate::support::LOOK_INTERVAL * 4).await;
    }
}

/// One guest there and back, so many times.
async fn move_again_and_again(cluster: &Cluster, n: usize, times: usize) -> Outcome {
    for round in 0..times {
        let target = if round % 2 == 0 { "node-e" } else { "node-d" };
        let ended = move_once(cluster, mover(n), target).await?;
        if ended.row.phase != "Succeeded" {
            return Err(format!("a move failed while voters were replaced: {ended:?}").into());
        }
    }
    Ok(())
}

async fn every_voter_is_replaced_while_guests_move(world: &mut World) -> Outcome {
    begin(world, &WORKERS).await?;
    // A new leader may tell the target before the source that a move is over: the source wonders why its target goes.
    world.announce(&["giving up"]);
    for n in 0..GUESTS {
        let spec = GuestSpec { seed: n as u64, ..GuestSpec::idle(8 * MIB) };
        world.cluster.create_guest(&mover(n), &node("node-d"), spec).await?;
    }
    let world = &*world;
    let moves = async {
        let all = (0..GUESTS).map(|n| move_again_and_again(&world.cluster, n, MOVES / GUESTS));
        futures_util::future::try_join_all(all).await.map(drop)
    };
    let changes = async {
        for (old, new) in VOTERS.iter().zip(WORKERS) {
            // Asked wherever; the one that goes is the leader at some time.
            let added = done(world, "node-f", &format!("control add {new}")).await?;
            assert!(added.stdout.contains("it votes"), "{added:?}");
            let removed = done(world, old, &format!("control remove {old}")).await?;
            assert!(removed.stdout.contains("removed"), "{removed:?}");
            has_left(world, old).await;
        }
        Outcome::Ok(())
    };
    futures_util::future::try_join(moves, changes).await?;
    votes(world, "node-d", &WORKERS).await;
    for n in 0..GUESTS {
        assert_eq!(world.cluster.verify(&mover(n)).await?.wrong, 0, "{}", mover(n));
    }
    // Those who have left take guests like any other node.
    let ended = move_once(&world.cluster, mover(0), "node-a").await?;
    assert_eq!(ended.row.phase, "Succeeded", "{ended:?}");
    Ok(())
}

async fn a_dead_voter_is_replaced(world: &mut World) -> Outcome {
    begin(world, &["node-d"]).await?;
    world.create(guest_of(16, 1)).await?;
    world.cluster.kill_node(&node("node-c")).await?;
    world.cluster.leader().await?;
    done(world, "node-a", "control add node-d").await?;
    done(world, "node-b", "control remove node-c").await?;
    votes(world, "node-d", &["node-a", "node-b", "node-d"]).await;
    // Another one dies: with the new one it is still a quorum.
    world.cluster.kill_node(&node("node-b")).await?;
    world.cluster.leader().await?;
    world.move_and_prove("node-d").await?;
    // The dead one comes back with a config and a disk that know nothing of that, and is told.
    world.cluster.restart_node(&node("node-c")).await?;
    has_left(world, "node-c").await;
    world.cluster.are_reachable(&[node("node-c")]).await?;
    world.cluster.restart_node(&node("node-b")).await?;
    votes(world, "node-b", &["node-a", "node-b", "node-d"]).await;
    world.move_and_prove("node-c").await?;
    Ok(())
}

/// Whoever can not take its place any more serves its guests, is taken out, and is given another one: all while it runs.
async fn a_node_whose_log_is_damaged_or_lost_goes_on_with_its_guests_and_is_given_a_new_place(
    world: &mut World,
) -> Outcome {
    world.announce(&["sled", "this voter takes no part"]);
    begin(world, &[]).await?;
    world.create(guest_of(16, 1)).await?;
    let state = world.cluster.node_dir(&node("node-a"));
    for (how, said) in [("damaged", "is damaged"), ("lost", "is gone")] {
        world.cluster.kill_node(&node("node-a")).await?;
        if how == "damaged" {
            let log = state.join("control").join("db");
            let whole = std::fs::metadata(&log)?.len();
            std::fs::File::options().write(true).open(&log)?.set_len(whole / 2)?;
        } else {
            std::fs::remove_dir_all(state.join("control"))?;
            std::fs::remove_file(state.join("book"))?;
        }
        world.cluster.restart_node(&node("node-a")).await?;
        world.cluster.are_reachable(&[node("node-a")]).await?;
        world
            .comes("it says why it does not vote", async |_| {
                let shown = done(world, "node-a", "control status").await.ok()?;
                shown.stdout.contains(said).then_some(())
            })
            .await;
        // It is no voter, and a host like any other.
        world.move_and_prove("node-b").await?;
        world.move_and_prove("node-a").await?;
        done(world, "node-b", "control remove node-a").await?;
        world
            .comes("it has left", async |cluster| {
                status(cluster, "node-a").await.filter(|it| it.condition == "does not vote").map(drop)
            })
            .await;
        world
            .comes("it is taken in again", async |_| {
                let ran = godwit(world, "node-b", "control add node-a").await.ok()?;
                (ran.code == Some(0)).then_some(())
            })
            .await;
        votes(world, "node-a", &VOTERS).await;
        world
            .comes("it takes part", async |cluster| {
                let seen = status(cluster, "node-a").await?;
                (seen.role == "follower" || seen.role == "leader").then_some(())
            })
            .await;
    }
    world.move_and_prove("node-c").await?;
    Ok(())
}

/// As a learner would that has lost its folder and is told that it is to learn: the leader counts on what it had.
async fn a_voter_that_has_begun_another_log_is_heard_by_nobody(world: &mut World) -> Outcome {
    begin(world, &[]).await?;
    world.create(guest_of(16, 1)).await?;
    world.cluster.kill_node(&node("node-c")).await?;
    let book = world.cluster.node_dir(&node("node-c")).join("book");
    let mut told: serde_json::Value = serde_json::from_slice(&std::fs::read(&book)?)?;
    let log = told.pointer_mut("/place/log").ok_or("what its log is known by")?;
    assert_ne!(log.as_u64(), Some(0), "it was drawn");
    *log = 1.into();
    std::fs::write(&book, serde_json::to_vec(&told)?)?;
    world.cluster.restart_node(&node("node-c")).await?;
    world.logs("node-a", "node-c is not heard: the log of voter").await;
    // It hears, and is a host like any other.
    world.move_and_prove("node-c").await?;
    // Of three that vote one is not counted on: without another one nothing is agreed.
    for _ in 0..ELECTIONS_MAX {
        if world.cluster.leader().await?.0 == node("node-a") {
            break;
        }
        world.cluster.kill_node(&node("node-b")).await?;
        world.cluster.restart_node(&node("node-b")).await?;
    }
    assert_eq!(world.cluster.leader().await?.0, node("node-a"), "of two it has never won");
    world.cluster.kill_node(&node("node-b")).await?;
    world
        .comes("nobody leads", async |cluster| {
            let seen = status(cluster, "node-a").await?;
            (seen.role != "leader" && status(cluster, "node-c").await?.role != "leader").then_some(())
        })
        .await;
    world.cluster.restart_node(&node("node-b")).await?;
    let (leader, _) = world.cluster.leader().await?;
    assert_ne!(leader, node("node-c"));
    for words in ["control remove node-c", "control add node-c"] {
        world
            .comes(words, async |_| {
                let ran = godwit(world, leader.as_str(), words).await.ok()?;
                (ran.code == Some(0)).then_some(())
            })
            .await;
    }
    votes(world, "node-c", &VOTERS).await;
    world.move_and_prove("node-a").await?;
    Ok(())
}

pub(crate) fn signal(world: &World, name: &str, signal: Signal) -> Outcome {
    let pid = world.cluster.node(&node(name)).ok_or("no node")?.pid;
    let pid = Pid::from_raw(i32::try_from(pid)?).ok_or("no process")?;
    Ok(kill_process(pid, signal)?)
}

async fn one_that_was_removed_while_it_was_away_leaves_when_it_hears_of_it(world: &mut World) -> Outcome {
    begin(world, &[]).await?;
    world.create(guest_of(16, 1)).await?;
    let (leader, _) = world.cluster.leader().await?;
    let away = VOTERS.iter().find(|name| node(name) != leader).ok_or("no follower")?;
    signal(world, away, Signal::STOP)?;
    let asked = leader.to_string();
    let removed = world
        .comes("it does not answer, and goes", async |_| {
            let ran = godwit(world, &asked, &format!("control remove {away}")).await.ok()?;
            (ran.code == Some(0)).then_some(ran)
        })
        .await;
    assert!(removed.stdout.contains("removed"), "{removed:?}");
    let before = status(&world.cluster, &asked).await.ok_or("no status")?;
    signal(world, away, Signal::CONT)?;
    has_left(world, away).await;
    let after = status(&world.cluster, &asked).await.ok_or("no status")?;
    // One that leads alone with the other goes when a busy host silences that one: not this one's doing.
    let logs = VOTERS.map(|name| fs::read_to_string(world.cluster.node_dir(&node(name)).join("node.log")));
    let went = logs.into_iter().flatten().any(|log| log.contains("stepped down"));
    let same = (before.term, &before.role) == (after.term, &after.role);
    assert!(same || went, "it has disturbed the group: {before:?}, {after:?}");
    // It is taken in again, as somebody else.
    let number = |status: &ControlStatus| {
        status.members.iter().find(|member| member.node == node(away)).map(|member| member.voter.clone())
    };
    world.cluster.are_reachable(&[node(away)]).await?;
    done(world, &asked, &format!("control add {away}")).await?;
    votes(world, away, &VOTERS).await;
    let again = status(&world.cluster, &asked).await.ok_or("no status")?;
    assert!(number(&again).is_some() && number(&again) != number(&before), "{again:?}");
    Ok(())
}

async fn what_would_stop_the_group_is_refused(world: &mut World) -> Outcome {
    begin(world, &[]).await?;
    // Its config leaves its port to the kernel.
    let anywhere = world.cluster.spec(&node("node-d"));
    world.start_as(vec![anywhere]).await?;
    let refused = godwit(world, "node-a", "control add node-d").await?;
    assert!(refused.code == Some(1) && refused.stderr.contains("until it is started again"), "{refused:?}");
    world.cluster.kill_node(&node("node-c")).await?;
    world
        .comes("the leader knows that node-c is away", async |cluster| {
            let (leader, _) = cluster.leader().await.ok()?;
            let seen = status(cluster, leader.as_str()).await?;
            let away = seen.members.iter().find(|member| member.node == node("node-c"))?;
            (away.answers == Some(false)).then_some(())
        })
        .await;
    let refused = world
        .comes("to remove another one is refused", async |_| {
            let ran = godwit(world, "node-a", "control remove node-b").await.ok()?;
            ran.stderr.contains("are needed to agree").then_some(ran)
        })
        .await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let nobody = godwit(world, "node-a", "control add node-x").await?;
    assert!(nobody.code == Some(1) && nobody.stderr.contains("no node node-x"), "{nobody:?}");
    world
        .comes("a voter is no node to be forgotten", async |_| {
            let away = godwit(world, "node-a", "node remove node-c").await.ok()?;
            (away.code == Some(1) && away.stderr.contains("godwit control remove node-c")).then_some(())
        })
        .await;
    let gone = world.cluster.ask_any(Act::ControlRemove { node: node("node-c") }).await?;
    let gone: MemberDetail = serde_json::from_value(gone)?;
    assert_eq!((gone.done.as_deref(), gone.state.as_str()), (Some("removed"), "none"));
    Ok(())
}
