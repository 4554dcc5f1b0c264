//! A Linux guest under a stock QEMU: it counts, writes and checks itself, and is moved while it does.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use godwit::lab::cluster::{Cluster, How, Moved};
use godwit_domain::{NodeName, Overrides};
use godwit_wire::admin::MoveMode;
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};

use crate::deaths::owned_by;
use crate::support::world::{World, guest, limited_to, node, unlimited};
use crate::support::{Outcome, PATIENCE, stories, unless, until};
use crate::vm::{self, Away, ByHand, Vm, VmSpec};

/// Ticks that follow a move before its blackout is looked up: the clock outside has answered by then.
const TICKS_AFTER: usize = 2 * vm::TICKS_BESIDE;

/// Pages in a second.
pub(crate) const WRITES_FAST: u32 = 16_000;

pub(crate) fn trials() -> Vec<Trial> {
    let all = stories![
        a_linux_guest_moves_by_each_way_twenty_one_times,
        a_linux_guest_of_two_processors_moves,
        a_guest_that_writes_too_fast_is_slowed_down_by_its_quota,
        a_state_that_is_cut_off_at_any_tenth_leaves_the_guest_where_it_is,
        a_state_that_does_not_load_leaves_the_guest_where_it_is,
        a_qemu_that_dies_between_hand_over_and_start_hands_the_guest_back,
        a_keeper_that_dies_is_followed_by_another_whatever_the_guest_does,
        a_target_node_that_dies_in_post_copy_finds_its_qemu_waiting,
        a_qemu_that_was_started_by_hand_is_adopted_and_moved,
        a_qemu_that_can_not_be_moved_is_told_why_and_what_to_do,
    ];
    all.into_iter().map(|story| unless(vm::missing(), story)).collect()
}

pub(crate) fn post_copy() -> How {
    let overrides = Overrides { allow_post_copy: Some(true), ..unlimited() };
    How { overrides, mode: Some(MoveMode::PostCopy) }
}

/// Rounds first; then, as they do not come to an end in time, the rest of its memory after it. The first round can not take less
/// than 1.8 s of the 2 s that it has: 110 MiB, packed. A guest that [`WRITES_FAST`] then has some 25 MiB written again.
pub(crate) fn after_rounds() -> How {
    let overrides = Overrides {
        allow_post_copy: Some(true),
        completion_timeout_per_gib: Some(4),
        max_downtime_ms: Some(1),
        ..limited_to(60)
    };
    How { overrides, mode: None }
}

/// Moves the guest, which must succeed, and proves it. The longest time it was away, in microseconds, by the clock outside.
pub(crate) async fn moves(
    world: &mut World,
    vm: &mut Vm,
    target: &str,
    how: impl Into<How>,
) -> Result<(Away, Moved), Box<dyn std::error::Error>> {
    let (before, epoch) = (vm.said().count(), world.epoch().await?);
    let moved = world.migrate(target, how, async |_, _| {}).await?;
    if let Moved::Failed(reason) = &moved {
        return Err(format!("the move to {target} failed: {reason}").into());
    }
    vm.ticks_on(world, TICKS_AFTER).await?;
    vm.prove(world).await?;
    assert_eq!(world.owner().await?, Some(node(target)), "the owner after the move");
    assert_eq!(world.epoch().await?, epoch + 1, "a move makes one new epoch");
    let away = vm.said().away_since(before).ok_or("no ticks around the move")?;
    Ok((away, moved))
}

/// For people: no test depends on how fast this machine is.
fn tell(way: &str, all: &[Away]) {
    let median = |of: fn(&Away) -> u64| {
        let mut times: Vec<u64> = all.iter().map(of).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or(0) / 1000
    };
    let (still, silent) = (median(|away| away.still_us), median(|away| away.silent_us));
    let _ = writeln!(
        std::io::stderr(),
        "{way}: stood still for {still} ms, silent for {silent} ms (median of {})",
        all.len()
    );
}

