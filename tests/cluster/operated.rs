//! A virtual machine in an operator's hands: its power button, why one was lost, its console, its manifest.

use std::error::Error;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use godwit::lab::cluster::{Cluster, How};
use godwit_domain::qemu::Machine;
use godwit_domain::{GuestSpec, NodeName};
use godwit_guest::qemu::Qmp;
use godwit_guest::qemu::command::of_machine;
use godwit_wire::admin::Act;
use libtest_mimic::Trial;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use crate::qemu::{
    WRITES_FAST, after_rounds, command, is_confined, is_post_copy, keepers, moves, post_copy, qemus,
};
use crate::support::program::program;
use crate::support::world::{MIB, VOTERS, World, guest, node, unlimited};
use crate::support::{Outcome, PATIENCE, stories, unless, until};
use crate::vm::{self, ByHand, Vm, VmSpec};

pub(crate) fn trials() -> Vec<Trial> {
    let all = stories![
        a_machine_that_is_lost_says_why,
        a_machine_that_is_stopped_shuts_itself_down_first,
        a_machine_that_does_not_listen_is_stopped_all_the_same,
        what_is_typed_at_a_console_arrives_and_is_answered,
        a_machine_that_is_applied_runs_and_moves,
        a_machine_that_may_not_open_its_disk_says_so_and_waits,
        a_node_without_descriptors_takes_nothing_for_dead,
    ];
    let more = other_qemu().map(|_| stories![a_machine_moves_between_two_versions_of_qemu]);
    all.into_iter().chain(more.into_iter().flatten()).map(|story| unless(vm::missing(), story)).collect()
}

/// The folder of another QEMU, for whoever has two (`docs/qemu.md`).
fn other_qemu() -> Option<PathBuf> {
    std::env::var_os("GODWIT_OTHER_QEMU").map(PathBuf::from)
}

/// A command at a node's socket: what it says, `Err` if it refuses.
fn at(world: &World, name: &str, words: &[&str]) -> Result<String, String> {
    command(&world.cluster.node_dir(&node(name)).join("admin.sock"), words)
}

/// The folder of the one runner of a node.
async fn runner_dir(world: &World, on: &NodeName) -> PathBuf {
    let show = async |cluster: &Cluster| {
        let runners = cluster.node_detail(on).await.ok()?.runners?;
        runners.first().map(|runner| PathBuf::from(&runner.dir))
    };
    world.comes("the node has a runner", show).await
}

/// Waits until the guest is lost. Why, as it is told.
async fn lost(world: &World) -> String {
    let why = async |cluster: &Cluster| {
        let detail = cluster.guest(&guest()).await.ok()?;
        // Its node is asked for that, and may be slow.
        detail.ended.filter(|_| detail.row.state == "lost")
    };
    world.comes("the guest is lost", why).await
}

/// It ended by itself, QEMU was killed, and its keeper with it: each time an operator reads why where he looks first.
async fn a_machine_that_is_lost_says_why(world: &mut World) -> Outcome {
    // Its keeper may be seen dead a moment before QEMU is: then another looks for it, and finds nothing.
    world.announce(&["a runner has died", "QEMU has ended by itself", "the keeper of a QEMU has died"]);
    world.start_with(&[]).await?;
    let on = node("node-a");
    let mut vm = Vm::boot(world, VmSpec::default()).await?;
    vm.prove(world).await?;
    world.cluster.ask_any(Act::GuestPowerButton { guest: guest() }).await?;
    let shut_down =
        "the guest shut itself down (QEMU says: guest-shutdown), after its power button was pressed";
    assert_eq!(lost(world).await, shut_down);
    let line = world.logs("node-a", "a runner has died").await;
    assert!(line.contains(shut_down), "{line}");
    for words in [&["guest", "show", "vm1"][..], &["describe", "vmi", "vm1"]] {
        // From any node, whoever had it.
        let shown = at(world, "node-c", words)?;
        assert!(shown.contains(&format!("lost: {shut_down}")), "{words:?}: {shown}");
    }
    // A node that is started again knows it as well.
    world.cluster.kill_node(&on).await?;
    world.cluster.restart_node(&on).await?;
    world.cluster.are_reachable(std::slice::from_ref(&on)).await?;
    assert_eq!(lost(world).await, shut_down, "after a restart of its node");
    // What is lost has no button to be pressed.
    assert!(at(world, "node-a", &["guest", "stop", "vm1"])?.contains("default/vm1 is stopped"));

    let spec = Vm::spec(world, VmSpec::default())?;
    world.create(spec.clone()).await?;
    qemus(&world.cluster, &on).iter().for_each(|pid| kill_process(*pid, Signal::KILL).expect("killed"));
    assert_eq!(lost(world).await, "QEMU was killed by signal 9");
    at(world, "node-a", &["guest", "stop", "vm1"])?;

    world.create(spec).await?;
    let dir = runner_dir(world, &on).await;
    fs::write(dir.join("qemu.log"), "qemu: the last\u{7} word\n")?;
    // The keeper must not find the time to say what it sees.
    let signal = |signal, pid| kill_process(pid, signal).expect("a process");
    let (keepers, qemus_here) = (keepers(&world.cluster, &on), || qemus(&world.cluster, &on));
    keepers.iter().for_each(|pid| signal(Signal::STOP, *pid));
    qemus_here().iter().for_each(|pid| signal(Signal::KILL, *pid));
    until("QEMU has ended", PATIENCE, || qemus_here().is_empty().then_some(())).await;
    keepers.iter().for_each(|pid| signal(Signal::KILL, *pid));
    let told = lost(world).await;
    assert!(told.starts_with("QEMU has ended, and its keeper with it"), "{told}");
    assert!(told.ends_with("; the end of qemu.log: qemu: the last  word"), "{told}");
    Ok(())
}

