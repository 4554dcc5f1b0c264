//! Rust files as the rules see them: the text, and the code in it without comments and literals.
//!
//! ```text
//!   "a // b" // c     ──▶   ········ ·····      same length, same lines, only code left
//! ```
//!
//! Always true: `code` has as many bytes as `text` and its line breaks in the same places, so a place in one is
//! a place in the other. This is no parser: it knows where comments and literals end, and words.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One Rust file.
pub(crate) struct Source {
    /// Relative to the workspace.
    pub(crate) path: PathBuf,
    /// As written.
    pub(crate) text: String,
    /// Comments and literals replaced by spaces.
    pub(crate) code: String,
}

/// One word of code.
pub(crate) struct Word<'s> {
    pub(crate) text: &'s str,
    /// Where it begins, in bytes.
    pub(crate) start: usize,
}

impl Source {
    pub(crate) fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { path: path.into(), code: code_of(&text), text }
    }

    /// Every identifier and keyword in the code, in order.
    pub(crate) fn words(&self) -> impl Iterator<Item = Word<'_>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = self.code.get(at..)?;
            let start = at + rest.find(is_word_char)?;
            let from = self.code.get(start..)?;
            let len = from.find(|c| !is_word_char(c)).unwrap_or(from.len());
            at = start + len;
            Some(Word { text: from.get(..len)?, start })
        })
    }

    /// `path:line` of a byte.
    pub(crate) fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.path.display(), self.line(offset))
    }

    /// The line of a byte, from 1.
    pub(crate) fn line(&self, offset: usize) -> usize {
        self.code.get(..offset).unwrap_or(&self.code).matches('\n').count() + 1
    }

    /// Whether the file belongs to this crate of the workspace.
    pub(crate) fn is_in_crate(&self, name: &str) -> bool {
        self.path.starts_with(Path::new("crates").join(name))
    }
}

/// Every Rust file of the workspace, in order of path.
pub(crate) fn load(root: &Path) -> io::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for folder in ["crates", "tests", "xtask"] {
        let folder = root.join(folder);
        if folder.is_dir() {
            walk(root, &folder, &mut sources)?;
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn walk(root: &Path, folder: &Path, sources: &mut Vec<Source>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        // The entry's own type, so a link to a folder above is not followed for ever.
        if entry.file_type()?.is_dir() {
            if !hidden && path != root.join("target") {
                walk(root, &path, sources)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root).unwrap_or(&path);
            sources.push(Source::new(relative, fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

pub(crate) fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The text with everything that is not code made blank.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_word = false;
    while let Some(first) = rest.chars().next() {
        let skipped = skip_len(rest, in_word);
        if skipped == 0 {
            code.push(first);
            in_word = is_word_char(first);
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
            continue;
        }
        let (literal, after) = rest.split_at(skipped);
        code.extend(literal.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
        in_word = false;
        rest = after;
    }
    code
}

/// How many bytes at the beginning are a comment or a literal; 0 if it begins with code.
fn skip_len(rest: &str, in_word: bool) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_len(rest);
    }
    if rest.starts_with('"') {
        return quoted_len(rest, '"');
    }
    if rest.starts_with('\'') {
        return char_len(rest);
    }
    // The `r` of a raw string begins a word, or follows the `b` or `c` that does; the `r` in `for` does neither.
    let raw =
        ["r", "br", "cr"].into_iter().find_map(|prefix| rest.strip_prefix(prefix).map(|tail| (prefix, tail)));
    match raw {
        Some((prefix, tail)) if !in_word => raw_len(tail).map_or(0, |len| prefix.len() + len),
        _ => 0,
    }
}

/// Block comments nest in Rust.
fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(tail) = rest.get(at..).filter(|tail| !tail.is_empty()) {
        if tail.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += tail.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `'x'` and `'\n'` are characters, `'x` is a lifetime and therefore code.
fn char_len(rest: &str) -> usize {
    let mut chars = rest.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) => quoted_len(rest, '\''),
        (Some(c), Some('\'')) => c.len_utf8() + 2,
        _ => 0,
    }
}

/// What follows the `r` of a raw string: as many `#` before the first quote as after the last.
fn raw_len(tail: &str) -> Option<usize> {
    let hashes = tail.find(|c| c != '#')?;
    let body = tail.get(hashes..)?.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let len = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(hashes + 1 + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        Source::new("x.rs", text).words().map(|word| word.text.to_owned()).collect()
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        for (text, left) in [
            ("a // b\nc", vec!["a", "c"]),
            ("/// b\n//! c\na", vec!["a"]),
            ("a /* b /* c */ d */ e", vec!["a", "e"]),
            (r#"a "b \" c" d"#, vec!["a", "d"]),
            (r###"a r#"b " c"# d br##"e"# f"## g"###, vec!["a", "d", "g"]),
            (r#"for "x" in y"#, vec!["for", "in", "y"]),
            (r#"var"x""#, vec!["var"]),
            ("f::<'a>('b', '\\'', '\"', c)", vec!["f", "a", "c"]),
            ("r#fn a", vec!["r", "fn", "a"]),
            ("\"ü // ä\" b", vec!["b"]),
            ("a /* never closed", vec!["a"]),
        ] {
            assert_eq!(words(text), left, "{text}");
        }
    }

    #[test]
    fn places_in_code_are_places_in_the_text() {
        let text = "a\n/* ü\n\n*/ \"x\ny\" 'z' here";
        let source = Source::new("crates/x/src/lib.rs", text);
        assert_eq!(source.code.len(), text.len());
        let here = source.words().find(|word| word.text == "here").expect("here");
        assert_eq!(source.place(here.start), "crates/x/src/lib.rs:5");
        assert_eq!(text.get(here.start..), Some("here"));
    }
}