async fn a_linux_guest_moves_by_each_way_twenty_one_times(world: &mut World) -> Outcome {
    world.start_with(&[]).await?;
    let mut vm = Vm::boot(world, VmSpec { rate: WRITES_FAST, ..VmSpec::default() }).await?;
    goes_round(world, &mut vm, 7).await
}

/// How often a guest may be held up so much that its rounds end all the same.
const CALM_MAX: u32 = 5;

pub(crate) fn is_post_copy(moved: &Moved) -> bool {
    matches!(moved, Moved::Succeeded { post_copy: Some(_), .. })
}

/// So many times by each of the three ways, each time to the next node.
async fn goes_round(world: &mut World, vm: &mut Vm, turns: usize) -> Outcome {
    const WAYS: [&str; 3] = ["pre-copy", "post-copy", "post-copy after rounds"];
    let mut away = [Vec::new(), Vec::new(), Vec::new()];
    for turn in 0..turns {
        let hows: [How; 3] = [unlimited().into(), post_copy(), after_rounds()];
        for (way, (how, target)) in hows.into_iter().zip(["node-b", "node-c", "node-a"]).enumerate() {
            let (mut was_away, mut moved) = moves(world, vm, target, how).await?;
            for _ in 0..CALM_MAX {
                if way < 2 || is_post_copy(&moved) {
                    break;
                }
                moves(world, vm, "node-c", unlimited()).await?;
                (was_away, moved) = moves(world, vm, target, how).await?;
            }
            assert_eq!(is_post_copy(&moved), way > 0, "turn {turn}, {}: {moved:?}", WAYS[way]);
            away[way].push(was_away);
        }
    }
    WAYS.iter().zip(&away).for_each(|(way, away)| tell(way, away));
    Ok(())
}

async fn a_linux_guest_of_two_processors_moves(world: &mut World) -> Outcome {
    world.start_with(&[]).await?;
    let mut vm = Vm::boot(world, VmSpec { processors: 2, rate: WRITES_FAST, ..VmSpec::default() }).await?;
    goes_round(world, &mut vm, 1).await
}

/// What the kernel leaves of a processor's time for any guest here: the quota that is not without a limit.
fn quotas() -> Vec<String> {
    let dirs = ["/sys/fs/cgroup/godwit", "/sys/fs/cgroup/cpu/godwit", "/sys/fs/cgroup/cpu,cpuacct/godwit"];
    let of = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten();
    let groups = dirs.iter().flat_map(|dir| of(dir));
    let read = groups.flat_map(|group| {
        ["cpu.max", "cpu.cfs_quota_us"]
            .map(|name| fs::read_to_string(group.path().join(name)).unwrap_or_default())
    });
    read.filter(|text| !text.is_empty() && !text.starts_with("max") && !text.starts_with("-1")).collect()
}

async fn a_guest_that_writes_too_fast_is_slowed_down_by_its_quota(world: &mut World) -> Outcome {
    world.start_with(&[]).await?;
    let mut vm = Vm::boot(world, VmSpec { rate: WRITES_FAST, ..VmSpec::default() }).await?;
    let mut seen_by_the_kernel = Vec::new();
    let mut slowed_down = None;
    // A host that is busy with others slows it down by itself, and Godwit need not: over a slower link it must all the same.
    for (target, mib) in [("node-b", 12), ("node-c", 8), ("node-a", 5)] {
        let allowed = Overrides { allow_auto_converge: Some(true), ..limited_to(mib) };
        let moved = world
            .migrate(target, allowed, async |_, _| {
                if seen_by_the_kernel.is_empty() {
                    seen_by_the_kernel = quotas();
                }
            })
            .await?;
        let Moved::Succeeded { source, .. } = moved else { return Err(format!("{moved:?}").into()) };
        assert!(!source.paused_to_finish, "{source:?}");
        if source.throttle_percent_max > 0 {
            slowed_down = Some(source);
            break;
        }
        vm.prove(world).await?;
    }
    let source = slowed_down.ok_or("it never wrote too fast")?;
    assert!(!seen_by_the_kernel.is_empty(), "the kernel has no quota of it: {source:?}");
    assert_eq!(world.cluster.stats(&guest()).await?.throttle_percent, 0, "at the target");
    assert_eq!(quotas(), Vec::<String>::new(), "and nobody is slowed down any more");
    vm.prove(world).await
}

