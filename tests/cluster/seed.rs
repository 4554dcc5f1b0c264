//! An operator's day, at the command line: limits, labels, policies, a targeted move, a heavy workload.
//!
//! ```text
//!   manifests as KubeVirt's users write them ── godwit apply, create, edit, label ──▶ three real nodes
//!   godwit policy explain, migrate, migration explain ──▶ what an operator reads, and what becomes of the guest
//! ```

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use godwit::lab::monotonic_ns;
use godwit_domain::GuestName;
use libtest_mimic::Trial;
use serde_json::Value;
use tokio::process::Command;

use crate::support::program::{Ran, program};
use crate::support::world::{VOTERS, World, node};
use crate::support::{Outcome, stories};

/// The manifests of the documents that people start from, line breaks restored.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../wire/tests/manifests");
/// The guest of those documents.
const VM: &str = "vmi-fedora";

pub(crate) fn trials() -> Vec<Trial> {
    stories![an_operators_day, a_heavy_workload_is_cancelled_at_its_deadline]
}

/// The command line against one node.
struct Desk {
    socket: PathBuf,
    folder: PathBuf,
}

impl Desk {
    fn of(world: &World) -> Result<Self, Box<dyn Error>> {
        let socket = world.cluster.node(&node("node-b")).ok_or("no node")?.socket.clone();
        let folder = world.folder("manifests");
        std::fs::create_dir_all(&folder)?;
        Ok(Self { socket, folder })
    }

    async fn run(&self, words: &str) -> Result<Ran, Box<dyn Error>> {
        self.run_with(words, "true").await
    }

    async fn run_with(&self, words: &str, editor: &str) -> Result<Ran, Box<dyn Error>> {
        let mut command = Command::new(program());
        command.args(words.split_whitespace()).env("GODWIT_SOCKET", &self.socket).env("EDITOR", editor);
        command.env_remove("VISUAL").stdin(Stdio::null()).kill_on_drop(true);
        Ok(command.output().await?.into())
    }

    /// What must be done.
    async fn done(&self, words: &str) -> Result<Ran, Box<dyn Error>> {
        let ran = self.run(words).await?;
        if ran.code == Some(0) { Ok(ran) } else { Err(format!("godwit {words}: {ran:?}").into()) }
    }

    async fn json(&self, words: &str) -> Result<Value, Box<dyn Error>> {
        let ran = self.done(&format!("{words} -o json")).await?;
        Ok(serde_json::from_str(ran.stdout.lines().last().unwrap_or_default())?)
    }

    /// A manifest with its placeholders filled in, and whatever else is changed in it.
    fn fill(&self, file: &str, change: impl Fn(String) -> String) -> Result<String, Box<dyn Error>> {
        let text = std::fs::read_to_string(Path::new(MANIFESTS).join(file))?;
        let text = text.replace("<vm_name>", VM).replace("<migration_policy>", "hpc");
        let path = self.folder.join(file);
        std::fs::write(&path, change(text))?;
        Ok(path.display().to_string())
    }