/// It was started as another user, and is so where it arrives: there its disk lies in a folder into which that user may not look.
/// A mount of its own lets the source see that disk through another one, as on another host.
async fn a_machine_that_may_not_open_its_disk_says_so_and_waits(world: &mut World) -> Outcome {
    world.announce(&[
        "the licensed guest does not run yet",
        "the guest was not resumed",
        "the keeper of a QEMU has died",
    ]);
    world.start_with(&[]).await?;
    let (folder, images) = (world.folder("by-hand"), world.folder("images"));
    let disk = images.join("disk.img");
    fs::create_dir(&folder)?;
    fs::create_dir(&images)?;
    fs::File::create(&disk)?.set_len(MIB)?;
    fs::hard_link(&disk, folder.join("disk.img"))?;
    let allow = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
    allow(&world.folder(""), 0o711)?;
    allow(&folder, 0o777)?;
    allow(&disk, 0o666)?;
    allow(&images, 0o700)?;
    let mount = format!("mount --bind . {} && exec \"$@\"", images.display());
    let nobody = "--reuid 65534 --regid 65534 --clear-groups";
    let ram = "-object memory-backend-file,id=ram,size=64M,mem-path=/dev/shm,share=on -machine q35,memory-backend=ram -m 64M";
    let rest = "-accel tcg -nodefaults -display none -sandbox on -qmp unix:qmp.sock,server=on,wait=off -qmp unix:more.sock,server=on,wait=off";
    let drive = format!("if=none,id=disk0,file={},format=raw,cache=none", disk.display());
    let mut by_hand = Command::new("unshare");
    by_hand
        .args(["--mount", "sh", "-c", &mount, "sh", "setpriv"])
        .args(nobody.split(' '))
        .arg(vm::program())
        .args(ram.split(' ').chain(rest.split(' ')))
        .args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk0"])
        .current_dir(&folder);
    let mut started = ByHand::start(&mut by_hand)?;
    let (pid, qmp) = (started.pid(), folder.join("qmp.sock"));
    until("its control socket is there", PATIENCE, || qmp.exists().then_some(())).await;
    let qmp = qmp.display().to_string();
    let adopt = ["guest", "adopt", "vm1", "--pid", &pid, "--qmp", &qmp];
    let seen = at(world, "node-a", &[&adopt[..], &["--dry-run"]].concat())?;
    assert!(seen.contains("65534:65534"), "{seen}");
    at(world, "node-a", &adopt)?;

    let migration = world.ask_for("node-b", unlimited()).await?.row.name;
    let refused = async |cluster: &Cluster| cluster.guest(&guest()).await.ok()?.not_run;
    let why = world.comes("its runner says why it does not run it", refused).await;
    assert!(why.contains("QEMU refused cont") && why.contains("Permission denied"), "{why}");
    let shown = at(world, "node-c", &["guest", "show", "vm1"])?;
    assert!(shown.contains("does not run: ") && shown.contains(&why), "{shown}");
    let shown = at(world, "node-c", &["migration", "show", migration.as_str()])?;
    assert!(shown.contains("the guest to run at its target: ") && shown.contains(&why), "{shown}");
    let source = Qmp::connect(&folder.join("more.sock"))?.execute("query-status", serde_json::json!({}))?;
    assert_eq!(source["running"], false, "nothing runs at the source: {source}");

    // Another keeper is told to run it by the same transfer.
    let first = keepers(&world.cluster, &node("node-b"));
    first.iter().for_each(|pid| kill_process(*pid, Signal::KILL).expect("killed"));
    let another = || keepers(&world.cluster, &node("node-b")).into_iter().find(|pid| !first.contains(pid));
    until("another keeper is there", PATIENCE, another).await;

    allow(&images, 0o711)?;
    let moved = async |cluster: &Cluster| {
        let detail = cluster.migration(&migration).await.ok()?;
        detail.over.then_some(detail.row.phase)
    };
    assert_eq!(world.comes("the migration ends", moved).await, "Succeeded");
    assert_eq!(world.cluster.guest(&guest()).await?.not_run, None);
    let arrived = qemus(&world.cluster, &node("node-b"));
    let all_confined = arrived.iter().all(|pid| is_confined(&pid.as_raw_nonzero().to_string()));
    assert!(!arrived.is_empty() && all_confined, "it is nobody's: {arrived:?}");
    started.wait()?;
    Ok(())
}

