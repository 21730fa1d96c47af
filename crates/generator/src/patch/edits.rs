// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lines that patches remove and add, regardless of place.

use super::{FilePatch, Line};
use std::collections::BTreeMap;

/// Lines that only one side has, ignoring white space. Moved lines are on both sides,
/// so they do not count.
#[derive(Debug, Default, Clone)]
pub struct Edits {
    /// How many more times the patched source has a line than the original.
    gained: BTreeMap<String, i64>,
}

impl Edits {
    /// The lines of all hunks of `files`.
    pub fn new<'a>(files: impl Iterator<Item = &'a FilePatch>) -> Self {
        let mut gained = BTreeMap::new();
        let hunks = files.flat_map(|file| &file.hunks);
        for line in hunks.flat_map(|hunk| &hunk.lines) {
            let (text, count) = match line {
                Line::Added(text) => (text, 1),
                Line::Removed(text) => (text, -1),
                Line::Context(_) => continue,
            };
            let words: Vec<&str> = text.split_whitespace().collect();
            *gained.entry(words.join(" ")).or_default() += count;
        }
        gained.retain(|_, count| *count != 0);
        Self { gained }
    }

    /// Whether removed lines declared `name` static, and no added line does.
    pub fn end_static(&self, name: &str) -> bool {
        let declares = |sign: i64| {
            let mut lines = self.gained.iter().filter(|(_, count)| **count * sign > 0);
            lines.any(|(line, _)| {
                ["static", name]
                    .iter()
                    .all(|all| words(line).any(|w| w == *all))
            })
        };
        declares(-1) && !declares(1)
    }

    /// Whether removed lines defined the structure, union or typedef `old`, and added
    /// lines define `new`.
    pub fn redefine(&self, old: &str, new: &str) -> bool {
        let defines = |name: &str, sign: i64| {
            let mut lines = self.gained.iter().filter(|(_, count)| **count * sign > 0);
            lines.any(|(line, _)| defines_type(line, name))
        };
        defines(old, -1) && defines(new, 1)
    }

    /// Like [`Edits::rename`], if more than one line has the name, which shows its
    /// use.
    pub fn rename_in_use(&self, old: &str, new: &str) -> bool {
        let lost = self.gained.iter().filter(|(_, count)| **count < 0);
        let mentions = lost.filter(|(line, _)| words(line).any(|word| word == old));
        mentions.count() > 1 && self.rename(old, new)
    }

    /// Whether every line that loses the name `old` gains the name `new` and the
    /// reverse, with no other difference.
    pub fn rename(&self, old: &str, new: &str) -> bool {
        let mention = |name: &str, sign: i64| -> BTreeMap<String, i64> {
            let lines = self.gained.iter().filter(|(_, count)| **count * sign > 0);
            let lines = lines.filter(|(line, _)| words(line).any(|word| word == name));
            lines
                .map(|(line, count)| (without_name(line, name), count * sign))
                .collect()
        };
        let before = mention(old, -1);
        !before.is_empty() && before == mention(new, 1)
    }
}

/// Identifiers and the text between them, in order.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = line;
    std::iter::from_fn(move || {
        let named = part_of_name(rest.chars().next()?);
        let end = rest.find(|c| part_of_name(c) != named);
        let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
        rest = behind;
        Some(word)
    })
}

/// Whether `line` looks like the start or the end of a definition of the type
/// `name`.
fn defines_type(line: &str, name: &str) -> bool {
    let named = words(line).any(|word| word == name);
    let last = words(line).filter(|word| !word.trim().is_empty()).last();
    let first = words(line).next();
    named
        && match first {
            Some("struct" | "union") => last == Some(name) || line.ends_with('{'),
            Some("typedef") => true,
            _ => line.starts_with('}'),
        }
}

/// `line` with each `name` replaced by a mark that no source contains.
fn without_name(line: &str, name: &str) -> String {
    let marked = words(line).map(|word| if word == name { "\0" } else { word });
    marked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::Hunk;

    fn edits(removed: &[&str], added: &[&str]) -> Edits {
        let removed = removed.iter().map(|text| Line::Removed((*text).to_owned()));
        let added = added.iter().map(|text| Line::Added((*text).to_owned()));
        let file = FilePatch {
            old: None,
            new: None,
            written: String::new(),
            hunks: vec![Hunk {
                old_start: 1,
                lines: removed.chain(added).collect(),
            }],
        };
        Edits::new(std::iter::once(&file))
    }

    #[test]
    fn a_name_is_changed_where_nothing_else_is() {
        let edits = edits(
            &["static int a;\n", "\ta = b;\n", "other();\n", "moved(a);\n"],
            &["  static int c;\n", "c = b;\n", "more();\n", "moved(a);\n"],
        );
        assert!(edits.rename("a", "c"));
        assert!(!edits.rename("c", "a") && !edits.rename("a", "b") && !edits.rename("x", "y"));
    }

    #[test]
    fn a_variable_is_static_until_a_line_that_says_so_goes() {
        let ends = |removed: &[&str], added: &[&str]| edits(removed, added).end_static("a");
        assert!(ends(&["static int a;"], &["int a = f();"]));
        assert!(!ends(&["static int a;"], &["static int a = 2;"]));
        assert!(!ends(&["static int b;"], &["int a = f();"]) && !ends(&["a = 1;"], &[]));
    }

    #[test]
    fn a_type_is_defined_anew_where_its_first_or_last_line_is() {
        for (old, new) in [
            ("struct a {", "struct c {"),
            ("union a", "union __packed c {"),
            ("} a;", "typedef struct c c;"),
        ] {
            assert!(edits(&[old], &[new]).redefine("a", "c"), "{old} {new}");
        }
        assert!(!edits(&["struct a *x;"], &["struct c {"]).redefine("a", "c"));
        assert!(!edits(&[], &["struct c {"]).redefine("a", "c"));
        assert!(!edits(&["struct a {"], &["struct c f(void);"]).redefine("a", "c"));
    }

    #[test]
    fn a_line_that_differs_in_more_is_no_change_of_name() {
        assert!(!edits(&["int a;", "a = 1;"], &["int c;", "c = 2;"]).rename("a", "c"));
        assert!(!edits(&["int a;"], &["int c;", "c++;"]).rename("a", "c"));
        assert!(!edits(&["int a;", "a++;"], &["int c;"]).rename("a", "c"));
        assert!(!edits(&["int a;"], &["int ca;"]).rename("a", "c"));
        assert!(!edits(&["int a;"], &["int c;"]).rename_in_use("a", "c"));
        assert!(edits(&["int a;", "f(a);"], &["int c;", "f(c);"]).rename_in_use("a", "c"));
        let twice = edits(&["a = a;", "a = a;"], &["c = c;"]);
        assert!(!twice.rename("a", "c"));
    }
}
