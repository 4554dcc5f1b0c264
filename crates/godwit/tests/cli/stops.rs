//! `guest stop`, `delete`, and `apply` of what is not to run: whose power button is pressed, and what is done after it.

use godwit_domain::{Epoch, GuestSpec, Labels, Qemu};
use godwit_wire::admin::{Act, Body, Code, GuestDetail, GuestRow};
use serde_json::json;

use crate::desk::{Node, problem};

/// A guest as a node shows it.
fn shown(state: &str, is_machine: bool, ended: Option<&str>) -> Vec<Body> {
    let qemu =
        Qemu { program: "qemu".into(), arguments: vec!["-S".into()], ram_id: "ram".into(), adopted: None };
    let row = GuestRow {
        name: "default/vm1".parse().expect("a name"),
        state: state.to_owned(),
        node: None,
        epoch: Epoch(1),
        memory_bytes: 1 << 20,
        migration: None,
    };
    let detail = GuestDetail {
        row,
        uid: "1".into(),
        instance: None,
        copies: Vec::new(),
        ended: ended.map(str::to_owned),
        not_run: None,
        rollbacks: 0,
        spec: GuestSpec { qemu: is_machine.then_some(qemu), ..GuestSpec::idle(1 << 20) },
        labels: Labels::new(),
        node_selector: Labels::new(),
        policy: None,
        migrations: Vec::new(),
    };
    vec![Body::Ok(serde_json::to_value(detail).expect("JSON"))]
}

fn done() -> Vec<Body> {
    vec![Body::Ok(json!({"note": null}))]
}

/// What was asked, in a letter each: Get, Show, Button, sTop, Delete, Apply, small as a dry run; another is ?. All of them are
/// about one guest.
fn asked(node: &Node) -> String {
    let letter = |act: &Act| match act {
        Act::Get { name, .. } => ('G', name.clone()),
        Act::GuestShow { guest } => ('S', Some(guest.name().to_owned())),
        Act::GuestPowerButton { guest } => ('B', Some(guest.name().to_owned())),
        Act::GuestStop { guest } => ('T', Some(guest.name().to_owned())),
        Act::Delete { name, dry_run, .. } => (if *dry_run { 'd' } else { 'D' }, Some(name.clone())),
        Act::Apply { object, dry_run, .. } => {
            let name = object["metadata"]["name"].as_str().map(str::to_owned);
            (if *dry_run { 'a' } else { 'A' }, name)
        }
        _ => ('?', None),
    };
    let all: Vec<_> = node.requests().iter().map(|request| letter(&request.act)).collect();
    assert!(all.iter().all(|(_, guest)| guest.as_deref() == Some("vm1")), "{all:?}");
    all.into_iter().map(|(letter, _)| letter).collect()
}

#[tokio::test]
async fn a_machine_that_runs_is_pressed_waited_for_and_deleted() {
    let node = Node::start(|act, before| match act {
        Act::GuestShow { .. } if before < 4 => shown("running", true, None),
        Act::GuestShow { .. } => shown("lost", true, Some("the guest shut itself down")),
        _ => done(),
    });
    let ran = node.run("guest stop vm1").await;
    let (out, err) = (ran.stdout.trim(), ran.stderr.trim());
    assert_eq!((ran.code, out), (Some(0), "default/vm1 is stopped: the guest shut itself down"), "{err}");
    assert_eq!(err, "the power button of default/vm1 is pressed; it has 60 s");
    assert_eq!(asked(&node), "SBSSST");
    assert!(node.requests().pop().is_some_and(|request| request.request_id.is_some()), "it is made once");
}

#[tokio::test]
async fn one_that_does_not_listen_is_deleted_when_its_grace_is_over() {
    let node = Node::start(|act, _| match act {
        Act::GuestShow { .. } => shown("migrating", true, None),
        _ => done(),
    });
    let ran = node.run("guest stop vm1 --grace 0").await;
    assert!(ran.stdout.contains("is stopped: it had not shut itself down within 0 s"), "{ran:?}");
    assert_eq!((ran.code, asked(&node).as_str()), (Some(0), "SBST"));
}

#[tokio::test]
async fn nothing_is_deleted_whose_button_was_not_pressed() {
    let node = Node::start(|act, _| match act {
        Act::GuestShow { .. } => shown("unreachable", true, None),
        Act::GuestPowerButton { .. } => problem(Code::Failed),
        _ => done(),
    });
    let ran = node.run("guest stop vm1").await;
    assert_eq!((ran.code, asked(&node).as_str()), (Some(1), "SB"), "{ran:?}");
    let way_out = "pull its plug: the same command with --now";
    assert!(
        ran.stderr.contains("default/vm1 was not pressed, and it is not stopped: the message")
            && ran.stderr.contains(way_out),
        "{ran:?}"
    );
    let node = Node::start(|_, _| problem(Code::Unavailable));
    let ran = node.run("guest stop vm1").await;
    assert_eq!((ran.code, asked(&node).as_str()), (Some(3), "S"), "{ran:?}");
}