/// The stream ends between QEMU and whoever reads it: the machine stands still, and nobody but its own node runs it again.
async fn a_state_that_is_cut_off_at_any_tenth_leaves_the_guest_where_it_is(world: &mut World) -> Outcome {
    world.announce(&[
        "migration failed",
        "giving up",
        "runner at the",
        "a runner has died",
        "runner did not end",
        "QEMU has ended",
        "connection lost after the hand-over",
    ]);
    world.start_with(&[("node-a", "GODWIT_PLANTED", "state-cut")]).await?;
    let mut vm = Vm::boot(world, VmSpec::default()).await?;
    for tenth in 1..10 {
        match world.migrate("node-b", unlimited(), async |_, _| {}).await? {
            // The last part may be in the socket's buffer already: then the target finds that it is not whole.
            Moved::Failed(reason) => {
                let is_known = ["save", "handed back"].iter().any(|words| reason.contains(words));
                assert!(is_known, "cut at {tenth} tenths: {reason}");
            }
            moved @ Moved::Succeeded { .. } => return Err(format!("cut at {tenth} tenths: {moved:?}").into()),
        }
        world.runs_under_the_agreed_epoch().await?;
        assert_eq!(world.owner().await?, Some(node("node-a")), "cut at {tenth} tenths");
        vm.ticks_on(world, TICKS_AFTER).await?;
        world.runner_goes("node-b").await?;
    }
    vm.prove(world).await?;
    moves(world, &mut vm, "node-b", unlimited()).await?;
    Ok(())
}

async fn a_state_that_does_not_load_leaves_the_guest_where_it_is(world: &mut World) -> Outcome {
    world.announce(&[
        "migration failed",
        "giving up",
        "runner at the target",
        "a runner has died",
        "runner did not end",
        "QEMU has ended",
        "connection lost after the hand-over",
    ]);
    world.start_with(&[("node-b", "GODWIT_PLANTED", "state-half")]).await?;
    let mut vm = Vm::boot(world, VmSpec::default()).await?;
    let moved = world.migrate("node-b", unlimited(), async |_, _| {}).await?;
    assert!(matches!(moved, Moved::Failed(_)), "{moved:?}");
    world.runs_under_the_agreed_epoch().await?;
    assert_eq!(world.owner().await?, Some(node("node-a")), "{moved:?}");
    vm.prove(world).await?;
    world.runner_goes("node-b").await?;
    moves(world, &mut vm, "node-c", unlimited()).await?;
    Ok(())
}

/// QEMU's process in the folder of each runner of a node.
pub(crate) fn qemus(cluster: &Cluster, on: &NodeName) -> Vec<Pid> {
    processes(cluster, on, |command| command.first().is_some_and(|program| program.contains("qemu-system")))
}

pub(crate) fn keepers(cluster: &Cluster, on: &NodeName) -> Vec<Pid> {
    processes(cluster, on, |command| command.get(1..3).is_some_and(|words| words == ["guest", "keep"]))
}

fn processes(cluster: &Cluster, on: &NodeName, is_it: impl Fn(&[String]) -> bool) -> Vec<Pid> {
    let folder = cluster.node_dir(on);
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_node = numbers.filter(|pid| {
        let here = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&folder));
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> =
            command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        here && is_it(&words)
    });
    of_node.filter_map(Pid::from_raw).collect()
}

