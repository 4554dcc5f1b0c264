//! kubectl's words: what is asked of the node for them, and what is printed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use godwit_wire::admin::{Act, Body, Code};
use serde_json::{Value, json};

use crate::desk::{Answer, Node, Ran, detail, problem, run};

pub(crate) fn policy(name: &str, bandwidth: &str) -> Value {
    json!({
        "apiVersion": "migrations.kubevirt.io/v1alpha1", "kind": "MigrationPolicy", "metadata": {"name": name},
        "spec": {"bandwidthPerMigration": bandwidth, "selectors": {}}, "status": {"guests": 3},
    })
}

pub(crate) fn objects(items: &[Value]) -> Value {
    let row = |item: &Value| json!([item["metadata"]["name"], item["spec"]["bandwidthPerMigration"], "more"]);
    json!({
        "kind": "MigrationPolicy", "items": items, "head": ["NAME", "BANDWIDTH", "MORE"], "narrow": 2,
        "rows": items.iter().map(row).collect::<Vec<_>>(),
    })
}

fn applied(name: &str, done: &str, dry_run: bool) -> Vec<Body> {
    vec![Body::Ok(json!({
        "kind": "MigrationPolicy", "name": name, "done": done, "dry_run": dry_run, "notes": ["spec.x is ignored"],
    }))]
}

/// Has policies `a` and `b`, and does what it is told, but nothing with `bad`.
pub(crate) fn usual(act: &Act, _: usize) -> Vec<Body> {
    match act {
        Act::Get { name: Some(name), .. } if name == "bad" => problem(Code::NotFound),
        Act::Get { name: Some(name), .. } => vec![Body::Ok(objects(&[policy(name, "1Mi")]))],
        Act::Get { .. } => vec![Body::Ok(objects(&[policy("a", "1Mi"), policy("b", "2Mi")]))],
        Act::Apply { object, dry_run, create, .. } => match object["metadata"]["name"].as_str() {
            Some("bad") => problem(Code::Refused),
            name => {
                applied(name.unwrap_or_default(), if *create { "created" } else { "configured" }, *dry_run)
            }
        },
        Act::Delete { name, dry_run, .. } => applied(name, "deleted", *dry_run),
        Act::Label { name, dry_run, .. } => applied(name, "labeled", *dry_run),
        _ => problem(Code::Refused),
    }
}

fn manifest(name: &str) -> String {
    format!(
        "apiVersion: migrations.kubevirt.io/v1alpha1\nkind: MigrationPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{selectors: {{}}}}\n"
    )
}

async fn run_in(node: &Node, dir: &Path, line: &str) -> Ran {
    run(node.command(line).current_dir(dir)).await
}

#[tokio::test]
async fn objects_are_shown_as_a_table_as_documents_or_as_a_list() {
    let node = Node::start(usual);
    let table = node.run("get migrationpolicies").await;
    assert_eq!((table.code, table.stderr.as_str()), (Some(0), ""), "{table:?}");
    assert!(table.stdout.contains("BANDWIDTH") && !table.stdout.contains("MORE"), "{table:?}");
    assert!(node.run("get migrationpolicy -o wide").await.stdout.contains("MORE"));
    assert_eq!(node.run("policy list").await.stdout, table.stdout);
    let json = node.run("get migrationpolicy a b -o json").await;
    let value: Value = serde_json::from_str(&json.stdout).expect("one value");
    assert_eq!(value, json!([policy("a", "1Mi"), policy("b", "1Mi")]));
    let yaml = node.run("get migrationpolicy -o yaml").await;
    assert_eq!((yaml.stdout.matches("\n---\n").count(), yaml.code), (1, Some(0)), "{yaml:?}");
    let read = godwit_wire::manifest::documents(&yaml.stdout).expect("YAML");
    assert_eq!(read, [policy("a", "1Mi"), policy("b", "2Mi")]);
    // One that is missing does not hide the others.
    let ran = node.run("get migrationpolicy/a migrationpolicy/bad").await;
    assert!(
        ran.code == Some(1) && ran.stdout.contains(" a ") && ran.stderr.contains("the message"),
        "{ran:?}"
    );
    let none = Node::start(|_, _| vec![Body::Ok(objects(&[]))]).run("get vmi").await;
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""));
    assert_eq!(none.stderr, "no MigrationPolicy in namespace default\n");
}

