//! `godwit edit` with a script for an editor.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use godwit_wire::admin::{Act, Body, Code, Problem};
use tempfile::TempDir;

use crate::desk::{Answer, Node, Ran, run};
use crate::objects::{objects, policy, usual};

/// An editor: a script in a folder of its own, and where it lies.
fn editor(script: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("editor.sh");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("room");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("it is mine");
    (dir, path)
}

pub(crate) async fn edit(node: &Node, words: &str, script: &str) -> Ran {
    let (dir, path) = editor(script);
    let temporary = dir.path().join("tmp");
    fs::create_dir(&temporary).expect("room");
    let mut command = node.command(&format!("edit {words}"));
    command.env("TMPDIR", &temporary).env("EDITOR", &path).env_remove("VISUAL");
    let ran = run(&mut command).await;
    // What is kept is looked at before the folder goes.
    let kept: Vec<_> =
        fs::read_dir(&temporary).expect("readable").flatten().map(|entry| entry.path()).collect();
    let shown = match kept.as_slice() {
        [] => String::new(),
        [folder] => {
            let mode = fs::metadata(folder).expect("it is there").permissions().mode();
            assert_eq!(mode & 0o077, 0, "nobody else may look");
            let file = fs::read_dir(folder).expect("readable").flatten().next().expect("a file").path();
            assert!(ran.stderr.contains(&file.display().to_string()), "{ran:?}");
            fs::read_to_string(file).expect("text")
        }
        several => panic!("{several:?}"),
    };
    Ran { stdout: format!("{}|{shown}", ran.stdout), ..ran }
}

#[tokio::test]
async fn an_edit_sends_what_was_typed_and_loses_nothing() {
    let node = Node::start(usual);
    let ran = edit(&node, "migrationpolicy a --request-id mine", "sed -i s/1Mi/5Mi/ \"$1\"").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "migrationpolicy/a configured\n|"), "{ran:?}");
    let mut changed = policy("a", "5Mi");
    changed.as_object_mut().expect("a map").remove("status");
    let last = node.requests().pop().expect("a request");
    assert_eq!(last.request_id.as_deref(), Some("mine"));
    assert_eq!(last.act, Act::Apply { object: changed, namespace: None, create: false, dry_run: false });
    for script in ["true", "echo '# a word' >> \"$1\""] {
        let node = Node::start(usual);
        let ran = edit(&node, "migrationpolicy a", script).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "|"), "{ran:?}");
        assert_eq!(ran.stderr, "edit cancelled, no change\n");
        assert_eq!(node.requests().len(), 1, "{script}");
    }
    let ran = edit(&Node::start(usual), "migrationpolicy a", "exit 7").await;
    assert!(ran.code == Some(1) && ran.stderr.contains("nothing was changed"), "{ran:?}");
}

#[tokio::test]
async fn an_edit_that_is_refused_is_kept() {
    for (script, said) in [
        ("sed -i s/1Mi/fast/ \"$1\"", "bandwidthPerMigration"),
        ("sed -i 's/name: a/name: z/' \"$1\"", "another object"),
        ("echo 'a: [' > \"$1\"", "document 1, line"),
        (": > \"$1\"", "no object"),
    ] {
        let node = Node::start(usual);
        let ran = edit(&node, "migrationpolicy a", script).await;
        assert_eq!(ran.code, Some(1), "{script}: {ran:?}");
        assert!(ran.stderr.contains(said) && ran.stderr.contains("godwit apply -f "), "{script}: {ran:?}");
        assert_eq!(node.requests().len(), 1, "{script}: nothing was asked for");
    }
    let refuses: Answer = |act, asked| match act {
        Act::Apply { .. } => vec![Body::Error(Problem::new(Code::Refused, "rule", "not today", "tomorrow"))],
        _ => usual(act, asked),
    };
    let ran = edit(&Node::start(refuses), "migrationpolicy a", "sed -i s/1Mi/5Mi/ \"$1\"").await;
    assert!(ran.code == Some(1) && ran.stderr.contains("not today"), "{ran:?}");
    assert!(ran.stdout.contains("bandwidthPerMigration: 5Mi"), "{ran:?}");
    let changes: Answer = |act, asked| match (act, asked) {
        (Act::Get { .. }, 0) => usual(act, asked),
        (Act::Get { .. }, _) => vec![Body::Ok(objects(&[policy("a", "9Mi")]))],
        _ => usual(act, asked),
    };
    let node = Node::start(changes);
    let ran = edit(&node, "migrationpolicy a", "sed -i s/1Mi/5Mi/ \"$1\"").await;
    assert!(ran.code == Some(1) && ran.stderr.contains("by somebody else"), "{ran:?}");
    assert!(!matches!(node.last(), Act::Apply { .. }));
}