/// It was stopped before its state came, so it can not have run; its death is seen, written down and told.
async fn a_qemu_that_dies_between_hand_over_and_start_hands_the_guest_back(world: &mut World) -> Outcome {
    world.announce(&[
        "migration failed",
        "giving up",
        "runner at the target",
        "a runner has died",
        "runner did not end",
        "QEMU has ended",
        "connection lost after the hand-over",
    ]);
    world.start_with(&[]).await?;
    let mut vm = Vm::boot(world, VmSpec::default()).await?;
    let mut killed = false;
    let moved = world
        .migrate("node-b", limited_to(60), async |cluster, seen| {
            let target = node("node-b");
            let copies = seen.progress.as_ref().is_some_and(|progress| progress.wire_bytes > 0);
            if killed || !copies {
                return;
            }
            killed = true;
            let all = qemus(cluster, &target);
            all.iter().for_each(|pid| kill_process(*pid, Signal::STOP).expect("stopped"));
            owned_by(cluster, &target).await;
            all.iter().for_each(|pid| kill_process(*pid, Signal::KILL).expect("killed"));
        })
        .await?;
    assert!(killed && matches!(moved, Moved::Failed(_)), "{moved:?}");
    world.runs_under_the_agreed_epoch().await?;
    assert_eq!(world.owner().await?, Some(node("node-a")), "{moved:?}");
    vm.prove(world).await?;
    world.runner_goes("node-b").await?;
    moves(world, &mut vm, "node-c", unlimited()).await?;
    Ok(())
}

/// QEMU outlives whoever speaks for it: as a guest that rests, as a source in the middle of a copy, as a target that lacks pages.
async fn a_keeper_that_dies_is_followed_by_another_whatever_the_guest_does(world: &mut World) -> Outcome {
    world.announce(&[
        "the keeper of a QEMU has died",
        "migration failed",
        "giving up",
        "not resumed",
        "runner at the",
        "runner did not end",
    ]);
    world.start_with(&[]).await?;
    let mut vm = Vm::boot(world, VmSpec::default()).await?;
    another_keeper(world, &node("node-a")).await?;

    let mut killed = false;
    let moved = world
        .migrate("node-b", limited_to(60), async |cluster, seen| {
            if !killed && seen.progress.as_ref().is_some_and(|progress| progress.wire_bytes > 8 << 20) {
                killed = !kill(cluster, &node("node-a")).is_empty();
            }
        })
        .await?;
    assert!(killed, "{moved:?}");
    let now = if matches!(moved, Moved::Succeeded { .. }) { "node-b" } else { "node-a" };
    world.runs_under_the_agreed_epoch().await?;
    assert_eq!(world.owner().await?, Some(node(now)), "{moved:?}");
    vm.prove(world).await?;

    let (mut killed, overrides) = (false, Overrides { allow_post_copy: Some(true), ..limited_to(100) });
    let how = How { overrides, mode: Some(MoveMode::PostCopy) };
    let moved = world
        .migrate("node-c", how, async |cluster, seen| {
            if !killed && crate::postcopy::is_post_copy(seen) {
                killed = !kill(cluster, &node("node-c")).is_empty();
            }
        })
        .await?;
    assert!(killed && matches!(moved, Moved::Succeeded { .. }), "{moved:?}");
    world.runs_under_the_agreed_epoch().await?;
    vm.prove(world).await?;
    moves(world, &mut vm, "node-a", unlimited()).await?;
    Ok(())
}

/// Those that were there.
fn kill(cluster: &Cluster, on: &NodeName) -> Vec<Pid> {
    let all = keepers(cluster, on);
    all.iter().for_each(|pid| kill_process(*pid, Signal::KILL).expect("killed"));
    all
}

/// Kills the one that is there, and waits until the next one has the guest.
async fn another_keeper(world: &World, on: &NodeName) -> Outcome {
    let old = kill(&world.cluster, on);
    until("another keeper is there", PATIENCE, || {
        let now = keepers(&world.cluster, on);
        (now.len() == 1 && now != old).then_some(())
    })
    .await;
    world.runs_under_the_agreed_epoch().await
}