/// Its keeper dies, and the node has no descriptor left with which it could look for QEMU: it waits until it has.
async fn a_node_without_descriptors_takes_nothing_for_dead(world: &mut World) -> Outcome {
    world.announce(&["nobody keeps a QEMU", "the keeper of a QEMU has died", "Too many open files"]);
    world.start_with(&[]).await?;
    let mut vm = Vm::boot(world, VmSpec::default()).await?;
    let on = node("node-a");
    let process = world.cluster.node(&on).and_then(|node| Pid::from_raw(i32::try_from(node.pid).ok()?));
    let all = getrlimit(Resource::Nofile);
    let first = keepers(&world.cluster, &on);
    // Those that it has stay.
    prlimit(process, Resource::Nofile, Rlimit { current: Some(3), ..all })?;
    first.iter().for_each(|pid| kill_process(*pid, Signal::KILL).expect("killed"));
    world.logs("node-a", "nobody keeps a QEMU that lives").await;
    prlimit(process, Resource::Nofile, Rlimit { current: all.maximum, ..all })?;
    let another = || keepers(&world.cluster, &on).into_iter().find(|pid| !first.contains(pid));
    until("another keeper is there", PATIENCE, another).await;
    world.runs_under_the_agreed_epoch().await?;
    vm.prove(world).await?;
    moves(world, &mut vm, "node-b", unlimited()).await?;
    Ok(())
}

/// To the newer one and back, as a machine of the older one, in each way.
async fn a_machine_moves_between_two_versions_of_qemu(world: &mut World) -> Outcome {
    let folder = other_qemu().ok_or("a folder")?;
    let (this, other) = (vm::version(None)?, vm::version(Some(&folder))?);
    assert_ne!(this, other, "GODWIT_OTHER_QEMU is the same version");
    let older = this.min(other);
    let path = format!("{}:{}", folder.display(), std::env::var("PATH")?);
    world.start_with(&[("node-b", "PATH", &path)]).await?;
    let spec = VmSpec { rate: WRITES_FAST, ..VmSpec::default() };
    let mut machine = Vm::machine(world, spec)?;
    machine.more.extend(["-machine".to_owned(), format!("pc-q35-{}.{}", older.0, older.1)]);
    let qemu = of_machine(&machine).map_err(|objections| format!("{objections:?}"))?;
    world.create(GuestSpec { qemu: Some(qemu), ..GuestSpec::idle(machine.memory_bytes) }).await?;
    let mut vm = Vm::made(world, spec).await?;
    for (way, how) in [|| How::from(unlimited()), post_copy, after_rounds].into_iter().enumerate() {
        for target in ["node-b", "node-a"] {
            let (_, moved) = moves(world, &mut vm, target, how()).await?;
            assert_eq!(is_post_copy(&moved), way > 0, "{moved:?}");
            let arrived = qemus(&world.cluster, &node(target));
            let is_other = |pid: &Pid| {
                let program = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
                program.is_ok_and(|program| program.starts_with(&folder))
            };
            assert!(!arrived.is_empty() && arrived.iter().all(|pid| is_other(pid) == (target == "node-b")));
        }
    }
    Ok(())
}