    fn write(&self, name: &str, text: &str) -> Result<String, Box<dyn Error>> {
        let path = self.folder.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

/// A guest with memory, as a VirtualMachine; the documents' own example changes labels alone.
fn machine(memory: &str, dirty_rate: &str, working_set: &str) -> String {
    format!(
        "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {{name: {VM}}}\nspec:\n  runStrategy: Always\n  \
         template:\n    metadata:\n      annotations: {{godwit.dev/dirty-rate: {dirty_rate}, godwit.dev/working-set: \
         {working_set}, godwit.dev/threads: \"2\", godwit.dev/compressible-percent: \"0\"}}\n    spec:\n      \
         nodeSelector: {{}}\n      domain: {{memory: \
         {{guest: {memory}}}}}\n"
    )
}

async fn three(world: &mut World) -> Result<Desk, Box<dyn Error>> {
    let specs = VOTERS.iter().map(|name| {
        let mut spec = world.cluster.spec(&node(name));
        if *name == "node-c" {
            spec.labels = vec![("accelerator".to_owned(), "gpu-enabled23".to_owned())];
        }
        spec
    });
    let specs = specs.collect();
    world.start_as(specs).await?;
    Desk::of(world)
}

fn guest() -> GuestName {
    format!("default/{VM}").parse().expect("a name")
}

async fn an_operators_day(world: &mut World) -> Outcome {
    let desk = three(world).await?;
    limits_and_defaults(&desk).await?;

    // A VM, its labels, its project's, a policy: as the documents say, and refused where they leave a gap.
    let vm = desk.write("vm.yaml", &machine("64Mi", "1Mi", "32Mi"))?;
    assert!(desk.done(&format!("apply -f {vm}")).await?.stdout.contains("created"));
    assert!(desk.done(&format!("apply -f {vm}")).await?.stdout.contains("unchanged"));
    let gap = desk.run(&format!("apply -f {MANIFESTS}/seed-3-labels.yaml")).await?;
    assert!(gap.code == Some(1) && gap.stderr.contains("fill in the placeholder <vm_name>"), "{gap:?}");
    let labels = desk.fill("seed-3-labels.yaml", |text| text)?;
    assert!(desk.done(&format!("apply -f {labels}")).await?.stdout.contains("configured"));
    policies(&desk).await?;

    // A move to a subset of nodes, for one attempt.
    let since = monotonic_ns();
    let source = world.cluster.guest(&guest()).await?.row.node.ok_or("it runs nowhere")?;
    let short = |text: String| {
        text.replace("name: migration-job", "name: too-picky") + "  unschedulableTimeoutSeconds: 5\n"
    };
    let picky = desk.fill("seed-5-migration.yaml", short)?;
    desk.done(&format!("apply -f {picky}")).await?;
    let explained = desk.json("migration explain too-picky").await?;
    let verdict = explained["nodes"]["node-c"].as_str().unwrap_or_default();
    let expected =
        "its label kubernetes.io/hostname is \"node-c\", \"ip-172-28-114-199.example\" is asked for";
    assert!(verdict == expected || source == node("node-c"), "{explained}");
    let ended = desk.run("migration watch too-picky -o json").await?;
    assert!(
        ended.stdout.contains("\"Failed\"") && ended.stdout.contains("Unschedulable for 5 s"),
        "{ended:?}"
    );
    assert_eq!(world.cluster.guest(&guest()).await?.row.node, Some(source.clone()));
    // It was for that attempt alone.
    let elsewhere = if source == node("node-a") { "node-b" } else { "node-a" };
    desk.done(&format!("migrate {VM} --to {elsewhere} --wait")).await?;
    desk.done("label node node-c kubernetes.io/hostname=ip-172-28-114-199.example --overwrite").await?;
    let dry = desk.json(&format!("migrate {VM} --node-selector accelerator=gpu-enabled23 --dry-run")).await?;
    assert_eq!(dry["target"], "node-c", "{dry}");
    let job = desk.fill("seed-5-migration.yaml", |text| text)?;
    desk.done(&format!("apply -f {job}")).await?;
    desk.done("migration watch migration-job").await?;
    // Applied twice it is the same migration, finished or not.
    assert!(desk.done(&format!("apply -f {job}")).await?.stdout.contains("unchanged"));
    let moved = world.cluster.guest(&guest()).await?;
    assert_eq!(moved.row.node, Some(node("node-c")));
    assert_eq!(world.cluster.verify(&guest()).await?.wrong, 0);
    let seen = world.ticks_after(since, monotonic_ns(), "node-c").await;
    assert_eq!(seen.lost, 0, "{seen:?}");
    Ok(())
}

async fn limits_and_defaults(desk: &Desk) -> Outcome {
    let limits =
        desk.fill("seed-1-limits.yaml", |text| text.replace("progressTimeout: 150", "progressTimeout: 99"))?;
    desk.done(&format!("apply -f {limits}")).await?;
    let shown = desk.json("get hyperconverged").await?;
    assert_eq!(shown[0]["spec"]["liveMigrationConfig"]["progressTimeout"], 99, "{shown}");
    let same = desk.json("get kubevirt").await?;
    assert_eq!(same[0]["spec"]["configuration"]["migrations"]["bandwidthPerMigration"], "64Mi", "{same}");
    // A value that is refused changes nothing, and is named with its rule.
    let wrong = desk.fill("seed-1-limits.yaml", |text| text.replace("64Mi", "64mi"))?;
    let refused = desk.run(&format!("apply -f {wrong}")).await?;
    assert!(refused.code == Some(1) && refused.stderr.contains("bandwidthPerMigration"), "{refused:?}");
    // Deleting the key and saving restores its default.
    let editor = desk.write("editor", "#!/bin/sh\nsed -i /progressTimeout/d \"$1\"\n")?;
    std::fs::set_permissions(&editor, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let edited = desk.run_with("edit hyperconverged", &editor).await?;
    assert_eq!(edited.code, Some(0), "{edited:?}");
    let shown = desk.json("get hco").await?;
    let config = &shown[0]["spec"]["liveMigrationConfig"];
    assert!(config.get("progressTimeout").is_none() && config["completionTimeoutPerGiB"] == 800, "{shown}");
    Ok(())
}

async fn policies(desk: &Desk) -> Outcome {
    let policy = desk.fill("seed-4-policy.yaml", |text| {
        text.replace("spec:\n", "spec:\n  completionTimeoutPerGiB: 77\n")
    })?;
    desk.done(&format!("create -f {policy}")).await?;
    let again = desk.run(&format!("create -f {policy}")).await?;
    assert!(again.code == Some(1) && again.stderr.contains("exists"), "{again:?}");
    let before = desk.json(&format!("policy explain {VM}")).await?;
    assert_eq!(before["policy"], Value::Null, "the project carries no labels yet: {before}");
    desk.done("label ns default hpc-workloads=True xyz-workloads-type=").await?;
    let explained = desk.json(&format!("policy explain {VM}")).await?;
    assert_eq!(explained["policy"], "hpc", "{explained}");
    assert_eq!(explained["candidates"][0]["labels"], 3, "{explained}");
    let setting = |key: &str| explained["settings"][key].clone();
    assert_eq!(setting("completionTimeoutPerGiB"), serde_json::json!({"value": 77, "origin": "policy"}));
    assert_eq!(setting("bandwidthPerMigration"), serde_json::json!({"value": "64Mi", "origin": "cluster"}));
    assert_eq!(setting("progressTimeout"), serde_json::json!({"value": 150, "origin": "default"}));
    // The same without any node, from the same files.
    let namespace = desk.write(
        "ns.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {hpc-workloads: \"True\", xyz-workloads-type: \"\"}}\n",
    )?;
    let labels = desk.folder.join("seed-3-labels.yaml").display().to_string();
    let limits = desk.fill("seed-1-limits.yaml", |text| text)?;
    let offline = format!("policy explain {VM} -f {namespace} -f {labels} -f {policy} -f {limits}");
    let alone = Desk { socket: desk.folder.join("nobody.sock"), folder: desk.folder.clone() };
    let offline = alone.json(&offline).await?;
    for same in ["vm", "namespace", "policy", "candidates"] {
        assert_eq!(offline[same], explained[same], "{same}");
    }
    Ok(())
}

async fn a_heavy_workload_is_cancelled_at_its_deadline(world: &mut World) -> Outcome {
    world.announce(&["giving up", "migration failed"]);
    let desk = three(world).await?;
    // The documents' settings for heavy workloads, without post-copy, on a small machine's scale.
    let heavy = |text: String| {
        let text = text.replace("allowPostCopy: true", "allowPostCopy: false");
        text.replace("0Mi", "32Mi").replace("completionTimeoutPerGiB: 150", "completionTimeoutPerGiB: 64")
    };
    let settings = desk.fill("seed-2-heavy.yaml", heavy)?;
    desk.done(&format!("apply -f {settings}")).await?;
    let vm = desk.write("vm.yaml", &machine("64Mi", "64Mi", "32Mi"))?;
    desk.done(&format!("apply -f {vm}")).await?;
    let source = world.cluster.guest(&guest()).await?.row.node.ok_or("it runs nowhere")?;
    let since = monotonic_ns();
    let moved = desk.run(&format!("migrate {VM} --wait")).await?;
    assert_eq!(moved.code, Some(1), "{moved:?}");
    assert!(moved.stderr.contains("Cancelled: CompletionTimeout"), "{moved:?}");
    assert_eq!(world.cluster.guest(&guest()).await?.row.node, Some(source.clone()));
    assert_eq!(world.cluster.verify(&guest()).await?.wrong, 0);
    let seen = world.ticks_after(since, monotonic_ns(), source.as_str()).await;
    world.ran_on(&seen, since, 300_000_000);
    // Post-copy is a price that is said before it is paid.
    let allowed = desk.write(
        "policy.yaml",
        "apiVersion: migrations.kubevirt.io/v1alpha1\nkind: MigrationPolicy\nmetadata: {name: busy}\n\
         spec: {allowPostCopy: true, selectors: {}}\n",
    )?;
    desk.done(&format!("apply -f {allowed}")).await?;
    let explained = desk.json(&format!("policy explain {VM}")).await?;
    assert_eq!(explained["settings"]["allowWorkloadDisruption"]["value"], true, "{explained}");
    assert!(
        explained["notes"].to_string().contains("not for critical data or unstable networks"),
        "{explained}"
    );
    Ok(())
}