#[tokio::test]
async fn what_is_looked_for_has_its_namespace() {
    let node = Node::start(usual);
    let get = |kind: &str, name: Option<&str>, namespace: Option<&str>| Act::Get {
        kind: kind.into(),
        name: name.map(str::to_owned),
        namespace: namespace.map(str::to_owned),
        watch: false,
    };
    for (line, act) in [
        ("get vmi", get("VirtualMachineInstance", None, Some("default"))),
        ("get vmi -A", get("VirtualMachineInstance", None, None)),
        ("get vmi -n lab", get("VirtualMachineInstance", None, Some("lab"))),
        ("get vmim/a -n lab", get("VirtualMachineInstanceMigration", Some("a"), Some("lab"))),
        ("get vm lab/a", get("VirtualMachine", Some("a"), Some("lab"))),
        ("get ns", get("Namespace", None, None)),
        ("get node a -n lab", get("Node", Some("a"), None)),
        (
            "get hyperconverged kubevirt-hyperconverged -n openshift-cnv",
            get("HyperConverged", Some("kubevirt-hyperconverged"), None),
        ),
        ("get kv", get("KubeVirt", None, None)),
    ] {
        let ran = node.run(line).await;
        assert_eq!((ran.code, node.last()), (Some(0), act), "{line}");
    }
}

#[tokio::test]
async fn a_watch_says_what_is_new() {
    let answer: Answer = |act, asked| match (act, asked) {
        (_, 0) => vec![
            Body::Event(objects(&[policy("a", "1Mi"), policy("b", "2Mi")])),
            Body::Event(objects(&[policy("b", "3Mi")])),
            problem(Code::Unavailable).remove(0),
        ],
        // Whoever is asked then says everything again.
        (_, 1) => vec![
            Body::Event(objects(&[policy("a", "1Mi"), policy("b", "3Mi")])),
            Body::Event(objects(&[policy("c", "1Mi")])),
            problem(Code::Refused).remove(0),
        ],
        _ => problem(Code::Refused),
    };
    let ran = Node::start(answer).run("get migrationpolicy -w").await;
    assert_eq!(ran.stdout, "NAME   BANDWIDTH\na      1Mi\nb      2Mi\nb      3Mi\nc      1Mi\n");
    assert_eq!(ran.code, Some(1), "a no is a no: {ran:?}");
    let ran = Node::start(answer).run("get migrationpolicy -w -o json").await;
    let lines = ran.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let names: Vec<Value> = lines.map(|mut item| item["metadata"]["name"].take()).collect();
    assert_eq!(names, [json!("a"), json!("b"), json!("b"), json!("c"), Value::Null]);
}

#[tokio::test]
async fn an_object_is_described_with_what_else_is_known_of_it() {
    let answer: Answer = |act, _| match act {
        Act::Get { .. } => vec![Body::Ok(objects(&[policy("move-1", "1Mi")]))],
        Act::MigrationExplain { .. } => {
            let mut value = detail("Pending", Some("waits for a permit"));
            (value["nodes"], value["before"]) = (json!({"node-x": "cordoned"}), json!([]));
            vec![Body::Ok(value)]
        }
        _ => problem(Code::NotFound),
    };
    let node = Node::start(answer);
    let ran = node.run("describe vmim move-1").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for part in ["kind: MigrationPolicy\n", "waits for a permit", "node-x", "cordoned"] {
        assert!(ran.stdout.contains(part), "{part}: {ran:?}");
    }
    let ran = node.run("describe vmim/move-1 -o json").await;
    let value: Value = serde_json::from_str(&ran.stdout).expect("one value");
    assert_eq!(
        (&value["object"]["metadata"]["name"], &value["known"]["phase"]),
        (&json!("move-1"), &json!("Pending"))
    );
    // A VM whose guest does not run is there all the same.
    assert_eq!(node.run("describe vm web").await.code, Some(0));
    assert_eq!(node.last(), Act::GuestShow { guest: "default/web".parse().expect("a name") });
}