/// What the guest said last stands in its console's log, which stays for a while.
async fn a_machine_that_is_stopped_shuts_itself_down_first(world: &mut World) -> Outcome {
    world.announce(&["a runner has died", "QEMU has ended by itself"]);
    world.start_with(&[]).await?;
    let mut vm = Vm::boot(world, VmSpec::default()).await?;
    vm.prove(world).await?;
    let dir = runner_dir(world, &node("node-a")).await;
    // From a node that does not run it.
    let said = at(world, "node-b", &["guest", "stop", "vm1", "--grace", "50s"])?;
    assert!(said.contains("the power button of default/vm1 is pressed; it has 50 s"), "{said}");
    assert!(said.contains("default/vm1 is stopped: the guest shut itself down"), "{said}");
    let console = fs::read_to_string(dir.join("console.log"))?;
    assert!(console.lines().any(|line| line.trim_end() == "power button"), "its last words: {console:.200}");
    assert!(world.guest().await.is_err(), "it is gone");
    Ok(())
}

/// One that boots yet does not hear its button; a built-in guest has none; and whoever pulls the plug asks nobody.
async fn a_machine_that_does_not_listen_is_stopped_all_the_same(world: &mut World) -> Outcome {
    world.start_with(&[]).await?;
    let spec = Vm::spec(world, VmSpec::default())?;
    let gone = async |world: &World| {
        let on = node("node-a");
        until("its process is gone", PATIENCE, || qemus(&world.cluster, &on).is_empty().then_some(())).await;
        assert!(world.guest().await.is_err(), "it is gone");
    };
    world.create(spec.clone()).await?;
    let said = at(world, "node-a", &["guest", "stop", "vm1", "--grace", "0"])?;
    assert!(said.contains("is stopped: it had not shut itself down within 0 s"), "{said}");
    gone(world).await;

    world.create(spec).await?;
    let said = at(world, "node-a", &["guest", "stop", "vm1", "--now"])?;
    assert_eq!(said.trim(), "default/vm1 is stopped");
    gone(world).await;

    world.create(GuestSpec::idle(16 * MIB)).await?;
    let refused = world.cluster.ask_any(Act::GuestPowerButton { guest: guest() }).await;
    let refused = refused.expect_err("it has none").to_string();
    assert!(refused.contains("a built-in guest has no power button"), "{refused}");
    assert_eq!(at(world, "node-a", &["guest", "stop", "vm1"])?.trim(), "default/vm1 is stopped");
    at(world, "node-a", &["guest", "stop", "vm1"]).expect_err("there is none any more");
    Ok(())
}

/// `godwit guest console`, with somebody at its keyboard.
struct Console {
    process: Child,
    keyboard: ChildStdin,
    screen: PathBuf,
}

impl Console {
    /// At a node's socket; what is seen goes into a file.
    fn open(world: &World, on: &str) -> Result<Self, Box<dyn Error>> {
        let screen = world.folder(&format!("screen-of-{on}"));
        let socket = world.cluster.node_dir(&node(on)).join("admin.sock");
        let mut process = Command::new(program())
            .args(["guest", "console", "vm1"])
            .env("GODWIT_SOCKET", socket)
            .stdin(Stdio::piped())
            .stdout(fs::File::create(&screen)?)
            .spawn()?;
        let keyboard = process.stdin.take().ok_or("a keyboard")?;
        Ok(Self { process, keyboard, screen })
    }

    /// Waits until a whole line of what is seen is so.
    async fn shows(&self, what: &str, is_it: impl Fn(&str) -> bool) {
        until(what, PATIENCE, || {
            let seen = fs::read(&self.screen).unwrap_or_default();
            let seen = String::from_utf8_lossy(&seen).into_owned();
            let whole = seen.rfind('\n').and_then(|end| seen.get(..end)).unwrap_or_default();
            // What follows the first line's end is whole; before it one may have begun unseen.
            whole.lines().skip(1).any(|line| is_it(line.trim_end())).then_some(())
        })
        .await;
    }

    /// Types a line, and waits for the guest's answer.
    async fn says(&mut self, line: &str) -> Outcome {
        self.shows("the guest is heard", |seen| seen.starts_with("tick ")).await;
        self.keyboard.write_all(format!("{line}\n").as_bytes())?;
        self.shows("the guest has answered", |seen| seen == format!("typed {line}")).await;
        Ok(())
    }

    /// Whoever stops typing leaves, and the guest goes on.
    async fn leave(self) -> Outcome {
        let Self { mut process, keyboard, screen: _ } = self;
        drop(keyboard);
        let status = until("the console is left", PATIENCE, || process.try_wait().ok().flatten()).await;
        assert!(status.success(), "{status}");
        Ok(())
    }
}

