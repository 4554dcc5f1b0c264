//! The documentation's manifests are read as it says: what people copy from it works.
//!
//! ```text
//!   docs/*.md, README.md ── ```yaml ─────────▶ read without error
//!                        └─ ```yaml refused ─▶ refused
//!   config/manifests/*.yaml ─────────────────▶ read without error
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use godwit_wire::manifest::{Manifest, documents, read};

/// Documents that must have examples, each at least one that is read.
const WITH_EXAMPLES: [&str; 4] = ["settings.md", "policies.md", "heavy-workloads.md", "kubevirt.md"];
/// Examples that must be there.
const EXAMPLES: [&str; 5] = ["heavy.yaml", "migration.yaml", "policy.yaml", "settings.yaml", "vm.yaml"];

/// A block of a document.
struct Block {
    /// File and line of its first fence.
    place: String,
    /// What stands behind the fence.
    tag: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry of the folder").path());
    let mut found: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|e| e == ending)).collect();
    found.sort();
    found
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All blocks of a document. One that is not closed is a flaw of the document.
fn blocks(file: &str, text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(tag), None) => {
                let place = format!("{file}:{}", index + 1);
                open = Some(Block { place, tag: tag.trim().to_owned(), text: String::new() });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{file}: a block is not closed");
    found
}

fn manifests(text: &str) -> Result<Vec<Manifest>, String> {
    let documents = documents(text).map_err(|error| error.to_string())?;
    let read = |document| read(document).map(|(manifest, _)| manifest).map_err(|error| error.to_string());
    documents.iter().map(read).collect()
}

/// Good and refused blocks of a document, each as it must be.
fn check(file: &str, text: &str) -> (usize, usize) {
    let (mut good, mut refused) = (0, 0);
    for Block { place, tag, text } in blocks(file, text) {
        match (tag.as_str(), manifests(&text)) {
            ("yaml", Ok(manifests)) => {
                assert!(!manifests.is_empty(), "{place}: an empty block");
                good += 1;
            }
            ("yaml", Err(error)) => panic!("{place}: {error}"),
            ("yaml refused", Err(_)) => refused += 1,
            ("yaml refused", Ok(manifests)) => panic!("{place}: it is not refused: {manifests:?}"),
            (tag, _) => {
                assert!(
                    !tag.starts_with("yaml") && tag != "yml",
                    "{place}: nobody checks a block of {tag:?}"
                );
            }
        }
    }
    (good, refused)
}

#[test]
fn every_block_of_the_documentation_is_read_or_refused_as_it_says() {
    let mut paths = files(&root().join("docs"), "md");
    paths.push(root().join("README.md"));
    let checked: Vec<(String, (usize, usize))> =
        paths.iter().map(|path| (name(path), check(&name(path), &text(path)))).collect();
    for must in WITH_EXAMPLES {
        let good = checked.iter().find(|(file, _)| file == must).map(|(_, (good, _))| *good);
        assert!(good.is_some_and(|good| good > 0), "{must} has no example");
    }
    assert!(checked.iter().any(|(_, (_, refused))| *refused > 0), "nothing shows what is refused");
}

#[test]
fn every_example_is_read() {
    let paths = files(&root().join("config/manifests"), "yaml");
    let names: Vec<String> = paths.iter().map(|path| name(path)).collect();
    for must in EXAMPLES {
        assert!(names.iter().any(|name| name == must), "{must} is missing among {names:?}");
    }
    for path in &paths {
        let manifests = manifests(&text(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(!manifests.is_empty(), "{} holds nothing", path.display());
    }
}

#[test]
fn a_flaw_in_a_document_is_found() {
    let good = "```yaml\napiVersion: v1\nkind: Namespace\nmetadata: { name: a }\n```\n";
    let bad = good.replace("name: a", "name: A");
    assert_eq!(check("x", good), (1, 0));
    assert_eq!(check("x", &bad.replace("```yaml", "```yaml refused")), (0, 1));
    for (text, why) in [
        (bad.as_str(), "it is refused"),
        (&good.replace("```yaml", "```yaml refused"), "it is not refused"),
        (&good.replace("```yaml", "```yml"), "nobody would check it"),
        ("```yaml\n```\n", "it is empty"),
        ("```yaml\napiVersion: v1\n", "it is not closed"),
    ] {
        let checked = std::panic::catch_unwind(|| check("x", text));
        assert!(checked.is_err(), "{why}: {text}");
    }
}