#[tokio::test]
async fn each_object_is_one_request_and_a_refused_one_stops_no_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: String| fs::write(dir.path().join(name), text).expect("room");
    write("all.yaml", [manifest("a"), manifest("bad"), manifest("c")].join("---\n"));
    write("torn.yaml", "a: [".into());
    write("list.json", json!([policy("d", "1Mi")]).to_string());
    let node = Node::start(usual);
    let ran = run_in(&node, dir.path(), "apply -f all.yaml -f torn.yaml -f list.json --request-id id").await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let done = ["a", "c", "d"].map(|name| format!("migrationpolicy/{name} configured\n")).concat();
    assert_eq!(ran.stdout, done);
    for part in [
        "godwit: all.yaml, object 2: the message",
        "torn.yaml: document 1, line",
        "note: migrationpolicy/a: spec.x",
    ] {
        assert!(ran.stderr.contains(part), "{part}: {ran:?}");
    }
    let ids: Vec<Option<String>> = node.requests().into_iter().map(|request| request.request_id).collect();
    assert_eq!(ids, ["id", "id.1", "id.2", "id.3"].map(|id| Some(id.to_owned())));
    let ran = run_in(&node, dir.path(), "create -f list.json -n lab -o json").await;
    assert_eq!((ran.code, ran.stdout.lines().count()), (Some(0), 1), "{ran:?}");
    let object = policy("d", "1Mi");
    let act = |create, dry_run| Act::Apply {
        object: object.clone(),
        namespace: Some("lab".into()),
        create,
        dry_run,
    };
    assert_eq!(node.last(), act(true, false));
    for dry in ["--dry-run", "--dry-run=client", "--dry-run=server"] {
        let ran = run_in(&node, dir.path(), &format!("apply -n lab {dry} -f list.json")).await;
        assert_eq!(
            (ran.stdout.as_str(), node.last()),
            ("migrationpolicy/d configured (dry run)\n", act(false, true))
        );
    }
    run_in(&node, dir.path(), "apply --dry-run=none -n lab -f list.json").await;
    assert_eq!(node.last(), act(false, false));
    // Nobody who could answer the first could answer the second.
    let deaf = Node::start(|_, _| problem(Code::Unavailable));
    let ran = run_in(&deaf, dir.path(), "apply -f all.yaml").await;
    assert_eq!((ran.code, deaf.requests().len()), (Some(3), 1), "{ran:?}");
    let lost = Node::start(|_, _| problem(Code::Unknown));
    let ran = run_in(&lost, dir.path(), "apply -f all.yaml").await;
    assert_eq!((ran.code, lost.requests().len()), (Some(3), 3), "{ran:?}");
    let id = lost.requests().remove(0).request_id.expect("an id");
    assert_eq!(
        ran.stderr.matches(&format!("--request-id {id}:")).count(),
        3,
        "the whole is asked again: {ran:?}"
    );
}

#[tokio::test]
async fn objects_are_removed_and_labeled() {
    let dir = tempfile::tempdir().expect("a folder");
    let migration = "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstanceMigration\nmetadata: {generateName: m-}\n\
                     spec: {vmiName: web}\n";
    fs::write(dir.path().join("all.yaml"), [manifest("a").as_str(), migration].join("---\n")).expect("room");
    let node = Node::start(usual);
    let ran = run_in(&node, dir.path(), "delete vm lab/a b --dry-run").await;
    assert_eq!(ran.stdout, "migrationpolicy/a deleted (dry run)\nmigrationpolicy/b deleted (dry run)\n");
    let named: Vec<Act> = node.requests().into_iter().map(|request| request.act).collect();
    let delete = |kind: &str, name: &str, namespace: Option<&str>, dry_run| Act::Delete {
        kind: kind.into(),
        name: name.into(),
        namespace: namespace.map(str::to_owned),
        dry_run,
    };
    let both = [delete("VirtualMachine", "a", Some("lab"), true), delete("VirtualMachine", "b", None, true)];
    assert_eq!(named, both);
    let ran = run_in(&node, dir.path(), "delete -f all.yaml").await;
    assert_eq!((ran.code, node.last()), (Some(1), delete("MigrationPolicy", "a", None, false)));
    assert!(ran.stderr.contains("all.yaml, object 2") && ran.stderr.contains("made anew"), "{ran:?}");
    let ran = node.run("label vm/lab/a app=db kubevirt.io/size- tier= --overwrite").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "migrationpolicy/a labeled\n"));
    let labels = [("app", Some("db")), ("kubevirt.io/size", None), ("tier", Some(""))];
    let labels: BTreeMap<String, Option<String>> =
        labels.into_iter().map(|(key, value)| (key.to_owned(), value.map(str::to_owned))).collect();
    let label = Act::Label {
        kind: "VirtualMachine".into(),
        name: "a".into(),
        namespace: Some("lab".into()),
        labels,
        overwrite: true,
        dry_run: false,
    };
    assert_eq!(node.last(), label);
}