/// Where it runs, and after a move where it runs then; elsewhere it is said at once where that is.
async fn what_is_typed_at_a_console_arrives_and_is_answered(world: &mut World) -> Outcome {
    world.start_with(&[]).await?;
    let mut vm = Vm::boot(world, VmSpec::default()).await?;
    for (on, other) in [("node-a", "node-b"), ("node-b", "node-a")] {
        if on != "node-a" {
            moves(world, &mut vm, on, unlimited()).await?;
        }
        let mut console = Console::open(world, on)?;
        console.says(&format!("hello on {on}")).await?;
        console.says("again, with \"signs\" and $HOME").await?;
        console.leave().await?;
        vm.prove(world).await?;
        let refused = at(world, other, &["guest", "console", "vm1"]).expect_err("it runs elsewhere");
        for words in [
            &format!("runs on node {on}, and this is node {other}"),
            &format!("on node {on}: godwit guest console"),
        ] {
            assert!(refused.contains(words.as_str()), "{words}: {refused}");
        }
        // Somebody may come after somebody who has left.
        let mut console = Console::open(world, on)?;
        console.says("once more").await?;
        console.leave().await?;
    }
    Ok(())
}

/// The annotations of `docs/qemu.md`, all of them that say what a machine is made of.
fn manifest(machine: &Machine) -> Result<String, Box<dyn Error>> {
    let Machine { memory_bytes, processors, kernel, disks, network, accelerator, program, .. } = machine;
    let (kernel, initrd, append) = kernel.as_ref().ok_or("a kernel")?;
    let annotations = [
        ("runner", "qemu"),
        ("qemu", program),
        ("accel", accelerator.as_deref().unwrap_or_default()),
        ("cpus", &processors.to_string()),
        ("kernel", kernel),
        ("initrd", initrd.as_deref().unwrap_or_default()),
        ("append", append),
        ("disks", &disks.join(" ")),
        ("network", network.as_deref().unwrap_or_default()),
    ];
    let annotations: String =
        annotations.iter().map(|(key, value)| format!("        godwit.dev/{key}: \"{value}\"\n")).collect();
    Ok(format!(
        "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata:\n  name: vm1\nspec:\n  running: true\n  template:\n    \
         metadata:\n      annotations:\n{annotations}    spec:\n      domain:\n        memory:\n          guest: {}Mi\n",
        memory_bytes / MIB
    ))
}

async fn a_machine_that_is_applied_runs_and_moves(world: &mut World) -> Outcome {
    world.announce(&["a runner has died", "QEMU has ended by itself"]);
    world.start_with(&[]).await?;
    let file = world.folder("vm.yaml");
    fs::write(&file, manifest(&Vm::machine(world, VmSpec::default())?)?)?;
    let apply = ["apply", "-f", &file.display().to_string()];
    let said = at(world, "node-b", &apply)?;
    assert!(said.contains("created"), "{said}");
    let mut vm = Vm::made(world, VmSpec::default()).await?;
    vm.prove(world).await?;
    assert!(at(world, "node-b", &apply)?.contains("unchanged"), "it is what it was");
    let from = world.owner().await?.ok_or("an owner")?;
    let to = VOTERS.iter().find(|name| node(name) != from).ok_or("another node")?;
    moves(world, &mut vm, to, unlimited()).await?;
    let shown = at(world, "node-a", &["get", "vm", "vm1", "-o", "yaml"])?;
    assert!(
        shown.contains("godwit.dev/qemu-arguments") && shown.contains(&format!("nodeName: {to}")),
        "{shown}"
    );
    // It is not to run, and shuts itself down; then it is to run again, somewhere.
    let text = fs::read_to_string(&file)?;
    assert!(text.contains("running: true"), "{text}");
    fs::write(&file, text.replace("running: true", "running: false"))?;
    let said = at(world, "node-c", &apply)?;
    assert!(said.contains("the guest shut itself down") && said.contains("configured"), "{said}");
    assert!(world.guest().await.is_err(), "it does not run");
    fs::write(&file, text)?;
    let said = at(world, "node-b", &apply)?;
    assert!(said.contains("configured"), "{said}");
    let on = world.comes("it runs again", async |cluster| cluster.guest(&guest()).await.ok()?.row.node).await;
    // It hears its button when it has booted.
    Vm::started_in(runner_dir(world, &on).await, VmSpec::default()).await?;
    // Its object goes, and so does it.
    let said = at(world, "node-a", &["delete", "vm", "vm1"])?;
    assert!(said.contains("the guest shut itself down") && said.contains("deleted"), "{said}");
    at(world, "node-a", &["get", "vm", "vm1"]).expect_err("it is gone");
    assert!(world.guest().await.is_err(), "its guest is gone with it");
    Ok(())
}