#[tokio::test]
async fn what_has_no_button_is_deleted_at_once() {
    for (line, answer, order) in [
        ("guest stop vm1 --now", (|_, _| done()) as crate::desk::Answer, "T"),
        (
            "guest stop vm1",
            |act, _| {
                if matches!(act, Act::GuestStop { .. }) { done() } else { shown("running", false, None) }
            },
            "ST",
        ),
        (
            "guest stop vm1",
            |act, _| if matches!(act, Act::GuestStop { .. }) { done() } else { shown("lost", true, None) },
            "ST",
        ),
        // One that this very request has stopped before: its answer is that of the first.
        (
            "guest stop vm1 --request-id mine",
            |act, _| if matches!(act, Act::GuestStop { .. }) { done() } else { problem(Code::NotFound) },
            "ST",
        ),
    ] {
        let node = Node::start(answer);
        let ran = node.run(line).await;
        assert_eq!((ran.code, ran.stdout.trim()), (Some(0), "default/vm1 is stopped"), "{line}: {ran:?}");
        assert_eq!(asked(&node), order, "{line}");
    }
}

/// A machine is shut down before its object goes, and before it is said that it is not to run; nothing else is asked for more.
#[tokio::test]
async fn a_machine_whose_object_goes_shuts_itself_down_first() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("vm.yaml");
    let manifest = |running: bool| {
        format!(
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {{name: vm1}}\nspec: {{running: {running}}}\n"
        )
    };
    let (off, on) = (file.display().to_string(), dir.path().join("on.yaml").display().to_string());
    std::fs::write(&off, manifest(false)).expect("written");
    std::fs::write(&on, manifest(true)).expect("written");
    for (line, order) in [
        ("delete vm vm1".to_owned(), "SdBSD"),
        ("delete vmi default/vm1".to_owned(), "SdBSD"),
        (format!("delete -f {on}"), "SdBSD"),
        ("delete vm vm1 --now".to_owned(), "D"),
        ("delete vm vm1 --dry-run".to_owned(), "d"),
        ("delete migrationpolicy vm1".to_owned(), "D"),
        (format!("apply -f {off}"), "SaBSA"),
        (format!("apply -f {off} --now"), "A"),
        (format!("apply -f {off} --dry-run"), "a"),
        (format!("apply -f {on}"), "A"),
        (format!("create -f {off}"), "A"),
    ] {
        let node = Node::start(|act, before| match act {
            Act::GuestShow { .. } if before == 0 => shown("running", true, None),
            Act::GuestShow { .. } => shown("lost", true, Some("the guest shut itself down")),
            Act::Apply { .. } | Act::Delete { .. } => crate::objects::usual(act, before),
            _ => done(),
        });
        let ran = node.run(&line).await;
        assert_eq!((ran.code, asked(&node).as_str()), (Some(0), order), "{line}: {ran:?}");
        assert_eq!(ran.stderr.contains("the guest shut itself down"), order.contains('B'), "{line}: {ran:?}");
    }
    // What is not granted presses nothing: the guest is what it was.
    let refuses = |state: &'static str| match state {
        "dry" => Node::start(|act, _| match act {
            Act::GuestShow { .. } => shown("running", true, None),
            _ => problem(Code::Refused),
        }),
        _ => Node::start(|act, before| match act {
            Act::GuestShow { .. } => shown("unsure", true, None),
            Act::GuestPowerButton { .. } => problem(Code::Failed),
            _ => crate::objects::usual(act, before),
        }),
    };
    for (line, when, order) in [
        (format!("apply -f {off}"), "dry", "SaA"),
        ("delete vm vm1".to_owned(), "dry", "SdD"),
        // Whose button can not be pressed stays, and the next one is asked for.
        ("delete vm vm1 vm1".to_owned(), "pressed", "SdBSdB"),
        (format!("apply -f {off}"), "pressed", "SaB"),
    ] {
        let node = refuses(when);
        let ran = node.run(&line).await;
        assert_eq!((ran.code, asked(&node).as_str()), (Some(1), order), "{line}: {ran:?}");
    }
}

/// A machine that is said in an editor not to run: the same, and what was typed is kept where its button could not be pressed.
#[tokio::test]
async fn a_machine_that_is_edited_not_to_run_shuts_itself_down_first() {
    fn answer(act: &Act, before: usize) -> Vec<Body> {
        match act {
            // Looked at, and looked at again before it is changed and after the button.
            Act::Get { .. } => vec![Body::Ok(machine())],
            Act::GuestShow { .. } if before < 4 => shown("running", true, None),
            Act::GuestShow { .. } => shown("lost", true, Some("the guest shut itself down")),
            Act::GuestPowerButton { .. } => done(),
            _ => crate::objects::usual(act, before),
        }
    }
    fn refuses(act: &Act, before: usize) -> Vec<Body> {
        if matches!(act, Act::GuestPowerButton { .. }) { problem(Code::Failed) } else { answer(act, before) }
    }
    fn machine() -> serde_json::Value {
        let object = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": {"name": "vm1", "namespace": "default"}, "spec": {"running": true},
        });
        json!({ "kind": "VirtualMachine", "items": [object], "head": [], "narrow": 0, "rows": [] })
    }
    let off = "sed -i 's/running: true/running: false/' \"$1\"";
    for (words, script, answer, order) in [
        ("vm vm1", off, answer as crate::desk::Answer, "GGSaBSGA"),
        ("vm vm1 --now", off, answer, "GGA"),
        ("vm vm1", "sed -i 's/^  name: vm1/&\\n  labels: {tier: web}/' \"$1\"", answer, "GGA"),
        ("vm vm1", off, refuses, "GGSaB"),
    ] {
        let node = Node::start(answer);
        let ran = crate::edits::edit(&node, words, script).await;
        assert_eq!(asked(&node), order, "{words}, {script}: {ran:?}");
        let is_kept = ran.stdout.ends_with("running: false\n");
        assert_eq!(
            (ran.code, is_kept),
            if order.ends_with('B') { (Some(1), true) } else { (Some(0), false) },
            "{ran:?}"
        );
    }
}