/// Its processors wait for pages meanwhile, and read no zeros. The second time its keeper dies, too: QEMU may not answer the next
/// one before the node serves its pages again.
async fn a_target_node_that_dies_in_post_copy_finds_its_qemu_waiting(world: &mut World) -> Outcome {
    world.announce(&["to the target lost", "in post-copy", "not be reached", "a QEMU has died"]);
    world.start_with(&[]).await?;
    let mut vm = Vm::boot(world, VmSpec::default()).await?;
    for (target, its_keeper_too) in [("node-b", false), ("node-c", true)] {
        let (mut killed, overrides) = (false, Overrides { allow_post_copy: Some(true), ..limited_to(60) });
        let how = How { overrides, mode: Some(MoveMode::PostCopy) };
        let strike = async |cluster: &mut Cluster, seen: &_| {
            if !killed && crate::postcopy::is_post_copy(seen) {
                killed = true;
                cluster.kill_node(&node(target)).await.expect("killed");
                assert!(!its_keeper_too || !kill(cluster, &node(target)).is_empty());
                cluster.restart_node(&node(target)).await.expect("restarted");
            }
        };
        let moved = world.migrate(target, how, strike).await?;
        assert!(killed && matches!(moved, Moved::Succeeded { .. }), "{moved:?}");
        vm.prove(world).await?;
    }
    Ok(())
}

/// A QEMU that knows nothing of anybody: looked at, adopted, left alone again, adopted again, moved. It has no privilege and is
/// confined, as those are that others manage, and so is it where it arrives.
async fn a_qemu_that_was_started_by_hand_is_adopted_and_moved(world: &mut World) -> Outcome {
    world.announce(&["the keeper of a QEMU has died"]);
    world.start_with(&[]).await?;
    let folder = world.folder("by-hand");
    fs::create_dir(&folder)?;
    let spec = Vm::spec(world, VmSpec::default())?;
    let qemu = spec.qemu.ok_or("a machine")?;
    // Whoever it runs as opens its disk, on each host anew.
    fs::set_permissions(world.folder(""), Permissions::from_mode(0o711))?;
    fs::set_permissions(world.folder("disk.img"), Permissions::from_mode(0o666))?;
    let version = vm::version(None)?;
    let (kind, more) = if version < (8, 1) { ("memfd", "") } else { ("file", ",mem-path=/dev/shm") };
    let ram = format!("memory-backend-{kind},id=ram,size={},share=on{more}", spec.memory_bytes);
    let own = |argument: &String| match argument.starts_with("memory-backend-file,") {
        true => ram.clone(),
        false => argument.clone(),
    };
    let nobody = if version < (9, 1) { ["-runas", "nobody"] } else { ["-run-with", "user=nobody"] };
    let mut by_hand = Command::new(&qemu.program);
    by_hand
        .args(qemu.arguments.iter().map(own))
        .args(["-qmp", "unix:qmp.sock,server=on,wait=off"])
        .args(nobody)
        .args(["-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny"])
        .current_dir(&folder);
    let mut started = ByHand::start(&mut by_hand)?;
    let pid = started.pid();
    until("its control socket is there", PATIENCE, || folder.join("qmp.sock").exists().then_some(())).await;
    let qmp = folder.join("qmp.sock").display().to_string();
    let mut vm = Vm::started_in(folder.clone(), VmSpec::default()).await?;
    let socket = world.cluster.node_dir(&node("node-a")).join("admin.sock");
    let godwit = |words: &[&str]| command(&socket, words);
    let adopt = ["guest", "adopt", "vm1", "--pid", &pid, "--qmp", &qmp];
    assert!(is_confined(&pid), "it has given up what it was started with");
    let before = descriptors(&pid);
    let seen = godwit(&[&adopt[..], &["--dry-run"]].concat())?;
    assert!(seen.contains("can be adopted") && seen.contains("nothing was changed"), "{seen}");
    assert!(seen.contains("pc-q35-"), "another host starts this version of the machine: {seen}");
    assert!(world.guest().await.is_err(), "nothing was made");
    godwit(&adopt)?;
    assert!(!started.is_in_its_cgroup(), "it has one of ours");
    // Whoever comes after its keeper knows where it was.
    another_keeper(world, &node("node-a")).await?;
    godwit(&["guest", "unadopt", "vm1"])?;
    assert_eq!(started.ended()?, None, "it runs on");
    let left = || (descriptors(&pid) == before && started.is_in_its_cgroup()).then_some(());
    until("it is as it was", PATIENCE, left).await;
    godwit(&adopt)?;
    let refused =
        godwit(&["guest", "adopt", "other", "--pid", &pid, "--qmp", &qmp]).expect_err("it has one client");
    assert!(refused.contains("-qmp unix:PATH"), "{refused}");
    moves(world, &mut vm, "node-b", unlimited()).await?;
    assert!(
        started.wait()?.code().is_none_or(|code| code != 0),
        "it has moved, and its first process was ended"
    );
    moves(world, &mut vm, "node-c", post_copy()).await?;
    let arrived = qemus(&world.cluster, &node("node-c"));
    let all_confined = arrived.iter().all(|pid| is_confined(&pid.as_raw_nonzero().to_string()));
    assert!(!arrived.is_empty() && all_confined, "so has the one at the target: {arrived:?}");
    Ok(())
}

