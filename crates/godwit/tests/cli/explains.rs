//! Which policy a VM gets by manifests alone: no node is there to be asked.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::desk::{Ran, ended, godwit, run};

/// A VM, as its template labels it, in a project with labels, under policies of selectors.
struct Case {
    guest: &'static [(&'static str, &'static str)],
    project: &'static [(&'static str, &'static str)],
    policies: &'static [(&'static str, &'static str)],
    gets: Option<&'static str>,
}

const PRODUCTION: &[(&str, &str)] = &[("kubevirt.io/environment", "production")];
const SEED: (&str, &str) = (
    "seed",
    "{namespaceSelector: {hpc-workloads: 'True', xyz-workloads-type: ''}, \
     virtualMachineInstanceSelector: {kubevirt.io/environment: production}}",
);

fn labels(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}: {value:?}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

fn vm(name: &str, namespace: &str, pairs: &[(&str, &str)]) -> String {
    format!(
        "---\napiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{template: {{metadata: {{labels: {}}}}}}}\n",
        labels(pairs)
    )
}

fn project(name: &str, pairs: &[(&str, &str)]) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {}}}\n", labels(pairs))
}

fn policy(name: &str, selectors: &str, more: &str) -> String {
    format!(
        "---\napiVersion: migrations.kubevirt.io/v1alpha1\nkind: MigrationPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{selectors: {selectors}{more}}}\n"
    )
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        fs::write(dir.path().join(name), text).expect("room");
    }
    dir
}

/// Nobody is behind this socket: who asked would fail.
async fn explain(arguments: &str, dir: &TempDir) -> Ran {
    let mut command = godwit(&format!("policy explain {arguments}"));
    run(command.current_dir(dir.path()).env("GODWIT_SOCKET", "/nowhere/admin.sock")).await
}

fn json_of(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

#[tokio::test]
async fn the_policy_is_the_one_of_the_rules() {
    let gpu = &[("size", "small"), ("os", "fedora"), ("gpu", "nvidia")];
    let hpc = &[("priority", "high"), ("bandwidth", "medium"), ("hpc-workload", "true")];
    let whole = &[("hpc-workloads", "True"), ("xyz-workloads-type", "")];
    for (id, case) in [
        (
            "P03",
            Case {
                guest: gpu,
                project: hpc,
                policies: &[
                    (
                        "zz-gpu",
                        "{namespaceSelector: {priority: high}, \
                         virtualMachineInstanceSelector: {size: small, gpu: nvidia}}",
                    ),
                    (
                        "aa-hpc",
                        "{namespaceSelector: {priority: high, hpc-workload: 'true'}, \
                         virtualMachineInstanceSelector: {size: small}}",
                    ),
                ],
                gets: Some("zz-gpu"),
            },
        ),
        ("P06", Case { guest: PRODUCTION, project: whole, policies: &[SEED], gets: Some("seed") }),
        (
            "P07",
            Case { guest: PRODUCTION, project: &[("hpc-workloads", "True")], policies: &[SEED], gets: None },
        ),
        (
            "P09",
            Case {
                guest: PRODUCTION,
                project: &[("hpc-workloads", "true"), ("xyz-workloads-type", "")],
                policies: &[SEED],
                gets: None,
            },
        ),
        (
            "P19",
            Case {
                guest: &[("kubevirt.io/environment", "production"), ("environment", "production")],
                project: &[],
                policies: &[
                    ("long", "{virtualMachineInstanceSelector: {kubevirt.io/environment: production}}"),
                    ("short", "{virtualMachineInstanceSelector: {environment: production}}"),
                ],
                gets: Some("short"),
            },
        ),
    ] {
        let mut text = vm("web", "lab", case.guest) + &project("lab", case.project);
        case.policies.iter().for_each(|(name, selectors)| text += &policy(name, selectors, ""));
        let dir = folder(&[("all.yaml", &text)]);
        let ran = explain("web -n lab -f all.yaml -o json", &dir).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{id}: {ran:?}");
        let value = json_of(&ran);
        assert_eq!(value["policy"], json!(case.gets), "{id}: {value}");
        assert_eq!((&value["vm"], &value["namespace"]), (&json!("web"), &json!("lab")), "{id}");
        assert_eq!(value["candidates"].as_array().map(Vec::len), Some(case.policies.len()), "{id}");
    }
}

/// The manifests of the seed, with the placeholders filled in.
const SEED_VM: &str = "\
apiVersion: migrations.kubevirt.io/v1alpha1
kind: VirtualMachine
metadata:
  name: web
  namespace: default
  labels:
    app: my-app
    environment: production
spec:
  template:
    metadata:
      labels:
        kubevirt.io/domain: web
        kubevirt.io/size: large
        kubevirt.io/environment: production
";
const SEED_HCO: &str = "\
apiVersion: hco.kubevirt.io/v1beta1
kind: HyperConverged
metadata:
  name: kubevirt-hyperconverged
  namespace: openshift-cnv
spec:
  liveMigrationConfig:
    bandwidthPerMigration: 64Mi
    completionTimeoutPerGiB: 800
    progressTimeout: 150
    allowPostCopy: false
";

#[tokio::test]
async fn a_folder_is_read_in_order_with_the_origin_of_each_setting() {
    let whole = [("hpc-workloads", "True"), ("xyz-workloads-type", "")];
    let policy = policy(SEED.0, SEED.1, ", allowPostCopy: true, completionTimeoutPerGiB: 0");
    let early = SEED_HCO.replace("64Mi", "1Mi");
    let dir = folder(&[
        ("10-early.json", &early),
        ("20-hco.yaml", SEED_HCO),
        ("30-vm.yml", SEED_VM),
        ("40-project.yaml", &project("default", &whole)),
        ("50-policy.yaml", &policy),
        ("60-other.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n"),
        ("notes.txt", "no: [manifest"),
    ]);
    let ran = explain("web -f . -o json", &dir).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("60-other.yaml") && ran.stderr.contains("Deployment"), "{ran:?}");
    let value = json_of(&ran);
    assert_eq!(value["policy"], "seed");
    assert_eq!(
        value["candidates"],
        json!([{
            "policy": "seed", "matched": true, "labels": 3,
            "keys": ["hpc-workloads", "kubevirt.io/environment", "xyz-workloads-type"],
            "reason": "the only one that matches",
        }])
    );
    for (key, set, origin) in [
        ("bandwidthPerMigration", json!("64Mi"), "cluster"),
        ("completionTimeoutPerGiB", json!(0), "policy"),
        ("allowPostCopy", json!(true), "policy"),
        ("maxDowntimeMs", json!(300), "default"),
    ] {
        assert_eq!(value["settings"][key], json!({"value": set, "origin": origin}), "{key}");
    }
    let table = explain("web -f .", &dir).await;
    for part in ["seed", "hpc-workloads, kubevirt.io/environment", "64Mi", "cluster", "notes", "post-copy"] {
        assert!(table.stdout.contains(part), "{part}: {table:?}");
    }
}

