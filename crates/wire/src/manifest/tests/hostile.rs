//! Hostile texts: each is refused with its place, within bounds, and none panics.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::round::json_value;
use crate::manifest::*;

#[test]
fn a_flaw_is_told_with_its_document_and_line() {
    for (text, document, line, word) in [
        ("a: 1\na: 2\n", 1, 2, "\"a\" is there twice"),
        ("a: 1\n---\nb: {c: 1, c: 2}\n", 2, 3, "\"c\" is there twice"),
        ("a: 1\n\"a\": 2\n", 1, 2, "twice"),
        ("a:\n\tb: 1\n", 1, 2, "tab"),
        ("a: 1\n\nb: \0 2\n", 1, 3, "control character"),
        ("a: \u{1b}[31m\n", 1, 1, "control character"),
        ("a: &x 1\nb: *x\n", 1, 2, "alias"),
        ("a: {b: 1}\n<<: {c: 1}\n", 1, 2, "merge key"),
        ("[a]: 1\n", 1, 1, "a key must be text"),
        ("{a: 1}: 1\n", 1, 1, "a key must be text"),
        ("~: 1\n", 1, 1, "a key must be text"),
        ("a: !!binary aGk=\n", 1, 1, "the tag"),
        ("a: !x b\n", 1, 1, "the tag"),
        ("a: !!int b\n", 1, 1, "the tag"),
        ("a: .inf\n", 1, 1, "no number"),
        ("a: 1e999\n", 1, 1, "no number"),
        ("a: [1\n", 1, 2, "flow"),
        ("a: \"b\n", 1, 1, "end of stream"),
        ("a: b: c\n", 1, 1, "mapping"),
    ] {
        let error = documents(text).expect_err(text);
        let ManifestError::Yaml { document: d, line: l, rule } = &error else { panic!("{text:?}: {error}") };
        assert!((*d, *l) == (document, line) && rule.contains(word), "{text:?}: {error}");
    }
}

#[test]
fn a_text_is_bounded_in_every_direction() {
    let long = "#".repeat(TEXT_BYTES_MAX + 1);
    assert_eq!(documents(&long), Err(ManifestError::Long { bytes: TEXT_BYTES_MAX + 1 }));
    assert_eq!(documents(&long[1..]), Ok(vec![]));
    assert_eq!(documents(&"---\na\n".repeat(DOCUMENTS_MAX)).map(|all| all.len()), Ok(DOCUMENTS_MAX));
    assert_eq!(documents(&"---\na\n".repeat(DOCUMENTS_MAX + 1)), Err(ManifestError::ManyDocuments));
    assert_eq!(documents(&"---\n".repeat(DOCUMENTS_MAX + 1)), Err(ManifestError::ManyDocuments));
    assert_eq!(documents(&format!("[{}]", "{},".repeat(VALUES_MAX))), Err(ManifestError::ManyValues));
    assert!(documents(&format!("[{}]", "{},".repeat(VALUES_MAX - 1))).is_ok());
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert!(documents(&deep(DEPTH_MAX)).is_ok());
    for text in [
        deep(DEPTH_MAX + 1),
        deep(100_000),
        "[".repeat(TEXT_BYTES_MAX),
        "{a: ".repeat(100_000),
        "- ".repeat(TEXT_BYTES_MAX / 2),
        "? ".repeat(TEXT_BYTES_MAX / 2),
    ] {
        assert!(matches!(documents(&text), Err(ManifestError::Yaml { line: 1, .. })), "{}", &text[..8]);
    }
    let mut bomb = "a0: &a0 [x, x]\n".to_owned();
    bomb.extend((1..30).map(|n| format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1)));
    assert!(matches!(documents(&bomb), Err(ManifestError::Yaml { line: 2, .. })));
}

#[test]
fn texts_of_the_greatest_length_are_read_or_refused_and_never_hang() {
    for part in [
        "a", " ", "\n", "\"", "'", "'a' ", ": ", "a: ", "&a ", "!", "!!str ", "%", "%T\n", "|\n", "> ",
        "# \n", "\\", "-", "é",
    ] {
        let text = part.repeat(TEXT_BYTES_MAX / part.len());
        if let Ok(all) = documents(&text) {
            assert!(all.len() <= 1, "{part:?}");
        }
    }
}

#[test]
fn empty_documents_are_left_out_and_text_stays_text() {
    assert_eq!(documents(""), Ok(vec![]));
    assert_eq!(documents("\u{feff}---\n# a remark\n---\n~\n---\n...\n"), Ok(vec![]));
    let text = "---\na: '1'\nb: !!str 1\nc: \"yes\"\n1: x\ntrue: y\n\"null\": z\n---\n- |\n  a\n  b\n- ~\n";
    let first = json!({"a": "1", "b": "1", "c": "yes", "1": "x", "true": "y", "null": "z"});
    assert_eq!(documents(text), Ok(vec![first, json!(["a\nb\n", null])]));
}

/// Words that manifests and hostile texts are made of.
fn fragment() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "apiVersion: ",
        "kind: ",
        "kubevirt.io/v1",
        "v1",
        "KubeVirt",
        "Node",
        "metadata:\n",
        "  name: ",
        "spec:\n",
        "a",
        "  ",
        "\n",
        "- ",
        "? ",
        ": ",
        "&a ",
        "*a",
        "!!str ",
        "!",
        "|\n",
        ">-\n",
        "'",
        "\"",
        "{",
        "}",
        "[",
        "]",
        ",",
        "#",
        "%YAML 1.2\n",
        "---\n",
        "...\n",
        "\t",
        "\r",
        "\u{85}",
        "\u{feff}",
        "<<",
        "~",
        "-1",
        "1e9",
        "\\x",
        "é",
        "0x",
        "@",
    ])
}

proptest! {
    #[test]
    fn no_text_panics(text in prop_oneof![any::<String>(), vec(fragment(), 0..40).prop_map(|all| all.concat())]) {
        for document in documents(&text).unwrap_or_default() {
            let _ = read(&document);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = documents(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_object_panics(
        kind in proptest::sample::select(Kind::ALL.to_vec()),
        inner in btree_map(
            proptest::sample::select(vec![
                "liveMigrationConfig", "virtualization", "configuration", "migrations", "selectors", "running",
                "runStrategy", "template", "domain", "memory", "guest", "volumes", "vmiName", "priority", "metadata",
                "annotations", "labels", "spec", "nodeSelector", "emptyDisk", "capacity", "bandwidthPerMigration",
            ]),
            json_value(),
            0..6,
        ),
    ) {
        let inner: BTreeMap<String, Value> = inner.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let document = json!({
            "apiVersion": kind.api_version(), "kind": kind.name(),
            "metadata": {"name": "a", "annotations": inner}, "spec": inner,
        });
        let _ = read(&document);
        let spec = json!({"template": {"spec": inner, "metadata": inner}, "selectors": inner, "vmiName": "a"});
        let document = json!({
            "apiVersion": kind.api_version(), "kind": kind.name(), "metadata": {"name": "a"}, "spec": spec,
        });
        let _ = read(&document);
    }
}