/// Whether a process is no root, has no capability and a filter of its system calls.
pub(crate) fn is_confined(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let is = |field: &str, wanted: &dyn Fn(&str) -> bool| {
        status.lines().any(|line| line.strip_prefix(field).is_some_and(|value| wanted(value.trim())))
    };
    is("Uid:", &|value| !value.split_whitespace().any(|uid| uid == "0"))
        && is("CapEff:", &|value| value.trim_matches('0').is_empty())
        && is("Seccomp:", &|value| value == "2")
}

/// What a command says: `Err` if it refuses.
pub(crate) fn command(socket: &std::path::Path, words: &[&str]) -> Result<String, String> {
    let done =
        Command::new(crate::support::program::program()).args(words).env("GODWIT_SOCKET", socket).output();
    let done = done.expect("the command runs");
    let text = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    if done.status.success() { Ok(text) } else { Err(text) }
}

/// Each QEMU is asked, and none is changed.
async fn a_qemu_that_can_not_be_moved_is_told_why_and_what_to_do(world: &mut World) -> Outcome {
    let shared = "-object memory-backend-file,id=ram,size=64M,mem-path=/dev/shm,share=on -machine q35,memory-backend=ram";
    for (arguments, what, cure) in [
        ("-machine q35", "its RAM (pc.ram) is not shared", "-object memory-backend-file,id=ram"),
        (
            "-object memory-backend-memfd,id=ram,size=64M,share=off -machine q35,memory-backend=ram",
            "RAM (ram) is not shared",
            "share=on",
        ),
        (&format!("{shared} -device virtio-balloon-pci"), "a balloon", "without -device virtio-balloon"),
        (&format!("{shared} -drive file=disk.img,if=none,id=d -daemonize"), "file=disk.img", "whole paths"),
    ] {
        let folder = tempfile::tempdir_in(world.folder(""))?;
        fs::write(folder.path().join("disk.img"), [0; 512])?;
        let mut words =
            vec!["-m", "64M", "-accel", "tcg", "-nodefaults", "-display", "none", "-pidfile", "pid"];
        words.extend(["-qmp", "unix:qmp.sock,server=on,wait=off"]);
        words.extend(arguments.split(' '));
        // One that goes into the background leaves a child that has ended.
        let mut child = Command::new(vm::program()).args(&words).current_dir(folder.path()).spawn()?;
        let qmp = folder.path().join("qmp.sock");
        let number = || fs::read_to_string(folder.path().join("pid")).ok().filter(|pid| pid.ends_with('\n'));
        let pid = until("QEMU is there", PATIENCE, || number().filter(|_| qmp.exists())).await;
        let (pid, qmp) = (pid.trim().to_owned(), qmp.display().to_string());
        let socket = world.folder("none.sock");
        let said = command(&socket, &["guest", "adopt", "vm1", "--pid", &pid, "--qmp", &qmp]);
        let number = pid.parse().ok().and_then(Pid::from_raw).ok_or("a number")?;
        kill_process(number, Signal::KILL)?;
        let _ = child.wait();
        let said = said.expect_err(arguments);
        assert!(said.contains(what) && said.contains("cure:") && said.contains(cure), "{arguments}: {said}");
    }
    Ok(())
}

fn descriptors(pid: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