#[tokio::test]
async fn standard_input_is_a_file_and_an_instance_is_a_vm() {
    let text = "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\n\
                metadata: {name: db, labels: {app: db}, annotations: {godwit.dev/critical: 'true'}}\n\
                spec: {domain: {memory: {guest: 1Gi}}}\n"
        .to_owned()
        + &policy("all", "{}", "")
        + &policy("db", "{virtualMachineInstanceSelector: {app: db}}", ", allowPostCopy: true");
    let mut command = godwit("policy explain db -n lab -f - -o json");
    let mut child = command.stdin(Stdio::piped()).spawn().expect("a process");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(text.as_bytes()).await.expect("room");
    drop(stdin);
    let ran = ended(child).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let value = json_of(&ran);
    assert_eq!((&value["policy"], &value["namespace"]), (&json!("db"), &json!("lab")));
    assert_eq!(value["candidates"][1]["reason"], "db matches 1 labels, this 0");
    assert!(value["notes"].to_string().contains("critical"), "{value}");
}

#[tokio::test]
async fn what_can_not_be_answered_is_refused_by_name() {
    let good = vm("web", "lab", &[]) + &vm("db", "default", &[]);
    let dir = folder(&[
        ("good.yaml", &good),
        ("torn.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: [\n"),
        ("typo.yaml", &policy("fast", "{}", ", bandwidthPerMigratoin: 64Mi")),
        ("open.yaml", SEED_VM.replace("name: web", "name: <vm_name>").as_str()),
        ("empty.yaml", "# nothing\n"),
        ("notes.txt", ""),
    ]);
    fs::create_dir(dir.path().join("none")).expect("room");
    for (arguments, parts) in [
        ("web -f good.yaml", &["no VM default/web", "default/db, lab/web"][..]),
        ("web -n lab -f good.yaml -f torn.yaml", &["torn.yaml: document 1, line "]),
        ("web -n lab -f good.yaml -f typo.yaml", &["typo.yaml", "fast", "bandwidthPerMigratoin"]),
        ("web -n lab -f good.yaml -f open.yaml", &["open.yaml", "fill in the placeholder"]),
        ("web -n lab -f empty.yaml", &["empty.yaml", "no object"]),
        ("web -n lab -f none", &["none", ".yaml, .yml or .json"]),
        ("web -n lab -f nowhere.yaml", &["nowhere.yaml"]),
    ] {
        let ran = explain(arguments, &dir).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{arguments}: {ran:?}");
        for part in parts.iter().chain(&["  rule: ", "  try: "]) {
            assert!(ran.stderr.contains(part), "{arguments}: {part:?} in {}", ran.stderr);
        }
    }
    let ran = explain("web -n lab -f torn.yaml -f typo.yaml -o json", &dir).await;
    let codes: Vec<Value> = ran.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!((ran.code, codes.len()), (Some(1), 2), "each flaw is told: {ran:?}");
}
