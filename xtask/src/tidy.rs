//! How code reads: files and functions that end, a map at the beginning, nothing left to do.
//!
//! Always true: the bounds are upper ones. A file aims at 300 lines and a function at one screen.

use crate::Finding;
use crate::source::Source;

/// Longest file, in lines: above it nobody has the whole in mind.
const FILE_LINES_MAX: usize = 500;
/// Longest function, in lines, from its `fn` to its closing brace: two screens.
const FUNCTION_LINES_MAX: usize = 100;

/// Macros that mark unfinished work.
const UNFINISHED: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// All rules.
pub(crate) fn check(sources: &[Source]) -> Vec<Finding> {
    sources.iter().flat_map(check_file).collect()
}

fn check_file(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(Finding {
            place: source.path.display().to_string(),
            what: format!("{lines} lines, at most {FILE_LINES_MAX}: split it where its map has a seam"),
        });
    }
    if !source.text.starts_with("//!") {
        findings.push(Finding {
            place: source.place(0),
            what: "opens without a map: begin with `//!` and what the file is in one sentence".to_owned(),
        });
    }
    for function in functions(source).into_iter().filter(|function| function.lines > FUNCTION_LINES_MAX) {
        findings.push(Finding {
            place: source.place(function.start),
            what: format!(
                "function `{}` has {} lines, at most {FUNCTION_LINES_MAX}: give its parts names",
                function.name, function.lines
            ),
        });
    }
    findings.extend(unfinished(source));
    findings
}

fn unfinished(source: &Source) -> impl Iterator<Item = Finding> {
    source
        .words()
        .filter(|word| UNFINISHED.contains(&word.text))
        .filter(|word| {
            source.code.get(word.start + word.text.len()..).is_some_and(|rest| rest.starts_with('!'))
        })
        .map(|word| Finding {
            place: source.place(word.start),
            what: format!(
                "`{}!` marks unfinished work: finish it, or return an error that says so",
                word.text
            ),
        })
}

struct Function<'s> {
    name: &'s str,
    start: usize,
    lines: usize,
}

/// Every function with a body.
fn functions(source: &Source) -> Vec<Function<'_>> {
    let mut words = source.words().peekable();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        if word.text != "fn" {
            continue;
        }
        // A type `fn(u8)` has no name; the next word is then not divided from it by blanks only.
        let after = word.start + word.text.len();
        let Some(name) = words.peek().filter(|next| is_blank(source.code.get(after..next.start))) else {
            continue;
        };
        if let Some(end) = body_end(&source.code, name.start) {
            let lines = source.line(end) - source.line(word.start) + 1;
            found.push(Function { name: name.text, start: word.start, lines });
        }
    }
    found
}

fn is_blank(between: Option<&str>) -> bool {
    between.is_some_and(|text| text.trim().is_empty())
}

/// Where the closing brace of the function stands whose name begins at `from`; `None` if it has no body.
fn body_end(code: &str, from: usize) -> Option<usize> {
    let mut brackets = 0_usize;
    let mut braces = 0_usize;
    for (at, c) in code.get(from..)?.char_indices() {
        match c {
            '(' | '[' if braces == 0 => brackets += 1,
            ')' | ']' if braces == 0 => brackets = brackets.saturating_sub(1),
            // The `;` in an argument of type `[u8; 4]` ends nothing, and its length may stand in braces.
            ';' if braces == 0 && brackets == 0 => return None,
            '{' if brackets == 0 => braces += 1,
            '}' if brackets == 0 => {
                braces = braces.checked_sub(1)?;
                if braces == 0 {
                    return Some(from + at);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        check(&[Source::new("crates/x/src/lib.rs", text)]).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn a_tidy_file_has_no_findings() {
        let body = "    g();\n".repeat(FUNCTION_LINES_MAX - 2);
        assert_eq!(told(&format!("//! Map.\nfn f() {{\n{body}}}\n")), [""; 0]);
    }

    #[test]
    fn a_long_file_is_found() {
        let at_bound = format!("//! Map.\n{}", "\n".repeat(FILE_LINES_MAX - 1));
        assert_eq!(told(&at_bound), [""; 0]);
        assert_eq!(
            told(&format!("{at_bound}\n")),
            ["crates/x/src/lib.rs: 501 lines, at most 500: split it where its map has a seam"]
        );
    }

    #[test]
    fn a_long_function_is_found_by_name() {
        let body = "    if a { \"}}}\" } // {\n".repeat(FUNCTION_LINES_MAX - 1);
        let text =
            format!("//! Map.\nimpl X {{\nfn long(a: [u8; 4]) -> fn(u8) {{\n{body}}}\n}}\nfn short() {{}}\n");
        assert_eq!(
            told(&text),
            ["crates/x/src/lib.rs:3: function `long` has 101 lines, at most 100: give its parts names"]
        );
    }

    #[test]
    fn functions_end_where_they_end() {
        let text = "trait T {\n    fn none(a: [u8; 4]) -> u8;\n    fn some<F>(f: F)\n    where\n        F: Fn(u8),\n    \
                    {\n        f(1);\n    }\n}\nstruct S {\n    f: fn(u8),\n}\nfn last() { let x = [{ 1 }; 2]; }\n";
        let source = Source::new("x.rs", text);
        let found: Vec<_> =
            functions(&source).iter().map(|function| (function.name, function.lines)).collect();
        assert_eq!(found, [("some", 6), ("last", 1)]);
    }

    #[test]
    fn a_file_without_a_map_is_found() {
        let expected = "crates/x/src/lib.rs:1: opens without a map: begin with `//!` and what the file is in one sentence";
        assert_eq!(told("use std::fmt;\n"), [expected]);
        assert_eq!(told(""), [expected]);
    }

    #[test]
    fn unfinished_work_is_found() {
        let text = "//! Map.\n// todo!()\nfn f() { todo!() }\nfn todo() { unimplemented!(\"x\"); dbg!(1); dbg(2) }\n";
        let told = told(text);
        assert_eq!(told.len(), 3, "{told:#?}");
        assert!(told[0].starts_with("crates/x/src/lib.rs:3: `todo!` marks unfinished work"), "{}", told[0]);
        assert!(told[1].contains("`unimplemented!`") && told[2].contains("`dbg!`"), "{told:#?}");
    }
}
